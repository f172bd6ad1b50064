"""Merges what the warps of a block know of the same rows, in shared memory, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_spec import F32_BYTES, PART_ROWS, AttentionSpec
from infc.backends.cuda.kernels.attention_state import State
from infc.backends.cuda.kernels.attention_step import Step
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORKER_BARRIER

_STATISTICS_BYTES = PART_ROWS * WARPS * F32_BYTES
MERGE_BYTES = 2 * _STATISTICS_BYTES
"""Shared memory in front of the sums: maxima and terms, f32 `[row][warp]` each."""
_PAD = 4
"""Numbers behind a row of sums, so that what the lanes of a warp store falls on different banks."""
_VECTOR = 4


@dataclass(frozen=True)
class Merged:
    """Four elements of a row, merged.

    Attributes:
        row, element: i32, of the tile and of the head: the first one's.
        sums: four f32.
        maximum, terms: f32 of the row.
    """

    row: Value
    element: Value
    sums: list[Value]
    maximum: Value
    terms: Value


def merge_passes(spec: AttentionSpec, rows: int, room_bytes: int) -> int:
    """In how many parts the elements of heads are merged, so that `rows`, of all warps together,
    fit `room_bytes`."""
    for passes in range(1, spec.columns // 2 + 1):
        fits = rows * _row_numbers(spec, passes) * F32_BYTES <= room_bytes
        if spec.columns % (2 * passes) == 0 and fits:
            return passes
    raise ValueError(f"{room_bytes} bytes are too few to merge {rows} rows of 8 elements")


def _row_numbers(spec: AttentionSpec, passes: int) -> int:
    return spec.kv.head_dim // passes + _PAD


class Merge:
    """Merges the states of a block's warps.

    Args:
        step: of one tile of 8 rows.
        warps: how many know something, the first ones; a power of two.
        rows: rows of the tile that there are, from the first on.
        statistics: `MERGE_BYTES` of shared memory.
        room: `room_bytes` of shared memory.
    """

    def __init__(
        self,
        b: GpuBuilder,
        step: Step,
        warps: int,
        rows: int,
        statistics: Value,
        room: Value,
        room_bytes: int,
    ) -> None:
        self.b, self.step, self.warps, self.rows = b, step, warps, rows
        self.statistics, self.room = statistics, room
        self.passes = merge_passes(step.spec, warps * rows, room_bytes)
        self.row_bytes = _row_numbers(step.spec, self.passes) * F32_BYTES
        self.warp = b.warp()

    def emit(self, state: State, finish: Callable[[Merged], None]) -> None:
        """Merge; `finish` is run by one thread for each four elements of a row.

        Nobody reads the statistics when this is entered; nobody may write to either before the
        block has met again.
        """
        b, step = self.b, self.step
        self._store_statistics(state.maxima[0], step.quad_sum(state.terms[0]))
        self._meet()
        rows = [b.add(b.mul(step.q, 2), i) for i in range(2)]
        factors = [self._factor(row) for row in rows]
        columns = step.spec.columns // self.passes
        for number in range(self.passes):
            if number:
                self._meet()
            first = number * columns
            for i, row in enumerate(rows):
                sums = [
                    b.fmul(sum_, factors[i])
                    for sum_ in state.sums[4 * first // 2 + i : 4 * (first + columns) // 2 : 2]
                ]
                self._store_sums(row, sums)
            self._meet()
            vectors = columns * 8 // _VECTOR

            def vector(index: Value, first: int = number * columns * 8, n: int = vectors) -> None:
                row, at = b.div(index, n), b.mul(b.rem(index, n), _VECTOR)
                finish(self._merged(row, at, first))

            b.loop(b.thread(), self.rows * vectors, THREADS, body=vector)

    def _place(self, row: Value, warp: Value | int) -> Value:
        b = self.b
        return b.at(self.statistics, b.mul(b.add(b.mul(row, WARPS), warp), F32_BYTES))

    def _store_statistics(self, maximum: Value, terms: Value) -> None:
        b = self.b
        place = self._place(self.step.r, self.warp)

        def store() -> None:
            b.store(maximum, place, F32_BYTES)
            b.store(terms, b.at(place, _STATISTICS_BYTES), F32_BYTES)

        b.when(self._knows(b.cmp("eq", self.step.q, 0)), store)

    def _of_warps(self, place: Value) -> list[Value]:
        b, lanes = self.b, min(self.warps, _VECTOR)
        vector = b.vec(lanes, b.f32)
        parts = [b.load(b.at(place, 16 * i), vector, 4 * lanes) for i in range(self.warps // lanes)]
        return [b.extract(part, i) for part in parts for i in range(lanes)]

    def _maximum(self, maxima: list[Value]) -> Value:
        largest = maxima[0]
        for other in maxima[1:]:
            largest = self.b.fmax(largest, other)
        return largest

    def _factor(self, row: Value) -> Value:
        b = self.b
        # Warps that know nothing store nothing; they read what is there.
        warp = b.min(self.warp, self.warps - 1) if self.warps < WARPS else self.warp
        own = b.load(self._place(row, warp), b.f32, F32_BYTES)
        largest = self._maximum(self._of_warps(self._place(row, 0)))
        return b.exp2(b.fsub(own, largest))

    def _store_sums(self, row: Value, sums: list[Value]) -> None:
        """Store what this warp has of a row: elements r, r + 8, ... of those of this pass."""
        b = self.b
        inside = b.mul(b.add(b.mul(self.warp, self.rows), row), self.row_bytes)
        place = b.at(self.room, b.add(inside, b.mul(self.step.r, F32_BYTES)))

        def store() -> None:
            for column, own in enumerate(sums):
                b.store(own, b.at(place, column * 8 * F32_BYTES), F32_BYTES)

        if self.rows < PART_ROWS:
            b.when(self._knows(b.cmp("slt", row, self.rows)), store)
        elif self.warps < WARPS:
            b.when(b.cmp("slt", self.warp, self.warps), store)
        else:
            store()

    def _knows(self, condition: Value) -> Value:
        """The condition, and that this warp knows something."""
        b = self.b
        if self.warps == WARPS:
            return condition
        return b.bit_and(condition, b.cmp("slt", self.warp, self.warps))

    def _merged(self, row: Value, at: Value, first: int) -> Merged:
        b = self.b
        place = self._place(row, 0)
        maxima, terms = self._of_warps(place), self._of_warps(b.at(place, _STATISTICS_BYTES))
        maximum = self._maximum(maxima)
        total = b.const(0.0, b.f32)
        for own, part in zip(maxima, terms, strict=True):
            total = b.fma(part, b.exp2(b.fsub(own, maximum)), total)
        inside = b.add(b.mul(row, self.row_bytes), b.mul(at, F32_BYTES))
        source = b.at(self.room, inside)
        sums = b.const(0.0, b.vec(_VECTOR, b.f32))
        for warp in range(self.warps):
            part = b.load(b.at(source, warp * self.rows * self.row_bytes), sums.type, 16)
            sums = b.fadd(sums, part)
        numbers = [b.extract(sums, i) for i in range(_VECTOR)]
        return Merged(row, b.add(at, first), numbers, maximum, total)

    def _meet(self) -> None:
        self.b.sync(THREADS, WORKER_BARRIER)
