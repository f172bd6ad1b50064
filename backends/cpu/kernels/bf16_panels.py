"""Packed weights as bf16 panels, the right operand of products of bf16 pairs.

A bf16 panel is 16 columns of the product (16 rows of the weight matrix): `[k / 2][16][2]`, k padded
with zeros to a multiple of 32. Each number is the weight's value in float32, rounded once.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.dots import STEP, emit_codes, emit_scales
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.backends.cpu.kernels.line_sums import (
    CHUNK_BYTES,
    emit_columns,
    emit_rows_of_chunk,
    numbers_of_line,
)
from infc.backends.cpu.kernels.scaled_panels import (
    GROUP,
    SCALES_BYTES,
    emit_eight_bit_floats,
    scaled_panel_bytes,
)
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.abf16 import abf16_padded

PAIRS_BYTES = 64
"""Two numbers along k of 16 columns."""
_PAIRS = [half * LANES + lane for lane in range(LANES) for half in range(2)]


def bf16_panel_bytes(k: int) -> int:
    """Bytes of a panel of 16 columns of `k` numbers."""
    return abf16_padded(k) // 2 * PAIRS_BYTES


def emit_bf16_panel(b: Builder, layout: PackedLayout, k: int) -> str:
    """Define `@name(packed: ptr, staged: ptr, multiplier: f32)`, unless the module has it.

    It turns one panel of packed weights into a bf16 panel (64-byte aligned); returns its name.
    """
    name = f"bf16_panel_{layout.name}_k{k}"
    if b.defined(name):
        return name
    with b.function(name, [b.ptr, b.ptr, b.f32], inline=False) as (packed, staged, multiplier):
        if layout.lines:
            _stage_lines(b, layout, k, packed, staged)
        elif layout.is_scaled:
            _stage_scaled(b, k, packed, staged)
        elif layout.is_float:
            _stage_floats(b, layout, k, packed, staged)
        else:
            _stage_codes(b, layout, k, packed, staged, multiplier)
        for pair in range(-(-k // 2), abf16_padded(k) // 2):
            zero = b.const(0, b.vec(PAIRS_BYTES, b.i8))
            b.store(zero, b.at(staged, PAIRS_BYTES * pair), PAIRS_BYTES)
        b.ret()
    return name


def _stage_codes(
    b: Builder, layout: PackedLayout, k: int, packed: Value, staged: Value, multiplier: Value
) -> None:
    """`value = scale * code + (min - zero_point * scale)`; the powers of two are exact."""
    ints, floats = b.vec(LANES, b.i32), b.vec(LANES, b.f32)

    def group(index: Value) -> None:
        source = b.at(packed, b.mul(index, layout.chunk_bytes))
        target = b.at(staged, b.mul(index, layout.group // 2 * PAIRS_BYTES))
        scale = b.fmul(emit_scales(b, source), b.splat(multiplier))
        if layout.has_min:
            minima = emit_scales(b, b.at(source, 2 * PANEL_ROWS))
            offset = b.fmul(minima, b.splat(multiplier))
        else:
            offset = b.fmul(scale, b.const(-float(layout.zero_point), floats))
        for step, codes in enumerate(emit_codes(b, layout, source)):
            words = b.bitcast(codes, ints)
            numbers = [b.bit_and(b.shr(words, 8 * i), 255) for i in range(STEP - 1)]
            numbers.append(b.shr(words, 8 * (STEP - 1)))
            values = [b.fma(b.si_to_f(code, floats), scale, offset) for code in numbers]
            for half in range(STEP // 2):
                at = b.at(target, PAIRS_BYTES * (step * STEP // 2 + half))
                b.store(emit_pairs(b, values[2 * half], values[2 * half + 1]), at, PAIRS_BYTES)

    b.loop(0, k // layout.group, body=group)


def _stage_floats(b: Builder, layout: PackedLayout, k: int, packed: Value, staged: Value) -> None:
    vector_bytes = layout.panel_bytes(1)
    halves = b.vec(LANES, b.bf16)

    def number(pointer: Value) -> Value:
        if layout.kind == "bf16":
            return b.load(pointer, halves, 32)
        if layout.kind == "f32":
            return b.trunc_f(b.load(pointer, b.vec(LANES, b.f32), 64), halves)
        wide = b.ext_f(b.load(pointer, b.vec(LANES, b.f16), 32), b.vec(LANES, b.f32))
        return b.trunc_f(wide, halves)

    def pair(index: Value) -> None:
        source = b.at(packed, b.mul(index, 2 * vector_bytes))
        target = b.at(staged, b.mul(index, PAIRS_BYTES))
        first, second = number(source), number(b.at(source, vector_bytes))
        b.store(b.shuffle(first, second, _PAIRS), target, PAIRS_BYTES)

    b.loop(0, k // 2, body=pair)
    if k % 2:
        last = number(b.at(packed, (k - 1) * vector_bytes))
        zero = b.const(0.0, halves)
        b.store(b.shuffle(last, zero, _PAIRS), b.at(staged, k // 2 * PAIRS_BYTES), PAIRS_BYTES)


def _stage_scaled(b: Builder, k: int, packed: Value, staged: Value) -> None:
    """`value = scale * code`; the powers of two are exact."""

    def chunk(index: Value, count: int) -> None:
        source = b.at(packed, b.mul(index, scaled_panel_bytes(GROUP)))
        target = b.at(staged, b.mul(index, GROUP // 2 * PAIRS_BYTES))
        scale = b.load(source, b.vec(LANES, b.f32), SCALES_BYTES)
        codes = b.at(source, SCALES_BYTES)

        def pair(number: Value) -> None:
            at = b.at(codes, b.mul(number, 2 * PANEL_ROWS))
            first, second = (
                b.fmul(emit_eight_bit_floats(b, b.at(at, PANEL_ROWS * which)), scale)
                for which in range(2)
            )
            pairs = emit_pairs(b, first, second)
            b.store(pairs, b.at(target, b.mul(number, PAIRS_BYTES)), PAIRS_BYTES)

        b.loop(0, count // 2, body=pair)

    whole, rest = divmod(k, GROUP)
    b.loop(0, whole, body=lambda index: chunk(index, GROUP))
    if rest:
        chunk(b.idx(whole), rest)


def _stage_lines(b: Builder, layout: PackedLayout, k: int, packed: Value, staged: Value) -> None:
    numbers, ints = numbers_of_line(layout), b.vec(LANES, b.i32)

    def chunk(index: Value) -> None:
        groups = emit_rows_of_chunk(b, b.at(packed, b.mul(index, CHUNK_BYTES)))
        target = b.at(staged, b.mul(index, numbers // 2 * PAIRS_BYTES))
        for step, columns in enumerate(emit_columns(b, layout, groups)):
            for half in range(2):
                if layout.kind == "bf16":  # the upper halves are all there is
                    low, high = (b.bitcast(c, ints) for c in columns[2 * half : 2 * half + 2])
                    pair = b.bit_or(b.shr(low, 16), high)
                else:
                    halves = [b.trunc_f(c, b.vec(LANES, b.bf16)) for c in columns[2 * half :][:2]]
                    pair = b.shuffle(halves[0], halves[1], _PAIRS)
                b.store(pair, b.at(target, PAIRS_BYTES * (2 * step + half)), PAIRS_BYTES)

    b.loop(0, k // numbers, body=chunk)


def emit_rounded(b: Builder, first: Value, second: Value) -> Value:
    """The numbers of two `f32[16]` as `bf16[32]`, one vector behind the other."""
    if b.isa.architecture == "aarch64":
        halves = [b.trunc_f(numbers, b.vec(LANES, b.bf16)) for numbers in (first, second)]
        return b.shuffle(halves[0], halves[1], range(2 * LANES))
    return b.intrinsic(
        "llvm.x86.avx512bf16.cvtne2ps2bf16.512", b.vec(2 * LANES, b.bf16), second, first
    )


def emit_pairs(b: Builder, first: Value, second: Value) -> Value:
    """Two consecutive numbers of 16 columns, rounded: `i32[16]`, a pair in each."""
    both = emit_rounded(b, first, second)
    return b.bitcast(b.shuffle(both, both, _PAIRS), b.vec(LANES, b.i32))
