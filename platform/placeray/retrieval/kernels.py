"""The inner loops of search, compiled by numba; importing this module fails where numba is absent.

Every scan collects keys of `merge` (distance << 32 | global row) and is exact: ties at the cut go to the lower row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from placeray.retrieval.intrinsics import (
    BLOCK,
    can_look_up,
    compiled,
    count_words,
    differing,
    dot_fetching,
    fetch,
    has_vector_popcount,
    look_up_block,
    lowest_bit,
    mark_below,
    read_u8,
    read_u32,
    split_block,
)
from placeray.retrieval.merge import NOBODY

# Fetched before they are needed: a memory access takes as long as comparing some 30 codes, or 100 by vector popcounts.
ROWS_AHEAD = 128 if has_vector_popcount() else 48
# Of a piece that every query meets before the next ones are read: 64 KB at 512 bits, which stay in the cache.
ROWS_AT_ONCE = 1024
# Up to so many queries are few. They meet centroids one by one: splitting a block takes as long as comparing it with
# three queries.
_FEW = 3
# The differing bits of two nibbles; row q is the register that is looked up for a nibble q of a query.
NIBBLE_TABLE: NDArray[np.uint8] = np.bitwise_count(
    np.arange(16, dtype=np.uint8)[:, None] ^ np.arange(16, dtype=np.uint8)
)


def nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(Q, B) bytes to (Q, 2 B) nibbles, low one first, each times 16: the offset of its row in NIBBLE_TABLE."""
    split = np.empty((len(codes), codes.shape[1] * 2), dtype=np.uint8)
    split[:, 0::2] = (codes & 15) << 4
    split[:, 1::2] = codes & 0xF0
    return split


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
def scan_rows(pieces: Any, queries: Any, size: int, state: Any, histogram: Any) -> None:
    """Pieces of a map, one code after the other: for few queries, where reading is the limit.

    `pieces` (P, 4) int64, in row order: address of the codes, how many they are, the global row of the first, and the
    address of a byte for each that says whether it counts, 0 where all do. Of few queries it is counted how many
    candidates were taken at each distance, so that the limit is that of the best so far.
    """
    candidates, counts, to_beat = state
    stride = 8 * queries.shape[1]
    counted = len(queries) if len(queries) <= _FEW else 0
    taken, below = np.zeros((counted, len(histogram)), dtype=np.int64), np.zeros(counted, dtype=np.int64)
    fetch_head(pieces, 0, stride)
    for p in range(len(pieces)):
        codes, count, first_row, allowed = pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3]
        fetch_head(pieces, p + 1, stride)
        for start in range(0, count, ROWS_AT_ONCE):
            for q in range(len(queries)):
                # In variables of their own: for all the compiler knows, storing a candidate changes what arrays hold.
                kept, filled, limit = candidates[q], counts[q], to_beat[q]
                for i in range(start, min(start + ROWS_AT_ONCE, count)):
                    # The processor fetches what follows by itself, but stops at every page.
                    ahead = i + ROWS_AHEAD
                    if ahead < count and (not allowed or read_u8(allowed + ahead)):
                        fetch(codes + ahead * stride)
                    if allowed and not read_u8(allowed + i):
                        continue
                    distance = differing(codes + i * stride, queries, q)
                    if distance < limit:
                        kept[filled] = (distance << np.uint64(32)) | np.uint64(first_row + i)
                        filled += 1
                        if filled == len(kept):
                            lower = keep_best(kept, filled, size, histogram)
                            filled = size
                            while counted and limit > lower:
                                limit -= np.uint64(1)
                                below[q] -= taken[q, limit]
                            limit = lower
                        if counted:
                            taken[q, distance] += 1
                            below[q] += distance < limit
                            while below[q] >= size:  # one of those below the limit is the last that counts
                                limit -= np.uint64(1)
                                below[q] -= taken[q, limit]
                counts[q], to_beat[q] = filled, limit


@compiled
def fetch_head(pieces: Any, p: int, stride: int) -> None:
    """Fetch the first codes of a piece, if there is one: pieces may be short, and each is a jump in memory."""
    if p < len(pieces):
        for i in range(min(pieces[p, 1], ROWS_AHEAD)):
            if not pieces[p, 3] or read_u8(pieces[p, 3] + i):
                fetch(pieces[p, 0] + i * stride)


@compiled
def turn_words(codes: Any, words: Any, start: int, block: Any) -> None:
    """BLOCK rows of words (n, W), from `start` on, to word-major (W, BLOCK) uint64."""
    for j in range(BLOCK):
        for w in range(words.shape[1]):
            block[w, j] = words[start + j, w]


@compiled
def count_block(block: Any, queries: Any, split: Any, q: int, table: Any, distances: Any) -> Any:
    """Distances of a word-major block to one query; returns the smallest."""
    return count_words(block, queries, q, distances)


