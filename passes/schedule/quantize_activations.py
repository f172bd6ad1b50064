"""Products with quantised weights get quantised activations, so that they run on integers.

    linear %x, %w : tensor<..xf32>, tensor<..x!infc.storage<"q5_0">>
      -->  %q = quantize %x ;  linear %q, %w

Requires: layers outlined. Guarantees: a `linear` whose weight is quantised reads an `a8` tensor,
shared between products of the same input. Does not handle: widths that are not a multiple of 32
(declined: such a product stays in float32).
"""

from __future__ import annotations

from infc.ir import ops
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import TensorType
from infc.passes.walk import functions
from infc.pipeline.passes import FunctionPass, PassContext

GROUP = 32
"""Columns that share a scale."""


def quantize_activations(module: ir.Module, ctx: PassContext) -> None:
    """Insert `infc.quantize` before products with quantised weights."""
    for function in functions(module):
        quantised: dict[ir.Value, ir.Value] = {}
        for op in list(function.regions[0].blocks[0].operations):
            if op.operation.name != "infc.linear":
                continue
            x, matrix = list(op.operation.operands)[:2]
            kind = TensorType.of(matrix.type)
            if STORAGE_TYPES[kind.element].is_float:
                ctx.decline(op, f"weights are kept as {kind.element}")
                continue
            if int(kind.shape[1]) % GROUP:
                ctx.decline(op, f"{kind.shape[1]} columns are not a multiple of {GROUP}")
                continue
            if x not in quantised:
                with ir.InsertionPoint(op), op.location:
                    quantised[x] = ops.quantize(x)
            op.operation.operands[0] = quantised[x]


QUANTIZE_ACTIVATIONS = FunctionPass(
    "quantize-activations", Level.PHASE, quantize_activations, raises_to=Level.SCHEDULE
)
