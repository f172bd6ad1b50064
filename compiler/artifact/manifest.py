"""`manifest.json`: what an artifact says about itself.

The compiler states `Facts`; the writer adds the members with their checksums and the digest, and
that is the `Manifest`. Its sections that belong to a backend (KV layout, memory plan, cost
estimate, signatures) are JSON objects here: the container does not interpret them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from infc.diagnostics import Code, Problem, UserError

FORMAT_VERSION: Final = 1
"""Of the container. Raised whenever an older infc could not read a newer artifact rightly."""

MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 64 << 20
MAX_MEMBERS: Final = 10_000
_SHOWN_PROBLEMS = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)+")
_MAX_NAME_BYTES = 255

if TYPE_CHECKING:
    # Readers know what they look for: a union of all that JSON has would only be in their way.
    JsonObject = dict[str, Any]
else:
    JsonObject = dict[str, JsonValue]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Crc32 = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


def is_member_name(name: str) -> bool:
    """Whether `name` is a relative path in a folder, of plain characters, that cannot climb out."""
    return len(name) <= _MAX_NAME_BYTES and _NAME.fullmatch(name) is not None


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MemberRecord(_Record):
    """One member.

    Attributes:
        size_bytes: its length.
        sha256: of all its bytes.
        crc32: the running CRC-32 after each chunk of `checksums.CHUNK_BYTES`; the last one is the
            CRC-32 of the member.
    """

    size_bytes: int = Field(ge=0, lt=1 << 62)
    sha256: _Sha256
    crc32: list[_Crc32] = Field(min_length=1)


class ModelRecord(_Record):
    """The model that was compiled.

    Attributes:
        name: as the user knows it (a file name, without its folder).
        format: `gguf` or `huggingface`.
        sha256: over all its files.
        context_length: positions that it was trained for; None where it does not say.
    """

    name: str
    format: str
    sha256: _Sha256
    context_length: int | None = None


class Facts(_Record):
    """What the compiler states.

    Attributes:
        dialect_version: of the infc dialect.
        model: what was compiled.
        targets: phase -> the resolved target: what the compiler believed of the machine.
        toolchain: name -> version of everything whose change may change the code.
        options: all options of the compilation, defaults included.
        programs: phase -> its signature: member, symbol, limits, what the backend wants to know.
        kv_layout: how the backend lays out its KV cache.
        memory_plan: buffers with offsets, sizes, lifetimes.
        cost_estimate: seconds, bytes, operations and bounds, as predicted.
        profiles: calibration profiles that the cost model read.
        tuning: tuning records that decided a mapping.
        quantization: storage type -> how many weights `--quantize` converted to it, and the root
            mean square of what they lost over that of what they were.
    """

    dialect_version: int
    model: ModelRecord
    targets: dict[str, JsonObject]
    toolchain: dict[str, str]
    options: JsonObject
    programs: dict[str, JsonObject]
    kv_layout: JsonObject
    memory_plan: JsonObject
    cost_estimate: JsonObject
    profiles: list[JsonObject] = []
    tuning: list[JsonObject] = []
    quantization: dict[str, JsonObject] = {}


class Manifest(Facts):
    """The whole of `manifest.json`.

    Attributes:
        format_version: of the container.
        members: name -> size and checksums; every file of the artifact but the manifest itself.
        digest: sha256 of the manifest without this key, as canonical JSON. It covers the sums of
            all members: it names the content, whichever form that is stored in.
    """

    format: Literal["infc"]
    format_version: int
    members: dict[str, MemberRecord] = Field(max_length=MAX_MEMBERS)
    digest: _Sha256


def complete(facts: Facts, members: Mapping[str, MemberRecord]) -> Manifest:
    """The manifest of these facts and members."""
    content: JsonObject = {
        **facts.model_dump(mode="json"),
        "format": "infc",
        "format_version": FORMAT_VERSION,
        "members": {name: members[name].model_dump(mode="json") for name in sorted(members)},
    }
    return Manifest.model_validate({**content, "digest": _digest(content)})


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`: sorted, indented, so that two of them can be compared."""
    content = manifest.model_dump(mode="json")
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def decode(data: bytes, location: str) -> Manifest:
    """Parse and check `manifest.json`; nothing about it is trusted.

    Raises UserError: ARTIFACT_FORMAT where it is no manifest, ARTIFACT_VERSION where another infc
    must read it, ARTIFACT_DAMAGED where its digest is wrong.
    """
    content = _parse_json(data, location)
    if content.get("format") != "infc":
        raise _format_error('it does not say "format": "infc"', location)
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise UserError(
            Code.ARTIFACT_VERSION,
            f"expected artifact format version {FORMAT_VERSION}, got {_brief(version)}",
            location=location,
            hint="compile the model again with this infc",
        )
    try:
        manifest = Manifest.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise _validation_error(error, location) from None
    for name in manifest.members:
        if not is_member_name(name):
            raise _format_error(f"member name {_brief(name)} is not allowed", location)
    digest = content.pop("digest")
    if digest != _digest(content):
        raise UserError(
            Code.ARTIFACT_DAMAGED,
            "manifest.json is damaged: its digest does not match its content",
            location=location,
            hint="copy or compile the artifact again",
        )
    return manifest


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse_json(data: bytes, location: str) -> dict[str, Any]:
    try:
        content = json.loads(
            data, object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise _format_error(f"it is not JSON ({reason})", location) from None
    if not isinstance(content, dict):
        raise _format_error("it is not a JSON object", location)
    return content


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _format_error(reason: str, location: str) -> UserError:
    return UserError(
        Code.ARTIFACT_FORMAT, f"manifest.json cannot be read: {reason}", location=location
    )


def _validation_error(error: ValidationError | RecursionError, location: str) -> UserError:
    if isinstance(error, RecursionError):
        return _format_error("it is too deeply nested", location)
    found = error.errors(include_url=False, include_context=False, include_input=False)
    problems = [
        Problem(item["msg"].lower(), _brief(".".join(map(str, item["loc"])))) for item in found
    ]
    return UserError(
        Code.ARTIFACT_FORMAT,
        f"manifest.json cannot be read: {len(problems)} of its entries are missing or wrong",
        location=location,
        problems=problems[:_SHOWN_PROBLEMS],
    )
