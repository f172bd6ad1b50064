"""Measures this machine and keeps what the cost model needs to know of it: `infc calibrate`.

First the speeds of memory and vector units, then, where a model is given, its vocabulary head, then
products and attention of a spread of shapes, and the fit of a few constants for each class. Rounds
go through everything in turn, so that a slow minute of a shared machine spoils a part of each
figure and not all of one; of the times of a kernel a low quantile counts, of the speeds a high one:
both are those of the machine when nobody disturbs. Kernels that look disturbed all the same are
measured again.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from infc.cost.calibrated import call_columns
from infc.cost.fit import described, fit_constants, held_out_residuals, quantiles, rows_of
from infc.cost.kernels.classes import Array, Columns, KernelClass
from infc.cost.kernels.machine import Machine, machine_of
from infc.cost.kernels.profile import ClassProfile, FittedFacts, Profile, Residuals
from infc.cost.kernels.threaded import HEAD_SEARCH, STREAM, THREADED
from infc.cost.machine_profile import MachineProfile, Speeds, with_speeds
from infc.cost.roofline import Work
from infc.diagnostics import Code, UserError
from infc.diagnostics.progress import Progress
from infc.driver.calibration_model import trace_rows
from infc.driver.calibration_set import best_alone, calibration_kernels, kernel_name
from infc.driver.calibration_text import HeadTimes, fit_heads, trace_heads
from infc.target.backend import Backend, KernelMapping, KernelSummary, MeasuringBackend
from infc.target.discovery import resolve_target
from infc.target.schema import Target

_SPEED_PASSES: Final = 150
_REPETITIONS: Final = 32
_FAST: Final = 0.95
"""Quantile of the speeds that counts."""
_QUIET: Final = 0.1
"""Quantile of a kernel's times that counts."""
_SLOW: Final = 1.1
_SECOND_LOOKS: Final = 2
"""How often those kernels are measured again that took so many times what a fit says."""
_SLOWEST: Final = 1.2
_LEFT_OUT: Final = 0.4
_TRIMS: Final = 6
"""Kernels that take more than so many times what the fit says are left out, up to a part of them,
in so many steps."""
_ROWS_TO_FIT: Final = 10
"""Measurements a class needs, or it is left to the roofline."""


class Calibrating(Backend, MeasuringBackend, Protocol):
    """What a backend offers besides `Backend` where the machine it runs on can be calibrated."""

    def machine(self) -> Target:
        """The machine without what was measured on it before."""

    def speed_passes(
        self, target: Target, threads: Sequence[int], passes: int
    ) -> tuple[Mapping[int, Sequence[float]], Sequence[float]]:
        """Bytes a second by threads, and operations in float32 a second of one thread."""

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
    """One kernel under one mapping on so many threads.

    Attributes:
        seconds: as the undisturbed machine takes.
        mean_seconds: of all calls.
        name: of a kernel of the calibration's set; else empty.
    """

    work: Work
    threads: int
    seconds: float
    mean_seconds: float
    name: str = ""

    @classmethod
    def of(cls, work: Work, threads: int, calls: Sequence[float], name: str = "") -> Self:
        """From the seconds of some calls."""
        return cls(work, threads, float(np.quantile(calls, _QUIET)), float(np.mean(calls)), name)


