"""The KV cache as the kernels want it, and its logical form.

`[layer]` regions, each of f16 or bf16 keys of all slots and then the values of all slots:

- keys: `[slot][kv_head][padded / 64][64][head_dim]`, so `[slot][kv_head][position][head_dim]`;
- values: `[slot][kv_head][padded / 64][head_dim][64]`: of each 64 positions the transpose.

A head's keys, or values, of 64 aligned positions (a *block*) are contiguous, `block_bytes` each, so
that one copy fetches them. Both are operands of matrix instructions as they lie: a row of keys is
numbers that a score sums over, a row of values is positions that the output sums over.

A layer is a ring: position `p` lies at place `p % padded`, where `padded` is its capacity rounded
up to whole blocks. The cache is zeroed when it is made: what was never written is finite. What a
kernel appended or `import_block` wrote follows `infc.ir.kv_storage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infc.ir.kv_storage import StoredKV, load_kv, store_kv
from infc.target.runnable import KVBlock

if TYPE_CHECKING:  # what runs a program needs no MLIR
    from infc.backends.cuda.codegen.builder import GpuBuilder, Value

BLOCK = 64
"""Positions whose keys, and whose values, lie together."""
ELEMENT_BYTES = 2
VALUE_STRIDE = BLOCK * ELEMENT_BYTES
"""Bytes from one element of a value to the next, within a block."""
_STEP = 16
"""Numbers that a matrix instruction sums over: heads are whole steps."""
_ALIGN_BYTES = 256
_NUMPY: dict[str, type[Any]] = {"f16": np.float16, "bf16": np.uint16}

Read = Callable[[int, int], NDArray[np.uint8]]
"""Bytes of the whole cache: `read(offset, size)`."""
Write = Callable[[int, NDArray[np.uint8]], None]
"""Puts bytes into the whole cache: `write(offset, bytes)`."""


@dataclass(frozen=True)
class KVLayer:
    """The cache of one layer, all slots.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head, a multiple of 16.
        capacity: positions a slot must hold.
        dtype: `f16` or `bf16`.
        slots: sequences.
    """

    kv_heads: int
    head_dim: int
    capacity: int
    dtype: str
    slots: int

    def __post_init__(self) -> None:
        if self.head_dim <= 0 or self.head_dim % _STEP:
            raise ValueError(f"head_dim {self.head_dim} is not a positive multiple of {_STEP}")
        if self.capacity <= 0:
            raise ValueError(f"capacity {self.capacity} is not positive")
        if self.dtype not in _NUMPY:
            raise ValueError(f"dtype {self.dtype} is not one of {', '.join(_NUMPY)}")

    @property
    def padded(self) -> int:
        """Places of the ring: a multiple of `BLOCK`."""
        return -(-self.capacity // BLOCK) * BLOCK

    @property
    def key_stride(self) -> int:
        """Bytes from the key of one place to that of the next."""
        return self.head_dim * ELEMENT_BYTES

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one head at 64 places."""
        return BLOCK * self.head_dim * ELEMENT_BYTES

    @property
    def head_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one head of one slot."""
        return self.padded * self.head_dim * ELEMENT_BYTES

    @property
    def values_offset(self) -> int:
        """Byte offset of the values in the layer, a multiple of `block_bytes`."""
        return self.slots * self.kv_heads * self.head_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of the layer, with room up to where the next may start."""
        return -(-2 * self.values_offset // _ALIGN_BYTES) * _ALIGN_BYTES

    # ---- addresses, as code ------------------------------------------------------------------

    def place(self, b: GpuBuilder, position: Value) -> Value:
        """Where in the ring a position (i32, not negative) lies, i32."""
        return b.rem(position, self.padded)

    def head_keys(self, b: GpuBuilder, cache: Value, slot: Value, head: Value) -> Value:
        """The keys of a head: place `p` is `p * key_stride` bytes on, a block of 64 places
        `block_bytes`, a multiple of 32.

        Args:
            cache: pointer to the layer.
            slot, head: i32.
        """
        row = b.add(b.mul(slot, self.kv_heads), head)
        return b.at(cache, b.mul(b.wide(row), self.head_bytes))

    def head_values(self, b: GpuBuilder, cache: Value, slot: Value, head: Value) -> Value:
        """The values of a head: a block of 64 places is `block_bytes`, in it element `e` of place
        `p` lies at `e * VALUE_STRIDE + p * ELEMENT_BYTES`."""
        return b.at(self.head_keys(b, cache, slot, head), self.values_offset)

    def key_at(self, b: GpuBuilder, keys: Value, place: Value) -> Value:
        """The key, or the block of keys that begins, at a place.

        Args:
            keys: what `head_keys` gave.
            place: i32 below `padded`.
        """
        return b.at(keys, b.mul(b.wide(place), self.key_stride))

    def value_at(self, b: GpuBuilder, values: Value, place: Value) -> Value:
        """Element 0 of the value, or the block of values that begins, at a place; further elements
        are `VALUE_STRIDE` bytes apart, further places of the block `ELEMENT_BYTES`."""
        block, inside = b.div(place, BLOCK), b.rem(place, BLOCK)
        start = b.mul(b.wide(block), self.block_bytes)
        return b.at(values, b.add(start, b.wide(b.mul(inside, ELEMENT_BYTES))))


@dataclass(frozen=True)
class KVLayout:
    """The cache of a model: the layers in order.

    Attributes:
        kv_heads: heads of keys and of values.
        head_dim: elements of a head.
        capacity: positions a slot holds, for each layer.
        slots: sequences the cache holds.
        dtype: `f16` or `bf16`.
    """

    kv_heads: int
    head_dim: int
    capacity: tuple[int, ...]
    slots: int
    dtype: str

    def layer(self, layer: int) -> KVLayer:
        """The shape of one layer's cache."""
        return KVLayer(self.kv_heads, self.head_dim, self.capacity[layer], self.dtype, self.slots)

    @cached_property
    def layer_offsets(self) -> tuple[int, ...]:
        """Byte offset of each layer, a multiple of 256, and at the end the total."""
        offsets = [0]
        for layer in range(len(self.capacity)):
            offsets.append(offsets[-1] + self.layer(layer).size_bytes)
        return tuple(offsets)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole cache; its start is aligned to 256 bytes."""
        return self.layer_offsets[-1]

    # ---- the logical form ----------------------------------------------------------------------

    def export_block(self, read: Read, slot: int, start: int, stop: int) -> KVBlock:
        """Positions `[start, stop)` of a slot in the logical form; storing them again gives the
        same bits. Only blocks that hold some of them are read."""
        starts, keys, values = [], [], []
        for layer, capacity in enumerate(self.capacity):
            first = max(start, stop - capacity)
            part = _Part.of(self, layer, slot, first, stop)
            held_keys, held_values = part.load(read)
            k, v = load_kv(StoredKV(part.keys(held_keys), part.values(held_values)))
            starts.append(first)
            keys.append(k)
            values.append(v)
        return KVBlock(start, stop, tuple(starts), keys, values)

    def import_block(self, read: Read, write: Write, slot: int, block: KVBlock) -> None:
        """Write a block into a slot at the block's own positions; what else lies in the blocks of
        64 that it touches stays."""
        for layer, capacity in enumerate(self.capacity):
            first = block.layer_starts[layer]
            kept = max(first, block.stop - capacity)
            k, v = block.keys[layer][kept - first :], block.values[layer][kept - first :]
            stored = store_kv(k, v, self.dtype)
            part = _Part.of(self, layer, slot, kept, block.stop)
            held_keys, held_values = part.load(read)
            part.store(write, held_keys, held_values, stored)


@dataclass(frozen=True)
class _Part:
    """Blocks of one layer and slot: `blocks` from `first_block` on hold the `places`."""

    kv: KVLayer
    layer_offset: int
    slot: int
    first_block: int
    blocks: int
    places: NDArray[np.int64]

    @staticmethod
    def of(layout: KVLayout, layer: int, slot: int, start: int, stop: int) -> _Part:
        kv = layout.layer(layer)
        places = np.arange(start, stop, dtype=np.int64) % kv.padded
        first, last = (int(places.min()), int(places.max())) if len(places) else (0, -1)
        first_block, end = first // BLOCK, -(-(last + 1) // BLOCK)
        offset = layout.layer_offsets[layer]
        return _Part(kv, offset, slot, first_block, end - first_block, places)

    def load(self, read: Read) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys `[kv_heads, blocks, 64, head_dim]`, values `[kv_heads, blocks, head_dim, 64]`."""
        kv, size = self.kv, self.blocks * self.kv.block_bytes
        raw = [[read(o, size) for o in offsets] if size else [] for offsets in self._offsets()]
        shapes = (BLOCK, kv.head_dim), (kv.head_dim, BLOCK)
        keys, values = (
            np.array(part, np.uint8)
            .reshape(-1)
            .view(_NUMPY[kv.dtype])
            .reshape(kv.kv_heads, self.blocks, *shape)
            for part, shape in zip(raw, shapes, strict=True)
        )
        return keys, values

    def _offsets(self) -> Sequence[Sequence[int]]:
        """Where the keys of each head lie, and the values."""
        kv = self.kv
        start = self.layer_offset + self.first_block * kv.block_bytes
        rows = range(self.slot * kv.kv_heads, (self.slot + 1) * kv.kv_heads)
        keys = [start + row * kv.head_bytes for row in rows]
        return keys, [offset + kv.values_offset for offset in keys]

    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.places // BLOCK - self.first_block, self.places % BLOCK

    def keys(self, held: NDArray[Any]) -> NDArray[Any]:
        """Keys of the places, `[n, kv_heads, head_dim]`."""
        block, inside = self._index()
        return held[:, block, inside].swapaxes(0, 1)

    def values(self, held: NDArray[Any]) -> NDArray[Any]:
        """Values of the places, `[n, kv_heads, head_dim]`."""
        block, inside = self._index()
        # Two index arrays with a slice between them: the places come first.
        return held[:, block, :, inside]

    def store(
        self, write: Write, keys: NDArray[Any], values: NDArray[Any], stored: StoredKV
    ) -> None:
        """Put the places' new numbers among what was loaded, and write that."""
        block, inside = self._index()
        keys[:, block, inside] = stored.keys.swapaxes(0, 1)
        values[:, block, :, inside] = stored.values
        if not self.blocks:
            return
        for offsets, held in zip(self._offsets(), (keys, values), strict=True):
            for offset, head in zip(offsets, held, strict=True):
                write(offset, np.ascontiguousarray(head).reshape(-1).view(np.uint8))


def kv_layout_of(signature: Mapping[str, Any]) -> KVLayout:
    """The cache of programs with this signature (see `infc.target.runnable`)."""
    return KVLayout(
        kv_heads=signature["kv_heads"],
        head_dim=signature["head_dim"],
        capacity=tuple(signature["capacity"]),
        slots=signature["max_slots"],
        dtype=signature["kv_dtype"],
    )
