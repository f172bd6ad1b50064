"""Moving operations into functions: used for layers, for kernels, and for the two programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from infc.ir.mlir import func, ir


def clone_ops(ops: Iterable[ir.OpView], mapping: dict[ir.Value, ir.Value]) -> list[ir.Operation]:
    """Clone operations (without regions) at the insertion point, in order; returns the clones.

    Args:
        ops: what to clone; operands must be in `mapping` or be results of earlier ones.
        mapping: old value -> new value; gets the results added.
    """
    copies = []
    for op in ops:
        copy = op.operation.clone()
        copies.append(copy)
        for index, operand in enumerate(op.operation.operands):
            copy.operands[index] = mapping[operand]
        mapping.update(zip(op.operation.results, copy.results, strict=True))
    return copies


def operands_from_outside(ops: Sequence[ir.OpView]) -> list[ir.Value]:
    """Values the operations use but do not make, in order of first use."""
    made = {result for op in ops for result in op.operation.results}
    found: dict[ir.Value, None] = {}
    for op in ops:
        for operand in op.operation.operands:
            if operand not in made:
                found.setdefault(operand)
    return list(found)


def results_used_outside(ops: Sequence[ir.OpView]) -> list[ir.Value]:
    """Values the operations make that others use, in order."""
    inside = {op.operation for op in ops}
    return [
        result
        for op in ops
        for result in op.operation.results
        if any(use.owner.operation not in inside for use in result.uses)
    ]


def outline(
    ops: Sequence[ir.OpView],
    name: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    at: ir.InsertionPoint,
) -> func.FuncOp:
    """A private function with copies of the operations; the originals stay.

    Args:
        ops: what the body holds, in order.
        name: of the function.
        inputs: values that become arguments; must cover `operands_from_outside`.
        outputs: values that become results.
        at: where the function is put.
    """
    with at:
        kind = ir.FunctionType.get([v.type for v in inputs], [v.type for v in outputs])
        function = func.FuncOp(name, kind, visibility="private")
    block = function.add_entry_block()
    mapping: dict[ir.Value, ir.Value] = dict(zip(inputs, block.arguments, strict=True))
    with ir.InsertionPoint(block):
        clone_ops(ops, mapping)
        func.ReturnOp([mapping[v] for v in outputs])
    return function


def structural_key(function: func.FuncOp) -> str:
    """Text that is equal for functions that differ in name and locations only."""
    text = str(function.operation.get_asm(enable_debug_info=False))
    return text.replace(f"@{function.sym_name.value}(", "@(", 1)
