"""One file of photos (images/v1) in, one file of descriptors (descriptors/v1) out: the work of an embed worker.

Plain functions and a generator; `embedding` puts them on Ray. Photos of the next batch are read and decoded
by threads while the model describes this one.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from placeray import storage
from placeray.contracts import table_schema, validate_table
from placeray.datasets.writing import write_parquet
from placeray.errors import DataError, StorageError
from placeray.jobspecs.embed import PhotoSelection
from placeray.model.describe import EmbedConfig, describe
from placeray.model.preprocess import PreprocessConfig, decode_to_input
from placeray.model.selavpr import SelaVPR

# Descriptors of 2048 x 16 bits: a row group of 4 MB, which is what an index worker holds at a time.
ROWS_PER_GROUP = 1024
READ_ROWS = 64


class Reject(NamedTuple):
    """Why a photo has no descriptor."""

    reason: str
    detail: str


class DescribedFile(NamedTuple):
    """What became of the selected photos of one file."""

    descriptors: pa.Table  # descriptors/v1
    rejects: pa.Table  # rejects/v1

    @property
    def reasons(self) -> dict[str, int]:
        """How many photos were rejected for what."""
        return dict(sorted(Counter(self.rejects["reason"].to_pylist()).items()))


def selected_rows(uri: str, select: PhotoSelection) -> tuple[int, list[tuple[str, str]]]:
    """How many photos of a file are selected, and the (dataset, split) they belong to."""
    table = storage.read_table(uri, ["dataset", "split", "role"])
    chosen = table.filter(_mask(table, select))
    pairs = set(zip(chosen["dataset"].to_pylist(), chosen["split"].to_pylist(), strict=True))
    return chosen.num_rows, sorted(pairs)


def describe_file(
    uri: str,
    select: PhotoSelection,
    model: SelaVPR,
    preprocess: PreprocessConfig,
    config: EmbedConfig,
    pool: ThreadPoolExecutor,
) -> DescribedFile:
    """Describe the selected photos of one images/v1 file, in its order.

    Raises:
        ContractError: the file is not images/v1.
        StorageError: a photo that is only referenced is there but cannot be read.
    """
    schema = table_schema("descriptors/v1", {"descriptor": model.descriptor_dim})
    descriptors, rejects = [], []
    for rows, inputs in _decoded(uri, select, preprocess, config.batch_size, pool):
        good = [i for i, item in enumerate(inputs) if isinstance(item, Tensor)]
        rejects += [_reject_row(rows, i, item) for i, item in enumerate(inputs) if isinstance(item, Reject)]
        if good:
            batch = torch.stack([item for item in inputs if isinstance(item, Tensor)])
            found = describe(model, batch, config.precision)
            descriptors.append(_table(rows.take(pa.array(good)), found.codes, found.float, schema))
    return DescribedFile(
        pa.concat_tables(descriptors) if descriptors else schema.empty_table(),
        pa.Table.from_pylist(rejects, schema=table_schema("rejects/v1")),
    )


def write_descriptors(folder: str, path: str, table: pa.Table) -> dict[str, Any]:
    """Write one file of descriptors; returns its entry for the manifest."""
    validate_table(table, "descriptors/v1")
    # Codes and half-precision descriptors are noise to a compressor; positions and names are not.
    plain = {"code", "descriptor.list.element"}
    compression = {name: "none" if name in plain else "zstd" for name in [*table.schema.names, *plain]}
    return write_parquet(folder, path, table, row_group_size=ROWS_PER_GROUP, compression=compression)


def _mask(table: pa.Table, select: PhotoSelection) -> pa.Array:
    mask = pa.array(np.ones(table.num_rows, dtype=bool))
    for name, wanted in select.model_dump().items():
        if wanted is not None:
            mask = pc.and_(mask, pc.equal(table[name], wanted))
    return mask


def _decoded(
    uri: str, select: PhotoSelection, preprocess: PreprocessConfig, batch_size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[pa.Table, list[Tensor | Reject]]]:
    """Batches of rows (without image) with the input of each photo; the next batch is already being decoded."""
    waiting: tuple[pa.Table, list[Future[Tensor | Reject]]] | None = None
    for rows in _batches(uri, select, batch_size):
        photos = zip(rows["image"].to_pylist(), rows["source_uri"].to_pylist(), strict=True)
        futures = [pool.submit(_input, data, source, preprocess) for data, source in photos]
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]
        waiting = rows.drop_columns(["image"]), futures
    if waiting is not None:
        yield waiting[0], [future.result() for future in waiting[1]]


def _batches(uri: str, select: PhotoSelection, batch_size: int) -> Iterator[pa.Table]:
    """The selected rows of a file in tables of `batch_size`, read a few photos at a time."""
    with storage.open_read(uri) as file:
        parquet = pq.ParquetFile(file)
        validate_table(parquet.schema_arrow, "images/v1")
        held = parquet.schema_arrow.empty_table()
        for some in parquet.iter_batches(READ_ROWS):
            table = pa.Table.from_batches([some])
            held = pa.concat_tables([held, table.filter(_mask(table, select))])
            while held.num_rows >= batch_size:
                yield held.slice(0, batch_size)
                held = held.slice(batch_size)
    if held.num_rows:
        yield held


def _input(data: bytes | None, source_uri: str, preprocess: PreprocessConfig) -> Tensor | Reject:
    """(3, H, W) float32 of one photo, from its bytes or from where they are."""
    try:
        return decode_to_input(storage.read_bytes(source_uri) if data is None else data, preprocess)
    except DataError as error:
        return Reject("decode_error", str(error))
    except StorageError:
        if storage.exists(source_uri):
            raise  # rights, network or disk: not the fault of the photo
        return Reject("missing_file", f"{source_uri} is not there")


def _reject_row(rows: pa.Table, i: int, reject: Reject) -> dict[str, str]:
    names = ("image_id", "dataset", "source_uri")
    return {**{name: rows[name][i].as_py() for name in names}, **reject._asdict()}


def _table(
    rows: pa.Table, codes: NDArray[np.uint8] | None, floats: NDArray[np.float32] | None, schema: pa.Schema
) -> pa.Table:
    """descriptors/v1 of rows of images/v1 and what the model said about them."""
    vectors: dict[str, pa.Array] = {
        name: pa.nulls(rows.num_rows, schema.field(name).type) for name in ("code", "descriptor")
    }
    if codes is not None:
        vectors["code"] = pa.array([code.tobytes() for code in codes], pa.binary())
    if floats is not None:
        if not np.isfinite(floats).all():
            raise DataError("the model gives descriptors that are not finite: its weights are broken")
        values = pa.array(floats.astype(np.float16).reshape(-1))
        vectors["descriptor"] = pa.FixedSizeListArray.from_arrays(values, floats.shape[1])
    columns = [vectors[name] if name in vectors else rows[name].combine_chunks() for name in schema.names]
    return pa.table(columns, schema=schema)
