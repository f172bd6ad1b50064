"""Tests that need a GPU: skipped, with the reason, where there is none."""

import pytest

from infc.backends.cuda.runtime.driver import Device, DeviceFacts
from infc.backends.cuda.runtime.images import architecture_for
from infc.backends.cuda.runtime.probe import open_device, probe_device


@pytest.fixture(scope="session")
def facts() -> DeviceFacts:
    """What the device says of itself."""
    found = probe_device()
    if isinstance(found, str):
        pytest.skip(f"there is no GPU: {found}")
    return found


@pytest.fixture
def device(facts: DeviceFacts) -> Device:
    """The device, opened."""
    return open_device()


@pytest.fixture(scope="session")
def target(facts: DeviceFacts) -> str:
    """What to compile for."""
    return f"cuda:{architecture_for(facts.capability)}"
