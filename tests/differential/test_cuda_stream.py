"""The streamed product of the CUDA backend, executed in lockstep, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.cuda.kernels.product_spec import ProductSpec
from infc.backends.cuda.kernels.ring import Runs
from infc.backends.cuda.kernels.stream_shape import StreamShape
from infc.ir.storage import STORAGE_TYPES
from infc.reference.abf16 import round_bf16
from tests.cuda_streams import Operands, operands, run_stream, stream_spec


def expected(spec: ProductSpec, given: Operands) -> list[NDArray[np.float64]]:
    """The outputs in float64, of rows as abf16 holds them."""
    x = round_bf16(given.x).astype(np.float64)
    sums = []
    for weights, bias in zip(given.weights, given.biases, strict=True):
        sums.append(x @ weights.T.astype(np.float64) + (0.0 if bias is None else bias))
    if spec.combine is not None:
        gate, up = sums
        cubic = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        u = gate if spec.combine == "silu" else 2 * cubic
        sums = [gate / (1 + np.exp(-u)) * up]
    if spec.softcap is not None:
        sums = [spec.softcap * np.tanh(value / spec.softcap) for value in sums]
    return sums


def check(spec: ProductSpec, given: Operands, got: list[NDArray[np.float32]]) -> None:
    """f32 outputs are right to the rounding of f32 sums, abf16 ones to that of bf16."""
    for made, wanted in zip(got, expected(spec, given), strict=True):
        scale = np.abs(wanted).max()
        tolerance = 2.0**-8 if spec.out == "abf16" else 1e-5
        np.testing.assert_allclose(made, wanted, rtol=tolerance, atol=tolerance * scale / 16)


@pytest.mark.parametrize(
    ("name", "arch"),
    [*((name, "sm_90a") for name in STORAGE_TYPES), ("q4_k", "sm_80"), ("bf16", "sm_80")],
)
def test_products_with_every_storage_type(name: str, arch: str) -> None:
    k, rows = (256, 5) if arch == "sm_80" else (512, 1)
    segments = [(name, 40)]
    spec = stream_spec(k, segments, max_rows=rows)
    given = operands(k, segments, rows)
    check(spec, given, run_stream(spec, given, arch))


@pytest.mark.parametrize("k", [1, 32, 50, 64, 96, 640])
def test_lengths_of_rows(k: int) -> None:
    segments = [("bf16" if k % 32 else "q5_1", 20)]
    spec = stream_spec(k, segments, max_rows=2)
    given = operands(k, segments, 2)
    check(spec, given, run_stream(spec, given, slots=3, slot_bytes=8192))


@pytest.mark.parametrize("rows", [1, 2, 5, 9, 17, 32])
def test_as_many_tiles_as_there_are_rows(rows: int) -> None:
    segments = [("q4_1", 16)]
    spec = stream_spec(96, segments, max_rows=32)
    given = operands(96, segments, rows)
    check(spec, given, run_stream(spec, given))


@pytest.mark.parametrize(
    ("names", "combine", "out"),
    [
        (("q4_0", "q4_0"), "silu", "abf16"),
        (("q8_0", "f16"), "gelu_tanh", "abf16"),
        (("q4_0", "q4_0"), "gelu_tanh", "f32"),
    ],
)
def test_gated_pairs(names: tuple[str, str], combine: str, out: str) -> None:
    segments = [(name, 40) for name in names]
    spec = stream_spec(64, segments, max_rows=9, combine=combine, out=out, bias=True)
    given = operands(64, segments, 9, bias=True)
    given.x *= 0.1
    check(spec, given, run_stream(spec, given))


@pytest.mark.parametrize("out", ["f32", "abf16"])
def test_several_outputs_packed_in_several_ways(out: str) -> None:
    segments = [("q4_k", 48), ("q4_k", 20), ("q6_k", 20), ("q2_k", 16)]
    spec = stream_spec(256, segments, max_rows=3, out=out, bias=True)
    given = operands(256, segments, 3, bias=True)
    check(spec, given, run_stream(spec, given, first=5))


def test_softcap() -> None:
    segments = [("q8_0", 40)]
    spec = stream_spec(64, segments, max_rows=1, softcap=2.0)
    given = operands(64, segments, 1)
    check(spec, given, run_stream(spec, given))


def test_blocks_and_neighbours_change_no_bit() -> None:
    segments = [("q4_k", 40), ("q6_k", 40)]
    given = operands(512, segments, 9)
    spec = stream_spec(512, segments, max_rows=16)
    wanted = run_stream(spec, given, ctas=1)
    for ctas, first, seed in ((2, 3, None), (7, 1, None), (2, 0, 1)):
        got = run_stream(spec, given, ctas=ctas, first=first, seed=seed)
        for made, whole in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(made, whole)
    alone = Operands(given.x[4:5], given.packed, given.weights, given.biases)
    got = run_stream(spec, alone, ctas=2)
    for made, whole in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(made, whole[4:5])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_warps_in_any_order(arch: str) -> None:
    segments = [("q5_0", 50)]
    spec = stream_spec(640, segments, max_rows=1)
    given = operands(640, segments, 1)
    check(spec, given, run_stream(spec, given, arch, ctas=1, seed=3))


def test_runs_cover_a_panel() -> None:
    for blocks in (1, 7, 8, 20, 64, 100, 448, 1000):
        for block_bytes in (288, 544, 1024, 2048):
            for slot_bytes in (16384, 32768):
                runs = Runs.of(blocks, block_bytes, slot_bytes, blocks)
                assert runs.size * (runs.count - 1) + runs.last == blocks
                assert 0 < runs.last <= runs.size <= slot_bytes // block_bytes
                assert runs.count == 1 or runs.size % 8 == 0
    assert Runs.of(128, 320, 20480, 128) == Runs(64, 2, 64, 1, 128)
    assert Runs.of(448, 320, 20480, 448) == Runs(64, 7, 64, 1, 448)
    assert Runs.of(448, 320, 20480, 128) == Runs(64, 2, 64, 4, 64)
    assert Runs.of(20, 544, 20480, 20) == Runs(20, 1, 20, 1, 20)
    assert Runs.of(2, 544, 1152, 2) == Runs(2, 1, 2, 1, 2)
    with pytest.raises(ValueError, match="8 blocks"):
        Runs.of(20, 544, 4096, 20)


@pytest.mark.parametrize(("arch", "ctas", "rows"), [("sm_80", 1, 10), ("sm_90a", 2, 30)])
def test_rows_in_parts(arch: str, ctas: int, rows: int) -> None:
    segments = [("q4_1", 40), ("q2_k", 20)]
    spec = stream_spec(1280, segments, max_rows=32)
    assert StreamShape(spec).parts == 2
    given = operands(1280, segments, rows)
    check(spec, given, run_stream(spec, given, arch, ctas=ctas, first=1, slots=3, slot_bytes=9216))


def test_parts_and_slots_change_no_bit() -> None:
    """A row that needs no parts, and the same row among those that do."""
    segments = [("q5_1", 20)]
    spec = stream_spec(4640, segments, max_rows=8)
    whole = StreamShape(spec).whole
    assert (StreamShape(spec).parts, whole and whole.spec.max_rows) == (2, 7)
    given = operands(4640, segments, 8)
    (among,) = run_stream(spec, given, ctas=1)
    check(spec, given, [among])
    alone = Operands(given.x[7:], given.packed, given.weights, given.biases)
    for slot_bytes in (4096, 13312):
        (got,) = run_stream(spec, alone, ctas=1, slot_bytes=slot_bytes)
        np.testing.assert_array_equal(got, among[7:])


def test_gated_pairs_of_rows_in_parts() -> None:
    segments = [("q5_0", 20), ("f16", 20)]
    spec = stream_spec(4640, segments, max_rows=8, combine="silu", out="abf16")
    assert StreamShape(spec).parts == 2
    given = operands(4640, segments, 8)
    given.x *= 0.01
    check(spec, given, run_stream(spec, given, ctas=1))


def test_shared_memory_is_bounded() -> None:
    for k in (896, 4096, 14336, 28672):
        for rows in (1, 8, 16, 32):
            spec = stream_spec(k, [("q4_k", 4096), ("q4_k", 4096)], max_rows=rows, combine="silu")
            shape = StreamShape(spec)
            assert shape.work_bytes < 128 * 1024
            assert (shape.parts - 1) * shape.part_blocks < spec.blocks
    with pytest.raises(ValueError, match="up to 32 rows"):
        StreamShape(stream_spec(64, [("q8_0", 16)], max_rows=33))
