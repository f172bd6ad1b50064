"""What `--tune` measured, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median
from typing import TYPE_CHECKING

import click

from infc.cli.units import human_seconds

if TYPE_CHECKING:
    from infc.driver import TunedKernel, Tuning

_CLOSE = 0.05
"""A choice within so much of the best one measured counts as the best."""


def print_notes(notes: Iterable[str]) -> None:
    """One line each on stderr."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def tuning_object(tuning: Tuning) -> dict[str, object]:
    """The entry of `infc compile --json`: times in seconds, errors as shares."""
    return {
        "best": tuning.best,
        "kernels": [
            {
                **kernel.record(),
                "from_database": kernel.known,
                "model_error": kernel.error,
                "model_loss": kernel.loss,
                "mappings": [
                    {"mapping": dict(mapping), "predicted_seconds": said, "seconds": took}
                    for mapping, said, took in zip(
                        kernel.mappings, kernel.predicted, kernel.measured, strict=True
                    )
                ],
            }
            for kernel in tuning.kernels
        ],
        "notes": list(tuning.notes),
    }


def tuning_text(tuning: Tuning) -> str:
    """The lines of `infc compile --tune`: each kernel, then how wrong the model was."""
    kernels = tuning.kernels
    if not kernels:
        return "  no kernel has mappings to choose from: nothing was measured\n"
    known = sum(kernel.known for kernel in kernels)
    close = sum(kernel.loss <= _CLOSE for kernel in kernels)
    changed = sum(kernel.chosen > 0 for kernel in kernels)
    lines = [f"  {_line(kernel)}\n" for kernel in kernels]
    lines.append(
        f"  tuned {len(kernels)} kernels, {known} of them from the database; another mapping than "
        f"the model's runs in {changed}\n"
        f"  the model's times were off by {median(abs(k.error) for k in kernels):.0%} (median), "
        f"its choices within {_CLOSE:.0%} of the best measured for {close}, "
        f"{mean(k.loss for k in kernels):.1%} slower on average\n"
    )
    return "".join(lines)


def _line(kernel: TunedKernel) -> str:
    what = kernel.kernel
    shapes = " + ".join(f"{n}x{k} {storage}" for n, k, storage in what.matrices)
    rows = "1 row" if what.typical_rows == 1 else f"{what.typical_rows} rows"
    took, said = kernel.measured[kernel.chosen], kernel.predicted[0]
    return (
        f"{what.phase} {what.kind} {shapes or rows}{', ' + rows if shapes else ''}: "
        f"{human_seconds(took)}, model {human_seconds(said)}, its choice {kernel.loss:+.1%}"
    )
