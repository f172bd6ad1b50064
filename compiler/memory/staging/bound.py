"""What no schedule can beat: bytes over bandwidth, arithmetic, and how one waits for the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infc.memory.staging.problem import StagingProblem


@dataclass(frozen=True)
class Bound:
    """Lower bounds, in seconds.

    Attributes:
        transfer: the fewest bytes that must cross, at full bandwidth.
        compute: all steps, one after the other.
        path: a step waits for what it needs whole, and what comes after it takes its time; and the
            other way round: when a step starts, no more than what was used and what fits on chip
            can have been loaded.
    """

    transfer: float
    compute: float
    path: float

    @property
    def seconds(self) -> float:
        """The largest of them."""
        return max(self.transfer, self.compute, self.path)


def lower_bound(problem: StagingProblem) -> Bound:
    """Bounds that hold for every cut into pieces and every schedule."""
    machine, known = problem.machine, problem.block
    steps = problem.steps
    seconds = np.array([step.seconds for step in steps], np.float64)
    whole, streamed = _first_loads(problem)
    own = np.array([step.far_bytes for step in steps], np.float64)
    # A block that is read and later ends in far memory crosses twice: once each way.
    stored = sum(
        block.size_bytes
        for block in known.values()
        if block.ends_far and block.name in problem.written
    )
    loads = whole + streamed + own
    # What may stay on chip from one time to the next need not cross at all, but only so much fits.
    free = machine.capacity_bytes if problem.repeats else 0
    loadable = float(loads.sum() - own.sum())
    bytes_moved = max(0.0, loadable - free) + float(own.sum()) + stored
    rate = machine.bandwidth_bytes_per_s
    transfer = bytes_moved / rate
    compute = float(seconds.sum())
    return Bound(transfer, compute, _path(problem, seconds, loads, whole, streamed, free))


def _first_loads(problem: StagingProblem) -> tuple[np.ndarray, np.ndarray]:
    """Bytes that each step is the first to need, there whole before it starts or streamed; `[s]`.

    With direct reads nothing need be there before a step starts.
    """
    whole = np.zeros(len(problem.steps))
    streamed = np.zeros(len(problem.steps))
    seen: set[str] = set()
    for number, step in enumerate(problem.steps):
        for name in step.reads:
            block = problem.block[name]
            if name not in seen and block.starts_far:
                at_hand = name in problem.divisible or problem.may_be_direct(name)
                (streamed if at_hand else whole)[number] += block.size_bytes
        seen.update((*step.reads, *step.writes))
    return whole, streamed


def _path(
    problem: StagingProblem,
    seconds: np.ndarray,
    loads: np.ndarray,
    whole: np.ndarray,
    streamed: np.ndarray,
    free: int,
) -> float:
    machine = problem.machine
    if not len(seconds):
        return 0.0
    rate = machine.bandwidth_bytes_per_s
    done_before = np.cumsum(seconds) - seconds
    left_from = seconds.sum() - done_before
    loaded = np.cumsum(loads)
    before_start = loaded - loads + whole
    # Step s starts behind its whole blocks, and ends behind all that it uses.
    first = _seconds_of(before_start - free, machine.latency_seconds, rate) + left_from
    second = _seconds_of(loaded - free, machine.latency_seconds, rate) + left_from - seconds
    # When step s starts, at most what earlier steps used and what the scratchpad holds is loaded.
    ahead = loaded - loads + machine.capacity_bytes
    rest = np.maximum(0.0, loaded[-1] - ahead)
    third = done_before + rest / rate
    return float(max(first.max(), second.max(), third.max()))


def _seconds_of(size_bytes: np.ndarray, latency: float, rate: float) -> np.ndarray:
    """Time to bring some bytes: nothing for none, else at least one latency; `[s]`."""
    return np.where(size_bytes > 0, latency + size_bytes / rate, 0.0)
