"""Quantised storage, end to end: the processor's codes against the reference's exact values.

The reference dequantises weights exactly and keeps activations in float32, so the two differ by the
rounding of activations to 8 bits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import BLOCK_STORAGE, write_gguf, write_huggingface
from small_models import SmallModels, feed, random_tokens, relative_error

import infc
from infc.artifact import open_artifact
from infc.cli import main
from infc.diagnostics import UserError
from infc.driver.loading import load_runnable
from infc.target.runnable import Phase, Runnable

# Blocks of K-quants are 256 wide, and so is every row; one layer keeps compiling short.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 64,
    "num_hidden_layers": 1,
    "vocab_size": 300,
}
TOKENS = random_tokens(300, 20)

# Root mean square, as a part of the range. A product of activations rounded to 1/127 of the largest
# of 32 is off by about 0.4%; seven of them follow each other, and the range is some 7 deviations.
A8_ERROR = 0.01
FLOAT_ERROR = 5e-3
"""Largest, where activations stay float: a cache in half precision."""

FAST = ("Q4_K",)
STORAGE = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BLOCK_STORAGE
]


def both(small_models: SmallModels, storage: str) -> tuple[Runnable, Runnable]:
    model = small_models.model("qwen3", storage, **WIDE)
    options = {"max_batch": 1, "chunk": 8}
    return (
        small_models.runnable(model, "reference", **options),
        small_models.runnable(model, "cpu", **options),
    )


def logits(runnable: Runnable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the prefill and of the decode program, `[tokens, vocab]` each."""
    return (
        feed(runnable, runnable.new_kv(), TOKENS, threads=2),
        feed(runnable, runnable.new_kv(), TOKENS, phase=Phase.DECODE, threads=2),
    )


@pytest.mark.parametrize("storage", STORAGE)
def test_block_storage(small_models: SmallModels, storage: str) -> None:
    reference, cpu = both(small_models, storage)
    exact = logits(reference)
    for got, expected in zip(logits(cpu), exact, strict=True):
        rms = float(np.sqrt(np.mean((got - expected) ** 2))) / float(np.ptp(expected))
        assert 0 < rms <= A8_ERROR
        assert_same_choices(got, expected)


@pytest.mark.parametrize(
    "word", ["q_proj", *(pytest.param(w, marks=pytest.mark.slow) for w in ("k_proj", "gate", "up"))]
)
def test_one_float_matrix_among_quantised_ones(tmp_path: Path, word: str) -> None:
    """Products of one input that want it in two forms."""
    config, tensors = make_family("qwen2", **WIDE)
    write_gguf(tmp_path / "mixed.gguf", config, tensors, "Q4_K", others={word: "F16"})
    artifacts = [
        infc.compile(
            tmp_path / "mixed.gguf",
            target=target,
            output=tmp_path / f"{target}.infc",
            max_context=64,
            chunk=8,
        )
        for target in ("reference", "cpu")
    ]
    exact, got = [logits(load_runnable(artifact)) for artifact in artifacts]
    for ours, expected in zip(got, exact, strict=True):
        rms = float(np.sqrt(np.mean((ours - expected) ** 2))) / float(np.ptp(expected))
        assert 0 < rms <= A8_ERROR
        assert_same_choices(ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["GGUF-F16", "BF16"])
def test_half_storage(small_models: SmallModels, storage: str) -> None:
    reference, cpu = both(small_models, storage)
    for got, expected in zip(logits(cpu), logits(reference), strict=True):
        assert relative_error(got, expected) <= FLOAT_ERROR
        assert_same_choices(got, expected)


