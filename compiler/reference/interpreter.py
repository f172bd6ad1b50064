"""Executes a module at any level from *graph* to *memory*, operation by operation, in NumPy.

Tensors are arrays, weights stay in their storage format until an op wants numbers, buffers are
ranges of real byte arrays at their planned offsets: a plan that lets two live buffers overlap gives
wrong numbers here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.attributes import attributes_of, get
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.ir.types import (
    A8,
    ABF16,
    BufferType,
    TensorType,
    a8_row_bytes,
    abf16_row_bytes,
    is_tensor,
)
from infc.reference import ops
from infc.reference.a8 import dequantize_a8, quantize_a8
from infc.reference.abf16 import from_abf16, round_bf16, to_abf16
from infc.reference.buffer import UNWRITTEN, Buffer, Bytes, Transfer, begin, finish
from infc.reference.kv import LayerCache

WeightData = Callable[[str], Bytes]
"""The raw bytes of a tensor of the model file, by name."""


@dataclass
class Stored:
    """A weight in its storage format; numbers are made once, on demand."""

    data: Callable[[], Bytes]
    type: TensorType
    _numbers: NDArray[np.float32] | None = field(default=None, repr=False)

    def numbers(self) -> NDArray[np.float32]:
        """The values, float32."""
        if self._numbers is None:
            shape = tuple(int(d) for d in self.type.shape)
            self._numbers = STORAGE_TYPES[self.type.element].dequantize(self.data(), shape)
        return self._numbers


class Interpreter:
    """Runs functions of one module.

    Args:
        module: the module that holds the functions (a program module from the phase level on).
        weights: gives the raw bytes of a tensor of the model file.
        caches: the KV cache of each layer (phase level on).
    """

    def __init__(
        self,
        module: ir.Operation | ir.OpView,
        weights: WeightData,
        caches: Sequence[LayerCache] = (),
    ) -> None:
        # The functions are views into it: it must outlive them.
        self.module = module
        self.functions: dict[str, ir.OpView] = {}
        self.packed: dict[str, ir.OpView] = {}
        self.weights = weights
        self.caches = caches
        self.dims: dict[str, int] = {}
        self.known_weights: dict[tuple[str, TensorType], Stored] = {}
        self.transfers: list[Transfer] = []
        self.moves = 0
        self._index(module)

    def _index(self, module: ir.Operation | ir.OpView) -> None:
        operation: ir.OpView | None = module.operation.opview
        for op in module.operation.regions[0].blocks[0].operations:
            if op.operation.name == "func.func":
                self.functions[get(op, "sym_name")] = op
        # Packed weights are declared beside the programs, in the module around them.
        while operation is not None:
            for op in operation.regions[0].blocks[0].operations:
                if op.operation.name == "infc.packed":
                    self.packed[get(op, "sym_name")] = op
            operation = operation.operation.parent.opview if operation.operation.parent else None

    def run(self, name: str, arguments: Sequence[Any]) -> list[Any]:
        """Call a function; arguments and results are arrays (or `Stored`, caches, buffers)."""
        function = self.functions[name]
        block = function.regions[0].blocks[0]
        self._bind(zip((a.type for a in block.arguments), arguments, strict=True))
        env: dict[Any, Any] = dict(zip(block.arguments, arguments, strict=True))
        under_way = len(self.transfers)
        for op in block.operations:
            operands = [env[value] for value in op.operation.operands]
            if op.operation.name == "func.return":
                if len(self.transfers) > under_way:
                    raise InternalError(
                        f"function {name} returns before a transfer that it began has ended",
                        location=str(op.location),
                    )
                return operands
            results = self._execute(op, operands)
            env.update(zip(op.operation.results, results, strict=True))
        raise InternalError(f"function {name} has no return")

    def _bind(self, pairs: Any) -> None:
        """Learn what each symbolic dimension is in this call."""
        for type_, value in pairs:
            if isinstance(value, Buffer):
                tensor, value = value.type.tensor, value.content
            elif is_tensor(type_):
                tensor = TensorType.of(type_)
            else:
                continue
            if isinstance(value, np.ndarray):
                for dim, size in zip(tensor.shape, value.shape, strict=False):
                    if isinstance(dim, str):
                        self.dims[dim] = size

    def _execute(self, op: ir.OpView, operands: list[Any]) -> list[Any]:
        name = op.operation.name
        if name == "func.call":
            return self.run(get(op, "callee"), operands)
        handler = _HANDLERS.get(name)
        if handler is None:
            raise InternalError(
                f"the reference has no meaning for {name}", location=str(op.location)
            )
        result = handler(self, op, operands)
        if isinstance(result, tuple):
            return list(result)
        return [] if result is None else [result]

    def stored(self, source: str, type_: TensorType) -> Stored:
        """A weight of the model file; equal requests share their numbers."""
        key = (source, type_)
        if key not in self.known_weights:
            self.known_weights[key] = Stored(lambda: self.weights(source), type_)
        return self.known_weights[key]

    def concrete(self, type_: TensorType) -> tuple[int, ...]:
        """A shape with this call's numbers for its symbols."""
        return tuple(self.dims[d] if isinstance(d, str) else d for d in type_.shape)


