"""Codes of packed weights as vectors of bytes, and their products with a8 activations.

Two forms of codes exist, because AVX2 sums pairs of byte products in 16 bits with saturation, and
the plain dot product of AArch64 takes both sides signed:

- unsigned: the codes as they are; the sum starts from `-zero_point * sum(activations)`;
- signed: `code - zero_point`; the sum starts from zero. On AVX2 the product uses `|w|` and
  `sign(w) * x`, which stay exact. Used for 8-bit codes on these two, but in tiles of
  AVX2 (`tile_dots`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.layouts import PackedLayout
from infc.ir.mlir import math

STEP = 4
"""Codes of a row in one vector of 16 rows."""
_VECTOR_BYTES = 64


def needs_signed(b: Builder, layout: PackedLayout) -> bool:
    """Whether codes of this layout must take the signed form."""
    return b.isa.dot_i8 in ("avx2", "neon-dot") and layout.bits == 8


def prefetch_pays(isa: Isa, layout: PackedLayout) -> bool:
    """Whether a stream of this layout is faster where lines are asked for ahead.

    Not codes of 6 bits in halves of 256 bits: the loads of a chunk come before its products, and
    are under way together. On AMD's Zen 3 steps of a model in Q8_0 take 0.87 to 0.93 of the time
    with a prefetch (own measurement, a Qwen3 shape of 0.6B, in turns); those of Gemma 3, whose odd
    layers have Q6_K, the same.
    """
    return not (isa.dot_i8 == "avx2" and layout.bits == 6)


def emit_codes(b: Builder, layout: PackedLayout, chunk: Value) -> list[Value]:
    """The codes of the chunk at `chunk`, unsigned: one `vector<64xi8>` for every 4 k."""
    bytes_ = b.vec(_VECTOR_BYTES, b.i8)
    codes = b.at(chunk, layout.codes_offset)
    if layout.has_bytes:
        return [
            b.load(b.at(codes, _VECTOR_BYTES * step), bytes_, 32)
            for step in range(layout.group // STEP)
        ]
    steps = []
    for pair in range(layout.group // STEP // 2):
        both = b.load(b.at(codes, _VECTOR_BYTES * pair), bytes_, 32)
        steps += [b.bit_and(both, 15), b.shr(both, 4)]
    if layout.bits == 5:
        high = b.load(b.at(chunk, layout.high_offset), bytes_, 32)
        for step, low in enumerate(steps):
            steps[step] = b.bit_or(low, b.bit_and(_shift_bytes(b, high, 4 - step), 16))
    return steps


def _shift_bytes(b: Builder, v: Value, left: int) -> Value:
    """Bytes shifted left (right where negative) in 16-bit lanes: mask off what came across."""
    if left == 0:
        return v
    pairs = b.bitcast(v, b.vec(_VECTOR_BYTES // 2, b.i16))
    shifted = b.shl(pairs, left) if left > 0 else b.shr(pairs, -left)
    return b.bitcast(shifted, v.type)


def emit_dot(b: Builder, sums: Value, codes: Value, activations: Value, signed: bool) -> Value:
    """`sums[i] += dot(codes[4i:4i+4], activations[4i:4i+4])`, exact.

    Args:
        sums: `vector<16xi32>`.
        codes: `vector<64xi8>` in the form that `signed` says.
        activations: `vector<64xi8>` of s8 within [-127, 127].
    """
    if not signed:
        return b.dot_i8(sums, codes, activations)
    if b.isa.architecture == "aarch64":
        return b.dot_s8_neon(sums, codes, activations)
    half = b.vec(_VECTOR_BYTES // 2, b.i8)
    parts = []
    for start in (0, _VECTOR_BYTES // 2):
        lanes = range(start, start + _VECTOR_BYTES // 2)
        x, w = (b.shuffle(v, v, lanes) for v in (activations, codes))
        parts.append(b.intrinsic("llvm.x86.avx2.psign.b", half, x, w))
    negated = b.shuffle(parts[0], parts[1], range(_VECTOR_BYTES))
    return b.dot_i8(sums, math.AbsIOp(codes).result, negated)


def steps_in_16_bits(bits: int) -> int:
    """Steps whose pairs of products AVX2 can add in 16 bits, exactly: eight for 4 bits, four for 5.

    A pair of products of unsigned codes of `bits` bits with a8 codes is at most
    `2 * 127 * (2**bits - 1)`.
    """
    return (2**15 - 1) // (2 * 127 * ((1 << bits) - 1))


def emit_dots(
    b: Builder,
    sums: Value,
    codes: Sequence[Value],
    activations: Callable[[int], Value],
    bits: int,
) -> Value:
    """`emit_dot` for all steps of a group of unsigned codes of fewer than 8 bits, exact.

    On AVX2 pairs of products are summed in 16 bits for as long as they fit. Elsewhere there are two
    sums in turns, so that a group does not wait for itself.

    Args:
        sums: what the dots start from, `vector<16xi32>`.
        codes: `vector<64xi8>` of each step.
        activations: of a step, `vector<64xi8>`.
        bits: of a code.
    """
    if b.isa.dot_i8 != "avx2":
        parts = [sums, b.const(0, sums.type)]
        for step, code in enumerate(codes):
            parts[step % 2] = emit_dot(b, parts[step % 2], code, activations(step), False)
        return b.add(*parts)
    fitting = steps_in_16_bits(bits)
    for first in range(0, len(codes), fitting):
        pairs = [
            b.pair_products(code, activations(first + step))
            for step, code in enumerate(codes[first : first + fitting])
        ]
        sums = b.add(sums, b.add_pairs(reduce(b.add, pairs)))
    return sums


def emit_broadcast_step(b: Builder, codes: Value, step: int) -> Value:
    """Four a8 codes at `codes + 4 * step`, repeated for 16 rows: `vector<64xi8>`.

    x86 repeats what it loads; the dot products of AArch64 pick one of four steps in a register.
    There whole vectors of four steps are read, 16-byte aligned.
    """
    if b.isa.architecture == "aarch64":
        four = b.load(b.at(codes, 4 * STEP * (step // 4)), b.vec(4, b.i32), 16)
        word = b.shuffle(four, four, [step % 4] * LANES)
    else:
        word = b.splat(b.load(b.at(codes, STEP * step), b.i32, 4))
    return b.bitcast(word, b.vec(_VECTOR_BYTES, b.i8))


def emit_scales(b: Builder, pointer: Value) -> Value:
    """Sixteen f16 scales or minima at `pointer` as `vector<16xf32>`."""
    return b.ext_f(b.load(pointer, b.vec(LANES, b.f16), 32), b.vec(LANES, b.f32))
