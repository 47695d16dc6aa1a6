"""The page of a look in a real browser, opened from disk: it loads nothing, every photo shows, nothing sticks out.

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

from placeray.overview.city_map import CityMap
from placeray.overview.figures import LeakFigures, LeakingPlace, Overview, RejectSample, SourceFigures
from placeray.overview.page import render_page
from placeray.overview.sheet import SheetPhoto, SheetRow

WIDE = 1280


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = start_chrome(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of long names, a leak, a refused input, samples with and without a picture."""
    file = tmp_path_factory.mktemp("look") / "page.html"
    rng = np.random.default_rng(0)
    spots = np.stack([55.7 + rng.normal(0, 0.004, 300), 13.2 + rng.normal(0, 0.006, 300)], axis=1)
    picture = io.BytesIO()
    Image.new("RGB", (200, 150), (90, 120, 60)).save(picture, "JPEG")
    photos = [
        SheetPhoto(
            picture.getvalue() if number else None,
            f"id{number}",
            "2024-04-17T15:10:09+02:00",
            45.0 * number,
            None,
        )
        for number in range(6)
    ]
    overview = Overview(
        title="A look", radius_m=25.0, sources=[source("a-rather-long-name/official-740/train"), source("set/test")],
        rejects=[RejectSample(dataset="set", reason="decode_error", rows=[("/raw/" + "x" * 200, "cut short")])],
        pairs_compared=1, leaks=[leak()], notes=["A note."],
    )  # fmt: skip
    maps = [CityMap("set/train", "town", 300, {"train": spots}, [spots[:20]], spots[:9])]
    file.write_text(
        render_page(overview, (maps, 0), [SheetRow("set/train", "place", (55.7, 13.2), photos, 2)])
    )
    return file


def source(name: str) -> SourceFigures:
    dataset, _, split = name.rpartition("/")
    return SourceFigures(
        name=name, dataset=dataset, split=split, input="/data", positive_rule={"kind": "radius", "radius_m": 25.0},
        read=400, kept=399, rejected={"decode_error": 1}, places=80, places_dropped_small=3, photos_without_place=9,
        roles={"train": 399}, cities={"town": 399}, years={str(year): 20 for year in range(2000, 2020)},
        hours={f"{hour:02d}": hour for hour in range(24)}, headings=list(range(24)), with_position=399,
        with_heading=276, with_time=399, photos_per_place={"4": 50, "5": 30}, domains={f"{dataset}/town": (80, 390)},
    )  # fmt: skip


def leak() -> LeakFigures:
    place = LeakingPlace(
        place_id="set/town/33n-0385470-06671295-180", image_id="a" * 32, lat=55.7, lon=13.2,
        evaluation_image_id="b" * 32, evaluation_role="query", distance_m=3.2,
    )  # fmt: skip
    return LeakFigures(
        training="a-rather-long-name/official-740/train", evaluation="set/test", photos=30, photos_in_places=28,
        places=9, queries=4, database=5, nearest=[place],
    )  # fmt: skip


def show(chrome: Any, file: Path, width: int = WIDE, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    chrome.get_log("performance")
    chrome.get(file.as_uri())


def test_it_loads_nothing_and_complains_about_nothing(chrome: Any, page: Path) -> None:
    chrome.get_log("browser")
    show(chrome, page)
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    assert chrome.get_log("browser") == []


def test_photos_maps_and_charts_are_there_to_be_seen(chrome: Any, page: Path) -> None:
    show(chrome, page)
    assert chrome.execute_script("return [...document.images].map(i => i.naturalWidth)") == [200] * 5
    assert len(chrome.find_elements("css selector", ".missing")) == 1
    sizes = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBBox().width)"
    assert min(chrome.execute_script(sizes, ".map .dots.train")) > 200
    assert len(chrome.execute_script(sizes, ".map .leak")) == 9
    assert (
        len(chrome.find_elements("css selector", ".chart path.bar")) == 2 * 23
    )  # a bin without photos has no sector
    assert len(chrome.find_elements("css selector", ".chart rect.bar")) == 2 * 2 + 2 * 24
    strip = chrome.find_elements("css selector", ".strip .photo")
    assert len({photo.rect["y"] for photo in strip}) == 1  # side by side
    assert "Training photos near evaluation photos" in chrome.find_element("tag name", "main").text


@pytest.mark.parametrize("width", [WIDE, 768, 390])
def test_nothing_sticks_out_sideways(chrome: Any, page: Path, width: int) -> None:
    show(chrome, page, width=width)
    assert chrome.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [
        width,
        width,
    ]


def test_dark_and_light_are_two_papers(chrome: Any, page: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        show(chrome, page, scheme=scheme)
        colours.append(chrome.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(251, 250, 247)", "rgb(21, 23, 27)"]
