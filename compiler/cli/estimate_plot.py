"""A comparison as a picture: how fast each user is served against what that costs.

Each target is a curve of more and more requests at a time. The extra `plot` brings matplotlib.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infc.diagnostics import Code, UserError

if TYPE_CHECKING:
    from infc.cost.deployment import DeploymentEstimate
    from infc.driver.comparison import Comparison

SUFFIXES = (".svg", ".html")
_PANELS: tuple[tuple[str, str, Callable[[DeploymentEstimate], float | None]], ...] = (
    ("output tokens/s per watt", "power", lambda estimate: estimate.tokens_per_s_per_watt),
    ("$ per million output tokens", "price", lambda estimate: estimate.dollars_per_million_tokens),
)
_CAPTION = "a ring is what was asked; along a curve the requests at a time double"
_COLOURS = (
    *("#332288", "#ee7733", "#117733", "#cc3311", "#66aadd", "#882255"),
    *("#999933", "#44aa99", "#aa4499", "#222222", "#ddaa33", "#0077bb"),
)
"""Distinct for most colour-blind readers (after Tol: Colour Schemes, 2021)."""
_MARKERS = "osD^vP*XhpdH"


def check_plot(path: Path, model: Path) -> None:
    """Raise UserError where no plot can be written, before any work is done for it."""
    from importlib.util import find_spec

    from infc.artifact.output import check_output

    if path.suffix not in SUFFIXES:
        raise UserError(
            Code.OPTION, f"expected a plot ending in {' or '.join(SUFFIXES)}, got {path.name}"
        )
    if find_spec("matplotlib") is None:
        raise UserError(
            Code.TOOLCHAIN,
            "drawing a plot needs matplotlib, which is not installed",
            hint='pip install "infc[plot]"',
        )
    check_output(path, folder=False, inputs=[model])


def write_plot(path: Path, title: str, comparison: Comparison) -> None:
    """Draw a comparison to an SVG file, or to a page with that picture."""
    from infc.artifact.output import whole_file

    picture = _draw(title, comparison)
    if path.suffix == ".html":
        name = html.escape(title)
        picture = (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
            f"<style>body{{margin:1em}}svg{{max-width:100%;height:auto}}</style></head>\n"
            f"<body>{picture[picture.index('<svg') :]}</body></html>\n"
        )
    with whole_file(path) as file:
        file.write(picture.encode())


def _draw(title: str, comparison: Comparison) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "infc",  # the same comparison gives the same file
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # dollars are money
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(_PANELS))
        for axis, (label, missing, value) in zip(axes, _PANELS, strict=True):
            _panel(axis, label, missing, value, comparison)
        figure.suptitle(f"{title}\n{_CAPTION}", x=0.01, ha="left", fontsize=9)
        handles, names = _all_handles(axes)
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None, "Creator": "infc estimate"})
    return text.getvalue()


def _panel(
    axis: Any,
    label: str,
    missing: str,
    value: Callable[[DeploymentEstimate], float | None],
    comparison: Comparison,
) -> None:
    """One picture: a curve for each target, its asked point ringed."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    left_out = []
    for index, row in enumerate(comparison.rows):
        points = [
            (point.estimate.tokens_per_s_per_user, value(point.estimate))
            for point in comparison.curves[row.name]
        ]
        asked = value(row.estimate)
        if asked is None:
            left_out.append(row.name)
            continue
        colour = _COLOURS[index % len(_COLOURS)]
        axis.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            linewidth=1.4,
            label=f"{row.name} x{row.devices}",
        )
        axis.plot(
            row.estimate.tokens_per_s_per_user,
            asked,
            "o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=colour,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        scale.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        scale.set_minor_formatter(NullFormatter())
    axis.set_xlabel("output tokens/s of each user")
    axis.set_ylabel(label)
    axis.grid(visible=True, which="both", color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
    if left_out:
        note = f"{missing} unknown: {', '.join(left_out)}"
        axis.set_title(note, fontsize=7.5, loc="left", color="#555555", wrap=True)


def _all_handles(axes: Any) -> tuple[list[Any], list[str]]:
    """One entry of the legend for each target, whichever panel has it."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)
