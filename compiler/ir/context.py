"""Contexts, parsing and printing: the ways into and out of the IR."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Final

from infc.diagnostics import Code, UserError
from infc.ir.mlir import ir, irdl


@cache
def _dialect_text() -> str:
    return files("infc.ir").joinpath("infc.mlir").read_text()


@contextmanager
def context() -> Iterator[ir.Context]:
    """A fresh MLIR context that knows the infc dialect, made current with an unknown location."""
    with ir.Context() as current, ir.Location.unknown():
        irdl.load_dialects(ir.Module.parse(_dialect_text()))
        yield current


_BRACKET: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|[{(\[\])}]')
"""A bracket, or a string, which may have some in it."""
_NESTING: Final = dict.fromkeys("{([", 1) | dict.fromkeys("})]", -1)
_DEEPEST: Final = 200
"""Brackets in one another: MLIR's parser calls itself for each, and has no limit of its own."""


def parse(text: str, *, name: str = "-") -> ir.Module:
    """Parse a module in the current context.

    Raises:
        UserError: INF2001 with MLIR's own diagnostics, line and column.
    """
    steps = (_NESTING.get(match[0], 0) for match in _BRACKET.finditer(text))
    depth = max(accumulate(steps), default=0)
    if depth > _DEEPEST:
        raise UserError(
            Code.IR_SYNTAX,
            f"the IR is nested too deeply: expected at most {_DEEPEST} brackets, got {depth}",
            location=name,
        )
    try:
        return ir.Module.parse(text)
    except ir.MLIRError as error:
        problems = [
            f"{diagnostic.location}: {diagnostic.message}".replace('"-"', f'"{name}"')
            for diagnostic in error.error_diagnostics
        ]
        raise UserError(
            Code.IR_SYNTAX,
            "the IR does not parse",
            location=name,
            notes=problems[:10],
            hint="a dump is parsed as it was printed; undo the edit at the line named above",
        ) from error


def print_module(module: ir.Module | ir.Operation) -> str:
    """The text of a module with its locations; parsing it gives the same module back."""
    operation = module.operation
    return str(operation.get_asm(enable_debug_info=True)) + "\n"
