"""Where a key or a value lies in the cache, for the kernels and for export and import.

One region a layer and slot. Keys are `[kv_head][capacity / 16][head_dim][16]`: the 16 positions of
a strip are the lanes of a vector, so that scores need no sum over lanes. Values are
`[kv_head][capacity][head_dim]`. A layer is a ring: position `p` lives at `p % capacity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIP = 16
"""Positions interleaved in the lanes of one vector of keys."""

_ALIGN_BYTES = 64
_DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES


@dataclass(frozen=True)
class KVLayer:
    """The cache of one layer: one region a slot, `slot_stride` bytes apart.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head, even and at least 8.
        capacity: positions a slot holds, a multiple of 16.
        dtype: `f32` or `f16`.
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
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype} is not one of {', '.join(_DTYPES)}")

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return _DTYPES[self.dtype].itemsize

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
    def slot_stride(self) -> int:
        """Bytes from one slot's region to the next.

        Where a head is no whole number of vectors the kernels read past its last row and ignore
        what they read; a vector's worth of slack keeps that inside the region.
        """
        slack = _ALIGN_BYTES if self.head_dim % STRIP else 0
        return _aligned(2 * self.v_offset + slack)


@dataclass(frozen=True)
class KVLayout:
    """The cache of a model: the layers in order, each with all its slots.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head.
        capacity: positions a slot holds, for each layer.
        slots: sequences the cache holds.
        dtype: `f32` or `f16`.
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

    def _views(self, buffer: NDArray[np.uint8], layer: int, slot: int) -> tuple[Any, Any]:
        shape = self.layer(layer)
        start, size = self.offset(layer, slot), shape.v_offset
        dtype = _DTYPES[self.dtype]
        keys = buffer[start : start + size].view(dtype)
        values = buffer[start + size : start + 2 * size].view(dtype)
        return (
            keys.reshape(self.kv_heads, shape.strips, self.head_dim, STRIP),
            values.reshape(self.kv_heads, shape.capacity, self.head_dim),
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
            Keys and values, each `[n, kv_heads, head_dim]`.
        """
        keys, values = self._views(buffer, layer, slot)
        place = np.asarray(positions, dtype=np.int64) % self.capacity[layer]
        k = keys[:, place // STRIP, :, place % STRIP]  # [n, kv_heads, head_dim]
        v = values[:, place, :].transpose(1, 0, 2)
        return k.astype(np.float32), v.astype(np.float32)

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
        keys, values = self._views(buffer, layer, slot)
        place = np.asarray(positions, dtype=np.int64) % self.capacity[layer]
        dtype = _DTYPES[self.dtype]
        keys[:, place // STRIP, :, place % STRIP] = k.astype(dtype)
        values[:, place, :] = v.astype(dtype).transpose(1, 0, 2)


def kv_layout_of(signature: Mapping[str, Any]) -> KVLayout:
    """The cache of programs with this signature (see `infc.target.runnable`)."""
    return KVLayout(
        kv_heads=signature["kv_heads"],
        head_dim=signature["head_dim"],
        capacity=tuple(signature["capacity"]),
        slots=signature["max_slots"],
        dtype=signature["kv_dtype"],
    )
