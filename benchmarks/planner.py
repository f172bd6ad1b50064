"""How low and how fast `infc plan-memory` packs buffers.

Each list is planned by a process of its own, from its start to its end, with a limit of 10 s: the
MiniMalloc instances of the tests, the same backwards in time and with buffers left out, others made
to be like them, and 20,000 buffers, for which any capacity will do. The planner's machine code is
compiled before, as it is once on each machine. With `--minimalloc` the planner those instances are
from takes its turn at each list that has a capacity, under the same limit.
"""

from __future__ import annotations

import csv
import datetime
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
from machine import describe_machine
from planner_instances import CAPACITY, Rows, backwards, cut, random_lives, without_some
from rich.console import Console
from rich.table import Table

import infc
from infc.memory.buffers_csv import read_buffers
from infc.memory.checker import check_plan

HERE = Path(__file__).resolve().parent
INSTANCES = HERE.parent / "tests" / "data" / "minimalloc"
TIME_LIMIT = 10
LOOSE = 1 << 50
"""A capacity that fits anything."""


def given() -> Iterator[tuple[str, Rows, int]]:
    """Name, rows and capacity of the MiniMalloc instances and of what follows from them."""
    instances = {}
    for path in sorted(INSTANCES.glob("*.csv")):
        buffers = read_buffers(path).buffers
        instances[f"MiniMalloc {path.stem}"] = [
            (b.first, b.last + 1, b.size_bytes) for b in buffers
        ]
    for name, rows in instances.items():
        yield name, rows, CAPACITY
    for name, rows in instances.items():
        yield f"{name}, backwards", backwards(rows), CAPACITY
    for seed in (1, 2):
        for name, rows in instances.items():
            yield f"{name}, some lost {seed}", without_some(rows, seed, 0.03), CAPACITY


def made() -> Iterator[tuple[str, Rows, int]]:
    """Name, rows and capacity of each list that is made here."""
    for count, seed in ((150, 1), (250, 2), (350, 3), (450, 4)):
        yield f"cut {count}", cut(count, seed), CAPACITY
    for count, seed in ((150, 5), (250, 6), (350, 7), (450, 8)):
        yield f"cut {count}, some lost", cut(count, seed, lost=0.02), CAPACITY
    for count, seed in ((150, 9), (250, 10), (350, 11), (450, 12)):
        name = f"cut {count}, some lost, shortened"
        yield name, cut(count, seed, lost=0.02, shortened=0.06), CAPACITY
    for count, seed in ((150, 13), (250, 14), (350, 15), (450, 16)):
        yield f"cut {count}, with pinwheels", cut(count, seed, pinwheels=0.05), CAPACITY
    for sizes in ("even", "skewed"):
        for longest in (30, 1000):
            rows = random_lives(20_000, 17, steps=10_000, longest=longest, sizes=sizes)
            yield f"20,000, {sizes} sizes, lives to {longest}", rows, LOOSE


