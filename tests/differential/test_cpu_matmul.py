"""The CPU's matrix products, quantiser and embedding look-up against NumPy, on every dot product
path that this host can run."""

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import emulated
import llvmlite.binding as llvm_binding
import numpy as np
import pytest

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels import vmath
from infc.backends.cpu.kernels.activation import emit_quantize_row
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.embed import emit_embed_row
from infc.backends.cpu.kernels.layouts import PackedLayout, layout_for, pack, packed_bytes, unpack
from infc.backends.cpu.kernels.matmul import (
    MatmulMapping,
    MatmulSpec,
    Segment,
    candidates,
    emit_matmul,
    matmul_argument_count,
)
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES, Codes
from infc.passes.codegen.panels import row_chunks
from infc.reference.a8 import a8_row_bytes, dequantize_a8, quantize_a8

ROWS = (1, 2, 5, 6, 7, 13, 17, 64, 130)
EPSILON = 2.0**-24


def _isas() -> dict[str, Isa]:
    has = llvm_binding.get_host_cpu_features()
    triple = llvm_binding.get_default_triple()
    found = emulated.isas()
    if has.get("avx2") and has.get("fma") and has.get("f16c"):
        found["avx2"] = Isa(triple, "x86-64-v3", "", 32, 16, "avx2", False)
    if has.get("avxvnni"):
        found["avx-vnni"] = Isa(triple, "x86-64-v3", "+avxvnni", 32, 16, "avx-vnni", False)
    if has.get("avx512vnni"):
        found["avx512"] = Isa(triple, "x86-64-v4", "+avx512vnni", 64, 32, "avx512-vnni", False)
    return found


ISAS = _isas()
if not ISAS:
    pytest.skip("needs a processor that programs are made for", allow_module_level=True)

# name -> (spec, storage type of each segment). Between them: all layouts, odd n, small k, groups
# that are no whole number of vectors, several segments, biases, both gates, a soft cap.
KERNELS = {
    "q8_0": ("a8", 640, [("q8_0", 300, False)], {}),
    "q6_k": ("a8", 256, [("q6_k", 48, False)], {}),
    "q5_0": ("a8", 2048, [("q5_0", 16, False)], {}),
    "q5_1": ("a8", 64, [("q5_1", 33, True)], {}),
    "q4_0": ("a8", 32, [("q4_0", 20, False)], {}),
    "q4_1": ("a8", 96, [("q4_1", 64, False)], {"softcap": 3.0}),
    "q3_k": ("a8", 256, [("q3_k", 16, False)], {}),
    "q2_k": ("a8", 768, [("q2_k", 31, False)], {}),
    "f32": ("f32", 37, [("f32", 300, True)], {}),
    "bf16": ("f32", 130, [("bf16", 32, False)], {}),
    "f16": ("f32", 64, [("f16", 40, False), ("f32", 16, False)], {"softcap": 30.0}),
    "f8": ("f32", 416, [("f8_e4m3", 300, True)], {}),
    "f8_short": ("f32", 96, [("f8_e4m3", 20, False), ("bf16", 16, False)], {"softcap": 9.0}),
    "qkv": ("a8", 256, [("q5_0", 64, True), ("q4_k", 16, False), ("q6_k", 20, True)], {}),
    "geglu": ("a8", 64, [("q5_0", 80, False)] * 2, {"combine": "gelu_tanh"}),
    "swiglu": ("f32", 40, [("bf16", 36, True), ("f32", 36, False)], {"combine": "silu"}),
}
FEWER = {
    "neon-dot": ("q8_0", "q6_k", "q5_1", "q4_1", "f16", "f8"),
    "neon-i8mm": ("q8_0", "q6_k", "q4_1", "f8", "geglu"),
    "avx-vnni": ("q8_0", "q4_1"),
    "avx2": ("q8_0", "q6_k", "q5_1", "q2_k", "bf16", "f8", "qkv", "geglu"),
}
"""On these paths not all kernels are tried again: layouts and epilogues are the same everywhere."""
EMBEDDED = ("q8_0", "q6_k", "q5_0", "q4_1", "q2_k", "bf16", "f16", "f32")


