"""Which thread computes which part of an attention call.

A work unit is some consecutive rows of one sequence and some query heads that share a kv head; each
pair of row and head is a *lane* of the unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.attention_operands import CachedHead
from infc.backends.cpu.kernels.dealing import Team, Turns
from infc.backends.cpu.kernels.kv_layout import KVLayer

_I32_BYTES = 4


@dataclass(frozen=True)
class AttentionArguments:
    """The arguments of an attention function, in order."""

    q: Value  # f32 [m, heads, head_dim]
    kv: Value  # the layer's cache, slot 0 first
    out: Value  # [m, heads * head_dim]
    positions: Value  # i32 [m]
    row_slots: Value  # i32 [m]
    m: Value
    thread: Value
    threads: Value
    deal: Value
    scratch: Value

    @property
    def team(self) -> Team:
        """The threads."""
        return Team(self.thread, self.threads, self.deal)


@dataclass(frozen=True)
class Unit:
    """Rows `start <= row < end` times `heads` query heads from `first_head` on.

    Attributes:
        head: the kv head in the cache.
        lowest: first visible position of any row.
        highest: the last one.
        skip: positions between this unit's keys and those that its thread probably reads next.
    """

    start: Value
    end: Value
    first_head: Value
    heads: Value
    lanes: Value
    head: CachedHead
    lowest: Value
    highest: Value
    skip: Value


@dataclass(frozen=True)
class Units:
    """Cuts the rows and heads of a call into units.

    Attributes:
        rows: rows of a unit, at most.
        window: positions a row sees, itself included; `None` for all.
    """

    b: Builder
    a: AttentionArguments
    kv: KVLayer
    heads: int
    window: int | None
    rows: int

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv.kv_heads

    def each(self, body: Callable[[Unit], None]) -> None:
        """Count the tiles of rows, then run `body` for the units that this thread takes."""
        b = self.b
        tiles = self._each_tile(lambda _tile, _start, _end: None)
        splits = self.head_splits(b.mul(tiles, self.kv.kv_heads))
        units_a_tile = b.mul(splits, self.kv.kv_heads)
        turns = Turns(b, self.a.team)

        def tile_units(tile: Value, start: Value, end: Value) -> None:
            def unit(u: Value) -> None:
                index = b.add(b.mul(tile, units_a_tile), u)
                turns.when_own(index, lambda: self._unit(start, end, u, splits, body))

            b.loop(0, units_a_tile, body=unit)

        self._each_tile(tile_units)
        turns.end(b.mul(tiles, units_a_tile))

    def each_lane(self, unit: Unit, body: Callable[[Value, Value, Value], None]) -> None:
        """Run `body(lane, row, head)` for the lanes of a unit, `head` being a query head."""
        b = self.b

        def row_lanes(row: Value) -> None:
            first = b.mul(b.sub(row, unit.start), unit.heads)
            b.loop(
                0,
                unit.heads,
                body=lambda i: body(b.add(first, i), row, b.add(unit.first_head, i)),
            )

        b.loop(unit.start, unit.end, body=row_lanes)

    def oldest(self, position: Value) -> Value:
        """The first position that a row at `position` sees."""
        b = self.b
        return b.idx(0) if self.window is None else b.max(b.sub(position, self.window - 1), 0)

    def position(self, row: Value) -> Value:
        """A row's position, as `i64`."""
        return self._row_value(self.a.positions, row)

    def _each_tile(self, body: Callable[[Value, Value, Value], None]) -> Value:
        """Run `body(tile, start, end)` for runs of rows of one slot; returns how many there are."""
        b, a = self.b, self.a

        def tile(start: Value, index: Value) -> list[Value]:
            limit = b.min(b.add(start, self.rows), a.m)
            slot = self._row_value(a.row_slots, start)

            def same(end: Value) -> Value:
                inside = b.cmp("slt", end, limit)
                # Past the limit there may be no row: look at the first one instead.
                row = b.select(inside, end, start)
                return b.bit_and(inside, b.cmp("eq", self._row_value(a.row_slots, row), slot))

            (end,) = b.loop_while([b.add(start, 1)], same, lambda end: [b.add(end, 1)])
            body(index, start, end)
            return [end, b.add(index, 1)]

        zero = b.idx(0)
        return b.loop_while([zero, zero], lambda start, _: b.cmp("slt", start, a.m), tile)[1]

    def head_splits(self, shared_units: Value) -> Value:
        """Runs the heads of a group are cut into, so that few units still feed all threads."""
        b, group = self.b, self.group
        if group == 1:
            return b.idx(1)
        units = b.max(shared_units, 1)
        wanted = b.min(b.div(b.add(self.a.threads, b.sub(units, 1)), units), group)
        # Runs of equal length may be fewer than wanted.
        run = b.div(b.add(b.sub(wanted, 1), group), wanted)
        return b.div(b.add(b.sub(run, 1), group), run)

    def _unit(
        self, start: Value, end: Value, u: Value, splits: Value, body: Callable[[Unit], None]
    ) -> None:
        b = self.b

        def extend(row: Value, low: Value, high: Value) -> list[Value]:
            position = self.position(row)
            return [b.min(low, self.oldest(position)), b.max(high, position)]

        own = self.position(start)
        lowest, highest = b.loop(start, end, 1, [own, own], body=extend)
        body(self.unit(start, end, u, splits, lowest, highest, skip=b.idx(0)))

    def unit(
        self,
        start: Value,
        end: Value,
        u: Value,
        splits: Value,
        lowest: Value,
        highest: Value,
        *,
        skip: Value,
    ) -> Unit:
        """The `u`-th run of heads of some rows of one slot: all runs of a kv head, then the next's.

        Args:
            splits: runs of a kv head, from `head_splits`.
            lowest, highest: the positions it sees.
            skip: see `Unit`.
        """
        b, group = self.b, self.group
        kv_head, split = b.div(u, splits), b.rem(u, splits)
        run = b.div(b.add(b.sub(splits, 1), group), splits)
        first = b.mul(split, run)
        heads = b.sub(b.min(b.add(first, run), group), first)
        slot = self._row_value(self.a.row_slots, start)
        region = b.at(self.a.kv, b.mul(slot, self.kv.slot_stride))
        return Unit(
            start=start,
            end=end,
            first_head=b.add(b.mul(kv_head, group), first),
            heads=heads,
            lanes=b.mul(b.sub(end, start), heads),
            head=CachedHead.of(b, self.kv, region, kv_head),
            lowest=lowest,
            highest=highest,
            skip=skip,
        )

    def _row_value(self, array: Value, row: Value) -> Value:
        """An element of `positions` or `row_slots`, as `i64`."""
        b = self.b
        return b.as_i64(b.load(b.at(array, b.mul(row, _I32_BYTES)), b.i32, _I32_BYTES))
