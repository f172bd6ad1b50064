"""The memory plan is what runs: nothing beyond it is touched, and all of it is needed."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle.families import FAMILY_NAMES
from small_models import CHUNK, SLOTS, SmallModels, make_call, random_tokens

from infc.artifact import open_artifact
from infc.backends.cpu.lowering.abi import ControlBlock
from infc.backends.cpu.runnable import CpuRunnable
from infc.driver.dumps import run_opt
from infc.frontends import open_model
from infc.frontends.graph import build_graph
from infc.ir.context import context, print_module
from infc.pipeline.options import CompileOptions
from infc.target.discovery import resolve_target
from infc.target.runnable import Phase

PATTERN = 0xA7
"""No sign or exponent that activations have, and no small integer."""

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def artifact(small_models: SmallModels) -> Path:
    return small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")


@pytest.fixture
def cpu(small_models: SmallModels) -> CpuRunnable:
    model = small_models.model("gemma2", num_hidden_layers=2)
    runnable = small_models.runnable(model, "cpu")
    assert isinstance(runnable, CpuRunnable)
    return runnable


def control_block(cpu: CpuRunnable, artifact: Path, phase: Phase) -> ControlBlock:
    """The start of the arena: no arrivals, a deal for each kernel but those of single rows."""
    with open_artifact(artifact) as opened:
        order = opened.manifest.memory_plan[phase.name.lower()]["order"]
    deals = sum(not kernel.endswith(("argmax", "top_k")) for kernel in order)
    return ControlBlock.of(128, 0, deals, 2, cpu.limits.max_tokens[phase])


def plan(artifact: Path, phase: Phase) -> dict[str, Any]:
    with open_artifact(artifact) as opened:
        return dict(opened.manifest.memory_plan[phase.name.lower()]["plans"])


class TestEstimateOfTheHeight:
    """The plan's height and what no plan could do without, chunks of 512."""

    @pytest.mark.parametrize(
        "family",
        [
            pytest.param(n, marks=() if n in ("llama3", "gemma3") else pytest.mark.slow)
            for n in FAMILY_NAMES
        ],
    )
    def test_within_a_hundredth(
        self, small_models: SmallModels, tmp_path: Path, family: str
    ) -> None:
        text = planned(small_models.model(family), tmp_path)
        heights = plans_of(text)
        assert len(heights) >= 4
        for height, bound in heights:
            assert bound <= height <= 1.01 * bound


def planned(model: Path, folder: Path) -> str:
    """The memory-level module of a model for this machine, without making code."""
    source = open_model(model)
    try:
        with context():
            _, target = resolve_target("cpu")
            options = CompileOptions(max_context=1024, chunk=512)
            module = build_graph(source, max_context=1024, target=target.to_json())
            module.operation.attributes["infc.options"] = options.to_attribute()
            text = print_module(module)
    finally:
        source.close()
    passes = (
        "canonicalize,split-phases,outline-layers,quantize-activations,fuse-kernels,"
        "choose-mappings,bufferize,plan-memory"
    )
    return run_opt(text, passes)


def plans_of(text: str) -> list[tuple[int, int]]:
    """`(height, lower bound)` of each space of each function."""
    pairs = re.findall(r"\{height_bytes = (\d+) : i64, lower_bound_bytes = (\d+) : i64\}", text)
    return [(int(height), int(bound)) for height, bound in pairs]


def test_buffers_that_live_together_share_no_byte(artifact: Path) -> None:
    """As the manifest tells it, which is what `infc explain` shows."""
    for phase in Phase:
        for function in plan(artifact, phase).values():
            for a, b in combinations(function["buffers"], 2):
                apart_in_time = a["last"] < b["first"] or b["last"] < a["first"]
                apart = (
                    a["offset_bytes"] + a["size_bytes"] <= b["offset_bytes"]
                    or b["offset_bytes"] + b["size_bytes"] <= a["offset_bytes"]
                )
                assert a["space"] != b["space"] or apart_in_time or apart
            for buffer in function["buffers"]:
                height = function[buffer["space"]]["height_bytes"]
                assert buffer["offset_bytes"] + buffer["size_bytes"] <= height


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("threads", [1, 3])
def test_watermark(cpu: CpuRunnable, artifact: Path, phase: Phase, threads: int) -> None:
    """A full call writes up to the last planned byte, and none of the arena's end is too much."""
    arena = cpu.arena(phase, threads).bytes
    heights = {
        space: plan(artifact, phase)["main"][space]["height_bytes"] for space in ("arena", "thread")
    }
    name = phase.name.lower()
    control = cpu.info[f"{name}_arena_bytes"] - heights["arena"]
    assert control == control_block(cpu, artifact, phase).size_bytes
    arena[control:] = PATTERN
    lengths = [6, 5, 5] if phase is Phase.PREFILL else [1, 1, 1]
    assert sum(lengths) == cpu.limits.max_tokens[phase] in (CHUNK, SLOTS)
    sequences = [random_tokens(cpu.vocab_size, n, n) for n in lengths]
    cpu.run(phase, make_call(sequences), cpu.new_kv(), threads=threads)

    touched = np.flatnonzero(arena != PATTERN)
    touched = touched[touched >= control] - control
    shared = touched[touched < heights["arena"]]
    # Rows end in padding to 64 bytes, which nobody writes.
    assert heights["arena"] - shared.max() <= 64
    own = cpu.info[f"{name}_thread_bytes"]
    assert own >= heights["thread"]
    for thread in range(threads):
        start = heights["arena"] + thread * own
        inside = touched[(touched >= start) & (touched < start + own)] - start
        # The part behind a thread's plan keeps threads off each other's cache lines.
        assert inside.size == 0 or inside.max() < heights["thread"]
    assert touched.max() < heights["arena"] + threads * own


