"""Estimates on a machine whose own kernels were measured: `infc estimate --target cpu`."""

from dataclasses import replace

import pytest
from kernel_summaries import product
from planted_machine import PLANTED

from infc.backends.cpu.target import resolve_cpu
from infc.cost.kernels.predict import kernel_estimate
from infc.cost.kernels.queries import DecodeAttention, Elementwise, Gemm, PrefillAttention, Query
from infc.cost.kernels.unfitted import unfitted_estimate
from infc.cost.model_shape import ModelShape
from infc.cost.roofline import estimate_work
from infc.cost.workload import Workload
from infc.driver.estimation import Model, Setup, deploy, with_conversions
from infc.target.discovery import load_backend
from infc.target.fitted import FittedClass
from infc.target.schema import Target

MEASURED = ("stream-product", "row-attention", "tile-attention", "rows")
"""Products of many rows were not."""
SHAPE = ModelShape(
    name="small",
    vocabulary=32000,
    hidden=1024,
    heads=16,
    kv_heads=4,
    head_dim=64,
    inner=2816,
    windows=(0, 0, 0, 0),
    context_length=4096,
    tied=False,
)
QUERIES: tuple[Query, ...] = (
    Gemm(1, 2048, 1024, "int8"),
    Gemm(1, 2048, 1024, "fp4"),
    DecodeAttention("bf16", "bf16", 2, 600, 16, 4, 64),
    DecodeAttention("bf16", "fp8", 1, 600, 16, 4, 64, window=128),
    PrefillAttention("bf16", "bf16", 1, 256, 16, 4, 64),
    Elementwise(8192),
)


@pytest.fixture(scope="module")
def machine() -> Target:
    return with_conversions(resolve_cpu("cpu:x86-64-amx"))


@pytest.fixture(scope="module")
def measured(machine: Target) -> Target:
    kernels = {
        name: FittedClass(constants=constants, low=-0.1, high=0.2)
        for name, constants in PLANTED.items()
        if name in MEASURED
    }
    sources = {**machine.sources, "kernels": "infc calibrate, 2026-11-22"}
    return Target.model_validate(machine.model_dump() | {"kernels": kernels, "sources": sources})


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_constants_answer_in_place_of_the_roofline(
    machine: Target, measured: Target, query: Query
) -> None:
    found = kernel_estimate(query, measured, None)
    assert found.low < found.mid < found.high < 1.3 * found.mid  # the roofline's are wider
    assert kernel_estimate(query, machine, None).mid == unfitted_estimate(query, machine).mid
    assert "launch" not in found.by_resource or found.by_resource["launch"] < 1e-5


def test_a_product_is_that_of_a_compiled_program(measured: Target) -> None:
    backend = load_backend("cpu")
    kernel = product(1, [(2048, 1024, "q8_0")], "int8")
    work = backend.work(kernel, backend.candidates(kernel, measured)[0], measured)
    expected = estimate_work(replace(work, speed=1.0), measured)
    assert kernel_estimate(Gemm(1, 2048, 1024, "int8"), measured, None).mid == expected.mid


def test_each_sequence_has_a_cache_to_read(measured: Target) -> None:
    """All in one call, whose own time is spent once."""
    one, four = (
        kernel_estimate(DecodeAttention("bf16", "bf16", batch, 900, 16, 4, 64), measured, None)
        for batch in (1, 4)
    )
    once = PLANTED["row-attention"]["call_seconds"] + measured.barrier_ns * 1e-9
    assert four.mid - once == pytest.approx(4 * (one.mid - once), rel=0.02)
    for resource in ("dram", "cores"):
        assert four.by_resource[resource] == pytest.approx(4 * one.by_resource[resource], rel=0.02)


def test_what_no_program_holds_is_left_to_the_roofline(measured: Target) -> None:
    """Rows that are no whole blocks, and a class that was not measured."""
    odd = Gemm(1, 64, 40, "int8")
    assert kernel_estimate(odd, measured, None).mid == unfitted_estimate(odd, measured).mid
    many = kernel_estimate(Gemm(512, 2048, 1024, "int8"), measured, None)
    assert many.high > 1.3 * many.mid


def test_an_estimate_says_whose_constants_it_has(machine: Target, measured: Target) -> None:
    setup = Setup(Workload(1, 64, 16), dtype="int8")
    own = deploy(Model(SHAPE), measured, setup).estimate
    assert (
        "kernels are infc's own on cpu:x86-64-amx, with the constants of infc calibrate, 2026-11-22"
    ) in own.assumptions
    assert "no serving engine: the kernels' times alone" in own.assumptions
    usual = deploy(Model(SHAPE), machine, setup).estimate
    assert not any("infc's own" in note for note in usual.assumptions)
    assert own.tpot.mid < usual.tpot.mid  # no launch for each kernel
    slower = {
        name: part.model_copy(update={"constants": {**part.constants, "memory_share": 0.4}})
        for name, part in measured.kernels.items()
        if name == "stream-product"
    }
    target = measured.model_copy(update={"kernels": {**measured.kernels, **slower}})
    assert deploy(Model(SHAPE), target, setup).estimate.tpot.mid > 1.3 * own.tpot.mid
