"""Prefill on one backend, decode on another: the KV cache moves in its logical form."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import FAMILY_NAMES, WINDOW
from small_models import CHUNK, SmallModels, feed, random_tokens, relative_error

from infc.target.runnable import KVCache, Phase, Runnable

# Sliding and full layers take turns; keys of the full one are never overwritten.
MODEL = {"num_hidden_layers": 2}

EXACT, HALF = 1e-4, 5e-3
"""As a part of the range of logits: float32 in another order, and a cache in half precision, whose
roundings may fall the other way."""


def move(
    source: Runnable, cache: KVCache, slot: int, stop: int, target: Runnable, target_slot: int
) -> KVCache:
    """A cache of another runnable that holds positions `[0, stop)` of a slot."""
    assert source.kv_shape.layers == target.kv_shape.layers
    moved = target.new_kv()
    moved.kv_import(target_slot, cache.kv_export(slot, 0, stop))
    return moved


@dataclass
class Pair:
    reference: Runnable
    cpu: Runnable
    tolerance: float

    def both_ways(self) -> list[tuple[Runnable, Runnable]]:
        return [(self.reference, self.cpu), (self.cpu, self.reference)]


@pytest.fixture(scope="module", params=["f32", "f16"])
def pair(small_models: SmallModels, request: pytest.FixtureRequest) -> Pair:
    storage = {"f32": "F32", "f16": "BF16"}[request.param]
    model = small_models.model("gemma2", storage, **MODEL)
    reference, cpu = (small_models.runnable(model, name) for name in ("reference", "cpu"))
    assert reference.kv_shape.dtype == cpu.kv_shape.dtype == request.param
    return Pair(reference, cpu, EXACT if request.param == "f32" else HALF)


def decode_after_move(
    source: Runnable, target: Runnable, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of five decoded tokens: moved from `source` to `target`, and all on `target`."""
    tokens = random_tokens(target.vocab_size, length + 5)
    rest = {"start": length, "phase": Phase.DECODE}
    cache = source.new_kv()
    feed(source, cache, tokens[:length], slot=1)
    moved = move(source, cache, 1, length, target, 2)
    got = feed(target, moved, tokens[length:], slot=2, **rest)  # type: ignore[arg-type]
    stayed = target.new_kv()
    feed(target, stayed, tokens[:length])
    return got, feed(target, stayed, tokens[length:], **rest)  # type: ignore[arg-type]


# Inside the window, past it, and past the end of its ring (window + chunk - 1 positions, padded).
@pytest.mark.parametrize("length", [5, WINDOW + 3, 2 * (WINDOW + CHUNK)])
def test_decode_goes_on_elsewhere(pair: Pair, length: int) -> None:
    for source, target in pair.both_ways():
        got, expected = decode_after_move(source, target, length)
        assert relative_error(got, expected) <= pair.tolerance


def test_prefill_goes_on_elsewhere(pair: Pair) -> None:
    """A second chunk reads what the first left in the rings."""
    for source, target in pair.both_ways():
        tokens = random_tokens(target.vocab_size, 50)
        cache = source.new_kv()
        feed(source, cache, tokens[:37])
        moved = move(source, cache, 0, 37, target, 0)
        got = feed(target, moved, tokens[37:], start=37)
        stayed = target.new_kv()
        expected = feed(target, stayed, tokens)[37:]
        assert relative_error(got, expected) <= pair.tolerance


def test_nothing_is_lost_on_the_way(pair: Pair) -> None:
    """There and back again gives the same bits, and only the slot that was named has changed."""
    length = 2 * (WINDOW + CHUNK)
    tokens = random_tokens(pair.cpu.vocab_size, length)
    for source, target in pair.both_ways():
        cache = source.new_kv()
        feed(source, cache, tokens)
        sent = cache.kv_export(0, 0, length)
        moved = move(source, cache, 0, length, target, 1)
        back = moved.kv_export(1, 0, length)
        assert sent.layer_starts == back.layer_starts
        sliding, full = sent.layer_starts
        assert (sliding, full) == (length - source.kv_shape.capacity[0], 0)
        assert source.kv_shape.capacity[0] < length
        for layer in range(source.kv_shape.layers):
            np.testing.assert_array_equal(sent.keys[layer], back.keys[layer])
            np.testing.assert_array_equal(sent.values[layer], back.values[layer])
            assert np.ptp(sent.keys[layer]) > 0.1
        for untouched in (0, 2):
            block = moved.kv_export(untouched, 0, length)
            assert all(not keys.any() for keys in block.keys)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_moves(small_models: SmallModels, family: str) -> None:
    model = small_models.model(family)
    reference, cpu = (small_models.runnable(model, name) for name in ("reference", "cpu"))
    for source, target in Pair(reference, cpu, EXACT).both_ways():
        got, expected = decode_after_move(source, target, 40)
        assert relative_error(got, expected) <= EXACT
