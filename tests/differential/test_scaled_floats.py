"""Folders with weights of 8-bit floats, end to end: programs against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_models import compile_model, on_lockstep
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_huggingface
from oracle.scaled_floats import SCHEMES, write_scaled_floats
from small_models import SmallModels, feed, random_tokens, relative_error

import infc
from infc.diagnostics import UserError
from infc.target.runnable import Phase, Runnable

WIDE = {"hidden_size": 160, "intermediate_size": 288, "num_hidden_layers": 1}
"""Rows that end in a part of 128, and blocks of several rows and columns."""
TOKENS = random_tokens(300, 20)
OPTIONS = {"max_batch": 1, "chunk": 8}
CPU_ERROR = 5e-3
"""Of the range: a cache in half precision and, where products are in bf16, their rounding."""
GPU_ERROR = 0.02
"""As that of other storage types: activations and scores are rounded to bf16 and f16."""
A8_ERROR = 0.02
CASES = [
    ("llama2", "tensor"),
    ("llama2", "block"),
    ("qwen3", "row"),
    pytest.param("qwen3", "block", marks=pytest.mark.slow),
    pytest.param("llama2", "fbgemm", marks=pytest.mark.slow),
]


class Folders:
    """Models with scaled floats, and the same numbers in float32."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.small = SmallModels(place)

    def pair(self, family: str, scheme: str) -> tuple[Path, Path]:
        path = self.place / f"{family}_{scheme}"
        plain = self.place / f"{family}_{scheme}_plain"
        if not path.exists():
            config, tensors = make_family(family, **WIDE)
            path.mkdir()
            meant = write_scaled_floats(path, config, tensors, scheme, "BF16")
            plain.mkdir()
            write_huggingface(plain, config, meant)
        return path, plain


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("scaled"))


def logits(runnable: Runnable) -> list[NDArray[np.float32]]:
    """Of the prefill and of the decode program, `[tokens, vocab]` each."""
    return [
        feed(runnable, runnable.new_kv(), TOKENS, phase=phase, threads=2)
        for phase in (Phase.PREFILL, Phase.DECODE)
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_reference_computes_with_what_is_meant(folders: Folders, scheme: str) -> None:
    scaled, plain = (
        folders.small.runnable(path, "reference", kv_dtype="f32", **OPTIONS)
        for path in folders.pair("llama2", scheme)
    )
    for got, expected in zip(logits(scaled), logits(plain), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_processors(folders: Folders, family: str, scheme: str) -> None:
    model, _ = folders.pair(family, scheme)
    expected = logits(folders.small.runnable(model, "reference", **OPTIONS))
    for got, exact in zip(
        logits(folders.small.runnable(model, "cpu", **OPTIONS)), expected, strict=True
    ):
        assert 0 < relative_error(got, exact) < CPU_ERROR


@pytest.mark.parametrize(
    ("family", "scheme", "arch"),
    [
        ("llama2", "block", "sm_90a"),
        pytest.param("qwen3", "row", "sm_80", marks=pytest.mark.slow),
        pytest.param("llama2", "tensor", "sm_100a", marks=pytest.mark.slow),
    ],
)
def test_gpus(folders: Folders, tmp_path: Path, family: str, scheme: str, arch: str) -> None:
    model, _ = folders.pair(family, scheme)
    runnable = folders.small.runnable(model, "reference", kv_dtype="f16", **OPTIONS)
    tokens = TOKENS[:6]

    def logits_of(runnable: Runnable) -> NDArray[np.float32]:
        """The first five prefilled, the last one decoded."""
        kv = runnable.new_kv()
        first = feed(runnable, kv, tokens[:5])
        last = feed(runnable, kv, tokens[5:], start=5, phase=Phase.DECODE)
        return np.concatenate([first, last])

    with on_lockstep(compile_model(model, tmp_path, arch, chunk=4)) as (gpu, _):
        got = logits_of(gpu)
    assert 0 < relative_error(got, logits_of(runnable)) < GPU_ERROR


def test_the_same_folder_gives_the_same_bytes(folders: Folders, tmp_path: Path) -> None:
    model, _ = folders.pair("llama2", "block")
    first, second = tmp_path / "first.infc", tmp_path / "second.infc"
    for path in (first, second):
        infc.compile(model, target="cpu", output=path, max_context=64, chunk=8)
    assert first.read_bytes() == second.read_bytes()


def test_they_become_integers_on_request(folders: Folders) -> None:
    """As from floats, though integers of 8 bits with their scales take a little more room."""
    scaled, plain = folders.pair("llama2", "row")
    for target, error in (("reference", 1e-6), ("cpu", A8_ERROR)):
        got = folders.small.runnable(scaled, target, quantize="q8_0", **OPTIONS)
        meant = folders.small.runnable(plain, "reference", quantize="q8_0", **OPTIONS)
        for ours, expected in zip(logits(got), logits(meant), strict=True):
            assert relative_error(ours, expected) < error


def test_a_machine_without_them_says_so(folders: Folders, tmp_path: Path) -> None:
    model, _ = folders.pair("llama2", "tensor")
    with pytest.raises(UserError) as caught:
        infc.compile(model, target="dataflow:systolic-hbm", output=tmp_path / "model.infc")
    text = str(caught.value)
    assert "got f8_e4m3; --quantize q8_0 converts it (layers.0.q and 6 others)" in text, text
