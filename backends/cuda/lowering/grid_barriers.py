"""Which barriers of a program its blocks need.

A layer is code that is called from several places, so its barriers are placed as if all shared
memory were in use when it starts. Here the program is looked at as it runs, with the place of every
operand: a barrier that nothing needs wherever its function is called is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infc.backends.cuda.call_block import KINDS
from infc.backends.cuda.lowering.programs import Place, ProgramKernels
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.passes.memory.insert_barriers import Pending, Region, written_arguments

_EVERYTHING = 2**62


@dataclass
class Accesses:
    """What one kernel reads and writes of the memory that blocks share, and the kinds of output
    that it works for."""

    outputs: frozenset[str]
    reads: list[Region] = field(default_factory=list)
    writes: list[Region] = field(default_factory=list)


Event = int | Accesses
"""A barrier by its number, or a kernel."""


def needed_barriers(program: ProgramKernels) -> set[ir.Operation]:
    """The barriers that keep blocks from each other's unfinished memory, as few as can be."""
    numbers: dict[ir.Operation, int] = {}
    events = list(_events(program, numbers))
    needed = set(numbers.values())
    for barrier in sorted(needed):
        if all(_holds(events, needed - {barrier}, kind) for kind in KINDS):
            needed.discard(barrier)
    return {operation for operation, number in numbers.items() if number in needed}


def _holds(events: Sequence[Event], barriers: set[int], kind: str) -> bool:
    """Whether no kernel of a call for a kind of output meets what another one has not finished."""
    pending = Pending()
    for event in events:
        if isinstance(event, int):
            if event in barriers:
                pending = Pending()
        elif kind not in event.outputs:
            continue
        elif pending.conflicts(event.reads, event.writes):
            return False
        else:
            pending.reads += event.reads
            pending.writes += event.writes
    return True


def _events(program: ProgramKernels, numbers: dict[ir.Operation, int]) -> Iterator[Event]:
    """The program as it runs; `numbers` takes up the barriers."""
    outputs, every = program.outputs(), frozenset(KINDS)
    for function, op, places in program.walk():
        if op.operation.name == "infc.barrier":
            yield numbers.setdefault(op.operation, len(numbers))
        elif get(op, "callee") in program.forms:
            yield _accesses(program, op, places, outputs(op) if function == program.main else every)


def _accesses(
    program: ProgramKernels, call: ir.OpView, places: Sequence[Place], outputs: frozenset[str]
) -> Accesses:
    callee, found = get(call, "callee"), Accesses(outputs)
    written = written_arguments(program.functions[callee])
    for index, (operand, place) in enumerate(zip(call.operation.operands, places, strict=True)):
        if place.space in ("weights", "thread"):
            continue
        if place.space == "kv" and callee in program.replicated:
            # All blocks append the same: each has seen what it reads. What the cache drops for it,
            # the ring of a window, no row of the call reads.
            continue
        region = Region(place, 0, _EVERYTHING)
        if place.space == "arena":
            size = BufferType.of(operand.type).tensor.size_bytes(program.maxima)
            region = Region(place.space, place.offset, place.offset + size)
        (found.writes if index in written else found.reads).append(region)
    form = program.forms[callee]
    if form.scratch_bytes or form.arrivals:
        found.writes.append(Region("scratch", 0, _EVERYTHING))
    return found
