"""Sentences and small counts that the page and the terminal share."""

from placeray.overview.figures import LeakFigures, Overview, SourceFigures

_LONG = 16  # a place with this many photos or more shares a bar


def headline(overview: Overview) -> str:
    """What there is, in one sentence."""
    cities = {city.lower() for source in overview.sources for city in source.cities}
    evaluation = sum(not source.is_training for source in overview.sources)
    return (
        f"{count(overview.total('kept'), 'photo')} of {count(len(overview.sources), 'source')} in "
        f"{count(len(cities), 'city', 'cities')}: {count(overview.total('places'), 'place')} to train on, "
        f"{count(evaluation, 'evaluation set')}; {overview.total('rejected'):,} of {overview.total('read'):,} "
        "inputs refused."
    )


def leakage_sentence(overview: Overview) -> str:
    """What the comparison of training with evaluation sets found."""
    if not overview.pairs_compared:
        return "Leakage was not looked for: it needs a training set and an evaluation set with positions."
    found = [leak for leak in overview.leaks if leak.photos]
    pairs = count(overview.pairs_compared, "pair")
    if not found:
        return (
            f"No training photo lies within {overview.radius_m:g} m of an evaluation photo ({pairs} of sets)."
        )
    return (
        f"In {len(found)} of {pairs} of sets, training photos lie within {overview.radius_m:g} m of evaluation "
        "photos: a model has seen streets it is tested on."
    )


def leak_sentence(leak: LeakFigures, radius_m: float) -> str:
    """One pair of sets."""
    unplaced = leak.photos - leak.photos_in_places
    rest = f" ({unplaced:,} of them in no place)" if unplaced else ""
    return (
        f"{leak.training}: {count(leak.places, 'place')} and {count(leak.photos, 'photo')}{rest} within "
        f"{radius_m:g} m of {leak.evaluation}, near {count(leak.queries, 'query', 'queries')} and "
        f"{count(leak.database, 'map photo')}"
    )


def per_place(source: SourceFigures) -> dict[str, int]:
    """Places by their number of photos, gaps filled, the long tail in one bar."""
    counts = {int(size): places for size, places in source.photos_per_place.items()}
    first, last = min(counts), max(counts)
    if last - first < _LONG:
        return {str(size): counts.get(size, 0) for size in range(first, last + 1)}
    cut = first + _LONG - 1
    shown = {str(size): counts.get(size, 0) for size in range(first, cut)}
    return shown | {f"{cut}+": sum(places for size, places in counts.items() if size >= cut)}


def per_year(source: SourceFigures) -> dict[str, int]:
    """Photos of known time by year."""
    return source.years


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 place`, `1,200 places`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def rule(positive: dict[str, object] | None) -> str:
    """A positive rule in few words."""
    if positive is None:
        return "none"
    if positive["kind"] == "radius":
        return f"{positive['radius_m']:g} m"
    return f"±{positive['window']} frames" if positive["kind"] == "frames" else "exact pair"
