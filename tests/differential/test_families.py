"""Every family, from files to logits, against transformers' float32 results (`oracle/golden`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import FAMILY_NAMES, GGUF_FAMILY_NAMES, WINDOW, make_family
from oracle.files import BLOCK_STORAGE, write_gguf, write_huggingface

import infc

GOLDEN = Path(__file__).resolve().parent.parent / "oracle" / "golden"
TARGETS = ("reference", "cpu")
CHUNK = 16
MAX_CONTEXT = 64
LENGTHS = (1, 2, 7, 33, 45)

# Largest error allowed, as a share of the range of the logits: float32 weights and activations.
# The oracle's own answers for different prompt lengths differ by about 1e-6.
TOLERANCE = 1e-3


def cases(names: Sequence[str], fast: Collection[tuple[str, str]]) -> pytest.MarkDecorator:
    """Every name on every target; those not in `fast` are left to the slow run."""
    return pytest.mark.parametrize(
        ("name", "target"),
        [
            pytest.param(
                name,
                target,
                id=f"{name}-{target}",
                marks=() if (name, target) in fast else pytest.mark.slow,
            )
            for name in names
            for target in TARGETS
        ],
    )


ON_REFERENCE = {(name, "reference") for name in FAMILY_NAMES}
# Compiling for the processor takes seconds a model: the one with the most features stands for all.
ON_CPU = {("gemma3", "cpu")}


@dataclass(frozen=True)
class Golden:
    """Stored logits: `logits[i]` follow the token at `positions[i]` of `ids`."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def span(self) -> float:
        return float(self.logits.max() - self.logits.min())


@cache
def golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return Golden(stored["ids"], stored["positions"], stored["logits"])


def error(actual: NDArray[np.float32], expected: NDArray[np.float32], span: float) -> float:
    """Largest difference, as a share of the range."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return float(np.abs(actual - expected).max()) / span


class Models:
    """Compiles each file once for all tests of this module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._artifacts: dict[tuple[str, ...], Any] = {}

    def huggingface(self, name: str, target: str, dtype: str = "F32") -> Any:
        return self._compiled(name, target, "huggingface", dtype)

    def gguf(self, name: str, target: str, storage: str = "F32") -> Any:
        return self._compiled(name, target, "gguf", storage)

    def _compiled(self, name: str, target: str, kind: str, storage: str) -> Any:
        key = (name, target, kind, storage)
        if key not in self._artifacts:
            config, tensors = make_family(name)
            path = self._folder / "-".join(key)
            if kind == "gguf":
                path = path.with_suffix(".gguf")
                write_gguf(path, config, tensors, storage)
            else:
                path.mkdir()
                write_huggingface(path, config, tensors, storage, shards=2)
            self._artifacts[key] = compile_small(path, target)
        return self._artifacts[key]


def compile_small(path: Path, target: str) -> Any:
    output = path.with_name(f"{path.name}-{target}.infc")
    return infc.compile(path, target=target, output=output, max_context=MAX_CONTEXT, chunk=CHUNK)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("families"))


class TestAgainstTransformers:
    """From a Hugging Face folder in two shards."""

    @cases(FAMILY_NAMES, fast=ON_REFERENCE | ON_CPU)
    def test_prefill_of_every_length(self, models: Models, name: str, target: str) -> None:
        want = golden(name)
        session = infc.load(models.huggingface(name, target), threads=1)
        for length in LENGTHS:
            session.reset()
            logits = session.prefill(want.ids[:length].tolist(), all_logits=True)
            assert logits.shape == (length, want.logits.shape[1])
            kept = want.positions < length
            got = logits[want.positions[kept]]
            assert error(got, want.logits[kept], want.span) <= TOLERANCE, f"length {length}"

    @cases(FAMILY_NAMES, fast=ON_CPU)
    def test_decode_from_the_first_token(self, models: Models, name: str, target: str) -> None:
        want = golden(name)
        session = infc.load(models.huggingface(name, target), threads=1)
        steps = [session.prefill(want.ids[:1].tolist())]
        steps += [session.decode(int(token)) for token in want.ids[1:]]
        got = np.stack(steps)[want.positions]
        assert error(got, want.logits, want.span) <= TOLERANCE

    @cases(FAMILY_NAMES, fast=ON_CPU)
    def test_prompt_in_uneven_pieces(self, models: Models, name: str, target: str) -> None:
        want = golden(name)
        session = infc.load(models.huggingface(name, target), threads=1)
        bounds = (0, 1, WINDOW + 2, WINDOW + 3, 40)
        for start, stop in pairwise(bounds):
            last = session.prefill(want.ids[start:stop].tolist())
            if stop - 1 in want.positions:
                at = np.flatnonzero(want.positions == stop - 1)
                assert error(last[None], want.logits[at], want.span) <= TOLERANCE
        for position in range(40, 45):
            last = session.decode(int(want.ids[position]))
        assert error(last[None], want.logits[-1:], want.span) <= TOLERANCE

    @cases(FAMILY_NAMES, fast=ON_CPU)
    def test_truncate_takes_tokens_back(self, models: Models, name: str, target: str) -> None:
        want = golden(name)
        session = infc.load(models.huggingface(name, target), threads=1)
        session.prefill(want.ids[:23].tolist())
        wrong = [int(token) for token in want.ids[:2]]
        session.prefill(wrong)
        session.truncate(23)
        assert session.position == 23
        logits = session.decode(int(want.ids[23]))
        at = np.flatnonzero(want.positions == 23)
        assert error(logits[None], want.logits[at], want.span) <= TOLERANCE


