"""Threads meet exactly where one could read what another has not finished.

    call @k1_matmul(..., %b)             call @k1_matmul(..., %b)
    call @k2_attention(%b, ...)    -->   barrier
                                         call @k2_attention(%b, ...)

Requires: planned buffers (offsets decide what overlaps). Guarantees: between a write of memory that
all threads share and any other access to it (and between a read and a later write) is a barrier; a
transfer is begun by one thread for all of them. Does not handle: kernels whose threads touch
disjoint parts (all accesses count as whole buffers).

A function starts as if everything shared were still being read and written, and so does whatever
follows a call of a layer: a layer is the same code wherever it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infc.ir import ops
from infc.ir.attributes import get
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import BufferType, is_buffer, is_kv
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext


@dataclass(frozen=True)
class Region:
    """Shared memory that an operand stands for: bytes `[start, stop)` of a base."""

    base: object
    start: int
    stop: int

    def overlaps(self, other: Region) -> bool:
        """Whether two regions share a byte."""
        return self.base == other.base and self.start < other.stop and other.start < self.stop


@dataclass
class Pending:
    """Accesses since the last barrier. `unknown` stands for code before this function."""

    reads: list[Region] = field(default_factory=list)
    writes: list[Region] = field(default_factory=list)
    unknown: bool = False

    def conflicts(self, reads: list[Region], writes: list[Region]) -> bool:
        """Whether new accesses must wait."""
        if self.unknown and (reads or writes):
            return True
        after_write = any(a.overlaps(b) for a in self.writes for b in (*reads, *writes))
        return after_write or any(a.overlaps(b) for a in self.reads for b in writes)


def insert_barriers(module: ir.Module, ctx: PassContext) -> None:
    """Insert barriers into the calling functions of both programs."""
    for program in programs(module):
        functions = {get(f, "sym_name"): f for f in program_functions(program)}
        for function in functions.values():
            if get(function, "infc.kernel") is not None:
                continue
            for op in missing_barriers(function, functions):
                with ir.InsertionPoint(op), op.location:
                    ops.create("infc.barrier")


def missing_barriers(function: ir.OpView, functions: dict[str, ir.OpView]) -> list[ir.OpView]:
    """The calls and transfers in front of which a barrier must stand and does not, in order."""
    missing = []
    pending = Pending(unknown=get(function, "sym_name") != "main")
    for op in body(function):
        if op.operation.name == "infc.barrier":
            pending = Pending()
        if op.operation.name in ("infc.move", "infc.prefetch"):
            reads, writes = ([r for r in (_region(v),) if r] for v in op.operation.operands)
            if pending.conflicts(reads, writes):
                missing.append(op)
                pending = Pending()
            # All threads wait for the end of a prefetch; a move is one thread's.
            if op.operation.name == "infc.move":
                pending.reads += reads
                pending.writes += writes
        if op.operation.name != "func.call":
            continue
        callee = functions[get(op, "callee")]
        if get(callee, "infc.kernel") is None:
            # A layer begins with its own barrier.
            pending = Pending(unknown=True)
            continue
        reads, writes = _accesses(op, callee)
        if pending.conflicts(reads, writes):
            missing.append(op)
            pending = Pending()
        pending.reads += reads
        pending.writes += writes
    return missing


def _accesses(op: ir.OpView, kernel: ir.OpView) -> tuple[list[Region], list[Region]]:
    """What a call of a kernel reads and writes of the memory that all threads share."""
    written = written_arguments(kernel)
    reads: list[Region] = []
    writes: list[Region] = []
    for index, operand in enumerate(op.operation.operands):
        region = _region(operand)
        if region is None:
            continue
        (writes if index in written else reads).append(region)
    return reads, writes


def written_arguments(kernel: ir.OpView) -> set[int]:
    """Which arguments of a kernel it writes, a cache that it appends to among them."""
    block = kernel.regions[0].blocks[0]
    # Scratch is written whatever else happens.
    written = {
        argument.arg_number
        for argument in block.arguments
        if is_buffer(argument.type) and BufferType.of(argument.type).layout == "frame"
    }
    for op in body(kernel):
        if op.operation.name == "infc.write":
            written.add(ir.BlockArgument(op.operation.operands[1]).arg_number)
        elif op.operation.name == "infc.kv_append":
            written.add(ir.BlockArgument(op.operation.operands[0]).arg_number)
    return written


def _region(operand: ir.Value) -> Region | None:
    everything = 2**62
    if is_kv(operand.type):
        return Region(operand, 0, everything)
    kind = BufferType.of(operand.type)
    if kind.space in ("weights", "thread"):
        return None
    maker = operand.owner
    if isinstance(maker, ir.Block) or maker.name != "infc.alloc":
        return Region(operand, 0, everything)
    start = get(maker, "offset")
    return Region(maker.operands[0], start, start + get(maker, "size_bytes"))


INSERT_BARRIERS = FunctionPass("insert-barriers", Level.MEMORY, insert_barriers)