def children_seconds() -> float:
    """Processor time of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write(path: Path, rows: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "lower", "upper", "size"])
        writer.writerows([i, *row] for i, row in enumerate(rows))


def measure(name: str, source: Path, capacity: int, output: Path) -> dict[str, Any]:
    """Plan a list in a process of its own and check what it writes."""
    output.unlink(missing_ok=True)
    command = [sys.executable, "-c", "from infc.cli import main; main()", "plan-memory"]
    command += [str(source), "--capacity", str(capacity), "-o", str(output), "--json"]
    start, used = time.perf_counter(), children_seconds()
    done = subprocess.run(
        [*command, "--time-limit", str(TIME_LIMIT)], capture_output=True, text=True, check=False
    )
    seconds, used = time.perf_counter() - start, children_seconds() - used
    answer = json.loads(done.stdout)
    table = read_buffers(source)
    if "error" in answer:
        found, bound = (
            int(re.search(pattern, text)[1])  # type: ignore[index]
            for pattern, text in (
                (r"a plan of (\d+)", answer["error"]["message"]),
                (r"less than (\d+)", answer["error"]["notes"][0]),
            )
        )
        answer = {"height_bytes": found, "lower_bound_bytes": bound, "fits": False}
        answer |= {"optimal": False, "method": None, "stopped_by": None}
    else:
        with output.open() as file:
            offsets = {row["id"]: int(row["offset"]) for row in csv.DictReader(file)}
        check_plan(table.buffers, offsets, answer["height_bytes"])
    keys = ("height_bytes", "lower_bound_bytes", "fits", "optimal", "method", "stopped_by")
    return {
        "name": name,
        "buffers": len(table.buffers),
        "capacity_bytes": None if capacity == LOOSE else capacity,
        "process_seconds": seconds,
        "processor_seconds": used,
        **{key: answer[key] for key in keys},
    }


def measure_minimalloc(program: Path, source: Path, output: Path) -> dict[str, Any]:
    """Plan a list with MiniMalloc in a process of its own and check what it writes."""
    output.unlink(missing_ok=True)
    command = [str(program), f"--capacity={CAPACITY}", f"--timeout={TIME_LIMIT}s"]
    command += [f"--input={source}", f"--output={output}"]
    start, used = time.perf_counter(), children_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, used = time.perf_counter() - start, children_seconds() - used
    if done.returncode and "DEADLINE_EXCEEDED" not in done.stderr:
        raise click.ClickException(f"{program} failed: {done.stderr.strip()}")
    if not done.returncode:
        with output.open() as file:
            offsets = {row["id"]: int(row["offset"]) for row in csv.DictReader(file)}
        check_plan(read_buffers(source).buffers, offsets, CAPACITY)
    return {"process_seconds": seconds, "processor_seconds": used, "fits": not done.returncode}


@click.command()
@click.option("--minimalloc", type=click.Path(path_type=Path), help="Its program, built.")
@click.option("--output", type=click.Path(path_type=Path), default=None)
def main(minimalloc: Path | None, output: Path | None) -> None:
    """Measure, print a table and write results/planner-DATE.json."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        plan, source = Path(folder) / "plan.csv", Path(folder) / "buffers.csv"
        measure("warm-up", INSTANCES / "B.csv", CAPACITY, plan)
        for name, rows, capacity in chain(given(), made()):
            write(source, rows)
            records.append(measure(name, source, capacity, plan))
            if minimalloc is not None and capacity == CAPACITY:
                records[-1]["minimalloc"] = measure_minimalloc(minimalloc, source, plan)
    today = datetime.date.today().isoformat()
    table = Table(title=f"infc plan-memory, {today}, at most {TIME_LIMIT} s")
    for title in (
        "list",
        "buffers",
        "seconds",
        "processor",
        "height",
        "bound",
        "ratio",
        "fits",
        "optimal",
        *(["MiniMalloc"] if minimalloc else []),
    ):
        table.add_column(title, justify="left" if title == "list" else "right")
    for r in records:
        height, bound = r["height_bytes"], r["lower_bound_bytes"]
        cells = [r["name"], str(r["buffers"])]
        cells += [f"{r[key]:.2f}" for key in ("process_seconds", "processor_seconds")]
        cells += [str(height), str(bound), f"{height / bound:.3f}"]
        cells += ["yes" if r[key] else "no" for key in ("fits", "optimal")]
        if peer := r.get("minimalloc"):
            cells.append(f"{peer['process_seconds']:.2f}" if peer["fits"] else "no")
        table.add_row(*cells)
    Console(width=140).print(table)
    record = {
        "schema_version": 1,
        "date": today,
        "machine": describe_machine(),
        "infc": infc.__version__,
        "time_limit_seconds": TIME_LIMIT,
        "plans": records,
    }
    output = output or HERE / "results" / f"planner-{today}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
