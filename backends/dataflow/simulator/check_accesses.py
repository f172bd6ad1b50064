"""Which bytes an instruction reads and writes, as data that compiled code and NumPy both read.

Each instruction has at most `MOST` accesses. An access is `outer` times `rows` rows of bytes:

    row (i, j) begins at operand * scale + i * step + j * outer_step
    and has n * num // den + const bytes; rows: a constant, or the operand n or m
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from infc.backends.dataflow.isa import (
    ACC,
    BLOCK,
    CODES4,
    F_FLAGS,
    F_FMT,
    F_K,
    F_OP,
    F_STRIDE_A,
    F_STRIDE_B,
    F_STRIDE_C,
    F_STRIDE_D,
    GROUP16,
    MINS,
    Conversion,
    Op,
    Table,
)
from infc.backends.dataflow.machine import LINE_BYTES
from infc.backends.dataflow.simulator.walk import Ints

MOST: Final = 5
"""Accesses of an instruction."""
FARTHEST: Final = 2**60
"""No memory has so many bytes."""
READ: Final = 1
WRITE: Final = 2
D, A, B, C, N, M = range(6)
"""Columns of the operands of a step."""
SRAM, FAR0, FAR1, REMOTE_SRAM = range(4)
"""Where an access is: own SRAM, a tier of the chip's far memory, SRAM of the destinations."""

(
    A_USE, A_SPACE, A_BASE, A_SCALE, A_ROWS, A_ROW_COUNT, A_STEP, A_NUM, A_DEN, A_CONST, A_OUTER,
    A_OUTER_STEP, A_NEEDS, A_ALIGN,
) = range(14)  # fmt: skip
"""Columns of the table of accesses.

`A_ROWS` is the operand with the number of rows, or -1: `A_ROW_COUNT` then has it. `A_NEEDS` has the
bits `1 << N` and `1 << M` of operands without which nothing happens where they are 0.
"""


@dataclass(frozen=True)
class _Access:
    use: int
    base: int
    space: int = SRAM
    scale: int = 1
    rows: int = -1
    row_count: int = 1
    step: int = 0
    num: int = 0
    den: int = 1
    const: int = 0
    outer: int = 1
    outer_step: int = 0
    needs: int = 1 << N
    align: int = 1

    def row(self) -> list[int]:
        return [
            self.use, self.space, self.base, self.scale, self.rows, self.row_count, self.step,
            self.num, self.den, self.const, self.outer, self.outer_step, self.needs, self.align,
        ]  # fmt: skip


class Spans(NamedTuple):
    """One access of many steps: bytes `[start, stop)` enclose it, `size` is of a row.

    `rows` is 0 where nothing is accessed.
    """

    start: Ints
    stop: Ints
    rows: Ints
    size: Ints


_CONVERTED: Final = {
    Conversion.F32_BF16: (4, 2),
    Conversion.F32_F16: (4, 2),
    Conversion.BF16_F32: (2, 4),
    Conversion.F16_F32: (2, 4),
    Conversion.I32_F32: (4, 4),
}
"""Bytes of an element read and written."""


def access_table(table: Table) -> Ints:
    """[instructions, MOST, 14]: reads before writes, so that an instruction may work in place."""
    # Programs repeat themselves: what differs in an address only has the same accesses.
    columns = [F_OP, F_FMT, F_FLAGS, F_K, F_STRIDE_D, F_STRIDE_A, F_STRIDE_B, F_STRIDE_C]
    keys = table[:, columns]
    keys[table[:, F_OP] == Op.SEND, columns.index(F_K)] = 0  # there it is the rectangle
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    forms = np.zeros((len(distinct), MOST, 14), np.int64)
    forms[:, :, A_DEN] = forms[:, :, A_ALIGN] = 1
    for index, key in enumerate(distinct.tolist()):
        accesses = sorted(_accesses(*key), key=lambda access: access.use)
        for slot, access in enumerate(accesses):
            forms[index, slot] = access.row()
    return forms[which.ravel()]


def spans(accesses: Ints, values: Ints) -> Spans:
    """One access `[steps, 14]` of steps with these operands `[steps, 6]`."""
    steps = np.arange(len(values))
    start = values[steps, accesses[:, A_BASE]] * accesses[:, A_SCALE]
    rows = np.where(
        accesses[:, A_ROWS] < 0, accesses[:, A_ROW_COUNT], values[steps, accesses[:, A_ROWS]]
    )
    size = values[:, N] * accesses[:, A_NUM] // accesses[:, A_DEN] + accesses[:, A_CONST]
    needs = accesses[:, A_NEEDS]
    none = (accesses[:, A_USE] == 0) | (size <= 0) | (rows <= 0)
    for operand in (N, M):
        none |= (needs >> operand & 1 > 0) & (values[:, operand] <= 0)
    rows = np.where(none, 0, rows)
    last = (rows - 1) * accesses[:, A_STEP] + (accesses[:, A_OUTER] - 1) * accesses[:, A_OUTER_STEP]
    # 2**31 rows that are 2**31 lines apart would not fit into 64 bits.
    far = rows.astype(np.float64) * accesses[:, A_STEP] + start > FARTHEST
    stop = np.where(none, start, np.where(far, FARTHEST, start + last + size))
    return Spans(start, stop, rows, size)


