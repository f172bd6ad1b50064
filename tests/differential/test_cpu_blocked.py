"""Products in bf16, on tile registers and on vectors, against NumPy."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import emulated
import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels import vmath
from infc.backends.cpu.kernels.activation import emit_round_row
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.layouts import PackedLayout, layout_for, pack, packed_bytes, unpack
from infc.backends.cpu.kernels.matmul import (
    MatmulSpec,
    Segment,
    candidates,
    emit_matmul,
    matmul_argument_count,
)
from infc.backends.cpu.probe import host_features
from infc.backends.cpu.target import isa_of, missing_features, resolve_cpu
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.reference.abf16 import (
    abf16_padded,
    abf16_row_bytes,
    from_abf16,
    round_bf16,
    to_abf16,
)

ISAS = [
    name
    for name in ("cpu:x86-64-amx", "cpu:x86-64-v4", "cpu:aarch64-v8.6")
    if not missing_features(resolve_cpu(name), host_features())
]
EMULATED = [] if emulated.problem() else ["cpu:aarch64-v8.6"]
if not ISAS + EMULATED:
    pytest.skip("needs a processor with products of bf16", allow_module_level=True)

ROWS = (1, 5, 16, 17, 31, 32, 33, 70)
# name -> (k, [(n, storage, bias)], options). Between them: all layouts, odd n and k, several
# outputs, biases, both gates, a soft cap, both forms of the output.
KERNELS: dict[str, tuple[int, list[tuple[int, str, bool]], dict[str, object]]] = {
    "q8_0": (640, [(64, "q8_0", False)], {}),
    "q6_k": (256, [(48, "q6_k", False)], {}),
    "q5_0": (64, [(300, "q5_0", False)], {}),
    "q5_1": (96, [(33, "q5_1", True)], {}),
    "q4_1": (32, [(64, "q4_1", False)], {"softcap": 3.0}),
    "q3_k": (256, [(16, "q3_k", False)], {"out": "abf16"}),
    "q2_k": (256, [(31, "q2_k", False)], {}),
    "bf16": (130, [(40, "bf16", False)], {"out": "abf16"}),
    "f16": (37, [(48, "f16", True), (16, "f32", False)], {}),
    "f8": (416, [(40, "f8_e4m3", True), (19, "f8_e4m3", False)], {}),
    "f8_short": (96, [(36, "f8_e4m3", False)] * 2, {"combine": "silu", "out": "abf16"}),
    "floats": (96, [(40, "bf16", False), (19, "f16", True), (9, "f32", False)], {}),
    "lines": (
        96,
        [(40, "bf16.lines", False), (19, "f16.lines", True), (9, "f32.lines", False)],
        {},
    ),
    "qkv": (256, [(64, "q5_0", True), (16, "q4_k", False), (20, "q6_k", True)], {}),
    "geglu": (64, [(80, "q5_0", True)] * 2, {"combine": "gelu_tanh", "out": "abf16"}),
    "swiglu": (96, [(36, "q4_0", False)] * 2, {"combine": "silu"}),
}


def layout_of(storage: str) -> PackedLayout:
    kind, _, lines = storage.partition(".")
    return replace(layout_for(kind), lines=bool(lines))


def spec_of(name: str) -> MatmulSpec:
    k, segments, options = KERNELS[name]
    parts = tuple(Segment(n, layout_of(storage), bias) for n, storage, bias in segments)
    return replace(MatmulSpec(k, parts, "abf16", max_rows=max(ROWS)), **options)  # type: ignore[arg-type]


def aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, none of them zero."""
    room = np.full(size + 64, 0xA5, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def weights(
    storage: str, n: int, k: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A packed matrix and its numbers."""
    rng = np.random.default_rng(seed)
    kind, layout = STORAGE_TYPES[storage.partition(".")[0]], layout_of(storage)
    source: Codes | NDArray[np.float32] = rng.standard_normal((n, k)).astype(np.float32)
    if not kind.is_float:
        scales = rng.uniform(0.005, 0.01, (2, n, -(-k // kind.group))).astype(np.float32)
        codes = rng.integers(0, 1 << kind.bits, (n, k), dtype=np.uint8)
        if kind.codebook is not None:
            codes[np.isnan(kind.codebook[codes])] = 0
        minima = -(2.0 ** (kind.bits - 1)) * scales[1] if kind.has_min else None
        source = Codes(codes, kind.zero_point, scales[0], minima, kind.group, kind.codebook)
    out = aligned(packed_bytes(layout, n, k))
    pack(layout, [source], n, k, out)
    return out, unpack(layout, out, n, k)


class NativeLibrary:
    """Functions of a shared object, called by name."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))

    def call(self, name: str, *operands: NDArray[np.generic] | int) -> None:
        self.library[name](
            *(
                ctypes.c_int64(v) if isinstance(v, int) else ctypes.c_void_p(v.ctypes.data)
                for v in operands
            )
        )


SHORT = ("silu_short", "gelu_tanh_short")
Library: TypeAlias = NativeLibrary | emulated.EmulatedLibrary


@pytest.fixture(scope="module", params=ISAS + EMULATED)
def isa(request: pytest.FixtureRequest) -> Isa:
    return isa_of(resolve_cpu(request.param))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, isa: Isa) -> Iterator[Library]:
    path = tmp_path_factory.mktemp("blocked") / "kernels.so"
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        b = Builder(module, isa)
        for name in KERNELS:
            spec = spec_of(name)
            for index, mapping in enumerate(candidates(spec, isa)):
                emit_matmul(b, f"kernel_{name}_{index}", spec, mapping)
                types = [b.ptr, *[b.i64] * 3, *[b.ptr] * (matmul_argument_count(spec) - 4)]
                with b.function(f"{name}_{index}", types, private=False) as arguments:
                    b.call(f"kernel_{name}_{index}", arguments)
                    b.ret()
        for k in (16, 32, 37, 100):
            with b.function(f"round_{k}", [b.ptr, b.ptr], private=False) as (source, target):
                emit_round_row(b, source, target, k)
                b.ret()
        for name in SHORT if isa.vector_bytes == 64 else ():
            with b.function(name, [b.ptr, b.ptr], private=False) as (source, target):
                x = b.load(source, b.vec(16, b.f32), 4)
                b.store(getattr(vmath, f"emit_{name}")(b, x), target, 4)
                b.ret()
        lower_to_llvm(module)
        path.write_bytes(link_shared(emit_object(module, isa)))
    if isa.architecture == platform.machine():
        yield NativeLibrary(path)
        return
    away = emulated.EmulatedLibrary(isa, path)
    yield away
    away.close()


class Case:
    """Operands of a kernel, and how to run it."""

    def __init__(self, library: Library, name: str) -> None:
        self.library, self.name, self.spec = library, name, spec_of(name)
        self.x = np.random.default_rng(7).standard_normal((max(ROWS), self.spec.k), np.float32)
        rng = np.random.default_rng(8)
        self.packed, self.values, self.biases = [], [], []
        for i, (n, storage, has_bias) in enumerate(KERNELS[name][1]):
            packed, values = weights(storage, n, self.spec.k, i)
            self.packed.append(packed)
            self.values.append(round_bf16(values).astype(np.float64))
            bias = rng.standard_normal(n).astype(np.float32) if has_bias else None
            self.biases.append(bias)

    def run(
        self, m: int, *, threads: int = 1, first: int = 0, mapping: int = 0
    ) -> list[NDArray[np.float32]]:
        rows = to_abf16(self.x[first : first + m])
        x = aligned(rows.size)
        x[:] = rows.reshape(-1)
        rounded = self.spec.out == "abf16"
        sizes = [abf16_row_bytes(n) if rounded else 4 * n for n in self.spec.outputs]
        outs = [aligned(m * size + 64) for size in sizes]
        operands = [*self.packed, *(b for b in self.biases if b is not None), *outs]
        deal = np.zeros(DEAL_BYTES, np.uint8)
        for thread in range(threads):
            self.library.call(f"{self.name}_{mapping}", x, m, thread, threads, deal, *operands)
        assert not deal.any()
        results = []
        for out, size, n in zip(outs, sizes, self.spec.outputs, strict=True):
            assert (out[m * size :] == 0xA5).all()  # nothing behind the last row
            block = out[: m * size].reshape(m, size)
            if rounded:
                assert not block[:, 2 * n : 2 * abf16_padded(n)].any()
                results.append(from_abf16(block, n))
            else:
                results.append(block.view(np.float32))
        return results

    def expected(self) -> list[NDArray[np.float64]]:
        x = round_bf16(self.x).astype(np.float64)
        sums = [
            x @ w.T + (0.0 if bias is None else bias)
            for w, bias in zip(self.values, self.biases, strict=True)
        ]
        if self.spec.combine == "silu":
            sums = [sums[0] / (1 + np.exp(-sums[0])) * sums[1]]
        elif self.spec.combine:
            u = np.sqrt(2 / np.pi) * (sums[0] + 0.044715 * sums[0] ** 3)
            sums = [sums[0] / 2 * (1 + np.tanh(u)) * sums[1]]
        if self.spec.softcap:
            sums = [self.spec.softcap * np.tanh(v / self.spec.softcap) for v in sums]
        return sums


@pytest.mark.parametrize("name", KERNELS)
def test_products_are_right(library: Library, name: str) -> None:
    case = Case(library, name)
    allowed = 2.0**-8 if case.spec.out == "abf16" else 1e-5
    for out, value in zip(case.run(70), case.expected(), strict=True):
        # Rounding of the result, and of sums that cancel: both relative to the largest.
        np.testing.assert_allclose(out, value, rtol=allowed, atol=1e-6 * np.abs(value).max())


@pytest.mark.parametrize("name", KERNELS)
def test_rows_threads_and_mappings_change_no_bit(library: Library, isa: Isa, name: str) -> None:
    case = Case(library, name)
    whole = case.run(70)
    mappings = len(candidates(case.spec, isa))
    others = [
        (case.run(m, first=first, threads=threads, mapping=mapping), first)
        for m in ROWS
        for first, threads, mapping in ((0, 1, mappings - 1), (70 - m, 3, 0))
    ]
    for outs, first in others:
        for out, wanted in zip(outs, whole, strict=True):
            np.testing.assert_array_equal(out, wanted[first : first + len(out)])


def test_lines_change_no_bit(library: Library) -> None:
    products = zip(Case(library, "lines").run(70), Case(library, "floats").run(70), strict=True)
    for lines, floats in products:
        np.testing.assert_array_equal(lines.view(np.int32), floats.view(np.int32))


@pytest.mark.parametrize("k", [16, 32, 37, 100])
def test_rows_are_rounded_and_padded_with_zeros(library: Library, k: int) -> None:
    x = np.random.default_rng(k).standard_normal((1, k)).astype(np.float32)
    x[0, :4] = [0.0, 1.00390625, 1.01171875, -3e38]  # ties go to even; large numbers stay finite
    out = aligned(abf16_row_bytes(k))
    library.call(f"round_{k}", x, out)
    wanted = to_abf16(x)[0, : 2 * abf16_padded(k)]
    np.testing.assert_array_equal(out[: 2 * abf16_padded(k)], wanted)


@pytest.mark.parametrize("name", SHORT)
def test_short_activations_are_closer_than_bf16(library: Library, isa: Isa, name: str) -> None:
    if isa.vector_bytes < 64:
        pytest.skip("exact forms are used here")
    limits = np.array([0.0, -0.0, 1e30, -1e30, np.inf, np.nan], np.float32)
    spread = np.linspace(-30, 30, 16 * 64 - len(limits), dtype=np.float32)
    x = np.concatenate([spread, limits]).reshape(-1, 16)
    out = np.zeros_like(x)
    for source, target in zip(x, out, strict=True):
        library.call(name, source, target)
    v = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        slope = v if name == "silu_short" else 2 * np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)
        exact = v / (1 + np.exp(-slope))
    np.testing.assert_allclose(out, exact, rtol=2.0**-13, atol=1e-37)
