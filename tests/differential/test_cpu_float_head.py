"""The float head with bounds behind it against the product in one plane: the same bits.

Lists of the best logits are compared with sorted logits, ids and bits, on inputs that are hard for
the bound, for the order of equals, or for the arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from head_kernels import ROWS, HeadKernels, aligned, host_isas
from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bounded_layout import (
    BoundedLayout,
    bounded_layout_for,
    bounded_layout_named,
    pack_bounded,
)
from infc.backends.cpu.kernels.embed import emit_embed_row
from infc.backends.cpu.kernels.head_planes import HeadSpec
from infc.backends.cpu.kernels.layouts import layout_for, layout_named, pack, packed_bytes, unpack
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, Segment, emit_matmul
from infc.passes.codegen.panels import multiplier_of
from infc.reference import ops

SHAPES = {"bf16": (1003, 640), "bf16-small": (70, 96), "f16": (600, 256), "f32": (200, 160)}
"""name -> rows and columns of a matrix: whole panels and a part of one."""
ISAS = host_isas()
if not ISAS:
    pytest.skip("needs an x86 processor with AVX2", allow_module_level=True)
HEADS = [(isa, name) for isa in ISAS for name in SHAPES]
F32 = np.ndarray


class Head(HeadKernels):
    """The kernels of one shape."""

    def __init__(self, isa: Isa, name: str) -> None:
        n, k = SHAPES[name]
        self.kind = name.partition("-")[0]
        bounded = bounded_layout_for(self.kind, k)
        assert bounded is not None
        self.bounded = bounded
        spec = HeadSpec(n, k, bounded, "f32", ROWS)

        def logits(b: Builder, mapping: MatmulMapping) -> None:
            segment = Segment(n, layout_named(bounded.name))
            emit_matmul(b, "logits", MatmulSpec(k, (segment,), "f32", max_rows=ROWS), mapping)

        def embed(b: Builder, table: Value, row: Value, out: Value) -> None:
            emit_embed_row(b, layout_named(bounded.name), table, k, row, out, 25.3)

        super().__init__(isa, spec, layout_for(self.kind), logits, embed)

    def pack(self, weights: F32) -> tuple[np.ndarray, np.ndarray]:
        """The matrix with bounds, and in one plane."""
        planes = aligned(self.bounded.size_bytes(self.n, self.k))
        pack_bounded(
            self.bounded,
            lambda: [weights[:512], weights[512:]][: 1 + (self.n > 512)],
            self.n,
            self.k,
            planes,
        )
        whole = aligned(packed_bytes(self.whole, self.n, self.k))
        pack(self.whole, [weights], self.n, self.k, whole)
        return planes, whole


@functools.cache
def head(isa: str, name: str) -> Head:
    return Head(ISAS[isa], name)


def stored(kind: str, weights: F32) -> F32:
    """The numbers that a storage type holds."""
    if kind == "bf16":
        bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return weights.astype(kind.replace("f", "float")).astype(np.float32)


def random_case(subject: Head, seed: int, m: int = 1) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((subject.n, subject.k), np.float32) * np.float32(0.03)
    return weights, rng.standard_normal((m, subject.k), np.float32)


@pytest.mark.parametrize(("isa", "name"), HEADS)
@pytest.mark.parametrize("m", [1, 2, ROWS])
def test_planes_give_the_bits_of_the_whole_matrix(isa: str, name: str, m: int) -> None:
    subject = head(isa, name)
    weights, x = random_case(subject, 1, m)
    subject.agree(x, *subject.pack(stored(subject.kind, weights)), m=m)


def _ties(weights: F32, x: F32) -> None:
    weights[:] = weights[0]


def _pairs(weights: F32, x: F32) -> None:
    half = len(weights) // 2
    weights[half : 2 * half] = weights[:half]


def _no_weights(weights: F32, x: F32) -> None:
    weights[:] = 0


def _no_input(weights: F32, x: F32) -> None:
    x[:] = 0


def _little_decides(weights: F32, x: F32) -> None:
    """Rows that differ by less than a code stands for."""
    weights[:] = weights[0] * (1 + np.arange(len(weights), dtype=np.float32)[:, None] * 2.0**-16)


def _steps(weights: F32, x: F32) -> None:
    """Whole multiples of a scale: each weight is the edge of two codes' ranges."""
    weights[:] = np.round(weights * 200) / 16


