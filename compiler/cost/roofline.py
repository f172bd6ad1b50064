"""The roofline: work takes as long as the busiest resource, between perfect overlap and none.

Every memory and compute unit is busy for its bytes or operations over its peak times an efficiency.
The target gives a range of efficiencies. The lower bound takes the best ones and assumes that all
resources work at the same time; the upper bound takes the worst ones and assumes that they take
turns; the expected time lies between with the usual ones and full overlap. Launches and barriers
overlap with nothing. (Williams, Waterman, Patterson: Roofline, doi 10.1145/1498765.1498785.)

Where a target has the constants of a kernel's class, measured on itself, these answer instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from infc.cost.ahead import Ahead
from infc.cost.calibrated import calibrated_estimate
from infc.cost.estimate import Estimate, binding_resource
from infc.cost.peaks import fastest_unit, memory_bandwidth, used
from infc.diagnostics import Code, InternalError, UserError
from infc.target.schema import ComputeUnit, Memory, Target


@dataclass(frozen=True)
class Way:
    """How calls of a kernel run that have some number of rows or more.

    Attributes:
        rows: the fewest of them.
        kernel: the class that such calls are of.
        height: rows that share a pass over the weights.
    """

    rows: int
    kernel: str
    height: int


@dataclass(frozen=True)
class Work:
    """What a kernel or a program asks of a machine.

    Attributes:
        bytes: moved from or to each memory, by the memory's name, over all its instances.
        operations: by dtype of the arithmetic; a multiply-add counts as two.
        launches: of programs or kernels.
        barriers: of all compute units.
        kernel: the class that it is one call of; empty where it is none, or several.
        sizes: that the class asks for.
        speed: how many times as fast as usual it is said to be, by whoever made the kernel.
        ways: by their fewest rows, where calls with more rows run another way; empty where all run
            alike. `kernel` and `sizes` are those of this work's own rows.
        ahead: how its weights are fetched while units wait, where they are; see `infc.cost.ahead`.
            It changes no time of the kernel, but that of the program.
    """

    bytes: Mapping[str, float] = field(default_factory=dict)
    operations: Mapping[str, float] = field(default_factory=dict)
    launches: int = 0
    barriers: int = 0
    kernel: str = ""
    sizes: Mapping[str, float] = field(default_factory=dict)
    speed: float = 1.0
    ways: tuple[Way, ...] = ()
    ahead: Ahead | None = None


def estimate_work(work: Work, target: Target, threads: int | None = None) -> Estimate:
    """The time of some work on one chip.

    Args:
        work: what is to be done.
        target: where.
        threads: instances of the compute units that take part; None means all. More than there are
            bring nothing.

    Raises:
        UserError: no compute unit offers one of the dtypes (INF3004), or `threads` is below 1.
        InternalError: the work names a memory that the target does not have.
    """
    if threads is not None and threads < 1:
        raise UserError(Code.OPTION, f"threads must be at least 1, got {threads}")
    if work.speed != 1.0:
        usual = estimate_work(replace(work, speed=1.0), target, threads)
        return usual.scale(1.0 / work.speed)
    if work.kernel in target.kernels:
        return calibrated_estimate(work, target, threads)
    peaks: dict[str, tuple[float, Memory | ComputeUnit]] = {}
    for name, moved in work.bytes.items():
        memory = _memory(target, name)
        peaks[name] = (moved / memory_bandwidth(memory, target, threads), memory)
    for dtype, operations in work.operations.items():
        unit = fastest_unit(target, dtype)
        seconds = operations / (unit.operations_per_s[dtype] * used(unit.count, threads))
        before = peaks[unit.name][0] if unit.name in peaks else 0.0
        peaks[unit.name] = (before + seconds, unit)

    fixed = {
        "launch": work.launches * target.launch_ns * 1e-9,
        "barrier": work.barriers * target.barrier_ns * 1e-9,
    }
    overhead = sum(fixed.values())
    low = max((peak / part.efficiency.high for peak, part in peaks.values()), default=0.0)
    high = sum(peak / part.efficiency.low for peak, part in peaks.values())
    busy = {name: peak / part.efficiency.mid for name, (peak, part) in peaks.items()}
    mid = overhead + max(busy.values(), default=0.0)
    by_resource = {name: seconds for name, seconds in (busy | fixed).items() if seconds > 0}
    return Estimate(
        overhead + low,
        mid,
        overhead + high,
        binding_resource(by_resource),
        by_resource,
        None if target.power_watts is None else target.power_watts * mid,
        None if target.price_usd_per_hour is None else target.price_usd_per_hour * mid / 3600.0,
    )


def _memory(target: Target, name: str) -> Memory:
    try:
        return target.memory(name)
    except KeyError:
        known = ", ".join(memory.name for memory in target.memories)
        raise InternalError(
            f"work names a memory of target {target.name!r}: expected one of {known}, got {name!r}"
        ) from None
