"""Every buffer gets an offset: callees first, then their callers, who give them frames.

    alloc %frame {offset = -1}   -->   alloc %frame {offset = 4096, first = 2, last = 5}

Requires: bufferised programs. Guarantees: offsets are multiples of 64, buffers that are live
together never overlap (an independent checker agrees), functions carry `infc.plan` with the height
and the lower bound of each space, `infc.space` has its size. Does not handle: moving buffers.

A step is an operation of the function; a buffer lives from the first operation that uses it to the
last; one that a transfer uses lives until that was waited for. In a call, arguments and results
live together, so no output overlaps an input.
"""

from __future__ import annotations

from infc.diagnostics import InternalError
from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.memory.buffer import Buffer
from infc.memory.checker import check_plan
from infc.memory.planner import plan_arena
from infc.passes.memory.bufferize import SPACES
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext

ALIGN = 64
"""Bytes: one cache line, one vector register."""


def plan_memory(module: ir.Module, ctx: PassContext) -> None:
    """Plan both programs."""
    for program in programs(module):
        functions = {get(f, "sym_name"): f for f in program_functions(program)}
        planned: dict[str, dict[str, dict[str, int]]] = {}
        for name in functions:
            _plan_function(name, functions, planned)


def _plan_function(
    name: str,
    functions: dict[str, ir.OpView],
    planned: dict[str, dict[str, dict[str, int]]],
) -> dict[str, dict[str, int]]:
    """Plan a function once; returns height and bound in bytes for each space."""
    if name in planned:
        return planned[name]
    function = functions[name]
    if get(function, "infc.kernel") is not None:
        planned[name] = {space: {"height_bytes": 0, "lower_bound_bytes": 0} for space in SPACES}
        return planned[name]
    _size_frames(function, functions, planned)
    plan = {}
    for space in SPACES:
        height, bound = _plan_space(function, space)
        plan[space] = {"height_bytes": height, "lower_bound_bytes": bound}
    for op in body(function):
        if op.operation.name == "infc.space":
            space = BufferType.of(op.operation.results[0].type).space
            if space in plan:
                op.operation.attributes["size_bytes"] = to_attribute(plan[space]["height_bytes"])
    # Other spaces, where there are any, have a plan already.
    every = get(function, "infc.plan", {}) | plan
    function.operation.attributes["infc.plan"] = to_attribute(every)
    planned[name] = plan
    return plan


def _size_frames(
    function: ir.OpView,
    functions: dict[str, ir.OpView],
    planned: dict[str, dict[str, dict[str, int]]],
) -> None:
    """Frames handed to a callee are as large as its plan."""
    for op in body(function):
        if op.operation.name != "func.call":
            continue
        plan = _plan_function(get(op, "callee"), functions, planned)
        for operand in op.operation.operands:
            maker = operand.owner
            if isinstance(maker, ir.Block) or maker.name != "infc.alloc":
                continue
            kind = BufferType.of(operand.type)
            if kind.layout == "frame" and kind.tensor.shape == (0,):
                height = plan[kind.space]["height_bytes"]
                maker.attributes["size_bytes"] = to_attribute(height)


def allocations(function: ir.OpView, space: str) -> list[ir.OpView]:
    """The buffers a function places in a space, in order."""
    return [
        op
        for op in body(function)
        if op.operation.name == "infc.alloc"
        and BufferType.of(op.operation.results[0].type).space == space
    ]


def live_buffers(function: ir.OpView, allocs: list[ir.OpView]) -> list[Buffer]:
    """The buffers as the planner takes them, named by their place in `allocs`."""
    steps = {op.operation: step for step, op in enumerate(body(function))}
    buffers = []
    for number, op in enumerate(allocs):
        users = [use.owner.operation for use in op.operation.results[0].uses]
        # A transfer uses both of its buffers until it has been waited for.
        users += [
            wait.owner.operation
            for user in users
            if user.name == "infc.prefetch"
            for wait in user.results[0].uses
        ]
        uses = [steps[user] for user in users]
        if not uses:
            raise InternalError("a buffer is never used", location=str(op.location))
        buffers.append(Buffer(str(number), get(op, "size_bytes"), ALIGN, min(uses), max(uses)))
    return buffers


def _plan_space(function: ir.OpView, space: str) -> tuple[int, int]:
    allocs = allocations(function, space)
    buffers = live_buffers(function, allocs)
    plan = plan_arena(buffers)
    height = -(-plan.height_bytes // ALIGN) * ALIGN
    check_plan(buffers, plan.offsets, height)
    for buffer, op in zip(buffers, allocs, strict=True):
        op.operation.attributes["offset"] = to_attribute(plan.offsets[buffer.name])
        op.operation.attributes["first"] = to_attribute(buffer.first)
        op.operation.attributes["last"] = to_attribute(buffer.last)
    return height, -(-plan.lower_bound_bytes // ALIGN) * ALIGN


PLAN_MEMORY = FunctionPass("plan-memory", Level.MEMORY, plan_memory)