def calibrate(
    spec: str = "cpu",
    *,
    threads: int | None = None,
    model: str | Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Measure a machine and write its profile.

    Args:
        spec: the target, which is this machine.
        threads: the most that are used; None is one for each compute unit.
        model: reads a text, which tells how much of a vocabulary head a token is worth; without
            one that is assumed.
        progress: called with the stage and the fraction done.

    Raises:
        UserError: the target cannot be measured here (INF3004), the profile not written, or the
            model not compiled or not searched (see `trace_heads`).
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
    report("reading a text", 0.02)
    heads = [] if model is None else trace_heads(Path(model), spec, counts)
    report("operations on rows", 0.05)
    rows = [
        Measured.of(traced.work, traced.threads, traced.seconds)
        for traced in trace_rows(spec, counts)
    ]
    rows += _measure(backend, target, counts, speeds, report)
    report("fitting", 0.97)
    kernels = fit_machine(target, rows, speeds)
    profile = MachineProfile(
        infc=version("infc"),
        date=datetime.date.today().isoformat(),
        speeds=speeds,
        kernels=_with_heads(kernels, heads, target, speeds),
        quiet_seconds=quiet_seconds_of(kernels, rows, target),
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


@dataclass(frozen=True)
class _Turn:
    """A kernel that is measured under a mapping on so many threads."""

    kernel: KernelSummary
    mapping: KernelMapping
    work: Work
    threads: int

    def measured(self, backend: Calibrating, target: Target) -> Measured:
        """What its calls take."""
        with backend.timer(self.kernel, [self.mapping], target, threads=self.threads) as timed:
            [calls] = timed(_REPETITIONS)
        name = kernel_name(self.kernel, self.threads)
        return Measured.of(self.work, self.threads, calls, name)


def _measure(
    backend: Calibrating, target: Target, counts: Sequence[int], speeds: Speeds, report: Progress
) -> list[Measured]:
    """Every kernel once, then again those that others seem to have disturbed: nothing but that
    makes a kernel slower than its like, so the least time counts. The mean stays that of the first
    look, as those that were lucky were not looked at again."""
    turns = _turns(backend, target, counts)
    rows: dict[int, Measured] = {}
    looked, again = 0, list(range(len(turns)))
    for look in range(1 + _SECOND_LOOKS):
        for number in again:
            turn = turns[number]
            share = min(1.0, looked / (1.5 * len(turns)))
            report(f"{turn.kernel.phase} {turn.kernel.kind}", 0.15 + 0.8 * share)
            found = turn.measured(backend, target)
            before = rows.setdefault(number, found)
            rows[number] = replace(before, seconds=min(before.seconds, found.seconds))
            looked += 1
        if look < _SECOND_LOOKS:
            again = _disturbed(target, list(rows.values()), speeds)
    return list(rows.values())


def _turns(backend: Calibrating, target: Target, counts: Sequence[int]) -> list[_Turn]:
    kernels = [k for k in calibration_kernels(backend, target) if backend.measurable(k)]
    turns = []
    for number, (kernel, count) in enumerate(product(kernels, counts)):
        # Arithmetic grows with the threads and reads do not: these are measured with every count.
        one_of = number % len(counts) == number // len(counts) % len(counts)
        if kernel.phase == "decode" or one_of:
            mapping, work = best_alone(backend, kernel, target, count)
            turns.append(_Turn(kernel, mapping, work, count))
    return turns


def _disturbed(target: Target, rows: Sequence[Measured], speeds: Speeds) -> list[int]:
    """The numbers of those that took much longer than a first fit says."""
    ratios = _ratios(fit_machine(target, rows, speeds), rows, target)
    return [number for number, ratio in enumerate(ratios) if ratio > _SLOW]


def _ratios(fitted: Profile, rows: Sequence[Measured], target: Target) -> list[float]:
    """How many times as long as a fit says each one took; 1 where there is none."""
    machine, ratios = machine_of(target), []
    for row in rows:
        ratio = 1.0
        if row.work.kernel in fitted.classes:
            columns = call_columns([(row.work, row.threads)], target)
            values = fitted.classes[row.work.kernel].values
            times = THREADED[row.work.kernel].times(columns, machine, values)
            ratio = row.seconds / float(times.seconds[0])
        ratios.append(ratio)
    return ratios


def quiet_seconds_of(
    fitted: Profile, rows: Sequence[Measured], target: Target
) -> dict[str, dict[str, float]]:
    """Seconds of the set's kernels by class and name, without those that seem disturbed."""
    found: dict[str, dict[str, float]] = {}
    for row, ratio in zip(rows, _ratios(fitted, rows, target), strict=True):
        if row.name and row.work.kernel in fitted.classes and ratio <= _SLOWEST:
            found.setdefault(row.work.kernel, {})[row.name] = _rounded(row.seconds)
    return {name: dict(sorted(own.items())) for name, own in sorted(found.items())}


def fit_machine(target: Target, rows: Sequence[Measured], speeds: Speeds) -> Profile:
    """Constants of every class that was measured often enough."""
    machine = machine_of(target)
    # A program takes the mean of its calls, and constants are those of calls that nobody disturbs.
    quiet, mean = (sum(getattr(row, name) for row in rows) for name in ("seconds", "mean_seconds"))
    usual = max(float(np.log(mean / quiet)), 0.0) if rows else 0.0
    classes = {}
    for name in THREADED:
        own = [row for row in rows if row.work.kernel == name]
        if len(own) >= _ROWS_TO_FIT:
            classes[name] = _fit(name, own, target, speeds, usual)
    return Profile(target=target.name, facts=FittedFacts.of(machine), classes=classes)


def _with_heads(
    kernels: Profile, heads: Sequence[HeadTimes], target: Target, speeds: Speeds
) -> Profile:
    """With the class of searches, where streams were measured."""
    streams = kernels.classes.get(STREAM)
    if streams is None:
        return kernels
    searches = fit_heads(heads, streams, target, speeds)
    return kernels.model_copy(update={"classes": {**kernels.classes, HEAD_SEARCH: searches}})


def _fit(
    name: str, rows: Sequence[Measured], target: Target, speeds: Speeds, usual: float
) -> ClassProfile:
    kernel_class, machine = THREADED[name], machine_of(target)
    columns = call_columns([(row.work, row.threads) for row in rows], target)
    seconds = np.array([row.seconds for row in rows])
    kept, constants = _fit_undisturbed(kernel_class, columns, seconds, machine)
    times = kernel_class.times(columns, machine, constants)
    residuals = np.log(seconds / times.seconds)
    residuals[kept] = held_out_residuals(
        kernel_class, rows_of(columns, kept), seconds[kept], machine, constants
    )
    found = quantiles(residuals)
    return ClassProfile(
        rows=len(rows),
        source=f"infc calibrate, {len(rows)} kernels",
        constants=described(kernel_class, constants),
        residuals={
            "any": Residuals(
                rows=len(rows),
                low=-float(np.hypot(found.low, speeds.low)),
                high=usual + float(np.hypot(found.high, speeds.high)),
            )
        },
    )


def _fit_undisturbed(
    kernel_class: KernelClass[Any], columns: Columns, seconds: Array, machine: Machine
) -> tuple[NDArray[np.bool_], dict[str, float]]:
    """Which rows count, `bool[rows]`, and the constants that explain them.

    Nothing but a neighbour makes a kernel far slower than all its like: the slowest are left out,
    at most `_LEFT_OUT` of them; the bounds keep them.
    """
    kept = np.ones(len(seconds), np.bool_)
    constants = fit_constants(kernel_class, columns, seconds, machine)
    for _ in range(_TRIMS):
        ratio = seconds / kernel_class.times(columns, machine, constants).seconds
        limit = max(_SLOWEST, float(np.quantile(ratio, 1.0 - _LEFT_OUT)))
        now = ratio <= limit
        if np.array_equal(now, kept):
            break
        kept = now
        constants = fit_constants(
            kernel_class, rows_of(columns, kept), seconds[kept], machine, start=constants
        )
    return kept, constants
