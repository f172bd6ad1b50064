"""`infc opt`: run passes on a dump."""

from __future__ import annotations

from pathlib import Path

import click

from infc.cli.output import write_text
from infc.diagnostics import Code, UserError

EPILOG = """\b
Examples:
  infc opt out/000-import.mlir --pipeline "canonicalize,fuse-elementwise"
  infc opt edited.mlir --pipeline "plan-memory" -o planned.mlir

The IR is verified before and after every pass.
"""


@click.command("opt", epilog=EPILOG, short_help="Run passes on IR from --dump.")
@click.argument("file", metavar="FILE.mlir", type=click.Path(path_type=Path))
@click.option(
    "--pipeline", required=True, metavar="PASSES", help="Names of passes, with commas between them."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the IR.  [default: stdout]",
)
def opt_command(file: Path, pipeline: str, output: Path | None) -> None:
    """Run passes on IR, as `infc compile --dump` writes it."""
    source = _read(file)
    from infc import driver

    result = driver.run_opt(source, pipeline, location=str(file))
    if output is None:
        write_text(result)
        return
    try:
        output.write_text(result, encoding="utf-8")
    except OSError as error:
        raise UserError(
            Code.OUTPUT, f"the IR could not be written: {error.strerror}", location=str(output)
        ) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            Code.IR_SYNTAX,
            f"the IR could not be read: {reason}",
            location=str(file),
            hint="infc compile --dump DIR writes IR that this command reads",
        ) from error