@cases(GGUF_FAMILY_NAMES, fast=ON_REFERENCE)
def test_gguf_says_the_same(models: Models, name: str, target: str) -> None:
    """Other names, interleaved heads, norms plus one, rotary factors as a tensor."""
    want = golden(name)
    session = infc.load(models.gguf(name, target), threads=1)
    # GGUF's `llama` has no sliding window (llama.cpp attends to everything): compare before it.
    length = WINDOW if name == "mistral" else len(want.ids)
    logits = session.prefill(want.ids[:length].tolist(), all_logits=True)
    kept = want.positions < length
    assert error(logits[want.positions[kept]], want.logits[kept], want.span) <= TOLERANCE


@cases(FAMILY_NAMES, fast=ON_CPU)
def test_threads_change_no_bit(models: Models, name: str, target: str) -> None:
    ids = golden(name).ids.tolist()
    results = []
    for threads in (1, 2):
        session = infc.load(models.huggingface(name, target), threads=threads)
        prefill = session.prefill(ids[:33], all_logits=True)
        decode = [session.decode(token) for token in ids[33:37]]
        results.append(np.concatenate([prefill, np.stack(decode)]))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights(models: Models, target: str, dtype: str) -> None:
    """The rounded weights, not the rounding, are compared: both sides read the same halves."""
    rounded = infc.load(models.gguf("gemma3", target, dtype), threads=1)
    folder = infc.load(models.huggingface("gemma3", target, dtype), threads=1)
    ids = golden("gemma3").ids[:20].tolist()
    a = rounded.prefill(ids, all_logits=True)
    b = folder.prefill(ids, all_logits=True)
    # Norms are halves too in the folder: that much and no more may differ.
    assert error(a, b, golden("gemma3").span) <= 2e-2


@pytest.mark.parametrize(
    "storage",
    [pytest.param(s, marks=() if s == "Q4_K" else pytest.mark.slow) for s in BLOCK_STORAGE],
)
def test_quantised_weights_mean_their_values(tmp_path: Path, storage: str) -> None:
    """Blocks of random bits against the same model with the dequantised values."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    config, tensors = make_family("qwen3", **wide)
    path = tmp_path / "quantised.gguf"
    values = write_gguf(path, config, tensors, storage)
    folder = tmp_path / "exact"
    folder.mkdir()
    write_huggingface(folder, config, values)
    ids = list(range(3, 24))
    exact = infc.load(compile_small(folder, "reference")).prefill(ids, all_logits=True)
    span = float(exact.max() - exact.min())
    meant = infc.load(compile_small(path, "reference")).prefill(ids, all_logits=True)
    assert error(meant, exact, span) <= TOLERANCE
    session = infc.load(compile_small(path, "cpu"), threads=1)
    got = session.prefill(ids, all_logits=True)
    # Activations are rounded to 8 bits in groups of 32: noise of about 0.4% a product.
    assert float(np.sqrt(np.mean((got - exact) ** 2))) <= 0.02 * span
    session.reset()
    steps = [session.prefill(ids[:1])] + [session.decode(token) for token in ids[1:]]
    assert float(np.sqrt(np.mean((np.stack(steps) - exact) ** 2))) <= 0.02 * span
