"""Devices of other kinds than the classes' own as targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_device import FACTS

from infc.backends.cuda import target as cuda_target
from infc.backends.cuda.runtime.driver import DeviceFacts
from infc.backends.cuda.target import cuda_targets, resolve_cuda


def found(monkeypatch: pytest.MonkeyPatch, device: DeviceFacts) -> None:
    monkeypatch.setattr(cuda_target, "probe_device", lambda: device)


def test_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, replace(FACTS, name="Old", capability=(7, 5)))
    assert cuda_targets()[0].reason == "Old has compute capability 7.5: expected 8.0 or later"


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 3), "sm_80"), ((12, 0), "sm_80")],
)
def test_what_a_device_is_compiled_for(
    capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"memory_bytes_per_s": 4.9e12, "shared_bytes_per_block": 99 << 10}
    found(monkeypatch, replace(FACTS, capability=capability, **rates))
    target = resolve_cuda("cuda")
    assert target.backend_facts["arch"] == arch
    assert target.backend_facts["shared_bytes"] == 99 << 10
    assert target.memory("hbm").bandwidth_bytes_per_s == 4.9e12


def test_a_driver_that_does_not_tell_the_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, replace(FACTS, memory_bytes_per_s=0.0))
    assert resolve_cuda("cuda").memory("hbm").bandwidth_bytes_per_s == 3.35e12
