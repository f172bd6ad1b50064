"""Products of few rows with weights that are read once: the speed is that of memory.

    name(x, weights..., biases..., outputs..., rows, cta, ctas, first, count) -> count
    name_produce(weights..., rows, cta, ctas, first, count) -> count

The rows lie in shared memory; the ninth warp brings the weights through the ring (`ring`), a panel
of 16 outputs after the other. Each of the eight warps multiplies every eighth block of a run, so
that a panel keeps all of them busy; their sums are added in the order of the warps. A warp's sums
of a block of codes are `scale * (codes . x) + min * sum(x)`, with f32 scales and products of
integers in bf16, which are exact. What a token's outputs are depends on its row alone.

Rows that take much room come in parts: all panels of a block, or as many as there is room for
sums, are multiplied with one part before the next one comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORKER_BARRIER, Emitted
from infc.backends.cuda.kernels.product_spec import (
    OutputRows,
    ProductArguments,
    ProductSpec,
    finish_fragment,
    load_biases,
    store_fragment,
)
from infc.backends.cuda.kernels.ring import Ring, Runs
from infc.backends.cuda.kernels.stream_shape import (
    FRAGMENT_BYTES,
    TILE,
    Lot,
    StreamShape,
    first_panel,
    lots_of,
)
from infc.backends.cuda.kernels.stream_stage import emit_stage
from infc.backends.cuda.kernels.stream_warp import WarpSums
from infc.backends.cuda.kernels.weights import BlockReader, load_multiplier
from infc.passes.codegen.panels import PANEL_ROWS


def emit_stream(b: GpuBuilder, name: str, spec: ProductSpec, ring: Ring) -> Emitted:
    """Define `name` and `name_produce`.

    Args:
        b: the builder.
        name: of the function of the workers.
        spec: with at most 32 rows; `StreamShape(spec).work_bytes` lie in front of the ring.
        ring: through which the weights come.
    """
    shape = StreamShape(spec)
    lots = lots_of(spec)
    _emit_produce(b, f"{name}_produce", shape, ring, lots)
    stages = {}
    for each, stage in ((shape, f"{name}_stage"), (shape.whole, f"{name}_stage_whole")):
        if each is not None:
            emit_stage(b, stage, each)
            stages[each] = stage
    with b.function(name, ProductArguments.types(b, spec, 5), [b.i32]) as values:
        arguments = ProductArguments.of(spec, values)
        rows = arguments.rest[0]

        def product(shape: StreamShape) -> Value:
            if shape.parts == 1:
                b.call(stages[shape], [arguments.x, rows, b.idx(0)])

            def with_tiles(tiles: int) -> Value:
                return _Product(b, shape, ring, arguments, stages[shape], tiles).emit(lots)

            return _with_tiles(b, shape, rows, with_tiles, -(-shape.least_rows // TILE))

        b.ret(_with_shape(b, shape, rows, product))
    return Emitted(name, shape.work_bytes, sum(lot.panels for lot in lots))


def _with_shape(
    b: GpuBuilder, shape: StreamShape, rows: Value, product: Callable[[StreamShape], Value]
) -> Value:
    """`product` of the shape for this call's rows."""
    whole = shape.whole
    if whole is None:
        return product(shape)
    (done,) = b.when(
        b.cmp("slt", rows, shape.least_rows),
        lambda: [product(whole)],
        lambda: [product(shape)],
        [b.i32],
    )
    return done


def _with_tiles(
    b: GpuBuilder, shape: StreamShape, rows: Value, product: Callable[[int], Value], tiles: int
) -> Value:
    """`product` for as many tiles as this call's rows need, from `tiles` on."""
    if tiles == shape.tiles:
        return product(tiles)
    (done,) = b.when(
        b.cmp("sle", rows, tiles * TILE),
        lambda: [product(tiles)],
        lambda: [_with_tiles(b, shape, rows, product, tiles + 1)],
        [b.i32],
    )
    return done


def _batches(
    b: GpuBuilder,
    shape: StreamShape,
    lot: Lot,
    start: Value,
    ctas: Value,
    carried: Sequence[Value],
    body: Callable[..., Sequence[Value]],
) -> list[Value]:
    """`body(panel, panels, *carried)` for the panels of a block that are done together: the first
    and how many, every `ctas`."""
    together = shape.panels_together

    def batch(panel: Value, *carried: Value) -> Sequence[Value]:
        left = b.div(b.add(b.sub(lot.panels - 1, panel), ctas), ctas)
        return body(panel, b.min(left, together), *carried)

    return b.loop(start, lot.panels, b.mul(ctas, together), carried=carried, body=batch)


