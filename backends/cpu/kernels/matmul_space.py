"""All mappings of a matrix product that may be chosen: good guesses, then what is near them.

Tiles are those whose sums fit the registers and whose staged panels fit the stack and the second
cache; prefetches reach as far as that cache holds. None of it changes a bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from infc.backends.cpu.codegen.isa import Isa
from infc.backends.cpu.kernels.bf16_blocks import block_height
from infc.backends.cpu.kernels.blocked import FEW_PANELS
from infc.backends.cpu.kernels.float_tiles import takes_parts
from infc.backends.cpu.kernels.matmul import (
    STACK_LIMIT_BYTES,
    MatmulMapping,
    MatmulSpec,
    candidates,
    stack_bytes,
)
from infc.backends.cpu.kernels.stream import FLOAT_ACCUMULATORS
from infc.passes.codegen.panels import panels_of

_LANES_BYTES = 64
"""A sum of a panel's 16 columns in float32."""
_UNROLLS = (1, 2, 4, 8)
_PREFETCHES = (1536, *(1 << bits for bits in (11, 12, 13, 14, 15, 16)))
_STREAM_DEALS = (
    (100, 1 << 16),
    *product((50, 75, 90), (1 << 14, 1 << 16, 1 << 18)),
)
"""Percent split evenly, and the bytes of a piece of the rest."""
_TILE_DEALS = tuple(product((0, 25, 50, 75, 90), (2, 4, 8, 16)))
"""Percent split evenly, and pieces a thread."""
_BLOCK_DEALS = tuple(product((0, 50, 75), (1, 2, 4, 8, 16)))
_MANY_BLOCK_DEALS = tuple(product((0, 25, 50, 75, 90), (1, 2, 3, 4, 6, 8, 16)))
"""For long rows, of which few panels can be staged."""
_ROW_TILES, _PANEL_TILES = (1, 2, 3, 4, 5, 6, 8, 12), (1, 2, 3, 4)
_STAGED = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FEW_STAGED = 3
_QUARTER = 25
"""Percent."""
_BLOCK_UNROLLS = (1, 2, 4)


def all_candidates(spec: MatmulSpec, isa: Isa, cache_bytes: int) -> list[MatmulMapping]:
    """The mappings of a product, the best guess first.

    Args:
        spec: what is computed.
        isa: with which instructions.
        cache_bytes: the second cache of a core.
    """
    guesses = candidates(spec, isa)
    if spec.activation == "abf16":
        more = _blocks(spec, isa, cache_bytes)
    elif spec.max_rows == 1:
        more = _streams(spec, guesses[0], cache_bytes)
    else:
        more = _tiles(spec, isa, guesses[0], cache_bytes)
    near = sorted(more, key=lambda mapping: _distance(mapping, guesses[0]))
    return list(dict.fromkeys([*guesses, *near]))


def _distance(mapping: MatmulMapping, guess: MatmulMapping) -> float:
    """How unlike the best guess a mapping is: those that are alike are as good, or almost.

    One for each doubling of a number, and for each quarter more or less that is split evenly.
    """
    distance = 0.0
    for name, ours in vars(mapping).items():
        other = vars(guess)[name]
        if name in ("stream_even", "tile_even"):
            distance += abs(ours - other) / _QUARTER
        else:
            distance += abs(math.log2(1 + ours) - math.log2(1 + other))
    return distance


def _blocks(spec: MatmulSpec, isa: Isa, cache_bytes: int) -> Iterator[MatmulMapping]:
    """Runs of staged panels, and how they are dealt."""
    room = min(cache_bytes, STACK_LIMIT_BYTES)
    most = max(panels_of(segment.n) for segment in spec.segments)
    height = block_height(isa)
    staged = [
        panels
        for panels in _STAGED
        if panels == FEW_PANELS
        or (panels <= most and stack_bytes(spec, isa, height, panels) <= room)
    ]
    deals = _MANY_BLOCK_DEALS if len(staged) <= _FEW_STAGED else _BLOCK_DEALS
    for panels, unroll, (even, pieces) in product(staged, _BLOCK_UNROLLS, deals):
        yield MatmulMapping(height, panels, unroll, 0, tile_even=even, tile_pieces=pieces)


def _streams(spec: MatmulSpec, guess: MatmulMapping, cache_bytes: int) -> Iterator[MatmulMapping]:
    """Ways of reading weights once."""
    for unroll, ahead in product(_stream_unrolls(spec), _ahead(cache_bytes)):
        for even, piece in _STREAM_DEALS:
            yield MatmulMapping(guess.row_tile, guess.col_tile, unroll, ahead, even, piece)


def _tiles(
    spec: MatmulSpec, isa: Isa, guess: MatmulMapping, cache_bytes: int
) -> Iterator[MatmulMapping]:
    """Tiles and how they are dealt; one row streams past as in the best guess."""
    registers = isa.vector_bytes * isa.vector_registers // _LANES_BYTES
    room = min(cache_bytes, STACK_LIMIT_BYTES)
    floats = spec.activation == "f32"
    unrolls = _stream_unrolls(spec) if floats else (guess.unroll,)
    for rows, panels in product(_ROW_TILES, _PANEL_TILES):
        sums = rows * panels
        if floats:
            in_parts = takes_parts(isa, rows)
            if panels > 1 and not in_parts:
                continue
            sums = rows * (1 if in_parts else FLOAT_ACCUMULATORS)  # of a panel at a time
        if rows > spec.max_rows or sums >= registers:
            continue
        if stack_bytes(spec, isa, rows, panels) > room:
            continue
        for unroll, (even, pieces) in product(unrolls, _TILE_DEALS):
            yield MatmulMapping(
                rows, panels, unroll, guess.prefetch_bytes, tile_even=even, tile_pieces=pieces
            )


def _stream_unrolls(spec: MatmulSpec) -> list[int]:
    """Turns that the loop along k has at least once."""
    step = 4 if spec.activation == "f32" else 32
    return [unroll for unroll in _UNROLLS if unroll * step <= spec.k]


def _ahead(cache_bytes: int) -> list[int]:
    """Distances of a prefetch whose lines are still there when they are read."""
    return [0, *(distance for distance in _PREFETCHES if distance <= cache_bytes // 4)]
