"""What an attention computes, how its work is cut, and the constants of its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import Value
from infc.backends.cuda.kernels.kv_layout import KVLayer

LOG2_E = math.log2(math.e)
MASKED = -1e30
"""The largest score of a row that saw nothing: finite, so that `MASKED - MASKED` is a number."""
TILE_ROWS = 16
"""Rows (a token and one of the heads that share a kv head) of a tile in calls of many rows."""
PART_ROWS = 8
"""Rows of a tile in calls of few rows: heads of one token."""
STEP_KEYS = 32
"""Keys whose values a lane holds in 16 bytes: 8 for each lane of a quad."""
PIECE = 32
"""Elements of a key that a quad holds in 16 bytes each; the last piece may have 16."""
F32_BYTES = 4


@dataclass(frozen=True)
class AttentionSpec:
    """The attention of one layer class.

    Attributes:
        heads: query heads, a multiple of the kv heads.
        kv: the layer's cache.
        window: a row sees this many positions, itself included; `None` for all.
        scale: factor of the scores.
        softcap: `c` of `c * tanh(score / c)`, or `None`.
        max_rows: rows in one call, at most.
        out: form of the output rows `[heads * head_dim]`: `f32` or `abf16`.
    """

    heads: int
    kv: KVLayer
    window: int | None
    scale: float
    softcap: float | None
    max_rows: int
    out: str = "f32"

    def __post_init__(self) -> None:
        if self.heads % self.kv.kv_heads:
            raise ValueError(f"{self.heads} heads do not share {self.kv.kv_heads} kv heads evenly")
        if self.kv.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim {self.kv.head_dim} is larger than {MAX_HEAD_DIM}")

    @property
    def group(self) -> int:
        """Query heads that share a kv head."""
        return self.heads // self.kv.kv_heads

    @property
    def pieces(self) -> int:
        """Pieces of a key."""
        return -(-self.kv.head_dim // PIECE)

    @property
    def columns(self) -> int:
        """Columns of 8 elements of the output."""
        return self.kv.head_dim // 8

    def piece_bytes(self, piece: int) -> int:
        """Bytes that a lane holds of a piece: 16, or 8 where it has half the elements."""
        return 16 if self.kv.head_dim - piece * PIECE >= PIECE else 8

    @property
    def query_factor(self) -> float:
        """What queries are multiplied by: scores are then exponents of 2, or with a cap those of
        `e**(2 score / cap)`, which `tanh` is made of."""
        if self.softcap is None:
            return self.scale * LOG2_E
        return self.scale * 2 * LOG2_E / self.softcap


MAX_HEAD_DIM = 256
"""Beyond it the sums of a tile do not fit the registers."""


@dataclass(frozen=True)
class AttentionMapping:
    """How the work is cut.

    Attributes:
        tiles: 1 or 2: the keys of a block of rows are shared by its warps, each of which has so
            many tiles of 16 rows (calls of many rows). 0: a block has one row and some of its keys.
        parts: where `tiles` is 0, the most parts that the keys of a row are divided into; it shows
            in the order of summation.
        streams: warps of a block that have the same rows and take keys in turns, 1, 2, 4 or 8; it
            shows in the order of summation. The other warps have other rows; where `tiles` is 0
            they have none, those with keys have more copies under way and parts can be smaller.
    """

    tiles: int
    parts: int = 1
    streams: int = 1


@dataclass(frozen=True)
class Arguments:
    """The arguments of an attention function, in order."""

    q: Value
    cache: Value
    positions: Value
    row_slots: Value
    out: Value
    partials: Value
    arrivals: Value
    rows: Value
    cta: Value
    ctas: Value
