"""Prefill on one backend, decode on another: the KV cache moves in its logical form."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import FAMILY_NAMES, WINDOW
from small_models import CHUNK, SmallModels, feed, random_tokens, relative_error

import infc
from infc.target.runnable import KVCache, Phase, Runnable

# Sliding and full layers take turns; keys of the full one are never overwritten.
MODEL = {"num_hidden_layers": 2}

EXACT = 1e-4
TOLERANCES = {"f32": EXACT, "f16": 5e-3, "bf16": 2e-2, "int8": 4e-2}
"""As a part of the range of logits: float32 in another order, and caches of which some roundings
fall the other way."""


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


@pytest.fixture(scope="module", params=TOLERANCES)
def pair(small_models: SmallModels, request: pytest.FixtureRequest) -> Pair:
    model = small_models.model("gemma2", **MODEL)
    reference, cpu = (
        small_models.runnable(model, name, kv_dtype=request.param) for name in ("reference", "cpu")
    )
    assert reference.kv_shape.dtype == cpu.kv_shape.dtype == request.param
    return Pair(reference, cpu, TOLERANCES[request.param])


def test_the_cache_is_half_as_precise_as_the_weights(small_models: SmallModels) -> None:
    for storage, dtype in (("F32", "f32"), ("BF16", "f16")):
        model = small_models.model("gemma2", storage, **MODEL)
        assert small_models.runnable(model, "reference").kv_shape.dtype == dtype


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


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_saved_session_goes_on_with_the_same_bits(
    small_models: SmallModels, dtype: str, tmp_path: Path
) -> None:
    model = small_models.model("gemma2", **MODEL)
    artifact = small_models.artifact(model, "cpu", kv_dtype=dtype)
    session = infc.load(artifact, threads=1)
    session.prefill(random_tokens(session.vocab_size, WINDOW + 3))
    session.save(tmp_path / "state")
    expected = session.decode(1)
    restored = infc.load(artifact, threads=1)
    restored.restore(tmp_path / "state")
    np.testing.assert_array_equal(restored.decode(1), expected)
    session.truncate(WINDOW + 3)
    forked = session.fork()
    np.testing.assert_array_equal(session.decode(1), expected)
    np.testing.assert_array_equal(forked.decode(1), expected)


def test_prefill_and_decode_may_keep_caches_of_different_dtypes(small_models: SmallModels) -> None:
    """The logical form is float32: what one side keeps, the other rounds once more."""
    model = small_models.model("gemma2", **MODEL)
    exact, coarse = (
        small_models.runnable(model, "cpu", kv_dtype=dtype) for dtype in ("f32", "int8")
    )
    got, expected = decode_after_move(exact, coarse, 20)
    assert relative_error(got, expected) <= TOLERANCES["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_moves(small_models: SmallModels, family: str) -> None:
    model = small_models.model(family)
    reference, cpu = (small_models.runnable(model, name) for name in ("reference", "cpu"))
    for source, target in Pair(reference, cpu, EXACT).both_ways():
        got, expected = decode_after_move(source, target, 40)
        assert relative_error(got, expected) <= EXACT
