"""Columns of a folder of parquet files in blocks of bounded size: photos stay where they are."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from placeray import storage
from placeray.errors import DataError


def open_input(root: str) -> str:
    """The full uri of a finished normalized data set.

    Raises:
        StorageError: it is not there or not finished.
        DataError: the folder holds something else.
    """
    manifest = storage.read_manifest(root)
    if manifest.get("contract") != "normalized/v1":
        raise DataError(
            f"{storage.resolve(root)} holds {manifest.get('contract', 'something else')}, "
            "expected normalized/v1: name the output of jobs/normalize.py"
        )
    return storage.resolve(root)


def read_blocks(folder: str, columns: Sequence[str], num_rows: int) -> Iterator[pa.Table]:
    """Tables of about `num_rows` rows in the order of the manifest, with a column `file`: the full uri (dictionary).

    One block is in memory at a time; small files are joined, large ones cut.
    """
    held: list[pa.Table] = []
    for entry in storage.read_manifest(folder)["files"]:
        uri = storage.join(folder, entry["path"])
        with storage.open_read(uri) as handle:
            parquet = pq.ParquetFile(handle)
            first = 0
            for batch in parquet.iter_batches(batch_size=num_rows, columns=list(columns), use_threads=False):
                held.append(_with_place_in_file(pa.Table.from_batches([batch]), uri, first))
                first += batch.num_rows
                if sum(table.num_rows for table in held) >= num_rows:
                    yield pa.concat_tables(held).unify_dictionaries()
                    held = []
    if held:
        yield pa.concat_tables(held).unify_dictionaries()


def smallest_ids(photos: pa.Table, num_rows: int) -> pa.Table:
    """The rows of smallest image_id in its order: ids are hashes, so this is a sample that no order changes."""
    if photos.num_rows <= num_rows:
        return photos.sort_by("image_id")
    return photos.take(pc.select_k_unstable(photos, num_rows, [("image_id", "ascending")]))


def _with_place_in_file(table: pa.Table, uri: str, first: int) -> pa.Table:
    """Add `file` and `row`, where a row can be found again."""
    zeros = pa.array(np.zeros(table.num_rows, dtype=np.int32))
    file = pa.DictionaryArray.from_arrays(zeros, pa.array([uri], pa.string()))
    rows = pa.array(np.arange(first, first + table.num_rows, dtype=np.int64))
    return table.append_column("file", file).append_column("row", rows)
