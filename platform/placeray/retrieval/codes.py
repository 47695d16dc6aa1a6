"""Packed binary codes: bits to bytes, bytes to words, Hamming distance.

A code is stored as `numpy.packbits` writes it: component 0 is the most significant bit of byte 0, a set bit
stands for +1 (a component >= 0). Its length is any multiple of 64 bits. Source: the heads of the published
model.
"""

import numpy as np
from numpy.typing import NDArray

from placeray.errors import MapError

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]


def check_code_bits(code_bits: int) -> None:
    """Raises MapError unless `code_bits` is a positive multiple of 64."""
    if code_bits <= 0 or code_bits % 64:
        raise MapError(f"a code of {code_bits} bits cannot be searched: its length must be a multiple of 64")


def pack(components: NDArray[np.floating]) -> Bytes:
    """Components (N, bits), where >= 0 is a set bit, to packed codes (N, bits / 8) uint8."""
    check_code_bits(components.shape[1])
    return np.packbits(components >= 0, axis=1)


def unpack(codes: Bytes) -> NDArray[np.int8]:
    """Packed codes (N, bits / 8) to their signs (N, bits) int8, each +1 or -1."""
    signs: NDArray[np.int8] = (np.unpackbits(codes, axis=1).astype(np.int8) << 1) - 1
    return signs


def as_words(codes: Bytes) -> Words:
    """The same memory read as 64-bit words, (N, W); copies only when the rows are not contiguous."""
    return np.ascontiguousarray(codes).view(np.uint64)


def hamming(queries: Bytes, codes: Bytes) -> NDArray[np.int32]:
    """All distances (Q, N) int32 by numpy: for a handful of rows; `first_stage` is the way over a map."""
    different = np.bitwise_count(as_words(queries)[:, None, :] ^ as_words(codes)[None, :, :])
    return different.sum(axis=2, dtype=np.int32)