def spec_of(name: str) -> MatmulSpec:
    activation, k, segments, options = KERNELS[name]
    parts = tuple(Segment(n, layout_for(storage), bias) for storage, n, bias in segments)
    return MatmulSpec(k, parts, activation, max_rows=max(ROWS), **options)


@functools.cache
def weights(
    storage_name: str, n: int, k: int, seed: int
) -> tuple[PackedLayout, np.ndarray, np.ndarray]:
    """A layout, a random packed matrix, and its numbers."""
    rng = np.random.default_rng(seed)
    storage, layout = STORAGE_TYPES[storage_name], layout_for(storage_name)
    if storage.is_float:
        source = rng.standard_normal((n, k)).astype(np.float32)
    else:
        scales = rng.uniform(0.005, 0.01, (2, n, -(-k // storage.group))).astype(np.float32)
        codes = rng.integers(0, 1 << storage.bits, (n, k), dtype=np.uint8)
        if storage.codebook is not None:
            codes[np.isnan(storage.codebook[codes])] = 0
        minima = -(2.0 ** (storage.bits - 1)) * scales[1] if storage.has_min else None
        source = Codes(
            codes, storage.zero_point, scales[0], minima, storage.group, storage.codebook
        )
    out = aligned(packed_bytes(layout, n, k))
    pack(layout, [source], n, k, out)
    return layout, out, unpack(layout, out, n, k)


def aligned(size: int) -> np.ndarray:
    """Bytes that start at a multiple of 64."""
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


class Program:
    """Kernels in a shared object, callable by name."""

    def __init__(self, isa: Isa, emit: Callable[[Builder], None], path: Path) -> None:
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.create()
            emit(Builder(module, isa))
            module.operation.verify()
            lower_to_llvm(module)
            path.write_bytes(link_shared(emit_object(module, isa)))
        self.emulated: emulated.EmulatedLibrary | None = None
        if isa in emulated.isas().values() and emulated.problem() is None:
            self.emulated = emulated.EmulatedLibrary(isa, path)
        else:
            self.library = ctypes.CDLL(str(path))

    def call(self, name: str, *operands: np.ndarray | int) -> None:
        if self.emulated is not None:
            self.emulated.call(name, *operands)
            return
        self.library[name](
            *(
                ctypes.c_int64(v) if isinstance(v, int) else ctypes.c_void_p(v.ctypes.data)
                for v in operands
            )
        )


def export(
    b: Builder, name: str, types: Sequence[ir.Type], body: Callable[[list[ir.Value]], None]
) -> None:
    with b.function(name, types, private=False) as arguments:
        body(arguments)
        b.ret()


def kernels_of(isa: str) -> list[str]:
    return list(KERNELS if isa == tuple(ISAS)[-1] else FEWER[isa])


def emit_all(b: Builder) -> None:
    isa = next(name for name, isa in ISAS.items() if isa == b.isa)
    for name in kernels_of(isa):
        spec = spec_of(name)
        emit_matmul(b, "kernel_" + name, spec, candidates(spec, b.isa)[0])
        types = [b.ptr, b.i64, b.i64, b.i64] + [b.ptr] * (matmul_argument_count(spec) - 4)
        export(b, name, types, lambda a, name=name: b.call("kernel_" + name, a))
    export(b, "quantize", [b.ptr, b.ptr], lambda a: emit_quantize_row(b, a[0], a[1], 96))
    for name in EMBEDDED:

        def embed(a: list[ir.Value], name: str = name) -> None:
            emit_embed_row(b, layout_for(name), a[0], 256, a[1], a[2], 25.3)

        export(b, "embed_" + name, [b.ptr, b.i64, b.ptr], embed)
    for name in ("exp", "tanh", "silu", "gelu_tanh"):

        def each(a: list[ir.Value], name: str = name) -> None:
            def body(i: ir.Value) -> None:
                source, target = (b.at(p, b.mul(i, 64)) for p in a[:2])
                value = b.load(source, b.vec(16, b.f32), 4)
                b.store(getattr(vmath, "emit_" + name)(b, value), target, 4)

            b.loop(0, a[2], body=body)

        export(b, "math_" + name, [b.ptr, b.ptr, b.i64], each)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Program]]:
    folder = tmp_path_factory.mktemp("kernels")
    made = {name: Program(isa, emit_all, folder / f"{name}.so") for name, isa in ISAS.items()}
    yield made
    for program in made.values():
        if program.emulated is not None:
            program.emulated.close()


class Case:
    """Operands of a kernel for up to 130 rows, and how to run it."""

    def __init__(self, name: str) -> None:
        self.name, self.spec = name, spec_of(name)
        rng = np.random.default_rng(7)
        k, types = self.spec.k, [storage for storage, _, _ in KERNELS[name][2]]
        self.x = rng.standard_normal((max(ROWS), k)).astype(np.float32)
        self.packed, self.values, self.biases = [], [], []
        for i, (segment, storage) in enumerate(zip(self.spec.segments, types, strict=True)):
            _, packed, values = weights(storage, segment.n, k, i)
            self.packed.append(packed)
            self.values.append(values)
            self.biases.append(rng.standard_normal(segment.n).astype(np.float32))

    def input(self, first: int, m: int) -> np.ndarray:
        rows = self.x[first : first + m]
        rows = quantize_a8(rows) if self.spec.activation == "a8" else rows
        out = aligned(rows.nbytes)
        out[:] = rows.view(np.uint8).reshape(-1)
        return out

    def run(self, program: Program, m: int, threads: int = 1, first: int = 0) -> list[np.ndarray]:
        x = self.input(first, m)
        guard = 32
        outs = [np.full(m * n + guard, np.nan, np.float32) for n in self.spec.outputs]
        biases = [bias for bias, s in zip(self.biases, self.spec.segments, strict=True) if s.bias]
        deal = aligned(DEAL_BYTES)
        for thread in range(threads):
            program.call(self.name, x, m, thread, threads, deal, *self.packed, *biases, *outs)
        assert not deal.any()
        assert all(np.isnan(out[-guard:]).all() for out in outs)
        return [out[:-guard].reshape(m, n) for out, n in zip(outs, self.spec.outputs, strict=True)]

    def expected(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each output in float64 and the error that the order of additions may cause."""
        x = self.x.astype(np.float64)
        if self.spec.activation == "a8":
            x = dequantize_a8(quantize_a8(self.x), self.spec.k).astype(np.float64)
        sums = []
        for segment, w, bias in zip(self.spec.segments, self.values, self.biases, strict=True):
            value = x @ w.T.astype(np.float64) + (bias if segment.bias else 0)
            size = np.abs(x) @ np.abs(w.T.astype(np.float64)) + np.abs(bias)
            sums.append((value, (self.spec.k / 8 + 8) * EPSILON * size))
        if self.spec.combine:
            (gate, gate_error), (up, up_error) = sums
            if self.spec.combine == "silu":
                opened = gate / (1 + np.exp(-gate))
            else:
                u = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
                opened = gate / 2 * (1 + np.tanh(u))
            # Both activations have slopes below 1.2.
            error = 1.2 * gate_error * np.abs(up) + up_error * np.abs(opened)
            sums = [(opened * up, error + 64 * EPSILON * (1 + np.abs(gate)) * np.abs(up))]
        if self.spec.softcap:
            cap = self.spec.softcap
            sums = [(cap * np.tanh(v / cap), e + 8 * EPSILON * cap) for v, e in sums]
        return sums


@pytest.mark.parametrize(("isa", "name"), [(i, name) for i in ISAS for name in kernels_of(i)])
def test_products_are_right(programs: dict[str, Program], isa: str, name: str) -> None:
    case = Case(name)
    for out, (value, error) in zip(case.run(programs[isa], 130), case.expected(), strict=True):
        assert (np.abs(out - value) <= error).all()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if "f8" in kernels_of(isa)])
def test_every_eight_bit_float_is_exact(programs: dict[str, Program], isa: str) -> None:
    """One column of x is one, and all codes come by in it: subnormals and both signs too."""
    case = Case("f8")
    (segment,), k = case.spec.segments, case.spec.k
    codebook = STORAGE_TYPES["f8_e4m3"].codebook
    assert codebook is not None
    case.x[:], case.biases[0][:] = 0, 0
    for column, first in ((0, 0), (127, 20), (128, 156), (k - 1, -44)):
        codes = (np.arange(segment.n * k).reshape(segment.n, k) * 7 % 127).astype(np.uint8)
        codes[:, column] = np.arange(first, first + segment.n) % 256
        codes[np.isnan(codebook[codes])] = 0
        scales = np.full((segment.n, 4), 0.75, np.float32)
        source = Codes(codes, 0, scales, None, 128, codebook)
        pack(segment.layout, [source], segment.n, k, case.packed[0])
        case.x[0] = np.arange(k) == column
        (out,) = case.run(programs[isa], 1)
        np.testing.assert_array_equal(out[0], codebook[codes[:, column]] * np.float32(0.75))


EXTREME = ("q8_0", "q6_k", "q5_0", "q5_1", "q4_1", "q2_k")


@pytest.mark.parametrize(
    ("isa", "name"), [(i, name) for i in ISAS for name in kernels_of(i) if name in EXTREME]
)
def test_largest_products_do_not_overflow(
    programs: dict[str, Program], isa: str, name: str
) -> None:
    """Some paths sum products in 16 bits: all of them as large as codes and activations get."""
    case = Case(name)
    storage, (n, k) = STORAGE_TYPES[KERNELS[name][2][0][0]], (case.spec.segments[0].n, case.spec.k)
    layout = case.spec.segments[0].layout
    codes = np.zeros((n, k), np.uint8)
    codes[::2] = (1 << storage.bits) - 1
    scales = np.ones((n, k // storage.group), np.float32)
    minima = -scales if storage.has_min else None
    pack(
        layout,
        [Codes(codes, storage.zero_point, scales, minima, storage.group)],
        n,
        k,
        case.packed[0],
    )
    case.values[0] = unpack(layout, case.packed[0], n, k)
    case.x[:] = 1
    case.x[1::2] = -1
    for out, (value, error) in zip(case.run(programs[isa], 130), case.expected(), strict=True):
        assert (np.abs(out - value) <= error).all()


@pytest.mark.parametrize(("isa", "name"), [(i, name) for i in ISAS for name in kernels_of(i)])
def test_bits_depend_on_neither_rows_nor_threads(
    programs: dict[str, Program], isa: str, name: str
) -> None:
    case = Case(name)
    whole = case.run(programs[isa], 130)
    for m in ROWS:
        for threads in (1, 2, 3, 7):
            first = 130 - m if threads == 2 else 0
            for out, all_rows in zip(
                case.run(programs[isa], m, threads, first), whole, strict=True
            ):
                np.testing.assert_array_equal(
                    out.view(np.uint32), all_rows[first : first + m].view(np.uint32)
                )


@pytest.mark.skipif(len(ISAS) < 2, reason="needs a host with two dot product paths")
@pytest.mark.parametrize("name", KERNELS)
def test_bits_do_not_depend_on_the_instruction_set(programs: dict[str, Program], name: str) -> None:
    case = Case(name)
    able = [program for isa, program in programs.items() if name in kernels_of(isa)]
    first, *others = (case.run(program, 13) for program in able)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


MAPPINGS = [MatmulMapping(3, 1, 1, 0), MatmulMapping(2, 2, 3, 512), MatmulMapping(8, 0, 1, 4096)]


@pytest.mark.parametrize("name", ["geglu", "q8_0"])
def test_bits_do_not_depend_on_the_mapping(tmp_path: Path, name: str) -> None:
    case, isa = Case(name), tuple(ISAS)[-1]
    programs = []
    for index, mapping in enumerate(MAPPINGS):

        def emit(b: Builder, mapping: MatmulMapping = mapping) -> None:
            emit_matmul(b, "kernel", case.spec, mapping)
            pointers = [b.ptr] * (matmul_argument_count(case.spec) - 4)
            types = [b.ptr, b.i64, b.i64, b.i64, *pointers]
            export(b, name, types, lambda a: b.call("kernel", a))

        programs.append(Program(ISAS[isa], emit, tmp_path / f"{index}.so"))
    for m in (1, 3, 7, 8, 13, 32):
        first, *others = (case.run(program, m)[0].view(np.uint32) for program in programs)
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("isa", ISAS)
def test_quantised_rows_are_those_of_numpy(programs: dict[str, Program], isa: str) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((200, 96)) * 10.0 ** rng.uniform(-36, 30, (200, 1))).astype(np.float32)
    x[0] = 0
    x[1, 40] = 127.5  # ties of the rounding
    x[1, 32:40] = np.arange(8) + 0.5
    for row, expected in zip(x, quantize_a8(x), strict=True):
        out = aligned(a8_row_bytes(96))
        programs[isa].call("quantize", row, out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("isa", ISAS)
def test_embedded_rows_are_those_of_unpack(
    programs: dict[str, Program], isa: str, name: str
) -> None:
    _, table, values = weights(name, 37, 256, 5)
    for row in (0, 15, 16, 36):
        out = np.zeros(256, np.float32)
        programs[isa].call("embed_" + name, table, row, out)
        np.testing.assert_array_equal(out, values[row] * np.float32(25.3))


def _apply(program: Program, name: str, x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    program.call("math_" + name, x, out, len(x) // 16)
    return out


@pytest.mark.parametrize("isa", ISAS)
def test_exp_and_tanh_are_accurate(programs: dict[str, Program], isa: str) -> None:
    for name, function, low, high in (("exp", np.exp, -86.8, 88.7), ("tanh", np.tanh, -12, 12)):
        x = np.linspace(low, high, 1 << 14).astype(np.float32)
        exact = function(x.astype(np.float64))
        unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        assert (np.abs(_apply(programs[isa], name, x) - exact) <= 2 * unit).all()


@pytest.mark.parametrize("isa", ISAS)
def test_functions_have_their_limits(programs: dict[str, Program], isa: str) -> None:
    large = [np.inf, -np.inf, 3e38, -3e38, 89.5, -110.0, 0.0, np.nan]
    x = np.array(large * 2, np.float32)
    expected = {
        "exp": [np.inf, 0, np.inf, 0, np.inf, 0, 1, np.nan],
        "tanh": [1, -1, 1, -1, 1, -1, 0, np.nan],
        "silu": [np.inf, np.nan, 3e38, 0, 89.5, 0, 0, np.nan],
        "gelu_tanh": [np.inf, np.nan, 3e38, 0, 89.5, 0, 0, np.nan],
    }
    for name, values in expected.items():
        got = _apply(programs[isa], name, x)[:8]
        np.testing.assert_array_equal(got, np.array(values, np.float32))


def test_packing_a_stored_tensor_feeds_the_kernel(programs: dict[str, Program]) -> None:
    storage = STORAGE_TYPES["q8_0"]
    raw = np.random.default_rng(9).integers(0, 256, storage.size_bytes((300, 640)), dtype=np.uint8)
    raw.reshape(-1, 34)[:, :2] = np.array([0.01], "<f2").view(np.uint8)
    case = Case("q8_0")
    pack(layout_for("q8_0"), row_chunks(storage, raw, 300, 640), 300, 640, case.packed[0])
    case.values = [storage.dequantize(raw, (300, 640))]
    weights.cache_clear()  # the packed bytes were shared with it
    program = next(iter(programs.values()))
    (value, error), out = case.expected()[0], case.run(program, 6)[0]
    assert (np.abs(out - value[:6]) <= error[:6]).all()


def test_segments_of_mixed_kinds_are_refused() -> None:
    parts = (Segment(16, layout_for("q8_0")), Segment(16, layout_for("f32")))
    with pytest.raises(ValueError, match="do not go with activations in a8"):
        MatmulSpec(64, parts, "a8")


def test_a_gate_needs_its_pair() -> None:
    parts = (Segment(16, layout_for("f32")), Segment(32, layout_for("f32")))
    with pytest.raises(ValueError, match="two segments with the same n"):
        MatmulSpec(64, parts, "f32", combine="silu")