def _emit_produce(
    b: GpuBuilder, name: str, shape: StreamShape, ring: Ring, lots: Sequence[Lot]
) -> None:
    """The ninth warp's part: all runs of all panels of this block, in the workers' order."""
    segments = len(shape.spec.segments)
    with b.function(name, [b.ptr] * segments + [b.i32] * 5, [b.i32]) as arguments:
        weights = arguments[:segments]
        rows, cta, ctas, first, count = arguments[segments:]

        def bring(shape: StreamShape) -> Value:
            used, before = count, 0
            for lot in lots:
                start = first_panel(b, first, before, cta, ctas)
                body = partial(_bring_batch, b, shape, ring, lot, weights, ctas)
                (used,) = _batches(b, shape, lot, start, ctas, [used], body)
                before += lot.panels
            return used

        b.ret(_with_shape(b, shape, rows, bring))


def _bring_batch(
    b: GpuBuilder,
    shape: StreamShape,
    ring: Ring,
    lot: Lot,
    weights: Sequence[Value],
    ctas: Value,
    panel: Value,
    panels: Value,
    count: Value,
) -> list[Value]:
    """The runs of `panels` panels from `panel` on; how many slots have been used then."""

    def segment(number: int, part: Value, panel: Value, count: Value) -> Value:
        size = lot.layouts[number].block_bytes
        runs = Runs.of(shape.spec.blocks, size, ring.slot_bytes, shape.part_blocks)
        start = lot.weights(b, panel, weights, number)

        def fill(run: Value, count: Value) -> Value:
            source = b.at(start, b.mul(runs.before(b, part, run), size))
            ring.fill(b, count, source, b.mul(runs.blocks(b, part, run), size))
            return b.add(count, 1)

        (count,) = b.loop(0, runs.counted(b, part), carried=[count], body=fill)
        return count

    def bring(part: Value, number: Value, count: Value) -> Value:
        own = b.add(panel, b.mul(number, ctas))
        for i in range(len(lot.layouts)):
            count = segment(i, part, own, count)
        return count

    def bring_part(part: Value, count: Value) -> list[Value]:
        return b.loop(0, panels, carried=[count], body=partial(bring, part))

    return b.loop(0, shape.parts, carried=[count], body=bring_part)


