"""Merge equal operations and drop unused ones.

    %0 = infc.weight {source = "w"}        %0 = infc.weight {source = "w"}
    %1 = infc.weight {source = "w"}   -->  uses of %1 are uses of %0
    %2 = infc.add %a, %b   (unused)

Requires: a graph-level module. Guarantees: no two operations with the same name, operands,
attributes and types; no operation without uses. Does not handle: operations that are equal up to
algebra (`a + b` and `b + a`).

IRDL operations carry no purity trait, so MLIR's own cse and dead-code elimination leave them; every
op of the graph level is pure, which this pass relies on.
"""

from __future__ import annotations

from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.pipeline.passes import FunctionPass, PassContext

_DECLARATIONS = frozenset({"infc.dim", "infc.device", "func.return"})


def canonicalize(module: ir.Module, ctx: PassContext) -> None:
    """Rewrite every function of the module."""
    for function in module.body.operations:
        if function.operation.name == "func.func":
            block = function.regions[0].blocks[0]
            _merge_equal(block)
            _drop_unused(block)


def _merge_equal(block: ir.Block) -> None:
    seen: dict[tuple[object, ...], ir.OpView] = {}
    for op in list(block.operations):
        operation = op.operation
        if operation.name in _DECLARATIONS:
            continue
        key = (
            operation.name,
            tuple(operation.operands),
            tuple((name, str(operation.attributes[name])) for name in operation.attributes),
            tuple(str(result.type) for result in operation.results),
        )
        first = seen.setdefault(key, op)
        if first is not op:
            for old, new in zip(operation.results, first.operation.results, strict=True):
                old.replace_all_uses_with(new)
            operation.erase()


def _drop_unused(block: ir.Block) -> None:
    for op in reversed(list(block.operations)):
        if op.operation.name in _DECLARATIONS:
            continue
        if not any(list(result.uses) for result in op.operation.results):
            op.operation.erase()


CANONICALIZE = FunctionPass("canonicalize", Level.GRAPH, canonicalize)
