"""`infc targets`: what can be compiled for here, and why the rest cannot."""

from __future__ import annotations

from dataclasses import asdict

import click

from infc.cli.output import print_json
from infc.cli.tables import print_table

EPILOG = """\b
Examples:
  infc targets
  infc targets --json | jq -r '.targets[] | select(.available) | .name'
"""


@click.command("targets", epilog=EPILOG, short_help="List what can be compiled for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets_command(as_json: bool) -> None:
    """List every target, the backend it comes from, and what is broken and why."""
    from infc.target.discovery import list_targets

    statuses = list_targets()
    if as_json:
        print_json({"targets": [asdict(status) for status in statuses]})
        return
    print_table(
        ["target", "backend", "kind", "available", "reason"],
        [
            [s.name, s.backend, s.kind, "yes" if s.available else "no", s.reason or ""]
            for s in statuses
        ],
    )
