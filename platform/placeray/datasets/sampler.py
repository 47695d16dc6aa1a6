"""P x K sampling: every batch holds `num_places` places of one domain file and `photos_per_place` photos of
each.

Domains are what keeps neighbouring cells, which show the same street, from meeting as negatives, so a batch
never mixes them. Differs from the reference, whose place order is the same in every epoch: here the order of
places, the photos chosen and the order of batches follow from (seed, epoch), and from nothing else.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placeray.errors import DataError


class PlaceRef(NamedTuple):
    """Where a place is: a file of places/v1, its row there, and how many photos it has."""

    domain_file: str
    row: int
    num_photos: int


class Batch(NamedTuple):
    """Places of one file: `rows` (P,) distinct rows, `photos` (P, K) distinct positions in each place's
    photos.
    """

    domain_file: str
    rows: npt.NDArray[np.int64]
    photos: npt.NDArray[np.int64]


def epoch_batches(
    places: Sequence[PlaceRef],
    num_places: int,
    photos_per_place: int,
    seed: int,
    epoch: int,
    min_places: int = 2,
) -> Iterator[Batch]:
    """The batches of one epoch, in which every usable place appears exactly once.

    Args:
        places: in any order; those with fewer than `photos_per_place` photos take no part.
        num_places: P. The rest of a file makes a smaller batch, if it has at least `min_places` places (a
            batch of one place has no negatives); a smaller rest sits this epoch out, and is another one in
            the next.

    Raises:
        DataError: no file has `min_places` usable places.
    """
    files = _usable_by_file(places, photos_per_place)
    rng = np.random.default_rng([seed, epoch])
    batches: list[Batch] = []
    for name in sorted(files):
        refs = files[name]
        order = rng.permutation(len(refs))
        chosen = _choose_photos(np.array([refs[i].num_photos for i in order]), photos_per_place, rng)
        rows = np.array([refs[i].row for i in order], dtype=np.int64)
        for start in range(0, len(rows), num_places):
            part = slice(start, start + num_places)
            if len(rows[part]) >= min_places:
                batches.append(Batch(name, rows[part], chosen[part]))
    if not batches:
        raise DataError(
            f"no batch can be made of {len(places)} places: none of their {len(files)} domain files has "
            f"{min_places} places of {photos_per_place} photos; use more photos, or lower these two numbers"
        )
    return (batches[i] for i in rng.permutation(len(batches)))


def count_batches(
    places: Sequence[PlaceRef], num_places: int, photos_per_place: int, min_places: int = 2
) -> int:
    """How many batches an epoch has: the same in every epoch."""
    sizes = [len(refs) for refs in _usable_by_file(places, photos_per_place).values()]
    return sum(size // num_places + (size % num_places >= min_places) for size in sizes)


def _usable_by_file(places: Sequence[PlaceRef], photos_per_place: int) -> dict[str, list[PlaceRef]]:
    files: dict[str, list[PlaceRef]] = {}
    for place in sorted(places):
        if place.num_photos >= photos_per_place:
            files.setdefault(place.domain_file, []).append(place)
    return files


def _choose_photos(
    num_photos: npt.NDArray[np.int64], photos_per_place: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """(P, K) random distinct positions below each place's number of photos."""
    keys = rng.random((len(num_photos), int(num_photos.max())))
    keys[np.arange(keys.shape[1]) >= num_photos[:, None]] = np.inf
    return np.argsort(keys, axis=1)[:, :photos_per_place]
