"""The weights that programs read."""

from __future__ import annotations

from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import TensorType, storage_bytes


def weight_sizes(module: ir.Module) -> dict[str, int]:
    """Bytes of each, by its name in the model file."""
    found: dict[str, int] = {}

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "infc.weight":
            kind = TensorType.of(op.results[0].type)
            found[get(op, "source")] = storage_bytes(kind.element, [int(d) for d in kind.shape])
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found
