"""The tiled product with `mma`, in lockstep, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_products import Case, check_product

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.frame import Emitted
from infc.backends.cuda.kernels.product_spec import ProductSpec, Segment
from infc.backends.cuda.kernels.tile_mapping import (
    MMA,
    WARPGROUP,
    TileMapping,
    regimes,
    stages_bytes,
    tile_candidates,
)
from infc.backends.cuda.kernels.tiles import emit_tiles

_PLAIN = Case(("bf16",), (40,), 96, 37)
_SMALL, _PAIRED = (64, 32, 16, 3), (64, 64, 32, 3)
Shape = tuple[int, int, int, int]


def _check(case: Case, shape: Shape, ctas: int = 1, seed: int | None = None) -> None:
    def emit(b: GpuBuilder, name: str, spec: ProductSpec) -> Emitted:
        return emit_tiles(b, name, spec, TileMapping(MMA, *shape))

    check_product(case, emit, ctas=ctas, arch="sm_80", seed=seed)


@pytest.mark.parametrize(
    "storage", ["bf16", "f16", "f32", "q4_0", "q4_k", "q6_k", "q8_0", "f8_e4m3"]
)
def test_layouts(storage: str) -> None:
    k = 256 if storage.endswith("_k") else 96
    _check(replace(_PLAIN, storages=(storage,), k=k), _PAIRED)


@pytest.mark.parametrize("shape", [(128, 64, 32, 4), (128, 128, 64, 3), (256, 32, 32, 3)])
def test_shapes_of_tiles(shape: Shape) -> None:
    _check(replace(_PLAIN, ns=(272,), k=160, rows=131), shape, ctas=3)


@pytest.mark.parametrize("k", [32, 33, 320])
def test_numbers_along_k(k: int) -> None:
    """One stage half full, a row that ends within a block, more stages than there is room for."""
    _check(replace(_PLAIN, k=k), _SMALL)


def test_one_row_of_many_tiles() -> None:
    _check(replace(_PLAIN, ns=(200,), rows=1), _SMALL, ctas=3)


def test_more_blocks_than_tiles() -> None:
    _check(_PLAIN, _SMALL, ctas=5)


def test_no_rows() -> None:
    _check(replace(_PLAIN, rows=0), _SMALL)


@pytest.mark.parametrize("rows", [64, 65])
def test_few_of_many_rows(rows: int) -> None:
    """Up to 64 rows have smaller tiles of their own."""
    _check(replace(_PLAIN, rows=rows, max_rows=4096), (128, 128, 64, 3), ctas=2)


def test_warps_in_any_order() -> None:
    _check(replace(_PLAIN, ns=(80,), k=320), _SMALL, ctas=2, seed=1)


def test_segments_packed_alike_and_not() -> None:
    """One loop does the first and the last, the second has its own."""
    case = Case(("q4_0", "q8_0", "q4_0"), (72, 40, 24), 96, 37, bias=True)
    _check(case, _SMALL, ctas=3)


@pytest.mark.parametrize("combine", ["silu", "gelu_tanh"])
def test_gated_pair_to_abf16(combine: str) -> None:
    case = Case(("q4_0", "q4_0"), (48, 48), 64, 37, combine=combine, out="abf16", bias=True)
    _check(case, _PAIRED, ctas=2)


def test_gated_pair_packed_differently() -> None:
    _check(Case(("q8_0", "bf16"), (40, 40), 96, 20, combine="silu"), _PAIRED)


def test_abf16_rows_end_in_zeros() -> None:
    _check(replace(_PLAIN, ns=(33,), out="abf16", bias=True), _SMALL)


def test_softcap() -> None:
    _check(replace(_PLAIN, softcap=5.0), _SMALL)


def test_candidates() -> None:
    """Few rows get tiles of few rows; what cannot be an entry of its own does without `wgmma`."""
    layout = "m16k32.u4.g32"
    spec = ProductSpec(4096, (Segment(4096, layout),), max_rows=4096)
    best, few = (
        tile_candidates(s, "sm_90a", entry=True)[0] for s in (spec, replace(spec, max_rows=32))
    )
    assert (best.unit, best.features * best.tokens) == (WARPGROUP, 128 * 256)
    assert few.tokens == 32
    for arch, entry in (("sm_80", True), ("sm_90a", False), ("sm_100a", True)):
        assert {m.unit for m in tile_candidates(spec, arch, entry=entry)} == {MMA}
    pair = replace(spec, segments=spec.segments * 2, combine="silu")
    assert all(m.warp_features >= 32 for m in tile_candidates(pair, "sm_90a", entry=True))


def test_regimes_want_no_more_than_the_mapping() -> None:
    spec = ProductSpec(4096, (Segment(4096, "m16k32.bf16"),), max_rows=4096)
    for mapping in tile_candidates(spec, "sm_90a", entry=True):
        found = regimes(spec, mapping, "sm_90a")
        assert found[-1] == (4096, mapping)
        assert [rows for rows, _ in found] == sorted({rows for rows, _ in found})
        assert {other.unit for _, other in found} == {mapping.unit}
        assert all(other.warp_sums <= mapping.warp_sums for _, other in found)
        assert all(stages_bytes(spec, m) <= stages_bytes(spec, mapping) for _, m in found)
    small = replace(spec, max_rows=100)
    assert len(regimes(small, mapping, "sm_90a")) == 1


def test_mappings_that_no_block_can_run() -> None:
    for shape in ((64, 32, 32, 3), (64, 64, 24, 3), (64, 64, 32, 2)):
        with pytest.raises(ValueError, match=r"tokens|share|stages"):
            TileMapping(MMA, *shape)


def test_a_warp_of_a_pair_has_panels_of_both() -> None:
    with pytest.raises(ValueError, match="whole panels of 2 matrices"):
        _check(Case(("bf16", "bf16"), (32, 32), 32, 8, combine="silu"), _SMALL)
