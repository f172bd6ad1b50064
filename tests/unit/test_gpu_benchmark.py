"""A rehearsal of benchmarks/gpu.py: the lockstep interpreter in the place of the device."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_device import FACTS, QueuedDevice
from cuda_models import LockstepDevice, read_module
from small_models import SmallModels

from infc.backends.cuda import emission
from infc.backends.cuda.lockstep.reading import Program, read
from infc.ir.attributes import get
from infc.ir.context import context

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = {"num_hidden_layers": 1}


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The scripts import each other by name, as they do when run from their folder."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def prepared(
    scripts: None, small_models: SmallModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Program]]]:
    """A prepared model, and its programs for the interpreter, which needs no PTX."""
    import gpu_prepare

    folder = tmp_path_factory.mktemp("prepared")
    model = small_models.model("qwen3", "Q8_0", **SHAPE)
    options = {"max_context": 64, "chunk": 8, "max_batch": 2}
    plan = gpu_prepare.Plan("tiny", model, options, "logits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_prepare, "PREDICTED", ((4, 8),))
        patch.setattr(emission, "to_ptx", lambda module, arch: {"prefill": "", "decode": ""})
        patch.setattr(emission, "assemble", lambda ptx, arch: None)
        gpu_prepare.prepare_model(plan, folder / "out", folder)
    with context():
        ops = read_module(folder / "dump").body.operations
        modules = [op for op in ops if op.operation.name == "gpu.module"]
        yield folder / "out", {get(op, "sym_name"): read(op) for op in modules}


def test_a_prepared_model_is_right(prepared: tuple[Path, dict[str, Program]]) -> None:
    import gpu_models
    import gpu_sections

    folder, programs = prepared
    with np.load(folder / "expected.npz") as arrays:
        fewer = {name: array[:2] for name, array in arrays.items()}
    np.savez(folder / "expected.npz", **fewer)
    found = gpu_sections.measure_model(
        gpu_models.PreparedModel(folder), lambda: LockstepDevice(programs, "sm_90a")
    )
    assert found["problems"] == []
    assert found["persistent"]
    assert found["weights"] == "the model's"
    json.dumps(found)


def test_times_of_random_weights(
    prepared: tuple[Path, dict[str, Program]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    import gpu_models
    import gpu_sections

    folder, programs = prepared
    for path in folder.iterdir():
        if path.name not in ("weights.bin", "expected.npz"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    sizes = {"PROMPTS": (4,), "POSITION": 4, "STEPS": 1, "BATCHES": (2,)}
    for name, value in sizes.items():
        monkeypatch.setattr(gpu_sections, name, value)
    monkeypatch.setattr(gpu_models, "WARMUP", 0)
    monkeypatch.setattr(
        gpu_sections,
        "time_prefill",
        lambda runnable, tokens, repeats: gpu_models.spread([0.1, 0.2, 0.3]),
    )
    monkeypatch.setattr(
        gpu_sections,
        "kernel_times",
        lambda runnable, phase, call: gpu_models.kernel_times(runnable, phase, call, repeats=1),
    )
    model = gpu_models.PreparedModel(tmp_path)
    found = gpu_sections.measure_model(model, lambda: LockstepDevice(programs, "sm_90a"))
    assert found["weights"].startswith("random")
    assert [(row["kind"], row["batch"]) for row in found["decode"]] == [
        ("persistent", 2),
        ("graph", 2),
    ]
    matrices = sum(e["size_bytes"] for e in model.facts["weights"] if e["layout"] != "rows")
    # Sequences, keys and values, bytes, positions, heads, elements of one layer.
    cache = 2 * 2 * 2 * 4 * 2 * 32
    assert found["decode"][0]["bytes"] == matrices + cache
    assert found["prefill"][0]["predicted_seconds"] > 0
    text = "\n".join(gpu.model_lines("tiny", found, 3.35e12))
    assert "tiny decode persistent batch 2:" in text
    assert "tiny decode session:" in text
    assert "tiny prefill 4: 20 tok/s, predicted" in text
    json.dumps(found)


def test_random_weights_are_finite_and_of_the_right_size(
    prepared: tuple[Path, dict[str, Program]],
) -> None:
    import gpu_models

    from infc.backends.cuda.kernels.packing import layout_named, unpack

    normal = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 256, 999, np.uint8)
    names = ("bf16", "f16", "f32", "u4.g32", "u4.g32.min", "u6.g16", "u8.g32", "u2.g16.min")
    for name in names:
        layout = layout_named(f"m16k32.{name}")
        n, k = 32, 128
        part = np.zeros(128 + 2 * layout.panel_bytes(k), np.uint8)
        entry = {"layout": layout.name, "n": n, "k": k}
        gpu_models._fill_matrix(part, entry, normal, codes)
        values = unpack(layout, part, n, k)
        assert np.isfinite(values).all()
        assert 0.5 < float(values.std()) * k**0.5 < 2.0, name
        assert abs(float(values.mean())) < 0.3 * k**-0.5, name


def test_what_counts_as_a_difference(scripts: None) -> None:
    from gpu_cases import difference

    a = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert not difference(a, a)
    assert not difference(a + np.float32(1e-4), a)
    assert difference(a * np.float32(1.1), a) == "relative error 1.00e-01"
    assert difference(np.where(a > 0.5, np.nan, a), a) == "250 numbers are not finite"
    ids = np.arange(9, dtype=np.int32)
    assert difference(ids + (ids == 3), ids) == "1 of 9 differ"
    bf16 = (a.view(np.uint32) >> 16).astype(np.uint16)
    assert not difference(bf16 + np.uint16(1), bf16)
    assert difference(bf16 + np.uint16(9), bf16)
    assert difference(np.roll(bf16, 50).view(np.uint8), bf16.view(np.uint8))


def test_a_recorded_launch_is_done_again(scripts: None, tmp_path: Path) -> None:
    from gpu_cases import run_cases

    base = 0x7000_0000_0000
    image = np.full(1024, 0xFF, np.uint8)
    image[256:264] = np.arange(8)
    case: dict[str, Any] = {
        "test": "t",
        "kernel": "twice",
        "grid": 2,
        "threads": 32,
        "shared_bytes": 0,
        "arguments": [base + 256, base + 512, 8],
        "base": base,
        "module": "m",
        "reads": [base + 512],
    }
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    np.savez(tmp_path / "case0.npz", image=image, read0=2 * np.arange(8, dtype=np.uint8))

    def twice(device: QueuedDevice, launch: Any) -> None:
        source, target, count = launch.arguments
        device.memory.write(target, 2 * device.memory.read(source, np.uint8, count))

    device = QueuedDevice({"twice": twice}, facts=replace(FACTS, cooperative=False))
    assert run_cases(tmp_path, device) == {"cases": 1, "failed": []}
    device.kernels["twice"] = lambda device, launch: None
    (problem,) = run_cases(tmp_path, device)["failed"]
    assert problem == {"test": "t", "problem": "read 0, uint8[8]: 4 of 4 differ"}
    assert not device.sizes
