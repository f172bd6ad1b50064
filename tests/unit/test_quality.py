"""How far predictions with quantised weights are from those with the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.driver import quality
from infc.driver.quality import compare, measure_prediction_change
from infc.runtime.session import Session

F32 = NDArray[np.float32]


@dataclass
class Predicting:
    """A session that knows its logits, `[n, vocab]`."""

    logits: F32

    def prefill(self, tokens: list[int], *, all_logits: bool) -> F32:
        assert all_logits
        return self.logits[: len(tokens)]


def change(exact: F32, other: F32) -> tuple[float, float]:
    sessions = [cast(Session, Predicting(logits)) for logits in (exact, other)]
    found = compare(sessions[0], sessions[1], list(range(len(exact))))
    assert found.tokens == len(exact)
    return found.mean_divergence, found.same_choice


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    exact = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]], np.float32))
    divergence, same = change(exact, other)
    assert np.isclose(divergence, 0.5 * (0.5 * np.log(2) + 0.25 * np.log(0.5)), rtol=1e-6)
    assert same == 0.5


def test_divergence_is_never_negative() -> None:
    """Sums of equal distributions are rounded, to either side."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        exact = rng.normal(size=(1, 40)).astype(np.float32) * 10
        divergence, same = change(exact, exact + np.float32(1))
        assert 0 <= divergence < 1e-6
        assert same == 1


def test_a_target_that_cannot_run_the_model_unquantised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The artifact is there already: that nothing can be compared is no error."""
    session = SimpleNamespace(
        tokenizer=SimpleNamespace(encode=lambda text: [1, 2, 3]),
        limits=SimpleNamespace(max_context=8),
    )
    manifest = SimpleNamespace(kv_layout={"kv_dtype": "f16"})
    artifact: Any = SimpleNamespace(path=tmp_path / "x.infc", manifest=manifest)

    def refuse(*_: object, **__: object) -> None:
        raise UserError(Code.TARGET_UNSUPPORTED, "expected codes, got f32")

    monkeypatch.setattr(quality, "load", lambda _: session)
    monkeypatch.setattr(quality, "compile", refuse)
    said = measure_prediction_change("m.gguf", artifact, target="dataflow:x")
    assert said == "dataflow:x cannot run the model as it is in its file"
    assert not list(tmp_path.iterdir())