def test_memory_a_call_begins_with_means_nothing(cpu: CpuRunnable, artifact: Path) -> None:
    """What earlier calls left in the arena changes no bit."""
    results = []
    for pattern in (0x00, 0xFF, PATTERN):
        logits = []
        kv = cpu.new_kv()
        for phase, start in ((Phase.PREFILL, 0), (Phase.DECODE, 5)):
            block = control_block(cpu, artifact, phase)
            cpu.arena(phase, 2).bytes[block.size_bytes :] = pattern
            tokens = random_tokens(cpu.vocab_size, 5 if phase is Phase.PREFILL else 1)
            logits.append(cpu.run(phase, make_call([tokens], starts=[start]), kv, threads=2))
        results.append(np.concatenate(logits))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_cache_outside_a_slot_is_not_touched(cpu: CpuRunnable) -> None:
    kv = cpu.new_kv()
    before = [kv.kv_export(slot, 0, 40) for slot in (0, 2)]
    tokens = random_tokens(cpu.vocab_size, 40)
    for at in range(0, 40, CHUNK):
        part = tokens[at : at + CHUNK]
        cpu.run(Phase.PREFILL, make_call([part], slots=[1], starts=[at]), kv, threads=2)
    for block, slot in zip(before, (0, 2), strict=True):
        after = kv.kv_export(slot, 0, 40)
        for layer in range(2):
            np.testing.assert_array_equal(block.keys[layer], after.keys[layer])
            np.testing.assert_array_equal(block.values[layer], after.values[layer])


TOUCH = """
import ctypes, sys
from pathlib import Path
import infc
from infc.artifact import open_artifact
from infc.driver.loading import load_runnable
from infc.target.runnable import Phase
runnable = load_runnable(open_artifact(sys.argv[1]))
memory = runnable.new_kv().memory if sys.argv[2] == "kv" else runnable.arena(Phase.PREFILL, 1)
end = memory.address + memory.size_bytes
ctypes.memset(memory.address, 0, memory.size_bytes)
print("filled", flush=True)
ctypes.memset(end if sys.argv[3] == "behind" else (memory.address & -4096) - 1, 0, 1)
"""


@pytest.mark.parametrize("memory", ["arena", "kv"])
@pytest.mark.parametrize("side", ["behind", "before"])
def test_guard_pages(artifact: Path, memory: str, side: str) -> None:
    """A byte past the end, or before the page of the first byte, stops the process."""
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, str(artifact), memory, side],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "filled\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


def test_the_arena_is_as_large_as_the_plan_says(cpu: CpuRunnable, artifact: Path) -> None:
    for phase in Phase:
        height = plan(artifact, phase)["main"]["arena"]["height_bytes"]
        for threads in (1, 4):
            memory = cpu.arena(phase, threads)
            own = cpu.info[f"{phase.name.lower()}_thread_bytes"]
            block = control_block(cpu, artifact, phase).size_bytes
            assert memory.size_bytes == block + height + threads * own
            assert memory.address % 64 == 0
    exported = ctypes.c_int64.in_dll(cpu._library, "infc_info")
    assert exported.value == cpu.info["abi_version"]


RESIDENT = """
import os, sys
import numpy as np
import infc
from infc.artifact import open_artifact
from infc.driver.loading import load_runnable

def private():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024

session = infc.load(sys.argv[1], threads=1)
session.prefill([1, 2, 3]); session.decode(4); session.reset()
before = private()
for _ in range(20):
    session.prefill(list(range(3, 60)))
    session.decode(4)
    session.reset()
print(private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_calls_allocate_nothing_that_stays(artifact: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(artifact)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(done.stdout) < 1 << 20
