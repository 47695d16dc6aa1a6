"""The inner loops of search, compiled by numba; importing this module fails where numba is absent.

Two ways to compare a block of codes with many queries, chosen by what the processor has:

- with a vector popcount instruction (AVX-512 VPOPCNTDQ, NEON), exclusive-or and popcount over a word-major block;
- with AVX2 alone, a table look-up per nibble: for a nibble q of the query, the 16 values popcount(x ^ q) sit in one
  register, and one byte shuffle looks up the nibbles of 32 codes. Codes are split into nibbles, nibble-major, once
  per block, so a query pays a shuffle and an add per 32 nibbles, where an emulated popcount takes four times as many
  instructions. The look-up idea is that of André, Kermarrec and Le Scouarnec, "Cache locality is not enough:
  high-performance nearest neighbor search with product quantization fast scan" (VLDB 2015).

Every scan collects keys of `merge` (distance << 32 | global row) and is exact: ties at the cut go to the lower row.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from placeray.retrieval.merge import NOBODY

BLOCK = 128  # codes compared at once: 128 nibbles of each are 16 KB, half of a first-level cache
WORDS_AT_ONCE = 64  # of a word-major block: its sums stay in registers
# Fetched before they are needed: a memory access takes as long as comparing some 30 codes.
ROWS_AHEAD = 48
_RUN = 48  # nibbles summed in bytes before they are widened: 48 * 4 = 192 < 256

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES16, _BYTES32 = ir.VectorType(_BYTE, 16), ir.VectorType(_BYTE, 32)
_SHORTS32 = ir.VectorType(_SHORT, 32)

# The differing bits of two nibbles; row q is the register that is looked up for a nibble q of a query.
NIBBLE_TABLE: NDArray[np.uint8] = np.bitwise_count(
    np.arange(16, dtype=np.uint8)[:, None] ^ np.arange(16, dtype=np.uint8)
)


def can_look_up() -> bool:
    """Whether the processor shuffles 32 bytes at once: AVX2."""
    return bool(binding.get_host_cpu_features().get("avx2"))


def has_vector_popcount() -> bool:
    """Whether the processor counts bits of whole vectors."""
    return bool(binding.get_host_cpu_features().get("avx512vpopcntdq"))


def nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(Q, B) bytes to (Q, 2 B) nibbles, low one first, each times 16: the offset of its row in NIBBLE_TABLE."""
    split = np.empty((len(codes), codes.shape[1] * 2), dtype=np.uint8)
    split[:, 0::2] = (codes & 15) << 4
    split[:, 1::2] = codes & 0xF0
    return split


