"""What was measured on one machine: its speeds, and the constants of its kernels, as a file.

The figures of a class of machines stand in a target file; those of one machine replace them when
it is calibrated. See `infc.cost.kernels.profile` for the constants, which are relative to these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from infc.cost.kernels.profile import Profile, dump_toml, parse_toml
from infc.target.fitted import FittedClass
from infc.target.schema import Facts, Target

VECTORS: Final = "f32"
"""The dtype whose rate is measured; that of the others follows it, as both follow the clock."""

HINT: Final = "`infc calibrate` writes it again; without the file the machine counts as any other"


_Rate = Annotated[float, Field(ge=1e6, le=1e18)]
"""What no processor falls short of or exceeds, so that a damaged figure is not reckoned with."""


class Speeds(Facts):
    """What a machine gives at its best, and how much that wandered.

    Attributes:
        bytes_per_s: read bandwidth of the main memory by number of threads.
        operations_per_s: of one thread in float32.
        low, high: quantiles at 10% and 90% of `ln(seconds / usual seconds)` of passes that read.
    """

    bytes_per_s: Mapping[Annotated[int, Field(ge=1, le=4096)], _Rate] = Field(min_length=1)
    operations_per_s: _Rate
    low: float = Field(le=0, ge=-7)
    high: float = Field(ge=0, le=7)


class MachineProfile(Facts):
    """A calibrated machine.

    Attributes:
        schema_version: of the file.
        infc: version that made it.
        date: when, as YYYY-MM-DD.
        speeds: of memory and vector units.
        kernels: their constants.
        quiet_seconds: of single kernels by class and name; see `FittedClass`.
    """

    schema_version: Literal[1] = 1
    infc: str
    date: str
    speeds: Speeds
    kernels: Profile
    quiet_seconds: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)


def with_speeds(target: Target, speeds: Speeds, source: str) -> Target:
    """A target with measured speeds in place of those of its class.

    `source` says where they come from, in place of the class's own sources and assumptions.
    """
    one, most = min(speeds.bytes_per_s), max(speeds.bytes_per_s.values())
    memory = target.holding_memory()
    unit = next(unit for unit in target.compute if VECTORS in unit.operations_per_s)
    factor = speeds.operations_per_s / unit.operations_per_s[VECTORS]
    paths = [
        f"memories.{memory.name}.bandwidth_bytes_per_s",
        f"memories.{memory.name}.unit_bandwidth_bytes_per_s",
        *(f"compute.{unit.name}.operations_per_s.{dtype}" for dtype in unit.operations_per_s),
    ]
    figures: dict[str, Any] = {
        "bandwidth_bytes_per_s": most,
        "unit_bandwidth_bytes_per_s": min(most, speeds.bytes_per_s[one] / one),
    }
    scaled = {dtype: peak * factor for dtype, peak in unit.operations_per_s.items()}
    memories = [m.model_copy(update=figures) if m == memory else m for m in target.memories]
    compute = [
        type(u).model_validate(u.model_dump() | {"operations_per_s": scaled}) if u == unit else u
        for u in target.compute
    ]
    return target.model_copy(
        update={
            "memories": tuple(memories),
            "compute": tuple(compute),
            "sources": {**target.sources, **dict.fromkeys(paths, source)},
            "assumptions": {k: v for k, v in target.assumptions.items() if k not in paths},
        }
    )


def calibrated_target(target: Target, profile: MachineProfile) -> Target:
    """A target with what was measured on it: speeds, and constants of its kernels."""
    source = f"infc calibrate, {profile.date}"
    fitted = {
        name: FittedClass(
            constants=part.values,
            low=part.quantiles("any")[0],
            high=part.quantiles("any")[1],
            quiet_seconds=profile.quiet_seconds.get(name, {}),
        )
        for name, part in profile.kernels.classes.items()
    }
    measured = with_speeds(target, profile.speeds, source)
    sources = {**measured.sources, "kernels": source}
    return Target.model_validate(measured.model_dump() | {"kernels": fitted, "sources": sources})


def parse_machine_profile(text: str, *, location: str) -> MachineProfile:
    """Read the text of a profile; errors (INF3006) name `location`."""
    return parse_toml(text, MachineProfile, location=location, hint=HINT)


def dump_machine_profile(profile: MachineProfile) -> str:
    """The profile as TOML: one form for one profile."""
    return dump_toml(profile.model_dump(mode="json"))
