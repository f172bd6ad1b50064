"""Calls of both phases and the classes of their kernels, as predictions count them."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_summaries import product

from infc.backends.cpu.target import resolve_cpu
from infc.driver.prediction import Turns, decode_turns, prefill_turns, sized_work
from infc.target.discovery import load_backend


def test_few_rows_are_predicted_as_they_run() -> None:
    """A program for many rows streams its weights past a few: its kernels say from where on."""
    target, backend = resolve_cpu("cpu:x86-64-v3"), load_backend("cpu")
    kernel = product(32, [(2048, 1024, "q8_0")], "int8")
    candidates = backend.candidates(kernel, target)
    mapping = next(each for each in candidates if each["row_tile"] == 4 and each["col_tile"])
    work = backend.work(kernel, mapping, target)
    assert [(way.rows, way.kernel, way.height) for way in work.ways] == [
        (1, "stream-product", 2),
        (4, "staged-product", 4),
    ]
    record = {
        "kind": "matmul",
        "rows": 32,
        "bytes": {"dram": 1.0},
        "operations": {"int8": 32.0},
        "barriers": 1,
        "class": work.kernel,
        "sizes": dict(work.sizes),
        "ways": [asdict(way) for way in work.ways],
    }
    streamed, staged = ("stream-product", 2), ("staged-product", 4)
    for rows, (name, height) in ((1, streamed), (3, streamed), (4, staged), (32, staged)):
        few = sized_work(record, "decode", Turns(1, rows, 100))
        assert (few.kernel, few.sizes["height"], few.sizes["rows"]) == (name, height, rows)
    # A prompt's head works on one row, however many tokens there are.
    head = {**record, "rows": 1, "sizes": {**work.sizes, "rows": 1}}
    assert sized_work(head, "prefill", Turns(1, 100, 100)).kernel == "stream-product"
    one = product(1, [(2048, 1024, "q8_0")], "int8")
    assert backend.work(one, mapping, target).ways == ()


@given(st.integers(1, 3000), st.integers(1, 700), st.integers(1, 300))
def test_turns_cover_every_token(prompt: int, chunk: int, new_tokens: int) -> None:
    turns = prefill_turns(prompt, chunk)
    assert sum(turn.calls * turn.tokens for turn in turns) == prompt
    assert all(turn.tokens <= chunk for turn in turns)
    assert (turns[-1].calls, turns[-1].context) == (1, prompt)
    assert len(turns) <= 65
    behind = sum(min(prompt, start + chunk) for start in range(0, prompt, chunk))
    assert sum(turn.calls * turn.context for turn in turns) == pytest.approx(behind, rel=0.02)
    steps = decode_turns(prompt, new_tokens)
    assert sum(turn.calls for turn in steps) == pytest.approx(new_tokens)
    mean = sum(turn.calls * turn.context for turn in steps) / new_tokens
    assert mean == pytest.approx(prompt + (new_tokens + 1) / 2, abs=1.01)
    assert all(prompt < turn.context <= prompt + new_tokens for turn in steps)
