"""From places/v1 to batches of pixels: what the steps of an epoch eat.

The batches of the whole run follow from (seed, epoch) alone, whatever the number of workers: every rank plans the
same global batches and decodes its own share of the places of each. The K photos of a place are chosen before any
pixel is decoded; a JPEG is decoded at the smallest scale that still covers the input; augmentation is seeded by
(seed, epoch, place, photo), so threads may finish in any order.
"""

import itertools
import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from placeray.datasets.reading import PlacesFile, list_domains, places_fingerprint
from placeray.datasets.sampler import Batch, count_batches, epoch_batches, share, usable_places
from placeray.errors import DataError, TrainingError
from placeray.model.augment import AugmentConfig
from placeray.model.preprocess import decode
from placeray.training.batch_memory import mapped_zeros
from placeray.training.config import TrainConfig
from placeray.training.gather import rank, world_size
from placeray.training.normalised import normalised
from placeray.training.rand_augment import rand_augment

_OPEN_FILES = 16


class PlacesFeed:
    """Batches of one training run; a `loop.Feed`.

    Attributes:
        num_places:  places that take part: enough photos each, and enough such places in their domain.
        num_photos:  photos of these places.
        data_sets:   how many of these places each data set has.
        fingerprint: of the folder of places.

    Raises:
        DataError: no domain has enough places with enough photos.
        TrainingError: a batch could leave a worker without a place.
    """

    def __init__(self, places_root: str, config: TrainConfig) -> None:
        self._config = config
        self._ahead: _Reader | None = None
        self.fingerprint = places_fingerprint(places_root)
        domains = list_domains(places_root)
        self._places = [place for domain in domains for place in domain.places]
        starts = np.cumsum([0, *(len(domain.place_ids) for domain in domains)])
        self._first_label = {domain.file: int(start) for domain, start in zip(domains, starts, strict=False)}
        usable = usable_places(self._places, config.photos_per_place, config.min_places_per_batch)
        dataset_of = {domain.file: domain.dataset for domain in domains}
        self.data_sets: Mapping[str, int] = Counter(dataset_of[place.domain_file] for place in usable)
        self.num_places = len(usable)
        self.num_photos = sum(place.num_photos for place in usable)
        if config.min_places_per_batch < world_size():
            raise TrainingError(
                f"min_places_per_batch={config.min_places_per_batch} would leave some of the {world_size()} workers "
                "without a place: raise it to the number of workers"
            )
        self._plan(0)  # says now, not in the middle of the start, when no batch can be made

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; the same in every epoch."""
        config = self._config
        return count_batches(
            self._places, config.places_per_batch, config.photos_per_place, config.min_places_per_batch
        )

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of the batches of one epoch, read and decoded ahead by background threads.

        The threads go on with the next epoch of the run when this one is read to its end, so that it does not begin
        with an empty queue; no more batches are held for that. `close` stops them.

        Yields:
            (B, 3, size, size) float32 normalised photos, K of a place in a row, and (B,) int64 labels.
        """
        reader, self._ahead = self._ahead, None
        if reader is None or reader.position != (number, first_step):
            if reader is not None:
                reader.close()
            reader = _Reader(self, number, first_step)
        left = self.steps_per_epoch - first_step
        try:
            while left > 0:
                batch = reader.next()
                left -= 1
                yield batch
        finally:
            if left <= 0 and number + 1 < self._config.epochs:
                reader.position = (number + 1, 0)
                self.close()  # of another, had two epochs been read side by side
                self._ahead = reader
            else:
                reader.close()

    def close(self) -> None:
        """Stop reading ahead. The feed can be used again afterwards."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _plan(self, epoch: int) -> Iterator[Batch]:
        config = self._config
        return epoch_batches(
            self._places, config.places_per_batch, config.photos_per_place, config.seed, epoch,
            config.min_places_per_batch, fixed_order=config.batch_order == "fixed",
        )  # fmt: skip

    def _started(
        self, epoch: int, first_step: int, files: "_OpenFiles", pool: ThreadPoolExecutor
    ) -> Iterator["_Pending"]:
        """Batches from one step of the run to its end, each begun when it is asked for."""
        for number in range(epoch, max(epoch + 1, self._config.epochs)):
            skipped = first_step if number == epoch else 0
            for batch in itertools.islice(self._plan(number), skipped, None):
                yield self._start_batch(batch, number, files, pool)

    def _start_batch(
        self, batch: Batch, epoch: int, files: "_OpenFiles", pool: ThreadPoolExecutor
    ) -> "_Pending":
        _, rows, photos = share(batch, rank(), world_size())
        labels = self._first_label[batch.domain_file] + rows
        encoded = files.get(batch.domain_file).read(rows.tolist(), photos.tolist())
        size = self._config.preprocess.size_px
        pixels = mapped_zeros((photos.size, size, size, 3), np.uint8)
        futures = []
        for at, data in enumerate(data for place in encoded for data in place):
            place, photo = divmod(at, photos.shape[1])
            seed = f"{self._config.seed}/{epoch}/{labels[place]}/{photos[place, photo]}"
            where = f"{batch.domain_file}, row {rows[place]}, photo {photos[place, photo]}"
            futures.append(pool.submit(_decode_into, pixels[at], data, self._config.augment, seed, where))
        return _Pending(pixels, np.repeat(labels, photos.shape[1]), futures)


class _Reader:
    """Threads that read and decode from one step of the run on, until closed; bounded by `prefetch_batches`."""

    def __init__(self, feed: PlacesFeed, epoch: int, first_step: int) -> None:
        config = feed._config.feed
        self.position = (epoch, first_step)
        self._stop = threading.Event()
        self._ready: _Queue = queue.Queue(maxsize=config.prefetch_batches)
        self._pool = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self._thread = threading.Thread(
            target=self._read, args=(feed, epoch, first_step), name="read-places", daemon=True
        )
        self._thread.start()

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch. Raises what went wrong while it was read or decoded."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item.finished()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _read(self, feed: PlacesFeed, epoch: int, first_step: int) -> None:
        files = _OpenFiles()
        try:
            for batch in feed._started(epoch, first_step, files, self._pool):
                _put(self._ready, batch, self._stop)
                if self._stop.is_set():
                    return
        except BaseException as error:
            _put(self._ready, error, self._stop)  # raised where the batch is asked for
        finally:
            files.close()


@dataclass(frozen=True)
class _Pending:
    """A batch that threads are filling: (B, size, size, 3) uint8 and its labels."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    futures: list[Future[None]]

    def finished(self) -> tuple[Tensor, Tensor]:
        """Wait for the pixels. Raises DataError naming the photo that cannot be decoded."""
        for future in self.futures:
            future.result()
        return normalised(self.pixels), torch.from_numpy(self.labels)


class _OpenFiles:
    """The files of places used last, kept open."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, PlacesFile] = OrderedDict()

    def get(self, file: str) -> PlacesFile:
        if file not in self._files:
            self._files[file] = PlacesFile(file)
        self._files.move_to_end(file)
        if len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return self._files[file]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _decode_into(
    target: NDArray[np.uint8], data: bytes, augment: AugmentConfig, seed: str, where: str
) -> None:
    size = target.shape[0]
    try:
        image = decode(data, size)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    small = image.resize((size, size), Image.Resampling.BILINEAR)
    target[:] = np.asarray(rand_augment(small, augment, Random(seed)))


def _put(ready: "_Queue", item: "_Pending | BaseException", stop: threading.Event) -> None:
    """Put into a bounded queue whose reader may have gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.2)
            return
        except queue.Full:
            continue


_Queue = queue.Queue[_Pending | BaseException]
