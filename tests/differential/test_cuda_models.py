"""Whole models on GPUs, executed by the lockstep interpreter, against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_models import compile_model, on_lockstep
from numpy.typing import NDArray
from small_models import SmallModels, feed, make_call, random_tokens, relative_error

from infc.artifact import open_artifact
from infc.target.runnable import KVCache, OutputKind, Phase, Runnable

TOLERANCE = 0.02
"""Of the range of the logits: what rounding activations, scores and weights of tiles to bf16 and
f16 may do in a few layers."""
ONE_OF_EACH: dict[str, Any] = {"num_hidden_layers": 2, "sliding_window_pattern": 2}
PROMPT = 17  # one token more than a chunk, five more than the window
STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def models(folder: Path) -> SmallModels:
    return SmallModels(folder)


@pytest.fixture(scope="module")
def gemma(models: SmallModels) -> Path:
    return models.model("gemma3", "BF16", **ONE_OF_EACH)


@pytest.fixture(scope="module")
def gemma_artifact(gemma: Path, folder: Path) -> Path:
    return compile_model(gemma, folder, "sm_90a")


def logits_of(runnable: Runnable, tokens: list[int], prompt: int) -> NDArray[np.float32]:
    """Those of all tokens: the first ones prefilled, the others decoded."""
    kv = runnable.new_kv()
    first = feed(runnable, kv, tokens[:prompt])
    more = feed(runnable, kv, tokens[prompt:], start=prompt, phase=Phase.DECODE)
    return np.concatenate([first, more])


def reference(models: SmallModels, model: Path) -> Runnable:
    return models.runnable(model, "reference", kv_dtype="f16")


@pytest.mark.parametrize(
    ("family", "storage", "arch", "layers"),
    [
        ("llama3", "Q8_0", "sm_80", 1),
        pytest.param("qwen2", "F32", "sm_90a", 2, marks=pytest.mark.slow),
        pytest.param("gemma2", "Q5_1", "sm_100a", 2, marks=pytest.mark.slow),
        pytest.param("mistral", "GGUF-F16", "sm_80", 2, marks=pytest.mark.slow),
        pytest.param("qwen3", "Q4_0", "sm_90a", 2, marks=pytest.mark.slow),
    ],
)
def test_families(
    family: str, storage: str, arch: str, layers: int, models: SmallModels, folder: Path
) -> None:
    model = models.model(family, storage, num_hidden_layers=layers)
    expected = reference(models, model)
    tokens = random_tokens(expected.vocab_size, 6)
    artifact = compile_model(model, folder, arch, chunk=4)
    with on_lockstep(artifact) as (runnable, device):
        got = logits_of(runnable, tokens, 5)
        assert device.launched[-1] == "decode_step"
    assert relative_error(got, logits_of(expected, tokens, 5)) < TOLERANCE


def test_windows_and_both_programs(gemma: Path, gemma_artifact: Path, models: SmallModels) -> None:
    expected = reference(models, gemma)
    tokens = random_tokens(expected.vocab_size, PROMPT + STEPS)
    with on_lockstep(gemma_artifact) as (runnable, device):
        got = logits_of(runnable, tokens, PROMPT)
        assert device.launched[-STEPS:] == ["decode_step"] * STEPS
    assert relative_error(got, logits_of(expected, tokens, PROMPT)) < TOLERANCE


def step_of_three(runnable: Runnable, kv: KVCache) -> NDArray[np.float32]:
    call = make_call([[11], [12], [13]])
    return np.asarray(runnable.run(Phase.DECODE, call, kv, threads=1), np.float32)


def in_order(artifact: Path, **how: Any) -> NDArray[np.float32]:
    with on_lockstep(artifact, **how) as (runnable, _):
        return step_of_three(runnable, runnable.new_kv())


def test_bits_do_not_depend_on_order_or_on_how_kernels_are_launched(
    gemma: Path, gemma_artifact: Path, models: SmallModels
) -> None:
    persistent = in_order(gemma_artifact)
    runnable = reference(models, gemma)
    assert relative_error(persistent, step_of_three(runnable, runnable.new_kv())) < TOLERANCE
    np.testing.assert_array_equal(persistent, in_order(gemma_artifact, separate=True))
    np.testing.assert_array_equal(persistent, in_order(gemma_artifact, seed=1))


@pytest.mark.parametrize(
    "phase", [pytest.param(Phase.PREFILL, marks=pytest.mark.slow), Phase.DECODE]
)
def test_best_and_top_tokens(phase: Phase, gemma_artifact: Path) -> None:
    call = make_call([[5], [6]])
    with on_lockstep(gemma_artifact) as (runnable, _):
        kv = runnable.new_kv()
        logits = runnable.run(phase, call, kv, threads=1)
        best = runnable.run(phase, replace(call, output=OutputKind.ARGMAX), kv, threads=1)
        np.testing.assert_array_equal(best, logits.argmax(axis=1))
        tops = replace(call, output=OutputKind.TOP_K, top_k=5)
        found = runnable.run(phase, tops, kv, threads=1)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(found["id"], order)
    np.testing.assert_array_equal(found["logit"], np.take_along_axis(logits, order, axis=1))


def test_trace_of_a_persistent_kernel(gemma_artifact: Path) -> None:
    with on_lockstep(gemma_artifact) as (runnable, _):
        kv = runnable.new_kv()
        call = replace(make_call([[5]]), output=OutputKind.ARGMAX)
        seconds = runnable.trace(Phase.DECODE, call, kv, threads=1)
    kernels = open_artifact(gemma_artifact).manifest.programs["decode"]["phases"]["decode"]
    assert seconds is not None
    assert len(seconds) == len(kernels["kernels"])
    assert min(seconds) >= 0.0


@pytest.mark.parametrize("batch", [pytest.param(10, marks=pytest.mark.slow), 33])
def test_more_rows_than_blocks_do_for_themselves(
    batch: int, gemma: Path, models: SmallModels, folder: Path
) -> None:
    """Ten rows are dealt to the blocks; 33 are more than a streamed product takes."""
    tokens = [[token] for token in random_tokens(320, 9)]
    expected = reference(models, gemma)
    artifact = compile_model(gemma, folder, "sm_80", max_batch=batch)
    with on_lockstep(artifact) as (runnable, device):
        got = runnable.run(Phase.DECODE, make_call(tokens), runnable.new_kv(), threads=1)
        assert device.launched == ["decode_step"]
    kv = expected.new_kv()
    each = [feed(expected, kv, token) for token in tokens]
    assert relative_error(np.asarray(got), np.concatenate(each)) < TOLERANCE