def assert_same_choices(got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """The greedy token is the same wherever the two best are further apart than both can be off."""
    best = np.sort(expected, axis=1)
    margin = best[:, -1] - best[:, -2]
    error = np.abs(got - expected).max(axis=1)
    clear = margin > 2 * error
    assert clear.sum() >= len(clear) // 2
    np.testing.assert_array_equal(got[clear].argmax(axis=1), expected[clear].argmax(axis=1))


ROUNDING = {"q8_0": 0.5 / 127, "q6_k": 1 / 32, "q4_k": 1 / 8, "q4_0": 1 / 8}
"""Largest error of a weight, as a part of the largest of its block."""


@pytest.mark.parametrize(
    "quantize",
    ["q4_k", *(pytest.param(q, marks=pytest.mark.slow) for q in ROUNDING if q != "q4_k")],
)
def test_a_float_model_is_quantised_on_request(small_models: SmallModels, quantize: str) -> None:
    """Its matrices shrink, its numbers move a little, and both backends agree on them."""
    model = small_models.model("qwen3", **WIDE)
    options = {"max_batch": 1, "chunk": 8}
    floats = small_models.runnable(model, "reference", **options)
    meant = small_models.runnable(model, "reference", quantize=quantize, **options)
    cpu = small_models.runnable(model, "cpu", quantize=quantize, **options)
    whole, rounded, got = (logits(r)[0] for r in (floats, meant, cpu))
    span = float(np.ptp(whole))
    lost = float(np.sqrt(np.mean((rounded - whole) ** 2))) / span
    assert 0 < lost <= 2 * ROUNDING[quantize]
    assert float(np.sqrt(np.mean((got - rounded) ** 2))) / span <= A8_ERROR
    assert_same_choices(got, rounded)


def test_only_matrices_are_quantised(small_models: SmallModels) -> None:
    model = small_models.model("qwen3", **WIDE)
    options = {"max_batch": 1, "chunk": 8}
    sizes = {}
    for quantize in ("keep", "q8_0", "q4_0"):
        path = small_models.artifact(model, "reference", quantize=quantize, **options)
        with open_artifact(path) as artifact:
            text = bytes(artifact.member("programs/module.mlir")).decode()
            sizes[quantize] = len(artifact.member("weights/weights.bin"))
        kinds = re.findall(r'"infc.weight"\(\) \{.*norm.weight"\} : \(\) -> (\S+)', text)
        assert kinds
        assert all(kind.endswith("xf32>") for kind in kinds)
    # 34 and 18 bytes for 32 numbers that took 128; the vocabulary's 210 for 256 in place of 144.
    assert sizes["q8_0"] / sizes["keep"] == pytest.approx(34 / 128, rel=0.02)
    _, tensors = make_family("qwen3", **WIDE)
    matrices = {name: tensor.size for name, tensor in tensors.items() if tensor.ndim == 2}
    vocabulary = matrices["model.embed_tokens.weight"]  # the head is tied to it
    others = sum(matrices.values()) - vocabulary
    expected = (18 / 32 * others + 210 / 256 * vocabulary) / (4 * (others + vocabulary))
    assert sizes["q4_0"] / sizes["keep"] == pytest.approx(expected, rel=0.02)


def test_fewer_bits_are_left_as_they_are(small_models: SmallModels) -> None:
    """Asking for a type with more bits changes no stored byte."""
    model = small_models.model("qwen3", "Q4_K", **WIDE)
    options = {"max_batch": 1, "chunk": 8}
    weights = []
    for quantize in ("keep", "q8_0"):
        path = small_models.artifact(model, "reference", quantize=quantize, **options)
        with open_artifact(path) as artifact:
            weights.append(bytes(artifact.member("weights/weights.bin")))
    assert weights[0] == weights[1]


def test_the_loss_is_reported(small_models: SmallModels, tmp_path: Path) -> None:
    """Of the weights and of the predictions; twice the same bytes; the model is left in peace."""
    config, tensors = make_family("qwen3", **WIDE)
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors, "BF16", with_tokenizer=True)
    command = ["compile", str(model), "--target", "reference", "--max-context", "24"]
    command += ["--quantize", "q4_k", "-o", str(tmp_path / "a.infc")]
    texts = [CliRunner().invoke(main, [*command, *more]).stdout for more in (["--json"], [])]
    report = json.loads(texts[0])["quantization"]
    weights = report["weights"]
    assert {name: loss["tensors"] for name, loss in weights.items()} == {"q4_k": 7, "q6_k": 1}
    assert 0.05 < weights["q4_k"]["relative_rms_error"] < 0.1
    assert report["predictions"] == 24
    assert 0 < report["mean_divergence_nats"] < 0.1
    assert 0.5 < report["same_choice"] <= 1
    with open_artifact(tmp_path / "a.infc") as artifact:
        assert artifact.manifest.quantization == weights
        assert json.loads(texts[0])["digest"] == artifact.manifest.digest
    assert [line.split(":")[0] for line in texts[1].splitlines()[1:]] == [
        "  q4_k",
        "  q6_k",
        "  change of the predictions",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.infc", "model"]


def test_weights_that_no_scale_can_hold(small_models: SmallModels, tmp_path: Path) -> None:
    config, tensors = make_family("qwen3", **WIDE)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e9
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors)
    with pytest.raises(UserError) as error:
        infc.compile(model, target="reference", quantize="q8_0", output=tmp_path / "a.infc")
    file = model / "model.safetensors"
    assert str(error.value) == (
        "error[INF1008]: expected finite weights, got others in 1 tensors\n"
        f"  --> {model}\n"
        "   - 1 scales are NaN or infinite "
        f'({file}: tensor "model.layers.0.mlp.up_proj.weight")\n'
        "   = hint: weights so large need --quantize keep: scales are float16"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_sessions_agree_with_runnables(small_models: SmallModels) -> None:
    model = small_models.model("qwen3", "Q4_K", **WIDE)
    session = infc.load(small_models.artifact(model, "cpu", max_batch=1, chunk=8), threads=1)
    _, cpu = both(small_models, "Q4_K")
    np.testing.assert_array_equal(session.prefill(TOKENS), logits(cpu)[0][-1])
