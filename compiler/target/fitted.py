"""Constants of kernels as they were fitted on a machine: part of what is known of a target."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer


def _sorted(mapping: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType(dict(sorted(mapping.items())))


class FittedClass(BaseModel):
    """A class of kernels that was measured on the target itself.

    Attributes:
        constants: by name, in the units that the class gives them.
        low, high: quantiles of `ln(measured / predicted)` at 10% and 90%.
        quiet_seconds: of some of its kernels on the undisturbed target, by name. Nothing is
            predicted from them: they tell later how disturbed it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    constants: Annotated[Mapping[str, float], AfterValidator(_sorted), PlainSerializer(dict)]
    low: float = Field(le=0)
    high: float = Field(ge=0)
    quiet_seconds: Annotated[
        Mapping[str, Annotated[float, Field(gt=0)]],
        Field(max_length=4096),
        AfterValidator(_sorted),
        PlainSerializer(dict),
    ] = Field(default_factory=dict)
