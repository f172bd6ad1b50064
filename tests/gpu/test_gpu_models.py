"""Models on a GPU: logits beside the reference, sessions, text of a real model, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_models import SmallModels, feed, random_tokens, relative_error

import infc
from infc.artifact import open_artifact
from infc.backends.cuda.runnable import CudaRunnable
from infc.backends.cuda.runtime.driver import Device, KernelLaunch
from infc.diagnostics import InternalError, UserError
from infc.runtime.session import Session
from infc.target.runnable import Phase

pytestmark = pytest.mark.gpu

WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
TINY = [
    ("gemma3", "BF16", {}),
    ("gemma2", "F16", {}),
    ("gemma3", "Q4_K", WIDE),
    ("qwen3", "Q6_K", WIDE),
    ("llama2", "Q8_0", {}),
    ("qwen2", "BF16", {}),
]
TOLERANCE = 0.02
"""Of the range of the logits: operands of products are rounded to bfloat16."""


@pytest.fixture(params=TINY, ids=[f"{family} {storage}" for family, storage, _ in TINY])
def tiny(
    request: pytest.FixtureRequest, small_models: SmallModels, target: str
) -> Iterator[tuple[CudaRunnable, Path]]:
    """A tiny model on the device, and its file."""
    family, storage, changes = request.param
    model = small_models.model(family, storage, **changes)
    runnable = small_models.runnable(model, target)
    assert isinstance(runnable, CudaRunnable)
    yield runnable, model
    runnable.close()


def test_logits_are_the_references(
    tiny: tuple[CudaRunnable, Path], small_models: SmallModels
) -> None:
    runnable, model = tiny
    reference = small_models.runnable(model, "reference")
    tokens = random_tokens(runnable.vocab_size, 40)
    expected = feed(reference, reference.new_kv(), tokens)
    for phase in Phase:
        got = feed(runnable, runnable.new_kv(), tokens, phase=phase)
        assert relative_error(got, expected) < TOLERANCE
        again = feed(runnable, runnable.new_kv(), tokens, phase=phase)
        assert (got == again).all(), "the same call gives the same bits"


def test_a_trace_has_a_time_for_each_kernel(tiny: tuple[CudaRunnable, Path]) -> None:
    from small_models import make_call

    runnable, _ = tiny
    for phase in Phase:
        seconds = runnable.trace(phase, make_call([[1]]), runnable.new_kv(), threads=1)
        assert len(seconds) == len(runnable.kernel_names(phase))
        assert 0 < sum(seconds) < 0.1


def test_a_session_forks_saves_and_goes_on(
    small_models: SmallModels, target: str, tmp_path: Path
) -> None:
    model = small_models.model("gemma3", "BF16")
    session = infc.load(small_models.artifact(model, target))
    assert isinstance(session, Session)
    session.prefill(random_tokens(session.vocab_size, 20))
    fork = session.fork()
    session.save(tmp_path / "state")
    expected = session.decode(5)
    assert (fork.decode(5) == expected).all()
    fresh = infc.load(small_models.artifact(model, target))
    fresh.restore(tmp_path / "state")
    assert np.allclose(fresh.decode(5), expected, atol=1e-6)


@pytest.mark.slow
def test_greedy_text_of_gemma_is_the_cpus(gemma_path: Path, target: str, tmp_path: Path) -> None:
    """Up to near ties: there the CPU's token is taken, and both go on."""
    sessions = []
    for name in ("cpu", target):
        path = tmp_path / f"{name.replace(':', '-')}.infc"
        infc.compile(gemma_path, target=name, output=path, max_context=512)
        sessions.append(infc.load(path))
    cpu, gpu = sessions
    prompt = cpu.tokenizer.encode("The history of computing begins with")
    logits = [session.prefill(prompt) for session in sessions]
    for _ in range(64):
        expected, got = (int(np.argmax(row)) for row in logits)
        if got != expected:
            assert logits[0][expected] - logits[0][got] < 0.25
        logits = [cpu.decode(expected), gpu.decode(expected)]


def test_a_model_larger_than_the_device_is_refused(
    small_models: SmallModels, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infc.backends.cuda.runtime.native import NativeDevice

    monkeypatch.setattr(NativeDevice, "free_bytes", lambda self: 100_000)
    artifact = small_models.artifact(small_models.model("gemma3", "BF16"), target)
    with pytest.raises(UserError, match="INF2101"):
        infc.load(artifact)


def test_code_of_another_architecture_is_refused(small_models: SmallModels, target: str) -> None:
    other = "cuda:sm_100a" if target != "cuda:sm_100a" else "cuda:sm_90a"
    artifact = small_models.artifact(small_models.model("gemma3", "BF16"), other)
    with open_artifact(artifact) as opened, pytest.raises(UserError, match="INF4005"):
        infc.load(opened)


def test_a_fault_on_the_device_is_an_error_with_the_drivers_words(device: Device) -> None:
    with pytest.raises(InternalError, match=r"cuLaunchKernel failed: CUDA_ERROR_"):
        device.launch(KernelLaunch(0, 1, 32, 0, []))
