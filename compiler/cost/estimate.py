"""An estimate of time with bounds, and how estimates add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """What some work takes.

    Attributes:
        low: seconds, everything at its best.
        mid: seconds, expected.
        high: seconds, everything at its worst.
        bound: the resource with the most seconds in `by_resource`; empty where there is no work.
        by_resource: seconds each resource is busy, expected: memories and compute units by name,
            `launch` and `barrier`.
        energy_joules: of all chips at full load for `mid` seconds; None where no power is known.
        dollars: rent of all chips for `mid` seconds; None where no price is known.
    """

    low: float
    mid: float
    high: float
    bound: str
    by_resource: Mapping[str, float]
    energy_joules: float | None = None
    dollars: float | None = None

    def __add__(self, other: Estimate) -> Estimate:
        """One after the other."""
        return total([self, other])

    def scale(self, factor: float) -> Estimate:
        """The same work `factor` times in a row."""
        return Estimate(
            self.low * factor,
            self.mid * factor,
            self.high * factor,
            self.bound,
            {name: seconds * factor for name, seconds in self.by_resource.items()},
            None if self.energy_joules is None else self.energy_joules * factor,
            None if self.dollars is None else self.dollars * factor,
        )


def total(estimates: Iterable[Estimate]) -> Estimate:
    """All of them one after the other; of none: no time, no energy, no money."""
    parts = list(estimates)
    busy: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.by_resource.items():
            busy[name] = busy.get(name, 0.0) + seconds
    return Estimate(
        sum(part.low for part in parts),
        sum(part.mid for part in parts),
        sum(part.high for part in parts),
        binding_resource(busy),
        busy,
        _sum_known(part.energy_joules for part in parts),
        _sum_known(part.dollars for part in parts),
    )


def binding_resource(by_resource: Mapping[str, float]) -> str:
    """The busiest resource, the first by name among equals; empty where none is busy."""
    busy = {name: seconds for name, seconds in by_resource.items() if seconds > 0}
    return min(busy, key=lambda name: (-busy[name], name), default="")


def _sum_known(values: Iterable[float | None]) -> float | None:
    """The sum, unless a part is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
