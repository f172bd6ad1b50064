"""`infc calibrate`: measures this machine, so that predictions are of it and not of its class."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infc.cli.output import print_json, write_text
from infc.cli.paths import NamedPath
from infc.cli.progress import progress_bar
from infc.cli.tables import print_table
from infc.cli.units import human_bytes, human_count

if TYPE_CHECKING:
    from infc.driver.calibration import Calibration

EPILOG = """\b
Examples:
  infc calibrate
  infc calibrate --model model.gguf
  infc calibrate --threads 4 --json

Takes two minutes, on a machine that does nothing else best. The profile is kept in
$XDG_DATA_HOME/infc/machines (or ~/.local/share/infc/machines), a file for each machine; delete it
and the figures of the machine's class count again. What is compiled for this machine from then on
holds what was measured. Changes of the profile make models that `infc run` keeps compile anew.
"""


@click.command("calibrate", epilog=EPILOG, short_help="Measure this machine for the cost model.")
@click.option(
    "--target",
    metavar="NAME",
    default="cpu",
    show_default=True,
    help="What to measure: the target that is this machine.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most threads to measure with.  [default: all cores that this process may use]",
)
@click.option(
    "--model",
    type=NamedPath(),
    metavar="MODEL",
    help="Reads a page, to see how much of a vocabulary head a token needs.  [default: assumed]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate_command(target: str, threads: int | None, model: Path | None, as_json: bool) -> None:
    """Measure this machine's memory, arithmetic and kernels, and keep a profile of it.

    The profile has at most 12 constants for each class of kernels, each with its unit, range and
    meaning. It makes predictions, and the choices between mappings, those of this machine.
    """
    from infc import driver

    with progress_bar() as progress:
        found = driver.calibrate(target, threads=threads, model=model, progress=progress)
    report = calibration_report(found)
    if as_json:
        print_json(report)
    else:
        _print_for_people(report)


def calibration_report(found: Calibration) -> dict[str, Any]:
    """What the profile says, as JSON values."""
    profile = found.profile
    return {
        "target": found.target.name,
        "profile": str(found.path),
        "date": profile.date,
        "bytes_per_second": {str(n): b for n, b in profile.speeds.bytes_per_s.items()},
        "operations_per_second": profile.speeds.operations_per_s,
        "wander_low": profile.speeds.low,
        "wander_high": profile.speeds.high,
        "classes": {
            name: {
                "kernels": part.rows,
                "constants": dict(part.values),
                "residual_low": part.quantiles("any")[0],
                "residual_high": part.quantiles("any")[1],
            }
            for name, part in profile.kernels.classes.items()
        },
    }


def _print_for_people(report: dict[str, Any]) -> None:
    reads = ", ".join(
        f"{human_bytes(rate)}/s with {count}" for count, rate in report["bytes_per_second"].items()
    )
    write_text(
        f"memory reads by threads: {reads}\n"
        f"one thread in float32: {human_count(report['operations_per_second'])} operations/s\n"
        f"reads took {_percent(report['wander_low'])} to {_percent(report['wander_high'])} of "
        "their usual time (10% and 90% of passes)\n"
    )
    print_table(
        ["class", "kernels", "measured beside predicted"],
        [
            [
                name,
                str(part["kernels"]),
                f"{_percent(part['residual_low'])} to {_percent(part['residual_high'])}",
            ]
            for name, part in report["classes"].items()
        ],
        right=["kernels"],
    )
    write_text(f"written to {report['profile']}\n")


def _percent(logarithm: float) -> str:
    return f"{100.0 * exp(logarithm):.0f}%"
