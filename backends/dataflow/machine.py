"""The machine that programs are made for and simulated on: every figure, checked once.

Counts are of one chip unless a name says otherwise. A core's number is `(chip * rows + row) * cols
+ col`; inside its chip it is `row * cols + col`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isqrt
from types import MappingProxyType
from typing import Final, Literal, Self

from infc.backends.dataflow.facts import FactReader
from infc.target.schema import ComputeUnit, Memory, Target

Format = Literal["int8", "int4", "bf16", "f16"]
VectorClass = Literal["simple", "special", "reduction"]
ChipTopology = Literal["ring", "all-to-all", "mesh-2d"]

FORMAT_BITS: Final[Mapping[Format, int]] = MappingProxyType(
    {"int8": 8, "int4": 4, "bf16": 16, "f16": 16}
)
"""Bits of a weight's element by the format of a product."""
LINE_BYTES: Final = 64
"""Far memory is addressed in lines of this many bytes."""
MESSAGE_BYTES: Final = 16
"""What a posted semaphore is on the network."""
_PORTS: Final[Mapping[ChipTopology, int]] = MappingProxyType(
    {"ring": 2, "all-to-all": 1, "mesh-2d": 4}
)
_MOST_CORES_A_SIDE: Final = 255
_MOST_CHIPS: Final = 65_535
_TOLERANCE: Final = 0.05
"""Published peaks are rounded; what follows from cycles and clock may differ by this much."""


@dataclass(frozen=True)
class MatrixUnit:
    """Weights enter as a tile `[n, k]`, then rows of the other operand pass, one after the other.

    Attributes:
        m, n, k: the native tile: the most rows, columns and depth of one instruction.
        tile_cycles: of `m` rows against a whole tile of weights, by format; one that is missing
            has no instruction.
        weight_bytes_per_cycle: bytes of codes at which weights enter, while the rows of the
            instruction before pass.
        startup_cycles: of every instruction.
    """

    m: int
    n: int
    k: int
    tile_cycles: Mapping[Format, int]
    weight_bytes_per_cycle: int
    startup_cycles: int

    def cycles(self, form: Format, rows: int) -> int:
        """Of one instruction with so many rows: the rows or the weights, whichever takes longer.

        A tile that is not full in `n` or `k` takes as long as a full one. Raises KeyError.
        """
        passing = ceil(rows * self.tile_cycles[form] / self.m)
        entering = ceil(self.n * self.k * FORMAT_BITS[form] / 8 / self.weight_bytes_per_cycle)
        return self.startup_cycles + max(passing, entering)


@dataclass(frozen=True)
class VectorUnit:
    """`lanes` elements a step.

    Attributes:
        native: the most elements of one instruction.
        lanes: elements of a step.
        step_cycles: of a step by class: `simple` (add, multiply, compare, copy, convert, rotate),
            `special` (exp and what is built from it, reciprocals and roots) and `reduction` (sums,
            maxima, quantising, the best of a row).
        startup_cycles: of every instruction.
    """

    native: int
    lanes: int
    step_cycles: Mapping[VectorClass, int]
    startup_cycles: int

    def cycles(self, kind: VectorClass, elements: int) -> int:
        """Of one instruction on so many elements."""
        return self.startup_cycles + ceil(elements / self.lanes) * self.step_cycles[kind]


@dataclass(frozen=True)
class Dma:
    """What moves bytes in and out of a core's SRAM: one engine for `load`, one for `send`.

    Attributes:
        bytes_per_cycle: of one engine.
        outstanding: instructions of one engine that have begun and not ended, at most.
        startup_cycles: from the issue of an instruction to its first request.
        burst_bytes: a request is cut into pieces of this size, between which others get their turn.
    """

    bytes_per_cycle: int
    outstanding: int
    startup_cycles: int
    burst_bytes: int


@dataclass(frozen=True)
class FarMemory:
    """Memory outside the cores, in channels: channel = address // `channel_bytes`.

    Attributes:
        name: of the target's memory.
        channels: of a chip; they divide its cores.
        channel_bytes: size of a channel.
        channel_bytes_per_s: of a channel, reads and writes together.
        latency_s: from a request at the channel to its first byte.
    """

    name: str
    channels: int
    channel_bytes: int
    channel_bytes_per_s: float
    latency_s: float

    @property
    def size_bytes(self) -> int:
        """Of all channels of a chip."""
        return self.channels * self.channel_bytes

    @property
    def bytes_per_s(self) -> float:
        """Of all channels of a chip."""
        return self.channels * self.channel_bytes_per_s


