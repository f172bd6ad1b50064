"""How far each engine's predictions are from the float32 meaning of the same model file.

For the texts of `texts/ids.json`: the mean and largest Kullback-Leibler divergence
KL(oracle || engine) a position, in nats, and how often both name the same most likely token.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from engines.protocol import Client
from machine import describe_machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
KEPT = 32


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def compare(
    oracle: NDArray[np.float32], engine: NDArray[np.float32], texts: dict[str, list[int]]
) -> dict[str, Any]:
    """Divergence in all and by text; both arrays are `[positions, vocab]`."""
    divergence = np.empty(len(oracle))
    for row in range(len(oracle)):
        p, q = log_softmax(oracle[row]), log_softmax(engine[row])
        divergence[row] = np.sum(np.exp(p) * (p - q))
    agree = oracle.argmax(axis=-1) == engine.argmax(axis=-1)
    result: dict[str, Any] = {
        "positions": len(oracle),
        "mean_kl_nats": float(divergence.mean()),
        "max_kl_nats": float(divergence.max()),
        "top1_agreement": float(agree.mean()),
        "texts": {},
    }
    start = 0
    for name, ids in texts.items():
        part = slice(start, start + len(ids))
        result["texts"][name] = {
            "mean_kl_nats": float(divergence[part].mean()),
            "top1_agreement": float(agree[part].mean()),
        }
        start += len(ids)
    return result


def most_likely(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The oracle in short: the likeliest tokens of each position and their log-probabilities."""
    ids, log_probabilities = [], []
    for row in logits:
        logp = log_softmax(row)
        top = np.argsort(-logp)[:KEPT]
        ids.append(top.tolist())
        log_probabilities.append(np.round(logp[top], 4).tolist())
    return {"ids": ids, "log_probabilities": log_probabilities}


def engine_logits(
    command: str, texts: dict[str, list[int]]
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """The engine's description and its logits, `[positions, vocab]`, by how the ids were given.

    `prompt` gives each text at once; `stepwise` one token after the other, as decoding does.
    """
    rows: dict[str, list[NDArray[np.float32]]] = {"prompt": [], "stepwise": []}
    with tempfile.TemporaryDirectory() as folder, Client(shlex.split(command)) as engine:
        about = engine.call("hello")
        path = Path(folder) / "logits.npy"
        for form, pieces in rows.items():
            for ids in texts.values():
                engine.call("logits", ids=ids, path=str(path), stepwise=form == "stepwise")
                pieces.append(np.load(path))
    return about, {form: np.concatenate(pieces) for form, pieces in rows.items()}


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option(
    "--oracle",
    "oracle_path",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Logits from oracle_logits.py.",
)
@click.option(
    "--engine",
    "named_commands",
    multiple=True,
    required=True,
    metavar="NAME=COMMAND",
    help="A name and the command that serves the model (engines/protocol.py); may be repeated.",
)
@click.option("--output", type=click.Path(path_type=Path), default=None)
def main(
    model: Path, oracle_path: Path, named_commands: tuple[str, ...], output: Path | None
) -> None:
    """Compare engines with the oracle, print a table and write results/quality-DATE.json."""
    texts: dict[str, list[int]] = json.loads((HERE / "texts" / "ids.json").read_text())["ids"]
    oracle = np.load(oracle_path)
    today = datetime.date.today().isoformat()
    table = Table(title=f"{model.name}: distance from float32, {today}")
    headings = (
        "engine",
        "ids given",
        "positions",
        "mean KL, nats",
        "largest KL",
        "same first token",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in headings[:2] else "right")
    engines = []
    for named in named_commands:
        name, _, command = named.partition("=")
        about, logits = engine_logits(command, texts)
        results = {form: compare(oracle, rows, texts) for form, rows in logits.items()}
        engines.append({"name": name, **about, **results})
        for form, result in results.items():
            table.add_row(
                name,
                form,
                str(result["positions"]),
                f"{result['mean_kl_nats']:.5f}",
                f"{result['max_kl_nats']:.4f}",
                f"{result['top1_agreement']:.1%}",
            )
    Console().print(table)
    record = {
        "schema_version": 2,
        "date": today,
        "machine": describe_machine(),
        "model": {
            "file": model.name,
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        },
        "engines": engines,
        "oracle_top": most_likely(oracle),
    }
    output = output or HERE / "results" / f"quality-{today}.json"
    output.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
