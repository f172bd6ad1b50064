"""Emits a fused row kernel: for each row, one operation after the other, the row staying in L1.

Values that only the kernel itself reads live on the stack of the thread; the others are written to
their buffers. With `partition = "replicate"` every thread computes all rows for itself (decode: one
row is cheaper to compute than to wait for), else the rows are dealt to the threads.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.activation import emit_quantize_row, emit_round_row
from infc.backends.cpu.kernels.dealing import Team, emit_dealt_items
from infc.backends.cpu.kernels.embed import emit_embed_row
from infc.backends.cpu.kernels.layouts import layout_named
from infc.backends.cpu.kernels.rows import (
    emit_activation_mul_row,
    emit_add_row,
    emit_copy_row,
    emit_rms_norm_row,
    emit_softcap_row,
)
from infc.backends.cpu.kernels.split_embed import emit_split_embed_row
from infc.backends.cpu.kernels.split_layout import split_layout_named
from infc.backends.cpu.lowering.forms import Form
from infc.diagnostics import InternalError
from infc.ir.attributes import get
from infc.ir.mlir import ir
from infc.ir.types import A8, TensorType, storage_bytes
from infc.passes.codegen.kernel_body import KernelBody


def row_form(b: Builder, name: str, body: KernelBody) -> Form:
    """Emit the kernel and say how it is called: all operands, then rows, threads and deal."""
    pointers = len(body.arguments)
    types = [b.ptr] * pointers + [b.i64] * 3 + [b.ptr]
    with b.function(name, types, inline=False) as arguments:
        *buffers, m, thread, threads, deal = arguments
        emitter = _RowEmitter(b, body, buffers)
        if body.mapping["partition"] == "replicate":
            b.loop(0, m, body=emitter.emit_row)
        else:
            emit_dealt_items(b, Team(thread, threads, deal), m, emitter.emit_row)
        b.ret()
    return Form(name, tuple(range(pointers)), body.row_symbol(), "pmind")


class _RowEmitter:
    """Emits the operations of one row."""

    def __init__(self, b: Builder, body: KernelBody, buffers: list[Value]) -> None:
        self.b = b
        self.body = body
        self.buffers = buffers
        self.local: dict[Value, Value] = {
            op.operation.results[0]: b.stack(row_bytes(op.operation.results[0].type), 64)
            for op in body.ops
            if op.operation.results[0] not in body.target
        }

    def emit_row(self, row: Value) -> None:
        for op in self.body.ops:
            self.emit(op, row)

    def emit(self, op: ir.OpView, row: Value) -> None:
        b, name = self.b, op.operation.name.removeprefix("infc.")
        operands = list(op.operation.operands)
        result = op.operation.results[0]
        out, d = self.place(result, row), int(TensorType.of(result.type).shape[1])
        if name == "rms_norm":
            gain = self.buffers[self.body.source[operands[1]]]
            x = self.place(operands[0], row)
            emit_rms_norm_row(b, x, gain, out, d, get(op, "eps"), get(op, "offset"))
        elif name == "add":
            emit_add_row(b, self.place(operands[0], row), self.place(operands[1], row), out, d)
        elif name == "quantize":
            emit = emit_quantize_row if is_a8(result.type) else emit_round_row
            emit(b, self.place(operands[0], row), out, d)
        elif name == "embed":
            argument = self.body.source[operands[1]]
            token = self.load_index(operands[0], row)
            self.embed(argument, token, out, get(op, "scale"))
        elif name == "select_rows":
            chosen = self.load_index(operands[1], row)
            emit_copy_row(b, self.place(operands[0], chosen), out, d)
        elif name == "softcap":
            emit_softcap_row(b, self.place(operands[0], row), get(op, "cap"), out, d)
        elif name == "mul":
            self.gate(op, row, out, d)
        elif name != "activation":
            raise InternalError(f"no row kernel for {name}", location=str(op.location))

    def embed(self, argument: int, token: Value, out: Value, scale: float) -> None:
        """A row of the table that an argument is."""
        table = self.body.buffer(argument)
        n, k = (int(d) for d in table.tensor.shape)
        split, buffer = split_layout_named(table.layout), self.buffers[argument]
        if split is not None:
            emit_split_embed_row(self.b, split, buffer, n, k, token, out, scale)
        else:
            emit_embed_row(self.b, layout_named(table.layout), buffer, k, token, out, scale)

    def gate(self, op: ir.OpView, row: Value, out: Value, d: int) -> None:
        """`activation(gate) * up`, the only product of rows that models have."""
        maker = op.operation.operands[0].owner
        if isinstance(maker, ir.Block) or maker.name != "infc.activation":
            raise InternalError("expected the product of a gate", location=str(op.location))
        gate = self.place(maker.operands[0], row)
        up = self.place(op.operation.operands[1], row)
        emit_activation_mul_row(self.b, get(maker, "kind"), gate, up, out, d)

    def place(self, value: Value, row: Value) -> Value:
        """Where a row of a value lies."""
        if value in self.local:
            return self.local[value]
        argument = self.body.target.get(value, self.body.source.get(value))
        if argument is None:
            raise InternalError("a row operation reads a value that has no place")
        return self.b.at(self.buffers[argument], self.b.mul(row, row_bytes(value.type)))

    def load_index(self, value: Value, row: Value) -> Value:
        b = self.b
        return b.as_i64(
            b.load(b.at(self.buffers[self.body.source[value]], b.mul(row, 4)), b.i32, 4)
        )


def row_bytes(type_: ir.Type) -> int:
    """Bytes of one row of a tensor."""
    tensor = TensorType.of(type_)
    width = int(tensor.shape[1])
    return storage_bytes(tensor.element, (1, width))


def is_a8(type_: ir.Type) -> bool:
    """Whether a tensor holds rows quantised to 8 bits."""
    return TensorType.of(type_).element == A8
