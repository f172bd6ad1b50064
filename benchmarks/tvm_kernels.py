"""TVM's kernels beside ours: products with float weights in float32, in turns.

The same kernel several times, with sums of its panels by our emitter, and by TVM with loops as they
are, scheduled by hand, and scheduled by MetaSchedule where there are records. Weights come from
memory, as in decode.
`--search` measures schedules of MetaSchedule's space for a function and puts the best one into
backends/tvm/records.json; the other runs use what is there.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import click
import numpy as np
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from infc.backends.cpu.mappings import kernel_candidates
from infc.backends.cpu.measure import KernelBench
from infc.backends.cpu.measured import kernel_library
from infc.backends.cpu.provided import PROVIDER, SPEED
from infc.backends.tvm.object_file import tvm_target
from infc.backends.tvm.panel_sums import panel_sums
from infc.backends.tvm.provider import VERSIONS
from infc.diagnostics import UserError
from infc.ir.types import storage_bytes
from infc.target.backend import KernelMapping, KernelSummary
from infc.target.discovery import resolve_target
from infc.target.schema import Target

RECORDS = Path(__file__).resolve().parents[1] / "backends" / "tvm" / "records.json"
K, WIDTHS, STORAGES = 2048, (2048, 5632), ("f32", "bf16")
TILES = {1: 1, 512: 6}
"""Rows of a call, and those a function of TVM's does at a time."""
REPETITIONS = {1: 100, 512: 12}
SEARCH_REPETITIONS = 8


def kernel_of(rows: int, n: int, storage: str) -> KernelSummary:
    """The product as a compilation would see it."""
    return KernelSummary(
        kind="matmul",
        phase="decode" if rows == 1 else "prefill",
        rows=rows,
        typical_rows=rows,
        operations={"f32": 2.0 * rows * n * K},
        weight_bytes=storage_bytes(storage, (n, K)),
        activation_bytes=0,
        shapes={},
        matrices=((n, K, storage),),
    )


def mappings_of(
    kernel: KernelSummary, target: Target, tile: int, tuned: bool
) -> dict[str, KernelMapping]:
    """Ours and TVM's, by name."""
    ours = kernel_candidates(kernel, target)[0]
    found = {"ours": ours}
    # Unscheduled loops take ten seconds a call of 512 rows: one row says enough of them.
    plain = ["default"] if kernel.rows == 1 else []
    for schedule in (*plain, "registers", *(["tuned"] if tuned else [])):
        stated = {"row_tile": tile, "col_tile": 1, "schedule": schedule}
        found[f"tvm {schedule}"] = {**ours, **stated, PROVIDER: "tvm", SPEED: 100}
    return found


def measure(target: Target, threads: int) -> list[dict[str, Any]]:
    """Seconds of each kernel, by shape and by who made it."""
    known = {(r["rows"], r["weights"]) for r in json.loads(RECORDS.read_text(encoding="utf-8"))}
    rows_of_records = []
    for rows, tile in TILES.items():
        for storage in STORAGES:
            for n in WIDTHS:
                kernel = kernel_of(rows, n, storage)
                mappings = mappings_of(kernel, target, tile, (tile, storage) in known)
                with KernelBench(kernel, target, threads=threads) as bench:
                    for mapping in mappings.values():
                        bench.add(mapping)
                    times = bench.time(range(len(mappings)), REPETITIONS[rows])
                for name, seconds in zip(mappings, times, strict=True):
                    low, mid, high = np.quantile(seconds, [0.1, 0.5, 0.9])
                    rows_of_records.append(
                        {
                            "rows": rows,
                            "k": K,
                            "n": n,
                            "weights": storage,
                            "kernel": name,
                            "seconds": {"p10": low, "median": mid, "p90": high},
                        }
                    )
    return rows_of_records


def search(rows: int, kind: str, target: Target, trials: int) -> dict[str, Any]:
    """The best of so many random schedules of MetaSchedule's, as a record.

    They are measured where they will run, inside our kernel with weights from memory; MetaSchedule
    would call one function again and again with all it needs in the cache. A call is one tile.
    """
    kernel = kernel_of(rows, WIDTHS[0], kind)
    mapping = mappings_of(kernel, target, rows, True)["tvm tuned"]
    traces = []
    with KernelBench(kernel, target, threads=1) as bench:
        for trace in traces_of(rows, kind, target, trials):
            with mock.patch("infc.backends.tvm.panel_sums.find_record", lambda *_, t=trace: t):
                if stands_alone(kernel, mapping, target):
                    bench.add(mapping)
                    bench.build()
                    traces.append(trace)
        times = bench.time(range(len(traces)), SEARCH_REPETITIONS)
    seconds = [float(np.median(each)) for each in times]
    best = int(np.argmin(seconds))
    function = {"rows": rows, "k": K, "weights": kind, "cpu": str(target.backend_facts["cpu"])}
    return {**function, "trials": len(traces), "seconds": seconds[best], "trace": traces[best]}


