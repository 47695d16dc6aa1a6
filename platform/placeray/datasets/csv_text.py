"""CSV files read as text, so that no value is changed by guessing its type.

An all-digit panorama id keeps its zeros, one spelled `NaN` stays a name, a latitude keeps the digits that its
file name is made of. Line ends may be LF or CRLF, with or without a final one; a byte order mark is skipped.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.source import Listing, SourceBase
from placeray.errors import DataError


class CsvText(NamedTuple):
    """table: text columns as they stand. lines: line number of each row. broken: (line, text) of other rows."""

    table: pa.Table
    lines: pa.Array
    broken: list[tuple[int, str]]

    def column(self, name: str) -> pa.Array:
        """One column as a plain array of text, white space trimmed; all empty when the file has no such column."""
        if name not in self.table.column_names:
            return photos.texts("", self.table.num_rows)
        return pc.utf8_trim_whitespace(self.table[name].combine_chunks())

    def batches(self, num_rows: int) -> Iterator["CsvText"]:
        """The rows in pieces of at most `num_rows`; broken lines are not repeated."""
        for start in range(0, self.table.num_rows, num_rows):
            yield CsvText(self.table.slice(start, num_rows), self.lines.slice(start, num_rows), [])


def read_csv(uri: str, needed: Sequence[str]) -> CsvText:
    """Read a CSV with a header.

    Raises:
        DataError: a needed column is missing, or the file is empty or not UTF-8.
    """
    data = storage.read_bytes(uri)
    names = _header(data, uri)
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(f"{uri} has no column {', '.join(missing)}; its columns are {', '.join(names)}")
    if not _has_rows(data):
        return CsvText(
            pa.table([pa.array([], pa.string()) for _ in needed], names=list(needed)),
            _line_numbers(0, []),
            [],
        )
    broken: list[tuple[int, str]] = []

    def keep_aside(row: Any) -> str:
        broken.append((row.number or 0, row.text or ""))
        return "skip"

    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            read_options=csv.ReadOptions(
                use_threads=False, column_names=names, skip_rows=1, block_size=16 << 20
            ),
            parse_options=csv.ParseOptions(invalid_row_handler=keep_aside),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
                include_columns=list(dict.fromkeys(needed)),
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{uri} cannot be read as CSV: {str(error).splitlines()[0]}") from None
    return CsvText(table, _line_numbers(table.num_rows, [line for line, _ in broken]), broken)


def broken_lines(config: SourceBase, csv_path: str, rows: CsvText) -> Listing:
    """The lines of a CSV that have another number of fields than its header, as rejects."""
    paths = [f"{csv_path}#line-{line}" for line, _ in rows.broken]
    return photos.reject_all(
        config, paths, "bad_row", "the line has another number of fields than the header"
    )


def _header(data: bytes, uri: str) -> list[str]:
    """Column names; an unnamed index column is called `index`, as MSLS has one."""
    line = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].split(b"\r", 1)[0]
    try:
        names = [name.strip().strip('"') for name in line.decode("utf-8").split(",")]
    except UnicodeDecodeError:
        raise DataError(f"{uri} is not UTF-8 text") from None
    if names == [""]:
        raise DataError(f"{uri} is empty: it has no header line")
    names = [name or "index" for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"{uri} has two columns of one name: {', '.join(names)}")
    return names


def _has_rows(data: bytes) -> bool:
    """Whether anything stands behind the header line."""
    return len(data[: 1 << 20].strip().replace(b"\r", b"\n").split(b"\n", 1)) > 1


def _line_numbers(count: int, taken: Sequence[int]) -> pa.Array:
    """Numbers of the lines behind the good rows: 2, 3, ... without the broken ones."""
    numbers = np.arange(2, count + len(taken) + 2, dtype=np.int64)
    return pa.array(numbers[~np.isin(numbers, np.asarray(taken, dtype=np.int64))][:count])
