"""What the matrix unit computes: MM_Q and MM_F, whose order of sums is their definition."""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from infc.backends.dataflow.isa import (
    ACC,
    BLOCK,
    CODES4,
    F_FLAGS,
    F_FMT,
    F_K,
    F_STRIDE_A,
    F_STRIDE_B,
    F_STRIDE_C,
    F_STRIDE_D,
    GROUP16,
    MINS,
    Float,
)
from infc.backends.dataflow.simulator.compiled import bare_part
from infc.backends.dataflow.simulator.elementary import F32, from_bf16, from_f16
from infc.backends.dataflow.simulator.memory import A, B, C, D, K, M, N, above, refused
from infc.backends.dataflow.simulator.raw import (
    dot_16,
    dot_32,
    f32,
    i8,
    i32,
    put_f32,
    put_i8,
    put_i32,
    u8,
    u16,
)
from infc.backends.dataflow.simulator.walk import Ints, Operands

_HALF: Final = BLOCK // 2
_NIBBLE: Final = 15


class Tile(NamedTuple):
    """The native tile, and addresses where operands are unpacked; not memory of the machine.

    Attributes:
        m, n, k: the most rows, columns and depth of an instruction.
        codes: int8 [k], one row of codes.
        scales, mins: float32 [k / 16], of that row.
        sums: int32 [m, k / 16], of the groups of x.
        x: float32 [k], one row of x.
        w: float32 [k, n], the weights.
    """

    m: int
    n: int
    k: int
    codes: int
    scales: int
    mins: int
    sums: int
    x: int
    w: int

    @classmethod
    def of(cls, m: int, n: int, k: int) -> tuple[Self, NDArray[np.uint8]]:
        """A tile of this size, and the array that must outlive it."""
        groups = k // _HALF
        sizes = (k, 4 * groups, 4 * groups, 4 * m * groups, 4 * k, 4 * k * n)
        room = np.zeros(sum(sizes), np.uint8)
        ends = np.cumsum(sizes)
        addresses = (room.ctypes.data + ends - sizes).tolist()
        return cls(m, n, k, *addresses), room


@bare_part
def _too_large(problem: Ints, o: Operands, k: int, tile: Tile) -> int:
    fault = above(problem, M, o.m, tile.m) or above(problem, N, o.n, tile.n)
    return fault or above(problem, K, k, tile.k)


