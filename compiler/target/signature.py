"""Reads what a backend wrote of its own into the signature of a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from infc.diagnostics import Code, Problem, UserError
from infc.diagnostics.schema import schema_problems

_T = TypeVar("_T")
_Entries = TypeVar("_Entries", bound=Mapping[str, Any])

Size = Annotated[int, Field(ge=0, lt=1 << 62)]
"""A number of bytes, or of whatever there may be none of."""
Count = Annotated[int, Field(ge=1, lt=1 << 62)]
"""A number of what there is at least one of."""

PhaseName = Annotated[str, Field(pattern=r"^(prefill|decode)$")]
Phases = Annotated[dict[PhaseName, _T], Field(min_length=2)]
"""An entry of both programs, by phase."""

_SHOWN_PROBLEMS: Final = 8


def read_signature(kind: type[_Entries], signature: Mapping[str, Any]) -> _Entries:
    """The entries of a signature that `kind` names, each of the type that it says there.

    Args:
        kind: a `TypedDict` (that of `typing_extensions`), whose entries may be dataclasses.
        signature: as emitted, JSON values; it may have more entries.

    Raises:
        UserError: INF4002, an entry is missing or is something else.
    """
    own = {name: signature[name] for name in kind.__annotations__ if name in signature}
    try:
        found: _Entries = _adapter(kind).validate_json(json.dumps(own), strict=True)
    except ValidationError as error:
        raise wrong_entries(schema_problems(error, "programs")) from None
    return found


def wrong_entries(problems: Sequence[Problem], location: str | None = None) -> UserError:
    """What is raised where a manifest does not hold what a compiler writes (INF4002)."""
    wrong = "1 entry" if len(problems) == 1 else f"{len(problems)} entries"
    return UserError(
        Code.ARTIFACT_FORMAT,
        f"{wrong} of manifest.json {'is' if len(problems) == 1 else 'are'} missing or wrong",
        location=location,
        problems=problems[:_SHOWN_PROBLEMS],
        hint="compile the model again with this infc",
    )


def other_programs() -> UserError:
    """What `load` raises where programs are not what their signature says of them (INF4003)."""
    return UserError(
        Code.ARTIFACT_DAMAGED,
        "the programs are not those that manifest.json describes",
        hint="compile the model again",
    )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
