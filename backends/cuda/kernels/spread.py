"""How the numbers of a row are spread over threads, and how threads move and sum them.

A *team*, a warp or all workers of a block, holds a row in registers: each thread has *chunks* of 4
neighbouring numbers (2 or 1 where rows are no multiple of 4), so that a row moves by 16 bytes a
thread. Beyond the row a chunk holds zeros; nothing there is read or written.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, WORKER_BARRIER

F32_BYTES = 4
SUM_BYTES = F32_BYTES * WARPS
"""Shared memory of one sum over a block."""
PIECE_COLUMNS = 32
"""Columns that four threads share where a row comes from a packed table."""
_PIECE_THREADS = 4
_PIECE_NUMBERS = PIECE_COLUMNS // _PIECE_THREADS
_BF16_BYTES = 2

Chunk = list[Value]
"""Neighbouring f32 in registers."""
Row = list[Chunk]
"""What a thread holds of a row."""


def chunk_width(d: int) -> int:
    """Numbers of a chunk of rows of `d`: rows and chunks are aligned to their size."""
    return next(width for width in (4, 2, 1) if d % width == 0)


@dataclass(frozen=True)
class Span:
    """The columns that a team holds at once.

    Attributes:
        d: columns of a row.
        stored: columns that are written: `d`, or more where rows end in zeros.
        columns: columns at once: all that are stored, or a part of them.
        team: threads that hold them.
        pieces: whether threads hold what a packed table gives them, see `columns_of`.
    """

    d: int
    stored: int
    columns: int
    team: int
    pieces: bool = False

    @property
    def width(self) -> int:
        """Numbers of a chunk."""
        return chunk_width(self.d)

    @property
    def parts(self) -> int:
        """How many spans a row is."""
        return -(-self.stored // self.columns)

    @property
    def rounds(self) -> int:
        """How often the team's threads are dealt columns."""
        numbers = _PIECE_NUMBERS if self.pieces else self.width
        return -(-self.columns // (self.team * numbers))

    @property
    def numbers(self) -> int:
        """Registers that a thread needs for a row."""
        return self.rounds * (_PIECE_NUMBERS if self.pieces else self.width)

    @property
    def is_whole(self) -> bool:
        """Whether no thread is ever dealt a column beyond the row."""
        dealt = self.team * self.numbers
        return dealt == self.columns and self.d % self.columns == 0

    def columns_of(self, b: GpuBuilder, member: Value) -> list[Value]:
        """First columns of the chunks of one thread of the team, from the span's start on.

        In pieces, lane c of four has what `row_piece` gives it, the pairs from `2 c + 8 j` on with
        j = 0 .. 3; where chunks are of 4 numbers, lanes have exchanged pairs with their neighbours.
        """
        if not self.pieces:
            first = b.mul(member, self.width)
            stride = self.team * self.width
            return [b.add(first, i * stride) for i in range(self.rounds)]
        columns = []
        for i in range(self.rounds):
            unit = b.add(member, i * self.team)
            start = b.mul(b.shr(unit, 2), PIECE_COLUMNS)
            c = b.bit_and(unit, _PIECE_THREADS - 1)
            if self.width == 4:
                within = b.add(b.mul(b.bit_and(c, 1), 8), b.mul(b.shr(c, 1), 4))
                offsets = [0, 16]
            else:
                within = b.mul(c, 2)
                offsets = [8 * j + k for j in range(4) for k in range(0, 2, self.width)]
            columns += [b.add(start, b.add(within, offset)) for offset in offsets]
        return columns


class Spread:
    """The chunks of a thread, made where it is known which span its team has.

    Attributes:
        span: the columns that the team holds at once.
        member: number of the thread in its team, i32.
        start: first column of this span, i32, or None for 0.
        columns: first column of each chunk, i32.
        inside: for each chunk an i1: within the row; None where it always is.
    """

    def __init__(self, b: GpuBuilder, span: Span, member: Value, start: Value | None) -> None:
        self.b = b
        self.span = span
        self.member = member
        self.start = start
        columns = span.columns_of(b, member)
        self.columns = [c if start is None else b.add(start, c) for c in columns]
        self.inside = [None if span.is_whole else b.cmp("slt", c, span.d) for c in self.columns]

    def zero_outside(self, values: Row) -> Row:
        """The row, zero where chunks are beyond it."""
        b = self.b
        zero = b.const(0.0, b.f32)
        return [
            chunk if inside is None else [b.select(inside, x, zero) for x in chunk]
            for chunk, inside in zip(values, self.inside, strict=True)
        ]

    def load(self, row: Value) -> Row:
        """The numbers of an f32 row in global memory."""
        b, width = self.b, self.span.width
        size = width * F32_BYTES
        values: Row = []
        for column, inside in zip(self.columns, self.inside, strict=True):
            # Beyond the row the first column is read instead: no branch waits for a load.
            read = column if inside is None else b.select(inside, column, b.idx(0))
            pointer = b.at(row, b.wide(b.mul(read, F32_BYTES)))
            if width == 1:
                values.append([b.load(pointer, b.f32, size)])
            else:
                vector = b.load(pointer, b.vec(width, b.f32), size)
                values.append([b.extract(vector, i) for i in range(width)])
        return self.zero_outside(values)

    def store(self, values: Row, row: Value) -> None:
        """Store an f32 row."""
        b, size = self.b, self.span.width * F32_BYTES
        for chunk, column, inside in zip(values, self.columns, self.inside, strict=True):
            value = chunk[0] if len(chunk) == 1 else b.vector_of(chunk)
            self._store_where(inside, value, b.at(row, b.wide(b.mul(column, F32_BYTES))), size)

    def store_rounded(self, values: Row, row: Value) -> None:
        """Store a row as bf16, with the zeros behind it."""
        b, span = self.b, self.span
        size = span.width * _BF16_BYTES
        for chunk, column in zip(self.zero_outside(values), self.columns, strict=True):
            there = None if span.is_whole else b.cmp("slt", column, span.stored)
            if len(chunk) == 1:
                value = b.trunc_i(b.pack_bf16(chunk[0], b.const(0.0, b.f32)), b.i16)
            else:
                pairs = [b.pack_bf16(*chunk[i : i + 2]) for i in range(0, len(chunk), 2)]
                value = pairs[0] if len(pairs) == 1 else b.vector_of(pairs)
            self._store_where(there, value, b.at(row, b.wide(b.mul(column, _BF16_BYTES))), size)

    def _store_where(
        self, condition: Value | None, value: Value, pointer: Value, align: int
    ) -> None:
        b = self.b
        if condition is None:
            b.store(value, pointer, align)
        else:
            b.when(condition, lambda: b.store(value, pointer, align))

    def sums(self, values: list[Value], index: int) -> list[Value]:
        """The sums of f32s of each thread of the team, the same on each, in a fixed order.

        Args:
            index: where a block's team sums: `len(values) * SUM_BYTES` of shared memory, the
                number `index` of such from `WORK_OFFSET` on, which nobody reads any more.
        """
        b = self.b
        for mask in (16, 8, 4, 2, 1):
            values = [b.fadd(value, b.shuffle_xor(value, mask)) for value in values]
        if self.span.team == WARP:
            return values
        room = b.shared_memory(WORK_OFFSET + index * len(values) * SUM_BYTES)
        own = b.at(room, b.mul(b.shr(b.thread(), 5), F32_BYTES))

        def store() -> None:
            for i, value in enumerate(values):
                b.store(value, b.at(own, i * SUM_BYTES), F32_BYTES)

        b.when(b.cmp("eq", b.lane(), 0), store)
        b.sync(THREADS, WORKER_BARRIER)
        totals = []
        for i in range(len(values)):
            quarters = (b.at(room, i * SUM_BYTES + 16 * j) for j in range(WARPS // 4))
            low, high = (b.load(pointer, b.vec(4, b.f32), 16) for pointer in quarters)
            totals.append(b.reduce("add", b.fadd(low, high)))
        return totals
