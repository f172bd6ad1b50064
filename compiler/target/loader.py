"""Target files: TOML in, a checked `Target` out.

A fact is written as a plain value, or as a table that says more::

    power_watts = "700W"
    launch_ns = { value = "2.1us", source = "..." }
    power_watts = { value = "300W", assumption = "no figure published; that of its neighbour" }
    price_usd_per_hour = { unknown = "not for rent" }

Every fact needs a source (or names what was assumed). A key `source` or `assumption` in a table
holds for all facts inside, those with their own excepted. Keys are the fields of
`infc.target.schema`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from typing import Any

from pydantic import ValidationError

from infc.diagnostics import Code, Problem, UserError, count
from infc.target.schema import Target

_NO_FACT = frozenset(
    {
        *("name", "backend", "kind", "family", "count", "features", "model_memory"),
        *("managed_by", "feeds", "topology", "joins", "power_basis"),
    }
)
"""Keys that name or describe, and so need no source."""
_OF_CHIP = re.compile(r"(?<=\.)chip_operations_per_s(?=\.|$)")
"""In a path: the key the schema divides by the instances of a unit and keeps by another name."""
_FACT_KEYS = frozenset({"value", "source", "assumption", "unknown"})


def load_target(file: Traversable) -> Target:
    """Read a target file.

    Raises:
        UserError: it cannot be read, is no TOML, or says something the schema refuses (all findings
            are listed).
    """
    return parse_target(read_text(file), location=str(file))


def read_text(file: Traversable) -> str:
    """The text of a target file; raises UserError (INF3002)."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.TARGET_FORMAT, f"cannot read the target file: {error}", location=str(file)
        ) from error


def parse_target(text: str, *, location: str) -> Target:
    """Read the text of a target file; errors name `location`."""
    return make_target(read_toml(text, location=location), location=location)


def make_target(document: Mapping[str, object], *, location: str) -> Target:
    """A target from a document in the form of a target file; errors name `location`."""
    plain, notes = plain_facts(document, location=location)
    with schema_errors(plain, notes, location=location):
        return Target.model_validate(
            plain | {"sources": notes.sources, "assumptions": notes.assumptions}
        )


def read_toml(text: str, *, location: str) -> dict[str, Any]:
    """The document of a target file's text; raises UserError (INF3002)."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(
            Code.TARGET_FORMAT, f"the target file is no valid TOML: {error}", location=location
        ) from error


def plain_facts(
    document: Mapping[str, object], *, location: str
) -> tuple[dict[str, object], Notes]:
    """A document without what it says about origins, and that apart, with what is wrong with it.

    Raises:
        UserError: it is nested too deeply (INF3002).
    """
    notes = Notes()
    try:
        plain = _strip(document, "", False, notes)
    except RecursionError as error:
        raise UserError(
            Code.TARGET_FORMAT, "the target file is nested too deeply", location=location
        ) from error
    if not isinstance(plain, dict):
        raise _report(notes.problems, location)
    return plain, notes


@contextmanager
def schema_errors(plain: object, notes: Notes, *, location: str) -> Iterator[None]:
    """What the schema refuses in a document, and what was found before, becomes one UserError
    (INF3002) that lists it all."""
    problems = list(notes.problems)
    try:
        yield
    except ValidationError as error:
        found = [
            Problem(_sentence(item["msg"]), _path(item["loc"], plain) or None)
            for item in error.errors(include_url=False)
        ]
        problems += [problem for problem in found if problem.location not in notes.unread]
    if problems:
        raise _report(problems, location) from None


def _report(problems: Sequence[Problem], location: str) -> UserError:
    return UserError(
        Code.TARGET_FORMAT,
        f"the target file has {count(len(problems), 'problem')}",
        location=location,
        problems=problems,
    )


@dataclass
class Notes:
    """What a document says about the origin of its facts, by their dotted path.

    Attributes:
        sources: where they come from.
        assumptions: why they were chosen where no figure is known, or that they are not known.
        problems: facts that say neither.
        unread: paths of facts that cannot be read, whose value is missing therefore.
    """

    sources: dict[str, str] = field(default_factory=dict)
    assumptions: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)


def _strip(node: object, path: str, sourced: bool, notes: Notes) -> object:
    """The document without sources; a fact of unknown value is left out as None."""
    if isinstance(node, Mapping):
        if "value" in node or "unknown" in node:
            return _strip_fact(node, path, sourced, notes)
        sourced |= _note(node, path, ("source", "assumption"), notes)
        return {
            key: _strip(value, _join(path, key), sourced, notes)
            for key, value in node.items()
            if key not in ("source", "assumption")
        }
    if isinstance(node, list) and all(isinstance(item, Mapping) for item in node):
        return [
            _strip(item, _join(path, str(item.get("name", index))), sourced, notes)
            for index, item in enumerate(node)
        ]
    if not sourced and path.rpartition(".")[2] not in _NO_FACT:
        notes.problems.append(Problem("expected a source, got a fact without one", path))
    return node


def _strip_fact(fact: Mapping[str, object], path: str, sourced: bool, notes: Notes) -> object:
    stray = sorted(set(fact) - _FACT_KEYS)
    if stray or ("value" in fact) == ("unknown" in fact):
        notes.problems.append(
            Problem(
                "expected a value with a source or an assumption, or unknown with a reason, got "
                + ", ".join(sorted(fact)),
                path,
            )
        )
        notes.unread.add(path)
        return None
    if not (_note(fact, path, ("source", "assumption", "unknown"), notes) or sourced):
        notes.problems.append(Problem("expected a source, got a fact without one", path))
    return fact.get("value")


def _note(table: Mapping[str, object], path: str, keys: tuple[str, ...], notes: Notes) -> bool:
    """Keep what a table says about the origin of its facts; whether it says anything."""
    found = [key for key in keys if key in table]
    for key in found:
        text = table[key]
        if isinstance(text, str) and text.strip():
            kept = notes.sources if key == "source" else notes.assumptions
            fact = _OF_CHIP.sub("operations_per_s", path)
            kept[fact] = f"not known: {text}" if key == "unknown" else text
        else:
            notes.problems.append(Problem(f"expected {key} as text", path or None))
    return bool(found)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _path(location: tuple[int | str, ...], document: object) -> str:
    """A pydantic location with list indices replaced by the names of the entries."""
    parts: list[str] = []
    for step in location:
        inner: object = None
        if isinstance(document, Mapping) and isinstance(step, str):
            inner = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            inner = document[step]
        named = inner.get("name") if isinstance(inner, Mapping) else None
        parts.append(str(named) if isinstance(step, int) and named else str(step))
        document = inner
    return ".".join(parts)


def _sentence(message: str) -> str:
    """A pydantic message in the project's form: lower case first, no prefix."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
