"""A copy of a map with a bar on the terminal, on stderr."""

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from placeray.retrieval.copies import Copied, copy_map


def copy_with_bar(source: str, target: str, version: str | None = None) -> Copied:
    """`copies.copy_map`, with a live bar."""
    columns = (TextColumn("copy_map"), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copy_map", total=None)
        return copy_map(
            source,
            target,
            version,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
