"""How weights are packed for the CPU: 16 rows interleaved, so that a kernel reads one stream.

A packed matrix [n, k] is a header of 64 bytes and then panels of 16 rows, in order. Rows beyond n
are zeros.

- Float weights: a panel is `[k][16]` floats, or, in *lines*, `[k / numbers of a line][16]` lines of
  64 bytes, each of one row, so that a row can be fetched alone. Within a line of bf16 eight numbers
  lie in the order 0 4 1 5 2 6 3 7: the halves of 32 bits are numbers of the same place, four apart.
- Quantised weights: a panel is `k / group` chunks, each of them
      f16 scale[16]
      f16 min[16]              with minima only
      u8 high[16][4]           5 bits only: bit s is the fifth bit of step s
      u8 codes[group / 4][16][4]     6 and 8 bits: step s holds k = 4s .. 4s + 3 of each row
      u8 codes[group / 8][16][4]     4 and 5 bits: low nibbles are step 2s, high ones 2s + 1
  and `value = multiplier * (scale * (code - zero_point) + min)`.
- Floats of 8 bits have scales of their own: see `scaled_panels`.

The header starts with that multiplier, an f32 and a power of two; it lets scales of any magnitude
be stored as f16. The rest of the header is zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infc.backends.cpu.kernels.scaled_panels import (
    GROUP,
    pack_scaled,
    scaled_panel_bytes,
    unpack_scaled,
)
from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES, Codes, StorageType
from infc.passes.codegen.panels import PANEL_ROWS, Scales, multiplier_of, panels_of

HEADER_BYTES = 64
LINE_BYTES = 64

_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_SCALED = "f8"
_SCALES_BYTES = 2 * PANEL_ROWS
_HIGH_BYTES = 4 * PANEL_ROWS


@dataclass(frozen=True)
class PackedLayout:
    """One way of packing.

    Attributes:
        kind: `int`, or the float type `f32`, `f16`, `bf16` or `f8`.
        bits: of a code (8, 6, 5 or 4), or of the float.
        group: codes that share a scale, along k: 32 or 16 (128 for `f8`, 1 for other floats).
        has_min: groups have a minimum too.
        lines: of floats; k is a multiple of 32 then.
    """

    kind: str
    bits: int
    group: int = 1
    has_min: bool = False
    lines: bool = False

    @property
    def name(self) -> str:
        """`n16.u5.g32.min`, `n16.bf16`: what dumps and tuning keys show."""
        if self.is_float:
            return f"n{PANEL_ROWS}.{self.kind}" + (".lines" if self.lines else "")
        return f"n{PANEL_ROWS}.u{self.bits}.g{self.group}" + (".min" if self.has_min else "")

    @property
    def is_float(self) -> bool:
        """Whether there are floats instead of codes."""
        return self.kind != "int"

    @property
    def is_scaled(self) -> bool:
        """Whether there are floats of 8 bits, which have scales."""
        return self.kind == _SCALED

    @property
    def number_bytes(self) -> int:
        """Bytes of a float."""
        return _FLOAT_BYTES[self.kind]

    @property
    def zero_point(self) -> int:
        """The code that means zero: in the middle, or 0 where minima do its work."""
        return 0 if self.has_min or self.is_float else 1 << (self.bits - 1)

    @property
    def has_bytes(self) -> bool:
        """Whether each code has a byte of its own."""
        return not self.is_float and self.bits > 5

    @property
    def high_offset(self) -> int:
        """Bytes from the start of a chunk to the fifth bits."""
        return _SCALES_BYTES * (2 if self.has_min else 1)

    @property
    def codes_offset(self) -> int:
        """Bytes from the start of a chunk to the codes."""
        return self.high_offset + (_HIGH_BYTES if self.bits == 5 else 0)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk (quantised layouts)."""
        bits = 8 if self.has_bytes else 4
        return self.codes_offset + PANEL_ROWS * self.group * bits // 8

    def panel_bytes(self, k: int) -> int:
        """Bytes of 16 rows."""
        if self.is_scaled:
            return scaled_panel_bytes(k)
        if self.is_float:
            return PANEL_ROWS * k * _FLOAT_BYTES[self.kind]
        if k % 32:
            raise InternalError(f"layout {self.name} needs rows of a multiple of 32, got {k}")
        return k // self.group * self.chunk_bytes


