"""Writing to stdout: JSON objects, text as it comes, and what happens when stdout fails."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infc.diagnostics import Code, UserError

SCHEMA_VERSION = 1
"""Of every object `--json` prints: keys are added, never renamed."""


class ReaderLeft(Exception):
    """Nobody reads stdout any more. Not a BrokenPipeError, which click would take for its own."""


def print_json(payload: Mapping[str, Any]) -> None:
    """One object with its `schema_version`; what is not finite becomes null."""
    write_text(json.dumps({"schema_version": SCHEMA_VERSION, **_finite(payload)}, indent=2) + "\n")


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(text: str) -> None:
    """Write and flush; INF4006 where stdout takes no more, ReaderLeft where nobody reads.

    A character that the terminal's encoding lacks is replaced.
    """
    if sys.stdout is None:
        raise UserError(Code.OUTPUT, "standard output could not be written: it is closed")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    with _stdout_failures():
        sys.stdout.write(text)
        sys.stdout.flush()


def flush_stdout() -> None:
    """Flush; INF4006 where stdout takes no more, ReaderLeft where nobody reads."""
    if sys.stdout is not None:
        with _stdout_failures():
            sys.stdout.flush()


@contextmanager
def _stdout_failures() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderLeft from error
    except OSError as error:
        abandon_stdout()
        raise stdout_error(error) from error


def stdout_error(error: OSError) -> UserError:
    """Why stdout takes no more (INF4006)."""
    return UserError(Code.OUTPUT, f"standard output could not be written: {error.strerror}")


def abandon_stdout() -> None:
    """Send what is still buffered nowhere, so that Python's own last flush does not fail."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, io.UnsupportedOperation, ValueError):
        return  # closed, or not a file
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
