"""The file of a calibrated machine: where it is kept, and damage that is no broken TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from infc.backends.cpu.calibration import profile_path, write_profile
from infc.backends.cpu.probe import Host
from infc.cost.machine_profile import parse_machine_profile
from infc.diagnostics import UserError

MINIMAL = """
infc = "0.1.0"
date = "2026-11-22"
[speeds]
operations_per_s = 1e11
low = 0.0
high = 0.0
[speeds.bytes_per_s]
1 = 1e10
[kernels]
target = "cpu"
[kernels.facts]
bytes_per_s = 1e10
launch_seconds = 0.0
link_bytes_per_s = 0.0
link_seconds = 0.0
[kernels.facts.operations_per_s]
[kernels.facts.units]
[kernels.classes]
"""


@pytest.mark.parametrize(
    ("speed", "damaged"),
    [
        ("1 = 1e10", "0 = 1e10"),
        ("1 = 1e10", "-1 = 1e10"),
        ("1 = 1e10", "1 = 5e-324"),
        ("1 = 1e10", "1 = -5e9"),
        ("operations_per_s = 1e11", "operations_per_s = 1e308"),
        ("high = 0.0", "high = 1e300"),
    ],
)
def test_speeds_that_no_machine_has(speed: str, damaged: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_machine_profile(MINIMAL.replace(speed, damaged, 1), location="here.toml")
    diagnostic = caught.value.diagnostic
    assert (diagnostic.code.value, diagnostic.location) == ("INF3006", "here.toml")
    assert diagnostic.hint is not None
    assert diagnostic.hint.startswith("`infc calibrate` writes it")


def test_where_profiles_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    host = Host("x86_64", "some-cpu", frozenset({"avx2"}), frozenset(), 4, (), 2**30)
    other = Host("x86_64", "some-cpu", frozenset({"avx2"}), frozenset(), 8, (), 2**30)
    assert profile_path(host).parent == tmp_path / "infc" / "machines"
    assert profile_path(host) != profile_path(other)
    (tmp_path / "infc").write_text("in the way")
    with pytest.raises(UserError, match="the profile could not be written"):
        write_profile(profile_path(host), parse_machine_profile(MINIMAL, location="-"))
