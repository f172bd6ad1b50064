"""Activations in the forms a8 and abf16 (see `infc.reference`, the twin of what is emitted)."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.vmath import ROUNDING_MAGIC, ROUNDING_MAGIC_BITS
from infc.reference.a8 import (
    A8_BLOCK,
    A8_SMALLEST,
    A8_SUM,
    A8Offsets,
    a8_offsets,
    a8_row_bytes,
    dequantize_a8,
    quantize_a8,
)
from infc.reference.abf16 import abf16_padded

__all__ = [
    "A8Offsets",
    "a8_offsets",
    "a8_row_bytes",
    "dequantize_a8",
    "emit_quantize_row",
    "emit_round_row",
    "quantize_a8",
]

_MAGNITUDE = 2**31 - 1
"""The bits of a float but its sign."""


def emit_quantize_row(b: Builder, source: Value, target: Value, k: int) -> None:
    """Quantise `k` floats at `source` into the a8 row at `target`; its padding is not written.

    Args:
        source: `f32[k]`, 4-byte aligned, finite.
        target: `a8_row_bytes(k)` bytes, 64-byte aligned.
        k: a multiple of 32.
    """
    offsets = a8_offsets(k)
    scales, sums = b.at(target, offsets.scales), b.at(target, offsets.sums)

    def block(index: Value) -> None:
        _quantize_block(
            b,
            b.at(source, b.mul(index, 4 * A8_BLOCK)),
            b.at(target, b.mul(index, A8_BLOCK)),
            b.at(scales, b.mul(index, 4)),
            b.at(sums, b.mul(index, 4 * (A8_BLOCK // A8_SUM))),
        )

    b.loop(0, k // A8_BLOCK, body=block)


def emit_round_row(b: Builder, source: Value, target: Value, k: int) -> None:
    """Round `k` floats at `source` into the abf16 row at `target`, with its zeros.

    Args:
        source: `f32[k]`, 4-byte aligned.
        target: `abf16_row_bytes(k)` bytes, 64-byte aligned.
        k: at least 1.
    """
    floats, halves = b.vec(LANES, b.f32), b.vec(LANES, b.bf16)

    def vector(index: Value) -> None:
        x = b.load(b.at(source, b.mul(index, 4 * LANES)), floats, 4)
        b.store(b.trunc_f(x, halves), b.at(target, b.mul(index, 2 * LANES)), 2 * LANES)

    b.loop(0, k // LANES, body=vector)
    whole = k // LANES * LANES
    if k % LANES:
        rest = b.load_first(b.at(source, 4 * whole), floats, k % LANES, 4)
        b.store(b.trunc_f(rest, halves), b.at(target, 2 * whole), 2 * LANES)
    for zeros in range(-(-k // LANES) * LANES, abf16_padded(k), LANES):
        b.store(b.const(0.0, halves), b.at(target, 2 * zeros), 2 * LANES)


def _quantize_block(b: Builder, source: Value, codes: Value, scale: Value, sums: Value) -> None:
    floats, ints, bytes_ = b.vec(LANES, b.f32), b.vec(LANES, b.i32), b.vec(LANES, b.i8)
    halves = [b.load(b.at(source, 4 * LANES * i), floats, 4) for i in range(A8_BLOCK // LANES)]
    largest = _largest_magnitude(b, halves)
    zero, one = b.const(0.0, largest.type), b.const(1.0, largest.type)
    usable = b.fcmp("oge", largest, b.const(A8_SMALLEST, largest.type))
    size = b.select(usable, b.fdiv(largest, b.const(127.0, largest.type)), zero)
    inverse = b.select(usable, b.fdiv(one, size), zero)
    b.store(b.extract(size, 0), scale, 4)

    magic, factor = b.const(ROUNDING_MAGIC, floats), b.shuffle(inverse, inverse, [0] * LANES)
    for i, half in enumerate(halves):
        shifted = b.fadd(b.fmul(half, factor), magic)  # rounds to an integer, ties even
        rounded = b.sub(b.bitcast(shifted, ints), ROUNDING_MAGIC_BITS)
        b.store(b.trunc_i(rounded, bytes_), b.at(codes, LANES * i), LANES)
        b.store(b.reduce("add", rounded), b.at(sums, 4 * i), 4)


def _largest_magnitude(b: Builder, halves: list[Value]) -> Value:
    """The largest of a block, in each lane of a vector of four; a NaN counts as larger than all.

    Magnitudes are ordered as their bits are, and integers need no look at NaN. What follows is done
    in vectors too: LLVM would branch around the divisions of scalars.
    """
    ints = b.vec(LANES, b.i32)
    largest = b.max(*(b.bit_and(b.bitcast(half, ints), _MAGNITUDE) for half in halves))
    for lanes in (LANES // 2, LANES // 4):
        parts = (b.shuffle(largest, largest, range(i * lanes, (i + 1) * lanes)) for i in range(2))
        largest = b.max(*parts)
    for order in ([2, 3, 0, 1], [1, 0, 3, 2]):
        largest = b.max(largest, b.shuffle(largest, largest, order))
    return b.bitcast(largest, b.vec(LANES // 4, b.f32))
