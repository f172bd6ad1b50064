"""What single instructions take, in cycles of a core."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.cost.constants import Constants
from infc.backends.dataflow.machine import Format, Machine, VectorClass
from infc.backends.dataflow.tiles import TileFormat

Vector = tuple[VectorClass, float, float]
"""A vector instruction: its class, bytes an element at the port, bytes besides."""

BINARY: Vector = ("simple", 12, 0)
BY_NUMBER: Vector = ("simple", 8, 4)
IMMEDIATE: Vector = ("simple", 8, 0)
COPY: Vector = ("simple", 8, 0)
FILL: Vector = ("simple", 4, 0)
SPECIAL: Vector = ("special", 8, 0)
REDUCE: Vector = ("reduction", 4, 4)
CONVERT: Vector = ("simple", 6, 0)
QUANTIZE: Vector = ("reduction", 5.125, 0)
DECODE: Vector = ("simple", 5.5, 0)
ROTATE: Vector = ("simple", 12, 0)
BEST: Vector = ("reduction", 4, 8)
MERGE: Vector = ("reduction", 0, 24)

_TILE_SCALARS = 5
"""Issue, three additions and the end of the loop over the tiles of a piece."""


@dataclass(frozen=True)
class Rates:
    """A machine's figures in cycles."""

    machine: Machine
    constants: Constants

    @property
    def port(self) -> float:
        """Bytes a cycle of a core's SRAM."""
        return self.machine.sram_bytes_per_s / self.machine.clock_hz

    @property
    def link(self) -> float:
        """Bytes a cycle between neighbours."""
        return self.machine.mesh.link_bytes_per_s / self.machine.clock_hz

    def cycles(self, seconds: float) -> float:
        """Of a duration."""
        return seconds * self.machine.clock_hz

    def channel(self, cores_sharing: float) -> float:
        """Bytes a cycle of the fastest far memory, for one of the cores of a channel."""
        return self.machine.far[0].channel_bytes_per_s / self.machine.clock_hz / cores_sharing

    def vector(self, instruction: Vector, elements: float) -> float:
        """One instruction, or several where the elements are more than one takes."""
        kind, each, besides = instruction
        unit, cycles, left = self.machine.vector, 0.0, max(int(elements), 0)
        if left == 0:
            return float(unit.cycles(kind, 0))
        whole, rest = divmod(left, unit.native)
        for count, times in ((unit.native, whole), (rest, 1)):
            if count and times:
                moved = (each * count + besides) / self.port
                cycles += times * max(float(unit.cycles(kind, count)), moved)
        return cycles

    def each_row(self, rows: float, body: float, instructions: int, strides: int) -> float:
        """A loop over rows: its scalar instructions are hidden where the vector unit is busy.

        Args:
            body: cycles of the vector instructions of a row.
            instructions: how many there are.
            strides: registers that go on with the rows.
        """
        issue = self.machine.issue_cycles
        return self.constants.rows + rows * max(body, strides + 1.0 + instructions * issue)

    def tile(self, form: TileFormat, rows: int, n: int, k: int, *, add: bool) -> float:
        """One product of a tile of weights."""
        unit = self.machine.matrix
        port = rows * n * (8.0 if add else 4.0) + form.tile_bytes(n, k)
        port += rows * (2.0 * k if form.is_float else 1.125 * k)
        cycles = float(unit.cycles(_format(form), rows))
        return max(cycles, port / self.port, float(_TILE_SCALARS))

    def product(self, rows: int) -> float:
        """One product of f16 rows with a tile of f16 columns."""
        unit = self.machine.matrix
        moved = 2.0 * rows * unit.k + 2.0 * unit.n * unit.k + 8.0 * rows * unit.n
        return max(float(unit.cycles("f16", rows)), moved / self.port)

    def attention_tiles(self, rows: int, n: int, k: int) -> float:
        """All products of f16 rows [rows, k] with [k, n], in tiles of the matrix unit."""
        unit = self.machine.matrix
        count = -(-n // unit.n) * -(-k // unit.k)
        wide, deep = min(n, unit.n), min(k, unit.k)
        port = (2.0 * rows * deep + 2.0 * deep * wide + 8.0 * rows * wide) / self.port
        return count * max(float(unit.cycles("f16", rows)), port)


def _format(form: TileFormat) -> Format:
    if form.is_float:
        return "f16" if form.form else "bf16"
    return "int8" if form.bits == 8 else "int4"
