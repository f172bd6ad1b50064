"""Targets by name: `dataflow:NAME` comes with this backend, `dataflow:FILE.toml` is the user's.

`@N` behind either sets the number of chips: `dataflow:lpu-like@576`.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from infc.backends.dataflow.machine import Machine
from infc.diagnostics import Code, UserError
from infc.target.discovery import nearest
from infc.target.loader import load_target
from infc.target.schema import Target

BACKEND_NAME = "dataflow"
_FOLDER = files(__package__) / "targets"
_UNITS = frozenset({"matrix", "vector"})


def preset_names() -> list[str]:
    """What `resolve_dataflow` takes, without `@N`."""
    stems = (file.name.removesuffix(".toml") for file in _FOLDER.iterdir())
    return sorted(f"{BACKEND_NAME}:{stem}" for stem in stems)


def resolve_dataflow(spec: str) -> Target:
    """The facts of a preset or of a target file, with the chips that were asked for.

    Units that a target has no facts of are not missed here, but where an op needs one.

    Raises:
        UserError: no preset has that name, or what stands behind `@` is no number of chips that
            can be joined (INF3001); the file or a fact of it is wrong (INF3002).
    """
    name, chips = _apart(spec)
    if name.endswith(".toml"):
        target = _of_file(name.removeprefix(f"{BACKEND_NAME}:"))
    elif name in preset_names():
        target = load_target(_FOLDER / f"{name.removeprefix(f'{BACKEND_NAME}:')}.toml")
    else:
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"no dataflow target is named {name!r}",
            hint=nearest(name, preset_names()),
        )
    if chips is not None:
        target = _with_chips(target, chips, spec)
    if {unit.name for unit in target.compute} >= _UNITS:
        Machine.of(target)
    return target


def _apart(spec: str) -> tuple[str, str | None]:
    """Name and what stands behind its last `@`; the path of a file may have one of its own."""
    name, at, chips = spec.rpartition("@")
    return (name, chips) if at and not spec.endswith(".toml") else (spec, None)


def _of_file(path: str) -> Target:
    target = load_target(Path(path))
    if (target.backend, target.kind) != (BACKEND_NAME, "dataflow"):
        raise UserError(
            Code.TARGET_FORMAT,
            "expected a target file with backend and kind 'dataflow', got "
            f"{target.backend!r} and {target.kind!r}",
            location=path,
        )
    return target


def _with_chips(target: Target, chips: str, spec: str) -> Target:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", chips):
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"expected a number of chips behind '@', got {chips!r}",
            location=spec,
        )
    count = int(chips)
    if count > 1 and target.link("chips") is None:
        raise UserError(
            Code.TARGET_UNKNOWN,
            f"expected 1 chip, as no link joins the chips of {target.name!r}, got {count}",
            location=spec,
        )
    return Target.model_validate(
        target.model_dump()
        | {
            "name": f"{target.name}@{count}",
            "count": count,
            "assumptions": {**target.assumptions, "count": f"set to {count} by the target's name"},
        }
    )
