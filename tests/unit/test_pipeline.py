"""The pass manager: order, dumps, observers, and passes that break the module."""

from pathlib import Path

import pytest
from memory_model import MemorySource, Shape

from infc.diagnostics import Code, InternalError, UserError
from infc.frontends.graph import build_graph
from infc.ir import ops
from infc.ir.context import context, parse, print_module
from infc.ir.levels import Level, level_of
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.passes.graph.canonicalize import CANONICALIZE
from infc.passes.phase.split_phases import SPLIT_PHASES
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import FunctionPass, PassContext, Pipeline
from infc.target.discovery import resolve_target

OPTIONS = CompileOptions(max_context=32, chunk=8)


def graph(shape: Shape | None = None) -> ir.Module:
    source = MemorySource(shape or Shape())
    module = build_graph(source, max_context=OPTIONS.max_context, target="{}")
    module.operation.attributes["infc.options"] = OPTIONS.to_attribute()
    return module


def pass_context() -> PassContext:
    backend, target = resolve_target("reference")
    return PassContext(OPTIONS, target, backend)


def add_to_model(module: ir.Module, name: str) -> None:
    """Append an operation that a test wants found, at the start of `@model`."""
    (model,) = (op for op in module.body.operations if op.operation.name == "func.func")
    with ir.InsertionPoint.at_block_begin(model.regions[0].blocks[0]), ir.Location.name("planted"):
        if name == "infc.weight":
            ops.weight("w", TensorType((4, 20), "q8_0"))
        else:
            ops.create(name)


class TestPipeline:
    def test_editing(self) -> None:
        own = FunctionPass("own", Level.GRAPH, lambda module, ctx: None)
        edited = SHARED.insert_after("canonicalize", own, own)
        assert edited.names()[:4] == ["canonicalize", "own", "own", "split-phases"]
        assert len(edited.passes) == len(SHARED.passes) + 2
        assert SHARED.after("pack-weights").names() == ["record-plan"]
        assert SHARED.after("record-plan").passes == ()
        assert SHARED.index("split-phases") == 1
        assert SHARED.until(Level.GRAPH).names() == ["canonicalize"]
        assert SHARED.until(Level.PHASE).names()[-1] == "outline-layers"
        assert SHARED.until(Level.MACHINE) == SHARED

    def test_an_unknown_pass(self) -> None:
        with pytest.raises(UserError) as caught:
            SHARED.until(Level.PHASE).insert_after("canonicalise")
        assert str(caught.value) == (
            "error[INF2004]: there is no pass 'canonicalise'\n"
            "   = hint: the passes are canonicalize, split-phases, outline-layers"
        )

    def test_each_pass_takes_what_the_one_before_it_leaves(self) -> None:
        level = Level.GRAPH
        for step in SHARED.passes:
            assert step.stage is level, step.name
            level = step.result
        assert level is Level.MEMORY


class TestDumps:
    def test_numbers_levels_and_unchanged_markers(self, tmp_path: Path) -> None:
        idle = FunctionPass("idle", Level.PHASE, lambda module, ctx: None)
        passes = (CANONICALIZE, SPLIT_PHASES, idle, idle)
        folder = tmp_path / "made" / "as needed"
        seen: list[str] = []
        with context():
            module = graph()
            manager = PassManager(
                Pipeline(passes), dump=folder, observers=(lambda name, _: seen.append(name),)
            )
            manager.run(module, pass_context())
            final = print_module(module)
        # `idle` first leaves its name in the module; the second time nothing changes at all.
        assert sorted(path.name for path in folder.iterdir()) == [
            "000-import.mlir",
            "001-graph-canonicalize.mlir",
            "002-phase-split-phases.mlir",
            "003-phase-idle.mlir",
            "004-phase-idle.unchanged",
        ]
        assert (folder / "003-phase-idle.mlir").read_text() == final
        assert (folder / "004-phase-idle.unchanged").read_text() == ""
        assert seen == [step.name for step in passes]

    def test_a_resumed_run_counts_on(self, tmp_path: Path) -> None:
        with context():
            module = graph()
            PassManager(SHARED.until(Level.GRAPH), dump=tmp_path).run(module, pass_context())
            rest = SHARED.until(Level.PHASE).after("canonicalize")
            PassManager(rest, dump=tmp_path / "rest", first_number=1).run(module, pass_context())
        assert sorted(path.name for path in (tmp_path / "rest").iterdir()) == [
            "001-import.mlir",
            "002-phase-split-phases.mlir",
            "003-phase-outline-layers.mlir",
        ]

    def test_a_dump_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with context(), pytest.raises(UserError) as raised:
            PassManager(SHARED, dump=tmp_path / "file" / "dump").run(graph(), pass_context())
        assert str(raised.value) == (
            "error[INF4006]: cannot write the dump: not a directory\n"
            f"  --> {tmp_path}/file/dump/000-import.mlir\n"
            "   = hint: give --dump another folder, or free some space there"
        )

    def test_every_dump_goes_on_to_the_same_end(self, tmp_path: Path) -> None:
        with context():
            module = graph(Shape(windows=(4, None), storage="q8_0"))
            PassManager(SHARED, dump=tmp_path).run(module, pass_context())
            final = print_module(module)
        dumps = sorted(tmp_path.glob("*.mlir"))
        assert len(dumps) == len(SHARED.passes) + 1
        for number, dump in enumerate(dumps):
            with context():
                module = parse(dump.read_text())
                PassManager(Pipeline(SHARED.passes[number:])).run(module, pass_context())
                assert print_module(module) == final, dump.name

    def test_a_failed_pass_leaves_the_last_good_module(self, tmp_path: Path) -> None:
        def fail(module: ir.Module, ctx: PassContext) -> None:
            raise UserError(Code.PLAN, "no room")

        broken = Pipeline((CANONICALIZE, FunctionPass("broken", Level.GRAPH, fail)))
        with context(), pytest.raises(UserError, match="no room"):
            PassManager(broken, dump=tmp_path).run(graph(), pass_context())
        last = sorted(tmp_path.iterdir())[-1]
        assert last.name == "001-graph-canonicalize.mlir"


