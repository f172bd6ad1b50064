"""Calls of one row and of many run differently in one program, and are predicted so."""

from __future__ import annotations

from typing import Any

import pytest

from infc.backends.cpu.mappings import kernel_candidates, kernel_work
from infc.backends.cpu.target import resolve_cpu
from infc.cost.kernels.threaded import HEAD_SEARCH, STREAM
from infc.driver.prediction import Turns, sized_work
from infc.ir.types import storage_bytes
from infc.target.backend import KernelSummary
from infc.target.schema import Target

STAGED = "staged-product"


def recorded(
    kind: str,
    rows: int,
    machine: Target,
    *,
    storage: str = "q8_0",
    typical: int | None = None,
    tile: tuple[int, int] = (4, 1),
    split: bool = False,
) -> dict[str, Any]:
    """A decode kernel for so many sequences, as an artifact's cost estimate has it."""
    n, k, usual = 4096, 1024, rows if typical is None else typical
    dtype = "int8" if storage == "q8_0" else "f32"
    kernel = KernelSummary(
        kind=kind,
        phase="decode",
        rows=rows,
        typical_rows=usual,
        operations={dtype: 2.0 * n * k * usual},
        weight_bytes=storage_bytes(storage, (n, k)),
        activation_bytes=0,
        shapes={},
        matrices=((n, k, storage),),
        split=split,
    )
    mapping = {**kernel_candidates(kernel, machine)[0], "row_tile": tile[0], "col_tile": tile[1]}
    work = kernel_work(kernel, mapping, machine)
    return {
        "kind": kind,
        "rows": usual,
        "bytes": work.bytes,
        "operations": work.operations,
        "barriers": work.barriers,
        "class": work.kernel,
        "sizes": work.sizes,
        "ways": [{"rows": w.rows, "kernel": w.kernel, "height": w.height} for w in work.ways],
    }


def call_of(kernel: dict[str, Any], rows: int) -> tuple[str, float]:
    """The class of a call of so many rows, and the rows that share a pass."""
    work = sized_work(kernel, "decode", Turns(1, rows, 100))
    assert work.sizes["rows"] == rows
    return work.kernel, work.sizes["height"]


AVX2, VNNI = (resolve_cpu(f"cpu:x86-64-v{level}") for level in (3, 4))


def test_products_stream_past_few_rows_and_are_staged_for_many() -> None:
    for usual in (1, 32):
        kernel = recorded("matmul", 32, AVX2, typical=usual)
        for rows, expected in ((1, (STREAM, 2)), (3, (STREAM, 2)), (4, (STAGED, 4))):
            assert call_of(kernel, rows) == expected


@pytest.mark.parametrize("usual", [1, 32])
def test_a_head_in_codes_is_searched_for_one_row(usual: int) -> None:
    kernel = recorded("head", 32, AVX2, typical=usual)
    assert call_of(kernel, 1)[0] == HEAD_SEARCH
    assert call_of(kernel, 2) == call_of(kernel, 32) == (STAGED, 1)


def test_rows_of_a_head_share_what_streams_past_them() -> None:
    kernel = recorded("head", 32, VNNI, tile=(8, 0))
    assert call_of(kernel, 1)[0] == HEAD_SEARCH
    assert call_of(kernel, 2) == call_of(kernel, 32) == (STREAM, 8)


def test_few_rows_of_a_head_of_floats_stream() -> None:
    kernel = recorded("head", 32, AVX2, storage="bf16", tile=(6, 2))
    assert call_of(kernel, 1)[0] == HEAD_SEARCH
    assert call_of(kernel, 2) == call_of(kernel, 5) == (STREAM, 2)
    assert call_of(kernel, 6) == ("float-product", 6)


def test_all_products_of_a_matrix_in_planes_are_made_as_a_head_makes_them() -> None:
    kernel = recorded("matmul", 32, AVX2, split=True)
    assert call_of(kernel, 1)[0] == STREAM
    assert call_of(kernel, 2) == (STAGED, 1)


@pytest.mark.parametrize("storage", ["q8_0", "bf16"])
def test_a_call_of_one_row_reads_less_of_a_head_than_one_of_several(storage: str) -> None:
    whole = storage_bytes(storage, (4096, 1024))
    alone = recorded("head", 1, AVX2, storage=storage)
    for usual in (1, 32):
        kernel = recorded("head", 32, AVX2, storage=storage, typical=usual)
        one, two = (sized_work(kernel, "decode", Turns(1, rows, 100)) for rows in (1, 2))
        assert one.bytes == alone["bytes"]
        assert sum(one.bytes.values()) < 0.6 * whole
        assert list(two.bytes.values()) == [whole]


def test_programs_for_one_sequence_have_one_way() -> None:
    assert not recorded("matmul", 1, AVX2)["ways"]
    assert not recorded("head", 1, AVX2)["ways"]
