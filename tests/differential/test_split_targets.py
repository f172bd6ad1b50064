"""Prefill on one target, decode on another: the KV contract as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from oracle.families import make_family
from oracle.files import write_huggingface

import infc
from infc.diagnostics import UserError

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
