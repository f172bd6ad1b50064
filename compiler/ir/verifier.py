"""What IRDL cannot state: shapes that must agree, attributes that must make sense.

`verify` runs MLIR's own verifier first (op signatures, symbols, types of calls), then one rule for
each op, and reports every violation at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from infc.diagnostics import Code, InternalError, Problem, UserError, count
from infc.ir.attributes import get
from infc.ir.kv_storage import KV_DTYPES
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import (
    A8,
    ACTIVATION_FORMS,
    BufferType,
    Dim,
    KVType,
    TensorType,
    is_buffer,
    is_kv,
    is_tensor,
)


def verify(module: ir.Module) -> None:
    """Check a module.

    Raises:
        UserError: INF2002, with every violation and its location.
    """
    problems: list[Problem] = []
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        problems += [
            Problem(str(diagnostic.message), str(diagnostic.location))
            for diagnostic in error.error_diagnostics
        ]
    else:
        operations = _to_check(module)
        symbols = {get(op, "sym_name") for op in operations if op.name == "infc.dim"}
        for op in operations:
            _check(op, symbols, problems)
    if problems:
        raise UserError(
            Code.IR_VERIFY, f"the IR breaks {count(len(problems), 'rule')}", problems=problems[:50]
        )


def _to_check(module: ir.Module) -> list[ir.Operation]:
    """The operations that rules may speak of, in order.

    At the machine level these are the declarations around the code: in the code, tens of thousands
    of operations of MLIR's own, there is nothing of infc.
    """
    attributes = module.operation.attributes
    machine = ir.StringAttr.get(Level.MACHINE.value)
    if "infc.level" in attributes and attributes["infc.level"] == machine:
        return [op.operation for op in module.body.operations]
    return list(_nested(module.operation))


def _nested(op: ir.Operation) -> Iterator[ir.Operation]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _nested(inner.operation)


def _check(op: ir.Operation, symbols: set[str], problems: list[Problem]) -> None:
    try:
        found = [*_undeclared(op, symbols), *_malformed(op)]
        rule = _RULES.get(op.name)
        if rule is not None and not found:
            found += rule(op)
    except InternalError as error:
        found = [error.diagnostic.message]
    except (KeyError, ValueError) as error:
        found = [str(error)]
    problems += [Problem(f"{op.name}: {message}", str(op.location)) for message in found]


def _undeclared(op: ir.Operation, symbols: set[str]) -> Iterator[str]:
    for result in op.results:
        if is_tensor(result.type):
            kind = TensorType.of(result.type)
            for dim in kind.shape:
                if isinstance(dim, str) and dim not in symbols:
                    yield f"dimension '{dim}' is not declared by an infc.dim"


def _malformed(op: ir.Operation) -> Iterator[str]:
    """Attributes of another kind and operands of another rank than the rules below rely on."""
    for name, kind in _ATTRIBUTES.get(op.name, {}).items():
        value: Any = get(op, name)
        wrong_kind = type(value) is not kind
        if value is None:
            continue
        if wrong_kind:
            yield f"expected {name} to be {_KIND_NAMES[kind]}, got '{value}'"
        elif name in _POSITIVE and value < 1:
            yield f"expected {name} to be at least 1, got {value}"
    ranks = _RANKS.get(op.name, ())
    for index, (rank, operand) in enumerate(zip(ranks, op.operands, strict=False)):
        shape = TensorType.of(operand.type).shape
        if len(shape) != rank:
            yield f"expected operand {index} to have rank {rank}, got {len(shape)}"


def _tensor(op: ir.Operation, index: int) -> TensorType:
    return TensorType.of(op.operands[index].type)


def _result(op: ir.Operation) -> TensorType:
    return TensorType.of(op.results[0].type)


def _expect(what: str, expected: object, got: object) -> Iterator[str]:
    if expected != got:
        yield f"expected {what} {expected}, got {got}"


def _same_rows(op: ir.Operation, index: int, rows: Dim) -> Iterator[str]:
    yield from _expect(f"rows of operand {index}", rows, _tensor(op, index).shape[0])


def _dim(op: ir.Operation) -> Iterator[str]:
    if not 0 <= get(op, "min") <= get(op, "max"):
        yield f"expected 0 <= min <= max, got {get(op, 'min')} and {get(op, 'max')}"


def _weight(op: ir.Operation) -> Iterator[str]:
    kind = _result(op)
    if any(isinstance(d, str) for d in kind.shape):
        yield "a weight has no symbolic dimensions"
    if kind.element not in STORAGE_TYPES:
        yield f"unknown storage type '{kind.element}'"
    elif kind.shape and int(kind.shape[-1]) % STORAGE_TYPES[kind.element].block_elems:
        block = STORAGE_TYPES[kind.element].block_elems
        yield f"expected rows of a multiple of {block} elements, got {kind.shape[-1]}"


def _embed(op: ir.Operation) -> Iterator[str]:
    tokens, table, out = _tensor(op, 0), _tensor(op, 1), _result(op)
    yield from _expect("result shape", (tokens.shape[0], table.shape[1]), out.shape)


def _rms_norm(op: ir.Operation) -> Iterator[str]:
    width = get(op, "head_dim") or _result(op).shape[-1]
    yield from _expect("weight shape", (width,), _tensor(op, 1).shape)
    total = _result(op).shape[-1]
    if isinstance(total, int) and total % int(width):
        yield f"expected a multiple of head_dim {width}, got {total} columns"


def _linear(op: ir.Operation) -> Iterator[str]:
    x, matrix, out = _tensor(op, 0), _tensor(op, 1), _result(op)
    yield from _expect("weight columns", x.shape[-1], matrix.shape[1])
    yield from _expect("result shape", (x.shape[0], matrix.shape[0]), out.shape)
    if len(op.operands) > 2:
        yield from _expect("bias shape", (matrix.shape[0],), _tensor(op, 2).shape)


def _rope(op: ir.Operation) -> Iterator[str]:
    table, head_dim = _tensor(op, 2), get(op, "head_dim")
    yield from _same_rows(op, 1, _result(op).shape[0])
    if len(table.shape) != 3 or table.shape[2] != 2:
        yield f"expected a table [positions, pairs, 2], got {table.shape}"
    elif 2 * int(table.shape[1]) > head_dim:
        yield f"expected at most {head_dim // 2} pairs, got {table.shape[1]}"


def _attention(op: ir.Operation) -> Iterator[str]:
    q, k, v = (_tensor(op, i) for i in range(3))
    heads, head_dim = get(op, "heads"), get(op, "head_dim")
    yield from _expect("columns of q", heads * head_dim, q.shape[-1])
    yield from _expect("shape of v", k.shape, v.shape)
    if int(k.shape[-1]) % head_dim or heads % (int(k.shape[-1]) // head_dim):
        yield f"{heads} heads of {head_dim} do not group over {k.shape[-1]} key columns"


def _kv_cache(op: ir.Operation) -> Iterator[str]:
    kind = KVType.of(op.results[0].type)
    if kind.dtype not in KV_DTYPES:
        yield f"expected a cache of {', '.join(KV_DTYPES)}, got {kind.dtype}"


def _kv_append(op: ir.Operation) -> Iterator[str]:
    kind = KVType.of(op.results[0].type) if is_kv(op.results[0].type) else None
    if kind is not None:
        width = kind.kv_heads * kind.head_dim
        yield from _expect("columns of k", width, _tensor(op, 1).shape[-1])
        yield from _expect("columns of v", width, _tensor(op, 2).shape[-1])


def _select_rows(op: ir.Operation) -> Iterator[str]:
    rows, x = _tensor(op, 1), _tensor(op, 0)
    yield from _expect("result shape", (rows.shape[0], *x.shape[1:]), _result(op).shape)


def _quantize(op: ir.Operation) -> Iterator[str]:
    x, out = _tensor(op, 0), _result(op)
    form = out.element if out.element in ACTIVATION_FORMS else A8
    yield from _expect("result", x.with_element(form).mlir(), out.mlir())
    width = x.shape[-1]
    if form == A8 and isinstance(width, int) and width % 32:
        yield f"expected a multiple of 32 columns, got {width}"


def _ids(op: ir.Operation) -> Iterator[str]:
    if len(op.operands) > 1:
        yield from _expect("ids", _tensor(op, 0).with_element("i32").mlir(), op.operands[1].type)


def _found(op: ir.Operation) -> Iterator[str]:
    """Values and indices: two results of one shape, one row for each row of x."""
    values, ids = (TensorType.of(result.type) for result in op.results)
    yield from _expect("indices", values.with_element("i32").mlir(), ids.mlir())
    yield from _expect("rows of the result", _tensor(op, 0).shape[0], values.shape[0])
    yield from _expect("rank of the result", 2, len(values.shape))


def _top_k(op: ir.Operation) -> Iterator[str]:
    yield from _ids(op)
    yield from _found(op)
    columns, count = _tensor(op, 0).shape[1], _result(op).shape[-1]
    if isinstance(columns, int) and isinstance(count, int) and count > columns:
        yield f"expected at most {columns} of {columns} columns, got {count}"


def _head_candidates(op: ir.Operation) -> Iterator[str]:
    x, matrix = _tensor(op, 0), _tensor(op, 1)
    yield from _expect("weight columns", x.shape[-1], matrix.shape[1])
    yield from _found(op)
    count, columns = get(op, "count"), _result(op).shape[-1]
    if isinstance(columns, int) and (columns % count or count > int(matrix.shape[0])):
        yield f"expected parts of {count} of {matrix.shape[0]} rows, got {columns} columns"


def _activation(op: ir.Operation) -> Iterator[str]:
    if get(op, "kind") not in ("silu", "gelu_tanh"):
        yield f"expected kind silu or gelu_tanh, got '{get(op, 'kind')}'"


def _read(op: ir.Operation) -> Iterator[str]:
    buffer = BufferType.of(op.operands[0].type)
    yield from _expect("result", buffer.tensor.mlir(), op.results[0].type)


def _write(op: ir.Operation) -> Iterator[str]:
    buffer = BufferType.of(op.operands[1].type)
    yield from _expect("value", buffer.tensor.mlir(), op.operands[0].type)


def _alloc(op: ir.Operation) -> Iterator[str]:
    frame, out = BufferType.of(op.operands[0].type), BufferType.of(op.results[0].type)
    yield from _expect("space", frame.space, out.space)
    if get(op, "offset") % 64 and get(op, "offset") != -1:
        yield f"expected an offset that is a multiple of 64, got {get(op, 'offset')}"
    if get(op, "size_bytes") < 0:
        yield f"expected a size, got {get(op, 'size_bytes')}"
    if not is_buffer(op.results[0].type):
        yield "expected a buffer"


def _move(op: ir.Operation) -> Iterator[str]:
    source, target = (BufferType.of(operand.type) for operand in op.operands)
    yield from _expect("target of", source.tensor.mlir(), target.tensor.mlir())
    yield from _expect("layout of the target", source.layout, target.layout)
    if op.operands[0] == op.operands[1]:
        yield "expected two buffers, got one"


def _prefetch(op: ir.Operation) -> Iterator[str]:
    yield from _move(op)
    if get(op, "queue") < 0:
        yield f"expected a queue of at least 0, got {get(op, 'queue')}"
    waits = [use.owner.operation for use in op.results[0].uses]
    if [wait.name for wait in waits] != ["infc.wait"] or waits[0].block != op.block:
        yield f"expected one infc.wait for it in its block, got {len(waits)} uses of its token"
        return
    # Between the two the target's content is undefined.
    users = {use.owner.operation for use in op.operands[1].uses}
    for other in _between(op, waits[0]):
        if other in users:
            yield f"its target is used by {other.name} before its infc.wait"


def _between(first: ir.Operation, last: ir.Operation) -> Iterator[ir.Operation]:
    """The operations of a block after one of its operations and before another."""
    inside = False
    for op in first.block.operations:
        if op.operation == last:
            return
        if inside:
            yield op.operation
        inside = inside or op.operation == first


_KIND_NAMES = {int: "a whole number", float: "a float", bool: "true or false"}
_POSITIVE = frozenset({"heads", "head_dim", "count"})
_ATTRIBUTES: dict[str, dict[str, type]] = {
    "infc.dim": {"min": int, "max": int},
    "infc.embed": {"scale": float},
    "infc.rms_norm": {"eps": float, "offset": float, "head_dim": int},
    "infc.rope": {"head_dim": int, "interleaved": bool},
    "infc.attention": {"heads": int, "head_dim": int, "scale": float, "window": int},
    "infc.softcap": {"cap": float},
    "infc.kv_cache": {"index": int},
    "infc.kv_attention": {"heads": int, "scale": float, "softcap": float},
    "infc.head_candidates": {"count": int},
    "infc.space": {"size_bytes": int},
    "infc.alloc": {"offset": int, "size_bytes": int},
    "infc.packed": {"offset": int, "size_bytes": int},
    "infc.prefetch": {"queue": int},
}
_RANKS = {
    "infc.embed": (1, 2),
    "infc.rms_norm": (2, 1),
    "infc.linear": (2, 2, 1),
    "infc.rope": (2, 1, 3),
    "infc.attention": (2, 2, 2, 1),
    "infc.select_rows": (2, 1),
    "infc.argmax": (2, 2),
    "infc.top_k": (2, 2),
    "infc.head_candidates": (2, 2),
    "infc.quantize": (2,),
}
"""Of the operands, where there are fixed ones."""

_RULES: dict[str, Callable[[ir.Operation], Iterator[str]]] = {
    "infc.dim": _dim,
    "infc.weight": _weight,
    "infc.embed": _embed,
    "infc.rms_norm": _rms_norm,
    "infc.linear": _linear,
    "infc.rope": _rope,
    "infc.attention": _attention,
    "infc.activation": _activation,
    "infc.kv_cache": _kv_cache,
    "infc.kv_append": _kv_append,
    "infc.select_rows": _select_rows,
    "infc.argmax": _ids,
    "infc.top_k": _top_k,
    "infc.quantize": _quantize,
    "infc.head_candidates": _head_candidates,
    "infc.read": _read,
    "infc.write": _write,
    "infc.alloc": _alloc,
    "infc.move": _move,
    "infc.prefetch": _prefetch,
}
