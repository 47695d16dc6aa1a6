"""Inverted lists of a map on disk: its codes once more, ordered by the list they belong to.

    <map>/ivf/<key>/                      one quantizer, named by what it was learnt from
        coarse.u8 centroids.u8 starts.u32     see `quantizer.Quantizer`
        quantizer.json                        sizes and checksums of these, last
    <map>/ivf/<key>/<run>/                one run of neighbouring shards, named by their names
        codes.u8                              [rows, bits / 8], list after list, rows ascending within each
        order.u32                             row of each of them, counted from the first of the run
        offsets.u32                           where each list begins, and the end
        lists.json                            sizes and checksums of these, last

Lists are derived from shards and speed up stage 1; a map answers without them. A list that runs through many shards is
read in one go, where a piece of it in every shard would be a jump in memory each. All runs share one quantizer, so that
photos can be added, as a run of their own, without learning again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from placeray import storage
from placeray.errors import MapError
from placeray.retrieval.build import checksum, write_file
from placeray.retrieval.codes import Bytes
from placeray.retrieval.locks import emptied
from placeray.retrieval.mapped import MappedFile, unreadable
from placeray.retrieval.quantizer import Quantizer

QUANTIZER_FILE, LISTS_FILE = "quantizer.json", "lists.json"


class Lists(NamedTuple):
    """The inverted lists of one run of shards."""

    codes: Bytes  # (n, bits / 8) uint8, in list order
    order: NDArray[np.uint32]  # (n,) row of the run
    offsets: NDArray[np.uint32]  # (L + 1,): list l is codes[offsets[l] : offsets[l + 1]]


def save_quantizer(folder: Path, quantizer: Quantizer) -> None:
    """Write a quantizer; the same one gives the same bytes."""
    files: dict[str, NDArray[Any]] = {
        "coarse.u8": quantizer.coarse,
        "centroids.u8": quantizer.centroids,
        "starts.u32": quantizer.starts,
    }
    emptied(folder)
    for file, values in files.items():
        write_file(folder / file, np.ascontiguousarray(values).data)
    bits = quantizer.centroids.shape[1] * 8
    _save_record(folder, QUANTIZER_FILE, list(files), {"code_bits": bits, "lists": len(quantizer.centroids)})


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


def save_lists(folder: Path, shards: Sequence[Bytes], quantizer: Quantizer) -> None:
    """Order the codes (n, bits / 8) of neighbouring shards by list and write them; of the codes, one shard is held in
    memory.
    """
    emptied(folder)
    num_lists = len(quantizer.centroids)
    lists = [quantizer.assign(codes) for codes in shards]
    offsets = np.zeros(num_lists + 1, dtype=np.int64)
    for list_of in lists:
        offsets[1:] += np.bincount(list_of, minlength=num_lists)
    offsets = np.cumsum(offsets)
    begin = offsets[:-1].copy()  # of what the next shard has of every list
    num_rows, width = int(offsets[-1]), quantizer.centroids.shape[1]
    codes_file = _created(folder / "codes.u8", np.uint8, (num_rows, width))
    order_file = _created(folder / "order.u32", np.uint32, (num_rows,))
    first_row = 0
    for codes, list_of in zip(shards, lists, strict=True):
        by_list, count = np.argsort(list_of, kind="stable"), np.bincount(list_of, minlength=num_lists)
        places = np.arange(len(codes)) + np.repeat(begin - (np.cumsum(count) - count), count)
        codes_file[places] = codes[by_list]
        order_file[places] = first_row + by_list
        begin += count
        first_row += len(codes)
    for file in (codes_file, order_file):
        if isinstance(file, np.memmap):
            file.flush()
    write_file(folder / "offsets.u32", offsets.astype(np.uint32).data)
    names = ("codes.u8", "order.u32", "offsets.u32")
    _save_record(folder, LISTS_FILE, names, {"rows": num_rows, "code_bits": width * 8})


def _created(path: Path, dtype: type, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new file to write into, mapped. Raises MapError where the disk is full."""
    if not shape[0]:  # nothing to map
        write_file(path, b"")
        return np.empty(shape, dtype=dtype)
    file = np.memmap(path, dtype, mode="w+", shape=shape)
    try:  # a page that the disk has no room for would kill the process that writes to it
        with path.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.nbytes)
    except OSError as error:
        raise MapError(f"{path} cannot be written: {error.strerror}; make room and run it again") from None
    return file


def open_lists(folder: Path) -> Lists:
    """Map the lists of a run. Raises MapError naming what is missing or damaged."""
    record = _record(folder, LISTS_FILE)
    try:
        lists = Lists(
            _mapped(folder, record, "codes.u8").reshape(record["rows"], record["code_bits"] // 8),
            _mapped(folder, record, "order.u32").view(np.uint32).reshape(record["rows"]),
            _mapped(folder, record, "offsets.u32").view(np.uint32),
        )
    except (KeyError, TypeError, ValueError):
        raise MapError(f"{folder / LISTS_FILE} is damaged: {_ADVICE}") from None
    # Compiled loops read where the offsets say, so they must not lead out of the file.
    ends = lists.offsets[-1:].tolist()
    if (lists.offsets[1:] < lists.offsets[:-1]).any() or ends != [record["rows"]]:
        raise MapError(f"{folder / 'offsets.u32'} is damaged: {_ADVICE}")
    return lists


def is_finished(folder: Path) -> bool:
    """Whether a quantizer or lists are there with all their bytes."""
    for name in (QUANTIZER_FILE, LISTS_FILE):
        if (folder / name).is_file():
            try:
                return all(
                    (folder / file).is_file() and (folder / file).stat().st_size == found["bytes"]
                    for file, found in _record(folder, name)["files"].items()
                )
            except (MapError, LookupError, TypeError, AttributeError):
                return False  # a damaged record: they are written again
    return False


def verify(folder: Path) -> None:
    """Read every file again. Raises MapError naming the first one that is gone or whose bytes have changed."""
    name = QUANTIZER_FILE if (folder / QUANTIZER_FILE).is_file() else LISTS_FILE
    for file, found in _record(folder, name)["files"].items():
        try:
            digest = checksum(folder / file)
        except OSError as error:  # it may have gone with its version
            raise unreadable(folder / file, error, _ADVICE) from None
        if digest != found["xxh3_128"]:
            raise MapError(f"{folder / file} has other bytes than when it was built: {_ADVICE}")


_ADVICE = "open the map with damaged='skip' to search without lists, or remove its folder and run jobs/index.py again"


def _save_record(folder: Path, name: str, files: Sequence[str], record: Mapping[str, Any]) -> None:
    """Write down files that are complete."""
    found = {
        file: {"bytes": (folder / file).stat().st_size, "xxh3_128": checksum(folder / file)} for file in files
    }
    storage.write_json(str(folder / name), {**record, "files": found})


def _record(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads((folder / name).read_bytes())
    except OSError as error:
        raise unreadable(folder / name, error, _ADVICE) from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or "files" not in record:
        raise MapError(f"{folder / name} is damaged: {_ADVICE}")
    return record


def _mapped(folder: Path, record: Mapping[str, Any], name: str) -> NDArray[np.uint8]:
    return MappedFile(folder / name, record["files"][name]["bytes"]).bytes
