"""The float head with bounds behind it against the product in one plane: the same bits.

Lists of the best logits are compared with sorted logits, ids and bits, on inputs that are hard for
the bound, for the order of equals, or for the arithmetic.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from head_kernels import ROWS, HeadKernels, aligned, host_isas

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bounded_layout import (
    bounded_layout_for,
    pack_bounded,
)
from infc.backends.cpu.kernels.embed import emit_embed_row
from infc.backends.cpu.kernels.head_planes import HeadSpec
from infc.backends.cpu.kernels.layouts import (
    layout_for,
    layout_named,
    pack,
    packed_bytes,
)
from infc.backends.cpu.kernels.matmul import MatmulMapping, MatmulSpec, Segment, emit_matmul

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
