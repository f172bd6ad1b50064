"""What lies in memory before the first call, and far memory.

Emitters note what each core keeps (`Contents`); the same bytes are written once into the file of
packed weights, also where both programs or several cores hold them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infc.backends.dataflow.codegen.memory import Buffer
from infc.backends.dataflow.machine import LINE_BYTES, Machine
from infc.backends.dataflow.program import Region, RegionKind, Space
from infc.backends.dataflow.tiles import lines
from infc.diagnostics import InternalError

Key = tuple[object, ...]
"""What bytes are: equal keys, equal bytes."""


@dataclass(frozen=True)
class Content:
    """One range of the memory of a core or of a chip.

    Attributes:
        buffer: where; a far buffer's address counts lines.
        offset_bytes: from its start.
        core: absolute, of SRAM; None in far memory.
        key: says what lies there.
    """

    buffer: Buffer
    offset_bytes: int
    core: int | None
    chip: int
    space: Space
    size_bytes: int
    kind: RegionKind
    key: Key


@dataclass
class Contents:
    """Everything that the host fills."""

    items: list[Content] = field(default_factory=list)

    def add(self, content: Content) -> None:
        """Note a range."""
        if content.size_bytes:
            self.items.append(content)


@dataclass
class WeightFile:
    """The file of packed weights: each different key once, in the order of first use."""

    offsets: dict[Key, int] = field(default_factory=dict)
    sizes: dict[Key, int] = field(default_factory=dict)
    size_bytes: int = 0

    def place(self, key: Key, size_bytes: int) -> int:
        """Where the bytes of a key begin."""
        if key not in self.offsets:
            self.offsets[key], self.sizes[key] = self.size_bytes, size_bytes
            self.size_bytes += lines(size_bytes)
        if self.sizes[key] != size_bytes:
            raise InternalError(f"{key} has {self.sizes[key]} bytes and {size_bytes}")
        return self.offsets[key]


def regions(contents: Contents, file: WeightFile, cache: WeightFile) -> list[Region]:
    """The image's regions of planned buffers; `cache` is the order in which caches are kept."""
    found = []
    for item in contents.items:
        start = item.buffer.address
        if start is None:
            raise InternalError(f"the buffer {item.buffer.name!r} has no place")
        unit = 1 if item.space == "sram" else LINE_BYTES
        kept = cache if item.kind == "kv" else file
        found.append(
            Region(
                item.core,
                item.chip,
                item.space,
                start * unit + item.offset_bytes,
                item.size_bytes,
                item.kind,
                0 if item.kind == "zero" else kept.place(item.key, item.size_bytes),
            )
        )
    return found


class FarPlan:
    """Far memory of all chips: each channel is filled from its start."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._used: dict[tuple[int, int, int], int] = {}

    def place(self, buffer: Buffer, chip: int, channel: int, tier: int = 0) -> None:
        """Give a buffer its address, in lines, behind what the channel has."""
        memory = self.machine.far[tier]
        used = self._used.get((chip, tier, channel), 0)
        self._used[chip, tier, channel] = used + lines(buffer.size_bytes)
        buffer.address = (channel * memory.channel_bytes + used) // LINE_BYTES

    def first_with_room(self, buffer: Buffer, chip: int, tier: int) -> int:
        """The first channel that has room for a buffer; of none the last one."""
        memory = self.machine.far[tier]
        for channel in range(memory.channels):
            used = self._used.get((chip, tier, channel), 0)
            if used + lines(buffer.size_bytes) <= memory.channel_bytes:
                return channel
        return memory.channels - 1

    def overflow(self) -> tuple[str, int, int] | None:
        """The memory that holds least of what it should: name, bytes wanted and bytes there."""
        worst = None
        for (_, tier, _), used in self._used.items():
            memory = self.machine.far[tier]
            if used > memory.channel_bytes and (worst is None or used > worst[1]):
                worst = (memory.name, used, memory.channel_bytes)
        return worst
