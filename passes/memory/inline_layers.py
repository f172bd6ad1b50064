"""Layers become part of `@main`: what is scheduled as a whole must be written as a whole.

    call @layer0(%x, %w, %y, %frame, ...)   -->   %b = alloc %arena {...}
                                                  call @k0_rows(%x, %w, %b) {infc.layer = 0} ...

Part of `schedule-transfers`: a transfer begins in one layer and ends in the next, and each layer's
weights lie elsewhere, so layers that share their code cannot share their schedule.
"""

from __future__ import annotations

from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.outline import clone_ops
from infc.ir.types import BufferType, is_buffer
from infc.passes.memory.bufferize import FRAME
from infc.passes.walk import body, program_functions


def inline_layers(program: ir.OpView) -> None:
    """Inline every call of a function that is no kernel, and erase these functions."""
    functions = {get(f, "sym_name"): f for f in program_functions(program)}
    main = functions["main"]
    frames = {
        BufferType.of(op.operation.results[0].type).space: op.operation.results[0]
        for op in body(main)
        if op.operation.name == "infc.space"
    }
    while calls := [op for op in body(main) if _is_layer(op, functions)]:
        for call in calls:
            _inline(call, functions[get(call, "callee")], frames)
    for op in body(main):
        # The frames that layers were given.
        if op.operation.name == "infc.alloc" and _is_frame(op.operation.results[0]):
            op.operation.erase()
    for name, function in functions.items():
        if name != "main" and get(function, "infc.kernel") is None:
            function.operation.erase()


def _is_layer(op: ir.OpView, functions: dict[str, ir.OpView]) -> bool:
    return (
        op.operation.name == "func.call"
        and get(functions[get(op, "callee")], "infc.kernel") is None
    )


def _is_frame(value: ir.Value) -> bool:
    return is_buffer(value.type) and BufferType.of(value.type).tensor == FRAME


def _inline(call: ir.OpView, function: ir.OpView, frames: dict[str, ir.Value]) -> None:
    arguments = function.regions[0].blocks[0].arguments
    mapping = {
        argument: frames[BufferType.of(argument.type).space] if _is_frame(argument) else operand
        for argument, operand in zip(arguments, call.operation.operands, strict=True)
    }
    layer = call.operation.attributes["infc.layer"] if "infc.layer" in call.attributes else None
    with ir.InsertionPoint(call):
        for op in body(function)[:-1]:
            (copy,) = clone_ops([op], mapping)
            if layer is not None and copy.name == "func.call":
                copy.attributes["infc.layer"] = layer
    call.operation.erase()
