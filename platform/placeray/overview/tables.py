"""The tables of the page."""

import html
from collections.abc import Callable

from placeray.overview import words
from placeray.overview.figures import LeakFigures, Overview, SourceFigures

_MOST_DOMAINS = 40


def tiles(overview: Overview) -> str:
    """The figures a reader looks for first."""
    leaking = sum(leak.places for leak in overview.leaks)
    facts = [
        (f"{overview.total('kept'):,}", "photos", f"{overview.total('read'):,} inputs read"),
        (f"{overview.total('places'):,}", "places", f"{overview.total('places_dropped_small'):,} too small"),
        (f"{overview.total('rejected'):,}", "refused", words.count(len(_reasons(overview)), "reason")),
        (f"{leaking:,}", "leaking places", f"within {overview.radius_m:g} m, over all pairs"),
    ]
    cells = "".join(
        f'<div class="tile"><strong>{figure}</strong><span>{name}</span><small>{more}</small></div>'
        for figure, name, more in facts
    )
    return f'<div class="tiles">{cells}</div>'


def sources_table(overview: Overview) -> str:
    """One row per source."""
    head = (
        "source", "read", "kept", "refused", "places", "too small", "in no place", "train / map / query", "cities",
        "years", "position", "heading", "hour", "right answer",
    )  # fmt: skip
    rows = [[_row_head(source.name), *map(_cell, _source_cells(source))] for source in overview.sources]
    return _table(head, rows, "sources")


def _source_cells(source: SourceFigures) -> list[str]:
    roles = " / ".join(f"{source.roles.get(role, 0):,}" for role in ("train", "database", "query"))
    years = sorted(source.years)
    return [
        f"{source.read:,}",
        f"{source.kept:,}",
        f"{sum(source.rejected.values()):,}",
        f"{source.places:,}" if source.is_training else "",
        f"{source.places_dropped_small:,}" if source.is_training else "",
        f"{source.photos_without_place:,}" if source.is_training else "",
        roles,
        f"{len(source.cities):,}",
        (years[0] if years[0] == years[-1] else f"{years[0]}–{years[-1]}") if years else "unknown",
        _share(source.with_position, source.kept),
        _share(source.with_heading, source.kept),
        _share(sum(source.hours.values()), source.kept),
        "" if source.is_training else words.rule(source.positive_rule),
    ]


def heat_table(sources: list[SourceFigures], counts_of: Callable[[SourceFigures], dict[str, int]]) -> str:
    """Sources down, classes across, counts tinted by their share of the source."""
    classes = sorted({name for source in sources for name in counts_of(source)})
    if not classes:
        return "<p>No source says when its photos were taken.</p>"
    rows = []
    for source in sources:
        counts = counts_of(source)
        high = max(counts.values(), default=0)
        cells = [
            f'<td style="background:color-mix(in srgb, var(--main) {60 * counts[name] / high:.0f}%, transparent)">'
            f"{counts[name]:,}</td>"
            if counts.get(name)
            else "<td></td>"
            for name in classes
        ]
        rows.append([_row_head(source.name), *cells, _cell(f"{source.kept - source.with_time:,}")])
    return _table(("source", *classes, "unknown"), rows, "heat")


def cities_table(sources: list[SourceFigures]) -> str:
    """Photos per city of every source, largest first."""
    rows = [
        [_row_head(city), _text(source.name), _cell(f"{photos:,}")]
        for source in sources
        for city, photos in sorted(source.cities.items(), key=lambda item: (-item[1], item[0]))
    ]
    return _folded(_table(("city", "source", "photos"), rows, "rows"), len(rows), "cities")


def domains_table(sources: list[SourceFigures]) -> str:
    """Places and photos of every domain, those of most places first."""
    domains = sorted(
        (-places, name, photos) for source in sources for name, (places, photos) in source.domains.items()
    )
    rows = [
        [_row_head(name), _cell(f"{-places:,}"), _cell(f"{photos:,}"), _cell(f"{photos / -places:.1f}")]
        for places, name, photos in domains[:_MOST_DOMAINS]
    ]
    if not rows:
        return "<p>There are no places to train on.</p>"
    more = f"<p>And {len(domains) - len(rows):,} smaller ones.</p>" if len(domains) > len(rows) else ""
    return (
        _folded(_table(("domain", "places", "photos", "photos per place"), rows, ""), len(domains), "domains")
        + more
    )


def leaks_tables(overview: Overview) -> str:
    """Every pair of sets with leakage, and its nearest places."""
    if not overview.leaks:
        return ""
    head = ("training", "evaluation", "places", "photos", "near queries", "near map photos")
    rows = [
        [_row_head(leak.training), _text(leak.evaluation)]
        + [_cell(f"{number:,}") for number in (leak.places, leak.photos, leak.queries, leak.database)]
        for leak in overview.leaks
    ]
    return _table(head, rows, "leaks") + "".join(map(_nearest_places, overview.leaks))


def _nearest_places(leak: LeakFigures) -> str:
    rows = [
        [
            _cell(f"{place.distance_m:.1f} m"),
            _text(place.place_id or f"photo {place.image_id[:12]}, in no place"),
            _text(f"{place.lat:.6f}, {place.lon:.6f}"),
            _text(f"{place.evaluation_role} {place.evaluation_image_id[:12]}"),
        ]
        for place in leak.nearest
    ]
    if not rows:
        return ""
    table = _table(("distance", "training place", "latitude, longitude", "evaluation photo"), rows, "rows")
    title = html.escape(f"{leak.training} and {leak.evaluation}: the {len(rows)} nearest places")
    return f"<details><summary>{title}</summary>{table}</details>"


def rejects_tables(overview: Overview) -> str:
    """Counts per source and reason, then sample rows."""
    reasons = _reasons(overview)
    if not reasons:
        return "<p>Nothing was refused.</p>"
    rows = [
        [_row_head(source.name)]
        + [_cell(f"{source.rejected[reason]:,}" if reason in source.rejected else "") for reason in reasons]
        for source in overview.sources
        if source.rejected
    ]
    samples = [
        [
            _text(sample.reason),
            _text(sample.dataset),
            f"<td>{html.escape(detail)}<br><code>{html.escape(uri)}</code></td>",
        ]
        for sample in overview.rejects
        for uri, detail in sample.rows
    ]
    shown = _table(("reason", "data set", "sample"), samples, "rows") if samples else ""
    return _table(("source", *reasons), rows, "") + shown


def _reasons(overview: Overview) -> list[str]:
    return sorted({reason for source in overview.sources for reason in source.rejected})


def _share(part: int, whole: int) -> str:
    if not whole or part == whole:
        return "all" if whole else ""
    return f"{100 * part / whole:.3g} %" if part else "none"


def _folded(table: str, size: int, what: str) -> str:
    return table if size <= 12 else f"<details><summary>{size:,} {what}</summary>{table}</details>"


def _table(head: tuple[str, ...], rows: list[list[str]], style: str) -> str:
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(f'<tr class="first">{"".join(row)}</tr>' for row in rows)
    return f'<div class="wide"><table class="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _row_head(text: str) -> str:
    return f'<th scope="row">{html.escape(text)}</th>'


def _cell(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"


def _text(text: str) -> str:
    return f'<td style="text-align:left">{html.escape(text)}</td>'
