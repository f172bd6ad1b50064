"""The bytes of the single-file form: a zip that any zip tool reads, written and read strictly.

Members are stored, never compressed, and start at aligned offsets, so the mapped file is the loaded
file. The padding is an extra field of the local header, as `zipalign` writes it (id 0xD935). All
sizes and offsets are in the ZIP64 records, whatever their magnitude: one code path, exercised by
every file. Times, permissions and order are fixed, so the same members give the same bytes with
every version of Python, which the standard library's writer does not promise.

The reader takes only what the writer writes. A zip can be read in two ways where its two headers
disagree, where entries overlap or where something precedes or follows the archive; such a file is
refused rather than interpreted.

Structures: APPNOTE.TXT - .ZIP File Format Specification 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3
(PKWARE).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from infc.artifact.manifest import MANIFEST, MAX_MEMBERS, is_member_name

LOCAL: Final = b"PK\x03\x04"
_CENTRAL, _END64, _LOCATOR64, _END = b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06"
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END64_RECORD = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64_RECORD = struct.Struct("<4sIQI")
_END_RECORD = struct.Struct("<4s4H2IH")
_TAIL_BYTES = _END64_RECORD.size + _LOCATOR64_RECORD.size + _END_RECORD.size
_SIZES64 = struct.Struct("<2H2Q")
_PLACE64 = struct.Struct("<2H3Q")
_PADDING = struct.Struct("<3H")

_VERSION = 45  # 4.5: ZIP64
_MADE_BY = 3 << 8 | _VERSION  # Unix
_DATE = 1 << 5 | 1  # 1 January 1980, the first that the format can say
_MODE = 0o100644 << 16
_IN_64, _IN_64_SHORT = 0xFFFFFFFF, 0xFFFF
_PADDING_ID = 0xD935

WEIGHTS_ALIGNMENT: Final = 4096
"""Of `weights/`: a page, so that a mapping can be advised and shared page by page."""
ALIGNMENT: Final = 64
"""Of everything else: a cache line."""


class ZipError(Exception):
    """Why this is no zip of ours; `entry` is the member at fault where there is one."""

    def __init__(self, reason: str, entry: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = entry


@dataclass(frozen=True)
class Entry:
    """A member's place in the file, all in bytes."""

    name: str
    header_offset: int
    data_offset: int
    size_bytes: int
    crc32: int


def alignment(name: str) -> int:
    """What the offset of a member's data is a multiple of."""
    return WEIGHTS_ALIGNMENT if name.startswith("weights/") else ALIGNMENT


def local_header(name: str, offset: int, size_bytes: int, crc32: int) -> bytes:
    """The header at `offset` before a member's data, padded so that the data is aligned.

    Its length does not depend on size and checksum: it can be written again once they are known.
    """
    fixed = _LOCAL_HEADER.size + len(name) + _SIZES64.size + _PADDING.size
    align = alignment(name)
    padding = -(offset + fixed) % align
    extra = (
        _SIZES64.pack(1, 16, size_bytes, size_bytes)
        + _PADDING.pack(_PADDING_ID, 2 + padding, align)
        + bytes(padding)
    )
    header = _LOCAL_HEADER.pack(
        LOCAL, _VERSION, 0, 0, 0, _DATE, crc32, _IN_64, _IN_64, len(name), len(extra)
    )
    return header + name.encode("ascii") + extra


def directory(entries: Sequence[Entry], offset: int) -> bytes:
    """All that follows the last member: the central directory at `offset`, and the end records."""
    listing = b"".join(map(_central_header, entries))
    count = len(entries)
    return b"".join(
        (
            listing,
            _END64_RECORD.pack(
                _END64, _END64_RECORD.size - 12, _MADE_BY, _VERSION, 0, 0,
                count, count, len(listing), offset,
            ),
            _LOCATOR64_RECORD.pack(_LOCATOR64, 0, offset + len(listing), 1),
            _END_RECORD.pack(
                _END, 0, 0, _IN_64_SHORT, _IN_64_SHORT, _IN_64, _IN_64, 0
            ),
        )
    )  # fmt: skip


