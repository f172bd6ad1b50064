"""Contexts, parsing and printing: the ways into and out of the IR."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
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


_TOKEN: Final = re.compile(
    r'//[^\n]*|"(?:[^"\\\n]|\\.)*"?|->|[<>]=|(?:-[ \t]*){200}|[{(\[<]|[})\]>]'
)
"""What counts for how deep a text is nested, and what only looks so: comments, strings, closed or
not, arrows and comparisons."""
_DEEPEST: Final = 200
"""Brackets in one another, or signs in a row: MLIR's parser calls itself for each of these."""


def _depth(text: str) -> int:
    depth = deepest = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in {"{", "(", "[", "<"}:
            depth += 1
            deepest = max(deepest, depth)
        elif token in {"}", ")", "]", ">"}:
            depth = max(0, depth - 1)
        elif token[0] == "-" and token != "->":
            return _DEEPEST + 1
    return deepest


def parse(text: str, *, name: str = "-") -> ir.Module:
    """Parse a module in the current context.

    Raises:
        UserError: INF2001 with MLIR's own diagnostics, line and column.
    """
    if _depth(text) > _DEEPEST:
        raise UserError(
            Code.IR_SYNTAX,
            f"the IR is nested too deeply: expected at most {_DEEPEST} brackets in one another",
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
