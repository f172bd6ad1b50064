"""How weights are packed for the GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.codegen.ptx import new_gpu_module
from infc.backends.cuda.kernels.packing import (
    BLOCK_K,
    HEADER_BYTES,
    layout_for,
    layout_named,
    pack,
    packed_bytes,
    unpack,
)
from infc.backends.cuda.kernels.weights import BlockReader, load_multiplier, row_piece
from infc.backends.cuda.lockstep import Device, launch
from infc.diagnostics import InternalError
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.passes.codegen.panels import PANEL_ROWS, multiplier_of, row_chunks
from infc.reference.abf16 import round_bf16
from tests.cuda_weights import packed_weights, stored_weights

EXACT = {"f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}


@pytest.mark.parametrize("name", sorted(STORAGE_TYPES))
@pytest.mark.parametrize(("n", "k"), [(300, 256), (7, 512), (2049, 256)])
def test_unpack_gives_back_the_weights(name: str, n: int, k: int) -> None:
    layout, out, values = packed_weights(name, n, k)
    got = unpack(layout, out, n, k)
    if name in EXACT:
        np.testing.assert_array_equal(got, values)
    else:
        # Their scales are products with more bits than f16 has: half a unit in the last of 11 bits
        # for the scale's part, as much for the minimum's; both are below the largest magnitude x 2.
        assert np.abs(got - values).max() <= 2.0**-11 * 2 * np.abs(values).max()


@pytest.mark.parametrize("name", [name for name in STORAGE_TYPES if name not in EXACT])
def test_codes_are_exact(name: str) -> None:
    storage = STORAGE_TYPES[name]
    layout = layout_for(name)
    codes = storage.unpack(stored_weights(name, 33, 256), (33, 256))
    ones = np.ones_like(codes.scales)
    mins = None if codes.mins is None else np.zeros_like(ones)
    plain = Codes(codes.codes, codes.zero_point, ones, mins, codes.group, codes.codebook)
    out = np.zeros(packed_bytes(layout, 33, 256), np.uint8)
    pack(layout, [plain], 33, 256, out)
    np.testing.assert_array_equal(unpack(layout, out, 33, 256), plain.values())


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_float_weights_need_no_multiple_of_anything(name: str) -> None:
    layout, out, values = packed_weights(name, 19, 37)
    np.testing.assert_array_equal(unpack(layout, out, 19, 37), values)
    padded = unpack(layout, out, 32, 64)
    assert not padded[19:].any()
    assert not padded[:, 37:].any()


@pytest.mark.parametrize("name", ["q4_k", "q8_0"])
def test_rows_beyond_the_last_are_zeros(name: str) -> None:
    layout, out, _ = packed_weights(name, 19, 256)
    assert not unpack(layout, out, 32, 256)[19:].any()


def test_a_lane_reads_the_operand_of_its_matrix_instruction() -> None:
    layout, out, values = packed_weights("bf16", PANEL_ROWS, BLOCK_K)
    numbers = out[HEADER_BYTES:].view("<u2").reshape(2, 32, 8).astype(np.uint32) << 16
    rows = np.array([0, 0, 8, 8, 0, 0, 8, 8])
    columns = np.array([0, 1, 0, 1, 8, 9, 8, 9])
    for lane in range(32):
        for step in range(2):
            expected = values[lane // 4 + rows, 16 * step + columns + 2 * (lane % 4)]
            np.testing.assert_array_equal(numbers[step, lane].view(np.float32), expected)
    assert layout.block_bytes == 1024


def test_nibbles_are_pairs_of_the_matrix_instruction() -> None:
    _, out, _ = packed_weights("q4_0", PANEL_ROWS, BLOCK_K)
    codes = STORAGE_TYPES["q4_0"].unpack(stored_weights("q4_0", 16, 32), (16, 32)).codes
    words = out[HEADER_BYTES : HEADER_BYTES + 256].view("<u4").reshape(32, 2)
    for lane in range(32):
        for half in range(2):
            row = codes[lane // 4 + 8 * half]
            for pair, start in enumerate((0, 8, 16, 24)):
                both = int(words[lane, half]) >> (4 * pair) & 0x000F000F
                column = start + 2 * (lane % 4)
                assert (both & 0xFFFF, both >> 16) == (row[column], row[column + 1])


@pytest.mark.parametrize("name", STORAGE_TYPES)
def test_layouts_have_names_and_aligned_blocks(name: str) -> None:
    layout = layout_for(name)
    assert layout_named(layout.name) == layout
    assert layout.block_bytes % 32 == 0
    if not layout.is_float:
        assert sum(bits for bits, _ in layout.planes) == STORAGE_TYPES[name].bits


def test_scales_beyond_f16_are_kept_by_the_multiplier() -> None:
    layout = layout_for("q8_0")
    codes = np.full((1, 32), 255, np.uint8)
    for scale in (2.0**40, 2.0**-60):
        source = Codes(codes, 128, np.full((1, 1), scale, np.float32), None, 32)
        out = np.zeros(packed_bytes(layout, 1, 32), np.uint8)
        pack(layout, [source], 1, 32, out)
        assert np.log2(multiplier_of(out)) % 1 == 0
        np.testing.assert_array_equal(unpack(layout, out, 1, 32), np.float32(127 * scale))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InternalError, match="no packed layout"):
        layout_named("m16k32.u7.g32")
    layout = layout_for("q4_0")
    with pytest.raises(InternalError, match="multiple of 32"):
        packed_bytes(layout, 16, 40)
    raw = stored_weights("q4_0", 16, 32)
    chunks = row_chunks(STORAGE_TYPES["q4_0"], raw, 16, 32)
    with pytest.raises(InternalError, match="of room"):
        pack(layout, chunks, 16, 32, np.zeros(17, np.uint8))
    with pytest.raises(InternalError, match="expected 32 rows"):
        pack(layout, chunks, 32, 32, np.zeros(packed_bytes(layout, 32, 32), np.uint8))


def of_lanes(values: np.ndarray, block: int) -> np.ndarray:
    """What the lanes of a warp hold of a block of [16, k]: [step][register][lane][2]."""
    lane = np.arange(32)[:, None]
    made = np.zeros((2, 4, 32, 2), values.dtype)
    for step in range(2):
        for register in range(4):
            row = lane // 4 + 8 * (register % 2)
            column = 32 * block + 16 * step + 8 * (register // 2) + 2 * (lane % 4) + np.arange(2)
            made[step, register] = values[row, column]
    return made


@pytest.mark.parametrize("name", STORAGE_TYPES)
def test_registers_of_a_block(name: str) -> None:
    """Fragments are exact, weights are rounded once, pieces of a row are what `unpack` gives."""
    block, row = 5, 9
    layout, out, _ = packed_weights(name, 16, 256)
    values = unpack(layout, out, 16, 256)
    device = Device()
    matrix, result = device.allocate(out.nbytes), device.allocate(4 * 32 * 64)
    device.write(matrix, out)
    with ir.Context(), ir.Location.unknown():
        whole = ir.Module.create()
        module = new_gpu_module(whole, "reading")
        b = GpuBuilder(module, "sm_90a")
        with b.kernel("read", [b.ptr, b.ptr, b.i32, b.i32], threads=32) as (matrix_, out_, r, n):
            address = b.at(matrix_, HEADER_BYTES)
            planes = BlockReader(b, layout).read(address, block * layout.block_bytes).fragments()
            address = b.at(address, b.mul(n, layout.block_bytes))
            weights = BlockReader(b, layout).weights(address, load_multiplier(b, matrix_))
            c = b.bit_and(b.lane(), 3)
            numbers = [x for steps in (*planes, weights) for step in steps for x in step]
            numbers += row_piece(b, layout, matrix_, 256, r, n, c)
            for index, number in enumerate(numbers):
                place = b.at(b.at(out_, b.mul(b.lane(), 4)), 128 * index)
                b.store(number, place, 4)
        arguments = [matrix, result, row, block]
        launch(module, "read", grid=1, threads=32, arguments=arguments, device=device)
    count = 8 * (2 + {"f16": 1, "f32": 2}.get(name, 0)) + 8
    got = device.read(result, np.uint32, (count, 32))
    pairs = got[:-8].view(np.uint16).astype(np.uint32).reshape(-1, 2, 4, 32, 2) << 16
    *planes, weights = pairs.view(np.float32)
    if layout.is_float:
        exact = values
    else:
        source = STORAGE_TYPES[name].unpack(stored_weights(name, 16, 256), (16, 256))
        exact = replace(source, scales=np.ones_like(source.scales), mins=None).values()
    np.testing.assert_array_equal(np.sum(planes, axis=0), of_lanes(exact, block))
    rounded = of_lanes(round_bf16(values), block)
    if layout.has_min:
        # A minimum and a multiple of its scale are added in f32: hardly ever the other neighbour.
        np.testing.assert_allclose(weights, rounded, rtol=2.0**-7)
        assert (weights == rounded).mean() > 0.98
    else:
        np.testing.assert_array_equal(weights, rounded)
    columns = 32 * block + np.array([0, 1, 8, 9, 16, 17, 24, 25])
    for lane in range(32):
        expected = values[row, columns + 2 * (lane % 4)]
        np.testing.assert_array_equal(got[-8:, lane].view(np.float32), expected)
