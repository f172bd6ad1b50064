"""Where the streamed product keeps what in shared memory, and which panels are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import WARPS, WORK_OFFSET
from infc.backends.cuda.kernels.packing import HEADER_BYTES, Layout, layout_named
from infc.backends.cuda.kernels.product_spec import OutputRows, ProductSpec

TILE = 8
"""Tokens of a tile: columns of the matrix instruction."""
TOGETHER = 4
"""Blocks that a warp has in flight."""
FRAGMENT_BYTES = 512
"""A fragment of f32 sums of a warp: 16 bytes a lane."""
_SKEW_BYTES = 16
"""Between rows of x, so that equal columns of eight rows lie in different banks."""
_MOST_TILES = 4
_X_BYTES = 72 * 1024
"""Rows that take more stay in shared memory in parts: 8 rows of 4096 numbers do not."""
_PARTIALS_BYTES = 32 * 1024


@dataclass(frozen=True)
class StreamShape:
    """The shared memory of a streamed product, in bytes from its start:

    - `zeros`: what lanes read in place of rows that are not there;
    - `partials`: [copies][segment][warp][tile] fragments, which wait to be added;
    - `sums`: for each size of group among layouts with minima, f32 [group][token]: sums of x;
    - `x`: the rows, bf16, or as much of each as a part has.
    """

    spec: ProductSpec

    def __post_init__(self) -> None:
        if self.spec.max_rows > _MOST_TILES * TILE:
            raise ValueError(
                f"a streamed product has up to {_MOST_TILES * TILE} rows, got {self.spec.max_rows}"
            )

    @property
    def tiles(self) -> int:
        """Tiles of the most rows that a call has."""
        return -(-self.spec.max_rows // TILE)

    @cached_property
    def part_blocks(self) -> int:
        """Blocks of a part of the rows; the last one may have fewer."""
        blocks = self.spec.blocks
        most = (_X_BYTES // self.spec.max_rows - _SKEW_BYTES) // 64
        if blocks <= most:
            return blocks
        unit = TOGETHER * WARPS
        parts = -(-blocks // (most // unit * unit))
        return -(-blocks // (parts * unit)) * unit

    @property
    def parts(self) -> int:
        """Parts of the rows that are in shared memory one after the other."""
        return -(-self.spec.blocks // self.part_blocks)

    @cached_property
    def whole(self) -> StreamShape | None:
        """How it is where a call has so few rows that they need no parts; None where that is never
        or always so. Outputs are the same, bit by bit."""
        rows = _X_BYTES // (64 * self.spec.blocks + _SKEW_BYTES)
        if self.parts == 1 or not rows:
            return None
        return StreamShape(replace(self.spec, max_rows=rows))

    @property
    def least_rows(self) -> int:
        """Calls of fewer rows are `whole`'s."""
        return 1 if self.whole is None else self.whole.spec.max_rows + 1

    @property
    def zeros(self) -> int:
        """Where the zeros lie."""
        return WORK_OFFSET

    @property
    def zeros_bytes(self) -> int:
        """As far as blocks that a warp has in flight are apart, and a block's row of x."""
        return 64 * (WARPS * (TOGETHER - 1) + 1)

    @property
    def partials(self) -> int:
        """Where the fragments lie."""
        return self.zeros + -(-self.zeros_bytes // 128) * 128

    @cached_property
    def segments(self) -> int:
        """Matrices whose products make one output."""
        return max(len(group) for group in self.spec.groups)

    def copy_bytes(self, tiles: int) -> int:
        """Bytes of the fragments of a panel."""
        return self.segments * WARPS * tiles * FRAGMENT_BYTES

    def copies(self, tiles: int) -> int:
        """Copies of the fragments. With one part: two where that is little, so that a panel's are
        added while those of the next are made. With several: of the panels that are multiplied
        with one part after the other."""
        if self.parts > 1:
            return max(1, _PARTIALS_BYTES // self.copy_bytes(self.tiles))
        return 2 if self.segments * tiles <= 2 else 1

    @property
    def panels_together(self) -> int:
        """Panels of a block that are multiplied with a part before the next part comes."""
        return self.copies(self.tiles) if self.parts > 1 else 1

    @cached_property
    def sums_groups(self) -> tuple[int, ...]:
        """Sizes of groups whose sums are wanted."""
        layouts = [layout_named(segment.layout) for segment in self.spec.segments]
        return tuple(sorted({layout.group for layout in layouts if layout.has_min}))

    def sums(self, group: int) -> int:
        """Where the sums of groups of this size lie."""
        rooms = [self.copies(t) * self.copy_bytes(t) for t in range(1, self.tiles + 1)]
        smaller = [size for size in self.sums_groups if size < group]
        return self.partials + max(rooms) + sum(map(self._sums_bytes, smaller))

    @property
    def tokens(self) -> int:
        """Numbers from the sums of a group to those of the next."""
        return self.tiles * TILE

    def _sums_bytes(self, group: int) -> int:
        return self.part_blocks * (32 // group) * self.tokens * 4

    @property
    def x(self) -> int:
        """Where the rows lie."""
        end = self.sums(64)
        return -(-end // 128) * 128

    @property
    def x_row_bytes(self) -> int:
        """From a row to the next."""
        return 64 * self.part_blocks + _SKEW_BYTES

    @property
    def work_bytes(self) -> int:
        """Bytes of all that."""
        own = self.x + self.spec.max_rows * self.x_row_bytes - WORK_OFFSET
        return own if self.whole is None else max(own, self.whole.work_bytes)


class Lot:
    """Panels of outputs whose matrices are packed alike, numbered through: one loop does them.

    Attributes:
        outputs: their numbers.
        layouts: of the segments of each.
        panels: how many.
    """

    def __init__(self, spec: ProductSpec, outputs: Sequence[int]) -> None:
        self._spec = spec
        self.outputs = tuple(outputs)
        self.segments = [spec.groups[output] for output in outputs]
        self.layouts: list[Layout] = [
            layout_named(spec.segments[segment].layout) for segment in self.segments[0]
        ]
        *self._firsts, self.panels = accumulate(
            (spec.panels(output) for output in outputs), initial=0
        )

    def local(self, b: GpuBuilder, panel: Value) -> Value:
        """The number that a panel of the lot has in its matrix."""
        return b.sub(panel, self.chosen(b, panel, [b.idx(first) for first in self._firsts]))

    def weights(self, b: GpuBuilder, panel: Value, weights: Sequence[Value], segment: int) -> Value:
        """Where a panel of a segment starts in global memory."""
        layout = self.layouts[segment]
        matrix = self.chosen(b, panel, [weights[group[segment]] for group in self.segments])
        offset = b.mul(b.wide(self.local(b, panel)), layout.panel_bytes(self._spec.k))
        return b.at(b.at(matrix, offset), HEADER_BYTES)

    def target(self, b: GpuBuilder, panel: Value, targets: Sequence[OutputRows]) -> OutputRows:
        """Where the results of a panel go; `targets` are those of all outputs."""
        mine = [targets[output] for output in self.outputs]
        if len(mine) == 1:
            return mine[0]
        biases = []
        for of_segment in zip(*(target.biases for target in mine), strict=True):
            present = [bias for bias in of_segment if bias is not None]
            biases.append(self.chosen(b, panel, present) if present else None)
        return OutputRows(
            self.chosen(b, panel, [target.out for target in mine]),
            self.chosen(b, panel, [b.as_index(target.n) for target in mine]),
            self.chosen(b, panel, [b.as_index(target.columns) for target in mine]),
            self.chosen(b, panel, [b.as_index(target.row_bytes) for target in mine]),
            tuple(biases),
        )

    def chosen(self, b: GpuBuilder, panel: Value, values: Sequence[Value]) -> Value:
        """Of one value for each output of the lot, that of the output that a panel belongs to."""
        chosen = values[0]
        for first, value in zip(self._firsts[1:], values[1:], strict=True):
            chosen = b.select(b.cmp("sge", panel, first), value, chosen)
        return chosen


def lots_of(spec: ProductSpec) -> list[Lot]:
    """The outputs of a product in lots."""
    alike: dict[object, list[int]] = {}
    for output, group in enumerate(spec.groups):
        key = tuple((spec.segments[i].layout, spec.segments[i].bias) for i in group)
        alike.setdefault(key, []).append(output)
    return [Lot(spec, outputs) for outputs in alike.values()]


def first_panel(b: GpuBuilder, first: Value, before: int, cta: Value, ctas: Value) -> Value:
    """The first panel of a lot that a block does, of every `ctas`.

    Panel `p` belongs to the block `(first + before + p) % ctas`.

    Args:
        b: the builder.
        first: i32, panels dealt before the kernel.
        before: panels of the lots before.
        cta: i32, number of the block.
        ctas: i32, how many there are.
    """
    distance = b.sub(cta, b.rem(b.add(first, before), ctas))
    return b.select(b.cmp("slt", distance, 0), b.add(distance, ctas), distance)
