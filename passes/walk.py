"""Going through a module: its programs and their functions."""

from __future__ import annotations

from collections.abc import Iterator

from infc.ir.attributes import get
from infc.ir.mlir import ir


def programs(module: ir.Module) -> Iterator[ir.OpView]:
    """The nested modules `@prefill` and `@decode`, in order."""
    for op in module.body.operations:
        if op.operation.name == "builtin.module":
            yield op


def program_functions(program: ir.OpView) -> list[ir.OpView]:
    """The functions of one program, in order."""
    body = program.operation.regions[0].blocks[0]
    return [op for op in body.operations if op.operation.name == "func.func"]


def functions(module: ir.Module) -> Iterator[ir.OpView]:
    """All functions of all programs."""
    for program in programs(module):
        yield from program_functions(program)


def dim_maxima(program: ir.OpView) -> dict[str, int]:
    """The largest value of each symbolic dimension of a program."""
    body = program.operation.regions[0].blocks[0]
    return {
        get(op, "sym_name"): get(op, "max")
        for op in body.operations
        if op.operation.name == "infc.dim"
    }


def body(function: ir.OpView) -> list[ir.OpView]:
    """The operations of a function, in order, as a list that survives edits."""
    return list(function.regions[0].blocks[0].operations)
