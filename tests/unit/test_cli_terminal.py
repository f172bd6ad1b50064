"""What a person at a terminal sees instead of plain lines."""

import io
import sys

import pytest

from infc.cli.progress import progress_bar
from infc.cli.tables import print_markdown, print_table
from infc.cli.units import human_bytes, human_count, human_seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in place of stdout and stderr; not a fixture, pytest replaces them later."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    return screen


def test_tables_are_drawn_and_names_are_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    print_table(["name", "size"], [["[bold]x", "12"]], right=["size"])
    text = terminal.getvalue()
    assert "[bold]x" in text
    assert "│" in text


def test_pages_are_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    print_markdown("# Title\n\nsome `code`\n")
    text = terminal.getvalue()
    assert "Title" in text
    assert "#" not in text
    assert "`" not in text


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with progress_bar() as progress:
        assert progress is not None
        progress("pack weights", 0.5)
    assert "pack weights" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar() as progress:
        assert progress is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1023.9, "1 KiB"), (1536, "1.5 KiB"), (171 << 20, "171 MiB")],
)
def test_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (12, "12"), (999.9, "1 k"), (3.4e9, "3.4 G"), (2e16, "20 P")]
)
def test_counts(count: float, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (0.25, "250 ms"), (0.0015, "1.5 ms"), (2e-6, "2 us"), (3e-7, "0.3 us")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
