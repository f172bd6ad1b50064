"""A block of keys and values as bf16 right operands of tile products.

Sixteen keys are `[dims / 2][16 keys][2]` with zeros up to a multiple of 32 elements; 16 elements of
the values are `[keys / 2][16 elements][2]`. Values outside the positions that any lane sees become
zeros, because what lies there may be no number and its weight 0 would not undo that; keys need no
such care, for their scores are masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.amx import TILE_ROW_BYTES
from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_operands import CachedHead
from infc.backends.cpu.kernels.attention_tiles_shape import (
    STEP_KEYS,
    TileScratch,
    TileShape,
)
from infc.backends.cpu.kernels.bf16_panels import emit_pairs
from infc.backends.cpu.kernels.kv_elements import (
    emit_key_scales,
    emit_load_group,
    group_bytes,
    scale_groups,
)
from infc.backends.cpu.kernels.kv_layout import STRIP
from infc.ir.kv_storage import KV_KEY_GROUP, SCALE_BYTES

_PAIRS_A_STRIP = STRIP // 2


@dataclass(frozen=True)
class TileBlock:
    """One block of keys of a unit.

    Attributes:
        head: the kv head in the cache.
        first: position of the first key.
        lowest: the first position any lane of the unit sees.
        highest: the last one.
        start: the first step of 32 keys that holds one of these, counted from `first`.
        stop: the step behind the last one.
    """

    head: CachedHead
    first: Value
    lowest: Value
    highest: Value
    start: Value
    stop: Value


class Staging:
    """Emits the conversion of a block."""

    def __init__(self, b: Builder, shape: TileShape, scratch: Value) -> None:
        self.b, self.shape, self.kv = b, shape, shape.kv
        self.base = scratch
        self.parts = TileScratch.plan(shape)
        self.words = b.vec(LANES, b.i32)

    def emit(self, block: TileBlock) -> None:
        """Convert what lanes of the unit can see, in whole steps."""
        b = self.b
        strips_a_step = STEP_KEYS // STRIP
        first_strip = b.div(block.first, STRIP)

        def strip(index: Value) -> None:
            place = b.rem(b.add(first_strip, index), self.kv.strips)
            self._stage_keys(block, index, place)
            self._stage_values(block, index, place)

        start, stop = (b.mul(step, strips_a_step) for step in (block.start, block.stop))
        b.loop(start, stop, body=strip)

    # ---- keys ------------------------------------------------------------------------------

    def _stage_keys(self, block: TileBlock, index: Value, place: Value) -> None:
        b, kv, shape = self.b, self.kv, self.shape
        source = b.at(block.head.keys, b.mul(place, kv.strip_bytes))
        target = b.at(self.base, b.add(b.mul(index, shape.key_strip_bytes), self.parts.keys))
        scales_at = None
        if block.head.key_scales is not None:
            scales_at = b.at(block.head.key_scales, b.mul(place, kv.strip_scale_bytes))
        for start, stop in scale_groups(kv):
            width = min(KV_KEY_GROUP, stop - start) if kv.scaled else stop - start

            def group(first: Value, width: int = width) -> None:
                scales = None
                if scales_at is not None:
                    scales = emit_key_scales(b, scales_at, b.div(first, KV_KEY_GROUP))

                def pair(d: Value) -> None:
                    x = self._key_pair(b.at(source, b.mul(d, STRIP * kv.element_bytes)), scales)
                    b.store(x, b.at(target, b.mul(d, TILE_ROW_BYTES // 2)), TILE_ROW_BYTES)

                b.loop(first, b.add(first, width), 2, body=pair)

            b.loop(start, stop, width, body=group)
        zero = b.const(0, self.words)
        for at in range(kv.head_dim // 2 * TILE_ROW_BYTES, shape.key_strip_bytes, TILE_ROW_BYTES):
            b.store(zero, b.at(target, at), TILE_ROW_BYTES)

    def _key_pair(self, pointer: Value, scales: Value | None) -> Value:
        """Two elements of 16 keys: `i32[16]`, two bf16 in each."""
        b, kv = self.b, self.kv
        if kv.dtype == "bf16":
            return b.load(pointer, self.words, kv.element_bytes)
        pair = [emit_load_group(b, kv, b.at(pointer, i * group_bytes(kv)))[0] for i in range(2)]
        if scales is not None:
            pair = [b.fmul(x, scales) for x in pair]
        return emit_pairs(b, *pair)

    # ---- values ----------------------------------------------------------------------------

    def _stage_values(self, block: TileBlock, index: Value, place: Value) -> None:
        b, kv, shape = self.b, self.kv, self.shape
        source = b.at(b.at(block.head.keys, b.mul(place, kv.strip_bytes)), kv.v_offset)
        scales_at = None
        if block.head.value_scales is not None:
            scales_at = b.at(block.head.value_scales, b.mul(place, STRIP * SCALE_BYTES))
        row_bytes = kv.head_dim * kv.element_bytes
        first = b.add(block.first, b.mul(index, STRIP))
        staged = b.mul(b.mul(index, _PAIRS_A_STRIP), TILE_ROW_BYTES)
        target = b.at(self.base, b.add(staged, self.parts.values))

        def pair(j: Value) -> None:
            row = b.at(source, b.mul(j, 2 * row_bytes))
            seen = self._seen(block, b.add(first, b.mul(j, 2)))
            scales = None
            if scales_at is not None:
                at = b.at(scales_at, b.mul(j, 2 * SCALE_BYTES))
                scales = [self._scale(b.at(at, i * SCALE_BYTES)) for i in range(2)]
            to = b.at(target, b.mul(j, TILE_ROW_BYTES))
            for v in range(shape.vectors):
                x = self._value_pair(b.at(row, v * group_bytes(kv)), scales)
                at = v * shape.value_vector_bytes
                b.store(b.bit_and(x, seen), b.at(to, at), TILE_ROW_BYTES)

        b.loop(0, _PAIRS_A_STRIP, body=pair)

    def _seen(self, block: TileBlock, position: Value) -> Value:
        """Masks of the two halves of a word for a position and the next one, in every lane."""
        b = self.b
        word = b.const(0, b.i32)
        for i, half in enumerate((0xFFFF, -0x10000)):
            p = b.add(position, i)
            inside = b.bit_and(b.cmp("sge", p, block.lowest), b.cmp("sle", p, block.highest))
            mask = b.select(inside, b.const(half, b.i32), b.const(0, b.i32))
            word = b.bit_or(word, mask)
        return b.splat(word)

    def _scale(self, pointer: Value) -> Value:
        b = self.b
        wide = b.shl(b.ext_u(b.load(pointer, b.i16, SCALE_BYTES), b.i32), 16)
        return b.splat(b.bitcast(wide, b.f32))

    def _value_pair(self, pointer: Value, scales: list[Value] | None) -> Value:
        """Sixteen elements of two positions: `i32[16]`, two bf16 in each."""
        b, kv = self.b, self.kv
        if kv.dtype == "bf16":
            return b.load(pointer, self.words, kv.element_bytes)
        row_bytes = kv.head_dim * kv.element_bytes
        pair = [emit_load_group(b, kv, b.at(pointer, i * row_bytes))[0] for i in range(2)]
        if scales is not None:
            pair = [b.fmul(x, scale) for x, scale in zip(pair, scales, strict=True)]
        return emit_pairs(b, *pair)
