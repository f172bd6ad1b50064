"""Which backends and targets there are.

Backends, those of this distribution too, are found by the entry-point group `infc.backends`. One is
imported only when it is named (or when all targets are listed), and one that fails breaks nothing
else. Providers of kernels for another backend's programs have the group `infc.kernels`; one that is
broken or lacks something is set aside.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from infc.diagnostics import Code, InfcError, UserError
from infc.target.backend import API_VERSION, Backend
from infc.target.links import LinkOption, load_link
from infc.target.loader import load_target
from infc.target.provider import PROVIDER_API_VERSION, KernelProvider, ProviderStatus
from infc.target.schema import Target, TargetStatus

GROUP = "infc.backends"
PROVIDERS = "infc.kernels"


def backend_names() -> list[str]:
    """Names of all backends that are installed, sorted; none is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_backend(name: str) -> Backend:
    """Import a backend.

    Raises:
        UserError: no distribution provides it (INF3001); two do, or it cannot be imported
            (INF3003).
    """
    if name not in backend_names():
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"no backend is named {name!r}",
            hint=nearest(name, backend_names()),
        )
    return cast(Backend, _load(GROUP, name, "backend", API_VERSION))


def list_targets() -> list[TargetStatus]:
    """Every target of every backend, by backend; a broken backend is one line with its reason."""
    found: list[TargetStatus] = []
    for name in backend_names():
        try:
            found += load_backend(name).targets()
        except Exception as error:
            reason = error.diagnostic.message if isinstance(error, InfcError) else _cause(error)
            found.append(TargetStatus(name, name, "unknown", False, reason))
    return found


def resolve_target(spec: str) -> tuple[Backend, Target]:
    """The backend and the facts that a name stands for.

    Args:
        spec: a backend (`reference`), a backend and a target after a colon, or a target alone,
            which is looked up in the lists of all backends.

    Raises:
        UserError: nothing has that name, or the backend is broken or refuses the target.
    """
    names = backend_names()
    prefix = spec.partition(":")[0]
    if prefix in names:
        backend = load_backend(prefix)
        return backend, backend.resolve(spec)
    statuses = list_targets()
    owners = sorted({status.backend for status in statuses if status.name == spec})
    if len(owners) > 1:
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"target {spec!r} is offered by the backends {' and '.join(owners)}",
            hint=f"name one of them: {owners[0]}:{spec}",
        )
    if owners:
        backend = load_backend(owners[0])
        return backend, backend.resolve(spec)
    known = [*names, *(status.name for status in statuses)]
    raise UserError(Code.TARGET_UNKNOWN, f"no target is named {spec!r}", hint=nearest(spec, known))


def find_target(spec: str) -> Target:
    """The facts of a target to be estimated: a name, or the path of a target file (`.toml`), which
    a backend may be named before (`dataflow:FILE.toml`).

    Raises:
        UserError: as `resolve_target`, or the file cannot be read or is wrong (INF3002).
    """
    if spec.endswith(".toml") and spec.partition(":")[0] not in backend_names():
        return load_target(Path(spec))
    return resolve_target(spec)[1]


def cost_only_targets() -> list[Target]:
    """The facts of all targets that have a cost model alone, by backend."""
    found: list[Target] = []
    for name, statuses in groupby(list_targets(), key=lambda status: status.backend):
        specs = [status.name for status in statuses if status.kind == "model-only"]
        if specs:
            backend = load_backend(name)
            found += [backend.resolve(spec) for spec in specs]
    return found


def find_link(spec: str) -> LinkOption:
    """A link to put in place of a target's own: a name, or the path of a link file (`.toml`).

    Raises:
        UserError: no backend offers it (INF3001), or the file cannot be read or is wrong (INF3002).
    """
    if spec.endswith(".toml"):
        return load_link(Path(spec))
    known: list[str] = []
    for backend in offering("links"):
        names = backend.links()
        if spec in names:
            return cast(LinkOption, backend.link(spec))
        known += names
    raise UserError(
        Code.TARGET_UNKNOWN,
        f"no link is named {spec!r}",
        hint=f"known ones: {', '.join(sorted(known))}" if known else None,
    )


def offering(method: str) -> Iterator[Any]:
    """The backends that have an optional method; those that are broken are passed over."""
    for name in backend_names():
        try:
            backend = load_backend(name)
        except UserError:
            continue
        if hasattr(backend, method):
            yield backend


def list_providers() -> list[ProviderStatus]:
    """Every provider of kernels, by name; one that is broken says so."""
    names = sorted({entry.name for entry in entry_points(group=PROVIDERS)})
    return [_provider(name)[1] for name in names]


def kernel_providers(backend: str) -> list[KernelProvider]:
    """The providers that can make functions for a backend's kernels here, by name."""
    names = sorted({entry.name for entry in entry_points(group=PROVIDERS)})
    found = [_provider(name) for name in names]
    return [
        provider
        for provider, status in found
        if provider is not None and status.available and status.backend == backend
    ]


def provider_versions(backend: str) -> dict[str, dict[str, str]]:
    """Of each provider that is asked for a backend's kernels: versions of what its functions
    depend on, its distribution among them."""
    found = {}
    for entry in sorted(entry_points(group=PROVIDERS), key=lambda entry: entry.name):
        provider, status = _provider(entry.name)
        if provider is not None and status.available and status.backend == backend:
            found[entry.name] = {**status.versions, "distribution": _distribution(entry)}
    return found


def _provider(name: str) -> tuple[KernelProvider | None, ProviderStatus]:
    """A provider, unless it cannot be loaded, and its line."""
    try:
        provider: KernelProvider = _load(PROVIDERS, name, "kernel provider", PROVIDER_API_VERSION)
        return provider, provider.status()
    except UserError as error:
        return None, ProviderStatus(name, "unknown", False, error.diagnostic.message)
    except Exception as error:
        reason = f"kernel provider {name!r} fails to say whether it can be used: {_cause(error)}"
        return None, ProviderStatus(name, "unknown", False, reason)


def _load(group: str, name: str, what: str, api_version: int) -> Any:
    """What the one entry point of a name stands for; errors say `what` that is."""
    entries = list(entry_points(group=group, name=name))
    if len(entries) > 1:
        owners = " and ".join(sorted(_distribution(entry) for entry in entries))
        raise UserError(
            Code.BACKEND_BROKEN,
            f"{what} {name!r} is provided by {owners}",
            hint="uninstall all but one of them",
        )
    (entry,) = entries
    subject = f"{what} {name!r} of {_distribution(entry)}"
    try:
        found = entry.load()
        version = found.api_version
    except Exception as error:
        raise UserError(
            Code.BACKEND_BROKEN,
            f"{subject} cannot be imported: {_cause(error)}",
            location=entry.value,
        ) from error
    if version != api_version:
        raise UserError(
            Code.BACKEND_BROKEN,
            f"{subject} must have API version {api_version}, got {version}",
            location=entry.value,
        )
    return found


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint that names which target or backend may have been meant, else where to look."""
    names = sorted(set(known))
    begun = [other for other in names if name and other.startswith(name)]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    matches = list(dict.fromkeys([*begun, *close]))[:3]
    if not matches:
        return "`infc targets` lists all of them"
    return f"did you mean {' or '.join(matches)}?"
