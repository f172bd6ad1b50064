"""Causal attention over the cache: online softmax over blocks of keys anchored at fixed positions.

A work unit is some consecutive rows of one sequence and some query heads that share a kv head; each
pair of row and head is a *lane* of the unit. For every block of keys the unit computes the scores
of all lanes, their softmax terms, then adds the weighted values: two matrix products with the
block's keys and values in the nearest cache. (Milakov and Gimelshein, "Online normalizer
calculation for softmax"; Dao et al., "FlashAttention".)

The numbers of a row do not depend on the unit it is in: every sum runs over its keys in one order,
blocks begin at absolute multiples of `key_block`, and a block in which a row sees nothing leaves
its state exactly as it was (its terms are 0 and its correction is `2 ** 0 = 1`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.attention_block import LOG2_E, MASKED, BlockEmitter
from infc.backends.cpu.kernels.attention_operands import Block, CachedHead
from infc.backends.cpu.kernels.attention_shape import Scratch, Shape, widest_panel
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.backends.cpu.kernels.rows import F32_BYTES, for_each_vector, load_f32, store_f32


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of one layer class.

    Attributes:
        heads: query heads, a multiple of the kv heads.
        kv: the layer's cache, which also says kv heads, head_dim and capacity.
        window: a row sees this many positions, itself included; `None` for all.
        scale: factor of the scores.
        softcap: `c` of `c * tanh(score / c)`, or `None`.
        max_rows: rows in one call, at most.
    """

    heads: int
    kv: KVLayer
    window: int | None
    scale: float
    softcap: float | None
    max_rows: int

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv.kv_heads


@dataclass(frozen=True)
class AttentionMapping:
    """How the work is cut.

    Attributes:
        row_tile: lanes (rows times query heads) of a unit; it does not change the result.
        key_block: keys of a block, a multiple of 16; it is part of the order of summation.
    """

    row_tile: int
    key_block: int


def candidates(spec: AttentionSpec, isa: Isa) -> list[AttentionMapping]:
    """Mappings worth considering, the default first."""
    lanes = spec.max_rows * spec.group
    # Wider tiles share a staged block among more lanes; narrower ones balance short prompts better.
    panels = (4, 8, 2)
    tiles = [min(lanes, max(spec.group, count * widest_panel(isa))) for count in panels]
    return [
        AttentionMapping(tile, key_block)
        for key_block in (64, 128)
        for tile in dict.fromkeys(tiles)
    ]


