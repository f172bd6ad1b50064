"""A real model's CUDA kernels, executed on this CPU, beside the CPU backend.

    python benchmarks/cuda_lockstep.py --model gemma.gguf --arch sm_90a --steps 3 --output OUT.json

Compiles the model for both, feeds both the tokens that the CPU's programs choose, and compares the
logits of the prompt and of each step: the largest difference as a share of the logits' range, and
whether the best token is the same. The kernels run in the lockstep interpreter, so this takes
minutes a token; it says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray

import infc
from infc.target.runnable import Call, KVCache, OutputKind, Phase, Runnable

PROJECT = Path(__file__).resolve().parent.parent
CONTEXT, CHUNK = 64, 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--arch", default="sm_90a")
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(
            arguments.model, arguments.arch, arguments.prompt, arguments.steps, Path(folder)
        )
    record = {
        "schema_version": 1,
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "model": arguments.model.name,
        "arch": arguments.arch,
        "prompt": arguments.prompt,
        "calls": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["best_token_equal"] for row in rows) else 1


def compare(model: Path, arch: str, prompt: str, steps: int, folder: Path) -> list[dict[str, Any]]:
    """A row for the prompt and for each step."""
    sys.path.insert(0, str(PROJECT / "tests"))
    from cuda_models import compile_model, on_lockstep

    limits: dict[str, Any] = {"max_context": CONTEXT, "chunk": CHUNK}
    infc.compile(model, target="cpu", output=folder / "cpu.infc", **limits)
    session = infc.load(folder / "cpu.infc")
    tokens = session.tokenizer.encode(prompt)
    expected = [session.prefill(tokens)]
    while len(expected) <= steps:
        tokens = [*tokens, int(np.argmax(expected[-1]))]
        expected.append(session.decode(tokens[-1]))
    artifact = compile_model(model, folder, arch, max_batch=1)
    rows = []
    with on_lockstep(artifact) as (runnable, _):
        kv = runnable.new_kv()
        length = len(tokens) - steps
        calls = [tokens[:length], *([token] for token in tokens[length:])]
        position = 0
        for part, wanted in zip(calls, expected, strict=True):
            begin = time.monotonic()
            logits = run(runnable, kv, part, position)
            position += len(part)
            row = {
                "tokens": len(part),
                "position": position - len(part),
                "largest_difference_of_range": float(
                    np.abs(logits - wanted).max() / np.ptp(wanted)
                ),
                "best_token": int(np.argmax(logits)),
                "best_token_equal": int(np.argmax(logits)) == int(np.argmax(wanted)),
                "interpreter_seconds": time.monotonic() - begin,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def run(runnable: Runnable, kv: KVCache, tokens: list[int], position: int) -> NDArray[np.float32]:
    """Logits of the last token of a call."""
    count = len(tokens)
    call = Call(
        np.array(tokens, np.int32),
        np.array([0, count], np.int32),
        np.array([0], np.int32),
        np.arange(position, position + count, dtype=np.int32),
        np.array([count - 1], np.int32),
        OutputKind.LOGITS,
    )
    phase = Phase.PREFILL if count > 1 else Phase.DECODE
    return np.asarray(runnable.run(phase, call, kv, threads=1), np.float32)[0]


if __name__ == "__main__":
    sys.exit(main())
