"""Paths and values of the space in a few characters, for tables, axes and run names."""

import json
from collections.abc import Sequence
from typing import Any


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted paths that still tell them apart, such as `lr` for `train.optimizer.lr`."""
    short = {}
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if sum(other == end or other.endswith(f".{end}") for other in paths) == 1:
                break
        short[path] = end
    return short


def short_value(value: Any) -> str:
    """`0.00213` -> `0.00213`; `{kind: gem, dim: 256}` -> `gem dim=256`; null -> `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        parts = [str(value["kind"])] if "kind" in value else []
        return " ".join(
            [*parts, *(f"{key}={short_value(item)}" for key, item in value.items() if key != "kind")]
        )
    return value if isinstance(value, str) else json.dumps(value)


def size(num_bytes: float) -> str:
    """`320 B`, `4.2 kB`"""
    return f"{num_bytes:.0f} B" if num_bytes < 1000 else f"{num_bytes / 1000:.1f} kB"
