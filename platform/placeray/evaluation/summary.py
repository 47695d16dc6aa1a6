"""The closing table of a comparison, for somebody who sees place recognition for the first time."""

from rich.console import Console
from rich.table import Table

from placeray import storage
from placeray.evaluation import words
from placeray.evaluation.report import METHOD_TITLES, EvalReport
from placeray.evaluation.run import BASELINE_FILE, REPORT_FILE

EXPLAINED = {
    "binary": "compare 512-bit codes only: smallest and fastest",
    "two_stage": "codes find 100 candidates, float descriptors order them",
    "exhaustive": "compare every float descriptor: the most exact, too slow for a city",
}


def read_comparison(folder: str) -> tuple[EvalReport, EvalReport]:
    """Baseline and system of a finished evaluation that had both.

    Raises:
        StorageError: the evaluation has not finished or had no baseline.
    """
    storage.read_manifest(folder)
    first, last = (storage.read_json(storage.join(folder, name)) for name in (BASELINE_FILE, REPORT_FILE))
    return EvalReport.from_document(first), EvalReport.from_document(last)


def print_summary(folder: str, console: Console | None = None) -> None:
    """How often the first answer is the right place, before and after training, and what a query costs."""
    before, after = read_comparison(folder)
    out = console or Console()
    table = Table(
        title=f"{after.num_queries} photos of places never seen in training, asked of a map of {after.map.photos} "
        "photos: how often the first answer is the right place (recall@1)",
        title_justify="left",
    )
    table.add_column("way to search")
    table.add_column(before.label, justify="right")
    table.add_column(after.label, justify="right")
    table.add_column("one query", justify="right")
    table.add_column("what it does")
    for method, result in after.methods.items():
        old = before.methods.get(method)
        table.add_row(
            METHOD_TITLES[method],
            f"{old.recall.at(1):.1%}" if old else "-",
            f"{result.recall.at(1):.1%}",
            words.milliseconds(result.latency.single["total"].median_ms),
            EXPLAINED[method],
        )
    out.print(table)
