"""What each instruction of the dataflow machine means, in NumPy; nothing here is infc's simulator.

`apply` takes an instruction whose operands are immediates. Every operation on float32 arrays rounds
to float32, so the order of the lines is the order of the machine's roundings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import (
    ACC,
    CODES4,
    GROUP16,
    MINS,
    Binary,
    Conversion,
    Float,
    Instruction,
    Op,
    Pairing,
    Reduction,
    Unary,
)
from infc.reference.a8 import a8_offsets, quantize_a8
from infc.reference.abf16 import round_bf16

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


def read(sram: U8, at: int, count: int, kind: str) -> NDArray[np.generic]:
    size = np.dtype(kind).itemsize * count
    return sram[at : at + size].copy().view(kind)


def floats(sram: U8, at: int, count: int) -> F32:
    return read(sram, at, count, "<f4")


def write(sram: U8, at: int, values: NDArray[np.generic]) -> None:
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    sram[at : at + data.size] = data


# Functions of one number


def f32(value: float) -> np.float32:
    return np.float32(value)


def _exp_parts(v: F32, low: F32 | float = 0.0) -> tuple[F32, NDArray[np.int32]]:
    """p and n of p * 2**n."""
    v = np.clip(v, f32(-120), f32(89))
    n = np.rint(v * f32(1.44269504088896341))
    r = (v - n * f32(0.693359375)) - n * f32(-2.12194440e-4)
    r = r + np.asarray(low, np.float32)
    p = np.full_like(v, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f32(c)
    p = p * (r * r)
    return p + r + f32(1), np.where(np.isnan(n), 0, n).astype(np.int32)


def exp(v: F32) -> F32:
    p, n = _exp_parts(v)
    return np.ldexp(p, n)


def tanh(v: F32) -> F32:
    square, size = v * v, np.abs(v)
    p = np.full_like(v, -5.70498872745e-3)
    for c in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = p * square + f32(c)
    small = p * square * size + size
    large = f32(1) - f32(2) / (exp(size + size) + f32(1))
    return np.copysign(np.where(size < f32(0.625), small, large), v)


def _gate(v: F32, z: F32, low: F32) -> F32:
    """v * sigmoid(z + low)."""
    down = np.where(v < 0, z, -z)
    p, n = _exp_parts(down, np.where(v < 0, low, -low))
    below = f32(1) + np.ldexp(p, n)
    return np.where(v < 0, np.ldexp(v * p / below, n), v / below)


def silu(v: F32) -> F32:
    far = np.where(v < -120, f32(-120), v)
    return _gate(far, far, np.zeros_like(v))


def _top(v: F32) -> F32:
    return (v.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)


def gelu_tanh(v: F32) -> F32:
    """Errors of sums and products are exact, so float64 finds them too."""
    far = np.where(v < -12, f32(-12), v)
    x = np.where(far > 12, f32(12), far)
    slope, base = 2 * (2 / np.pi) ** 0.5 * 0.044715, 1 / 0.044715
    slope_high, base_high = f32(2338 / 2**15), f32(base)
    slope_low, base_low = f32(slope - float(slope_high)), f32(base - float(base_high))
    top = _top(x)
    rest = x - top
    q = top * top + base_high
    q_low = (top.astype(float) ** 2 + float(base_high) - q).astype(np.float32)
    q_low = q_low + (rest * (top + x) + base_low)
    s = top * slope_high
    s_low = rest * slope_high + x * slope_low
    z = s * q
    low = (s.astype(float) * q.astype(float) - z).astype(np.float32)
    low = low + (s * q_low + s_low * (q + q_low))
    total = z + low
    return _gate(far, total, low - (total - z))


UNARY = {
    Unary.COPY: lambda v: v,
    Unary.EXP: exp,
    Unary.SILU: silu,
    Unary.GELU_TANH: gelu_tanh,
    Unary.TANH: tanh,
    Unary.RSQRT: lambda v: f32(1) / np.sqrt(v),
    Unary.RECIP: lambda v: f32(1) / v,
    Unary.NEG: lambda v: -v,
    Unary.SQRT: np.sqrt,
}
BINARY = {
    Binary.ADD: np.add,
    Binary.SUB: np.subtract,
    Binary.MUL: np.multiply,
    Binary.MAX: lambda a, b: np.where((a > b) | np.isnan(a), a, b),
    Binary.MIN: lambda a, b: np.where((a < b) | np.isnan(a), a, b),
}


def to_bf16(v: F32) -> NDArray[np.uint16]:
    return (round_bf16(v).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def to_f16(v: F32) -> NDArray[np.float16]:
    return np.clip(v, f32(-65504), f32(65504)).astype(np.float16)


def from_bf16(v: NDArray[np.uint16]) -> F32:
    return (v.astype(np.uint32) << np.uint32(16)).view(np.float32)


# The vector unit


def reduced(v: F32, form: Reduction) -> np.float32:
    partial = np.full(16, -np.inf if form is Reduction.MAX else 0, np.float32)
    combine = BINARY[Binary.MAX] if form is Reduction.MAX else np.add
    if form is Reduction.SUMSQ:
        v = v * v
    for i, value in enumerate(v):
        partial[i % 16] = combine(partial[i % 16], value)
    for width in (8, 4, 2, 1):
        partial = combine(partial[:width], partial[width : 2 * width])
    return np.float32(partial[0])


def codes_of(sram: U8, at: int, count: int, form: int) -> NDArray[np.int64]:
    if not form & CODES4:
        return read(sram, at, count, "i1").astype(np.int64)
    pairs = read(sram, at, count // 2, "u1").astype(np.int64)
    nibbles = np.stack([pairs % 16, pairs // 16], axis=1).reshape(count)
    return nibbles if form & MINS else nibbles - 8


def best_of(pairs: list[tuple[np.float32, int]]) -> tuple[np.float32, int]:
    """The first is what there was; a NaN there is worse than any number, else it never counts."""
    best = pairs[0]
    for value, index in pairs[1:]:
        if np.isnan(value):
            continue
        if np.isnan(best[0]) or value > best[0] or (value == best[0] and index < best[1]):
            best = value, index
    return best


def pair_at(sram: U8, at: int) -> tuple[np.float32, int]:
    return floats(sram, at, 1)[0], int(read(sram, at + 4, 1, "<i4")[0])


def apply_vector(i: Instruction, sram: U8) -> None:
    """One instruction of the vector unit."""
    op, n = Op(i.op), i.n
    number = np.uint32(i.x).view(np.float32)
    if op is Op.V_FILL:
        write(sram, i.d, np.full(n, number))
    elif op is Op.V_UN:
        write(sram, i.d, UNARY[Unary(i.fmt)](floats(sram, i.a, n)).astype(np.float32))
    elif op in (Op.V_BIN, Op.V_BINS, Op.V_IMM):
        right = {Op.V_BIN: lambda: floats(sram, i.b, n), Op.V_BINS: lambda: floats(sram, i.b, 1)}
        b = right[op]() if op in right else number
        write(sram, i.d, BINARY[Binary(i.fmt)](floats(sram, i.a, n), b).astype(np.float32))
    elif op is Op.V_RED:
        form = Reduction(i.fmt)
        result = reduced(floats(sram, i.a, n), form)
        if i.flags & ACC:
            combine = BINARY[Binary.MAX] if form is Reduction.MAX else np.add
            result = combine(floats(sram, i.d, 1)[0], result)
        write(sram, i.d, np.array([result], np.float32))
    elif op is Op.V_CVT:
        apply_conversion(i, sram)
    elif op is Op.V_Q8 and n:
        row = quantize_a8(floats(sram, i.a, n).reshape(1, n))[0]
        at = a8_offsets(n)
        write(sram, i.d, row[:n])
        write(sram, i.b, row[at.scales : at.sums])
    elif op is Op.V_DQ:
        group = 16 if i.fmt & GROUP16 else 32
        scales = read(sram, i.b, n // group, "<f2").astype(np.float32).repeat(group)
        value = codes_of(sram, i.a, n, i.fmt).astype(np.float32) * scales
        if i.fmt & MINS:
            value = value + read(sram, i.c, n // group, "<f2").astype(np.float32).repeat(group)
        write(sram, i.d, value)
    elif op is Op.V_ROPE:
        halves = Pairing(i.fmt) is Pairing.HALVES
        a = floats(sram, i.a, 2 * n).reshape((2, n) if halves else (n, 2))
        low, high = a if halves else a.T
        cos, sin = floats(sram, i.b, 2 * n).reshape(n, 2).T
        both = np.stack([low * cos - high * sin, high * cos + low * sin])
        write(sram, i.d, both if halves else both.T)
    elif op in (Op.V_ARGMAX, Op.V_MERGE):
        apply_best(i, sram)


def apply_best(i: Instruction, sram: U8) -> None:
    """V_ARGMAX and V_MERGE."""
    if i.op == Op.V_MERGE:
        pairs = [pair_at(sram, i.d), pair_at(sram, i.a)]
    else:
        start = pair_at(sram, i.d) if i.flags & ACC else (f32(-np.inf), i.c)
        values = floats(sram, i.a, i.n)
        pairs = [start, *((value, i.c + at) for at, value in enumerate(values))]
    value, index = best_of(pairs)
    write(sram, i.d, np.array([value], np.float32))
    write(sram, i.d + 4, np.array([index], np.int32))


def apply_conversion(i: Instruction, sram: U8) -> None:
    """V_CVT."""
    form, n = Conversion(i.fmt), i.n
    if form is Conversion.F32_BF16:
        write(sram, i.d, to_bf16(floats(sram, i.a, n)))
    elif form is Conversion.F32_F16:
        write(sram, i.d, to_f16(floats(sram, i.a, n)))
    elif form is Conversion.BF16_F32:
        write(sram, i.d, from_bf16(read(sram, i.a, n, "<u2")))
    else:
        kind = "<f2" if form is Conversion.F16_F32 else "<i4"
        write(sram, i.d, read(sram, i.a, n, kind).astype(np.float32))


# The matrix unit


def rows(sram: U8, at: int, count: int, length: int, stride: int, kind: str) -> NDArray[np.generic]:
    return np.stack([read(sram, at + i * stride, length, kind) for i in range(count)])


def apply_matrix(i: Instruction, sram: U8) -> None:
    """One instruction of the matrix unit."""
    if i.m == 0 or i.n == 0:
        return
    start = np.zeros((i.m, i.n), np.float32)
    if i.flags & ACC:
        start = rows(sram, i.d, i.m, i.n, i.stride_d, "<f4")
    result = product_q(i, sram, start) if i.op == Op.MM_Q else product_f(i, sram, start)
    for row in range(i.m):
        write(sram, i.d + row * i.stride_d, result[row])


def product_q(i: Instruction, sram: U8, acc: F32) -> F32:
    """Exact within a group; then each group in order, every operation rounded."""
    group = 16 if i.fmt & GROUP16 else 32
    groups = i.k // group
    x = rows(sram, i.a, i.m, i.k, i.stride_a, "i1").astype(np.int64).reshape(i.m, groups, group)
    steps = rows(sram, i.b, i.m, i.k // 32, i.stride_b, "<f4")
    code_bytes = i.n * i.k // (2 if i.fmt & CODES4 else 1)
    w = codes_of(sram, i.c, i.n * i.k, i.fmt).reshape(i.n, groups, group)
    scales = read(sram, i.c + code_bytes, i.n * groups, "<f2").astype(np.float32)
    mins = np.zeros_like(scales)
    if i.fmt & MINS:
        at = i.c + code_bytes + 2 * i.n * groups
        mins = read(sram, at, i.n * groups, "<f2").astype(np.float32)
    scales, mins = scales.reshape(i.n, groups), mins.reshape(i.n, groups)
    for g in range(groups):
        value = (x[:, g] @ w[:, g].T).astype(np.float32) * scales[:, g]
        if i.fmt & MINS:
            value = value + x[:, g].sum(axis=1).astype(np.float32)[:, None] * mins[:, g]
        acc = acc + value * steps[:, g * group // 32, None]
    return acc


def product_f(i: Instruction, sram: U8, acc: F32) -> F32:
    """In order of k."""

    def numbers(at: int, count: int) -> F32:
        if i.fmt == Float.BF16:
            return from_bf16(read(sram, at, count, "<u2"))
        return read(sram, at, count, "<f2").astype(np.float32)

    x = np.stack([numbers(i.a + row * i.stride_a, i.k) for row in range(i.m)])
    for q in range(i.k):
        at = i.c + q * i.stride_b
        w = np.concatenate([numbers(at + j * i.stride_c, 1) for j in range(i.n)])
        acc = acc + x[:, q, None] * w
    return acc


def apply(instruction: Instruction, sram: U8) -> None:
    """One instruction of the matrix or vector unit on the SRAM of its core."""
    with np.errstate(all="ignore"):
        if instruction.op in (Op.MM_Q, Op.MM_F):
            apply_matrix(instruction, sram)
        else:
            apply_vector(instruction, sram)


def same(a: U8, b: U8) -> bool:
    """All bytes equal, but that any NaN of float32 is like any other."""
    x, y = a.view(np.float32), b.view(np.float32)
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(x) & np.isnan(y))).all())
