"""The exact reduced head beside the full one: seconds a token, in turns, and how much was read.

The same model is compiled twice, once with its head in one plane. Both generate the same text, one
step of each in turns. How many rows of the head are multiplied is found by following the search in
NumPy, for hidden states that the reference computes.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import infc
from infc.artifact import open_artifact
from infc.backends.cpu.backend import CpuBackend
from infc.backends.cpu.kernels.split_layout import SplitLayout, split_layout_for
from infc.backends.cpu.kernels.split_search import (
    DENSE_ROWS,
    MOST_PLAIN_STRETCHES,
    STRETCH,
    WORTH_ROWS,
)
from infc.driver.loading import load
from infc.frontends import open_model
from infc.frontends.graph import build_graph
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES
from infc.reference.a8 import a8_offsets, quantize_a8
from infc.reference.interpreter import Interpreter, Stored
from infc.runtime import Session
from infc.runtime.sampling import Sampler, SamplingOptions

HERE = Path(__file__).resolve().parent
TEXTS: dict[str, str] = json.loads((HERE / "texts" / "exact_head.json").read_text())
MODES = {"greedy": SamplingOptions(), "top-40": SamplingOptions(temperature=0.8, top_k=40)}
WANTED = {"greedy": 1, "top-40": 40}
PROMPT = 100
PANEL = 16
ROWS_AT_A_TIME = 1 << 14
"""Rows of the head dequantised at a time."""
F32 = NDArray[np.float32]


def step_seconds(
    sessions: dict[str, Session], ids: list[int], steps: int, options: SamplingOptions
) -> dict[str, Any]:
    """Medians and least seconds of a step; both sessions must choose the same tokens."""
    samplers = {name: Sampler(options) for name in sessions}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    tokens: dict[str, list[int]] = {name: [] for name in sessions}
    for name, session in sessions.items():
        session.reset()
        tokens[name].append(session.prefill_next(ids, samplers[name]))
    for step in range(steps):
        order = list(sessions) if step % 2 else list(sessions)[::-1]
        for name in order:
            start = time.perf_counter()
            token = sessions[name].next_token(samplers[name])
            seconds[name].append(time.perf_counter() - start)
            tokens[name].append(token)
    if len({tuple(made) for made in tokens.values()}) != 1:
        raise click.ClickException("the reduced head chose other tokens than the full one")
    medians = {f"{name}_seconds": float(np.median(s)) for name, s in seconds.items()}
    least = {f"{name}_least_seconds": float(min(s)) for name, s in seconds.items()}
    return {**medians, **least, "ratio": medians["full_seconds"] / medians["reduced_seconds"]}


class HiddenStates(Interpreter):
    """Stops at the head, keeping what goes into it."""

    class Reached(Exception):
        """The head was reached."""

    vocab = 0
    seen: F32
    matrix: Stored

    def _execute(self, op: ir.OpView, operands: list[Any]) -> list[Any]:
        if op.operation.name == "infc.linear" and operands[1].type.shape[0] == self.vocab:
            self.seen, self.matrix = operands[0], operands[1]
            raise self.Reached
        return super()._execute(op, operands)


def products(matrix: Stored, layout: SplitLayout, x: F32) -> tuple[F32, F32]:
    """Logits and their bounds for rows of x, `[rows, vocab]` each."""
    n, k = (int(d) for d in matrix.type.shape)
    storage = STORAGE_TYPES[matrix.type.element]
    raw, row_bytes = matrix.data(), storage.size_bytes((1, k))
    quantised, offsets = quantize_a8(x), a8_offsets(k)
    scales = np.ascontiguousarray(quantised[:, offsets.scales : offsets.sums]).view(np.float32)
    codes = quantised[:, :k].view(np.int8).reshape(len(x), -1, layout.group).astype(np.float32)
    scales = np.repeat(scales, 32 // layout.group, axis=1)
    rows = (codes * scales[..., None]).reshape(len(x), k)
    middle = ((1 << layout.low_bits) - 1) / 2
    slack = middle * np.abs(codes).sum(axis=2) * scales
    logits = np.empty((len(x), n), np.float32)
    bounds = np.empty_like(logits)
    for start in range(0, n, ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, n)
        part = storage.unpack(raw[start * row_bytes : stop * row_bytes], (stop - start, k))
        whole = part.codes.astype(np.float32) - part.zero_point
        rounded = whole - part.codes % (1 << layout.low_bits) + np.float32(middle)
        wide = np.repeat(part.scales, layout.group, axis=1)
        logits[:, start:stop] = rows @ (whole * wide).T
        bounds[:, start:stop] = rows @ (rounded * wide).T + slack @ np.abs(part.scales).T
    return logits, bounds


def rows_multiplied(logits: F32, bounds: F32, wanted: int, threads: int) -> float:
    """The share of the rows that the search multiplies, `logits` and `bounds` `[vocab]`."""
    multiplied = 0
    for thread in range(threads):
        best, skips, penalty = np.full(wanted, -np.inf, np.float32), 0, 1
        for first in range(thread * STRETCH, len(logits) // PANEL, threads * STRETCH):
            panels = range(first, min(first + STRETCH, len(logits) // PANEL))
            done = 0
            for panel in panels:
                part = slice(panel * PANEL, panel * PANEL + PANEL)
                left = np.ones(PANEL, bool) if skips else bounds[part] >= best[0]
                count = int(left.sum())
                if count > DENSE_ROWS:
                    left[:] = True
                done += int(left.sum())
                found = logits[part][left]
                if found.size and found.max() > best[0]:
                    best = np.sort(np.concatenate([best, found]))[-wanted:]
            multiplied += done
            if skips:
                skips -= 1
            elif done > WORTH_ROWS * len(panels):
                skips, penalty = penalty, min(2 * penalty + 1, MOST_PLAIN_STRETCHES)
            else:
                penalty = 1
    return multiplied / len(logits)


def head_rows(model: Path, ids: list[int], positions: int, threads: int) -> dict[str, Any]:
    """Of some positions spread over a text: the share of rows multiplied, by mode."""
    source = open_model(model)
    try:
        with context():
            module = build_graph(source, max_context=len(ids), target="{}")
            run = HiddenStates(module, source.data)
            run.vocab = source.config.vocab_size
            with suppress(HiddenStates.Reached):
                run.run("model", [np.array(ids, np.int32), np.arange(len(ids), dtype=np.int32)])
        layout = split_layout_for(run.matrix.type.element, int(run.matrix.type.shape[1]))
        if layout is None:
            raise click.ClickException("the head of this model is not split")
        chosen = np.linspace(2, len(ids) - 1, positions).astype(int)
        logits, bounds = products(run.matrix, layout, run.seen[chosen])
    finally:
        source.close()
    shares = {
        mode: [
            rows_multiplied(logit, bound, wanted, threads)
            for logit, bound in zip(logits, bounds, strict=True)
        ]
        for mode, wanted in WANTED.items()
    }
    low = layout.low_bits / (layout.bits + 16 / layout.group)
    return {
        mode: {
            "rows_mean": float(np.mean(share)),
            "rows_most": max(share),
            "head_bytes_mean": 1 - low + low * float(np.mean(share)),
        }
        for mode, share in shares.items()
    }


def compiled(model: Path, folder: Path) -> dict[str, Path]:
    """Artifacts with the head in two planes and in one."""
    paths = {name: folder / f"{name}.infc" for name in ("reduced", "full")}
    infc.compile(model, target="cpu", max_context=512, output=paths["reduced"])
    with mock.patch.object(CpuBackend, "splits", return_value=False):
        infc.compile(model, target="cpu", max_context=512, output=paths["full"])
    return paths


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--steps", type=int, default=64, show_default=True, help="Tokens of each text.")
@click.option("--positions", type=int, default=8, show_default=True, help="To count rows at.")
@click.option("--output", type=click.Path(path_type=Path), default=None)
def main(model: Path, threads: int, steps: int, positions: int, output: Path | None) -> None:
    """Measure, print a table and write results/exact-head-DATE.json."""
    today = datetime.date.today().isoformat()
    headings = ("text", "mode", "full, ms", "reduced, ms", "ratio", "rows", "head bytes")
    table = Table(title=f"{model.name}: exact reduced head, {threads} threads, {today}")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: load(open_artifact(path), threads=threads)
            for name, path in compiled(model, Path(folder)).items()
        }
        for text, words in TEXTS.items():
            ids = sessions["full"].tokenizer.encode(words)[:PROMPT]
            rows = head_rows(model, ids, positions, threads)
            results[text] = {}
            for mode, options in MODES.items():
                took = step_seconds(sessions, ids, steps, options)
                results[text][mode] = {**took, **rows[mode]}
                table.add_row(
                    text,
                    mode,
                    f"{1e3 * took['full_seconds']:.2f}",
                    f"{1e3 * took['reduced_seconds']:.2f}",
                    f"{took['ratio']:.2f}",
                    f"{rows[mode]['rows_mean']:.1%}",
                    f"{rows[mode]['head_bytes_mean']:.0%}",
                )
    Console().print(table)
    record = {
        "schema_version": 1,
        "date": today,
        "model": model.name,
        "machine": describe_machine(),
        "threads": threads,
        "steps": steps,
        "positions": positions,
        "texts": results,
    }
    path = output or HERE / "results" / f"exact-head-{today}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
