"""Matrix products with packed weights: `out_i = x @ weights_i.T` for all rows of x, on all threads.

One kernel does the products of one input with several weight matrices (*segments*: q, k and v), or
a gated feed-forward layer's pair, `out = activation(x @ gate.T) * (x @ up.T)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bf16_blocks import block_height
from infc.backends.cpu.kernels.bf16_panels import bf16_panel_bytes
from infc.backends.cpu.kernels.blocked import (
    FEW_PANELS,
    BlockedArguments,
    BlockedKernel,
    emit_blocked,
)
from infc.backends.cpu.kernels.dealing import MOSTLY, Team, emit_dealt, emit_mostly_even
from infc.backends.cpu.kernels.dots import prefetch_pays
from infc.backends.cpu.kernels.epilogue import COMBINATIONS, Epilogue
from infc.backends.cpu.kernels.float_tiles import (
    FloatTile,
    emit_float_tiles,
    float_tile_bytes,
    takes_parts,
)
from infc.backends.cpu.kernels.layouts import HEADER_BYTES, PackedLayout
from infc.backends.cpu.kernels.staged import TileKernel, emit_staged
from infc.backends.cpu.kernels.stream import PANEL_OUT_BYTES, StreamKernel, emit_stream
from infc.ir.mlir import ir
from infc.passes.codegen.panels import PANEL_ROWS, panels_of
from infc.reference.abf16 import abf16_row_bytes

ACTIVATIONS = ("a8", "abf16", "f32")
OUTPUTS = ("f32", "abf16")
_STREAM_ROWS = 2
"""Rows at a time where there are several, but too few for a tile."""
_BATCH_ROWS = 32
_STREAMED_ROWS = 8
"""Calls of up to so many rows unpack weights in registers only, for up to eight rows at a time:
these are what 32 vector registers hold beside the codes of a group."""
STACK_LIMIT_BYTES = 1 << 20
"""Staged panels take no more of a thread's stack than this."""
STREAM_PIECE_BYTES = 1 << 16
"""Streamed weights taken at a time: some microseconds, and many times what is prefetched in vain
behind each piece."""
_STAGED_BYTES = 1 << 20
_ROWS_BYTES = 5 << 18
"""bf16 panels staged at once, and rows of x that stay in the second cache of processors with AMX
(2 MiB a core; Intel 64 and IA-32 Architectures Optimization Reference Manual, Sapphire Rapids)."""


_TILES = {
    "avx512-vnni": [(6, 2), (12, 1), (4, 2), (6, 1)],
    "avx-vnni": [(3, 1), (2, 1), (4, 1)],
    "avx2": [(4, 1), (2, 1), (5, 1)],
    "neon-i8mm": [(2, 1), (4, 1)],
    "neon-dot": [(4, 1), (2, 1), (3, 1)],
}
"""Rows and panels of a tile by `Isa.dot_i8`, the best guess first: those that take the fewest
instructions a row, spills included. The float sums and the integer ones both want registers."""


@dataclass(frozen=True)
class Segment:
    """One weight matrix [n, k]: its rows, how it is packed, and whether a bias f32[n] is added."""

    n: int
    layout: PackedLayout
    bias: bool = False


@dataclass(frozen=True)
class MatmulSpec:
    """What a kernel computes.

    Attributes:
        k: numbers a row.
        segments: the weight matrices.
        activation: the form of x: `a8` rows for quantised weights, `f32` rows for float weights,
            `abf16` rows for either.
        combine: `silu` or `gelu_tanh`: the two segments (gate, up) make one output.
        softcap: outputs become `softcap * tanh(output / softcap)`.
        max_rows: the kernel is called with 1 .. max_rows rows.
        out: the form of the output: `f32` rows, or, of an `abf16` x, `abf16` rows.
    """

    k: int
    segments: tuple[Segment, ...]
    activation: str
    combine: str | None = None
    softcap: float | None = None
    max_rows: int = 1
    out: str = "f32"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {ACTIVATIONS}, got {self.activation!r}")
        if self.out not in (OUTPUTS if self.activation == "abf16" else OUTPUTS[:1]):
            raise ValueError(f"{self.activation} rows do not make {self.out} rows")
        if (
            not self.segments
            or self.k < 1
            or self.max_rows < 1
            or any(s.n < 1 for s in self.segments)
        ):
            raise ValueError(f"a product needs segments, k, n and rows of at least 1, got {self}")
        if self.activation != "abf16" and any(
            s.layout.is_float != (self.activation == "f32") for s in self.segments
        ):
            names = [s.layout.name for s in self.segments]
            raise ValueError(f"weights {names} do not go with activations in {self.activation}")
        if self.activation == "a8" and self.k % 32:
            raise ValueError(f"quantised weights need k in multiples of 32, got {self.k}")
        if self.combine is None:
            return
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine is one of {sorted(COMBINATIONS)}, got {self.combine!r}")
        if len({s.n for s in self.segments}) != 1 or len(self.segments) != 2:
            raise ValueError("a gated product needs two segments with the same n")

    @property
    def outputs(self) -> tuple[int, ...]:
        """Columns of each output."""
        return (self.segments[0].n,) if self.combine else tuple(s.n for s in self.segments)


