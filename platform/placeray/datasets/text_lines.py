"""Lists of millions of lines, read in bounded pieces into Arrow arrays: no Python object per line."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from placeray import storage
from placeray.errors import DataError

_BLOCK_BYTES = 16 << 20


def read_lines(uri: str) -> Iterator[pa.Array]:
    """The lines of a UTF-8 text file without white space around them and without empty ones, about 16 MB at a time.

    Line ends may be LF or CRLF, with or without a final one; a byte order mark is skipped.

    Raises:
        StorageError: the file is not there.
        DataError: it is not UTF-8 text.
    """
    with storage.open_read(uri) as file:
        rest = b""
        is_first = True
        while block := file.read(_BLOCK_BYTES):
            block = rest + block
            if is_first:
                block, is_first = block.removeprefix(b"\xef\xbb\xbf"), False
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if lines := _lines_of(block[:end], uri):
                yield lines
        if rest and (lines := _lines_of(rest + b"\n", uri)):
            yield lines


def _lines_of(block: bytes, uri: str) -> pa.Array:
    """The lines of bytes that end with a line end."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10)
    offsets = np.concatenate([[0], ends + 1]).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        raise DataError(f"{storage.resolve(uri)} is not UTF-8 text") from None
    lines = pc.utf8_trim_whitespace(lines)
    return lines.filter(pc.not_equal(lines, ""))
