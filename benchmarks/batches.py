"""Decode steps of several sequences at once on this machine: tokens a second by batch.

The decode program is called with one token of each of 1 to 32 sequences behind a context of natural
text (of one sequence, a head that may skip rows reads what the text is worth), batches in turns,
and a probe measures the machine before each round. The floor of a step is what its products take at
least: their weights' bytes at the bandwidth of that moment, or their operations at the int8 peak
where that is longer; caches are not in it. Beside it stands what the cost model predicts (`infc
calibrate` first), of the program that was compiled for 32.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from machine import describe_machine
from measure import Probe
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import infc
from infc.artifact import Artifact, open_artifact
from infc.driver.loading import load_runnable, load_tokenizer
from infc.driver.prediction import Turns, greedy_kernels, program_seconds
from infc.driver.sample_text import sample_text
from infc.target.runnable import Call, KVCache, OutputKind, Phase, Runnable
from infc.target.schema import Target

Ids = NDArray[np.int32]

HERE = Path(__file__).resolve().parent
BATCHES = (1, 2, 4, 8, 16, 32)
STEPS = 8
"""Steps of a batch in a round."""


def texts_of(artifact: Artifact, length: int, sequences: int) -> Ids:
    """int32 `[sequences, length]`: natural text, which begins elsewhere for each of them."""
    tokenizer = load_tokenizer(artifact)
    if tokenizer is None:
        raise click.ClickException(f"{artifact.path}: the model has no tokenizer")
    begin, *text = tokenizer.encode(sample_text())
    starts = np.arange(sequences) * len(text) // sequences
    return np.array([[begin, *np.resize(np.roll(text, -s), length - 1)] for s in starts], np.int32)


def fill(runnable: Runnable, kv: KVCache, ids: Ids, threads: int) -> None:
    """Put the tokens of each sequence into its slot of the cache."""
    chunk = runnable.limits.max_tokens[0]
    for slot, tokens in enumerate(ids):
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            call = Call(
                tokens=part,
                row_offsets=np.array([0, len(part)], np.int32),
                slots=np.array([slot], np.int32),
                positions=np.arange(start, start + len(part), dtype=np.int32),
                logit_rows=np.zeros(0, np.int32),
                output=OutputKind.ARGMAX,
            )
            runnable.run(Phase.PREFILL, call, kv, threads=threads)


def decode_call(tokens: Ids, position: int, output: OutputKind = OutputKind.ARGMAX) -> Call:
    """One token of each of some sequences at a position, and what each asks for."""
    batch = len(tokens)
    rows = np.arange(batch, dtype=np.int32)
    return Call(
        tokens=tokens,
        row_offsets=np.arange(batch + 1, dtype=np.int32),
        slots=rows,
        positions=np.full(batch, position, np.int32),
        logit_rows=rows,
        output=output,
    )


def step_seconds(
    runnable: Runnable, kv: KVCache, ids: Ids, context: int, threads: int
) -> list[float]:
    """Seconds of steps behind a context, behind one that is not counted."""
    found = []
    for position in range(context, context + 1 + STEPS):
        call = decode_call(np.ascontiguousarray(ids[:, position]), position)
        start = time.perf_counter()
        runnable.run(Phase.DECODE, call, kv, threads=threads)
        found.append(time.perf_counter() - start)
    return found[1:]


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--context", default=512, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path))
def main(model: Path, context: int, threads: int, rounds: int, output: Path | None) -> None:
    """Compile MODEL for 32 sequences, measure, and write results/batches-DATE-MODEL.json."""
    with tempfile.TemporaryDirectory() as folder:
        probe, made = Probe(Path(folder)), Path(folder, "model.infc")
        most = max(BATCHES)
        infc.compile(model, max_batch=most, batch=most, max_context=context + 64, output=made)
        artifact = open_artifact(made)
        runnable = load_runnable(artifact)
        kv, ids = runnable.new_kv(), texts_of(artifact, context + 1 + STEPS, most)
        fill(runnable, kv, ids[:, :context], threads)
        seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        machines = []
        for _ in range(rounds):
            machines.append(probe.run(threads))
            for batch, found in seconds.items():
                found += step_seconds(runnable, kv, ids[:batch], context, threads)
    kernels = greedy_kernels(artifact, "decode")
    target = Target.from_json(json.dumps(artifact.manifest.targets["decode"]))
    predicted = {
        batch: program_seconds(
            kernels, "decode", [Turns(1, batch, context + 2 + STEPS // 2)], target, threads
        )
        for batch in BATCHES
    }
    products = [kernel for kernel in kernels if kernel["kind"] in ("matmul", "head")]
    rates = {
        name: median(float(machine[name] or 0.0) for machine in machines)
        for name in ("read_bytes_per_s", "int8_operations_per_s")
    }
    weights = sum(k["launches"] * sum(k["bytes"].values()) for k in products)
    operations = sum(k["launches"] * sum(k["operations"].values()) / k["rows"] for k in products)
    rows = [
        {
            "batch": batch,
            "seconds": median(found),
            "least_seconds": min(found),
            "floor_seconds": max(
                weights / rates["read_bytes_per_s"],
                batch * operations / rates["int8_operations_per_s"],
            ),
            "predicted_seconds": predicted[batch].mid,
            "tokens_per_second": batch / median(found),
        }
        for batch, found in seconds.items()
    ]
    report: dict[str, Any] = {
        "schema_version": 1,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "model": model.name,
        "threads": threads,
        "context": context,
        "product_bytes": weights,
        "operations_a_token": operations,
        "probe": rates,
        "batches": rows,
    }
    table = Table("batch", "ms a step", "least", "predicted", "floor", "tokens/s")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            f"{1e3 * row['seconds']:.2f}",
            f"{1e3 * row['least_seconds']:.2f}",
            f"{1e3 * row['predicted_seconds']:.2f}",
            f"{1e3 * row['floor_seconds']:.2f}",
            f"{row['tokens_per_second']:.0f}",
        )
    Console().print(table)
    name = f"batches-{report['date']}-{model.stem}.json"
    path = output or HERE / "results" / name
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
