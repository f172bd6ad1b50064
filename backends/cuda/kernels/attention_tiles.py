"""Attention of many rows: each warp has tiles of 16 rows, keys and values are staged for all warps.

A block of rows is 128 or 256 pairs of a token and one of the heads that share a kv head. Tokens of
several sequences are done run by run: consecutive tokens of one slot. Keys that no row of the block
sees are not copied, and a warp passes over those that none of its own rows sees. Blocks with many
keys come first, and every second round is dealt backwards, so that the last ones are short.
"""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.attention_output import AttentionOutput
from infc.backends.cuda.kernels.attention_parts import Arguments
from infc.backends.cuda.kernels.attention_spec import F32_BYTES, TILE_ROWS, AttentionSpec
from infc.backends.cuda.kernels.attention_stages import Stages, StageShape
from infc.backends.cuda.kernels.attention_step import FRAGMENT_BYTES, Fragment, Rows, State, Step
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, WORKER_BARRIER

_HELD_HEAD_DIM = 64
"""Up to here queries stay in registers, and 64 keys are handled at once."""
_PAIRED_HEAD_DIM = 128
"""Up to here the sums of two tiles fit a warp's registers."""
_FAR = 2**30


def most_tiles(spec: AttentionSpec) -> int:
    """The most tiles that fit the registers: keys are then read for twice the rows."""
    return 2 if spec.kv.head_dim <= _PAIRED_HEAD_DIM else 1


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

    def __init__(self, b: GpuBuilder, spec: AttentionSpec, tiles: int, a: Arguments) -> None:
        self.b, self.spec, self.a, self.tiles = b, spec, a, tiles
        groups = 2 if spec.kv.head_dim <= _HELD_HEAD_DIM else 1
        self.step = Step(b, spec, tiles, groups=groups)
        self.output = AttentionOutput(b, spec, a.out)
        base = b.shared_memory(WORK_OFFSET)
        self.stages = Stages(b, self.step, base)
        own = b.mul(b.warp(), _query_bytes(spec, tiles) // WARPS)
        lane = b.add(own, b.mul(self.step.lane, 16))
        self.queries = b.at(base, b.add(lane, 2 * self.stages.shape.bytes))
        notes = 2 * self.stages.shape.bytes + _query_bytes(spec, tiles)
        self.notes = b.at(base, b.add(b.mul(b.thread(), _note_bytes(tiles)), notes))

    @staticmethod
    def work_bytes(spec: AttentionSpec, tiles: int) -> int:
        """Shared memory."""
        notes = THREADS * _note_bytes(tiles)
        return 2 * StageShape(spec).bytes + _query_bytes(spec, tiles) + notes

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return WARPS * self.tiles * TILE_ROWS

    def emit(self) -> None:
        """Run the blocks of rows that this block of threads takes."""
        b, a, kv_heads = self.b, self.a, self.spec.kv.kv_heads
        blocks = b.ceil_div(b.mul(a.rows, self.spec.group), self.block_rows)
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
        first = b.mul(block, self.block_rows)
        self._note(self._rows(first, kv_head))
        stop = b.min(a.rows, b.ceil_div(b.add(first, self.block_rows), group))

        def run(start: Value) -> list[Value]:
            one = self._run(start, stop)
            self._attend(one, kv_head)
            return [one.end]

        b.loop_while([b.div(first, group)], lambda start: b.cmp("slt", start, stop), run)

    def _rows(self, first: Value, kv_head: Value) -> list[_Row]:
        b, a, group = self.b, self.a, self.spec.group
        own = b.add(first, b.mul(b.warp(), self.tiles * TILE_ROWS))
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
        keys = kv.head_keys(b, self.a.cache, run.slot, kv_head)
        values = kv.head_values(b, self.a.cache, run.slot, kv_head)
        oldest = b.idx(0)
        if self.spec.window is not None:
            oldest = b.max(b.sub(run.least, self.spec.window - 1), 0)
        positions = stages.shape.positions
        first, last = b.div(oldest, positions), b.div(run.highest, positions)
        # The stages of another run may still be read.
        self._meet()
        stages.copy(keys, values, first, b.idx(0))
        rows = self._noted()
        seen = self._seen(run, rows)
        held = self._load_queries(rows)

        def stage(number: Value, *carried: Value) -> list[Value]:
            buffer = b.bit_and(b.sub(number, first), 1)
            b.copy_wait(0)
            self._meet()

            def ahead() -> None:
                stages.copy(keys, values, b.add(number, 1), b.bit_xor(buffer, 1))

            b.when(b.cmp("slt", number, last), ahead)
            return self._stage(state.like(carried), seen, held, number, buffer).values()

        state = self.step.new_state()
        out = b.loop(first, b.add(last, 1), 1, state.values(), body=stage)
        self._finish(state.like(out), seen)

    def _stage(
        self,
        state: State,
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
            staged = self.stages.staged(buffer, index)

            def attend() -> list[Value]:
                return step.attend(
                    state.like(carried),
                    seen,
                    first,
                    lambda tile, piece: held[tile][piece] if held else self._query(tile, piece),
                    staged.key_piece,
                    staged.value_piece,
                ).values()

            return b.when(step.sees_some(seen, first), attend, lambda: list(carried), kinds)

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

    def _finish(self, state: State, seen: Rows) -> None:
        """Write the rows of the run."""
        b, step = self.b, self.step
        for index, row in enumerate(self._noted()):
            tile, half = divmod(index, 2)
            terms = step.quad_sum(state.terms[index])

            def store(
                row: _Row = row, tile: int = tile, half: int = half, terms: Value = terms
            ) -> None:
                inverse = b.fdiv(b.const(1.0, b.f32), terms)
                place = self.output.place(row.token, row.head)
                for column in range(self.spec.columns):
                    at = (tile * self.spec.columns + column) * 4 + 2 * half
                    pair = [b.fmul(s, inverse) for s in state.sums[at : at + 2]]
                    self.output.store(pair, place, b.add(b.mul(step.q, 2), column * 8))
                self.output.close(place, row.head, step.q)

            b.when(b.cmp("sge", seen.positions[index], 0), store)

    # ---- queries -------------------------------------------------------------------------------

    def _load_queries(self, rows: list[_Row]) -> list[list[list[Fragment]]]:
        """Fragments `[tile][piece]`, or none: they are then in shared memory, where each lane reads
        what it wrote itself."""
        b, spec = self.b, self.spec
        held = []
        for tile in range(self.tiles):
            pointers = []
            for row in rows[2 * tile : 2 * tile + 2]:
                index = b.add(b.mul(b.wide(row.token), spec.heads), b.wide(row.head))
                pointers.append(b.at(self.a.q, b.mul(index, spec.kv.head_dim * F32_BYTES)))
            if spec.kv.head_dim <= _HELD_HEAD_DIM:
                held.append([self.step.query_piece(pointers, p) for p in range(spec.pieces)])
                continue
            for piece in range(spec.pieces):
                for step, fragment in enumerate(self.step.query_piece(pointers, piece)):
                    b.store(b.vector_of(fragment), self._query_place(tile, piece, step), 16)
        return held

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


def _note_bytes(tiles: int) -> int:
    """Shared memory of what a lane notes of its rows."""
    return 3 * 4 * 2 * tiles


def _query_bytes(spec: AttentionSpec, tiles: int) -> int:
    """Shared memory of the queries of all warps."""
    if spec.kv.head_dim <= _HELD_HEAD_DIM:
        return 0
    return WARPS * tiles * spec.pieces * 2 * FRAGMENT_BYTES
