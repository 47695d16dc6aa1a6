"""Calibration: isotonic against a slow twin, honest halves, and what it says when it knows nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.evaluation.confidence import (
    Calibration,
    ConfidenceConfig,
    Matches,
    calibrate,
    first_half,
    pooled_steps,
    score_matches,
)


def slow_pooled(score, right):
    """Pool adjacent violators, as in the textbook: merge neighbours until the means rise."""
    blocks = []  # [lowest score, highest score, hits, queries]
    for value in sorted(set(score)):
        members = [r for s, r in zip(score, right, strict=True) if s == value]
        blocks.append([value, value, sum(members), len(members)])
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][3] >= blocks[-1][2] / blocks[-1][3]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0], last[1], blocks[-1][2] + last[2], blocks[-1][3] + last[3]]
    return blocks


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60))
def test_steps_equal_pooling_by_hand(pairs):
    score, right = np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs])
    scores, probabilities = pooled_steps(score, right)
    edge = 1 / (len(pairs) + 2)
    for low, high, hits, count in slow_pooled(score.tolist(), right.tolist()):
        for corner in (low, high):
            found = np.interp(corner, scores, probabilities)
            assert found == pytest.approx(min(max(hits / count, edge), 1 - edge))
    assert (np.diff(probabilities) >= 0).all()
    assert (np.diff(scores) > 0).all()
    assert 0 < probabilities.min() <= probabilities.max() < 1


def a_street(num_queries=2000, seed=0):
    """Queries along a street, right with a chance of exactly their similarity; the margin says nothing."""
    draw = np.random.default_rng(seed)
    best = draw.uniform(0, 1, num_queries)
    similarity = best[:, None] - np.sort(draw.uniform(0, 0.5, (num_queries, 10)), axis=1)
    similarity[:, 0] = best
    lat = np.full((num_queries, 10), 37.0)
    lon = -122.0 + draw.uniform(0, 1, (num_queries, 10))
    right = draw.random(num_queries) < best
    where = np.linspace(-122.0, -121.0, num_queries)
    return Matches(similarity, lat, lon, np.full(lat.shape, np.nan)), right, where


def test_probability_is_learned_and_its_reliability_stated():
    matches, right, lon = a_street()
    nowhere = np.full(len(lon), np.nan)
    calibration, note = calibrate(matches, right, np.full(len(lon), 37.0), lon, nowhere, ConfidenceConfig())
    assert calibration is not None, note
    assert calibration.score == "similarity"
    tested = calibration.reliability
    assert tested.queries + calibration.fitted_on == len(right)
    # 1000 queries a half: a share of 200 queries has a standard error of 0.035.
    assert tested.error < 0.06
    assert tested.brier < tested.brier_constant - 0.05
    asked = Matches(
        *(
            np.repeat(part[:1], 3, axis=0)
            for part in (matches.similarity, matches.lat, matches.lon, matches.frame)
        )
    )
    asked.similarity[:, 0] = [0.1, 0.5, 0.9]
    sure = calibration.probability(asked.similarity, asked.lat, asked.lon, asked.frame)
    assert sure == pytest.approx([0.1, 0.5, 0.9], abs=0.12)
    assert "tested on" in note


def test_reliability_comes_from_the_half_that_was_not_fitted():
    """All answers right where it is fitted, all wrong where it is tested: the stated error is nearly 1."""
    matches, _, lon = a_street()
    lat, nowhere = np.full(len(lon), 37.0), np.full(len(lon), np.nan)
    fitting = first_half(lat, lon, nowhere, ConfidenceConfig())
    calibration, _ = calibrate(matches, fitting, lat, lon, nowhere, ConfidenceConfig())
    assert calibration is not None
    assert calibration.fitted_on == fitting.sum()
    assert calibration.reliability.error > 0.99


def test_one_corner_never_stands_on_both_sides():
    """Blocks of ground go to one half as a whole, the halves are even, and the order plays no part."""
    draw = np.random.default_rng(1)
    lat, lon = 48 + draw.uniform(0, 0.02, 300), 11 + draw.uniform(0, 0.02, 300)
    nowhere, config = np.full(300, np.nan), ConfidenceConfig()
    first = first_half(lat, lon, nowhere, config)
    assert 0.45 < first.mean() < 0.55
    twins = first_half(np.tile(lat, 2), np.tile(lon, 2), np.tile(nowhere, 2), config)
    assert (twins[:300] == twins[300:]).all()
    near = first_half(np.append(lat, lat + 1e-7), np.append(lon, lon + 1e-7), np.tile(nowhere, 2), config)
    assert (near[:300] == near[300:]).mean() > 0.99  # one centimetre crosses a block border almost nowhere
    order = draw.permutation(300)
    assert (first_half(lat[order], lon[order], nowhere, config) == first[order]).all()
    frames = np.arange(200.0)
    by_frame = first_half(np.full(200, np.nan), np.full(200, np.nan), frames, config)
    assert (by_frame.reshape(20, 10) == by_frame.reshape(20, 10)[:, :1]).all()
    assert by_frame.sum() == 100


def test_too_few_queries_give_no_calibration_and_say_why():
    matches, right, lon = a_street(30)
    nothing, note = calibrate(matches, right, np.full(30, 37.0), lon, np.full(30, np.nan), ConfidenceConfig())
    assert nothing is None
    assert "at least 20 of each are needed" in note


def test_all_right_is_not_certainty():
    matches, right, lon = a_street(400)
    calibration, _ = calibrate(
        matches, np.ones_like(right), np.full(400, 37.0), lon, np.full(400, np.nan), ConfidenceConfig()
    )
    assert calibration is not None
    sure = calibration.probability(matches.similarity, matches.lat, matches.lon, matches.frame)
    assert sure == pytest.approx(1 - 1 / (calibration.fitted_on + 2))


def test_margin_is_measured_to_another_place():
    similarity = np.array([[0.9, 0.8, 0.6, 0.5], [0.9, 0.8, 0.6, np.nan], [np.nan] * 4])
    lat = np.array([[1.0, 1.0001, 1.01, 1.02], [1.0, 1.0001, 1.0002, np.nan], [np.nan] * 4])
    lon = np.where(np.isnan(lat), np.nan, 7.0)
    matches = Matches(similarity, lat, lon, np.full((3, 4), np.nan))
    margin = score_matches("margin", matches, 4, elsewhere_m=50.0, elsewhere_frames=10)
    assert margin[0] == pytest.approx(0.3)  # the 11 m neighbour is the same place
    assert margin[1] == pytest.approx(0.3)  # nothing elsewhere: at least the gap to the last match
    assert np.isnan(margin[2])
    frames = Matches(
        similarity, np.full((3, 4), np.nan), np.full((3, 4), np.nan), np.array([[5.0, 7, 14, 16]] * 3)
    )
    assert score_matches("margin", frames, 4, 50.0, 10)[0] == pytest.approx(0.4)


def test_document_round_trip():
    matches, right, lon = a_street(300)
    calibration, _ = calibrate(
        matches, right, np.full(300, 37.0), lon, np.full(300, np.nan), ConfidenceConfig()
    )
    assert calibration is not None
    assert Calibration.from_document(json.loads(json.dumps(calibration.to_document()))) == calibration
