"""Fitting the constants of a class of kernels to measurements.

The loss is soft in the logarithm of measured over predicted seconds, so that every kernel counts
alike, short or long, and a few odd measurements do not pull. Residuals are those of measurements
held out in turn (`FOLDS` parts); the constants themselves come from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infc.cost.kernels.classes import Array, Columns, KernelClass, Values
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.profile import INTERVAL, ClassProfile, Constant, Residuals
from infc.cost.kernels.queries import Query

FOLDS: Final = 5
SOFT_FROM: Final = 0.05
"""Deviation in ln(seconds) from which the loss grows linearly."""
FEWEST_ROWS: Final = 20
"""Rows that a regime needs for quantiles of its own."""
_DIGITS: Final = 4
_STEP: Final = 1e-3


def fit_constants(
    kernel_class: KernelClass[Any],
    columns: Columns,
    seconds: Array,
    machine: Machine,
    *,
    start: Values | None = None,
    pinned: Values | None = None,
) -> dict[str, float]:
    """The constants that explain measurements best, inside their ranges.

    Args:
        kernel_class: what is fitted.
        columns: sizes of the kernels, `float64[rows]` each.
        seconds: measured, `float64[rows]`.
        machine: on which.
        start: where to search from; None is the middle of the ranges.
        pinned: constants that are given, in their range or not (to see what a term is worth).
    """
    from scipy.optimize import least_squares

    fixed = dict(pinned or {})
    free = [spec for spec in kernel_class.constants if spec.name not in fixed]
    low = np.array([spec.low for spec in free])
    high = np.array([spec.high for spec in free])
    names = [spec.name for spec in free]
    # A constant that may be zero is searched as it is, any other by its logarithm.
    plain = low <= 0

    def searched(values: Array) -> Array:
        return np.where(plain, values, np.log(np.where(plain, 1.0, values)))

    def constants(point: Array) -> Array:
        return np.clip(np.where(plain, point, np.exp(np.where(plain, 0.0, point))), low, high)

    def deviations(point: Array) -> Array:
        values = fixed | dict(zip(names, constants(point).tolist(), strict=True))
        return np.log(kernel_class.times(columns, machine, values).seconds / seconds)

    middle = np.where(plain, (low + high) / 2.0, np.sqrt(np.where(plain, 1.0, low) * high))
    first = middle if start is None else np.array([start[name] for name in names])
    found = least_squares(
        deviations,
        searched(first),
        bounds=(searched(low), searched(high)),
        loss="soft_l1",
        f_scale=SOFT_FROM,
        diff_step=_STEP,
    )
    return fixed | {
        name: float(f"{value:.{_DIGITS}g}")
        for name, value in zip(names, constants(found.x).tolist(), strict=True)
    }


def fit_class(
    kernel_class: KernelClass[Any],
    queries: Sequence[Query],
    seconds: Array,
    machine: Machine,
    source: str,
) -> ClassProfile:
    """Constants from all measurements, residuals from those held out in turn.

    Args:
        kernel_class: what is fitted.
        queries: the kernels.
        seconds: measured, `float64[rows]`.
        machine: on which.
        source: of the measurements.
    """
    return fit_columns(
        kernel_class, kernel_class.columns(list(queries), machine), seconds, machine, source
    )


def fit_columns(
    kernel_class: KernelClass[Any], columns: Columns, seconds: Array, machine: Machine, source: str
) -> ClassProfile:
    """As `fit_class`, of sizes `float64[rows]` each."""
    constants = fit_constants(kernel_class, columns, seconds, machine)
    residuals = held_out_residuals(kernel_class, columns, seconds, machine, constants)
    regime = kernel_class.times(columns, machine, constants).regime
    return ClassProfile(
        rows=len(seconds),
        source=source,
        constants=described(kernel_class, constants),
        residuals={
            name: quantiles(residuals[regime == index])
            for index, name in enumerate(kernel_class.regimes)
            if np.count_nonzero(regime == index) >= FEWEST_ROWS
        },
    )


def described(
    kernel_class: KernelClass[Any], constants: Mapping[str, float]
) -> dict[str, Constant]:
    """Values with the unit, the range and the meaning that their class gives them."""
    return {
        spec.name: Constant(
            value=constants[spec.name],
            unit=spec.unit,
            low=spec.low,
            high=spec.high,
            meaning=spec.meaning,
        )
        for spec in kernel_class.constants
    }


def held_out_residuals(
    kernel_class: KernelClass[Any],
    columns: Columns,
    seconds: Array,
    machine: Machine,
    start: Values,
) -> Array:
    """`ln(measured / predicted)` of each row by a fit to the other folds, `float64[rows]`.

    The fits search from `start`.
    """
    residuals = np.empty_like(seconds)
    for held_out in folds(len(seconds)):
        constants = fit_constants(
            kernel_class, rows_of(columns, ~held_out), seconds[~held_out], machine, start=start
        )
        predicted = kernel_class.times(rows_of(columns, held_out), machine, constants).seconds
        residuals[held_out] = np.log(seconds[held_out] / predicted)
    return residuals


def folds(rows: int) -> list[NDArray[np.bool_]]:
    """`FOLDS` masks `bool[rows]` of the rows held out in turn, drawn the same way every time."""
    part = np.random.default_rng(0).permutation(rows) % FOLDS
    return [part == index for index in range(FOLDS)]


def rows_of(columns: Columns, mask: NDArray[np.bool_]) -> Columns:
    """Some rows of all sizes."""
    return {name: column[mask] for name, column in columns.items()}


def quantiles(residuals: Array) -> Residuals:
    """The middle 80% of residuals; the range always holds the prediction itself."""
    tail = (1.0 - INTERVAL) / 2.0
    low, high = np.quantile(residuals, [tail, 1.0 - tail])
    return Residuals(
        rows=len(residuals),
        low=min(0.0, round(float(low), _DIGITS)),
        high=max(0.0, round(float(high), _DIGITS)),
    )
