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


@pytest.fixture(scope="module")
def machine() -> Target:
    return resolve_cpu("cpu:x86-64-v3")


def recorded(kind: str, rows: int, machine: Target) -> dict[str, Any]:
    """A decode kernel for so many sequences, as an artifact's cost estimate has it."""
    n, k = 4096, 1024
    kernel = KernelSummary(
        kind=kind,
        phase="decode",
        rows=rows,
        typical_rows=rows,
        operations={"int8": 2.0 * n * k * rows},
        weight_bytes=storage_bytes("q8_0", (n, k)),
        activation_bytes=0,
        shapes={},
        matrices=((n, k, "q8_0"),),
    )
    tiles = (each for each in kernel_candidates(kernel, machine) if each["row_tile"] == 4)
    work = kernel_work(kernel, next(tiles), machine)
    return {
        "kind": kind,
        "rows": rows,
        "bytes": work.bytes,
        "operations": work.operations,
        "barriers": work.barriers,
        "class": work.kernel,
        "sizes": work.sizes,
        "ways": [{"rows": w.rows, "kernel": w.kernel, "height": w.height} for w in work.ways],
    }


@pytest.mark.parametrize(
    ("kind", "rows", "expected", "height"),
    [
        ("matmul", 1, STREAM, 2),
        ("matmul", 3, STREAM, 2),
        ("matmul", 4, STAGED, 4),
        ("matmul", 32, STAGED, 4),
        ("head", 1, HEAD_SEARCH, 1),
        ("head", 2, STAGED, 1),
        ("head", 32, STAGED, 1),
    ],
)
def test_a_call_is_of_the_class_that_runs(
    machine: Target, kind: str, rows: int, expected: str, height: int
) -> None:
    work = sized_work(recorded(kind, 32, machine), "decode", Turns(1, rows, 100))
    assert (work.kernel, work.sizes["height"], work.sizes["rows"]) == (expected, height, rows)


def test_one_row_of_a_head_for_many_reads_as_much_as_of_one_for_one(machine: Target) -> None:
    alone, one_of_many = (
        sized_work(recorded("head", rows, machine), "decode", Turns(1, 1, 100)) for rows in (1, 32)
    )
    planes = ("first_bytes", "second_bytes", "whole_bytes")
    assert [alone.sizes[name] for name in planes] == [one_of_many.sizes[name] for name in planes]
    assert alone.kernel == one_of_many.kernel


def test_programs_for_one_sequence_have_one_way(machine: Target) -> None:
    assert not recorded("matmul", 1, machine)["ways"]
    assert not recorded("head", 1, machine)["ways"]