def compiled(function: Callable[..., Any]) -> Any:
    """njit without the interpreter lock; the machine code is kept on disk where there is a place for it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the home folder can be written
        return numba.njit(nogil=True)(function)


def _const(value: int) -> ir.Constant:
    return ir.Constant(_LONG, value)


def _array(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value)


def _at(builder: ir.IRBuilder, base: Any, offset: Any, kind: ir.Type) -> Any:
    """Pointer to a value of `kind`, `offset` bytes behind `base`."""
    place = builder.gep(builder.bitcast(base, _BYTE.as_pointer()), [offset])
    return builder.bitcast(place, kind.as_pointer())


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def popcount(typing_context: Any, word: Any) -> Any:
    """Set bits of a 64-bit word; in a loop over a block it becomes vector instructions."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), emit


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def split_block(typing_context: Any, codes: Any, start: Any, block: Any) -> Any:
    """BLOCK rows of codes (n, B), from `start` on, to nibbles (2 B, BLOCK); B is a multiple of 8."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        rows = _array(context, builder, signature.args[0], arguments[0])
        target = _array(context, builder, signature.args[2], arguments[2]).data
        num_bytes = builder.extract_value(rows.shape, 1)
        whole = builder.and_(num_bytes, _const(~15))
        zero, block_rows, step = _const(0), _const(BLOCK), _const(16)
        with cgutils.for_range_slice(builder, zero, block_rows, step, _LONG) as (row, _):
            first = builder.mul(builder.add(arguments[1], row), num_bytes)
            with cgutils.for_range_slice(builder, zero, whole, step, _LONG) as (byte, _):
                lines = _load_lines(builder, rows.data, builder.add(first, byte), num_bytes, _BYTES16)
                _store_nibbles(builder, _turned(builder, lines), target, byte, row)
            with builder.if_then(builder.icmp_signed("<", whole, num_bytes)):
                lines = _load_lines(builder, rows.data, builder.add(first, whole), num_bytes, _LONG)
                _store_nibbles(builder, _turned(builder, lines)[:8], target, whole, row)
        return context.get_dummy_value()

    return types.void(codes, types.int64, block), emit


def _load_lines(builder: ir.IRBuilder, base: Any, first: Any, stride: Any, kind: ir.Type) -> list[Any]:
    """16 rows of 16 bytes, or of 8 bytes and as many zeros."""
    lines = []
    for r in range(16):
        offset = builder.add(first, builder.mul(_const(r), stride))
        value = builder.load(_at(builder, base, offset, kind), align=1)
        if kind is _LONG:
            pair = ir.Constant(ir.VectorType(_LONG, 2), [0, 0])
            value = builder.bitcast(builder.insert_element(pair, value, ir.Constant(_INT, 0)), _BYTES16)
        lines.append(value)
    return lines


def _turned(builder: ir.IRBuilder, lines: list[Any]) -> list[Any]:
    """A 16 x 16 byte matrix transposed: four rounds of interleaving row i with row i + 8."""
    interleaved = [[half + i + other for i in range(8) for other in (0, 16)] for half in (0, 8)]
    masks = [ir.Constant(ir.VectorType(_INT, 16), mask) for mask in interleaved]
    for _ in range(4):
        lines = [builder.shuffle_vector(lines[i], lines[i + 8], mask) for i in range(8) for mask in masks]
    return lines


def _store_nibbles(builder: ir.IRBuilder, columns: list[Any], target: Any, byte: Any, row: Any) -> None:
    four, low = ir.Constant(_BYTES16, [4] * 16), ir.Constant(_BYTES16, [15] * 16)
    for b, column in enumerate(columns):
        place = builder.add(builder.mul(builder.add(byte, _const(b)), _const(2 * BLOCK)), row)
        builder.store(builder.and_(column, low), _at(builder, target, place, _BYTES16), align=16)
        place = builder.add(place, _const(BLOCK))
        builder.store(builder.lshr(column, four), _at(builder, target, place, _BYTES16), align=16)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def look_up_block(typing_context: Any, block: Any, query: Any, table: Any, distances: Any) -> Any:
    """Distances (BLOCK,) uint16 of a split block to the nibbles (2 B,) of a query; returns the smallest."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        codes, asked, look, result = (
            _array(context, builder, kind, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        count = builder.extract_value(asked.shape, 0)
        groups = range(BLOCK // 32)
        sums = [cgutils.alloca_once(builder, _BYTES32) for _ in groups]
        totals = [cgutils.alloca_once(builder, _SHORTS32) for _ in groups]
        for total in totals:
            builder.store(ir.Constant(_SHORTS32, [0] * 32), total)
        with cgutils.for_range_slice(builder, _const(0), count, _const(_RUN), _LONG) as (first, _):
            for part in sums:
                builder.store(ir.Constant(_BYTES32, [0] * 32), part)
            end = builder.add(first, _const(_RUN))
            end = builder.select(builder.icmp_signed("<", end, count), end, count)
            with cgutils.for_range_slice(builder, first, end, _const(4), _LONG) as (nibble, _):
                for step in range(4):
                    _add_nibble(builder, builder.add(nibble, _const(step)), codes, asked, look, sums)
            for part, total in zip(sums, totals, strict=True):
                wide = builder.zext(builder.load(part), _SHORTS32)
                builder.store(builder.add(builder.load(total), wide), total)
        smallest = builder.load(totals[0])
        for group, total in enumerate(totals):
            value = builder.load(total)
            builder.store(value, _at(builder, result.data, _const(64 * group), _SHORTS32), align=2)
            smallest = builder.select(builder.icmp_unsigned("<", value, smallest), value, smallest)
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_SHORT, [_SHORTS32]), "llvm.vector.reduce.umin.v32i16"
        )
        return builder.zext(builder.call(reduce, [smallest]), _LONG)

    return types.uint64(block, query, table, distances), emit


