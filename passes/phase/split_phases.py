"""One graph becomes two programs, each with its own shapes and an explicit KV cache.

    func @model(tokens, positions)         module @prefill { func @main(tokens, positions,
      attention q, k, v               -->      slots, rows) -> (logits, best, top)
                                                 cache = kv_cache; kv_append; kv_attention }
                                           module @decode  { ... the same ops, few rows ... }

Requires: a graph-level module with one function `@model`.
Guarantees: two nested modules; every row of a call has a slot, so several sequences share a call;
only the rows that `%rows` names reach the final norm and the head; each layer's cache is one value
of type `!infc.kv`, a ring of at least `window + chunk - 1` positions where the layer has a window.
Does not handle: graphs whose layers attend to another layer's keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.diagnostics import Code, InternalError, UserError
from infc.ir import ops
from infc.ir.attributes import get, to_attribute
from infc.ir.kv_storage import KV_DTYPES
from infc.ir.levels import Level
from infc.ir.mlir import func, ir
from infc.ir.types import KVType, TensorType, is_tensor
from infc.passes.walk import body
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import FunctionPass, PassContext

TOP_K = 64
"""A call may ask for this many of the largest logits, or for the whole vocabulary's."""
RING_MULTIPLE = 16
"""Capacities are multiples of this many positions, so that blocks of positions never straddle."""


def split_phases(module: ir.Module, ctx: PassContext) -> None:
    """Replace `@model` by the modules `@prefill` and `@decode`."""
    model = next((op for op in module.body.operations if op.operation.name == "func.func"), None)
    if model is None or get(model, "sym_name") != "model":
        raise InternalError("expected a function @model in a graph-level module")
    dtype = kv_dtype(model, ctx)
    rows = {"prefill": ctx.options.prefill_rows, "decode": ctx.options.max_batch}
    logit_rows = {
        "prefill": max(min(ctx.options.logit_rows, rows["prefill"]), ctx.options.max_batch),
        "decode": rows["decode"],
    }
    for phase in ("prefill", "decode"):
        _build_program(module, model, phase, rows[phase], logit_rows[phase], dtype, ctx.options)
    module.operation.attributes["infc.signature"] = to_attribute(
        _signature(model, rows, logit_rows, dtype, ctx.options)
    )
    for op in list(module.body.operations):
        if op.operation.name == "func.func" or op.operation.name == "infc.dim":
            op.operation.erase()


def _signature(
    model: ir.OpView,
    rows: dict[str, int],
    logit_rows: dict[str, int],
    dtype: str,
    options: CompileOptions,
) -> dict[str, object]:
    """What a caller of the programs must know; see `infc.target.runnable`."""
    attentions = [op for op in body(model) if op.operation.name == "infc.attention"]
    first = attentions[0]
    windows = [get(op, "window") for op in attentions]
    head_dim = get(first, "head_dim")
    return {
        "vocab_size": int(TensorType.of(_logits(model).type).shape[1]),
        "max_tokens": [rows["prefill"], rows["decode"]],
        "max_logit_rows": [logit_rows["prefill"], logit_rows["decode"]],
        "max_top_k": min(TOP_K, int(TensorType.of(_logits(model).type).shape[1])),
        "max_context": options.max_context,
        "max_slots": options.max_batch,
        "max_threads": options.max_threads,
        "kv_heads": int(TensorType.of(first.operation.operands[1].type).shape[1]) // head_dim,
        "head_dim": head_dim,
        "kv_dtype": dtype,
        "windows": windows,
        "capacity": [capacity(window, options) for window in windows],
    }


def kv_dtype(model: ir.OpView, ctx: PassContext) -> str:
    """What was asked; or `f32` where all weights of the model are kept in float32, else `f16`; or
    what the backend holds in place of that.

    Raises:
        UserError: the backend cannot hold what was asked (INF3004).
    """
    held: Sequence[str] = getattr(ctx.backend, "kv_dtypes", tuple(KV_DTYPES))
    asked = ctx.options.kv_dtype
    if asked != "auto":
        if asked not in held:
            raise UserError(
                Code.TARGET_UNSUPPORTED,
                f"target {ctx.target.name!r} holds no cache of {asked}",
                hint=f"give --kv-dtype {' or '.join(held)}",
            )
        return asked
    kinds = {
        TensorType.of(op.operation.results[0].type).element
        for op in body(model)
        if op.operation.name == "infc.weight"
    }
    usual = "f32" if all(kind == "f32" for kind in kinds) else "f16"
    return usual if usual in held else held[0]


