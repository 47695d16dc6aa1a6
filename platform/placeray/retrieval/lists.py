"""Inverted lists of a map on disk: the codes of every shard once more, ordered by the list they belong to.

    <map>/ivf/<key>/                      one quantizer, named by what it was learnt from
        coarse.u8 centroids.u8 starts.u32     see `quantizer.Quantizer`
        quantizer.json                        sizes and checksums of these, last
    <map>/ivf/<key>/<shard id>/
        codes.u8                              [rows, bits / 8], list after list, rows ascending within each
        order.u32                             shard row of each of them
        offsets.u32                           where each list begins, and the end
        lists.json                            sizes and checksums of these, last

Lists are derived from shards and speed up stage 1; a map answers without them. All shards share one quantizer, so that
photos can be added without learning again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError, StorageError
from placeray.retrieval.build import checksum, write_file
from placeray.retrieval.codes import Bytes
from placeray.retrieval.mapped import MappedFile
from placeray.retrieval.quantizer import Quantizer

QUANTIZER_FILE, LISTS_FILE = "quantizer.json", "lists.json"


class ShardLists(NamedTuple):
    """The inverted lists of one shard."""

    codes: Bytes  # (n, bits / 8) uint8, in list order
    order: NDArray[np.uint32]  # (n,) row of the shard
    offsets: NDArray[np.uint32]  # (L + 1,): list l is codes[offsets[l] : offsets[l + 1]]


def save_quantizer(folder: Path, quantizer: Quantizer) -> None:
    """Write a quantizer; the same one gives the same bytes."""
    files: dict[str, NDArray[Any]] = {
        "coarse.u8": quantizer.coarse,
        "centroids.u8": quantizer.centroids,
        "starts.u32": quantizer.starts,
    }
    bits = quantizer.centroids.shape[1] * 8
    _save(folder, QUANTIZER_FILE, files, {"code_bits": bits, "lists": len(quantizer.centroids)})


def open_quantizer(folder: Path) -> Quantizer:
    """Map the files of a quantizer. Raises MapError naming what is missing or damaged."""
    record = _record(folder, QUANTIZER_FILE)
    try:
        width = record["code_bits"] // 8
        return Quantizer(
            _mapped(folder, record, "coarse.u8").reshape(-1, width),
            _mapped(folder, record, "centroids.u8").reshape(-1, width),
            _mapped(folder, record, "starts.u32").view(np.uint32),
        )
    except (KeyError, TypeError, ValueError):  # sizes that are missing or do not fit each other
        raise MapError(f"{folder / QUANTIZER_FILE} is damaged: {_ADVICE}") from None


def save_lists(folder: Path, codes: Bytes, quantizer: Quantizer) -> None:
    """Order the codes (n, bits / 8) of a shard by list and write them."""
    lists = quantizer.assign(codes)
    order = np.argsort(lists, kind="stable").astype(np.uint32)
    counts = np.bincount(lists, minlength=len(quantizer.centroids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    files: dict[str, NDArray[Any]] = {"codes.u8": codes[order], "order.u32": order, "offsets.u32": offsets}
    _save(folder, LISTS_FILE, files, {"rows": len(codes), "code_bits": codes.shape[1] * 8})


def open_lists(folder: Path) -> ShardLists:
    """Map the lists of a shard. Raises MapError naming what is missing or damaged."""
    record = _record(folder, LISTS_FILE)
    try:
        return ShardLists(
            _mapped(folder, record, "codes.u8").reshape(record["rows"], record["code_bits"] // 8),
            _mapped(folder, record, "order.u32").view(np.uint32),
            _mapped(folder, record, "offsets.u32").view(np.uint32),
        )
    except (KeyError, TypeError, ValueError):
        raise MapError(f"{folder / LISTS_FILE} is damaged: {_ADVICE}") from None


def is_finished(folder: Path) -> bool:
    """Whether a quantizer or lists are there with all their bytes."""
    for name in (QUANTIZER_FILE, LISTS_FILE):
        if (folder / name).is_file():
            record = _record(folder, name)
            return all(
                (folder / file).is_file() and (folder / file).stat().st_size == found["bytes"]
                for file, found in record["files"].items()
            )
    return False


def verify(folder: Path) -> None:
    """Read every file again. Raises MapError naming the first one whose bytes have changed."""
    name = QUANTIZER_FILE if (folder / QUANTIZER_FILE).is_file() else LISTS_FILE
    for file, found in _record(folder, name)["files"].items():
        if not (folder / file).is_file() or checksum(folder / file) != found["xxh3_128"]:
            raise MapError(f"{folder / file} has other bytes than when it was built: {_ADVICE}")


_ADVICE = "search with mode='exact', which does not need it, or remove its folder and run jobs/index.py again"


def _save(folder: Path, name: str, files: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for file, values in files.items():
        write_file(folder / file, np.ascontiguousarray(values).data)
        found[file] = {"bytes": values.nbytes, "xxh3_128": checksum(folder / file)}
    storage.write_json(str(folder / name), {**record, "files": found})


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = storage.read_json(str(folder / name))
    except StorageError as error:
        raise MapError(f"{folder / name} cannot be read ({error}): {_ADVICE}") from None
    if not isinstance(record, dict) or "files" not in record:
        raise MapError(f"{folder / name} is damaged: {_ADVICE}")
    return record


def _mapped(folder: Path, record: Mapping[str, Any], name: str) -> NDArray[np.uint8]:
    return MappedFile(folder / name, record["files"][name]["bytes"]).bytes
