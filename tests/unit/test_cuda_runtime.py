"""The CUDA runtime over a device whose kernels are Python."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_device import FACTS, QueuedDevice
from cuda_toy import VOCAB, WEIGHTS, programs, signature, toy_device
from small_models import make_call

from infc.backends.cuda.runnable import CudaRunnable
from infc.backends.cuda.runtime.driver import KernelLaunch
from infc.backends.cuda.runtime.launching import PIECE
from infc.backends.cuda.runtime.memory import Staging
from infc.diagnostics import InternalError, UserError
from infc.target.runnable import Call, Cancellation, OutputKind, Phase


def with_output(call: Call, kind: OutputKind, rows: list[int], top_k: int = 0) -> Call:
    return Call(
        call.tokens,
        call.row_offsets,
        call.slots,
        call.positions,
        np.array(rows, np.int32),
        kind,
        top_k,
    )


@pytest.fixture
def device() -> QueuedDevice:
    return toy_device()


@pytest.fixture
def runnable(device: QueuedDevice) -> CudaRunnable:
    return CudaRunnable(programs(), device)


BOTH = make_call([[1, 2, 3], [6, 7]], slots=[1, 0], starts=[4, 65])


def test_a_prefill_of_two_sequences(runnable: CudaRunnable, device: QueuedDevice) -> None:
    kv = runnable.new_kv()
    call = with_output(BOTH, OutputKind.LOGITS, [0, 2, 4])
    logits = runnable.run(Phase.PREFILL, call, kv, threads=1)
    assert logits.dtype == np.float32
    assert logits.argmax(1).tolist() == [2, 4, 0]
    first, second = kv.kv_export(1, 4, 7), kv.kv_export(0, 65, 67)
    for layer in range(2):
        assert (first.keys[layer][:, 1, 5] == [1, 2, 3]).all()
        assert (second.values[layer][:, 0, 15] == [-6, -7]).all()
    assert device.launched == ["prefill_append_entry", "prefill_head_entry"]


@pytest.mark.parametrize("persistent", [True, False])
def test_each_kind_of_output(persistent: bool) -> None:
    device = toy_device()
    runnable = CudaRunnable(programs(signature(persistent=persistent)), device)
    kv = runnable.new_kv()
    assert runnable.is_persistent(Phase.DECODE) == persistent
    one = make_call([[3], [7]], starts=[9, 2])

    def run(kind: OutputKind, rows: list[int], top_k: int = 0) -> Any:
        call = with_output(one, kind, rows, top_k)
        return runnable.run(Phase.DECODE, call, kv, threads=1)

    assert run(OutputKind.ARGMAX, [0, 1]).tolist() == [4, 0]
    top = run(OutputKind.TOP_K, [1], 3)
    assert top["id"].tolist() == [[0, 1, 2]]
    assert top["logit"].tolist() == [[0.0, -1.0, -2.0]]
    assert run(OutputKind.LOGITS, [1, 0]).argmax(1).tolist() == [0, 4]
    assert run(OutputKind.LOGITS, []).shape == (0, VOCAB)
    assert run(OutputKind.ARGMAX, []).shape == (0,)
    if persistent:
        assert set(device.launched) == {"decode_program"}
        return
    expected = ["append", "head", "argmax", "append", "head", "top_k", "append", "head"]
    expected += ["append", "append"]
    assert device.launched == [f"decode_{name}_entry" for name in expected]
    # A graph is made once for each kind of call.
    before = device.graphs
    run(OutputKind.ARGMAX, [1])
    assert device.graphs == before + 1


def test_without_cooperative_launches_kernels_are_separate() -> None:
    device = toy_device(facts=replace(FACTS, cooperative=False))
    runnable = CudaRunnable(programs(), device)
    assert not runnable.is_persistent(Phase.DECODE)
    assert runnable.notes == (
        "decode is a launch for each kernel here, not the persistent one: "
        f"{FACTS.name} has no cooperative launches",
    )
    assert CudaRunnable(programs(), toy_device()).notes == ()


def test_results_are_the_callers_own(runnable: CudaRunnable) -> None:
    kv = runnable.new_kv()
    first = runnable.run(
        Phase.DECODE, with_output(make_call([[1]]), OutputKind.ARGMAX, [0]), kv, threads=1
    )
    runnable.run(Phase.DECODE, with_output(make_call([[5]]), OutputKind.ARGMAX, [0]), kv, threads=1)
    assert first.tolist() == [2]


def test_caches_are_empty_independent_and_given_back(
    runnable: CudaRunnable, device: QueuedDevice
) -> None:
    assert len(device.sizes) == 1
    kv = runnable.new_kv()
    assert len(device.sizes) == 1, "the first cache lies in the one allocation"
    assert not kv.kv_export(0, 0, 64).keys[0].any()
    runnable.run(Phase.PREFILL, BOTH, kv, threads=1)
    other = kv.copy()
    assert len(device.sizes) == 2
    runnable.run(Phase.PREFILL, make_call([[5, 5]], slots=[1], starts=[4]), other, threads=1)
    assert kv.kv_export(1, 4, 7).keys[0][:, 0, 0].tolist() == [1, 2, 3]
    assert other.kv_export(1, 4, 7).keys[0][:, 0, 0].tolist() == [5, 5, 3]
    del kv
    gc.collect()
    again = runnable.new_kv()
    assert len(device.sizes) == 2, "the first cache's place is taken again"
    assert not again.kv_export(1, 4, 7).keys[0].any()
    del other
    gc.collect()
    runnable.run(Phase.PREFILL, BOTH, again, threads=1)
    assert len(device.sizes) == 1


def test_a_cache_moves_to_another(runnable: CudaRunnable) -> None:
    kv, other = runnable.new_kv(), runnable.new_kv()
    runnable.run(Phase.PREFILL, BOTH, kv, threads=1)
    other.kv_import(1, kv.kv_export(0, 65, 67))
    assert other.kv_export(1, 65, 67).values[1][:, 1, 3].tolist() == [-6, -7]


def test_a_trace_of_separate_kernels(runnable: CudaRunnable) -> None:
    call = with_output(BOTH, OutputKind.TOP_K, [1], 2)
    seconds = runnable.trace(Phase.PREFILL, call, runnable.new_kv(), threads=1)
    assert runnable.kernel_names(Phase.PREFILL) == ["append", "head", "argmax", "top_k"]
    assert [round(s * 1e6) for s in seconds] == [1, 1, 0, 1]


def test_a_trace_of_a_persistent_kernel(runnable: CudaRunnable) -> None:
    kv = runnable.new_kv()
    call = with_output(make_call([[1]]), OutputKind.ARGMAX, [0])
    seconds = runnable.trace(Phase.DECODE, call, kv, threads=1)
    assert [round(s * 1e9) for s in seconds] == [2, 2, 3, 0]
    # Times of the last trace are not taken for this one's.
    call = with_output(make_call([[1]]), OutputKind.LOGITS, [0])
    assert [round(s * 1e9) for s in runnable.trace(Phase.DECODE, call, kv, threads=1)] == [
        2,
        2,
        0,
        0,
    ]


def test_a_call_beyond_the_limits_is_refused(runnable: CudaRunnable) -> None:
    with pytest.raises(InternalError, match="the call has 3 tokens, and the program takes 2"):
        runnable.run(Phase.DECODE, make_call([[1, 2, 3]]), runnable.new_kv(), threads=1)


def test_a_cancelled_call(runnable: CudaRunnable, device: QueuedDevice) -> None:
    cancel = Cancellation()
    cancel.set()
    kv = runnable.new_kv()
    with pytest.raises(UserError, match=r"error\[INF5006\]: the call was cancelled"):
        runnable.run(Phase.PREFILL, BOTH, kv, threads=1, cancel=cancel)
    assert device.launched == []


def test_a_long_prefill_is_given_up_between_pieces() -> None:
    made = signature()
    launches = made["phases"]["prefill"]["launches"]
    made["phases"]["prefill"]["launches"] = [launches[0]] * (4 * PIECE) + launches[1:]
    device, cancel = toy_device(), Cancellation()
    append = device.kernels["prefill_append_entry"]

    def cancelling(on: QueuedDevice, launch: KernelLaunch) -> None:
        append(on, launch)
        if len(on.launched) == PIECE // 2:
            cancel.set()

    device.kernels["prefill_append_entry"] = cancelling
    runnable = CudaRunnable(programs(made), device)
    with pytest.raises(UserError, match="INF5006"):
        runnable.run(Phase.PREFILL, BOTH, runnable.new_kv(), threads=1, cancel=cancel)
    assert len(device.launched) == 2 * PIECE, "what had begun has ended"


def test_closing_frees_everything(runnable: CudaRunnable, device: QueuedDevice) -> None:
    kv = [runnable.new_kv(), runnable.new_kv()]
    runnable.close()
    assert device.closed
    assert not device.sizes
    with pytest.raises(AssertionError):
        runnable.run(Phase.PREFILL, BOTH, kv[0], threads=1)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1000])
def test_bytes_go_through_pinned_pieces(count: int) -> None:
    device = QueuedDevice()
    address, staging = device.allocate(count), Staging(device, 100)
    data = WEIGHTS[:count].copy()
    staging.upload(address, data)
    assert (device.memory.read(address, np.uint8, count) == data).all()


def test_a_launch_has_pointers_to_its_arguments() -> None:
    launch = KernelLaunch(None, 1, 256, 0, [7, -1, 1 << 63])
    values = [ctypes.c_uint64.from_address(p).value for p in launch.parameters if p]
    assert values == [7, (1 << 64) - 1, 1 << 63]


def test_running_needs_no_mlir() -> None:
    code = (
        "import sys, infc.backends.cuda.runnable, infc.backends.cuda.runtime.probe\n"
        "needless = {'mlir', 'llvm', 'llvmlite', 'numba', 'scipy'} & set(sys.modules)\n"
        "sys.exit(', '.join(needless) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
