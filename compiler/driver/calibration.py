"""Measures this machine and keeps what the cost model needs to know of it: `infc calibrate`.

First the speeds of memory and vector units, then products and attention of a spread of shapes, then
the fit of a few constants for each class of kernels. Rounds go through everything in turn, so that
a slow minute of a shared machine spoils a part of each figure and not all of one; of the times of a
kernel a low quantile counts, of the speeds a high one: both are those of the machine when nobody
disturbs.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np

from infc.cost.calibrated import call_columns
from infc.cost.fit import described, fit_constants, held_out_residuals, quantiles
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.profile import ClassProfile, FittedFacts, Profile, Residuals
from infc.cost.kernels.threaded import THREADED
from infc.cost.machine_profile import MachineProfile, Speeds, with_speeds
from infc.cost.roofline import Work, estimate_work
from infc.diagnostics import Code, UserError
from infc.driver.calibration_model import trace_rows
from infc.driver.calibration_set import calibration_kernels
from infc.target.backend import Backend, KernelMapping, KernelSummary
from infc.target.discovery import resolve_target
from infc.target.schema import Target

Progress = Callable[[str, float], None]
"""`progress(stage, fraction)`: what is being done, and how much of all is done, 0.0 to 1.0."""

_SPEED_PASSES: Final = 150
_REPETITIONS: Final = 32
_FAST: Final = 0.95
"""Quantile of the speeds that counts."""
_QUIET: Final = 0.1
"""Quantile of a kernel's times that counts."""
_ROWS_TO_FIT: Final = 10
"""Measurements a class needs, or it is left to the roofline."""


class Calibrating(Backend, Protocol):
    """What a backend offers besides `Backend` where the machine it runs on can be calibrated."""

    def machine(self) -> Target:
        """The machine without what was measured on it before."""

    def speed_passes(
        self, target: Target, threads: Sequence[int], passes: int
    ) -> tuple[Mapping[int, Sequence[float]], Sequence[float]]:
        """Bytes a second by threads, and operations in float32 a second of one thread."""

    def measurable(self, kernel: KernelSummary) -> bool:
        """As in `MeasuringBackend`."""

    def measure(
        self,
        kernel: KernelSummary,
        mappings: Sequence[KernelMapping],
        target: Target,
        *,
        threads: int,
        repetitions: int,
    ) -> list[list[float]]:
        """As in `MeasuringBackend`."""

    def keep_profile(self, profile: MachineProfile) -> Path:
        """Write the profile of this machine, which `resolve` then reads."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        path: of the file it was written to.
        profile: what is in it.
        target: the machine with it.
    """

    path: Path
    profile: MachineProfile
    target: Target


@dataclass(frozen=True)
class Measured:
    """One kernel under one mapping on so many threads."""

    work: Work
    threads: int
    seconds: float


def calibrate(
    spec: str = "cpu", *, threads: int | None = None, progress: Progress | None = None
) -> Calibration:
    """Measure a machine and write its profile.

    Args:
        spec: the target, which is this machine.
        threads: the most that are used; None is one for each compute unit.
        progress: called with the stage and the fraction done.

    Raises:
        UserError: the target cannot be measured here (INF3004), or the profile not written.
    """
    report = progress or (lambda stage, fraction: None)
    backend = _calibrating(spec)
    machine = backend.machine()
    most = max(unit.count for unit in machine.compute)
    if threads is not None and not 1 <= threads <= most:
        raise UserError(Code.OPTION, f"expected 1 to {most} threads, got {threads}")
    counts = thread_counts(threads or most)
    report("reading memory", 0.0)
    passes = backend.speed_passes(machine, counts, _SPEED_PASSES)
    speeds = speeds_of(*passes)
    target = with_speeds(machine, speeds, "measured just now")
    report("operations on rows", 0.05)
    rows = [
        Measured(traced.work, traced.threads, float(np.quantile(traced.seconds, _QUIET)))
        for traced in trace_rows(spec, counts)
    ]
    rows += _measure(backend, target, counts, report)
    report("fitting", 0.97)
    profile = MachineProfile(
        infc=version("infc"),
        date=datetime.date.today().isoformat(),
        speeds=speeds,
        kernels=fit_machine(target, rows, speeds),
    )
    return Calibration(backend.keep_profile(profile), profile, backend.resolve(spec))


