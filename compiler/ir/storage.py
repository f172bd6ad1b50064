"""Storage types: how the numbers of a weight lie in a model file, and what they mean.

A storage type cuts each row of a tensor into blocks of `block_elems` numbers, `block_bytes` bytes
each. A float type has blocks of one. A quantised type keeps small unsigned codes and, for every
`group` of them along the row, a scale and perhaps a minimum:

    value = scale * (code - zero_point) [+ min]

computed in float32 in that order: multiply, round, add, round. The block layouts are those of the
GGUF format (the structs `block_q4_0` ... `block_q6_K` of ggml), all fields little-endian.

`f8_e4m3` is not of that format: its codes are floats of 8 bits (sign, 4 bits of exponent, 3 of
mantissa, no infinity; "FP8 Formats for Deep Learning", arXiv 2209.05433), so a codebook says what
they mean, `value = scale * codebook[code]`. Behind the codes of a row lie its scales, a float32 for
each 128 codes and one for what is left. Models have a scale for a tensor, a row, or a block of
128 x 128; each is repeated where it counts, which is exact and takes 3% more bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import InternalError

_U8 = NDArray[np.uint8]
_F32 = NDArray[np.float32]

# Blocks are unpacked this many elements at a time: the temporaries (about ten bytes an element)
# then stay in the cache and do not grow with the tensor.
_CHUNK_ELEMS = 1 << 18
_SCALE_BYTES = 4
"""Of a scale behind the codes of a row."""


@dataclass(frozen=True)
class Codes:
    """A quantised matrix taken apart: `value = scales * (codes - zero_point) [+ mins]`.

    Attributes:
        codes: [n, k], unsigned, each below `2 ** bits` of its storage type.
        zero_point: the code that means zero (before `mins`).
        scales: [n, ceil(k / group)].
        mins: [n, k // group], added; None where the type has none.
        group: codes that share one scale, along k: 32 or 16, 128 with a codebook.
        codebook: what each code stands for instead of `code - zero_point`; None for that.
    """

    codes: _U8
    zero_point: int
    scales: _F32
    mins: _F32 | None
    group: int
    codebook: _F32 | None = None

    def values(self) -> _F32:
        """The numbers, [n, k]; bitwise what `StorageType.dequantize` gives."""
        n, k = self.codes.shape
        if self.codebook is not None:
            scales = self.scales.repeat(self.group, axis=1)[:, :k]
            with np.errstate(all="ignore"):
                numbers: _F32 = self.codebook[self.codes] * scales
            return numbers
        grouped = self.codes.reshape(n, k // self.group, self.group)
        with np.errstate(
            all="ignore"
        ):  # hostile scales may be infinite: that is not ours to warn of
            values = grouped.astype(np.float32)
            values -= np.float32(self.zero_point)
            values *= self.scales[:, :, None]
            if self.mins is not None:
                values += self.mins[:, :, None]
        return values.reshape(n, k)


# What a block decoder returns: codes [b, block_elems], scales and mins [b, block_elems // group].
_Decoded = tuple[_U8, _F32, _F32 | None]


@dataclass(frozen=True)
class StorageType:
    """One storage type.

    Attributes:
        name: its key in `STORAGE_TYPES`.
        block_elems: numbers a block; the last dimension is a multiple of it.
        block_bytes: bytes a block.
        is_float: blocks are single floats, there are no codes.
        bits: of a code, or of the float.
        group: codes that share a scale (1 for floats).
        zero_point: the code that means zero (0 for floats).
        has_min: groups have a minimum too.
        half_offsets: byte offsets in a block of its float16 fields, the only place where a
            quantised block can hold a NaN or an infinity.
        codebook: float32 [2 ** bits], what the codes stand for; None where `zero_point` says it.
            Then scales are float32 and lie behind the codes of each row.
    """

    name: str
    block_elems: int
    block_bytes: int
    is_float: bool
    bits: int
    group: int = 1
    zero_point: int = 0
    has_min: bool = False
    half_offsets: tuple[int, ...] = ()
    codebook: _F32 | None = None
    _decode: Callable[[_U8], _Decoded] | None = None

    def size_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape`; the last dimension must be whole blocks."""
        if not shape or shape[-1] % self.block_elems:
            raise InternalError(
                f"{self.name} needs rows of a multiple of {self.block_elems}, "
                f"got shape {tuple(shape)}"
            )
        scales = 0 if self.codebook is None else prod(shape[:-1]) * -(-shape[-1] // self.group)
        return prod(shape) // self.block_elems * self.block_bytes + _SCALE_BYTES * scales

    def dequantize(self, raw: _U8, shape: Sequence[int]) -> _F32:
        """The numbers as a fresh float32 array of `shape`.

        Args:
            raw: 1-D, `size_bytes(shape)` long.
            shape: outermost dimension first.
        """
        if self.codebook is not None:
            return self._dequantize_rows(raw, shape)
        blocks = self._blocks(raw, shape)
        if self.is_float:
            return _decode_floats(blocks, self.bits, self.name).reshape(tuple(shape))
        out = np.empty((len(blocks), self.block_elems), np.float32)
        for part in self._chunks(len(blocks)):
            out[part] = self._decode_part(blocks[part]).values()
        return out.reshape(tuple(shape))

    def unpack(self, raw: _U8, shape: Sequence[int]) -> Codes:
        """The codes, scales and minima of a quantised tensor.

        Args:
            raw: 1-D, `size_bytes(shape)` long.
            shape: leading dimensions are flattened into n; the last one is k.
        """
        if self.is_float:
            raise InternalError(f"{self.name} is a float type: it has no codes")
        if self.codebook is not None:
            return self._rows(self._whole(raw, shape), shape[-1])
        blocks = self._blocks(raw, shape)
        groups = self.block_elems // self.group
        codes = np.empty((len(blocks), self.block_elems), np.uint8)
        scales = np.empty((len(blocks), groups), np.float32)
        mins = np.empty((len(blocks), groups), np.float32) if self.has_min else None
        for part in self._chunks(len(blocks)):
            decoded = self._decode_part(blocks[part])
            codes[part], scales[part] = decoded.codes, decoded.scales
            if mins is not None:
                mins[part] = decoded.mins
        n, k = prod(shape[:-1]), shape[-1]
        return Codes(
            codes.reshape(n, k),
            self.zero_point,
            scales.reshape(n, k // self.group),
            None if mins is None else mins.reshape(n, k // self.group),
            self.group,
        )

    def _dequantize_rows(self, raw: _U8, shape: Sequence[int]) -> _F32:
        """`dequantize` where the scales lie behind the codes of a row."""
        rows = self._whole(raw, shape).reshape(-1, self.size_bytes(shape[-1:]))
        out = np.empty((len(rows), shape[-1]), np.float32)
        step = max(1, _CHUNK_ELEMS // shape[-1])
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            out[start : start + step] = self._rows(part, shape[-1]).values()
        return out.reshape(tuple(shape))

    def _rows(self, raw: _U8, k: int) -> Codes:
        """Codes and scales of whole rows, views where that is possible."""
        rows = raw.reshape(-1, self.size_bytes((k,)))
        scales = np.ascontiguousarray(rows[:, k:]).view("<f4").astype(np.float32)
        return Codes(rows[:, :k], 0, scales, None, self.group, self.codebook)

    def _blocks(self, raw: _U8, shape: Sequence[int]) -> _U8:
        """`raw` as [blocks, block_bytes]."""
        return self._whole(raw, shape).reshape(-1, self.block_bytes)

    def _whole(self, raw: _U8, shape: Sequence[int]) -> _U8:
        """`raw`, which must be the bytes of the shape."""
        size = self.size_bytes(shape)
        if raw.ndim != 1 or raw.dtype != np.uint8 or raw.size != size:
            raise InternalError(
                f"{self.name} of shape {tuple(shape)} needs {size} bytes in one dimension, "
                f"got {raw.dtype}{list(raw.shape)}"
            )
        return raw

    def _chunks(self, blocks: int) -> Iterator[slice]:
        step = _CHUNK_ELEMS // self.block_elems
        return (slice(start, start + step) for start in range(0, blocks, step))

    def _decode_part(self, blocks: _U8) -> Codes:
        """Codes of [b, block_bytes] with a block as a row: n = b, k = block_elems."""
        if self._decode is None:
            raise InternalError(f"{self.name} has no block decoder")
        with np.errstate(all="ignore"):
            codes, scales, mins = self._decode(blocks)
        return Codes(codes, self.zero_point, scales, mins, self.group)


def _decode_floats(blocks: _U8, bits: int, name: str) -> _F32:
    """[elements, bytes] of f32, f16 or bf16 to float32 [elements], always a copy."""
    flat = blocks.reshape(-1)
    if bits == 32:
        return flat.view("<f4").astype(np.float32)
    if name == "f16":
        with np.errstate(all="ignore"):
            return flat.view("<f2").astype(np.float32)
    # bfloat16 is the upper half of a float32.
    wide = flat.view("<u2").astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _half(blocks: _U8, offset: int) -> _F32:
    """The float16 field at `offset` of each block, as float32 [b, 1]."""
    return blocks[:, offset : offset + 2].view("<f2").astype(np.float32)


def _fields(packed: _U8, run: int, bits: int) -> _U8:
    """Bit fields of `bits` bits, lowest first, one after another over runs of `run` bytes.

    [b, bytes] -> [b, bytes * 8 // bits]: each run of bytes gives its lowest fields first, then its
    next fields, and so on; then comes the next run.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    fields = (runs >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _decode_q4_0(blocks: _U8) -> _Decoded:
    """d: f16, codes: 16 bytes of nibbles (low nibbles are elements 0..15)."""
    return _fields(blocks[:, 2:], 16, 4), _half(blocks, 0), None


def _decode_q4_1(blocks: _U8) -> _Decoded:
    """d, m: f16, codes as in q4_0."""
    return _fields(blocks[:, 4:], 16, 4), _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(high: _U8) -> _U8:
    """[b, 4] bytes holding bit i for element i -> [b, 32] of 0 or 16."""
    return np.unpackbits(high, axis=1, bitorder="little") << np.uint8(4)


def _decode_q5_0(blocks: _U8) -> _Decoded:
    """d: f16, fifth bits: 4 bytes, low four bits as in q4_0."""
    codes = _fields(blocks[:, 6:], 16, 4) | _fifth_bits(blocks[:, 2:6])
    return codes, _half(blocks, 0), None


def _decode_q5_1(blocks: _U8) -> _Decoded:
    """d, m: f16, fifth bits: 4 bytes, low four bits as in q4_0."""
    codes = _fields(blocks[:, 8:], 16, 4) | _fifth_bits(blocks[:, 4:8])
    return codes, _half(blocks, 0), _half(blocks, 2)


def _decode_q8_0(blocks: _U8) -> _Decoded:
    """d: f16, 32 int8; the code is the int8 + 128."""
    return blocks[:, 2:] ^ np.uint8(0x80), _half(blocks, 0), None


def _scales_and_mins(packed: _U8) -> tuple[_F32, _F32]:
    """The eight 6-bit scales and eight 6-bit minima of a q4_k or q5_k block.

    Twelve bytes [b, 12]: scales 0..3 and minima 0..3 are the low six bits of bytes 0..3 and 4..7;
    of scales 4..7 the low four bits are the low nibbles of bytes 8..11 and the high two the high
    bits of bytes 0..3; of minima 4..7 the high nibbles, and the high bits of bytes 4..7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)], axis=1)
    mins = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _decode_q4_k(blocks: _U8) -> _Decoded:
    """d, dmin: f16, 12 bytes of scales and minima, 128 bytes of nibbles in runs of 32."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = _fields(blocks[:, 16:], 32, 4)
    return codes, _half(blocks, 0) * scales, -(_half(blocks, 2) * mins)


def _decode_q5_k(blocks: _U8) -> _Decoded:
    """As q4_k; before the nibbles 32 bytes of fifth bits (bit g of byte i: element i, group g)."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = _fields(blocks[:, 48:], 32, 4) | (_fields(blocks[:, 16:48], 32, 1) << np.uint8(4))
    return codes, _half(blocks, 0) * scales, -(_half(blocks, 2) * mins)


def _decode_q6_k(blocks: _U8) -> _Decoded:
    """128 bytes of low nibbles in runs of 64, 64 of high pairs in runs of 32, 16 int8 scales, d."""
    codes = _fields(blocks[:, 0:128], 64, 4) | (_fields(blocks[:, 128:192], 32, 2) << np.uint8(4))
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return codes, _half(blocks, 208) * scales, None


def _decode_q3_k(blocks: _U8) -> _Decoded:
    """32 bytes of third bits, 64 of low pairs, 12 of sixteen 6-bit scales (zero at 32), d: f16."""
    codes = _fields(blocks[:, 32:96], 32, 2) | (_fields(blocks[:, 0:32], 32, 1) << np.uint8(2))
    low = _fields(blocks[:, 96:104], 8, 4)
    high = _fields(blocks[:, 104:108], 4, 2) << np.uint8(4)
    scales = (low | high).astype(np.float32) - np.float32(32)
    return codes, _half(blocks, 108) * scales, None


def _decode_q2_k(blocks: _U8) -> _Decoded:
    """16 bytes (low nibble scale, high nibble minimum), 64 of pairs in runs of 32, d, dmin: f16."""
    packed = blocks[:, 0:16]
    scales = _half(blocks, 80) * (packed & 0x0F).astype(np.float32)
    mins = -(_half(blocks, 82) * (packed >> 4).astype(np.float32))
    return _fields(blocks[:, 16:80], 32, 2), scales, mins


def _floating(name: str, bits: int) -> StorageType:
    return StorageType(name, 1, bits // 8, is_float=True, bits=bits)


def _quantised(
    name: str,
    block: tuple[int, int],
    bits: int,
    group: int,
    zero_point: int,
    half_offsets: tuple[int, ...],
    decode: Callable[[_U8], _Decoded],
) -> StorageType:
    """A quantised type; `block` is (elements, bytes); with a minimum where the zero point is 0."""
    return StorageType(
        name,
        block[0],
        block[1],
        is_float=False,
        bits=bits,
        group=group,
        zero_point=zero_point,
        has_min=zero_point == 0,
        half_offsets=half_offsets,
        _decode=decode,
    )


def _e4m3() -> _F32:
    """The codebook of 8-bit floats with 4 bits of exponent, bias 7: 2^-9 up to 448."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.ldexp(np.where(exponent, mantissa + 8, mantissa), np.maximum(exponent, 1) - 10)
    numbers: _F32 = np.where(codes < 0x80, magnitude, -magnitude).astype(np.float32)
    numbers[codes & 0x7F == 0x7F] = np.nan
    numbers.setflags(write=False)
    return numbers


E4M3 = _e4m3()
"""What each code of `f8_e4m3` stands for, float32 [256]; 0x7f and 0xff are NaN."""

STORAGE_TYPES: Mapping[str, StorageType] = MappingProxyType(
    {
        storage.name: storage
        for storage in (
            _floating("f32", 32),
            _floating("f16", 16),
            _floating("bf16", 16),
            StorageType("f8_e4m3", 32, 32, is_float=False, bits=8, group=128, codebook=E4M3),
            _quantised("q4_0", (32, 18), 4, 32, 8, (0,), _decode_q4_0),
            _quantised("q4_1", (32, 20), 4, 32, 0, (0, 2), _decode_q4_1),
            _quantised("q5_0", (32, 22), 5, 32, 16, (0,), _decode_q5_0),
            _quantised("q5_1", (32, 24), 5, 32, 0, (0, 2), _decode_q5_1),
            _quantised("q8_0", (32, 34), 8, 32, 128, (0,), _decode_q8_0),
            _quantised("q2_k", (256, 84), 2, 16, 0, (80, 82), _decode_q2_k),
            _quantised("q3_k", (256, 110), 3, 16, 4, (108,), _decode_q3_k),
            _quantised("q4_k", (256, 144), 4, 32, 0, (0, 2), _decode_q4_k),
            _quantised("q5_k", (256, 176), 5, 32, 0, (0, 2), _decode_q5_k),
            _quantised("q6_k", (256, 210), 6, 16, 32, (208,), _decode_q6_k),
        )
    }
)
"""Every storage type infc reads, by name."""
