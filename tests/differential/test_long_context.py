"""Contexts of 32768 positions: compiled, planned and run, without waiting for so many tokens."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import WINDOW
from small_models import CHUNK, SLOTS, SmallModels, feed, make_call, random_tokens, relative_error

import infc
from infc.diagnostics import UserError
from infc.target.runnable import KVBlock, KVCache, Phase, Runnable

CONTEXT = 32768
PAST = CONTEXT - 70
"""Positions that are in the cache before the tests begin."""


@pytest.fixture(scope="module", params=["f32", "f16", "int8"])
def pair(small_models: SmallModels, request: pytest.FixtureRequest) -> tuple[Runnable, Runnable]:
    model = small_models.model("gemma2", num_hidden_layers=2, max_position_embeddings=CONTEXT)
    options = {"max_context": CONTEXT, "kv_dtype": request.param}
    return (
        small_models.runnable(model, "reference", **options),
        small_models.runnable(model, "cpu", **options),
    )


def past(runnable: Runnable) -> KVBlock:
    """Keys and values of `PAST` positions, as if they had been prefilled."""
    shape, rng = runnable.kv_shape, np.random.default_rng(5)
    starts = tuple(max(0, PAST - capacity) for capacity in shape.capacity)

    def numbers(start: int) -> NDArray[np.float32]:
        size = (PAST - start, shape.kv_heads, shape.head_dim)
        return 0.3 * rng.standard_normal(size, dtype=np.float32)

    keys, values = ([numbers(start) for start in starts] for _ in range(2))
    return KVBlock(0, PAST, starts, keys, values)


def filled(runnable: Runnable, slots: range = range(1)) -> KVCache:
    kv = runnable.new_kv()
    for slot in slots:
        kv.kv_import(slot, past(runnable))
    return kv


def test_only_full_layers_hold_the_context(pair: tuple[Runnable, Runnable]) -> None:
    for runnable in pair:
        sliding, full = runnable.kv_shape.capacity
        assert (sliding, full) == (-(-(WINDOW + CHUNK - 1) // 16) * 16, CONTEXT)


def test_the_end_of_the_context_is_reached(pair: tuple[Runnable, Runnable]) -> None:
    reference, cpu = pair
    tokens = random_tokens(cpu.vocab_size, CONTEXT - PAST)
    got, expected = [], []
    for runnable, rows in ((cpu, got), (reference, expected)):
        kv = filled(runnable)
        rows.append(feed(runnable, kv, tokens[:60], start=PAST)[-1:])
        rest = feed(runnable, kv, tokens[60:], start=PAST + 60, phase=Phase.DECODE)
        assert len(rest) == 10  # the last one stands at the last position
        rows.append(rest)
    tolerance = {"f32": 1e-4, "f16": 5e-3, "int8": 4e-2}[cpu.kv_shape.dtype]
    assert relative_error(np.concatenate(got), np.concatenate(expected)) <= tolerance


def test_bits_do_not_depend_on_threads_or_company(pair: tuple[Runnable, Runnable]) -> None:
    """Rows of very different lengths, each divided into parts by its own position."""
    _, cpu = pair
    tokens = random_tokens(cpu.vocab_size, SLOTS)
    starts = [PAST, 3, 200]

    alone = []
    for slot in range(SLOTS):
        call = make_call([[tokens[slot]]], slots=[slot], starts=[starts[slot]])
        alone.append(cpu.run(Phase.DECODE, call, filled(cpu, range(SLOTS)), threads=1)[0])
    together = make_call([[token] for token in tokens], starts=starts)
    for threads in (1, 2, 3):
        got = cpu.run(Phase.DECODE, together, filled(cpu, range(SLOTS)), threads=threads)
        np.testing.assert_array_equal(got, np.stack(alone))


def test_the_arena_does_not_grow_with_the_context(
    small_models: SmallModels, pair: tuple[Runnable, Runnable]
) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2, max_position_embeddings=CONTEXT)
    _, cpu = pair
    dtype = cpu.kv_shape.dtype
    short = small_models.runnable(model, "cpu", max_context=1024, kv_dtype=dtype)
    assert cpu.planned_bytes == short.planned_bytes


def test_parts_without_room_are_refused(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.model("gemma2", num_hidden_layers=2, max_position_embeddings=CONTEXT)
    options = {"target": "cpu", "max_context": 256, "chunk": CHUNK}
    infc.compile(model, output=tmp_path / "a.infc", dump=tmp_path, **options)  # type: ignore[arg-type]
    (dump,) = tmp_path.glob("*-choose-mappings.mlir")
    text = dump.read_text()
    (needed,) = {int(n) for n in re.findall(r"shared_bytes = (\d+)", text)} - {0}
    dump.write_text(text.replace(f"shared_bytes = {needed} ", f"shared_bytes = {needed - 64} "))
    with pytest.raises(UserError) as caught:
        infc.compile(model, output=tmp_path / "b.infc", resume_from=dump)
    assert str(caught.value) == (
        f"error[INF2101]: expected shared_bytes of at least {needed}, got {needed - 64}\n"
        '  --> loc("layers.1.attention")\n'
        "   = hint: larger tiles and more parts need more of it: raise it before plan-memory"
    )
