"""Draws a record of `compare.py`: tokens a second of each engine, in prefill and in decode.

Needs matplotlib besides. The bars are medians, the lines at their ends go from the lower to the
upper quartile of the rounds.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIRST, OTHERS = "#c2410c", "#94a3b8"
# Text stays text in the SVG, and two drawings of one record are the same bytes.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "infc", "font.size": 9})


def draw(axes: Axes, record: dict[str, Any], threads: int, workload: str) -> None:
    """One panel: a bar an engine, the fastest on top."""
    samples: dict[str, list[float]] = {}
    for sample in record["samples"]:
        if (sample["threads"], sample["workload"]) == (threads, workload):
            samples.setdefault(sample["engine"], []).append(sample["tokens_per_second"])
    medians = {name: statistics.median(rates) for name, rates in samples.items()}
    names = sorted(medians, key=lambda name: medians[name])
    first = record["engines"][0]["name"]
    ends = []
    for name in names:
        low, high = np.quantile(samples[name], [0.25, 0.75])
        ends.append((medians[name] - low, high - medians[name]))
    bars = axes.barh(
        names,
        [medians[name] for name in names],
        color=[FIRST if name == first else OTHERS for name in names],
        xerr=list(zip(*ends, strict=True)),
        error_kw={"elinewidth": 0.8, "ecolor": "#475569"},
        height=0.72,
    )
    axes.bar_label(bars, fmt="%.0f", padding=6)
    axes.margins(x=0.18)
    axes.set_title(f"{workload}, tokens/s", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


@click.command()
@click.argument("path", metavar="RECORD", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    default=("prefill 512", "decode after 512"),
    show_default=True,
)
def main(path: Path, output: Path, threads: int, workloads: tuple[str, ...]) -> None:
    """Draw RECORD as an SVG or PNG file."""
    record = json.loads(path.read_text())
    engines = len(record["engines"])
    figure = Figure(figsize=(9, 0.9 + 0.27 * engines), layout="constrained")
    for place, workload in enumerate(workloads, start=1):
        draw(figure.add_subplot(1, len(workloads), place), record, threads, workload)
    model = Path(record["model"]["file"]).stem
    plural = "s" if threads > 1 else ""
    figure.suptitle(f"{model}, {threads} thread{plural}, {record['date']}", fontsize=10)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
