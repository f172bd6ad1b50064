"""How much slower a machine is while something is measured than when it was calibrated.

A machine that is shared is slower at times, and a program slower with it: one measurement cannot
tell that from a wrong prediction. So kernels of the calibration's own set, whose time on the
undisturbed machine the profile knows, run in turns with the program's calls. They are products and
attention on as many threads, with barriers between them: what they lose to a neighbour on a core's
other hardware thread, on the way to memory, or by waiting for each other, the program loses too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import log
from statistics import median
from types import TracebackType
from typing import Final, Self, cast

from infc.artifact import Artifact
from infc.cost.kernels.threaded import HEAD_SEARCH, STREAM
from infc.diagnostics import UserError
from infc.diagnostics.progress import Progress
from infc.driver.calibration_set import best_alone, calibration_kernels, kernel_name
from infc.driver.prediction import (
    Output,
    Slowdown,
    Turns,
    class_of,
    kernel_seconds,
    kernels_for,
    phase_target,
)
from infc.driver.sections import check_sections
from infc.target.backend import Backend, KernelSummary, KernelTimer, MeasuringBackend
from infc.target.discovery import load_backend
from infc.target.runnable import Phase
from infc.target.schema import Target

_LIKE: Final = {HEAD_SEARCH: STREAM}
"""Classes that are not measured alone, and what they are."""
_KERNELS: Final = 3
"""Of each class."""
_WORTH: Final = 0.1
"""Share of a phase's time that a class must take to be looked at."""
_CALLS, _LOOK_SECONDS = 4, 1e-3
"""Calls of a kernel in a look, at least, and seconds of all of them."""
_SHARE: Final = 0.25
"""Time that the kernels run, as a share of the measured time."""


@dataclass(frozen=True, eq=False)
class _Known:
    """A kernel of the calibration's set, and the seconds that a call of it took then."""

    kernel: KernelSummary
    kernel_class: str
    seconds: float


@dataclass
class _TimedKernel:
    """A kernel that runs now and then.

    Attributes:
        weight: seconds of the phase that kernels like it take.
        quiet: seconds of a call on the undisturbed machine.
        runs: seconds of its calls in each run.
    """

    kernel_class: str
    weight: float
    quiet: float
    timed: KernelTimer
    runs: list[list[float]] = field(default_factory=list)

    def call(self) -> None:
        [calls] = self.timed(max(_CALLS, round(_LOOK_SECONDS / self.quiet)))
        self.runs[-1] += calls


@dataclass
class _PhaseProbe:
    """The kernels of one phase, and for how many seconds they are due."""

    kernels: list[_TimedKernel] = field(default_factory=list)
    due: float = 0.0

    def begin(self) -> None:
        self.due = 0.0
        for kernel in self.kernels:
            kernel.runs.append([])

    def look(self) -> None:
        for kernel in self.kernels:
            kernel.call()

    def passed(self, seconds: float) -> None:
        self.due += _SHARE * seconds
        while self.kernels and self.due >= 0.0:
            start = time.perf_counter()
            self.look()
            self.due -= time.perf_counter() - start

    def slowdown(self) -> Slowdown | None:
        """Medians of the runs; None where nothing was looked at."""
        runs = zip(*(kernel.runs for kernel in self.kernels), strict=True)
        seen = [run for run in runs if all(run)]
        if not seen:
            return None
        names = {kernel.kernel_class for kernel in self.kernels}
        found = {name: median(self._ratio(run, name) for run in seen) for name in names}
        found |= {name: found[like] for name, like in _LIKE.items() if like in found}
        return Slowdown(found, median(self._ratio(run) for run in seen))

    def _ratio(self, run: Sequence[Sequence[float]], name: str | None = None) -> float:
        """What calls of a class, or of all, took in a run, over what they take undisturbed.

        The usual call, by what each kernel stands for, and what is lost beyond it now and then:
        that is rare, and strikes a kernel by how long it runs, so it is counted over all of them.
        """
        usual = weights = lost = quiet = 0.0
        for kernel, calls in zip(self.kernels, run, strict=True):
            middle = median(calls)
            lost += sum(calls) - len(calls) * middle
            quiet += len(calls) * kernel.quiet
            if name in (None, kernel.kernel_class):
                usual += kernel.weight * middle / kernel.quiet
                weights += kernel.weight
        return usual / weights + lost / quiet


