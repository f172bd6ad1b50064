"""What the vector unit computes: one function for each kind of operation, on the SRAM of a core.

The functions that return a fault check the operands first; `refused` and others say how.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.backends.dataflow.isa import (
    ACC,
    BLOCK,
    CODES4,
    F_FLAGS,
    F_FMT,
    F_OP,
    F_X,
    GROUP16,
    MINS,
    Conversion,
    Op,
    Pairing,
    Reduction,
)
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.elementary import (
    F32,
    from_bf16,
    from_bits,
    from_f16,
    larger,
    to_bf16,
    to_f16,
)
from infc.backends.dataflow.simulator.elementwise import elementwise
from infc.backends.dataflow.simulator.memory import (
    A,
    B,
    C,
    D,
    N,
    above,
    overlap,
    refused,
    uneven,
)
from infc.backends.dataflow.simulator.raw import (
    f32,
    i8,
    i32,
    put_f32,
    put_i8,
    put_i32,
    put_u16,
    u8,
    u16,
)
from infc.backends.dataflow.simulator.walk import Ints, Operands

_LANES: Final = 16
_ZERO: Final = F32(0)
_ONE: Final = F32(1)
_LEAST: Final = F32(-np.inf)
_LARGEST_CODE: Final = F32(127)
_A8_SMALLEST: Final = F32(2.0**-100)
_NIBBLE: Final = 15


@bare_part
def vector(
    table: Ints, at: int, o: Operands, sram: int, size: int, native: int, lanes: int, problem: Ints
) -> int:
    """The instruction in row `at` of the table, on the SRAM at address `sram`; the fault, or 0.

    `native` elements at most; `lanes` is the address of 16 float32 of scratch.
    """
    op, form = table[at, F_OP], table[at, F_FMT]
    fault = above(problem, N, o.n, native)
    if fault:
        return fault
    if op == Op.V_MERGE:
        return _merge(o, sram, size, problem)
    go_on = table[at, F_FLAGS] & ACC
    if op == Op.V_RED:
        return _reduce(form, go_on, o, sram, size, lanes, problem)
    if op == Op.V_ARGMAX:
        return _argmax(go_on, o, sram, size, problem)
    if o.n == 0:
        return 0
    if op == Op.V_CVT:
        return _convert(form, o, sram, size, problem)
    if op == Op.V_Q8:
        return _quantise(o, sram, size, problem)
    if op == Op.V_DQ:
        return _dequantise(form, o, sram, size, problem)
    if op == Op.V_ROPE:
        return _rotate(form, o, sram, size, problem)
    number = from_bits(np.uint32(table[at, F_X]))
    return elementwise(op, form, number, o, sram, size, problem)


@bare_part
def _reduce(
    form: int, go_on: int, o: Operands, sram: int, size: int, lanes: int, problem: Ints
) -> int:
    """V_RED: element i goes to partial result i mod 16; these are combined as a tree."""
    fault = refused(problem, D, o.d, 1, 4, 0, 4, size)
    fault = fault or refused(problem, A, o.a, 1, o.n * 4, 0, 4, size)
    if fault:
        return fault
    d, a = sram + o.d, sram + o.a
    for i in range(_LANES):
        put_f32(lanes, i, _LEAST if form == Reduction.MAX else _ZERO)
    for first in range(0, o.n, _LANES):
        for i in range(min(_LANES, o.n - first)):
            v = f32(a, first + i)
            put_f32(lanes, i, _combined(form, f32(lanes, i), v * v if form == 2 else v))
    width = _LANES // 2
    while width > 0:
        for i in range(width):
            put_f32(lanes, i, _combined(form, f32(lanes, i), f32(lanes, i + width)))
        width //= 2
    result = f32(lanes, 0)
    put_f32(d, 0, _combined(form, f32(d, 0), result) if go_on else result)
    return 0


@bare_part
def _combined(form: int, a: F32, b: F32) -> F32:
    return larger(a, b) if form == Reduction.MAX else a + b


@bare_part
def _convert(form: int, o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_CVT."""
    to_half = form == Conversion.F32_BF16 or form == Conversion.F32_F16
    from_half = form == Conversion.BF16_F32 or form == Conversion.F16_F32
    d_size, a_size = 2 if to_half else 4, 2 if from_half else 4
    fault = refused(problem, D, o.d, 1, o.n * d_size, 0, d_size, size)
    fault = fault or refused(problem, A, o.a, 1, o.n * a_size, 0, a_size, size)
    if o.d != o.a or d_size != a_size:
        fault = fault or overlap(problem, A, o.d, o.n * d_size, o.a, o.n * a_size)
    if fault:
        return fault
    d, a = sram + o.d, sram + o.a
    if form == Conversion.F32_BF16:
        for i in range(o.n):
            put_u16(d, i, np.uint16(to_bf16(f32(a, i))))
    elif form == Conversion.F32_F16:
        for i in range(o.n):
            put_u16(d, i, np.uint16(to_f16(f32(a, i))))
    elif form == Conversion.BF16_F32:
        for i in range(o.n):
            put_f32(d, i, from_bf16(u16(a, i)))
    elif form == Conversion.F16_F32:
        for i in range(o.n):
            put_f32(d, i, from_f16(u16(a, i)))
    else:
        for i in range(o.n):
            put_f32(d, i, F32(i32(a, i)))
    return 0


