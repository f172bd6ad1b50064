"""The facts of a target that the kernel models read, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infc.diagnostics import Code, UserError
from infc.target.schema import Target

HOPS = "link latency"
"""The resource that the latency of links is booked under."""


@dataclass(frozen=True)
class Unit:
    """The compute units that are fastest in one dtype.

    Attributes:
        name: of the unit.
        count: its instances, over which the tiles of a kernel are spread.
        operations_per_s: of all instances together, at peak.
    """

    name: str
    count: int
    operations_per_s: float


@dataclass(frozen=True)
class Machine:
    """One chip, all its instances taken together.

    Attributes:
        name: of the target.
        units: by dtype.
        memory: name of the one that holds weights and KV cache, the main memory.
        bytes_per_s: of the main memory, at peak.
        cache_bytes: of the memory between that one and the compute units; 0 where there is none.
        launch_seconds: from asking for a kernel to its first instruction.
        link: name of what joins the chips of one machine; empty where nothing does.
        link_bytes_per_s: of one chip, in one direction.
        link_seconds: latency of one hop.
    """

    name: str
    units: Mapping[str, Unit]
    memory: str
    bytes_per_s: float
    cache_bytes: float
    launch_seconds: float
    link: str = ""
    link_bytes_per_s: float = 0.0
    link_seconds: float = 0.0

    def unit(self, dtype: str) -> Unit:
        """The fastest compute unit for a dtype; raises UserError (INF3004)."""
        if dtype not in self.units:
            raise UserError(
                Code.TARGET_UNSUPPORTED,
                f"target {self.name!r} computes in {', '.join(sorted(self.units))}, got {dtype}",
            )
        return self.units[dtype]


def machine_of(target: Target) -> Machine:
    """What the kernel models read from a target."""
    units: dict[str, Unit] = {}
    for part in target.compute:
        for dtype, operations_per_s in part.operations_per_s.items():
            unit = Unit(part.name, part.count, operations_per_s * part.count)
            if dtype not in units or units[dtype].operations_per_s < unit.operations_per_s:
                units[dtype] = unit
    cache = target.cache()
    memory, link = target.holding_memory(), target.link("chips")
    return Machine(
        name=target.name,
        units=units,
        memory=memory.name,
        bytes_per_s=memory.bandwidth_bytes_per_s * memory.count,
        cache_bytes=0.0 if cache is None else cache.size_bytes * cache.count,
        launch_seconds=target.launch_ns * 1e-9,
        link="" if link is None else link.name,
        link_bytes_per_s=0.0 if link is None else link.bandwidth_bytes_per_s,
        link_seconds=0.0 if link is None else link.latency_ns * 1e-9,
    )
