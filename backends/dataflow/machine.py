"""The machine that programs are made for and simulated on: every figure, checked once.

Counts are of one chip unless a name says otherwise. A core's number is `(chip * rows + row) * cols
+ col`; inside its chip it is `row * cols + col`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from infc.backends.dataflow.facts import FactReader
from infc.backends.dataflow.part_facts import (
    check_sram,
    read_dma,
    read_far,
    read_links,
    read_matrix,
    read_vector,
)
from infc.backends.dataflow.parts import (
    FORMAT_BITS,
    LINE_BYTES,
    MESSAGE_BYTES,
    ChipLinks,
    ChipTopology,
    Dma,
    FarMemory,
    Format,
    MatrixUnit,
    Mesh,
    VectorClass,
    VectorUnit,
)
from infc.target.schema import Target

__all__ = [
    "FORMAT_BITS",
    "LINE_BYTES",
    "MESSAGE_BYTES",
    "ChipLinks",
    "ChipTopology",
    "Dma",
    "FarMemory",
    "Format",
    "Machine",
    "MatrixUnit",
    "Mesh",
    "VectorClass",
    "VectorUnit",
]

_MOST_CORES_A_SIDE: Final = 255
_MOST_CHIPS: Final = 65_535


@dataclass(frozen=True)
class Machine:
    """Chips of `rows` x `cols` cores.

    Attributes:
        name: of the target.
        chips: all of them.
        rows, cols: cores of a chip.
        clock_hz: of all cores.
        issue_cycles: of every instruction, before its unit begins.
        sram_bytes: of a core.
        sram_bytes_per_s: of a core, all its units together.
        matrix, vector, dma: of a core.
        far: tiers of far memory, the fastest first; none where a chip has only SRAM.
        mesh: inside a chip.
        links: between chips; None where there is one.
        launch_s: from the host's call to the first instruction, and from the last back to it.
        chip_watts: of a chip at full load, where the target has it.
    """

    name: str
    chips: int
    rows: int
    cols: int
    clock_hz: float
    issue_cycles: int
    sram_bytes: int
    sram_bytes_per_s: float
    matrix: MatrixUnit
    vector: VectorUnit
    dma: Dma
    far: tuple[FarMemory, ...]
    mesh: Mesh
    links: ChipLinks | None
    launch_s: float
    chip_watts: float | None

    @property
    def chip_cores(self) -> int:
        """Cores of a chip."""
        return self.rows * self.cols

    @property
    def cores(self) -> int:
        """Cores of all chips."""
        return self.chips * self.chip_cores

    @property
    def gateway(self) -> int:
        """Number inside its chip of the core that the ports to other chips are at: the first of
        the middle row."""
        return self.rows // 2 * self.cols

    def near_channel(self, tier: int, core: int) -> int:
        """The channel of a tier that is nearest to a core (by its number inside its chip).

        A channel serves the cores of consecutive numbers, and is at the first of them.
        """
        return core * self.far[tier].channels // self.chip_cores

    def channel_core(self, tier: int, channel: int) -> int:
        """Number inside its chip of the core that a channel is at."""
        return channel * self.chip_cores // self.far[tier].channels

    @classmethod
    def of(cls, target: Target) -> Self:
        """Read and check a target.

        Raises:
            UserError: facts are missing, of the wrong type or contradict each other (INF3002); all
                are listed.
        """
        facts = FactReader(target)
        rows = facts.whole("grid_rows", most=_MOST_CORES_A_SIDE)
        cols = facts.whole("grid_cols", most=_MOST_CORES_A_SIDE)
        clock_hz = facts.number("clock_mhz") * 1e6
        if target.count > _MOST_CHIPS:
            facts.problem(f"expected at most {_MOST_CHIPS} chips, got {target.count}", "count")
        sram = facts.memory("sram")
        check_sram(facts, sram, rows * cols)
        machine = cls(
            name=target.name,
            chips=target.count,
            rows=rows,
            cols=cols,
            clock_hz=clock_hz,
            issue_cycles=facts.whole("issue_cycles"),
            sram_bytes=sram.size_bytes if sram else LINE_BYTES,
            sram_bytes_per_s=sram.bandwidth_bytes_per_s if sram else 1.0,
            matrix=read_matrix(facts, rows * cols, clock_hz),
            vector=read_vector(facts, rows * cols, clock_hz),
            dma=read_dma(facts),
            far=read_far(facts, rows * cols),
            mesh=Mesh(
                facts.whole("mesh_bytes_per_cycle") * clock_hz,
                facts.whole("mesh_hop_cycles") / clock_hz,
            ),
            links=read_links(facts),
            launch_s=facts.number("call_ns") * 1e-9,
            chip_watts=target.power_watts,
        )
        facts.check()
        return machine
