"""Inputs named on a command line: a photo, a folder of photos, or an array that is already normalised."""

import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from placeray import storage
from placeray.errors import DataError, StorageError
from placeray.model.preprocess import PreprocessConfig, decode_to_input

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass
class PhotoInputs:
    """Photos by path, decoded as they are asked for.

    Attributes:
        uris:     of the photos, in the order in which they are described.
        accepted: uris read so far.
        rejected: uri and reason of the photos that could not be read or decoded.
    """

    uris: list[str]
    preprocess: PreprocessConfig
    accepted: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.uris)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """(B, 3, size, size) float32; photos that cannot be read or decoded are left out and remembered."""
        batch: list[Tensor] = []
        for uri in self.uris:
            try:
                batch.append(decode_to_input(read_photo(uri), self.preprocess))
            except DataError as error:
                self.rejected.append((uri, str(error)))
                continue
            self.accepted.append(uri)
            if len(batch) == batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)


@dataclass
class ArrayInputs:
    """Rows of a `.npy` array that go into the network as they are."""

    uri: str
    array: np.ndarray
    accepted: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """(B, 3, H, W) float32."""
        for start in range(0, len(self.array), batch_size):
            rows = self.array[start : start + batch_size]
            self.accepted += [f"{self.uri}[{start + row}]" for row in range(len(rows))]
            yield torch.from_numpy(np.array(rows))


def open_inputs(uri: str, preprocess: PreprocessConfig) -> PhotoInputs | ArrayInputs:
    """What a path names.

    Args:
        uri: a photo, a folder (searched with its sub-folders, in order of names) or a `.npy` file.
        preprocess: for photos; an array is taken to be normalised already.

    Raises:
        StorageError: there is nothing at `uri`.
        DataError: the folder holds no photo, or the array is not float32 (N, 3, H, W).
    """
    if uri.lower().endswith(".npy"):
        return ArrayInputs(uri, _read_array(uri))
    return PhotoInputs(list_photos(uri), preprocess)


def list_photos(uri: str) -> list[str]:
    """The photo at `uri`, or the photos in the folder at `uri` and below, in order of names.

    Raises:
        StorageError: there is nothing at `uri`.
        DataError: the folder holds no photo.
    """
    files = storage.list_files(uri)
    if files == [storage.resolve(uri)]:
        return files
    photos = [file for file in files if file.lower().endswith(PHOTO_SUFFIXES)]
    if not photos:
        raise DataError(f"{storage.resolve(uri)} holds no photo ({', '.join(PHOTO_SUFFIXES)})")
    return photos


def read_photo(uri: str) -> bytes:
    """The bytes of one photo of many.

    Raises:
        DataError: there is no such file (a link to nothing), or a local one cannot be read: the fault of this photo.
        StorageError: an object store has it and does not give it: the next photo would fare no better.
    """
    try:
        return storage.read_bytes(uri)
    except StorageError as error:
        if storage.is_remote(uri) and storage.exists(uri):
            raise
        raise DataError(f"cannot read the file: {error}") from None


def _read_array(uri: str) -> np.ndarray:
    try:
        with storage.open_read(uri) as file:
            array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        raise DataError(f"{storage.resolve(uri)} is no numpy array: {error}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{storage.resolve(uri)} is an .npz archive under another name: give one array as .npy"
        )
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1] != 3:
        raise DataError(
            f"{storage.resolve(uri)} holds {array.dtype} {array.shape}; wanted is float32 (N, 3, H, W), "
            "normalised with the ImageNet mean and deviation"
        )
    return array
