"""Packed weight layouts and the a8 form of activations, in NumPy."""

from dataclasses import replace

import numpy as np
import pytest

from infc.backends.cpu.kernels.layouts import (
    HEADER_BYTES,
    PackedLayout,
    layout_for,
    layout_named,
    pack,
    packed_bytes,
    unpack,
)
from infc.diagnostics import InternalError
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.passes.codegen.panels import multiplier_of, panels_of, row_chunks
from infc.reference.a8 import a8_offsets, a8_row_bytes, dequantize_a8, quantize_a8

EXACT = {"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f8_e4m3"}


def stored_weights(name: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """Random bytes that are a valid tensor of a storage type, with moderate scales."""
    rng = np.random.default_rng(seed)
    storage = STORAGE_TYPES[name]
    if storage.is_float:
        values = rng.standard_normal((n, k)).astype(np.float32)
        if name == "bf16":
            return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(-1)
        return values.astype("<f4" if name == "f32" else "<f2").view(np.uint8).reshape(-1)
    if storage.codebook is not None:
        codes = rng.integers(0, 127, (n, k), np.uint8) | rng.integers(0, 2, (n, k), np.uint8) << 7
        scales = rng.uniform(-0.1, 0.1, (n, -(-k // storage.group))).astype("<f4")
        return np.concatenate([codes, scales.view(np.uint8)], axis=1).reshape(-1)
    raw = rng.integers(0, 256, storage.size_bytes((n, k)), dtype=np.uint8)
    blocks = raw.reshape(-1, storage.block_bytes)
    for offset in storage.half_offsets:
        halves = rng.uniform(-0.1, 0.1, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return raw


def packed(name: str, n: int, k: int) -> tuple[PackedLayout, np.ndarray, np.ndarray]:
    storage, layout = STORAGE_TYPES[name], layout_for(name)
    raw = stored_weights(name, n, k)
    out = np.full(packed_bytes(layout, n, k), 0xFF, np.uint8)
    pack(layout, row_chunks(storage, raw, n, k), n, k, out)
    return layout, out, storage.dequantize(raw, (n, k))


@pytest.mark.parametrize("name", sorted(STORAGE_TYPES))
@pytest.mark.parametrize(("n", "k"), [(300, 256), (16, 512), (7, 256), (4096, 256)])
def test_unpack_gives_back_the_weights(name: str, n: int, k: int) -> None:
    layout, out, values = packed(name, n, k)
    got = unpack(layout, out, n, k)
    if name in EXACT:
        np.testing.assert_array_equal(got, values)
    else:
        # Their scales are products with more bits than f16 has: half a unit in the last of 11 bits
        # for the scale's part, as much for the minimum's; both are below the largest magnitude x 2.
        assert np.abs(got - values).max() <= 2.0**-11 * 2 * np.abs(values).max()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_float_weights_need_no_multiple_of_anything(name: str) -> None:
    layout, out, values = packed(name, 19, 37)
    np.testing.assert_array_equal(unpack(layout, out, 19, 37), values)
    rows = out[HEADER_BYTES:].reshape(panels_of(19), 37, 16, -1)
    assert not rows[1, :, 3:].any()


@pytest.mark.parametrize("k", [32, 160, 384])
def test_rows_of_scaled_floats_end_anywhere(k: int) -> None:
    layout, out, values = packed("f8_e4m3", 19, k)
    np.testing.assert_array_equal(unpack(layout, out, 19, k), values)
    assert layout.panel_bytes(k) == 16 * k + 64 * -(-k // 128)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_lines_hold_a_row_each(name: str) -> None:
    layout = replace(layout_for(name), lines=True)
    assert layout_named(layout.name) == layout
    values = packed(name, 19, 96)[2]
    out = np.zeros(packed_bytes(layout, 19, 96), np.uint8)
    pack(layout, [values], 19, 96, out)
    np.testing.assert_array_equal(unpack(layout, out, 19, 96), values)
    panels = out[HEADER_BYTES:].reshape(2, -1, 16, 64)
    assert not panels[1, :, 3:].any()
    line = values[17, -64 // layout.number_bytes :]
    if name == "bf16":
        order = [8 * piece + i for piece in range(4) for i in (0, 4, 1, 5, 2, 6, 3, 7)]
        kept = (panels[1, -1, 1].view("<u2").astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(kept, line[order])
    else:
        np.testing.assert_array_equal(panels[1, -1, 1].view(f"<f{layout.number_bytes}"), line)


@pytest.mark.parametrize("name", sorted(STORAGE_TYPES))
def test_names_round_trip(name: str) -> None:
    assert layout_named(layout_for(name).name) == layout_for(name)


def test_layout_of_one_chunk_is_as_documented() -> None:
    codes = np.arange(32, dtype=np.uint8)[None].repeat(16, 0)
    codes = (codes + np.arange(16, dtype=np.uint8)[:, None]) % 32  # [row, k]
    scales = np.full((16, 1), 0.5, np.float32)
    layout = layout_for("q5_0")
    out = np.zeros(packed_bytes(layout, 16, 32), np.uint8)
    pack(layout, [Codes(codes, 16, scales, None, 32)], 16, 32, out)
    chunk = out[HEADER_BYTES:]
    high, low = chunk[32:96].reshape(16, 4), chunk[96:].reshape(4, 16, 4)
    for row, k in ((0, 0), (3, 5), (15, 31), (9, 18)):
        step, byte = divmod(k, 4)
        nibble = (low[step // 2, row, byte] >> (4 * (step % 2))) & 15
        fifth = (high[row, byte] >> step) & 1
        assert nibble | fifth << 4 == codes[row, k]
    assert chunk[:32].view("<f2")[4] * multiplier_of(out) == 0.5


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1.0, 1e30])
def test_the_multiplier_makes_room_for_any_magnitude(magnitude: float) -> None:
    scales = np.array([[1.0], [2.0**-10]], np.float32) * np.float32(magnitude)
    codes = np.full((2, 32), 129, np.uint8)
    layout = layout_for("q8_0")
    out = np.zeros(packed_bytes(layout, 2, 32), np.uint8)
    pack(layout, [Codes(codes, 128, scales, None, 32)], 2, 32, out)
    assert np.frexp(multiplier_of(out))[0] == 0.5
    np.testing.assert_allclose(unpack(layout, out, 2, 32)[:, 0], scales[:, 0], rtol=2.0**-11)


def test_rows_that_do_not_fill_the_matrix_are_refused() -> None:
    layout = layout_for("f32")
    out = np.zeros(packed_bytes(layout, 32, 4), np.uint8)
    with pytest.raises(InternalError, match="expected 32 rows, got 16"):
        pack(layout, [np.zeros((16, 4), np.float32)], 32, 4, out)


def test_codes_of_another_kind_are_refused() -> None:
    layout = layout_for("q6_k")
    out = np.zeros(packed_bytes(layout, 16, 32), np.uint8)
    codes = Codes(np.zeros((16, 32), np.uint8), 8, np.zeros((16, 1), np.float32), None, 32)
    with pytest.raises(InternalError, match=r"do not fit layout n16\.u6\.g16"):
        pack(layout, [codes], 16, 32, out)


def test_a8_rounds_within_half_a_step() -> None:
    x = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    x[1, :32] = 0
    x[2, 32:64] = 1e-35
    rows = quantize_a8(x)
    assert rows.shape == (5, a8_row_bytes(96))
    assert a8_row_bytes(96) % 64 == 0
    step = np.abs(x.reshape(5, 3, 32)).max(2, keepdims=True) / 127
    error = np.abs(dequantize_a8(rows, 96) - x).reshape(5, 3, 32)
    assert (error <= step * 0.5001 + 1e-34).all()


def test_a8_sums_are_those_of_its_codes() -> None:
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    rows, offsets = quantize_a8(x), a8_offsets(64)
    codes = rows[:, :64].view(np.int8).astype(np.int32)
    sums = rows[:, offsets.sums : offsets.sums + 16].copy().view(np.int32)
    np.testing.assert_array_equal(sums, codes.reshape(3, 4, 16).sum(2))
    assert np.abs(codes).max() == 127
