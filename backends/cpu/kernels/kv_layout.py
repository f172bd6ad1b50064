"""The KV cache as the kernels want it, and its logical form.

`[layer][slot]` regions; in a region the keys of all kv heads, then the values, then (`int8` only)
the scales of the keys and of the values. `P` is `pack`, 2 for `bf16` and else 1:

- keys: `[kv_head][capacity / 16][head_dim / P][16][P]`. The 16 positions of a strip are the lanes
  of a vector, so that scores need no sum over lanes;
- values: `[kv_head][capacity / P][head_dim][P]`;
- scales of keys: bf16 `[kv_head][capacity / 16][ceil(head_dim / 32)][16]`, one for 32 elements;
- scales of values: bf16 `[kv_head][capacity]`.

With `P = 2` two elements that a sum runs over share 32 bits: two of a key, two positions of a
value. Widening takes one instruction (a shift or a mask), and a strip of keys, or the values of 32
positions, is a matrix operand of AMX and of `vdpbf16ps` as it lies.

A layer is a ring: position `p` lives at `p % capacity`. What a kernel appended or
`import_positions` wrote follows `infc.ir.kv_storage`; other places may hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.ir.kv_storage import (
    KV_DTYPES,
    KV_KEY_GROUP,
    SCALE_BYTES,
    StoredKV,
    load_kv,
    store_kv,
)

STRIP = 16
"""Positions interleaved in the lanes of one vector of keys."""

_ALIGN_BYTES = 64
_NUMPY: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


@dataclass(frozen=True)
class KVLayer:
    """The cache of one layer: one region a slot, `slot_stride` bytes apart.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head, even and at least 8.
        capacity: positions a slot holds, a multiple of 16.
        dtype: `f32`, `f16`, `bf16` or `int8`.
    """

    kv_heads: int
    head_dim: int
    capacity: int
    dtype: str

    def __post_init__(self) -> None:
        if self.capacity <= 0 or self.capacity % STRIP:
            raise ValueError(f"capacity {self.capacity} is not a positive multiple of {STRIP}")
        if self.head_dim < 8 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is not even and at least 8")
        if self.dtype not in KV_DTYPES:
            raise ValueError(f"dtype {self.dtype} is not one of {', '.join(KV_DTYPES)}")

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return KV_DTYPES[self.dtype]

    @property
    def pack(self) -> int:
        """Elements of a key, or positions of a value, that lie side by side in a lane."""
        return 2 if self.dtype == "bf16" else 1

    @property
    def scaled(self) -> bool:
        """Whether elements are codes that scales belong to."""
        return self.dtype == "int8"

    @property
    def key_groups(self) -> int:
        """Scales of a key."""
        return -(-self.head_dim // KV_KEY_GROUP)

    @property
    def strips(self) -> int:
        """Strips of 16 positions in the ring."""
        return self.capacity // STRIP

    @property
    def strip_bytes(self) -> int:
        """Bytes of one strip of keys (and of the values of as many positions) of one head."""
        return self.head_dim * STRIP * self.element_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one head."""
        return self.capacity * self.head_dim * self.element_bytes

    @property
    def v_offset(self) -> int:
        """Byte offset of the values in a region."""
        return self.kv_heads * self.head_bytes

    @property
    def key_scales_offset(self) -> int:
        """Byte offset of the scales of the keys in a region."""
        # Where a head is no whole number of vectors the kernels read past its last row and ignore
        # what they read; a vector's worth of slack keeps that inside the region.
        slack = _ALIGN_BYTES if self.head_dim % STRIP else 0
        return 2 * self.v_offset + slack

    @property
    def strip_scale_bytes(self) -> int:
        """Bytes of the scales of one strip of keys."""
        return self.key_groups * STRIP * SCALE_BYTES

    @property
    def head_key_scale_bytes(self) -> int:
        """Bytes of the scales of one head's keys."""
        return self.strips * self.strip_scale_bytes

    @property
    def value_scales_offset(self) -> int:
        """Byte offset of the scales of the values in a region."""
        return self.key_scales_offset + self.kv_heads * self.head_key_scale_bytes

    @property
    def head_value_scale_bytes(self) -> int:
        """Bytes of the scales of one head's values."""
        return self.capacity * SCALE_BYTES

    @property
    def slot_stride(self) -> int:
        """Bytes from one slot's region to the next."""
        if not self.scaled:
            return _aligned(self.key_scales_offset)
        return _aligned(self.value_scales_offset + self.kv_heads * self.head_value_scale_bytes)


@dataclass(frozen=True)
class _Views:
    """A region as arrays; the scales are halves of float32."""

    keys: NDArray[Any]  # [kv_heads, strips, head_dim / pack, 16, pack]
    values: NDArray[Any]  # [kv_heads, capacity / pack, head_dim, pack]
    key_scales: NDArray[np.uint16] | None  # [kv_heads, strips, key_groups, 16]
    value_scales: NDArray[np.uint16] | None  # [kv_heads, capacity]


