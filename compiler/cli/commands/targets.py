"""`infc targets`: what can be compiled for here, and why the rest cannot."""

from __future__ import annotations

from dataclasses import asdict

import click

from infc.cli.output import print_json, write_text
from infc.cli.tables import print_table

EPILOG = """\b
Examples:
  infc targets
  infc targets --json | jq -r '.targets[] | select(.available) | .name'
"""


@click.command("targets", epilog=EPILOG, short_help="List what can be compiled for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets_command(as_json: bool) -> None:
    """List every target, the backend it comes from, and what is broken and why.

    Providers of kernels for the programs of a backend are listed behind the targets.
    """
    from infc.target.discovery import list_providers, list_targets

    statuses, providers = list_targets(), list_providers()
    if as_json:
        print_json(
            {
                "targets": [asdict(status) for status in statuses],
                "providers": [asdict(status) for status in providers],
            }
        )
        return
    print_table(
        ["target", "backend", "kind", "available", "reason"],
        [
            [s.name, s.backend, s.kind, "yes" if s.available else "no", s.reason or ""]
            for s in statuses
        ],
    )
    if providers:
        write_text("\n")
        print_table(
            ["kernels from", "for", "available", "reason"],
            [[p.name, p.backend, "yes" if p.available else "no", p.reason] for p in providers],
        )
