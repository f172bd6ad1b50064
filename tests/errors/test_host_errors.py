"""Artifacts on the wrong host or of the wrong version, and calls that break the ABI."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import SmallModels, feed, make_call, random_tokens

import infc
from infc.artifact import Manifest, open_artifact
from infc.backends.cpu import runnable as cpu_runnable
from infc.backends.cpu.lowering import abi
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.runnable import CpuRunnable
from infc.diagnostics import UserError
from infc.target.runnable import Phase


@pytest.fixture(scope="module")
def artifact(small_models: SmallModels) -> Path:
    return small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")


@pytest.fixture(scope="module")
def cpu(small_models: SmallModels) -> CpuRunnable:
    runnable = small_models.runnable(small_models.model("gemma2", num_hidden_layers=2), "cpu")
    assert isinstance(runnable, CpuRunnable)
    return runnable


def test_a_processor_that_lacks_what_was_compiled_for(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = host_features() - {"avx2", "fma"}
    monkeypatch.setattr(cpu_runnable, "host_features", lambda: fewer)
    name = open_artifact(artifact).manifest.targets["decode"]["name"]
    with pytest.raises(UserError) as error:
        infc.load(artifact)
    assert str(error.value) == (
        "error[INF4005]: the artifact needs avx2, fma, which this processor lacks\n"
        f"   |  compiled for {name}\n"
        "   = hint: compile the model again on this machine, or for --target cpu:x86-64-v3"
    )


def test_another_version_of_the_dialect(artifact: Path) -> None:
    opened = open_artifact(artifact)
    manifest: Manifest = opened.manifest
    newer = {"dialect_version": manifest.dialect_version + 1}
    opened.manifest = manifest.model_copy(update=newer)
    with pytest.raises(UserError) as error:
        infc.load(opened)
    assert str(error.value) == (
        f"error[INF4004]: expected dialect version {manifest.dialect_version}, "
        f"got {manifest.dialect_version + 1}\n"
        f"  --> {artifact}\n"
        "   = hint: compile the model again with this infc"
    )


class NativeCall:
    """A right call of three tokens in two sequences, as C sees it, to be broken by tests."""

    def __init__(self, cpu: CpuRunnable, phase: Phase) -> None:
        self.cpu, self.phase, self.threads = cpu, phase, 1
        self.arrays = {
            "tokens": np.array([5, 6, 7], np.int32),
            "row_offsets": np.array([0, 2, 3], np.int32),
            "slots": np.array([2, 0], np.int32),
            "positions": np.array([0, 1, 0], np.int32),
            "logit_rows": np.array([1, 2], np.int32),
        }
        self.logits = np.zeros((3, cpu.vocab_size), np.float32)
        self.best = np.zeros(3, np.int32)
        self.flag = ctypes.c_int32(0)
        self.kv = cpu.new_kv()
        self.fields: dict[str, int | None] = {
            "abi_version": abi.ABI_VERSION,
            "struct_size": ctypes.sizeof(abi.InfcCall),
            "n_tokens": 3,
            "n_sequences": 2,
            "n_logit_rows": 2,
            "output_kind": 0,
            "arena": cpu.arena(phase, 4).address,
            "weights": cpu._weights.ctypes.data,
            "kv": self.kv.memory.address,
            "logits": self.logits.ctypes.data,
            "best": self.best.ctypes.data,
            "cancel": ctypes.addressof(self.flag),
        }

    def run(self, thread: int = 0, threads: int = 1) -> int:
        pointers = {name: array.ctypes.data for name, array in self.arrays.items()}
        native = abi.InfcCall(**(pointers | self.fields))
        return int(self.cpu._functions[self.phase](ctypes.addressof(native), thread, threads))


def put(name: str, index: int, value: int) -> Callable[[NativeCall], None]:
    def change(call: NativeCall) -> None:
        call.arrays[name][index] = value

    return change


def say(name: str, value: int) -> Callable[[NativeCall], None]:
    def change(call: NativeCall) -> None:
        call.fields[name] = value

    return change


@pytest.mark.parametrize("phase", Phase)
class TestAbi:
    def test_the_call_the_others_break_is_right(self, cpu: CpuRunnable, phase: Phase) -> None:
        call = NativeCall(cpu, phase)
        assert call.run() == abi.OK
        expected = feed(cpu, cpu.new_kv(), [5, 6], phase=phase)
        np.testing.assert_array_equal(call.logits[0], expected[-1])
        assert not call.logits[2].any()

    @pytest.mark.parametrize(
        "change",
        [
            say("abi_version", 0),
            say("abi_version", abi.ABI_VERSION + 1),
            say("struct_size", ctypes.sizeof(abi.InfcCall) - 1),
        ],
    )
    def test_another_abi(
        self, cpu: CpuRunnable, phase: Phase, change: Callable[[NativeCall], None]
    ) -> None:
        call = NativeCall(cpu, phase)
        change(call)
        assert call.run() == abi.WRONG_ABI
        assert not call.logits.any()

    @pytest.mark.parametrize(
        "change",
        [
            say("n_tokens", 0),
            say("n_tokens", -1),
            say("n_tokens", 17),
            say("n_tokens", 2**31 - 1),
            say("n_sequences", 0),
            say("n_sequences", 4),
            say("n_logit_rows", -1),
            say("n_logit_rows", 17),
            put("tokens", 1, -1),
            put("tokens", 2, 320),
            put("tokens", 0, 2**31 - 1),
            put("positions", 0, -1),
            put("positions", 2, 64),
            put("positions", 2, -(2**31)),
            put("slots", 0, -1),
            put("slots", 1, 3),
            put("row_offsets", 0, 1),
            put("row_offsets", 1, 3),
            put("row_offsets", 1, 0),
            put("row_offsets", 1, -5),
            put("row_offsets", 2, 2),
            put("row_offsets", 2, 4),
            put("logit_rows", 1, 3),
            put("logit_rows", 0, -1),
        ],
    )
    def test_out_of_range(
        self, cpu: CpuRunnable, phase: Phase, change: Callable[[NativeCall], None]
    ) -> None:
        """Refused before anything is written, whichever thread asks."""
        call = NativeCall(cpu, phase)
        change(call)
        assert [call.run(thread, 4) for thread in range(4)] == [abi.OUT_OF_RANGE] * 4
        assert not call.logits.any()
        assert not call.kv.memory.bytes.any()

    @pytest.mark.parametrize(("thread", "threads"), [(0, 0), (1, 1), (-1, 2), (0, 65), (70, 65)])
    def test_threads_out_of_range(
        self, cpu: CpuRunnable, phase: Phase, thread: int, threads: int
    ) -> None:
        assert NativeCall(cpu, phase).run(thread, threads) == abi.OUT_OF_RANGE

    def test_the_programs_work_after_refusals(self, cpu: CpuRunnable, phase: Phase) -> None:
        tokens = random_tokens(cpu.vocab_size, 3)
        before = feed(cpu, cpu.new_kv(), tokens, phase=phase, threads=2)
        call = NativeCall(cpu, phase)
        call.arrays["tokens"][0] = -1
        assert call.run() == abi.OUT_OF_RANGE
        np.testing.assert_array_equal(
            feed(cpu, cpu.new_kv(), tokens, phase=phase, threads=2), before
        )


def test_a_program_s_refusal_is_no_crash(cpu: CpuRunnable) -> None:
    """The runnable is below the checks of a session: what it lets through, the program refuses."""
    call = make_call([[1, 2, 400]])
    with pytest.raises(infc.diagnostics.InternalError, match="refused the call: status 2"):
        cpu.run(Phase.PREFILL, call, cpu.new_kv(), threads=2)
