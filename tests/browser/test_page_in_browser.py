"""The page in a real browser, opened from disk: it loads nothing, and what matters can be seen.

Needs chromium and chromedriver; skipped where they are absent.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chrome import start_chrome
from PIL import Image

from placeray.evaluation.confidence import Calibration, Reliability
from placeray.evaluation.latency import Latency, StageTime
from placeray.evaluation.page import POLICY, render_page
from placeray.evaluation.page_data import Answer, AnswerRow, Example, Ground, Page, TrainingCurve
from placeray.evaluation.report import EvalReport, MapFacts, MethodResult
from placeray.metrics import Recall


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chrome(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(chrome: Any, tmp_path: Path) -> Any:
    """The browser with the page open, in light colours at 1280 x 900, and empty logs."""
    file = tmp_path / "page.html"
    file.write_text(render_page(a_page()), encoding="utf-8")
    show(chrome, file)
    return chrome


def show(chrome: Any, file: Path, scheme: str = "light", width: int = 1280) -> None:
    # An emulated screen: a headless window has a least width of its own.
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get_log("performance")
    chrome.get_log("browser")
    chrome.get(file.as_uri())


def requests(chrome: Any) -> list[str]:
    """Every address the page asked for since it was opened, itself and inline data left out."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith("data:") and url != chrome.current_url]


def test_it_loads_nothing_and_complains_about_nothing(opened: Any) -> None:
    assert requests(opened) == []
    assert opened.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert opened.get_log("browser") == []


def test_the_request_log_would_show_a_request(opened: Any, tmp_path: Path) -> None:
    """Without this the test above could pass on a log that never records anything."""
    outside = '<img src="http://127.0.0.1:9/x.png">'
    text = render_page(a_page())
    leaky = tmp_path / "leaky.html"
    leaky.write_text(text.replace("<h1>", f"{outside}<h1>").replace(POLICY, ""), encoding="utf-8")
    show(opened, leaky)
    assert requests(opened) == ["http://127.0.0.1:9/x.png"]
    guarded = tmp_path / "guarded.html"
    guarded.write_text(text.replace("<h1>", f"{outside}<h1>"), encoding="utf-8")
    show(opened, guarded)
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


def test_what_was_asked_and_found_is_seen_without_scrolling(opened: Any) -> None:
    assert opened.find_element("tag name", "h1").text == (
        "The first answer is right for 75.0 % of 40 query photos, against 10.0 % untrained."
    )
    for selector in ("h1", ".tiles", ".card .query img", ".card .photo.right img", ".card .map"):
        box = opened.find_element("css selector", selector).rect
        assert box["y"] < 900, selector
        assert box["width"] > 60, selector
        assert box["height"] > 30, selector


def test_frames_are_green_and_red_and_every_photo_shows(opened: Any) -> None:
    colours = {
        kind: {
            opened.execute_script("return getComputedStyle(arguments[0]).outlineColor", image)
            for image in opened.find_elements("css selector", f".photo.{kind} img")
        }
        for kind in ("right", "wrong")
    }
    assert colours == {"right": {"rgb(15, 122, 66)"}, "wrong": {"rgb(196, 51, 46)"}}
    widths = opened.execute_script("return [...document.images].map(i => [i.naturalWidth, i.alt])")
    assert len(widths) == 2 * (1 + 5 + 4)  # two queries; five answers trained, four with a photo untrained
    assert all(width == 80 and alt for width, alt in widths)
    captions = [
        caption.text.splitlines()
        for caption in opened.find_elements("css selector", ".card:first-child .row figcaption")
    ]
    assert captions[0] == ["✓ 5 m", "0.900"]
    assert captions[3] == ["✗ 812 m", "0.600"]
    assert len(opened.find_elements("css selector", ".missing")) == 2


def test_maps_draw_the_ground_the_truth_and_the_answer(opened: Any) -> None:
    maps = opened.find_elements("css selector", ".card .map")
    assert [drawing.get_attribute("aria-label") for drawing in maps] == [
        "Map: the best match is right, 5 metres from the truth, the ring is the true place.",
        "Map: the best match is wrong, 812 metres from the truth, the ring is the true place.",
    ]
    for drawing in maps:
        ground = opened.execute_script("return arguments[0].querySelector('use').getBBox().width", drawing)
        assert ground > 250  # the shared dots really appear in each small map
        assert drawing.find_element("css selector", ".truth").rect["width"] > 8


