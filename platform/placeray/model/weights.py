"""Weight files: read them without running code, name everything that does not fit, tell two sets apart.

A file may be a bare state dict or wrapped in a training record, with or without `module.` before every name.
"""

import _codecs
import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor

from placeray import storage
from placeray.errors import CheckpointError

# Where training records keep the weights; the first is the published name.
WRAPPERS = ("model_state_dict", "state_dict", "model")
DATA_PARALLEL_PREFIX = "module."


def read_weights(uri: str) -> dict[str, Tensor]:
    """The weights in a file by name, without wrapper and `module.`; on the CPU, memory-mapped where local.

    Raises:
        StorageError: there is no such file.
        CheckpointError: it is no weight file, or holds objects that a weight file has no need of.
    """
    record = _load(uri)
    for wrapper in WRAPPERS:
        if isinstance(record, Mapping) and isinstance(record.get(wrapper), Mapping):
            record = record[wrapper]
    if not isinstance(record, Mapping) or not record:
        raise CheckpointError(f"{storage.resolve(uri)} holds a {type(record).__name__}, not weights by name")
    strange = [str(name) for name, value in record.items() if not _is_plain(name, value)]
    if strange:
        raise CheckpointError(
            f"{storage.resolve(uri)}: these entries are no tensors of plain values under a name: {', '.join(strange)}"
        )
    if next(iter(record)).startswith(DATA_PARALLEL_PREFIX):
        return {name.removeprefix(DATA_PARALLEL_PREFIX): value for name, value in record.items()}
    return dict(record)


def _is_plain(name: Any, value: Any) -> bool:
    """Whether an entry is a tensor with values of its own under a name."""
    return isinstance(name, str) and isinstance(value, Tensor) and not (value.is_sparse or value.is_meta)


def check_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Compare names and shapes; one error names everything that does not fit.

    Args:
        given:    weights as read.
        expected: weights of the model they are for; meta tensors will do.
        what:     whose weights these are, for the error.

    Raises:
        CheckpointError: names every missing, unexpected and mis-shaped entry.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshaped = [
        f"{name} is {tuple(given[name].shape)} and should be {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if names
    ]
    if problems:
        raise CheckpointError(f"{what} does not fit the model: {'; '.join(problems)}")


def weights_id(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values; independent of order, file and device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(uri: str) -> Any:
    full = storage.resolve(uri)
    try:
        with torch.serialization.safe_globals(_NUMPY_GLOBALS):
            if storage.is_remote(full):
                return torch.load(io.BytesIO(storage.read_bytes(full)), map_location="cpu", weights_only=True)
            with storage.open_read(full):  # names the file when it is not there
                mapped = zipfile.is_zipfile(full)
            return torch.load(full, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{full} holds more than weights and is refused: {_reason(error)}") from None
    except _DAMAGED as error:
        raise CheckpointError(f"{full} cannot be read as a weight file: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The line of torch's message that says what is wrong, never its advice to read without the check."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    found = [line for line in lines if "WeightsUnpickler error:" in line or line.startswith("Trying to load")]
    found = found or [line for line in lines if "weights_only" not in line]
    reason = (
        found[0].split("WeightsUnpickler error:")[-1].split(" was not an allowed global")[0] if found else ""
    )
    return reason.strip() or type(error).__name__


def _numpy_globals() -> Iterator[Any]:
    """What numpy needs to unpickle a float64 array or scalar, under the module names before and since 2.0.

    Training records of the published code hold `recalls` (an array) and `best_r5` (a scalar).
    """
    yield from (np.ndarray, np.dtype, type(np.dtype(np.float64)), _codecs.encode)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        for name in ("_reconstruct", "scalar"):
            yield getattr(multiarray, name), f"{module}.{name}"


# What torch raises for bytes that are no weight file, or a damaged one.
_DAMAGED = (
    RuntimeError, EOFError, LookupError, ValueError, AssertionError, AttributeError, TypeError, OSError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
_NUMPY_GLOBALS = list(_numpy_globals())
