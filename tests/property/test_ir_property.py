"""Random tiny models through every pass: the IR says the same at every level."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from memory_model import MemorySource, Shape

from infc.driver.oracle import Oracle
from infc.frontends.graph import build_graph
from infc.ir.context import context, parse, print_module
from infc.ir.levels import Level, check_legality, level_of
from infc.ir.mlir import ir
from infc.ir.network import network
from infc.ir.verifier import verify
from infc.passes.graph.canonicalize import CANONICALIZE
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext, Pipeline
from infc.target.discovery import resolve_target

LARGEST_CONTEXT = 32
TARGETS = ("reference", "cpu:x86-64-v3")
"""Their mappings differ, and so do the spaces and barriers that follow from them."""
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    # Shrinking a pipeline takes minutes; a model this small is read as it is.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """A model of one to three layers; its widths are multiples of what the storage needs."""
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    head_dim = draw(st.sampled_from([8, 16, 32]))
    # All heads together are a multiple of 32 wide: what a row of quantised weights needs.
    groups = draw(st.sampled_from([1, 2])) * max(1, 32 // (kv_heads * head_dim))
    return Shape(
        windows=tuple(draw(st.lists(st.sampled_from([None, 3, 7]), min_size=1, max_size=3))),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=draw(st.sampled_from([32, 96])),
        activation=draw(st.sampled_from(["silu", "gelu_tanh"])),
        interleaved=draw(st.booleans()),
        rope_pairs=draw(st.integers(1, head_dim // 2)),
        query_key_norm=draw(st.booleans()),
        post_norms=draw(st.booleans()),
        attention_softcap=draw(st.sampled_from([None, 2.0])),
        final_softcap=draw(st.sampled_from([None, 4.0])),
        norm_offset=draw(st.sampled_from([0.0, 1.0])),
        embedding_scale=draw(st.sampled_from([1.0, 8.0])),
        tied=draw(st.booleans()),
        bias=draw(st.booleans()),
        storage=draw(st.sampled_from(["f32", "f32", "q8_0", "q5_1"])),
        seed=draw(st.integers(0, 99)),
    )


limits = st.builds(
    CompileOptions,
    max_context=st.sampled_from([16, LARGEST_CONTEXT]),
    chunk=st.sampled_from([5, 8, 40]),
    logit_rows=st.sampled_from([1, 16]),
    max_batch=st.sampled_from([1, 5]),
    kv_dtype=st.sampled_from(["auto", "f32"]),
)


def graph_of(source: MemorySource, options: CompileOptions, target: str) -> ir.Module:
    _, facts = resolve_target(target)
    module = build_graph(source, max_context=options.max_context, target=facts.to_json())
    module.operation.attributes["infc.options"] = options.to_attribute()
    return module


@pytest.mark.parametrize("target", TARGETS)
@few
@given(shape=shapes(), options=limits)
def test_every_prefix_of_the_pipeline_means_the_same(
    target: str, shape: Shape, options: CompileOptions
) -> None:
    """Also: it verifies, prints what parses to the same text, and goes on from that text."""
    backend, facts = resolve_target(target)
    source = MemorySource(shape)
    with context():
        module = graph_of(source, options, target)
        verify(module)
        oracle = Oracle(module, source.data)
        assert oracle.spread > 0
        levels = [Level.GRAPH]
        for step in SHARED.passes:
            text = print_module(module)
            module = parse(text)
            assert print_module(module) == text
            manager = PassManager(Pipeline((step,)), observers=(oracle.check,))
            manager.run(module, PassContext(options, facts, backend))
            levels.append(level_of(module))
        assert levels == sorted(levels, key=lambda level: level.order)
        assert levels[-1] is Level.MEMORY
        assert not unplaced(module)


def unplaced(module: ir.Module) -> list[str]:
    """Buffers and weights that still have no offset."""
    found: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name in ("infc.alloc", "infc.packed"):
            offset = ir.IntegerAttr(op.attributes["offset"]).value
            if offset < 0 or offset % 64:
                found.append(str(op))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


@few
@given(shape=shapes(), options=limits)
def test_canonical_graphs_stay_as_they_are(shape: Shape, options: CompileOptions) -> None:
    backend, facts = resolve_target("reference")
    source = MemorySource(shape)
    with context():
        module = graph_of(source, options, "reference")
        ctx = PassContext(options, facts, backend)
        CANONICALIZE.run(module, ctx)
        once = print_module(module)
        CANONICALIZE.run(module, ctx)
        assert print_module(module) == once
        check_legality(module, Level.GRAPH)
        (function,) = (op for op in module.body.operations if op.operation.name == "func.func")
        flow = network(function)
        sources = {
            data["attributes"]["source"]
            for _, data in flow.nodes(data=True)
            if data["name"] == "infc.weight"
        }
        assert sources == set(source.tensors)


@few
@given(shape=shapes())
def test_layers_of_a_class_share_their_code(shape: Shape) -> None:
    """As many layer functions as there are kinds of layers: those that differ in the window."""
    backend, facts = resolve_target("reference")
    options = CompileOptions(max_context=LARGEST_CONTEXT, chunk=8)
    source = MemorySource(shape)
    with context():
        module = graph_of(source, options, "reference")
        upto = SHARED.passes[: SHARED.index("outline-layers") + 1]
        PassManager(Pipeline(upto)).run(module, PassContext(options, facts, backend))
        text = str(module)
    for phase in ("@prefill", "@decode"):
        program = text.partition(f"module {phase}")[2].partition("module @")[0]
        assert program.count("func.func private @layer") == len(set(shape.windows))
        assert program.count("call @layer") == len(shape.windows)


def test_the_oracle_sees_a_wrong_number() -> None:
    """What the other tests rely on: one changed attribute is found."""
    source = MemorySource(Shape())
    options = CompileOptions(max_context=LARGEST_CONTEXT, chunk=8)
    with context():
        module = graph_of(source, options, "reference")
        oracle = Oracle(module, source.data)
        changed = parse(
            print_module(module).replace("scale = 2.500000e-01", "scale = 2.600000e-01")
        )
        with pytest.raises(Exception, match=r"INF2005.*pass by-hand changed the logits"):
            oracle.check("by-hand", changed)
        oracle.check("by-hand", module)
        assert np.isfinite(oracle.expected).all()