def _outliers(weights: F32, x: F32) -> None:
    x[:, 5] = 1e6
    x[:, 37] = -3e5


def _large_weights(weights: F32, x: F32) -> None:
    weights[:, 3::17] *= 1e4


def _huge(weights: F32, x: F32) -> None:
    x *= 1e35


def _overflow(weights: F32, x: F32) -> None:
    x *= 1e37
    weights *= 1e3


def _tiny(weights: F32, x: F32) -> None:
    x *= 2.0**-95


def _subnormal(weights: F32, x: F32) -> None:
    x *= 2.0**-130


def _tiny_product(weights: F32, x: F32) -> None:
    x *= 2.0**-110
    weights *= 2.0**-18


def _scales_apart(weights: F32, x: F32) -> None:
    weights *= np.exp2(-np.arange(weights.size, dtype=np.float32).reshape(weights.shape) % 23)


def _equal_signs(weights: F32, x: F32) -> None:
    np.abs(weights, out=weights)
    np.abs(x, out=x)


def _weights_overflow(weights: F32, x: F32) -> None:
    weights *= 2.0**100


def _infinite_weight(weights: F32, x: F32) -> None:
    weights[9, 40] = np.inf


def _infinite_input(weights: F32, x: F32) -> None:
    x[:, 40] = np.inf


def _no_number(weights: F32, x: F32) -> None:
    x[:, 40] = np.nan


HOSTILE = {
    change.__name__.removeprefix("_"): change
    for change in (
        _ties,
        _pairs,
        _no_weights,
        _no_input,
        _little_decides,
        _steps,
        _outliers,
        _large_weights,
        _huge,
        _overflow,
        _tiny,
        _subnormal,
        _tiny_product,
        _scales_apart,
        _equal_signs,
        _weights_overflow,
        _infinite_weight,
        _infinite_input,
        _no_number,
    )
}


def check(subject: Head, weights: F32, x: F32, changes: list[str]) -> None:
    with np.errstate(all="ignore"):
        for change in changes:
            HOSTILE[change](weights, x)
        subject.agree(x, *subject.pack(stored(subject.kind, weights)))


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("isa", ISAS)
def test_hostile_inputs_change_no_bit(isa: str, case: str) -> None:
    subject = head(isa, "bf16")
    check(subject, *random_case(subject, 3), [case])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.0, 40.0),
    changes=st.lists(st.sampled_from(sorted(HOSTILE)), max_size=3, unique=True),
    shape=st.sampled_from(sorted(SHAPES)),
)
def test_any_input_changes_no_bit(seed: int, spread: float, changes: list[str], shape: str) -> None:
    subject = head(tuple(ISAS)[-1], shape)
    weights, x = random_case(subject, seed)
    rng = np.random.default_rng(seed)
    x *= np.exp2(rng.uniform(-spread, 0, x.shape)).astype(np.float32)
    check(subject, weights, x, changes)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_lie_within_their_bounds(name: str) -> None:
    subject = head(tuple(ISAS)[-1], name)
    layout, n, k = subject.bounded, subject.n, subject.k
    rng = np.random.default_rng(5)
    weights = random_case(subject, 5)[0] * np.exp2(rng.uniform(-30, 0, (n, 1))).astype(np.float32)
    weights[3] = 0
    _steps(weights[10:20], weights)
    weights = stored(subject.kind, weights)
    planes = subject.pack(weights)[0]
    rows = packed_bytes(layout.whole, n, k)
    np.testing.assert_array_equal(unpack(layout.whole, planes[:rows], n, k), weights)
    high = planes[layout.high_offset(n, k) :]
    least = unpack(layout.high, high, n, k)  # multiplier * scale * (code - 16)
    scales = _scales(subject, high)
    assert (least <= weights).all()
    assert (weights <= least + scales).all()
    groups = np.abs(weights).reshape(n, -1, 32).max(axis=2).repeat(32, axis=1)
    tight = groups > 2.0**-20 * groups.max()  # scales below are subnormal
    assert (scales[tight] <= groups[tight] / 16 * (1 + 2.0**-10)).all()


