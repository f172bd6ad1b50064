"""`infc explain`: what an error code means, or where an artifact's time and memory go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import print_json, write_text
from infc.cli.tables import print_markdown, print_table
from infc.cli.units import human_bytes, human_count, human_seconds
from infc.diagnostics import Code, UserError, count

if TYPE_CHECKING:
    from infc.driver import Explanation
    from infc.driver.explanation_rows import OpRow, ProgramRow

EPILOG = """\b
Examples:
  infc explain INF5004
  infc explain model.infc
  infc explain model.infc --html report.html
  infc explain model.infc --json | jq '.kernels[] | select(.bound_kind == "memory") | .kernel'

Times are those of one call: a prefill of the prompt that the artifact was compiled for, or one
decoded token. Measured ones are the middle one of three calls, predicted ones for as many threads.
The floor is what the bytes take at the peak bandwidth, or the operations at the peak rate where
that is longer; the last column says how much of the measured time it is. `infc bench` says how
disturbed the machine is at the moment.

Of a GPU's functions: registers of a thread and its local memory, where registers are spilled, if
there was an assembler to count them; shared memory of a block.

Of a simulated machine each operation of the model is listed: the seconds of the machine's own time
for which nothing else could have made the call faster, the resource that binds, and how busy it
kept each resource meanwhile, of its kind the busiest one ("load" and "send" are the DMA engines).
"latency" binds where none is busy; "hidden" is what takes no time because of what runs beside it.
"""


@click.command("explain", epilog=EPILOG, short_help="Explain an error code or an artifact.")
@click.argument("topic", metavar="CODE-OR-ARTIFACT")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with charts of kernels, placement and memory instead.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to measure with.  [default: one a physical core that this process may use]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain_command(topic: str, html: Path | None, threads: int | None, as_json: bool) -> None:
    """Explain an error code, or an artifact's kernels and memory."""
    if re.fullmatch(r"INF\d+", topic, re.IGNORECASE):
        if html is not None or as_json or threads is not None:
            raise click.UsageError(
                "--html, --threads and --json are for artifacts, not for error codes"
            )
        print_markdown(_page(topic.upper()))
        return
    from infc import driver
    from infc.artifact.output import check_output

    if html is not None:
        check_output(html, folder=False, inputs=[Path(topic)])
    explanation = driver.explain(Path(topic), threads=threads)
    if html is not None:
        _write_page(html, explanation)
    if as_json:
        print_json(asdict(explanation))
    elif html is not None:
        what = "operation" if explanation.ops else "kernel"
        number = len(explanation.ops or explanation.kernels)
        write_text(f"{html}: {count(number, what)} explained\n")
    else:
        _print_explanation(explanation)


def _write_page(path: Path, explanation: Explanation) -> None:
    from infc.artifact.output import whole_file
    from infc.cli.artifact_page import render_page

    # A name out of a manifest may hold half of a surrogate pair, which UTF-8 cannot.
    data = render_page(explanation).encode("utf-8", errors="replace")
    with whole_file(path) as file:
        file.write(data)


def _page(name: str) -> str:
    from infc.diagnostics.pages import page

    if name not in list(Code):
        raise UserError(
            Code.OPTION,
            f"expected an error code that infc knows, got {name}",
            hint=f"they run from {min(Code)} to {max(Code)}; an error message starts with its code",
        )
    return page(Code(name))


def _print_explanation(explanation: Explanation) -> None:
    if explanation.kernels:
        _print_kernels(explanation)
    if explanation.kernels and explanation.ops:
        write_text("\n")
    if explanation.ops:
        _print_ops(explanation)
    if explanation.code:
        _print_code(explanation)
    if explanation.buffers:
        _print_buffers(explanation)
    if not (explanation.kernels or explanation.ops):
        write_text("The target interprets the model: it has no kernels and plans no memory.\n")
    cache = explanation.kv_cache
    held = f"{human_bytes(cache.size_bytes)} for {count(cache.slots, 'slot')}"
    write_text(f"\nKV cache: {cache.dtype}, {held}\n")
    for row in explanation.programs:
        if row.predicted_seconds is not None and not explanation.ops:
            write_text(f"{_whole_call(row)}\n")
    for note in explanation.notes:
        write_text(f"{note}\n")
    if explanation.unmeasured:
        write_text(f"nothing was measured: {explanation.unmeasured}\n")


def _whole_call(row: ProgramRow) -> str:
    what = f"{row.program} of {count(row.tokens, 'token')} on {row.target}"
    times = [row.predicted_seconds, row.predicted_seconds_low, row.predicted_seconds_high]
    mid, low, high = (human_seconds(seconds or 0.0) for seconds in times)
    said = (
        "" if row.measured_seconds is None else f", measured {human_seconds(row.measured_seconds)}"
    )
    return f"{what}: predicted {mid} ({low} to {high}){said}"


def _print_kernels(explanation: Explanation) -> None:
    times = ["floor", "predicted", "measured", "of floor"]
    print_table(
        ["program", "kernel", "launches", "bytes", "ops", "bound", *times],
        [
            [
                row.program,
                f"{row.kernel} ({row.location})",
                str(row.launches),
                human_bytes(row.bytes),
                human_count(row.operations),
                row.bound,
                human_seconds(row.floor_seconds),
                human_seconds(row.predicted_seconds),
                "" if row.measured_seconds is None else human_seconds(row.measured_seconds),
                "" if row.floor_reached is None else f"{row.floor_reached:.0%}",
            ]
            for row in explanation.kernels
        ],
        right=["launches", "bytes", "ops", *times],
    )


def _print_ops(explanation: Explanation) -> None:
    programs = [row for row in explanation.programs if row.utilisation]
    resources = list(dict.fromkeys(name for row in programs for name in row.utilisation))
    rows = []
    for program in programs:
        call = f"call of {count(program.tokens, 'token')}"
        seconds = human_seconds(program.measured_seconds or 0.0)
        rows.append([program.program, call, seconds, "", "", *_used(program, resources)])
        for op in explanation.ops:
            if op.program == program.program:
                seconds, share = human_seconds(op.seconds), f"{op.share:.0%}"
                cells = [op.program, op.operation, seconds, share, op.bound]
                rows.append([*cells, *_used(op, resources)])
    print_table(
        ["program", "operation", "simulated", "share", "bound", *resources],
        rows,
        right=["simulated", "share", *resources],
    )


def _used(row: ProgramRow | OpRow, resources: Sequence[str]) -> list[str]:
    parts = [row.utilisation.get(name) for name in resources]
    return ["" if part is None else f"{part:.0%}" for part in parts]


def _print_code(explanation: Explanation) -> None:
    write_text("\n")
    figures = ["threads", "registers", "local memory", "shared memory"]
    print_table(
        ["program", "function", *figures],
        [
            [
                row.program,
                row.function,
                str(row.threads),
                "" if row.registers is None else str(row.registers),
                "" if row.local_bytes is None else f"{row.local_bytes} B",
                human_bytes(row.shared_bytes),
            ]
            for row in explanation.code
        ],
        right=figures,
    )


def _print_buffers(explanation: Explanation) -> None:
    write_text("\n")
    print_table(
        ["program", "buffer", "offset", "size", "from launch", "to launch"],
        [
            [
                row.program,
                f"{row.function}: {row.buffer} ({row.space})",
                str(row.offset_bytes),
                str(row.size_bytes),
                str(row.first_launch),
                str(row.last_launch),
            ]
            for row in explanation.buffers
        ],
        right=["offset", "size", "from launch", "to launch"],
    )
