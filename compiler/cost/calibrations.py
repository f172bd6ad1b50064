"""What backends bring along that was fitted to measurements: profiles of kernels and of engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from infc.cost.engine import EngineProfile, load_engine
from infc.cost.kernels.profile import Profile
from infc.diagnostics import Code, UserError
from infc.target.discovery import offering
from infc.target.schema import Target

NO_ENGINE = "none"
GENERIC_ENGINE = "generic"
"""What serves where no engine is named: fitted to several, so with wide bounds."""


@dataclass(frozen=True)
class Calibrations:
    """All that was measured, read once.

    Attributes:
        profiles: of kernels.
        generic: the engine that nobody named, if any was measured.
    """

    profiles: tuple[Profile, ...]
    generic: EngineProfile | None

    def profile(self, target: Target) -> Profile | None:
        """Constants fitted on the target itself, else on another one of its family, else None."""
        usable = [profile for profile in self.profiles if profile.fits(target)]
        return min(usable, key=lambda profile: profile.target != target.name, default=None)

    def engine(self, target: Target, spec: str | None) -> EngineProfile | None:
        """The engine that serves a target.

        Args:
            target: what is served on.
            spec: as in `find_engine`; `none` for the kernels alone. None is the generic engine on
                machines of the family that it was measured on, and no engine on others.

        Raises:
            UserError: as `find_engine`.
        """
        if spec == NO_ENGINE:
            return None
        if spec is not None:
            return find_engine(spec)
        profile = self.profile(target)
        if self.generic is None or profile is None or profile.target != self.generic.target:
            return None
        return self.generic


def load_calibrations() -> Calibrations:
    """Read what all backends offer."""
    profiles = [profile for backend in offering("profiles") for profile in backend.profiles()]
    generic = [
        cast(EngineProfile, backend.engine(GENERIC_ENGINE))
        for backend in offering("engines")
        if GENERIC_ENGINE in backend.engines()
    ]
    return Calibrations(tuple(profiles), generic[0] if generic else None)


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
        hint=f"known ones: {', '.join([NO_ENGINE, *sorted(known)])}",
    )