def stands_alone(kernel: KernelSummary, mapping: KernelMapping, target: Target) -> bool:
    """Whether the kernel can be linked: LLVM makes a `memset` of some loops that clear sums."""
    try:
        kernel_library(kernel, [mapping], target)
    except UserError:
        return False
    return True


def traces_of(rows: int, kind: str, target: Target, count: int) -> list[Any]:
    """Random decisions in MetaSchedule's space of schedules for a function."""
    import tvm.s_tir
    from tvm.s_tir import meta_schedule
    from tvm.s_tir.schedule import Trace

    processor = tvm.target.Target({**dict(tvm_target(target).export()), "num-cores": 1})
    module = tvm.IRModule({"main": panel_sums(rows, K, kind).with_attr("global_symbol", "main")})
    rule = meta_schedule.schedule_rule
    # No rfactor, which would change the order of additions, and no threads of TVM's own; tiles are
    # not written through a cache: TVM cannot move the sum of the four parts behind them.
    rules = [
        rule.MultiLevelTiling("SSRSRS", max_innermost_factor=64),
        rule.ParallelizeVectorizeUnroll(-1, 64, [0, 16, 64, 512], True),
        rule.RandomComputeLocation(),
    ]
    rewrites = [
        meta_schedule.postproc.RewriteParallelVectorizeUnroll(),
        meta_schedule.postproc.RewriteReductionBlock(),
    ]
    space = meta_schedule.space_generator.PostOrderApply(
        sch_rules=rules, postprocs=rewrites, mutator_probs={}
    )
    # MetaSchedule imports instructions of GPUs, 10 s and more, that no rule here asks for.
    none = ModuleType("tensor_intrin")
    with (
        mock.patch.dict(sys.modules, {"tvm.s_tir.tensor_intrin": none}),
        mock.patch.object(tvm.s_tir, "tensor_intrin", none, create=True),
    ):
        context = meta_schedule.TuneContext(
            mod=module, target=processor, space_generator=space, num_threads=1, rand_state=1
        )
    designs = context.generate_design_space()
    found: list[Any] = []
    for seed in range(1, 1 + count):
        schedule = tvm.s_tir.Schedule(module, seed=seed)
        decided = Trace(designs[seed % len(designs)].trace.insts, {})
        decided.apply_to_schedule(schedule, remove_postproc=True)
        schedule.enter_postproc()
        if all(rewrite.apply(schedule) for rewrite in space.postprocs):
            found.append(plain(schedule.trace.as_json()))
    return found


def plain(value: Any) -> Any:
    """A trace as JSON values."""
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    if isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "value"):
        return value.value
    return [plain(item) for item in value]


def keep(record: dict[str, Any]) -> None:
    """Put a record in the place of the one of the same function."""
    names = ("rows", "k", "weights", "cpu")
    key = [record[name] for name in names]
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    others = [other for other in records if [other[name] for name in names] != key]
    lines = (json.dumps(each, separators=(",", ":")) for each in [*others, record])
    RECORDS.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def show(records: list[dict[str, Any]]) -> None:
    """A table with the time of each kernel and its ratio to ours."""
    table = Table("rows", "n", "weights", "kernel", "median", "p10 to p90", "to ours")
    for record in records:
        ours = next(
            other["seconds"]["median"]
            for other in records
            if other["kernel"] == "ours"
            and all(other[name] == record[name] for name in ("rows", "n", "weights"))
        )
        seconds = {name: 1e6 * value for name, value in record["seconds"].items()}
        table.add_row(
            str(record["rows"]),
            str(record["n"]),
            record["weights"],
            record["kernel"],
            f"{seconds['median']:.0f} us",
            f"{seconds['p10']:.0f} to {seconds['p90']:.0f}",
            f"{record['seconds']['median'] / ours:.2f}",
        )
    Console().print(table)


@click.command()
@click.option("--search", "function", type=(int, str), help="ROWS WEIGHTS of one function.")
@click.option("--trials", default=24, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(function: tuple[int, str] | None, trials: int, threads: int, output: Path | None) -> None:
    """Measure, or search for one function."""
    target = resolve_target("cpu")[1]
    if function is not None:
        keep(search(*function, target, trials))
        return
    records = measure(target, threads)
    show(records)
    if output is not None:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        content = {
            "date": date,
            "machine": describe_machine(),
            "versions": VERSIONS,
            "threads": threads,
            "kernels": records,
        }
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