@dataclass(frozen=True)
class KVLayout:
    """The cache of a model: the layers in order, each with all its slots.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head.
        capacity: positions a slot holds, for each layer.
        slots: sequences the cache holds.
        dtype: `f32`, `f16`, `bf16` or `int8`.
    """

    kv_heads: int
    head_dim: int
    capacity: tuple[int, ...]
    slots: int
    dtype: str

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.capacity)

    def layer(self, layer: int) -> KVLayer:
        """The shape of one layer's cache."""
        return KVLayer(self.kv_heads, self.head_dim, self.capacity[layer], self.dtype)

    @cached_property
    def layer_offsets(self) -> tuple[int, ...]:
        """Byte offset of each layer, and at the end the total."""
        offsets = [0]
        for layer in range(self.layers):
            offsets.append(offsets[-1] + self.slots * self.layer(layer).slot_stride)
        return tuple(offsets)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache; its start is aligned to 64 bytes."""
        return self.layer_offsets[-1]

    def offset(self, layer: int, slot: int) -> int:
        """Byte offset of the region of a layer and slot."""
        return self.layer_offsets[layer] + slot * self.layer(layer).slot_stride

    def _views(self, buffer: NDArray[np.uint8], layer: int, slot: int) -> _Views:
        kv, region = self.layer(layer), self.offset(layer, slot)
        kind, heads, pack = _NUMPY[self.dtype], self.kv_heads, kv.pack

        def view(offset: int, head_bytes: int, dtype: Any, *shape: int) -> NDArray[Any]:
            start = region + offset
            part: NDArray[Any] = buffer[start : start + heads * head_bytes].view(dtype)
            return part.reshape(heads, *shape)

        key_scales = value_scales = None
        if kv.scaled:
            shape = (kv.strips, kv.key_groups, STRIP)
            scale = np.uint16
            key_scales = view(kv.key_scales_offset, kv.head_key_scale_bytes, scale, *shape)
            size = kv.head_value_scale_bytes
            value_scales = view(kv.value_scales_offset, size, scale, kv.capacity)
        key_shape = (kv.strips, self.head_dim // pack, STRIP, pack)
        value_shape = (kv.capacity // pack, self.head_dim, pack)
        return _Views(
            view(0, kv.head_bytes, kind, *key_shape),
            view(kv.v_offset, kv.head_bytes, kind, *value_shape),
            key_scales,
            value_scales,
        )

    def export_positions(
        self, buffer: NDArray[np.uint8], layer: int, slot: int, positions: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read keys and values in the logical form.

        Args:
            buffer: `[total_bytes]`, the whole cache.
            layer: which layer.
            slot: which sequence.
            positions: `[n]` absolute positions; only those the ring still holds mean anything.

        Returns:
            Keys and values, each `[n, kv_heads, head_dim]`; storing them again gives the same bits.
        """
        views, pack = self._views(buffer, layer, slot), self.layer(layer).pack
        place = np.asarray(positions, dtype=np.int64) % self.capacity[layer]
        strip, lane = place // STRIP, place % STRIP
        # Two index arrays with slices between them: the positions come first.
        keys = views.keys[:, strip, :, lane].reshape(len(place), self.kv_heads, self.head_dim)
        values = views.values[:, place // pack, :, place % pack]
        key_scales = value_scales = None
        if views.key_scales is not None and views.value_scales is not None:
            key_scales = _widened(views.key_scales[:, strip, :, lane])
            value_scales = _widened(views.value_scales[:, place].T)
        return load_kv(StoredKV(keys, values, key_scales, value_scales))

    def import_positions(
        self,
        buffer: NDArray[np.uint8],
        layer: int,
        slot: int,
        positions: Sequence[int],
        k: NDArray[np.float32],
        v: NDArray[np.float32],
    ) -> None:
        """Write keys and values `[n, kv_heads, head_dim]`; the inverse of `export_positions`."""
        views, pack = self._views(buffer, layer, slot), self.layer(layer).pack
        place = np.asarray(positions, dtype=np.int64) % self.capacity[layer]
        strip, lane = place // STRIP, place % STRIP
        stored = store_kv(k, v, self.dtype)
        shape = (len(place), self.kv_heads, self.head_dim // pack, pack)
        views.keys[:, strip, :, lane] = stored.keys.reshape(shape)
        views.values[:, place // pack, :, place % pack] = stored.values
        if views.key_scales is not None and stored.key_scales is not None:
            views.key_scales[:, strip, :, lane] = _narrowed(stored.key_scales)
        if views.value_scales is not None and stored.value_scales is not None:
            views.value_scales[:, place] = _narrowed(stored.value_scales).T


def _widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    scales: NDArray[np.float32] = (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return scales


def _narrowed(scales: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of scales, which have no more bits than that."""
    bits = np.ascontiguousarray(scales).view(np.uint32)
    halves: NDArray[np.uint16] = (bits >> np.uint32(16)).astype(np.uint16)
    return halves


def kv_layout_of(signature: Mapping[str, Any]) -> KVLayout:
    """The cache of programs with this signature (see `infc.target.runnable`)."""
    return KVLayout(
        kv_heads=signature["kv_heads"],
        head_dim=signature["head_dim"],
        capacity=tuple(signature["capacity"]),
        slots=signature["max_slots"],
        dtype=signature["kv_dtype"],
    )
