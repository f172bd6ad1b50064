"""Packed weights in registers: what a lane holds of a block, exact or rounded to bf16.

Codes become bf16 with few instructions. A bf16 of 128 has the bits 0x4300 and its last bit is worth
one, so `0x4300 | q` is `128 + q` for codes below 128, two of them in a register; subtracting
`128 + zero point` is exact. A float of 8 bits moved by 4, its sign by 8, is a bf16 of its value
times 2^-120, subnormals included; multiplying by 2^120 is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.packing import (
    BLOCK_K,
    HEADER_BYTES,
    Layout,
    layout_for,
    layout_named,
    pack,
    packed_bytes,
    unpack,
)

__all__ = [
    "BLOCK_K",
    "HEADER_BYTES",
    "BlockReader",
    "Layout",
    "PackedBlock",
    "layout_for",
    "layout_named",
    "load_multiplier",
    "pack",
    "packed_bytes",
    "row_piece",
    "unpack",
]

_BIAS = 128
_BIAS_BITS = 0x43004300
"""Two bf16 of 128."""
_SIGNS = -0x7FFF8000
"""Of two bf16."""
_FROM_EIGHT_BITS = 2.0**120
_UPPER = -0x10000
"""The upper half of an i32: the bits of an f32 that a bf16 keeps."""
_LOWER_BYTES, _UPPER_BYTES = 0x5410, 0x7632
"""Selectors of `permute_bytes`: the lower or the upper halves of two registers."""

Steps = list[list[Value]]
"""[2 steps][4 i32]: the first operands of two `mma.m16n8k16`."""


class BlockReader:
    """Reads blocks of one layout; made inside a function, where its thread's place is computed.

    An address is a pointer, in global or shared memory, to a block; the lanes of a warp read it
    together, 16 bytes a lane at most and without bank conflicts.
    """

    def __init__(self, b: GpuBuilder, layout: Layout) -> None:
        self.b = b
        self.layout = layout
        lane = b.lane()
        self.offsets = [b.mul(lane, 2 * bits) for bits, _ in layout.planes]
        if layout.is_float:
            self.offsets = [b.mul(lane, 16)]
        self.scales_offset = b.mul(b.shr(lane, 2), layout.scales_bytes)

    def read(self, address: Value, offset: int = 0) -> PackedBlock:
        """Load a block, `offset` bytes behind `address`."""
        b, layout = self.b, self.layout
        if layout.is_float:
            pointer = b.at(address, self.offsets[0])
            pieces = range(0, layout.block_bytes, 512)
            planes = [_load_words(b, b.at(pointer, offset + piece), 4) for piece in pieces]
            return PackedBlock(b, layout, planes, [])
        planes = []
        for (bits, start), mine in zip(layout.planes, self.offsets, strict=True):
            pointer = b.at(b.at(address, mine), offset + start)
            if bits == 1:
                planes.append([b.ext_u(b.load(pointer, b.i16, 2), b.i32)])
            else:
                planes.append(_load_words(b, pointer, bits // 2))
        pointer = b.at(b.at(address, self.scales_offset), offset + layout.scales_offset)
        return PackedBlock(b, layout, planes, _load_words(b, pointer, layout.scales_bytes // 4))

    def fragments(self, address: Value) -> list[Steps]:
        """`PackedBlock.fragments` of the block at `address`."""
        return self.read(address).fragments()

    def scales(self, address: Value) -> list[list[Value]]:
        """`PackedBlock.scales` of the block at `address`."""
        return self.read(address).scales()

    def mins(self, address: Value) -> list[list[Value]]:
        """`PackedBlock.mins` of the block at `address`."""
        return self.read(address).mins()

    def weights(self, address: Value, multiplier: Value) -> Steps:
        """`PackedBlock.weights` of the block at `address`."""
        return self.read(address).weights(multiplier)


class PackedBlock:
    """The registers that a lane has loaded of a block.

    Attributes:
        planes: the i32 of each plane; of floats, of each 512 bytes.
        scaling: i32 of two f16 (rows r and r + 8): scales of the groups, then minima.
    """

    def __init__(
        self,
        b: GpuBuilder,
        layout: Layout,
        planes: Sequence[Sequence[Value]],
        scaling: Sequence[Value],
    ) -> None:
        self.b = b
        self.layout = layout
        self.planes = planes
        self.scaling = scaling

    def fragments(self) -> list[Steps]:
        """Planes of bf16 whose sum is exactly the weights, or the codes less the zero point.

        One plane, but two of `f16` and three of `f32`; the first is the largest part.
        """
        b, layout = self.b, self.layout
        if layout.kind == "bf16":
            return [[list(plane) for plane in self.planes]]
        if layout.is_float:
            count = 2 if layout.kind == "f16" else 3
            split = [_split(b, pair, count) for pair in self._float_pairs()]
            return [self._in_steps([parts[i] for parts in split]) for i in range(count)]
        if layout.bits == 8:
            return [self._in_steps(self._bytes())]
        zero = b.const(float(_BIAS + layout.zero_point), b.bf16x2)
        exact = [b.bits(b.fsub(b.number(pair, b.bf16x2), zero)) for pair in self._biased()]
        return [self._in_steps(exact)]

    def scales(self) -> list[list[Value]]:
        """f32 scales [group][row r, row r + 8], without the multiplier."""
        return [_halves(self.b, word) for word in self.scaling[: self.layout.groups]]

    def mins(self) -> list[list[Value]]:
        """f32 minima alike, where the layout has them."""
        return [_halves(self.b, word) for word in self.scaling[self.layout.groups :]]

    def weights(self, multiplier: Value) -> Steps:
        """The weights, rounded to bf16 once; `multiplier` is the f32 of the header (codes only)."""
        b, layout = self.b, self.layout
        if layout.kind == "bf16":
            return self.fragments()[0]
        if layout.is_float:
            return self._in_steps([b.pack_bf16(*pair) for pair in self._float_pairs()])
        scales = [[b.fmul(s, multiplier) for s in rows] for rows in self.scales()]
        mins = [[b.fmul(m, multiplier) for m in rows] for rows in self.mins()]
        zero = 0 if layout.bits == 8 else _BIAS + layout.zero_point
        pairs = self._bytes() if layout.bits == 8 else self._biased()
        made = []
        for index, pair in enumerate(pairs):
            half, step = index // 4, index // 2 % 2
            group = step * (layout.groups - 1)
            scale = scales[group][half]
            # Scales have few bits: (128 + zero point) * scale is exact.
            offset = b.fmul(scale, b.const(-float(zero), b.f32)) if zero else None
            if layout.has_min:
                low = mins[group][half]
                offset = low if offset is None else b.fadd(offset, low)
            made.append(b.pack_bf16(*(_scaled(b, x, scale, offset) for x in _widen(b, pair))))
        return self._in_steps(made)

    def _in_steps(self, pairs: Sequence[Value]) -> Steps:
        """Pairs [row half][step][which] in the order of the matrix instruction."""
        return [[pairs[4 * h + 2 * s + p] for p in (0, 1) for h in (0, 1)] for s in (0, 1)]

    def _float_pairs(self) -> list[list[Value]]:
        """f32 pairs [row half, step, which] of f16 or f32 weights."""
        b = self.b
        words = [word for plane in self.planes for word in plane]
        if self.layout.kind == "f16":
            order = [4 * s + 2 * p + h for h in (0, 1) for s in (0, 1) for p in (0, 1)]
            return [_halves(b, words[i]) for i in order]
        numbers = [b.number(word, b.f32) for word in words]
        return [numbers[i : i + 2] for i in range(0, len(numbers), 2)]

    def _biased(self) -> list[Value]:
        """Pairs [row half, step, which] of bf16 `128 + code`."""
        b = self.b
        mask = ((1 << self.layout.bits) - 1) * 0x00010001
        words = _code_words(b, self.layout, self.planes)
        return [b.and_or(word, mask, _BIAS_BITS) for word in _pairs_of_words(b, words)]

    def _bytes(self) -> list[Value]:
        """Pairs [row half, step, which] of exact bf16 of what bytes stand for."""
        return self._eight_bit_floats() if self.layout.kind == "f8" else self._signed_bytes()

    def _eight_bit_floats(self) -> list[Value]:
        """`_bytes` of floats."""
        b = self.b
        factor = b.const(_FROM_EIGHT_BITS, b.bf16x2)
        made = []
        for word in _pairs_of_words(b, self.planes[0]):
            magnitude = b.shl(b.bit_and(word, 0x007F007F), 4)
            moved = b.and_or(b.shl(word, 8), _SIGNS, magnitude)
            made.append(b.bits(b.fmul(b.number(moved, b.bf16x2), factor)))
        return made

    def _signed_bytes(self) -> list[Value]:
        """Pairs [row half, step, which] of exact bf16 of signed bytes.

        A byte is its lower seven bits, less 128 where its sign is set: the difference of
        `128 + lower bits` and of 128 or 256, whose bits are 0x4300 and 0x4380.
        """
        b = self.b
        made = []
        for word in _pairs_of_words(b, self.planes[0]):
            lower = b.and_or(word, 0x007F007F, _BIAS_BITS)
            sign = b.and_or(word, 0x00800080, _BIAS_BITS)
            made.append(b.bits(b.fsub(b.number(lower, b.bf16x2), b.number(sign, b.bf16x2))))
        return made


def _load_words(b: GpuBuilder, pointer: Value, count: int) -> list[Value]:
    """1, 2 or 4 consecutive i32, aligned to all of them."""
    if count == 1:
        return [b.load(pointer, b.i32, 4)]
    words = b.load(pointer, b.vec(count, b.i32), 4 * count)
    return [b.extract(words, i) for i in range(count)]


def _code_words(b: GpuBuilder, layout: Layout, planes: Sequence[Sequence[Value]]) -> list[Value]:
    """The words u[0][0], u[0][1], u[1][0], u[1][1] of `packing`; the bits of a byte beyond those of
    the code are anything."""
    words: list[Value] = []
    have = 0
    for (bits, _), plane in zip(layout.planes, planes, strict=True):
        if bits == 8:
            added = list(plane)
        elif bits == 4:
            added = [plane[0], b.shr(plane[0], 4), plane[1], b.shr(plane[1], 4)]
        else:
            source = plane[0] if bits == 2 else b.bit_or(plane[0], b.shl(plane[0], 12))
            added = [_shifted(b, source, have - bits * i) for i in range(4)]
        if have:
            mask = ((1 << have) - 1) * 0x01010101
            added = [b.select_bits(mask, *pair) for pair in zip(words, added, strict=True)]
        words = added
        have += bits
    return words


def _shifted(b: GpuBuilder, word: Value, left: int) -> Value:
    if left == 0:
        return word
    return b.shl(word, left) if left > 0 else b.shr(word, -left)


def _pairs_of_words(b: GpuBuilder, words: Sequence[Value]) -> list[Value]:
    """Words u[h][p] -> registers [h][s][p] with the codes of a pair in the low bytes of halves."""
    made = []
    for half in (words[0:2], words[2:4]):
        made += [*half, *(b.shr(word, 8) for word in half)]
    return made


def _halves(b: GpuBuilder, word: Value) -> list[Value]:
    """The two f16 of an i32 as f32."""
    pair = b.number(word, b.vec(2, b.f16))
    return [b.ext_f(b.extract(pair, i), b.f32) for i in (0, 1)]


def _widen(b: GpuBuilder, pair: Value) -> list[Value]:
    """The two bf16 of an i32 as f32."""
    return [b.number(b.shl(pair, 16), b.f32), b.number(b.bit_and(pair, _UPPER), b.f32)]


def _scaled(b: GpuBuilder, number: Value, scale: Value, offset: Value | None) -> Value:
    return b.fmul(number, scale) if offset is None else b.fma(number, scale, offset)


def _split(b: GpuBuilder, pair: Sequence[Value], count: int) -> list[Value]:
    """Registers of bf16 pairs whose sum is the pair of f32: each the upper bits of what is left."""
    made = []
    rest = list(pair)
    for index in range(count):
        made.append(b.permute_bytes(b.bits(rest[0]), b.bits(rest[1]), _UPPER_BYTES))
        if index + 1 < count:
            upper = [b.number(b.bit_and(b.bits(x), _UPPER), b.f32) for x in rest]
            rest = [b.fsub(x, y) for x, y in zip(rest, upper, strict=True)]
    return made


def row_piece(
    b: GpuBuilder, layout: Layout, matrix: Value, k: int, row: Value, block: Value, c: Value
) -> list[Value]:
    """Eight numbers of a row of a packed matrix [n, k], f32, bitwise those of `unpack`.

    Args:
        b: the builder.
        layout: of the matrix.
        matrix: a pointer to global memory.
        k: columns of the matrix.
        row: i32, below n.
        block: i32, below `layout.blocks(k)`.
        c: i32 below 4; the numbers are those at `32 block + j + 2 c` with j = 0, 1, 8, 9, 16, 17,
            24, 25. Columns beyond k are zeros.
    """
    r, half = b.bit_and(row, 7), b.bit_and(b.shr(row, 3), 1)
    lane = b.add(b.shl(r, 2), c)
    panel = b.mul(b.wide(b.shr(row, 4)), layout.panel_bytes(k))
    start = b.at(b.at(matrix, HEADER_BYTES), b.add(panel, b.mul(b.wide(block), layout.block_bytes)))
    if layout.kind == "f32":
        pointer = b.at(start, b.add(b.shl(half, 10), b.shl(lane, 4)))
        words = [*_load_words(b, pointer, 4), *_load_words(b, b.at(pointer, 512), 4)]
        return [b.number(word, b.f32) for word in words]
    if layout.is_float:
        pointer = b.at(start, b.add(b.shl(half, 2), b.shl(lane, 4)))
        words = [b.load(b.at(pointer, offset), b.i32, 4) for offset in (0, 8, 512, 520)]
        widen = _halves if layout.kind == "f16" else _widen
        return [number for word in words for number in widen(b, word)]
    words = _row_words(b, layout, start, lane, half)
    scaling = b.at(start, b.add(b.mul(r, layout.scales_bytes), b.shl(half, 1)))
    multiplier = load_multiplier(b, matrix)

    def factor(index: int) -> Value:
        pointer = b.at(scaling, layout.scales_offset + 4 * index)
        return b.ext_f(b.load(pointer, b.f16, 2), b.f32)

    made = []
    for step in (0, 1):
        group = step * (layout.groups - 1)
        scale = factor(group)
        low = factor(layout.groups + group) if layout.has_min else None
        for which in (0, 1):
            for byte in (step, step + 2):
                value = b.fmul(_number(b, layout, words[which], byte), scale)
                value = value if low is None else b.fadd(value, low)
                made.append(b.fmul(value, multiplier))
    return made


def _row_words(
    b: GpuBuilder, layout: Layout, start: Value, lane: Value, half: Value
) -> list[Value]:
    """The words u[half][0], u[half][1] of a lane; the bits beyond the codes are anything."""
    planes: list[list[Value]] = []
    for bits, offset in layout.planes:
        pointer = b.at(b.at(start, b.mul(lane, 2 * bits)), offset)
        if bits == 8:
            return _load_words(b, b.at(pointer, b.shl(half, 3)), 2)
        if bits == 4:
            word = b.load(b.at(pointer, b.shl(half, 2)), b.i32, 4)
            planes.append([word, word])
        elif bits == 2:
            planes.append([b.shr(b.load(pointer, b.i32, 4), b.shl(half, 2))])
        else:
            packed = b.ext_u(b.load(pointer, b.i16, 2), b.i32)
            planes.append([b.shr(packed, b.shl(half, 1))])
    return _code_words(b, layout, planes)[:2]


def _number(b: GpuBuilder, layout: Layout, word: Value, byte: int) -> Value:
    """What a code of a word of four stands for before it is scaled, f32."""
    if layout.kind == "f8":
        code = b.shr(word, 8 * byte)
        sign = b.shl(b.bit_and(code, 0x80), 24)
        moved = b.bit_or(b.shl(b.bit_and(code, 0x7F), 20), sign)
        return b.fmul(b.number(moved, b.f32), b.const(_FROM_EIGHT_BITS, b.f32))
    if layout.bits == 8:
        return b.si_to_f(b.shr_s(b.shl(word, 24 - 8 * byte), 24), b.f32)
    code = b.bit_and(b.shr(word, 8 * byte), (1 << layout.bits) - 1)
    return b.si_to_f(b.sub(code, layout.zero_point), b.f32)


def load_multiplier(b: GpuBuilder, matrix: Value) -> Value:
    """The f32 in the header of a packed matrix in global memory: what `weights` takes."""
    return b.load(matrix, b.f32, 4)
