"""Where a block of keys finds its operands: in the cache, or in a copy in f32 made once a block.

Both give the same numbers, so it does not show in the result which one a panel of lanes reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.attention_shape import VECTOR_BYTES, Scratch, Shape
from infc.backends.cpu.kernels.kv_elements import (
    emit_key_scales,
    emit_load_group,
    emit_load_scales,
    group_bytes,
    scale_groups,
)
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.backends.cpu.kernels.rows import F32_BYTES
from infc.ir.kv_storage import KV_KEY_GROUP, SCALE_BYTES

LINE_BYTES = 64


@dataclass(frozen=True)
class CachedHead:
    """One kv head of one slot's region of a layer.

    Attributes:
        keys: its keys; its values are `v_offset` further on.
        key_scales, value_scales: its scales, where the dtype has them.
    """

    keys: Value
    key_scales: Value | None
    value_scales: Value | None

    @staticmethod
    def of(b: Builder, kv: KVLayer, region: Value, head: Value) -> CachedHead:
        """The head `head` of a region."""

        def place(offset: int, head_bytes: int) -> Value:
            return b.at(b.at(region, offset), b.mul(head, head_bytes))

        if not kv.scaled:
            return CachedHead(place(0, kv.head_bytes), None, None)
        return CachedHead(
            place(0, kv.head_bytes),
            place(kv.key_scales_offset, kv.head_key_scale_bytes),
            place(kv.value_scales_offset, kv.head_value_scale_bytes),
        )


@dataclass(frozen=True)
class Block:
    """One block of keys, seen by `lanes` lanes.

    Attributes:
        head: the kv head in the cache.
        lanes: lanes of the unit.
        first_strip: absolute position of the block's first key, over 16.
        visible: keys any lane may see, counted from the first one.
        strips: strips that hold them.
        ahead: strips from here to the block that this thread probably reads next.
    """

    head: CachedHead
    lanes: Value
    first_strip: Value
    visible: Value
    strips: Value
    ahead: Value


@dataclass(frozen=True)
class KeyStrip:
    """The keys of 16 positions, staged or in the cache; scales only where they are still due."""

    at: Value
    scales: Value | None
    staged: bool


class Operands:
    """Emits reads of a block's keys and values, and their copy."""

    def __init__(self, b: Builder, shape: Shape, scratch: Value) -> None:
        self.b, self.shape, self.base = b, shape, scratch
        self.parts = Scratch.plan(shape)
        self.vector = b.vec(LANES, b.f32)

    # ---- places ----------------------------------------------------------------------------

    def _ring_strip(self, block: Block, strip: Value) -> Value:
        """The place of a strip of the block in the ring."""
        return self.b.rem(self.b.add(block.first_strip, strip), self.shape.kv.strips)

    def cached_strip(self, block: Block, strip: Value) -> Value:
        """The keys of a strip of the block; its values are `v_offset` further on."""
        b = self.b
        place = self._ring_strip(block, strip)
        return b.at(block.head.keys, b.mul(place, self.shape.kv.strip_bytes))

    def key_strip(self, block: Block, strip: Value, *, staged: bool) -> KeyStrip:
        """The keys of a strip; those of an f32 cache are never copied."""
        b, kv = self.b, self.shape.kv
        if staged and kv.dtype != "f32":
            at = b.add(b.mul(strip, kv.head_dim * VECTOR_BYTES), self.parts.staged_keys)
            return KeyStrip(b.at(self.base, at), None, True)
        scales = None
        if block.head.key_scales is not None:
            at = b.mul(self._ring_strip(block, strip), kv.strip_scale_bytes)
            scales = b.at(block.head.key_scales, at)
        return KeyStrip(self.cached_strip(block, strip), scales, False)

    # ---- reads -----------------------------------------------------------------------------

    def each_element(
        self,
        strips: Sequence[KeyStrip],
        step: int,
        carried: Sequence[Value],
        body: Callable[..., Sequence[Value]],
    ) -> Sequence[Value]:
        """`carried = body(d, scales, *carried)` for each `step` elements `d` of a key.

        `scales` has the scales of those elements for each strip; it is empty where there are none.
        """
        b, head_dim = self.b, self.shape.kv.head_dim
        if strips[0].scales is None:
            return b.loop(0, head_dim, step, carried, body=lambda d, *c: body(d, [], *c))
        for start, stop in scale_groups(self.shape.kv):
            width = min(KV_KEY_GROUP, stop - start)

            def group(first: Value, *sums: Value, width: int = width) -> Sequence[Value]:
                index = b.div(first, KV_KEY_GROUP)
                scales = [
                    emit_key_scales(b, strip.scales, index)
                    for strip in strips
                    if strip.scales is not None
                ]
                end = b.add(first, width)
                return b.loop(first, end, step, sums, body=lambda d, *c: body(d, scales, *c))

            carried = b.loop(start, stop, width, carried, body=group)
        return carried

    def load_key(self, strip: KeyStrip, d: Value, first: int, scale: Value | None) -> list[Value]:
        """Element `d + first` of a strip's keys; with the others of its group, where it has some.

        Args:
            scale: of those elements, where they still have one.
        """
        b, kv = self.b, self.shape.kv
        if strip.staged:
            at = b.at(strip.at, b.mul(d, VECTOR_BYTES))
            return [self.load_f32(b.at(at, first * VECTOR_BYTES))]
        at = b.at(strip.at, b.mul(d, STRIP * kv.element_bytes))
        group = emit_load_group(b, kv, b.at(at, first // kv.pack * group_bytes(kv)))
        return group if scale is None else [b.fmul(x, scale) for x in group]

    def load_f32(self, pointer: Value) -> Value:
        """Sixteen numbers of the scratch."""
        return self.b.load(pointer, self.vector, F32_BYTES)

    def value_scales(self, block: Block, strip: Value) -> Value | None:
        """The scales of the values of a strip, where the dtype has them."""
        b = self.b
        if block.head.value_scales is None:
            return None
        at = b.mul(self._ring_strip(block, strip), STRIP * SCALE_BYTES)
        return emit_load_scales(b, b.at(block.head.value_scales, at))

    # ---- the copy --------------------------------------------------------------------------

    def stage(self, block: Block) -> None:
        """Copy the block's keys and values to the scratch as f32, values without their scales."""
        b = self.b

        def strip(index: Value) -> None:
            if self.shape.kv.dtype != "f32":
                self._stage_keys(block, index)
            self._stage_values(block, index)

        b.loop(0, block.strips, body=strip)

    def _stage_keys(self, block: Block, index: Value) -> None:
        b, pack = self.b, self.shape.kv.pack
        source = self.key_strip(block, index, staged=False)
        staged = self.key_strip(block, index, staged=True).at

        def elements(d: Value, scales: Sequence[Value]) -> list[Value]:
            for i, x in enumerate(self.load_key(source, d, 0, next(iter(scales), None))):
                b.store(x, b.at(staged, b.mul(b.add(d, i), VECTOR_BYTES)), F32_BYTES)
            return []

        self.each_element([source], pack, [], elements)

    def _stage_values(self, block: Block, index: Value) -> None:
        b, shape, kv = self.b, self.shape, self.shape.kv
        values = b.at(self.cached_strip(block, index), kv.v_offset)
        first = b.mul(index, STRIP)

        def positions(j: Value) -> None:
            row = b.at(values, b.mul(j, kv.head_dim * kv.element_bytes))
            to = b.at(self.base, b.mul(b.add(first, j), VECTOR_BYTES))
            for v in range(shape.vectors):
                group = emit_load_group(b, kv, b.at(row, v * group_bytes(kv)))
                at = self.parts.staged_values + v * shape.staged_stride
                for i, x in enumerate(group):
                    b.store(x, b.at(to, at + i * VECTOR_BYTES), F32_BYTES)

        # Of a pair the second one may not be there yet: it is copied, but never multiplied.
        b.loop(0, b.min(b.sub(block.visible, first), STRIP), kv.pack, body=positions)
