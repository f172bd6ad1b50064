"""The best tokens are found from a part of the vocabulary head.

    %l = linear %a, %w              %l = linear %a, %w
    %b = argmax %l             -->  %v, %i = head_candidates %a, %w {count = 1}
    return %l, %b                   %b = argmax %v, %i
                                    return %l, %b

The head's weight is marked `split`: the backend keeps it in two planes, of which one bounds every
logit. Where only the best logits are wanted the product itself does not run (kernels
do not, whose results the call does not ask for).

Requires: products have the form of their input. Guarantees: the same logits and indices. Does not
handle (declined): a bias or a soft cap behind the product, inputs that are not `a8` (`f32` where
the weights are floats), storage types that the backend does not split.
"""

from __future__ import annotations

from infc.ir import ops
from infc.ir.attributes import get, to_attribute
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import A8, TensorType
from infc.passes.walk import body, functions
from infc.pipeline.passes import FunctionPass, PassContext


def split_head(module: ir.Module, ctx: PassContext) -> None:
    """Rewrite every `argmax` and `top_k` of a product, then mark the weights of those products."""
    sources = set()
    for function in functions(module):
        for op in body(function):
            if op.operation.name in ("infc.argmax", "infc.top_k"):
                reason = _obstacle(op, ctx)
                if reason:
                    ctx.decline(op, reason)
                else:
                    sources.add(_rewrite(op, ctx))
    for function in functions(module):
        for op in body(function):
            if op.operation.name == "infc.weight" and get(op, "source") in sources:
                op.operation.attributes["split"] = to_attribute(True)


def _obstacle(op: ir.OpView, ctx: PassContext) -> str | None:
    """Why the logits must be computed whole, or None."""
    product = op.operation.operands[0].owner
    if isinstance(product, ir.Block) or product.name != "infc.linear":
        return "its input is not a plain product"
    operands = list(product.operands)
    if len(operands) > 2:
        return "the product adds a bias"
    form, kind = TensorType.of(operands[0].type).element, TensorType.of(operands[1].type)
    if form != ("f32" if STORAGE_TYPES[kind.element].is_float else A8):
        return f"the product's input is {form}"
    if not ctx.backend.splits(kind):
        return f"the backend does not split {kind.element} weights of {kind.shape[1]} columns"
    return None


def _rewrite(op: ir.OpView, ctx: PassContext) -> str:
    """Replace one operation; returns the name of the head's weight."""
    operation = op.operation
    x, matrix = list(operation.operands[0].owner.operands)
    top = operation.name == "infc.top_k"
    count = int(TensorType.of(operation.results[0].type).shape[1]) if top else 1
    with ir.InsertionPoint(op), op.location:
        found = ops.head_candidates(x, matrix, count=count, parts=ctx.options.max_threads)
        made = ops.top_k(*found, count=count) if top else (ops.argmax(*found),)
    for old, new in zip(operation.results, made, strict=True):
        old.replace_all_uses_with(new)
    operation.erase()
    return str(get(matrix.owner, "source"))


SPLIT_HEAD = FunctionPass("split-head", Level.SCHEDULE, split_head)
