"""Attention of few rows: the keys of a row are divided over warps and blocks, and merged.

A block takes a *part* of the keys of one row and kv head; its warps take steps of 32 keys in turns,
each from a stream of copies of its own, and merge what they know. Where a row has several parts,
the block that is done last merges them. (Dao et al., "Flash-Decoding for long-context inference".)

Which keys a part and a warp have depends on the row's position alone, and all is merged in order:
neither the number of blocks nor the other rows show in the result. Nobody waits for another block:
a part that is done is counted, and the block whose count is the last one merges, and leaves the
count at zero, as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.kernels.attention_merge import MERGE_BYTES, Merge, Merged
from infc.backends.cuda.kernels.attention_output import AttentionOutput
from infc.backends.cuda.kernels.attention_records import Records
from infc.backends.cuda.kernels.attention_ring import Ring, RingShape, Source
from infc.backends.cuda.kernels.attention_spec import (
    F32_BYTES,
    STEP_KEYS,
    Arguments,
    AttentionMapping,
    AttentionSpec,
)
from infc.backends.cuda.kernels.attention_state import Rows, State
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, Fragment, Step
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, WORKER_BARRIER

_HELD_HEAD_DIM = 128
"""Up to here queries stay in registers; larger ones are read from shared memory."""


@dataclass(frozen=True)
class _Item:
    """A part of one row and one tile of the heads of a kv head.

    Attributes:
        owner: number of the row's tile, for records and arrivals.
        count: parts of the row.
        first, stop: numbers of the part's steps of 32 positions.
    """

    row: Value
    slot: Value
    position: Value
    kv_head: Value
    tile: Value
    owner: Value
    part: Value
    count: Value
    first: Value
    stop: Value


class PartsAttention:
    """Emits the attention of few rows."""

    def __init__(
        self, b: GpuBuilder, spec: AttentionSpec, mapping: AttentionMapping, a: Arguments
    ) -> None:
        self.b, self.spec, self.a = b, spec, a
        self.records = Records(spec, mapping)
        self.streams = mapping.streams
        self.round_keys = STEP_KEYS * self.streams
        self.step = Step(b, spec, tiles=0, groups=1)
        self.output = AttentionOutput(b, spec, a.out)
        places = _Places(spec, self.streams)
        base = b.shared_memory(WORK_OFFSET)
        self.flag = b.at(base, places.flag)
        self.queries = b.at(base, places.queries)
        room = b.at(base, places.room)
        self.ring = Ring(b, self.step, self.streams, room)
        heads, room_bytes = self.records.tile_rows, self.ring.shape.bytes
        self.merge = Merge(b, self.step, self.streams, heads, base, room, room_bytes)
        self.merge_all = Merge(b, self.step, WARPS, heads, base, room, room_bytes)

    @staticmethod
    def work_bytes(spec: AttentionSpec, streams: int) -> int:
        """Shared memory."""
        return _Places(spec, streams).total

    def emit(self) -> None:
        """Run the parts that this block takes; those that rows do not have come last."""
        b, a, records = self.b, self.a, self.records
        tiles = records.tiles * self.spec.kv.kv_heads

        def item(number: Value) -> None:
            rest, owner_of_row = b.div(number, tiles), b.rem(number, tiles)
            row, part = b.rem(rest, a.rows), b.div(rest, a.rows)
            self._item(row, owner_of_row, part)

        total = b.mul(a.rows, tiles * records.limit)
        b.loop(a.cta, total, a.ctas, body=item)

    # ---- one part ------------------------------------------------------------------------------

    def _item(self, row: Value, owner_of_row: Value, part: Value) -> None:
        b, a, records = self.b, self.a, self.records
        position = self._number(a.positions, row)
        oldest = b.idx(0)
        if self.spec.window is not None:
            oldest = b.max(b.sub(position, self.spec.window - 1), 0)
        first_round = b.div(oldest, self.round_keys)
        rounds = b.sub(b.add(b.div(position, self.round_keys), 1), first_round)
        each = b.ceil_div(rounds, records.limit)
        count = b.div(b.add(rounds, b.sub(each, 1)), each)

        def run() -> None:
            tiles = records.tiles
            begin = b.mul(b.add(first_round, b.mul(part, each)), self.streams)
            end = b.add(begin, b.mul(each, self.streams))
            first = b.add(begin, b.warp())
            # Steps in front of the window are less than a round: at most one of this warp's.
            early = b.cmp("slt", first, b.div(oldest, STEP_KEYS))
            first = b.select(early, b.add(first, self.streams), first)
            has_keys = b.cmp("slt", b.warp(), self.streams)
            one = _Item(
                row=row,
                slot=self._number(a.row_slots, row),
                position=position,
                kv_head=b.div(owner_of_row, tiles),
                tile=b.rem(owner_of_row, tiles),
                owner=b.add(b.mul(row, self.spec.kv.kv_heads * tiles), owner_of_row),
                part=part,
                count=count,
                first=b.select(has_keys, first, end),
                stop=b.min(end, b.add(b.div(position, STEP_KEYS), 1)),
            )
            self._part(one)

        b.when(b.cmp("slt", part, count), run)

    def _part(self, one: _Item) -> None:
        b = self.b
        # Another part's sums may still be read.
        self._meet()
        state = self._sum(one)
        self.ring.drain()
        if self.records.limit == 1:
            self.merge.emit(state, lambda merged: self._finish(one, merged))
            return
        alone = b.cmp("eq", one.count, 1)

        def merged(values: Merged) -> None:
            b.when(alone, lambda: self._finish(one, values), lambda: self._keep(one, values))

        self.merge.emit(state, merged)
        b.when(b.cmp("ne", one.count, 1), lambda: self._arrive(one))

    def _sum(self, one: _Item) -> State:
        """What this warp learns from its steps."""
        b, step, ring, kv = self.b, self.step, self.ring, self.spec.kv
        keys = kv.head_keys(b, self.a.cache, one.slot, one.kv_head)
        values = kv.head_values(b, self.a.cache, one.slot, one.kv_head)
        ahead_steps = ring.shape.steps_ahead * self.streams
        source = ring.source(keys, values, one.first)

        def begin() -> None:
            steps: list[tuple[Source, Value | None]] = [(source, None)]
            for number in range(self.streams, ahead_steps, self.streams):
                later = b.add(one.first, number)
                there = b.cmp("slt", later, one.stop)
                steps.append((ring.source(keys, values, later), there))
            ring.begin(steps)

        b.when(b.cmp("slt", one.first, one.stop), begin)
        held = self._load_queries(one)
        rows = Rows([one.position], one.position, one.position)

        def body(number: Value, *carried: Value) -> list[Value]:
            following = b.add(number, ahead_steps)
            there = b.cmp("slt", following, one.stop)
            ahead = ring.source(keys, values, following)
            turn = b.div(b.sub(number, one.first), self.streams)
            ring.enter(turn, Source(*carried[:2]), ahead, there)
            known = step.attend(
                state.like(carried[2:]),
                rows,
                b.mul(number, STEP_KEYS),
                lambda _, piece: held[piece] if held else self._queries(piece),
                lambda _tile, _piece: ring.next_piece(),
                lambda _group, _column: ring.next_piece(),
            )
            ring.leave()
            return [ahead.keys, ahead.values, *known.values()]

        state = step.new_state()
        carried = [source.keys, source.values, *state.values()]
        out = b.loop(one.first, one.stop, self.streams, carried, body=body)
        return state.like(out[2:])

    # ---- queries -------------------------------------------------------------------------------

    def _load_queries(self, one: _Item) -> list[list[Fragment]]:
        """Fragments of all pieces, or none: they are then in shared memory."""
        b, spec = self.b, self.spec
        index = b.add(b.mul(b.wide(one.row), spec.heads), b.wide(self._head(one, self.step.r)))
        rows = [b.at(self.a.q, b.mul(index, spec.kv.head_dim * F32_BYTES))]
        if spec.kv.head_dim <= _HELD_HEAD_DIM:
            return [self.step.query_piece(rows, piece) for piece in range(spec.pieces)]
        for piece in range(spec.pieces):
            b.when(
                b.cmp("eq", b.warp(), piece % WARPS),
                lambda piece=piece: self._stage(rows, piece),  # type: ignore[misc]
            )
        self._meet()
        return []

    def _stage(self, rows: list[Value], piece: int) -> None:
        b = self.b
        for step, fragment in enumerate(self.step.query_piece(rows, piece)):
            b.store(b.vector_of(fragment), self._query_place(piece, step), 16)

    def _queries(self, piece: int) -> list[Fragment]:
        b = self.b
        vector = b.vec(4, b.i32)
        fragments = []
        for step in range(self.spec.piece_bytes(piece) // 8):
            four = b.load(self._query_place(piece, step), vector, 16)
            fragments.append([b.extract(four, i) for i in range(4)])
        return fragments

    def _query_place(self, piece: int, step: int) -> Value:
        own = self.b.at(self.queries, self.b.mul(self.step.lane, 16))
        return self.b.at(own, (2 * piece + step) * FRAGMENT_BYTES)

    def _head(self, one: _Item, row: Value) -> Value:
        """The query head of a row of the tile; rows that there are not repeat the last one."""
        b, group = self.b, self.spec.group
        inside = b.min(b.add(b.mul(one.tile, self.records.tile_rows), row), group - 1)
        return b.add(b.mul(one.kv_head, group), inside)

    # ---- results -------------------------------------------------------------------------------

    def _finish(self, one: _Item, merged: Merged) -> None:
        """Write four elements of the output."""
        b = self.b

        def store() -> None:
            head = self._head(one, merged.row)
            place = self.output.place(one.row, head)
            inverse = b.fdiv(b.const(1.0, b.f32), merged.terms)
            self.output.store([b.fmul(s, inverse) for s in merged.sums], place, merged.element)
            lane = b.shr(merged.element, 2)
            b.when(b.cmp("slt", lane, 4), lambda: self.output.close(place, head, lane))

        self._when_there(one, merged, store)

    def _when_there(self, one: _Item, merged: Merged, then: object) -> None:
        b, records = self.b, self.records
        assert callable(then)
        if records.tiles * records.tile_rows == self.spec.group:
            then()
            return
        inside = b.add(b.mul(one.tile, records.tile_rows), merged.row)
        b.when(b.cmp("slt", inside, self.spec.group), then)

    def _record(self, one: _Item, part: Value) -> Value:
        b, records = self.b, self.records
        index = b.add(b.mul(one.owner, records.limit), part)
        return b.at(self.a.partials, b.mul(b.wide(index), records.record_bytes))

    def _keep(self, one: _Item, merged: Merged) -> None:
        """Keep four elements of a part."""
        b, records, dim = self.b, self.records, self.spec.kv.head_dim
        record = self._record(one, one.part)
        inside = b.add(b.mul(merged.row, dim), merged.element)
        b.store(b.vector_of(merged.sums), b.at(record, b.mul(inside, F32_BYTES)), 16)

        def keep_row() -> None:
            row = b.at(record, b.mul(merged.row, F32_BYTES))
            b.store(merged.maximum, b.at(row, records.maxima_offset), F32_BYTES)
            b.store(merged.terms, b.at(row, records.terms_offset), F32_BYTES)

        b.when(b.cmp("eq", merged.element, 0), keep_row)

    def _arrive(self, one: _Item) -> None:
        """Count this part; merge all of the row where it is the last one."""
        b = self.b
        self._meet()

        def count() -> None:
            place = b.at(self.a.arrivals, b.mul(one.owner, F32_BYTES))
            b.fence_device()
            before = b.add_and_fetch_old(place, 1)
            last = b.cmp("eq", b.add(before, 1), one.count)
            b.when(last, lambda: b.store(b.idx(0), place, 4))
            b.fence_device()
            b.store(b.ext_u(last, b.i32), self.flag, 4)

        b.when(b.cmp("eq", b.thread(), 0), count)
        self._meet()
        b.when(b.cmp("ne", b.load(self.flag, b.i32, 4), 0), lambda: self._merge_parts(one))

    def _merge_parts(self, one: _Item) -> None:
        b, step = self.b, self.step

        def body(part: Value, *carried: Value) -> list[Value]:
            other = state.like(self._read(one, part))
            return step.join(state.like(carried), other).values()

        state = step.new_state()
        known = b.loop(b.warp(), one.count, WARPS, state.values(), body=body)
        self.merge_all.emit(state.like(known), lambda merged: self._finish(one, merged))

    def _read(self, one: _Item, part: Value) -> list[Value]:
        """A part as the values of a warp's state."""
        b, step, records = self.b, self.step, self.records
        record = self._record(one, part)

        def existing(row: Value) -> Value:
            return b.min(row, records.tile_rows - 1)

        own = b.at(record, b.mul(existing(step.r), F32_BYTES))
        maximum = b.load(b.at(own, records.maxima_offset), b.f32, F32_BYTES)
        terms = b.load(b.at(own, records.terms_offset), b.f32, F32_BYTES)
        # A state has the sum of terms in shares of the four lanes of a quad.
        values = [maximum, b.select(b.cmp("eq", step.q, 0), terms, step.zero)]
        rows = [existing(b.add(b.mul(step.q, 2), i)) for i in range(2)]
        for column in range(self.spec.columns):
            for row in rows:
                inside = b.add(b.mul(row, self.spec.kv.head_dim), step.r)
                sums = b.at(record, b.mul(inside, F32_BYTES))
                values.append(b.load(b.at(sums, column * 8 * F32_BYTES), b.f32, F32_BYTES))
        return values

    def _number(self, array: Value, index: Value) -> Value:
        return self.b.load(self.b.at(array, self.b.mul(index, 4)), self.b.i32, 4)

    def _meet(self) -> None:
        self.b.sync(THREADS, WORKER_BARRIER)


class _Places:
    """Where things lie in the kernel's part of shared memory, in bytes."""

    def __init__(self, spec: AttentionSpec, streams: int) -> None:
        self.flag = MERGE_BYTES
        self.queries = MERGE_BYTES + 128
        staged = spec.kv.head_dim > _HELD_HEAD_DIM
        self.room = self.queries + (2 * spec.pieces * FRAGMENT_BYTES if staged else 0)
        self.total = self.room + RingShape(spec, streams).bytes
