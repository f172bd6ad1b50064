"""Reads a memory-level kernel: which emitter makes it, with which operands in which order.

A kernel function's body is tensors between `infc.read` and `infc.write`. Each form below recognises
one kind (`infc.kernel`), fills the emitter's specification from the operations and says how a
call's operands map to the emitted function's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.attention import (
    AttentionMapping,
    AttentionSpec,
    attention_scratch_bytes,
    attention_shared_bytes,
    emit_attention,
)
from infc.backends.cpu.kernels.kv_layout import KVLayer
from infc.backends.cpu.kernels.layouts import layout_named
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, Segment, emit_matmul
from infc.backends.cpu.kernels.rotary import RotarySpec, emit_rotary_append
from infc.backends.cpu.kernels.sync import BARRIER_BYTES
from infc.backends.cpu.provided import sums_provider
from infc.diagnostics import Code, InternalError, UserError
from infc.ir.attributes import get
from infc.ir.types import ABF16, KVType, TensorType
from infc.passes.codegen.kernel_body import KernelBody


@dataclass(frozen=True)
class Environment:
    """What every function of a program is given besides its buffers."""

    rows: dict[str, Value]
    """`t` and `r`: tokens and logit rows of this call."""
    thread: Value
    threads: Value
    barrier: Value
    trace: Value
    """Where the cycle counter behind the function's first kernel goes."""
    traces: Value
    """i64: 1 where this thread writes the trace, else 0."""
    wanted: Value | None = None
    """Top tokens that the call asks for; known in main."""
    deal: Value | None = None
    """Where the pieces of the kernel that is called next are counted."""

    def numbers(self) -> list[Value]:
        """What a layer function is passed behind its buffers, in order."""
        return [self.rows["t"], self.rows["r"], self.thread, self.threads, self.traces]


@dataclass(frozen=True)
class Form:
    """An emitted kernel: its name and how to call it.

    Attributes:
        pointers: for each pointer argument of the emitted function, the operand of the call.
        symbol: whose value is the number of rows.
        order: the emitted function's arguments: `p` all pointers left, `1` one pointer,
            `m`, `i`, `n` rows, thread and threads, `k` top tokens wanted, `o` the number one,
            `a` where the arrivals lie, `d` where pieces of work are counted.
    """

    name: str
    pointers: tuple[int, ...]
    symbol: str
    order: str

    @property
    def is_dealt(self) -> bool:
        """Whether its threads count pieces of work."""
        return "d" in self.order

    def call(self, b: Builder, operands: Sequence[Value], env: Environment) -> None:
        """Call the emitted function with the operands of a memory-level call."""
        pointers = [operands[index] for index in self.pointers]
        values: list[Value] = []
        for letter in self.order:
            if letter == "1":
                values.append(pointers.pop(0))
            elif letter == "p":
                keep = self.order[self.order.index("p") + 1 :].count("1")
                values += pointers[: len(pointers) - keep]
                pointers = pointers[len(pointers) - keep :]
            else:
                values.append(self.number(b, letter, env))
        b.call(self.name, values)

    def number(self, b: Builder, letter: str, env: Environment) -> Value:
        """The value of a numeric argument."""
        if letter == "o":
            return b.idx(1)
        if letter == "a":
            return b.at(env.barrier, BARRIER_BYTES)
        known = {"k": env.wanted, "d": env.deal}
        if letter in known:
            value = known[letter]
            if value is None:
                raise InternalError(f"argument {letter!r} of kernel {self.name} is not known here")
            return value
        return {"m": env.rows[self.symbol], "i": env.thread, "n": env.threads}[letter]


def matmul_form(b: Builder, name: str, body: KernelBody, rows: int) -> Form:
    """`linear`s of one input, with an optional gate or soft cap behind them."""
    products = body.named("linear")
    segments, weights, biases = [], [], []
    for op in products:
        operands = list(op.operation.operands)
        weight = body.source[operands[1]]
        weights.append(weight)
        if len(operands) > 2:
            biases.append(body.source[operands[2]])
        n = int(TensorType.of(operands[1].type).shape[0])
        layout = layout_named(body.buffer(weight).layout)
        segments.append(Segment(n, layout, bias=len(operands) > 2))
    x = products[0].operation.operands[0]
    kind = TensorType.of(x.type)
    gates, caps = body.named("activation"), body.named("softcap")
    rounded = body.named("quantize")
    spec = MatmulSpec(
        k=int(kind.shape[1]),
        segments=tuple(segments),
        activation=kind.element,
        combine=get(gates[0], "kind") if gates else None,
        softcap=get(caps[0], "cap") if caps else None,
        max_rows=rows,
        out=ABF16 if rounded else "f32",
    )
    emit_matmul(b, name, spec, matmul_mapping(body), sums_provider(body.mapping))
    made = [*(op.operation.results[0] for op in [*products, *body.named("mul"), *caps, *rounded])]
    outputs = [body.target[value] for value in made if value in body.target]
    pointers = (body.source[x], *weights, *biases, *outputs)
    return Form(name, pointers, body.row_symbol(), "1mindp")


