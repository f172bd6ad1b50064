"""How long prefill and decode take on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session
from infc.runtime.token_checks import check_room
from infc.target.runnable import Phase

RUNS = 3
WARM_UP_TOKENS = 2
"""Enough to run both programs once: pages are mapped and threads exist after it."""


@dataclass(frozen=True)
class Measurement:
    """Medians, for all tokens of a phase together."""

    prefill_seconds: float
    decode_seconds: float


class Watch(Protocol):
    """Is told what runs, in between; the time it takes is nobody's."""

    def begin(self) -> None:
        """A run begins: a prompt, then tokens behind it."""

    def passed(self, phase: Phase, seconds: float) -> None:
        """So many seconds of a phase have passed."""


def measure(
    session: Session, prompt: list[int], new_tokens: int, watch: Watch | None = None
) -> Measurement:
    """Prefill a prompt and greedily decode, from an empty session, which is left empty.

    A decode step appends one token and finds the next.

    Raises:
        UserError: INF5004 where the context is too small for both.
    """
    session.reset()
    check_room(0, len(prompt) + new_tokens, session.limits.max_context)
    sampler = Sampler(SamplingOptions(temperature=0.0))
    _run(session, prompt[:WARM_UP_TOKENS], 1, sampler, None)
    runs = [_run(session, prompt, new_tokens, sampler, watch) for _ in range(RUNS)]
    return Measurement(median(run[0] for run in runs), median(run[1] for run in runs))


def arbitrary_tokens(vocab_size: int, count: int) -> NDArray[np.int32]:
    """int32 `[count]`, always the same."""
    return np.random.default_rng(0).integers(vocab_size, size=count).astype(np.int32)


def _run(
    session: Session, tokens: list[int], new_tokens: int, sampler: Sampler, watch: Watch | None
) -> tuple[float, float]:
    if watch is not None:
        watch.begin()
    start = time.perf_counter()
    session.prefill_next(tokens, sampler)
    prefill = time.perf_counter() - start
    if watch is not None:
        watch.passed(Phase.PREFILL, prefill)
    decode = 0.0
    for _ in range(new_tokens):
        start = time.perf_counter()
        session.next_token(sampler)
        step = time.perf_counter() - start
        decode += step
        if watch is not None:
            watch.passed(Phase.DECODE, step)
    session.reset()
    return prefill, decode