def _scales(subject: Head, high: np.ndarray) -> F32:
    """How far each weight's range reaches."""
    n, k, layout = subject.n, subject.k, subject.bounded.high
    ones = high.copy()
    chunks = ones[64:].reshape(-1, layout.chunk_bytes)
    chunks[:, layout.high_offset : layout.codes_offset] = 255
    chunks[:, layout.codes_offset :] = 0x11  # with the fifth bits: 17, one more than nothing
    return unpack(layout, ones, n, k)


@pytest.mark.parametrize("change", ["weights_overflow", "infinite_weight"])
def test_weights_without_bounds_say_so(change: str) -> None:
    subject = head(tuple(ISAS)[-1], "bf16")
    weights = random_case(subject, 6)[0]
    HOSTILE[change](weights, weights)
    planes = subject.pack(stored("bf16", weights))[0]
    offset = subject.bounded.high_offset(subject.n, subject.k)
    assert np.isnan(multiplier_of(planes[offset:]))


@pytest.mark.parametrize(("isa", "name"), HEADS)
def test_bounds_are_no_looser_than_the_ranges_of_weights(isa: str, name: str) -> None:
    subject = head(isa, name)
    weights, x = random_case(subject, 8)
    planes, _ = subject.pack(stored(subject.kind, weights))
    high = planes[subject.bounded.high_offset(subject.n, subject.k) :]
    least = unpack(subject.bounded.high, high, subject.n, subject.k).astype(np.float64)
    largest = np.where(x[0] > 0, least + _scales(subject, high), least) @ x[0].astype(np.float64)
    bounds = subject.bounds(x, planes)
    assert (bounds >= largest).all()
    np.testing.assert_allclose(bounds, largest, atol=2e-3 * np.abs(largest).max())


@pytest.mark.parametrize(("isa", "name"), [(i, n) for i, n in HEADS if "-" not in n])
def test_rows_that_cannot_win_are_not_read(isa: str, name: str) -> None:
    subject = head(isa, name)
    weights, x = random_case(subject, 10)
    weights *= np.float32(0.01)
    for row in (3, 5):  # both far ahead of all others
        weights[row] = x[0] * np.float32(row)
    weights = stored(subject.kind, weights)
    planes, whole = subject.pack(weights)
    want = ops.top_k(subject.logits("whole", x, 1, whole), 2)
    # Behind the first tile, of which nothing is known, rows would win if only they were read.
    weights[128:] = np.sign(x[0]) * 1e4
    rows = packed_bytes(subject.bounded.whole, subject.n, subject.k)
    pack(subject.bounded.whole, [weights], subject.n, subject.k, planes[:rows])
    values, ids = subject.top(x, 1, planes, 1, 2)
    np.testing.assert_array_equal(ids, want[1])
    np.testing.assert_array_equal(values, want[0])


@pytest.mark.parametrize(("isa", "name"), HEADS)
def test_rows_are_looked_up_in_lines(isa: str, name: str) -> None:
    subject = head(isa, name)
    weights = stored(subject.kind, random_case(subject, 6)[0])
    planes = subject.pack(weights)[0]
    for row in (0, 17, subject.n - 1):
        out = np.zeros(subject.k, np.float32)
        subject.call("embed", planes, row, out)
        np.testing.assert_array_equal(out, weights[row] * np.float32(25.3))


def test_layouts_have_names() -> None:
    for storage in ("bf16", "f16", "f32"):
        layout = BoundedLayout(storage)
        assert bounded_layout_for(storage, 96) == layout
        assert bounded_layout_named(layout.name) == layout
        assert layout_named(layout.name) == layout.whole == layout_named(layout.whole.name)
    assert bounded_layout_named(layout_for("bf16").name) is None
    assert bounded_layout_for("bf16", 80) is None
    assert bounded_layout_for("q8_0", 64) is None
