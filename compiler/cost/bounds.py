"""How sure an estimate of served requests is, on the target it was fitted on and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from infc.cost.engine import EngineProfile
from infc.cost.estimate import Estimate
from infc.cost.kernels.machine import HOPS, machine_of
from infc.cost.kernels.predict import added_variance
from infc.cost.kernels.profile import Profile
from infc.cost.programs import Programs
from infc.cost.transformer import Split
from infc.target.schema import Target

ENGINE = "engine"
"""The resource that an engine's own time is booked under."""
QUEUE = "queue"
"""The resource that waiting for other requests to end is booked under."""
_NORMAL_90 = 1.2815515655446004
"""Standard deviations between the median and the 90% quantile."""


@dataclass(frozen=True)
class Machinery:
    """On what a model runs: everything that turns kernels into seconds.

    Attributes:
        target: the chip.
        profile: constants of its kernels; None leaves the roofline.
        engine: that serves; None counts the kernels alone, each launched by itself.
        programs: that run in place of single kernels, where a backend makes them.
    """

    target: Target
    profile: Profile | None = None
    engine: EngineProfile | None = None
    programs: Programs | None = None


def bounded(times: Estimate, phase: str, split: Split, machinery: Machinery) -> Estimate:
    """`times` with `low` and `high` that hold 80% of measurements, where an engine tells.

    On the target that the engine was measured on these are the residuals of its fit. Elsewhere the
    doubt about the target's facts is added, and once more `elsewhere`: other chips come with other
    versions of an engine. Without an engine the bounds of the kernels stay.
    """
    engine = machinery.engine
    if engine is None or times.mid <= 0:
        return times
    residuals = engine.residuals[phase]
    low, high = -residuals.low, residuals.high
    if machinery.target.name != engine.target:
        low, high = (math.hypot(bound, _NORMAL_90 * residuals.elsewhere) for bound in (low, high))
    if machinery.profile is None:
        low = math.hypot(low, math.log(times.mid / times.low) if times.low > 0 else math.inf)
        high = math.hypot(high, math.log(times.high / times.mid))
    else:
        doubt = _NORMAL_90 * math.sqrt(_variance(times.by_resource, split, machinery))
        low, high = math.hypot(low, doubt), math.hypot(high, doubt)
    return replace(times, low=times.mid * math.exp(-low), high=times.mid * math.exp(high))


def _variance(by_resource: Mapping[str, float], split: Split, machinery: Machinery) -> float:
    """Variance of ln(seconds) for the facts of the target that differ from those of the fit."""
    if machinery.profile is None:
        return 0.0
    machine = machine_of(machinery.target)
    roles = {machine.memory: "memory", machine.link: "link", HOPS: "hops", "launch": "launch"}
    busy: dict[str, float] = {}
    for name, seconds in by_resource.items():
        if name not in (ENGINE, QUEUE):
            role = roles.get(name, "compute")
            busy[role] = busy.get(role, 0.0) + seconds
    return added_variance(busy, split.dtype, machine, machinery.profile.facts)
