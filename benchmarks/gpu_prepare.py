"""What `gpu.py measure` needs and cannot make where it runs: programs, cases, expected numbers.

A prepared model is a folder:

- `model.json`: name, options, the programs' signature, target, packed weights (offset, bytes,
  layout, [n, k]), predictions by the cost model;
- the programs; `rows.npz` with vectors and tables; `weights.bin` where it is small;
- `expected.npz`: tokens and the reference's logits (tiny models);
- `greedy.npz`: a prompt, what the CPU backend continues it with, and how much better each choice
  was than the second best (real models).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import call_of
from numpy.typing import NDArray

import infc
from infc.artifact import Artifact, open_artifact
from infc.driver import predict
from infc.driver.loading import load_runnable
from infc.ir.attributes import attributes_of
from infc.ir.context import context, parse
from infc.ir.types import TensorType
from infc.passes.memory.pack_weights import packed_weights
from infc.target.runnable import OutputKind, Phase

PROJECT = Path(__file__).resolve().parents[1]
ARCH = "sm_90a"
TARGET = f"cuda:{ARCH}"
PREDICTED = ((512, 128), (2048, 128))
"""Uses (prompt tokens, new tokens) that are predicted, as `infc bench` would."""
SMALL_BYTES = 4 << 20
"""Weights that travel."""
PIECE_BYTES = 48 << 20
CASE_TESTS = ("tests/unit", "tests/differential")
GREEDY_TOKENS = 64
TOLERANCE, TIE = 3e-2, 0.25
"""Relative error of a tiny model's logits; a difference of logits that roundings may turn over."""


@dataclass(frozen=True)
class Plan:
    """A model and how it is compiled.

    Attributes:
        options: of `infc.compile`.
        expected: `logits`, `greedy` or nothing.
    """

    name: str
    model: Path
    options: dict[str, Any] = field(default_factory=dict)
    expected: str = ""


def write_llama_shape(folder: Path, c: dict[str, Any]) -> Path:
    """A Llama's folder in bfloat16 with this configuration; the weights are a hole in a file."""
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    kv = c["num_key_value_heads"] * c["head_dim"]
    matrices = {
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(c["num_hidden_layers"])
        for name, shape in matrices.items()
    }
    shapes |= {
        "model.embed_tokens.weight": [c["vocab_size"], hidden],
        "model.norm.weight": [hidden],
    }
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(c))
    return folder


def prepare_model(
    plan: Plan, out: Path, scratch: Path, target: str = TARGET, real: Path | None = None
) -> None:
    """Compile a model and write what of it travels.

    Args:
        out: the new folder.
        scratch: a folder for the artifact and the dumps.
        real: gets the packed weights of models with a text to compare, in pieces.
    """
    dump, path = scratch / "dump", scratch / "model.infc"
    infc.compile(plan.model, target=target, output=path, dump=dump, **plan.options)
    with open_artifact(path) as artifact:
        out.mkdir(parents=True)
        for name in artifact.names():
            if name.startswith("programs/"):
                (out / name.removeprefix("programs/")).write_bytes(artifact.member(name))
        weights = np.frombuffer(artifact.member("weights/weights.bin"), np.uint8)
        table = packed_table(dump)
        rows = {
            str(number): weights[entry["offset"] :][: entry["size_bytes"]]
            for number, entry in enumerate(table)
            if entry["layout"] == "rows"
        }
        np.savez_compressed(out / "rows.npz", **rows)
        if len(weights) <= SMALL_BYTES:
            weights.tofile(out / "weights.bin")
        elif real is not None and plan.expected:
            _write_pieces(weights, real, plan.name)
        facts = {
            "name": plan.name,
            "options": plan.options,
            "signature": artifact.manifest.programs["decode"],
            "target": artifact.manifest.targets["decode"],
            "weight_bytes": len(weights),
            "weights": table,
            "predicted": predictions(artifact),
            "tolerance": TOLERANCE,
            "tie": TIE,
        }
        (out / "model.json").write_text(json.dumps(facts))
    if plan.expected:
        _write_expected(plan, out, scratch)