class TestBrokenPasses:
    def test_a_pass_that_leaves_invalid_ir_is_named(self) -> None:
        step = FunctionPass("spoil", Level.GRAPH, lambda m, ctx: add_to_model(m, "infc.weight"))
        with context(), pytest.raises(InternalError) as caught:
            PassManager(Pipeline((step,))).run(graph(), pass_context())
        assert str(caught.value) == (
            "error[INF9001]: pass spoil left a module that does not verify\n"
            "   |  error[INF2002]: the IR breaks 1 rule\n"
            "   |     - infc.weight: expected rows of a multiple of 32 elements, got 20 "
            '(loc("planted"))'
        )

    def test_a_pass_that_leaves_ops_of_another_level_is_named(self) -> None:
        step = FunctionPass("early", Level.GRAPH, lambda m, ctx: add_to_model(m, "infc.barrier"))
        with context(), pytest.raises(InternalError) as caught:
            PassManager(Pipeline((step,))).run(graph(), pass_context())
        assert str(caught.value) == (
            "error[INF9001]: pass early left a module that does not verify\n"
            "   |  error[INF2003]: not legal at level graph: 1 operation\n"
            '   |     - infc.barrier is not legal at level graph (loc("planted"))'
        )

    def test_a_pass_at_the_wrong_level(self) -> None:
        with context():
            module = graph()
            with pytest.raises(UserError) as caught:
                PassManager(Pipeline((SPLIT_PHASES, CANONICALIZE))).run(module, pass_context())
            assert level_of(module) is Level.PHASE
        assert str(caught.value) == (
            "error[INF2004]: pass canonicalize expects a module at level graph, got phase\n"
            "   = hint: the order is split-phases, canonicalize"
        )


PLACELESS = frozenset(
    {"builtin.module", "func.func", "func.return", "infc.dim", "infc.device", "infc.space"}
)
"""What stands for a program or its frame and not for a place in the model."""


@pytest.mark.parametrize("target", ["reference", "cpu:x86-64-v3"])
def test_no_pass_loses_a_location(target: str) -> None:
    lost: list[str] = []

    def look(name: str, module: ir.Module) -> None:
        def visit(op: ir.Operation) -> ir.WalkResult:
            if str(op.location) == "loc(unknown)" and op.name not in PLACELESS:
                lost.append(f"{name}: {op.name}")
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)

    shape = Shape(windows=(4, None), storage="q8_0", query_key_norm=True, final_softcap=4.0)
    backend, facts = resolve_target(target)
    with context():
        module = graph(shape)
        look("import", module)
        manager = PassManager(SHARED, observers=(look,))
        manager.run(module, PassContext(OPTIONS, facts, backend))
    assert lost == []


def test_remarks_name_the_pass_and_the_place() -> None:
    ctx = pass_context()
    with context():
        PassManager(SHARED).run(graph(), ctx)
    seen = {(remark.pass_name, remark.location, remark.reason) for remark in ctx.remarks}
    assert (
        "quantize-activations",
        'loc("layers.0.q")',
        "f32 weights of 64 columns take f32 inputs",
    ) in seen
    assert (
        "fuse-kernels",
        'loc("layers.0.attention_residual")',
        "needs whole rows of the product before it",
    ) in seen


def test_options_travel_with_the_module() -> None:
    options = CompileOptions(max_context=99, max_batch=3, quantize="q8_0", kv_dtype="f16")
    with context():
        module = graph()
        module.operation.attributes["infc.options"] = options.to_attribute()
        text = print_module(module)
    with context():
        assert CompileOptions.from_module(parse(text)) == options


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (CompileOptions(max_context=8, chunk=32), 8),
        (CompileOptions(max_context=64, chunk=32), 32),
        # Several short sequences may fill a call together.
        (CompileOptions(max_context=8, chunk=32, max_batch=2), 32),
    ],
)
def test_prefill_rows(options: CompileOptions, rows: int) -> None:
    assert options.prefill_rows == rows
