"""What attention on tile registers is specialised for, and its scratch."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.amx import CONFIG_BYTES, TILE_K, TILE_ROW_BYTES, TILE_ROWS
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

LANE_GROUP = 2 * TILE_ROWS
"""Lanes whose scores of a block are computed together."""
STEP_KEYS = TILE_K
"""Keys that one product of terms and values runs over; ranges of keys are whole steps."""

_F32_BYTES = 4
_BF16_BYTES = 2


@dataclass(frozen=True)
class TileShape:
    """What the code is specialised for.

    Attributes:
        heads: query heads, a multiple of the kv heads.
        kv: the layer's cache.
        window: positions a row sees, itself included; `None` for all.
        scale: factor of the scores.
        softcap: cap of the scores, or `None`.
        key_block: keys of a block, a multiple of 32.
        rows: rows of a unit, at most.
        out: `f32` or `abf16`.
    """

    heads: int
    kv: KVLayer
    window: int | None
    scale: float
    softcap: float | None
    key_block: int
    rows: int
    out: str

    def __post_init__(self) -> None:
        if self.key_block % STEP_KEYS:
            raise ValueError(f"key_block {self.key_block} is not a multiple of {STEP_KEYS}")

    @property
    def lanes(self) -> int:
        """Lanes a unit has room for: whole groups."""
        lanes = self.rows * (self.heads // self.kv.kv_heads)
        return -(-lanes // LANE_GROUP) * LANE_GROUP

    @property
    def steps(self) -> int:
        """Products along the elements of a key."""
        return abf16_padded(self.kv.head_dim) // TILE_K

    @property
    def vectors(self) -> int:
        """Vectors of 16 elements of a value, the last one perhaps in part."""
        return -(-self.kv.head_dim // STRIP)

    @property
    def query_bytes(self) -> int:
        """Bytes of a lane's query: bf16, with zeros up to whole steps."""
        return abf16_row_bytes(self.kv.head_dim)

    @property
    def sum_bytes(self) -> int:
        """Bytes of a lane's weighted values, an odd number of lines."""
        return (self.vectors | 1) * TILE_ROW_BYTES

    @property
    def score_bytes(self) -> int:
        """Bytes of a lane's scores of one block, an odd number of lines."""
        return self.key_block * _F32_BYTES + TILE_ROW_BYTES

    @property
    def key_strip_bytes(self) -> int:
        """Bytes of 16 staged keys."""
        return self.steps * TILE_K * STRIP * _BF16_BYTES

    @property
    def value_vector_bytes(self) -> int:
        """Bytes from 16 elements of a block's staged values to the next 16.

        A line more than they need: otherwise one position's vectors would fall into one set of the
        cache.
        """
        return self.key_block * STRIP * _BF16_BYTES + TILE_ROW_BYTES


@dataclass(frozen=True)
class TileScratch:
    """Byte offsets in a thread's scratch; all parts begin on a line.

    Beside the lanes of a unit there is a group more: the home of groups that see one block only.
    """

    config: int  # the tile configuration
    queries: int  # bf16 [lane, steps * 32]: scaled
    sums: int  # f32 [lane, vectors, 16]: weighted values so far
    weights: int  # f32 [lane, 16]: terms so far, their sum still to be taken over the elements
    maxima: int  # f32 [lane]: no less than the largest score so far minus 1/2, an integer
    positions: int  # i32 [lane]: the row's position
    corrections: int  # f32 [lane of a group]: 2 ** (old maximum - new maximum)
    scores: int  # f32 [lane of a group, key_block]: scores, then bf16 softmax terms
    keys: int  # bf16 [key_block / 16, steps * 16, 16, 2]
    values: int  # bf16 [vectors, key_block / 2 + 1, 16, 2]
    total: int

    @classmethod
    def plan(cls, shape: TileShape) -> TileScratch:
        """Lay the parts out one after the other."""
        lanes = shape.lanes + LANE_GROUP
        sizes = (
            CONFIG_BYTES,
            lanes * shape.query_bytes,
            lanes * shape.sum_bytes,
            lanes * STRIP * _F32_BYTES,
            lanes * _F32_BYTES,
            lanes * _F32_BYTES,
            LANE_GROUP * _F32_BYTES,
            LANE_GROUP * shape.score_bytes,
            shape.key_block // STRIP * shape.key_strip_bytes,
            shape.vectors * shape.value_vector_bytes,
        )
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        return cls(*offsets)
