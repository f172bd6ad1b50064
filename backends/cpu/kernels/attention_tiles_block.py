"""One block of keys of an attention unit on tile registers.

    for each 32 lanes:
        queries           = scaled and rounded, when the lanes see their first block
        scores[32, keys]  = queries @ keys     32 x 32 at a time, in four tiles
        terms             = softmax
        sums[32, head_dim] = sums * correction + terms @ values
        output            = sums / weights, when they have seen their last block

Only steps of 32 keys that one of these lanes can see are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infc.backends.cpu.codegen.amx import (
    TILE_K,
    TILE_ROW_BYTES,
    TILE_ROWS,
    emit_tile_dot_bf16,
    emit_tile_load,
    emit_tile_store,
    emit_tile_zero,
)
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_tiles_shape import (
    LANE_GROUP,
    STEP_KEYS,
    TileScratch,
    TileShape,
)
from infc.backends.cpu.kernels.attention_tiles_softmax import LaneGroup, Range, Softmax
from infc.backends.cpu.kernels.attention_tiles_stage import Staging, TileBlock
from infc.backends.cpu.kernels.kv_layout import STRIP
from infc.backends.cpu.kernels.rows import F32_BYTES, load_f32, store_f32

_LEFT, _RIGHT = 4, 6
"""The first tile registers of lanes and of keys or values; the sums are in those before."""
_STEP_BYTES = TILE_K // 2 * TILE_ROW_BYTES
"""Bytes of a right operand that one product reads."""
_TILE_SUM_BYTES = STRIP * F32_BYTES


@dataclass(frozen=True)
class LaneState:
    """What is done for a lane before its first block of keys and behind its last one.

    That way its numbers are in the nearest cache. What `begin` reads and `finish` writes is asked
    for some time before, by `await_begin` and `await_finish`. All are given the lane; the first two
    also its place in the scratch.
    """

    begin: Callable[[Value, Value], None]
    finish: Callable[[Value, Value], None]
    await_begin: Callable[[Value], None]
    await_finish: Callable[[Value], None]


class TileBlockEmitter:
    """Emits the work on one block of keys."""

    def __init__(self, b: Builder, shape: TileShape, scratch: Value) -> None:
        self.b, self.shape, self.base = b, shape, scratch
        self.parts = TileScratch.plan(shape)
        self.staging = Staging(b, shape, scratch)
        self.softmax = Softmax(b, shape, scratch)
        self.line = b.idx(TILE_ROW_BYTES)
        self.query_stride = b.idx(shape.query_bytes)
        self.score_stride = b.idx(shape.score_bytes)
        self.sum_stride = b.idx(shape.sum_bytes)

    def emit(self, block: TileBlock, lanes: Value, state: LaneState) -> None:
        """Add a block of keys to the state of all lanes."""
        b = self.b
        self.staging.emit(block)

        def group(tall: int, first: Value) -> None:
            self._group(block, first, lanes, tall, state)

        # What is left of 16 lanes or fewer needs only half of the tiles.
        pairs = b.mul(b.div(b.add(lanes, TILE_ROWS - 1), LANE_GROUP), LANE_GROUP)
        b.loop(0, pairs, LANE_GROUP, body=lambda first: group(2, first))
        b.when(b.cmp("slt", pairs, lanes), lambda: group(1, pairs))

    def _group(
        self, block: TileBlock, group: Value, all_lanes: Value, tall: int, state: LaneState
    ) -> None:
        b = self.b
        lanes = b.min(b.sub(all_lanes, group), LANE_GROUP)
        keys = self._range(block, group, tall)
        # Groups that see one block only share a place, which stays in the nearest caches.
        alone = b.bit_and(keys.is_first, keys.is_last)
        home = b.select(alone, b.idx(self.shape.lanes), group)

        def each(body: Callable[[Value, Value], None]) -> None:
            b.loop(0, lanes, body=lambda index: body(b.add(group, index), b.add(home, index)))

        def prefetch(lane: Value) -> None:
            next_lane = b.add(lane, LANE_GROUP)
            begins = b.bit_and(keys.is_first, b.cmp("slt", next_lane, all_lanes))
            b.when(begins, lambda: state.await_begin(next_lane))
            b.when(keys.is_last, lambda: state.await_finish(lane))

        def some() -> None:
            b.when(keys.is_first, lambda: each(state.begin))
            self._scores(keys, home, tall)
            changed = self.softmax.emit(keys, LaneGroup(group, home, lanes, tall), prefetch)
            corrects = b.bit_and(changed, b.bit_xor(keys.is_first, b.const(1, b.i1)))
            b.when(corrects, lambda: self._correct(home, lanes))
            self._weigh(keys, home, tall)
            b.when(keys.is_last, lambda: each(state.finish))

        b.when(b.cmp("slt", keys.start, keys.stop), some)

    def _range(self, block: TileBlock, group: Value, tall: int) -> Range:
        """What the group looks at."""
        b, window = self.b, self.shape.window
        at = b.at(self.base, b.add(b.mul(group, F32_BYTES), self.parts.positions))
        positions = [
            b.load(b.at(at, i * LANES * F32_BYTES), b.vec(LANES, b.i32), F32_BYTES)
            for i in range(tall)
        ]
        low = high = positions[0]
        for other in positions[1:]:
            low, high = b.min(low, other), b.max(high, other)
        earliest, latest = b.as_i64(b.reduce("minsi", low)), b.as_i64(b.reduce("maxsi", high))

        def steps(position: Value | int, rounding: int = 0) -> Value:
            """Steps of the block before a position."""
            keys = b.max(b.sub(position, block.first), 0)
            return b.min(b.div(b.add(keys, rounding), STEP_KEYS), block.stop)

        stop = steps(b.add(latest, 1), STEP_KEYS - 1)
        clear_stop = steps(b.add(earliest, 1))
        is_last = b.cmp("slt", b.sub(latest, block.first), self.shape.key_block)
        if window is None:
            zero = b.idx(0)
            is_first = b.cmp("eq", block.first, 0)
            return Range(block.first, zero, zero, clear_stop, stop, is_first, is_last)
        oldest = b.max(b.sub(earliest, window - 1), 0)
        is_first = b.cmp("sle", block.first, oldest)
        start = steps(oldest)
        clear_start = b.min(steps(b.sub(latest, window - 1), STEP_KEYS - 1), stop)
        clear_stop = b.max(clear_stop, clear_start)
        return Range(block.first, start, clear_start, clear_stop, stop, is_first, is_last)

    # ---- scores ----------------------------------------------------------------------------

    def _scores(self, keys: Range, home: Value, tall: int) -> None:
        """`scores[lane, key] = sum(query[lane, d] * key[d, key])`, summed over d in order."""
        b, shape, parts = self.b, self.shape, self.parts
        queries = b.at(self.base, b.add(b.mul(home, shape.query_bytes), parts.queries))
        scores = b.at(self.base, parts.scores)

        def step(index: Value) -> None:
            at = b.mul(index, 2 * shape.key_strip_bytes)
            staged = b.at(self.base, b.add(at, parts.keys))
            for tile in range(2 * tall):
                emit_tile_zero(b, tile)
            for k in range(shape.steps):
                lefts = [
                    b.at(queries, k * TILE_ROW_BYTES + r * TILE_ROWS * shape.query_bytes)
                    for r in range(tall)
                ]
                rights = [
                    b.at(staged, k * _STEP_BYTES + c * shape.key_strip_bytes) for c in range(2)
                ]
                self._multiply(lefts, self.query_stride, rights)
            to = b.at(scores, b.mul(index, 2 * _TILE_SUM_BYTES))
            for r in range(tall):
                for c in range(2):
                    at = b.at(to, r * TILE_ROWS * shape.score_bytes + c * _TILE_SUM_BYTES)
                    emit_tile_store(b, 2 * r + c, at, self.score_stride)

        b.loop(keys.start, keys.stop, body=step)

    def _multiply(self, lefts: list[Value], stride: Value, rights: list[Value]) -> None:
        """Add the products of one step to the sums; each operand is loaded just before its use."""
        b = self.b
        for c, right in enumerate(rights):
            emit_tile_load(b, _RIGHT + c, right, self.line)
            for r, left in enumerate(lefts):
                if c == 0:
                    emit_tile_load(b, _LEFT + r, left, stride)
                emit_tile_dot_bf16(b, 2 * r + c, _LEFT + r, _RIGHT + c)

    # ---- weighted values -------------------------------------------------------------------

    def _correct(self, home: Value, lanes: Value) -> None:
        """Multiply the sums of a group by its corrections."""
        b, shape, parts = self.b, self.shape, self.parts

        def lane(index: Value) -> None:
            at = b.at(self.base, b.add(b.mul(index, F32_BYTES), parts.corrections))
            correction = b.splat(b.load(at, b.f32, F32_BYTES))
            offset = b.mul(b.add(home, index), shape.sum_bytes)
            sums = b.at(self.base, b.add(offset, parts.sums))
            for v in range(shape.vectors):
                at_byte = v * _TILE_SUM_BYTES
                store_f32(b, b.fmul(load_f32(b, sums, at_byte), correction), sums, at_byte)

        b.loop(0, lanes, body=lane)

    def _weigh(self, keys: Range, home: Value, tall: int) -> None:
        """`sums[lane, d] += sum(term[lane, key] * value[key, d])`, summed over keys in order."""
        b, vectors = self.b, self.shape.vectors
        even = vectors // 2 * 2
        b.loop(0, even, 2, body=lambda vector: self._weigh_tiles(keys, home, vector, tall, 2))
        if even < vectors:
            self._weigh_tiles(keys, home, b.idx(even), tall, 1)

    def _weigh_tiles(self, keys: Range, home: Value, vector: Value, tall: int, wide: int) -> None:
        """The part of `_weigh` of one or two vectors of elements."""
        b, shape, parts = self.b, self.shape, self.parts
        offset = b.add(b.mul(home, shape.sum_bytes), b.mul(vector, _TILE_SUM_BYTES))
        sums = b.at(self.base, b.add(offset, parts.sums))
        places = [
            (2 * r + c, b.at(sums, r * TILE_ROWS * shape.sum_bytes + c * _TILE_SUM_BYTES))
            for r in range(tall)
            for c in range(wide)
        ]

        def load() -> None:
            for tile, place in places:
                emit_tile_load(b, tile, place, self.sum_stride)

        def clear() -> None:
            for tile, _ in places:
                emit_tile_zero(b, tile)

        b.when(keys.is_first, clear, load)
        terms = b.at(self.base, parts.scores)
        values = b.at(self.base, b.add(b.mul(vector, shape.value_vector_bytes), parts.values))

        def step(index: Value) -> None:
            left = b.at(terms, b.mul(index, TILE_ROW_BYTES))
            right = b.at(values, b.mul(index, _STEP_BYTES))
            lefts = [b.at(left, r * TILE_ROWS * shape.score_bytes) for r in range(tall)]
            rights = [b.at(right, c * shape.value_vector_bytes) for c in range(wide)]
            self._multiply(lefts, self.score_stride, rights)

        b.loop(keys.start, keys.stop, body=step)
        for tile, place in places:
            emit_tile_store(b, tile, place, self.sum_stride)
