"""Kernels timed alone on this host."""

import pytest
from kernel_summaries import attention, product

from infc.backends.cpu.backend import CpuBackend
from infc.backends.cpu.mappings import kernel_candidates
from infc.backends.cpu.measure import kernel_timer, measurable
from infc.diagnostics import Code, UserError
from infc.target.backend import KernelSummary
from infc.target.discovery import resolve_target

KERNELS = [
    product(1, [(64, 64, "q8_0"), (33, 64, "q5_0")], "int8"),
    product(9, [(64, 64, "q4_0")] * 2, "int8", gate="silu"),
    product(2, [(40, 48, "f16")], "f32"),
    attention("decode", 2, 50),
    attention("prefill", 20, 20),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_call_of_every_mapping_takes_some_time(kernel: KernelSummary, threads: int) -> None:
    _, target = resolve_target("cpu")
    mappings = kernel_candidates(kernel, target)[:2]
    with kernel_timer(kernel, mappings, target, threads=threads, cold=False) as timed:
        for repetitions in (6, 1):
            times = timed(repetitions)
            assert [len(each) for each in times] == [repetitions] * len(mappings)
            assert all(0 < seconds < 1 for each in times for seconds in each)


def test_only_this_host_measures() -> None:
    backend = CpuBackend()
    target = backend.resolve("cpu:x86-64-v3")
    kernel = KERNELS[0]
    timer = backend.timer(kernel, backend.candidates(kernel, target), target, threads=1)
    with pytest.raises(UserError) as caught, timer:
        pass
    assert caught.value.diagnostic.code is Code.TARGET_UNSUPPORTED
    assert caught.value.diagnostic.message == (
        "kernels are measured on this host: expected target 'cpu', got 'cpu:x86-64-v3'"
    )
    assert not measurable(KernelSummary("rows", "decode", 1, 1, {"f32": 1.0}, 0, 0, {}))
