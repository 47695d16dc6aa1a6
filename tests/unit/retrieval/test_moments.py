"""Beginnings of times are compared as the spans of time that they may mean, here by the calendar."""

from datetime import datetime, timedelta
from fractions import Fraction

import pyarrow as pa
import pytest
from drawn_conditions import MOMENTS, span
from hypothesis import given
from hypothesis import strategies as st

from placeray.retrieval.moments import first_moment, last_moment, surely_between

SECONDS = st.datetimes(datetime(2015, 12, 1), datetime(2016, 3, 2)).map(
    lambda moment: moment.isoformat()[:19]
)
# A few times, or any, as far as known, at the ends of their units more often than by chance.
BEGINNINGS = st.one_of(
    st.sampled_from(MOMENTS),
    st.builds(lambda text, length: text[:length], SECONDS, st.sampled_from([4, 7, 10, 13, 16, 19])),
    st.builds(lambda text, digits: f"{text}.{digits}", SECONDS, st.text("059", min_size=1, max_size=3)),
    st.builds(lambda digits: f"2016-12-31T23:59:59.{digits}", st.text("9", min_size=1, max_size=3)),
)


def exact_span(beginning: str) -> tuple[tuple[datetime, Fraction], tuple[datetime, Fraction]]:
    """As `span`, with fractions of the second beside."""
    whole, _, digits = beginning.partition(".")
    first, behind = span(whole)
    if not digits:
        return (first, Fraction(0)), (behind, Fraction(0))
    share, width = Fraction(int(digits), 10 ** len(digits)), Fraction(1, 10 ** len(digits))
    end = (first, share + width) if share + width < 1 else (first + timedelta(seconds=1), Fraction(0))
    return (first, share), end


@given(
    photo=BEGINNINGS,
    first=st.none() | BEGINNINGS,
    last=st.none() | BEGINNINGS,
    zone=st.sampled_from(["", "", "Z", "+02:00", "-0930"]),
)
def test_between_is_what_the_calendar_says(
    photo: str, first: str | None, last: str | None, zone: str
) -> None:
    start, behind = exact_span(photo)
    expected = (first is None or start >= exact_span(first)[0]) and (
        last is None or behind <= exact_span(last)[1]
    )
    written = pa.chunked_array([[photo + (zone if "T" in photo else ""), None]])
    found = surely_between(written, first and first_moment(first), last and last_moment(last))
    assert found.tolist() == [expected, False]


@given(BEGINNINGS)
def test_the_shortest_text_means_the_same_moment(beginning: str) -> None:
    assert exact_span(first_moment(beginning))[0] == exact_span(beginning)[0]
    assert exact_span(last_moment(beginning))[1] == exact_span(beginning)[1]
    for shorten in (first_moment, last_moment):
        assert beginning.startswith(shorten(beginning))
        assert shorten(shorten(beginning)) == shorten(beginning)


@pytest.mark.parametrize(
    ("beginning", "first", "last"),
    [
        ("2016-01-01T00:00:00.00", "2016", "2016-01-01T00:00:00.00"),
        ("2016-12-31T23:59:59.99", "2016-12-31T23:59:59.99", "2016"),
        ("2016-02-29", "2016-02-29", "2016-02"),
        ("2015-02-28", "2015-02-28", "2015-02"),
        ("2016-02-28", "2016-02-28", "2016-02-28"),
    ],
)
def test_parts_that_say_nothing_are_left_out(beginning: str, first: str, last: str) -> None:
    assert (first_moment(beginning), last_moment(beginning)) == (first, last)


@pytest.mark.parametrize("zone", ["", "Z", "+02:00", "-0930"])
def test_a_zone_is_left_out_of_account(zone: str) -> None:
    """Also where a coarse time goes on with it and the time asked for with minutes."""
    captured = pa.chunked_array([[f"2016-06-10T10{zone}", f"2016-06-10T10:30:20{zone}"]])
    for first, last, expected in (
        ("2016-06-10T10", "2016-06-10T10", [True, True]),
        ("2016-06-10T10:30", None, [False, True]),
        (None, "2016-06-10T10:30", [False, True]),
        ("2016-06-10T10:30:20.5", None, [False, False]),
        (None, "2016-06-10T10:30:20.5", [False, False]),
    ):
        found = surely_between(captured, first and first_moment(first), last and last_moment(last))
        assert found.tolist() == expected
