"""A look on a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from placeray.overview import words
from placeray.overview.figures import HEADING_BIN_DEG, Overview, SourceFigures

_MOST_ROWS = 20
_BAR_WIDTH = 24
_SOURCES_ACROSS = 4  # more do not fit 80 columns
_QUADRANTS = (("N", 315, 45), ("E", 45, 135), ("S", 135, 225), ("W", 225, 315))


def print_overview(overview: Overview, console: Console | None = None) -> None:
    """Tables of what the page draws."""
    out, sources = console or Console(), overview.sources
    tables = [
        _sources(overview),
        _largest("photos per city", "city", _cities(sources)),
        _largest("places per domain", "domain", _domains(sources)),
        *_matrices("photos per year", "year", {source.name: source.years for source in sources}),
        *_matrices("photos per hour", "hour", {source.name: source.hours for source in sources}),
        *_matrices("places by their number of photos", "photos", _sizes(sources)),
        *_matrices("headings", "towards", {source.name: _quadrants(source) for source in sources}),
        _rejects(overview),
    ]
    for table in tables:
        if table.row_count:
            out.print(table)
    out.print(words.leakage_sentence(overview), soft_wrap=True)
    for leak in overview.leaks:
        out.print(f"  {words.leak_sentence(leak, overview.radius_m)}", soft_wrap=True)
    for note in overview.notes:
        out.print(f"note: {note}", soft_wrap=True, highlight=False)


def _sources(overview: Overview) -> Table:
    table = _table("sources", "source", "read", "kept", "refused", "places", "train", "map", "query")
    for source in overview.sources:
        table.add_row(
            source.name,
            f"{source.read:,}",
            f"{source.kept:,}",
            f"{sum(source.rejected.values()):,}",
            f"{source.places:,}" if source.is_training else "",
            *(
                f"{source.roles[role]:,}" if role in source.roles else ""
                for role in ("train", "database", "query")
            ),
        )
    return table


def _cities(sources: list[SourceFigures]) -> list[tuple[str, int]]:
    return [
        (f"{source.name}: {city}", photos) for source in sources for city, photos in source.cities.items()
    ]


def _domains(sources: list[SourceFigures]) -> list[tuple[str, int]]:
    return [(name, places) for source in sources for name, (places, _) in source.domains.items()]


def _largest(title: str, name: str, counts: Iterable[tuple[str, int]]) -> Table:
    """The largest classes with bars."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    table = _table(title, name, "count", "")
    table.columns[2].justify = "left"
    for label, number in ordered[:_MOST_ROWS]:
        table.add_row(label, f"{number:,}", "▇" * max(1, round(_BAR_WIDTH * number / ordered[0][1])))
    rest = ordered[_MOST_ROWS:]
    if rest:
        table.add_row(f"and {len(rest):,} more", f"{sum(number for _, number in rest):,}", "")
    return table


def _sizes(sources: list[SourceFigures]) -> dict[str, dict[str, int]]:
    return {source.name: words.per_place(source) for source in sources if source.photos_per_place}


def _matrices(title: str, name: str, counts: dict[str, dict[str, int]]) -> list[Table]:
    """Classes down, sources across, a few sources per table; sources without the fact are left out."""
    shown = [source for source, classes in counts.items() if any(classes.values())]
    tables = []
    for first in range(0, len(shown), _SOURCES_ACROSS):
        across = shown[first : first + _SOURCES_ACROSS]
        table = _table(title, name, *across)
        for label in _in_order({label for source in across for label in counts[source]}):
            table.add_row(label, *(f"{counts[source].get(label, 0):,}" for source in across))
        tables.append(table)
    return tables


def _in_order(labels: set[str]) -> list[str]:
    """Directions clockwise, numbers by their value."""
    directions = [name for name, _, _ in _QUADRANTS if name in labels]
    return directions or sorted(labels, key=lambda label: (len(label), label))


def _quadrants(source: SourceFigures) -> dict[str, int]:
    """Photos whose heading lies around north, east, south and west."""
    starts = [number * HEADING_BIN_DEG for number in range(len(source.headings))]
    return {
        name: sum(
            photos
            for start, photos in zip(starts, source.headings, strict=True)
            if (low <= start < high if low < high else start >= low or start < high)
        )
        for name, low, high in _QUADRANTS
    }


def _rejects(overview: Overview) -> Table:
    table = _table("refused", "source", "reason", "count")
    table.columns[1].justify = "left"
    for source in overview.sources:
        for reason, number in sorted(source.rejected.items()):
            table.add_row(source.name, reason, f"{number:,}")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
