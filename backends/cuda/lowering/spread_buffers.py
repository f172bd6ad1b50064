"""Buffers of a decode program get places of their own: where memory is reused, blocks would wait.

    alloc %arena {offset = 0}  ...  alloc %arena {offset = 0}
      -->  alloc %arena {offset = 0}  ...  alloc %arena {offset = 1536}

A plan that reuses memory makes all blocks meet before it is written again. The buffers of a step
are small, so each has its own place in its layer, and successive layers have two frames in turn.

Requires: planned buffers, before barriers are inserted. Guarantees: in a decode program buffers of
the arena overlap only between layers that are not neighbours; plans say how much it is now. Does
not handle: programs of which that is more than a few MiB; they stay as planned.
"""

from __future__ import annotations

from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.types import BufferType
from infc.passes.memory.bufferize import FRAME
from infc.passes.memory.plan_memory import allocations
from infc.passes.walk import body, program_functions, programs
from infc.pipeline.passes import FunctionPass, PassContext

ARENA = "arena"
_ALIGN = 128
"""Bytes: a line of the caches."""
_MOST_BYTES = 8 << 20
"""Of arena: it stays in the second cache beside what streams through it."""


def spread_buffers(module: ir.Module, ctx: PassContext) -> None:
    """Place the buffers of the decode program."""
    for program in programs(module):
        if get(program, "infc.phase") == "decode":
            _spread(program)


def _spread(program: ir.OpView) -> None:
    functions = {get(f, "sym_name"): f for f in program_functions(program)}
    main = functions.pop("main")
    offsets: dict[str, list[int]] = {}
    heights: dict[str, int] = {}
    for name, function in functions.items():
        if get(function, "infc.kernel") is None:
            sizes = [get(op, "size_bytes") for op in allocations(function, ARENA)]
            offsets[name], heights[name] = _in_a_row(sizes, 0)
    frame = max(heights.values(), default=0)
    allocs = allocations(main, ARENA)
    own = [get(op, "size_bytes") for op in allocs if not _is_frame(op)]
    places, total = _in_a_row(own, 2 * frame)
    if total > _MOST_BYTES:
        return
    for name, height in heights.items():
        _place(functions[name], offsets[name], height)
    layers = [i % 2 * frame for i in range(len(allocs) - len(own))]
    for op in allocs:
        if _is_frame(op):
            op.operation.attributes["size_bytes"] = to_attribute(frame)
    of_main = [layers.pop(0) if _is_frame(op) else places.pop(0) for op in allocs]
    _place(main, of_main, total)
    for op in body(main):
        is_space = op.operation.name == "infc.space"
        if is_space and BufferType.of(op.operation.results[0].type).space == ARENA:
            op.operation.attributes["size_bytes"] = to_attribute(total)


def _in_a_row(sizes: list[int], start: int) -> tuple[list[int], int]:
    """Where buffers lie one behind the other, and the end."""
    offsets = []
    for size in sizes:
        offsets.append(start)
        start += -(-size // _ALIGN) * _ALIGN
    return offsets, start


def _is_frame(op: ir.OpView) -> bool:
    return BufferType.of(op.operation.results[0].type).tensor == FRAME


def _place(function: ir.OpView, offsets: list[int], height: int) -> None:
    for op, offset in zip(allocations(function, ARENA), offsets, strict=True):
        op.operation.attributes["offset"] = to_attribute(offset)
    plan = get(function, "infc.plan")
    plan[ARENA]["height_bytes"] = height
    function.operation.attributes["infc.plan"] = to_attribute(plan)


SPREAD_BUFFERS = FunctionPass("spread-buffers", Level.MEMORY, spread_buffers)
