"""What a serving engine adds to its kernels: a few constants, and how far they were off.

An engine profile is TOML beside the target profiles: the engine and its version, the target it was
measured on, nine constants, and the residuals of measurements that took no part in the fit. What
the constants mean is said in `CONSTANTS`; docs/serving.md has the formulas.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from infc.cost.kernels.classes import ConstantSpec
from infc.cost.kernels.profile import Constant, Residuals, dump_toml
from infc.cost.kernels.queries import DTYPE_BYTES
from infc.diagnostics import Code, UserError, count
from infc.diagnostics.schema import schema_problems
from infc.target.schema import Facts

CONSTANTS: Final = (
    ConstantSpec(
        "layer_seconds",
        "s",
        0.0,
        2e-4,
        "of each block in each step beyond its kernels: gaps, synchronisation, the host",
    ),
    ConstantSpec(
        "launch_share",
        "1",
        0.0,
        1.0,
        "share of the kernels' launches, as measured alone, that is left in a recorded graph",
    ),
    ConstantSpec(
        "collective_share", "1", 0.2, 1.5, "time of its collectives over that of those measured"
    ),
    ConstantSpec(
        "request_seconds",
        "s",
        0.0,
        5e-4,
        "of each running request in each decode step: scheduling, sampling, streaming",
    ),
    ConstantSpec("first_token_seconds", "s", 0.0, 0.5, "from a request's arrival to its start"),
    ConstantSpec(
        "prompts_ahead",
        "1",
        1.0,
        16.0,
        "prompts that start together where all requests are equally long, one's own included",
    ),
    ConstantSpec(
        "queue_share",
        "1",
        0.0,
        1.0,
        "share of the running requests whose prefill comes before one's own",
    ),
    ConstantSpec("memory_share", "1", 0.3, 1.0, "share of the memory that the engine takes"),
    ConstantSpec(
        "reserved_bytes",
        "B",
        0.0,
        3e10,
        "of that on each device for neither weights nor cache: graphs, workspaces, activations",
    ),
)
TTFT: Final = "time_to_first_token"
TPOT: Final = "time_per_output_token"


class EngineResiduals(Residuals):
    """How measurements lie about the model that did not see them.

    Attributes:
        elsewhere: standard deviation of ln(measured / predicted) of whole sets of measurements
            (models, versions, harnesses) that the constants were not fitted to.
    """

    elsewhere: float = Field(ge=0)


class EngineProfile(Facts):
    """The constants of one engine.

    Attributes:
        schema_version: of the file.
        name: of the engine.
        versions: that were measured.
        target: it was measured on.
        cache_dtypes: of the KV cache where nobody says, by the dtype of the weights; 16 bits where
            there is no entry.
        source: of the measurements, with their licence.
        rows: measurements that were fitted.
        constants: by name, see `CONSTANTS`.
        residuals: by `TTFT` and `TPOT`.
    """

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    versions: str
    target: str
    cache_dtypes: Mapping[str, str] = Field(default_factory=dict)
    source: str = Field(min_length=1)
    rows: int = Field(ge=1)
    constants: Mapping[str, Constant]
    residuals: Mapping[str, EngineResiduals]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        specs = {spec.name: spec for spec in CONSTANTS}
        found = [f"missing constant {key!r}" for key in specs if key not in self.constants]
        for key, constant in self.constants.items():
            if key not in specs:
                found.append(f"expected the constants {', '.join(specs)}, got {key!r}")
            else:
                found += _disagreements(constant, specs[key])
        for dtype in (*self.cache_dtypes, *self.cache_dtypes.values()):
            if dtype not in DTYPE_BYTES:
                found.append(f"expected cache_dtypes of {', '.join(DTYPE_BYTES)}, got {dtype!r}")
        if set(self.residuals) != {TTFT, TPOT}:
            got = ", ".join(self.residuals) or "none"
            found.append(f"expected residuals of {TTFT} and {TPOT}, got {got}")
        if found:
            raise ValueError("\n".join(found))
        return self

    @cached_property
    def values(self) -> Mapping[str, float]:
        """The constants as plain numbers."""
        return {name: constant.value for name, constant in self.constants.items()}


def _disagreements(constant: Constant, spec: ConstantSpec) -> list[str]:
    if constant.unit != spec.unit:
        return [f"{spec.name} is in {spec.unit!r}, got {constant.unit!r}"]
    if not spec.low <= constant.value <= spec.high:
        return [
            f"{spec.name} must be between {spec.low:g} and {spec.high:g} {spec.unit}, "
            f"got {constant.value:g}"
        ]
    return []


def load_engine(file: Traversable) -> EngineProfile:
    """Read an engine profile.

    Raises:
        UserError: it cannot be read, is no TOML, or says something that cannot be (INF3006; all
            findings are listed).
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.PROFILE_FORMAT, f"cannot read the engine profile: {error}", location=str(file)
        ) from error
    return parse_engine(text, location=str(file))


def parse_engine(text: str, *, location: str) -> EngineProfile:
    """Read the text of an engine profile; errors (INF3006) name `location`."""
    try:
        return EngineProfile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            Code.PROFILE_FORMAT, f"the engine profile is no valid TOML: {error}", location=location
        ) from error
    except ValidationError as error:
        problems = schema_problems(error)
    raise UserError(
        Code.PROFILE_FORMAT,
        f"the engine profile has {count(len(problems), 'problem')}",
        location=location,
        problems=problems,
    )


def dump_engine(engine: EngineProfile) -> str:
    """The profile as TOML: one form for one profile."""
    return dump_toml(engine.model_dump(mode="json"))
