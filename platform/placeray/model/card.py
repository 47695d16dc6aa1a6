"""The card of a checkpoint: what its weights are. Read without torch, which takes seconds to import."""

from datetime import UTC, datetime
from typing import Any

from placeray import storage
from placeray.contracts import validate_document
from placeray.errors import StorageError

WEIGHTS_FILE = "model.pt"
CARD_FILE = "card.json"
CARD_CONTRACT = "checkpoint_card/v1"


def read_card(uri: str) -> dict[str, Any] | None:
    """The card of a checkpoint folder; None for a published file, which has none.

    Raises:
        StorageError: the folder has weights and no card: it was not finished.
        ContractError: the card lacks something.
    """
    card_uri = storage.join(uri, CARD_FILE)
    if storage.exists(card_uri):
        card: dict[str, Any] = storage.read_json(card_uri)
        validate_document(card, CARD_CONTRACT)
        return card
    if storage.exists(storage.join(uri, WEIGHTS_FILE)):
        raise StorageError(
            f"{storage.resolve(uri)} has no {CARD_FILE}: the checkpoint was not finished, train again"
        )
    return None


def bare_card(preprocessing: str) -> dict[str, Any]:
    """A card for `save_checkpoint` of a model whose training is not known: published weights, or none at all."""
    return {
        "preprocessing": preprocessing,
        "recipe": None,
        "data_fingerprint": None,
        "metrics": {},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
