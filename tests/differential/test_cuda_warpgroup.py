"""The tiled product with `wgmma`, in lockstep, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_products import Case, check_product

from infc.backends.cuda.codegen.builder import GpuBuilder
from infc.backends.cuda.kernels.frame import Emitted
from infc.backends.cuda.kernels.product_spec import ProductSpec
from infc.backends.cuda.kernels.tile_mapping import WARPGROUP, TileMapping
from infc.backends.cuda.kernels.tiles import emit_tiles

_PLAIN = Case(("bf16",), (136,), 96, 37)
_SMALL, _PAIRED = (128, 64, 16, 3), (256, 64, 32, 3)


def _check(
    case: Case, shape: tuple[int, int, int, int], ctas: int = 1, seed: int | None = None
) -> None:
    def emit(b: GpuBuilder, name: str, spec: ProductSpec) -> Emitted:
        return emit_tiles(b, name, spec, TileMapping(WARPGROUP, *shape))

    check_product(case, emit, ctas=ctas, arch="sm_90a", seed=seed)


@pytest.mark.parametrize("storage", ["bf16", "q4_0", "q4_k", "q6_k", "f8_e4m3"])
def test_layouts(storage: str) -> None:
    k = 256 if storage.endswith("_k") else 96
    _check(replace(_PLAIN, storages=(storage,), k=k), _SMALL)


@pytest.mark.parametrize("shape", [(128, 256, 16, 3), (256, 128, 32, 4)])
def test_shapes_of_tiles(shape: tuple[int, int, int, int]) -> None:
    _check(replace(_PLAIN, ns=(272,), k=160, rows=131), shape, ctas=3)


@pytest.mark.parametrize("k", [32, 33, 448])
def test_numbers_along_k(k: int) -> None:
    """One stage half full, a row that ends within a block, more stages than there is room for."""
    _check(replace(_PLAIN, k=k), _SMALL)


@pytest.mark.parametrize("rows", [64, 65])
def test_few_of_many_rows(rows: int) -> None:
    """Up to 64 rows have smaller tiles of their own."""
    _check(replace(_PLAIN, rows=rows, max_rows=4096), (128, 128, 16, 3), ctas=2)


@pytest.mark.parametrize("seed", [1, 2])
def test_warps_in_any_order(seed: int) -> None:
    """Two tiles, and stages that are overwritten while other warps may still read them."""
    _check(replace(_PLAIN, k=256), _SMALL, seed=seed)


def test_segments_packed_alike_and_not() -> None:
    case = Case(("q4_0", "q8_0", "q4_0"), (136, 40, 24), 96, 37, bias=True)
    _check(case, _SMALL, ctas=3)


def test_gated_pair_to_abf16() -> None:
    case = Case(("q4_0", "q4_0"), (144, 144), 64, 37, combine="silu", out="abf16", bias=True)
    _check(case, _PAIRED, ctas=2)
