"""Seconds of one kernel on a target, with bounds.

With a profile the formulas of the kernel classes answer, and the bounds are the residuals of the
fit: `low` and `high` hold 80% of measurements like those it was fitted to. They widen where a fact
of the target is not the one that the constants were fitted with. Nothing tells how well constants
carry over to another chip before its kernels are measured; the rule is that the effect of a fact on
a kernel is known up to `FACT_DOUBT` of itself::

    added variance of ln(seconds) = sum over facts of (FACT_DOUBT * share * ln(fact / fact then))^2

with `share` the part of the kernel's busy seconds that the fact governs. Without a profile the
roofline answers with the efficiencies that the target file states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from infc.cost.estimate import Estimate, binding_resource
from infc.cost.kernels.machine import Machine, machine_of
from infc.cost.kernels.profile import FittedFacts, Profile
from infc.cost.kernels.queries import Query
from infc.cost.kernels.registry import class_of
from infc.cost.kernels.unfitted import unfitted_estimate
from infc.target.schema import Target

FACT_DOUBT: Final = 0.25
"""Standard deviation of an elasticity; see docs/cost-model.md for where it comes from."""
_NORMAL_90: Final = 1.2815515655446004
"""Standard deviations between the median and the 90% quantile."""


def kernel_estimate(query: Query, target: Target, profile: Profile | None) -> Estimate:
    """The time of one kernel on one chip (a collective: on all that take part).

    Raises:
        UserError: the target has no unit for the dtype, or no link for a collective (INF3004).
    """
    kernel_class = class_of(query)
    fitted = None if profile is None else profile.classes.get(kernel_class.name)
    if profile is None or fitted is None:
        return unfitted_estimate(query, target)
    machine = machine_of(target)
    columns = kernel_class.columns([query], machine)
    times = kernel_class.times(columns, machine, fitted.values)
    mid = float(times.seconds[0])
    busy = {name: float(seconds[0]) for name, seconds in times.busy.items()}
    dtype = kernel_class.dtype(query, machine)
    low, high = fitted.quantiles(kernel_class.regimes[int(times.regime[0])])
    doubt = _NORMAL_90 * math.sqrt(added_variance(busy, dtype, machine, profile.facts))
    names = {
        "memory": machine.memory,
        "compute": machine.units[dtype].name if dtype else "compute",
        "link": machine.link,
        "launch": "launch",
    }
    by_resource = {names[name]: seconds for name, seconds in busy.items() if seconds > 0}
    return Estimate(
        mid * math.exp(-math.hypot(low, doubt)),
        mid,
        mid * math.exp(math.hypot(high, doubt)),
        binding_resource(by_resource),
        by_resource,
        None if target.power_watts is None else target.power_watts * mid,
        None if target.price_usd_per_hour is None else target.price_usd_per_hour * mid / 3600.0,
    )


def added_variance(
    busy: Mapping[str, float], dtype: str, machine: Machine, then: FittedFacts
) -> float:
    """Variance of ln(seconds) for the facts that differ from those of the fit.

    `busy` has seconds by `memory`, `compute`, `link` and `launch`; `dtype` is of the arithmetic,
    empty where none matters.
    """
    total = sum(busy.values())
    if total <= 0:
        return 0.0
    ratios = {
        "memory": _ratio(machine.bytes_per_s, then.bytes_per_s),
        "launch": _ratio(machine.launch_seconds, then.launch_seconds),
        "link": _ratio(machine.link_bytes_per_s, then.link_bytes_per_s),
    }
    if dtype:
        operations_per_s = machine.units[dtype].operations_per_s
        ratios["compute"] = _ratio(operations_per_s, then.operations_per_s.get(dtype, 0.0))
    return sum(
        (FACT_DOUBT * seconds / total * ratios[resource]) ** 2 for resource, seconds in busy.items()
    )


def _ratio(now: float, then: float) -> float:
    """`ln(now / then)`; a fact that there was not counts as one twice as large."""
    if now <= 0:
        return 0.0
    return math.log(now / then) if then > 0 else math.log(2.0)