@bare_part
def _quantise(o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_Q8: codes at d and scales at b of the numbers at a."""
    blocks = o.n // BLOCK
    fault = (
        uneven(problem, N, o.n, BLOCK)
        or refused(problem, D, o.d, 1, o.n, 0, 1, size)
        or refused(problem, B, o.b, 1, blocks * 4, 0, 4, size)
        or refused(problem, A, o.a, 1, o.n * 4, 0, 4, size)
        or overlap(problem, A, o.d, o.n, o.a, o.n * 4)
        or overlap(problem, A, o.b, blocks * 4, o.a, o.n * 4)
        or overlap(problem, B, o.d, o.n, o.b, blocks * 4)
    )
    if fault:
        return fault
    for g in range(blocks):
        d, a = sram + o.d + g * BLOCK, sram + o.a + g * BLOCK * 4
        largest = _ZERO
        for i in range(BLOCK):
            largest = larger(largest, abs(f32(a, i)))
        scale = _ZERO if largest < _A8_SMALLEST else largest / _LARGEST_CODE
        inverse = _ONE / scale if scale > _ZERO else _ZERO
        for i in range(BLOCK):
            code = np.rint(f32(a, i) * inverse)
            put_i8(d, i, np.int8(code) if code == code else np.int8(0))
        put_f32(sram + o.b, g, scale)
    return 0


@bare_part
def _dequantise(form: int, o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_DQ: the numbers that the codes at a, scales at b and mins at c stand for."""
    group = BLOCK // 2 if form & GROUP16 else BLOCK
    code_bytes = o.n // 2 if form & CODES4 else o.n
    scale_bytes = o.n // group * 2
    fault = (
        uneven(problem, N, o.n, group)
        or refused(problem, D, o.d, 1, o.n * 4, 0, 4, size)
        or refused(problem, A, o.a, 1, code_bytes, 0, 1, size)
        or refused(problem, B, o.b, 1, scale_bytes, 0, 2, size)
        or overlap(problem, A, o.d, o.n * 4, o.a, code_bytes)
        or overlap(problem, B, o.d, o.n * 4, o.b, scale_bytes)
    )
    if form & MINS:
        fault = fault or refused(problem, C, o.c, 1, scale_bytes, 0, 2, size)
        fault = fault or overlap(problem, C, o.d, o.n * 4, o.c, scale_bytes)
    if fault:
        return fault
    less = 0 if form & MINS else 8
    for i in range(o.n):
        code = np.int64(i8(sram + o.a, i)) if not form & CODES4 else np.int64(0)
        if form & CODES4:
            code = ((np.int64(u8(sram + o.a, i // 2)) >> (i % 2 * 4)) & _NIBBLE) - less
        value = F32(code) * from_f16(u16(sram + o.b, i // group))
        if form & MINS:
            value = value + from_f16(u16(sram + o.c, i // group))
        put_f32(sram + o.d, i, value)
    return 0


@bare_part
def _rotate(form: int, o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_ROPE: n pairs of a, rotated by n pairs (cos, sin) at b."""
    n_bytes = o.n * 8
    fault = (
        refused(problem, D, o.d, 1, n_bytes, 0, 4, size)
        or refused(problem, A, o.a, 1, n_bytes, 0, 4, size)
        or refused(problem, B, o.b, 1, n_bytes, 0, 4, size)
        or overlap(problem, B, o.d, n_bytes, o.b, n_bytes)
    )
    if o.d != o.a:
        fault = fault or overlap(problem, A, o.d, n_bytes, o.a, n_bytes)
    if fault:
        return fault
    d, a, b = sram + o.d, sram + o.a, sram + o.b
    step, apart = (1, o.n) if form == Pairing.HALVES else (2, 1)
    for i in range(o.n):
        low, high = f32(a, i * step), f32(a, i * step + apart)
        cos, sin = f32(b, 2 * i), f32(b, 2 * i + 1)
        put_f32(d, i * step, low * cos - high * sin)
        put_f32(d, i * step + apart, high * cos + low * sin)
    return 0


@bare_part
def _argmax(go_on: int, o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_ARGMAX: the best of n numbers at a, the first of which has index c."""
    fault = refused(problem, D, o.d, 1, 8, 0, 4, size)
    fault = fault or refused(problem, A, o.a, 1, o.n * 4, 0, 4, size)
    if fault:
        return fault
    d = sram + o.d
    best, index = _LEAST, o.c
    if go_on:
        best, index = f32(d, 0), int(i32(d, 1))
    for i in range(o.n):
        v = f32(sram + o.a, i)
        if _better(v, o.c + i, best, index):
            best, index = v, o.c + i
    put_f32(d, 0, best)
    put_i32(d, 1, index)
    return 0


@bare_part
def _better(value: F32, index: int, best: F32, best_index: int) -> bool:
    """A NaN is worse than every number; of equals the one with the lower index is better."""
    if value != value:
        return False
    return best != best or value > best or (value == best and index < best_index)


@bare_part
def _merge(o: Operands, sram: int, size: int, problem: Ints) -> int:
    """V_MERGE: the better of two pairs (value, index)."""
    fault = refused(problem, D, o.d, 1, 8, 0, 4, size)
    fault = fault or refused(problem, A, o.a, 1, 8, 0, 4, size)
    if fault:
        return fault
    d, a = sram + o.d, sram + o.a
    value, index = f32(a, 0), i32(a, 1)
    if _better(value, index, f32(d, 0), i32(d, 1)):
        put_f32(d, 0, value)
        put_i32(d, 1, index)
    return 0
