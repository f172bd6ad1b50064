"""The one error of all simulators: what a program did wrong, and where in program and model."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from infc.diagnostics import InternalError


class Fault(StrEnum):
    """What kind of thing a program did that the machine does not allow."""

    BOUNDS = "bounds"
    """An address outside the memory it is in, or outside what the instruction may touch."""
    ALIGNMENT = "alignment"
    """An address that is no multiple of the size of what lies there."""
    LIMIT = "limit"
    """More than the unit's native tile, or than the machine's loops, registers, semaphores."""
    OPERAND = "operand"
    """A value that the instruction has no meaning for: a negative count, an unknown format."""
    DEADLOCK = "deadlock"
    """Streams that wait for what nobody will post."""
    UNINITIALISED = "uninitialised"
    """A read of memory that nobody has written."""
    RACE = "race"
    """Two accesses that no semaphore puts in order, one of them a write."""


class SimulationError(InternalError):
    """A program does what the machine does not allow; infc, which made it, is at fault.

    Attributes:
        fault: what kind of thing it is.
        origin: the operation of the model that the instruction comes from.
        core: absolute number of the core.
        unit: `load`, `matrix`, `vector` or `send`.
        instruction: its index in the stream.
    """

    def __init__(
        self,
        fault: Fault,
        origin: str,
        core: int,
        unit: str,
        instruction: int,
        message: str,
        *,
        notes: Sequence[str] = (),
    ) -> None:
        where = f"core {core}, {unit} stream, instruction {instruction}"
        super().__init__(message, location=origin, notes=(where, *notes))
        self.fault = fault
        self.origin = origin
        self.core = core
        self.unit = unit
        self.instruction = instruction
