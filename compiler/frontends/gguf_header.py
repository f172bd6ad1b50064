"""The header of one GGUF file: metadata and the table of tensors.

The layout (all little-endian; strings are a u64 length and UTF-8 bytes):

    u32 magic "GGUF", u32 version, u64 tensors, u64 entries
    entries:  string key, u32 type, value          (arrays: u32 element type, u64 length, elements)
    tensors:  string name, u32 dimensions, u64 each (innermost first), u32 type, u64 offset
    padding to the alignment, then tensor data; offsets count from here

Nothing in the file is believed: each length is checked against the bytes that are left before
anything of that size is made.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGUFValueType

from infc.diagnostics import Code, UserError
from infc.frontends.files import ModelFile

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 1024
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_MIN_ENTRY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
# The file is read in pieces of this size as parsing moves on: most headers are one to a few.
_PIECE_BYTES = 1 << 22
# String arrays from this length on are decoded when asked for.
_LAZY_STRINGS = 1024

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorEntry:
    """One row of the table of tensors.

    Attributes:
        name: of the tensor.
        shape: outermost dimension first.
        type_number: the ggml type as the file numbers it.
        offset: of its data, from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


class StringArray:
    """A long array of strings that stays bytes until it is asked for."""

    def __init__(self, content: bytes, count: int, key: str, location: str) -> None:
        """`content`: `count` times a u64 length and the bytes, whole and checked."""
        self._content, self._count, self._key, self._location = content, count, key, location

    def __len__(self) -> int:
        return self._count

    def strings(self) -> list[str]:
        """All strings; raises INF1102 where one is not UTF-8."""
        out: list[str] = []
        content, unpack, position = self._content, _U64.unpack_from, 0
        try:
            for _ in range(self._count):
                start = position + 8
                position = start + unpack(content, position)[0]
                out.append(content[start:position].decode())
        except UnicodeDecodeError:
            raise UserError(
                Code.TOKENIZER_FORMAT,
                f"expected UTF-8 in {self._key}, got other bytes in element {len(out)}",
                location=self._location,
            ) from None
        return out


@dataclass(frozen=True)
class GgufHeader:
    """What the header of one file says.

    Attributes:
        metadata: key -> int, float, bool, str, list of such (numbers of an array too), or a
            `StringArray`.
        tensors: in file order; names are unique.
        data_offset: where tensor data start.
        alignment: of tensor data.
    """

    metadata: dict[str, object]
    tensors: tuple[TensorEntry, ...]
    data_offset: int
    alignment: int


def read_header(file: ModelFile) -> GgufHeader:
    """Parses the header of `file`.

    Raises UserError: INF1002 where the bytes are not GGUF, INF1003 where the file ends too early,
    INF1004 where a tensor's entry makes no sense.
    """
    cursor = _Cursor(file)
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        raise cursor.malformed(f'expected the magic number "GGUF", got {magic!r}')
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise UserError(
            Code.MODEL_UNSUPPORTED,
            "expected a little-endian GGUF file, got a big-endian one",
            location=str(file.path),
            hint="convert it with gguf_convert_endian.py of the gguf package",
        )
    if version not in _VERSIONS:
        raise cursor.malformed(f"expected GGUF version 2 or 3, got {version}")
    tensor_count = cursor.u64("the number of tensors")
    entry_count = cursor.u64("the number of metadata entries")
    cursor.need_items(entry_count, _MIN_ENTRY_BYTES, "metadata entries")
    metadata: dict[str, object] = {}
    for _ in range(entry_count):
        key = cursor.string(_MAX_KEY_BYTES, "a metadata key")
        if key in metadata:
            raise cursor.malformed(f'metadata key "{key}" appears twice')
        metadata[key] = cursor.value(cursor.u32(f'the type of "{key}"'), key, 0)
    alignment = _alignment(metadata, cursor)
    cursor.need_items(tensor_count, _MIN_TENSOR_BYTES, "tensors")
    entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for entry in entries:
        if entry.name in tensors:
            raise UserError(
                Code.MODEL_TENSOR, "the tensor appears twice", location=cursor.tensor(entry.name)
            )
        if entry.offset % alignment:
            raise UserError(
                Code.MODEL_TENSOR,
                f"expected an offset that is a multiple of {alignment}, got {entry.offset}",
                location=cursor.tensor(entry.name),
            )
        tensors[entry.name] = TensorEntry(
            entry.name, entry.shape, entry.type_number, data_offset + entry.offset
        )
    return GgufHeader(metadata, tuple(tensors.values()), data_offset, alignment)


def _alignment(metadata: dict[str, object], cursor: _Cursor) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    valid = isinstance(value, int) and 0 < value <= _MAX_ALIGNMENT and value & (value - 1) == 0
    if not valid or not isinstance(value, int):
        shown = value if isinstance(value, int | float | str) else "an array"
        raise cursor.malformed(
            f"expected general.alignment to be a power of two up to {_MAX_ALIGNMENT}, got {shown}"
        )
    return int(value)


