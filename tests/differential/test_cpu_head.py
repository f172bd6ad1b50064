"""The head in two planes against the product in one: the same bits, whatever the input.

Lists of the best logits are compared with sorted logits, ids and bits, on inputs that are hard for
the bound, for the order of equals, or for the arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from head_kernels import COUNT, ROWS, HeadKernels, aligned, host_isas
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.head_planes import HeadSpec
from infc.backends.cpu.kernels.layouts import layout_for, pack, packed_bytes
from infc.backends.cpu.kernels.matmul import MatmulMapping
from infc.backends.cpu.kernels.split_embed import emit_split_embed_row
from infc.backends.cpu.kernels.split_head import emit_head_logits
from infc.backends.cpu.kernels.split_layout import (
    SplitLayout,
    pack_split,
    split_layout_for,
    split_layout_named,
    unpack_split,
)
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.reference import ops
from infc.reference.a8 import a8_row_bytes, quantize_a8

SHAPES = {
    "q8_0": (1003, 640),
    "q8_0-small": (200, 96),
    "q6_k": (1300, 256),
    "q6_k-odd": (70, 320),
}
"""name -> rows and columns of a matrix: whole panels and a part of one, whole vectors and a rest.
(No file has q6_k rows of 320 numbers; the kernel does not know.)"""


ISAS = host_isas()
if not ISAS:
    pytest.skip("needs an x86 processor with AVX2", allow_module_level=True)
HEADS = [(isa, name) for isa in ISAS for name in SHAPES]


def storage_of(name: str) -> str:
    return name.partition("-")[0]


class Head(HeadKernels):
    """The kernels of one shape."""

    def __init__(self, isa: Isa, name: str) -> None:
        n, k = SHAPES[name]
        self.storage = STORAGE_TYPES[storage_of(name)]
        split = split_layout_for(self.storage.name, k)
        assert split is not None
        self.split = split
        spec = HeadSpec(n, k, split, "a8", ROWS)

        def logits(b: Builder, mapping: MatmulMapping) -> None:
            emit_head_logits(b, "logits", spec, mapping)

        def embed(b: Builder, table: Value, row: Value, out: Value) -> None:
            emit_split_embed_row(b, split, table, n, k, row, out, 25.3)

        super().__init__(isa, spec, layout_for(self.storage), logits, embed)

    def pack(self, codes: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The matrix in two planes and in one."""
        storage = self.storage
        source = Codes(codes, storage.zero_point, scales, None, storage.group)
        planes = aligned(self.split.size_bytes(self.n, self.k))
        pack_split(self.split, [source], self.n, self.k, planes)
        whole = aligned(packed_bytes(self.whole, self.n, self.k))
        pack(self.whole, [source], self.n, self.k, whole)
        return planes, whole


@functools.cache
def head(isa: str, name: str) -> Head:
    return Head(ISAS[isa], name)


def rows_of(x: np.ndarray) -> np.ndarray:
    """Rows in the a8 form, aligned."""
    quantised = quantize_a8(x)
    out = aligned(quantised.size)
    out[:] = quantised.reshape(-1)
    return out


def random_matrix(subject: Head, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << subject.split.bits, (subject.n, subject.k), dtype=np.uint8)
    groups = subject.k // subject.storage.group
    scales = rng.uniform(0.001, 0.002, (subject.n, groups)).astype(np.float16)
    return codes, scales.astype(np.float32)


@pytest.mark.parametrize(("isa", "name"), HEADS)
@pytest.mark.parametrize("m", [1, 2, 9, ROWS])
def test_planes_give_the_bits_of_the_whole_matrix(isa: str, name: str, m: int) -> None:
    subject = head(isa, name)
    x = np.random.default_rng(1).standard_normal((m, subject.k)).astype(np.float32)
    subject.agree(rows_of(x), *subject.pack(*random_matrix(subject, 2)), m=m)


