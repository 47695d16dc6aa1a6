"""Queries of a caller in the layout that the stages expect, or one sentence about what does not fit."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from placeray.errors import DataError, MapError
from placeray.retrieval.codes import Bytes

Floats = NDArray[np.float32]


def checked_queries(
    codes: Bytes | None,
    descriptors: Floats | None,
    *,
    exhaustive: bool,
    code_bits: int,
    descriptor_dim: int,
    where: str,
) -> tuple[Bytes | None, Floats | None]:
    """Codes (Q, code_bits / 8) and descriptors (Q, D), contiguous.

    Args:
        exhaustive:     whether all descriptors are going to be compared, without codes.
        code_bits:      of the map, 0 without codes; `descriptor_dim` likewise.
        where:          the map, for the message.

    Raises:
        MapError: what was asked for needs something that the map or the query lacks, or shapes differ.
    """
    _check_asked(codes, descriptors, exhaustive, code_bits, descriptor_dim, where)
    if codes is not None and code_bits and (codes.ndim != 2 or codes.shape[1] * 8 != code_bits):
        raise MapError(
            f"{where} has codes of {code_bits} bits, the queries have shape {codes.shape} of bytes"
        )
    if descriptors is not None and (descriptors.ndim != 2 or descriptors.shape[1] != descriptor_dim):
        raise MapError(
            f"{where} has descriptors of {descriptor_dim} dimensions, "
            f"the queries have shape {descriptors.shape}"
        )
    if codes is not None and descriptors is not None and len(codes) != len(descriptors):
        raise MapError(f"{len(codes)} codes and {len(descriptors)} descriptors are not of the same queries")
    if codes is not None and codes.dtype != np.uint8:
        raise MapError(
            f"the query codes are {codes.dtype}: pack their bits into bytes, as numpy.packbits does"
        )
    packed = None if codes is None else np.ascontiguousarray(codes)
    with np.errstate(over="ignore"):
        floats = None if descriptors is None else np.ascontiguousarray(descriptors, dtype=np.float32)
    if floats is not None and not np.isfinite(floats).all():
        raise MapError("some query descriptors are not finite in float32: describe the queries again")
    return packed, floats


def codes_in(table: pa.Table) -> Bytes | None:
    """Packed codes (Q, bits / 8) of descriptors/v1, None for a model without. Raises DataError for a mixture."""
    values = _all_or_none(table, "code")
    if values is None:
        return None
    return np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(len(values), -1)


def descriptors_in(table: pa.Table) -> Floats | None:
    """Descriptors (Q, D) float32 of descriptors/v1, likewise."""
    values = _all_or_none(table, "descriptor")
    if values is None:
        return None
    flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    floats: Floats = flat.reshape(len(values), -1).astype(np.float32)
    return floats


def _all_or_none(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    values = table.column(name)
    if values.null_count == len(values):
        return None
    if values.null_count:
        raise DataError(
            f"{values.null_count} of {len(values)} query {name}s are null; describe all queries again"
        )
    return values


def _check_asked(
    codes: Bytes | None,
    descriptors: Floats | None,
    exhaustive: bool,
    code_bits: int,
    descriptor_dim: int,
    where: str,
) -> None:
    if descriptors is not None and not descriptor_dim:
        raise MapError(
            f"{where} has no float descriptors (model without a float branch): search it by codes alone"
        )
    if exhaustive and descriptors is None:
        raise MapError("an exhaustive search compares float descriptors: pass those of the queries")
    if not exhaustive and not code_bits:
        raise MapError(
            f"{where} has no binary codes (model without a hash branch): search with exhaustive=True"
        )
    if not exhaustive and codes is None:
        raise MapError("stage 1 compares binary codes: pass those of the queries, or ask for exhaustive=True")
