"""Attention of many rows: how many rows blocks have, and where things lie in shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import WARP
from infc.backends.cuda.kernels.attention_spec import (
    F32_BYTES,
    TILE_ROWS,
    AttentionMapping,
    AttentionSpec,
)
from infc.backends.cuda.kernels.attention_stages import StageShape
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET

LANES_BYTES = WARP * F32_BYTES
"""A number of each lane of a warp."""
_HELD_HEAD_DIM = 64
"""Up to here queries stay in registers, and all keys of a stage are handled at once."""
_PAIRED_HEAD_DIM = 128
"""Up to here the sums of two tiles fit a warp's registers."""


def most_tiles(spec: AttentionSpec) -> int:
    """The most tiles that fit the registers: keys are then read for twice the rows."""
    return 2 if spec.kv.head_dim <= _PAIRED_HEAD_DIM else 1


@dataclass(frozen=True)
class TilesShape:
    """Sizes of an attention of many rows; places are bytes of the kernel's part of shared memory.

    Two buffers of stages come first; when keys have passed, states lie there and over the queries.
    """

    spec: AttentionSpec
    mapping: AttentionMapping

    @property
    def block_rows(self) -> int:
        """Pairs of a token and a head that a block has."""
        return self.row_warps * self.mapping.tiles * TILE_ROWS

    @property
    def row_warps(self) -> int:
        """Warps that have different rows."""
        return WARPS // self.mapping.streams

    @property
    def stages(self) -> StageShape:
        """Sizes of a stage."""
        return StageShape(self.spec, self.mapping.streams)

    @property
    def holds_queries(self) -> bool:
        """Whether queries stay in registers."""
        return self.spec.kv.head_dim <= _HELD_HEAD_DIM

    @property
    def query_bytes(self) -> int:
        """Queries of the rows of a warp."""
        if self.holds_queries:
            return 0
        return self.mapping.tiles * self.spec.pieces * 2 * FRAGMENT_BYTES

    @property
    def note_bytes(self) -> int:
        """What a lane notes of its rows."""
        return 3 * F32_BYTES * 2 * self.mapping.tiles

    @property
    def state_bytes(self) -> int:
        """What a warp knows of its rows."""
        return (2 * 2 + self.spec.columns * 4) * self.mapping.tiles * LANES_BYTES

    @property
    def queries(self) -> int:
        """Where queries begin."""
        return 2 * self.stages.buffer_bytes

    @property
    def notes(self) -> int:
        """Where notes begin."""
        states = WARPS * self.state_bytes if self.mapping.streams > 1 else 0
        return max(self.queries + self.row_warps * self.query_bytes, states)

    @property
    def work_bytes(self) -> int:
        """Shared memory."""
        return self.notes + THREADS * self.note_bytes

    def fits(self, shared_bytes: int) -> bool:
        """Whether a block that may have so much shared memory can do it."""
        return self.stages.fits and WORK_OFFSET + self.work_bytes <= shared_bytes
