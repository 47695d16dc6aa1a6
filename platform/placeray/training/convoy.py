"""Several training runs in one process that share every forward pass of one frozen backbone.

Each run is ordinary code in a thread of its own, but the threads take turns: exactly one runs at any moment. A run
gives its turn away when it asks the backbone for a batch that the others have not reached yet; when all stand before
the same batch, the backbone passes it once and keeps the token streams until all have read them. So a run computes
what it would compute alone, in the same order and to the same bit, and only one run's activations live at a time.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from placeray.errors import TrainingError
from placeray.model.backbone import Backbone, BackboneConfig

T = TypeVar("T")


@dataclass(frozen=True)
class _Pass:
    """The latest pass of the backbone: call `number` of every run."""

    number: int
    images: Tensor
    streams: list[Tensor]
    seconds: float


class Convoy:
    """The turns of `size` runs over one backbone; `seats` are what the runs hold of it."""

    def __init__(self, backbone: Backbone, config: BackboneConfig, size: int) -> None:
        """`config` is the one `backbone` was built from; `size` is the number of runs."""
        self.backbone = backbone
        self._turns = threading.Condition()
        self.start(size)
        self.seats = [Seat(self, number) for number in range(size)]
        self.backbones = [_seat_backbone(backbone, config, seat) for seat in self.seats]

    def start(self, size: int) -> None:
        """Nobody has asked for anything yet."""
        self._holder = 0
        self._calls: list[int | None] = [0] * size  # the next call of each run; None: it has left
        self._last: _Pass | None = None

    def streams(self, seat: "Seat", images: Tensor) -> Iterator[Tensor]:
        """The token streams of this run's next batch; see `Backbone.streams`.

        Raises:
            TrainingError: the runs do not see the same batches.
        """
        number = self._calls[seat.number]
        assert number is not None, "a run that has left computes nothing"
        if sum(call is not None for call in self._calls) == 1:
            self._last, self._calls[seat.number] = None, number + 1
            return self.backbone.streams(images)  # alone: nothing needs to be kept
        while self._last is None or self._last.number != number:
            if number == min(call for call in self._calls if call is not None):
                self._pass(seat, number, images)
            else:
                self._give_turn(seat)
        if self._last.images is not images and not torch.equal(self._last.images, images):
            raise TrainingError("trials that ride together see different batches: do not pack them")
        self._calls[seat.number] = number + 1
        seat.charge(self._last.seconds)
        return iter(self._last.streams)

    def _pass(self, seat: "Seat", number: int, images: Tensor) -> None:
        self._last = None  # frees the streams of the batch before
        started = time.perf_counter()
        streams = list(self.backbone.streams(images))
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        seat.charge(-seconds)  # charged to every run alike, this one included
        self._last = _Pass(number, images, streams, seconds)

    def _give_turn(self, seat: "Seat") -> None:
        """Let the others run, then go on with the random numbers this run had."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices), self._turns:
            seat.stop_clock()
            self._hand_on(seat.number)
            self._turns.wait_for(lambda: self._holder == seat.number)
            seat.start_clock()

    def enter(self, seat: "Seat") -> None:
        """Wait for the first turn."""
        with self._turns:
            self._turns.wait_for(lambda: self._holder == seat.number)
        seat.start_clock()

    def leave(self, seat: "Seat") -> None:
        """The run is over; the others go on without it."""
        seat.stop_clock()
        with self._turns:
            self._calls[seat.number] = None
            if all(call is None for call in self._calls):
                self._last = None
            self._hand_on(seat.number)

    def _hand_on(self, number: int) -> None:
        size = len(self._calls)
        others = [(number + ahead) % size for ahead in range(1, size + 1)]
        self._holder = next((other for other in others if self._calls[other] is not None), number)
        self._turns.notify_all()


class Seat:
    """One run's place: its share of the backbone and its own clock."""

    def __init__(self, convoy: Convoy, number: int) -> None:
        self._convoy, self.number = convoy, number
        self._seconds, self._since = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """What the run would have taken alone so far: its own turns and every backbone pass it read."""
        return self._seconds + (time.perf_counter() - self._since if self._since else 0.0)

    def streams(self, images: Tensor) -> Iterator[Tensor]:
        """The token streams of a batch."""
        return self._convoy.streams(self, images)

    def charge(self, seconds: float) -> None:
        """Put time on the clock, or take it off."""
        self._seconds += seconds

    def start_clock(self) -> None:
        """The turn begins."""
        self._since = time.perf_counter()

    def stop_clock(self) -> None:
        """The turn ends."""
        self._seconds, self._since = self.seconds, 0.0


class _SeatBackbone(Backbone):
    """The shared backbone as one run sees it: the same weights, streams that come from the convoy."""

    def __init__(self, config: BackboneConfig, seat: Seat) -> None:
        super().__init__(config)
        self._seat = seat

    def streams(self, images: Tensor) -> Iterator[Tensor]:
        return self._seat.streams(images)


def _seat_backbone(shared: Backbone, config: BackboneConfig, seat: Seat) -> Backbone:
    with torch.device("meta"):
        backbone = _SeatBackbone(config, seat)
    backbone.load_state_dict(shared.state_dict(), assign=True)  # the same tensors, not copies
    return backbone


def ride(convoy: Convoy, runs: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Call all `runs` in turns; what each returned, or the exception that ended it alone.

    Args:
        runs: one for each seat of the convoy, in order; each uses the backbone of its seat.
    """
    convoy.start(len(runs))
    outcomes: list[T | Exception] = [TrainingError("the run was never started") for _ in runs]

    def take(seat: Seat, run: Callable[[], T]) -> None:
        convoy.enter(seat)
        try:
            outcomes[seat.number] = run()
        except Exception as error:
            outcomes[seat.number] = error
        finally:
            convoy.leave(seat)

    threads = [
        threading.Thread(target=take, args=pair, name=f"run-{pair[0].number}", daemon=True)
        for pair in zip(convoy.seats, runs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
