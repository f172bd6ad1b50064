"""The weights of a warp in a stage of a tile, as operands of matrix instructions."""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import WORK_OFFSET
from infc.backends.cuda.kernels.tile_mapping import STEP_BLOCKS, Stage, TileMapping
from infc.backends.cuda.kernels.weights import BlockReader
from infc.passes.codegen.panels import PANEL_ROWS


def stage_address(b: GpuBuilder, stage: Stage, slot: Value) -> Value:
    """Where the stage of a slot lies in shared memory."""
    return b.shared_memory(b.add(b.mul(slot, stage.size_bytes), WORK_OFFSET))


def next_slot(b: GpuBuilder, slot: Value, mapping: TileMapping) -> Value:
    """The slot behind `slot`; the first one comes behind the last."""
    return b.select(b.cmp("eq", slot, mapping.stages - 1), b.idx(0), b.add(slot, 1))


class WarpWeights:
    """Reads the panels of a warp.

    Args:
        warp: i32, of the eight that multiply.

    Attributes:
        warps: that have different weights.
        panels: of each segment that the warp has.
        first_panel: i32, the first of them in the tile.
    """

    def __init__(self, b: GpuBuilder, mapping: TileMapping, stage: Stage, warp: Value) -> None:
        self._b, self._stage = b, stage
        self._readers = [BlockReader(b, layout) for layout in stage.layouts]
        self.warps = mapping.features // mapping.warp_features
        self.panels = mapping.warp_features // PANEL_ROWS // len(stage.layouts)
        self.first_panel = b.mul(b.rem(warp, self.warps), self.panels)

    def read(
        self, stage: Value, block: int, multipliers: Sequence[Value]
    ) -> list[list[list[list[Value]]]]:
        """bf16 weights [segment][panel][step][4 i32] of block 0 or 1 of each panel."""
        b = self._b
        made = []
        for segment, (layout, reader) in enumerate(
            zip(self._stage.layouts, self._readers, strict=True)
        ):
            part_bytes = STEP_BLOCKS * layout.block_bytes
            start = b.at(stage, b.mul(self.first_panel, part_bytes))
            offset = self._stage.weights[segment] + block * layout.block_bytes
            made.append(
                [
                    reader.read(start, offset + panel * part_bytes).weights(multipliers[segment])
                    for panel in range(self.panels)
                ]
            )
        return made