@bare_part
def mm_q(table: Ints, at: int, o: Operands, sram: int, size: int, tile: Tile, problem: Ints) -> int:
    """MM_Q, row `at` of the table, on the SRAM at address `sram`; the fault, or 0."""
    k, form, go_on = table[at, F_K], table[at, F_FMT], table[at, F_FLAGS] & ACC
    step_d, step_a, step_b = table[at, F_STRIDE_D], table[at, F_STRIDE_A], table[at, F_STRIDE_B]
    fault = _too_large(problem, o, k, tile)
    if fault or o.m == 0 or o.n == 0:
        return fault
    group = _HALF if form & GROUP16 else BLOCK
    row_bytes = k // 2 if form & CODES4 else k
    groups = k // group
    scales = o.c + o.n * row_bytes
    mins = scales + o.n * groups * 2
    end = mins + o.n * groups * 2 if form & MINS else mins
    fault = (
        refused(problem, D, o.d, o.m, o.n * 4, step_d, 4, size)
        or refused(problem, A, o.a, o.m, k, step_a, 1, size)
        or refused(problem, B, o.b, o.m, k // BLOCK * 4, step_b, 4, size)
        or refused(problem, C, o.c, 1, end - o.c, 0, 2, size)
    )
    if fault:
        return fault
    if form & MINS:
        for i in range(o.m):
            _sum_groups(sram + o.a + i * step_a, group, groups, tile.sums + i * groups * 4)
    for j in range(o.n):
        line = sram + o.c + j * row_bytes
        if form & CODES4:
            unpack(line, k, 0 if form & MINS else 8, tile.codes)
            line = tile.codes
        for g in range(groups):
            put_f32(tile.scales, g, from_f16(u16(sram + scales, j * groups + g)))
        if form & MINS:
            for g in range(groups):
                put_f32(tile.mins, g, from_f16(u16(sram + mins, j * groups + g)))
        for i in range(o.m):
            acc = f32(sram + o.d + i * step_d, j) if go_on else F32(0)
            x, steps = sram + o.a + i * step_a, sram + o.b + i * step_b
            acc = _dot(x, line, steps, tile.sums + i * groups * 4, tile, form, k, acc)
            put_f32(sram + o.d + i * step_d, j, acc)
    return 0


@bare_part
def _dot(x: int, w: int, steps: int, sums: int, tile: Tile, form: int, k: int, acc: F32) -> F32:
    """`acc` and, group by group, the products of a row of x and one of w, k codes each."""
    scales, mins = tile.scales, tile.mins
    half = form & GROUP16
    if form & MINS:
        group = _HALF if half else BLOCK
        for g in range(k // group):
            total = dot_16(x, w, g * _HALF) if half else dot_32(x, w, g * BLOCK)
            value = F32(total) * f32(scales, g) + F32(i32(sums, g)) * f32(mins, g)
            acc = acc + value * f32(steps, g * group // BLOCK)
    elif half:
        for g in range(k // _HALF):
            value = F32(dot_16(x, w, g * _HALF)) * f32(scales, g)
            acc = acc + value * f32(steps, g // 2)
    else:
        for g in range(k // BLOCK):
            value = F32(dot_32(x, w, g * BLOCK)) * f32(scales, g)
            acc = acc + value * f32(steps, g)
    return acc


@bare_part
def _sum_groups(x: int, group: int, groups: int, sums: int) -> None:
    """The sums of groups of a row of codes."""
    for g in range(groups):
        total = 0
        for q in range(group):
            total += i8(x, g * group + q)
        put_i32(sums, g, total)


@bare_part
def unpack(packed: int, k: int, less: int, codes: int) -> None:
    """The k nibbles at `packed`, the low one of a byte first, less an offset: int8 at `codes`."""
    for i in range(k // 2):
        pair = np.int64(u8(packed, i))
        put_i8(codes, 2 * i, (pair & _NIBBLE) - less)
        put_i8(codes, 2 * i + 1, (pair >> 4) - less)


@bare_part
def mm_f(table: Ints, at: int, o: Operands, sram: int, size: int, tile: Tile, problem: Ints) -> int:
    """MM_F, row `at` of the table, on the SRAM at address `sram`; the fault, or 0."""
    k, wide, go_on = table[at, F_K], table[at, F_FMT] == Float.BF16, table[at, F_FLAGS] & ACC
    step_d, step_a = table[at, F_STRIDE_D], table[at, F_STRIDE_A]
    down, across = table[at, F_STRIDE_B], table[at, F_STRIDE_C]
    fault = _too_large(problem, o, k, tile)
    if fault or o.m == 0 or o.n == 0:
        return fault
    fault = (
        refused(problem, D, o.d, o.m, o.n * 4, step_d, 4, size)
        or refused(problem, A, o.a, o.m, k * 2, step_a, 2, size)
        or refused(problem, C, o.c, k, (o.n - 1) * across + 2, down, 2, size)
        or refused(problem, C, o.c, o.n, 2, across, 2, size)
    )
    if fault:
        return fault
    for i in range(k):
        for j in range(o.n):
            h = u16(sram + o.c + i * down + j * across, 0)
            put_f32(tile.w, i * o.n + j, from_bf16(h) if wide else from_f16(h))
    for i in range(o.m):
        for q in range(k):
            h = u16(sram + o.a + i * step_a, q)
            put_f32(tile.x, q, from_bf16(h) if wide else from_f16(h))
        d = sram + o.d + i * step_d
        if not go_on:
            for j in range(o.n):
                put_f32(d, j, F32(0))
        for q in range(k):
            _add_products(d, f32(tile.x, q), tile.w + q * o.n * 4, o.n)
    return 0


@bare_part
def _add_products(d: int, x: F32, w: int, n: int) -> None:
    for j in range(n):
        put_f32(d, j, f32(d, j) + x * f32(w, j))