def numbers(value: Any) -> NDArray[np.float32]:
    """Float32 values of an operand, whatever form it is in."""
    return value.numbers() if isinstance(value, Stored) else value


def _result_type(op: ir.OpView) -> TensorType:
    return TensorType.of(op.operation.results[0].type)


# ---- meaning of each op -------------------------------------------------------------------------
Handler = Callable[[Interpreter, ir.OpView, list[Any]], Any]


def _weight(run: Interpreter, op: ir.OpView, _: list[Any]) -> Any:
    return run.stored(get(op, "source"), _result_type(op))


def _embed(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.embed(v[0], numbers(v[1]), get(op, "scale"))


def _rms_norm(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.rms_norm(v[0], numbers(v[1]), get(op, "eps"), get(op, "offset"), get(op, "head_dim"))


def _factors(op: ir.OpView, v: list[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows and the matrix that a product multiplies, as the form of its input has them."""
    x, weights = v[0], numbers(v[1])
    kind = TensorType.of(op.operation.operands[0].type)
    if kind.element == A8:
        x = dequantize_a8(x, int(kind.shape[-1]))
    elif kind.element == ABF16:
        x, weights = from_abf16(x, int(kind.shape[-1])), round_bf16(weights)
    return x, weights


def _linear(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.linear(*_factors(op, v), numbers(v[2]) if len(v) > 2 else None)


def _quantize(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return quantize_a8(v[0]) if _result_type(op).element == A8 else to_abf16(v[0])


def _argmax(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.argmax(*v)


def _top_k(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.top_k(v[0], int(_result_type(op).shape[1]), *v[1:])


def _head_candidates(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    columns = int(_result_type(op).shape[1])
    return ops.head_candidates(*_factors(op, v), get(op, "count"), columns)


def _rope_table(run: Interpreter, op: ir.OpView, _: list[Any]) -> Any:
    positions = _result_type(op).shape[0]
    return ops.rope_table(get(op, "inverse_frequencies"), get(op, "magnitude"), int(positions))


def _rope(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    return ops.rope(v[0], v[1], numbers(v[2]), get(op, "head_dim"), get(op, "interleaved"))


def _attention(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    e = get(op, "head_dim")
    q, k, value = (x.reshape(x.shape[0], -1, e) for x in v[:3])
    out = ops.attend(
        q, k, value, v[3], v[3], get(op, "scale"), get(op, "window"), get(op, "softcap")
    )
    return out.reshape(v[0].shape)


def _kv_cache(run: Interpreter, op: ir.OpView, _: list[Any]) -> Any:
    return run.caches[get(op, "index")]


def _kv_append(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    cache, k, value, positions, slots = v
    shape = (-1, cache.kind.kv_heads, cache.kind.head_dim)
    for slot in np.unique(slots):
        rows = slots == slot
        cache.append(int(slot), positions[rows], k[rows].reshape(shape), value[rows].reshape(shape))
    return v[0]


def _kv_attention(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    q, cache, positions, slots = v
    out = np.empty_like(q)
    for slot in np.unique(slots):
        rows = slots == slot
        stop = int(positions[rows].max()) + 1
        first = int(positions[rows].min())
        start = max(0, first - cache.kind.window + 1) if cache.kind.window else 0
        keys, values = cache.read(int(slot), start, stop)
        attended = ops.attend(
            q[rows].reshape(rows.sum(), -1, cache.kind.head_dim),
            keys,
            values,
            positions[rows],
            np.arange(start, stop, dtype=np.int32),
            get(op, "scale"),
            cache.kind.window,
            get(op, "softcap"),
        )
        out[rows] = attended.reshape(rows.sum(), -1)
    return out


def _read(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    buffer: Buffer = v[0]
    content = buffer.whole()
    if buffer.space is None or content is not None:
        return content
    kind = buffer.type.tensor
    shape, dtype = _byte_form(run.concrete(kind), kind.element)
    size = math.prod(shape) * dtype.itemsize
    return buffer.space[buffer.offset : buffer.offset + size].view(dtype).reshape(shape).copy()


def _write(run: Interpreter, op: ir.OpView, v: list[Any]) -> None:
    value, buffer = v
    if buffer.space is None:
        buffer.content = value
        return
    buffer.content, buffer.pattern = None, None
    raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    buffer.space[buffer.offset : buffer.offset + raw.size] = raw


def _byte_form(shape: tuple[int, ...], element: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if element == A8:
        return (shape[0], a8_row_bytes(shape[1])), np.dtype(np.uint8)
    if element == ABF16:
        return (shape[0], abf16_row_bytes(shape[1])), np.dtype(np.uint8)
    return shape, np.dtype({"f32": "<f4", "f16": "<f2", "i32": "<i4", "i8": "i1"}[element])


def _space(run: Interpreter, op: ir.OpView, _: list[Any]) -> Any:
    kind = BufferType.of(op.operation.results[0].type)
    size = get(op, "size_bytes")
    return Buffer(kind, np.full(size, UNWRITTEN, np.uint8), size=size)


def _alloc(run: Interpreter, op: ir.OpView, v: list[Any]) -> Any:
    kind = BufferType.of(op.operation.results[0].type)
    offset, size = get(op, "offset"), get(op, "size_bytes")
    if offset < 0:
        # Not planned yet: a buffer of its own.
        return Buffer(kind, np.full(size, UNWRITTEN, np.uint8), size=size)
    return Buffer(kind, v[0].space, v[0].offset + offset, size=size)


def _move(run: Interpreter, op: ir.OpView, v: list[Any]) -> None:
    run.moves += 1
    finish(begin(*v), run.moves)


def _prefetch(run: Interpreter, op: ir.OpView, v: list[Any]) -> Transfer:
    run.transfers.append(begin(*v))
    return run.transfers[-1]


def _wait(run: Interpreter, op: ir.OpView, v: list[Any]) -> None:
    if not any(transfer is v[0] for transfer in run.transfers):
        raise InternalError("a transfer is waited for twice", location=str(op.location))
    run.moves += 1
    run.transfers = [transfer for transfer in run.transfers if transfer is not v[0]]
    finish(v[0], run.moves)


def _packed_ref(run: Interpreter, op: ir.OpView, _: list[Any]) -> Any:
    kind = BufferType.of(op.operation.results[0].type)
    declared = run.packed[get(op, "packed")]
    attributes = attributes_of(declared)
    if "inverse_frequencies" in attributes:
        content: Any = ops.rope_table(
            attributes["inverse_frequencies"], attributes["magnitude"], int(kind.tensor.shape[0])
        )
    else:
        content = run.stored(attributes["source"], kind.tensor)
    return Buffer(kind, content=content)


_HANDLERS: Mapping[str, Handler] = {
    "infc.weight": _weight,
    "infc.embed": _embed,
    "infc.rms_norm": _rms_norm,
    "infc.linear": _linear,
    "infc.rope_table": _rope_table,
    "infc.rope": _rope,
    "infc.attention": _attention,
    "infc.add": lambda run, op, v: v[0] + v[1],
    "infc.mul": lambda run, op, v: v[0] * v[1],
    "infc.activation": lambda run, op, v: ops.activation(v[0], get(op, "kind")),
    "infc.softcap": lambda run, op, v: ops.softcap(v[0], get(op, "cap")),
    "infc.select_rows": lambda run, op, v: v[0][v[1]],
    "infc.argmax": _argmax,
    "infc.top_k": _top_k,
    "infc.head_candidates": _head_candidates,
    "infc.quantize": _quantize,
    "infc.kv_cache": _kv_cache,
    "infc.kv_append": _kv_append,
    "infc.kv_attention": _kv_attention,
    "infc.space": _space,
    "infc.alloc": _alloc,
    "infc.packed_ref": _packed_ref,
    "infc.read": _read,
    "infc.write": _write,
    "infc.barrier": lambda run, op, v: None,
    "infc.move": _move,
    "infc.prefetch": _prefetch,
    "infc.wait": _wait,
}