def _calibrating(spec: str) -> Calibrating:
    found, target = resolve_target(spec)
    backend = cast(Calibrating, found)
    if not hasattr(found, "keep_profile") or backend.machine().name != target.name:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name!r} is not a machine that can be measured from here",
            hint="`infc calibrate` measures the machine it runs on",
        )
    return backend


def thread_counts(most: int) -> list[int]:
    """One thread, powers of two, and as many as are used."""
    return sorted({1, most, *(2**power for power in range(most.bit_length()) if 2**power < most)})


def speeds_of(reads: Mapping[int, Sequence[float]], vectors: Sequence[float]) -> Speeds:
    """Speeds of the undisturbed machine, and how far passes lie about their median."""
    wandering = [np.log(np.median(passes) / np.asarray(passes)) for passes in reads.values()]
    low, high = np.quantile(np.concatenate(wandering), [0.1, 0.9])
    best = {count: _rounded(np.quantile(passes, _FAST)) for count, passes in reads.items()}
    return Speeds(
        # More threads never read less than fewer do.
        bytes_per_s={n: max(b for m, b in best.items() if m <= n) for n in sorted(best)},
        operations_per_s=_rounded(np.quantile(vectors, _FAST)),
        low=round(min(float(low), 0.0), 4),
        high=round(max(float(high), 0.0), 4),
    )


def _rounded(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _measure(
    backend: Calibrating, target: Target, counts: Sequence[int], report: Progress
) -> list[Measured]:
    kernels = [k for k in calibration_kernels(backend, target) if backend.measurable(k)]
    turns = list(product(kernels, counts))
    # Arithmetic grows with the threads, which reads of memory do not: these are measured with all.
    turns = [
        (kernel, count)
        for number, (kernel, count) in enumerate(turns)
        if kernel.phase == "decode" or number % len(counts) == number // len(counts) % len(counts)
    ]
    found = []
    for number, (kernel, count) in enumerate(turns):
        report(f"{kernel.phase} {kernel.kind}", 0.15 + 0.8 * number / len(turns))
        mapping = _best(backend, kernel, target, count)
        [seconds] = backend.measure(
            kernel, [mapping], target, threads=count, repetitions=_REPETITIONS
        )
        # A kernel alone ends without a barrier; programs add theirs.
        work = replace(backend.work(kernel, mapping, target), barriers=0)
        found.append(Measured(work, count, float(np.quantile(seconds, _QUIET))))
    return found


def _best(
    backend: Calibrating, kernel: KernelSummary, target: Target, threads: int
) -> KernelMapping:
    return min(
        backend.candidates(kernel, target),
        key=lambda mapping: (
            estimate_work(backend.work(kernel, mapping, target), target, threads).mid
        ),
    )


def fit_machine(target: Target, rows: Sequence[Measured], speeds: Speeds) -> Profile:
    """Constants of every class that was measured often enough."""
    machine = machine_of(target)
    classes = {}
    for name in THREADED:
        own = [row for row in rows if row.work.kernel == name]
        if len(own) >= _ROWS_TO_FIT:
            classes[name] = _fit(name, own, target, speeds)
    return Profile(target=target.name, facts=FittedFacts.of(machine), classes=classes)


def _fit(name: str, rows: Sequence[Measured], target: Target, speeds: Speeds) -> ClassProfile:
    kernel_class, machine = THREADED[name], machine_of(target)
    columns = call_columns([(row.work, row.threads) for row in rows], target)
    seconds = np.array([row.seconds for row in rows])
    constants = fit_constants(kernel_class, columns, seconds, machine)
    residuals = held_out_residuals(kernel_class, columns, seconds, machine, constants)
    found = quantiles(residuals)
    return ClassProfile(
        rows=len(rows),
        source=f"infc calibrate, {len(rows)} kernels",
        constants=described(kernel_class, constants),
        residuals={
            "any": Residuals(
                rows=len(rows),
                low=-float(np.hypot(found.low, speeds.low)),
                high=float(np.hypot(found.high, speeds.high)),
            )
        },
    )
