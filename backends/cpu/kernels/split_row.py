"""The exact product of one a8 row with one row of a split matrix, of which only its parts are read.

Sixteen words of the row, that lie apart in its panel, are gathered into a vector; what it is
multiplied with is prepared in their order (`split_prepared`).
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.dots import emit_dot, needs_signed
from infc.backends.cpu.kernels.layouts import LINE_BYTES
from infc.backends.cpu.kernels.split_layout import STEP, UNIT_BYTES, SplitLayout
from infc.backends.cpu.kernels.split_prepared import WORDS, PreparedRow
from infc.ir.mlir import vector


def emit_row_product(b: Builder, layout: SplitLayout, k: int) -> str:
    """Define `@name(x, prepared, high, low: ptr, lane: i64, multiplier: f32) -> f32`.

    The exact product with row `lane` of the panel whose high parts are at `high`; `low` points
    to that row's low parts.
    """
    name = f"split_row_{layout.name}_k{k}"
    if b.defined(name):
        return name
    row = PreparedRow(layout, k)
    types = [b.ptr, b.ptr, b.ptr, b.ptr, b.i64, b.f32]
    with b.function(name, types, [b.f32], inline=False) as arguments:
        x, prepared, high, low, lane, multiplier = arguments
        whole = k // (WORDS * 2 * STEP)
        of_vector = WORDS // row.words_of_group

        def step(index: Value, total: Value) -> Value:
            return _add_words(b, row, x, prepared, high, low, lane, index, of_vector, total)

        (total,) = b.loop(0, whole, 1, [b.const(0.0, b.f32)], body=step)
        if row.groups % of_vector:
            left = row.groups % of_vector
            total = _add_words(b, row, x, prepared, high, low, lane, b.idx(whole), left, total)
        b.ret(b.fmul(total, multiplier))
    return name


def _add_words(
    b: Builder,
    row: PreparedRow,
    x: Value,
    prepared: Value,
    high: Value,
    low: Value,
    lane: Value,
    index: Value,
    groups: int,
    total: Value,
) -> Value:
    """Sixteen words of a row: the first `groups` groups they hold are added to its sum.

    Words beyond the row are whatever lies behind it; their activations are zero.
    """
    layout, of_group = row.layout, row.words_of_group
    ints, bytes_ = b.vec(WORDS, b.i32), b.vec(LINE_BYTES, b.i8)
    first = b.mul(index, WORDS // of_group)
    chunks = b.at(high, b.mul(first, layout.high.chunk_bytes))
    words = b.at(chunks, b.add(b.mul(lane, STEP), layout.high.codes_offset))
    loaded = [
        b.load(b.at(words, w // of_group * layout.high.chunk_bytes + w % of_group * 64), b.i32, 4)
        for w in range(WORDS)
    ]
    both = b.bitcast(vector.FromElementsOp(ints, loaded).result, bytes_)
    lows = _row_lows(b, layout, low, index)
    codes = b.at(prepared, b.add(b.mul(index, 2 * LINE_BYTES), row.codes_offset))
    dots = b.load(b.at(prepared, b.add(b.mul(index, LINE_BYTES), row.starts_offset)), ints, 4)
    signed = needs_signed(b, layout.whole)
    for half, part in enumerate((b.bit_and(both, 15), b.shr(both, 4))):
        code = b.bit_or(b.shl(part, layout.low_bits), lows[half])
        if signed:
            code = b.sub(code, b.const(layout.signed_zero_point, bytes_))
        activations = b.load(b.at(codes, LINE_BYTES * half), bytes_, 4)
        dots = emit_dot(b, dots, code, activations, signed)
    distance = 1
    while distance < of_group:
        dots = b.add(dots, b.shuffle(dots, dots, [i ^ distance for i in range(WORDS)]))
        distance *= 2
    exact = b.si_to_f(dots, b.vec(WORDS, b.f32))
    scales = b.at(chunks, b.mul(lane, 2))
    for group in range(groups):
        weight = b.load(b.at(scales, group * layout.high.chunk_bytes), b.f16, 2)
        scale = row.emit_scale(b, x, b.add(first, group))
        p = b.fmul(b.ext_f(weight, b.f32), scale)
        total = b.fma(b.extract(exact, group * of_group), p, total)
    return total


def _row_lows(b: Builder, layout: SplitLayout, low: Value, index: Value) -> list[Value]:
    """The low parts that go with the lower and the upper high parts of sixteen words."""
    bits, bytes_ = layout.low_bits, b.vec(LINE_BYTES, b.i8)
    mask = (1 << bits) - 1
    if bits == 4:
        both = b.load(b.at(low, b.mul(index, LINE_BYTES)), bytes_, UNIT_BYTES)
        return [b.bit_and(both, mask), b.shr(both, bits)]
    half = b.load(b.at(low, b.mul(index, LINE_BYTES // 2)), b.vec(8, b.i32), UNIT_BYTES)
    pairs = b.shuffle(half, half, [i // 2 for i in range(WORDS)])
    # The second word of each pair has its low parts in the upper half of each byte.
    amounts = b.lanes([4 * (i % 2) for i in range(WORDS)], b.i32)
    fields = b.bitcast(b.shr(pairs, amounts), bytes_)
    return [b.bit_and(fields, mask), b.bit_and(b.shr(fields, bits), mask)]
