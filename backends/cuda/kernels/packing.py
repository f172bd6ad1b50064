"""How weights are packed for the GPU: blocks of 16 x 32 in the order of its matrix instructions.

A packed matrix [n, k] is a header of 128 bytes, then panels of 16 rows, each `ceil(k / 32)` blocks
in the order of k. Rows beyond n and columns beyond k are zeros. The header starts with an f32, a
power of two, that multiplies all scales (1 for floats), so that they fit f16; the rest is zero.

With lane = 4 r + c (r below 8, c below 4), a lane holds of a block the weights of rows r and r + 8
at k = 2c, 2c+1, 2c+8, 2c+9 (step 0) and 16 beyond those (step 1): the first operand of
`mma.m16n8k16`.

- f16, bf16: [step][lane][2c or 2c+8][row half h][2 numbers], so that a lane's 16 bytes are the four
  registers of a step; f32: [row half h][step][lane][4 numbers].
- Codes: the 16 codes of a lane are words of 4 bytes `u[h][p]`, where byte `2 t + s` is the code at
  k = 16 s + 8 p + 2 c + t. The bits of a code are cut, lowest first, into planes of 8, 4, 2 and 1
  bits, each [lane][16 codes]:
      8 bits   u[0][0], u[0][1], u[1][0], u[1][1]; codes less 128 as signed bytes
      4 bits   u[0][0] | u[0][1] << 4, u[1][0] | u[1][1] << 4
      2 bits   the sum of u[h][p] << 2 (2 h + p)
      1 bit    x = the sum of u[h][p] << (2 h + p) has four bits in each byte; those of
               bytes 0, 2, 1, 3 make the 16 bits
  Behind the planes lie, for each r, f16 scales [group][row r, row r + 8] and then, where there are
  minima, f16 minima alike. `value = multiplier * (scale * (code - zero_point) + min)`.
- Floats of 8 bits: as codes of 8 bits, but the bytes are the floats, and the scale of 128 numbers
  is there for each block. `value = multiplier * (scale * number)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError
from infc.ir.storage import E4M3, STORAGE_TYPES, Codes, StorageType
from infc.passes.codegen.panels import PANEL_ROWS, Scales, multiplier_of, panels_of

HEADER_BYTES = 128
BLOCK_K = 32
"""Columns of a block."""
LANES = 32

_FLOAT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}
_PLANES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Layout:
    """One way of packing.

    Attributes:
        kind: `int`; `f8`, codes that are floats of 8 bits; or the float `f32`, `f16` or `bf16`.
        bits: of a code (8, 6, 5, 4, 3 or 2), or of the float.
        group: codes that share a scale, along k: 32 or 16 (1 for floats).
        has_min: groups have a minimum too.
    """

    kind: str
    bits: int
    group: int = 1
    has_min: bool = False

    @property
    def name(self) -> str:
        """`m16k32.u4.g32.min`, `m16k32.bf16`: what dumps and buffers show."""
        if self.is_float:
            return f"m{PANEL_ROWS}k{BLOCK_K}.{self.kind}"
        minima = ".min" if self.has_min else ""
        codes = f"u{self.bits}" if self.kind == "int" else self.kind
        return f"m{PANEL_ROWS}k{BLOCK_K}.{codes}.g{self.group}{minima}"

    @property
    def is_float(self) -> bool:
        """Whether there are floats instead of codes."""
        return self.kind in _FLOAT_BYTES

    @property
    def zero_point(self) -> int:
        """The code that means zero: in the middle, or 0 where minima do its work. Of `f8` what is
        added before signs of bytes are flipped, so that the bytes stay as they are."""
        return 0 if self.has_min or self.is_float else 1 << (self.bits - 1)

    @property
    def groups(self) -> int:
        """Groups of a row in a block."""
        return BLOCK_K // self.group

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """The planes of the codes as (bits, bytes from the start of a block)."""
        made: list[tuple[int, int]] = []
        left, offset = self.bits, 0
        for bits in _PLANES:
            if left >= bits:
                made.append((bits, offset))
                left -= bits
                offset += LANES * 2 * bits
        return tuple(made)

    @property
    def scales_offset(self) -> int:
        """Bytes from the start of a block to its scales."""
        return PANEL_ROWS * BLOCK_K * self.bits // 8

    @property
    def scales_bytes(self) -> int:
        """Bytes of the scales and minima of rows r and r + 8; those of each r follow."""
        return 0 if self.is_float else 4 * self.groups * (2 if self.has_min else 1)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, a multiple of 32."""
        return self.scales_offset + PANEL_ROWS // 2 * self.scales_bytes

    def blocks(self, k: int) -> int:
        """Blocks of a panel."""
        if not self.is_float and k % BLOCK_K:
            raise InternalError(f"layout {self.name} needs rows of a multiple of 32, got {k}")
        return -(-k // BLOCK_K)

    def panel_bytes(self, k: int) -> int:
        """Bytes of 16 rows."""
        return self.blocks(k) * self.block_bytes


_EIGHT_BIT_FLOATS = Layout("f8", 8, BLOCK_K)


def layout_for(storage: StorageType | str) -> Layout:
    """The layout for weights of a storage type."""
    if isinstance(storage, str):
        storage = STORAGE_TYPES[storage]
    if storage.is_float:
        return Layout(storage.name, storage.bits)
    if storage.codebook is not None:
        return _EIGHT_BIT_FLOATS
    return Layout("int", storage.bits, storage.group, storage.has_min)


def layout_named(name: str) -> Layout:
    """The layout with this `name`."""
    if match := re.fullmatch(r"m16k32\.u([234568])\.g(16|32)(\.min)?", name):
        return Layout("int", int(match[1]), int(match[2]), match[3] is not None)
    if match := re.fullmatch(r"m16k32\.(bf16|f16|f32)", name):
        return Layout(match[1], 8 * _FLOAT_BYTES[match[1]])
    if name == _EIGHT_BIT_FLOATS.name:
        return _EIGHT_BIT_FLOATS
    raise InternalError(f"no packed layout is called `{name}`")


def packed_bytes(layout: Layout, n: int, k: int) -> int:
    """Bytes of a packed matrix [n, k], header included."""
    return HEADER_BYTES + panels_of(n) * layout.panel_bytes(k)


def pack(
    layout: Layout,
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
            them), float32 [rows, k] for a float layout.
        out: `packed_bytes(layout, n, k)` bytes, overwritten whole.
    """
    target = np.frombuffer(out, np.uint8) if isinstance(out, memoryview) else out
    size = packed_bytes(layout, n, k)
    if target.size != size:
        raise InternalError(f"packing needs {size} bytes of room, got {target.size}")
    blocks = target[HEADER_BYTES:].reshape(panels_of(n), layout.blocks(k), layout.block_bytes)
    scales = None if layout.is_float else Scales(n, k, layout.group, has_min=layout.has_min)
    row = 0
    for chunk in chunks:
        if isinstance(chunk, Codes) and chunk.codebook is not None:
            chunk = _with_scales_of_blocks(chunk)
        count = len(chunk.codes) if isinstance(chunk, Codes) else len(chunk)
        if row % PANEL_ROWS or row + count > n:
            raise InternalError(f"rows {row} .. {row + count} do not fit panels of [{n}, {k}]")
        part = blocks[row // PANEL_ROWS : panels_of(row + count)]
        if isinstance(chunk, Codes):
            _pack_codes(layout, chunk, part)
            if scales is not None:
                scales.take(chunk, row)
        else:
            _pack_floats(layout, chunk, part)
        row += count
    if row != n:
        raise InternalError(f"packing expected {n} rows, got {row}")
    multiplier = _write_scales(layout, scales, blocks) if scales else np.float32(1.0)
    header = target[:HEADER_BYTES]
    header[:] = 0
    header[:4] = np.array([multiplier], "<f4").view(np.uint8)


def _with_scales_of_blocks(source: Codes) -> Codes:
    """Floats of 8 bits with a scale for each block, where one was for several."""
    times, blocks = source.group // BLOCK_K, source.codes.shape[1] // BLOCK_K
    scales = source.scales.repeat(times, axis=1)[:, :blocks]
    return replace(source, scales=scales, group=BLOCK_K)


def _padded(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """Zeros appended up to 16 rows and 32 columns."""
    n, k = rows.shape
    if n % PANEL_ROWS == 0 and k % BLOCK_K == 0:
        return np.ascontiguousarray(rows)
    return np.pad(rows, ((0, -n % PANEL_ROWS), (0, -k % BLOCK_K)))


def _pack_codes(layout: Layout, source: Codes, blocks: NDArray[np.uint8]) -> None:
    if source.group != layout.group or (source.mins is not None) != layout.has_min:
        raise InternalError(f"codes in groups of {source.group} do not fit layout {layout.name}")
    codes = source.codes
    if layout.zero_point != source.zero_point:
        codes = codes + np.uint8(layout.zero_point - source.zero_point)
    even, odd = _by_parity(_padded(codes), blocks.shape[1])
    for bits, offset in layout.planes:
        plane = blocks[:, :, offset : offset + LANES * 2 * bits].view("<u2")
        _store_plane(plane, even, odd, bits)
        if bits < 8:
            even >>= np.uint64(bits)
            odd >>= np.uint64(bits)


def _by_parity(codes: NDArray[np.generic], blocks: int) -> list[NDArray[np.uint64]]:
    """Codes [rows, k] of t = 0 and of t = 1: each [p, panel, h, r, block], eight bytes that are the
    codes of c = 0 .. 3 and, for each, of step 0 and step 1. They are halves of the words `u`."""
    eights = codes.view("<u8").reshape(-1, 2, 8, blocks, 2, 2)  # panel h r block s p
    mask, byte = np.uint64(0x00FF00FF00FF00FF), np.uint64(8)
    even = np.empty((2, *eights.shape[:4]), np.uint64)
    odd = np.empty_like(even)
    for p in range(2):
        first, second = eights[..., 0, p], eights[..., 1, p]
        even[p] = (first & mask) | ((second & mask) << byte)
        odd[p] = ((first >> byte) & mask) | (second & ~mask)
    return [even, odd]


def _store_plane(
    plane: NDArray[np.uint16], even: NDArray[np.uint64], odd: NDArray[np.uint64], bits: int
) -> None:
    """Store the lowest `bits` bits of all codes as [panel, block, the u16 of a plane]."""
    count, blocks = plane.shape[:2]
    target = plane.reshape(count, blocks, 8, 4, -1)  # panel block r c and what follows
    if bits == 8:
        for t, half in enumerate((even, odd)):
            signed = _sixteens(half ^ np.uint64(0x8080808080808080))  # p panel h r block c
            for h in range(2):
                for p in range(2):
                    target[..., 4 * h + 2 * p + t] = signed[p, :, h].swapaxes(1, 2)
        return
    if bits == 4:
        for t, half in enumerate((even, odd)):
            low = half & np.uint64(0x0F0F0F0F0F0F0F0F)
            nibbles = _sixteens(low[0] | (low[1] << np.uint64(4)))  # panel h r block c
            for h in range(2):
                target[..., 2 * h + t] = nibbles[:, h].swapaxes(1, 2)
        return
    mask = np.uint64(0x0303030303030303 if bits == 2 else 0x0101010101010101)
    sums = []
    for half in (even, odd):
        low = half & mask
        both = low[0] | (low[1] << np.uint64(bits))
        total = both[:, 0] | (both[:, 1] << np.uint64(2 * bits))
        sums.append(_sixteens(total).swapaxes(1, 2))  # panel block r c
    if bits == 2:
        target[..., 0], target[..., 1] = sums
    else:
        target[..., 0] = sums[0] | (sums[1] << np.uint16(4))


def _sixteens(eights: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Each eight bytes as four u16: [..., block] -> [..., block, c]."""
    return eights[..., None].view("<u2")


def _write_scales(layout: Layout, scales: Scales, blocks: NDArray[np.uint8]) -> np.float32:
    """Write scales and minima into the blocks and return their multiplier."""
    multiplier = scales.divide()
    fields = _scale_fields(layout, blocks)
    for index, part in enumerate(scales.parts.values()):
        rows = part.reshape(len(blocks), 2, 8, -1, layout.groups)
        fields[..., index, :, :] = rows.transpose(0, 3, 2, 4, 1)
    return multiplier


def _scale_fields(layout: Layout, blocks: NDArray[np.uint8]) -> NDArray[np.generic]:
    """Scales and minima: a view [panel, block, r, scale or min, group, row half] of f16."""
    fields = blocks[:, :, layout.scales_offset :].view("<f2")
    return fields.reshape(*blocks.shape[:2], 8, -1, layout.groups, 2)


def _float_order(layout: Layout) -> tuple[int, ...]:
    """From panel h r block s p c to the order in memory; numbers go in pairs."""
    return (0, 3, 1, 4, 2, 6, 5) if layout.kind == "f32" else (0, 3, 4, 2, 6, 5, 1)


def _pack_floats(layout: Layout, rows: NDArray[np.float32], blocks: NDArray[np.uint8]) -> None:
    if not layout.is_float:
        raise InternalError(f"layout {layout.name} takes codes, got floats")
    numbers: NDArray[np.generic] = _padded(rows)
    if layout.kind == "bf16":
        numbers = _to_bf16(numbers)
    elif layout.kind == "f16":
        numbers = numbers.astype("<f2")
    pairs = numbers.view("<u8" if layout.kind == "f32" else "<u4")
    ordered = pairs.reshape(-1, 2, 8, blocks.shape[1], 2, 2, 4).transpose(_float_order(layout))
    blocks.view(pairs.dtype).reshape(ordered.shape)[...] = ordered


def _to_bf16(values: NDArray[np.generic]) -> NDArray[np.uint16]:
    """The upper halves, rounded to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    halves = bits.view("<u2").reshape(*bits.shape, 2)
    if not halves[..., 0].any():
        return np.ascontiguousarray(halves[..., 1])
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def unpack(layout: Layout, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
    """The numbers of a packed matrix, float32 [n, k]: what the kernels compute with."""
    blocks = packed[HEADER_BYTES:].reshape(panels_of(n), layout.blocks(k), layout.block_bytes)
    if layout.is_float:
        return _unpack_floats(layout, blocks, n, k)
    codes = _unpack_codes(layout, blocks)
    values: NDArray[np.float32]
    if layout.kind == "f8":
        values = E4M3[codes ^ np.uint8(layout.zero_point)]
    else:
        values = codes.astype(np.float32) - np.float32(layout.zero_point)
    # [panel, block, r, scale or min, group, h] -> [part, panel, h, r, block and group, 1]
    fields = _scale_fields(layout, blocks).astype(np.float32).transpose(3, 0, 5, 2, 1, 4)
    parts = np.ascontiguousarray(fields).reshape(len(fields), len(values), k // layout.group, 1)
    values = values.reshape(len(values), -1, layout.group)
    values *= parts[0]
    if layout.has_min:
        values += parts[1]
    values *= multiplier_of(packed)
    return values.reshape(-1, k)[:n]


def _unpack_codes(layout: Layout, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes of all rows of the panels: [16 panels, 32 blocks]."""
    words = np.zeros((*blocks.shape[:2], LANES, 4), np.uint32)
    shift = 0
    for bits, offset in layout.planes:
        plane = np.ascontiguousarray(blocks[:, :, offset : offset + LANES * 2 * bits])
        words |= _plane_words(plane.reshape(*words.shape[:3], 2 * bits), bits) << np.uint32(shift)
        shift += bits
    # panel block r c h p t s -> panel h r block s p c t
    codes = words.view(np.uint8).reshape(*blocks.shape[:2], 8, 4, 2, 2, 2, 2)
    ordered = codes.transpose(0, 4, 2, 1, 7, 5, 3, 6)
    return np.ascontiguousarray(ordered).reshape(len(blocks) * PANEL_ROWS, -1)


def _plane_words(plane: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """The inverse of `_plane`: [..., 2 * bits bytes] -> [..., 4 words]."""
    if bits == 8:
        return plane.view(np.uint32) ^ np.uint32(0x80808080)
    if bits == 4:
        halves = np.repeat(plane.view(np.uint32), 2, axis=-1)
        return (halves >> np.array([0, 4, 0, 4], np.uint32)) & np.uint32(0x0F0F0F0F)
    if bits == 2:
        return (plane.view(np.uint32) >> np.array([0, 2, 4, 6], np.uint32)) & np.uint32(0x03030303)
    nibbles = plane[..., [0, 1, 0, 1]] >> np.array([0, 0, 4, 4], np.uint8)
    spread = np.ascontiguousarray(nibbles).view(np.uint32)
    return (spread >> np.arange(4, dtype=np.uint32)) & np.uint32(0x01010101)


def _unpack_floats(
    layout: Layout, blocks: NDArray[np.uint8], n: int, k: int
) -> NDArray[np.float32]:
    kinds = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
    in_memory = blocks.view("<u8" if layout.kind == "f32" else "<u4")
    extents = (len(blocks), 2, 8, blocks.shape[1], 2, 2, 4)
    order = _float_order(layout)
    ordered = in_memory.reshape([extents[axis] for axis in order]).transpose(np.argsort(order))
    pairs = np.ascontiguousarray(ordered).reshape(len(blocks) * PANEL_ROWS, -1)
    numbers = pairs.view(kinds[layout.kind])[:n, :k]
    if layout.kind == "bf16":
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(numbers, np.float32)
