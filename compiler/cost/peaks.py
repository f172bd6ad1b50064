"""What the threads of a call have at most: bandwidth of a memory, arithmetic of the units."""

from __future__ import annotations

from infc.diagnostics import Code, UserError
from infc.target.schema import ComputeUnit, Memory, Target


def fastest_unit(target: Target, dtype: str) -> ComputeUnit:
    """The unit that offers the most of a dtype; raises UserError (INF3004) where none offers it."""
    offering = [unit for unit in target.compute if dtype in unit.operations_per_s]
    if not offering:
        known = sorted({name for unit in target.compute for name in unit.operations_per_s})
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name!r} computes in {', '.join(known)}, got {dtype}",
        )
    return max(offering, key=lambda unit: unit.operations_per_s[dtype] * unit.count)


def memory_bandwidth(memory: Memory, target: Target, threads: int | None) -> float:
    """Bytes per second that the threads together draw from all instances they reach."""
    peak = memory.bandwidth_bytes_per_s * used(memory.count, threads)
    if memory.unit_bandwidth_bytes_per_s is None:
        return peak
    units = used(max(unit.count for unit in target.compute), threads)
    return min(peak, memory.unit_bandwidth_bytes_per_s * units)


def used(count: int, threads: int | None) -> int:
    """Instances that so many threads keep busy."""
    return count if threads is None else min(count, threads)
