"""Rows of a packed table as f32: the embedding look-up."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, LINE_BYTES, PackedLayout
from infc.backends.cpu.kernels.line_sums import CHUNK_BYTES, STEP, emit_line, numbers_of_line
from infc.passes.codegen.panels import PANEL_ROWS

_WORD = 4
"""Codes of a row that lie together; also the lanes in use."""


def emit_embed_row(
    b: Builder,
    layout: PackedLayout,
    table: Value,
    k: int,
    row: Value,
    target: Value,
    scale: float,
) -> None:
    """Write `scale * table[row]` as f32[k] to `target`.

    Args:
        table: a packed matrix [n, k] with its header.
        row: `i64`, below n: the caller has checked it.
        target: 4-byte aligned.
        scale: multiplied last, in f32; the numbers before it are those of `layouts.unpack`.
    """
    panel = b.at(table, b.add(b.mul(b.div(row, PANEL_ROWS), layout.panel_bytes(k)), HEADER_BYTES))
    lane = b.rem(row, PANEL_ROWS)
    if layout.lines:
        _embed_lines(b, layout, b.at(panel, b.mul(lane, LINE_BYTES)), k, target, scale)
    elif layout.is_float:
        _embed_floats(b, layout, b.at(panel, b.mul(lane, layout.bits // 8)), k, target, scale)
    else:
        multiplier = b.load(table, b.f32, 4)
        _embed_codes(b, layout, panel, lane, multiplier, k, target, scale)


def _embed_floats(
    b: Builder, layout: PackedLayout, source: Value, k: int, target: Value, scale: float
) -> None:
    def one(index: Value) -> None:
        pointer = b.at(source, b.mul(index, layout.panel_bytes(1)))
        if layout.kind == "f32":
            value = b.load(pointer, b.f32, 4)
        elif layout.kind == "f16":
            value = b.ext_f(b.load(pointer, b.f16, 2), b.f32)
        else:
            bits = b.shl(b.ext_u(b.load(pointer, b.i16, 2), b.i32), 16)
            value = b.bitcast(bits, b.f32)
        b.store(b.fmul(value, b.const(scale, b.f32)), b.at(target, b.mul(index, 4)), 4)

    b.loop(0, k, body=one)


def _embed_lines(
    b: Builder, layout: PackedLayout, source: Value, k: int, target: Value, scale: float
) -> None:
    numbers = numbers_of_line(layout)

    def line(index: Value) -> None:
        out = b.at(target, b.mul(index, 4 * numbers))
        at = b.at(source, b.mul(index, CHUNK_BYTES))
        for step, value in enumerate(emit_line(b, layout, at)):
            factor = b.const(scale, b.vec(STEP, b.f32))
            b.store(b.fmul(value, factor), b.at(out, 4 * STEP * step), 4)

    b.loop(0, k // numbers, body=line)


def _embed_codes(
    b: Builder,
    layout: PackedLayout,
    panel: Value,
    lane: Value,
    multiplier: Value,
    k: int,
    target: Value,
    scale: float,
) -> None:
    floats = b.vec(_WORD, b.f32)

    def chunk(index: Value) -> None:
        at = b.at(panel, b.mul(index, layout.chunk_bytes))
        out = b.at(target, b.mul(index, 4 * layout.group))
        halves = b.at(at, b.mul(lane, 2))
        factor = b.splat(b.ext_f(b.load(halves, b.f16, 2), b.f32), _WORD)
        words = b.at(at, b.mul(lane, _WORD))
        for step in range(layout.group // _WORD):
            codes = b.sub(_codes_of_step(b, layout, words, step), layout.zero_point)
            value = b.fmul(b.si_to_f(codes, floats), factor)
            if layout.has_min:
                minimum = b.load(b.at(halves, 2 * PANEL_ROWS), b.f16, 2)
                value = b.fadd(value, b.splat(b.ext_f(minimum, b.f32), _WORD))
            value = b.fmul(value, b.splat(multiplier, _WORD))
            value = b.fmul(value, b.const(scale, floats))
            b.store(value, b.at(out, 4 * _WORD * step), 4)

    b.loop(0, k // layout.group, body=chunk)


def _codes_of_step(b: Builder, layout: PackedLayout, words: Value, step: int) -> Value:
    """Four codes of one row, `vector<4xi32>`; `words` points to the row's first word of a chunk."""
    bytes_, ints = b.vec(_WORD, b.i8), b.vec(_WORD, b.i32)
    step_bytes = PANEL_ROWS * _WORD
    if layout.has_bytes:
        return b.ext_u(
            b.load(b.at(words, layout.codes_offset + step_bytes * step), bytes_, 4), ints
        )
    both = b.load(b.at(words, layout.codes_offset + step_bytes * (step // 2)), bytes_, 4)
    codes = b.bit_and(b.shr(b.ext_u(both, ints), 4 * (step % 2)), 15)
    if layout.bits == 5:
        high = b.ext_u(b.load(b.at(words, layout.high_offset), bytes_, 4), ints)
        fifth = b.bit_and(b.shr(high, step), 1)
        codes = b.bit_or(codes, b.shl(fifth, 4))
    return codes
