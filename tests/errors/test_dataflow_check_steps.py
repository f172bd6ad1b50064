"""What the check of dataflow programs refuses of single steps: bounds, alignment and limits."""

from __future__ import annotations

import pytest
from checked_programs import SRAM0, TO_CORE_1, refused, text

ONE_STEP: list[tuple[str, str, str]] = [
    (
        "vector",
        "v_fill d=262080 x=0.0 n=32",
        "v_fill writes bytes 262080 to 262208 of the sram, which has 262144",
    ),
    (
        "load",
        "load.far0 d=0 a=67108863 m=1 n=65",
        "load reads bytes 4294967232 to 4294967297 of the far0, which has 4294967296",
    ),
    (
        "load",
        "load.far0 d=262080 a=0 m=2 n=64 stride_d=1 stride_a=1",
        "load writes bytes 262080 to 262145 of the sram, which has 262144",
    ),
    (
        "send",
        "store.far0 d=67108864 a=0 m=1 n=4",
        "store writes bytes 4294967296 to 4294967300 of the far0, which has 4294967296",
    ),
    (
        "send",
        f"send d=262140 a=0 m=1 n=8 {TO_CORE_1}",
        "send writes bytes 262140 to 262148 of the sram of its destinations, which has 262144",
    ),
    (
        "send",
        "send d=0 a=0 m=1 n=8 chips=0-0 cores=1-2,0-0",
        "expected destinations within 2 rows of cores, got 3",
    ),
    (
        "send",
        "send d=0 a=0 m=1 n=8 chips=1-1 cores=0-0,0-0",
        "expected destinations within 1 chips, got 2",
    ),
    (
        "vector",
        "post.remote semaphore=0 count=1 core=4",
        "expected a core below 4, got 4",
    ),
    ("load", "load.far1 d=0 a=0 m=1 n=4", "expected one of 1 far memories, got 1"),
    (
        "vector",
        "v_fill d=2 x=0.0 n=1",
        "expected addresses and strides that are multiples of 4, got 2",
    ),
    (
        "vector",
        "v_fill d=0 x=0.0 n=1025",
        "expected at most 1024 elements in a vector instruction, got 1025",
    ),
    (
        "matrix",
        "mm_f.f16 d=0 a=0 c=0 n=33 m=1 k=32",
        "expected at most 32 columns in a matrix instruction, got 33",
    ),
    (
        "matrix",
        "mm_f.f16 d=0 a=0 c=0 n=32 m=33 k=32",
        "expected at most 32 rows in a matrix instruction, got 33",
    ),
    (
        "matrix",
        "mm_q.q8g32 d=0 a=0 b=0 c=0 n=32 m=1 k=96",
        "expected at most 64 of depth in a matrix instruction, got 96",
    ),
    (
        "vector",
        "mov to=r1 a=-1\nv_fill d=0 x=0.0 n=r1",
        "expected n of at least 0, got -1",
    ),
    (
        "vector",
        "mov to=r1 a=16\nv_q8 d=0 b=64 a=128 n=r1",
        "expected elements in blocks of 32, got 16",
    ),
    (
        "vector",
        "post semaphore=0 count=65536",
        "expected at most 65535 posts of a semaphore, got 65536",
    ),
    ("load", "arg to=r1 index=64", "expected the index of one of 64 arguments, got 64"),
    ("load", "mov to=r1 a=-2\nloop count=r1\nendloop", "expected a count of at least 0, got -2"),
]


@pytest.mark.parametrize(("unit", "lines", "message"), ONE_STEP)
def test_a_step_that_is_not_allowed(unit: str, lines: str, message: str) -> None:
    at = 1 if lines.startswith("mov") else 0
    expected = text(message, f"op{at}", f"core 0, {unit} stream, instruction {at}")
    assert refused({f"0 {unit}": lines}, SRAM0) == expected


def test_the_first_step_is_reported() -> None:
    programs = {
        "1 vector": "v_fill d=262144 x=0.0 n=1",
        "0 vector": "v_fill d=0 x=0.0 n=1\nv_fill d=2 x=0.0 n=1\nv_fill d=262144 x=0.0 n=1",
    }
    assert "core 0, vector stream, instruction 1" in refused(programs)


def test_transfers_of_more_than_a_word_of_bytes() -> None:
    lines = "load.far0 d=0 a=0 m=2147483647 n=1 stride_d=2147483647 stride_a=2147483647"
    assert f"load reads bytes 0 to {2**60} of the far0" in refused({"0 load": lines})
