"""Weights for tests of the CUDA backend: stored as in a model file, and packed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infc.backends.cuda.kernels.packing import Layout, layout_for, pack, packed_bytes
from infc.ir.storage import STORAGE_TYPES
from infc.passes.codegen.panels import row_chunks


def stored_weights(name: str, n: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes that are a valid tensor of a storage type, with moderate scales."""
    rng = np.random.default_rng(seed)
    storage = STORAGE_TYPES[name]
    if storage.is_float:
        values = rng.standard_normal((n, k)).astype(np.float32)
        if name == "bf16":
            return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1)
        return values.astype("<f4" if name == "f32" else "<f2").view(np.uint8).reshape(-1)
    if storage.codebook is not None:
        # Every code that is a number, one after the other in each block of 32 columns.
        numbers = (32 * np.arange(n)[:, None] + np.arange(k)) % 254
        codes = (numbers % 127 | numbers // 127 << 7).astype(np.uint8)
        scales = rng.uniform(-0.1, 0.1, (n, -(-k // storage.group))).astype("<f4")
        return np.concatenate([codes, scales.view(np.uint8)], axis=1).reshape(-1)
    raw = rng.integers(0, 256, storage.size_bytes((n, k)), dtype=np.uint8)
    blocks = raw.reshape(-1, storage.block_bytes)
    for offset in storage.half_offsets:
        halves = rng.uniform(-0.1, 0.1, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw


def packed_weights(
    name: str, n: int, k: int, seed: int = 0
) -> tuple[Layout, NDArray[np.uint8], NDArray[np.float32]]:
    """Random weights of a storage type: their layout, packed, and their numbers [n, k]."""
    storage, layout = STORAGE_TYPES[name], layout_for(name)
    raw = stored_weights(name, n, k, seed)
    out = np.full(packed_bytes(layout, n, k), 0xFF, np.uint8)
    pack(layout, row_chunks(storage, raw, n, k), n, k, out)
    return layout, out, storage.dequantize(raw, (n, k))
