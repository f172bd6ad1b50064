"""The streamed product's input in shared memory: rows of bf16, zeros, sums of groups."""

from __future__ import annotations

from functools import partial

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import THREADS, WORKER_BARRIER
from infc.backends.cuda.kernels.stream_shape import TILE, StreamShape
from infc.reference.abf16 import abf16_row_bytes

_UNIT = 8
"""Numbers that a thread copies at once: 16 bytes."""
_UNITS = 32 // _UNIT
"""Such units of a block."""


def emit_stage(b: GpuBuilder, name: str, shape: StreamShape) -> None:
    """Define `name(x, rows, part)`: part number `part` of the rows, and all that belongs to it.

    All workers run it together; they have met when it ends.
    """
    with b.function(name, [b.ptr, b.i32, b.i32]) as (x, rows, part):
        _emit_body(b, shape, x, rows, part)
        b.ret()


def _emit_body(b: GpuBuilder, shape: StreamShape, x: Value, rows: Value, part: Value) -> None:
    row_units = _UNITS * shape.part_blocks
    units = b.mul(rows, row_units)
    before = b.mul(part, row_units)

    def place(unit: Value) -> tuple[Value, Value, Value]:
        """Row and column of a unit of the part, and whether the row has it."""
        row = b.div(unit, row_units)
        column = b.sub(unit, b.mul(row, row_units))
        return row, column, b.cmp("slt", b.add(before, column), _UNITS * shape.spec.blocks)

    def address(row: Value, column: Value) -> Value:
        offset = b.add(b.mul(row, shape.x_row_bytes), b.mul(column, 2 * _UNIT))
        return b.at(b.shared_memory(shape.x), offset)

    def copy(unit: Value) -> None:
        row, column, there = place(unit)
        offset = b.mul(b.add(before, column), 2 * _UNIT)
        source = b.add(b.mul(row, abf16_row_bytes(shape.spec.k)), offset)
        b.when(there, lambda: b.copy_async(address(row, column), b.at(x, source)))

    b.loop(b.thread(), units, THREADS, body=copy)
    b.copy_commit()
    zero = b.const(0, b.vec(4, b.i32))
    zeros = b.shared_memory(shape.zeros)
    b.loop(
        b.mul(b.thread(), 16),
        shape.zeros_bytes,
        16 * THREADS,
        body=lambda offset: b.store(zero, b.at(zeros, offset), 16),
    )
    b.copy_wait(0)

    def add(start: Value) -> None:
        unit = b.add(start, b.thread())
        row, column, in_row = place(unit)
        there = b.bit_and(b.cmp("slt", unit, units), in_row)
        # What this thread has copied itself it sees before the others do.
        (total,) = b.when(
            there,
            lambda: [_sum_of_unit(b, address(row, column))],
            lambda: [b.const(0.0, b.f32)],
            [b.f32],
        )
        units_of_group = 1
        for group in (16, 32):
            total = b.fadd(total, b.shuffle_xor(total, units_of_group))
            units_of_group *= 2
            if group in shape.sums_groups:
                is_first = b.cmp("eq", b.bit_and(column, units_of_group - 1), 0)
                index = b.div(column, units_of_group)
                store = partial(_store_sum, b, shape, group, index, row, rows, total)
                b.when(b.bit_and(there, is_first), store)

    if shape.sums_groups:
        b.loop(0, units, THREADS, body=add)
    b.sync(THREADS, WORKER_BARRIER)


def _sum_of_unit(b: GpuBuilder, address: Value) -> Value:
    """The sum of eight bf16 in shared memory: a tree."""
    numbers = b.ext_f(b.load(address, b.vec(_UNIT, b.bf16), 16), b.vec(_UNIT, b.f32))
    return b.reduce("add", numbers)


def _store_sum(
    b: GpuBuilder,
    shape: StreamShape,
    group: int,
    index: Value,
    row: Value,
    rows: Value,
    total: Value,
) -> None:
    """Store the sum of group number `index` of a row; behind that of the last row zeros, for the
    tokens of its tile that are not there."""
    start = b.at(b.shared_memory(shape.sums(group)), b.mul(index, 4 * shape.tokens))
    b.store(total, b.at(start, b.mul(row, 4)), 4)

    def fill() -> None:
        zero = b.const(0.0, b.f32)
        stop = b.mul(b.ceil_div(rows, TILE), TILE)
        b.loop(rows, stop, body=lambda token: b.store(zero, b.at(start, b.mul(token, 4)), 4))

    b.when(b.cmp("eq", row, b.sub(rows, 1)), fill)
