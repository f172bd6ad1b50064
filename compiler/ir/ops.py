"""Building operations: one function for each op of the dialect, typed by Python values.

Each function appends at the insertion point and returns the result value. Shapes follow the
reference (`infc.reference.ops` states what each op means).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from infc.ir.attributes import to_attribute
from infc.ir.mlir import ir
from infc.ir.types import A8, BufferType, KVType, TensorType

Value: TypeAlias = ir.Value


def create(
    name: str,
    operands: Sequence[ir.Value] = (),
    results: Sequence[ir.Type] = (),
    **attributes: object,
) -> ir.Operation:
    """Append any operation; attributes are Python values."""
    return ir.Operation.create(
        name,
        results=list(results),
        operands=list(operands),
        attributes={key: to_attribute(value) for key, value in attributes.items()},
    )


def _one(name: str, operands: Sequence[ir.Value], result: ir.Type, **attributes: object) -> Value:
    return create(name, operands, [result], **attributes).results[0]


def weight(source: str, type_: TensorType) -> Value:
    """A tensor of the model file, by name."""
    return _one("infc.weight", [], type_.mlir(), source=source)


def embed(tokens: Value, table: Value, *, scale: float) -> Value:
    """`scale * table[tokens]`: i32 `[t]`, `[vocab, d]` -> f32 `[t, d]`."""
    rows, width = TensorType.of(tokens.type).shape[0], TensorType.of(table.type).shape[1]
    return _one("infc.embed", [tokens, table], TensorType((rows, width), "f32").mlir(), scale=scale)


def rms_norm(
    x: Value, gain: Value, *, eps: float, offset: float, head_dim: int | None = None
) -> Value:
    """RMS norm of each row, or of each head of `head_dim` within a row: f32 `[t, d]`."""
    extra = {} if head_dim is None else {"head_dim": head_dim}
    return _one("infc.rms_norm", [x, gain], x.type, eps=eps, offset=offset, **extra)


def linear(x: Value, matrix: Value, bias: Value | None = None) -> Value:
    """`x @ matrix.T + bias`: `[t, k]`, `[n, k]`, `[n]` -> f32 `[t, n]`."""
    rows, n = TensorType.of(x.type).shape[0], TensorType.of(matrix.type).shape[0]
    operands = [x, matrix] if bias is None else [x, matrix, bias]
    return _one("infc.linear", operands, TensorType((rows, n), "f32").mlir())


def rope_table(inverse_frequencies: Sequence[float], *, magnitude: float, positions: int) -> Value:
    """cos and sin of position times frequency: f32 `[positions, pairs, 2]`."""
    shape = TensorType((positions, len(inverse_frequencies), 2), "f32")
    frequencies = ir.DenseF32ArrayAttr.get(list(inverse_frequencies))
    return _one(
        "infc.rope_table", [], shape.mlir(), inverse_frequencies=frequencies, magnitude=magnitude
    )


def rope(x: Value, positions: Value, table: Value, *, head_dim: int, interleaved: bool) -> Value:
    """Rotate the first `2 * pairs` dimensions of every head by its row's position: f32 `[t, d]`."""
    return _one(
        "infc.rope", [x, positions, table], x.type, head_dim=head_dim, interleaved=interleaved
    )


def attention(
    q: Value,
    k: Value,
    v: Value,
    positions: Value,
    *,
    heads: int,
    head_dim: int,
    scale: float,
    window: int,
    softcap: float,
) -> Value:
    """Causal attention of one sequence with itself; f32 `[t, heads * head_dim]`.

    `window` 0 and `softcap` 0.0 mean none.
    """
    return _one(
        "infc.attention",
        [q, k, v, positions],
        q.type,
        heads=heads,
        head_dim=head_dim,
        scale=scale,
        window=window,
        softcap=softcap,
    )


def add(a: Value, b: Value) -> Value:
    """Sum of two tensors of one type."""
    return _one("infc.add", [a, b], a.type)


def mul(a: Value, b: Value) -> Value:
    """Product, element by element."""
    return _one("infc.mul", [a, b], a.type)


def activation(x: Value, *, kind: str) -> Value:
    """`silu` or `gelu_tanh`."""
    return _one("infc.activation", [x], x.type, kind=kind)


