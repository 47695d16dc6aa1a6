"""The model card: what a registered model is, as a page of Markdown and as tags that a search can filter by."""

from collections.abc import Mapping
from typing import Any

import placeray
from placeray.jobspecs.register import StatementConfig
from placeray.model.checkpoint import LoadedModel
from placeray.model.inspect import count_parameters
from placeray.tracking.registry import TAG

# What a registry database keeps of a description (MLflow 3.17: 5000 characters).
DESCRIPTION_CHARS = 4900


def tags_of(loaded: LoadedModel) -> dict[str, str]:
    """Facts such as `placeray.recipe: hash`; by `placeray.model_id` a map or descriptors find their versions."""
    card, config = loaded.card or {}, loaded.config
    facts = {
        "model_id": loaded.model_id,
        "preprocessing": loaded.preprocess.id,
        "backbone": config.backbone.name,
        "float_head": config.float_head.kind if config.float_head else None,
        "descriptor_dim": loaded.model.descriptor_dim,
        "code_bits": loaded.model.code_bits,
        "recipe": (card.get("recipe") or {}).get("name"),
        "data_fingerprint": card.get("data_fingerprint"),
        "version": placeray.__version__,
    }
    return {f"{TAG}{name}": str(value) for name, value in facts.items() if value is not None}


def model_card(name: str, loaded: LoadedModel, statement: StatementConfig) -> str:
    """A page of Markdown about one checkpoint."""
    card = loaded.card or {}
    parts = [
        f"# {name}",
        "SelaVPR++ visual place recognition: a photo in, descriptors of its place out.",
        _list(_what(loaded)),
        "## Data and recipe",
        _list(_origin(card)),
        "## Recall on validation sets",
        _recall_table(card.get("metrics", {}))
        or "Not measured: the checkpoint's card holds no recall. Evaluate it with jobs/evaluate.py.",
        "## Intended use",
        statement.intended_use,
        "## Licence",
        statement.licence,
    ]
    if statement.notes:
        parts += ["## Notes", *statement.notes]
    return "\n\n".join(parts) + "\n"


def _what(loaded: LoadedModel) -> dict[str, str]:
    config, model = loaded.config, loaded.model
    counts = count_parameters(model)
    trained = counts["in all"] - counts["backbone"]
    return {
        "Model": f"`{loaded.model_id}`",
        "Backbone": f"{config.backbone.name}, frozen, {counts['backbone']:,} parameters; {trained:,} beside it",
        "Float descriptor": f"{model.descriptor_dim} numbers ({config.float_head.kind})"
        if config.float_head
        else "none",
        "Binary code": f"{model.code_bits} bits" if model.code_bits else "none",
        "Preprocessing": f"`{loaded.preprocess.id}`: a map and its queries must share it",
        "placeray": placeray.__version__,
    }


def _origin(card: Mapping[str, Any]) -> dict[str, str]:
    recipe, training = card.get("recipe"), card.get("training") or {}
    if not recipe:
        return {"Training": "not known to this checkpoint (published weights, or never trained)"}
    sets = card.get("data_sets") or {}
    facts = {
        "Recipe": f"{recipe['name']}, {len(card.get('history', []))} epochs of at most {training.get('epochs', '?')}",
        "Data": f"places `{card['data_fingerprint']}`",
        "Data sets": ", ".join(f"{name} ({places:,} places)" for name, places in sorted(sets.items())),
        "Started from": f"model `{card['start_from']}`" if card.get("start_from") else "the backbone",
        "Seed": str(training.get("seed", "?")),
        "Created": card["created_at"],
    }
    return {name: value for name, value in facts.items() if value}


def _recall_table(metrics: Mapping[str, float]) -> str:
    """`val/<set>/<stage>/recall_at_<k>` as a table of percentages; empty without such metrics."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for key, value in metrics.items():
        pieces = key.split("/")
        if len(pieces) == 4 and pieces[0] == "val" and pieces[3].startswith("recall_at_"):
            found.setdefault((pieces[1], pieces[2]), {})[int(pieces[3].removeprefix("recall_at_"))] = value
    if not found:
        return ""
    ks = sorted({k for recalls in found.values() for k in recalls})
    lines = [
        "| set | search | " + " | ".join(f"R@{k}" for k in ks) + " |",
        "|---|---|" + "---|" * len(ks),
    ]
    for (name, stage), recalls in sorted(found.items()):
        cells = [f"{100 * recalls[k]:.1f} %" if k in recalls else "" for k in ks]
        lines.append(f"| {name} | {stage.replace('_', '-')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _list(facts: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())
