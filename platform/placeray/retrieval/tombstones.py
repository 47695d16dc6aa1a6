"""Removed photos: per shard and version a file of local rows, named by its content and never rewritten.

<map>/tombstones/<shard id>-<hash>.u32      ascending rows of the shard, little-endian uint32, no header
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval.mapped import ADVICE, unreadable

FOLDER = "tombstones"
Mask = NDArray[np.bool_]


def write_tombstones(root: str, shard_id: str, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Write the removed local rows (n,) of a shard; returns what its entry in a manifest records."""
    data = np.unique(rows).astype("<u4").tobytes()
    digest = xxhash.xxh3_128(data).hexdigest()
    path = f"{FOLDER}/{shard_id}-{digest[:16]}.u32"
    storage.write_bytes(storage.join(root, path), data)
    return {"path": path, "rows": len(data) // 4, "xxh3_128": digest}


def live_mask(root: str, entry: Mapping[str, Any]) -> Mask | None:
    """Which rows (n,) of a manifest's shard are not removed, None when none is.

    Raises:
        MapError: the file is missing or has other bytes than the manifest says. It is small, so its checksum is
        always compared: a lost tombstone would bring a removed photo back.
    """
    record = entry.get("tombstones")
    if record is None:
        return None
    path = storage.local_path(storage.join(root, record["path"]))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if xxhash.xxh3_128(data).hexdigest() != record["xxh3_128"]:
        raise MapError(f"{path} has other bytes than when it was written: {ADVICE}")
    live = np.ones(entry["shard"]["rows"], dtype=np.bool_)
    live[np.frombuffer(data, dtype="<u4")] = False
    return live
