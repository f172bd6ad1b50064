"""Which results of a program each of its kernels works for.

A call asks for one kind of output: logits, the best token, the top tokens. A kernel whose results
reach no result that is asked for need not run.
"""

from __future__ import annotations

from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import is_kv
from infc.passes.memory.insert_barriers import written_arguments
from infc.passes.walk import body

INPUTS = 4
"""Arguments of `@main` before its results: tokens, positions, slots, rows."""
OUTPUTS = ("logits", "argmax", "top_k", "top_k")
"""The kind of output that each result is for, in order."""


def demanded_by(main: ir.OpView, functions: dict[str, ir.OpView]) -> dict[ir.Value, frozenset[str]]:
    """The kinds of output that each buffer of a memory-level `@main` is needed for.

    What fills a KV cache is needed whatever is asked for, and so is all that it reads.
    """
    results = list(main.regions[0].blocks[0].arguments)[INPUTS:]
    every = frozenset(OUTPUTS[: len(results)])
    needs: dict[ir.Value, frozenset[str]] = {
        result: frozenset({kind}) for result, kind in zip(results, OUTPUTS, strict=False)
    }
    for op in reversed(body(main)):
        if op.operation.name != "func.call":
            continue
        need = kinds_of_call(op, functions, needs, every)
        for operand in op.operation.operands:
            needs[operand] = needs.get(operand, frozenset()) | need
    return needs


def kinds_of_call(
    op: ir.OpView,
    functions: dict[str, ir.OpView],
    needs: dict[ir.Value, frozenset[str]],
    every: frozenset[str],
) -> frozenset[str]:
    """The kinds of output that a call works for."""
    callee = functions[get(op, "callee")]
    if get(callee, "infc.kernel") is None:
        return every
    operands = list(op.operation.operands)
    written = [operands[index] for index in written_arguments(callee)]
    if any(is_kv(value.type) for value in written):
        return every
    found: frozenset[str] = frozenset()
    return found.union(*(needs.get(value, frozenset()) for value in written))
