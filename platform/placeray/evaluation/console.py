"""The recall table on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from placeray.evaluation import words
from placeray.evaluation.report import METHOD_TITLES, EvalReport


def print_recall(reports: Sequence[EvalReport], console: Console | None = None) -> None:
    """Recall@k in percent of every system and way to search, and the milliseconds of one query."""
    main = reports[-1]
    ks = main.methods[main.best_method].recall.ks
    table = Table(title=f"{main.name}: recall in percent of {main.num_queries} queries", title_justify="left")
    table.add_column("system")
    table.add_column("search")
    for k in ks:
        table.add_column(f"R@{k}", justify="right")
    table.add_column("one query", justify="right")
    for report in reports:
        for method, result in report.methods.items():
            shares = [f"{result.recall.at(k) * 100:.1f}" for k in ks]
            spent = words.milliseconds(result.latency.single["total"].median_ms)
            name = report.label if method == next(iter(report.methods)) else ""
            table.add_row(
                name, METHOD_TITLES[method], *shares, spent, end_section=method == list(report.methods)[-1]
            )
    out = console or Console()
    out.print(table)
    if main.num_with_positive < main.num_queries:
        best = main.methods[main.best_method].recall
        out.print(
            f"{main.num_queries - main.num_with_positive} queries have no right answer in the map and count "
            f"as wrong; over the other {main.num_with_positive}, {METHOD_TITLES[main.best_method].lower()} "
            f"R@1 is {best.with_positive[0] * 100:.1f}"
        )
    out.print(f"confidence: {main.confidence_note}")
