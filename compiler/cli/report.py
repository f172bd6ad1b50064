"""From an exception to what the user reads and the exit code."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeGuard

import click

from infc.cli.output import (
    ReaderLeft,
    abandon_stdout,
    flush_stdout,
    print_json,
    stdout_error,
)
from infc.diagnostics import Diagnostic, InfcError, InternalError, UserError


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    USER_ERROR = 1
    USAGE = 2
    INTERNAL_ERROR = 70
    INTERRUPTED = 130


def run_reporting(command: Callable[[], object], *, as_json: bool) -> int:
    """Run a command; print whatever goes wrong; return the exit code."""
    try:
        result = command()
        flush_stdout()
        # click returns the code of --help and --version, and what a command returns (nothing).
        return result if isinstance(result, int) else Exit.OK
    except ReaderLeft:
        # The reader has what it wanted (`infc run ... | head`).
        abandon_stdout()
        return Exit.OK
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        if as_json:
            _print_json_error(None, error.format_message())
        return error.exit_code
    except UserError as error:
        _print_diagnostic(error.diagnostic)
        if as_json:
            _print_json_error(error.diagnostic, error.diagnostic.message)
        return Exit.USER_ERROR
    except Exception as error:
        if _wrote_help(error):
            abandon_stdout()
            _print_diagnostic(stdout_error(error).diagnostic)
            return Exit.USER_ERROR
        diagnostic = _internal(error)
        traceback.print_exc()
        _print_diagnostic(diagnostic)
        if as_json:
            _print_json_error(diagnostic, diagnostic.message)
        return Exit.INTERNAL_ERROR


def _wrote_help(error: Exception) -> TypeGuard[OSError]:
    """Whether click failed to write a text of its own, its help for instance, to stdout."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, OSError) or not frames:
        return False
    inner = frames[-1]
    return inner.f_code == click.echo.__code__ and not inner.f_locals.get("err")


def _internal(error: Exception) -> Diagnostic:
    if not isinstance(error, InfcError):
        error = InternalError(
            f"{type(error).__name__}: {error}",
            hint="this is a mistake in infc, not yours: please report it with the text above",
        )
    return error.diagnostic


def _print_diagnostic(diagnostic: Diagnostic) -> None:
    """The rendered text on stderr; its first word in colour on a terminal."""
    severity, colon, rest = diagnostic.render().partition(":")
    coloured = click.style(severity, fg="red", bold=True) + colon + rest
    click.echo(coloured, err=True, color=False if "NO_COLOR" in os.environ else None)


def _print_json_error(diagnostic: Diagnostic | None, message: str) -> None:
    """The error as the command's one JSON object; a usage error has no code."""
    error: dict[str, Any] = {
        "code": None,
        "message": message,
        "location": None,
        "notes": [],
        "hint": None,
        "problems": [],
    }
    if diagnostic is not None:
        error |= {
            "code": diagnostic.code.value,
            "location": diagnostic.location,
            "notes": list(diagnostic.notes),
            "hint": diagnostic.hint,
            "problems": [
                {"message": problem.message, "location": problem.location}
                for problem in diagnostic.problems
            ],
        }
    try:
        print_json({"error": error})
        flush_stdout()
    except (ReaderLeft, UserError):
        # The error itself may be that stdout cannot be written; stderr has the text.
        abandon_stdout()


def exit_codes_help() -> str:
    """The exit codes as `--help` shows them."""
    meanings = {
        Exit.OK: "done",
        Exit.USER_ERROR: "the model, the options, the target or the machine is at fault",
        Exit.USAGE: "the command line could not be understood",
        Exit.INTERNAL_ERROR: "infc is at fault; the traceback is printed",
        Exit.INTERRUPTED: "interrupted by Ctrl-C",
    }
    return "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in meanings.items())
