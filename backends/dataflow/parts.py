"""What a core and the ways between cores are: figures in cycles, bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import Final, Literal

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
PORTS: Final[Mapping[ChipTopology, int]] = MappingProxyType(
    {"ring": 2, "all-to-all": 1, "mesh-2d": 4}
)
"""Ports of a chip by the way chips are wired."""


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
    """What joins chips. All ports of a chip are at its core the gateway (see `Machine`).

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
        return self.bytes_per_s / PORTS[self.topology]