SumsProvider = Callable[[Builder, PackedLayout, int, int], str]
"""Declares the function that makes the sums of a panel of a layout, `[k][16]`, for so many rows;
returns its name."""


@dataclass(frozen=True)
class MatmulMapping:
    """How a kernel runs.

    Attributes:
        row_tile: rows at a time once there are that many: more of them use a loaded weight more
            often, and want more registers for their sums.
        col_tile: panels of 16 columns at a time then, which use a loaded row more often; of a
            product in bf16, panels staged at once: rows come from further out once for each run of
            them, and the panels take as much of the second cache. 0 where the weights of integer
            products are never staged.
        unroll: turns of the loop along k unrolled, where weights are streamed and in bf16.
        prefetch_bytes: how far ahead of a stream to prefetch; 0 for not at all.
        stream_even: percent of a stream that are split evenly among the threads; the rest is taken
            in pieces by who is free (`dealing`). Long runs read faster, pieces even out.
        stream_piece: bytes of such a piece.
        tile_even: the same percent where there are rows for a tile.
        tile_pieces: pieces a thread then; a piece is no smaller than two panels and no larger than
            `col_tile`.
    """

    row_tile: int
    col_tile: int
    unroll: int
    prefetch_bytes: int
    stream_even: int = MOSTLY
    stream_piece: int = STREAM_PIECE_BYTES
    tile_even: int = 0
    tile_pieces: int = 4


def candidates(spec: MatmulSpec, isa: Isa) -> list[MatmulMapping]:
    """The mappings that are good for most machines, best guess first; `matmul_space` has more."""
    if spec.activation == "abf16":
        return [
            MatmulMapping(block_height(isa), panels, 1, 0) for panels in _staged_panels(spec, isa)
        ]
    wide = isa.vector_bytes >= 64 and isa.vector_registers >= 32
    tiles = _float_tile_shapes(isa) if spec.activation == "f32" else _TILES[isa.dot_i8]
    fitting = [tile for tile in tiles if stack_bytes(spec, isa, *tile) <= STACK_LIMIT_BYTES]
    tiles = fitting or [(tile[0], 1) for tile in tiles[:1]]
    streams = _stream_guesses(spec, isa)
    if spec.max_rows == 1:  # streaming is all there is
        tiles = tiles[:1]
    elif spec.max_rows <= _BATCH_ROWS and spec.activation == "a8" and wide:
        # Codes of 8 bits are read as they lie; staging the others pays from a few rows on.
        streamed = [(_STREAMED_ROWS, 0)]
        are_bytes = all(segment.layout.has_bytes for segment in spec.segments)
        tiles = [*streamed, *tiles] if are_bytes else [*tiles, *streamed]
    return [MatmulMapping(*tile, *stream) for stream in streams for tile in tiles]


def _stream_guesses(spec: MatmulSpec, isa: Isa) -> list[tuple[int, int]]:
    """Turns of a loop at a time, and how far ahead to prefetch, where weights are read once.

    Of one row four turns at a time, 8 KiB ahead take 3 to 10% less on Emerald Rapids than one turn,
    16 KiB ahead; on Zen 3 one turn, 2 KiB ahead takes 4 to 9% less than that (own measurements,
    shapes of Gemma 3 and Llama).
    """
    if isa.dot_i8 == "avx2":
        if any(prefetch_pays(isa, segment.layout) for segment in spec.segments):
            return [(1, 2048), (2, 2048), (1, 4096)]
        return [(1, 0), (2, 0), (1, 2048)]
    if spec.max_rows == 1:
        return [(4, 8192), (2, 8192), (4, 16384)]
    return [(1, 8192), (2, 8192), (1, 16384)]


