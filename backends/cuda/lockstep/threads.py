"""Who runs: groups of threads of a block in lockstep, and what they wait for."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np

from infc.backends.cuda.lockstep.memory import UNWRITTEN, Array, Device, Memory
from infc.backends.cuda.lockstep.races import Races
from infc.diagnostics import InternalError

WARP = 32
Running: TypeAlias = Generator[None, None, None]
"""A group's execution; it yields where another group may go on."""
Registers: TypeAlias = list[Any]
"""The values of a function, by number: `[threads, ...]`, or `[1, ...]` where all have the same."""


_PLACE = re.compile(r'\("([^"]+)":(\d+)')
_INNER = ("/mlir/", "codegen/builder.py", "codegen\\builder.py")


class LockstepError(InternalError):
    """A kernel does what a GPU would not forgive."""


@dataclass(slots=True)
class Where:
    """An operation.

    Attributes:
        name: of the operation, `llvm.load`.
        function: that it is in.
        number: of the operation in its function.
        location: what MLIR knows of where it comes from.
    """

    name: str
    function: str
    number: int
    location: Any

    def __str__(self) -> str:
        return f"{self.name} (operation {self.number} of @{self.function}{self._place()})"

    def _place(self) -> str:
        """Of a Python stack, the innermost line that is not the builder's."""
        text = str(self.location)
        if text == "loc(unknown)":
            return ""
        for path, line in _PLACE.findall(text):
            if not any(word in path for word in _INNER):
                return f" at {os.path.relpath(path)}:{line}"
        return f" at {text.removeprefix('loc(').removesuffix(')')}"


@dataclass
class Machine:
    """The whole grid.

    Attributes:
        progress: counts what may let a waiting group go on.
        waiting: groups that wait, where, and for what.
        dice: decides who runs next; `None`: everybody in turn.
    """

    device: Device
    blocks: int
    dice: random.Random | None
    progress: int = 0
    clock_ns: int = 0
    waiting: dict[Threads, tuple[Where, Callable[[], str]]] = field(default_factory=dict)


class Block:
    """A block of threads and its shared memory.

    Attributes:
        barriers: named barriers by number, and mbarriers by `("mbarrier", address)`.
        copies: `cp.async` that have not landed.
        begun: how many of them there were.
        committed: how many groups of them each thread has committed.
        later: what the copy engine still has to do, each a function that does it.
    """

    def __init__(self, machine: Machine, number: int, threads: int, shared_bytes: int) -> None:
        self.machine = machine
        self.number = number
        self.threads = threads
        self.shared = Memory("shared memory", 0, shared_bytes, UNWRITTEN)
        self.races = Races(-(-threads // WARP), len(self.shared.data))
        self.shared.races = self.races
        self.barriers: dict[Any, Any] = {}
        self.copies: list[Any] = []
        self.begun = 0
        self.committed: Array = np.zeros(threads, np.int64)
        self.later: list[Callable[[], None]] = []
        self._atomics = self.races.new_clock()

    def meet(self, t: Threads) -> None:
        """These threads make an atomic or ordered access: after all earlier ones of the block."""
        self.races.acquire(t, self._atomics)
        np.maximum(self._atomics, self.races.release(t), out=self._atomics)

    def deliver(self) -> None:
        """Let the copy engine do what it has to do, or some of it."""
        dice = self.machine.dice
        waiting, self.later = self.later, []
        for job in waiting:
            if dice is not None and dice.random() < 0.5:
                self.later.append(job)
            else:
                job()
                self.machine.progress += 1


class Threads:
    """Threads of one block that run together.

    Attributes:
        ids: their numbers in the block, ascending, i32.
        places: where they stand in the group that this one is part of.
        warp_of: the warp of each.
        warps: theirs, each once.
        whole: whether they are whole warps.
    """

    def __init__(self, block: Block, ids: Array, places: Array | None = None) -> None:
        self.block = block
        self.ids = ids
        self.places: Array = np.arange(len(ids)) if places is None else places
        self.count = len(ids)
        self.warp_of: Array = ids // WARP
        self.warps: Array = np.unique(self.warp_of)
        self._parts: dict[bytes, Threads] = {}
        self.whole = self.count % WARP == 0 and bool(
            (ids.reshape(-1, WARP) == (ids[::WARP] & -WARP)[:, None] + np.arange(WARP)).all()
        )

    @property
    def machine(self) -> Machine:
        """The grid they belong to."""
        return self.block.machine

    def part(self, mask: Array) -> Threads:
        """Those of the threads whose `mask` is set."""
        key = mask.tobytes()
        found = self._parts.get(key)
        if found is None:
            places = np.flatnonzero(mask)
            found = self._parts[key] = Threads(self.block, self.ids[places], places)
        return found

    def fail(self, where: Where, which: int, message: str) -> NoReturn:
        """Raise an error of the thread number `which` of these."""
        thread = int(self.ids[min(which, self.count - 1)])
        raise LockstepError(f"{where}, block {self.block.number}, thread {thread}: {message}")

    def failing(self, where: Where, who: Array | None = None) -> Callable[[int, str], None]:
        """`fail` with the operation known, and whose the accesses are."""
        return lambda i, message: self.fail(where, i if who is None else int(who[i]), message)

    def need_whole_warps(self, where: Where) -> None:
        """Refuse an instruction that all threads of a warp must run."""
        if not self.whole:
            missing = np.setdiff1d((self.ids[:, None] & -WARP) + np.arange(WARP), self.ids)
            self.fail(where, 0, f"needs whole warps, but thread {missing[0]} is not there")

    def wait(self, where: Where, ready: Callable[[], bool], what: Callable[[], str]) -> Running:
        """Let others run until `ready()`; `what` says what is waited for."""
        machine = self.machine
        if machine.dice is not None:
            yield
        if not ready():
            machine.waiting[self] = (where, what)
            while not ready():
                yield
            del machine.waiting[self]
        machine.progress += 1

    def __str__(self) -> str:
        if self.count == 1:
            return f"block {self.block.number}, thread {self.ids[0]}"
        warps = ", ".join(str(warp) for warp in self.warps)
        return f"block {self.block.number}, {self.count} threads of warps {warps}"


_REST = 0.3
"""How often a group has to wait for its next turn, where a lot decides."""


def together(machine: Machine, groups: list[Running]) -> Running:
    """Run groups side by side to the end of each."""
    while groups:
        dice = machine.dice
        order = list(groups) if dice is None else dice.sample(groups, len(groups))
        for group in order:
            if dice is not None and dice.random() < _REST:
                continue
            try:
                next(group)
            except StopIteration:
                groups.remove(group)
                machine.progress += 1
        if groups:
            yield


def everybody(value: Array, t: Threads) -> Array:
    """A scalar of each thread, `[threads]`, also where all have the same."""
    return value if len(value) == t.count else np.repeat(value, t.count)


def narrow(value: Any, index: Array) -> Any:
    """The value of some of the threads."""
    if isinstance(value, tuple):
        return tuple(narrow(part, index) for part in value)
    return value if value is None or len(value) == 1 else value[index]


def spread(parts: list[tuple[Any, Array]], count: int) -> Any:
    """One value of `count` threads, of values of parts of them."""
    first = parts[0][0]
    if isinstance(first, tuple):
        columns = zip(*(value for value, _ in parts), strict=True)
        indices = [index for _, index in parts]
        return tuple(spread(list(zip(column, indices, strict=True)), count) for column in columns)
    out = np.empty((count, *first.shape[1:]), first.dtype)
    for value, index in parts:
        out[index] = value
    return out
