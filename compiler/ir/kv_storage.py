"""What a KV cache of each dtype keeps of a key and a value.

- `f32`, `f16`, `bf16`: the nearest number, and the largest finite one beyond the range.
- `int8`: codes of magnitude up to 127 and scales: one for each 32 elements of a key, one for all of
  a value. A value's elements are alike in size, a key's are not: on Gemma 3 270M finer scales of
  keys halve the error of the logits, finer scales of values change nothing. A scale has the 8
  significant bits of bf16, so that codes times scale is exact in float32 and what was read from a
  cache is stored again as the same codes and scales.

Values in a cache are always finite: where a key or a value is not, the key becomes NaN. Whoever
sees the position then gets NaN, and whoever does not (weight 0) is not harmed by `0 * inf`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

KV_DTYPES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}
"""What a cache may hold, and the bytes of an element."""

KV_KEY_GROUP = 32
"""Elements of an `int8` key that share a scale; the last group of a head may be shorter."""

SCALE_BYTES = 2
"""Bytes of a scale."""

LARGEST_CODE = 127
SMALLEST_MAGNITUDE = 2.0**-100
"""A group whose elements are all smaller becomes zeros: its scale would have no inverse."""

LIMITS = {
    "f32": float(np.finfo(np.float32).max),
    "f16": 65504.0,
    "bf16": 2.0**128 - 2.0**120,
    "int8": 2.0**127,  # codes times scale stay finite
}
"""The largest magnitude each dtype keeps."""


@dataclass(frozen=True)
class StoredKV:
    """Keys and values as a cache keeps them.

    Attributes:
        keys, values: `[n, kv_heads, head_dim]`: float32, float16, the upper halves of float32 as
            uint16 (`bf16`), or int8.
        key_scales: float32 `[n, kv_heads, ceil(head_dim / 32)]`, of `int8` only.
        value_scales: float32 `[n, kv_heads]`, of `int8` only.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    key_scales: F32 | None = None
    value_scales: F32 | None = None


def position_bytes(dtype: str, head_dim: int) -> int:
    """Bytes of the key and the value of one head at one position, with their scales."""
    scales = -(-head_dim // KV_KEY_GROUP) + 1 if dtype == "int8" else 0
    return 2 * head_dim * KV_DTYPES[dtype] + scales * SCALE_BYTES


def store_kv(keys: F32, values: F32, dtype: str) -> StoredKV:
    """Round keys and values `[n, kv_heads, head_dim]` to a cache's dtype."""
    whole = np.isfinite(keys).all(axis=-1) & np.isfinite(values).all(axis=-1)
    poison = np.where(whole, np.float32(0.0), np.float32(np.nan))  # [n, kv_heads]
    keys, values = _limited(keys, dtype), _limited(values, dtype)
    if dtype == "int8":
        key_codes, key_scales = _quantize(keys, KV_KEY_GROUP)
        value_codes, value_scales = _quantize(values, values.shape[-1])
        key_scales += poison[..., None]
        return StoredKV(key_codes, value_codes, key_scales, value_scales[..., 0])
    keys = keys + poison[..., None]
    if dtype == "bf16":
        return StoredKV(_upper_half(keys), _upper_half(values))
    kind = np.float16 if dtype == "f16" else np.float32
    return StoredKV(keys.astype(kind), values.astype(kind))


def load_kv(stored: StoredKV) -> tuple[F32, F32]:
    """The numbers of what is stored, each `[n, kv_heads, head_dim]`."""
    if stored.key_scales is not None and stored.value_scales is not None:
        head_dim = stored.keys.shape[-1]
        of_element = np.repeat(stored.key_scales, KV_KEY_GROUP, axis=-1)[..., :head_dim]
        return stored.keys * of_element, stored.values * stored.value_scales[..., None]
    if stored.keys.dtype == np.uint16:
        return _from_upper_half(stored.keys), _from_upper_half(stored.values)
    return stored.keys.astype(np.float32), stored.values.astype(np.float32)


def round_to_bf16(x: F32) -> F32:
    """The nearest number with 8 significant bits, ties to even."""
    return _from_upper_half(_upper_half(x))


def _limited(x: F32, dtype: str) -> F32:
    limit = np.float32(LIMITS[dtype])
    limited: F32 = np.nan_to_num(np.clip(x, -limit, limit), nan=0.0)
    return limited


def _quantize(x: F32, group: int) -> tuple[NDArray[np.int8], F32]:
    """Codes of the shape of `x` and scales `[..., groups]` of finite numbers."""
    groups = -(-x.shape[-1] // group)
    missing = groups * group - x.shape[-1]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    grouped = padded.reshape(*x.shape[:-1], groups, group)
    largest = np.abs(grouped).max(axis=-1)
    counts = largest >= np.float32(SMALLEST_MAGNITUDE)
    scales = round_to_bf16(np.where(counts, largest * np.float32(1.0 / LARGEST_CODE), 0.0))
    inverse = np.where(counts, np.float32(1.0) / np.where(counts, scales, 1.0), 0.0)
    codes = np.rint(grouped * inverse[..., None].astype(np.float32)).astype(np.int8)
    return codes.reshape(*x.shape[:-1], groups * group)[..., : x.shape[-1]], scales


def _upper_half(x: F32) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    halves: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype(np.uint16)
    return halves


def _from_upper_half(halves: NDArray[np.uint16]) -> F32:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
