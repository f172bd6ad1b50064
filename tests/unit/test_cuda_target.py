"""The device of this host as a target."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_device import FACTS

from infc.backends.cuda import target as cuda_target
from infc.backends.cuda.runtime.driver import DeviceFacts
from infc.backends.cuda.target import cuda_targets, resolve_cuda
from infc.diagnostics import UserError


def found(monkeypatch: pytest.MonkeyPatch, device: DeviceFacts | str) -> None:
    monkeypatch.setattr(cuda_target, "probe_device", lambda: device)


def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "no CUDA driver (libcuda) is installed")
    host, *classes = cuda_targets()
    assert (host.name, host.available) == ("cuda", False)
    assert host.reason == "no CUDA driver (libcuda) is installed"
    assert all(status.available for status in classes), "they can be compiled for"
    with pytest.raises(UserError) as error:
        resolve_cuda("cuda")
    assert str(error.value) == (
        "error[INF3004]: there is no device to compile for: no CUDA driver (libcuda) is installed\n"
        "   = hint: name a class of devices: cuda:sm_90a"
    )


def test_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, replace(FACTS, name="Old", capability=(7, 5)))
    assert cuda_targets()[0].reason == "Old has compute capability 7.5: expected 8.0 or later"


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a"), ((12, 0), "sm_80")],
)
def test_the_target_is_the_device(
    capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(
        FACTS, capability=capability, multiprocessors=77, shared_bytes_per_block=99 << 10
    )
    found(monkeypatch, facts)
    target = resolve_cuda("cuda")
    assert target.backend_facts["arch"] == arch
    assert target.backend_facts["shared_bytes"] == 99 << 10
    assert target.unit("sm").count == 77
    assert target.memory("hbm").size_bytes == facts.memory_bytes
    assert target.memory("hbm").count == 1
