"""Reads what object files of others define: they are linked into a program that must stand alone.

ELF of 64 bits, little-endian; offsets and numbers as in the System V ABI, chapters 4 (object files)
and its symbol table section.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ARCHITECTURES = {62: "x86_64", 183: "aarch64"}
"""The machine of an ELF file (EM_X86_64, EM_AARCH64)."""
_IDENTITY = b"\x7fELF\x02\x01"
"""Magic number, 64 bits, little-endian."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATABLE, _SYMBOL_TABLE, _UNDEFINED, _HIDDEN = 1, 2, 0, 2
_GLOBAL_BINDINGS = (1, 2)
_VISIBILITY_AT = 5
"""Of a symbol, in bytes."""


@dataclass(frozen=True)
class ObjectFile:
    """What matters of a relocatable file.

    Attributes:
        architecture: `x86_64`, `aarch64`, or the number of another one.
        defined: names that other files can use.
        undefined: names that it needs of other files.
        hidden: the file with all that it defines hidden: other files of a program can use it, and
            users of the program do not see it.
    """

    architecture: str
    defined: frozenset[str]
    undefined: frozenset[str]
    hidden: bytes


def read_object(code: bytes) -> ObjectFile:
    """Read an object file.

    Raises:
        ValueError: it is none, or damaged.
    """
    if not code.startswith(_IDENTITY):
        raise ValueError("expected a little-endian ELF file of 64 bits")
    try:
        header = _HEADER.unpack_from(code)
        kind, machine, sections_at, count = header[1], header[2], header[6], header[12]
        if kind != _RELOCATABLE:
            raise ValueError("expected a relocatable ELF file")
        sections = [
            _SECTION.unpack_from(code, sections_at + _SECTION.size * index)
            for index in range(count)
        ]
        defined: set[str] = set()
        undefined: set[str] = set()
        hidden = bytearray(code)
        for section in sections:
            if section[1] != _SYMBOL_TABLE:
                continue
            offset, size, names_at = section[4], section[5], sections[section[6]][4]
            for at in range(offset, offset + size, _SYMBOL.size):
                name_at, info, _, place, _, _ = _SYMBOL.unpack_from(code, at)
                if info >> 4 in _GLOBAL_BINDINGS:
                    start = names_at + name_at
                    name = code[start : code.index(b"\0", start)].decode("utf-8")
                    if place == _UNDEFINED:
                        undefined.add(name)
                    else:
                        defined.add(name)
                        hidden[at + _VISIBILITY_AT] = _HIDDEN
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError("the ELF file is damaged") from error
    architecture = ARCHITECTURES.get(machine, f"ELF machine {machine}")
    return ObjectFile(architecture, frozenset(defined), frozenset(undefined), bytes(hidden))
