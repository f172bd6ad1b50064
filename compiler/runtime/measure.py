"""How long prefill and decode take on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session
from infc.runtime.token_checks import check_room

RUNS = 3
WARM_UP_TOKENS = 2
"""Enough to run both programs once: pages are mapped and threads exist after it."""


@dataclass(frozen=True)
class Measurement:
    """Medians, for all tokens of a phase together."""

    prefill_seconds: float
    decode_seconds: float


def measure(session: Session, prompt_tokens: int, new_tokens: int) -> Measurement:
    """Prefill and greedily decode, from an empty session, which is left empty.

    The prompt is arbitrary but always the same. A decode step appends one token and finds the next.

    Raises:
        UserError: INF5004 where the context is too small for both.
    """
    session.reset()
    check_room(0, prompt_tokens + new_tokens, session.limits.max_context)
    tokens = arbitrary_tokens(session.vocab_size, prompt_tokens).tolist()
    sampler = Sampler(SamplingOptions(temperature=0.0))
    _run(session, tokens[:WARM_UP_TOKENS], 1, sampler)
    runs = [_run(session, tokens, new_tokens, sampler) for _ in range(RUNS)]
    return Measurement(median(run[0] for run in runs), median(run[1] for run in runs))


def arbitrary_tokens(vocab_size: int, count: int) -> NDArray[np.int32]:
    """int32 `[count]`, always the same."""
    return np.random.default_rng(0).integers(vocab_size, size=count).astype(np.int32)


def _run(
    session: Session, tokens: list[int], new_tokens: int, sampler: Sampler
) -> tuple[float, float]:
    start = time.perf_counter()
    session.prefill_next(tokens, sampler)
    prefilled = time.perf_counter()
    for _ in range(new_tokens):
        session.next_token(sampler)
    end = time.perf_counter()
    session.reset()
    return prefilled - start, end - prefilled
