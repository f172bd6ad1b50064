"""Products: every core multiplies all rows with some columns, over the whole depth.

    acc[rows][columns of the core] = x[rows][k] * w[columns][k], strip by strip of tile n columns,
    for each piece of weights: rows in tiles of m, the depth in tiles of k

Sums run over k in order, whatever the number of cores. A gate and its product are read strip by
strip in turns; the activation, biases and soft caps follow on the vector unit, on columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infc.backends.dataflow.codegen.columns import (
    add_bias,
    apply_each,
    multiply_each,
    quantize_columns,
    scale_columns,
    softcap_columns,
)
from infc.backends.dataflow.codegen.gated import emit_gated
from infc.backends.dataflow.codegen.products import Products, cuts_of
from infc.backends.dataflow.codegen.rows import quantize_rows
from infc.backends.dataflow.codegen.scope import Kernel, Scope
from infc.backends.dataflow.codegen.values import (
    Codes,
    Columns,
    Gated,
    Halves,
    Operand,
    Rows,
    Value,
    Weight,
    deal,
)
from infc.backends.dataflow.codegen.weights import Cut
from infc.backends.dataflow.isa import BLOCK, Unary
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.walk import body

FINE_COLUMNS = 4
"""Columns that are dealt to cores together, where nothing is quantised behind the product."""


def emit_product(kernel: Kernel, scope: Scope) -> list[Value]:
    """A `matmul` kernel: products of one input, and what follows each element."""
    block = kernel.function.regions[0].blocks[0]
    values: dict[object, Value] = dict(zip(block.arguments, kernel.operands, strict=True))
    operations = body(kernel.function)
    products = [op for op in operations if op.operation.name == "infc.linear"]
    gate = any(op.operation.name == "infc.mul" for op in operations)
    source = as_operand(scope, values[products[0].operation.operands[0]])
    weights = [values[op.operation.operands[1]] for op in products]
    gated = _gated(scope, kernel, source, values)
    made: list[Columns] = []
    if gated is not None:
        operations, products = _behind(operations, gated, values), []
    else:
        made = multiply(scope, source, weights, gate=gate)
    for op, columns in zip(products, made, strict=True):
        values[op.operation.results[0]] = columns
        scale_columns(scope, columns, values[op.operation.operands[1]])
        if len(op.operation.operands) == 3:
            add_bias(scope, columns, values[op.operation.operands[2]])
    for op in operations:
        name, operands = (
            op.operation.name,
            [values[v] for v in op.operation.operands if v in values],
        )
        if name == "infc.activation":
            values[op.operation.results[0]] = apply_each(scope, operands[0], _activation(op))
        elif name == "infc.softcap":
            values[op.operation.results[0]] = softcap_columns(scope, operands[0], get(op, "cap"))
        elif name == "infc.mul":
            values[op.operation.results[0]] = multiply_each(scope, *operands)
        elif name == "infc.quantize":
            element = TensorType.of(op.operation.results[0].type).element
            values[op.operation.results[0]] = quantize_product(scope, operands[0], element)
        elif name == "func.return":
            return operands
    raise InternalError("a kernel has no return")


def _gated(
    scope: Scope, kernel: Kernel, x: Operand, values: Mapping[object, Value]
) -> Gated | None:
    """Two products of which one is activated and multiplied with the other, where there are rows
    enough for work by strips."""
    operations = body(kernel.function)
    products = [op for op in operations if op.operation.name == "infc.linear"]
    others = [op.operation.name for op in operations if op not in products]
    if scope.phase != "prefill" or others[:2] != ["infc.activation", "infc.mul"]:
        return None
    if any(len(op.operation.operands) == 3 for op in products):
        return None
    activation = next(op for op in operations if op.operation.name == "infc.activation")
    activated = [op.operation.results[0] for op in products].index(activation.operation.operands[0])
    first, second = (values[op.operation.operands[1]] for op in products)
    if not isinstance(first, Weight) or not isinstance(second, Weight):
        raise InternalError("a product reads a matrix that is no weight")
    origins = scope.group.origins
    origin = origins.names[origins.current]
    return Gated(x, (first, second), activated, _activation(activation), origin)


def _behind(
    operations: Sequence[ir.OpView], gated: Gated, values: dict[object, Value]
) -> list[ir.OpView]:
    """What follows the product of a gate, which becomes a value."""
    multiplied = next(op for op in operations if op.operation.name == "infc.mul")
    values[multiplied.operation.results[0]] = gated
    return list(operations[list(operations).index(multiplied) + 1 :])


def _activation(op: ir.OpView) -> Unary:
    return Unary.SILU if get(op, "kind") == "silu" else Unary.GELU_TANH


def quantize_product(scope: Scope, value: Value, form: str) -> Value:
    """Columns, or what a gate lets through, as a8, bf16 or f16 on every core."""
    if isinstance(value, Gated):
        return emit_gated(scope, value, form)
    return quantize_columns(scope, value, form)


def as_operand(scope: Scope, value: Value) -> Operand:
    """What a product reads; float32 numbers are rounded to f16."""
    if isinstance(value, Columns | Gated):
        value = quantize_product(scope, value, "f16")
    elif isinstance(value, Rows):
        value = quantize_rows(scope, value, "f16", "x")
    if isinstance(value, Codes):
        return Operand(value.space, value.codes, value.scales, value.k)
    if isinstance(value, Halves):
        return Operand(value.space, value.buffer, None, value.k)
    raise InternalError(f"a product reads {type(value).__name__}")


def multiply(
    scope: Scope, x: Operand, weights: Sequence[Value], *, gate: bool, unit: int | None = None
) -> list[Columns]:
    """The products of one input with some matrices.

    Args:
        gate: two matrices of one shape whose products are multiplied, and may be quantised.
        unit: columns dealt to cores together.
    """
    found: list[Columns] = []
    cuts: list[list[Cut]] = []
    for number, weight in enumerate(weights):
        if not isinstance(weight, Weight):
            raise InternalError("a product reads a matrix that is no weight")
        n = int(weight.type.shape[0])
        slices = deal(n, unit or (BLOCK if gate else FINE_COLUMNS), len(scope.cores))
        row_bytes = 4 * max(stop - first for first, stop in slices)
        buffer = scope.buffer(f"product{number}", x.space.most * row_bytes)
        found.append(Columns(x.space, buffer, n, slices, row_bytes))
        cuts.append(cuts_of(scope, weight, slices))
    # Of many rows what follows one product is worth doing while the next one is made.
    apart = scope.phase == "prefill" and len(weights) > 1 and not gate
    for core in scope.cores:
        core.hand(core.vector, core.matrix)
        emitter, own = Products(scope, core, x), [cut[core.index] for cut in cuts]
        if gate:
            emitter.strips(own, found)
        else:
            for cut, columns in zip(own, found, strict=True):
                emitter.strips([cut], [columns])
                if apart:
                    core.matrix.post("matrix>vector")
        if not apart:
            core.hand(core.matrix, core.vector)
    if apart:
        read = [buffer for buffer in (x.values, x.scales) if buffer is not None]
        scope.products += [(columns.buffer, *read) for columns in found]
    return found
