"""The message about what fits a memory, and the arithmetic behind it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infc.diagnostics import InternalError, UserError
from infc.memory.fit import fit_report

GIB = 2**30
# Llama-3.1-8B in bf16: 8 kv heads of 128, 32 layers, keys and values.
POSITION = 2 * 2 * 8 * 128 * 32


def test_what_fits_says_how_much_more_would() -> None:
    report = fit_report(80 * GIB, 15 * GIB, POSITION, 0, 8192, 16)
    assert report.fits
    assert report.message == (
        "fits with context 8192 and batch 16: 31 GiB of 80 GiB; room for context 33280 or batch 65"
    )


@pytest.mark.parametrize(
    ("arguments", "context", "limit", "message"),
    [
        (
            (4096, 2048, 2, 0, 99, 1, 512),
            512,
            "model",
            "2.19 KiB of 4 KiB; room for all of the model's 512 positions or batch 10",
        ),
        (
            (4096, 2048, 2, 0, 99, 1, 2000),
            1024,
            "memory",
            "2.19 KiB of 4 KiB; room for context 1024 or batch 10",
        ),
        (
            (4096, 2048, 2, 0, 99, 1, 64),
            64,
            "model",
            "2.19 KiB of 4 KiB; room for batch 10; the model was trained for context 64",
        ),
        (
            (100, 50, 0, 0, 99, 1, 128),
            128,
            "model",
            "50 B of 100 B; room for all of the model's 128 positions",
        ),
    ],
)
def test_a_context_is_no_longer_than_the_model_was_trained_for(
    arguments: tuple[int, int, int, int, int, int, int], context: int, limit: str, message: str
) -> None:
    report = fit_report(*arguments)
    assert (report.fits, report.largest_context, report.context_limit) == (True, context, limit)
    assert report.message == f"fits with context 99 and batch 1: {message}"


def test_what_is_missing_is_said_of_untrained_contexts_too() -> None:
    report = fit_report(2048, 2000, 2, 0, 99, 1, 8)
    assert report.message == "fits with all of the model's 8 positions; context 99 needs 150 B more"


def test_too_long_a_context_names_the_longest_that_fits() -> None:
    report = fit_report(17 * GIB, 16 * GIB, POSITION, 0, 16384, 1)
    assert not report.fits
    assert report.message == "fits with context 8192; context 16384 needs 1 GiB more"


def test_a_batch_is_named_where_it_is_what_does_not_fit() -> None:
    report = fit_report(17 * GIB, 16 * GIB, POSITION, 0, 16384, 4)
    assert report.message == "fits with context 2048 at batch 4; context 16384 needs 7 GiB more"
    rings = fit_report(100, 50, 1, 20, 5, 3)
    assert rings.message == "fits with batch 2 at context 5; batch 3 needs 25 B more"


def test_weights_alone_may_be_too_large() -> None:
    report = fit_report(80 * GIB, 131 * GIB, POSITION, 0, 8192, 1)
    assert (report.largest_context, report.largest_batch) == (0, 0)
    assert report.message == (
        "does not fit: context 8192 and batch 1 take 132 GiB of 80 GiB, "
        "131 GiB of it whatever the context"
    )


def test_a_context_without_memory_is_unlimited() -> None:
    report = fit_report(100, 50, 0, 0, 4096, 8)
    assert (report.fits, report.largest_context, report.largest_batch) == (True, None, None)
    assert report.message == "fits with context 4096 and batch 8: 50 B of 100 B"


def test_more_sequences_have_more_activations() -> None:
    """Of 2048 bytes that are free a sequence takes 198 of cache and 100 of activations, of which
    there are 500 in any case."""
    report = fit_report(
        4096, 2048, 2, 0, 99, 1, activation_bytes=lambda batch: max(500, 100 * batch)
    )
    assert report.needed_bytes == 2048 + 500 + 198
    assert report.largest_batch == 2048 // 298
    assert report.largest_context == (2048 - 500) // 2
    alone = fit_report(100, 50, 0, 0, 9, 1, activation_bytes=lambda batch: 7 * batch)
    assert (alone.largest_context, alone.largest_batch) == (None, 7)


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(1, 10**6),
    st.integers(1, 1000),
    st.sampled_from([0, 3, 1000]),
)
def test_the_largest_fits_and_one_more_does_not(
    capacity: int,
    fixed: int,
    position: float,
    sequence: float,
    context: int,
    batch: int,
    row_bytes: int,
) -> None:
    sizes = (capacity, fixed, position, sequence)

    def activations(batch: int) -> int:
        return max(5 * row_bytes, row_bytes * batch)

    def fits(context: int, batch: int) -> bool:
        return fit_report(*sizes, context, batch, activation_bytes=activations).fits

    report = fit_report(*sizes, context, batch, activation_bytes=activations)
    assert report.fits == (report.needed_bytes <= capacity)
    if report.largest_context is None:
        assert report.fits
    else:
        assert report.largest_context == 0 or fits(report.largest_context, batch)
        assert not fits(report.largest_context + 1, batch)
    if report.largest_batch is None:
        assert report.fits
    else:
        assert report.largest_batch == 0 or fits(context, report.largest_batch)
        assert not fits(context, report.largest_batch + 1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (0, 1, 1, 1, 1, 1),
            "error[INF2101]: expected a memory of at least one byte, got 0 bytes",
        ),
        ((1, 1, 1, 1, 0, 1), "error[INF5001]: expected a context of at least 1, got 0"),
        ((1, 1, 1, 1, 1, -2), "error[INF5001]: expected a batch of at least 1, got -2"),
    ],
)
def test_nothing_fits_nothing(arguments: tuple[int, int, int, int, int, int], text: str) -> None:
    with pytest.raises(UserError) as refused:
        fit_report(*arguments)
    assert str(refused.value) == text


@pytest.mark.parametrize("wrong", [-1.0, math.inf, math.nan])
def test_amounts_of_bytes_are_amounts(wrong: float) -> None:
    with pytest.raises(InternalError, match="expected bytes of a position of at least zero"):
        fit_report(1, 1, wrong, 1, 1, 1)