def softcap(x: Value, *, cap: float) -> Value:
    """`cap * tanh(x / cap)`."""
    return _one("infc.softcap", [x], x.type, cap=cap)


def kv_cache(index: int, type_: KVType) -> Value:
    """The KV cache of layer `index`."""
    return _one("infc.kv_cache", [], type_.mlir(), index=index)


def kv_append(cache: Value, k: Value, v: Value, positions: Value, slots: Value) -> Value:
    """Write a row of keys and values for each token; the updated cache is the result."""
    return _one("infc.kv_append", [cache, k, v, positions, slots], cache.type)


def kv_attention(
    q: Value,
    cache: Value,
    positions: Value,
    slots: Value,
    *,
    heads: int,
    scale: float,
    softcap: float,
) -> Value:
    """Attention of each row with its slot's cache up to the row's own position."""
    return _one(
        "infc.kv_attention",
        [q, cache, positions, slots],
        q.type,
        heads=heads,
        scale=scale,
        softcap=softcap,
    )


def select_rows(x: Value, rows: Value) -> Value:
    """`x[rows]`."""
    width = TensorType.of(x.type).shape[1:]
    shape = (*TensorType.of(rows.type).shape, *width)
    return _one("infc.select_rows", [x, rows], TensorType(shape, "f32").mlir())


def argmax(x: Value, ids: Value | None = None) -> Value:
    """The index of each row's largest element, the lowest of equals: i32 `[r]`.

    With `ids`, i32 of the shape of x, an element's index is what stands there.
    """
    operands = [x] if ids is None else [x, ids]
    return _one("infc.argmax", operands, TensorType(TensorType.of(x.type).shape[:1], "i32").mlir())


def top_k(x: Value, ids: Value | None = None, *, count: int) -> tuple[Value, Value]:
    """The `count` largest elements of each row and their indices, as in `argmax`; the largest
    first, of equals the lowest index: f32 and i32 `[r, count]`."""
    rows = TensorType.of(x.type).shape[0]
    kinds = [TensorType((rows, count), element).mlir() for element in ("f32", "i32")]
    values, found = create("infc.top_k", [x] if ids is None else [x, ids], kinds).results
    return values, found


def head_candidates(x: Value, matrix: Value, *, count: int, parts: int) -> tuple[Value, Value]:
    """Logits of `x @ matrix.T` and their indices, the `count` best among them: f32 and i32
    `[r, parts * count]`.

    Which others are there is not said, nor in which order.
    """
    rows = TensorType.of(x.type).shape[0]
    kinds = [TensorType((rows, parts * count), element).mlir() for element in ("f32", "i32")]
    values, ids = create("infc.head_candidates", [x, matrix], kinds, count=count).results
    return values, ids


def quantize(x: Value, form: str = A8) -> Value:
    """Rows in one of the `ACTIVATION_FORMS`: groups of 32 as int8 with one f32 scale, or bf16."""
    return _one("infc.quantize", [x], TensorType.of(x.type).with_element(form).mlir())


def read(source: Value) -> Value:
    """The tensor a buffer holds."""
    return _one("infc.read", [source], BufferType.of(source.type).tensor.mlir())


def write(x: Value, target: Value) -> None:
    """Put a tensor into a buffer."""
    create("infc.write", [x, target])


def alloc(frame: Value, type_: BufferType, *, offset: int, size_bytes: int) -> Value:
    """A buffer at a byte offset of a frame; -1 until planned."""
    return _one("infc.alloc", [frame], type_.mlir(), offset=offset, size_bytes=size_bytes)


def move(source: Value, target: Value) -> None:
    """Copy a buffer into another of the same tensor and layout, and wait for it."""
    create("infc.move", [source, target])


def prefetch(source: Value, target: Value, *, queue: int) -> Value:
    """Begin such a copy, in either direction; a token to wait for."""
    token = ir.Type.parse("!infc.token")
    return _one("infc.prefetch", [source, target], token, queue=queue)


def wait(token: Value) -> None:
    """Wait for the end of a copy."""
    create("infc.wait", [token])


def create_module(name: str) -> ir.Operation:
    """A nested module with an empty body."""
    operation = ir.Operation.create(
        "builtin.module", attributes={"sym_name": ir.StringAttr.get(name)}, regions=1
    )
    operation.regions[0].blocks.append()
    return operation
