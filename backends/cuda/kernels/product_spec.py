"""What a matrix product computes, and what happens to its sums before they are stored.

One kernel does the products of one input with several weight matrices (*segments*: q, k and v), or
a gated feed-forward layer's pair, `out = activation(x @ gate.T) * (x @ up.T)`. The streamed, the
tiled and the warpgroup's product share all that is here.

Sums are fragments of 16 outputs x 8 tokens as `GpuBuilder.mma` makes them: four f32, with lane
`4 r + q` output r at tokens 2q, 2q+1, then output r+8 at the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from infc.backends.cuda.codegen.builder import GpuBuilder, Type, Value
from infc.backends.cuda.kernels.packing import BLOCK_K
from infc.passes.codegen.panels import panels_of
from infc.reference.abf16 import abf16_padded, abf16_row_bytes

OUTPUTS = ("f32", "abf16")
COMBINATIONS = ("silu", "gelu_tanh")
"""The activations of gated feed-forward layers."""

_GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = _GELU_LINEAR * 0.044715
Fragment = Sequence[Value]
"""Four f32 of a thread."""


@dataclass(frozen=True)
class Segment:
    """One weight matrix [n, k]: its rows, the name of its packed layout, whether a bias f32[n] is
    added."""

    n: int
    layout: str
    bias: bool = False


@dataclass(frozen=True)
class ProductSpec:
    """What a product kernel computes; the input is abf16 rows [rows, k].

    Attributes:
        k: numbers a row.
        segments: the weight matrices.
        combine: `silu` or `gelu_tanh`: the two segments (gate, up) make one output.
        softcap: outputs become `softcap * tanh(output / softcap)`.
        max_rows: the kernel is called with 1 .. max_rows rows.
        out: the form of the outputs: `f32` rows [rows, n], or `abf16` rows.
    """

    k: int
    segments: tuple[Segment, ...]
    combine: str | None = None
    softcap: float | None = None
    max_rows: int = 1
    out: str = "f32"

    def __post_init__(self) -> None:
        if self.out not in OUTPUTS:
            raise ValueError(f"out is one of {OUTPUTS}, got {self.out!r}")
        if not self.segments or min(self.k, self.max_rows, *(s.n for s in self.segments)) < 1:
            raise ValueError(f"a product needs segments, k, n and rows of at least 1, got {self}")
        if self.combine is None:
            return
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine is one of {COMBINATIONS}, got {self.combine!r}")
        if len({s.n for s in self.segments}) != 1 or len(self.segments) != 2:
            raise ValueError("a gated product needs two segments with the same n")

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The segments, by number, that make each output."""
        if self.combine is not None:
            return ((0, 1),)
        return tuple((i,) for i in range(len(self.segments)))

    @property
    def outputs(self) -> tuple[int, ...]:
        """Columns of each output."""
        return tuple(self.segments[group[0]].n for group in self.groups)

    @property
    def blocks(self) -> int:
        """Blocks of a panel."""
        return -(-self.k // BLOCK_K)

    def panels(self, output: int) -> int:
        """Panels of each of the matrices of an output."""
        return panels_of(self.outputs[output])

    def out_row_bytes(self, output: int) -> int:
        """Bytes from a row of an output to the next."""
        n = self.outputs[output]
        return abf16_row_bytes(n) if self.out == "abf16" else 4 * n

    def stored_columns(self, output: int) -> int:
        """Columns of a row that the kernel writes: with the zeros behind those of abf16 rows,
        which may be up to a panel more than the matrices have."""
        n = self.outputs[output]
        return abf16_padded(n) if self.out == "abf16" else n


@dataclass(frozen=True)
class ProductArguments:
    """The arguments of a product's function.

    Attributes:
        x: the abf16 rows.
        weights: a packed matrix with its header for each segment.
        biases: f32[n] for each segment, or None.
        outs: one for each output.
        rest: `rows`, `cta`, `ctas` and what follows, i32.
    """

    x: Value
    weights: list[Value]
    biases: list[Value | None]
    outs: list[Value]
    rest: list[Value]

    @staticmethod
    def types(b: GpuBuilder, spec: ProductSpec, rest: int) -> list[Type]:
        """Types of `x, weights..., biases..., outputs...` and `rest` numbers."""
        biases = sum(s.bias for s in spec.segments)
        pointers = 1 + len(spec.segments) + biases + len(spec.outputs)
        return [b.ptr] * pointers + [b.i32] * rest

    @staticmethod
    def of(spec: ProductSpec, arguments: Sequence[Value]) -> ProductArguments:
        """The arguments of `types`, by role."""
        counts = [1, len(spec.segments), sum(s.bias for s in spec.segments), len(spec.outputs)]
        ends = [0]
        for count in counts:
            ends.append(ends[-1] + count)
        x, weights, present, outs = (list(arguments[a:z]) for a, z in pairwise(ends))
        biases = [present.pop(0) if s.bias else None for s in spec.segments]
        return ProductArguments(x[0], weights, biases, outs, list(arguments[ends[-1] :]))


@dataclass(frozen=True)
class OutputRows:
    """Where the results of an output go; numbers are constants or i32 that the warps agree on.

    Attributes:
        out: its first row.
        n: columns of the matrix.
        columns: columns that are written (`ProductSpec.stored_columns`).
        row_bytes: from a row to the next.
        biases: f32[n] or None for each segment.
    """

    out: Value
    n: Value | int
    columns: Value | int
    row_bytes: Value | int
    biases: tuple[Value | None, ...]

    @staticmethod
    def of(spec: ProductSpec, arguments: ProductArguments, output: int) -> OutputRows:
        """Those of one output."""
        return OutputRows(
            arguments.outs[output],
            spec.outputs[output],
            spec.stored_columns(output),
            spec.out_row_bytes(output),
            tuple(arguments.biases[segment] for segment in spec.groups[output]),
        )


def load_biases(
    b: GpuBuilder, target: OutputRows, feature: Value
) -> list[tuple[Value, Value] | None]:
    """For each segment of an output its biases of outputs r and r+8 of the panel that starts at
    `feature` (i32, the same for the warp), zero beyond n; or None."""
    row = b.add(feature, b.shr(b.lane(), 2))
    zero = b.const(0.0, b.f32)

    def load(pointer: Value, index: Value) -> Value:
        (value,) = b.when(
            b.cmp("slt", index, target.n),
            lambda: [b.load(b.at(pointer, b.mul(index, 4)), b.f32, 4)],
            lambda: [zero],
            [b.f32],
        )
        return value

    return [
        None if pointer is None else (load(pointer, row), load(pointer, b.add(row, 8)))
        for pointer in target.biases
    ]


def finish_fragment(
    b: GpuBuilder,
    spec: ProductSpec,
    sums: Sequence[Fragment],
    biases: Sequence[tuple[Value, Value] | None],
) -> list[Value]:
    """What is stored: bias, gate and cap on one fragment for each segment of an output."""
    pairs = zip(sums, biases, strict=True)
    terms = [[_biased(b, value, bias, i) for i, value in enumerate(s)] for s, bias in pairs]
    values = terms[-1]
    if spec.combine is not None:
        gates, ups = terms
        values = [
            b.fmul(_activated(b, spec.combine, gate), up)
            for gate, up in zip(gates, ups, strict=True)
        ]
    if spec.softcap is not None:
        values = [_capped(b, spec.softcap, value) for value in values]
    return values


def store_fragment(
    b: GpuBuilder,
    spec: ProductSpec,
    target: OutputRows,
    feature: Value,
    token: Value,
    values: Fragment,
    rows: Value,
) -> None:
    """Store 16 outputs from `feature` on of 8 tokens from `token` on, i32 and the same for the
    warp, but only columns that the output has and tokens below `rows`."""
    lane = b.lane()
    r, q = b.shr(lane, 2), b.bit_and(lane, 3)
    row_bytes = b.wide(target.row_bytes)

    def store(value: Value, column: Value, row: Value, width: int, align: int) -> None:
        there = b.bit_and(b.cmp("slt", column, target.columns), b.cmp("slt", row, rows))
        offset = b.add(b.mul(b.wide(row), row_bytes), b.wide(b.mul(column, width)))
        b.when(there, lambda: b.store(value, b.at(target.out, offset), align))

    first_token = b.add(token, b.mul(q, 2))
    if spec.out == "f32":
        for i, value in enumerate(values):
            column, row = b.add(feature, b.add(r, i // 2 * 8)), b.add(first_token, i % 2)
            store(value, column, row, 4, 4)
        return
    # Lanes of outputs r and r^1 exchange halves: each then has two outputs of one token. Those of
    # r and r^2 do the same with these pairs: each then has four, and a warp stores whole sectors.
    odd, second = (b.cmp("ne", b.bit_and(r, bit), 0) for bit in (1, 2))
    pairs = []
    for low, high in (values[:2], values[2:]):
        received = b.shuffle_xor(b.select(odd, low, high), 4)
        pairs.append(b.pack_bf16(b.select(odd, received, low), b.select(odd, high, received)))
    received = b.shuffle_xor(b.select(second, pairs[0], pairs[1]), 8)
    low, high = b.select(second, received, pairs[0]), b.select(second, pairs[1], received)
    column = b.add(b.bit_and(r, 4), b.shl(b.bit_and(r, 2), 2))
    row = b.add(first_token, b.bit_and(r, 1))
    store(b.vector_of([low, high]), b.add(feature, column), row, 2, 8)


def _biased(b: GpuBuilder, value: Value, bias: tuple[Value, Value] | None, i: int) -> Value:
    return value if bias is None else b.fadd(value, bias[i // 2])


def _activated(b: GpuBuilder, kind: str, x: Value) -> Value:
    """`silu(x)`, or gelu by tanh: both are `x * sigmoid(u)`."""
    if kind == "silu":
        return b.fmul(x, _sigmoid(b, x))
    square = b.fmul(x, x)
    factor = b.fma(square, b.const(_GELU_CUBIC, b.f32), b.const(_GELU_LINEAR, b.f32))
    return b.fmul(x, _sigmoid(b, b.fmul(x, factor)))


def _capped(b: GpuBuilder, cap: float, x: Value) -> Value:
    """`cap * tanh(x / cap)`, to about an ulp of `cap`: `cap * (2 sigmoid(2 x / cap) - 1)`."""
    sigmoid = _sigmoid(b, b.fmul(x, b.const(2.0 / cap, b.f32)))
    return b.fma(sigmoid, b.const(2.0 * cap, b.f32), b.const(-cap, b.f32))


def _sigmoid(b: GpuBuilder, x: Value) -> Value:
    power = b.exp2(b.fmul(x, b.const(-math.log2(math.e), b.f32)))
    return b.reciprocal(b.fadd(power, b.const(1.0, b.f32)))
