"""What attention code is specialised for: panels that fit the registers, and its scratch."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.kv_layout import KVLayer
from infc.backends.cpu.kernels.rows import F32_BYTES

VECTOR_BYTES = LANES * F32_BYTES
_MANY_SUMS = 24
"""Of 16 lanes: with so many a panel has room for two vectors of keys."""
_NARROWEST_WIDE_PANEL = 6  # that of 16 registers of 32 bytes


def accumulators(isa: Isa) -> int:
    """16-lane sums that fit the registers beside the operands: three quarters of them."""
    return isa.vector_registers * isa.vector_bytes // VECTOR_BYTES * 3 // 4


def widest_panel(isa: Isa) -> int:
    """Lanes of the widest panel: beside two vectors of keys where the registers allow it."""
    return accumulators(isa) // 2 if accumulators(isa) >= _MANY_SUMS else accumulators(isa)


def stages(isa: Isa, lanes: int) -> bool:
    """Whether units of so many lanes copy a block to read it in f32.

    Where registers are few, a panel of the widest size saves little over two of four and two, and
    one panel alone does not pay for the copy: six and eight lanes take 0.73 to 0.85 of the time
    without it (own measurement, Zen 3, heads of 128 and 64 elements).
    """
    widest = widest_panel(isa)
    return lanes >= (widest if accumulators(isa) >= _MANY_SUMS else 2 * widest)


def panel_sizes(isa: Isa, lanes: int) -> list[int]:
    """Lanes computed together, largest first; 1 is among them, so any number can be made up."""
    sizes = {size for size in (4, 2, 1) if size <= lanes}
    return sorted(sizes | ({widest_panel(isa)} if stages(isa, lanes) else set()), reverse=True)


@dataclass(frozen=True)
class Shape:
    """What the block's code is specialised for.

    Attributes:
        kv: the layer's cache.
        window: positions a row sees, itself included; `None` for all.
        softcap: cap of the scores, or `None`.
        key_block: keys of a block.
        lanes: lanes a unit has at most.
    """

    kv: KVLayer
    window: int | None
    softcap: float | None
    key_block: int
    lanes: int

    @property
    def vectors(self) -> int:
        """Vectors of a head's elements, the last one perhaps in part."""
        return -(-self.kv.head_dim // LANES)

    @property
    def dim_bytes(self) -> int:
        """Bytes of a head's elements in the scratch."""
        return self.vectors * VECTOR_BYTES

    @property
    def score_bytes(self) -> int:
        """Bytes of a lane's scores of one block."""
        return self.key_block * F32_BYTES

    @property
    def staged_stride(self) -> int:
        """Bytes between the staged values of two vectors: a line more than they need.

        Without it the same key's vectors would fall into one set of the cache.
        """
        return self.key_block * VECTOR_BYTES + VECTOR_BYTES


@dataclass(frozen=True)
class Scratch:
    """Byte offsets in a thread's scratch."""

    queries: int  # f32 [lane, vectors, 16]: scaled
    sums: int  # f32 [lane, vectors, 16]: weighted values so far
    scores: int  # f32 [lane, key_block]: scores, then softmax terms
    maxima: int  # f32 [lane, 16]: largest score so far, in every element
    weights: int  # f32 [lane, 16]: terms so far, their sum still to be taken over the elements
    corrections: int  # f32 [lane, 16]: 2 ** (old maximum - new maximum), in every element
    positions: int  # i32 [lane, 16]: the row's position, in every element
    staged_keys: int  # f32 [key_block / 16, head_dim, 16]
    staged_values: int  # f32 [vectors, key_block + 1, 16]
    total: int

    @classmethod
    def plan(cls, shape: Shape) -> Scratch:
        """Lay the parts out one after the other; all are whole vectors."""
        is_wide = shape.lanes >= _NARROWEST_WIDE_PANEL
        keys = shape.key_block * shape.kv.head_dim * F32_BYTES if is_wide else 0
        values = shape.vectors * shape.staged_stride if is_wide else 0
        a_lane = (shape.dim_bytes, shape.dim_bytes, shape.score_bytes, *[VECTOR_BYTES] * 4)
        offsets = [0]
        for size in (*[shape.lanes * size for size in a_lane], keys, values):
            offsets.append(offsets[-1] + size)
        return cls(*offsets)
