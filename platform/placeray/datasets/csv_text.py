"""CSV files read as text, so that no value is changed by guessing its type.

An all-digit panorama id keeps its zeros, one spelled `NaN` stays a name, a latitude keeps the digits that its
file name is made of. Line ends may be LF or CRLF, with or without a final one; a byte order mark is skipped.
"""

import csv as csv_module
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from placeray import storage
from placeray.datasets import photos
from placeray.datasets.source import Listing, SourceBase
from placeray.errors import DataError

Ints = npt.NDArray[np.int64]


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
    """Read a CSV with a header. Blank lines are skipped, and so are empty fields behind the last column.

    Raises:
        DataError: a needed column is missing, or the file is empty or not UTF-8.
    """
    data = storage.read_bytes(uri)
    header = _read_header(data, uri)
    missing = [name for name in needed if name not in header.names]
    if missing:
        raise DataError(
            f"{uri} has no column {', '.join(missing)}; its columns are {', '.join(header.names)}"
        )
    wanted = list(dict.fromkeys(needed))
    if not header.first_row:
        return CsvText(pa.table([pa.array([], pa.string()) for _ in wanted], names=wanted), _whole([]), [])
    columns = _columns_of_rows(header)
    beyond = columns[len(header.names) :]  # empty in a good row
    strange: list[tuple[int, str]] = []  # (position among the rows, text)

    def keep_aside(row: Any) -> str:
        strange.append(((row.number or 1) - 1, row.text or ""))
        return "skip"

    try:
        table = csv.read_csv(
            pa.py_buffer(data).slice(header.end),
            read_options=csv.ReadOptions(use_threads=False, column_names=columns, block_size=16 << 20),
            parse_options=csv.ParseOptions(
                invalid_row_handler=keep_aside, newlines_in_values=data.find(b'"', header.end) >= 0
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
                include_columns=[*wanted, *beyond],
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataError(f"{uri} cannot be read as CSV: {str(error).splitlines()[0]}") from None
    lines = _line_numbers(data, header, table.num_rows + len(strange))
    at = np.delete(np.arange(len(lines)), [row for row, _ in strange])
    return _mended(table, at, strange, header, wanted, lines)


def _columns_of_rows(header: "_Header") -> list[str]:
    """A name for each field of the first row, which has more or fewer of those without a name than the header."""
    named, fields = header.num_named, len(header.first_row)
    width = fields if fields >= named else len(header.names)
    if any(header.first_row[len(header.names) :]):
        width = len(header.names)
    extra = [f"#{number}" for number in range(len(header.names), width)]
    return [*header.names[:width], *extra]


def _mended(
    table: pa.Table,
    at: Ints,
    strange: list[tuple[int, str]],
    header: "_Header",
    wanted: list[str],
    lines: Ints,
) -> CsvText:
    """The rows as they stand in the file: those with empty fields too many are good, those with text there are not.

    Args:
        at:      (n,) position of each row of `table` among all rows of the file.
        strange: the other rows, which have another number of fields than the first.
    """
    broken: list[tuple[int, str]] = []
    for name in table.column_names[len(wanted) :]:
        full = pc.not_equal(pc.utf8_trim_whitespace(table[name]), "").to_numpy()
        broken += [(int(lines[row]), "") for row in at[full]]
        table, at = table.filter(pa.array(~full)), at[~full]
    table = table.select(wanted)
    good: list[tuple[int, list[str]]] = []
    for row, text in strange:
        fields = _fields(text)
        while len(fields) > len(header.names) and not fields[-1].strip():
            fields.pop()
        if header.num_named <= len(fields) <= len(header.names):
            good.append((row, fields))
        else:
            broken.append((int(lines[row]), text))
    if good:
        places = [header.names.index(name) for name in wanted]
        more = [pa.array([fields[place] for _, fields in good], pa.string()) for place in places]
        at = np.concatenate([at, [row for row, _ in good]]).astype(np.int64)
        order = np.argsort(at)
        table = pa.concat_tables([table, pa.table(more, names=wanted)]).take(pa.array(order))
        at = at[order]
    return CsvText(table, _whole(lines[at]), sorted(broken))


def broken_lines(config: SourceBase, csv_path: str, rows: CsvText) -> Listing:
    """The lines of a CSV that have another number of fields than its header, as rejects."""
    paths = [f"{csv_path}#line-{line}" for line, _ in rows.broken]
    return photos.reject_all(
        config, paths, "bad_row", "the line has another number of fields than the header"
    )


class _Header(NamedTuple):
    """What comes before the rows, and the fields of the first of them (none when there are no rows).

    names:     an unnamed column is called `index`, as MSLS has one.
    num_named: how many of `names` there are up to the last that the file itself gives.
    end:       bytes up to the rows; `lines`: the same in lines.
    """

    names: list[str]
    num_named: int
    end: int
    lines: int
    first_row: list[str]


def _read_header(data: bytes, uri: str) -> _Header:
    lines = _Lines(data, 3 if data.startswith(b"\xef\xbb\xbf") else 0)
    rows = csv_module.reader(lines, skipinitialspace=True)
    try:
        names = [name.strip() for name in _next_row(rows)]
        end, number = lines.end, rows.line_num
        if not names:
            raise DataError(f"{uri} is empty: it has no header line")
        lines.is_checked = False  # what is wrong in the rows is said when they are read
        first_row = _next_row(rows)
    except UnicodeDecodeError:
        raise DataError(f"{uri} is not UTF-8 text") from None
    except csv_module.Error as error:
        raise DataError(f"{uri} cannot be read as CSV: {error}") from None
    num_named = max((at + 1 for at, name in enumerate(names) if name), default=0)
    names = [name or ("index" if at < max(num_named, 1) else f"#{at}") for at, name in enumerate(names)]
    if len(set(names)) < len(names):
        raise DataError(f"{uri} has two columns of one name: {', '.join(names)}")
    return _Header(names, max(num_named, 1), end, number, first_row)


class _Lines:
    """The lines of a file from `end` on, with their ends, decoded one by one. `end`: bytes given so far."""

    def __init__(self, data: bytes, end: int) -> None:
        self.end = end
        self.is_checked = True
        self._found = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+").finditer(data, end)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        found = next(self._found)
        self.end = found.end()
        return found[0].decode("utf-8", "strict" if self.is_checked else "replace")


def _next_row(rows: Iterator[list[str]]) -> list[str]:
    """The next row that is not blank; empty at the end of the file."""
    return next((row for row in rows if any(field.strip() for field in row) or len(row) > 1), [])


def _fields(text: str) -> list[str]:
    """The fields of one row."""
    return next(csv_module.reader([text]), [])


def _line_numbers(data: bytes, header: _Header, num_rows: int) -> Ints:
    """(num_rows,) number of the line that each row begins with."""
    simple = np.arange(num_rows, dtype=np.int64) + header.lines + 1
    ends = data.count(b"\n", header.end)
    if b"\r" in data:
        ends += data.count(b"\r", header.end) - data.count(b"\r\n", header.end)
    if ends + (not data.endswith((b"\n", b"\r"))) == num_rows:
        return simple
    # Blank lines, or values of several lines: slow, but few files have them.
    rows = csv_module.reader(io.StringIO(data[header.end :].decode("latin-1"), newline=""))
    numbers, before = [], header.lines
    try:
        for row in rows:
            if row:
                numbers.append(before + 1)
            before = header.lines + rows.line_num
    except csv_module.Error:
        return simple
    return np.array(numbers, dtype=np.int64) if len(numbers) == num_rows else simple


def _whole(numbers: npt.ArrayLike) -> pa.Array:
    return pa.array(np.asarray(numbers, dtype=np.int64))
