"""A target with other figures: what a hypothetical chip would do.

A figure is named by its part and field, as in `memory.hbm.bandwidth`, `link.peers.latency` or
`compute.cores.operations.bf16` (of the whole chip); those of the chip itself are `power`, `price`,
`count`, `launch` and `barrier`. The section may be left out where the part's name is clear
(`hbm.bandwidth`), and names may be written as in a target file
(`memories.hbm.bandwidth_bytes_per_s`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from infc.diagnostics import Code, UserError
from infc.target.schema import Target
from infc.target.units import parse_quantity

_SECTIONS = {"memory": "memories", "compute": "compute", "link": "links"}
"""Tables of parts by the name used here."""
_FIELDS = {
    "memories": {
        "size": "size_bytes",
        "bandwidth": "bandwidth_bytes_per_s",
        "unit_bandwidth": "unit_bandwidth_bytes_per_s",
        "latency": "latency_ns",
        "count": "count",
    },
    "compute": {"count": "count"},
    "links": {
        "bandwidth": "bandwidth_bytes_per_s",
        "latency": "latency_ns",
        "power": "power_watts",
    },
}
"""Figures of the parts in each table: short name and field."""
_CHIP = {
    "launch": "launch_ns",
    "barrier": "barrier_ns",
    "power": "power_watts",
    "price": "price_usd_per_hour",
    "count": "count",
}
"""Figures of the chip itself: short name and field."""


@dataclass(frozen=True)
class _Figure:
    """A figure of a target.

    Attributes:
        names: all by which it may be called, the usual one first.
        keys: its place in the dumped target.
        fact: its dotted path, as in `Target.sources`.
        of_chip: it is written for all instances of a compute unit, but kept for one.
    """

    names: tuple[str, ...]
    keys: tuple[str | int, ...]
    fact: str
    of_chip: bool = False

    @property
    def is_count(self) -> bool:
        return self.keys[-1] == "count"


def figure_names(target: Target) -> list[str]:
    """Every figure of a target that can be set, sorted."""
    return sorted(figure.names[0] for figure in _figures(target))


def with_figures(target: Target, values: Mapping[str, str]) -> Target:
    """The target with some figures set.

    Each becomes an assumption of the new target, which says what was set.

    Args:
        target: stays as it is.
        values: quantities with units, by the name of the figure.

    Raises:
        UserError: a name means nothing, several things or the same as another one, or a value has
            the wrong unit or contradicts other figures (INF5001).
    """
    chosen: dict[_Figure, tuple[str, str]] = {}
    for name, value in values.items():
        figure = _find(target, name)
        if figure in chosen:
            raise UserError(
                Code.OPTION,
                f"{chosen[figure][0]} and {name} are the same figure of target {target.name!r}",
                location="--set",
            )
        chosen[figure] = (name, value)
    # Counts first: a figure of the whole chip is divided by the number of its units.
    for counts in (True, False):
        document, notes = target.model_dump(), {}
        for figure, (name, value) in chosen.items():
            if figure.is_count == counts:
                _put(document, figure, _number(document, figure, name, value))
                notes[figure.fact] = f"set to {value}"
        target = _checked(target, document, notes)
    return target


def with_scaled(target: Target, name: str, factor: float) -> Target:
    """The target with one figure multiplied; one that is not known stays unknown."""
    figure = _find(target, name)
    document = target.model_dump()
    before = _get(document, figure)
    if before is not None:
        _put(
            document, figure, round(before * factor) if isinstance(before, int) else before * factor
        )
    return _checked(target, document, {figure.fact: f"times {factor:g}"})


def _figures(target: Target) -> Iterator[_Figure]:
    """All figures of a target."""
    for short, field in _CHIP.items():
        yield _Figure((short, field), (field,), field)
    for section, table in _SECTIONS.items():
        for index, part in enumerate(getattr(target, table)):
            heads = [f"{prefix}{part.name}." for prefix in (f"{section}.", f"{table}.", "")]
            for short, field in _FIELDS[table].items():
                yield _Figure(
                    tuple(head + name for head in heads for name in (short, field)),
                    (table, index, field),
                    f"{table}.{part.name}.{field}",
                )
    for index, unit in enumerate(target.compute):
        heads = [f"{prefix}{unit.name}." for prefix in ("compute.", "")]
        for dtype in unit.operations_per_s:
            yield _Figure(
                tuple(
                    f"{head}{name}.{dtype}"
                    for head in heads
                    for name in ("operations", "chip_operations_per_s")
                ),
                ("compute", index, "operations_per_s", dtype),
                f"compute.{unit.name}.operations_per_s.{dtype}",
                of_chip=True,
            )


def _find(target: Target, name: str) -> _Figure:
    figures = list(_figures(target))
    found = [figure for figure in figures if name in figure.names]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            Code.OPTION,
            f"{name!r} may mean {' or '.join(figure.names[0] for figure in found)}",
            location=f"--set {name}",
        )
    known = {alias: figure.names[0] for figure in figures for alias in figure.names}
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = list(dict.fromkeys(known[alias] for alias in close))
    raise UserError(
        Code.OPTION,
        f"target {target.name!r} has no figure {name!r}",
        location=f"--set {name}",
        hint=f"did you mean {' or '.join(meant)}?"
        if meant
        else f"its figures: {', '.join(figure_names(target))}",
    )


def _number(document: dict[str, Any], figure: _Figure, name: str, value: str) -> Any:
    """What goes into the document for a value as the user wrote it; the schema reads units."""
    if not figure.of_chip:
        return value
    try:
        peak = parse_quantity(value, "operations_per_s")
    except ValueError as error:
        raise UserError(Code.OPTION, str(error), location=f"--set {name}") from None
    return peak / document["compute"][figure.keys[1]]["count"]


def _get(document: dict[str, Any], figure: _Figure) -> Any:
    found: Any = document
    for key in figure.keys:
        found = found[key]
    return found


def _put(document: dict[str, Any], figure: _Figure, value: Any) -> None:
    inner: Any = document
    for key in figure.keys[:-1]:
        inner = inner[key]
    inner[figure.keys[-1]] = value


def _checked(target: Target, document: dict[str, Any], notes: Mapping[str, str]) -> Target:
    document["assumptions"] = dict(target.assumptions) | dict(notes)
    document["sources"] = {k: v for k, v in target.sources.items() if k not in notes}
    try:
        return Target.model_validate(document)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(
            Code.OPTION,
            f"target {target.name!r} cannot be changed so: {message[:1].lower()}{message[1:]}",
            location=f"--set {', '.join(notes)}",
        ) from None