def _float_tile_shapes(isa: Isa) -> list[tuple[int, int]]:
    """Rows and panels of a tile of float weights.

    Four sums of 16 lanes for each row, or one where the parts of sums are made one by one.
    """
    return [(6, 2), (4, 2)] if takes_parts(isa, 6) else [(6, 1), (4, 1)]


def _staged_panels(spec: MatmulSpec, isa: Isa) -> list[int]:
    """Panels to stage at once: two beside rows that fit the second cache, else as many as fit.

    Only tiles are fed fast enough for the first cache to matter.
    """
    panel_bytes = bf16_panel_bytes(spec.k) * (2 if spec.combine else 1)
    most = max(panels_of(s.n) + panels_of(s.n) % 2 for s in spec.segments)
    fitting = min(max(_STAGED_BYTES // panel_bytes // 2 * 2, 2), most)
    few = isa.amx and spec.max_rows * abf16_row_bytes(spec.k) <= _ROWS_BYTES
    return list(dict.fromkeys((FEW_PANELS, fitting) if few else (fitting, FEW_PANELS)))


def stack_bytes(spec: MatmulSpec, isa: Isa, row_tile: int, col_tile: int) -> int:
    """Bytes of a thread's stack that staged panels take."""
    if spec.activation == "abf16":
        return col_tile * bf16_panel_bytes(spec.k) * (2 if spec.combine else 1)
    if spec.activation == "f32":
        return float_tile_bytes(col_tile) if takes_parts(isa, row_tile) else 0
    if not col_tile:
        return 0
    plain = Epilogue(scaled=True)
    tiles = [TileKernel.of(spec.k, isa, s.layout, row_tile, col_tile, plain) for s in spec.segments]
    return col_tile * max(tile.panel_bytes for tile in tiles)


_PLAIN_ARGUMENTS = 5
"""Arguments before the weights."""


def matmul_argument_count(spec: MatmulSpec) -> int:
    """Arguments of the emitted function."""
    return (
        _PLAIN_ARGUMENTS
        + len(spec.segments)
        + sum(s.bias for s in spec.segments)
        + len(spec.outputs)
    )


def emit_matmul(
    b: Builder,
    name: str,
    spec: MatmulSpec,
    mapping: MatmulMapping,
    provider: SumsProvider | None = None,
) -> None:
    """Define the kernel as a private function:

        @name(x: ptr, m: i64, thread: i64, threads: i64, deal: ptr,
              weights: ptr..., bias: ptr..., out: ptr...)

    x is m rows in the form `spec.activation` says, 64-byte aligned; each weights is a packed matrix
    with its header; there is a bias for each segment that has one; each out is f32 [m, n]. Every
    output has the same bits whatever m, the threads and the mapping are.

    A `provider` makes the sums of float panels where there are `mapping.row_tile` rows or more, and
    the panels are not in lines.

    The panels of all segments, in order, are dealt to the threads by their bytes (`dealing`). With
    few rows most of them are split evenly, and a thread does all gates of a part before it combines
    them, so that it reads one long stream at a time; with many it takes a few panels at a time.
    """
    if spec.activation == "abf16":
        _emit_blocked_matmul(b, name, spec, mapping)
        return
    most = mapping.row_tile - 1 if mapping.col_tile else mapping.row_tile
    streamed = [1, _STREAM_ROWS]
    while mapping.col_tile == 0 and streamed[-1] < mapping.row_tile:
        streamed.append(2 * streamed[-1])
    regimes = [
        (rows, _streams(b, spec, mapping, rows, provider if rows == mapping.row_tile else None))
        for rows in streamed
        if rows == 1 or rows <= min(spec.max_rows, most)
    ]
    if mapping.col_tile and spec.max_rows >= mapping.row_tile > 1:
        if spec.activation == "a8":
            many = _tiles(b, spec, mapping)
        elif provider is None and takes_parts(b.isa, mapping.row_tile):
            many = _float_tiles(b, spec, mapping)
        else:
            many = _streams(b, spec, mapping, mapping.row_tile, provider)
        regimes.append((mapping.row_tile, many))
    with b.function(name, _argument_types(b, spec), inline=False) as arguments:
        operands, deal = _Operands.of(spec, arguments), _Deal.of(b, spec, arguments)

        def run(functions: list[str], first_rows: int) -> None:
            def panels(bounds: list[tuple[Value, Value]]) -> None:
                for index, function in enumerate(functions):
                    b.call(function, operands.for_panels(b, spec, index, *bounds[index]))

            if first_rows in streamed:
                deal.stream(b, mapping, panels)
            else:
                deal.pieces(b, mapping, panels)

        _emit_choice(b, arguments[1], regimes, run)
        b.ret()


def _argument_types(b: Builder, spec: MatmulSpec) -> list[ir.Type]:
    pointers = matmul_argument_count(spec) - _PLAIN_ARGUMENTS
    return [b.ptr, b.i64, b.i64, b.i64, b.ptr, *[b.ptr] * pointers]


def _emit_blocked_matmul(b: Builder, name: str, spec: MatmulSpec, mapping: MatmulMapping) -> None:
    """The kernel in bf16: a panel function for each output."""
    short = spec.out == "abf16" and b.isa.vector_bytes >= 64
    groups = [spec.segments] if spec.combine else [(segment,) for segment in spec.segments]
    functions = []
    for index, group in enumerate(groups):
        offset = 0 if spec.combine else index
        kernel = BlockedKernel(
            tuple(segment.layout for segment in group),
            group[0].n,
            spec.k,
            mapping.col_tile,
            tuple(
                replace(_epilogue(spec, offset + i), scaled=False, short=short)
                for i in range(len(group))
            ),
            spec.out,
            mapping.unroll,
        )
        functions.append(emit_blocked(b, kernel))
    with b.function(name, _argument_types(b, spec), inline=False) as arguments:
        operands, deal = _Operands.of(spec, arguments), _Deal.of(b, spec, arguments)

        def panels(bounds: list[tuple[Value, Value]]) -> None:
            for index, function in enumerate(functions):
                part = slice(0, 2) if spec.combine else slice(index, index + 1)
                weights = operands.weights[part]
                call = BlockedArguments(
                    operands.x,
                    operands.m,
                    *bounds[index],
                    tuple(b.at(w, HEADER_BYTES) for w in weights),
                    tuple(b.load(w, b.f32, 4) for w in weights),
                    tuple(operands.biases[part]),
                    operands.outs[index],
                )
                some = b.cmp("slt", *bounds[index])
                b.when(some, partial(b.call, function, call.values()))

        deal.pieces(b, mapping, panels)
        b.ret()


def _emit_choice(
    b: Builder,
    m: Value,
    regimes: list[tuple[int, list[str]]],
    run: Callable[[list[str], int], None],
) -> None:
    """Run the last regime whose least number of rows is reached."""
    least, functions = regimes[-1]
    if len(regimes) == 1:
        run(functions, least)
        return
    b.when(
        b.cmp("sge", m, least),
        partial(run, functions, least),
        partial(_emit_choice, b, m, regimes[:-1], run),
    )


def _epilogue(spec: MatmulSpec, index: int) -> Epilogue:
    """Of a segment; the first one of a gated pair is stored as it is, the second one combines."""
    segment = spec.segments[index]
    last = spec.combine is None or index == 1
    return Epilogue(
        scaled=not segment.layout.is_float,
        bias=segment.bias,
        combine=spec.combine if last else None,
        softcap=spec.softcap if last else None,
        partial=segment.n % PANEL_ROWS != 0,
    )


def _streams(
    b: Builder,
    spec: MatmulSpec,
    mapping: MatmulMapping,
    rows: int,
    provider: SumsProvider | None = None,
) -> list[str]:
    """A streaming panel function for each segment."""
    return [
        emit_stream(
            b,
            StreamKernel(
                segment.layout,
                spec.k,
                rows,
                _epilogue(spec, index),
                mapping.unroll,
                mapping.prefetch_bytes,
                provider(b, segment.layout, spec.k, rows)
                if provider and not segment.layout.lines
                else "",
            ),
        )
        for index, segment in enumerate(spec.segments)
    ]


def _tiles(b: Builder, spec: MatmulSpec, mapping: MatmulMapping) -> list[str]:
    """A staging panel function for each segment."""
    return [
        emit_staged(
            b,
            segment.layout,
            TileKernel.of(
                spec.k,
                b.isa,
                segment.layout,
                mapping.row_tile,
                mapping.col_tile,
                _epilogue(spec, index),
            ),
        )
        for index, segment in enumerate(spec.segments)
    ]


def _float_tiles(b: Builder, spec: MatmulSpec, mapping: MatmulMapping) -> list[str]:
    """A panel function that makes parts of sums, for each segment."""
    shape = spec.k, mapping.row_tile, mapping.col_tile, mapping.unroll
    return [
        emit_float_tiles(b, FloatTile(segment.layout, *shape, _epilogue(spec, index)))
        for index, segment in enumerate(spec.segments)
    ]


@dataclass(frozen=True)
class _Operands:
    """The pointers a kernel gets, by segment; x stands in for a bias that does not exist."""

    x: Value
    m: Value
    weights: list[Value]
    biases: list[Value]
    outs: list[Value]

    @staticmethod
    def of(spec: MatmulSpec, arguments: list[Value]) -> _Operands:
        """Take the arguments of a kernel apart."""
        x, m = arguments[:2]
        rest = iter(arguments[_PLAIN_ARGUMENTS:])
        weights = [next(rest) for _ in spec.segments]
        biases = [next(rest) if segment.bias else x for segment in spec.segments]
        outs = list(rest)
        return _Operands(x, m, weights, biases, outs * 2 if spec.combine else outs)

    def for_panels(
        self, b: Builder, spec: MatmulSpec, index: int, first: Value, last: Value
    ) -> list[Value]:
        """The operands of the panel function for the panels [first, last) of a segment."""
        segment, weights = spec.segments[index], self.weights[index]
        panel_bytes = segment.layout.panel_bytes(spec.k)
        offset = b.mul(first, PANEL_OUT_BYTES)
        return [
            self.x,
            self.m,
            b.at(weights, b.add(b.mul(first, panel_bytes), HEADER_BYTES)),
            b.sub(last, first),
            b.load(weights, b.f32, 4),
            b.at(self.biases[index], offset) if segment.bias else self.biases[index],
            b.at(self.outs[index], offset),
            b.idx(4 * segment.n),
            b.sub(b.idx(segment.n), b.mul(first, PANEL_ROWS)),
        ]


@dataclass(frozen=True)
class _Deal:
    """How the panels of all segments come to the threads.

    Attributes:
        team: the threads.
        panel_bytes, panels: of each segment; a gate and what it opens count as one.
        gated: there are two segments, with equal ranges.
    """

    team: Team
    panel_bytes: list[int]
    panels: list[int]
    gated: bool

    @staticmethod
    def of(b: Builder, spec: MatmulSpec, arguments: list[Value]) -> _Deal:
        """The deal of a kernel with these arguments."""
        sizes = [s.layout.panel_bytes(spec.k) for s in spec.segments]
        panels = [panels_of(s.n) for s in spec.segments]
        if spec.combine is not None:
            sizes, panels = [sum(sizes)], panels[:1]
        return _Deal(Team(*arguments[2:_PLAIN_ARGUMENTS]), sizes, panels, spec.combine is not None)

    @property
    def total(self) -> int:
        """Bytes of all panels."""
        return sum(size * count for size, count in zip(self.panel_bytes, self.panels, strict=True))

    def stream(
        self,
        b: Builder,
        mapping: MatmulMapping,
        body: Callable[[list[tuple[Value, Value]]], None],
    ) -> None:
        """A long run for each thread, then small pieces."""
        even = emit_mostly_even(b, self.team, self.total, mapping.stream_even)
        self._emit(b, even, b.idx(mapping.stream_piece), body)

    def pieces(
        self,
        b: Builder,
        mapping: MatmulMapping,
        body: Callable[[list[tuple[Value, Value]]], None],
    ) -> None:
        """Up to `col_tile` panels at a time, an even number; fewer where the threads are many."""
        panels = mapping.col_tile
        fair = b.div(b.idx(sum(self.panels)), b.mul(self.team.threads, mapping.tile_pieces))
        even = b.mul(b.div(fair, 2), 2)
        count = b.min(b.max(even, min(panels, 2)), panels)
        first = self.total * mapping.tile_even // 100
        self._emit(b, b.idx(first), b.mul(count, max(self.panel_bytes)), body)

    def _emit(
        self,
        b: Builder,
        even: Value,
        piece: Value,
        body: Callable[[list[tuple[Value, Value]]], None],
    ) -> None:
        def part(start: Value, stop: Value) -> list[Value]:
            body(self._bounds(b, start, stop))
            return []

        emit_dealt(b, self.team, b.idx(self.total), even, piece, [], part)

    def _bounds(self, b: Builder, start: Value, stop: Value) -> list[tuple[Value, Value]]:
        """The panels (first, last + 1) of each segment nearest to a range of bytes.

        The end of one range is the start of the next.
        """
        bounds, before = [], 0
        for size, count in zip(self.panel_bytes, self.panels, strict=True):
            first, last = (
                b.min(b.div(b.max(b.add(edge, size // 2 - before), 0), size), count)
                for edge in (start, stop)
            )
            bounds.append((first, last))
            before += size * count
        return bounds * 2 if self.gated else bounds
