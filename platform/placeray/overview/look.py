"""Look at normalized data sets: one pass over the columns counts, a second compares sets, a page shows it.

Written below `output`: page.html (everything inside), overview.json (the figures), leakage.csv (all leaking
places), and manifest.json last. Memory grows with the evaluation photos and the leaking places, not with the
training photos; image bytes are read of the photos on the sheet only.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from placeray import __version__, storage
from placeray.overview.answers import AnswerFinder
from placeray.overview.blocks import open_input
from placeray.overview.city_map import CityMap, Spots
from placeray.overview.config import LookConfig
from placeray.overview.figures import LeakFigures, Overview, SourceFigures
from placeray.overview.known_overlaps import known_overlaps
from placeray.overview.leakage import CSV_COLUMNS, Leaks
from placeray.overview.page import render_page
from placeray.overview.passes import Source, compare_sources, count_sources, open_sources
from placeray.overview.refused import sample_rejects
from placeray.overview.sheet import SheetRow, place_row, query_row

PAGE_FILE, FIGURES_FILE, LEAKS_FILE = "page.html", "overview.json", "leakage.csv"
_RINGS_PER_SOURCE = 300
Say = Callable[[str], None]


class Outcome(NamedTuple):
    """The figures, where the page is, and whether an earlier run had made both."""

    overview: Overview
    page: str
    already_finished: bool


def look(config: LookConfig, output: str, say: Say = print) -> Outcome:
    """Make the figures and the page of `config.inputs`, or read the figures of an earlier run on the same.

    Raises:
        StorageError: an input is not there or not finished, or `output` cannot be written.
        DataError: an input is no normalized data set.
    """
    roots = [open_input(root) for root in config.inputs]
    key, page_uri = _key(config, roots), storage.resolve(storage.join(output, PAGE_FILE))
    if storage.has_manifest(output) and storage.read_manifest(output).get("key") == key:
        figures = storage.read_json(storage.join(output, FIGURES_FILE))
        return Outcome(Overview.model_validate(figures), page_uri, already_finished=True)
    storage.check_can_write(page_uri)
    sources = open_sources(config, roots)
    say(f"counting the photos of {len(sources)} sources")
    count_sources(config, roots, sources)
    say("comparing the sets")
    leaks, finders = compare_sources(config, roots, sources)
    overview = _overview(config, roots, sources, leaks)
    say("drawing the page")
    page = render_page(overview, _maps(config, sources, leaks), _sheet(config, sources, finders))
    storage.remove(storage.join(output, storage.MANIFEST))  # of an earlier look at other things
    storage.write_text(storage.join(output, LEAKS_FILE), _leaks_csv(leaks))
    storage.write_json(storage.join(output, FIGURES_FILE), overview.model_dump(mode="json"))
    storage.write_text(page_uri, page)
    storage.commit_manifest(output, {"key": key, "files": [PAGE_FILE, FIGURES_FILE, LEAKS_FILE]})
    return Outcome(overview, page_uri, already_finished=False)


def _key(config: LookConfig, roots: list[str]) -> str:
    """Changes with the configuration, with what the inputs hold, and with the code's version."""
    prints = [
        storage.read_manifest(storage.join(root, folder))["fingerprint"]
        for root in roots
        for folder in ("images", "places", "rejects")
    ]
    text = json.dumps([__version__, config.model_dump(mode="json"), prints], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _overview(
    config: LookConfig, roots: list[str], sources: list[Source], leaks: dict[tuple[str, str], Leaks]
) -> Overview:
    figures = [source.figures() for source in sources]
    found = [leak.figures(*names, config.leaks_shown) for names, leak in leaks.items() if leak.photos]
    return Overview(
        title=config.title,
        radius_m=config.leakage_radius_m,
        sources=figures,
        rejects=[
            sample
            for root in roots
            for sample in sample_rejects(root, config.rejects_per_reason, config.rows_per_block)
        ],
        pairs_compared=len(leaks),
        leaks=sorted(found, key=_most_places_first),
        notes=_notes(figures, len(leaks)),
    )


def _most_places_first(leak: LeakFigures) -> tuple[int, int, str, str]:
    return -leak.places, -leak.photos, leak.training, leak.evaluation


def _notes(sources: list[SourceFigures], pairs: int) -> list[str]:
    """What a reader must know before believing that there is no leakage."""
    notes = []
    unplaced = [source for source in sources if source.with_position < source.kept]
    if pairs == 0 and any(source.is_training for source in sources):
        notes.append(
            "No training set has an evaluation set with positions beside it: no pair could be compared."
        )
    for source in unplaced:
        missing = source.kept - source.with_position
        notes.append(
            f"{source.name}: {missing:,} of {source.kept:,} photos have no latitude and longitude; "
            "they are on no map and in no comparison."
        )
    known = known_overlaps(sources)
    return notes + [f"Known from the names: {sentence}" for sentence in known]


def _leaks_csv(leaks: dict[tuple[str, str], Leaks]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for names, leak in leaks.items():
        writer.writerows(leak.rows(*names))
    return sink.getvalue()


def _maps(
    config: LookConfig, sources: list[Source], leaks: dict[tuple[str, str], Leaks]
) -> tuple[list[CityMap], int]:
    """The maps of the largest cities, and how many cities have none."""
    evaluation = [
        _spots(dots) for source in sources if not source.is_training for dots in source.photos.dots.values()
    ]
    maps = []
    for source in sources:
        rings = [
            (place.lat, place.lon)
            for (training, _), leak in leaks.items()
            if training == source.name
            for place in sorted(leak.places.values())[:_RINGS_PER_SOURCE]
        ]
        for city, dots in source.photos.dots.items():
            roles = dots["role"].unique().to_pylist()
            spots = {role: _spots(dots.filter(pc.equal(dots["role"], role))) for role in roles}
            maps.append(
                CityMap(
                    source.name,
                    city,
                    source.photos.cities[city],
                    spots,
                    evaluation if source.is_training else [],
                    np.array(rings, dtype=np.float64).reshape(-1, 2),
                )
            )
    maps.sort(key=lambda city: -city.num_photos)
    shown = {id(city) for city in maps[: config.max_cities]}
    order = {source.name: number for number, source in enumerate(sources)}
    chosen = sorted((city for city in maps if id(city) in shown), key=lambda city: order[city.source])
    return chosen, len(maps) - len(chosen)


def _spots(dots: pa.Table) -> Spots:
    return np.stack([dots["lat"].to_numpy(), dots["lon"].to_numpy()], axis=1)


def _sheet(
    config: LookConfig, sources: list[Source], finders: dict[str, list[AnswerFinder]]
) -> list[SheetRow]:
    rows = []
    for source in sources:
        if source.is_training:
            rows += [
                place_row(source.name, place, config.photos_per_place, config.thumbnail_px)
                for place in source.places.samples
            ]
        else:
            unit = "m" if source.rule is None or source.rule["kind"] == "radius" else "frames"
            rows += [
                query_row(source.name, finder, unit, config.thumbnail_px) for finder in finders[source.name]
            ]
    return rows
