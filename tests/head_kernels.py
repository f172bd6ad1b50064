"""Kernels of a head, called from Python: the best products are compared with all of them."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm_binding
import numpy as np

from infc.backends.cpu.codegen.builder import Builder
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.codegen.linking import link_shared
from infc.backends.cpu.codegen.toolchain import emit_object, lower_to_llvm
from infc.backends.cpu.kernels.best_list import emit_argmax_of_parts, emit_merge, emit_top_k
from infc.backends.cpu.kernels.dealing import DEAL_BYTES
from infc.backends.cpu.kernels.head_planes import HeadSpec
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PackedLayout
from infc.backends.cpu.kernels.matmul import (
    MatmulMapping,
    MatmulSpec,
    Segment,
    candidates,
    emit_matmul,
)
from infc.backends.cpu.kernels.split_head import emit_head_candidates
from infc.ir.mlir import ir
from infc.passes.codegen.panels import panels_of
from infc.reference import ops

PARTS, COUNT, ROWS = 5, 64, 35
_FORMS = {
    "whole": "piiippp",
    "logits": "piiippp",
    "top": "piiippppi",
    "best": "piiippppi",
    "merge": "ppppiiii",
    "argmax": "pppiii",
    "top_k": "pppiiii",
}


def host_isas() -> dict[str, Isa]:
    """Those of x86 that this processor has."""
    has = llvm_binding.get_host_cpu_features()
    triple = llvm_binding.get_default_triple()
    found = {}
    if has.get("avx2") and has.get("fma") and has.get("f16c"):
        found["avx2"] = Isa(triple, "x86-64-v3", "", 32, 16, "avx2", False)
    if has.get("avx512vnni"):
        found["avx512"] = Isa(triple, "x86-64-v4", "+avx512vnni", 64, 32, "avx512-vnni", False)
    return found


def aligned(size: int) -> np.ndarray:
    """Bytes that start at a multiple of 64."""
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def bits(values: np.ndarray) -> np.ndarray:
    """Of float32; all that are no number are alike, for instructions choose their sign."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.int32)


class HeadKernels:
    """The kernels of one shape.

    Args:
        spec: of the matrix in planes.
        whole: the layout of the same matrix in one plane.
        emit_logits: defines `@logits`, all products with the matrix in planes.
        emit_embed: writes a row of that matrix.
    """

    def __init__(
        self,
        isa: Isa,
        spec: HeadSpec,
        whole: PackedLayout,
        emit_logits: Callable[[Builder, MatmulMapping], None],
        emit_embed: Callable[..., None],
    ) -> None:
        self.n, self.k, self.spec, self.whole = spec.n, spec.k, spec, whole
        with ir.Context(), ir.Location.unknown():
            module = ir.Module.create()
            b = Builder(module, isa)
            product = MatmulSpec(self.k, (Segment(self.n, whole),), spec.activation, max_rows=ROWS)
            mapping = candidates(product, b.isa)[0]
            emit_matmul(b, "whole", product, mapping)
            emit_logits(b, mapping)
            self._emit_candidates(b, mapping)
            with b.function("run_embed", [b.ptr, b.i64, b.ptr], private=False) as arguments:
                emit_embed(b, *arguments)
                b.ret()
            module.operation.verify()
            lower_to_llvm(module)
            shared = link_shared(emit_object(module, isa))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "head.so")
            path.write_bytes(shared)
            self.library = ctypes.CDLL(str(path))

    def _emit_candidates(self, b: Builder, mapping: MatmulMapping) -> None:
        emit_head_candidates(b, "top", self.spec, mapping, PARTS, COUNT)
        emit_head_candidates(b, "best", self.spec, mapping, PARTS, 1)
        emit_merge(b, "merge", PARTS, COUNT)
        emit_argmax_of_parts(b, "argmax", PARTS)
        emit_top_k(b, "top_k", self.n, COUNT)
        for name, form in _FORMS.items():
            types = [b.ptr if letter == "p" else b.i64 for letter in form]
            with b.function(f"run_{name}", types, private=False) as arguments:
                b.call(name, arguments)
                b.ret()
        offset = self.spec.layout.high_offset(self.n, self.k)
        with b.function("run_bounds", [b.ptr] * 4, private=False) as (x, prepared, matrix, out):
            products, planes = self.spec.products, b.at(matrix, offset)
            b.call(products.emit_prepare(b), [x, prepared])
            high, panels = b.at(planes, HEADER_BYTES), b.idx(panels_of(self.n))
            operands = [x, prepared, high, panels, b.load(planes, b.f32, 4), out]
            b.call(products.emit_bounds(b), operands)
            b.ret()

    def call(self, name: str, *operands: np.ndarray | int) -> None:
        self.library[f"run_{name}"](
            *(
                ctypes.c_int64(v) if isinstance(v, int) else ctypes.c_void_p(v.ctypes.data)
                for v in operands
            )
        )

    def logits(self, kernel: str, x: np.ndarray, m: int, matrix: np.ndarray) -> np.ndarray:
        out, deal = np.full((m, self.n), np.nan, np.float32), aligned(DEAL_BYTES)
        for thread in range(2):
            self.call(kernel, x, m, thread, 2, deal, matrix, out)
        assert not deal.any()
        return out

    def best(self, x: np.ndarray, m: int, planes: np.ndarray, threads: int) -> np.ndarray:
        values, ids = self.lists(m, PARTS)
        deal = aligned(DEAL_BYTES)
        out = np.full(m, -1, np.int32)
        for thread in range(threads):
            self.call("best", x, m, thread, threads, deal, planes, values, ids, 1)
        assert not deal.any()
        for thread in range(threads):
            self.call("argmax", values, ids, out, m, thread, threads)
        return out

    def top(
        self, x: np.ndarray, m: int, planes: np.ndarray, threads: int, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        part_values, part_ids = self.lists(m, PARTS * COUNT)
        deal = aligned(DEAL_BYTES)
        values, ids = self.lists(m, COUNT)
        for thread in range(threads):
            operands = [planes, part_values, part_ids, wanted]
            self.call("top", x, m, thread, threads, deal, *operands)
        assert not deal.any()
        for thread in range(threads):
            self.call("merge", part_values, part_ids, values, ids, m, thread, threads, wanted)
        return values[:, :wanted], ids[:, :wanted]

    def lists(self, m: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
        """What an earlier call may have left: large values that must not be believed."""
        return np.full((m, entries), 3e38, np.float32), np.full((m, entries), 7, np.int32)

    def bounds(self, x: np.ndarray, planes: np.ndarray) -> np.ndarray:
        prepared = aligned(self.spec.products.prepared_bytes)
        out = np.zeros(panels_of(self.n) * 16, np.float32)
        self.call("bounds", x, prepared, planes, out)
        return out[: self.n]

    def agree(self, x: np.ndarray, planes: np.ndarray, whole: np.ndarray, m: int = 1) -> None:
        """All that the planes give is what the whole product says."""
        want = self.logits("whole", x, m, whole)
        got = self.logits("logits", x, m, planes)
        np.testing.assert_array_equal(bits(got), bits(want))
        # Not "at least": what is no number bounds everything.
        assert not (self.bounds(x, planes) < want[0]).any()
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(
                self.best(x, m, planes, threads), ops.top_k(want, 1)[1][:, 0]
            )
            for wanted in (1, 5, COUNT):
                values, ids = self.top(x, m, planes, threads, wanted)
                expected, at = ops.top_k(want, wanted)
                np.testing.assert_array_equal(ids, at)
                np.testing.assert_array_equal(bits(values), bits(expected))
