"""The backend object of the chips: it finds target files and links, and compiles nothing.

What only an estimate needs is imported when it is asked for: `infc targets` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from infc.diagnostics import Code, UserError
from infc.target.backend import API_VERSION
from infc.target.discovery import nearest
from infc.target.links import LinkOption, load_link
from infc.target.loader import load_target
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:
    from infc.cost.engine import EngineProfile
    from infc.cost.kernels.profile import Profile

_FOLDER = files(__package__)


class ChipsBackend:
    """Implements `infc.target.backend.CostOnlyBackend`; a file is named as its target or link."""

    api_version = API_VERSION
    name = "chips"

    def targets(self) -> Sequence[TargetStatus]:
        """Every target file, none of which can be compiled for."""
        return [
            TargetStatus(name, self.name, "model-only", False, "cost model only: infc estimate")
            for name in _names("targets")
        ]

    def resolve(self, spec: str) -> Target:
        """The facts of a chip, by its name alone or after `chips:`."""
        name = spec.removeprefix(f"{self.name}:")
        if name not in _names("targets"):
            raise UserError(
                Code.TARGET_UNKNOWN,
                f"no chip is named {name!r}",
                hint=nearest(name, _names("targets")),
            )
        return load_target(_FOLDER / "targets" / f"{name}.toml")

    def links(self) -> Sequence[str]:
        """Names of the links that may replace a target's own."""
        return _names("links")

    def link(self, name: str) -> LinkOption:
        """A link by name, one of `links()`."""
        return load_link(_FOLDER / "links" / f"{name}.toml")

    def profiles(self) -> Sequence[Profile]:
        """Constants of kernels that were measured."""
        from infc.cost.kernels.profile import load_profile

        return [load_profile(_FOLDER / "profiles" / f"{name}.toml") for name in _names("profiles")]

    def engines(self) -> Sequence[str]:
        """Names of the serving engines that were measured."""
        return _names("engines")

    def engine(self, name: str) -> EngineProfile:
        """An engine by name, one of `engines()`."""
        from infc.cost.engine import load_engine

        return load_engine(_FOLDER / "engines" / f"{name}.toml")


def _names(folder: str) -> list[str]:
    """Files of facts in a folder, by name."""
    found = _FOLDER / folder
    files_there = found.iterdir() if found.is_dir() else ()
    return sorted(
        file.name.removesuffix(".toml") for file in files_there if file.name.endswith(".toml")
    )


BACKEND = ChipsBackend()
