"""What the HTML page shows, as plain data: whoever makes a page fills these and calls `page.render_page`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placeray.evaluation.report import EvalReport

# A spot on the ground: metres east and north of the middle of the map, or (frame number, 0).
Spot = tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """One retrieved photo."""

    image: bytes | None  # JPEG thumbnail; None when the photo cannot be read
    image_id: str
    right: bool
    distance_m: float | None
    frame_gap: int | None
    similarity: float
    hamming: int | None
    spot: Spot | None


@dataclass(frozen=True)
class AnswerRow:
    """The best answers of one system, best first, and how sure it is of the first one."""

    label: str
    answers: tuple[Answer, ...]
    confidence: float | None


@dataclass(frozen=True)
class Example:
    """One query photo with what each system found."""

    image: bytes | None
    image_id: str
    spot: Spot | None
    num_positives: int
    rows: tuple[AnswerRow, ...]


@dataclass(frozen=True)
class Ground:
    """Where the photos of the map are, and how every query fared there."""

    kind: str  # "metres" or "frames"
    database: NDArray[np.float64]  # (N, 2) spots
    queries: NDArray[np.float64]  # (Q, 2) true spots
    found: NDArray[np.float64]  # (Q, 2) spots of the best match
    right: NDArray[np.bool_]  # (Q,)


@dataclass(frozen=True)
class TrainingCurve:
    """One figure over the course of training, one line a run: label -> (steps, values)."""

    title: str
    x_label: str
    lines: tuple[tuple[str, Sequence[float], Sequence[float]], ...]


@dataclass(frozen=True)
class Page:
    """A whole page. `reports` go from baseline to main; the last one is what the page is about."""

    title: str
    reports: tuple[EvalReport, ...]
    examples: tuple[Example, ...]
    ground: Ground | None
    notes: tuple[str, ...] = ()
    training: tuple[TrainingCurve, ...] = ()
