"""SRAM of a group of cores: named buffers that get their addresses when all code is there.

All cores of a group run the same steps and hold the same buffers at the same addresses, so that one
SEND can write into all of them. A buffer lives from the first to the last step that touches it;
`SramPlan` packs what never lives together into the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infc.diagnostics import InternalError
from infc.memory.buffer import Buffer as PlannedBuffer
from infc.memory.planner import plan_arena

ALIGN_BYTES = 64
FOREVER = 2**40
"""A last step behind all others."""


@dataclass
class Buffer:
    """A block of SRAM, the same on all cores of its group.

    Attributes:
        name: unique in its group.
        size_bytes: the most that any core keeps there.
        first, last: steps between which it lives; None until something touches it.
        address: of its first byte; None until it is planned.
        filled: the host puts something there before the first call. Such buffers come first, so
            that the programs of both phases find them at the same addresses.
    """

    name: str
    size_bytes: int
    first: int | None = None
    last: int | None = None
    address: int | None = None
    filled: bool = False

    def touch(self, step: int) -> None:
        """Note that code of a step reads or writes it."""
        if self.first is None or step < self.first:
            self.first = step
        if self.last is None or step > self.last:
            self.last = step

    def at(self, offset: int = 0, register: int = 0) -> Address:
        """A place in it."""
        return Address(offset, register, self)


@dataclass(frozen=True)
class Address:
    """`R[register] + offset`, counted from the start of a buffer where one is given.

    Bytes of SRAM, or lines of far memory (without a buffer).
    """

    offset: int = 0
    register: int = 0
    buffer: Buffer | None = None

    def __add__(self, distance: int) -> Address:
        return Address(self.offset + distance, self.register, self.buffer)

    def indexed(self, register: int) -> Address:
        """The same with a register to add; raises InternalError where there is one already."""
        if self.register:
            raise InternalError("an address has one register")
        return Address(self.offset, register, self.buffer)


@dataclass
class SramPlan:
    """The buffers of one group, and the step that code is being made for.

    Attributes:
        height_bytes: of all that is placed.
        lower_bound_bytes: no plan of these buffers can need less.
    """

    step: int = 0
    buffers: dict[str, Buffer] = field(default_factory=dict)
    height_bytes: int = 0
    lower_bound_bytes: int = 0

    def buffer(
        self, name: str, size_bytes: int, *, forever: bool = False, filled: bool = False
    ) -> Buffer:
        """The buffer of that name, made or grown to the size.

        `forever` keeps it from the first step to the last, and so does `filled`.
        """
        found = self.buffers.setdefault(name, Buffer(name, 0, filled=filled))
        found.size_bytes = max(found.size_bytes, size_bytes)
        if forever or filled:
            found.touch(0)
            found.touch(FOREVER)
        return found

    def next_step(self) -> None:
        """What follows comes after everything so far."""
        self.step += 1

    def place(self) -> None:
        """Give every buffer its address."""
        base = 0
        for buffer in self.buffers.values():
            if buffer.filled:
                buffer.address = base
                base += -(-buffer.size_bytes // ALIGN_BYTES) * ALIGN_BYTES
        planned = plan_arena(
            [
                PlannedBuffer(
                    buffer.name, buffer.size_bytes, ALIGN_BYTES, buffer.first, buffer.last
                )
                for buffer in self.buffers.values()
                if buffer.address is None and buffer.first is not None and buffer.last is not None
            ],
            node_limit=0,
        )
        for name, offset in planned.offsets.items():
            self.buffers[name].address = base + offset
        self.height_bytes = base + planned.height_bytes
        self.lower_bound_bytes = base + planned.lower_bound_bytes

    def record(self) -> dict[str, Any]:
        """The plan as JSON values; a buffer is (name, offset, size, first step, last step)."""
        return {
            "height_bytes": self.height_bytes,
            "lower_bound_bytes": self.lower_bound_bytes,
            "buffers": [
                [buffer.name, buffer.address, buffer.size_bytes, first, min(last, self.step)]
                for buffer in self.buffers.values()
                if (first := buffer.first) is not None and (last := buffer.last) is not None
            ],
        }
