"""Decode of Llama-3.1-8B and 70B on presets beside the published speeds of the chips that the
presets are shaped like (data/dataflow_published.toml): timing only, one user, no drafts.

Where a source says how many chips served a model, that many are taken if our mapping fits them. Of
the numbers of stages that are tried the fastest counts; all are kept in the record.
"""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from dataflow import CONFIGS, HERE, MAX_CONTEXT, Case, binding, bound_of, time_calls
from rich.console import Console
from rich.table import Table

from infc.backends.dataflow.emission import emit_model
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping as Partition
from infc.backends.dataflow.partition import stages_of
from infc.diagnostics import Code, UserError
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.attributes import get
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.passes.walk import programs
from infc.pipeline.options import CompileOptions

PUBLISHED = HERE / "data" / "dataflow_published.toml"
CONTEXT = 1000
STORAGE: Final = {8: "q8_0", 16: "bf16"}
TRIES: Final[Mapping[tuple[str, str], Sequence[tuple[int, Sequence[int]]]]] = {
    ("dataflow:wafer-like", "llama-3.1-8b"): [(1, (16, 12, 9, 6, 4))],
    ("dataflow:wafer-like", "llama-3.1-70b"): [(4, (16,)), (6, (24,))],
    ("dataflow:lpu-like", "llama-3.1-8b"): [(48, (1, 2, 4))],
    ("dataflow:lpu-like", "llama-3.1-70b"): [(576, (18,))],
    ("dataflow:three-tier", "llama-3.1-8b"): [(16, (1, 4))],
    ("dataflow:three-tier", "llama-3.1-70b"): [(16, (1,))],
}
"""Chips, and stages of the pipeline to try on them."""
_SLOTS, _SLOT_SHARE = 8, 64
"""The ring of weights: its slots, and the part of SRAM that each is."""


def published() -> list[dict[str, Any]]:
    """The rows that this is about."""
    rows: list[dict[str, Any]] = tomllib.loads(PUBLISHED.read_text())["published"]
    return [row for row in rows if (row["preset"], row["model"]) in TRIES]


def partitions(
    source: ConfigSource, machine: Machine, counts: Sequence[int]
) -> Iterator[Partition]:
    """Mappings of so many stages."""
    config = source.config
    sizes = {role: source.tensors[name].size_bytes for role, name in config.weights.items()}
    head = sizes.get("head", sizes["embed"])
    layer = (sum(sizes.values()) - sizes["embed"] - sizes.get("head", 0)) / len(config.layers)
    for count in counts:
        # Where weights come from far memory, the table of tokens takes no bandwidth.
        before = 0.0 if machine.far else sizes["embed"] / layer
        stages = stages_of(
            machine,
            len(config.layers),
            count,
            before=before,
            behind=head / layer,
            heads=config.kv_heads,
        )
        slots, slot_bytes = (_SLOTS, machine.sram_bytes // _SLOT_SHARE) if machine.far else (0, 0)
        yield Partition(stages, 1, 1, slots, slot_bytes)


def decode_only(module: ir.Module) -> None:
    """Leave out the other program: how long it takes is not asked."""
    for program in list(programs(module)):
        if get(program, "infc.phase") != "decode":
            program.operation.erase()


def measure(preset: str, model: str, weight_bits: int, chips: int) -> list[dict[str, Any]]:
    """All mappings of a model on so many chips."""
    source = ConfigSource(CONFIGS / f"{model}.json", STORAGE[weight_bits])
    case = Case(model, STORAGE[weight_bits], f"{preset}@{chips}", CONTEXT)
    counts = next(stages for count, stages in TRIES[preset, model] if count == chips)
    found = []
    with context():
        options = CompileOptions(max_context=MAX_CONTEXT, logit_rows=1)
        module, target = lower_model(source, case.target, options)
        machine = Machine.of(target)
        decode_only(module)
        for partition in partitions(source, machine, counts):
            record = {
                "chips": chips,
                "stages": len(partition.stages),
                "cores_of_a_stage": partition.stages[0].area.size,
            }
            try:
                emitted = emit_model(module, machine, partition)
            except UserError as error:
                if error.code is not Code.PLAN:
                    raise
                found.append({**record, "does_not_fit": error.diagnostic.message})
                continue
            image = emitted.images["decode"]
            seconds, timings = time_calls(image, machine, "decode", case)
            bound = bound_of(source, machine, partition, image, case)
            found.append(
                {
                    **record,
                    "seconds": seconds,
                    "bound": {**asdict(bound), "seconds": bound.seconds, "by": bound.by},
                    "sram_bytes_of_a_core": emitted.emitted["decode"].height_bytes,
                    "far_bytes": int(sum(timing.channel_bytes.sum() for timing in timings)),
                    "critical_path_s": binding(timings),
                }
            )
    source.close()
    return found


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """A table."""
    table = Table(title=f"decode at a context of {CONTEXT}, one user: simulated and published")
    for name in ("model", "preset", "chips", "stages", "simulated", "bound", "published", "ratio"):
        table.add_column(name)
    for record in records:
        best, row = record["best"], record["published"]
        chips = "not said" if "chips" not in row else f"on {row['chips']} chips"
        drafts = ", drafts" if row["speculative"] is True else ""
        table.add_row(
            f"{row['model']}, {row['weight_bits']} bits",
            row["preset"].partition(":")[2],
            str(best["chips"]),
            f"{best['stages']} of {best['cores_of_a_stage']} cores",
            f"{1 / best['seconds']:.0f}/s",
            f"{1 / best['bound']['seconds']:.0f}/s ({best['bound']['by']})",
            f"{row['tokens_per_s']}/s ({chips}{drafts})",
            f"{record['ratio']:.2f}",
        )
    Console(width=150).print(table)


@click.command()
@click.option("--only", help="Rows whose model and preset contain this text.")
@click.option("--output", type=click.Path(path_type=Path))
def main(only: str | None, output: Path | None) -> None:
    """Time all rows, print a table and write results/dataflow-published-DATE.json."""
    records, known = [], {}
    for row in published():
        key = row["preset"], row["model"], row["weight_bits"]
        if only and only not in f"{row['model']} {row['preset']}":
            continue
        if key not in known:
            known[key] = [
                found for chips, _ in TRIES[key[:2]] for found in measure(*key, chips=chips)
            ]
        fitting = [found for found in known[key] if "seconds" in found]
        # The number of chips that is published, else the fewest that were tried and hold it.
        chips = [found["chips"] for found in fitting]
        wanted = row["chips"] if row.get("chips") in chips else min(chips)
        best = min(
            (found for found in fitting if found["chips"] == wanted), key=lambda f: f["seconds"]
        )
        ratio = 1 / best["seconds"] / row["tokens_per_s"]
        published_row = {**row, "date": row["date"].isoformat()}
        records.append(
            {"published": published_row, "best": best, "ratio": ratio, "tried": known[key]}
        )
        show(records[-1:])
    show(records)
    today = datetime.date.today().isoformat()
    record = {"schema_version": 1, "date": today, "context": CONTEXT, "rows": records}
    output = output or HERE / "results" / f"dataflow-published-{today}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
