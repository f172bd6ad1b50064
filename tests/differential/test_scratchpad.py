"""Programs for a machine with a scratchpad mean what the graph means, however small it is."""

from __future__ import annotations

import numpy as np
import pytest
from memory_model import MemorySource, Shape
from numpy.typing import NDArray

from infc.diagnostics import InternalError, UserError
from infc.driver.oracle import Oracle
from infc.frontends.graph import build_graph
from infc.ir.attributes import from_attribute, get, to_attribute
from infc.ir.context import context, parse, print_module
from infc.ir.mlir import ir
from infc.ir.verifier import verify
from infc.passes.memory.check_memory import check_memory
from infc.passes.pipelines import SHARED
from infc.passes.walk import functions
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext, Pipeline
from infc.reference.interpreter import Interpreter
from infc.target.discovery import resolve_target
from infc.target.schema import Memory, Target

OPTIONS = CompileOptions(max_context=32, chunk=8, logit_rows=1, prompt=8, kv_dtype="f32")
SHAPE = Shape(windows=(None, 8, None), hidden=64, intermediate=96, vocab=64)


def with_scratchpad(size_bytes: int, queues: int = 2, direct: bool = False) -> Target:
    """The processor's target with a scratchpad beside its caches."""
    _, target = resolve_target("cpu:x86-64-v3")
    far = target.memory("dram")
    feeds = ("sram", "cores") if direct else ("sram",)
    near = Memory(
        name="sram",
        size_bytes=size_bytes,
        bandwidth_bytes_per_s=1e12,
        managed_by="software",
        feeds=("cores",),
        efficiency=far.efficiency,
    )
    others = [memory for memory in target.memories if memory.name != "dram"]
    return target.model_copy(
        update={
            "memories": (far.model_copy(update={"feeds": feeds}), *others, near),
            "backend_facts": {**target.backend_facts, "dma_queues": queues},
        }
    )


Start = tuple[str, Oracle]
"""The programs once their values have buffers, and what the graph means."""


@pytest.fixture(scope="module")
def start() -> Start:
    source = MemorySource(SHAPE)
    backend, target = resolve_target("cpu:x86-64-v3")
    with context():
        module = build_graph(source, max_context=OPTIONS.max_context, target=target.to_json())
        module.operation.attributes["infc.options"] = OPTIONS.to_attribute()
        oracle = Oracle(module, source.data)
        steps = SHARED.passes[: SHARED.index("schedule-transfers")]
        PassManager(Pipeline(steps)).run(module, PassContext(OPTIONS, target, backend))
        return print_module(module), oracle


def compiled(start: Start, target: Target) -> ir.Module:
    """A memory-level module for a target, checked against the graph after every pass."""
    text, oracle = start
    module = parse(text)
    backend, _ = resolve_target("cpu:x86-64-v3")
    manager = PassManager(SHARED.after("bufferize"), observers=(oracle.check,))
    manager.run(module, PassContext(OPTIONS, target, backend))
    return module


@pytest.mark.parametrize(
    ("size_bytes", "queues", "direct"),
    [(54 << 10, 1, False), (64 << 10, 2, False), (40 << 10, 1, True), (4 << 20, 2, False)],
)
def test_the_numbers_stay(start: Start, size_bytes: int, queues: int, direct: bool) -> None:
    with context():
        module = compiled(start, with_scratchpad(size_bytes, queues, direct))
        check_memory(module)
        text = print_module(module)
        # Where kernels can read far memory themselves, that may be faster than any transfer.
        assert ('"infc.prefetch"' in text) != direct
        assert print_module(parse(text)) == text
        for function in functions(module):
            staging = get(function, "infc.staging")
            if get(function, "sym_name") == "main":
                height = get(function, "infc.plan")["sram"]["height_bytes"]
                assert 0 < height <= size_bytes
                assert staging["lower_bound_seconds"] <= staging["seconds"] * (1 + 1e-6)


