"""Attention kernels: queries go where keys and values are, or keys and values to all of a group.

Where every core owns all rows (decode) a core attends with the queries of its group's heads to the
positions of its stripe, the first stripe to the call's own rows too, and the stripes' partial
results are merged. Where rows are shared (prefill) each core of a group takes some rows, and
attends to all positions.
"""

from __future__ import annotations

from typing import Any

from infc.backends.dataflow.codegen.attention_merge import merge_stripes
from infc.backends.dataflow.codegen.attention_rows import attend_by_rows
from infc.backends.dataflow.codegen.attention_shape import (
    NO_REGISTER,
    AttentionShape,
    emit_queries,
)
from infc.backends.dataflow.codegen.attention_tiles import AttentionTiles, Partial, Source
from infc.backends.dataflow.codegen.columns import quantize_columns
from infc.backends.dataflow.codegen.exchange import as_rows
from infc.backends.dataflow.codegen.rows import quantize_rows
from infc.backends.dataflow.codegen.scope import Kernel, Scope
from infc.backends.dataflow.codegen.stream import Count, Stream
from infc.backends.dataflow.codegen.values import Appended, Rows, Value
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.types import TensorType
from infc.passes.walk import body

_F32, _F16 = 4, 2


def emit_attention(kernel: Kernel, scope: Scope) -> list[Value]:
    """An `attention` kernel."""
    arguments = kernel.function.regions[0].blocks[0].arguments
    values: dict[Any, Value] = dict(zip(arguments, kernel.operands, strict=True))
    for op in body(kernel.function):
        name = op.operation.name
        operands = [values[value] for value in op.operation.operands]
        if name == "func.return":
            return operands
        if name == "infc.kv_attention":
            result = _attend(
                scope,
                operands[0],
                operands[1],
                heads=int(get(op, "heads")),
                scale=get(op, "scale"),
                softcap=get(op, "softcap"),
            )
        else:
            element = TensorType.of(op.operation.results[0].type).element
            result = _quantize(scope, operands[0], element)
        values[op.operation.results[0]] = result
    raise InternalError("a kernel has no return")


def _quantize(scope: Scope, value: Value, element: str) -> Value:
    if isinstance(value, Rows):
        return quantize_rows(scope, value, element, "attended")
    return quantize_columns(scope, value, element)


def _attend(
    scope: Scope, q: Value, cache: Value, *, heads: int, scale: float, softcap: float
) -> Value:
    if not isinstance(cache, Appended):
        raise InternalError("attention to a cache that nothing was appended to")
    queries = as_rows(scope, q)
    shape = AttentionShape.of(scope, cache, heads, scale, softcap)
    if queries.space.shared or len(scope.cores) == 1:
        return attend_by_rows(scope, shape, queries)
    return _attend_by_positions(scope, shape, queries)


def _attend_by_positions(scope: Scope, shape: AttentionShape, q: Rows) -> Value:
    """Each core with all rows of its heads to the positions of its stripe."""
    home, space = shape.home, q.space
    if space.most * shape.heads > scope.machine.matrix.m:
        raise InternalError(f"{space.most} rows of {shape.heads} heads in one tile")
    tile = shape.tile(space.most)
    width = tile.queries * tile.head_dim
    halves = scope.buffer("queries", _F16 * home.heads * width)
    stats = scope.buffer("partial.stats", 2 * _F32 * home.heads * tile.queries)
    output = scope.buffer("partial.output", _F32 * home.heads * width)
    for core in scope.cores:
        if home.stripe(core.index) >= home.stripes:
            continue
        emit_queries(
            scope, core, q, halves, shape=shape, first=core.index // home.span * home.heads,
            count=home.heads, head_bytes=_F16 * width,
        )  # fmt: skip
        for head in range(home.heads):
            partial = Partial(
                stats.at(_F32 * head * tile.queries),
                stats.at(_F32 * (home.heads + head) * tile.queries),
                output.at(_F32 * head * width),
            )
            attention = AttentionTiles(scope.group, scope.machine.matrix, tile, partial)
            place = halves.at(_F16 * head * width)
            shape.emit_loads(core, head)
            rows = scope.total(core.matrix, space)
            sources = _sources(shape, core.matrix, head, rows)
            attention.emit_matrix(core.matrix, place, rows, sources)
            rows = scope.total(core.vector, space)
            sources = _sources(shape, core.vector, head, rows)
            attention.emit_vector(core.vector, rows, sources)
    merged = merge_stripes(scope, shape, space, stats, output)
    shape.emit_append()
    return merged


def _sources(shape: AttentionShape, stream: Stream, head: int, rows: Count) -> list[Source]:
    """What a core's stripe adds: the first one the call's own rows too."""
    queries = shape.queries(stream, NO_REGISTER, rows)
    found = [shape.earlier_tiles(queries, head)]
    if shape.home.stripe(stream.core.index) == 0:
        found.append(shape.own_rows(queries, head))
    return found