def attention_scratch_bytes(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    """Bytes of scratch of one thread, aligned to 64 bytes."""
    return Scratch.plan(_shape(spec, mapping)).total


def _rows_a_tile(spec: AttentionSpec, mapping: AttentionMapping) -> int:
    return min(spec.max_rows, max(1, mapping.row_tile // spec.group))


def _shape(spec: AttentionSpec, mapping: AttentionMapping) -> Shape:
    if mapping.key_block % STRIP:
        raise ValueError(f"key_block {mapping.key_block} is not a multiple of {STRIP}")
    lanes = _rows_a_tile(spec, mapping) * spec.group
    return Shape(spec.kv, spec.window, spec.softcap, mapping.key_block, lanes)


@dataclass(frozen=True)
class _Arguments:
    q: Value  # f32 [m, heads, head_dim]
    kv: Value  # the layer's cache, slot 0 first
    out: Value  # f32 [m, heads, head_dim]
    positions: Value  # i32 [m]
    row_slots: Value  # i32 [m]
    m: Value
    thread: Value
    threads: Value
    scratch: Value


@dataclass(frozen=True)
class _Unit:
    """Rows `start <= row < end` times `heads` query heads from `first_head` on."""

    start: Value
    end: Value
    first_head: Value
    heads: Value
    lanes: Value
    head: CachedHead
    lowest: Value  # first visible position of any row
    highest: Value  # last one


def emit_attention(b: Builder, name: str, spec: AttentionSpec, mapping: AttentionMapping) -> None:
    """Define `@name(q, kv, out, positions, row_slots: ptr, m, thread, threads: i64, scratch: ptr)`.

    Row `r` at `positions[r]` of `row_slots[r]` attends to itself and what is before it, as far as
    the window goes; its key must have been appended. `q` and `out` are f32 `[m, heads, head_dim]`,
    `kv` is the layer's cache, `scratch` the calling thread's own.
    """
    arguments = [*[b.ptr] * 5, *[b.i64] * 3, b.ptr]
    with b.function(name, arguments) as values:
        _Attention(b, spec, mapping, _Arguments(*values)).emit()
        b.ret()


class _Attention:
    """Emits one attention function."""

    def __init__(
        self, b: Builder, spec: AttentionSpec, mapping: AttentionMapping, a: _Arguments
    ) -> None:
        self.b, self.spec, self.a = b, spec, a
        self.rows_a_tile = _rows_a_tile(spec, mapping)
        self.shape = _shape(spec, mapping)
        self.block = BlockEmitter(b, self.shape, a.scratch)
        self.parts = self.block.parts

    # ---- which work is whose ---------------------------------------------------------------

    def emit(self) -> None:
        """Count the tiles, then run the units that fall to this thread.

        Units are dealt back and forth (0 1 1 0 0 1 ...), because later rows see more keys.
        """
        b, a = self.b, self.a
        tiles = self._each_tile(lambda _tile, _start, _end: None)
        splits = self._head_splits(b.mul(tiles, self.spec.kv.kv_heads))
        units_a_tile = b.mul(splits, self.spec.kv.kv_heads)
        round_trip = b.mul(a.threads, 2)

        def tile_units(tile: Value, start: Value, end: Value) -> None:
            def unit(u: Value) -> None:
                turn = b.rem(b.add(b.mul(tile, units_a_tile), u), round_trip)
                owner = b.min(turn, b.sub(b.sub(round_trip, 1), turn))
                b.when(b.cmp("eq", owner, a.thread), lambda: self._run(start, end, u, splits))

            b.loop(0, units_a_tile, body=unit)

        self._each_tile(tile_units)

    def _each_tile(self, body: Callable[[Value, Value, Value], None]) -> Value:
        """Run `body(tile, start, end)` for runs of rows of one slot; returns how many there are."""
        b, a = self.b, self.a

        def tile(start: Value, index: Value) -> list[Value]:
            limit = b.min(b.add(start, self.rows_a_tile), a.m)
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

    def _head_splits(self, shared_units: Value) -> Value:
        """Parts the heads of a group are cut into, so that few rows still feed all threads."""
        b = self.b
        if self.spec.group == 1:
            return b.idx(1)
        units = b.max(shared_units, 1)
        wanted = b.div(b.add(self.a.threads, b.sub(units, 1)), units)
        return b.min(wanted, self.spec.group)

    def _run(self, start: Value, end: Value, u: Value, splits: Value) -> None:
        b, a, spec = self.b, self.a, self.spec
        kv_head, split = b.div(u, splits), b.rem(u, splits)
        heads_a_split = b.div(b.add(b.sub(splits, 1), spec.group), splits)
        first = b.mul(split, heads_a_split)
        heads = b.max(b.sub(b.min(b.add(first, heads_a_split), spec.group), first), 0)
        slot = self._row_value(a.row_slots, start)
        region = b.at(a.kv, b.mul(slot, spec.kv.slot_stride))

        def extend(row: Value, low: Value, high: Value) -> list[Value]:
            position = self._row_value(a.positions, row)
            oldest = 0 if spec.window is None else b.sub(position, spec.window - 1)
            return [b.min(low, oldest), b.max(high, position)]

        own = self._row_value(a.positions, start)
        lowest, highest = b.loop(start, end, 1, [own, own], body=extend)
        unit = _Unit(
            start=start,
            end=end,
            first_head=b.add(b.mul(kv_head, spec.group), first),
            heads=heads,
            lanes=b.mul(b.sub(end, start), heads),
            head=CachedHead.of(b, spec.kv, region, kv_head),
            lowest=b.max(lowest, 0),
            highest=highest,
        )
        b.when(b.cmp("sgt", heads, 0), lambda: self._unit(unit))

    def _row_value(self, array: Value, row: Value) -> Value:
        """An element of `positions` or `row_slots`, as `i64`."""
        return self.b.as_i64(self.b.load(self.b.at(array, self.b.mul(row, 4)), self.b.i32, 4))

    # ---- one unit --------------------------------------------------------------------------

    def _unit(self, unit: _Unit) -> None:
        b, keys_a_block = self.b, self.shape.key_block
        self._each_lane(unit, self._begin)

        def block(index: Value) -> None:
            first = b.mul(index, keys_a_block)
            visible = b.min(b.sub(b.add(unit.highest, 1), first), keys_a_block)
            strips = b.ceil_div(visible, STRIP)
            self.block.emit(Block(unit.head, unit.lanes, b.div(first, STRIP), visible, strips))

        last = b.div(unit.highest, keys_a_block)
        b.loop(b.div(unit.lowest, keys_a_block), b.add(last, 1), body=block)
        self._each_lane(unit, self._finish)

    def _each_lane(self, unit: _Unit, body: Callable[[Value, Value, Value], None]) -> None:
        """Run `body(lane, row, offset)`, `offset` being the head's place in `q` and `out`."""
        b, spec = self.b, self.spec

        def row_lanes(row: Value) -> None:
            def one(head: Value) -> None:
                lane = b.add(b.mul(b.sub(row, unit.start), unit.heads), head)
                index = b.add(b.mul(row, spec.heads), b.add(unit.first_head, head))
                body(lane, row, b.mul(index, spec.kv.head_dim * F32_BYTES))

            b.loop(0, unit.heads, body=one)

        b.loop(unit.start, unit.end, body=row_lanes)

    def _begin(self, lane: Value, row: Value, offset: Value) -> None:
        """Scale the query and clear the lane's state."""
        b, parts, block = self.b, self.parts, self.block
        query = block.part(parts.queries, lane, self.shape.dim_bytes)
        sums = block.part(parts.sums, lane, self.shape.dim_bytes)
        # Scores are in units of log2(e); with a cap the cap needs them as they are.
        factor = self.spec.scale * (LOG2_E if self.spec.softcap is None else 1.0)
        scale, zero = b.const(factor, block.vector), b.const(0.0, block.vector)
        source = b.at(self.a.q, offset)

        def copy(at: Value, lanes: int) -> None:
            store_f32(b, b.fmul(load_f32(b, source, at, lanes), scale), query, at)
            store_f32(b, zero, sums, at)

        for_each_vector(b, self.spec.kv.head_dim, copy)
        store_f32(b, b.const(MASKED, block.vector), block.part(parts.maxima, lane), 0)
        store_f32(b, zero, block.part(parts.weights, lane), 0)
        position = b.trunc_i(self._row_value(self.a.positions, row), b.i32)
        b.store(b.splat(position, LANES), block.part(parts.positions, lane), F32_BYTES)

    def _finish(self, lane: Value, _row: Value, offset: Value) -> None:
        """Divide by the sum of the terms and write the lane's output."""
        b, parts = self.b, self.parts
        total = b.reduce("add", load_f32(b, self.block.part(parts.weights, lane), 0))
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), total))
        sums = self.block.part(parts.sums, lane, self.shape.dim_bytes)
        out = b.at(self.a.out, offset)

        def divide(at: Value, lanes: int) -> None:
            store_f32(b, b.fmul(load_f32(b, sums, at), inverse), out, at, lanes)

        for_each_vector(b, self.spec.kv.head_dim, divide)
