"""Tables and pages on stdout: drawn on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infc.cli.output import write_text


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """A table with one line a row; columns named in `right` are aligned to the right."""
    if sys.stdout.isatty():
        _draw_table(header, rows, right)
        return
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        write_text("  ".join(padded).rstrip() + "\n")


def _draw_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        # Text, because a name may hold what rich takes for markup.
        table.add_row(*map(Text, row))
    Console().print(table)


def print_markdown(text: str) -> None:
    """Markdown: formatted on a terminal, as it is in a pipe."""
    if not sys.stdout.isatty():
        write_text(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console(width=min(100, Console().width)).print(Markdown(text))
