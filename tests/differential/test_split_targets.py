"""Prefill on one target, decode on another: the KV contract as a user meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_huggingface
from small_models import SmallModels, random_tokens

import infc
from infc.artifact import open_artifact
from infc.diagnostics import UserError
from infc.driver.loading import load_runnable
from infc.runtime.split import SplitRunnable

IDS = [int(token) for token in np.random.default_rng(0).integers(0, 200, 40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3: windows of 16 that 40 positions cross, and a layer without."""
    folder = tmp_path_factory.mktemp("model")
    write_huggingface(folder, *make_family("gemma3"))
    return folder


def turns(session: infc.Session) -> NDArray[np.float32]:
    """Prefill, decode, prefill again, decode, go back, prefill, fork, decode: `[20, vocab]`."""
    rows = [session.prefill(IDS[:20]), *(session.decode(token) for token in IDS[20:28])]
    rows += [session.prefill(IDS[28:33]), *(session.decode(token) for token in IDS[33:])]
    session.truncate(36)
    rows.append(session.prefill(IDS[3:6]))
    rows.append(session.fork().decode(3))
    return np.stack(rows)


def test_phases_on_different_targets_give_the_logits_of_one(model: Path, tmp_path: Path) -> None:
    targets = {
        "one": {"target": "reference"},
        "there": {"prefill_target": "reference", "decode_target": "cpu"},
        "back": {"prefill_target": "cpu", "decode_target": "reference"},
    }
    rows = {}
    for name, chosen in targets.items():
        artifact = infc.compile(
            model, output=tmp_path / f"{name}.infc", max_context=64, chunk=16, **chosen
        )
        rows[name] = turns(infc.load(artifact, threads=2))
    for name in ("there", "back"):
        error = np.abs(rows[name] - rows["one"]).max() / np.ptp(rows["one"])
        assert error < 1e-5, name


def test_a_resumed_compilation_keeps_its_target(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        infc.compile(
            model, prefill_target="cpu", resume_from=tmp_path / "dump.mlir", output=tmp_path / "a"
        )
    assert str(caught.value) == (
        "error[INF5001]: a resumed compilation keeps the target of its dump\n"
        "   = hint: leave out --prefill-target and --decode-target"
    )


def test_an_interrupted_prefill_leaves_the_other_side_right(
    small_models: SmallModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a ring lost comes back; what the decode side never had is still brought to it."""
    family = small_models.model("gemma3", num_hidden_layers=2, sliding_window_pattern=2)
    prefill, decode = (
        load_runnable(open_artifact(small_models.artifact(family, "reference", chunk=8)))
        for _ in range(2)
    )
    ids = random_tokens(prefill.vocab_size, 60)
    expected = infc.Session(decode, None, threads=1).prefill(ids[:37])
    session = infc.Session(SplitRunnable(prefill, decode), None, threads=1)
    session.prefill(ids[:36])

    whole = prefill.run

    def interrupted(*args: Any, **options: Any) -> NDArray[Any]:
        result = whole(*args, **options)
        if session.position > 50:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(prefill, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.prefill(ids[36:])
    assert session.position == 36
    assert np.abs(session.decode(ids[36]) - expected).max() / np.ptp(expected) < 1e-5
