"""Decode steps beside a loop that only reads as many bytes, in turns: how near they are to reading.

`compare.py` holds decoding against the best of a few passes of its probe, just before and after.
What a shared machine gives differs from one tenth of a second to the next, and a loop that only
reads does not keep to its own best either. Here one pass of it follows each step. `best` is the
share of the fastest pass that the fastest step reaches, `in turns` the median over the turns.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from batches import decode_call, fill, texts_of
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from infc.artifact import Artifact, open_artifact
from infc.driver.loading import load_runnable
from infc.driver.prediction import kernels_for, scaled_work
from infc.target.runnable import OutputKind, Phase

HERE = Path(__file__).resolve().parent
OUTPUTS = {"argmax": OutputKind.ARGMAX, "logits": OutputKind.LOGITS}
WARM = 4
APART = 2e-3
"""Seconds between a step and a pass: threads that have just ended their work wait for a while."""


class Reader:
    """probes/reader.c, built for this machine."""

    def __init__(self, folder: Path, threads: int, size_bytes: int) -> None:
        library = folder / "reader.so"
        source, flags = str(HERE / "probes" / "reader.c"), ["-O2", "-march=native", "-pthread"]
        command = ["gcc", *flags, "-shared", "-fPIC", source, "-o", str(library)]
        subprocess.run(command, check=True)
        own = ctypes.CDLL(str(library))
        own.reader_new.argtypes = [ctypes.c_int, ctypes.c_size_t]
        own.reader_new.restype = ctypes.c_void_p
        own.reader_pass.argtypes = [ctypes.c_void_p, ctypes.c_int]
        own.reader_pass.restype = ctypes.c_double
        self._pass, self._reader = own.reader_pass, own.reader_new(threads, size_bytes)
        if not self._reader:
            raise click.ClickException("no memory, or no threads, to read with")
        ways = {ahead: min(self.run(ahead) for _ in range(WARM)) for ahead in (0, 1)}
        self._ahead = min(ways, key=ways.__getitem__)

    def run(self, ahead: int | None = None) -> float:
        """Seconds of one pass, by default in the way that was the faster one at first."""
        return float(self._pass(self._reader, self._ahead if ahead is None else ahead))


def step_bytes(artifact: Artifact, output: str) -> int:
    """Of memory that a step reads, as the cost estimate of the artifact counts them."""
    kernels = kernels_for(artifact.manifest.cost_estimate["decode"], output)
    works = [(kernel["launches"], scaled_work(kernel, "decode", 1, 1)) for kernel in kernels]
    return round(sum(count * sum(work.bytes.values()) for count, work in works))


def measured(path: Path, output: str, threads: int, turns: int, context: int) -> dict[str, Any]:
    """One artifact's entry in the report."""
    artifact = open_artifact(path)
    runnable, read = load_runnable(artifact), step_bytes(artifact, output)
    kv, ids = runnable.new_kv(), texts_of(artifact, context + turns + WARM, 1)
    fill(runnable, kv, ids[:, :context], threads)
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder), threads, read)
        steps, passes = [], []
        for position in range(context, context + turns + WARM):
            call = decode_call(ids[:, position].copy(), position, OUTPUTS[output])
            time.sleep(APART)
            start = time.perf_counter()
            runnable.run(Phase.DECODE, call, kv, threads=threads)
            steps.append(time.perf_counter() - start)
            time.sleep(APART)
            passes.append(reader.run())
    took, plain = np.array(steps[WARM:]), np.array(passes[WARM:])
    return {
        "model": artifact.path.stem,
        "output": output,
        "threads": threads,
        "bytes": read,
        "turns": turns,
        "step_seconds": median(took),
        "read_seconds": median(plain),
        "best": float(plain.min() / took.min()),
        "in_turns": median(plain / took),
        "of_best_pass": float(plain.min() / median(took)),
        "read_of_best_pass": float(plain.min() / median(plain)),
    }


@click.command()
@click.argument("artifacts", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@click.option("--next", "output", type=click.Choice(list(OUTPUTS)), default="argmax")
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--turns", default=60, show_default=True)
@click.option("--context", default=512, show_default=True)
@click.option("--output", "path", type=click.Path(path_type=Path), help="Entries are added to it.")
def main(
    artifacts: tuple[Path, ...],
    output: str,
    threads: tuple[int, ...],
    turns: int,
    context: int,
    path: Path | None,
) -> None:
    """Measure steps of ARTIFACTS of this machine."""
    report: dict[str, Any] = {
        "schema_version": 1,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "context": context,
        "steps": [],
    }
    if path is not None and path.exists():
        report = json.loads(path.read_text())
    table = Table("model", "next", "threads", "step", "GB/s", "plain read", "best", "in turns")
    for artifact in artifacts:
        for count in threads:
            row = measured(artifact, output, count, turns, context)
            report["steps"].append(row)
            table.add_row(
                row["model"],
                output,
                str(count),
                f"{1e3 * row['step_seconds']:.2f} ms",
                f"{row['bytes'] / row['step_seconds'] / 1e9:.1f}",
                f"{row['bytes'] / row['read_seconds'] / 1e9:.1f}",
                f"{row['best']:.0%}",
                f"{row['in_turns']:.0%}",
            )
            if path is not None:
                path.write_text(json.dumps(report, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
