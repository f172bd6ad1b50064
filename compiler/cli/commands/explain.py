"""`infc explain`: what an error code means, or where an artifact's time and memory go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import write_text
from infc.cli.tables import print_markdown, print_table
from infc.cli.units import human_bytes, human_count, human_seconds
from infc.diagnostics import Code, UserError

if TYPE_CHECKING:
    from infc.driver import Explanation

EPILOG = """\b
Examples:
  infc explain INF5004
  infc explain model.infc
"""


@click.command("explain", epilog=EPILOG, short_help="Explain an error code or an artifact.")
@click.argument("topic", metavar="CODE-OR-ARTIFACT")
def explain_command(topic: str) -> None:
    """Explain an error code, or an artifact's kernels and memory."""
    if re.fullmatch(r"INF\d+", topic, re.IGNORECASE):
        print_markdown(_page(topic.upper()))
        return
    from infc import driver

    _print_explanation(driver.explain(Path(topic)))


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
    print_table(
        ["program", "kernel", "launches", "bytes", "ops", "bound", "predicted", "measured"],
        [
            [
                row.program,
                row.kernel,
                str(row.launches),
                human_bytes(row.bytes),
                human_count(row.operations),
                row.bound,
                human_seconds(row.predicted_seconds),
                "" if row.measured_seconds is None else human_seconds(row.measured_seconds),
            ]
            for row in explanation.kernels
        ],
        right=["launches", "bytes", "ops", "predicted", "measured"],
    )
    write_text("\n")
    print_table(
        ["program", "buffer", "offset", "size", "from launch", "to launch"],
        [
            [
                row.program,
                row.buffer,
                str(row.offset_bytes),
                str(row.size_bytes),
                str(row.first_launch),
                str(row.last_launch),
            ]
            for row in explanation.buffers
        ],
        right=["offset", "size", "from launch", "to launch"],
    )
