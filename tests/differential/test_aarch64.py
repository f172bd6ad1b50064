"""Whole models on AArch64, under emulation: the programs, the C interface and the threads."""

from __future__ import annotations

import platform
from pathlib import Path

import emulated
import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_gguf
from small_models import SmallModels, feed, random_tokens

import infc
from infc.artifact import open_artifact
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import missing_features, resolve_cpu
from infc.diagnostics import UserError
from infc.driver.loading import load_runnable
from infc.target.runnable import Phase

pytestmark = pytest.mark.skipif(emulated.problem() is not None, reason=str(emulated.problem()))
TARGETS = tuple(emulated.PROCESSORS)
SAMPLE = Path(__file__).parents[2] / "samples" / "c" / "generate.c"
HEADERS = f"-I{Path(__file__).parents[2] / 'backends' / 'cpu'}"
TOKENS = random_tokens(300, 22)
PREFILLED = 19

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
# Between them the forms of codes: 4, 5 and 8 bits, groups of 16 and 32, with minima and without;
# products whose input is wanted in two forms; windows, soft caps, half and single precision caches.
MODELS = {
    "gemma2 F32": ("gemma2", "F32", {"num_hidden_layers": 2, "vocab_size": 300}, {}),
    "qwen3 Q4_K": (
        "qwen3",
        "Q4_K",
        {**WIDE, "vocab_size": 300},
        {"q_proj": "Q5_0", "k_proj": "Q8_0", "v_proj": "F32", "o_proj": "Q6_K", "down": "Q4_0"},
    ),
    "llama2 BF16": ("llama2", "BF16", {"num_hidden_layers": 1, "vocab_size": 300}, {}),
    "gemma3 Q8_0": ("gemma3", "Q8_0", {"num_hidden_layers": 2, "vocab_size": 300}, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("aarch64")
    paths = {}
    for name, (family, storage, changes, others) in MODELS.items():
        config, tensors = make_family(family, **changes)
        paths[name] = folder / f"{name}.gguf"
        write_gguf(paths[name], config, tensors, storage, others=others)
    return paths


def here(artifact: Path, tokens: list[int] = TOKENS, count: int = PREFILLED) -> NDArray[np.float32]:
    """Logits of every token: the first `count` by prefill, the others by decode."""
    runnable = load_runnable(open_artifact(artifact))
    kv = runnable.new_kv()
    prefilled = feed(runnable, kv, tokens[:count])
    decoded = feed(runnable, kv, tokens[count:], start=count, phase=Phase.DECODE)
    return np.concatenate([prefilled, decoded])


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gemma2 F32", TARGETS[:1]),  # the targets differ in products of bytes only
        ("qwen3 Q4_K", TARGETS[1:]),
        pytest.param("qwen3 Q4_K", TARGETS[:1], marks=pytest.mark.slow),
        pytest.param("gemma3 Q8_0", TARGETS, marks=pytest.mark.slow),
    ],
)
def test_logits_have_the_bits_of_x86(
    small_models: SmallModels, models: dict[str, Path], name: str, targets: tuple[str, ...]
) -> None:
    """Dots of bytes are exact, and both do the same float operations in the same order."""
    if missing_features(resolve_cpu("cpu:x86-64-v3"), host_features()):
        pytest.skip("needs an x86 processor with AVX2")
    expected = here(small_models.artifact(models[name], "cpu:x86-64-v3"))
    for target in targets:
        artifact = small_models.artifact(models[name], target)
        for threads in (1, 2) if name == "qwen3 Q4_K" else (1,):
            got = emulated.logits(target, artifact, TOKENS, PREFILLED, threads)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", ["int8", pytest.param("bf16", marks=pytest.mark.slow)])
def test_parts_of_a_packed_cache_have_the_bits_of_x86(
    small_models: SmallModels, models: dict[str, Path], dtype: str
) -> None:
    """Keys in three parts that two threads count and merge."""
    if missing_features(resolve_cpu("cpu:x86-64-v3"), host_features()):
        pytest.skip("needs an x86 processor with AVX2")
    tokens, count, options = random_tokens(300, 133), 128, {"max_context": 256, "kv_dtype": dtype}
    model = models["gemma2 F32"]
    expected = here(small_models.artifact(model, "cpu:x86-64-v3", **options), tokens, count)
    artifact = small_models.artifact(model, TARGETS[0], **options)
    got = emulated.logits(TARGETS[0], artifact, tokens, count, 2)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("target", "name", "allowed"),
    [
        (TARGETS[0], "gemma2 F32", 1e-4),
        (TARGETS[1], "llama2 BF16", 1e-2),  # prefill rounds activations to bf16
    ],
)
def test_logits_are_those_of_the_reference(
    small_models: SmallModels, models: dict[str, Path], target: str, name: str, allowed: float
) -> None:
    model = models[name]
    expected = here(small_models.artifact(model, "reference"))
    got = emulated.logits(target, small_models.artifact(model, target), TOKENS, PREFILLED)
    assert np.abs(got - expected).max() <= allowed * np.ptp(expected)


def test_the_c_sample_generates_there(small_models: SmallModels, models: dict[str, Path]) -> None:
    target, model = TARGETS[1], models["llama2 BF16"]
    folder = emulated.unpacked(small_models.artifact(model, target))
    program = emulated.built(str(SAMPLE), HEADERS)
    arguments = [str(folder), "2", "3", *map(str, TOKENS)]
    generated = [int(t) for t in emulated.run(target, program, *arguments).split()]
    # One greedy choice after the other, so the logits of all of it say each.
    text = [*TOKENS, *generated]
    logits = emulated.logits(target, small_models.artifact(model, target), text, len(TOKENS))
    assert generated == logits[len(TOKENS) - 1 : -1].argmax(axis=1).tolist()


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another host")
def test_loading_it_on_another_host_is_refused(
    small_models: SmallModels, models: dict[str, Path]
) -> None:
    artifact = small_models.artifact(models["gemma2 F32"], "cpu:aarch64")
    with pytest.raises(UserError) as caught:
        infc.load(artifact)
    assert str(caught.value) == (
        f"error[INF4005]: the artifact is for aarch64 processors, and this host is "
        f"{platform.machine()}\n"
        "   |  compiled for cpu:aarch64\n"
        "   = hint: compile the model again on this machine"
    )