class DisturbanceProbe:
    """Kernels to run between the calls of an artifact's programs, on as many threads.

    They exist as long as the context does; of a phase whose target was not calibrated with so many
    threads there are none.

    Args:
        artifact: what is measured.
        threads: it is measured with.
        turns: the calls of each phase that are watched.
        output: what these are asked for.
        progress: called with the stage and the fraction done while kernels are made.

    Attributes:
        unavailable: why there is none where there could be; else empty.

    Raises:
        UserError: entering the context, as `check_sections`.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        turns: Mapping[Phase, Sequence[Turns]],
        output: Output = "argmax",
        progress: Progress | None = None,
    ) -> None:
        self.unavailable = ""
        self._report = progress or (lambda stage, fraction: None)
        self._artifact, self._threads = artifact, threads
        self._turns, self._output = turns, output
        self._phases = {phase: _PhaseProbe() for phase in turns}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        check_sections(self._artifact)
        with ExitStack() as opened:
            for number, (phase, probe) in enumerate(self._phases.items()):
                part = number / len(self._phases), 1.0 / len(self._phases)
                probe.kernels = self._timed_kernels(phase, opened, part)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def begin(self) -> None:
        """A run begins; a prompt is looked at from both sides."""
        for probe in self._phases.values():
            probe.begin()
        self._phases[Phase.PREFILL].look()

    def passed(self, phase: Phase, seconds: float) -> None:
        """So many seconds of a phase were measured: its kernels run, if they are due."""
        self._phases[phase].passed(seconds)

    def slowdowns(self) -> dict[str, Slowdown]:
        """The median of the runs, by the name of the phase; not of phases without kernels."""
        found = {phase.name.lower(): probe.slowdown() for phase, probe in self._phases.items()}
        return {name: slowdown for name, slowdown in found.items() if slowdown is not None}

    def _timed_kernels(
        self, phase: Phase, opened: ExitStack, part: tuple[float, float]
    ) -> list[_TimedKernel]:
        """The kernels of a phase; `part` is where its work begins in all of it, and its share."""
        target = phase_target(self._artifact, phase.name.lower())
        backend = load_backend(target.backend)
        if not hasattr(backend, "timer"):
            return []
        measuring = cast("MeasuringBackend", backend)
        kernels = []
        try:
            chosen = self._chosen(phase, target, backend)
            for number, (known, weight) in enumerate(chosen.items()):
                done = part[0] + part[1] * number / len(chosen)
                self._report("making kernels to measure the machine with", done)
                mapping, _ = best_alone(backend, known.kernel, target, self._threads)
                timed = opened.enter_context(
                    measuring.timer(known.kernel, [mapping], target, threads=self._threads)
                )
                kernels.append(_TimedKernel(known.kernel_class, weight, known.seconds, timed))
        except UserError as error:  # a machine that runs programs may have no linker to make some
            self.unavailable = error.diagnostic.message
            return []
        return kernels

    def _chosen(self, phase: Phase, target: Target, backend: Backend) -> dict[_Known, float]:
        """Those of the set that stand for the phase's kernels, and for how many seconds of it: each
        kernel has one of its class whose calls are about as long."""
        known = self._known(phase, target, backend)
        found: dict[_Known, float] = {}
        whole = 0.0
        for name, one, seconds in self._kernels(phase, target):
            whole += seconds
            if own := [each for each in known if each.kernel_class == name]:
                nearest = min(own, key=lambda each: abs(log(each.seconds / one)))
                found[nearest] = found.get(nearest, 0.0) + seconds
        chosen: dict[_Known, float] = {}
        for name in dict.fromkeys(each.kernel_class for each in found):
            own = [each for each in found if each.kernel_class == name]
            if sum(found[each] for each in own) > _WORTH * whole:
                heaviest = sorted(own, key=found.__getitem__, reverse=True)[:_KERNELS]
                chosen |= {each: found[each] for each in heaviest}
        return chosen

    def _known(self, phase: Phase, target: Target, backend: Backend) -> list[_Known]:
        """Kernels of the phase that were measured with as many threads."""
        quiet = {
            kernel: (name, seconds)
            for name, fitted in target.kernels.items()
            for kernel, seconds in fitted.quiet_seconds.items()
        }
        if not quiet:
            return []
        named = [
            (kernel, kernel_name(kernel, self._threads))
            for kernel in calibration_kernels(backend, target)
            if kernel.phase == phase.name.lower()
        ]
        return [_Known(kernel, *quiet[name]) for kernel, name in named if name in quiet]

    def _kernels(self, phase: Phase, target: Target) -> Iterator[tuple[str, float, float]]:
        """Class, expected seconds of a launch, and of all launches, of each kernel in the phase."""
        name, turns = phase.name.lower(), self._turns[phase]
        calls = sum(turn.calls for turn in turns)
        kernels = self._artifact.manifest.cost_estimate.get(name, [])
        for kernel in kernels_for(kernels, self._output):
            own = class_of(kernel, name, turns)
            if own in target.kernels:
                seconds = kernel_seconds(kernel, name, turns, target, self._threads).mid
                if seconds > 0.0:
                    yield _LIKE.get(own, own), seconds / calls, seconds * kernel["launches"]
