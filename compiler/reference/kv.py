"""The reference's KV cache: the logical form, kept as plain arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infc.ir.kv_storage import load_kv, store_kv
from infc.ir.types import KVType
from infc.target.runnable import KVBlock

F32 = NDArray[np.float32]


class LayerCache:
    """One layer: keys and values `[slot, position, kv_head, head_dim]`, rounded to its dtype.

    A layer with a window is a ring of `capacity` positions, as on real hardware, so that reads of
    overwritten positions show in tests.
    """

    def __init__(self, kind: KVType, slots: int) -> None:
        self.kind = kind
        shape = (slots, kind.capacity, kind.kv_heads, kind.head_dim)
        # What is stored is kept as the numbers it stands for; half precision saves the memory.
        dtype = np.float16 if kind.dtype == "f16" else np.float32
        self.keys = np.zeros(shape, dtype)
        self.values = np.zeros(shape, dtype)

    def append(self, slot: int, positions: NDArray[np.int32], keys: F32, values: F32) -> None:
        """Write rows `[n, kv_heads, head_dim]` at positions of a slot."""
        places = positions % self.kind.capacity
        stored = store_kv(keys, values, self.kind.dtype)
        self.keys[slot, places], self.values[slot, places] = load_kv(stored)

    def read(self, slot: int, start: int, stop: int) -> tuple[F32, F32]:
        """Keys and values of positions `[start, stop)` in float32."""
        places = np.arange(start, stop) % self.kind.capacity
        return (
            self.keys[slot, places].astype(np.float32),
            self.values[slot, places].astype(np.float32),
        )


class ReferenceKV:
    """The caches of all layers; implements `infc.target.runnable.KVCache`."""

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers

    def kv_export(self, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot, in the logical form."""
        starts, keys, values = [], [], []
        for layer in self.layers:
            first = max(start, stop - layer.kind.capacity)
            k, v = layer.read(slot, first, stop)
            starts.append(first)
            keys.append(k)
            values.append(v)
        return KVBlock(start, stop, tuple(starts), keys, values)

    def kv_import(self, slot: int, block: KVBlock) -> None:
        """Write a block into a slot, at the block's own positions."""
        for layer, first, keys, values in zip(
            self.layers, block.layer_starts, block.keys, block.values, strict=True
        ):
            kept = max(first, block.stop - layer.kind.capacity)
            layer.append(
                slot,
                np.arange(kept, block.stop, dtype=np.int32),
                keys[kept - first :],
                values[kept - first :],
            )

    def copy(self) -> ReferenceKV:
        """An independent copy."""
        copies = []
        for layer in self.layers:
            copied = LayerCache(layer.kind, layer.keys.shape[0])
            copied.keys[:], copied.values[:] = layer.keys, layer.values
            copies.append(copied)
        return ReferenceKV(copies)
