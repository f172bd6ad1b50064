"""What the vector unit computes element by element: V_BIN, V_BINS, V_IMM, V_UN and V_FILL."""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.backends.dataflow.isa import Binary, Op, Unary
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.elementary import (
    F32,
    exp,
    gelu_tanh,
    larger,
    rsqrt,
    silu,
    smaller,
    tanh,
)
from infc.backends.dataflow.simulator.memory import A, B, D, overlap, refused
from infc.backends.dataflow.simulator.raw import f32, i32, put_f32, put_i32
from infc.backends.dataflow.simulator.walk import Ints, Operands

_ONE: Final = F32(1)


@bare_part
def elementwise(
    op: int, form: int, number: F32, o: Operands, sram: int, size: int, problem: Ints
) -> int:
    """V_BIN, V_BINS, V_IMM, V_UN and V_FILL."""
    n_bytes = o.n * 4
    fault = refused(problem, D, o.d, 1, n_bytes, 0, 4, size)
    if op != Op.V_FILL and not fault:
        fault = refused(problem, A, o.a, 1, n_bytes, 0, 4, size)
        if o.a != o.d:
            fault = fault or overlap(problem, A, o.d, n_bytes, o.a, n_bytes)
    if op == Op.V_BIN and not fault:
        fault = refused(problem, B, o.b, 1, n_bytes, 0, 4, size)
        if o.b != o.d:
            fault = fault or overlap(problem, B, o.d, n_bytes, o.b, n_bytes)
    elif op == Op.V_BINS and not fault:
        fault = refused(problem, B, o.b, 1, 4, 0, 4, size)
    if fault:
        return fault
    d, a = sram + o.d, sram + o.a
    if op == Op.V_FILL:
        for i in range(o.n):
            put_f32(d, i, number)
    elif op == Op.V_UN:
        _unary(form, d, a, o.n)
    elif op == Op.V_BIN:
        _binary(form, d, a, sram + o.b, o.n)
    else:
        _binary_with(form, d, a, f32(sram + o.b, 0) if op == Op.V_BINS else number, o.n)
    return 0


@bare_part
def _binary(form: int, d: int, a: int, b: int, n: int) -> None:
    if form == Binary.ADD:
        for i in range(n):
            put_f32(d, i, f32(a, i) + f32(b, i))
    elif form == Binary.SUB:
        for i in range(n):
            put_f32(d, i, f32(a, i) - f32(b, i))
    elif form == Binary.MUL:
        for i in range(n):
            put_f32(d, i, f32(a, i) * f32(b, i))
    elif form == Binary.MAX:
        for i in range(n):
            put_f32(d, i, larger(f32(a, i), f32(b, i)))
    else:
        for i in range(n):
            put_f32(d, i, smaller(f32(a, i), f32(b, i)))


@bare_part
def _binary_with(form: int, d: int, a: int, b: F32, n: int) -> None:
    if form == Binary.ADD:
        for i in range(n):
            put_f32(d, i, f32(a, i) + b)
    elif form == Binary.SUB:
        for i in range(n):
            put_f32(d, i, f32(a, i) - b)
    elif form == Binary.MUL:
        for i in range(n):
            put_f32(d, i, f32(a, i) * b)
    elif form == Binary.MAX:
        for i in range(n):
            put_f32(d, i, larger(f32(a, i), b))
    else:
        for i in range(n):
            put_f32(d, i, smaller(f32(a, i), b))


@bare_part
def _unary(form: int, d: int, a: int, n: int) -> None:
    if form == Unary.EXP:
        for i in range(n):
            put_f32(d, i, exp(f32(a, i)))
    elif form == Unary.SILU:
        for i in range(n):
            put_f32(d, i, silu(f32(a, i)))
    elif form == Unary.GELU_TANH:
        for i in range(n):
            put_f32(d, i, gelu_tanh(f32(a, i)))
    elif form == Unary.TANH:
        for i in range(n):
            put_f32(d, i, tanh(f32(a, i)))
    elif form == Unary.RSQRT:
        for i in range(n):
            put_f32(d, i, rsqrt(f32(a, i)))
    elif form == Unary.RECIP:
        for i in range(n):
            put_f32(d, i, _ONE / f32(a, i))
    elif form == Unary.NEG:
        for i in range(n):
            put_f32(d, i, -f32(a, i))
    elif form == Unary.SQRT:
        for i in range(n):
            put_f32(d, i, np.sqrt(f32(a, i)))
    else:
        for i in range(n):
            put_i32(d, i, i32(a, i))
