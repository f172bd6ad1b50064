"""Attention of many rows: each warp has tiles of 16 rows, keys and values are staged for all warps.

A block of rows is 128 or 256 pairs of a token and one of the heads that share a kv head. Tokens of
several sequences are done run by run: consecutive tokens of one slot. Keys that no row of the block
sees are not copied, and a warp passes over those that none of its own rows sees. Blocks with many
keys come first, and every second round is dealt backwards, so that the last ones are short.

Where rows are too few for all multiprocessors, blocks have fewer rows: warps that have the same
ones take stages of keys in turns, as their absolute positions decide, and are joined in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.attention_output import AttentionOutput
from infc.backends.cuda.kernels.attention_spec import (
    F32_BYTES,
    TILE_ROWS,
    Arguments,
    AttentionMapping,
    AttentionSpec,
)
from infc.backends.cuda.kernels.attention_stages import Source, Stages
from infc.backends.cuda.kernels.attention_state import Rows, State
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, Fragment, Step
from infc.backends.cuda.kernels.attention_tiles_shape import LANES_BYTES, TilesShape
from infc.backends.cuda.kernels.frame import THREADS, WORK_OFFSET, WORKER_BARRIER

_FAR = 2**30


@dataclass(frozen=True)
class _Row:
    """One of a lane's rows.

    Attributes:
        token, head: i32; of rows that there are not those of the last token.
        position: of the token; -1 of rows that there are not.
    """

    token: Value
    head: Value
    position: Value


@dataclass(frozen=True)
class _Run:
    """Consecutive tokens of one slot: `start` up to `end`, at positions `least` to `highest`."""

    start: Value
    end: Value
    slot: Value
    least: Value
    highest: Value


class TilesAttention:
    """Emits the attention of many rows."""

    def __init__(
        self, b: GpuBuilder, spec: AttentionSpec, mapping: AttentionMapping, a: Arguments
    ) -> None:
        self.b, self.spec, self.a = b, spec, a
        self.tiles, self.streams = mapping.tiles, mapping.streams
        shape = self.shape = TilesShape(spec, mapping)
        at_once = shape.stages.groups if shape.holds_queries else 1
        self.step = Step(b, spec, mapping.tiles, groups=at_once)
        self.output = AttentionOutput(b, spec, a.out)
        warp = b.warp()
        self.row_warp, self.stream = b.rem(warp, shape.row_warps), b.div(warp, shape.row_warps)
        self.room = b.shared_memory(WORK_OFFSET)
        self.stages = Stages(b, self.step, mapping.streams, self.room)
        own = b.add(b.mul(self.row_warp, shape.query_bytes), b.mul(self.step.lane, 16))
        self.queries = b.at(self.room, b.add(own, shape.queries))
        note = b.mul(b.thread(), shape.note_bytes)
        self.notes = b.at(self.room, b.add(note, shape.notes))

    def emit(self) -> None:
        """Run the blocks of rows that this block of threads takes."""
        b, a, kv_heads = self.b, self.a, self.spec.kv.kv_heads
        blocks = b.ceil_div(b.mul(a.rows, self.spec.group), self.shape.block_rows)
        items = b.mul(blocks, kv_heads)

        def round_(first: Value) -> None:
            backwards = b.cmp("ne", b.rem(b.div(first, a.ctas), 2), 0)
            turn = b.select(backwards, b.sub(b.sub(a.ctas, 1), a.cta), a.cta)
            number = b.add(first, turn)

            def item() -> None:
                block = b.sub(b.sub(blocks, 1), b.div(number, kv_heads))
                self._item(block, b.rem(number, kv_heads))

            b.when(b.cmp("slt", number, items), item)

        b.loop(0, items, a.ctas, body=round_)

    # ---- rows ----------------------------------------------------------------------------------

    def _item(self, block: Value, kv_head: Value) -> None:
        b, a, group = self.b, self.a, self.spec.group
        first = b.mul(block, self.shape.block_rows)
        self._note(self._rows(first, kv_head))
        stop = b.min(a.rows, b.ceil_div(b.add(first, self.shape.block_rows), group))

        def run(start: Value) -> list[Value]:
            one = self._run(start, stop)
            self._attend(one, kv_head)
            return [one.end]

        b.loop_while([b.div(first, group)], lambda start: b.cmp("slt", start, stop), run)

    def _rows(self, first: Value, kv_head: Value) -> list[_Row]:
        b, a, group = self.b, self.a, self.spec.group
        own = b.add(first, b.mul(self.row_warp, self.tiles * TILE_ROWS))
        rows = []
        for half in range(2 * self.tiles):
            index = b.add(b.add(own, self.step.r), 8 * half)
            token, inside = b.div(index, group), b.rem(index, group)
            exists = b.cmp("slt", token, a.rows)
            token = b.min(token, b.sub(a.rows, 1))
            head = b.add(b.mul(kv_head, group), inside)
            position = b.select(exists, self._number(a.positions, token), b.idx(-1))
            rows.append(_Row(token, head, position))
        return rows

    def _note(self, rows: list[_Row]) -> None:
        """Keep the rows in shared memory: while keys pass, registers have better to hold."""
        b, size = self.b, 4 * len(rows)
        for i, name in enumerate(("token", "head", "position")):
            numbers = b.vector_of([getattr(row, name) for row in rows])
            b.store(numbers, b.at(self.notes, i * size), size)

    def _noted(self) -> list[_Row]:
        b, count = self.b, 2 * self.tiles
        fields = [
            b.load(b.at(self.notes, i * 4 * count), b.vec(count, b.i32), 4 * count)
            for i in range(3)
        ]
        return [_Row(*(b.extract(field, i) for field in fields)) for i in range(count)]

    def _run(self, start: Value, stop: Value) -> _Run:
        """The run of tokens that begins at one; every warp looks for itself."""
        b, a = self.b, self.a
        slot = self._number(a.row_slots, start)
        far = b.idx(_FAR)

        def look(at: Value, _end: Value, least: Value, highest: Value) -> list[Value]:
            token = b.add(at, self.step.lane)
            inside = b.min(token, b.sub(stop, 1))
            same = b.cmp("eq", self._number(a.row_slots, inside), slot)
            same = b.bit_and(same, b.cmp("slt", token, stop))
            end = b.warp_reduce(b.min, b.select(same, far, token))
            counted = b.cmp("slt", token, end)
            position = self._number(a.positions, inside)
            least = b.min(least, b.select(counted, position, far))
            highest = b.max(highest, b.select(counted, position, b.idx(0)))
            return [b.add(at, WARP), end, least, highest]

        begin = [start, far, far, b.idx(0)]
        _, end, least, highest = b.loop_while(
            begin, lambda _at, end, *_: b.cmp("eq", end, _FAR), look
        )
        least, highest = b.warp_reduce(b.min, least), b.warp_reduce(b.max, highest)
        return _Run(start, end, slot, least, highest)

    # ---- one run -------------------------------------------------------------------------------

    def _attend(self, run: _Run, kv_head: Value) -> None:
        b, kv, stages = self.b, self.spec.kv, self.stages
        oldest = b.idx(0)
        if self.spec.window is not None:
            oldest = b.max(b.sub(run.least, self.spec.window - 1), 0)
        positions = stages.shape.positions
        source = Source(
            kv.head_keys(b, self.a.cache, run.slot, kv_head),
            kv.head_values(b, self.a.cache, run.slot, kv_head),
            b.div(oldest, positions),
            b.div(run.highest, positions),
        )
        first, last = (b.div(n, self.streams) for n in (source.first, source.last))
        # The stages of another run may still be read.
        self._meet()
        stages.copy(source, first, b.idx(0))
        rows = self._noted()
        seen = self._seen(run, rows)
        held = self._load_queries(rows)

        def round_(number: Value, *carried: Value) -> list[Value]:
            buffer = b.bit_and(b.sub(number, first), 1)
            b.copy_wait(0)
            self._meet()

            def ahead() -> None:
                stages.copy(source, b.add(number, 1), b.bit_xor(buffer, 1))

            b.when(b.cmp("slt", number, last), ahead)
            own = b.add(b.mul(number, self.streams), self.stream)
            return self._stage(state.like(carried), source, seen, held, own, buffer).values()

        state = self.step.new_state()
        out = b.loop(first, b.add(last, 1), 1, state.values(), body=round_)
        finish = self._finish if self.streams == 1 else self._join
        finish(state.like(out), seen)

    def _stage(
        self,
        state: State,
        source: Source,
        seen: Rows,
        held: list[list[list[Fragment]]],
        number: Value,
        buffer: Value,
    ) -> State:
        """The state after a staged number of positions."""
        b, step = self.b, self.step
        positions = self.stages.shape.positions
        kinds = [v.type for v in state.values()]

        def one(index: Value, *carried: Value) -> list[Value]:
            first = b.add(b.mul(number, positions), b.mul(index, step.keys))
            staged = self.stages.staged(buffer, self.stream, index)

            def attend() -> list[Value]:
                return step.attend(
                    state.like(carried),
                    seen,
                    first,
                    lambda tile, piece: held[tile][piece] if held else self._query(tile, piece),
                    staged.key_piece,
                    staged.value_piece,
                ).values()

            sees = step.sees_some(seen, first)
            if self.streams > 1 and self.spec.window is not None:
                # Stages before the first one were not copied.
                sees = b.bit_and(sees, b.cmp("sge", number, source.first))
            return b.when(sees, attend, lambda: list(carried), kinds)

        if positions == step.keys:
            return state.like(one(b.idx(0), *state.values()))
        return state.like(b.loop(0, positions // step.keys, 1, state.values(), body=one))

    def _seen(self, run: _Run, rows: list[_Row]) -> Rows:
        """What the lane's rows see: nothing where they are not of the run."""
        b = self.b
        positions = []
        for row in rows:
            inside = b.bit_and(b.cmp("sge", row.token, run.start), b.cmp("slt", row.token, run.end))
            positions.append(b.select(inside, row.position, b.idx(-1)))
        return self.step.rows(positions, [b.cmp("sge", row.position, 0) for row in rows])

    # ---- results -------------------------------------------------------------------------------

    def _finish(self, state: State, seen: Rows) -> None:
        """Write the rows of the run."""
        b = self.b
        for index, row in enumerate(self._noted()):
            inverse = b.fdiv(b.const(1.0, b.f32), self.step.quad_sum(state.terms[index]))

            def pair(column: int, index: int = index, inverse: Value = inverse) -> list[Value]:
                at = self._sums_at(index, column)
                return [b.fmul(s, inverse) for s in state.sums[at : at + 2]]

            self._when_seen(seen, index, partial(self._write, row, range(self.spec.columns), pair))

    def _join(self, state: State, seen: Rows) -> None:
        """Write the rows of the run, of which each warp knows a share; it writes some columns."""
        b = self.b
        # Nobody reads stages and queries any more.
        self._meet()
        place = self._shared_state(self.stream)
        for number, value in enumerate(state.values()):
            b.store(value, b.at(place, number * LANES_BYTES), F32_BYTES)
        self._meet()
        for stream in range(self.streams):
            own = b.cmp("eq", self.stream, stream)
            b.when(own, partial(self._write_columns, state, seen, stream))

    def _write_columns(self, state: State, seen: Rows, first: int) -> None:
        b, step, rows = self.b, self.step, len(state.maxima)
        shares = [self._shared_state(b.idx(stream)) for stream in range(self.streams)]

        def load(number: int) -> list[Value]:
            at = number * LANES_BYTES
            return [b.load(b.at(share, at), b.f32, F32_BYTES) for share in shares]

        for index, row in enumerate(self._noted()):
            maxima = load(index)
            maximum = maxima[0]
            for other in maxima[1:]:
                maximum = b.fmax(maximum, other)
            factors = [b.exp2(b.fsub(own, maximum)) for own in maxima]
            terms = step.quad_sum(self._weighted(load(rows + index), factors))
            inverse = b.fdiv(b.const(1.0, b.f32), terms)
            factors = [b.fmul(factor, inverse) for factor in factors]

            def pair(
                column: int, index: int = index, factors: list[Value] = factors
            ) -> list[Value]:
                at = 2 * rows + self._sums_at(index, column)
                return [self._weighted(load(number), factors) for number in (at, at + 1)]

            columns = range(first, self.spec.columns, self.streams)
            self._when_seen(seen, index, partial(self._write, row, columns, pair))

    def _weighted(self, shares: list[Value], factors: list[Value]) -> Value:
        total = self.b.fmul(shares[0], factors[0])
        for share, factor in zip(shares[1:], factors[1:], strict=True):
            total = self.b.fma(share, factor, total)
        return total

    def _shared_state(self, stream: Value) -> Value:
        """Where this lane's state of a stream lies in shared memory."""
        b = self.b
        warp = b.add(b.mul(stream, self.shape.row_warps), self.row_warp)
        lane = b.mul(self.step.lane, F32_BYTES)
        return b.at(self.room, b.add(b.mul(warp, self.shape.state_bytes), lane))

    def _sums_at(self, index: int, column: int) -> int:
        """Number of the first of a row's two sums of a column."""
        tile, half = divmod(index, 2)
        return tile * self.step.sums_a_tile + column * 4 + 2 * half

    def _when_seen(self, seen: Rows, index: int, then: Callable[[], None]) -> None:
        self.b.when(self.b.cmp("sge", seen.positions[index], 0), then)

    def _write(self, row: _Row, columns: range, pair: Callable[[int], list[Value]]) -> None:
        """Write columns of a row, two elements a lane."""
        b, q = self.b, self.step.q
        place = self.output.place(row.token, row.head)
        for column in columns:
            self.output.store(pair(column), place, b.add(b.mul(q, 2), column * 8))
        if 0 in columns:
            self.output.close(place, row.head, q)

    # ---- queries -------------------------------------------------------------------------------

    def _load_queries(self, rows: list[_Row]) -> list[list[list[Fragment]]]:
        """Fragments `[tile][piece]`, or none: they are then in shared memory as soon as the block
        has met; warps that have the same rows write every piece once."""
        b, spec = self.b, self.spec
        held = []
        for tile in range(self.tiles):
            pointers = []
            for row in rows[2 * tile : 2 * tile + 2]:
                index = b.add(b.mul(b.wide(row.token), spec.heads), b.wide(row.head))
                pointers.append(b.at(self.a.q, b.mul(index, spec.kv.head_dim * F32_BYTES)))
            if self.shape.holds_queries:
                held.append([self.step.query_piece(pointers, p) for p in range(spec.pieces)])
                continue
            for stream in range(self.streams):
                own = b.cmp("eq", self.stream, stream)
                b.when(own, partial(self._stage_queries, pointers, tile, stream))
        return held

    def _stage_queries(self, pointers: list[Value], tile: int, first: int) -> None:
        b = self.b
        for piece in range(first, self.spec.pieces, self.streams):
            for step, fragment in enumerate(self.step.query_piece(pointers, piece)):
                b.store(b.vector_of(fragment), self._query_place(tile, piece, step), 16)

    def _query(self, tile: int, piece: int) -> list[Fragment]:
        b = self.b
        vector = b.vec(4, b.i32)
        fragments = []
        for step in range(self.spec.piece_bytes(piece) // 8):
            four = b.load(self._query_place(tile, piece, step), vector, 16)
            fragments.append([b.extract(four, i) for i in range(4)])
        return fragments

    def _query_place(self, tile: int, piece: int, step: int) -> Value:
        fragment = (tile * self.spec.pieces + piece) * 2 + step
        return self.b.at(self.queries, fragment * FRAGMENT_BYTES)

    def _number(self, array: Value, index: Value) -> Value:
        return self.b.load(self.b.at(array, self.b.mul(index, 4)), self.b.i32, 4)

    def _meet(self) -> None:
        self.b.sync(THREADS, WORKER_BARRIER)
