"""Outlining and the networkx view, and what the builders make."""

import networkx as nx
import pytest
from memory_model import MemorySource, Shape

from infc.frontends.graph import build_graph
from infc.ir import ops
from infc.ir.attributes import attributes_of
from infc.ir.context import context
from infc.ir.mlir import func, ir
from infc.ir.network import network
from infc.ir.outline import (
    clone_ops,
    operands_from_outside,
    outline,
    results_used_outside,
    structural_key,
)
from infc.ir.types import BufferType, KVType, TensorType
from infc.ir.verifier import verify

X = TensorType(("t", 64), "f32")
IDS = TensorType(("t",), "i32")


def new_function(module: ir.Module, *inputs: ir.Type) -> tuple[func.FuncOp, ir.Block]:
    with ir.InsertionPoint(module.body):
        ops.create("infc.dim", sym_name="t", min=1, max=4)
        ops.create("infc.dim", sym_name="r", min=1, max=4)
        function = func.FuncOp("f", ir.FunctionType.get(list(inputs), []))
    return function, function.add_entry_block()


def test_builders_make_what_the_verifier_accepts() -> None:
    """Every builder once, with the shapes its documentation states."""
    with context():
        module = ir.Module.create()
        cache_type = KVType("f32", 2, 16, 32, 0)
        frame = BufferType(TensorType((0,), "i8"), "frame", "arena").mlir()
        wanted = TensorType(("r",), "i32").mlir()
        _, block = new_function(module, X.mlir(), IDS.mlir(), wanted, frame)
        x, ids, rows, arena = block.arguments
        with ir.InsertionPoint(block):
            table = ops.weight("embed", TensorType((48, 64), "q8_0"))
            gain = ops.weight("gain", TensorType((64,), "f32"))
            matrix = ops.weight("q", TensorType((32, 64), "q8_0"))
            bias = ops.weight("b", TensorType((32,), "f32"))
            small = ops.weight("small", TensorType((16,), "f32"))
            h = ops.add(x, ops.embed(ids, table, scale=8.0))
            h = ops.rms_norm(h, gain, eps=1e-6, offset=1.0)
            h = ops.rms_norm(h, small, eps=1e-6, offset=1.0, head_dim=16)
            kv = ops.linear(h, matrix, bias)
            rope = ops.rope_table([1.0, 0.5], magnitude=1.0, positions=32)
            q = ops.rope(h, ids, rope, head_dim=16, interleaved=False)
            a = ops.attention(
                q, kv, kv, ids, heads=4, head_dim=16, scale=0.25, window=0, softcap=0.0
            )
            cache = ops.kv_append(ops.kv_cache(0, cache_type), kv, kv, ids, ids)
            b = ops.kv_attention(q, cache, ids, ids, heads=4, scale=0.25, softcap=0.0)
            y = ops.mul(ops.activation(a, kind="silu"), ops.softcap(b, cap=2.0))
            y = ops.select_rows(y, rows)
            logits = ops.linear(ops.quantize(y), table)
            best = ops.argmax(logits)
            kind = BufferType(TensorType.of(best.type), "rows", "arena")
            buffer = ops.alloc(arena, kind, offset=-1, size_bytes=16)
            ops.write(best, buffer)
            again = ops.read(buffer)
            func.ReturnOp([])
        verify(module)
        assert TensorType.of(kv.type) == TensorType(("t", 32), "f32")
        assert TensorType.of(logits.type) == TensorType(("r", 48), "f32")
        assert again.type == best.type == wanted


def chain(module: ir.Module) -> tuple[func.FuncOp, list[ir.OpView]]:
    function, block = new_function(module, X.mlir(), X.mlir())
    x, y = block.arguments
    with ir.InsertionPoint(block):
        a = ops.add(x, y)
        b = ops.softcap(a, cap=1.0)
        c = ops.mul(b, a)
        ops.add(c, b)
        func.ReturnOp([])
    return function, list(block.operations)


