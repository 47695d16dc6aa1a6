"""What a filter may ask for besides an area, drawn by hypothesis."""

from typing import Any

from hypothesis import strategies as st


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a Filter on direction and time; each may be left out."""
    return {
        "heading_deg": draw(st.none() | st.integers(0, 359)),
        "heading_tolerance_deg": draw(st.integers(0, 180)),
        "captured_from": draw(st.sampled_from([None, None, "2016", "2016-06"])),
        "captured_to": draw(st.sampled_from([None, None, "2016-06", "2017"])),
    }