def layout_for(storage: StorageType | str) -> PackedLayout:
    """The layout for weights of a storage type: the smallest that holds its codes exactly."""
    if isinstance(storage, str):
        storage = STORAGE_TYPES[storage]
    if storage.is_float:
        return PackedLayout(storage.name, storage.bits)
    if storage.codebook is not None:
        return PackedLayout(_SCALED, storage.bits, GROUP)
    return PackedLayout("int", max(storage.bits, 4), storage.group, storage.has_min)


def layout_named(name: str) -> PackedLayout:
    """The layout with this `name`; of a matrix with bounds behind it, that of the matrix."""
    if match := re.fullmatch(r"n16\.u(4|5|6|8)\.g(16|32)(\.min)?", name):
        return PackedLayout("int", int(match[1]), int(match[2]), match[3] is not None)
    if match := re.fullmatch(r"n16\.(bf16|f16|f32)(\.lines)?(\.bounds)?", name):
        return PackedLayout(match[1], 8 * _FLOAT_BYTES[match[1]], lines=match[2] is not None)
    if name == (scaled := PackedLayout(_SCALED, 8, GROUP)).name:
        return scaled
    raise InternalError(f"no packed layout is called `{name}`")


def packed_bytes(layout: PackedLayout, n: int, k: int) -> int:
    """Bytes of a packed matrix [n, k], header included."""
    return HEADER_BYTES + panels_of(n) * layout.panel_bytes(k)


