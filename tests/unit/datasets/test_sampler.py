"""P x K batches: one domain each, every place once, decided by (seed, epoch) alone."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placeray.datasets.sampler import Batch, PlaceRef, count_batches, epoch_batches, share, usable_places
from placeray.errors import DataError

SIZES = st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=25), min_size=1, max_size=6)


def places_of(sizes: list[list[int]]) -> list[PlaceRef]:
    return [
        PlaceRef(f"d{number}.parquet", row, count)
        for number, counts in enumerate(sizes)
        for row, count in enumerate(counts)
    ]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.domain_file == b.domain_file
        and np.array_equal(a.rows, b.rows)
        and np.array_equal(a.photos, b.photos)
        for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(
    SIZES,
    st.integers(2, 8),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(2, 6),
    st.randoms(use_true_random=False),
)
def test_invariants(
    sizes: list[list[int]], p: int, k: int, seed: int, epoch: int, fewest: int, random: object
) -> None:
    places, p = places_of(sizes), max(p, fewest)
    usable = Counter(place.domain_file for place in places if place.num_photos >= k)
    expected = count_batches(places, p, k, fewest)
    if not expected:
        assert not usable_places(places, k, fewest)
        with pytest.raises(DataError, match="no batch can be made"):
            epoch_batches(places, p, k, seed, epoch, fewest)
        return
    batches = list(epoch_batches(places, p, k, seed, epoch, fewest))
    assert len(batches) == expected
    seen = Counter((batch.domain_file, row) for batch in batches for row in batch.rows.tolist())
    assert set(seen.values()) == {1}
    assert set(seen) == {(place.domain_file, place.row) for place in usable_places(places, k, fewest)}
    for file, count in usable.items():
        taking_part = sum(1 for name, _ in seen if name == file)
        assert taking_part == (count if count >= fewest else 0), (
            "every place of a large enough domain, each once"
        )
    for batch in batches:
        assert fewest <= len(batch.rows) <= p + fewest - 1
        assert batch.photos.shape == (len(batch.rows), k)
        for row, chosen in zip(batch.rows.tolist(), batch.photos.tolist(), strict=True):
            assert len(set(chosen)) == k
            assert max(chosen) < sizes[int(batch.domain_file[1])][row]
    random.shuffle(places)  # type: ignore[attr-defined]
    assert same(batches, list(epoch_batches(places, p, k, seed, epoch, fewest)))


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(2, 8), st.integers(1, 7), st.integers(0, 50), st.integers(0, 50))
def test_workers_share_out_the_same_batches(
    sizes: list[list[int]], p: int, world: int, seed: int, epoch: int
) -> None:
    """Every rank plans for itself; together they hold the batch of one process, and no rank is without a place."""
    fewest = max(2, world)
    places, p = places_of(sizes), max(p, fewest)
    if not count_batches(places, p, 2, fewest):
        return
    alone = list(epoch_batches(places, p, 2, seed, epoch, fewest))
    plans = [list(epoch_batches(places, p, 2, seed, epoch, fewest)) for _ in range(world)]
    for step, batch in enumerate(alone):
        shares = [share(plans[rank][step], rank, world) for rank in range(world)]
        assert all(len(own.rows) for own in shares)
        assert {own.domain_file for own in shares} == {batch.domain_file}
        assert np.array_equal(np.concatenate([own.rows for own in shares]), batch.rows)
        assert np.array_equal(np.concatenate([own.photos for own in shares]), batch.photos)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_two_epochs_differ_and_one_repeats(seed: int, epoch: int) -> None:
    places = places_of([[6] * 17, [5] * 9])
    first = list(epoch_batches(places, 4, 4, seed, epoch))
    assert same(first, list(epoch_batches(places, 4, 4, seed, epoch)))
    second = list(epoch_batches(places, 4, 4, seed, epoch + 1))
    assert [b.rows.tolist() for b in first] != [b.rows.tolist() for b in second]


def test_epochs_and_seeds_differ_in_places_photos_and_order() -> None:
    places = places_of([[8] * 40, [8] * 40])
    first = list(epoch_batches(places, 10, 4, seed=1, epoch=0))
    for other in (
        epoch_batches(places, 10, 4, seed=1, epoch=1),
        epoch_batches(places, 10, 4, seed=2, epoch=0),
    ):
        batches = list(other)
        assert not same(first, batches)
        assert {frozenset(b.rows.tolist()) for b in first} != {frozenset(b.rows.tolist()) for b in batches}


def test_the_fixed_order_repeats_places_and_files_but_draws_photos_anew() -> None:
    places = places_of([[8] * 21, [8] * 13])
    first, second = (list(epoch_batches(places, 5, 4, 1, epoch, fixed_order=True)) for epoch in (0, 1))
    assert [b.rows.tolist() for b in first] == [b.rows.tolist() for b in second]
    assert [b.photos.tolist() for b in first] != [b.photos.tolist() for b in second]
    files = [b.domain_file for b in first]
    assert files == sorted(files)


def test_all_photos_of_a_place_get_their_turn() -> None:
    """Over epochs each of the 8 photos is drawn as often as the others: 4 of 8 in 400 epochs, within 5
    sigma.
    """
    places = places_of([[8, 8]])
    drawn = Counter(
        photo
        for epoch in range(400)
        for batch in epoch_batches(places, 2, 4, seed=0, epoch=epoch)
        for photo in batch.photos.ravel().tolist()
    )
    assert all(abs(drawn[photo] - 400) < 5 * np.sqrt(800 * 0.25) for photo in range(8))


def test_domains_are_mixed_over_the_epoch() -> None:
    files = [
        batch.domain_file for batch in epoch_batches(places_of([[4] * 80, [4] * 80]), 4, 4, seed=0, epoch=0)
    ]
    changes = sum(one != other for one, other in pairwise(files))
    assert changes > 8  # 1 when one domain follows the other; 20 is the mean of a shuffle of 40 batches
