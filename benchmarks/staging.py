"""How near transfers of a scratchpad come to what no schedule can beat.

Decode and prefill of two model shapes as sequences of products and attentions, on two machines made
up for this: a small one and a large one. Beside the schedule: the next part's pieces while a part
runs, a cache without prefetch, nothing at all. Every plan went through the checker, and its time is
that of the event-driven timeline. Bytes count by shape: there is no model and no program.
"""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from infc.memory.staging.bound import lower_bound
from infc.memory.staging.checker import check_staging
from infc.memory.staging.plan import StagingPlan
from infc.memory.staging.problem import Block, Machine, StagingProblem, Step
from infc.memory.staging.scheduler import (
    DOUBLE_BUFFER,
    GREEDY,
    NO_PREFETCH,
    baseline,
    schedule_transfers,
)
from infc.memory.staging.timeline import evaluate

HERE = Path(__file__).resolve().parent
BASELINES = {"double_buffer": DOUBLE_BUFFER, "greedy": GREEDY, "no_prefetch": NO_PREFETCH}
CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    """A decoder: `weight_bytes` an element; caches and their rows in two bytes."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    weight_bytes: float


@dataclass(frozen=True)
class Chip:
    """A machine, and its multiply-adds a second times two."""

    machine: Machine
    operations_per_s: float


SHAPES = {
    "gemma-3-270m": Shape(18, 640, 4, 1, 256, 2048, 262_144, 0.5625),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256, 2.0),
}
CHIPS = {
    "gemma-3-270m": Chip(Machine(24 << 20, 100e9, 1e-6, 4), 4e12),
    "llama-3.1-8b": Chip(Machine(128 << 20, 3e12, 1e-6, 4), 400e12),
}


class Sequence:
    """Steps and blocks as they are appended."""

    def __init__(self, chip: Chip, shape: Shape, tokens: int) -> None:
        self.chip, self.shape, self.tokens = chip, shape, tokens
        self.blocks: list[Block] = []
        self.steps: list[Step] = []

    def made(self, name: str, size_bytes: int, *, kept: bool = False) -> str:
        self.blocks.append(Block(name, size_bytes, ends_far=kept))
        return name

    def step(
        self, name: str, operations: float, *args: tuple[str, ...], streamed: str = ""
    ) -> None:
        seconds = operations / self.chip.operations_per_s
        self.steps.append(Step(name, seconds, *args, frozenset({streamed} - {""})))

    def product(self, name: str, n: int, k: int, x: str, rows: int) -> str:
        """Rows of `x` times a matrix, whose rows are streamed."""
        self.blocks.append(
            Block(f"{name}.w", int(n * k * self.shape.weight_bytes), starts_far=True)
        )
        out = self.made(name, rows * n * 4)
        self.step(name, 2 * rows * n * k, (x, f"{name}.w"), (out,), streamed=f"{name}.w")
        return out

    def layer(self, number: int, x: str) -> str:
        s, t, p = self.shape, self.tokens, f"{number}."
        row = 2 * s.kv_heads * s.head_dim * 2
        qkv = self.product(f"{p}qkv", (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden, x, t)
        self.blocks.append(Block(f"{p}cache", CONTEXT * row, starts_far=True))
        new = self.made(f"{p}rows", t * row, kept=True)
        attended = self.made(f"{p}attended", t * s.heads * s.head_dim * 4)
        work = 4.0 * t * (CONTEXT + t / 2) * s.heads * s.head_dim
        used = (qkv, f"{p}cache")
        self.step(f"{p}attention", work, used, (new, attended), streamed=f"{p}cache")
        out = self.product(f"{p}out", s.hidden, s.heads * s.head_dim, attended, t)
        middle = self.made(f"{p}middle", t * s.hidden * 4)
        self.step(f"{p}add", t * s.hidden, (out, x), (middle,))
        gated = self.product(f"{p}gate-up", 2 * s.ffn, s.hidden, middle, t)
        down = self.product(f"{p}down", s.hidden, s.ffn, gated, t)
        after = self.made(f"{p}after", t * s.hidden * 4)
        self.step(f"{p}add-2", t * s.hidden, (down, middle), (after,))
        return after


def problem_of(shape: Shape, chip: Chip, tokens: int) -> StagingProblem:
    """One call; the head works on one row."""
    made = Sequence(chip, shape, tokens)
    x = made.made("embedded", tokens * shape.hidden * 4)
    made.step("embed", tokens * shape.hidden, (), (x,))
    for number in range(shape.layers):
        x = made.layer(number, x)
    made.product("head", shape.vocab, shape.hidden, x, 1)
    return StagingProblem(chip.machine, tuple(made.blocks), tuple(made.steps), repeats=True)


def judged_seconds(plan: StagingPlan) -> float:
    timeline = evaluate(plan)
    check_staging(plan, timeline)
    return timeline.seconds


def measure(name: str, tokens: int) -> dict[str, Any]:
    """The schedule and the simple ones on one instance; seconds."""
    problem = problem_of(SHAPES[name], CHIPS[name], tokens)
    bound = lower_bound(problem)
    start = time.process_time()
    plan = schedule_transfers(problem)
    scheduling = time.process_time() - start
    cut = max(p.size_bytes for p in plan.pieces.pieces if p.block in problem.divisible)
    simple = {
        key: judged_seconds(baseline(problem, policy, cut)) for key, policy in BASELINES.items()
    }
    return {
        "model": name,
        "tokens": tokens,
        "parts": len(plan.pieces.parts),
        "transfers": len(plan.transfers),
        "moved_bytes": plan.moved_bytes,
        "bound": {"transfer": bound.transfer, "compute": bound.compute, "path": bound.path},
        "seconds": {"schedule": judged_seconds(plan), **simple},
        "scheduling_cpu_seconds": scheduling,
    }


@click.command(help=__doc__)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Default: results/staging-DATE.json"
)
def main(output: Path | None) -> None:
    rows = [measure(name, tokens) for name in SHAPES for tokens in (1, 512)]
    table = Table("model", "tokens", "parts", "bound ms", "schedule", *BASELINES, "scheduling s")
    for row in rows:
        bound = max(row["bound"].values())
        shares = [f"{bound / seconds:.1%}" for seconds in row["seconds"].values()]
        cells = [row["model"], str(row["tokens"]), str(row["parts"]), f"{1e3 * bound:.3f}"]
        table.add_row(*cells, *shares, f"{row['scheduling_cpu_seconds']:.1f}")
    Console().print(table)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = output or HERE / "results" / f"staging-{day}.json"
    machines = {
        name: {
            "capacity_bytes": chip.machine.capacity_bytes,
            "bandwidth_bytes_per_s": chip.machine.bandwidth_bytes_per_s,
            "latency_seconds": chip.machine.latency_seconds,
            "queues": chip.machine.queues,
            "operations_per_s": chip.operations_per_s,
        }
        for name, chip in CHIPS.items()
    }
    record = {"date": day, "host": describe_machine(), "machines": machines, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
