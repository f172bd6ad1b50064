"""Compilations that cannot be, that are interrupted, and that race each other."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_huggingface
from small_models import SmallModels

import infc
from infc.diagnostics import UserError

TINY = {"num_hidden_layers": 1}

COMPILE = """
import sys, time
import infc
from infc.backends.cpu import packing

pack_one = packing.pack_one

def slow(op, weights):
    print("packing", flush=True)
    time.sleep(float(sys.argv[3]))
    return pack_one(op, weights)

packing.pack_one = slow
infc.compile(sys.argv[1], output=sys.argv[2], max_context=64, chunk=4)
"""


def start(model: Path, output: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMPILE, str(model), str(output), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_compilation_leaves_nothing_half_written(
    small_models: SmallModels, tmp_path: Path, number: signal.Signals
) -> None:
    """Neither in place of an older artifact, nor beside it once somebody writes there again."""
    model = small_models.model("qwen3", **TINY)
    output = tmp_path / "a.infc"
    output.write_bytes(b"an artifact of before")
    process = start(model, output, 20)
    assert process.stdout is not None
    assert process.stdout.readline() == "packing\n"
    beside = [path.name for path in tmp_path.iterdir() if path != output]
    assert [name.startswith(".infc-tmp-") for name in beside] == [True]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    assert output.read_bytes() == b"an artifact of before"
    if number is signal.SIGINT:
        assert list(tmp_path.iterdir()) == [output]
    infc.compile(model, target="reference", output=output, max_context=64)
    assert list(tmp_path.iterdir()) == [output]
    assert infc.load(output).prefill([1, 2]).shape == (320,)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_output_is_not_put_over_the_model(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_huggingface(folder, *make_family("qwen3", **TINY))
    before = (folder / name).read_bytes()
    with pytest.raises(UserError) as caught:
        infc.compile(folder, target="reference", output=folder / name, max_context=64)
    assert str(caught.value) == (
        "error[INF4006]: cannot write the output: it is part of the input\n"
        f"  --> {folder / name}\n"
        "   = hint: choose another name"
    )
    assert (folder / name).read_bytes() == before
    for _ in range(2):
        infc.compile(folder, target="reference", output=folder / "a.infc", max_context=64)


def test_two_compilations_to_one_output(small_models: SmallModels, tmp_path: Path) -> None:
    """Both succeed, and what lies there is one of them: here both are the same bytes."""
    model = small_models.model("qwen3", **TINY)
    output = tmp_path / "a.infc"
    processes = [start(model, output, 0.05) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert list(tmp_path.iterdir()) == [output]
    alone = small_models.artifact(model, "cpu", chunk=4, max_batch=1)
    assert output.read_bytes() == alone.read_bytes()


PREFILL = """
import signal, sys, threading, time
import numpy as np
import infc
from infc.target.runnable import Phase

session = infc.load(sys.argv[1], threads=2)
tokens = [int(t) for t in np.random.default_rng(0).integers(0, 320, 60)]
expected = session.prefill(tokens); session.reset()
session.prefill(tokens[:7])

run = session._runnable.run
def slow(phase, call, kv, *, threads, cancel=None):
    print("running", flush=True)
    while cancel is not None and not cancel.is_set():
        time.sleep(0.01)
    return run(phase, call, kv, threads=threads, cancel=cancel)
session._runnable.run = slow
try:
    session.prefill(tokens[7:])
except KeyboardInterrupt:
    print("interrupted", session.position)
session._runnable.run = run
print(np.array_equal(session.prefill(tokens[7:]), expected), session.position)
"""


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_prefill_leaves_the_session_usable(small_models: SmallModels) -> None:
    """The program sees the flag and stops; the same prompt then gives the same bits."""
    artifact = small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")
    process = subprocess.Popen(
        [sys.executable, "-c", PREFILL, str(artifact)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("interrupted 7\nTrue 60\n", "", 0)


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    config, tensors = make_family("qwen3", **TINY)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    tensors["model.norm.weight"][:2] = np.inf
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors)
    for target in ("cpu", "reference"):
        with pytest.raises(UserError) as error:
            infc.compile(model, target=target, output=tmp_path / "a.infc")
        file = model / "model.safetensors"
        assert str(error.value) == (
            "error[INF1008]: expected finite weights, got others in 2 tensors\n"
            f"  --> {model}\n"
            "   - 2 numbers are NaN or infinite "
            f'({file}: tensor "model.norm.weight")\n'
            "   - 1 numbers are NaN or infinite "
            f'({file}: tensor "model.layers.0.mlp.up_proj.weight")\n'
            "   = hint: the file is damaged or was converted wrongly: get it again"
        )
    assert list(tmp_path.iterdir()) == [model]


def test_all_that_a_target_cannot_do_in_one_report(tmp_path: Path) -> None:
    config, tensors = make_family("gemma2", num_hidden_layers=2, head_dim=6)
    model = tmp_path / "model"
    model.mkdir()
    write_huggingface(model, config, tensors)
    with pytest.raises(UserError) as error:
        infc.compile(model, target="cpu:x86-64-v3", output=tmp_path / "a.infc")
    assert str(error.value) == (
        "error[INF3004]: target cpu:x86-64-v3 cannot compile 2 operations of the model\n"
        f"  --> {model}\n"
        "   - infc.attention: expected an even head_dim of at least 8, got 6 (layers.0.attention "
        "and 1 other)\n"
        "   = hint: --target reference runs every operation, slowly"
    )
    assert list(tmp_path.iterdir()) == [model]
    infc.compile(model, target="reference", output=tmp_path / "a.infc", max_context=16)
