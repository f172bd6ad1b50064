"""Quantities with units, read strictly: `"50GB/s"`, `"2MiB"`, `"1.0TOP/s"`, or a plain number.

A plain number is already in the unit that the field's name ends in. Decimal and binary prefixes are
kept apart: `GB` is 10^9 bytes, `GiB` 2^30.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BITS: Final = {"Mbit": 125_000, "Gbit": 125_000_000, "Tbit": 125_000_000_000}
_OPERATIONS: Final = {"": 1, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}

UNITS: Final[Mapping[str, Mapping[str, float]]] = {
    "bytes": _BYTES,
    "bytes_per_s": {f"{unit}/s": factor for unit, factor in (_BYTES | _BITS).items()},
    "operations_per_s": {
        f"{prefix}{name}/s": factor
        for name in ("OP", "FLOP")
        for prefix, factor in _OPERATIONS.items()
    },
    "ns": {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
    "watts": {"W": 1, "kW": 10**3},
    "usd_per_hour": {"$/h": 1},
}
"""Factor to the unit of the dimension's name, by dimension and unit."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?) ?(\D.*)")


def parse_quantity(value: object, dimension: str) -> float:
    """The value in the unit of `dimension` (a key of `UNITS`).

    Raises:
        ValueError: not a finite number of at least zero, or not in a unit of this dimension.
    """
    units = UNITS[dimension]
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number or a string with a unit, got {value!r}")
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None or match[2] not in units:
            raise ValueError(f"expected a number and one of {', '.join(units)}, got {value!r}")
        value = float(match[1]) * units[match[2]]
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"expected a finite number of at least zero, got {value!r}")
    return number


def parse_bytes(value: object) -> int:
    """A whole number of bytes; raises ValueError."""
    number = parse_quantity(value, "bytes")
    if number != int(number):
        raise ValueError(f"expected a whole number of bytes, got {value!r}")
    return int(number)
