"""From a `gpu.module` to steps: Python functions that each execute one operation.

Every operation is looked at once. A step is `step(registers, threads)`; one that may wait for other
threads is a generator function instead and makes its region *waiting*.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from infc.backends.cuda.lockstep.memory import Array
from infc.backends.cuda.lockstep.threads import (
    LockstepError,
    Registers,
    Running,
    Threads,
    Where,
    narrow,
)
from infc.ir.mlir import ir

Step: TypeAlias = Callable[[Registers, Threads], Any]


@dataclass(frozen=True)
class Waits:
    """A step that may wait for other threads: a generator function."""

    step: Callable[[Registers, Threads], Running]


_INTEGERS = {1: np.bool_, 8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


@dataclass(frozen=True)
class Kind:
    """The type of a value.

    Attributes:
        dtype: of a lane; bf16 is held as its bits, pointers as i64.
        lanes: of a vector; 0 for a scalar.
        space: the address space of a pointer.
    """

    dtype: np.dtype[Any]
    lanes: int = 0
    bf16: bool = False
    space: int = -1

    @property
    def size_bytes(self) -> int:
        """In memory."""
        return self.dtype.itemsize * max(self.lanes, 1)

    @property
    def is_float(self) -> bool:
        """Also bf16."""
        return self.bf16 or self.dtype.kind == "f"


_KINDS = {
    "f16": Kind(np.dtype(np.float16)),
    "f32": Kind(np.dtype(np.float32)),
    "f64": Kind(np.dtype(np.float64)),
    "bf16": Kind(np.dtype(np.uint16), bf16=True),
    "index": Kind(np.dtype(np.int64)),
    **{f"i{bits}": Kind(np.dtype(dtype)) for bits, dtype in _INTEGERS.items()},
}


def kind_of(text: str) -> Kind:
    """The kind of a type, as MLIR prints it."""
    if text in _KINDS:
        return _KINDS[text]
    found: Kind | None = None
    if match := re.fullmatch(r"!llvm\.ptr(?:<(\d+)>)?", text):
        found = Kind(np.dtype(np.int64), space=int(match[1] or 0))
    elif match := re.fullmatch(r"vector<(\d+)x(\w+)>", text):
        element = kind_of(match[2])
        found = Kind(element.dtype, int(match[1]), element.bf16)
    elif text == "vector<1xi1>":
        found = Kind(np.dtype(np.bool_), 1)
    if found is None:
        raise LockstepError(f"expected a number, a vector or a pointer, got {text}")
    _KINDS[text] = found
    return found


_EVERYWHERE = 1 << 30
"""The depth of a constant."""


@dataclass
class Region:
    """Operations in order.

    Attributes:
        steps: what to run; `waits` beside each says whether it is a generator function.
        arguments: registers of the block's arguments.
        yields: registers of what its terminator hands on.
        outer: registers from outside that it reads (constants are everywhere).
        waiting: whether anything in it may wait for other threads.
        looks: whether it reads memory, so that a loop around it may spin.
    """

    function: FunctionReader
    arguments: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    waits: list[bool] = field(default_factory=list)
    yields: list[int] = field(default_factory=list)
    outer: list[int] = field(default_factory=list)
    waiting: bool = False
    looks: bool = False

    def run(self, r: Registers, t: Threads) -> None:
        """Execute a region that does not wait."""
        for step in self.steps:
            step(r, t)

    def go(self, r: Registers, t: Threads) -> Running:
        """Execute a region that may wait."""
        for step, waits in zip(self.steps, self.waits, strict=True):
            if waits:
                yield from step(r, t)
            else:
                step(r, t)

    def enter(self, r: Registers, part: Threads) -> Registers:
        """Registers for some of the threads to run this region with."""
        inner = self.function.constants.copy()
        for slot in self.outer:
            inner[slot] = narrow(r[slot], part.places)
        return inner

    def results(self, r: Registers) -> list[Any]:
        """What the region handed on."""
        return [r[slot] for slot in self.yields]


class FunctionReader:
    """Reads one function: gives numbers to its values and finds the steps.

    Attributes:
        constants: the registers before the function runs: constants, otherwise `None`.
        body: its region.
    """

    def __init__(self, program: Program, name: str, op: ir.OpView) -> None:
        self.program = program
        self.name = name
        self.constants: Registers = []
        self._slots: dict[Any, int] = {}
        self._depths: list[int] = []
        self._known: dict[Any, int] = {}
        self._outer: list[set[int]] = []
        self._regions: list[Region] = []
        self._number = 0
        self.threads: int | None = None
        if "nvvm.maxntid" in op.operation.attributes:
            (self.threads,) = op.operation.attributes["nvvm.maxntid"]
        self.argument_kinds = [
            kind_of(str(argument.type)) for argument in op.regions[0].blocks[0].arguments
        ]
        self.body = self.region(op.regions[0])

    # ---- values ------------------------------------------------------------------------------

    def new(self, value: Any) -> int:
        """The register of a value that is made here."""
        slot = self._slots[value] = len(self.constants)
        self.constants.append(None)
        self._depths.append(len(self._outer))
        return slot

    def new_constant(self, value: Any, attribute: Any, held: Callable[[], Array]) -> None:
        """Let a value be the constant of an attribute, which `held` makes of it the first time."""
        slot = self._known.get(attribute)
        if slot is None:
            slot = self._known[attribute] = len(self.constants)
            self.constants.append(held())
            self._depths.append(_EVERYWHERE)
        self._slots[value] = slot

    def use(self, value: Any) -> int:
        """The register of a value that is read here."""
        slot = self._slots[value]
        if self._depths[slot] < len(self._outer):
            for outer in self._outer[self._depths[slot] :]:
                outer.add(slot)
        return slot

    def operands(self, op: Any) -> list[int]:
        """The registers that an operation reads."""
        return [self.use(value) for value in op.operands]

    def results(self, op: Any) -> list[int]:
        """The registers that an operation writes."""
        return [self.new(value) for value in op.results]

    def constant(self, value: Any) -> Array | None:
        """The value of a constant, `[1]` or `[1, lanes]`; else `None`."""
        found: Array | None = self.constants[self._slots[value]]
        return found

    def kind(self, value: Any) -> Kind:
        """The type of a value."""
        type_ = value.type
        kinds = self.program.kinds
        if type_ not in kinds:
            kinds[type_] = kind_of(str(type_))
        return kinds[type_]

    def looks(self, looks: bool) -> None:
        """Say that the open region reads memory (in a function that it calls)."""
        self._regions[-1].looks |= looks

    # ---- regions -----------------------------------------------------------------------------

    def region(self, region: Any) -> Region:
        """Read a region of one block."""
        # Here, since operations with regions read them through this.
        from infc.backends.cuda.lockstep.operations import read_operation

        (block,) = region.blocks
        made = Region(self)
        self._outer.append(set())
        self._regions.append(made)
        made.arguments = [self.new(argument) for argument in block.arguments]
        for op in block.operations:
            self._number += 1
            operation = op.operation
            where = Where(operation.name, self.name, self._number, operation.location)
            read_operation(self, made, operation, where)
        self._regions.pop()
        made.outer = sorted(self._outer.pop())
        if self._regions:
            self._regions[-1].looks |= made.looks
        return made


@dataclass
class Program:
    """Functions of a module that were read, to be launched any number of times.

    Attributes:
        functions: what was read, by name.
        source: the functions of the module; they live as long as it does.
        kinds: of types that were met.
    """

    functions: dict[str, FunctionReader]
    source: dict[str, Any]
    kinds: dict[Any, Kind] = field(default_factory=dict)

    def function(self, name: str) -> FunctionReader:
        """A function by name; it is read when it is first asked for."""
        if name not in self.functions:
            if name not in self.source:
                known = ", ".join(sorted(self.source or self.functions))
                raise LockstepError(f"expected a function of the module ({known}), got {name}")
            self.functions[name] = FunctionReader(self, name, self.source[name])
        return self.functions[name]


def read(module: ir.OpView, *names: str) -> Program:
    """Read functions of a `gpu.module`, as `GpuBuilder` made it, before any lowering, and what they
    call; all of them if none is named. The module is not needed any more then."""
    source: dict[str, Any] = {}
    for op in module.regions[0].blocks[0].operations:
        if op.operation.name in ("func.func", "llvm.func") and len(op.regions[0].blocks):
            source[ir.StringAttr(op.operation.attributes["sym_name"]).value] = op
    program = Program({}, source)
    for name in names or list(source):
        program.function(name)
    program.source, program.kinds = {}, {}
    return program
