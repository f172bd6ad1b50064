"""Targets, mappings, lowering and emission of the CUDA backend."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cuda_device import FACTS
from kernel_summaries import attention, product
from oracle.families import make_family
from oracle.files import write_huggingface

import infc
from infc.artifact import open_artifact
from infc.backends.cuda import target as targets
from infc.backends.cuda.backend import CudaBackend
from infc.backends.cuda.codegen import assembler
from infc.backends.cuda.codegen.assembler import find_assembler
from infc.backends.cuda.kernels.frame import WORK_OFFSET
from infc.backends.cuda.kernels.product_spec import ProductSpec, Segment
from infc.backends.cuda.kernels.tile_mapping import TileMapping, stages_bytes
from infc.backends.cuda.lowering.layer_operands import LayerOperands
from infc.backends.cuda.lowering.matmul_form import LEAST_RING_BYTES, ring_for, stream_fits
from infc.backends.cuda.lowering.programs import Place
from infc.backends.cuda.mappings import kernel_work, product_spec
from infc.backends.cuda.runtime.driver import DeviceFacts
from infc.backends.cuda.target import CLASSES, arch_of, resolve_cuda, shared_bytes_of, sm_count
from infc.cli import main
from infc.diagnostics import Code, UserError
from infc.driver.importing import import_model
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.attributes import from_attribute
from infc.ir.context import context
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext
from infc.target.backend import KernelSummary
from infc.target.schema import Target

BACKEND = CudaBackend()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, DeviceFacts | str]]:
    """What the driver says: `found["device"]`."""
    found: dict[str, DeviceFacts | str] = {"device": "the CUDA driver finds no device"}
    monkeypatch.setattr(targets, "probe_device", lambda: found["device"])
    return found


def test_classes_can_be_compiled_for_anywhere(
    device: dict[str, DeviceFacts | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "find_assembler", lambda: Path("ptxas"))
    statuses = {status.name: status for status in BACKEND.targets()}
    assert list(statuses) == ["cuda", *(f"cuda:{name}" for name in CLASSES)]
    assert not statuses["cuda"].available
    assert statuses["cuda"].reason == "the CUDA driver finds no device"
    for name in CLASSES:
        assert statuses[f"cuda:{name}"].available
        target = BACKEND.resolve(f"cuda:{name}")
        assert arch_of(target) == name
        assert target.kind == "gpu"
        assert shared_bytes_of(target) < target.memory("smem").size_bytes
    assert statuses["cuda:sm_80"].reason == "compiles here, runs elsewhere"
    monkeypatch.setattr(targets, "find_assembler", lambda: None)
    assert [status.reason for status in BACKEND.targets()][1:] == [
        "compiles here, runs elsewhere; to PTX alone: ptxas was not found"
    ] * len(CLASSES)


def test_the_device_of_a_host_has_the_facts_of_the_driver(
    device: dict[str, DeviceFacts | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device["device"] = FACTS
    monkeypatch.setattr(targets, "find_assembler", lambda: Path("ptxas"))
    statuses = {status.name: status for status in BACKEND.targets()}
    assert statuses["cuda"].available
    assert FACTS.name in statuses["cuda"].reason
    assert statuses["cuda:sm_90a"].reason == ""
    assert statuses["cuda:sm_80"].reason
    target = resolve_cuda("cuda")
    assert (sm_count(target), arch_of(target)) == (FACTS.multiprocessors, "sm_90a")
    assert target.memory("smem").count == FACTS.multiprocessors
    assert target.memory("hbm").size_bytes == FACTS.memory_bytes
    assert target.source_of("compute.sm.count") == "probed: the CUDA driver"


@pytest.mark.parametrize(
    ("rows", "phase", "arch", "expected"),
    [
        (1, "decode", "sm_90a", {"product": "stream"}),
        (16, "prefill", "sm_80", {"product": "stream"}),
        (512, "prefill", "sm_80", {"product": "tiles", "unit": "mma"}),
        (512, "prefill", "sm_90a", {"product": "tiles", "unit": "warpgroup"}),
    ],
)
def test_few_rows_are_streamed_past_and_many_are_tiled(
    rows: int, phase: str, arch: str, expected: dict[str, str]
) -> None:
    kernel = product(rows, [(2048, 640, "q5_0")] * 2, "bf16", gate="silu")
    assert kernel.phase == phase
    mapping, *_ = BACKEND.candidates(kernel, resolve_cuda(f"cuda:{arch}"))
    assert {key: mapping[key] for key in expected} == expected


def test_more_rows_than_a_streamed_product_takes_are_tiled_beside_a_ring() -> None:
    target = resolve_cuda("cuda:sm_90a")
    kernel = replace(product(33, [(2048, 8192, "q4_k")], "bf16"), phase="decode")
    for mapping in BACKEND.candidates(kernel, target):
        assert (mapping["product"], mapping["unit"]) == ("tiles", "mma")
        assert int(mapping["stages"]) * int(mapping["tokens"]) * 128 < 64 * 1024
    spec = ProductSpec(8192, (Segment(2048, "m16k32.u4.g32.min"),), max_rows=32)
    assert stream_fits(spec, shared_bytes_of(target))
    assert not stream_fits(replace(spec, max_rows=33), shared_bytes_of(target))


@pytest.mark.parametrize("layout", ["m16k32.u4.g32.min", "m16k32.bf16", "m16k32.f32"])
@pytest.mark.parametrize("work_bytes", [0, 60_000, 200_000])
def test_a_ring_lies_behind_the_work_and_fills_the_rest(layout: str, work_bytes: int) -> None:
    spec = ProductSpec(2048, (Segment(2048, layout),), max_rows=8)
    shared = shared_bytes_of(resolve_cuda("cuda:sm_90a"))
    ring = ring_for([spec], work_bytes, shared)
    assert ring is not None
    assert ring.end <= shared
    assert ring.slots * ring.slot_bytes + ring.slot_bytes > LEAST_RING_BYTES
    together = WORK_OFFSET + work_bytes + LEAST_RING_BYTES <= shared
    assert (ring.offset >= WORK_OFFSET + work_bytes) == together
    assert ring_for([], work_bytes, shared) is None


@pytest.mark.parametrize("rows", [40, 512, 4096])
def test_tiles_fit_a_device_with_little_shared_memory(rows: int) -> None:
    facts = resolve_cuda("cuda:sm_80")
    small = facts.model_copy(
        update={"backend_facts": {**facts.backend_facts, "shared_bytes": 99 * 1024}}
    )
    kernel = product(rows, [(5632, 2048, "q4_k")] * 2, "bf16", gate="silu")

    def largest(target: Target) -> int:
        cuts = [
            TileMapping(**{key: value for key, value in found.items() if key != "product"})  # type: ignore[arg-type]
            for found in BACKEND.candidates(kernel, target)
            if found["product"] == "tiles"
        ]
        return max(stages_bytes(product_spec(kernel), cut) for cut in cuts)

    assert largest(small) + WORK_OFFSET <= 99 * 1024
    if rows > 40:
        assert largest(facts) > 99 * 1024


def test_parts_of_attention_fill_the_device() -> None:
    target = resolve_cuda("cuda:sm_90a")
    decode, *_ = BACKEND.candidates(attention("decode", 1, 64), target)
    prefill, *_ = BACKEND.candidates(attention("prefill", 512, 64), target)
    assert decode["tiles"] == 0
    assert prefill["tiles"] in (1, 2)


def test_operands_of_layers_are_found_from_few_pointers() -> None:
    def call(layer: int) -> tuple[Place, ...]:
        start = 1000 * layer * layer
        return (
            Place("thread", 64 * (layer % 2)),
            Place("weights", start),
            Place("weights", start + 128),
            Place("weights", 7),
            Place("call", 16),
            Place("kv", 4096 * layer),
        )

    calls = [call(layer) for layer in range(4)]
    operands = LayerOperands.of(calls)
    assert operands.anchors == (0, 1, "weights", Place("call", 16), 5)
    for places in calls:
        starts = {"weights": Place("weights", 0)}
        for place, (anchor, offset) in zip(places, operands.sources, strict=True):
            key = operands.anchors[anchor]
            start = (
                starts[key]
                if isinstance(key, str)
                else places[key]
                if isinstance(key, int)
                else key
            )
            assert start.at(offset) == place


def machine_level(path: Path) -> str:
    """The machine level of a model of four layers in two classes."""
    config, _ = make_family("gemma3", num_hidden_layers=4, sliding_window_pattern=2)
    path.write_text(json.dumps(config))
    options = CompileOptions(max_context=64, max_batch=2, chunk=16)
    with context():
        module, _ = lower_model(ConfigSource(path, "bf16"), "cuda:sm_90a", options)
        return str(module)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> str:
    return machine_level(tmp_path_factory.mktemp("config") / "config.json")


def test_the_same_model_gives_the_same_code(lowered: str, tmp_path: Path) -> None:
    assert machine_level(tmp_path / "config.json") == lowered


def test_blocks_meet_five_times_a_layer(lowered: str) -> None:
    """Behind products and the attention, but not behind what blocks do for themselves, nor where
    a plan would have reused memory."""
    start = lowered.index("func.func private @decode_layer0(")
    layer = lowered[start : lowered.index("return", start)]
    calls = re.findall(r"call @(?:decode_k\d+_)?(\w+)", layer)
    assert calls == [
        *("rows", "matmul", "grid_barrier", "rotary", "attention", "grid_barrier", "matmul"),
        *("grid_barrier", "rows", "matmul", "grid_barrier", "matmul", "grid_barrier", "rows"),
    ]


def test_kernels_that_do_not_fit_together_are_launched_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_family("llama3", num_hidden_layers=1)[0]))
    options = CompileOptions(max_context=64, max_batch=2, chunk=16)
    target = resolve_cuda("cuda:sm_90a")
    little = target.model_copy(
        update={"backend_facts": {**target.backend_facts, "shared_bytes": 8192}}
    )
    with context():
        module = import_model(ConfigSource(path, "bf16"), options, BACKEND, little)
        pipeline = BACKEND.pipeline(SHARED)
        PassManager(pipeline).run(module, PassContext(options, little, BACKEND))
        info = from_attribute(module.operation.attributes["infc.info"])
    decode = info["phases"]["decode"]
    assert "persistent" not in decode
    assert re.fullmatch(
        r"its kernels need \d+ bytes of shared memory, and there are 8192", decode["reason"]
    )
    assert [launch["kernel"] for launch in decode["launches"]] == decode["kernels"]


def test_few_heads_are_rotated_by_every_block() -> None:
    def rotary(rows: int, heads: int) -> KernelSummary:
        return KernelSummary("rotary", "decode", rows, rows, {}, 0, 0, {"rotated_heads": heads})

    target = resolve_cuda("cuda:sm_90a")
    partitions = [BACKEND.candidates(rotary(*size), target) for size in ((1, 5), (4, 5), (1, 40))]
    assert partitions == [
        [{"partition": "replicate"}],
        [{"partition": "items"}],
        [{"partition": "items"}],
    ]


def test_the_producer_runs_the_products_of_a_layer_alone(lowered: str) -> None:
    start = lowered.index("func.func private @decode_layer0_produce(")
    layer = lowered[start : lowered.index("return", start)]
    assert re.findall(r"call @decode_k\d+_(\w+)", layer) == ["matmul_produce"] * 4


def test_an_artifact_holds_ptx_and_machine_code(tmp_path: Path) -> None:
    config, tensors = make_family("llama3", num_hidden_layers=1)
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors, "BF16")
    artifact = tmp_path / "a.infc"
    infc.compile(model, target="cuda:sm_90a", output=artifact, max_context=64, chunk=8)
    opened = open_artifact(artifact)
    names = {name.removeprefix("programs/") for name in opened.names() if "programs/" in name}
    assembled = {"prefill.cubin", "decode.cubin"} if find_assembler() else set()
    assert names == {"prefill.ptx", "decode.ptx"} | assembled
    signature = opened.manifest.programs["decode"]
    assert set(signature["phases"]) == {"prefill", "decode"}
    for phase in signature["phases"].values():
        for entry in phase["launches"]:
            used = signature["functions"].get(entry["entry"], {"spill_stores": 0})
            assert used["spill_stores"] == 0


def test_explain_says_what_code_takes(tmp_path: Path) -> None:
    config, tensors = make_family("llama3", num_hidden_layers=1)
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors, "BF16")
    artifact = tmp_path / "a.infc"
    infc.compile(model, target="cuda:sm_90a", output=artifact, max_context=64, chunk=8)
    result = CliRunner().invoke(main, ["explain", str(artifact), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    program = open_artifact(artifact).manifest.programs["decode"]["phases"]["prefill"]
    launches = {entry["entry"]: entry for entry in program["launches"]}
    prefill = [row for row in found["code"] if row["program"] == "prefill"]
    assert [row["function"] for row in prefill] == list(launches)
    (step,) = [row for row in found["code"] if row["program"] == "decode"]
    assert (step["function"], step["kernel"]) == ("decode_step", "")
    for row in found["code"]:
        assert 0 < row["shared_bytes"] <= 227 * 1024
        if find_assembler():
            assert 0 < row["registers"] <= 255
            assert row["local_bytes"] >= 0
        else:
            assert (row["registers"], row["local_bytes"]) == (None, None)
    page = tmp_path / "a.html"
    result = CliRunner().invoke(main, ["explain", str(artifact), "--html", str(page)])
    assert result.exit_code == 0
    assert "decode_step" in page.read_text()
    text = CliRunner().invoke(main, ["explain", str(artifact)]).stdout
    assert re.search(r"^decode +decode_step +\d+ ", text, re.MULTILINE)
    assert re.search(r"^decode of 1 token on cuda:sm_90a: predicted .* \(.* to .*\)", text, re.M)
    if found["unmeasured"]:
        assert text.endswith(f"\nnothing was measured: {found['unmeasured']}\n")


def test_attention_reads_the_cache_from_memory_and_nothing_else() -> None:
    shapes = {"heads": 32, "kv_heads": 4, "head_dim": 64, "window": 0, "capacity": 4096}
    kernel = KernelSummary(
        kind="attention",
        phase="prefill",
        rows=512,
        typical_rows=512,
        operations={"f32": 1e9},
        weight_bytes=0,
        activation_bytes=7 << 20,
        shapes=shapes | {"context": 512},
        kv_dtype="f16",
    )
    work = kernel_work(kernel, {}, resolve_cuda("cuda:sm_90a"))
    assert work.bytes == {"hbm": 4 * 2 * 64 * 2 * 512}


def test_what_the_assembler_says(monkeypatch: pytest.MonkeyPatch) -> None:
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 16 bytes cumulative stack size
ptxas info    : Function properties for inner
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    found = assembler.usage_of(report)
    assert vars(found["first"]) == {
        "stack": 16,
        "spill_stores": 4,
        "spill_loads": 8,
        "registers": 168,
    }
    assert found["inner"].registers == 0
    monkeypatch.setattr(assembler, "find_assembler", lambda: None)
    assert assembler.assemble("", "sm_90a") is None


def test_names_of_targets(device: dict[str, DeviceFacts | str]) -> None:
    with pytest.raises(UserError) as unknown:
        resolve_cuda("cuda:sm_70")
    assert unknown.value.code is Code.TARGET_UNKNOWN
    with pytest.raises(UserError) as absent:
        resolve_cuda("cuda")
    assert str(absent.value) == (
        "error[INF3004]: there is no device to compile for: the CUDA driver finds no device\n"
        "   = hint: name a class of devices: cuda:sm_80, cuda:sm_90a, cuda:sm_100a"
    )
    device["device"] = "the package cuda-bindings is not installed (No module named 'cuda')"
    with pytest.raises(UserError) as lacking:
        resolve_cuda("cuda")
    assert str(lacking.value) == (
        "error[INF3004]: there is no device to compile for: the package cuda-bindings is not "
        "installed (No module named 'cuda')\n"
        "   = hint: name a class of devices: cuda:sm_80, cuda:sm_90a, cuda:sm_100a; "
        "pip install 'infc[cuda]'"
    )
