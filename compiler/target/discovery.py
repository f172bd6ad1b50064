"""Which backends and targets there are.

Backends, those of this distribution too, are found by the entry-point group `infc.backends`. One is
imported only when it is named (or when all targets are listed), and one that fails breaks nothing
else.
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
from infc.target.schema import Target, TargetStatus

GROUP = "infc.backends"


def backend_names() -> list[str]:
    """Names of all backends that are installed, sorted; none is imported."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load_backend(name: str) -> Backend:
    """Import a backend.

    Raises:
        UserError: no distribution provides it (INF3001); two do, or it cannot be imported
            (INF3003).
    """
    entries = list(entry_points(group=GROUP, name=name))
    if not entries:
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"no backend is named {name!r}",
            hint=nearest(name, backend_names()),
        )
    if len(entries) > 1:
        owners = " and ".join(sorted(_distribution(entry) for entry in entries))
        raise UserError(
            Code.BACKEND_BROKEN,
            f"backend {name!r} is provided by {owners}",
            hint="uninstall all but one of them",
        )
    return _import(entries[0])


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
    """The facts of a target to be estimated: a name, or the path of a target file (`.toml`).

    Raises:
        UserError: as `resolve_target`, or the file cannot be read or is wrong (INF3002).
    """
    return load_target(Path(spec)) if spec.endswith(".toml") else resolve_target(spec)[1]


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


def _import(entry: EntryPoint) -> Backend:
    try:
        backend: Backend = entry.load()
        version = backend.api_version
    except Exception as error:
        raise UserError(
            Code.BACKEND_BROKEN,
            f"backend {entry.name!r} of {_distribution(entry)} cannot be imported: {_cause(error)}",
            location=entry.value,
        ) from error
    if version != API_VERSION:
        raise UserError(
            Code.BACKEND_BROKEN,
            f"backend {entry.name!r} of {_distribution(entry)} must have API version "
            f"{API_VERSION}, got {version}",
            location=entry.value,
        )
    return backend


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
