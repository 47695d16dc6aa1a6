"""Machine instructions that numba does not give by itself, for compiled loops; importing fails where numba is absent.

Two ways to compare a block of codes with many queries, chosen by what the processor has:

- with a vector popcount instruction (AVX-512 VPOPCNTDQ, NEON), exclusive-or and popcount over a word-major block;
- with AVX2 alone, a table look-up per nibble: for a nibble q of the query, the 16 values popcount(x ^ q) sit in one
  register, and one byte shuffle looks up the nibbles of 32 codes. Codes are split into nibbles, nibble-major, once
  per block, so a query pays a shuffle and an add per 32 nibbles, where an emulated popcount takes four times as many
  instructions. The look-up idea is that of André, Kermarrec and Le Scouarnec, "Cache locality is not enough:
  high-performance nearest neighbor search with product quantization fast scan" (VLDB 2015).

A search meets a varying number of memory-mapped arrays. They are handed to one compiled loop as addresses: numba would
compile a loop again for every number of arrays, and a call for each takes as long as comparing 10,000 codes.

numba keeps machine code for as long as the file of a loop stays as it is; after a change here, save `kernels.py` and
`area_kernels.py` again (an installation does), or old code runs on.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 128  # codes compared at once: 128 nibbles of each are 16 KB, half of a first-level cache
_RUN = 48  # nibbles summed in bytes before they are widened: 48 * 4 = 192 < 256

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES16, _BYTES32 = ir.VectorType(_BYTE, 16), ir.VectorType(_BYTE, 32)
_SHORTS32, _LONGS8 = ir.VectorType(_SHORT, 32), ir.VectorType(_LONG, 8)


def can_look_up() -> bool:
    """Whether the processor shuffles 32 bytes at once: AVX2."""
    return bool(binding.get_host_cpu_features().get("avx2"))


def has_vector_popcount() -> bool:
    """Whether the processor counts bits of whole vectors."""
    return bool(binding.get_host_cpu_features().get("avx512vpopcntdq"))


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
def count_words(typing_context: Any, block: Any, queries: Any, query: Any, distances: Any) -> Any:
    """Distances (BLOCK,) uint16 of a word-major block (W, BLOCK) to one of queries (Q, W); returns the smallest.

    With AVX-512 all sums of a block stay in registers, eight codes in each.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        codes = _array(context, builder, signature.args[0], arguments[0])
        asked = _array(context, builder, signature.args[1], arguments[1])
        result = _array(context, builder, signature.args[3], arguments[3])
        num_words = builder.extract_value(asked.shape, 1)
        first = builder.mul(arguments[2], num_words)
        sums = [cgutils.alloca_once(builder, _LONGS8) for _ in range(BLOCK // 8)]
        for total in sums:
            builder.store(ir.Constant(_LONGS8, [0] * 8), total)
        with cgutils.for_range_slice(builder, _const(0), num_words, _const(1), _LONG) as (word, _):
            place = builder.shl(builder.add(first, word), _const(3))
            wanted = _spread(builder, builder.load(_at(builder, asked.data, place, _LONG)), 8)
            row = builder.mul(word, _const(8 * BLOCK))
            for group, total in enumerate(sums):
                place = _at(builder, codes.data, builder.add(row, _const(64 * group)), _LONGS8)
                bits = _bits(builder, builder.xor(builder.load(place, align=64), wanted))
                builder.store(builder.add(builder.load(total), bits), total)
        smallest = builder.load(sums[0])
        for group, total in enumerate(sums):
            value = builder.load(total)
            short = builder.trunc(value, ir.VectorType(_SHORT, 8))
            builder.store(short, _at(builder, result.data, _const(16 * group), short.type), align=2)
            smallest = builder.select(builder.icmp_unsigned("<", value, smallest), value, smallest)
        return _reduced(builder, "umin", smallest)

    return types.uint64(block, queries, types.int64, distances), emit


def _spread(builder: ir.IRBuilder, value: Any, count: int) -> Any:
    """A vector of `count` times the same value."""
    kind = ir.VectorType(value.type, count)
    alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(_INT, count), [0] * count))


def _bits(builder: ir.IRBuilder, vector: Any) -> Any:
    """The set bits of each of eight words."""
    kind = ir.FunctionType(_LONGS8, [_LONGS8])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v8i64"), [vector])