class _Product:
    """Emits the workers' part for one number of tiles."""

    def __init__(
        self,
        b: GpuBuilder,
        shape: StreamShape,
        ring: Ring,
        arguments: ProductArguments,
        stage: str,
        tiles: int,
    ) -> None:
        self.b, self.shape, self.stage, self.tiles = b, shape, stage, tiles
        self.spec = shape.spec
        self.arguments = arguments
        self.rows = arguments.rest[0]
        self.sums = WarpSums(b, shape, ring, self.rows, tiles)
        self.warp = self.sums.warp

    def emit(self, lots: Sequence[Lot]) -> Value:
        """All panels of this block; how many slots have been used then."""
        b = self.b
        _, cta, ctas, first, count = self.arguments.rest
        turn, before = b.idx(0), 0
        for lot in lots:
            multipliers = [
                [load_multiplier(b, self.arguments.weights[segment]) for segment in group]
                for group in lot.segments
            ]
            readers = [BlockReader(b, layout) for layout in lot.layouts]

            def batch(
                panel: Value,
                panels: Value,
                count: Value,
                turn: Value,
                lot: Lot = lot,
                readers: list[BlockReader] = readers,
                multipliers: list[list[Value]] = multipliers,
            ) -> list[Value]:
                if self.shape.parts == 1:
                    copy = self._copy(b.bit_and(turn, self.shape.copies(self.tiles) - 1))
                    count = self._panel(readers, b.idx(0), copy, count)
                    b.sync(THREADS, WORKER_BARRIER)
                    self._finish(lot, panel, turn, copy, multipliers)
                    if self.shape.copies(self.tiles) == 1:
                        b.sync(THREADS, WORKER_BARRIER)
                    return [count, b.add(turn, 1)]
                count = self._parts(readers, panels, count)
                b.sync(THREADS, WORKER_BARRIER)

                def finish(number: Value) -> None:
                    own = b.add(panel, b.mul(number, ctas))
                    copy = self._copy(number)
                    self._finish(lot, own, b.add(turn, number), copy, multipliers)

                b.loop(0, panels, body=finish)
                return [count, b.add(turn, panels)]

            start = first_panel(b, first, before, cta, ctas)
            carried = [count, turn]
            count, turn = _batches(b, self.shape, lot, start, ctas, carried, batch)
            before += lot.panels
        return count

    def _parts(self, readers: Sequence[BlockReader], panels: Value, count: Value) -> Value:
        """This warp's sums of some panels, part by part of the rows."""
        b = self.b

        def part(part: Value, count: Value) -> list[Value]:
            b.sync(THREADS, WORKER_BARRIER)
            b.call(self.stage, [self.arguments.x, self.rows, part])
            return b.loop(
                0,
                panels,
                carried=[count],
                body=lambda i, count: self._panel(readers, part, self._copy(i), count),
            )

        (count,) = b.loop(0, self.shape.parts, carried=[count], body=part)
        return count

    def _panel(
        self, readers: Sequence[BlockReader], part: Value, copy: Value, count: Value
    ) -> Value:
        """Add a part to this warp's fragments of a panel; those of the first part are made."""
        b = self.b
        if len({reader.layout for reader in readers}) == 1:
            # One piece of code for all segments: less to fetch.
            body = partial(self._segment, readers[0], part, copy)
            return b.loop(0, len(readers), carried=[count], body=body)[0]
        for segment, reader in enumerate(readers):
            count = self._segment(reader, part, copy, b.idx(segment), count)
        return count

    def _segment(
        self, reader: BlockReader, part: Value, copy: Value, segment: Value, count: Value
    ) -> Value:
        b = self.b
        sums = [b.const(0.0, b.f32)] * (4 * self.tiles)
        if self.shape.parts > 1:
            sums = self._kept(copy, segment, part)
        sums, count = self.sums.add_part(reader, part, sums, count)
        for tile in range(self.tiles):
            fragment = b.vector_of(sums[4 * tile : 4 * tile + 4])
            b.store(fragment, self._fragment(copy, segment, tile), 16)
        return count

    def _kept(self, copy: Value, segment: Value, part: Value) -> list[Value]:
        """This warp's fragments of a segment, of all tiles; zeros in front of the first part."""
        b, kind = self.b, self.b.vec(4, self.b.f32)
        zeros = [b.const(0.0, b.f32)] * (4 * self.tiles)

        def load() -> list[Value]:
            places = [self._fragment(copy, segment, tile) for tile in range(self.tiles)]
            fragments = [b.load(place, kind, 16) for place in places]
            return [b.extract(fragment, i) for fragment in fragments for i in range(4)]

        return b.when(b.cmp("eq", part, 0), lambda: zeros, load, [b.f32] * len(zeros))

    def _copy(self, number: Value) -> Value:
        """Where a copy of the fragments starts."""
        start = self.b.shared_memory(self.shape.partials)
        return self.b.at(start, self.b.mul(number, self.shape.copy_bytes(self.tiles)))

    def _fragment(self, copy: Value, segment: Value, tile: int) -> Value:
        """Where this lane's sums of this warp lie."""
        b, tiles = self.b, self.tiles
        warp = b.add(b.mul(segment, WARPS), self.warp)
        own = b.add(b.mul(warp, tiles * FRAGMENT_BYTES), b.mul(b.lane(), 16))
        return b.at(b.at(copy, own), tile * FRAGMENT_BYTES)

    def _finish(
        self,
        lot: Lot,
        panel: Value,
        turn: Value,
        copy: Value,
        multipliers: Sequence[Sequence[Value]],
    ) -> None:
        """Add the fragments and store what they make: a warp a tile, in turns other ones."""
        b, spec = self.b, self.spec
        tile = b.bit_and(b.sub(self.warp, b.mul(turn, self.tiles)), WARPS - 1)

        def finish() -> None:
            outputs = range(len(spec.outputs))
            targets = [OutputRows.of(spec, self.arguments, output) for output in outputs]
            target = lot.target(b, panel, targets)
            feature = b.mul(lot.local(b, panel), PANEL_ROWS)
            token = b.mul(tile, TILE)
            biases = load_biases(b, target, feature)
            fragments = []
            for segment, layout in enumerate(lot.layouts):
                fragment = self._added(copy, segment, tile)
                if not layout.is_float:
                    factors = [of_output[segment] for of_output in multipliers]
                    factor = lot.chosen(b, panel, factors)
                    fragment = [b.fmul(value, factor) for value in fragment]
                fragments.append(fragment)
            values = finish_fragment(b, spec, fragments, biases)
            store_fragment(b, spec, target, feature, token, values, self.rows)
            if spec.out == "abf16":
                # The zeros behind a row may need half a block more than there are panels.
                beyond = b.add(feature, PANEL_ROWS)
                zeros = [b.const(0.0, b.f32)] * 4
                b.when(
                    b.cmp("sge", beyond, target.n),
                    lambda: store_fragment(b, spec, target, beyond, token, zeros, self.rows),
                )

        b.when(b.cmp("slt", tile, self.tiles), finish)

    def _added(self, copy: Value, segment: int, tile: Value) -> list[Value]:
        """The sum of all warps' fragments of a tile, in a fixed order."""
        b, tiles = self.b, self.tiles
        own = b.add(b.mul(tile, FRAGMENT_BYTES), b.mul(b.lane(), 16))
        start = b.at(copy, own)
        parts = [
            b.load(
                b.at(start, (segment * WARPS + warp) * tiles * FRAGMENT_BYTES),
                b.vec(4, b.f32),
                16,
            )
            for warp in range(WARPS)
        ]
        while len(parts) > 1:
            parts = [b.fadd(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
        return [b.extract(parts[0], i) for i in range(4)]
