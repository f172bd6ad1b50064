"""What is fitted: cycles between the instructions that are counted.

`constants.toml` has the values, their units and meanings, and the residuals of the fit.
`benchmarks/dataflow_cost.py --fit` writes it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any, Final, Self

FILE: Final = "constants.toml"


@dataclass(frozen=True)
class Range:
    """What a constant is.

    Attributes:
        unit: of its value.
        low, high: a fit may not leave them.
        meaning: for readers of the file.
    """

    unit: str
    low: float
    high: float
    meaning: str


def _constant(value: float, unit: str, low: float, high: float, meaning: str) -> float:
    found: float = field(default=value, metadata={"range": Range(unit, low, high, meaning)})
    return found


@dataclass(frozen=True)
class Constants:
    """The fitted constants; the defaults are where a fit starts."""

    rows: float = _constant(
        2.0, "cycles", 0.0, 40.0, "in front of an operation on rows: registers and its loop"
    )
    send: float = _constant(
        6.0, "cycles", 0.0, 40.0, "the send stream's instructions in front of a SEND"
    )
    piece: float = _constant(
        10.0, "cycles", 0.0, 60.0, "the matrix stream's between two pieces of weights"
    )
    token: float = _constant(
        10.0, "cycles", 0.0, 60.0, "a stream's instructions for a token's rows of tables"
    )
    overlap: float = _constant(
        1.5,
        "1",
        1.0,
        8.0,
        "exponent p of (hops^p + busiest link^p)^(1/p) in an exchange: 1 is one after the other",
    )

    @classmethod
    def ranges(cls) -> Mapping[str, Range]:
        """Unit, range and meaning by name."""
        return {each.name: each.metadata["range"] for each in fields(cls)}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """From the table `constants` of the file; what it lacks starts a fit."""
        return cls(
            **{name: float(record[name]["value"]) for name in cls.ranges() if name in record}
        )


@dataclass(frozen=True)
class Residuals:
    """Quantiles of ln(simulated / predicted) over what took no part in the fit: 10% and 90%."""

    low: float
    high: float


@dataclass(frozen=True)
class Fitted:
    """The file."""

    constants: Constants
    residuals: Mapping[str, Residuals]


@cache
def fitted() -> Fitted:
    """The constants that are shipped."""
    text = files("infc.backends.dataflow.cost").joinpath(FILE).read_text()
    record = tomllib.loads(text)
    return Fitted(
        Constants.read(record["constants"]),
        {phase: Residuals(**entry) for phase, entry in record["residuals"].items()},
    )