def _accesses(
    op: int,
    fmt: int,
    flags: int,
    k: int,
    stride_d: int,
    stride_a: int,
    stride_b: int,
    stride_c: int,
) -> list[_Access]:
    """The accesses of instructions with these fields."""
    if op in (Op.LOAD, Op.STORE, Op.SEND):
        return _moved(op, fmt, stride_d, stride_a)
    accumulator = READ | WRITE if flags & ACC else WRITE
    if op in (Op.MM_Q, Op.MM_F):
        both = 1 << N | 1 << M
        d = _Access(accumulator, D, rows=M, step=stride_d, num=4, needs=both, align=4)
        if op == Op.MM_F:
            x = _Access(READ, A, rows=M, step=stride_a, const=2 * k, needs=both, align=2)
            return [d, x, _plain_weights(k, stride_b, stride_c)]
        column, align = _packed_bytes(fmt, k), 2
        return [
            d,
            _Access(READ, A, rows=M, step=stride_a, const=k, needs=both),
            _Access(READ, B, rows=M, step=stride_b, const=4 * k // BLOCK, needs=both, align=4),
            _Access(READ, C, num=column, needs=both, align=align),
        ]
    return _vector(op, fmt, accumulator)


def _moved(op: int, tier: int, stride_d: int, stride_a: int) -> list[_Access]:
    both = 1 << N | 1 << M
    far = FAR0 + tier
    if op == Op.LOAD:
        source = _Access(READ, A, far, LINE_BYTES, M, step=stride_a * LINE_BYTES, num=1, needs=both)
    else:
        source = _Access(READ, A, rows=M, step=stride_a, num=1, needs=both)
    if op == Op.STORE:
        to = _Access(WRITE, D, far, LINE_BYTES, M, step=stride_d * LINE_BYTES, num=1, needs=both)
    else:
        space = SRAM if op == Op.LOAD else REMOTE_SRAM
        to = _Access(WRITE, D, space, rows=M, step=stride_d, num=1, needs=both)
    return [source, to]


def _packed_bytes(fmt: int, k: int) -> int:
    """Bytes of one column of a packed tile: codes, scales and mins of `k` elements."""
    codes = k // 2 if fmt & CODES4 else k
    group = BLOCK // 2 if fmt & GROUP16 else BLOCK
    return codes + k // group * (4 if fmt & MINS else 2)


def _plain_weights(k: int, stride_b: int, stride_c: int) -> _Access:
    """`w` of MM_F, `[k, n]` elements of two bytes; either dimension may be the contiguous one."""
    both = 1 << N | 1 << M
    if stride_b == 2:
        return _Access(READ, C, rows=N, step=stride_c, const=2 * k, needs=both, align=2)
    if stride_c == 2:
        return _Access(READ, C, row_count=k, step=stride_b, num=2, needs=both, align=2)
    return _Access(
        READ, C, rows=N, step=stride_c, const=2, outer=k, outer_step=stride_b, needs=both, align=2
    )


def _vector(op: int, fmt: int, accumulator: int) -> list[_Access]:
    """Accesses of an operation of the vector unit; none of a control operation."""

    def whole(use: int, base: int, num: int, den: int = 1, align: int = 4) -> _Access:
        return _Access(use, base, num=num, den=den, align=align)

    def once(use: int, base: int, size: int, needs: int = 0) -> _Access:
        return _Access(use, base, const=size, needs=needs, align=4)

    if op == Op.V_BIN:
        return [whole(WRITE, D, 4), whole(READ, A, 4), whole(READ, B, 4)]
    if op == Op.V_BINS:
        return [whole(WRITE, D, 4), whole(READ, A, 4), once(READ, B, 4, 1 << N)]
    if op in (Op.V_IMM, Op.V_UN):
        return [whole(WRITE, D, 4), whole(READ, A, 4)]
    if op == Op.V_RED:
        return [once(accumulator, D, 4), whole(READ, A, 4)]
    if op == Op.V_CVT:
        read, written = _CONVERTED[Conversion(fmt)]
        return [whole(WRITE, D, written, align=written), whole(READ, A, read, align=read)]
    if op == Op.V_Q8:
        return [
            whole(WRITE, D, 1, align=1),
            whole(WRITE, B, 4, BLOCK),
            whole(READ, A, 4),
        ]
    if op == Op.V_DQ:
        codes = whole(READ, A, 1, 2 if fmt & CODES4 else 1, align=1)
        group = BLOCK // 2 if fmt & GROUP16 else BLOCK
        mins = [whole(READ, C, 2, group, align=2)] if fmt & MINS else []
        return [whole(WRITE, D, 4), codes, whole(READ, B, 2, group, align=2), *mins]
    if op == Op.V_ROPE:
        return [whole(WRITE, D, 8), whole(READ, A, 8), whole(READ, B, 8)]
    if op == Op.V_FILL:
        return [whole(WRITE, D, 4)]
    if op == Op.V_ARGMAX:
        return [once(accumulator, D, 8), whole(READ, A, 4)]
    if op == Op.V_MERGE:
        return [once(READ | WRITE, D, 8), once(READ, A, 8)]
    return []
