"""The stream of weights of a stage: each core's tiles in the order in which it uses them.

They lie in the core's SRAM, and the matrix stream reads them one after the other; or in far memory,
from where the load stream brings them piece by piece into a ring of slots, as far ahead as the ring
allows. Emitters see no difference: `piece` gives the address of what comes next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infc.backends.dataflow.codegen.builder import CoreProgram, Group
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.codegen.stream import Count, Register
from infc.backends.dataflow.codegen.values import Weight
from infc.backends.dataflow.tiles import LINE_BYTES, TileFormat
from infc.diagnostics import InternalError


@dataclass(frozen=True)
class Cut:
    """Rows of a matrix that a core multiplies with, cut into tiles.

    Attributes:
        weight: the matrix.
        first, stop: its rows.
        tile_n, tile_k: rows and columns of a tile; the last ones may be smaller.
        form: of the tiles.
    """

    weight: Weight
    first: int
    stop: int
    tile_n: int
    tile_k: int
    form: TileFormat

    @property
    def k(self) -> int:
        """Columns of the matrix."""
        return int(self.weight.type.shape[1])

    def strip_bytes(self, n: int) -> int:
        """Bytes of `n` rows in tiles of all columns."""
        whole, rest = divmod(self.k, self.tile_k)
        size = whole * self.form.tile_bytes(n, self.tile_k)
        return size + (self.form.tile_bytes(n, rest) if rest else 0)

    @property
    def size_bytes(self) -> int:
        """Of all tiles."""
        whole, rest = divmod(self.stop - self.first, self.tile_n)
        return whole * self.strip_bytes(self.tile_n) + (self.strip_bytes(rest) if rest else 0)


class WeightStream:
    """What the cores of a group multiply with, in order.

    Attributes:
        slots: of the ring; 0 where weights stay in SRAM.
        slot_bytes: the largest piece.
        cuts: per core, for each body of layers how often it is repeated and what it reads; two
            matrices that are read strip by strip are one entry.
    """

    def __init__(self, group: Group, slots: int, slot_bytes: int, *, prefetch: bool) -> None:
        self.group, self.slots, self.slot_bytes, self.prefetch = group, slots, slot_bytes, prefetch
        self.bodies: list[tuple[int, list[list[tuple[Cut, ...]]]]] = []
        self.home: list[Buffer] = []
        self._matrix: list[Register] = []
        self._load: list[tuple[Register, Register]] = []

    def begin(self, home: list[Buffer]) -> None:
        """Registers and slots, in front of everything.

        Args:
            home: per core where its weights are: SRAM (the same on all), or far memory.
        """
        self.home = home
        if self.slots:
            self.ring = self.group.buffer("ring", self.slots * self.slot_bytes, forever=True)
        for core in self.group.cores:
            at = core.matrix.take()
            core.matrix.mov(at, 0)
            self._matrix.append(at)
            if self.slots:
                slot, source = core.load.take(), core.load.take()
                core.load.mov(slot, 0)
                core.load.point(source, home[core.index].at())
                core.matrix.post("slot free", self.slots)
                self._load.append((slot, source))

    def tiles_at_once(self, tile_bytes: int) -> int:
        """Tiles of one piece at most; 0 for any number."""
        if self.slots and tile_bytes > self.slot_bytes:
            raise InternalError(f"a tile of {tile_bytes} bytes in a slot of {self.slot_bytes}")
        return self.slot_bytes // tile_bytes if self.slots else 0

    def body(self, turns: int) -> None:
        """What is read from here on belongs to a loop of so many turns."""
        self.bodies.append((turns, [[] for _ in self.group.cores]))

    def note(self, core: CoreProgram, *cuts: Cut) -> None:
        """Keep what the core reads next; several cuts are read strip by strip in turns."""
        self.bodies[-1][1][core.index].append(cuts)

    @contextmanager
    def loop(
        self, core: CoreProgram, count: Count, load_count: Count | None = None
    ) -> Iterator[None]:
        """A loop that reads pieces."""
        if count == 1 and not isinstance(count, Register):
            yield
            return
        with core.matrix.loop(count):
            if self.slots:
                with core.load.loop(count if load_count is None else load_count):
                    yield
            else:
                yield

    @contextmanager
    def piece(self, core: CoreProgram, size_bytes: int) -> Iterator[Address]:
        """The next piece, for the matrix stream, until the end of the block."""
        at = self._matrix[core.index]
        if not self.slots:
            yield self.home[core.index].at(0, at)
            core.matrix.add(at, at, imm=size_bytes)
            return
        slot, source = self._load[core.index]
        core.load.wait("slot free")
        if not self.prefetch:
            core.hand(core.matrix, core.load)
        core.load.load(self.ring.at(0, slot), Address(0, source), size_bytes, signal="slot full")
        core.load.add(slot, slot, imm=self.slot_bytes)
        core.load.wrap(slot, self.slots * self.slot_bytes, self.slots * self.slot_bytes)
        core.load.add(source, source, imm=size_bytes // LINE_BYTES)
        core.matrix.wait("slot full")
        yield self.ring.at(0, at)
        core.matrix.post("slot free")
        core.matrix.add(at, at, imm=self.slot_bytes)
        core.matrix.wrap(at, self.slots * self.slot_bytes, self.slots * self.slot_bytes)

    def core_bytes(self, core: int) -> int:
        """Bytes of all weights of a core."""
        return sum(
            turns * sum(cut.size_bytes for cuts in reads[core] for cut in cuts)
            for turns, reads in self.bodies
        )
