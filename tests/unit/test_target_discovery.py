"""Backends by entry point: loaded only when named, and one that is broken breaks nothing else."""

import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infc.diagnostics import Code, UserError
from infc.target import discovery
from infc.target.backend import API_VERSION
from infc.target.provider import PROVIDER_API_VERSION, ProviderStatus
from infc.target.schema import TargetStatus


class FakeBackend:
    api_version = API_VERSION

    def __init__(self, name: str, targets: Iterable[str]) -> None:
        self.name = name
        self._targets = [TargetStatus(target, name, "gpu", True) for target in targets]

    def targets(self) -> Sequence[TargetStatus]:
        return self._targets

    def resolve(self, spec: str) -> str:
        return f"facts of {spec}"


def entry(name: str, distribution: str = "somewhere") -> EntryPoint:
    point = EntryPoint(name, f"fake_{name}:BACKEND", discovery.GROUP)
    vars(point)["dist"] = SimpleNamespace(name=distribution, version="1.0")
    return point


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The backends `good` (targets good, good:a, chip-x) and `broken` (module absent)."""
    backends = [FakeBackend("good", ["good", "good:a", "chip-x"]), FakeBackend("other", ["chip-y"])]
    for backend in backends:
        module: Any = ModuleType(f"fake_{backend.name}")
        module.BACKEND = backend
        monkeypatch.setitem(sys.modules, module.__name__, module)
    entries = [entry("good"), entry("other"), entry("broken", "a-plug-in")]

    def entry_points(**selection: str) -> EntryPoints:
        return EntryPoints(entries).select(**selection)

    monkeypatch.setattr(discovery, "entry_points", entry_points)
    return entries


@pytest.mark.usefixtures("installed")
def test_a_broken_backend_is_listed_with_its_reason_and_breaks_nothing() -> None:
    assert discovery.backend_names() == ["broken", "good", "other"]
    listed = discovery.list_targets()
    assert [(status.name, status.available) for status in listed] == [
        ("broken", False),
        ("good", True),
        ("good:a", True),
        ("chip-x", True),
        ("chip-y", True),
    ]
    assert listed[0].reason == (
        "backend 'broken' of a-plug-in 1.0 cannot be imported: "
        "ModuleNotFoundError: No module named 'fake_broken'"
    )
    assert discovery.resolve_target("good:a")[1] == "facts of good:a"


@pytest.mark.usefixtures("installed")
def test_a_chip_is_found_without_its_backend() -> None:
    backend, target = discovery.resolve_target("chip-y")
    assert backend.name == "other"
    assert str(target) == "facts of chip-y"


def test_naming_a_backend_imports_no_other(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = EntryPoint.load

    def record(point: EntryPoint) -> Any:
        loaded.append(point.name)
        return load(point)

    monkeypatch.setattr(EntryPoint, "load", record)
    discovery.resolve_target("good:a")
    assert loaded == ["good"]


def test_two_distributions_of_one_name_are_both_named(installed: list[EntryPoint]) -> None:
    installed.append(entry("good", "impostor"))
    with pytest.raises(UserError) as caught:
        discovery.load_backend("good")
    assert caught.value.code == Code.BACKEND_BROKEN
    assert caught.value.diagnostic.message == (
        "backend 'good' is provided by impostor 1.0 and somewhere 1.0"
    )
    assert "chip-y" in [status.name for status in discovery.list_targets()]


def test_another_api_version_is_refused(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "api_version", API_VERSION + 1)
    with pytest.raises(UserError, match=f"must have API version {API_VERSION}, got"):
        discovery.load_backend("good")


@pytest.mark.usefixtures("installed")
def test_a_chip_of_two_backends_must_be_qualified(monkeypatch: pytest.MonkeyPatch) -> None:
    double = [TargetStatus("chip-x", "other", "gpu", True)]
    monkeypatch.setattr(sys.modules["fake_other"].BACKEND, "_targets", double)
    with pytest.raises(UserError, match="offered by the backends good and other"):
        discovery.resolve_target("chip-x")


class FakeProvider:
    """Makes kernels for the backend `good`; says what it was told to."""

    def __init__(self, name: str, status: ProviderStatus | Exception, version: int) -> None:
        self.name, self.backend, self.api_version, self._status = name, "good", version, status

    def status(self) -> ProviderStatus:
        if isinstance(self._status, Exception):
            raise self._status
        return self._status


def test_providers_that_are_broken_or_lack_something_are_set_aside(
    installed: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = PROVIDER_API_VERSION
    providers = {
        "fast": FakeProvider(
            "fast", ProviderStatus("fast", "good", True, versions={"compiler": "7.1"}), now
        ),
        "idle": FakeProvider("idle", ProviderStatus("idle", "good", False, "no compiler"), now),
        "late": FakeProvider("late", ProviderStatus("late", "good", True), now + 1),
        "mute": FakeProvider("mute", RuntimeError("cannot say"), now),
        "away": FakeProvider("away", ProviderStatus("away", "other", True), now),
    }
    for name, provider in providers.items():
        module: Any = ModuleType(f"fake_{name}")
        module.BACKEND = provider
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in (*providers, "gone", "twin", "twin"):
        point = EntryPoint(name, f"fake_{name}:BACKEND", discovery.PROVIDERS)
        vars(point)["dist"] = SimpleNamespace(name="somewhere", version="1.0")
        installed.append(point)
    listed = {status.name: status for status in discovery.list_providers()}
    assert {name: status.reason for name, status in listed.items() if not status.available} == {
        "idle": "no compiler",
        "late": (
            f"kernel provider 'late' of somewhere 1.0 must have API version {now}, got {now + 1}"
        ),
        "mute": (
            "kernel provider 'mute' fails to say whether it can be used: RuntimeError: cannot say"
        ),
        "gone": (
            "kernel provider 'gone' of somewhere 1.0 cannot be imported: "
            "ModuleNotFoundError: No module named 'fake_gone'"
        ),
        "twin": "kernel provider 'twin' is provided by somewhere 1.0 and somewhere 1.0",
    }
    assert [provider.name for provider in discovery.kernel_providers("good")] == ["fast"]
    assert discovery.provider_versions("good") == {
        "fast": {"compiler": "7.1", "distribution": "somewhere 1.0"}
    }
    assert [status.name for status in discovery.list_targets()][:1] == ["broken"]