def capacity(window: int, options: CompileOptions) -> int:
    """Positions a layer keeps: all of them, or the ring of its window."""
    held = options.max_context
    if window:
        held = min(window + options.prefill_rows - 1, held)
    return -(-held // RING_MULTIPLE) * RING_MULTIPLE


def _build_program(
    module: ir.Module,
    model: ir.OpView,
    phase: str,
    rows: int,
    logit_rows: int,
    dtype: str,
    options: CompileOptions,
) -> None:
    with ir.InsertionPoint(module.body), model.location:
        program = ops.create_module(phase)
        program.attributes["infc.phase"] = ir.StringAttr.get(phase)
        program.attributes["infc.device"] = ir.FlatSymbolRefAttr.get("device0")
    row_ids = TensorType(("t",), "i32")
    wanted = TensorType(("r",), "i32")
    vocab = TensorType.of(_logits(model).type).shape[1]
    top = min(TOP_K, int(vocab))
    results = [
        TensorType(("r", vocab), "f32").mlir(),
        wanted.mlir(),
        TensorType(("r", top), "f32").mlir(),
        TensorType(("r", top), "i32").mlir(),
    ]
    with ir.InsertionPoint(program.regions[0].blocks[0]), model.location:
        ops.create("infc.dim", sym_name="t", min=1, max=rows)
        ops.create("infc.dim", sym_name="r", min=0, max=logit_rows)
        inputs = [row_ids.mlir(), row_ids.mlir(), row_ids.mlir(), wanted.mlir()]
        main = func.FuncOp("main", ir.FunctionType.get(inputs, results))
    with ir.InsertionPoint(main.add_entry_block()):
        _ProgramBuilder(main, model, dtype, options).build()


def _logits(model: ir.OpView) -> ir.Value:
    return body(model)[-1].operation.operands[0]


class _ProgramBuilder:
    """Copies the model's operations into a program's `@main`, attention by attention."""

    def __init__(
        self, main: func.FuncOp, model: ir.OpView, dtype: str, options: CompileOptions
    ) -> None:
        self.positions, self.slots, self.rows = list(main.arguments)[1:4]
        self.operations = body(model)
        self.dtype = dtype
        self.options = options
        arguments = model.regions[0].blocks[0].arguments
        self.map: dict[ir.Value, ir.Value] = {
            arguments[0]: main.arguments[0],
            arguments[1]: main.arguments[1],
        }
        self.selected: dict[ir.Value, ir.Value] = {}
        layered = [i for i, op in enumerate(self.operations) if get(op, "infc.layer") is not None]
        self.tail = layered[-1] + 1 if layered else len(self.operations)

    def build(self) -> None:
        for index, op in enumerate(self.operations):
            with op.location:
                if op.operation.name == "func.return":
                    logits = self.map[op.operation.operands[0]]
                    # The return has no place in the model; what makes the logits has.
                    with logits.owner.location:
                        best = ops.argmax(logits)
                        columns = int(TensorType.of(logits.type).shape[1])
                        top = ops.top_k(logits, count=min(TOP_K, columns))
                    func.ReturnOp([logits, best, *top])
                elif op.operation.name == "infc.attention":
                    self.attention(op)
                else:
                    self.copy(op, in_tail=index >= self.tail)

    def attention(self, op: ir.OpView) -> None:
        q, k, v = (self.map[value] for value in list(op.operation.operands)[:3])
        layer, head_dim, window = (get(op, n) for n in ("infc.layer", "head_dim", "window"))
        kv_heads = int(TensorType.of(k.type).shape[-1]) // head_dim
        kind = KVType(self.dtype, kv_heads, head_dim, capacity(window, self.options), window)
        before = len(ir.InsertionPoint.current.block.operations)
        cache = ops.kv_cache(layer, kind)
        cache = ops.kv_append(cache, k, v, self.positions, self.slots)
        self.map[op.operation.results[0]] = ops.kv_attention(
            q,
            cache,
            self.positions,
            self.slots,
            heads=get(op, "heads"),
            scale=get(op, "scale"),
            softcap=get(op, "softcap"),
        )
        for made in list(ir.InsertionPoint.current.block.operations)[before:]:
            made.operation.attributes["infc.layer"] = to_attribute(layer)

    def copy(self, op: ir.OpView, *, in_tail: bool) -> None:
        operands = [self.map[value] for value in op.operation.operands]
        kinds = [result.type for result in op.operation.results]
        if in_tail:
            operands = [self.only_wanted_rows(value) for value in operands]
            kinds = [_with_rows(kind) for kind in kinds]
        attributes = {name: op.operation.attributes[name] for name in op.operation.attributes}
        made = ir.Operation.create(
            op.operation.name, results=kinds, operands=operands, attributes=attributes
        )
        self.map.update(zip(op.operation.results, made.results, strict=True))

    def only_wanted_rows(self, value: ir.Value) -> ir.Value:
        if not is_tensor(value.type) or TensorType.of(value.type).shape[0] != "t":
            return value
        if value not in self.selected:
            self.selected[value] = ops.select_rows(value, self.rows)
        return self.selected[value]


def _with_rows(kind: ir.Type) -> ir.Type:
    tensor = TensorType.of(kind)
    if tensor.shape[0] != "t":
        return kind
    return TensorType(("r", *tensor.shape[1:]), tensor.element).mlir()


SPLIT_PHASES = FunctionPass("split-phases", Level.GRAPH, split_phases, raises_to=Level.PHASE)