def _read_tensor(cursor: _Cursor) -> TensorEntry:
    """One row of the table; its offset still counts from the start of the data."""
    name = cursor.string(_MAX_NAME_BYTES, "a tensor name")
    location = cursor.tensor(name)
    dimensions = cursor.u32("the number of dimensions")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise UserError(
            Code.MODEL_TENSOR,
            f"expected 1 to {_MAX_DIMENSIONS} dimensions, got {dimensions}",
            location=location,
        )
    innermost_first = [cursor.u64("a dimension") for _ in range(dimensions)]
    if 0 in innermost_first or prod(innermost_first) >= 1 << 62:
        raise UserError(
            Code.MODEL_TENSOR,
            f"expected dimensions above zero and fewer than 2^62 elements, got {innermost_first}",
            location=location,
        )
    type_number = cursor.u32("a tensor type")
    offset = cursor.u64("a tensor offset")
    return TensorEntry(name, tuple(reversed(innermost_first)), type_number, offset)


class _Cursor:
    """Reads forward through a file, never past its end."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._buffer = bytearray()
        self.position = 0

    def malformed(self, message: str) -> UserError:
        return UserError(Code.MODEL_FORMAT, message, location=str(self._file.path))

    def tensor(self, name: str) -> str:
        return f'{self._file.path}: tensor "{name}"'

    def need_items(self, count: int, each_bytes: int, what: str) -> None:
        """Refuses a count that the rest of the file cannot hold."""
        left = self._file.size_bytes - self.position
        if count * each_bytes > left:
            raise UserError(
                Code.MODEL_TRUNCATED,
                f"the header announces {count} {what}, which need {count * each_bytes} bytes or "
                f"more, but only {left} bytes are left in the file",
                location=str(self._file.path),
                hint="the file is damaged or was not copied to its end",
            )

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        start = self.position
        self._load(start + size, what)
        self.position = start + size
        return bytes(self._buffer[start : self.position])

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, limit: int | None, what: str) -> str:
        size = self.u64(f"the length of {what}")
        if limit is not None and size > limit:
            raise self.malformed(f"expected at most {limit} bytes in {what}, got {size}")
        raw = self.take(size, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.malformed(f"expected UTF-8 in {what}, got {raw[:40]!r}") from None

    def value(self, type_number: int, key: str, depth: int) -> object:
        """One metadata value."""
        try:
            kind = GGUFValueType(type_number)
        except ValueError:
            raise self.malformed(f'unknown type {type_number} of "{key}"') from None
        if kind == GGUFValueType.STRING:
            return self.string(None, f'the value of "{key}"')
        if kind == GGUFValueType.ARRAY:
            return self._array(key, depth + 1)
        code = struct.Struct("<" + _SCALARS[kind])
        return code.unpack(self.take(code.size, f'the value of "{key}"'))[0]

    def _array(self, key: str, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise self.malformed(f'arrays of "{key}" are nested deeper than {_MAX_DEPTH}')
        type_number = self.u32(f'the element type of "{key}"')
        count = self.u64(f'the length of "{key}"')
        try:
            kind = GGUFValueType(type_number)
        except ValueError:
            raise self.malformed(f'unknown element type {type_number} of "{key}"') from None
        what = f'elements of "{key}"'
        if kind == GGUFValueType.STRING:
            self.need_items(count, 8, what)
            if count >= _LAZY_STRINGS:
                return self._lazy_strings(count, key)
            return [self.string(None, f'an element of "{key}"') for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            self.need_items(count, 12, what)
            return [self._array(key, depth + 1) for _ in range(count)]
        dtype = np.dtype("<" + _SCALARS[kind])
        self.need_items(count, dtype.itemsize, what)
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()

    def _lazy_strings(self, count: int, key: str) -> StringArray:
        """Steps over `count` strings; 262144 of them take a few hundredths of a second."""
        start = position = self.position
        what = f'the elements of "{key}"'
        unpack = _U64.unpack_from
        self._load(position + 8, what)
        buffer, ready = self._buffer, len(self._buffer) - 8
        for _ in range(count):
            if position > ready:
                self._load(position + 8, what)
                ready = len(buffer) - 8
            position += 8 + unpack(buffer, position)[0]
        self._load(position, what)
        self.position = position
        return StringArray(bytes(buffer[start:position]), count, key, str(self._file.path))

    def _load(self, end: int, what: str) -> None:
        """Makes the first `end` bytes of the file available."""
        have = len(self._buffer)
        if end <= have:
            return
        size = self._file.size_bytes
        if end > size:
            raise UserError(
                Code.MODEL_TRUNCATED,
                f"the file ends inside {what}: expected at least {end} bytes, got {size}",
                location=str(self._file.path),
                hint="the file is damaged or was not copied to its end",
            )
        more = min(max(end - have, _PIECE_BYTES), size - have)
        self._buffer += self._file.read(have, more).data