@compiled
def split_nibbles(codes: Any, words: Any, start: int, block: Any) -> None:
    """The same for look-up: nibbles (2 B, BLOCK) uint8."""
    split_block(codes, start, block)


@compiled
def look_up(block: Any, queries: Any, split: Any, q: int, table: Any, distances: Any) -> Any:
    """The same by look-up: `split` are the queries as nibbles() give them, `table` is NIBBLE_TABLE."""
    return look_up_block(block, split, q, table, distances)


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
    codes: Any, words: Any, queries: Any, split: Any, table: Any, block: Any, size: int, piece: Any, state: Any,
    histogram: Any,
) -> None:  # fmt: skip
    """The codes of one piece in blocks that every query meets while they are in the cache: for many queries.

    `codes` (n, B) uint8 and `words` (n, W) uint64 are the same memory; `split` (Q, 2 B) are the nibbles() of `queries`
    (Q, W); `block` is scratch(); `piece` (1, 4) as `scan_rows` wants it.
    """
    to_beat = state[2]
    distances, marks = np.zeros(BLOCK, dtype=np.uint16), np.zeros(BLOCK // 32, dtype=np.uint32)
    first_row, allowed = piece[0, 2], piece[0, 3]
    block_bytes = BLOCK * codes.shape[1]
    end = len(codes) // BLOCK * BLOCK
    for start in range(0, end, BLOCK):
        if allowed:
            some = 0
            for j in range(BLOCK):
                some |= read_u8(allowed + start + j)
            if not some:
                continue
        _load_block(codes, words, start, block)
        following = piece[0, 0] + (start + BLOCK) * codes.shape[1]
        for line in range(0, block_bytes, 64):
            fetch(following + line)
        for q in range(len(queries)):
            if _compare_block(block, queries, split, q, table, distances) >= to_beat[q]:
                continue
            mark_below(distances, to_beat[q], marks)
            for group in range(BLOCK // 32):
                left = np.uint64(marks[group])
                while left:
                    j = 32 * group + lowest_bit(left)
                    left &= left - np.uint64(1)
                    distance = np.uint64(distances[j])
                    if distance < to_beat[q] and (not allowed or read_u8(allowed + start + j)):
                        key = (distance << np.uint64(32)) | np.uint64(first_row + start + j)
                        push(state, q, key, size, histogram)
    rest = piece.copy()
    rest[0, 0] += end * codes.shape[1]
    rest[0, 1] -= end
    rest[0, 2] += end
    rest[0, 3] += end * (allowed != 0)
    scan_rows(rest, queries, size, state, histogram)


@compiled
def name_rows(candidates: Any, start: int, end: int, order: int, first_row: int, num_rows: int) -> None:
    """Turn the positions inside the lists of a run, in the lower half of candidates start ... end, into global rows."""
    for i in range(start, end):
        position = candidates[i] & np.uint64(0xFFFFFFFF)
        row = row_at(order, np.int64(position), num_rows)
        candidates[i] = (candidates[i] - position) | np.uint64(first_row + row)


@compiled
def row_at(order: int, position: int, num_rows: int) -> int:
    """The row of a run that stands at a position of its lists; one of the run even where the file is damaged."""
    return min(read_u32(order + 4 * position), num_rows - 1)


@compiled
def scan_lists(runs: Any, probes: Any, queries: Any, size: int, state: Any, histogram: Any) -> None:
    """The lists `probes` (Q, P) of each query in every run.

    `runs` (R, 6) int64: addresses of its codes in list order, of the row (uint32) of each of them, and of where each
    list begins (uint32); its first global row and their number; the address of a byte for each row that says whether it
    counts, 0 where all do.

    Every list is a jump in memory, so it is fetched while those before it are compared. A candidate is kept by its
    position at first, because its row lies in yet another place, which is fetched meanwhile. How many were taken at
    each distance is counted, so that the limit is that of the best so far, not of the last time they were sorted out.
    """
    candidates, counts, to_beat = state
    one = np.uint64(1)
    taken = np.empty(len(histogram), dtype=np.int64)
    stride, num_lists = 8 * queries.shape[1], probes.shape[1]
    starts, ends = np.empty((2, len(runs) * num_lists), dtype=np.int64)
    edges = np.zeros(len(runs) + 1, dtype=np.int64)
    for q in range(len(queries)):
        filled = 0
        for r in range(len(runs)):
            codes, offsets = runs[r, 0], runs[r, 2]
            for p in range(num_lists):
                begin = offsets + 4 * np.int64(probes[q, p])
                starts[filled] = codes + stride * read_u32(begin)
                ends[filled] = codes + stride * read_u32(begin + 4)
                filled += ends[filled] > starts[filled]
            edges[r + 1] = filled
        if not filled:
            continue
        # A second reader runs ROWS_AHEAD codes before the first and only fetches.
        ahead, fetched, until = 0, starts[0], ends[0]
        for _ in range(ROWS_AHEAD):
            fetch(fetched)
            fetched += stride
            if fetched >= until:
                ahead = min(ahead + 1, filled - 1)
                fetched, until = starts[ahead], ends[ahead]
        kept, count, limit = candidates[q], counts[q], to_beat[q]
        taken[:] = 0
        below = 0  # taken below the limit
        for r in range(len(runs)):
            codes, order, first_row = runs[r, 0], runs[r, 1], runs[r, 3]
            num_rows, allowed = runs[r, 4], runs[r, 5]
            named = count
            for s in range(edges[r], edges[r + 1]):
                code, end = starts[s], ends[s]
                while code < end:
                    fetch(fetched)
                    fetched += stride
                    if fetched >= until:
                        ahead = min(ahead + 1, filled - 1)
                        fetched, until = starts[ahead], ends[ahead]
                    distance = differing(code, queries, q)
                    if distance < limit:
                        position = (code - codes) // stride
                        if not allowed or read_u8(allowed + row_at(order, position, num_rows)):
                            fetch(order + 4 * position)
                            kept[count] = (distance << np.uint64(32)) | np.uint64(position)
                            count += 1
                            if count == len(kept):
                                name_rows(kept, named, count, order, first_row, num_rows)
                                keep_best(kept, count, size, histogram)
                                count = named = size
                            taken[distance] += 1
                            below += 1
                            # Rows come in no order, so one at the distance of the last may still be lower.
                            while below - taken[limit - one] >= size:
                                below -= taken[limit - one]
                                limit -= one
                    code += stride
            name_rows(kept, named, count, order, first_row, num_rows)
        counts[q], to_beat[q] = count, limit


@compiled
def choose_lists(
    centroids: Any, centroid_words: Any, words: Any, split: Any, table: Any, block: Any, num_lists: int,
    num_first: int, distances: Any, found: Any,
) -> None:  # fmt: skip
    """The lists nearest to each query, into found (Q, P) int32: the `num_first` nearest, then the others, by number.

    Among equals the first ones are taken. `centroids` (C, B) is padded to a multiple of BLOCK; its first `num_lists`
    count; `distances` (Q, C) uint16 is room for all of them.
    """
    if len(words) <= _FEW:
        first, width = centroids.ctypes.data, centroids.shape[1]
        for q in range(len(words)):
            row = distances[q]
            for c in range(num_lists):
                fetch(first + (c + ROWS_AHEAD) * width)
                row[c] = differing(first + c * width, words, q)
    else:
        for start in range(0, len(centroids), BLOCK):
            _load_block(centroids, centroid_words, start, block)
            for q in range(len(words)):
                _compare_block(block, words, split, q, table, distances[q, start : start + BLOCK])
    histograms = np.empty((4, 64 * words.shape[1] + 1), dtype=np.int64)
    marks = np.zeros(BLOCK // 32, dtype=np.uint32)
    for q in range(len(words)):
        row, chosen = distances[q, :num_lists], found[q]
        histogram = count_each(row, histograms)
        limit, ties = cut(histogram, len(chosen))
        near_limit, near_ties = cut(histogram, num_first)
        near, far = 0, num_first
        for start in range(0, num_lists, BLOCK):
            mark_below(distances[q, start : start + BLOCK], np.uint64(limit + 1), marks)
            for group in range(BLOCK // 32):
                left = np.uint64(marks[group])
                while left:
                    c = start + 32 * group + lowest_bit(left)
                    left &= left - np.uint64(1)
                    if c >= num_lists:
                        break
                    distance = np.int64(row[c])
                    if distance < near_limit or (distance == near_limit and near_ties > 0):
                        near_ties -= distance == near_limit
                        ties -= distance == limit
                        chosen[near] = c
                        near += 1
                    elif distance < limit or ties > 0:
                        ties -= distance == limit
                        chosen[far] = c
                        far += 1


@compiled
def count_each(values: Any, histograms: Any) -> Any:
    """How often each value occurs; `histograms` (4, values) is room. Neighbours are counted in different ones: many are
    equal, and a number that was just written cannot be read at once.
    """
    histograms[:] = 0
    whole = len(values) // 4 * 4
    for start in range(0, whole, 4):
        for i in range(4):
            histograms[i, values[start + i]] += 1
    for i in range(whole, len(values)):
        histograms[0, values[i]] += 1
    for i in range(1, 4):
        histograms[0] += histograms[i]
    return histograms[0]


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
            smallest = _compare_block(block, words, split, i, table, distances)
            if smallest < best[i]:
                best[i] = smallest
                j = 0
                while np.uint64(distances[j]) != smallest:
                    j += 1
                found[i] = start + j


@compiled
def dot_plain(rows: Any, start: int, queries: Any, begin: int, count: int, after: int) -> Any:
    """The same on any processor."""
    total = np.int64(0)
    row, query = rows.ravel(), queries.ravel()
    for place in range(0, count, 64):
        fetch(rows.ctypes.data + after + place)
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
