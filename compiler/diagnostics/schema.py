"""What a schema refuses in a document, as problems."""

from __future__ import annotations

from pydantic import ValidationError

from infc.diagnostics.errors import Problem


def schema_problems(error: ValidationError, *prefix: str) -> list[Problem]:
    """Each with its path in the document, behind `prefix`; validators may say several, a line each.

    Messages begin in lower case, as all of ours do.
    """
    return [
        Problem(line[:1].lower() + line[1:], ".".join(map(str, (*prefix, *item["loc"]))) or None)
        for item in error.errors(include_url=False, include_context=False, include_input=False)
        for line in item["msg"].removeprefix("Value error, ").split("\n")
    ]
