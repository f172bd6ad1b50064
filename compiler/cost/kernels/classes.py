"""What a class of kernels is: which constants it has and how they become seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from infc.cost.kernels.machine import Machine

Array = NDArray[np.float64]
Columns = Mapping[str, Array]
"""Sizes of many kernels, one array `float64[rows]` a size."""
Values = Mapping[str, float]
"""Constants by name, in their units."""
Q = TypeVar("Q")


@dataclass(frozen=True)
class ConstantSpec:
    """One constant that may be fitted.

    Attributes:
        name: key in a profile.
        unit: `1` for a share or a count.
        low, high: what is physically plausible; a fit stays inside, a file outside is refused.
        meaning: what it stands for, in a sentence.
    """

    name: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True)
class Times:
    """What a class predicts for many kernels.

    Attributes:
        seconds: of each kernel, `float64[rows]`.
        busy: seconds of each resource, `float64[rows]` each: `memory`, `compute`, `link`,
            `launch`, and `hops`, the latency of a link.
        regime: index into the regimes of the class, `intp[rows]`.
    """

    seconds: Array
    busy: Mapping[str, Array]
    regime: NDArray[np.intp]


@dataclass(frozen=True)
class KernelClass(Generic[Q]):
    """A class of kernels that share a formula and its constants.

    Attributes:
        name: key in a profile.
        constants: at most 12.
        regimes: parts of the domain whose residuals are kept apart.
        dtype: of the arithmetic of a query on a machine; empty where none matters.
        sizes: of a query, as plain numbers.
        times: sizes, machine and constants to seconds.
    """

    name: str
    constants: tuple[ConstantSpec, ...]
    regimes: tuple[str, ...]
    dtype: Callable[[Q, Machine], str]
    sizes: Callable[[Q, Machine], Mapping[str, float]]
    times: Callable[[Columns, Machine, Values], Times]

    def columns(self, queries: list[Q], machine: Machine) -> Columns:
        """The sizes of many queries, `float64[rows]` each."""
        rows = [self.sizes(query, machine) for query in queries]
        return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
