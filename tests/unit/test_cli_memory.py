"""What a program takes of a process in which something measures it."""

import pytest

from infc.cli import memory
from infc.cli.memory import OwnMemory, Resident


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    figures = {"VmHWM": 900, "RssFile": 500, "RssAnon": 200}
    monkeypatch.setattr(memory, "_status", lambda: figures)
    return figures


def test_what_measures_does_not_count(status: dict[str, int]) -> None:
    own = OwnMemory()
    status |= {"VmHWM": 5000, "RssFile": 540, "RssAnon": 4200}
    own.measuring()
    assert (own.resident(), own.peak_bytes()) == (Resident(500, 200), 900)
    status |= {"VmHWM": 6000, "RssFile": 640, "RssAnon": 4950}
    assert (own.resident(), own.peak_bytes()) == (Resident(600, 950), 1550)


def test_what_the_system_does_not_tell_is_unknown(status: dict[str, int]) -> None:
    own = OwnMemory()
    own.measuring()
    del status["RssAnon"]
    assert (own.resident(), own.peak_bytes()) == (Resident(500, None), None)
