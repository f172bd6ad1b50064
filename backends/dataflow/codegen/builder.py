"""Cores and groups of cores that programs are made for.

`Group` is a stage: cores that share every layer between them. Their programs are made side by side
(`for core in group.cores`), with the same buffers, semaphores and steps; what differs is which part
of a weight, which rows or which heads a core has.

Who waits for whom inside a core: the vector stream leads. It hands work to the matrix and send
streams and waits until it is done (`CoreProgram.hand`), so what it does next may use the same
buffers; the load stream alone runs ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from infc.backends.dataflow.codegen.memory import Buffer, SramPlan
from infc.backends.dataflow.codegen.stream import Stream
from infc.backends.dataflow.isa import SEMAPHORES, Unit, chips, rectangle
from infc.diagnostics import InternalError
from infc.target.signature import Count, Size

STAGE = "stage"
"""The semaphore that says that the stage before has sent its rows."""


@dataclass
class Origins:
    """What instructions come from, by name: the image's table."""

    names: list[str] = field(default_factory=lambda: [""])
    current: int = 0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is emitted inside comes from here."""
        before = self.current
        if name not in self.names:
            self.names.append(name)
        self.current = self.names.index(name)
        yield
        self.current = before


@dataclass(frozen=True)
class Destination:
    """Cores that one SEND writes to: the fields `x` and `k`."""

    chips: int
    rectangle: int


@dataclass(frozen=True)
class Area:
    """A rectangle of cores on each of some consecutive chips.

    A group on more than one chip has whole chips.
    """

    chip: Size
    chip_count: Count
    row: Size
    col: Size
    rows: Count
    cols: Count

    @property
    def size(self) -> int:
        """How many cores there are."""
        return self.chip_count * self.rows * self.cols

    def core(self, index: int, grid: tuple[int, int]) -> int:
        """The absolute number of its core of that index: by chip, row, column."""
        chip, row, col = self._place(index)
        return (chip * grid[0] + row) * grid[1] + col

    def all(self) -> Destination:
        """All its cores."""
        return Destination(
            chips(self.chip, self.chip_count), rectangle(self.row, self.col, self.rows, self.cols)
        )

    def one(self, index: int) -> Destination:
        """One of its cores."""
        chip, row, col = self._place(index)
        return Destination(chips(chip, 1), rectangle(row, col, 1, 1))

    def _place(self, index: int) -> tuple[int, int, int]:
        on_chip, rest = divmod(index, self.rows * self.cols)
        return self.chip + on_chip, self.row + rest // self.cols, self.col + rest % self.cols


class Group:
    """The cores of a stage.

    Attributes:
        area: where they are.
        cores: their programs, by index.
        sram: their buffers.
        native: elements a vector instruction takes at most.
    """

    def __init__(self, area: Area, grid: tuple[int, int], native: int, origins: Origins) -> None:
        self.area, self.native, self.origins = area, native, origins
        self.sram = SramPlan()
        self.cores = [CoreProgram(self, i, area.core(i, grid)) for i in range(area.size)]
        # The same number in every group: one stage posts it on the next one.
        self._semaphores: dict[str, int] = {STAGE: 0}
        self._waiters: dict[str, Unit] = {}

    def semaphore(self, name: str, *, waiter: Unit | None = None) -> int:
        """The number of a semaphore, the same on all cores; one unit waits for it."""
        number = self._semaphores.setdefault(name, len(self._semaphores))
        if number >= SEMAPHORES:
            raise InternalError(f"more than {SEMAPHORES} semaphores: {', '.join(self._semaphores)}")
        if waiter is not None and self._waiters.setdefault(name, waiter) is not waiter:
            raise InternalError(f"two units wait for the semaphore {name!r}")
        return number

    def buffer(
        self, name: str, size_bytes: int, *, forever: bool = False, filled: bool = False
    ) -> Buffer:
        """A buffer on every core; see `SramPlan.buffer`."""
        return self.sram.buffer(name, size_bytes, forever=forever, filled=filled)

    def pieces(self, width: int) -> Sequence[tuple[int, int]]:
        """A long row as (first element, elements) of what one vector instruction takes."""
        return [(at, min(self.native, width - at)) for at in range(0, width, self.native)]


class CoreProgram:
    """One core: its four streams.

    Attributes:
        index: its place in the group.
        number: its absolute number.
    """

    def __init__(self, group: Group, index: int, number: int) -> None:
        self.group, self.index, self.number = group, index, number
        self.load, self.matrix, self.vector, self.send = (Stream(self, unit) for unit in Unit)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All four, in the order of `Unit`."""
        return self.load, self.matrix, self.vector, self.send

    def hand(self, source: Stream, target: Stream, count: int = 1) -> None:
        """The target goes on when the source has come this far."""
        name = f"{source.unit.name.lower()}>{target.unit.name.lower()}"
        source.post(name, count)
        target.wait(name, count)
