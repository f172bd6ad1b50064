"""The space of mappings of a product: large, legal, the good guesses first, the same bits."""

import random

import numpy as np
import pytest
from kernel_summaries import product

from infc.backends.cpu.backend import CpuBackend
from infc.backends.cpu.kernels.matmul import STACK_LIMIT_BYTES, candidates, stack_bytes
from infc.backends.cpu.lowering.forms import matmul_mapping_of
from infc.backends.cpu.mappings import kernel_candidates, matmul_spec
from infc.backends.cpu.measure import KernelBench
from infc.backends.cpu.target import isa_of
from infc.target.backend import KernelSummary

TARGETS = ("cpu:x86-64-amx", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:aarch64")
SHAPES = {
    "decode": product(1, [(1024, 640, "q5_0"), (256, 640, "q8_0")], "int8"),
    "float decode": product(1, [(2048, 2048, "bf16")], "f32"),
    "batch": product(8, [(2048, 640, "q4_0")] * 2, "int8", gate="silu"),
    "prefill": product(512, [(2048, 640, "q5_0")] * 2, "int8", gate="gelu_tanh"),
}
BF16 = {
    "wide": product(512, [(2048, 640, "q5_0")] * 2, "bf16", gate="gelu_tanh", out="abf16"),
    "deep": product(512, [(640, 2048, "q6_k")], "bf16"),
    "deeper": product(512, [(2048, 5632, "q4_0")], "bf16"),
}


@pytest.mark.parametrize(
    ("target_name", "kernel"),
    [
        *((target, kernel) for target in TARGETS for kernel in SHAPES.values()),
        *(("cpu:x86-64-amx", kernel) for kernel in BF16.values()),
    ],
)
def test_products_have_many_mappings_that_fit_the_machine(
    target_name: str, kernel: KernelSummary
) -> None:
    target = CpuBackend().resolve(target_name)
    isa, spec = isa_of(target), matmul_spec(kernel)
    own = [each for each in kernel_candidates(kernel, target) if "provider" not in each]
    mappings = [matmul_mapping_of(each) for each in own]
    guesses = candidates(spec, isa)
    assert mappings[: len(guesses)] == guesses
    assert len(mappings) == len(set(mappings))
    if isa.vector_bytes >= 64:  # half as many registers hold half as many tiles
        assert len(mappings) >= 200
    room = min(STACK_LIMIT_BYTES, target.memory("l2").size_bytes)
    for mapping in mappings[len(guesses) :]:
        staged = stack_bytes(spec, isa, mapping.row_tile, mapping.col_tile)
        assert mapping.col_tile == 2 or kernel.rows == 1 or staged <= room


@pytest.mark.parametrize(
    "kernel",
    [
        product(1, [(330, 256, "q6_k"), (48, 256, "q8_0")], "int8"),
        product(1, [(130, 256, "bf16")], "f32"),
        product(13, [(120, 128, "q4_0")] * 2, "int8", gate="gelu_tanh"),
        product(37, [(200, 96, "q5_0")], "bf16"),
    ],
)
def test_a_sample_of_the_mappings_gives_the_same_bits(kernel: KernelSummary) -> None:
    target = CpuBackend().resolve("cpu")
    if "bf16" in kernel.operations and not isa_of(target).bf16_dot:
        pytest.skip("this host multiplies no bf16")
    mappings = list(kernel_candidates(kernel, target))
    chosen = [mappings[0], *random.Random(5).sample(mappings[1:], 11)]
    with KernelBench(kernel, target, threads=2, cold=False) as bench:
        for mapping in chosen:
            bench.add(mapping)
        results = [bench.results(number) for number in range(len(chosen))]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert np.isfinite(results[0].view(np.float32)).all()
    assert results[0].any()