def _ties(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    codes[:] = codes[0]
    scales[:] = scales[0]


def _pairs(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    half = len(codes) // 2
    codes[half : 2 * half], scales[half : 2 * half] = codes[:half], scales[:half]


def _no_weights(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    scales[:] = 0


def _no_input(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x[:] = 0


def _low_plane_decides(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    low = codes & (15 if int(codes.max()) > 63 else 3)
    codes[:] = codes[0] - codes[0] % 16 + low
    scales[:] = scales[0]


def _one_wins_by_one(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    _ties(codes, scales, x)
    codes[:, 3] = 16
    codes[len(codes) - 3, 3] = 17 if x[0, 3] > 0 else 15


def _signs(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    scales[:, ::2] *= -1
    x[:, 1::2] *= -1


def _outliers(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x[:, 5] = 1e6
    x[:, 37] = -3e5


def _huge(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x *= 1e35


def _overflow(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x *= 1e37
    scales *= 1e3


def _tiny(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x *= 2.0**-95


def _tiny_product(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x *= 2.0**-90
    scales *= 2.0**-40


def _scales_apart(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    scales *= np.exp2(np.arange(scales.size).reshape(scales.shape) % 23).astype(np.float32)


def _largest_codes(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    top = int(codes.max())
    codes[:] = np.where(codes > top // 2, top, 0)
    x[:] = np.where(x > 0, 127, -127)


def _not_a_number(codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> None:
    x[:, 40] = np.inf


HOSTILE = {
    change.__name__.removeprefix("_"): change
    for change in (
        _ties,
        _pairs,
        _no_weights,
        _no_input,
        _low_plane_decides,
        _one_wins_by_one,
        _signs,
        _outliers,
        _huge,
        _overflow,
        _tiny,
        _tiny_product,
        _scales_apart,
        _largest_codes,
    )
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize(("isa", "name"), [(i, n) for i, n in HEADS if "-" not in n])
def test_hostile_inputs_change_no_bit(isa: str, name: str, case: str) -> None:
    subject = head(isa, name)
    codes, scales = random_matrix(subject, 3)
    x = np.random.default_rng(4).standard_normal((1, subject.k)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        HOSTILE[case](codes, scales, x)
        subject.agree(rows_of(x), *subject.pack(codes, scales))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.0, 40.0),
    changes=st.lists(st.sampled_from(sorted(HOSTILE)), max_size=3, unique=True),
    shape=st.sampled_from(sorted(SHAPES)),
)
def test_any_input_changes_no_bit(seed: int, spread: float, changes: list[str], shape: str) -> None:
    subject = head(tuple(ISAS)[-1], shape)
    codes, scales = random_matrix(subject, seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, subject.k)) * np.exp2(rng.uniform(-spread, 0, (1, subject.k)))
    x = x.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for change in changes:
            HOSTILE[change](codes, scales, x)
        subject.agree(rows_of(x), *subject.pack(codes, scales))


@pytest.mark.parametrize(("isa", "name"), HEADS)
def test_bounds_are_no_looser_than_the_low_plane_can_be(isa: str, name: str) -> None:
    subject = head(isa, name)
    codes, scales = random_matrix(subject, 8)
    x = np.random.default_rng(9).standard_normal((1, subject.k)).astype(np.float32)
    rows = rows_of(x)
    bounds = subject.bounds(rows, subject.pack(codes, scales)[0])
    # The low parts that make a row's product largest, and the bound is reached.
    low = (1 << subject.split.low_bits) - 1
    codes = codes & np.uint8(0xFF - low) | np.where(x[0] > 0, low, 0).astype(np.uint8)
    whole = subject.pack(codes, scales)[1]
    largest = subject.logits("whole", rows, 1, whole)[0]
    assert (bounds >= largest).all()
    np.testing.assert_allclose(bounds, largest, rtol=1e-4, atol=1e-3 * np.abs(largest).max())


@pytest.mark.parametrize(("isa", "name"), HEADS)
def test_low_parts_of_rows_that_cannot_win_do_not_matter(isa: str, name: str) -> None:
    subject = head(isa, name)
    codes, scales = random_matrix(subject, 10)
    rng = np.random.default_rng(11)
    x = rng.standard_normal((1, subject.k)).astype(np.float32)
    middle = subject.split.zero_point
    codes[:] = middle + rng.integers(-3, 4, codes.shape)
    for row in (subject.n // 2, subject.n - 2):  # both far ahead of all others
        codes[row] = np.where(x[0] > 0, 2 * middle - 1, 0)
    rows = rows_of(x)
    planes, whole = subject.pack(codes, scales)
    want = ops.top_k(subject.logits("whole", rows, 1, whole), 2)
    beaten = subject.bounds(rows, planes) < want[0][0, 1]
    assert beaten.sum() == subject.n - 2
    start, size = (
        subject.split.low_offset(subject.n, subject.k),
        subject.split.low_row_bytes(subject.k),
    )
    low = planes[start : start + subject.n * size].reshape(subject.n, size)
    low[beaten] = rng.integers(0, 256, low[beaten].shape, dtype=np.uint8)
    for threads in (1, 3):
        values, ids = subject.top(rows, 1, planes, threads, 2)
        np.testing.assert_array_equal(ids, want[1])
        np.testing.assert_array_equal(values, want[0])


def test_the_best_of_what_is_no_number_is_the_first() -> None:
    subject = head(tuple(ISAS)[-1], "q8_0")
    planes, _ = subject.pack(*random_matrix(subject, 5))
    x = aligned(a8_row_bytes(subject.k))
    x[:] = rows_of(np.ones((1, subject.k), np.float32))
    x[subject.k : subject.k + 4].view(np.float32)[:] = np.nan  # the scale of the first block
    assert subject.best(x, 1, planes, 2).tolist() == [0]
    values, ids = subject.top(x, 1, planes, 2, 3)
    assert values.tolist() == [[-np.inf] * 3]
    assert ids.tolist() == [[0] * 3]


@pytest.mark.parametrize(("isa", "name"), HEADS)
def test_rows_are_looked_up_in_two_planes(isa: str, name: str) -> None:
    subject = head(isa, name)
    planes, _ = subject.pack(*random_matrix(subject, 6))
    numbers = unpack_split(subject.split, planes, subject.n, subject.k)
    for row in (0, 17, subject.n - 1):
        out = np.zeros(subject.k, np.float32)
        subject.call("embed", planes, row, out)
        np.testing.assert_array_equal(out, numbers[row] * np.float32(25.3))


@pytest.mark.parametrize("isa", ISAS)
def test_top_k_of_logits_sorts_them(isa: str) -> None:
    subject = head(isa, "q8_0")
    rng = np.random.default_rng(7)
    logits = rng.integers(-9, 10, (3, subject.n)).astype(np.float32)  # many ties
    logits[1, ::2] = np.nan
    logits[2] = -np.inf
    logits[2, 900] = 1
    for threads in (1, 2):
        values, ids = subject.lists(3, COUNT)
        for thread in range(threads):
            subject.call("top_k", logits, values, ids, 3, thread, threads, 20)
        want, at = ops.top_k(logits, 20)
        np.testing.assert_array_equal(values[:, :20], want)
        np.testing.assert_array_equal(ids[:, :20], at)


def test_layouts_have_names() -> None:
    for storage, k, bits, group in (("q8_0", 96, 8, 32), ("q6_k", 256, 6, 16)):
        layout = SplitLayout(bits, group)
        assert split_layout_for(storage, k) == layout
        assert split_layout_named(layout.name) == layout
    assert split_layout_named(layout_for("q8_0").name) is None
    assert split_layout_for("q4_0", 64) is None
    assert split_layout_for("q6_k", 32) is None
