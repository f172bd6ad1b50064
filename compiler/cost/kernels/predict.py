"""Seconds of one kernel on a target, with bounds.

With a profile the formulas of the kernel classes answer, and the bounds are the residuals of the
fit: `low` and `high` hold 80% of measurements like those it was fitted to. They widen where a fact
of the target is not the one that the constants were fitted with. Nothing tells how well constants
carry over to another chip before its kernels are measured; the rule is that the effect of a fact on
a kernel is known up to `FACT_DOUBT` of itself::

    added variance of ln(seconds) = sum over facts of (FACT_DOUBT * share * ln(fact / fact then))^2

with `share` the part of the kernel's busy seconds that the fact governs. On a target whose own
kernels were measured these answer, else, without a profile, the roofline with the efficiencies that
the target file states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from infc.cost.estimate import Estimate, binding_resource
from infc.cost.kernels.classes import KernelClass
from infc.cost.kernels.machine import HOPS, Machine, machine_of
from infc.cost.kernels.profile import ClassProfile, FittedFacts, Profile
from infc.cost.kernels.queries import Query
from infc.cost.kernels.registry import CLASSES, class_of
from infc.cost.kernels.unfitted import unfitted_estimate
from infc.target.schema import Target

FACT_DOUBT: Final = 0.25
"""Standard deviation of an elasticity; see docs/cost-model.md for where it comes from."""
_NORMAL_90: Final = 1.2815515655446004
"""Standard deviations between the median and the 90% quantile."""


def kernel_estimate(query: Query, target: Target, profile: Profile | None) -> Estimate:
    """The time of one kernel on one chip (a collective: on each of those that take part).

    Raises:
        UserError: the target has no unit for the dtype, or no link for a collective (INF3004).
    """
    return kernel_estimates([query], target, profile)[0]


def kernel_estimates(
    queries: Sequence[Query], target: Target, profile: Profile | None
) -> list[Estimate]:
    """The time of each kernel, as `kernel_estimate`; many together cost a few microseconds each."""
    machine = machine_of(target)
    by_class: dict[str, list[int]] = {}
    for index, query in enumerate(queries):
        by_class.setdefault(class_of(query).name, []).append(index)
    found: dict[int, Estimate] = {}
    for name, indices in by_class.items():
        asked = [queries[index] for index in indices]
        fitted = None if profile is None else profile.classes.get(name)
        if profile is None and target.kernels:
            # Asks the backend, which most estimates need not wait for.
            from infc.cost.kernels.own import own_estimate

            estimates = [own_estimate(query, target) for query in asked]
        elif profile is None or fitted is None:
            estimates = [unfitted_estimate(query, target) for query in asked]
        else:
            estimates = _fitted(CLASSES[name], asked, machine, fitted, profile.facts)
        found.update(zip(indices, estimates, strict=True))
    return [_priced(found[index], target) for index in range(len(queries))]


def _fitted(
    kernel_class: KernelClass[Any],
    queries: list[Query],
    machine: Machine,
    fitted: ClassProfile,
    then: FittedFacts,
) -> list[Estimate]:
    """Kernels of one class by its formula."""
    times = kernel_class.times(kernel_class.columns(queries, machine), machine, fitted.values)
    quantiles = [fitted.quantiles(regime) for regime in kernel_class.regimes]
    seconds, regimes = times.seconds.tolist(), times.regime.tolist()
    busy = {resource: column.tolist() for resource, column in times.busy.items()}
    estimates = []
    for row, query in enumerate(queries):
        dtype = kernel_class.dtype(query, machine)
        each = {resource: column[row] for resource, column in busy.items()}
        low, high = quantiles[regimes[row]]
        doubt = _NORMAL_90 * math.sqrt(added_variance(each, dtype, machine, then))
        names = {
            "memory": machine.memory,
            "compute": machine.units[dtype].name if dtype else "",
            "link": machine.link,
            "hops": HOPS,
            "launch": "launch",
        }
        by_resource = {names[name]: value for name, value in each.items() if value > 0}
        estimates.append(
            Estimate(
                seconds[row] * math.exp(-math.hypot(low, doubt)),
                seconds[row],
                seconds[row] * math.exp(math.hypot(high, doubt)),
                binding_resource(by_resource),
                by_resource,
            )
        )
    return estimates


def _priced(estimate: Estimate, target: Target) -> Estimate:
    """With the energy and the rent of one chip for the expected time."""
    watts, dollars_per_hour = target.power_watts, target.price_usd_per_hour
    return replace(
        estimate,
        energy_joules=None if watts is None else watts * estimate.mid,
        dollars=None if dollars_per_hour is None else dollars_per_hour * estimate.mid / 3600.0,
    )


def added_variance(
    busy: Mapping[str, float], dtype: str, machine: Machine, then: FittedFacts
) -> float:
    """Variance of ln(seconds) for the facts that differ from those of the fit.

    `busy` has seconds by `memory`, `compute`, `link`, `hops` and `launch`; `dtype` is of the
    arithmetic, empty where none matters.
    """
    total = sum(busy.values())
    if total <= 0:
        return 0.0
    ratios = {
        "memory": _ratio(machine.bytes_per_s, then.bytes_per_s),
        "launch": _ratio(machine.launch_seconds, then.launch_seconds),
        "link": _ratio(machine.link_bytes_per_s, then.link_bytes_per_s),
        "hops": _ratio(machine.link_seconds, then.link_seconds),
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
