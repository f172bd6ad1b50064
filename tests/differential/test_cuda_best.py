"""CUDA's argmax and top k, in lockstep, against NumPy."""

import functools

import numpy as np
import pytest
from cuda_functions import DeviceFunction, put
from numpy.typing import NDArray

from infc.backends.cuda.kernels import best
from infc.backends.cuda.lockstep import Device
from infc.reference import ops

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

WANTED = 7


@functools.cache
def best_function(kind: str, n: int) -> DeviceFunction:
    if kind == "argmax":
        return DeviceFunction(lambda b: best.emit_argmax(b, "best", n), 4)
    return DeviceFunction(lambda b: best.emit_top_k(b, "best", n, WANTED), 5, 2)


def argmax(logits: F32, grid: int, seed: int | None = None) -> I32:
    rows, n = logits.shape
    device = Device()
    out = device.allocate(4 * rows)
    scratch = device.allocate(best.argmax_scratch_bytes(rows))
    arrivals = put(device, np.zeros(rows, np.int32))
    function, source = best_function("argmax", n), put(device, logits)
    for _ in range(2):
        function.run(device, [source, out, scratch, arrivals, rows], grid=grid, seed=seed)
        assert not device.read(arrivals, np.int32, (rows,)).any()
    return device.read(out, np.int32, (rows,))


def top_k(logits: F32, wanted: int, grid: int, seed: int | None = None) -> tuple[F32, I32]:
    rows, n = logits.shape
    device = Device()
    outs = [device.allocate(4 * rows * wanted) for _ in range(2)]
    scratch = device.allocate(best.top_k_scratch_bytes(rows))
    arrivals = put(device, np.zeros(rows, np.int32))
    arguments = [put(device, logits), *outs, scratch, arrivals, wanted, rows]
    best_function("top_k", n).run(device, arguments, grid=grid, seed=seed)
    assert not device.read(arrivals, np.int32, (rows,)).any()
    shape = (rows, wanted)
    return device.read(outs[0], np.float32, shape), device.read(outs[1], np.int32, shape)


def logits_of(kind: str, rows: int, n: int) -> F32:
    rng = np.random.default_rng(n)
    if kind == "ties":
        return rng.integers(-3, 1, (rows, n)).astype(np.float32) * np.float32(-0.0 if n < 9 else 1)
    if kind == "equal":
        return np.zeros((rows, n), np.float32)
    logits = rng.standard_normal((rows, n), np.float32)
    if kind == "holes":
        logits[rng.random((rows, n)) < 0.5] = -np.inf
        logits[rng.random((rows, n)) < 0.2] = np.nan
        logits[0, 2:] = -np.inf
        logits[-1] = np.nan
    return logits


# One part and several, one round of a part and several, chunks of 4, 2 and 1 logits.
@pytest.mark.parametrize(
    ("kind", "n", "wanted", "grid", "seed"),
    [
        ("random", 9001, 7, 7, None),
        ("random", 4100, 4, 1, None),
        ("ties", 1002, 7, 4, 5),
        ("ties", 3, 4, 1, None),
        ("equal", 4100, 7, 7, None),
        ("equal", 9001, 4, 1, None),
        ("holes", 1002, 7, 4, None),
        ("holes", 3, 2, 7, 6),
    ],
)
def test_the_best_and_the_lowest_of_equals(
    kind: str, n: int, wanted: int, grid: int, seed: int | None
) -> None:
    logits = logits_of(kind, 3, n)
    values, ids = ops.top_k(logits, min(wanted, n))
    np.testing.assert_array_equal(argmax(logits, grid, seed), ids[:, 0])
    got_values, got_ids = top_k(logits, wanted, grid, seed)
    known = values.shape[1]
    np.testing.assert_array_equal(got_values[:, :known], values)
    np.testing.assert_array_equal(got_ids[:, :known], ids)
    assert (got_values[:, known:] == -np.inf).all()
    assert (got_ids[:, known:] == 0).all()


def test_minus_zero_equals_zero() -> None:
    logits = np.array([[-1.0, -0.0, 0.0]], np.float32)
    assert argmax(logits, 2).tolist() == [1]
    assert top_k(logits, 2, 1)[1][0, :2].tolist() == [1, 2]


def test_more_than_sixty_four_top_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 64 top logits, got 65"):
        DeviceFunction(lambda b: best.emit_top_k(b, "best", 100, 65), 5, 2)
