"""Links that may stand in place of a target's own, each a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from infc.diagnostics import Code, UserError
from infc.target.loader import plain_facts, read_text, read_toml, schema_errors
from infc.target.schema import Link, Target


@dataclass(frozen=True)
class LinkOption:
    """A link and where its figures come from.

    Attributes:
        location: of its file.
        link: the link.
        sources, assumptions: by path inside the link; see `infc.target.schema.Target`.
    """

    location: str
    link: Link
    sources: Mapping[str, str]
    assumptions: Mapping[str, str]


def load_link(file: Traversable) -> LinkOption:
    """Read a link file: TOML with the fields of `infc.target.schema.Link`, as in a target file.

    Raises:
        UserError: it cannot be read, is no TOML, or says something the schema refuses (INF3002).
    """
    location = str(file)
    plain, notes = plain_facts(read_toml(read_text(file), location=location), location=location)
    with schema_errors(plain, notes, location=location):
        return LinkOption(location, Link.model_validate(plain), notes.sources, notes.assumptions)


def with_link(target: Target, option: LinkOption) -> Target:
    """The target with the link as its usual one between chips or machines.

    Raises:
        UserError: another one of its links has the name (INF3002).
    """
    link = option.link
    others = [old for old in target.links if old.joins != link.joins]
    if link.name in {old.name for old in others}:
        raise UserError(
            Code.TARGET_FORMAT,
            f"target {target.name!r} has a link {link.name!r} already, which joins other things",
            location=option.location,
            hint="give the link in the file another name",
        )
    replaced = [f"links.{old.name}" for old in target.links if old.joins == link.joins]
    return target.model_copy(
        update={
            "links": (link, *others),
            "sources": _notes(target.sources, replaced, link.name, option.sources),
            "assumptions": _notes(target.assumptions, replaced, link.name, option.assumptions),
        }
    )


def _notes(
    old: Mapping[str, str], replaced: list[str], name: str, new: Mapping[str, str]
) -> dict[str, str]:
    """Notes of a target without those of replaced links, and those of the new one."""
    kept = {
        path: text
        for path, text in old.items()
        if not any(path == gone or path.startswith(f"{gone}.") for gone in replaced)
    }
    return kept | {f"links.{name}.{path}".rstrip("."): text for path, text in new.items()}
