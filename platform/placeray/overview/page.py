"""One self-contained HTML page of a look: drawings inline, photos as base64, nothing is loaded."""

import html
from importlib.resources import files

from placeray.overview import tables
from placeray.overview.charts import bars, rose
from placeray.overview.city_map import CityMap, draw_city
from placeray.overview.figures import Overview, SourceFigures
from placeray.overview.sheet import SheetRow
from placeray.overview.sheet_html import draw_sheet
from placeray.overview.words import headline, leakage_sentence, per_place, per_year

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(overview: Overview, maps: tuple[list[CityMap], int], sheet: list[SheetRow]) -> str:
    """The whole page as text; write it as UTF-8 with the ending .html."""
    style = "".join(
        files(room).joinpath("page.css").read_text(encoding="utf-8")
        for room in ("placeray.evaluation", "placeray.overview")
    )
    sections = [
        _opening(overview),
        _section("What there is", _SOURCE_WORDS, tables.sources_table(overview)),
        _section("Where", *_maps(*maps)),
        _section("Training photos near evaluation photos", *_leakage(overview)),
        _section("What it looks like", _SHEET_WORDS, draw_sheet(sheet)),
        _section("Photos per place", "", _place_charts(overview.sources)),
        _section("Headings", _HEADING_WORDS, _roses(overview.sources)),
        _section("Years", _YEAR_WORDS, tables.heat_table(overview.sources, per_year)),
        _section("Hours of the day", *_hours(overview.sources)),
        _section("Cities", "", tables.cities_table(overview.sources)),
        _section("Domains", _DOMAIN_WORDS, tables.domains_table(overview.sources)),
        _section("What was refused", "", tables.rejects_tables(overview)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(overview.title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


_SOURCE_WORDS = (
    "One row is one source: a data set and its split. Every input was kept or refused with a reason."
)
_SHEET_WORDS = (
    "Photos of sample places side by side; of an evaluation set a query, then the map photos that its rule calls "
    "right, nearest first. Samples are chosen by hash. The arrow shows the heading, up is north."
)
_HEADING_WORDS = (
    "The area of a sector is the number of photos. A heading keeps the meaning its source gives it: the compass "
    "direction of the middle of the photo, of its left edge, or the yaw inside a panorama."
)
_YEAR_WORDS = "Photos of known time per year."
_DOMAIN_WORDS = "Places of one training batch come from one domain: a city, or one group of its cells."


def _section(title: str, text: str, body: str) -> str:
    if not body and not text:
        return ""
    paragraph = f'<p class="explain">{text}</p>' if text else ""
    return f"<section><h2>{title}</h2>{paragraph}{body}</section>"


def _opening(overview: Overview) -> str:
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in overview.notes)
    return (
        f'<header><p class="kicker">{html.escape(overview.title)}</p><h1>{html.escape(headline(overview))}</h1>'
        f'<p class="lead">{html.escape(leakage_sentence(overview))}</p>{notes}{tables.tiles(overview)}</header>'
    )


def _maps(maps: list[CityMap], missing: int) -> tuple[str, str]:
    if not maps:
        return "No photo has a latitude and longitude, so there is no map.", ""
    roles = {role for city in maps for role in city.spots}
    keys = [
        _key("main", "training") if "train" in roles else "",
        _key("base", "map") if "database" in roles else "",
        _key("other", "query") if "query" in roles else "",
        _key("right", "evaluation, on a training map") if any(city.evaluation for city in maps) else "",
        _key("wrong", "ring: leaking place") if any(len(city.rings) for city in maps) else "",
    ]
    text = " ".join(filter(None, keys))
    if missing:
        text += f" The {missing:,} smallest cities are left out."
    return text, f'<div class="panels">{"".join(map(draw_city, maps))}</div>'


def _key(colour: str, name: str) -> str:
    return f'<span class="key"><i style="background:var(--{colour})"></i>{name}</span>'


def _leakage(overview: Overview) -> tuple[str, str]:
    text = html.escape(leakage_sentence(overview))
    if overview.pairs_compared:
        text += (
            " Distances are metres on the ellipsoid, the border counts as inside; leakage.csv beside this page "
            "lists all places."
        )
    return text, tables.leaks_tables(overview)


def _place_charts(sources: list[SourceFigures]) -> str:
    return _panels(
        [
            (
                source.name,
                f"{source.places:,} places",
                bars(per_place(source), _said(source, "photos per place")),
            )
            for source in sources
            if source.photos_per_place
        ]
    )


def _roses(sources: list[SourceFigures]) -> str:
    return _panels(
        [
            (
                source.name,
                f"{source.with_heading:,} of {source.kept:,} have one",
                rose(source.headings, _said(source, "photos by heading")),
            )
            for source in sources
            if source.with_heading
        ],
        small=True,
    )


def _hours(sources: list[SourceFigures]) -> tuple[str, str]:
    timed = [source for source in sources if source.hours]
    if not timed:
        return "No source says the hour of its photos.", ""
    charts = [
        (
            source.name,
            f"{sum(source.hours.values()):,} of {source.kept:,} have one",
            bars(
                {f"{hour:02d}": source.hours.get(f"{hour:02d}", 0) for hour in range(24)},
                _said(source, "photos by hour"),
            ),
        )
        for source in timed
    ]
    return "By the clock the source writes, in whatever zone.", _panels(charts)


def _said(source: SourceFigures, what: str) -> str:
    return f"{source.name}: {what}"


def _panels(charts: list[tuple[str, str, str]], small: bool = False) -> str:
    figures = "".join(
        f"<figure><h3>{html.escape(name)}</h3>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for name, caption, drawing in charts
    )
    return f'<div class="panels{" small" if small else ""}">{figures}</div>' if figures else ""
