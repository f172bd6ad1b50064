"""Which tile of a tiled product is whose, and where its operands lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.packing import HEADER_BYTES
from infc.backends.cuda.kernels.product_spec import OutputRows, ProductArguments, ProductSpec
from infc.backends.cuda.kernels.tile_mapping import TileMapping, stage_of
from infc.passes.codegen.panels import PANEL_ROWS
from infc.reference.abf16 import abf16_row_bytes

_SHARED_TOKEN_TILES = 8
"""Tiles of tokens that are done for all weights before the next ones. About as many blocks then
share a tile of weights as share a tile of rows, which is when a wave of them reads least."""


@dataclass(frozen=True)
class Place:
    """Where a tile lies; i32 but for the pointers.

    Attributes:
        weights: for each segment, the tile's first panel.
        headers: for each segment, the packed matrix.
        panels_left: panels of a matrix from the tile's first one on.
        x: the tile's first row.
        rows_left: rows from there on.
        feature: first column of the output.
        token: first row.
        target: the output.
    """

    weights: list[Value]
    headers: list[Value]
    panels_left: Value
    x: Value
    rows_left: Value
    feature: Value
    token: Value
    target: OutputRows


def alike(spec: ProductSpec) -> list[tuple[int, ...]]:
    """The outputs, in lots whose matrices are packed alike, so that one loop does their tiles."""
    lots: dict[object, list[int]] = {}
    for output, group in enumerate(spec.groups):
        key = tuple((spec.segments[i].layout, spec.segments[i].bias) for i in group)
        lots.setdefault(key, []).append(output)
    return [tuple(lot) for lot in lots.values()]


def by_rows(b: GpuBuilder, rows: Value, cases: Sequence[tuple[int, Callable[[], None]]]) -> None:
    """Do the first case whose number is not below `rows` (i32); the last one in any case."""
    (most, case), *others = cases
    if others:
        b.when(b.cmp("sle", rows, most), case, lambda: by_rows(b, rows, others))
    else:
        case()


class Lot:
    """The tiles of outputs whose matrices are packed alike.

    Attributes:
        stage: of its tiles.
        whole: all tiles have all their panels.
        token_tiles: tiles along the rows, i32.
        count: tiles, i32.
    """

    def __init__(
        self,
        b: GpuBuilder,
        spec: ProductSpec,
        mapping: TileMapping,
        arguments: ProductArguments,
        outputs: Sequence[int],
    ) -> None:
        self._b, self._spec, self._arguments, self._outputs = b, spec, arguments, outputs
        self._tokens = mapping.tokens
        self.stage = stage_of(spec, mapping, outputs[0])
        panels = self.stage.panels
        self._width = panels * PANEL_ROWS
        tiles = [-(-spec.stored_columns(output) // self._width) for output in outputs]
        *self._firsts, self._feature_tiles = accumulate(tiles, initial=0)
        self.whole = all(
            count * panels == spec.panels(output)
            for count, output in zip(tiles, outputs, strict=True)
        )
        self.rows = arguments.rest[0]
        self.token_tiles = b.ceil_div(self.rows, mapping.tokens)
        self.count = b.mul(self.token_tiles, self._feature_tiles)

    def place(self, tile: Value) -> Place:
        """Where tile number `tile` lies: neighbours share weights, and rows every so often."""
        b, spec = self._b, self._spec
        run = _SHARED_TOKEN_TILES * self._feature_tiles
        first = b.mul(b.div(tile, run), _SHARED_TOKEN_TILES)
        within = b.rem(tile, run)
        width = b.max(b.min(b.sub(self.token_tiles, first), _SHARED_TOKEN_TILES), 1)
        token = b.mul(b.add(first, b.rem(within, width)), self._tokens)
        feature_tile = b.div(within, width)
        local = b.sub(feature_tile, self._chosen(feature_tile, lambda i: b.idx(self._firsts[i])))
        panel = b.mul(local, self.stage.panels)
        headers = [
            self._chosen(feature_tile, partial(self._header, segment))
            for segment in range(len(self.stage.layouts))
        ]
        offsets = [
            b.add(b.mul(b.wide(panel), layout.panel_bytes(spec.k)), HEADER_BYTES)
            for layout in self.stage.layouts
        ]
        panels = self._chosen(feature_tile, lambda i: b.idx(spec.panels(self._outputs[i])))
        x_offset = b.mul(b.wide(token), abf16_row_bytes(spec.k))
        return Place(
            weights=[b.at(p, offset) for p, offset in zip(headers, offsets, strict=True)],
            headers=headers,
            panels_left=b.sub(panels, panel),
            x=b.at(self._arguments.x, x_offset),
            rows_left=b.sub(self.rows, token),
            feature=b.mul(local, self._width),
            token=token,
            target=self._target(feature_tile),
        )

    def _header(self, segment: int, index: int) -> Value:
        return self._arguments.weights[self._spec.groups[self._outputs[index]][segment]]

    def _target(self, feature_tile: Value) -> OutputRows:
        targets = [OutputRows.of(self._spec, self._arguments, output) for output in self._outputs]
        if len(targets) == 1:
            return targets[0]
        b = self._b
        columns = zip(*(target.biases for target in targets), strict=True)
        biases = [self._present(feature_tile, column) for column in columns]
        return OutputRows(
            self._chosen(feature_tile, lambda i: targets[i].out),
            self._chosen(feature_tile, lambda i: b.as_index(targets[i].n)),
            self._chosen(feature_tile, lambda i: b.as_index(targets[i].columns)),
            self._chosen(feature_tile, lambda i: b.as_index(targets[i].row_bytes)),
            tuple(biases),
        )

    def _present(self, feature_tile: Value, biases: Sequence[Value | None]) -> Value | None:
        """The bias of the output of a tile, where the outputs of the lot have them."""
        pointers = [bias for bias in biases if bias is not None]
        return self._chosen(feature_tile, lambda i: pointers[i]) if pointers else None

    def _chosen(self, feature_tile: Value, value: Callable[[int], Value]) -> Value:
        """`value(i)` of the output, number i of the lot, that a tile of features belongs to."""
        b = self._b
        chosen = value(0)
        for i in range(1, len(self._outputs)):
            beyond = b.cmp("sge", feature_tile, self._firsts[i])
            chosen = b.select(beyond, value(i), chosen)
        return chosen