def _add_nibble(
    builder: ir.IRBuilder, nibble: Any, codes: Any, asked: Any, look: Any, sums: list[Any]
) -> None:
    """Add the differing bits of one nibble of all codes to the byte sums."""
    shuffle = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_BYTES32, [_BYTES32, _BYTES32]), "llvm.x86.avx2.pshuf.b"
    )
    offset = builder.zext(builder.load(_at(builder, asked.data, nibble, _BYTE)), _LONG)
    half = builder.load(_at(builder, look.data, offset, _BYTES16), align=1)
    row = builder.shuffle_vector(half, half, ir.Constant(ir.VectorType(_INT, 32), [*range(16)] * 2))
    first = builder.mul(nibble, _const(BLOCK))
    for group, part in enumerate(sums):
        place = _at(builder, codes.data, builder.add(first, _const(32 * group)), _BYTES32)
        found = builder.call(shuffle, [row, builder.load(place, align=16)])
        builder.store(builder.add(builder.load(part), found), part)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Start bringing the 64 bytes at a byte offset of an array into the cache; any offset is safe."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base = _array(context, builder, signature.args[0], arguments[0]).data
        place = _at(builder, base, arguments[1], _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [place.type, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, *(ir.Constant(_INT, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), emit


@compiled
def keep_best(candidates: Any, count: int, size: int, histogram: Any) -> Any:
    """Move the `size` smallest of `count` > `size` keys to the front; returns the largest distance among them."""
    histogram[:] = 0
    for i in range(count):
        histogram[candidates[i] >> np.uint64(32)] += 1
    limit, below = 0, 0
    while below + histogram[limit] < size:
        below += histogram[limit]
        limit += 1
    tied = np.empty(histogram[limit], dtype=np.uint64)
    num_tied, kept = 0, 0
    for i in range(count):
        distance = np.int64(candidates[i] >> np.uint64(32))
        if distance < limit:
            candidates[kept] = candidates[i]
            kept += 1
        elif distance == limit:
            tied[num_tied] = candidates[i]
            num_tied += 1
    if num_tied > size - kept:
        tied.sort()
    candidates[kept:size] = tied[: size - kept]
    candidates[size:] = NOBODY
    return np.uint64(limit)


# What a scan remembers of its Q queries: `candidates` (Q, room) uint64 keys with room > size, unused ones NOBODY;
# `counts` (Q,) int64 of used ones; `to_beat` (Q,) uint64, a distance at or above it cannot enter any more.


@compiled
def push(state: Any, q: int, key: Any, size: int, histogram: Any) -> None:
    """Take one candidate; rows come in ascending order, so a later one at the same distance is worse."""
    candidates, counts, to_beat = state
    candidates[q, counts[q]] = key
    counts[q] += 1
    if counts[q] == candidates.shape[1]:
        to_beat[q] = keep_best(candidates[q], counts[q], size, histogram)
        counts[q] = size


@compiled
def finish(state: Any, size: int, histogram: Any) -> None:
    """Leave the `size` best of every query at the front."""
    candidates, counts, _ = state
    for q in range(len(counts)):
        if counts[q] > size:
            keep_best(candidates[q], counts[q], size, histogram)


@compiled
def scan_rows(
    words: Any, start: int, queries: Any, size: int, first_row: Any, allowed: Any, state: Any, histogram: Any
) -> None:
    """Rows `start` ... of words (n, W), one after the other: for few queries, where reading is the limit."""
    to_beat = state[2]
    for i in range(start, len(words)):
        # The processor fetches what follows by itself, but stops at every page.
        if not len(allowed) or allowed[min(i + ROWS_AHEAD, len(words) - 1)]:
            prefetch(words, (i + ROWS_AHEAD) * 8 * words.shape[1])
        if len(allowed) and not allowed[i]:
            continue
        for q in range(len(queries)):
            distance = np.uint64(0)
            for w in range(words.shape[1]):
                distance += popcount(words[i, w] ^ queries[q, w])
            if distance < to_beat[q]:
                key = (distance << np.uint64(32)) | (first_row + np.uint64(i))
                push(state, q, key, size, histogram)


@compiled
def turn_words(codes: Any, words: Any, start: int, block: Any) -> None:
    """BLOCK rows of words (n, W), from `start` on, to word-major (W, BLOCK) uint64."""
    for j in range(BLOCK):
        for w in range(words.shape[1]):
            block[w, j] = words[start + j, w]


@compiled
def count_block(block: Any, query: Any, split: Any, table: Any, distances: Any) -> Any:
    """Distances of a word-major block to one query; returns the smallest. The inner loop becomes vector popcounts."""
    smallest = np.uint64(0xFFFF)
    sums = np.empty(WORDS_AT_ONCE, dtype=np.uint64)
    for start in range(0, BLOCK, WORDS_AT_ONCE):
        sums[:] = np.uint64(0)
        for w in range(len(query)):
            word = query[w]
            for j in range(WORDS_AT_ONCE):
                sums[j] += popcount(block[w, start + j] ^ word)
        for j in range(WORDS_AT_ONCE):
            smallest = min(smallest, sums[j])
            distances[start + j] = sums[j]
    return smallest


@compiled
def split_nibbles(codes: Any, words: Any, start: int, block: Any) -> None:
    """The same for look-up: nibbles (2 B, BLOCK) uint8."""
    split_block(codes, start, block)


@compiled
def look_up(block: Any, query: Any, split: Any, table: Any, distances: Any) -> Any:
    """The same by look-up: `split` is the query as nibbles() give it, `table` is NIBBLE_TABLE."""
    return look_up_block(block, split, table, distances)


LOOKUP = can_look_up() and not has_vector_popcount()
_load_block, _compare_block = (split_nibbles, look_up) if LOOKUP else (turn_words, count_block)


def scratch(code_bytes: int) -> NDArray[Any]:
    """Room for one block of codes as the comparison wants it; begins a cache line, so that no vector spans two."""
    wanted = (2 * code_bytes, BLOCK) if LOOKUP else (code_bytes // 8, BLOCK)
    kind = np.dtype(np.uint8 if LOOKUP else np.uint64)
    size = wanted[0] * wanted[1] * kind.itemsize
    raw = np.empty(size + 64, dtype=np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(kind).reshape(wanted)


@compiled
def scan_blocks(
    codes: Any, words: Any, queries: Any, split: Any, table: Any, block: Any, size: int, first_row: Any,
    allowed: Any, state: Any, histogram: Any,
) -> None:  # fmt: skip
    """All rows in blocks that every query meets while they are in the cache: for many queries.

    `codes` (n, B) uint8 and `words` (n, W) uint64 are the same memory; `split` (Q, 2 B) are the nibbles() of `queries`
    (Q, W); `block` is scratch().
    """
    to_beat = state[2]
    distances = np.zeros(BLOCK, dtype=np.uint16)
    end = len(codes) // BLOCK * BLOCK
    for start in range(0, end, BLOCK):
        if len(allowed) and not allowed[start : start + BLOCK].any():
            continue
        _load_block(codes, words, start, block)
        for q in range(len(queries)):
            smallest = _compare_block(block, queries[q], split[q], table, distances)
            if smallest >= to_beat[q]:
                continue
            for j in range(BLOCK):
                distance = np.uint64(distances[j])
                if distance < to_beat[q] and (not len(allowed) or allowed[start + j]):
                    key = (distance << np.uint64(32)) | (first_row + np.uint64(start + j))
                    push(state, q, key, size, histogram)
    scan_rows(words, end, queries, size, first_row, allowed, state, histogram)


@compiled
def name_rows(candidates: Any, start: int, end: int, order: Any, first_row: Any) -> None:
    """Turn the positions inside a shard's lists, in the lower half of candidates start ... end, into global rows."""
    for i in range(start, end):
        position = candidates[i] & np.uint64(0xFFFFFFFF)
        candidates[i] = (candidates[i] - position) | (first_row + np.uint64(order[position]))


@compiled
def scan_lists(
    words: Any, order: Any, offsets: Any, probes: Any, queries: Any, size: int, first_row: Any, allowed: Any,
    state: Any, histogram: Any,
) -> None:  # fmt: skip
    """The lists `probes` (Q, P) of each query; list l is words[offsets[l] : offsets[l + 1]], `order` has their rows.

    Every list is a jump in memory, so it is fetched while those before it are compared. A candidate is kept by its
    position at first, because its row lies in yet another place, which is fetched meanwhile.
    """
    candidates, counts, to_beat = state
    stride, num_lists = 8 * words.shape[1], probes.shape[1]
    starts, ends = np.empty(num_lists, dtype=np.int64), np.empty(num_lists, dtype=np.int64)
    for q in range(len(queries)):
        for p in range(num_lists):
            starts[p], ends[p] = offsets[probes[q, p]], offsets[probes[q, p] + 1]
        # A second reader runs ROWS_AHEAD rows before the first and only fetches.
        ahead, fetched, until = 0, starts[0], ends[0]
        lead, named = ROWS_AHEAD, counts[q]
        for p in range(num_lists):
            for i in range(starts[p], ends[p]):
                for _ in range(lead):
                    while fetched == until and ahead + 1 < num_lists:
                        ahead += 1
                        fetched, until = starts[ahead], ends[ahead]
                    prefetch(words, fetched * stride)
                    fetched += fetched < until
                lead = 1
                distance = np.uint64(0)
                for w in range(words.shape[1]):
                    distance += popcount(words[i, w] ^ queries[q, w])
                if distance >= to_beat[q] or (len(allowed) and not allowed[order[i]]):
                    continue
                prefetch(order, 4 * i)
                candidates[q, counts[q]] = (distance << np.uint64(32)) | np.uint64(i)
                counts[q] += 1
                if counts[q] == candidates.shape[1]:
                    name_rows(candidates[q], named, counts[q], order, first_row)
                    # Rows come in no order, so one at the same distance may still be lower.
                    to_beat[q] = keep_best(candidates[q], counts[q], size, histogram) + np.uint64(1)
                    counts[q] = named = size
        name_rows(candidates[q], named, counts[q], order, first_row)


@compiled
def choose_lists(
    centroids: Any, centroid_words: Any, words: Any, split: Any, table: Any, block: Any, num_lists: int,
    num_first: int, distances: Any, found: Any,
) -> None:  # fmt: skip
    """The lists nearest to each query, into found (Q, P) int32: the `num_first` nearest, then the others, by number.

    Among equals the first ones are taken. `centroids` (C, B) is padded to a multiple of BLOCK; its first `num_lists`
    count; `distances` (Q, C) uint16 is room for all of them.
    """
    for start in range(0, len(centroids), BLOCK):
        _load_block(centroids, centroid_words, start, block)
        for q in range(len(words)):
            _compare_block(block, words[q], split[q], table, distances[q, start : start + BLOCK])
    histogram = np.empty(64 * words.shape[1] + 1, dtype=np.int64)
    for q in range(len(words)):
        histogram[:] = 0
        for c in range(num_lists):
            histogram[distances[q, c]] += 1
        limit, ties = cut(histogram, found.shape[1])
        near_limit, near_ties = cut(histogram, num_first)
        near, far = 0, num_first
        for c in range(num_lists):
            distance = np.int64(distances[q, c])
            if distance > limit:
                continue
            if distance < near_limit or (distance == near_limit and near_ties > 0):
                near_ties -= distance == near_limit
                ties -= distance == limit
                found[q, near] = c
                near += 1
            elif distance < limit or ties > 0:
                ties -= distance == limit
                found[q, far] = c
                far += 1


@compiled
def cut(histogram: Any, count: int) -> Any:
    """The distance at which the `count` nearest end, and how many of those at that distance are among them."""
    limit, missing = 0, count
    while missing > histogram[limit]:
        missing -= histogram[limit]
        limit += 1
    return limit, missing


@compiled
def nearest_of(
    centroids: Any, centroid_words: Any, words: Any, split: Any, table: Any, block: Any, found: Any
) -> None:
    """The nearest centroid of each code, the first among equals, into found (n,) int32.

    `centroids` (C, B) is padded to a multiple of BLOCK by repeating its last row.
    """
    distances = np.zeros(BLOCK, dtype=np.uint16)
    best = np.full(len(words), 0xFFFF, dtype=np.uint64)
    for start in range(0, len(centroids), BLOCK):
        _load_block(centroids, centroid_words, start, block)
        for i in range(len(words)):
            smallest = _compare_block(block, words[i], split[i], table, distances)
            if smallest < best[i]:
                best[i] = smallest
                j = 0
                while np.uint64(distances[j]) != smallest:
                    j += 1
                found[i] = start + j


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def dot_fetching(
    typing_context: Any, rows: Any, start: Any, query: Any, begin: Any, count: Any, after: Any
) -> Any:
    """Integer product of `count` numbers, a multiple of 64, of int8 rows from byte `start` on with those of int16
    queries from number `begin` on; meanwhile as many bytes from `after` on are fetched. Needs AVX2.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        base = _array(context, builder, signature.args[0], arguments[0]).data
        asked = _array(context, builder, signature.args[2], arguments[2]).data
        ints, shorts = ir.VectorType(_INT, 8), ir.VectorType(_SHORT, 16)
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ints, [shorts, shorts]), "llvm.x86.avx2.pmadd.wd"
        )
        fetch_kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
        fetch = cgutils.get_or_insert_function(builder.module, fetch_kind, "llvm.prefetch.p0")
        sums = [cgutils.alloca_once_value(builder, ir.Constant(ints, [0] * 8)) for _ in range(4)]
        for part in sums:
            builder.store(ir.Constant(ints, [0] * 8), part)
        with cgutils.for_range_slice(builder, _const(0), arguments[4], _const(64), _LONG) as (place, _):
            next_line = _at(builder, base, builder.add(arguments[5], place), _BYTE)
            builder.call(fetch, [next_line, *(ir.Constant(_INT, value) for value in (0, 3, 1))])
            for step, part in enumerate(sums):
                here = builder.add(place, _const(16 * step))
                row = builder.load(_at(builder, base, builder.add(arguments[1], here), _BYTES16), align=1)
                number = builder.shl(builder.add(arguments[3], here), _const(1))
                numbers = builder.load(_at(builder, asked, number, shorts), align=2)
                products = builder.call(multiply, [builder.sext(row, shorts), numbers])
                builder.store(builder.add(builder.load(part), products), part)
        total = builder.load(sums[0])
        for part in sums[1:]:
            total = builder.add(total, builder.load(part))
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_INT, [ints]), "llvm.vector.reduce.add.v8i32"
        )
        return builder.sext(builder.call(reduce, [total]), _LONG)

    return types.int64(rows, types.int64, query, types.int64, types.int64, types.int64), emit


@compiled
def dot_plain(rows: Any, start: int, queries: Any, begin: int, count: int, after: int) -> Any:
    """The same on any processor."""
    total = np.int64(0)
    row, query = rows.ravel(), queries.ravel()
    for place in range(0, count, 64):
        prefetch(rows, after + place)
        for j in range(place, place + 64):
            total += np.int32(row[start + j]) * np.int32(query[begin + j])
    return total


@compiled
def dot_avx2(rows: Any, start: int, queries: Any, begin: int, count: int, after: int) -> Any:
    """`dot_fetching` as a function."""
    return dot_fetching(rows, start, queries, begin, count, after)


_dot = dot_avx2 if can_look_up() else dot_plain


@compiled
def dots(rows: Any, which: Any, owners: Any, queries: Any, products: Any) -> None:
    """Integer products (S,) of the rows `which` (S,) of (n, >= D) int8, where they lie in memory, with the queries
    `owners` (S,) of (Q, D) int16. The next row is fetched while one is multiplied: each is a jump in memory.
    """
    stride, dim = rows.shape[1], queries.shape[1]
    whole = dim // 64 * 64
    for i in range(len(which)):
        start, begin = which[i] * stride, owners[i] * dim
        after = which[min(i + 1, len(which) - 1)] * stride
        total = _dot(rows, start, queries, begin, whole, after)
        for j in range(whole, dim):
            total += np.int64(rows[which[i], j]) * np.int64(queries[owners[i], j])
        products[i] = total