def packed_table(dump: Path) -> list[dict[str, Any]]:
    """The packed weights of a dumped compilation, in file order."""
    last = sorted(dump.glob("*-memory-*.mlir"))[-1]
    with context():
        module = parse(last.read_text())
        table = []
        for op in packed_weights(module):
            found = attributes_of(op)
            shape = [int(d) for d in TensorType.of(found["type"]).shape]
            entry = {key: found[key] for key in ("offset", "size_bytes", "layout")}
            table.append(entry | {"n": shape[0], "k": shape[-1]})
    return table


def predictions(artifact: Artifact) -> list[dict[str, Any]]:
    """What the cost model says of each use."""
    found = []
    for prompt, new in PREDICTED:
        if prompt + new > artifact.manifest.programs["decode"]["max_context"]:
            continue
        phases = predict(artifact, prompt_tokens=prompt, new_tokens=new, threads=1)
        found.append(
            {"prompt_tokens": prompt, "new_tokens": new}
            | {name: phase and asdict(phase) for name, phase in phases.items()}
        )
    return found


def _write_pieces(weights: NDArray[np.uint8], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(weights), PIECE_BYTES)):
        weights[start : start + PIECE_BYTES].tofile(folder / f"{name}.bin.{number:02}")


def _write_expected(plan: Plan, out: Path, scratch: Path) -> None:
    target = "reference" if plan.expected == "logits" else "cpu"
    path = scratch / f"{target}.infc"
    infc.compile(plan.model, target=target, output=path, **plan.options)
    with open_artifact(path) as artifact:
        runnable = load_runnable(artifact)
        if plan.expected == "logits":
            _write_logits(runnable, out)
        else:
            _write_greedy(runnable, infc.load(artifact).tokenizer, out)
        runnable.close()


def _write_logits(runnable: Any, out: Path) -> None:
    rng = np.random.default_rng(1)
    count = min(40, runnable.limits.max_context - 1)
    tokens = rng.integers(0, runnable.vocab_size, count).astype(np.int32)
    kv, made = runnable.new_kv(), []
    for position, token in enumerate(tokens):
        call = call_of(np.array([token], np.int32), position, output=OutputKind.LOGITS)
        made.append(runnable.run(Phase.DECODE, call, kv, threads=1))
    np.savez_compressed(out / "expected.npz", tokens=tokens, logits=np.concatenate(made))


def _write_greedy(runnable: Any, tokenizer: Any, out: Path) -> None:
    prompt = np.array(tokenizer.encode("The history of computing begins with"), np.int32)
    kv, chosen, gaps = runnable.new_kv(), [], []
    call, phase = call_of(prompt, 0, output=OutputKind.LOGITS), Phase.PREFILL
    for number in range(GREEDY_TOKENS):
        (logits,) = runnable.run(phase, call, kv, threads=1)
        second, first = np.sort(logits)[-2:]
        chosen.append(int(np.argmax(logits)))
        gaps.append(float(first - second))
        token = np.array(chosen[-1:], np.int32)
        call = call_of(token, len(prompt) + number, output=OutputKind.LOGITS)
        phase = Phase.DECODE
    np.savez_compressed(
        out / "greedy.npz", prompt=prompt, chosen=np.array(chosen, np.int32), gaps=np.array(gaps)
    )


def prepare_cases(out: Path, tests: Sequence[str] = CASE_TESTS) -> int:
    """Record what the unit tests run in lockstep; how many cases there are."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cuda_recording"]
    command += ["-p", "no:cacheprovider", "-k", "cuda", "--record-launches", str(out), *tests]
    run = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        print(run.stdout[-2000:], file=sys.stderr)
    return len(json.loads((out / "cases.json").read_text()))
