"""`infc opt`: run passes on a dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import write_text
from infc.cli.remarks import check_pass_name, print_remarks, remarks_option
from infc.diagnostics import Code, UserError

if TYPE_CHECKING:
    from infc.pipeline.passes import Remark

EPILOG = """\b
Examples:
  infc opt out/000-import.mlir --pipeline "canonicalize,split-phases"
  infc opt edited.mlir --pipeline "plan-memory" -o planned.mlir
  infc opt layers.mlir --pipeline "fuse-kernels" --remarks fuse-kernels -o fused.mlir

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
@remarks_option
def opt_command(file: Path, pipeline: str, output: Path | None, remarks_of: str | None) -> None:
    """Run passes on IR, as `infc compile --dump` writes it."""
    check_pass_name(remarks_of)
    source = _read(file)
    from infc import driver
    from infc.artifact.output import check_output, whole_file

    if output is not None:
        check_output(output, folder=False, inputs=[file])

    remarks: list[Remark] = []
    result = driver.run_opt(source, pipeline, location=str(file), remarks=remarks)
    print_remarks(remarks, remarks_of)
    if output is None:
        write_text(result)
        return
    with whole_file(output) as out:
        out.write(result.encode())


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
