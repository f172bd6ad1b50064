"""Scores, softmax and weighted values of some keys, for rows that a warp keeps.

A row is a token and one of the heads that share a kv head. A warp has one or two tiles of 16 rows,
or one of 8.

Both products are `mma.m16n8k16`. A product sums over its k in any order, and its columns may come
in any order, so orders are chosen that make every operand 16 contiguous bytes a lane. With lane
`4 r + q`:

- of a *piece* of 32 elements of a query or key, lane q of a quad holds elements `8q .. 8q + 7`: two
  k steps of two pairs each;
- column `r` of score tile `t` is key `8 (r / 2) + 2 t + r % 2` of 32, so that of a row's scores
  lane q holds keys `8q .. 8q + 7`. These are, rounded in pairs, an operand of the second product,
  where lane `4 r + q` holds the same keys of element `r` of 8: the left one; with tiles of 8 rows
  the right one, so that half as many instructions give half as many sums, elements by rows.

(Milakov and Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention".)

A row's numbers depend on no other row: sums run over its keys in one order, and keys that it does
not see leave its state exactly as it was (terms are 0, the correction is `2**0`). A key that is not
a number makes the rows that see it NaN, and no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.warp_matrices import mma
from infc.backends.cuda.kernels.attention_spec import (
    LOG2_E,
    MASKED,
    PIECE,
    STEP_KEYS,
    AttentionSpec,
)
from infc.backends.cuda.kernels.attention_state import Rows, State

TILES_A_STEP = STEP_KEYS // 8
"""Score tiles of 8 columns of a step of 32 keys."""
FRAGMENT_BYTES = 512
"""16 bytes of each lane of a warp."""
_BEYOND = 2**30
"""A position behind all that there are."""

KeyPiece = Callable[[int, int], Sequence[Value]]
"""Four (or two) i32 of a lane: of score tile `t` the piece `j`."""
ValuePiece = Callable[[int, int], Sequence[Value]]
"""Four i32 of a lane: of the `g`-th 32 keys the column `n` of 8 elements."""
Fragment = list[Value]


class Step:
    """Emits what a warp does with some keys.

    Args:
        tiles: tiles of 16 rows, or 0 for one of 8.
        groups: how many times 32 keys are handled at once.
    """

    def __init__(self, b: GpuBuilder, spec: AttentionSpec, tiles: int, groups: int) -> None:
        self.b, self.spec = b, spec
        self.tiles, self.halves, self.groups = max(1, tiles), 2 if tiles else 1, groups
        self.sums_a_tile = spec.columns * 4 // (1 if tiles else 2)
        self.keys = groups * STEP_KEYS
        self.lane = b.lane()
        self.r, self.q = b.shr(self.lane, 2), b.bit_and(self.lane, 3)
        self.zero = b.const(0.0, b.f32)
        self.none = b.idx(0)

    def new_state(self) -> State:
        """Of rows that have seen nothing."""
        rows = self.tiles * self.halves
        masked = self.b.const(MASKED, self.b.f32)
        sums = [self.zero] * (self.tiles * self.sums_a_tile)
        return State([masked] * rows, [self.zero] * rows, sums)

    # ---- what rows see -------------------------------------------------------------------------

    def rows(self, positions: Sequence[Value], exist: Sequence[Value] | None = None) -> Rows:
        """What rows at these positions see; rows that do not `exist` (i1) keep nobody waiting."""
        b = self.b
        least, highest = b.idx(_BEYOND), b.idx(-1)
        for index, position in enumerate(positions):
            counted = position
            if exist is not None:
                counted = b.select(exist[index], position, b.idx(_BEYOND))
            least, highest = b.min(least, counted), b.max(highest, position)
        if exist is not None or len(positions) > 1:
            least, highest = b.warp_reduce(b.min, least), b.warp_reduce(b.max, highest)
        return Rows(list(positions), least, highest)

    def sees_some(self, rows: Rows, first: Value) -> Value:
        """Whether a row of the warp may see one of the keys from position `first` on, i1."""
        b, window = self.b, self.spec.window
        some = b.cmp("sle", first, rows.highest)
        if window is not None:
            oldest = b.sub(rows.least, window - 1)
            some = b.bit_and(some, b.cmp("sge", b.add(first, self.keys - 1), oldest))
        return some

    def _sees_all(self, rows: Rows, first: Value) -> Value:
        b, window = self.b, self.spec.window
        every = b.cmp("sle", b.add(first, self.keys - 1), rows.least)
        if window is not None:
            oldest = b.sub(rows.highest, window - 1)
            every = b.bit_and(every, b.cmp("sge", first, oldest))
        return every

    # ---- the step ------------------------------------------------------------------------------

    def attend(
        self,
        state: State,
        rows: Rows,
        first: Value,
        queries: Callable[[int, int], list[Fragment]],
        keys: KeyPiece,
        values: ValuePiece,
    ) -> State:
        """The state after the keys from position `first` on.

        Args:
            queries: of a tile and piece the fragments, one for each 16 elements.
            keys, values: asked for in the order of `key_order` and then `value_order`.
        """
        scores = self._masked(rows, first, self._scores(queries, keys))
        maxima, terms, sums = list(state.maxima), list(state.terms), list(state.sums)
        powers = []
        for tile in range(self.tiles):
            of_tile, corrected = self._softmax(tile, scores[tile], maxima, terms, sums)
            powers.append(of_tile)
            width = self.sums_a_tile
            sums[tile * width : (tile + 1) * width] = corrected
        add = self._add_values if self.halves == 2 else self._add_values_of_8
        return State(maxima, terms, add(powers, sums, values))

    def key_order(self) -> list[tuple[int, int]]:
        """Score tile and piece of the keys, in the order they are asked for: pairs of pieces, so
        that whole lines of keys are fetched together."""
        return [
            (tile, piece)
            for pair in range(0, self.spec.pieces, 2)
            for tile in range(TILES_A_STEP * self.groups)
            for piece in range(pair, min(pair + 2, self.spec.pieces))
        ]

    def value_order(self) -> list[tuple[int, int]]:
        """Group of 32 keys and column of the values, in the order they are asked for."""
        return [
            (group, column) for column in range(self.spec.columns) for group in range(self.groups)
        ]

    def _scores(
        self, queries: Callable[[int, int], list[Fragment]], keys: KeyPiece
    ) -> list[list[Fragment]]:
        """Scores `[tile][score tile]` as the matrix instruction has them."""
        b, kind = self.b, self.spec.kv.dtype
        columns = TILES_A_STEP * self.groups
        scores = [[[self.zero] * 4 for _ in range(columns)] for _ in range(self.tiles)]
        held: dict[tuple[int, int], list[Fragment]] = {}
        for column, piece in self.key_order():
            right = keys(column, piece)
            for tile in range(self.tiles):
                if (tile, piece) not in held:
                    held[tile, piece] = queries(tile, piece)
                for step, left in enumerate(held[tile, piece]):
                    pair = right[2 * step : 2 * step + 2]
                    scores[tile][column] = mma(b, kind, left, pair, scores[tile][column])
        return [[[self._cap(s) for s in four] for four in tile] for tile in scores]

    def _cap(self, score: Value) -> Value:
        """`cap * tanh(score / cap)` in units of `log2 e`, of what the first product gave."""
        b, cap = self.b, self.spec.softcap
        if cap is None:
            return score
        # tanh x = 1 - 2 / (e**2x + 1)
        cap_2 = cap * LOG2_E
        inverse = b.reciprocal(b.fadd(b.exp2(score), b.const(1.0, b.f32)))
        return b.fma(inverse, b.const(-2 * cap_2, b.f32), b.const(cap_2, b.f32))

    def _masked(
        self, rows: Rows, first: Value, scores: list[list[Fragment]]
    ) -> list[list[Fragment]]:
        """Scores with minus infinity where a row does not see a key."""
        b = self.b
        flat = [score for tile in scores for four in tile for score in four]

        def mask() -> list[Value]:
            out = list(flat)
            for tile in range(self.tiles):
                for half in range(self.halves):
                    self._mask_half(out, tile, half, rows, first)
            return out

        kinds = [b.f32] * len(flat)
        flat = b.when(self._sees_all(rows, first), lambda: list(flat), mask, kinds)
        width = TILES_A_STEP * self.groups
        fours = [flat[i : i + 4] for i in range(0, len(flat), 4)]
        return [fours[i : i + width] for i in range(0, len(fours), width)]

    def _mask_half(self, out: list[Value], tile: int, half: int, rows: Rows, first: Value) -> None:
        b, window = self.b, self.spec.window
        width = TILES_A_STEP * self.groups * 4
        hidden = b.const(-math.inf, b.f32)
        position = rows.positions[tile * self.halves + half]
        own = b.add(first, b.mul(self.q, 8))
        # A row sees keys from `position - window + 1` to `position`: one comparison without signs.
        base = b.sub(position, own) if window is None else b.sub(own, b.sub(position, window - 1))
        for column in range(TILES_A_STEP * self.groups):
            for parity in range(2):
                key = STEP_KEYS * (column // TILES_A_STEP) + column % TILES_A_STEP * 2 + parity
                at = tile * width + column * 4 + half * 2 + parity
                if window is None:
                    seen = b.cmp("sge", base, key)
                else:
                    seen = b.cmp("ult", b.add(base, key), window)
                out[at] = b.select(seen, out[at], hidden)

    def _softmax(
        self,
        tile: int,
        scores: list[Fragment],
        maxima: list[Value],
        terms: list[Value],
        sums: list[Value],
    ) -> tuple[list[list[Value]], list[Value]]:
        """Terms of a tile, rounded in pairs, `[score tile][half]`, and its sums corrected.

        `maxima` and `terms` are brought up to date.
        """
        b = self.b
        corrections = []
        rounded: list[list[Value]] = [[] for _ in scores]
        changed: Value | None = None
        for half in range(self.halves):
            index = tile * self.halves + half
            own = [four[2 * half + parity] for four in scores for parity in range(2)]
            largest = self._tree(b.fmax, own)
            for mask in (1, 2):
                largest = b.fmax(largest, b.shuffle_xor(largest, mask))
            new = b.fmax(maxima[index], largest)
            grows = b.fcmp("ogt", new, maxima[index])
            changed = grows if changed is None else b.bit_or(changed, grows)
            corrections.append(b.exp2(b.fsub(maxima[index], new)))
            own = [b.exp2(b.fsub(score, new)) for score in own]
            maxima[index] = new
            terms[index] = b.fma(terms[index], corrections[half], self._tree(b.fadd, own))
            for column in range(len(scores)):
                rounded[column].append(self.pack(own[2 * column], own[2 * column + 1]))
        width = self.sums_a_tile
        before = sums[tile * width : (tile + 1) * width]

        def correct() -> list[Value]:
            own = [self.zero] * (tile * self.halves) + corrections
            of_sum = self._factors_of_sums(own)
            return [b.fmul(s, of_sum(tile * width + i)) for i, s in enumerate(before)]

        # Mostly no maximum grows: 1 is then all corrections, and nothing is to be done.
        any_grows = b.cmp("ne", b.ballot(changed), 0)
        after = b.when(any_grows, correct, lambda: list(before), [b.f32] * len(before))
        return rounded, after

    def join(self, state: State, other: State) -> State:
        """What is known of the same rows from other keys too."""
        b = self.b
        maxima, old, new = [], [], []
        for own, others in zip(state.maxima, other.maxima, strict=True):
            maxima.append(b.fmax(own, others))
            old.append(b.exp2(b.fsub(own, maxima[-1])))
            new.append(b.exp2(b.fsub(others, maxima[-1])))
        old_of, new_of = self._factors_of_sums(old), self._factors_of_sums(new)
        return State(
            maxima,
            [
                b.fma(other.terms[i], new[i], b.fmul(own, old[i]))
                for i, own in enumerate(state.terms)
            ],
            [
                b.fma(other.sums[i], new_of(i), b.fmul(own, old_of(i)))
                for i, own in enumerate(state.sums)
            ],
        )

    def _factors_of_sums(self, factors: Sequence[Value]) -> Callable[[int], Value]:
        """Of factors of rows, f32 `[tile][half]`, that of each of the sums."""
        if self.halves == 2:
            return lambda i: factors[i // self.sums_a_tile * 2 + i % 4 // 2]
        of_rows = self.across(factors[0])
        return lambda i: of_rows[i % 2]

    def across(self, value: Value) -> list[Value]:
        """Of a value that lanes have for row `r`, those of rows `2q` and `2q + 1`."""
        b = self.b
        first = b.mul(self.q, 8)
        return [b.shuffle_index(value, lane) for lane in (first, b.add(first, 4))]

    def _add_values(
        self, powers: list[list[list[Value]]], sums: list[Value], values: ValuePiece
    ) -> list[Value]:
        b, kind = self.b, self.spec.kv.dtype
        sums = list(sums)
        for group, column in self.value_order():
            right = values(group, column)
            for step in range(2):
                first = TILES_A_STEP * group + 2 * step
                for tile in range(self.tiles):
                    at = tile * self.sums_a_tile + column * 4
                    left = [*powers[tile][first], *powers[tile][first + 1]]
                    pair = right[2 * step : 2 * step + 2]
                    sums[at : at + 4] = mma(b, kind, left, pair, sums[at : at + 4])
        return sums

    def _add_values_of_8(
        self, powers: list[list[list[Value]]], sums: list[Value], values: ValuePiece
    ) -> list[Value]:
        b, kind = self.b, self.spec.kv.dtype
        sums = list(sums)
        held: dict[int, Sequence[Value]] = {}
        for group, column in self.value_order():
            held[group] = [*held.get(group, []), *values(group, column)]
            if column % 2 == 0:
                continue
            words = held.pop(group)
            for step in range(2):
                left = [words[2 * step + i] for i in (0, 4, 1, 5)]
                first = TILES_A_STEP * group + 2 * step
                right = [powers[0][first][0], powers[0][first + 1][0]]
                at = column // 2 * 4
                sums[at : at + 4] = mma(b, kind, left, right, sums[at : at + 4])
        return sums

    def quad_sum(self, value: Value) -> Value:
        """The sum over the lanes of a quad."""
        b = self.b
        for mask in (1, 2):
            value = b.fadd(value, b.shuffle_xor(value, mask))
        return value

    def pack(self, low: Value, high: Value) -> Value:
        """Two f32 rounded to the cache's dtype, in an i32."""
        b = self.b
        return b.pack_f16(low, high) if self.spec.kv.dtype == "f16" else b.pack_bf16(low, high)

    @staticmethod
    def _tree(combine: Callable[[Value, Value], Value], values: Sequence[Value]) -> Value:
        level = list(values)
        while len(level) > 1:
            level = [combine(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        return level[0]

    # ---- queries -------------------------------------------------------------------------------

    def query_piece(self, rows: Sequence[Value], piece: int) -> list[Fragment]:
        """Fragments of a piece of a tile, one for each 16 elements.

        Args:
            rows: pointers to the f32 queries of rows `r` and, in tiles of 16, `r + 8`.
        """
        b = self.b
        factor = b.const(self.spec.query_factor, b.f32)
        vector = b.vec(4, b.f32)
        steps = self.spec.piece_bytes(piece) // 8
        words: list[list[Value]] = []
        for row in rows:
            start = b.at(row, b.mul(self.q, 4 * steps * 4))
            numbers = []
            for step in range(steps):
                four = b.load(b.at(start, piece * PIECE * 4 + step * 16), vector, 16)
                numbers += [b.fmul(b.extract(four, i), factor) for i in range(4)]
            words.append([self.pack(*numbers[i : i + 2]) for i in range(0, len(numbers), 2)])
        fragments = []
        for step in range(steps):
            low, high = ([w[2 * step + i] for w in words] for i in range(2))
            if len(rows) == 1:
                low, high = [*low, self.none], [*high, self.none]
            fragments.append([*low, *high])
        return fragments
