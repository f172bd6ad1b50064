"""Causal attention of many rows on tile registers: products in bf16, softmax in f32.

The structure is that of `attention`: units of lanes, blocks of keys anchored at fixed positions,
online softmax. A block's keys and values become bf16 operands once a unit; then each 32 lanes
compute their scores, terms and weighted values. Queries (scaled), keys, terms and values are
rounded to bf16; sums, maxima and corrections are f32.

A row's bits do not depend on its unit: a tile product sums each element along its keys in order,
keys that a row does not see have the term 0, and a block in which it sees none leaves its state as
it was.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.amx import (
    TILE_K,
    TILE_ROW_BYTES,
    TILE_ROWS,
    TILES,
    emit_tile_config,
    emit_tile_release,
)
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_block import LOG2_E, MASKED
from infc.backends.cpu.kernels.attention_output import AttentionOutput
from infc.backends.cpu.kernels.attention_tiles_block import LaneState, TileBlockEmitter
from infc.backends.cpu.kernels.attention_tiles_shape import (
    LANE_GROUP,
    STEP_KEYS,
    TileScratch,
    TileShape,
)
from infc.backends.cpu.kernels.attention_tiles_stage import TileBlock
from infc.backends.cpu.kernels.attention_units import AttentionArguments, Unit, Units
from infc.backends.cpu.kernels.bf16_panels import emit_rounded
from infc.backends.cpu.kernels.rows import F32_BYTES, for_each_vector, load_f32, store_f32

_BF16_BYTES = 2
_LINE_BYTES = 64
_SECOND_CACHE = 2


def emit_tile_attention(b: Builder, shape: TileShape, arguments: AttentionArguments) -> None:
    """The body of an attention function; `out` is f32 or `abf16` rows `[m, heads * head_dim]`."""
    _TileAttention(b, shape, arguments).emit()


class _TileAttention:
    def __init__(self, b: Builder, shape: TileShape, a: AttentionArguments) -> None:
        self.b, self.shape, self.a = b, shape, a
        self.units = Units(b, a, shape.kv, shape.heads, shape.window, shape.rows)
        self.block = TileBlockEmitter(b, shape, a.scratch)
        self.parts = TileScratch.plan(shape)
        self.output = AttentionOutput(b, a.out, shape.out, shape.heads, shape.kv.head_dim)
        self.vector = b.vec(LANES, b.f32)

    def emit(self) -> None:
        self.units.each(self._unit)

    def _unit(self, unit: Unit) -> None:
        b, keys_a_block = self.b, self.shape.key_block
        emit_tile_config(b, b.at(self.a.scratch, self.parts.config), [TILE_ROWS] * TILES)
        self.units.each_lane(unit, lambda lane, row, _head: self._store_position(lane, row))
        self._fill_group(unit)
        state = LaneState(
            begin=lambda lane, home: self._begin(home, *self._row_and_head(unit, lane)),
            finish=lambda lane, home: self._finish(home, *self._row_and_head(unit, lane)),
            await_begin=lambda lane: self._await_begin(*self._row_and_head(unit, lane)),
            await_finish=lambda lane: self._await_finish(*self._row_and_head(unit, lane)),
        )

        def block(index: Value) -> None:
            first = b.mul(index, keys_a_block)
            start = b.div(b.max(b.sub(unit.lowest, first), 0), STEP_KEYS)
            visible = b.min(b.sub(b.add(unit.highest, 1), first), keys_a_block)
            stop = b.ceil_div(visible, STEP_KEYS)
            keys = TileBlock(unit.head, first, unit.lowest, unit.highest, start, stop)
            self.block.emit(keys, unit.lanes, state)

        last = b.div(unit.highest, keys_a_block)
        b.loop(b.div(unit.lowest, keys_a_block), b.add(last, 1), body=block)
        emit_tile_release(b)

    # ---- lanes -----------------------------------------------------------------------------

    def _part(self, part: int, lane: Value, lane_bytes: int) -> Value:
        """The place of a lane in a part of the scratch."""
        return self.b.at(self.a.scratch, self.b.add(self.b.mul(lane, lane_bytes), part))

    def _row_and_head(self, unit: Unit, lane: Value) -> tuple[Value, Value]:
        """The row and the query head of a lane."""
        b = self.b
        row = b.add(unit.start, b.div(lane, unit.heads))
        return row, b.add(unit.first_head, b.rem(lane, unit.heads))

    def _begin(self, home: Value, row: Value, head: Value) -> None:
        """Scale and round the query, clear the lane's state but for the weighted values."""
        b, parts, shape = self.b, self.parts, self.shape
        head_dim = shape.kv.head_dim
        source = self._query(row, head)
        query = self._part(parts.queries, home, shape.query_bytes)
        # Scores are in units of log2(e); with a cap the cap needs them as they are.
        scale = b.const(shape.scale * (LOG2_E if shape.softcap is None else 1.0), self.vector)
        zero = b.const(0.0, self.vector)
        for first in range(0, shape.steps * TILE_K, TILE_K):
            halves = []
            for start in (first, first + LANES):
                lanes = min(LANES, head_dim - start)
                x = zero
                if lanes > 0:
                    x = b.fmul(load_f32(b, source, start * F32_BYTES, lanes), scale)
                halves.append(x)
            b.store(emit_rounded(b, *halves), b.at(query, first * _BF16_BYTES), TILE_ROW_BYTES)
        store_f32(b, zero, self._part(parts.weights, home, LANES * F32_BYTES), 0)
        b.store(b.const(MASKED, b.f32), self._part(parts.maxima, home, F32_BYTES), F32_BYTES)

    def _await_begin(self, row: Value, head: Value) -> None:
        """Ask for the query."""
        b = self.b
        query = self._query(row, head)
        for at in range(0, self.shape.kv.head_dim * F32_BYTES, _LINE_BYTES):
            b.prefetch(b.at(query, at), _SECOND_CACHE)

    def _await_finish(self, row: Value, head: Value) -> None:
        """Ask for the room of the output."""
        b, shape = self.b, self.shape
        size = F32_BYTES if shape.out == "f32" else _BF16_BYTES
        out = self.output.place(row, head)
        for at in range(0, shape.kv.head_dim * size, _LINE_BYTES):
            b.prefetch_to_write(b.at(out, at))

    def _query(self, row: Value, head: Value) -> Value:
        """Where a lane's query begins."""
        b, shape = self.b, self.shape
        index = b.add(b.mul(row, shape.heads), head)
        return b.at(self.a.q, b.mul(index, shape.kv.head_dim * F32_BYTES))

    def _store_position(self, lane: Value, row: Value) -> None:
        b = self.b
        position = b.trunc_i(self.units.position(row), b.i32)
        b.store(position, self._part(self.parts.positions, lane, F32_BYTES), F32_BYTES)

    def _fill_group(self, unit: Unit) -> None:
        """Lanes that fill up the last group have a position as well, one that changes no range."""
        b = self.b
        whole = b.mul(b.ceil_div(unit.lanes, LANE_GROUP), LANE_GROUP)
        last = b.sub(unit.end, 1)
        b.loop(unit.lanes, whole, body=lambda lane: self._store_position(lane, last))

    def _finish(self, home: Value, row: Value, head: Value) -> None:
        """Divide by the sum of the terms and write the lane's output."""
        b, parts, shape = self.b, self.parts, self.shape
        weights = self._part(parts.weights, home, LANES * F32_BYTES)
        total = b.reduce("add", load_f32(b, weights, 0))
        inverse = b.splat(b.fdiv(b.const(1.0, b.f32), total))
        zero = b.const(0.0, self.vector)
        sums = self._part(parts.sums, home, shape.sum_bytes)
        place = self.output.place(row, head)

        def divide(at: Value, lanes: int) -> None:
            # Products that vanish leave a zero of either sign; the sum with 0 has one.
            x = b.fmul(b.fadd(load_f32(b, sums, at), zero), inverse)
            self.output.store(x, place, at, lanes)

        for_each_vector(b, shape.kv.head_dim, divide)
        self.output.close(place, head)
