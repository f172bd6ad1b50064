"""Sampling: each transform alone, their order, and the same draws everywhere."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.runtime.sampling import Sampler, SamplingOptions


def _logits(*probabilities: float) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities)).astype(np.float32)


def _drawn(options: SamplingOptions, logits: NDArray[np.float32], draws: int = 4000) -> list[float]:
    """The share of each token in many draws."""
    sampler = Sampler(options)
    counts = Counter(sampler.sample(logits, []) for _ in range(draws))
    return [counts[id] / draws for id in range(len(logits))]


def test_greedy_takes_the_lowest_of_equals() -> None:
    sampler = Sampler(SamplingOptions())
    assert sampler.greedy
    assert sampler.sample(np.array([1.0, 3.0, 3.0, -np.inf], np.float32), []) == 1


def test_draws_follow_the_distribution() -> None:
    shares = _drawn(SamplingOptions(temperature=1.0), _logits(0.5, 0.3, 0.2, 0.0))
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.03)


def test_temperature_sharpens() -> None:
    shares = _drawn(SamplingOptions(temperature=0.5), _logits(0.6, 0.3, 0.1))
    assert shares == pytest.approx([36 / 46, 9 / 46, 1 / 46], abs=0.03)


def test_top_k_keeps_the_lowest_ids_of_equals() -> None:
    shares = _drawn(
        SamplingOptions(temperature=1.0, top_k=3), _logits(0.1, 0.2, 0.4, 0.1, 0.1, 0.1)
    )
    assert shares == pytest.approx([1 / 7, 2 / 7, 4 / 7, 0, 0, 0], abs=0.03)
    assert shares[3:] == [0, 0, 0]


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    shares = _drawn(SamplingOptions(temperature=1.0, top_p=0.7), _logits(0.1, 0.25, 0.5, 0.15))
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 0], abs=0.03)
    assert shares[0] == shares[3] == 0
    only = _drawn(SamplingOptions(temperature=1.0, top_p=1e-9), _logits(0.1, 0.5, 0.4), draws=50)
    assert only == [0, 1, 0]


def test_top_p_is_a_share_of_what_temperature_and_top_k_left() -> None:
    logits = _logits(0.4, 0.3, 0.2, 0.1)
    # of the three kept by top_k the first two are 7/9 > 0.75; of all four they were 0.7
    shares = _drawn(SamplingOptions(temperature=1.0, top_k=3, top_p=0.75), logits)
    assert shares[2:] == [0, 0]
    # a high temperature makes the four equal: three of them are needed
    hot = _drawn(SamplingOptions(temperature=1000.0, top_p=0.74), logits)
    assert hot == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.03)


def test_min_p_is_relative_to_the_most_likely() -> None:
    shares = _drawn(SamplingOptions(temperature=1.0, min_p=0.3), _logits(0.5, 0.3, 0.16, 0.04))
    assert shares == pytest.approx([5 / 9.6, 3 / 9.6, 1.6 / 9.6, 0], abs=0.03)
    assert shares[3] == 0


def test_large_vocabularies_keep_the_same_nucleus() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    order = np.argsort(-weights, kind="stable")
    reach = np.cumsum(weights[order]) / weights.sum()
    allowed = set(order[: int(np.searchsorted(reach, 0.3)) + 1].tolist())
    sampler = Sampler(SamplingOptions(temperature=1.0, top_p=0.3))
    assert {sampler.sample(logits, []) for _ in range(2000)} <= allowed


def test_repetition_penalty_sees_the_window_only() -> None:
    options = SamplingOptions(repetition_penalty=2.0, repetition_window=2)
    sampler = Sampler(options)
    assert not sampler.greedy
    logits = np.array([3.0, 2.0, -1.0], np.float32)
    assert sampler.sample(logits, [0, 2, 2]) == 0
    assert sampler.sample(logits, [2, 0]) == 1
    assert sampler.sample(logits, [0, 1, 2, 2]) == 0
    everything = Sampler(SamplingOptions(repetition_penalty=2.0, repetition_window=0))
    assert everything.sample(logits, [0] + [2] * 100) == 1
    assert logits.tolist() == [3.0, 2.0, -1.0]


def test_negative_logits_are_penalised_downwards() -> None:
    sampler = Sampler(SamplingOptions(repetition_penalty=2.0))
    assert sampler.sample(np.array([-1.0, -1.5], np.float32), [0]) == 1


def test_draws_are_known_by_seed() -> None:
    logits = np.linspace(-2, 2, 100).astype(np.float32)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, top_k=40, seed=seed))
        return [sampler.sample(logits, []) for _ in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    # golden: the same on every platform and in every release
    assert draw(7) == [97, 96, 98, 78, 78, 93, 73, 72]


def test_a_clone_goes_on_alike() -> None:
    logits = np.zeros(1000, np.float32)
    sampler = Sampler(SamplingOptions(temperature=1.0))
    sampler.sample(logits, [])
    twin = sampler.clone()
    ahead = [sampler.sample(logits, []) for _ in range(5)]
    assert [twin.sample(logits, []) for _ in range(5)] == ahead
    assert len(set(ahead)) > 1


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = np.full(10, -np.inf, np.float32)
    logits[4] = -1e30
    sampler = Sampler(SamplingOptions(temperature=math.nextafter(0, 1), top_k=5))
    assert {sampler.sample(logits, []) for _ in range(20)} == {4}
