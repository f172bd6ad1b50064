"""The roofline and the arithmetic of estimates."""

import pytest

from infc.cost.estimate import total
from infc.cost.roofline import Work, estimate_work
from infc.cost.workload import Workload
from infc.diagnostics import InternalError, UserError
from infc.target.loader import parse_target
from infc.target.schema import Target

TEXT = """
name = "toy"
backend = "made-up"
kind = "cpu"
source = "round figures"
launch_ns = 1000
barrier_ns = 100
power_watts = 50
price_usd_per_hour = 3.6

[[memories]]
name = "dram"
size_bytes = "1GiB"
bandwidth_bytes_per_s = "100GB/s"
unit_bandwidth_bytes_per_s = "40GB/s"
managed_by = "hardware"
efficiency = { low = 0.5, mid = 0.8, high = 1.0 }

[[memories]]
name = "l2"
size_bytes = "1MiB"
count = 4
bandwidth_bytes_per_s = "100GB/s"
managed_by = "hardware"
efficiency = { low = 0.5, mid = 0.5, high = 0.5 }

[[compute]]
name = "cores"
count = 4
operations_per_s = { int8 = "200GOP/s", f32 = "50GOP/s" }
efficiency = { low = 0.25, mid = 0.5, high = 1.0 }
"""


@pytest.fixture
def target() -> Target:
    return parse_target(TEXT, location="toy.toml")


def test_memory_bound_work(target: Target) -> None:
    work = Work(bytes={"dram": 40e9}, operations={"int8": 4e9})
    estimate = estimate_work(work, target, threads=1)
    assert estimate.low == pytest.approx(1.0)
    assert estimate.mid == pytest.approx(1.25)
    # The worst: both at their worst, one after the other.
    assert estimate.high == pytest.approx(2.0 + 0.08)
    assert estimate.bound == "dram"
    assert estimate.by_resource == pytest.approx({"dram": 1.25, "cores": 0.04})


def test_threads_share_the_memory_and_add_arithmetic(target: Target) -> None:
    memory, arithmetic = Work(bytes={"dram": 100e9}), Work(operations={"f32": 50e9})
    lows = [estimate_work(memory, target, threads).low for threads in (1, 2, 4, 64, None)]
    assert lows == pytest.approx([2.5, 1.25, 1.0, 1.0, 1.0])
    lows = [estimate_work(arithmetic, target, threads).low for threads in (1, 2, 4, 64, None)]
    assert lows == pytest.approx([1.0, 0.5, 0.25, 0.25, 0.25])


def test_a_memory_of_each_core_scales_with_the_threads(target: Target) -> None:
    work = Work(bytes={"l2": 100e9})
    assert estimate_work(work, target, threads=1).mid == pytest.approx(2.0)
    assert estimate_work(work, target, threads=4).mid == pytest.approx(0.5)


def test_dtypes_of_one_unit_take_turns(target: Target) -> None:
    work = Work(operations={"int8": 200e9, "f32": 50e9})
    assert estimate_work(work, target, threads=1).low == pytest.approx(2.0)


def test_launches_and_barriers_overlap_with_nothing(target: Target) -> None:
    estimate = estimate_work(Work(bytes={"dram": 40.0}, launches=2, barriers=5), target, 1)
    assert estimate.low == pytest.approx(2.5e-6 + 1e-9)
    assert estimate.bound == "launch"
    assert estimate.by_resource["barrier"] == pytest.approx(0.5e-6)


def test_energy_and_money(target: Target) -> None:
    estimate = estimate_work(Work(bytes={"dram": 80e9}), target)
    assert estimate.mid == pytest.approx(1.0)
    assert estimate.energy_joules == pytest.approx(50.0)
    assert estimate.dollars == pytest.approx(0.001)
    unknown = target.model_copy(update={"power_watts": None, "price_usd_per_hour": None})
    estimate = estimate_work(Work(bytes={"dram": 80e9}), unknown)
    assert (estimate.energy_joules, estimate.dollars) == (None, None)


def test_estimates_add_up_and_the_busiest_resource_of_all_binds(target: Target) -> None:
    loading = estimate_work(Work(bytes={"dram": 40e9}), target, 1)
    computing = estimate_work(Work(operations={"int8": 40e9}), target, 1)
    assert (loading.bound, computing.bound) == ("dram", "cores")
    both = loading + computing.scale(10)
    assert both.mid == pytest.approx(loading.mid + 10 * computing.mid)
    assert both.low == pytest.approx(loading.low + 10 * computing.low)
    assert both.high == pytest.approx(loading.high + 10 * computing.high)
    assert both.bound == "cores"
    assert both.energy_joules == pytest.approx(50.0 * both.mid)


def test_nothing_takes_no_time(target: Target) -> None:
    nothing = total([])
    assert (nothing.low, nothing.mid, nothing.high, nothing.bound) == (0, 0, 0, "")
    assert estimate_work(Work(), target).high == 0


def test_a_sum_with_an_unknown_part_is_unknown(target: Target) -> None:
    part = estimate_work(Work(bytes={"dram": 1.0}), target)
    unknown = target.model_copy(update={"power_watts": None})
    assert (part + estimate_work(Work(bytes={"dram": 1.0}), unknown)).energy_joules is None


def test_what_a_target_cannot_compute_or_hold(target: Target) -> None:
    with pytest.raises(UserError, match="target 'toy' computes in f32, int8, got fp8"):
        estimate_work(Work(operations={"fp8": 1.0}), target)
    with pytest.raises(InternalError, match="expected one of dram, l2, got 'hbm'"):
        estimate_work(Work(bytes={"hbm": 1.0}), target)
    with pytest.raises(UserError, match="threads must be at least 1, got 0"):
        estimate_work(Work(), target, threads=0)


def test_a_workload_has_sensible_figures() -> None:
    assert Workload(prompt=500, new_tokens=100, context=10).mean_decode_context == 560
    with pytest.raises(UserError, match="batch must be at least 1, got 0"):
        Workload(batch=0)
