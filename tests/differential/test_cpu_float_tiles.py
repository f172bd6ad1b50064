"""Float products whose sums are made part by part: NumPy's numbers, and the bits of one row."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
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
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.float_tiles import BLOCK_NUMBERS, BLOCK_ROWS, takes_parts
from infc.backends.cpu.kernels.layouts import PackedLayout, layout_for, pack, packed_bytes, unpack
from infc.backends.cpu.kernels.matmul import (
    MatmulMapping,
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

ISAS = {
    name: isa_of(resolve_cpu(name))
    for name in ("cpu:x86-64-v3", "cpu:aarch64")
    if not missing_features(resolve_cpu(name), host_features())
    or (name == "cpu:aarch64" and emulated.problem() is None)
}
if not ISAS:
    pytest.skip("needs a processor that programs are made for", allow_module_level=True)

MANY = 2 * BLOCK_ROWS + 7
Case: TypeAlias = tuple[int, list[tuple[int, str]], tuple[int, int, int], dict[str, object]]
# name -> (k, [(n, storage)], (row_tile, col_tile, unroll), options)
CASES: dict[str, Case] = {
    "f32": (BLOCK_NUMBERS + 37, [(300, "f32")], (6, 2, 1), {}),
    "f32_short": (3, [(17, "f32")], (2, 1, 1), {}),
    "bf16": (2 * BLOCK_NUMBERS, [(70, "bf16")], (6, 4, 1), {}),
    "bf16_odd": (BLOCK_NUMBERS + 1, [(33, "bf16")], (5, 3, 2), {}),
    "f16": (130, [(40, "f16"), (16, "bf16"), (9, "f32")], (4, 2, 2), {"softcap": 30.0}),
    "f8": (416, [(90, "f8_e4m3")], (6, 2, 1), {}),
    "f8_odd": (132, [(33, "f8_e4m3"), (16, "bf16")], (3, 1, 4), {}),
    "lines": (288, [(40, "bf16.lines"), (19, "f16.lines"), (33, "f32.lines")], (6, 2, 1), {}),
    "gated": (64, [(36, "bf16"), (36, "f16")], (7, 2, 1), {"combine": "silu"}),
}
Array: TypeAlias = NDArray[np.float32]


def layout_of(storage: str) -> PackedLayout:
    kind, _, lines = storage.partition(".")
    return replace(layout_for(kind), lines=bool(lines))


def spec_of(name: str) -> MatmulSpec:
    k, segments, _, options = CASES[name]
    parts = tuple(Segment(n, layout_of(storage), i == 0) for i, (n, storage) in enumerate(segments))
    return replace(MatmulSpec(k, parts, "f32", max_rows=MANY), **options)  # type: ignore[arg-type]


def aligned(size: int) -> NDArray[np.uint8]:
    """Bytes that start at a multiple of 64, none of them zero."""
    room = np.full(size + 64, 0xA5, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def weights(storage: str, n: int, k: int) -> tuple[NDArray[np.uint8], Array]:
    """A packed matrix and its numbers."""
    rng = np.random.default_rng(n + k)
    kind, layout = STORAGE_TYPES[storage.partition(".")[0]], layout_of(storage)
    source: Codes | Array = rng.standard_normal((n, k)).astype(np.float32)
    if kind.codebook is not None:
        codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
        codes[np.isnan(kind.codebook[codes])] = 0
        scales = rng.uniform(0.005, 0.01, (n, -(-k // kind.group))).astype(np.float32)
        source = Codes(codes, 0, scales, None, kind.group, kind.codebook)
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


Library: TypeAlias = NativeLibrary | emulated.EmulatedLibrary


@pytest.fixture(scope="module", params=ISAS)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Library]:
    isa, path = ISAS[request.param], tmp_path_factory.mktemp("tiles") / "kernels.so"
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        b = Builder(module, isa)
        for name in CASES:
            spec, (rows, columns, unroll) = spec_of(name), CASES[name][2]
            emit_matmul(b, "kernel_" + name, spec, MatmulMapping(rows, columns, unroll, 0))
            pointers = [b.ptr] * (matmul_argument_count(spec) - 4)
            with b.function(name, [b.ptr, b.i64, b.i64, b.i64, *pointers], private=False) as values:
                b.call("kernel_" + name, values)
                b.ret()
        module.operation.verify()
        lower_to_llvm(module)
        path.write_bytes(link_shared(emit_object(module, isa)))
    if missing_features(resolve_cpu(request.param), host_features()):
        found = emulated.EmulatedLibrary(isa, path)
        yield found
        found.close()
    else:
        yield NativeLibrary(path)


def runner(library: Library, name: str) -> tuple[Callable[..., list[Array]], Array, list[Array]]:
    """`run(first, m, threads)` for rows of x, x, and the weights' numbers."""
    spec, (k, segments, _, _) = spec_of(name), CASES[name]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((MANY, k)).astype(np.float32)
    packed, values = zip(*(weights(storage, n, k) for n, storage in segments), strict=True)
    bias = np.linspace(-1, 1, segments[0][0], dtype=np.float32)

    def run(first: int, m: int, threads: int = 1) -> list[Array]:
        rows = aligned(4 * m * k)
        rows[:] = x[first : first + m].view(np.uint8).reshape(-1)
        outs = [np.full(m * n + 32, np.nan, np.float32) for n in spec.outputs]
        deal = np.zeros(DEAL_BYTES, np.uint8)
        for thread in range(threads):
            library.call(name, rows, m, thread, threads, deal, *packed, bias, *outs)
        assert all(np.isnan(out[-32:]).all() for out in outs)
        return [out[:-32].reshape(m, n) for out, n in zip(outs, spec.outputs, strict=True)]

    return run, x, list(values)


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_numpy(library: Library, name: str) -> None:
    run, x, values = runner(library, name)
    exact = [x.astype(np.float64) @ w.T.astype(np.float64) for w in values]
    sizes = [np.abs(x).astype(np.float64) @ np.abs(w.T).astype(np.float64) + 1 for w in values]
    exact[0] += np.linspace(-1, 1, exact[0].shape[1], dtype=np.float32)
    errors = [(x.shape[1] / 8 + 8) * 2.0**-24 * size for size in sizes]
    if CASES[name][3].get("combine"):
        opened = exact[0] / (1 + np.exp(-exact[0]))
        error = 1.2 * errors[0] * np.abs(exact[1]) + errors[1] * np.abs(opened)
        exact, errors = [opened * exact[1]], [error + 2.0**-18 * (1 + np.abs(opened * exact[1]))]
    if cap := CASES[name][3].get("softcap"):
        exact = [cap * np.tanh(value / cap) for value in exact]  # type: ignore[operator]
        errors = [error + 8 * 2.0**-24 * cap for error in errors]  # type: ignore[operator]
    for out, value, error in zip(run(0, MANY), exact, errors, strict=True):
        assert (np.abs(out - value) <= error).all()


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_one_row(library: Library, name: str) -> None:
    run, x, _ = runner(library, name)
    alone = [np.concatenate(outs) for outs in zip(*(run(i, 1) for i in range(len(x))), strict=True)]
    for m in (*range(2, 41), BLOCK_ROWS, BLOCK_ROWS + 1, MANY):
        first = (MANY - m) // 2
        for out, rows in zip(run(first, m, 1 + m % 3), alone, strict=True):
            np.testing.assert_array_equal(
                out.view(np.uint32), rows[first : first + m].view(np.uint32)
            )


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:aarch64"])
@pytest.mark.parametrize("name", CASES)
def test_few_registers_take_parts(target: str, name: str) -> None:
    isa = isa_of(resolve_cpu(target))
    assert all(takes_parts(isa, mapping.row_tile) for mapping in candidates(spec_of(name), isa))


def test_many_registers_hold_all_parts() -> None:
    isa: Isa = isa_of(resolve_cpu("cpu:x86-64-v4"))
    assert not takes_parts(isa, 12)
