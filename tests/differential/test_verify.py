"""`verify=True`: passes where compilation is right, and names the pass where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import FAMILY_NAMES
from small_models import SmallModels

import infc
from infc.backends.cpu import packing
from infc.diagnostics import UserError
from infc.driver import target_compilation
from infc.ir.attributes import get, to_attribute
from infc.ir.mlir import ir
from infc.passes.pipelines import SHARED
from infc.pipeline.passes import FunctionPass, PassContext, Pipeline
from infc.target.backend import WeightData

LIMITS = {"max_context": 64, "chunk": 16}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}

Sabotage = Callable[[ir.Module], None]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_reference_s_pipeline(small_models: SmallModels, tmp_path: Path, family: str) -> None:
    model = small_models.model(family)
    infc.compile(model, target="reference", output=tmp_path / "a.infc", verify=True, **LIMITS)


@pytest.mark.parametrize(
    ("family", "storage", "changes"),
    [
        ("gemma2", "F32", {"num_hidden_layers": 2}),
        *(pytest.param(name, "F32", {}, marks=pytest.mark.slow) for name in FAMILY_NAMES),
        pytest.param("gemma3", "BF16", {}, marks=pytest.mark.slow),
        pytest.param("qwen3", "Q4_K", WIDE, marks=pytest.mark.slow),
    ],
)
def test_the_processor_s_pipeline(
    small_models: SmallModels, tmp_path: Path, family: str, storage: str, changes: dict[str, int]
) -> None:
    model = small_models.model(family, storage, **changes)
    infc.compile(model, target="cpu", output=tmp_path / "a.infc", verify=True, **LIMITS)


@pytest.mark.parametrize("storage", ["Q8_0", "BF16"])
def test_the_pipeline_of_a_simulated_machine(
    small_models: SmallModels, tmp_path: Path, storage: str
) -> None:
    """Its programs round activations as its units need it, which is no mistake."""
    model = small_models.model("llama3", storage, **WIDE)
    infc.compile(model, target="dataflow:test", output=tmp_path / "a.infc", verify=True, **LIMITS)


def all_ops(module: ir.Module, name: str) -> list[ir.Operation]:
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == name:
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def scale_embedding(module: ir.Module) -> None:
    for op in all_ops(module, "infc.embed"):
        op.attributes["scale"] = to_attribute(1.5 * get(op, "scale"))


def drop_residual(module: ir.Module) -> None:
    """In the last program only: prefill stays right, decode does not."""
    op = all_ops(module, "infc.add")[-1]
    op.results[0].replace_all_uses_with(op.operands[1])
    op.erase()


def forget_norm_offset(module: ir.Module) -> None:
    for op in all_ops(module, "infc.rms_norm")[:1]:
        op.attributes["offset"] = to_attribute(0.0)


def narrow_window(module: ir.Module) -> None:
    """Five tokens fit into a window of 12, and not into one of 3."""
    for op in all_ops(module, "infc.attention"):
        op.attributes["window"] = to_attribute(3)


def swap_weights(module: ir.Module) -> None:
    """Keys and values are of one shape: nothing but the numbers tells them apart."""
    packed = {get(op, "source"): op for op in all_ops(module, "infc.packed")}
    keys, values = (packed[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "kv")
    first, second = keys.attributes["source"], values.attributes["source"]
    keys.attributes["source"], values.attributes["source"] = second, first


def sabotaged(pipeline: Pipeline, name: str, sabotage: Sabotage) -> Pipeline:
    at = pipeline.index(name)
    step = pipeline.passes[at]
    assert isinstance(step, FunctionPass)

    def rewrite(module: ir.Module, ctx: PassContext) -> None:
        step.rewrite(module, ctx)
        sabotage(module)

    passes = list(pipeline.passes)
    passes[at] = replace(step, raises_to=step.result, rewrite=rewrite)
    return Pipeline(tuple(passes))


@pytest.mark.parametrize(
    ("name", "sabotage"),
    [
        ("canonicalize", scale_embedding),
        ("canonicalize", narrow_window),
        ("split-phases", forget_norm_offset),
        ("outline-layers", drop_residual),
        ("quantize-activations", scale_embedding),
        ("fuse-kernels", drop_residual),
        ("choose-mappings", forget_norm_offset),
        ("bufferize", forget_norm_offset),
        ("plan-memory", scale_embedding),
        ("insert-barriers", drop_residual),
        ("pack-weights", swap_weights),
        ("record-plan", swap_weights),
    ],
)
def test_the_pass_at_fault_is_named(
    small_models: SmallModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sabotage: Sabotage,
) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2)
    monkeypatch.setattr(target_compilation, "SHARED", sabotaged(SHARED, name, sabotage))
    output = tmp_path / "never.infc"
    with pytest.raises(UserError) as error:
        infc.compile(model, target="cpu", output=output, verify=True, **LIMITS)
    first, note, hint = str(error.value).splitlines()
    before, after = first.split(" of their range")
    prefix = f"error[INF2005]: pass {name} changed the logits by "
    assert before.startswith(prefix)
    assert 1e-2 < float(before.removeprefix(prefix)) < 2
    assert after == ", allowed are 0.0001"
    assert note == "   |  a few tokens prefilled and one decoded, against the graph in NumPy"
    assert hint == "   = hint: compare the dumps before and after it (--dump)"
    assert list(tmp_path.iterdir()) == []


def test_code_generation_is_checked_too(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are packed wrongly show in the artifact alone; it never takes its place."""
    right = packing.pack_one

    def wrong(op: ir.OpView, weights: WeightData) -> NDArray[np.uint8]:
        packed = right(op, weights)
        if get(op, "source") == "model.layers.0.self_attn.o_proj.weight":
            packed = packed.copy()
            packed.view(np.float32)[16:] *= -2
        return packed

    monkeypatch.setattr(packing, "pack_one", wrong)
    model = small_models.model("qwen3", num_hidden_layers=1)
    output = tmp_path / "kept.infc"
    output.write_bytes(b"an artifact of before")
    with pytest.raises(UserError) as error:
        infc.compile(model, target="cpu", output=output, verify=True, max_context=64, chunk=8)
    assert str(error.value).startswith("error[INF2005]: code generation changed the logits by ")
    assert list(tmp_path.iterdir()) == [output]
    assert output.read_bytes() == b"an artifact of before"