def test_outline_makes_arguments_of_what_comes_in() -> None:
    with context():
        module = ir.Module.create()
        function, operations = chain(module)
        x, y = function.arguments
        middle = operations[1:3]
        assert operands_from_outside(middle) == [operations[0].results[0]]
        assert results_used_outside(middle) == [op.results[0] for op in middle]
        assert operands_from_outside(operations[:3]) == [x, y]
        assert results_used_outside(operations[:1]) == [operations[0].results[0]]
        inputs, outputs = operands_from_outside(middle), results_used_outside(middle)
        made = outline(middle, "part", inputs, outputs, ir.InsertionPoint(function))
        verify(module)
        assert [op.operation.name for op in made.regions[0].blocks[0].operations] == [
            "infc.softcap",
            "infc.mul",
            "func.return",
        ]
        assert [str(kind) for kind in made.type.results] == [str(X.mlir())] * 2
        assert made.attributes["sym_visibility"] == ir.StringAttr.get("private")
        # The originals stay where they were.
        assert len(operations) == len(list(function.regions[0].blocks[0].operations))


def test_clones_keep_attributes_and_locations() -> None:
    with context():
        module = ir.Module.create()
        _, block = new_function(module, X.mlir(), X.mlir())
        x, y = block.arguments
        with ir.InsertionPoint(block), ir.Location.name("layers.0.cap"):
            op = ops.softcap(x, cap=3.0).owner.opview
            mapping = {x: y}
            clone_ops([op], mapping)
            copy = mapping[op.results[0]].owner
            func.ReturnOp([])
        assert list(copy.operands) == [y]
        assert str(copy.location) == 'loc("layers.0.cap")'
        assert attributes_of(copy) == attributes_of(op) == {"cap": 3.0}


@pytest.mark.parametrize(
    ("cap", "location", "equal"), [(1.0, "elsewhere", True), (2.0, "here", False)]
)
def test_structural_key(cap: float, location: str, equal: bool) -> None:
    """Names and places do not count; attributes do."""
    with context():
        module = ir.Module.create()
        made = []
        for name, value, place in (("one", 1.0, "here"), ("another", cap, location)):
            with ir.InsertionPoint(module.body):
                function = func.FuncOp(name, ir.FunctionType.get([X.mlir()], [X.mlir()]))
            with ir.InsertionPoint(function.add_entry_block()), ir.Location.name(place):
                func.ReturnOp([ops.softcap(function.arguments[0], cap=value)])
            made.append(structural_key(function))
        assert (made[0] == made[1]) is equal


def test_network_of_a_model() -> None:
    source = MemorySource(Shape(windows=(4, None), tied=False))
    with context():
        module = build_graph(source, max_context=16, target="{}")
        (model,) = (op for op in module.body.operations if op.operation.name == "func.func")
        flow = network(model)
        operations = list(model.regions[0].blocks[0].operations)
    assert nx.is_directed_acyclic_graph(flow)
    assert nx.is_weakly_connected(flow)
    assert sorted(flow.nodes) == list(range(-2, len(operations)))
    assert [n for n in flow if flow.nodes[n]["name"] == "argument"] == [-1, -2]
    # Each value is used, each weight of the file read once.
    assert [n for n in flow if flow.out_degree(n) == 0] == [len(operations) - 1]
    weights = [n for n in flow if flow.nodes[n]["name"] == "infc.weight"]
    names = [flow.nodes[n]["attributes"]["source"] for n in weights]
    assert sorted(names) == sorted(source.tensors)
    # The longest way leads through both layers, from the embedding to the head.
    path = nx.dag_longest_path(flow)
    layers = [flow.nodes[n]["layer"] for n in path]
    assert {0, 1} <= set(layers)
    assert flow.nodes[path[-1]]["name"] == "func.return"
    attention = next(n for n in flow if flow.nodes[n]["name"] == "infc.attention")
    operands = sorted(
        (data["operand"], flow.nodes[maker]["name"], data["type"])
        for maker, _, data in flow.in_edges(attention, data=True)
    )
    assert operands == [
        (0, "infc.rope", 'tensor<?x64xf32, ["t", 64]>'),
        (1, "infc.rope", 'tensor<?x32xf32, ["t", 32]>'),
        (2, "infc.linear", 'tensor<?x32xf32, ["t", 32]>'),
        (3, "argument", 'tensor<?xi32, ["t"]>'),
    ]
    assert flow.nodes[attention]["location"] == 'loc("layers.0.attention")'
