"""One shard of an open map: its codes, its descriptors and the records of its photos, all memory-mapped."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from placeray.errors import MapError
from placeray.retrieval.build import CODE_FILE, ROWS_FILE, checksum, rows_schema
from placeray.retrieval.codes import Bytes
from placeray.retrieval.filters import Positions
from placeray.retrieval.float_store import FloatStore
from placeray.retrieval.mapped import ADVICE, MappedFile, allow_many_files, check_size, unreadable


class Shard:
    """The files of one shard, checked for presence and size when opened."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Raises MapError naming the file that is missing, truncated or unreadable."""
        allow_many_files()  # here, as not only open maps but compaction opens many shards at once
        self.folder, self.record = folder, record
        for name, file in record["files"].items():
            check_size(folder / name, file["bytes"])
        num_rows, code_bytes = record["rows"], record["code_bits"] // 8
        self.codes: Bytes | None = None
        if code_bytes:
            self.codes = MappedFile(folder / CODE_FILE, num_rows * code_bytes).bytes.reshape(
                num_rows, code_bytes
            )
        self.floats: FloatStore | None = None
        if record["descriptor_dim"]:
            self.floats = FloatStore(
                folder,
                num_rows=num_rows,
                descriptor_dim=record["descriptor_dim"],
                dtype=record["descriptor_type"],
                row_bytes=record["row_bytes"],
            )
        self.table = _read_rows(folder / ROWS_FILE, num_rows)

    def __len__(self) -> int:
        return int(self.record["rows"])

    @functools.cached_property
    def positions(self) -> Positions:
        """What filters read."""
        return Positions(self.table)

    def verify(self) -> None:
        """Read every file again. Raises MapError naming the first one that is gone or whose bytes have changed."""
        for name, file in self.record["files"].items():
            try:
                found = checksum(self.folder / name)
            except OSError as error:  # it may have gone with its version
                raise unreadable(self.folder / name, error) from None
            if found != file["xxh3_128"]:
                raise MapError(
                    f"{self.folder / name} has other bytes than when it was built: the map is damaged, {ADVICE}"
                )


def _read_rows(path: Path, num_rows: int) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except OSError as error:
        raise unreadable(path, error) from None
    except pa.ArrowException as error:
        raise MapError(f"{path} is damaged ({error}): {ADVICE}") from None
    missing = [field.name for field in rows_schema() if not _has(table.schema, field)]
    if missing:
        raise MapError(
            f"{path} is damaged, it has no columns {', '.join(missing)} of the right type: {ADVICE}"
        )
    if len(table) != num_rows:
        raise MapError(f"{path} has {len(table)} rows, its shard.json says {num_rows}: build the map again")
    return table


def _has(schema: pa.Schema, field: pa.Field) -> bool:
    """Whether there is one such column; others may be additions."""
    place = schema.get_field_index(field.name)  # -1 for two of them too
    return bool(place >= 0 and schema.field(place).type == field.type)
