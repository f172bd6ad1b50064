"""Forms of the kernels behind the final norm: the head and what is taken of its logits."""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.kernels.best_list import emit_argmax_of_parts, emit_merge, emit_top_k
from infc.backends.cpu.kernels.bounded_layout import bounded_layout_named
from infc.backends.cpu.kernels.head_planes import HeadSpec
from infc.backends.cpu.kernels.rows import emit_argmax
from infc.backends.cpu.kernels.split_head import emit_head_candidates, emit_head_logits
from infc.backends.cpu.kernels.split_layout import split_layout_named
from infc.backends.cpu.lowering.forms import Form, matmul_mapping
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.codegen.kernel_body import KernelBody


def reads_split(body: KernelBody) -> bool:
    """Whether a product's matrix is in two planes that make it up together."""
    weight = body.source[body.named("linear")[0].operation.operands[1]]
    return split_layout_named(body.buffer(weight).layout) is not None


def head_logits_form(b: Builder, name: str, body: KernelBody, rows: int) -> Form:
    """All logits of a head in two planes."""
    if len(body.ops) != 1:
        raise InternalError(
            "a split matrix is multiplied alone", location=str(body.ops[0].location)
        )
    (op,) = body.ops
    x, matrix = op.operation.operands
    emit_head_logits(b, name, _spec(body, op, rows), matmul_mapping(body))
    pointers = (body.source[x], body.source[matrix], body.target[op.operation.results[0]])
    return Form(name, pointers, body.row_symbol(), "1mindp")


def head_form(b: Builder, name: str, body: KernelBody, rows: int) -> Form:
    """Candidates for the best logits of a head in two planes, a list a thread."""
    (op,) = body.named("head_candidates")
    x, matrix = op.operation.operands
    values, ids = op.operation.results
    count = get(op, "count")
    parts = int(TensorType.of(values.type).shape[1]) // count
    emit_head_candidates(b, name, _spec(body, op, rows), matmul_mapping(body), parts, count)
    pointers = (body.source[x], body.source[matrix], body.target[values], body.target[ids])
    return Form(name, pointers, body.row_symbol(), "1mindp" + ("k" if count > 1 else "o"))


def argmax_form(b: Builder, name: str, body: KernelBody) -> Form:
    """The best token of each row, of its logits or of candidates."""
    (op,) = body.named("argmax")
    operands = list(op.operation.operands)
    columns = int(TensorType.of(operands[0].type).shape[1])
    if len(operands) == 1:
        emit_argmax(b, name, columns)
    else:
        emit_argmax_of_parts(b, name, columns)
    sources = (body.source[operand] for operand in operands)
    return Form(name, (*sources, body.target[op.operation.results[0]]), body.row_symbol(), "pmin")


def top_k_form(b: Builder, name: str, body: KernelBody) -> Form:
    """The largest logits of each row, of all of them or of candidates."""
    (op,) = body.named("top_k")
    operands = list(op.operation.operands)
    columns = int(TensorType.of(operands[0].type).shape[1])
    count = int(TensorType.of(op.operation.results[0].type).shape[1])
    if len(operands) == 1:
        emit_top_k(b, name, columns, count)
    else:
        emit_merge(b, name, columns // count, count)
    sources = (body.source[operand] for operand in operands)
    targets = (body.target[result] for result in op.operation.results)
    return Form(name, (*sources, *targets), body.row_symbol(), "pmink")


def _spec(body: KernelBody, op: ir.OpView, rows: int) -> HeadSpec:
    x, matrix = op.operation.operands
    named = body.buffer(body.source[matrix]).layout
    layout = split_layout_named(named) or bounded_layout_named(named)
    if layout is None:
        raise InternalError("expected a matrix in two planes", location=str(op.location))
    n, k = (int(d) for d in TensorType.of(matrix.type).shape)
    return HeadSpec(n, k, layout, TensorType.of(x.type).element, rows)
