"""Kernels that only move data: bytes over bandwidth after a launch."""

from __future__ import annotations

from typing import Final

import numpy as np

from infc.cost.kernels.classes import Columns, ConstantSpec, KernelClass, Times, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.queries import Elementwise

CONSTANTS: Final = (
    ConstantSpec("launches", "1", 0.5, 5.0, "launches that one call costs"),
    ConstantSpec("memory_share", "1", 0.4, 1.0, "share of the memory's bandwidth that streams get"),
)
REGIMES: Final = ("launch", "memory")


def sizes(query: Elementwise, machine: Machine) -> dict[str, float]:
    """The size of one kernel."""
    return {"bytes": query.bytes}


def times(rows: Columns, machine: Machine, constants: Values) -> Times:
    """Seconds of kernels that move data."""
    launch = np.full_like(rows["bytes"], constants["launches"] * machine.launch_seconds)
    memory = rows["bytes"] / (constants["memory_share"] * machine.bytes_per_s)
    regime = np.where(memory < launch, 0, 1)
    return Times(launch + memory, {"launch": launch, "memory": memory}, regime)


def _dtype(query: Elementwise, machine: Machine) -> str:
    return ""


ELEMENTWISE: Final = KernelClass("elementwise", CONSTANTS, REGIMES, _dtype, sizes, times)
