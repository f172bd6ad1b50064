"""Fitted constants of one machine with their residuals, as a file.

A profile is TOML: the target it was fitted on with the facts it had then, and for each class of
kernels the constants (value, unit, plausible range, meaning) and the residuals of measurements that
took no part in the fit, as quantiles of `ln(measured / predicted)` by regime. Unit, range and
meaning are in the file for its readers; they must agree with the class.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from infc.cost.kernels.classes import KernelClass
from infc.cost.kernels.machine import Machine
from infc.cost.kernels.registry import EVERY_CLASS
from infc.diagnostics import Code, UserError, count
from infc.diagnostics.schema import schema_problems
from infc.target.schema import Facts, Target

F = TypeVar("F", bound=Facts)
INTERVAL: Final = 0.8
"""Share of measurements that should lie between `low` and `high` of an estimate."""


class Constant(Facts):
    """One fitted constant; see `ConstantSpec`."""

    value: float
    unit: str
    low: float
    high: float
    meaning: str


class Residuals(Facts):
    """How measurements of one regime lie about the model that did not see them.

    Attributes:
        rows: measurements; 0 where the quantiles are assumed.
        low, high: quantiles of `ln(measured / predicted)` at 10% and 90%.
    """

    rows: int = Field(ge=0)
    low: float = Field(le=0)
    high: float = Field(ge=0)


class ClassProfile(Facts):
    """Constants and residuals of one class of kernels.

    Attributes:
        rows: measurements that were fitted.
        source: where they come from.
        constants: by name.
        residuals: by regime; a regime without an entry takes the widest of the others.
    """

    rows: int = Field(ge=0)
    source: str = Field(min_length=1)
    constants: Mapping[str, Constant]
    residuals: Mapping[str, Residuals]

    @cached_property
    def values(self) -> Mapping[str, float]:
        """The constants as plain numbers."""
        return {name: constant.value for name, constant in self.constants.items()}

    def quantiles(self, regime: str) -> tuple[float, float]:
        """`(low, high)` of a regime, as in `Residuals`."""
        found = self.residuals.get(regime)
        if found is not None:
            return found.low, found.high
        return (
            min(residuals.low for residuals in self.residuals.values()),
            max(residuals.high for residuals in self.residuals.values()),
        )


class FittedFacts(Facts):
    """What the target was when the profile was fitted; see `Machine` and `Unit`."""

    operations_per_s: Mapping[str, float]
    units: Mapping[str, int]
    bytes_per_s: float = Field(gt=0)
    launch_seconds: float = Field(ge=0)
    link_bytes_per_s: float = Field(ge=0)
    link_seconds: float = Field(ge=0)

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """The facts of a machine."""
        return cls(
            operations_per_s={
                dtype: unit.operations_per_s for dtype, unit in sorted(machine.units.items())
            },
            units={dtype: unit.count for dtype, unit in sorted(machine.units.items())},
            bytes_per_s=machine.bytes_per_s,
            launch_seconds=machine.launch_seconds,
            link_bytes_per_s=machine.link_bytes_per_s,
            link_seconds=machine.link_seconds,
        )


class Profile(Facts):
    """All classes that were fitted on one target.

    Attributes:
        schema_version: of the file.
        target: name of the target.
        family: that it belongs to; see `Target`.
        facts: that it had.
        classes: by name of the class.
    """

    schema_version: Literal[1] = 1
    target: str
    family: str = ""
    facts: FittedFacts
    classes: Mapping[str, ClassProfile]

    def fits(self, target: Target) -> bool:
        """Whether the constants are of this target, or of another one of its family."""
        return self.target == target.name or (self.family != "" and self.family == target.family)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        findings = [
            finding
            for name, fitted in self.classes.items()
            for finding in _contradictions(name, fitted)
        ]
        if findings:
            raise ValueError("\n".join(findings))
        return self


def load_profile(file: Traversable) -> Profile:
    """Read a profile.

    Raises:
        UserError: it cannot be read, is no TOML, or says something that the classes of kernels
            refuse (INF3006; all findings are listed).
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.PROFILE_FORMAT, f"cannot read the profile: {error}", location=str(file)
        ) from error
    return parse_profile(text, location=str(file))


def parse_profile(text: str, *, location: str) -> Profile:
    """Read the text of a profile; errors (INF3006) name `location`."""
    return parse_toml(text, Profile, location=location)


def parse_toml(text: str, schema: type[F], *, location: str, hint: str | None = None) -> F:
    """Read a profile of any sort; errors (INF3006, all findings) name `location` and `hint`."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(
            Code.PROFILE_FORMAT,
            f"the profile is no valid TOML: {error}",
            location=location,
            hint=hint,
        ) from error
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        problems = schema_problems(error)
    raise UserError(
        Code.PROFILE_FORMAT,
        f"the profile has {count(len(problems), 'problem')}",
        location=location,
        problems=problems,
        hint=hint,
    )


def dump_profile(profile: Profile) -> str:
    """The profile as TOML: one form for one profile."""
    return dump_toml(profile.model_dump(mode="json"))


def dump_toml(document: Mapping[str, object]) -> str:
    """A document of tables, strings and numbers as TOML, in the order it has."""
    lines: list[str] = []
    _dump_table(document, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _dump_table(table: Mapping[str, object], path: tuple[str, ...], lines: list[str]) -> None:
    """Append a TOML table: its values, then its tables; those without tables stay on one line."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if path and (len(inner) < len(table) or not table):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    for key, value in table.items():
        if key not in inner:
            lines.append(f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}")
    for key, value in inner.items():
        _dump_table(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() else json.dumps(key)


def _contradictions(name: str, fitted: ClassProfile) -> list[str]:
    """What a profile says about a class that is not so."""
    if name not in EVERY_CLASS:
        return [f"expected one of the classes {', '.join(EVERY_CLASS)}, got {name!r}"]
    kernel_class: KernelClass[Any] = EVERY_CLASS[name]
    specs = {spec.name: spec for spec in kernel_class.constants}
    found = [f"{name} needs the constant {key!r}" for key in specs if key not in fitted.constants]
    for key, constant in fitted.constants.items():
        spec = specs.get(key)
        if spec is None:
            found.append(f"{name} has the constants {', '.join(specs)}, got {key!r}")
            continue
        if constant.unit != spec.unit:
            found.append(f"{name}.{key} is in {spec.unit!r}, got {constant.unit!r}")
        if (constant.low, constant.high) != (spec.low, spec.high):
            found.append(
                f"{name}.{key} has the range {spec.low:g} to {spec.high:g}, "
                f"got {constant.low:g} to {constant.high:g}"
            )
        elif not spec.low <= constant.value <= spec.high:
            found.append(
                f"{name}.{key} must be between {spec.low:g} and {spec.high:g} (unit {spec.unit}), "
                f"got {constant.value:g}"
            )
    if not fitted.residuals:
        found.append(f"{name} needs residuals of at least one regime")
    found += [
        f"{name} has the regimes {', '.join(kernel_class.regimes)}, got {regime!r}"
        for regime in fitted.residuals
        if regime not in kernel_class.regimes
    ]
    return found
