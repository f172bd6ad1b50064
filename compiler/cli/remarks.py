"""Remarks on stderr: what a pass left alone, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:  # what needs MLIR is loaded when a command runs, not for `--help`
    from infc.pipeline.passes import Remark

Command = TypeVar("Command", bound=Callable[..., Any])

ALL = "all"
"""In the place of a pass's name."""


def remarks_option(command: Command) -> Command:
    """The option of the commands that run passes."""
    return click.option(
        "--remarks",
        "remarks_of",
        metavar="PASS",
        help="Say on stderr what this pass declined to do, and why; all means every pass.",
    )(command)


def check_pass_name(name: str | None) -> None:
    """Refuse a name that no shared pass has, before any work is done (INF2004)."""
    if name not in (None, ALL):
        from infc.passes.pipelines import SHARED

        SHARED.index(name)


def print_remarks(remarks: Iterable[Remark], name: str | None) -> None:
    """One line each, in the order they were made; what both programs say is said once."""
    lines = [
        f"remark[{remark.pass_name}]: {_place(remark.location)}: {remark.reason}"
        for remark in remarks
        if name in (ALL, remark.pass_name)
    ]
    for line in dict.fromkeys(lines):
        click.echo(line, err=True)


def _place(location: str) -> str:
    """The name in a location, without MLIR's punctuation."""
    return location.removeprefix("loc(").removesuffix(")").strip('"')
