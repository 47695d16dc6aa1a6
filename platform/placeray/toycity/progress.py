"""A progress line on stderr for long drawings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def photo_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (photos finished, photos in all); without a terminal it prints a line per tenth."""
    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("photos"),
        TimeRemainingColumn(),
    )
    last_tenth = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            nonlocal last_tenth
            bar.update(line, completed=done, total=total)
            tenth = 10 * done // max(total, 1)
            if not console.is_terminal and tenth > last_tenth:
                last_tenth = tenth
                console.print(f"{what}: {done}/{total} photos", highlight=False)

        yield show
