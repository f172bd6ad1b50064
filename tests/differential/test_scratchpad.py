"""Programs for a machine with a scratchpad mean what the graph means, however small it is."""

from __future__ import annotations

import pytest
from memory_model import MemorySource, Shape

from infc.driver.oracle import Oracle
from infc.frontends.graph import build_graph
from infc.ir.attributes import get
from infc.ir.context import context, parse, print_module
from infc.ir.levels import Level
from infc.ir.mlir import ir
from infc.passes.memory.check_memory import check_memory
from infc.passes.pipelines import SHARED
from infc.passes.walk import functions
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext
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


def compiled(target: Target, shape: Shape = SHAPE) -> tuple[ir.Module, Oracle]:
    """A memory-level module, checked against the graph after every pass."""
    source = MemorySource(shape)
    module = build_graph(source, max_context=OPTIONS.max_context, target=target.to_json())
    module.operation.attributes["infc.options"] = OPTIONS.to_attribute()
    oracle = Oracle(module, source.data)
    backend, _ = resolve_target("cpu:x86-64-v3")
    manager = PassManager(SHARED.until(Level.MEMORY), observers=(oracle.check,))
    manager.run(module, PassContext(OPTIONS, target, backend))
    return module, oracle


def count(module: ir.Module, name: str) -> int:
    return sum(line.lstrip().split("(")[0].endswith(name) for line in lines(module))


def lines(module: ir.Module) -> list[str]:
    return [line for line in print_module(module).splitlines() if '"infc.' in line]


@pytest.mark.parametrize(
    ("size_bytes", "queues", "direct"),
    [(54 << 10, 1, False), (64 << 10, 2, False), (40 << 10, 1, True), (4 << 20, 2, False)],
)
def test_the_numbers_stay(size_bytes: int, queues: int, direct: bool) -> None:
    with context():
        module, _ = compiled(with_scratchpad(size_bytes, queues, direct))
        check_memory(module)
        text = print_module(module)
        assert '"infc.prefetch"' in text
        assert print_module(parse(text)) == text
        for function in functions(module):
            staging = get(function, "infc.staging")
            if get(function, "sym_name") == "main":
                height = get(function, "infc.plan")["sram"]["height_bytes"]
                assert 0 < height <= size_bytes
                assert staging["lower_bound_seconds"] <= staging["seconds"] * (1 + 1e-6)