@pytest.mark.parametrize("limits", [{"max_context": 4, "chunk": 2}, {"max_context": 1, "chunk": 1}])
def test_short_contexts(small_models: SmallModels, tmp_path: Path, limits: dict[str, int]) -> None:
    """The input of the check is longer than what the model may see: it is cut."""
    model = small_models.model("qwen3", num_hidden_layers=1)
    output = tmp_path / "a.infc"
    for target in ("reference", "cpu"):
        infc.compile(model, target=target, output=output, verify=True, **limits)


def test_a_later_level_has_nothing_to_compare_with(
    small_models: SmallModels, tmp_path: Path
) -> None:
    model = small_models.model("qwen3", num_hidden_layers=1)
    dump = tmp_path / "dump"
    output = tmp_path / "a.infc"
    infc.compile(model, target="reference", output=output, dump=dump, **LIMITS)
    output.unlink()
    for name in ("000-import", "001-graph-canonicalize"):
        infc.compile(model, resume_from=dump / f"{name}.mlir", output=output, verify=True, **LIMITS)
        output.unlink()
    with pytest.raises(UserError) as error:
        infc.compile(
            model, resume_from=dump / "002-phase-split-phases.mlir", output=output, verify=True
        )
    assert str(error.value) == (
        "error[INF5001]: --verify starts from a graph-level module, got level phase\n"
        "   = hint: resume from 000-import.mlir, or leave --verify out"
    )
    assert not output.exists()
