"""Rows of a split table as f32: the embedding look-up where the head's table is the embedding's."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.layouts import HEADER_BYTES
from infc.backends.cpu.kernels.split_layout import STEP, SplitLayout
from infc.passes.codegen.panels import PANEL_ROWS


def emit_split_embed_row(
    b: Builder,
    layout: SplitLayout,
    table: Value,
    n: int,
    k: int,
    row: Value,
    target: Value,
    scale: float,
) -> None:
    """Write `scale * table[row]` as f32[k] to `target`; see `embed.emit_embed_row`.

    Args:
        table: a split matrix [n, k].
        row: `i64`, below n: the caller has checked it.
        target: 4-byte aligned.
        scale: multiplied last, in f32; the numbers before it are those of `unpack_split`.
    """
    high = layout.high
    panel = b.at(table, b.add(b.mul(b.div(row, PANEL_ROWS), high.panel_bytes(k)), HEADER_BYTES))
    low = b.at(table, b.add(b.mul(row, layout.low_row_bytes(k)), layout.low_offset(n, k)))
    lane, multiplier = b.rem(row, PANEL_ROWS), b.splat(b.load(table, b.f32, 4), STEP)
    bytes_, floats = b.vec(STEP, b.i8), b.vec(STEP, b.f32)

    def group(index: Value) -> None:
        chunk = b.at(panel, b.mul(index, high.chunk_bytes))
        out = b.at(target, b.mul(index, 4 * layout.group))
        weight = b.load(b.at(chunk, b.mul(lane, 2)), b.f16, 2)
        factor = b.splat(b.ext_f(weight, b.f32), STEP)
        words = b.at(b.at(chunk, b.mul(lane, STEP)), high.codes_offset)
        lows = b.at(low, b.mul(index, layout.low_row_bytes(layout.group)))
        for step in range(layout.group // STEP):
            pair = b.load(b.at(words, PANEL_ROWS * STEP * (step // 2)), bytes_, 4)
            word = b.load(b.at(lows, STEP * (step // layout.per_word)), bytes_, 4)
            upper = b.bit_and(b.shr(pair, 4 * (step % 2)), 15)
            place = layout.low_bits * (step % layout.per_word)
            lower = b.bit_and(b.shr(word, place), (1 << layout.low_bits) - 1)
            codes = b.ext_u(b.bit_or(b.shl(upper, layout.low_bits), lower), b.vec(STEP, b.i32))
            value = b.fmul(b.si_to_f(b.sub(codes, layout.zero_point), floats), factor)
            value = b.fmul(b.fmul(value, multiplier), b.const(scale, floats))
            b.store(value, b.at(out, 4 * STEP * step), 4)

    b.loop(0, k // layout.group, body=group)
