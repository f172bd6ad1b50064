"""Holds a planned module to its promises once more, right before code is made of it.

A memory-level dump may have been edited: what is compiled is what it says, so what it says must not
let two live buffers share a byte, reach beyond the plan, or let a thread read what another writes.
Written apart from the passes that plan: it only shares their notion of a live range.
"""

from __future__ import annotations

from infc.diagnostics import Code, InfcError, Problem, UserError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.memory.checker import check_plan
from infc.passes.memory.bufferize import FRAME, SPACES
from infc.passes.memory.insert_barriers import missing_barriers
from infc.passes.memory.pack_weights import packed_weights
from infc.passes.memory.plan_memory import allocations, live_buffers
from infc.passes.walk import body, dim_maxima, program_functions, programs


def check_memory(module: ir.Module) -> None:
    """Check plans, frames, barriers and the order of the weights.

    Raises:
        UserError: INF2101 with everything that is wrong.
    """
    problems = _weight_problems(module)
    for program in programs(module):
        functions = {get(f, "sym_name"): f for f in program_functions(program)}
        for function in functions.values():
            if get(function, "infc.kernel") is None:
                problems += _function_problems(function, functions, dim_maxima(program))
    if problems:
        raise UserError(
            Code.PLAN,
            "the memory plan does not hold",
            problems=problems[:50],
            hint="run plan-memory and insert-barriers on the dump before them, or undo the edit",
        )


def _function_problems(
    function: ir.OpView, functions: dict[str, ir.OpView], maxima: dict[str, int]
) -> list[Problem]:
    problems = []
    for space in get(function, "infc.plan"):
        allocs = allocations(function, space)
        height = get(function, "infc.plan")[space]["height_bytes"]
        buffers = live_buffers(function, allocs)
        offsets = {
            buffer.name: get(op, "offset") for buffer, op in zip(buffers, allocs, strict=True)
        }
        try:
            check_plan(buffers, offsets, height)
        except InfcError as error:
            problems.append(Problem(error.diagnostic.message, _where(function)))
        for op in allocs:
            needed = _needed_bytes(op, functions, maxima) if space in SPACES else 0
            if get(op, "size_bytes") < needed:
                text = f"expected a buffer of at least {needed} bytes, got {get(op, 'size_bytes')}"
                problems.append(Problem(text, str(op.location)))
    for op in body(function):
        if op.operation.name == "infc.space":
            space = BufferType.of(op.operation.results[0].type).space
            height = get(function, "infc.plan")[space]["height_bytes"]
            if get(op, "size_bytes") < height:
                text = f"expected a {space} of {height} bytes, got {get(op, 'size_bytes')}"
                problems.append(Problem(text, _where(function)))
    for op in missing_barriers(function, functions):
        what = f"@{get(op, 'callee')}" if op.operation.name == "func.call" else op.operation.name
        problems.append(Problem(f"no barrier in front of {what}", str(op.location)))
    return problems


def _needed_bytes(op: ir.OpView, functions: dict[str, ir.OpView], maxima: dict[str, int]) -> int:
    """Bytes of a buffer's tensor, or of the plans of the functions it is a frame for."""
    kind = BufferType.of(op.operation.results[0].type)
    if kind.tensor != FRAME:
        return kind.tensor.size_bytes(maxima)
    callees = [functions[get(use.owner, "callee")] for use in op.operation.results[0].uses]
    return max(int(get(f, "infc.plan")[kind.space]["height_bytes"]) for f in callees)


def _weight_problems(module: ir.Module) -> list[Problem]:
    """Packed weights must not overlap nor reach beyond the file."""
    problems, end = [], 0
    total = get(module.operation, "infc.weight_bytes")
    for op in sorted(packed_weights(module), key=lambda op: int(get(op, "offset"))):
        offset, size = get(op, "offset"), get(op, "size_bytes")
        if offset < end or offset % 64 or offset + size > total:
            name = get(op, "sym_name")
            text = f"packed weight @{name} at {offset} overlaps, is misaligned, or leaves the file"
            problems.append(Problem(text, str(op.location)))
        end = max(end, offset + size)
    return problems


def _where(function: ir.OpView) -> str:
    return f"@{get(function, 'sym_name')}"
