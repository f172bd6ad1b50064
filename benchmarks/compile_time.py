"""What compiling costs and how soon a compiled model answers.

Each figure comes from a process of its own: seconds of `infc.compile`, its peak resident memory,
and, from a saved artifact, the seconds from `infc.load` to the first token after 16. The peak
counts the pages of the mapped model file too.
"""

from __future__ import annotations

import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from machine import describe_machine
from rich.console import Console
from rich.table import Table

import infc

HERE = Path(__file__).resolve().parent
PROMPT_TOKENS = 16


def measure_compile(model: Path, target: str, output: Path) -> dict[str, Any]:
    """Compile into a file; seconds, and peak resident bytes of this process."""
    start = time.perf_counter()
    infc.compile(model, target=target, output=output)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(f.stat().st_size for f in [output, *output.rglob("*")] if f.is_file())
    return {"seconds": seconds, "peak_memory_bytes": peak, "artifact_bytes": size}


def measure_load(artifact: Path, threads: int) -> dict[str, Any]:
    """Load and answer; seconds, and peak resident bytes of this process."""
    start = time.perf_counter()
    session = infc.load(artifact, threads=threads)
    loaded = time.perf_counter()
    token = int(session.prefill(list(range(2, 2 + PROMPT_TOKENS))).argmax())
    answered = time.perf_counter()
    return {
        "load_seconds": loaded - start,
        "first_token_seconds": answered - start,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "token": token,
    }


def in_child(*arguments: str) -> dict[str, Any]:
    """This script's answer to `arguments`, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@click.group()
def cli() -> None:
    """Measure compiling and loading."""


@cli.command("child-compile", hidden=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("target")
@click.argument("output", type=click.Path(path_type=Path))
def child_compile(model: Path, target: str, output: Path) -> None:
    """One compilation, for the parent."""
    print(json.dumps(measure_compile(model, target, output)))


@cli.command("child-load", hidden=True)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("threads", type=int)
def child_load(artifact: Path, threads: int) -> None:
    """One load, for the parent."""
    print(json.dumps(measure_load(artifact, threads)))


@cli.command("run")
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--target", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=None)
def run(model: Path, target: str, threads: int, rounds: int, output: Path | None) -> None:
    """Measure, print a table and write results/compile-DATE.json."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.infc"
        compiles = []
        for _ in range(rounds):
            path.unlink(missing_ok=True)
            compiles.append(in_child("child-compile", str(model), target, str(path)))
        loads = [in_child("child-load", str(path), str(threads)) for _ in range(rounds)]
    today = datetime.date.today().isoformat()
    summary = {
        "compile_seconds": statistics.median(c["seconds"] for c in compiles),
        "compile_peak_memory_bytes": max(c["peak_memory_bytes"] for c in compiles),
        "artifact_bytes": compiles[0]["artifact_bytes"],
        "load_seconds": statistics.median(x["load_seconds"] for x in loads),
        "first_token_seconds": statistics.median(x["first_token_seconds"] for x in loads),
        "load_peak_memory_bytes": max(x["peak_memory_bytes"] for x in loads),
    }
    table = Table(title=f"{model.name}, {today}, target {target}, median of {rounds}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in summary.items():
        shown = f"{value / 1e6:.1f} MB" if key.endswith("bytes") else f"{value:.3f} s"
        table.add_row(key.rsplit("_", 1)[0].replace("_", " "), shown)
    Console().print(table)
    record = {
        "schema_version": 1,
        "date": today,
        "machine": describe_machine(),
        "model": model.name,
        "target": target,
        "threads": threads,
        "infc": infc.__version__,
        "summary": summary,
        "compiles": compiles,
        "loads": loads,
    }
    output = output or HERE / "results" / f"compile-{today}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli()
