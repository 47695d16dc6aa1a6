"""The parts of the page: choice of examples, maps, charts, words, photos."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from placeray.evaluation import words
from placeray.evaluation.curves import SHARE, Line, fitted_axis, line_chart, recall_axis
from placeray.evaluation.gallery import GalleryConfig, choose_queries, spots_of
from placeray.evaluation.map_svg import (
    MAX_DOTS,
    WIDTH,
    Projection,
    example_map,
    ground_definition,
    overview_map,
)
from placeray.evaluation.page_data import Answer, AnswerRow, Example, Ground
from placeray.evaluation.photos import load_photos, thumbnail


class Ranked:
    """Stands in for gallery.System: only who is right at the first answer matters to the choice."""

    def __init__(self, right):
        self.ranking = type("Ranking", (), {"right": np.asarray(right, bool)[:, None]})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_choice_is_by_rule_without_repeats_and_with_failures(outcomes, examples, failures):
    before, after = np.array([b for b, _ in outcomes]), np.array([a for _, a in outcomes])
    chosen = choose_queries(
        [Ranked(before), Ranked(after)], GalleryConfig(examples=examples, failures=failures)
    )
    assert len(set(chosen)) == len(chosen) <= examples
    assert set(chosen) <= set(range(len(outcomes)))
    wrong = [q for q in chosen if not after[q]]
    assert len(wrong) >= min(failures, examples, int((~after).sum()))
    assert chosen[len(chosen) - len(wrong) :] == wrong
    assert len(chosen) == min(examples, len(outcomes))


def a_ground(num=3000, kind="metres") -> Ground:
    draw = np.random.default_rng(0)
    spots = draw.uniform(-500, 500, (num, 2))
    if kind == "frames":
        spots = np.stack([np.arange(num, dtype=float), np.zeros(num)], axis=1)
    queries = spots[:4] + 1.0
    found = np.array([spots[0], spots[1], spots[9], [np.nan, np.nan]])
    return Ground(kind, spots, queries, found, np.array([True, True, False, False]))


@pytest.mark.parametrize("kind", ["metres", "frames"])
def test_maps_are_valid_north_up_and_bounded(kind):
    ground = a_ground(kind=kind)
    projection = Projection.of(ground)
    for x, y in (projection.pixel((float(a), float(b))) for a, b in ground.database):
        assert 0 <= x <= WIDTH
        assert 0 <= y <= projection.height
    if kind == "metres":
        assert projection.pixel((0.0, 10.0))[1] < projection.pixel((0.0, 0.0))[1]
    definition = ElementTree.fromstring(ground_definition(ground, projection))
    assert 0 < len(list(definition.iter("circle"))) <= MAX_DOTS
    ruler = next(definition.iter("text")).text
    assert re.fullmatch(r"[125]0* (m|frames)", ruler)
    drawing = ElementTree.fromstring(overview_map(ground, projection))
    marks = [mark.get("class") for mark in drawing.iter() if "found" in (mark.get("class") or "")]
    assert sorted(marks) == ["found right"] * 2 + ["found wrong"] * 2
    assert sum("miss" in (line.get("class") or "") for line in drawing.iter("line")) == 1


def test_an_example_map_shows_truth_and_answer_and_says_so():
    ground = a_ground()
    answer = Answer(None, "m1", False, 812.4, None, 0.5, 3, (100.0, 0.0))
    example = Example(None, "q1", (0.0, 50.0), 2, (AnswerRow("trained", (answer,), None),))
    drawing = ElementTree.fromstring(example_map(example, ground, Projection.of(ground)))
    assert drawing.get("aria-label") == (
        "Map: the best match is wrong, 812 metres from the truth, the ring is the true place."
    )
    classes = {mark.get("class") for mark in drawing.iter()}
    assert {"truth", "found wrong", "miss wrong"} <= classes
    nothing = Example(None, "q2", None, 0, (AnswerRow("trained", (), None),))
    assert "no positions known" in example_map(nothing, ground, Projection.of(ground))


def test_spots_are_metres_and_cross_the_date_line():
    table = pa.table({"lat": [10.0, 10.001], "lon": [179.9999, -179.9999], "frame": [1, 2]})
    spots = spots_of(table, (10.0, 180.0))
    assert spots[1, 0] - spots[0, 0] == pytest.approx(21.9, abs=0.2)
    assert spots[1, 1] == pytest.approx(110.6, abs=0.2)
    assert spots_of(table, None).tolist() == [[1.0, 0.0], [2.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_axes_hold_their_values_between_few_round_marks(values):
    axis = fitted_axis("loss", values)
    slack = 1e-6 * max(1, axis.high - axis.low)  # far less than a pixel of the axis
    assert axis.low <= min(values) + slack
    assert axis.high >= max(values) - slack
    assert 2 <= len(axis.marks) <= 12


def test_a_chart_is_valid_svg_with_its_ends_in_place():
    lines = [
        Line("a<b", range(1, 101), np.linspace(0, 1, 100).tolist(), "main"),
        Line("one", (5.0,), (0.5,), "base"),
    ]
    drawing = ElementTree.fromstring(line_chart('says "this" & that', lines, recall_axis(100), SHARE))
    assert drawing.get("aria-label") == 'says "this" & that'
    points = [pair.split(",") for pair in next(drawing.iter("polyline")).get("points").split()]
    assert points[0] == ["44.0", "198.0"]
    assert points[-1] == ["318.0", "12.0"]
    assert [text.text for text in drawing.iter("text") if text.get("class") == "legend"] == ["a<b", "one"]
    assert len(list(drawing.iter("circle"))) == 1


def test_the_legend_keeps_out_of_the_way():
    """Rising lines have it at the bottom, falling ones at the top."""
    places = {}
    for name, y in (("rising", [0.1, 0.9]), ("falling", [0.9, 0.1])):
        drawing = ElementTree.fromstring(
            line_chart(name, [Line(name, [1, 100], y, "main")], recall_axis(100), SHARE)
        )
        (text,) = [text for text in drawing.iter("text") if text.get("class") == "legend"]
        places[name] = float(text.get("y"))
    assert places["falling"] < 40 < 170 < places["rising"]


def test_words():
    assert [words.percent(share) for share in (0.0, 0.9996, 1.0)] == ["0 %", "100.0 %", "100 %"]
    assert words.points(-0.006) == "\u22120.6 pt"
    assert [words.metres(d) for d in (4.4, 999.4, 12345)] == ["4 m", "999 m", "12.3 km"]
    assert [words.size(n) for n in (64, 2116, 3.2e9, 5e15)] == ["64 B", "2.1 kB", "3.2 GB", "5000.0 TB"]
    assert words.milliseconds(0.1234) == "0.123 ms"
    assert words.rule({"kind": "frames", "window": 2}) == "lies within 2 frames of the query on the same walk"


def test_photos_come_by_id_from_bytes_or_by_reference(images):
    found = load_photos([images], {"m0000", "q0000", "q0001", "q0119", "nobody"})
    assert set(found) == {"m0000", "q0000", "q0119"}  # q0001 is gone from disk: a gap, not an error
    assert found["q0000"][:2] == b"\xff\xd8"


def test_thumbnails_are_small_upright_and_never_fail():
    picture = Image.new("RGB", (400, 200), (200, 30, 30))
    exif = picture.getexif()
    exif[0x0112] = 6  # stored lying on its side
    out = io.BytesIO()
    picture.save(out, "JPEG", exif=exif)
    small = thumbnail(out.getvalue(), width_px=100)
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (50, 100)
    assert thumbnail(out.getvalue()[:300], width_px=100) is None
    assert thumbnail(b"no picture", width_px=100) is None
