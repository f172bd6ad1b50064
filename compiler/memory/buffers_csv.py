"""Lists of buffers as CSV files, in the format of the MiniMalloc instances.

A header names the columns `id`, `lower`, `upper`, `size` and, optionally, `alignment`, in any
order: a buffer of `size` bytes lives in the half-open interval [lower, upper) of time. Other
columns are kept as they are. A plan is the same table with a column `offset`, which replaces one
that is there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from infc.diagnostics import Code, UserError
from infc.memory.buffer import LARGEST_TOTAL_BYTES, Buffer

MOST_BUFFERS: Final = 100_000
"""Of one file: planning takes time with the square of their number, some 20 s for these."""

_REQUIRED = ("id", "lower", "upper", "size")
_KNOWN = (*_REQUIRED, "alignment", "offset")
_TIMES = 2**62
"""Bound of points in time, either side of zero: their differences stay within 64 bits."""
_MOST_BYTES = 1024 * MOST_BUFFERS


@dataclass(frozen=True)
class BufferTable:
    """A file of buffers.

    Attributes:
        columns: the header.
        rows: the cells of each row, as they were written.
        buffers: what they mean, row by row; `last` is the last point in time before `upper`.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    buffers: Sequence[Buffer]


def read_buffers(path: Path) -> BufferTable:
    """Read and check a file.

    Raises:
        UserError: INF2102 with the file and the line where it is wrong.
    """
    numbered = _cells(path)
    header_line, columns = next(numbered, (1, []))
    if not columns:
        _refuse(path, 1, f"expected a header with {', '.join(_REQUIRED)}, got an empty file")
    for name in columns:
        if name in _KNOWN and columns.count(name) > 1:
            _refuse(path, header_line, f"expected one column '{name}', got {columns.count(name)}")
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        _refuse(
            path,
            header_line,
            f"expected the columns {', '.join(_REQUIRED)}, got none named '{missing[0]}'",
        )
    rows: list[Sequence[str]] = []
    buffers: list[Buffer] = []
    lines: dict[str, int] = {}
    total = 0
    for line, row in numbered:
        if len(row) != len(columns):
            _refuse(path, line, f"expected {len(columns)} cells, got {len(row)}")
        buffer = _buffer(path, line, dict(zip(columns, row, strict=True)))
        if buffer.name in lines:
            text = f"expected each id once, got '{buffer.name}' as in line {lines[buffer.name]}"
            _refuse(path, line, text)
        total += buffer.size_bytes + buffer.align
        if total > LARGEST_TOTAL_BYTES:
            text = f"expected sizes and alignments of at most {LARGEST_TOTAL_BYTES} bytes together"
            _refuse(path, line, f"{text}, got {total} up to here")
        if len(buffers) == MOST_BUFFERS:
            _refuse(path, line, f"expected at most {MOST_BUFFERS} buffers, got more")
        lines[buffer.name] = line
        rows.append(row)
        buffers.append(buffer)
    if not buffers:
        _refuse(path, header_line, "expected at least one buffer, got a header alone")
    return BufferTable(columns, rows, buffers)


def table_with_offsets(table: BufferTable, offsets: Mapping[str, int]) -> str:
    """The rows of a table, each with its buffer's offset in bytes."""
    kept = [i for i, name in enumerate(table.columns) if name != "offset"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(table.columns[i] for i in kept), "offset"])
    for row, buffer in zip(table.rows, table.buffers, strict=True):
        writer.writerow([*(row[i] for i in kept), offsets[buffer.name]])
    return text.getvalue()


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line on which each row begins, and its cells; empty lines are skipped."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            Code.BUFFERS,
            f"cannot read the list of buffers: {(error.strerror or str(error)).lower()}",
            location=str(path),
        ) from error
    if len(data) > _MOST_BYTES:
        _refuse(path, 1, f"expected a file of at most {_MOST_BYTES} bytes, got a larger one")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(path, line, f"expected UTF-8, got the byte 0x{data[error.start]:02x}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, [cell.strip() for cell in row]
            line = reader.line_num + 1
    except csv.Error as error:
        _refuse(path, line, f"expected CSV, got something else: {error}")


def _buffer(path: Path, line: int, cells: Mapping[str, str]) -> Buffer:
    if not cells["id"]:
        _refuse(path, line, "expected an id, got an empty cell")
    lower = _integer(path, line, cells, "lower", -_TIMES)
    upper = _integer(path, line, cells, "upper", -_TIMES)
    size = _integer(path, line, cells, "size", 0)
    alignment = _integer(path, line, cells, "alignment", 1) if cells.get("alignment") else 1
    if lower >= upper:
        _refuse(path, line, f"expected lower < upper, got [{lower}, {upper})")
    return Buffer(cells["id"], size, alignment, lower, upper - 1)


def _integer(path: Path, line: int, cells: Mapping[str, str], name: str, least: int) -> int:
    text = cells[name]
    digits = text.removeprefix("-")
    # int() would take underscores, other digits than these, and time for very many of them.
    if not (digits.isascii() and digits.isdigit()):
        _refuse(path, line, f"expected an integer as {name}, got '{text[:40]}'")
    if len(digits) > 40 or not least <= int(text) <= _TIMES:
        _refuse(path, line, f"expected {name} between {least} and {_TIMES}, got {text[:40]}")
    return int(text)


def _refuse(path: Path, line: int, message: str) -> NoReturn:
    raise UserError(Code.BUFFERS, message, location=f"{path}:{line}")
