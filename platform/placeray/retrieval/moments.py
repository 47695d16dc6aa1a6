"""Times as far as they are known: beginnings of ISO 8601 text, such as 2016, 2016-06 or 2016-06-12T09:30.

A beginning may mean any moment that starts like it. Times are read off the clock at the place, as the datasets give
them: a zone behind the time of a photo is left out of account.
"""

import calendar
import re
from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_BEGINNING = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d+))?)?)?)?)?)?", re.ASCII
)
_SEPARATORS = ("", "-", "-", "T", ":", ":", ".")
_TO_THE_HOUR = len("2016-06-12T09")


def first_moment(beginning: str) -> str:
    """The first moment that a beginning may mean, written as short as possible: 2016-01-01T00 is 2016.

    Raises:
        ValueError: the text is no beginning of a moment, or of one that does not exist.
    """
    return _shortened(_parts(beginning), "0", _earliest)


def last_moment(beginning: str) -> str:
    """The last moment that a beginning may mean, likewise: 2016-06-30 is 2016-06."""
    return _shortened(_parts(beginning), "9", _latest)


def surely_between(captured: pa.ChunkedArray, first: str | None, last: str | None) -> NDArray[np.bool_]:
    """Whether all moments that texts (n,) may mean lie between two, ends included; (n,), not where there is no text.

    `first` is of `first_moment`, `last` of `last_moment`. As both are as short as possible, the order of texts is that
    of moments: one that ends where another goes on is the earlier one at its beginning and the later one at its end.
    """
    if max(len(first or ""), len(last or "")) > _TO_THE_HOUR:  # elsewhere a zone comes behind what decides
        captured = pc.replace_substring_regex(captured, r"(T[^Z+-]*)(Z|[+-].*)$", r"\1")
    fits = pc.is_valid(captured)
    if first is not None:
        fits = pc.and_(fits, pc.greater_equal(captured, first))
    if last is not None:
        fits = pc.and_(fits, pc.or_(pc.less(captured, last), pc.starts_with(captured, last)))
        longer = pa.array([last[:length] for length in range(len(last))], pa.string())
        fits = pc.and_(fits, pc.invert(pc.is_in(captured, value_set=longer)))
    mask: NDArray[np.bool_] = pc.fill_null(fits, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return mask


def _parts(beginning: str) -> list[str]:
    """Year, month, day, hour, minute, second and fraction, as many as there are."""
    found = _BEGINNING.fullmatch(beginning)
    if found is None:
        raise ValueError(
            f"{beginning!r} is no beginning of a moment such as 2016-06-01T10:30:00: write 2016, 2016-06, 2016-06-01 "
            "or more of it, without a zone"
        )
    parts = [part for part in found.groups() if part is not None]
    try:
        datetime(*(int(part) for part in [*parts[:6], "1", "1"][: max(len(parts[:6]), 3)]))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{beginning!r} does not exist: {error}") from None
    return parts


def _shortened(parts: list[str], digit: str, outermost: Callable[[list[str]], int]) -> str:
    """Without the last parts that say nothing: the outermost a part can be, for a fraction the outermost digit."""
    if len(parts) == len(_SEPARATORS):
        fraction = parts.pop().rstrip(digit)
        parts += [fraction] if fraction else []
    while 1 < len(parts) < len(_SEPARATORS) and int(parts[-1]) == outermost(parts):
        parts.pop()
    return "".join(before + part for before, part in zip(_SEPARATORS, parts, strict=False))


def _earliest(parts: list[str]) -> int:
    """The first month, day, hour, minute or second, whichever is the last of the parts."""
    return 1 if len(parts) <= 3 else 0


def _latest(parts: list[str]) -> int:
    """The last one, by the calendar."""
    days = calendar.monthrange(int(parts[0]), int(parts[1]))[1]
    return (12, days, 23, 59, 59)[len(parts) - 2]
