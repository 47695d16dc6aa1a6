"""One self-contained HTML page that shows what was asked, what was found and whether it is right.

Everything is inside: thumbnails as base64 JPEG, drawings as inline SVG, one style sheet. Its own security
policy forbids it to load anything, so it opens the same from disk, mail or a web server, in light and dark.
"""

import html
from pathlib import Path

from placeray.evaluation import words
from placeray.evaluation.curves import SHARE, Axis, Line, fitted_axis, line_chart, recall_axis
from placeray.evaluation.gallery_html import gallery
from placeray.evaluation.map_svg import Projection, ground_definition, overview_map
from placeray.evaluation.page_data import Page, TrainingCurve
from placeray.evaluation.report import METHOD_TITLES, EvalReport
from placeray.evaluation.tables import facts_table, headline, latency_table, recall_table, tiles

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(page: Page) -> str:
    """The whole page as text; write it as UTF-8 with the ending .html."""
    projection = Projection.of(page.ground) if page.ground else None
    sections = [
        _opening(page),
        _section("What it found", _gallery_words(page), gallery(page.examples, page.ground, projection)),
        _section(
            "How often it is right", _recall_words(page), recall_table(page.reports) + _recall_charts(page)
        ),
    ]
    if page.ground and projection:
        text = "Every query at its true place. A red line leads to the wrong place it was taken for."
        sections.append(_section("Where it is right", text, overview_map(page.ground, projection)))
    sections.append(_section("How sure it is", *_confidence(page.reports[-1])))
    sections.append(_section("How fast it is", _latency_words(), latency_table(page.reports[-1])))
    if page.training:
        charts = "".join(map(_training_chart, page.training))
        sections.append(_section("How it learned", "", f'<div class="charts">{charts}</div>'))
    sections.append(_section("What was evaluated", "", facts_table(page.reports[-1])))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    definition = ground_definition(page.ground, projection) if page.ground and projection else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(page.title)}</title><style>{style}</style></head>"
        f"<body>{definition}<main>{''.join(sections)}</main></body></html>\n"
    )


def _opening(page: Page) -> str:
    main = page.reports[-1]
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in page.notes)
    return (
        f'<header><p class="kicker">{html.escape(page.title)}</p><h1>{headline(page.reports)}</h1>'
        f'<p class="lead">Asked: where was this photo taken? Each query is compared with {main.map.photos:,} '
        "photos of known position. An answer is right when the photo found "
        f"{words.rule(main.positive_rule)}.</p>"
        f"{notes}{tiles(page.reports)}</header>"
    )


def _section(title: str, text: str, body: str) -> str:
    paragraph = f'<p class="explain">{text}</p>' if text else ""
    return f"<section><h2>{title}</h2>{paragraph}{body}</section>"


def _gallery_words(page: Page) -> str:
    far = "frames to the truth" if page.ground and page.ground.kind == "frames" else "distance to the truth"
    return (
        '<span class="key right">✓ green frame</span> right &nbsp; '
        '<span class="key wrong">✗ red frame</span> wrong &nbsp; '
        f"Below each photo: {far} and similarity. On the map the ring is the true place, the dot the place "
        "found. The examples are picked by rule, some of them failures where there are any."
    )


def _recall_words(page: Page) -> str:
    main = page.reports[-1]
    missing = main.num_queries - main.num_with_positive
    text = "Recall@k in percent: the share of queries with a right photo among the first k answers."
    if missing:
        text += (
            f" {missing:,} of {main.num_queries:,} queries have no right answer in the map; they count as "
            "wrong, except in the last column."
        )
    return text


def _recall_charts(page: Page) -> str:
    charts = []
    for method in page.reports[-1].methods:
        shown = [report for report in page.reports if method in report.methods]
        lines = []
        for report in shown:
            curve = report.methods[method].curve
            style = "main" if report is page.reports[-1] else "base"
            lines.append(Line(report.label, range(1, len(curve) + 1), curve, style))
        depth = max(len(line.y) for line in lines)
        said = "; ".join(
            f"{line.label or 'recall'} from {line.y[0]:.0%} to {line.y[-1]:.0%}" for line in lines
        )
        drawing = line_chart(
            f"{METHOD_TITLES[method]}, recall over k: {said}.", lines, recall_axis(depth), SHARE
        )
        charts.append(f"<figure><h3>{METHOD_TITLES[method]}</h3>{drawing}</figure>")
    return f'<div class="charts">{"".join(charts)}</div>'


def _confidence(report: EvalReport) -> tuple[str, str]:
    if report.confidence is None:
        return html.escape(report.confidence_note), ""
    tested = report.confidence.reliability
    text = (
        "Confidence is the probability that the first answer is right, learned from "
        f"{report.confidence.fitted_on} queries and tested on {tested.queries} others: stated "
        f"and observed differ by {tested.error * 100:.1f} points on average. Mean squared error "
        f"{tested.brier:.3f}; always stating the average would give {tested.brier_constant:.3f}."
    )
    stated, observed = [b[0] for b in tested.bins], [b[1] for b in tested.bins]
    lines = [
        Line("perfect", (0.0, 1.0), (0.0, 1.0), "guide"),
        Line("observed", stated, observed, "main", dots=True),
    ]
    said = ", ".join(f"{s:.0%} stated {o:.0%} right" for s, o in zip(stated, observed, strict=True))
    axis = Axis("stated confidence (up: share that was right)", 0.0, 1.0, SHARE.marks, percent=True)
    chart = line_chart(f"Confidence against truth: {said}.", lines, axis, SHARE)
    return text, f'<div class="charts"><figure>{chart}</figure></div>'


def _training_chart(curve: TrainingCurve) -> str:
    styles = ("main", "other", "base")
    lines = [
        Line(label, x, y, styles[i % 3], dots=len(x) < 30)
        for i, (label, x, y) in enumerate(curve.lines)
        if len(x)
    ]
    if not lines:
        return ""
    x_axis = fitted_axis(curve.x_label, [value for line in lines for value in line.x])
    y_axis = fitted_axis("", [value for line in lines for value in line.y])
    said = "; ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
    chart = line_chart(f"{curve.title}: {said}.", lines, x_axis, y_axis)
    return f"<figure><h3>{html.escape(curve.title)}</h3>{chart}</figure>"


def _latency_words() -> str:
    return (
        "Wall time of the search alone on the machine of this run; describing the photo comes on top. "
        "Compare these figures with each other, not with those of another machine."
    )
