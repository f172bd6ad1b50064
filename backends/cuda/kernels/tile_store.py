"""What becomes of a tile's sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.product_spec import (
    Fragment,
    ProductSpec,
    finish_fragment,
    load_biases,
    store_fragment,
)
from infc.backends.cuda.kernels.tile_dealing import Place
from infc.passes.codegen.panels import PANEL_ROWS

_FRAGMENT_FLOATS, FRAGMENT_TOKENS = 4, 8
"""A thread has four sums of 16 outputs x 8 tokens."""


@dataclass(frozen=True)
class Sums:
    """The shape of a thread's sums: [segment][panel][fragment][4]."""

    segments: int
    panels: int
    fragments: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.segments * self.panels * self.fragments * _FRAGMENT_FLOATS

    def nested(self, values: Sequence[Value]) -> list[list[list[list[Value]]]]:
        """Values in one row, as they are carried, in their shape."""
        taken = iter(values)
        return [
            [
                [list(islice(taken, _FRAGMENT_FLOATS)) for _ in range(self.fragments)]
                for _ in range(self.panels)
            ]
            for _ in range(self.segments)
        ]


def flat(sums: Sequence[Sequence[Sequence[Fragment]]]) -> list[Value]:
    """The inverse of `Sums.nested`."""
    return [value for s in sums for panel in s for fragment in panel for value in fragment]


def store_tile(
    b: GpuBuilder,
    spec: ProductSpec,
    place: Place,
    panel: Value,
    token: Value,
    rows: Value,
    sums: Sequence[Sequence[Sequence[Fragment]]],
) -> None:
    """Finish and store what a warp has of a tile.

    Args:
        b: the builder.
        spec: of the product.
        place: of the tile.
        panel: i32, the first panel of the warp in the tile.
        token: i32, the first token of the warp in the tile.
        rows: i32, of the whole output.
        sums: [segment][panel][fragment][4].
    """
    for i in range(len(sums[0])):
        feature = b.add(place.feature, b.mul(b.add(panel, i), PANEL_ROWS))
        biases = load_biases(b, place.target, feature)
        for j in range(len(sums[0][i])):
            values = finish_fragment(b, spec, [segment[i][j] for segment in sums], biases)
            row = b.add(place.token, b.add(token, FRAGMENT_TOKENS * j))
            store_fragment(b, spec, place.target, feature, row, values, rows)
