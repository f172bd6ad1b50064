"""Rows of a packed table as f32: the embedding look-up."""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.spread import Row, Spread
from infc.backends.cuda.kernels.weights import layout_named, row_piece


def emit_embed(
    b: GpuBuilder, spread: Spread, table: Value, layout: str, token: Value, scale: float
) -> Row:
    """`scale * table[token]`, in the columns of a spread in pieces.

    Args:
        table: a packed matrix [n, d] with its header.
        layout: name of its layout.
        token: i32, below n: the caller has checked it.
        scale: multiplied last, in f32.
    """
    span, packed = spread.span, layout_named(layout)
    factor = b.const(scale, b.f32)
    values: Row = []
    for i in range(span.rounds):
        unit = b.add(spread.member, i * span.team)
        block, c = b.shr(unit, 2), b.bit_and(unit, 3)
        if spread.start is not None:
            block = b.add(block, b.shr(spread.start, 5))
        # Beyond the row the first block is read instead, and the numbers are dropped.
        block = b.select(b.cmp("slt", block, packed.blocks(span.d)), block, b.idx(0))
        numbers = row_piece(b, packed, table, span.d, token, block, c)
        if span.width == 4:
            values += _neighbours(b, numbers, c)
        else:
            values += [numbers[j : j + span.width] for j in range(0, 8, span.width)]
    scaled = [[b.fmul(x, factor) for x in chunk] for chunk in values]
    return spread.zero_outside(scaled)


def _neighbours(b: GpuBuilder, pairs: list[Value], c: Value) -> Row:
    """Four pairs 8 columns apart become two chunks of 4: lanes that differ in the last bit of c
    exchange pairs, the even one takes the first and the third of both."""
    odd = b.cmp("ne", b.bit_and(c, 1), 0)
    chunks: Row = []
    for i in (0, 4):
        first, second = pairs[i : i + 2], pairs[i + 2 : i + 4]
        sent = [b.select(odd, x, y) for x, y in zip(first, second, strict=True)]
        received = [b.shuffle_xor(x, 1) for x in sent]
        low = [b.select(odd, x, y) for x, y in zip(received, first, strict=True)]
        high = [b.select(odd, x, y) for x, y in zip(second, received, strict=True)]
        chunks.append([*low, *high])
    return chunks
