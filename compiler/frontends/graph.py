"""From a model's description to graph IR: one function `@model` in terms of shared blocks.

    tokens -> embed -> [ norm -> q, k, v -> rope -> attention -> o -> add
                         norm -> gate, up -> act * -> down -> add ] x layers -> norm -> head

Every operation of layer `i` carries `infc.layer = i` and a location that names its place in the
model; later passes rely on both.
"""

from __future__ import annotations

from infc.frontends.source import LayerConfig, ModelConfig, ModelSource, RopeConfig
from infc.ir import ops
from infc.ir.attributes import to_attribute
from infc.ir.mlir import func, ir
from infc.ir.types import TensorType
from infc.ir.version import DIALECT_VERSION

DEVICE = "device0"
"""Symbol of the one device that both programs run on."""


def build_graph(source: ModelSource, *, max_context: int, target: str) -> ir.Module:
    """The graph-level module of a model, in the current MLIR context.

    Args:
        source: the opened model.
        max_context: positions the rope tables cover.
        target: the resolved target as JSON, recorded as the device of the programs.

    Returns:
        A module with `@model(tokens: i32 [t], positions: i32 [t]) -> f32 [t, vocab]`: one sequence
        from its start, attention among its own tokens.
    """
    module = ir.Module.create()
    attributes = module.operation.attributes
    attributes["sym_name"] = ir.StringAttr.get(source.config.family)
    attributes["infc.level"] = ir.StringAttr.get("graph")
    attributes["infc.version"] = to_attribute(DIALECT_VERSION)
    attributes["infc.model"] = ir.StringAttr.get(source.digest())
    with ir.InsertionPoint(module.body):
        ops.create("infc.device", sym_name=DEVICE, target=target)
        ops.create("infc.dim", sym_name="t", min=1, max=max_context)
        row_ids = TensorType(("t",), "i32").mlir()
        logits = TensorType(("t", source.config.vocab_size), "f32").mlir()
        function = func.FuncOp("model", ir.FunctionType.get([row_ids, row_ids], [logits]))
    block = function.add_entry_block()
    with ir.InsertionPoint(block):
        builder = _GraphBuilder(source, block.arguments[0], block.arguments[1], max_context)
        func.ReturnOp([builder.build()])
    return module


class _GraphBuilder:
    """Appends the blocks of one model."""

    def __init__(
        self, source: ModelSource, tokens: ir.Value, positions: ir.Value, max_context: int
    ) -> None:
        self.source = source
        self.config: ModelConfig = source.config
        self.tokens = tokens
        self.positions = positions
        self.max_context = max_context
        self.tables: dict[RopeConfig, ir.Value] = {}

    def build(self) -> ir.Value:
        config = self.config
        table = self.weight("embed")
        with _at("embed"):
            x = ops.embed(self.tokens, table, scale=config.embedding_scale)
        for layer in config.layers:
            if layer.rope not in self.tables:
                with _at("rope_table"):
                    self.tables[layer.rope] = ops.rope_table(
                        layer.rope.inverse_frequencies,
                        magnitude=layer.rope.magnitude,
                        positions=self.max_context,
                    )
        for index, layer in enumerate(config.layers):
            x = self.layer(index, layer, x)
        x = self.norm("final_norm", x)
        head = self.weight("head") if "head" in config.weights else table
        with _at("head"):
            logits = ops.linear(x, head)
            if config.final_softcap is not None:
                logits = ops.softcap(logits, cap=config.final_softcap)
        return logits

    def layer(self, index: int, layer: LayerConfig, x: ir.Value) -> ir.Value:
        block = ir.InsertionPoint.current.block
        before = len(block.operations)
        x = self.attention_block(f"layers.{index}.", layer, x)
        x = self.feed_forward_block(f"layers.{index}.", x)
        for op in list(block.operations)[before:]:
            op.operation.attributes["infc.layer"] = to_attribute(index)
        return x

    def attention_block(self, prefix: str, layer: LayerConfig, x: ir.Value) -> ir.Value:
        config = self.config
        hidden = self.norm(prefix + "attn_norm", x)
        q = self.linear(prefix + "q", hidden)
        k = self.linear(prefix + "k", hidden)
        v = self.linear(prefix + "v", hidden)
        if config.query_key_norm:
            q = self.norm(prefix + "q_norm", q, head_dim=config.head_dim)
            k = self.norm(prefix + "k_norm", k, head_dim=config.head_dim)
        table = self.tables[layer.rope]
        with _at(prefix + "rope"):
            q, k = (
                ops.rope(
                    y,
                    self.positions,
                    table,
                    head_dim=config.head_dim,
                    interleaved=layer.rope.interleaved,
                )
                for y in (q, k)
            )
        with _at(prefix + "attention"):
            attended = ops.attention(
                q,
                k,
                v,
                self.positions,
                heads=config.heads,
                head_dim=config.head_dim,
                scale=config.attention_scale,
                window=layer.window or 0,
                softcap=config.attention_softcap or 0.0,
            )
        out = self.linear(prefix + "o", attended)
        if config.post_norms:
            out = self.norm(prefix + "post_attn_norm", out)
        with _at(prefix + "attention_residual"):
            return ops.add(x, out)

    def feed_forward_block(self, prefix: str, x: ir.Value) -> ir.Value:
        hidden = self.norm(prefix + "ffn_norm", x)
        gate = self.linear(prefix + "gate", hidden)
        up = self.linear(prefix + "up", hidden)
        with _at(prefix + "activation"):
            gated = ops.mul(ops.activation(gate, kind=self.config.activation), up)
        out = self.linear(prefix + "down", gated)
        if self.config.post_norms:
            out = self.norm(prefix + "post_ffn_norm", out)
        with _at(prefix + "feed_forward_residual"):
            return ops.add(x, out)

    def weight(self, role: str) -> ir.Value:
        info = self.source.tensors[self.config.weights[role]]
        with _at(info.name):
            return ops.weight(info.name, TensorType(info.shape, info.storage))

    def norm(self, role: str, x: ir.Value, *, head_dim: int | None = None) -> ir.Value:
        gain = self.weight(role)
        with _at(role):
            return ops.rms_norm(
                x, gain, eps=self.config.norm_eps, offset=self.config.norm_offset, head_dim=head_dim
            )

    def linear(self, role: str, x: ir.Value) -> ir.Value:
        matrix = self.weight(role)
        bias = self.weight(role + "_bias") if role + "_bias" in self.config.weights else None
        with _at(role):
            return ops.linear(x, matrix, bias)


def _at(name: str) -> ir.Location:
    return ir.Location.name(name)
