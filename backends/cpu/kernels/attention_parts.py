"""A row's keys in parts: each is summed by itself, and whoever finishes the last one merges them.

So few rows still feed all threads, and no key is read twice. (Dao et al., "Flash-Decoding for
long-context inference".)

Which keys a part has depends on the row's position alone: its visible blocks are dealt in runs of
equal length, the least that makes no more than `limit` parts. Parts are merged in their order. So
the threads show in the result neither by their number nor by which of them was last.

Nobody waits: a part that is done is counted at a place of its row and kv head, and the thread whose
count is the last one merges. It leaves the count at zero, as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_block import MASKED, BlockEmitter, emit_exp2
from infc.backends.cpu.kernels.attention_output import AttentionOutput
from infc.backends.cpu.kernels.attention_shape import VECTOR_BYTES, Shape
from infc.backends.cpu.kernels.attention_units import Unit, Units
from infc.backends.cpu.kernels.dealing import Turns
from infc.backends.cpu.kernels.rows import for_each_vector, load_f32, store_f32
from infc.ir.mlir import llvm

ARRIVAL_BYTES = 4


@dataclass(frozen=True)
class PartLayout:
    """The parts of all rows: f32 `[row, kv_head, part, head of the group]` records.

    A record is the weighted values `[vectors, 16]`, the maximum `[16]` and the terms `[16]` of a
    lane as its unit left them.

    Attributes:
        limit: parts a row has at most.
        group: query heads a kv head.
        kv_heads: kv heads.
        dim_bytes: bytes of the weighted values.
    """

    limit: int
    group: int
    kv_heads: int
    dim_bytes: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return self.dim_bytes + 2 * VECTOR_BYTES

    @property
    def part_bytes(self) -> int:
        """Bytes of a part: a record for each head of the group."""
        return self.group * self.record_bytes

    def row_bytes(self) -> int:
        """Bytes of all parts of a row."""
        return self.kv_heads * self.limit * self.part_bytes

    @property
    def maximum(self) -> int:
        """Byte offset of the maximum in a record."""
        return self.dim_bytes

    @property
    def terms(self) -> int:
        """Byte offset of the terms in a record."""
        return self.dim_bytes + VECTOR_BYTES


@dataclass(frozen=True)
class _Division:
    """The parts of one row.

    Attributes:
        oldest, position: the first and the last key it sees.
        first_block: the block of the first one.
        part_blocks: blocks of a part; the last one may have fewer.
        count: parts.
    """

    oldest: Value
    position: Value
    first_block: Value
    part_blocks: Value
    count: Value


class Parts:
    """Deals the parts of all rows, keeps their sums and merges them.

    Args:
        records: the parts of all rows, `PartLayout.row_bytes()` a row.
        arrivals: i32 `[row, kv_head]`, zero between calls.
    """

    def __init__(
        self,
        b: Builder,
        units: Units,
        block: BlockEmitter,
        layout: PartLayout,
        records: Value,
        arrivals: Value,
    ) -> None:
        self.b, self.units, self.block, self.layout = b, units, block, layout
        self.records, self.arrivals = records, arrivals

    def each(
        self,
        sum_up: Callable[[Unit], None],
        finish: Callable[[Unit], None],
        output: AttentionOutput,
    ) -> None:
        """Run the parts that this thread takes.

        Args:
            sum_up: goes through a unit's keys and leaves the sums in the lanes' state.
            finish: writes the output of a unit that saw all of its row's keys.
            output: where rows go.
        """
        b, a, kv_heads = self.b, self.units.a, self.layout.kv_heads

        def count(row: Value, total: Value) -> Value:
            return b.add(total, self._division(row).count)

        (parts,) = b.loop(0, a.m, 1, [b.idx(0)], body=count)
        splits = self.units.head_splits(b.mul(parts, kv_heads))
        units_a_part = b.mul(splits, kv_heads)

        turns = Turns(b, a.team)

        def row_units(row: Value, before: Value) -> Value:
            """`before` is the number of the row's first unit."""
            division = self._division(row)
            units = b.mul(division.count, units_a_part)

            def unit(u: Value) -> None:
                turns.when_own(b.add(before, u), partial(one_unit, row, division, u))

            b.loop(0, units, body=unit)
            return b.add(before, units)

        def one_unit(row: Value, division: _Division, u: Value) -> None:
            part, rest = b.div(u, units_a_part), b.rem(u, units_a_part)
            one = self._unit(row, division, part, rest, splits)
            sum_up(one)

            def keep() -> None:
                pair = b.add(b.mul(row, kv_heads), b.div(rest, splits))
                self._keep(one, pair, part)
                expected = b.mul(division.count, splits)
                self._arrive(pair, expected, lambda: self._merge(row, pair, division, output))

            b.when(b.cmp("eq", division.count, 1), lambda: finish(one), keep)

        (units,) = b.loop(0, a.m, 1, [b.idx(0)], body=row_units)
        turns.end(units)

    def _division(self, row: Value) -> _Division:
        b, key_block = self.b, self.block.shape.key_block
        position = self.units.position(row)
        oldest = self.units.oldest(position)
        first = b.div(oldest, key_block)
        blocks = b.sub(b.add(b.div(position, key_block), 1), first)
        part_blocks = b.ceil_div(blocks, self.layout.limit)
        count = b.div(b.add(blocks, b.sub(part_blocks, 1)), part_blocks)
        return _Division(oldest, position, first, part_blocks, count)

    def _unit(
        self, row: Value, division: _Division, part: Value, run: Value, splits: Value
    ) -> Unit:
        """A run of heads of a part."""
        b, key_block = self.b, self.block.shape.key_block
        block = b.add(division.first_block, b.mul(part, division.part_blocks))
        first = b.mul(block, key_block)
        last = b.sub(b.add(first, b.mul(division.part_blocks, key_block)), 1)
        lowest, highest = b.max(first, division.oldest), b.min(last, division.position)
        # Threads that are equally fast take the parts in turns.
        others = b.mul(b.sub(self.units.a.threads, 1), division.part_blocks)
        skip = b.mul(others, key_block)
        return self.units.unit(row, b.add(row, 1), run, splits, lowest, highest, skip=skip)

    def _record(self, pair: Value, part: Value, head: Value) -> Value:
        b, layout = self.b, self.layout
        at = b.mul(b.add(b.mul(pair, layout.limit), part), layout.part_bytes)
        return b.at(self.records, b.add(at, b.mul(head, layout.record_bytes)))

    def _keep(self, unit: Unit, pair: Value, part: Value) -> None:
        """Keep the states of a unit's lanes."""
        b, parts, shape = self.b, self.block.parts, self.block.shape

        def save(lane: Value, _row: Value, head: Value) -> None:
            record = self._record(pair, part, b.rem(head, self.layout.group))
            sums = self.block.part(parts.sums, lane, shape.dim_bytes)

            def copy(at: Value, _lanes: int) -> None:
                store_f32(b, load_f32(b, sums, at), record, at)

            for_each_vector(b, shape.kv.head_dim, copy)
            maximum = load_f32(b, self.block.part(parts.maxima, lane), 0)
            store_f32(b, maximum, record, self.layout.maximum)
            terms = load_f32(b, self.block.part(parts.weights, lane), 0)
            store_f32(b, terms, record, self.layout.terms)

        self.units.each_lane(unit, save)

    def _arrive(self, pair: Value, expected: Value, last: Callable[[], None]) -> None:
        """Count one unit of a row and kv head; run `last` where it is the last of `expected`."""
        b = self.b
        place = b.at(self.arrivals, b.mul(pair, ARRIVAL_BYTES))
        before = llvm.AtomicRMWOp(
            llvm.AtomicBinOp.add,
            place,
            b.const(1, b.i32),
            llvm.AtomicOrdering.acq_rel,
            alignment=ARRIVAL_BYTES,
        ).result

        def finish() -> None:
            # The next to count here does so behind a barrier.
            b.store(b.const(0, b.i32), place, ARRIVAL_BYTES)
            last()

        b.when(b.cmp("eq", b.add(b.as_i64(before), 1), expected), finish)

    def _merge(
        self,
        row: Value,
        pair: Value,
        division: _Division,
        output: AttentionOutput,
    ) -> None:
        """Merge the parts of all heads of a row and kv head."""
        b, layout = self.b, self.layout
        kv_head = b.rem(pair, layout.kv_heads)

        def merge(head: Value) -> None:
            query_head = b.add(b.mul(kv_head, layout.group), head)
            place = output.place(row, query_head)
            first = self._record(pair, b.idx(0), head)
            self._merge_head(first, division.count, output, place)
            output.close(place, query_head)

        b.loop(0, layout.group, body=merge)

    def _merge_head(
        self, first: Value, count: Value, output: AttentionOutput, place: Value
    ) -> None:
        """Merge the parts of a head, from its `first` record on."""
        b, layout = self.b, self.layout
        vector = b.vec(LANES, b.f32)
        zero = b.const(0.0, vector)

        def record(part: Value) -> Value:
            return b.at(first, b.mul(part, layout.part_bytes))

        def larger(part: Value, maximum: Value) -> Value:
            return b.fmax(maximum, load_f32(b, record(part), layout.maximum))

        (maximum,) = b.loop(0, count, 1, [b.const(MASKED, vector)], body=larger)

        def weigh(part: Value, total: Value) -> Value:
            own = record(part)
            correction = emit_exp2(b, b.fsub(load_f32(b, own, layout.maximum), maximum))
            store_f32(b, correction, own, layout.maximum)
            return b.fma(load_f32(b, own, layout.terms), correction, total)

        (total,) = b.loop(0, count, 1, [zero], body=weigh)
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), b.reduce("add", total)))

        def column(at: Value, lanes: int) -> None:
            def add(part: Value, value: Value) -> Value:
                own = record(part)
                correction = load_f32(b, own, layout.maximum)
                return b.fma(load_f32(b, own, at), correction, value)

            (value,) = b.loop(0, count, 1, [zero], body=add)
            output.store(b.fmul(value, inverse), place, at, lanes)

        for_each_vector(b, self.block.shape.kv.head_dim, column)


def part_layout(shape: Shape, limit: int, group: int) -> PartLayout:
    """The records of a shape whose rows have up to `limit` parts."""
    return PartLayout(limit, group, shape.kv.kv_heads, shape.dim_bytes)