@dataclass(frozen=True)
class Mesh:
    """Links between neighbouring cores of a chip, one in each direction.

    Attributes:
        link_bytes_per_s: of a link in its direction.
        hop_s: from one core to the next.
    """

    link_bytes_per_s: float
    hop_s: float


@dataclass(frozen=True)
class ChipLinks:
    """What joins chips. All ports of a chip are at its core `Machine.gateway`.

    Attributes:
        topology: `ring` (2 ports; the shorter way, upwards where both are as long), `all-to-all`
            (1 port into a switch, one hop) or `mesh-2d` (4 ports; `rows` x `cols` chips in
            row-major order, first along the row).
        bytes_per_s: of a chip in one direction, over all its ports.
        hop_s: from one chip to the next.
        rows, cols: of the grid of chips; of a ring and a switch 1 x chips.
    """

    topology: ChipTopology
    bytes_per_s: float
    hop_s: float
    rows: int
    cols: int

    @property
    def port_bytes_per_s(self) -> float:
        """Of one port in one direction."""
        return self.bytes_per_s / _PORTS[self.topology]


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
        _check_sram(facts, sram, rows * cols)
        machine = cls(
            name=target.name,
            chips=target.count,
            rows=rows,
            cols=cols,
            clock_hz=clock_hz,
            issue_cycles=facts.whole("issue_cycles"),
            sram_bytes=sram.size_bytes if sram else LINE_BYTES,
            sram_bytes_per_s=sram.bandwidth_bytes_per_s if sram else 1.0,
            matrix=_matrix(facts, rows * cols, clock_hz),
            vector=_vector(facts, rows * cols, clock_hz),
            dma=_dma(facts),
            far=_far(facts, rows * cols),
            mesh=Mesh(
                facts.whole("mesh_bytes_per_cycle") * clock_hz,
                facts.whole("mesh_hop_cycles") / clock_hz,
            ),
            links=_links(facts),
            launch_s=facts.number("call_ns") * 1e-9,
            chip_watts=target.power_watts,
        )
        facts.check()
        return machine


def _check_sram(facts: FactReader, sram: Memory | None, cores: int) -> None:
    if sram is None:
        return
    if sram.count != cores:
        facts.problem(
            f"expected the sram of each of {cores} cores, got {sram.count}", "memories.sram.count"
        )
    if sram.size_bytes % LINE_BYTES or sram.size_bytes >= 2**31:
        facts.problem(
            f"expected a multiple of {LINE_BYTES} bytes below 2 GiB a core, got {sram.size_bytes}",
            "memories.sram.size_bytes",
        )


def _matrix(facts: FactReader, cores: int, clock_hz: float) -> MatrixUnit:
    unit = facts.unit("matrix")
    weight_rate = facts.whole("matrix_weight_bytes_per_cycle")
    startup = facts.whole("matrix_startup_cycles", least=0)
    if unit is None:
        return MatrixUnit(1, 1, 1, MappingProxyType({}), weight_rate, startup)
    _check_count(facts, unit, cores)
    sizes = sorted(set(unit.tiles.values()))
    if len(sizes) != 1:
        facts.problem(
            "expected one native tile for all formats, got "
            + (", ".join("x".join(map(str, size)) for size in sizes) or "none"),
            "compute.matrix.tiles",
        )
    m, n, k = sizes[0] if sizes else (1, 1, 1)
    if k % 32:
        facts.problem(f"expected a depth that is a multiple of 32, got {k}", "compute.matrix.tiles")
    cycles: dict[Format, int] = {}
    for form in FORMAT_BITS:
        if form not in unit.tiles:
            continue
        path = f"compute.matrix.operations_per_s.{form}"
        if form not in unit.operations_per_s:
            facts.problem("expected operations of a format that has a tile, got none", path)
            continue
        cycles[form] = max(1, round(2 * m * n * k * clock_hz / unit.operations_per_s[form]))
        peak = 2 * m * n * k * clock_hz / cycles[form]
        _check_peak(facts, path, unit.operations_per_s[form], peak)
    if not cycles:
        facts.problem(
            f"expected a tile of one of {', '.join(FORMAT_BITS)}, got "
            + (", ".join(unit.tiles) or "none"),
            "compute.matrix.tiles",
        )
    return MatrixUnit(m, n, k, MappingProxyType(cycles), weight_rate, startup)


