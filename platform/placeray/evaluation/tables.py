"""The tables and figures of the page: recall of every system and method, latency, memory, reliability."""

import html
import math
from collections.abc import Sequence

from placeray.evaluation import words
from placeray.evaluation.report import METHOD_TITLES, EvalReport


def headline(reports: Sequence[EvalReport]) -> str:
    """The one sentence a hurried reader takes away."""
    main = reports[-1]
    share = main.methods[main.best_method].recall.at(1)
    text = f"The first answer is right for {words.percent(share)} of {main.num_queries:,} query photos"
    if len(reports) > 1:
        base = reports[0]
        before = base.methods[base.best_method].recall.at(1)
        text += f", against {words.percent(before)} {html.escape(base.label)}"
    return f"{text}."


def tiles(reports: Sequence[EvalReport]) -> str:
    """The main figures of the last report, each with what it means."""
    main = reports[-1]
    best = main.methods[main.best_method]
    low, high = best.interval
    shown = [
        (
            words.percent(best.recall.at(1)),
            "right at the first answer",
            f"95 % interval {low * 100:.1f} to {high * 100:.1f} %",
        ),
    ]
    if len(reports) > 1:
        base = reports[0]
        gain = best.recall.at(1) - base.methods[base.best_method].recall.at(1)
        shown.append((words.points(gain), f"over {base.label}", f"{METHOD_TITLES[main.best_method]} search"))
    if "two_stage" in main.methods and "exhaustive" in main.methods:
        loss = best.recall.at(1) - main.methods["exhaustive"].recall.at(1)
        shown.append((words.points(loss), "against comparing with every photo", "two-stage, recall@1"))
    if best.median_error_m is not None:
        shown.append(
            (words.metres(best.median_error_m), "median distance to the truth", "of the first answer")
        )
    single = best.latency.single["total"]
    shown.append(
        (words.milliseconds(single.median_ms), "to search one query", "the photo's description not counted")
    )
    shown.append((words.size(main.map.bytes_per_photo), "a photo of the map", f"{main.map.photos:,} photos"))
    cells = "".join(
        f'<div class="tile"><strong>{figure}</strong><span>{html.escape(what)}</span>'
        f"<small>{html.escape(detail)}</small></div>"
        for figure, what, detail in shown
    )
    return f'<div class="tiles">{cells}</div>'


def recall_table(reports: Sequence[EvalReport]) -> str:
    """Systems by methods by recall@k, over all queries; the best figure of each column is bold.

    A last column counts only the queries that have an answer, where that is not all of them.
    """
    partial = any(report.num_with_positive < report.num_queries for report in reports)
    ks = reports[-1].methods[reports[-1].best_method].recall.ks
    rows = [
        (report, method, result.recall) for report in reports for method, result in report.methods.items()
    ]
    best = [max(recall.at(k) for _, _, recall in rows) for k in ks]
    body = []
    for report, method, recall in rows:
        first = method == next(iter(report.methods))
        system = html.escape(report.label.capitalize() or report.name)
        cells = [f'<th scope="rowgroup" rowspan="{len(report.methods)}">{system}</th>'] if first else []
        cells.append(f'<th scope="row">{METHOD_TITLES[method]}</th>')
        cells.extend(_share(recall.at(k), top) for k, top in zip(ks, best, strict=True))
        if partial:
            cells.append(_answerable(recall.with_positive[0]))
        body.append(f"<tr{' class=first' if first else ''}>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col">recall@{k}</th>' for k in ks)
    if partial:
        head += f'<th scope="col">recall@{ks[0]}, answerable</th>'
    return (
        f'<table class="recall"><thead><tr><th scope="col">system</th><th scope="col">search</th>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def latency_table(report: EvalReport) -> str:
    """Milliseconds per query of each method and stage, alone and in batches."""
    size = next(iter(report.methods.values())).latency.batch_size
    rows = []
    for method, result in report.methods.items():
        stages = [*(stage for stage in result.latency.single if stage != "total"), "total"]
        for stage in stages:
            times = (result.latency.single.get(stage), result.latency.batch.get(stage))
            cells = "".join(
                f"<td>{words.milliseconds(t.median_ms)}</td><td>{words.milliseconds(t.p95_ms)}</td>"
                if t
                else "<td></td>" * 2
                for t in times
            )
            name = (
                f'<th scope="rowgroup" rowspan="{len(stages)}">{METHOD_TITLES[method]}</th>'
                if stage == stages[0]
                else ""
            )
            css = ' class="first"' if stage == stages[0] else ""
            rows.append(f'<tr{css}>{name}<th scope="row">{html.escape(_stage(stage))}</th>{cells}</tr>')
    return (
        '<table><thead><tr><th scope="col" rowspan="2">search</th><th scope="col" rowspan="2">stage</th>'
        '<th scope="colgroup" colspan="2">one query at a time</th>'
        f'<th scope="colgroup" colspan="2">in batches of {size}, per query'
        '</th></tr><tr><th scope="col">median</th><th scope="col">95 % below</th><th scope="col">median</th>'
        f'<th scope="col">95 % below</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def facts_table(report: EvalReport) -> str:
    """What was evaluated: model, map, queries."""
    model, occupied = report.model, report.map
    shown = [
        ("benchmark", report.name),
        ("model", f"{str(model['id'])[:16]}…"),
        ("preprocessing", str(model["preprocessing"])),
        ("code", f"{model['code_bits']} bits" if model["code_bits"] else "none"),
        ("float descriptor", f"{model['descriptor_dim']} values" if model["descriptor_dim"] else "none"),
        ("map", f"{occupied.photos:,} photos, codes {words.size(occupied.code_bytes)}, "
                f"descriptors {words.size(occupied.descriptor_bytes)}"),
        ("queries", f"{report.num_queries:,}, {report.num_with_positive:,} with a right answer in the map"),
        ("shortlist", f"{report.shortlist} candidates reach the second stage"),
        ("made", report.created_at),
    ]  # fmt: skip
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(text)}</td></tr>' for name, text in shown
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _share(share: float, best: float) -> str:
    strong = " class='best'" if share >= best - 1e-12 else ""
    return f"<td{strong}>{share * 100:.1f}</td>"


def _answerable(share: float) -> str:
    return "<td>–</td>" if math.isnan(share) else f"<td>{share * 100:.1f}</td>"


def _stage(name: str) -> str:
    return name.removesuffix("_ms").replace("_", " ")
