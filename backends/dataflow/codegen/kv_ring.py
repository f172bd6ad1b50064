"""Keys and values of earlier calls from far memory, tile by tile through a ring of slots.

The load stream brings tiles of the core's stripe in the order in which attention takes them, as far
ahead as the ring holds: what it brings was there before the call, so it waits for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.dataflow.codegen.attention_sources import EarlierTiles
from infc.backends.dataflow.codegen.builder import CoreProgram
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.scope import Scope
from infc.backends.dataflow.codegen.stream import Register
from infc.backends.dataflow.machine import LINE_BYTES

FULL, FREE = "tile full", "tile free"


class KVRing:
    """The slots, and where each stream is in them.

    Attributes:
        slots: how many there are.
        slot_bytes: of the largest tile.
        buffer: all slots; zeros at first, as a tile may be loaded in part.
    """

    def __init__(self, scope: Scope, slots: int, slot_bytes: int) -> None:
        self.scope, self.slots, self.slot_bytes = scope, slots, slot_bytes
        size = slots * slot_bytes
        self.buffer: Buffer = scope.home.sram_table(
            "tiles", [(("zero", size), size)] * len(scope.cores), "zero"
        )
        self._load: list[Register] = []
        self.matrix: list[Register] = []
        for core in scope.cores:
            for stream, places in ((core.load, self._load), (core.matrix, self.matrix)):
                place = stream.take()
                stream.mov(place, 0)
                places.append(place)
            core.matrix.post(FREE, slots)

    @property
    def size_bytes(self) -> int:
        """Of all slots."""
        return self.slots * self.slot_bytes

    def emit_loads(self, core: CoreProgram, source: EarlierTiles) -> None:
        """The tiles of a source, whose registers are the load stream's."""
        s, home = core.load, source.home
        step = source.keys * home.row_bytes
        place = self._load[core.index]
        with s.registers(7) as (count, first, left, base, at, size, line):
            source.emit_range(count, first)
            # Positions from the first tile on.
            s.mul(left, first, -1)
            source.emit_stop(size)
            s.add(left, left, size)
            s.div(base, source.base, LINE_BYTES)
            s.point(line, self.scope.kv_far[core.index])
            s.add(base, base, line)
            s.mod(at, first, home.held)
            s.mul(at, at, home.row_bytes // LINE_BYTES)
            with s.loop(count):
                s.least(size, left, 0, 0, source.keys)
                s.mul(size, size, home.row_bytes)
                s.add(line, base, at, imm=source.head * home.head_bytes // LINE_BYTES)
                s.wait(FREE)
                s.load(
                    self.buffer.at(0, place),
                    Address(0, line),
                    size,
                    tier=self.scope.kv_tier,
                    signal=FULL,
                )
                s.add(place, place, imm=self.slot_bytes)
                s.wrap(place, self.size_bytes, self.size_bytes)
                s.add(left, left, imm=-source.keys)
                s.add(at, at, imm=step // LINE_BYTES)
                s.wrap(at, home.head_bytes // LINE_BYTES, home.head_bytes // LINE_BYTES)


@dataclass(frozen=True)
class RingTiles(EarlierTiles):
    """What earlier calls left of one stripe, as it comes through the ring."""

    ring: KVRing

    def emit_start(self, at: Register, first: Register) -> None:
        """See `Source`."""
        s = self.queries.stream
        s.mov(at, 0, self.ring.matrix[s.core.index])

    def emit_advance(self, at: Register) -> None:
        """See `Source`."""
        s, size = self.queries.stream, self.ring.size_bytes
        s.add(at, at, imm=self.ring.slot_bytes)
        s.wrap(at, size, size)

    def place(self, at: Register) -> Address:
        """See `Source`."""
        return self.ring.buffer.at(0, at)

    def emit_acquire(self) -> None:
        """See `Source`."""
        self.queries.stream.wait(FULL)

    def emit_release(self) -> None:
        """See `Source`."""
        s = self.queries.stream
        s.post(FREE)
        self.emit_advance(self.ring.matrix[s.core.index])