def pack(
    layout: PackedLayout,
    chunks: Iterable[Codes | NDArray[np.float32]],
    n: int,
    k: int,
    out: NDArray[np.uint8] | memoryview,
) -> None:
    """Pack a matrix [n, k].

    Args:
        layout: of `out`.
        chunks: the rows in order; every chunk but the last holds a multiple of 16 of them. `Codes`
            for a quantised layout (with its group, codes that fit its bits, and minima where it has
            them) and for floats of 8 bits, float32 [rows, k] for other floats.
        out: `packed_bytes(layout, n, k)` bytes, overwritten whole.
    """
    target = np.frombuffer(out, np.uint8) if isinstance(out, memoryview) else out
    size = packed_bytes(layout, n, k)
    if target.size != size:
        raise InternalError(f"packing needs {size} bytes of room, got {target.size}")
    panels = target[HEADER_BYTES:].reshape(panels_of(n), layout.panel_bytes(k))
    scales = None if layout.is_float else Scales(n, k, layout.group, has_min=layout.has_min)
    row = 0
    for chunk in chunks:
        count = len(chunk.codes) if isinstance(chunk, Codes) else len(chunk)
        if row % PANEL_ROWS or row + count > n:
            raise InternalError(f"rows {row} .. {row + count} do not fit panels of [{n}, {k}]")
        part = panels[row // PANEL_ROWS : panels_of(row + count)]
        if isinstance(chunk, Codes) and layout.is_scaled:
            pack_scaled(chunk, part)
        elif isinstance(chunk, Codes):
            _pack_codes(layout, chunk, part)
            if scales is not None:
                scales.take(chunk, row)
        else:
            _pack_floats(layout, chunk, part)
        row += count
    if row != n:
        raise InternalError(f"packing expected {n} rows, got {row}")
    multiplier = _write_scales(layout, scales, panels) if scales else np.float32(1.0)
    header = target[:HEADER_BYTES]
    header[:] = 0
    header[:4] = np.array([multiplier], "<f4").view(np.uint8)


def _padded(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """Rows of zeros appended up to a multiple of 16."""
    missing = -len(rows) % PANEL_ROWS
    return np.pad(rows, ((0, missing), (0, 0))) if missing else np.ascontiguousarray(rows)


def _field(
    layout: PackedLayout, panels: NDArray[np.uint8], offset: int, shape: tuple[int, ...], dtype: str
) -> NDArray[np.generic]:
    """A part of every chunk: a writable view [panels, chunks, *shape]."""
    count, panel_bytes = panels.shape
    dense: list[int] = [np.dtype(dtype).itemsize]
    for extent in reversed(shape[1:]):
        dense.insert(0, dense[0] * extent)
    chunks = panels.reshape(-1)[offset:]
    return np.ndarray(
        (count, panel_bytes // layout.chunk_bytes, *shape),
        dtype,
        buffer=chunks.data,
        strides=(panel_bytes, layout.chunk_bytes, *dense),
    )


def _code_words(layout: PackedLayout) -> tuple[int, int]:
    """The shape of a chunk's codes in words of 4 codes: (steps or pairs of steps, rows)."""
    return layout.group // (4 if layout.has_bytes else 8), PANEL_ROWS


def _pack_codes(layout: PackedLayout, source: Codes, panels: NDArray[np.uint8]) -> None:
    if source.group != layout.group or (source.mins is not None) != layout.has_min:
        raise InternalError(f"codes in groups of {source.group} do not fit layout {layout.name}")
    count, chunks = len(panels), panels.shape[1] // layout.chunk_bytes
    codes = source.codes
    if layout.zero_point != source.zero_point:
        codes = codes + np.uint8(layout.zero_point - source.zero_point)
    # A word is 4 consecutive codes of a row; the words of 16 rows change places as a whole.
    words = _padded(codes).view("<u4").reshape(count, PANEL_ROWS, chunks, layout.group // 4)
    target = _field(layout, panels, layout.codes_offset, _code_words(layout), "<u4")
    if layout.has_bytes:
        target[...] = words.transpose(0, 2, 3, 1)
        return
    if layout.bits == 5:
        high = np.zeros((count, PANEL_ROWS, chunks), np.uint32)
        for step in range(layout.group // 4):
            high |= ((words[..., step] >> np.uint32(4)) & np.uint32(0x01010101)) << np.uint32(step)
        field = _field(layout, panels, layout.high_offset, (PANEL_ROWS,), "<u4")
        field[...] = high.transpose(0, 2, 1)
        words = words & np.uint32(0x0F0F0F0F)
    nibbles = words[..., 0::2] | (words[..., 1::2] << np.uint32(4))
    target[...] = nibbles.transpose(0, 2, 3, 1)


def _write_scales(layout: PackedLayout, scales: Scales, panels: NDArray[np.uint8]) -> np.float32:
    """Write scales and minima into the panels and return their multiplier."""
    multiplier = scales.divide()
    for index, part in enumerate(scales.parts.values()):
        field = _field(layout, panels, _SCALES_BYTES * index, (PANEL_ROWS,), "<f2")
        field[...] = part.reshape(len(panels), PANEL_ROWS, -1).transpose(0, 2, 1)
    return multiplier


def _pack_floats(
    layout: PackedLayout, rows: NDArray[np.float32], panels: NDArray[np.uint8]
) -> None:
    if not layout.is_float:
        raise InternalError(f"layout {layout.name} takes codes, got floats")
    blocks = _padded(rows).reshape(len(panels), PANEL_ROWS, -1)
    blocks = _in_lines(layout, blocks) if layout.lines else blocks.transpose(0, 2, 1)
    if layout.kind == "bf16":
        panels.view("<u2").reshape(blocks.shape)[...] = _to_bf16(blocks)
    else:
        panels.view("<f4" if layout.kind == "f32" else "<f2").reshape(blocks.shape)[...] = blocks


def _in_lines(layout: PackedLayout, blocks: NDArray[np.generic]) -> NDArray[np.generic]:
    """[panel, row, number] -> [panel, line, row, number within the line]."""
    count, rows, k = blocks.shape
    if layout.kind == "bf16":
        blocks = blocks.reshape(count, rows, k // 8, 2, 4).swapaxes(3, 4)
    return blocks.reshape(count, rows, -1, LINE_BYTES // layout.number_bytes).swapaxes(1, 2)


def _out_of_lines(layout: PackedLayout, lines: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The inverse of `_in_lines`, from any shape with its order."""
    numbers = LINE_BYTES // layout.number_bytes
    blocks = lines.reshape(-1, k // numbers, PANEL_ROWS, numbers).swapaxes(1, 2)
    if layout.kind == "bf16":
        blocks = blocks.reshape(-1, PANEL_ROWS, k // 8, 4, 2).swapaxes(3, 4)
    return blocks.reshape(-1, k)


def _to_bf16(values: NDArray[np.generic]) -> NDArray[np.uint16]:
    """The upper halves, rounded to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def unpack(layout: PackedLayout, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
    """The numbers of a packed matrix, float32 [n, k]: what the kernels compute with."""
    panels = packed[HEADER_BYTES:].reshape(panels_of(n), layout.panel_bytes(k))
    if layout.is_scaled:
        codebook = STORAGE_TYPES["f8_e4m3"].codebook
        if codebook is None:
            raise InternalError("8-bit floats have no codebook")
        return unpack_scaled(panels, k, codebook)[:n]
    if layout.is_float:
        return _unpack_floats(layout, panels, n, k)
    count, chunks = len(panels), k // layout.group
    words = np.array(_field(layout, panels, layout.codes_offset, _code_words(layout), "<u4"))
    if not layout.has_bytes:
        low = np.uint32(0x0F0F0F0F)
        words = np.stack([words & low, (words >> np.uint32(4)) & low], axis=3)
        words = words.reshape(count, chunks, layout.group // 4, PANEL_ROWS)
    if layout.bits == 5:
        high = np.array(_field(layout, panels, layout.high_offset, (PANEL_ROWS,), "<u4"))
        steps = np.arange(layout.group // 4, dtype=np.uint32)[:, None]
        words |= ((high[:, :, None] >> steps) & np.uint32(0x01010101)) << np.uint32(4)
    # [panel, chunk, step, row] -> [panel, row, chunk, step]: then 4 codes a word
    codes = np.ascontiguousarray(words.transpose(0, 3, 1, 2)).view(np.uint8)
    values = codes.reshape(count, PANEL_ROWS, chunks, layout.group).astype(np.float32)
    values -= np.float32(layout.zero_point)
    values *= _halves(layout, panels, 0)
    if layout.has_min:
        values += _halves(layout, panels, _SCALES_BYTES)
    values *= multiplier_of(packed)
    return values.reshape(count * PANEL_ROWS, k)[:n]


def _halves(layout: PackedLayout, panels: NDArray[np.uint8], offset: int) -> NDArray[np.float32]:
    """The f16 at `offset` of each chunk as [panel, row, chunk, 1]."""
    field = _field(layout, panels, offset, (PANEL_ROWS,), "<f2")
    return field.transpose(0, 2, 1)[..., None].astype(np.float32)


def _unpack_floats(
    layout: PackedLayout, panels: NDArray[np.uint8], n: int, k: int
) -> NDArray[np.float32]:
    if layout.kind == "bf16":
        values = (panels.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = panels.view("<f4" if layout.kind == "f32" else "<f2").astype(np.float32)
    if layout.lines:
        return np.ascontiguousarray(_out_of_lines(layout, values, k)[:n])
    blocks = values.reshape(len(panels), k, PANEL_ROWS).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks.reshape(-1, k)[:n])
