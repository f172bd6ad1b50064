"""The header of one safetensors file: a u64 length, that much JSON, then tensor data.

Parsed here and not by the safetensors library because that maps the file (see `files`) and answers
with text meant for programmers; the library is the oracle of the tests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TypeGuard

from infc.diagnostics import Code, UserError
from infc.frontends.files import ModelFile

# Bits an element of each type of the format, version 0.8; those without a storage type here only
# matter for sizes.
_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "I64": 64,
    "U64": 64,
}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class SafetensorsEntry:
    """One tensor: `dtype` as the file spells it, `offset` from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def parse_json(content: bytes, location: str) -> dict[str, object]:
    """A JSON object; raises INF1002 where it is none or a key appears twice."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(
            Code.MODEL_FORMAT, f"expected JSON, got an error: {_reason(error)}", location=location
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            Code.MODEL_FORMAT, "expected a JSON object, got another value", location=location
        )
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'key "{twice[:60]}" appears twice')
    return result


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)[:200]


def read_safetensors(file: ModelFile) -> list[SafetensorsEntry]:
    """The tensors of a file, in order of their data.

    Raises UserError: INF1002 where the header is malformed, INF1003 where the file ends too early,
    INF1004 where an entry makes no sense.
    """
    location = str(file.path)
    if file.size_bytes < 8:
        raise _truncated(8, file)
    size = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if size > _MAX_HEADER_BYTES:
        raise UserError(
            Code.MODEL_FORMAT,
            f"expected a safetensors header of at most {_MAX_HEADER_BYTES} bytes, got {size}",
            location=location,
        )
    start = 8 + size
    if start > file.size_bytes:
        raise _truncated(start, file)
    header = parse_json(file.read(8, size).tobytes(), location)
    entries = [
        _entry(name, value, start, file) for name, value in header.items() if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: entry.offset)
    filled = [entry for entry in entries if entry.size_bytes]
    for before, after in pairwise(filled):
        if before.offset + before.size_bytes > after.offset:
            raise _bad(file, after.name, f'the data overlap those of "{before.name}"')
    end = max((entry.offset + entry.size_bytes for entry in filled), default=start)
    if end > file.size_bytes:
        raise _truncated(end, file)
    return entries


def _entry(name: str, value: object, start: int, file: ModelFile) -> SafetensorsEntry:
    if not isinstance(value, Mapping):
        raise _bad(file, name, "expected an object in the header, got another value")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(file, name, f"expected a type of the format, got {str(dtype)[:60]}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS or prod(shape) >= 1 << 62:
        raise _bad(
            file, name, f"expected up to {_MAX_DIMENSIONS} dimensions, got {str(shape)[:60]}"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] > 1 << 62:
        raise _bad(file, name, f"expected two offsets within the file, got {str(offsets)[:60]}")
    size = offsets[1] - offsets[0]
    expected = -(-prod(shape) * _BITS[dtype] // 8)
    if size != expected:
        raise _bad(
            file, name, f"expected {expected} bytes for shape {shape} of {dtype}, got {size}"
        )
    return SafetensorsEntry(name, dtype, tuple(shape), start + offsets[0], size)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers, none below zero and none absurd."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 62 for item in value
    )


def _bad(file: ModelFile, name: str, message: str) -> UserError:
    return UserError(Code.MODEL_TENSOR, message, location=f'{file.path}: tensor "{name}"')


def _truncated(expected: int, file: ModelFile) -> UserError:
    return UserError(
        Code.MODEL_TRUNCATED,
        f"expected at least {expected} bytes, got a file of {file.size_bytes} bytes",
        location=str(file.path),
        hint="the file is damaged or was not copied to its end",
    )
