"""P x K sampling: every batch holds `num_places` places of one domain file and `photos_per_place` photos of
each.

Domains are what keeps neighbouring cells, which show the same street, from meeting as negatives, so a batch
never mixes them. Differs from the reference, whose place order is the same in every epoch: here the order of
places, the photos chosen and the order of batches follow from (seed, epoch), and from nothing else.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
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
    *,
    fixed_order: bool = False,
) -> Iterator[Batch]:
    """The batches of one epoch, in which every usable place appears exactly once.

    A place is usable when it has `photos_per_place` photos and its file `min_places` such places.

    Args:
        places: in any order; those with fewer than `photos_per_place` photos take no part.
        num_places: P.
        min_places: fewest places of a batch (one place has no negatives). A smaller rest of a file is evened out
            with the batch before it, or joins it where even that makes none.
        fixed_order: the reference's order, for comparison: the same places meet in every epoch, file after file;
            only their photos are drawn anew.

    Raises:
        DataError: no file has `min_places` usable places.
    """
    files = _usable_by_file(places, photos_per_place)
    rng = np.random.default_rng([seed, epoch])
    order_rng = np.random.default_rng([seed]) if fixed_order else rng
    batches: list[Batch] = []
    for name in sorted(files):
        refs = files[name]
        if len(refs) < min_places:
            continue
        order = order_rng.permutation(len(refs))
        chosen = _choose_photos(np.array([refs[i].num_photos for i in order]), photos_per_place, rng)
        rows = np.array([refs[i].row for i in order], dtype=np.int64)
        cuts = _cuts(len(rows), num_places, min_places)
        batches += [Batch(name, rows[a:b], chosen[a:b]) for a, b in pairwise(cuts)]
    if not batches:
        raise DataError(
            f"no batch can be made of {len(places)} places: none of their {len(files)} domain files has "
            f"{min_places} places of {photos_per_place} photos; use more photos, or lower these two numbers"
        )
    return iter(batches) if fixed_order else (batches[i] for i in rng.permutation(len(batches)))


def count_batches(
    places: Sequence[PlaceRef], num_places: int, photos_per_place: int, min_places: int = 2
) -> int:
    """How many batches an epoch has: the same in every epoch."""
    sizes = [len(refs) for refs in _usable_by_file(places, photos_per_place).values()]
    return sum(len(_cuts(size, num_places, min_places)) - 1 for size in sizes if size >= min_places)


def usable_places(places: Sequence[PlaceRef], photos_per_place: int, min_places: int = 2) -> list[PlaceRef]:
    """Those that take part in every epoch, in sorted order."""
    files = _usable_by_file(places, photos_per_place).values()
    return [place for refs in files if len(refs) >= min_places for place in refs]


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """The places of a global batch that one worker decodes; the workers' shares in rank order are the batch."""
    own = np.array_split(np.arange(len(batch.rows)), world_size)[rank]
    return Batch(batch.domain_file, batch.rows[own], batch.photos[own])


def _cuts(count: int, num_places: int, min_places: int) -> list[int]:
    """Where `count` places are cut into batches: 0, ends of all but the last, count."""
    cuts = [*range(0, count, num_places), count]
    if len(cuts) > 2 and count - cuts[-2] < min_places:
        before = cuts[-3]
        half = (count - before + 1) // 2
        cuts[-2:-1] = [before + half] if count - before - half >= min_places else []
    return cuts


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
