"""What backends bring along that was fitted to measurements: profiles of kernels and of engines."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from infc.cost.engine import EngineProfile, load_engine
from infc.cost.kernels.profile import Profile
from infc.diagnostics import Code, UserError
from infc.target.discovery import offering
from infc.target.schema import Target


def find_profile(target: Target) -> Profile | None:
    """Constants fitted on the target itself, else on another one of its family, else None."""
    profiles = [profile for backend in offering("profiles") for profile in backend.profiles()]
    usable = [profile for profile in profiles if profile.fits(target)]
    return min(usable, key=lambda profile: profile.target != target.name, default=None)


def find_engine(spec: str) -> EngineProfile:
    """A serving engine: a name, or the path of an engine profile (`.toml`).

    Raises:
        UserError: no backend offers it (INF5001), or the file is wrong (INF3006).
    """
    if spec.endswith(".toml"):
        return load_engine(Path(spec))
    known: list[str] = []
    for backend in offering("engines"):
        names = backend.engines()
        if spec in names:
            return cast(EngineProfile, backend.engine(spec))
        known += names
    raise UserError(
        Code.OPTION,
        f"no engine is named {spec!r}",
        hint=f"known ones: {', '.join(sorted(known))}" if known else "none was measured",
    )
