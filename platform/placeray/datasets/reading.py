"""Reading places/v1 for training: which domain files there are, and the bytes of single photos in them."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from placeray import contracts, storage
from placeray.datasets.sampler import PlaceRef
from placeray.errors import DataError


class Domain(NamedTuple):
    """One file of places/v1. `place_ids` and `num_photos` (int64) have one entry per row of the file."""

    file: str
    name: str
    dataset: str
    city: str
    place_ids: list[str]
    num_photos: npt.NDArray[np.int64]

    @property
    def places(self) -> list[PlaceRef]:
        """What the sampler draws from."""
        return [PlaceRef(self.file, row, int(count)) for row, count in enumerate(self.num_photos)]


def places_folder(root: str) -> str:
    """The folder of places/v1: `root` itself, or the one inside a normalized data set.

    Raises:
        StorageError: the job that writes it has not finished.
        DataError: the manifest in `root` is one of something else.
    """
    manifest = storage.read_manifest(root)
    if manifest["contract"] == "normalized/v1":
        return storage.join(root, "places")
    if manifest["contract"] != "places/v1":
        raise DataError(f"{storage.resolve(root)} holds {manifest['contract']}, expected places/v1")
    return root


def list_domains(root: str) -> list[Domain]:
    """All domain files of a folder of places, or of a normalized data set, sorted by path. No photo is
    read.
    """
    folder = places_folder(root)
    manifest = storage.read_manifest(folder)
    return [_open_domain(storage.join(storage.resolve(folder), file["path"])) for file in manifest["files"]]


def places_fingerprint(root: str) -> str:
    """Hash over all files of places: what a checkpoint states as its data."""
    fingerprint: str = storage.read_manifest(places_folder(root))["fingerprint"]
    return fingerprint


def read_places(file: str, rows: Sequence[int], photos: Sequence[Sequence[int]]) -> list[list[bytes]]:
    """The encoded bytes of chosen photos: `photos[i]` are positions in the place of row `rows[i]`."""
    with PlacesFile(file) as places:
        return places.read(rows, photos)


class PlacesFile:
    """An open file of places/v1, for reading many batches of it without parsing its footer again.

    It holds the footer, no photo: a reader of Arrow keeps the bytes of the row group it read last, so each read has
    a reader of its own, which costs 0.1 ms when the footer is known.
    """

    def __init__(self, file: str) -> None:
        self._handle = storage.open_read(file)
        self._footer = pq.read_metadata(self._handle)
        sizes = [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]
        self._first_rows = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()

    def read(self, rows: Sequence[int], photos: Sequence[Sequence[int]]) -> list[list[bytes]]:
        """The encoded bytes of chosen photos, from the row groups that hold them and no others."""
        group_of = np.searchsorted(self._first_rows, np.asarray(rows, dtype=np.int64), side="right") - 1
        found: list[list[bytes]] = [[] for _ in rows]
        for group in np.unique(group_of).tolist():
            reader = pq.ParquetFile(self._handle, metadata=self._footer)
            table = reader.read_row_group(group, columns=["photos.list.element.image"], use_threads=False)
            column = table["photos"].combine_chunks()
            for at in np.flatnonzero(group_of == group).tolist():
                place = column[int(rows[at] - self._first_rows[group])].values.field("image")
                found[at] = [place[int(photo)].as_py() for photo in photos[at]]
        return found


def _open_domain(file: str) -> Domain:
    columns = ["place_id", "dataset", "city", "domain", "num_photos"]
    with storage.open_read(file) as handle:
        parquet = pq.ParquetFile(handle)
        contracts.validate_table(parquet.schema_arrow, "places/v1")
        table = parquet.read(columns=columns, use_threads=False)
    first = table.slice(0, 1).to_pylist()[0]
    return Domain(
        file,
        first["domain"],
        first["dataset"],
        first["city"],
        table["place_id"].to_pylist(),
        table["num_photos"].to_numpy().astype(np.int64),
    )
