"""What a filter may ask for besides an area, drawn by hypothesis, and which photos fulfil that, decided one by one."""

from datetime import datetime, timedelta
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

# Times of photos and of filters: coarse and fine ones, many of which begin or end together.
MOMENTS = (
    "2015", "2016", "2016-01", "2016-01-01", "2016-01-01T00:00", "2016-06", "2016-06-01", "2016-06-10",
    "2016-06-10T10", "2016-06-10T10:30", "2016-06-10T10:30:20", "2016-06-30", "2016-06-30T23:59:59", "2016-12",
    "2016-12-31", "2016-12-31T23", "2017-01-01", "2017-02", "2017-02-28",
)  # fmt: skip


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a Filter on direction and time; each may be left out."""
    start, end = draw(st.sampled_from([None, None, *MOMENTS])), draw(st.sampled_from([None, None, *MOMENTS]))
    assume(start is None or end is None or span(start)[0] < span(end)[1])
    return {
        "heading_deg": draw(st.none() | st.integers(0, 359)),
        "heading_tolerance_deg": draw(st.integers(0, 180)),
        "captured_from": start,
        "captured_to": end,
    }


def span(beginning: str) -> tuple[datetime, datetime]:
    """The first moment that a beginning of a time may mean, and the first behind it, by the calendar."""
    known = [int(part) for part in beginning.replace("T", "-").replace(":", "-").split("-")]
    first = datetime(*[*known, 1, 1][: max(len(known), 3)])  # type: ignore[arg-type]
    if len(known) == 1:
        return first, datetime(known[0] + 1, 1, 1)
    if len(known) == 2:
        return first, datetime(known[0] + known[1] // 12, known[1] % 12 + 1, 1)
    unit = ("days", "hours", "minutes", "seconds")[len(known) - 3]
    return first, first + timedelta(**{unit: 1})


def looks_there(heading_deg: float | None, wanted_deg: float | None, tolerance_deg: float) -> bool:
    """Whether a photo looks in a direction."""
    if wanted_deg is None:
        return True
    if heading_deg is None:
        return False
    turn = abs(heading_deg - wanted_deg) % 360
    return min(turn, 360 - turn) <= tolerance_deg


def taken_then(captured: str | None, start: str | None, end: str | None) -> bool:
    """Whether all moments that the time of a photo may mean lie between two others."""
    if start is None and end is None:
        return True
    if captured is None:
        return False
    first, behind = span(captured)
    return (start is None or first >= span(start)[0]) and (end is None or behind <= span(end)[1])
