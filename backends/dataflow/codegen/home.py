"""Where the weights, tables and caches of a stage lie: in its cores' SRAM or in far memory."""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.dataflow.codegen.builder import CoreProgram, Group
from infc.backends.dataflow.codegen.contents import Content, Contents, FarPlan, Key
from infc.backends.dataflow.codegen.memory import Address, Buffer
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.program import RegionKind
from infc.backends.dataflow.tiles import lines

_TIER = 0


class Home:
    """The memory of one stage.

    Attributes:
        far: far memory, where there is some; weights and tables then lie there.
        near: every core's part lies in the channel next to it; else one channel after the other is
            filled, whoever reads it.
    """

    def __init__(
        self, group: Group, machine: Machine, contents: Contents, far: FarPlan | None, *, near: bool
    ) -> None:
        self.group, self.machine, self.contents = group, machine, contents
        self.far, self.near = far, near
        self._tables: dict[tuple[int, Key], Buffer] = {}

    def sram_table(
        self, name: str, entries: Sequence[tuple[Key, int]], kind: RegionKind = "table"
    ) -> Buffer:
        """A buffer that each core keeps something else in: a key and its bytes."""
        buffer = self.group.buffer(name, max(size for _, size in entries), filled=True)
        for core, (key, size) in zip(self.group.cores, entries, strict=True):
            self.contents.add(
                Content(buffer, 0, core.number, self._chip(core), "sram", size, kind, key)
            )
        return buffer

    def far_table(self, core: CoreProgram, key: Key, size_bytes: int) -> Address:
        """A table in the far memory of a core's chip, one for all cores."""
        chip = self._chip(core)
        if (chip, key) not in self._tables:
            buffer = Buffer(str(key), size_bytes)
            self._tables[chip, key] = buffer
            self.place(buffer, core, key, "table", shared=len(self._tables))
        return self._tables[chip, key].at()

    def place(
        self,
        buffer: Buffer,
        core: CoreProgram,
        key: Key,
        kind: RegionKind,
        *,
        shared: int | None = None,
    ) -> None:
        """Give a buffer of a core its place in far memory.

        Args:
            shared: the number of a table that all cores of the chip read.
        """
        if self.far is None:
            return
        channels, chip = self.machine.far[_TIER].channels, self._chip(core)
        number = core.number % (self.machine.rows * self.machine.cols)
        if shared is not None:
            channel = shared % channels
        elif self.near:
            channel = self.machine.near_channel(_TIER, number)
        else:
            channel = self.far.first_with_room(buffer, chip, _TIER)
        self.far.place(buffer, chip, channel, _TIER)
        size = lines(buffer.size_bytes)
        self.contents.add(Content(buffer, 0, None, chip, "far0", size, kind, key))

    def _chip(self, core: CoreProgram) -> int:
        return core.number // (self.machine.rows * self.machine.cols)
