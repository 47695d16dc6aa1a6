"""The feed: batches follow from (seed, epoch) alone, ranks share them out, broken photos are named."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from placeray import storage
from placeray.errors import DataError, TrainingError
from placeray.model.preprocess import MEAN, STD
from placeray.training import feed as feed_module
from placeray.training.config import TrainConfig
from placeray.training.feed import PlacesFeed

Batches = list[tuple[Tensor, Tensor]]


def _config(**changes: object) -> TrainConfig:
    base = {"places_per_batch": 4, "photos_per_place": 4, "preprocess": {"size_px": 28}}
    return TrainConfig.model_validate(base | changes)


def _epoch(root: str, number: int, **changes: object) -> Batches:
    with contextlib.closing(PlacesFeed(root, _config(**changes))) as feed:
        return list(feed.epoch(number))


def _equal(a: Batches, b: Batches) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_an_epoch_shows_every_usable_place_once_with_k_photos(normalized: str) -> None:
    feed = PlacesFeed(normalized, _config())
    batches = list(feed.epoch(0))
    feed.close()
    assert len(batches) == feed.steps_per_epoch == 4, (
        "6 places give 4 + 2, 5 places 3 + 2; a rest of one is evened out"
    )
    seen = torch.cat([labels for _, labels in batches])
    _, counts = torch.unique(seen, return_counts=True)
    assert set(counts.tolist()) == {4}
    assert len(counts) == 11
    assert (feed.num_places, feed.num_photos) == (11, 48)
    for images, labels in batches:
        assert images.shape == (len(labels), 3, 28, 28)
        assert images.dtype == torch.float32
        assert labels.tolist() == sorted(labels.tolist(), key=labels.tolist().index), (
            "photos of a place lie together"
        )


def test_a_batch_never_mixes_domains(normalized: str) -> None:
    for epoch in range(5):
        for _, labels in _epoch(normalized, epoch):
            assert len({int(label) < 7 for label in labels}) == 1


def test_the_same_epoch_gives_the_same_pixels_whatever_the_threads(normalized: str) -> None:
    one = _epoch(normalized, 3, feed={"decode_threads": 1, "prefetch_batches": 1})
    many = _epoch(normalized, 3, feed={"decode_threads": 4, "prefetch_batches": 3})
    assert _equal(one, many)


def test_epochs_and_seeds_differ_in_order_and_pixels(normalized: str) -> None:
    first, second, other = _epoch(normalized, 0), _epoch(normalized, 1), _epoch(normalized, 0, seed=9)
    assert not _equal(first, second)
    assert not _equal(first, other)


def test_an_epoch_can_start_at_any_step(normalized: str) -> None:
    with contextlib.closing(PlacesFeed(normalized, _config())) as feed:
        assert _equal(list(feed.epoch(2, first_step=1)), list(feed.epoch(2))[1:])


def test_an_epoch_read_ahead_is_the_epoch_read_alone(normalized: str) -> None:
    """Epochs in a row, one of them begun in the middle as after a restart, against each from a feed of its own."""
    with contextlib.closing(PlacesFeed(normalized, _config(epochs=4))) as feed:
        rest = list(feed.epoch(0, first_step=2))
        found = [rest, *(list(feed.epoch(number)) for number in (1, 2, 3))]
    alone = [_epoch(normalized, number) for number in range(4)]
    assert _equal(found[0], alone[0][2:])
    assert all(_equal(*pair) for pair in zip(found[1:], alone[1:], strict=True))


def test_reading_goes_on_over_the_end_of_an_epoch_and_no_further_than_the_queue(
    normalized: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    original = PlacesFeed._start_batch

    def noting(self: PlacesFeed, batch: object, epoch: int, *rest: object) -> object:
        started.append(epoch)
        return original(self, batch, epoch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PlacesFeed, "_start_batch", noting)
    before = set(threading.enumerate())
    feed = PlacesFeed(normalized, _config(epochs=2, feed={"prefetch_batches": 1}))
    list(feed.epoch(0))
    threading.Event().wait(0.5)
    assert 1 <= started.count(1) <= 2, "one waits, one is being put"
    feed.close()  # as early stopping does
    assert set(threading.enumerate()) == before
    list(feed.epoch(1))
    assert set(threading.enumerate()) == before, "nothing is read beyond the last epoch"


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_hold_the_batch_of_one_process(
    normalized: str, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    alone = _epoch(normalized, 1, min_places_per_batch=world)
    shares = []
    monkeypatch.setattr(feed_module, "world_size", lambda: world)
    for number in range(world):
        monkeypatch.setattr(feed_module, "rank", lambda number=number: number)
        shares.append(_epoch(normalized, 1, min_places_per_batch=world))
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(images, torch.cat([share[step][0] for share in shares]))
        assert torch.equal(labels, torch.cat([share[step][1] for share in shares]))


def test_more_workers_than_places_in_the_smallest_batch_is_said(
    normalized: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "world_size", lambda: 3)
    with pytest.raises(TrainingError, match="min_places_per_batch=2 would leave some of the 3 workers"):
        PlacesFeed(normalized, _config())


def test_without_augmentation_the_pixels_are_those_of_the_photo(normalized: str, tiny: ModuleType) -> None:
    images, labels = _epoch(normalized, 0, augment={"num_ops": 0})[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for image, label in zip(images, labels.tolist(), strict=True):
        shown = ((image * std + mean) * 255).permute(1, 2, 0).numpy()
        place = [tiny.pixels_of(tiny.photo(label, k, (60, 48))) for k in range(7)]
        means = [abs(float(shown.mean()) - float(pixels.mean())) for pixels in place]
        assert min(means) < 1.0, "none of the photos of its place has this brightness"


def test_a_broken_photo_is_named(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(draw: Callable[..., bytes]) -> Callable[..., bytes]:
        return lambda place, variant: draw(place, variant)[: 300 if (place, variant) == (1, 2) else None]

    monkeypatch.setattr(tiny, "photo", cut(tiny.photo))
    root = tiny.write_normalized(str(tmp_path), {"north": [4, 4, 4]})
    with pytest.raises(DataError, match=r"north\.parquet, row 1, photo 2: cannot decode"):
        _epoch(root, 0)


def test_no_usable_domain_is_said(tmp_path: Path, tiny: ModuleType) -> None:
    root = tiny.write_normalized(str(tmp_path), {"a": [4], "b": [3, 3, 3]})
    with pytest.raises(DataError, match="no batch can be made of 4 places"):
        PlacesFeed(root, _config())


def test_leaving_an_epoch_early_stops_its_threads(normalized: str) -> None:
    before = set(threading.enumerate())
    batches = PlacesFeed(normalized, _config(feed={"prefetch_batches": 1})).epoch(0)
    next(batches)
    batches.close()
    assert set(threading.enumerate()) == before


def test_memory_holds_no_more_batches_than_asked_for(
    normalized: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow consumer: decoding must wait for it. One batch is in hand, one is being put, `prefetch_batches` wait."""
    started = []
    original = PlacesFeed._start_batch

    def counting(self: PlacesFeed, *arguments: object) -> object:
        started.append(1)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PlacesFeed, "_start_batch", counting)
    batches = PlacesFeed(normalized, _config(places_per_batch=2, feed={"prefetch_batches": 1})).epoch(0)
    next(batches)
    threading.Event().wait(0.5)
    assert len(started) <= 3
    batches.close()


def test_the_fingerprint_is_that_of_the_places(normalized: str) -> None:
    manifest = storage.read_manifest(f"{normalized}/places")
    assert PlacesFeed(normalized, _config()).fingerprint == manifest["fingerprint"]