def matmul_mapping(body: KernelBody) -> MatmulMapping:
    """How a product is mapped."""
    return matmul_mapping_of(body.mapping)


def matmul_mapping_of(mapping: Mapping[str, int | str]) -> MatmulMapping:
    """A mapping of a product as its emitter takes it; what it does not say is as usual."""
    names = (field.name for field in fields(MatmulMapping))
    return MatmulMapping(**{name: int(mapping[name]) for name in names if name in mapping})


def rotary_form(b: Builder, name: str, body: KernelBody, slots: int) -> Form:
    """Head norms, rope of queries and keys, and the append to the cache."""
    (append,) = body.named("kv_append")
    cache, k, v, positions, row_slots = append.operation.operands
    ropes = {op.operation.results[0]: op for op in body.named("rope")}
    k_rope = ropes.pop(k)
    (q_rope,) = ropes.values()
    q, k = q_rope.operation.operands[0], k_rope.operation.operands[0]
    norms = {op.operation.results[0]: op for op in body.named("rms_norm")}
    gains: list[int] = []
    eps = offset = 0.0
    if norms:
        q_norm, k_norm = norms[q], norms[k]
        q, k = q_norm.operation.operands[0], k_norm.operation.operands[0]
        gains = [body.source[op.operation.operands[1]] for op in (q_norm, k_norm)]
        eps, offset = get(q_norm, "eps"), get(q_norm, "offset")
    table = q_rope.operation.operands[2]
    kind = KVType.of(cache.type)
    spec = RotarySpec(
        heads=int(TensorType.of(q.type).shape[1]) // kind.head_dim,
        kv=kv_layer(kind),
        rope_pairs=int(TensorType.of(table.type).shape[1]),
        interleaved=get(q_rope, "interleaved"),
        norm=bool(norms),
        norm_eps=eps,
        norm_offset=offset,
    )
    emit_rotary_append(b, name, spec)
    pointers = (
        body.source[q],
        body.source[k],
        body.source[v],
        body.target[q_rope.operation.results[0]],
        *gains,
        body.source[table],
        body.source[cache],
        body.source[positions],
        body.source[row_slots],
    )
    return Form(name, pointers, "t", "pmind")


def attention_form(b: Builder, name: str, body: KernelBody, rows: int) -> Form:
    """Attention of each row with its slot's cache."""
    (op,) = body.named("kv_attention")
    q, cache, positions, row_slots = op.operation.operands
    spec = attention_spec(
        KVType.of(cache.type), get(op, "heads"), get(op, "scale"), get(op, "softcap"), rows
    )
    rounded = body.named("quantize")
    spec = replace(spec, out=ABF16 if rounded else "f32")
    mapping = AttentionMapping(
        row_tile=int(body.mapping["row_tile"]),
        key_block=int(body.mapping["key_block"]),
        parts=int(body.mapping["parts"]),
        tiles=bool(body.mapping["tiles"]),
    )
    room = {
        "scratch_bytes": attention_scratch_bytes(spec, mapping),
        "shared_bytes": attention_shared_bytes(spec, mapping),
    }
    for field, needed in room.items():
        if int(body.mapping.get(field, 0)) < needed:
            raise UserError(
                Code.PLAN,
                f"expected {field} of at least {needed}, got {body.mapping.get(field, 0)}",
                location=str(op.location),
                hint="larger tiles and more parts need more of it: raise it before plan-memory",
            )
    emit_attention(b, name, spec, mapping)
    divided = mapping.parts > 1
    last = len(body.arguments)
    pointers = (
        body.source[q],
        body.source[cache],
        body.target[(rounded or [op])[0].operation.results[0]],
        body.source[positions],
        body.source[row_slots],
        *((last - 2, last - 1) if divided else (last - 1,)),
    )
    return Form(name, pointers, "t", "pmind11a" if divided else "pmind1")


def attention_spec(
    kind: KVType, heads: int, scale: float, softcap: float, rows: int
) -> AttentionSpec:
    """The emitter's specification of an attention."""
    return AttentionSpec(
        heads=heads,
        kv=kv_layer(kind),
        window=kind.window or None,
        scale=scale,
        softcap=softcap or None,
        max_rows=rows,
    )


def kv_layer(kind: KVType) -> KVLayer:
    """The physical shape of a layer's cache."""
    return KVLayer(kind.kv_heads, kind.head_dim, kind.capacity, kind.dtype)
