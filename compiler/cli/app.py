"""The command group: what `infc` is, its exit codes, and the order of its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

import infc
from infc.cli.commands.bench import bench_command
from infc.cli.commands.calibrate import calibrate_command
from infc.cli.commands.compile import compile_command
from infc.cli.commands.estimate import estimate_command
from infc.cli.commands.explain import explain_command
from infc.cli.commands.opt import opt_command
from infc.cli.commands.plan_memory import plan_memory_command
from infc.cli.commands.run import run_command
from infc.cli.commands.targets import targets_command
from infc.cli.report import exit_codes_help, run_reporting


class InfcGroup(click.Group):
    """A group whose every failure ends in a rendered diagnostic and a documented exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit; click's own handling knows no exit codes but 1 and 2."""
        arguments = list(sys.argv[1:] if args is None else args)
        run = super().main

        def command() -> Any:
            return run(arguments, prog_name or "infc", complete_var, False, **extra)

        if not standalone_mode:
            return command()
        sys.exit(run_reporting(command, as_json="--json" in arguments))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer needs them."""
        return list(self.commands)


HELP = f"""infc compiles a language model for a chip, and runs it.

\b
Examples:
  infc run model.gguf --prompt "The capital of France is"
  infc compile model.gguf --target cpu -o model.infc
  infc bench model.infc --prompt-tokens 512 --new-tokens 128
  infc estimate config.json --compare
  infc explain INF5004

\b
Exit codes:
{exit_codes_help()}
"""

main = InfcGroup(
    "infc",
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    commands=[
        run_command,
        compile_command,
        bench_command,
        explain_command,
        calibrate_command,
        estimate_command,
        plan_memory_command,
        targets_command,
        opt_command,
    ],
)
click.version_option(infc.__version__, prog_name="infc")(main)
