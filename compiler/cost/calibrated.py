"""Seconds of a kernel call on a target whose own kernels were measured.

`low` and `high` are the 10% and 90% quantiles of the measurements about the formula, as they were
when the machine was calibrated. The memory is the one that holds the model, all arithmetic that of
the fastest unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from infc.cost.estimate import Estimate, binding_resource
from infc.cost.kernels.classes import Columns
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.threaded import THREADED
from infc.cost.peaks import fastest_unit, memory_bandwidth, used
from infc.target.schema import Target

if TYPE_CHECKING:  # the roofline asks this module for what it knows better
    from infc.cost.roofline import Work

_VECTORS: Final = "f32"


def calibrated_estimate(work: Work, target: Target, threads: int | None) -> Estimate:
    """The time of one call of a kernel whose class the target has constants for.

    Args:
        work: with `kernel` and its `sizes`.
        target: with the constants.
        threads: as in `estimate_work`.
    """
    fitted = target.kernels[work.kernel]
    columns = call_columns([(work, threads)], target)
    times = THREADED[work.kernel].times(columns, machine_of(target), fitted.constants)
    own = float(times.busy["launch"][0]) - float(columns["barrier_seconds"][0])
    mid = float(times.seconds[0])
    launches = work.launches * target.launch_ns * 1e-9
    busy: Mapping[str, float] = {
        target.holding_memory().name: float(times.busy["memory"][0]),
        fastest_unit(target, _arithmetic(work)).name: float(times.busy["compute"][0]),
        "launch": launches + own,
        "barrier": float(columns["barrier_seconds"][0]),
    }
    busy = {name: seconds for name, seconds in busy.items() if seconds > 0}
    found = Estimate(
        launches + mid * math.exp(fitted.low),
        launches + mid,
        launches + mid * math.exp(fitted.high),
        binding_resource(busy),
        busy,
    )
    watts, dollars = target.power_watts, target.price_usd_per_hour
    return replace(
        found,
        energy_joules=None if watts is None else watts * found.mid,
        dollars=None if dollars is None else dollars * found.mid / 3600.0,
    )


def call_columns(calls: Sequence[tuple[Work, int | None]], target: Target) -> Columns:
    """What the formulas of one class ask of calls and threads, `float64[calls]` each."""
    rows = [_call_row(work, target, threads) for work, threads in calls]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def _call_row(work: Work, target: Target, threads: int | None) -> dict[str, float]:
    memory, dtype = target.holding_memory(), _arithmetic(work)
    unit, vectors = fastest_unit(target, dtype), fastest_unit(target, _VECTORS)
    return {
        **work.sizes,
        "threads": used(unit.count, threads),
        "bytes": work.bytes.get(memory.name, 0.0),
        "bytes_per_s": memory_bandwidth(memory, target, threads),
        "peak": unit.operations_per_s[dtype],
        "vector_peak": vectors.operations_per_s[_VECTORS],
        "barrier_seconds": work.barriers * target.barrier_ns * 1e-9,
    }


def _arithmetic(work: Work) -> str:
    """The dtype of the products: what is in float32 beside another one is work around them."""
    return next((dtype for dtype in sorted(work.operations) if dtype != _VECTORS), _VECTORS)