def _central_header(entry: Entry) -> bytes:
    extra = _PLACE64.pack(1, 24, entry.size_bytes, entry.size_bytes, entry.header_offset)
    name = entry.name.encode("ascii")
    header = _CENTRAL_HEADER.pack(
        _CENTRAL, _MADE_BY, _VERSION, 0, 0, 0, _DATE, entry.crc32, _IN_64, _IN_64,
        len(name), len(extra), 0, 0, 0, _MODE, _IN_64,
    )  # fmt: skip
    return header + name + extra


def read_directory(data: memoryview) -> dict[str, Entry]:
    """The members of a mapped file, by name.

    Raises ZipError unless the file is, header by header, what the writer writes. The data of the
    members are not looked at.
    """
    start, count = _read_end(data)
    entries: dict[str, Entry] = {}
    position, free = start, 0
    for _ in range(count):
        entry, position = _read_entry(data, position, start)
        if entry.name in entries:
            raise ZipError("it occurs twice", entry.name)
        if entry.header_offset != free:
            raise ZipError(
                f"expected its header at byte {free}, got {entry.header_offset}", entry.name
            )
        free = entry.data_offset + entry.size_bytes
        entries[entry.name] = entry
    if free != start or position != len(data) - _TAIL_BYTES:
        raise ZipError("there are bytes that belong to no member")
    return entries


def _read_end(data: memoryview) -> tuple[int, int]:
    """Where the central directory starts, and how many entries it has."""
    tail = len(data) - _TAIL_BYTES
    if tail < 0:
        raise ZipError("the end of the file is missing")
    end64 = _END64_RECORD.unpack_from(data, tail)
    _, _, _, _, _, _, count, _, size, start = end64
    expected = (
        _END64_RECORD.pack(
            _END64, _END64_RECORD.size - 12, _MADE_BY, _VERSION, 0, 0, count, count, size, start
        )
        + _LOCATOR64_RECORD.pack(_LOCATOR64, 0, tail, 1)
        + _END_RECORD.pack(_END, 0, 0, _IN_64_SHORT, _IN_64_SHORT, _IN_64, _IN_64, 0)
    )
    if bytes(data[tail:]) != expected or start + size != tail:
        raise ZipError("the end of the file is missing or damaged")
    if count > MAX_MEMBERS:
        raise ZipError(f"expected at most {MAX_MEMBERS} members, got {count}")
    return start, count


def _read_entry(data: memoryview, position: int, limit: int) -> tuple[Entry, int]:
    """The entry at `position` of the central directory, checked, and where the next one starts."""
    try:
        header = _CENTRAL_HEADER.unpack_from(data, position)
        name_at = position + _CENTRAL_HEADER.size
        extra_at = name_at + header[10]
        name = bytes(data[name_at:extra_at]).decode("ascii")
        _, _, size, _, header_offset = _PLACE64.unpack_from(data, extra_at)
    except (struct.error, UnicodeDecodeError):
        raise ZipError("its directory is damaged") from None
    if name != MANIFEST and not is_member_name(name):
        raise ZipError("its directory holds a name that is not allowed")
    if header[4] != 0:
        raise ZipError("it is compressed: members are stored as they are", name)
    crc32 = header[7]
    # Both headers follow from name, place, size and CRC: they are made again and compared.
    if header_offset + size > limit:
        raise ZipError("it does not lie within the file", name)
    local = local_header(name, header_offset, size, crc32)
    entry = Entry(name, header_offset, header_offset + len(local), size, crc32)
    central = _central_header(entry)
    if bytes(data[position : position + len(central)]) != central:
        raise ZipError("its entry in the directory is damaged", name)
    if bytes(data[header_offset : entry.data_offset]) != local:
        raise ZipError("its header is damaged", name)
    if entry.data_offset + size > limit:
        raise ZipError("it does not lie within the file", name)
    return entry, position + len(central)