def test_the_report_has_each_transfer_and_the_time(start: Start) -> None:
    with context():
        module = compiled(start, with_scratchpad(64 << 10))
        report = from_attribute(module.operation.attributes["infc.report"])
    for program in report.values():
        (main,) = program["plans"].values()
        stays = {
            (row["offset_bytes"], row["size_bytes"], row["first"], row["last"])
            for row in main["buffers"]
            if row["space"] == "sram"
        }
        assert len(main["transfers"]) > 20
        for row in main["transfers"]:
            # Every transfer lies within a stay of the buffer that it fills or empties.
            assert any(
                (offset, size) == (row["offset_bytes"], row["size_bytes"])
                and first <= row["first"] <= row["last"] <= last
                for offset, size, first, last in stays
            )
        assert main["staging"]["seconds"] > main["staging"]["stall_seconds"] >= 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("overlap", "overlap: both live at step"),
        ("early", "is used by func.call before its infc.wait"),
    ],
)
def test_edits_that_break_a_schedule_are_found(start: Start, edit: str, message: str) -> None:
    with context():
        module = compiled(start, with_scratchpad(64 << 10))
        main = next(f for f in functions(module) if get(f, "sym_name") == "main")
        ops = list(main.regions[0].blocks[0].operations)
        if edit == "overlap":
            for op in ops:
                if op.operation.name == "infc.alloc" and "sram" in str(op.operation.results[0]):
                    op.attributes["offset"] = to_attribute(0)
        else:
            # The last wait goes behind the call that needs it.
            wait = [op for op in ops if op.operation.name == "infc.wait"][-1]
            wait.operation.move_after(ops[-2].operation)
        with pytest.raises(UserError, match=message):
            look_again(module)


def look_again(module: ir.Module) -> None:
    """What is done with a dump before code is made of it."""
    verify(module)
    check_memory(module)


def test_numbers_that_arrive_too_late_are_no_numbers() -> None:
    """The reference refuses what no verifier sees: bytes that change under way."""
    text = """
    !a = !infc.buffer<tensor<4xf32>, "rows", "arena">
    !s = !infc.buffer<tensor<4xf32>, "rows", "sram">
    !f = !infc.buffer<tensor<0xi8>, "frame", "arena">
    !g = !infc.buffer<tensor<0xi8>, "frame", "sram">
    module {
      func.func @f(%x: tensor<4xf32>) -> tensor<4xf32> {
        %f = "infc.space"() {size_bytes = 64 : i64} : () -> !f
        %g = "infc.space"() {size_bytes = 64 : i64} : () -> !g
        %a = "infc.alloc"(%f) {offset = 0 : i64, size_bytes = 16 : i64} : (!f) -> !a
        %s = "infc.alloc"(%g) {offset = 0 : i64, size_bytes = 16 : i64} : (!g) -> !s
        "infc.write"(%x, %a) : (tensor<4xf32>, !a) -> ()
        %t = "infc.prefetch"(%a, %s) {queue = 0 : i64} : (!a, !s) -> !infc.token
        EDIT
        "infc.wait"(%t) : (!infc.token) -> ()
        %y = "infc.read"(%s) : (!s) -> tensor<4xf32>
        return %y : tensor<4xf32>
      }
    }"""
    x = np.arange(4, dtype=np.float32)
    with context():
        (y,) = Interpreter(parse(text.replace("EDIT", "")), no_weights).run("f", [x])
        assert np.array_equal(y, x)
        late = '%z = "infc.add"(%x, %x) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>\n'
        late += '"infc.write"(%z, %a) : (tensor<4xf32>, !a) -> ()'
        with pytest.raises(InternalError, match="changed before it was waited for"):
            Interpreter(parse(text.replace("EDIT", late)), no_weights).run("f", [x])
        read = '%z = "infc.read"(%s) : (!s) -> tensor<4xf32>'
        with pytest.raises(InternalError, match="read before the transfer into it"):
            Interpreter(parse(text.replace("EDIT", read)), no_weights).run("f", [x])
        unwaited = text.replace("EDIT", "").replace('"infc.wait"(%t) : (!infc.token) -> ()', "")
        unwaited = unwaited.replace('"infc.read"(%s) : (!s)', '"infc.read"(%a) : (!a)')
        with pytest.raises(InternalError, match="returns before a transfer that it began"):
            Interpreter(parse(unwaited), no_weights).run("f", [x])


def no_weights(name: str) -> NDArray[np.uint8]:
    raise AssertionError(f"nothing reads {name}")
