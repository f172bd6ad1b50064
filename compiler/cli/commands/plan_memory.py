"""`infc plan-memory`: offsets for a list of buffers in memory of a given size."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import print_json, write_text
from infc.cli.paths import NamedPath
from infc.cli.units import human_bytes, human_seconds
from infc.diagnostics import Code, UserError, count

if TYPE_CHECKING:
    from infc.memory.buffer import ArenaPlan

NODE_LIMIT = 4_000_000
"""Half a minute to some minutes of searching where a list of buffers does not fit."""

EPILOG = """\b
Examples:
  infc plan-memory buffers.csv --capacity 1MiB -o plan.csv
  infc plan-memory buffers.csv --capacity 1048576 --time-limit 10 --json

BUFFERS.csv has the columns id, lower, upper, size and optionally alignment: a buffer of size bytes
lives in [lower, upper). OUT.csv has the same rows and their offset. The same list gets the same
plan, unless the time limit ends the search.
"""


@click.command("plan-memory", epilog=EPILOG, short_help="Place buffers in an arena.")
@click.argument("source", metavar="BUFFERS.csv", type=NamedPath())
@click.option(
    "--capacity", metavar="BYTES", required=True, help="What the arena may take: 1048576, 1MiB."
)
@click.option("-o", "--output", type=NamedPath(), metavar="OUT.csv", help="Where the plan goes.")
@click.option(
    "--time-limit",
    type=float,
    metavar="S",
    help="Seconds after which the best plan found so far counts.  [default: none]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan_memory_command(
    source: Path, capacity: str, output: Path | None, time_limit: float | None, as_json: bool
) -> None:
    """Give each buffer of a list an offset, so that none overlap while they live."""
    start = time.monotonic()
    from infc.artifact.output import check_output, whole_file
    from infc.memory.buffers_csv import read_buffers, table_with_offsets
    from infc.memory.checker import check_plan
    from infc.memory.planner import plan_arena

    capacity_bytes = _capacity(capacity)
    if time_limit is not None and not time_limit > 0:
        raise UserError(
            Code.OPTION, f"expected a time limit above zero seconds, got {time_limit:g}"
        )
    if output is not None:
        check_output(output, folder=False, inputs=[source])
    end = math.inf if time_limit is None else start + time_limit
    table = read_buffers(source)
    plan = plan_arena(
        table.buffers,
        node_limit=NODE_LIMIT,
        capacity_bytes=capacity_bytes,
        out_of_time=lambda: time.monotonic() >= end,
    )
    check_plan(table.buffers, plan.offsets, plan.height_bytes)
    if plan.height_bytes > capacity_bytes:
        _refuse(source, plan, capacity_bytes)
    if output is not None:
        data = table_with_offsets(table, plan.offsets).encode()
        with whole_file(output) as file:
            file.write(data)
    seconds = time.monotonic() - start
    if as_json:
        print_json(
            {
                "buffers": len(table.buffers),
                "capacity_bytes": capacity_bytes,
                "height_bytes": plan.height_bytes,
                "lower_bound_bytes": plan.lower_bound_bytes,
                "optimal": plan.optimal,
                "fits": True,
                "method": plan.method,
                "stopped_by": plan.stop,
                "seconds": seconds,
                "output": None if output is None else str(output),
            }
        )
    else:
        write_text(_summary(len(table.buffers), capacity_bytes, plan, seconds))


def _capacity(text: str) -> int:
    from infc.target.units import parse_bytes

    try:
        plain = text.isascii() and text.isdigit()
        capacity = int(text) if plain else parse_bytes(text)
    except ValueError as error:
        raise UserError(
            Code.OPTION,
            f"expected --capacity as a number of bytes, or with a unit as 1MiB, got '{text[:40]}'",
        ) from error
    if capacity == 0:
        raise UserError(Code.OPTION, "expected --capacity of at least one byte, got 0")
    return capacity


def _refuse(source: Path, plan: ArenaPlan, capacity_bytes: int) -> None:
    if plan.lower_bound_bytes > capacity_bytes:
        verdict = "it is proven that no plan fits"
    else:
        verdict = f"a plan that fits may exist: {_ending(plan)}"
    raise UserError(
        Code.PLAN,
        f"expected the buffers to fit into {capacity_bytes} bytes, "
        f"got a plan of {plan.height_bytes} bytes",
        location=str(source),
        notes=[f"no plan can need less than {plan.lower_bound_bytes} bytes", verdict],
        hint=f"--capacity {plan.height_bytes} is enough",
    )


def _ending(plan: ArenaPlan) -> str:
    return {
        "node limit": "the search ended at its limit of nodes",
        "time limit": "the search ended at the time limit, another run may find another plan",
        "too many buffers": "there are too many buffers to search, only fast heuristics were tried",
        None: "the plan is optimal",
    }[plan.stop]


def _summary(buffers: int, capacity_bytes: int, plan: ArenaPlan, seconds: float) -> str:
    height, bound = plan.height_bytes, plan.lower_bound_bytes
    proven = "optimal" if plan.optimal else f"not proven optimal: {_ending(plan)}"
    return (
        f"{count(buffers, 'buffer')} in {height} bytes ({human_bytes(height)}) "
        f"of {capacity_bytes} ({human_bytes(capacity_bytes)}): fits\n"
        f"lower bound {bound} bytes ({human_bytes(bound)}): {proven}\n"
        f"found by {'a heuristic' if plan.method == 'heuristic' else 'search'}"
        f" in {human_seconds(seconds)}\n"
    )
