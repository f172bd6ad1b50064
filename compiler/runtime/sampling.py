"""Choosing the next token from logits, the same way on every machine.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. So `top_p`
is a share of the distribution that is sampled from. (llama.cpp applies the temperature last: there
a high temperature does not widen the nucleus.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, Problem, UserError


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose. UserError OPTION lists every value out of range.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together reach this probability; 1 for all.
        min_p: only tokens at least this likely relative to the most likely one; 0 for all.
        repetition_penalty: positive logits of recent tokens are divided by it, negative ones
            multiplied; 1 for none.
        repetition_window: how many tokens back count as recent; 0 for all.
        seed: 0 to 2**64 - 1; equal seeds give equal choices.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        penalty = self.repetition_penalty
        checks = (
            ("temperature", "a finite number of 0 or more", _between(self.temperature, 0, None)),
            ("top_k", "a whole number of 0 or more", _whole(self.top_k)),
            ("top_p", "a number above 0, up to 1", _between(self.top_p, 0, 1) and self.top_p > 0),
            ("min_p", "a number from 0 to 1", _between(self.min_p, 0, 1)),
            (
                "repetition_penalty",
                "a finite number above 0",
                _between(penalty, 0, None) and penalty > 0,
            ),
            ("repetition_window", "a whole number of 0 or more", _whole(self.repetition_window)),
            (
                "seed",
                "a whole number from 0 to 2**64 - 1",
                _whole(self.seed) and self.seed < 1 << 64,
            ),
        )
        problems = [
            Problem(f"{name}: expected {expected}, got {getattr(self, name)!r}")
            for name, expected, fits in checks
            if not fits
        ]
        if problems:
            raise UserError(Code.OPTION, "the sampling options are out of range", problems=problems)


class Sampler:
    """Draws tokens; its state is only the number of draws so far."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._draws = 0

    @property
    def greedy(self) -> bool:
        """Whether `sample` is the index of the largest logit, whatever the history."""
        return self.options.temperature == 0.0 and self.options.repetition_penalty == 1.0

    @property
    def top(self) -> int:
        """How many of the largest logits `sample_top` chooses from; 0 where all are needed."""
        options = self.options
        penalized = options.repetition_penalty != 1.0
        return 0 if options.temperature == 0.0 or penalized else options.top_k

    def clone(self) -> Sampler:
        """A sampler that goes on exactly as this one would."""
        twin = Sampler(self.options)
        twin._draws = self._draws
        return twin

    def sample(
        self, logits: NDArray[np.float32], history: Sequence[int] | NDArray[np.int32]
    ) -> int:
        """Choose a token.

        Args:
            logits: float32 [vocab]; not changed. Minus infinity forbids a token.
            history: the tokens so far, for the repetition penalty.

        Returns:
            A token id; of equally likely ones a greedy choice takes the lowest.

        Raises:
            UserError: NUMERIC where a logit is no number or none is finite.
        """
        if self.options.repetition_penalty != 1.0:
            logits = self._penalize(logits, history)
        best = int(np.argmax(logits))  # the first of equals; the first NaN if there is one
        _check_finite(float(logits[best]), best)
        if self.options.temperature == 0.0:
            return best
        top_k = self.options.top_k
        ids = _largest(logits, top_k) if top_k else np.arange(len(logits))
        return self._draw(*self._candidates(ids, logits[ids], float(logits[best])))

    def sample_top(self, largest: NDArray[Any]) -> int:
        """Choose a token where the `top` largest logits are known: the token that `sample` chooses.

        Args:
            largest: `TOP_ENTRY` [top], the largest first, of equals the lowest index.

        Raises:
            UserError: NUMERIC where the largest is not finite.
        """
        best = float(largest["logit"][0])
        _check_finite(best, int(largest["id"][0]))
        ascending = largest[np.argsort(largest["id"])]
        ids = ascending["id"].astype(np.int64)
        return self._draw(*self._candidates(ids, ascending["logit"], best))

    def _penalize(
        self, logits: NDArray[np.float32], history: Sequence[int] | NDArray[np.int32]
    ) -> NDArray[np.float32]:
        recent = np.unique(np.asarray(history, np.int64)[-self.options.repetition_window :])
        recent = recent[recent < len(logits)]
        values = logits[recent]
        penalty = np.float32(self.options.repetition_penalty)
        logits = logits.copy()
        logits[recent] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _candidates(
        self, ids: NDArray[np.int64], logits: NDArray[np.float32], largest: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of some ids, ascending, those that may be drawn and their weights, float64, not
        normalised."""
        options = self.options
        weights = np.exp((logits.astype(np.float64) - largest) / options.temperature)
        if options.top_p < 1.0:
            ids, weights = _nucleus(ids, weights, options.top_p)
        if options.min_p > 0.0:
            kept = weights >= options.min_p  # the largest weight is exp(0) = 1
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    def _draw(self, ids: NDArray[np.int64], weights: NDArray[np.float64]) -> int:
        """Invert the cumulative distribution at a number that seed and draw determine."""
        bits = np.random.Philox(key=self.options.seed, counter=[0, 0, 0, self._draws])
        self._draws += 1
        cumulative = np.cumsum(weights)
        at = np.random.Generator(bits).random() * cumulative[-1]
        position = int(np.searchsorted(cumulative, at, side="right"))
        # rounding can put `at` on the very end: the last token with any weight then
        last = int(np.searchsorted(cumulative, cumulative[-1]))
        return int(ids[min(position, last)])


def _check_finite(logit: float, token: int) -> None:
    if not math.isfinite(logit):
        raise UserError(
            Code.NUMERIC,
            f"expected finite logits, got {logit} for token {token}",
            hint="the model's weights may be damaged, or its numbers too large for its dtype",
        )


def _largest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest logits, ascending; of equals the lowest ids."""
    if count >= len(logits):
        return np.arange(len(logits))
    bound = np.partition(logits, len(logits) - count)[len(logits) - count]
    above = np.flatnonzero(logits > bound)
    equal = np.flatnonzero(logits == bound)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(
    ids: NDArray[np.int64], weights: NDArray[np.float64], share: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most likely ids whose weights reach `share` of the total, most likely first."""
    total = weights.sum()
    # Together the weights below this are less than 1 - share: none is in the nucleus. Sorting
    # what is left costs little even for a vocabulary of 262 144.
    kept = np.flatnonzero(weights >= (1.0 - share) * total / len(weights))
    ids, weights = ids[kept], weights[kept]
    order = np.argsort(-weights, kind="stable")
    ids, weights = ids[order], weights[order]
    count = int(np.searchsorted(np.cumsum(weights), share * total)) + 1
    return ids[:count], weights[:count]


def _between(value: object, low: float, high: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value >= low and (high is None or value <= high)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
