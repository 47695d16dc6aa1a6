"""Opening the shards of a map, all of them or those that are whole."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval.shard import Shard
from placeray.retrieval.tombstones import Mask, live_mask

# What to do about files that are missing, truncated, unreadable or, where checksums are compared, changed.
Damaged = Literal["refuse", "skip"]


class OpenShard(NamedTuple):
    """A shard, the global row at which it begins, and its rows that are not removed (None: all)."""

    shard: Shard
    first_row: int
    live: Mask | None


def open_shards(
    root: str, entries: Sequence[Mapping[str, Any]], damaged: Damaged, *, verify: bool
) -> tuple[list[OpenShard], list[str]]:
    """The shards of a manifest in order, and one sentence for each that was left out.

    A shard whose tombstones are damaged is left out too: its removed photos would come back.

    Raises:
        MapError: damage, unless it is to be skipped; the message names the file.
    """
    found, left_out = [], []
    for entry in entries:
        try:
            found.append(_open(root, entry, verify))
        except MapError as error:
            if damaged == "refuse":
                raise
            record = entry["shard"]
            left_out.append(f"shard {record['shard_id']} of {record['rows']} photos is left out: {error}")
    return found, left_out


def joined_masks(shards: Sequence[OpenShard], total_rows: int) -> NDArray[np.bool_] | None:
    """Which rows (N,) of the map can be returned, None for all; rows of a left-out shard cannot."""
    if all(item.live is None for item in shards) and sum(len(item.shard) for item in shards) == total_rows:
        return None
    live = np.zeros(total_rows, dtype=np.bool_)
    for item in shards:
        live[item.first_row : item.first_row + len(item.shard)] = True if item.live is None else item.live
    return live


def _open(root: str, entry: Mapping[str, Any], verify: bool) -> OpenShard:
    shard = Shard(storage.local_path(storage.join(root, entry["path"])), entry["shard"])
    live = live_mask(root, entry)
    if verify:
        shard.verify()
    return OpenShard(shard, entry["first_row"], live)
