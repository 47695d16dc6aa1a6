"""Training curves out of the `history` of checkpoint cards."""

from collections.abc import Mapping
from typing import Any

from placeray import storage
from placeray.contracts import validate_document
from placeray.evaluation.page_data import TrainingCurve

CARD_FILE = "card.json"
LOSS = "train/loss"


def training_curves(checkpoints: Mapping[str, str]) -> tuple[TrainingCurve, ...]:
    """Loss, and every validation recall@1, over the epochs of the labelled checkpoint folders.

    A card without a history (a published file, an untrained model) adds no line.

    Raises:
        StorageError: a checkpoint is not finished.
        ContractError: a card does not fit checkpoint_card/v1.
    """
    histories = {label: _history(folder) for label, folder in checkpoints.items()}
    lines = {
        title: tuple(
            (label, *points)
            for label, history in histories.items()
            if (points := _points(history, figure))[0]
        )
        for title, figure in (("Training loss", LOSS), *_recalls(histories))
    }
    return tuple(TrainingCurve(title, "epoch", drawn) for title, drawn in lines.items() if drawn)


def _history(folder: str) -> list[dict[str, Any]]:
    card = storage.read_json(storage.join(folder, CARD_FILE))
    validate_document(card, "checkpoint_card/v1")
    return list(card.get("history", []))


def _recalls(histories: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """(title, key) of every recall@1 that any history holds, in order of appearance."""
    keys = {key: None for history in histories.values() for epoch in history for key in _figures(epoch)}
    return [("Validation recall@1, " + _spoken(key), key) for key in keys if key.endswith("recall_at_1")]


def _spoken(key: str) -> str:
    """`msls-val/two_stage/recall_at_1` -> `msls-val two-stage`."""
    return " ".join(key.split("/")[:-1]).replace("_", "-")


def _points(history: list[dict[str, Any]], figure: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one figure, where it was measured."""
    known = [
        (float(epoch["epoch"]), float(found[figure]))
        for epoch in history
        if figure in (found := _figures(epoch))
    ]
    return [epoch for epoch, _ in known], [value for _, value in known]


def _figures(epoch: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one entry; recalls may stand in a mapping of their own."""
    found: dict[str, float] = {}
    for key, value in epoch.items():
        if isinstance(value, Mapping):
            found.update(_figures(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    return found