def _vector(facts: FactReader, cores: int, clock_hz: float) -> VectorUnit:
    unit = facts.unit("vector")
    kinds: tuple[VectorClass, ...] = ("simple", "special", "reduction")
    steps = {kind: facts.whole(f"vector_{kind}_cycles") for kind in kinds}
    native = facts.whole("vector_native_elements", least=32)
    startup = facts.whole("vector_startup_cycles", least=0)
    lanes = 1
    if unit is not None:
        _check_count(facts, unit, cores)
        lanes = unit.lanes.get("f32", 0)
        if lanes < 1:
            facts.problem("expected the lanes of f32, got none", "compute.vector.lanes")
        elif "f32" not in unit.operations_per_s:
            facts.problem(
                "expected the operations of f32, got none", "compute.vector.operations_per_s"
            )
        else:
            _check_peak(
                facts,
                "compute.vector.operations_per_s.f32",
                unit.operations_per_s["f32"],
                lanes * clock_hz / steps["simple"],
            )
    if native % 32:
        facts.problem(
            f"expected a multiple of 32, got {native}", "backend_facts.vector_native_elements"
        )
    return VectorUnit(native, max(lanes, 1), MappingProxyType(steps), startup)


def _check_count(facts: FactReader, unit: ComputeUnit, cores: int) -> None:
    if unit.count != cores:
        facts.problem(
            f"expected the {unit.name} unit of each of {cores} cores, got {unit.count}",
            f"compute.{unit.name}.count",
        )


def _check_peak(facts: FactReader, path: str, said: float, follows: float) -> None:
    if abs(said - follows) > _TOLERANCE * follows:
        facts.problem(
            f"expected about the {follows:.4g} that follow from whole cycles and the clock, "
            f"got {said:.4g}",
            path,
        )


def _dma(facts: FactReader) -> Dma:
    burst = facts.whole("dma_burst_bytes", least=LINE_BYTES)
    if burst % LINE_BYTES:
        facts.problem(
            f"expected a multiple of {LINE_BYTES}, got {burst}", "backend_facts.dma_burst_bytes"
        )
    return Dma(
        facts.whole("dma_bytes_per_cycle"),
        facts.whole("dma_outstanding"),
        facts.whole("dma_startup_cycles", least=0),
        burst,
    )


def _far(facts: FactReader, cores: int) -> tuple[FarMemory, ...]:
    """All memories but the SRAM, the fastest first."""
    tiers = []
    for memory in facts.target.memories:
        path = f"memories.{memory.name}"
        if memory.name == "sram":
            continue
        if cores % memory.count:
            facts.problem(
                f"expected channels that divide {cores} cores, got {memory.count}", f"{path}.count"
            )
        if memory.size_bytes % LINE_BYTES:
            facts.problem(
                f"expected channels of a multiple of {LINE_BYTES} bytes, got {memory.size_bytes}",
                f"{path}.size_bytes",
            )
        if memory.latency_ns is None:
            facts.problem("expected a latency, got none", f"{path}.latency_ns")
        tiers.append(
            FarMemory(
                memory.name,
                memory.count,
                memory.size_bytes,
                memory.bandwidth_bytes_per_s,
                (memory.latency_ns or 0.0) * 1e-9,
            )
        )
    if len(tiers) > 2:
        facts.problem(
            f"expected at most two memories besides the sram, got {len(tiers)}", "memories"
        )
    return tuple(sorted(tiers, key=lambda tier: -tier.bytes_per_s))


def _links(facts: FactReader) -> ChipLinks | None:
    target = facts.target
    link = target.link("chips")
    if link is None or target.count == 1:
        return None
    shape = (1, target.count)
    if link.topology == "mesh-2d":
        # As square as the number of chips allows.
        rows = next(r for r in range(isqrt(target.count), 0, -1) if target.count % r == 0)
        shape = (rows, target.count // rows)
    elif link.topology not in ("ring", "all-to-all"):
        facts.problem(
            f"expected one of {', '.join(_PORTS)}, got {link.topology}",
            f"links.{link.name}.topology",
        )
        return None
    return ChipLinks(
        link.topology, link.bandwidth_bytes_per_s, link.latency_ns * 1e-9, shape[0], shape[1]
    )
