"""Overlaps of the published sets that are known from their names: the same streets under other labels.

Cities as the data sets spell them: GSV-Cities PRS and TRT are the Paris and Toronto of MSLS.
"""

from collections.abc import Sequence
from typing import NamedTuple

from placeray.overview.figures import SourceFigures

_SAN_FRANCISCO = "SF-XL train covers San Francisco"
_SHARED = {
    "bangkok": "Bangkok", "boston": "Boston", "london": "London", "melbourne": "Melbourne",
    "phoenix": "Phoenix", "paris": "PRS", "toronto": "TRT",
}  # fmt: skip


class _Set(NamedTuple):
    """Sources whose data set name begins with `dataset`, of one kind of split, perhaps one city of them."""

    dataset: str
    is_training: bool
    city: str | None = None

    def fits(self, source: SourceFigures) -> bool:
        """Whether this source is such a set and holds the city."""
        return (
            source.dataset.startswith(self.dataset)
            and source.is_training == self.is_training
            and (self.city is None or self.city in source.cities)
        )


_KNOWN: tuple[tuple[_Set, _Set, str], ...] = (
    (_Set("sf-xl", True), _Set("msls", False, "sf"), f"{_SAN_FRANCISCO}, the place of MSLS-val sf"),
    (_Set("sf-xl", True), _Set("sf-xl", False), f"{_SAN_FRANCISCO}, the place of its own val and test sets"),
    (_Set("msls", True, "tokyo"), _Set("tokyo", False), "MSLS-train tokyo and Tokyo 24/7 are one city"),
    (_Set("gsv-cities", True, "Miami"), _Set("msls", False, "miami"), "GSV-Cities Miami and MSLS-test miami"),
    (
        _Set("gsv-cities", True, "BuenosAires"),
        _Set("msls", False, "buenosaires"),
        "GSV-Cities BuenosAires and MSLS-test buenosaires",
    ),
    *(
        (
            _Set("msls", True, msls),
            _Set("gsv-cities", True, gsv),
            f"MSLS-train {msls} and GSV-Cities {gsv} are one city: the same street can be two places",
        )
        for msls, gsv in _SHARED.items()
    ),
)


def known_overlaps(sources: Sequence[SourceFigures]) -> list[str]:
    """One sentence for every known overlap of which both sides are here."""
    return [
        f"{sentence} ({', '.join(s.name for s in sources if one.fits(s) or other.fits(s))})."
        for one, other, sentence in _KNOWN
        if any(map(one.fits, sources)) and any(map(other.fits, sources))
    ]
