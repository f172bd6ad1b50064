"""Forms of the kernels on rows: what the operations of one do, in the terms of its emitter."""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.best import (
    argmax_scratch_bytes,
    emit_argmax,
    emit_top_k,
    top_k_scratch_bytes,
)
from infc.backends.cuda.kernels.rotary import RotarySpec, emit_rotary
from infc.backends.cuda.kernels.rows import (
    Activation,
    Embed,
    Load,
    Norm,
    Pairwise,
    RowsSpec,
    Softcap,
    Step,
    Store,
    emit_rows,
)
from infc.backends.cuda.lowering.caches import cache_layer
from infc.backends.cuda.lowering.forms import Form
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.codegen.kernel_body import KernelBody


def rows_form(b: GpuBuilder, name: str, body: KernelBody, rows: int) -> Form:
    """Any chain of operations on rows of one width."""
    spec = _RowsReader(body).spec(rows)
    emitted = emit_rows(b, name, spec)
    pointers = range(len(body.arguments))
    return Form(emitted, (*pointers, "rows", "cta", "ctas"), body.row_symbol())


def rotary_form(b: GpuBuilder, name: str, body: KernelBody, rows: int) -> Form:
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
    kv = cache_layer(body, cache)
    spec = RotarySpec(
        heads=int(TensorType.of(q.type).shape[1]) // kv.head_dim,
        kv=kv,
        rope_pairs=int(TensorType.of(table.type).shape[1]),
        interleaved=get(q_rope, "interleaved"),
        norm=bool(norms),
        norm_eps=eps,
        norm_offset=offset,
    )
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
    return Form(emit_rotary(b, name, spec), (*pointers, "rows", "cta", "ctas"), "t")


def argmax_form(b: GpuBuilder, name: str, body: KernelBody, rows: int) -> Form:
    """The best token of each row."""
    (op,) = body.named("argmax")
    (logits,) = op.operation.operands
    emitted = emit_argmax(b, name, int(TensorType.of(logits.type).shape[1]))
    return Form(
        emitted,
        (
            body.source[logits],
            body.target[op.operation.results[0]],
            "scratch",
            "arrivals",
            "rows",
            "cta",
            "ctas",
        ),
        body.row_symbol(),
        scratch_bytes=argmax_scratch_bytes(rows),
        arrivals=rows,
    )


def top_k_form(b: GpuBuilder, name: str, body: KernelBody, rows: int) -> Form:
    """The largest logits of each row."""
    (op,) = body.named("top_k")
    (logits,) = op.operation.operands
    count = int(TensorType.of(op.operation.results[0].type).shape[1])
    emitted = emit_top_k(b, name, int(TensorType.of(logits.type).shape[1]), count)
    return Form(
        emitted,
        (
            body.source[logits],
            *(body.target[result] for result in op.operation.results),
            "scratch",
            "arrivals",
            "wanted",
            "rows",
            "cta",
            "ctas",
        ),
        body.row_symbol(),
        scratch_bytes=top_k_scratch_bytes(rows),
        arrivals=rows,
    )


class _RowsReader:
    """Reads the operations of a `rows` kernel."""

    def __init__(self, body: KernelBody) -> None:
        self.body = body
        self.steps: list[Step] = []
        self.step_of: dict[Value, int] = {}
        self.stores: list[Store] = []
        self.widths: set[int] = set()

    def spec(self, rows: int) -> RowsSpec:
        """What the kernel does."""
        # What is read from memory comes first: nothing that is computed waits in front of it.
        for op in self.body.ops:
            for operand in self.rows_read(op):
                if operand in self.body.source and operand not in self.step_of:
                    self.add(operand, Load(self.body.source[operand]))
        for op in self.body.ops:
            self.read(op)
        if len(self.widths) != 1:
            raise InternalError(
                f"expected rows of one width, got {sorted(self.widths)}",
                location=str(self.body.function.location),
            )
        (d,) = self.widths
        return RowsSpec(
            d,
            tuple(self.steps),
            tuple(self.stores),
            arguments=len(self.body.arguments),
            max_rows=rows,
            replicated=self.body.mapping["partition"] == "replicate",
        )

    def rows_read(self, op: ir.OpView) -> list[Value]:
        """The operands of which an operation reads the row that it makes."""
        operands = list(op.operation.operands)
        name = op.operation.name.removeprefix("infc.")
        counts = {"rms_norm": 1, "embed": 0, "select_rows": 0}
        return operands[: counts.get(name, len(operands))]

    def add(self, value: Value, step: Step) -> None:
        """A step that makes a value."""
        self.step_of[value] = len(self.steps)
        self.steps.append(step)
        self.widths.add(int(TensorType.of(value.type).shape[1]))
        self.keep(value, self.step_of[value])

    def keep(self, value: Value, step: int, rounded: bool = False) -> None:
        """Store a value where the kernel writes it."""
        if value in self.body.target:
            self.stores.append(Store(step, self.body.target[value], rounded))

    def read(self, op: ir.OpView) -> None:
        """The step of one operation."""
        name = op.operation.name.removeprefix("infc.")
        operands = list(op.operation.operands)
        source, result = self.body.source, op.operation.results[0]
        x = self.step_of.get(operands[0], -1)
        step: Step
        if name == "quantize":
            self.keep(result, x, rounded=True)
            return
        if name == "embed":
            table = source[operands[1]]
            layout = self.body.buffer(table).layout
            step = Embed(table, source[operands[0]], layout, get(op, "scale"))
        elif name == "select_rows":
            step = Load(source[operands[0]], source[operands[1]])
        elif name == "rms_norm" and get(op, "head_dim") is None:
            step = Norm(x, source[operands[1]], get(op, "eps"), get(op, "offset"))
        elif name in ("add", "mul"):
            step = Pairwise(name, x, self.step_of[operands[1]])
        elif name == "activation":
            step = Activation(get(op, "kind"), x)
        elif name == "softcap":
            step = Softcap(x, get(op, "cap"))
        else:
            raise InternalError(f"no row kernel for {name}", location=str(op.location))
        self.add(result, step)