def _reduced(builder: ir.IRBuilder, how: str, vector: Any) -> Any:
    """The smallest (umin) or the sum (add) of a vector of integers."""
    kind = vector.type
    name = f"llvm.vector.reduce.{how}.v{kind.count}i{kind.element.width}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind.element, [kind]), name)
    return builder.call(function, [vector])


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def mark_below(typing_context: Any, distances: Any, limit: Any, marks: Any) -> Any:
    """Which of distances (BLOCK,) uint16 are below a limit, as bits of marks (BLOCK / 32,) uint32, lowest first."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        values = _array(context, builder, signature.args[0], arguments[0])
        result = _array(context, builder, signature.args[2], arguments[2])
        limits = _spread(builder, builder.trunc(arguments[1], _SHORT), 32)
        for group in range(BLOCK // 32):
            place = _at(builder, values.data, _const(64 * group), _SHORTS32)
            below = builder.icmp_unsigned("<", builder.load(place, align=2), limits)
            builder.store(builder.bitcast(below, _INT), _at(builder, result.data, _const(4 * group), _INT))
        return context.get_dummy_value()

    return types.void(distances, types.uint64, marks), emit


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def lowest_bit(typing_context: Any, word: Any) -> Any:
    """The place of the lowest set bit of a word that has one."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), emit


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
def look_up_block(
    typing_context: Any, block: Any, queries: Any, query: Any, table: Any, distances: Any
) -> Any:
    """Distances (BLOCK,) uint16 of a split block to one of the nibbles (Q, 2 B) of queries; returns the smallest."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        codes, asked, look, result = (
            _array(context, builder, signature.args[which], arguments[which]) for which in (0, 1, 3, 4)
        )
        count = builder.extract_value(asked.shape, 1)
        wanted = builder.gep(
            builder.bitcast(asked.data, _BYTE.as_pointer()), [builder.mul(arguments[2], count)]
        )
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
                    _add_nibble(builder, builder.add(nibble, _const(step)), codes, wanted, look, sums)
            for part, total in zip(sums, totals, strict=True):
                wide = builder.zext(builder.load(part), _SHORTS32)
                builder.store(builder.add(builder.load(total), wide), total)
        smallest = builder.load(totals[0])
        for group, total in enumerate(totals):
            value = builder.load(total)
            builder.store(value, _at(builder, result.data, _const(64 * group), _SHORTS32), align=2)
            smallest = builder.select(builder.icmp_unsigned("<", value, smallest), value, smallest)
        return builder.zext(_reduced(builder, "umin", smallest), _LONG)

    return types.uint64(block, queries, types.int64, table, distances), emit


def _add_nibble(
    builder: ir.IRBuilder, nibble: Any, codes: Any, wanted: Any, look: Any, sums: list[Any]
) -> None:
    """Add the differing bits of one nibble of all codes to the byte sums."""
    shuffle = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_BYTES32, [_BYTES32, _BYTES32]), "llvm.x86.avx2.pshuf.b"
    )
    offset = builder.zext(builder.load(_at(builder, wanted, nibble, _BYTE)), _LONG)
    half = builder.load(_at(builder, look.data, offset, _BYTES16), align=1)
    row = builder.shuffle_vector(half, half, ir.Constant(ir.VectorType(_INT, 32), [*range(16)] * 2))
    first = builder.mul(nibble, _const(BLOCK))
    for group, part in enumerate(sums):
        place = _at(builder, codes.data, builder.add(first, _const(32 * group)), _BYTES32)
        found = builder.call(shuffle, [row, builder.load(place, align=16)])
        builder.store(builder.add(builder.load(part), found), part)


def _pointer(builder: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _fetch(builder: ir.IRBuilder, place: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, *(ir.Constant(_INT, value) for value in (0, 3, 1))])


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def fetch(typing_context: Any, address: Any) -> Any:
    """Start bringing the 64 bytes at an address into the cache; any address is safe."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _fetch(builder, _pointer(builder, arguments[0], _BYTE))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def read_u8(typing_context: Any, address: Any) -> Any:
    """The byte at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, arguments[0], _BYTE)), _LONG)

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def read_u32(typing_context: Any, address: Any) -> Any:
    """The 32-bit number at an address."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, arguments[0], _INT), align=1), _LONG)

    return types.int64(types.int64), emit


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def differing(typing_context: Any, address: Any, queries: Any, query: Any) -> Any:
    """In how many bits the code at an address differs from row `query` of queries (Q, W) uint64.

    Eight words at a time without a loop: as one vector where the processor counts its bits, else word by word, for left
    to itself the compiler makes vector instructions of so short a loop that are slower than the popcounts.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        asked = _array(context, builder, signature.args[1], arguments[1])
        width = builder.shl(builder.extract_value(asked.shape, 1), _const(3))
        base = builder.add(builder.ptrtoint(asked.data, _LONG), builder.mul(arguments[2], width))
        total = cgutils.alloca_once(builder, _LONG)
        builder.store(_const(0), total)

        def add_vector(offset: Any) -> None:
            code, wanted = (
                builder.load(_pointer(builder, builder.add(at, offset), _LONGS8), align=1)
                for at in (arguments[0], base)
            )
            number = _reduced(builder, "add", _bits(builder, builder.xor(code, wanted)))
            builder.store(builder.add(builder.load(total), number), total)

        def add_words(offset: Any, count: int) -> None:
            code, wanted = builder.add(arguments[0], offset), builder.add(base, offset)
            counts = []
            for word in range(count):
                here = [
                    builder.load(_pointer(builder, builder.add(at, _const(8 * word)), _LONG), align=1)
                    for at in (code, wanted)
                ]
                counts.append(builder.ctpop(builder.xor(*here)))
            for number in counts:
                builder.store(builder.add(builder.load(total), number), total)

        def add_eight(offset: Any) -> None:
            add_vector(offset) if has_vector_popcount() else add_words(offset, 8)

        with builder.if_else(builder.icmp_signed("==", width, _const(64))) as (usual, other):
            with usual:
                add_eight(_const(0))
            with other:
                whole = builder.and_(width, _const(~63))
                with cgutils.for_range_slice(builder, _const(0), whole, _const(64), _LONG) as (offset, _):
                    add_eight(offset)
                with cgutils.for_range_slice(builder, whole, width, _const(8), _LONG) as (offset, _):
                    add_words(offset, 1)
        return builder.load(total)

    return types.uint64(types.int64, queries, types.int64), emit


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
        sums = [cgutils.alloca_once_value(builder, ir.Constant(ints, [0] * 8)) for _ in range(4)]
        for part in sums:
            builder.store(ir.Constant(ints, [0] * 8), part)
        with cgutils.for_range_slice(builder, _const(0), arguments[4], _const(64), _LONG) as (place, _):
            _fetch(builder, _at(builder, base, builder.add(arguments[5], place), _BYTE))
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
        return builder.sext(_reduced(builder, "add", total), _LONG)

    return types.int64(rows, types.int64, query, types.int64, types.int64, types.int64), emit