def test_tables_and_charts_hold_the_figures(opened: Any) -> None:
    rows = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in opened.find_elements("css selector", "table.recall tr")
    ]
    assert rows[0] == ["system", "search", "recall@1", "recall@5", "recall@1, answerable"]
    assert rows[1] == ["Untrained", "Binary only", "5.0", "20.0", "10.0"]
    assert rows[-1] == ["Exhaustive float", "77.5", "90.0", "82.5"]
    assert len(rows) == 7
    titles = [title.text for title in opened.find_elements("css selector", ".charts h3")]
    assert titles == ["Binary only", "Two-stage", "Exhaustive float", "Training loss"]
    assert len(opened.find_elements("css selector", ".chart polyline")) == 2 * 3 + 2 + 1
    assert "random frozen weights" in opened.find_element("css selector", ".note").text


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_nothing_sticks_out_sideways(chrome: Any, tmp_path: Path, width: int) -> None:
    file = tmp_path / "page.html"
    file.write_text(render_page(a_page()), encoding="utf-8")
    show(chrome, file, width=width)
    assert chrome.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [
        width,
        width,
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(chrome: Any, tmp_path: Path, scheme: str) -> None:
    """WCAG contrast of at least 4.5 for every text colour on what lies behind it."""
    file = tmp_path / "page.html"
    file.write_text(render_page(a_page()), encoding="utf-8")
    show(chrome, file, scheme=scheme)
    pairs = chrome.execute_script(CONTRASTS)
    assert len(pairs) > 50
    paper = luminance(chrome.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for text, ink, behind in pairs:
        low, high = sorted((luminance(ink), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, behind)


CONTRASTS = """
const seen = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !element.getClientRects().length) continue;
  const svg = element.closest('svg');
  const ink = getComputedStyle(element)[svg ? 'fill' : 'color'];
  let behind = svg && svg.querySelector('.paper') ? getComputedStyle(svg.querySelector('.paper')).fill : null;
  for (let e = element; !behind && e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') behind = colour;
  }
  seen.push([element.textContent.trim().slice(0, 30), ink, behind]);
}
return seen;
"""


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2)."""
    parts = np.array([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def a_page() -> Page:
    """Two queries, one found and one not, trained and untrained."""
    draw = np.random.default_rng(0)
    streets = np.stack([draw.uniform(-400, 400, 400), draw.choice([-200.0, 0.0, 200.0], 400)], axis=1)
    queries, found = streets[:40] + 3.0, streets[:40].copy()
    right = np.arange(40) < 30
    found[~right] = streets[200:210]
    return Page(
        title="A made-up city",
        reports=(report("untrained", 0.1), report("trained", 0.75)),
        examples=(example(1, True, (10.0, 0.0)), example(2, False, (-300.0, 200.0))),
        ground=Ground("metres", streets, queries, found, right),
        notes=("The backbone has random frozen weights.",),
        training=(TrainingCurve("Training loss", "epoch", (("float", (1, 2, 3), (2.0, 1.0, 0.5)),)),),
    )


def example(number: int, right: bool, spot: tuple[float, float]) -> Example:
    def answers(first_right: int, with_photo: int) -> tuple[Answer, ...]:
        return tuple(
            Answer(
                image=jpeg((60 * rank, 120, 200)) if rank < with_photo else None,
                image_id=f"m{rank}",
                right=rank < first_right,
                distance_m=5.0 if rank < first_right else 812.0,
                frame_gap=None,
                similarity=0.9 - 0.1 * rank,
                hamming=10 + rank,
                spot=(spot[0] + (5.0 if rank < first_right else 400.0), 0.0),
            )
            for rank in range(5)
        )

    rows = (
        AnswerRow("trained", answers(3 if right else 0, 5), 0.93 if right else 0.2),
        AnswerRow("untrained", answers(0, 4), None),
    )
    return Example(jpeg((200, 80, 40)), f"q{number}", spot, 3, rows)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 60), colour).save(out, "JPEG")
    return out.getvalue()


def report(label: str, share: float) -> EvalReport:
    times = {"first_stage": StageTime(0.2, 0.4), "total": StageTime(0.3, 0.6)}

    def method(first: float) -> MethodResult:
        recall = Recall((1, 5), (first, min(first + 0.15, 0.9)), (first + 0.05, 0.95), 40, 36)
        return MethodResult(
            recall, tuple(np.linspace(first, 0.95, 20)), (first * 0.9, first), 6.5, Latency(times, times, 32)
        )

    tested = Reliability(18, ((0.2, 0.25, 9), (0.9, 0.85, 9)), 0.1, 0.2, 0.05)
    return EvalReport(
        name="made-up/all",
        label=label,
        created_at="2026-01-01T00:00:00+00:00",
        model={"id": "ab" * 32, "preprocessing": "platform-112", "code_bits": 512, "descriptor_dim": 128},
        map=MapFacts("runs/map", 400, 400 * 64, 400 * 132),
        positive_rule={"kind": "radius", "radius_m": 25.0},
        num_queries=40,
        num_with_positive=36,
        shortlist=100,
        methods={
            "binary": method(share - 0.05),
            "two_stage": method(share),
            "exhaustive": method(share + 0.025),
        },
        confidence=Calibration("margin", (0.0, 0.5), (0.1, 0.9), 10, 50.0, 10, 22, tested),
        confidence_note="fitted on 22 queries",
        config={},
    )
