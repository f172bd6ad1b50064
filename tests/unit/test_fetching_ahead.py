"""Weights that are fetched through barriers: what that hides, and what it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_summaries import product

from infc.backends.cuda.mappings import kernel_candidates, kernel_work
from infc.cost.ahead import hidden_seconds
from infc.driver.prediction import Turns, program_seconds
from infc.target.discovery import find_target
from infc.target.schema import Target

SECONDS = st.floats(0.0, 1.0)
ENDLESS = 10**18
TARGET = find_target("cuda:sm_90a")
FETCHED_BYTES = 10_000_000


def program(ring_bytes: int, *, launches: int = 40, bytes_per_s: int = ENDLESS) -> list[Any]:
    """A step of products that do nothing but read, each with a barrier behind it."""
    work = {"bytes": {"hbm": FETCHED_BYTES}, "operations": {}, "barriers": 1, "rows": 1}
    ahead = {"bytes": ring_bytes, "bytes_per_s": bytes_per_s}
    return [{"kind": "matmul", "launches": launches, **work, "ahead": ahead}]


def seconds(kernels: list[Any], target: Target = TARGET) -> float:
    return program_seconds(kernels, "decode", [Turns(1, 1, 9)], target, None).mid


def parts(target: Target, launches: int = 40) -> tuple[float, float, float]:
    """Launch, memory, barriers of `program`."""
    hbm = target.memory("hbm")
    memory = FETCHED_BYTES / (hbm.bandwidth_bytes_per_s * hbm.efficiency.mid)
    return target.launch_ns * 1e-9, launches * memory, launches * target.barrier_ns * 1e-9


@pytest.mark.parametrize("barrier_ns", [100.0, 1200.0, 20000.0])
def test_no_ring_is_the_sum_and_an_endless_one_the_longer(barrier_ns: float) -> None:
    target = TARGET.model_copy(update={"barrier_ns": barrier_ns})
    launch, memory, barriers = parts(target)
    assert seconds(program(0), target) == pytest.approx(launch + memory + barriers)
    assert seconds(program(ENDLESS), target) == pytest.approx(launch + max(memory, barriers))


def test_a_ring_hides_what_it_holds_beyond_the_latency() -> None:
    target = TARGET.model_copy(update={"barrier_ns": 2000.0})
    launch, memory, barriers = parts(target)
    hbm = target.memory("hbm")
    assert hbm.latency_ns == 228
    rate = hbm.bandwidth_bytes_per_s * hbm.efficiency.mid
    held = round(rate * 1.228e-6)
    found = seconds(program(held), target)
    assert found == pytest.approx(launch + memory + barriers - 40 * 1e-6, rel=1e-6)


def test_what_was_fetched_is_still_to_be_used() -> None:
    """Units that are a quarter faster than memory catch up no more than a fifth of its time."""
    target = TARGET.model_copy(update={"barrier_ns": 20000.0})
    launch, memory, barriers = parts(target)
    using = round(40 * FETCHED_BYTES / memory * 1.25)
    found = seconds(program(ENDLESS, bytes_per_s=using), target)
    assert found == pytest.approx(launch + barriers + memory - memory / 5, rel=1e-6)


@pytest.mark.parametrize(
    ("barrier_ns", "ring_bytes", "binds"),
    [(100.0, ENDLESS, "hbm"), (20000.0, ENDLESS, "barrier"), (2000.0, 4_000_000, "hbm")],
)
def test_what_binds_is_what_would_buy_time(barrier_ns: float, ring_bytes: int, binds: str) -> None:
    """Of memory and barriers the one that is hidden behind the other binds nothing."""
    target = TARGET.model_copy(update={"barrier_ns": barrier_ns})
    kernels, turns = program(ring_bytes), [Turns(1, 1, 9)]
    found = program_seconds(kernels, "decode", turns, target, None)
    assert found.bound == binds
    assert sum(found.by_resource.values()) == pytest.approx(found.mid)


@given(SECONDS, st.integers(1, 100), st.floats(-1.0, 1.0), SECONDS, SECONDS)
def test_no_more_is_hidden_than_there_is(
    waits: float, kernels: int, room: float, fetching: float, using: float
) -> None:
    hidden = hidden_seconds(waits=waits, kernels=kernels, room=room, fetching=fetching, using=using)
    assert 0 <= hidden <= waits
    assert hidden <= max(0.0, fetching - using)
    deeper = hidden_seconds(
        waits=waits, kernels=kernels, room=room + 1e-3, fetching=fetching, using=using
    )
    assert deeper >= hidden


def test_streamed_products_of_a_step_are_fetched_ahead() -> None:
    kernel = product(1, [(2048, 2048, "q4_k")], "bf16")
    mapping, *tiled = kernel_candidates(kernel, TARGET)
    ahead = kernel_work(kernel, mapping, TARGET).ahead
    assert ahead is not None
    assert 132 * 140_000 < ahead.bytes < 132 * 170_000
    # 43 instructions for 288 bytes of the file, four a clock of 1.755 GHz on each multiprocessor.
    assert ahead.bytes_per_s == pytest.approx(132 * 288 / 43 * 4 * 1.755e9, rel=0.01)
    assert all(kernel_work(kernel, other, TARGET).ahead is None for other in tiled)
    prompt = replace(kernel, phase="prefill")
    assert kernel_work(prompt, mapping, TARGET).ahead is None
