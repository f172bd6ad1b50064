"""How a tiled product runs: the sizes of its tiles, by matrix instruction."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.kernels.frame import WARPS, WORK_OFFSET
from infc.backends.cuda.kernels.packing import PANEL_ROWS, layout_named
from infc.backends.cuda.kernels.product_spec import ProductSpec

MMA, WARPGROUP = "mma", "warpgroup"
STEP_BLOCKS = 2
"""Blocks of a panel that a stage holds: 64 numbers of a row, a line of 128 bytes."""
LINE_BYTES = 128
STAGE_ALIGNMENT = 1024
"""The swizzled lines of a stage repeat after so many bytes."""
_SHARED_BYTES = {"sm_80": 163 * 1024}
_MOST_SHARED_BYTES = 227 * 1024
"""Shared memory that a block can have (CUDA C++ Programming Guide, compute capabilities)."""


@dataclass(frozen=True)
class TileMapping:
    """How the kernel runs.

    Attributes:
        unit: `mma` (all architectures) or `warpgroup` (sm_90a; an entry of its own).
        features: rows of weights of a block's tile; of a gated product half of them are gates.
        tokens: rows of activations of a block's tile.
        warp_features: rows of weights of a warp; the tile's tokens are split among the warps that
            are left. Of `warpgroup` 64 x 64: each group of four warps has all tokens.
        stages: how many parts of 64 numbers along k there is room for.
    """

    unit: str
    features: int
    tokens: int
    warp_features: int
    stages: int

    @property
    def warp_tokens(self) -> int:
        """Tokens of a warp."""
        return self.tokens * self.features // (self.warp_features * WARPS)
