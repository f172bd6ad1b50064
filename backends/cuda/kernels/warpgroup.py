"""The tiled product on sm_90a: weights rounded to bf16 in registers, `wgmma`.

A block has a warpgroup that copies and two that multiply. These have all tokens of a tile and half
of the features each: panels of its warps are the 64 rows of its `wgmma`s, which read activations
from shared memory. While one runs, the weights of the next one are unpacked. `filled` and `free`
barriers, one for each stage, say when a stage may be read and when it may be overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.codegen import warpgroup
from infc.backends.cuda.codegen.builder import GpuBuilder, Value
from infc.backends.cuda.codegen.warpgroup import WARPGROUP
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET, Emitted
from infc.backends.cuda.kernels.product_spec import ProductArguments, ProductSpec
from infc.backends.cuda.kernels.tile_copies import Copier, Cursor
from infc.backends.cuda.kernels.tile_dealing import Lot, alike, by_rows
from infc.backends.cuda.kernels.tile_mapping import STEP_BLOCKS, TileMapping, regimes, stages_bytes
from infc.backends.cuda.kernels.tile_store import FRAGMENT_TOKENS, Sums, flat, store_tile
from infc.backends.cuda.kernels.tile_weights import WarpWeights
from infc.backends.cuda.kernels.weights import load_multiplier

_COPYING_REGISTERS, _MULTIPLYING_REGISTERS = 40, 232
"""Registers of a thread: together what a multiprocessor has."""
_BARRIER_BYTES = 8
_ALL_THREADS = THREADS + WARPGROUP


def emit_warpgroup_tiles(
    b: GpuBuilder, name: str, spec: ProductSpec, mapping: TileMapping
) -> Emitted:
    """Define the function that `emit_tiles` describes, for blocks of 384 threads; it is inlined
    into its entry, where registers are dealt anew."""
    with b.function(name, ProductArguments.types(b, spec, 3), inline=True) as values:
        arguments = ProductArguments.of(spec, values)
        parts = [
            (rows, _Regime(b, spec, regime, arguments))
            for rows, regime in regimes(spec, mapping, b.arch)
        ]
        by_rows(b, arguments.rest[0], [(rows, part.emit) for rows, part in parts])
        b.ret()
    work_bytes = max(part.slots.size_bytes for _, part in parts)
    return Emitted(name, work_bytes, threads=_ALL_THREADS)


class _Regime:
    """The kernel with one mapping."""

    def __init__(
        self, b: GpuBuilder, spec: ProductSpec, mapping: TileMapping, arguments: ProductArguments
    ) -> None:
        self._b, self._spec, self._mapping, self._arguments = b, spec, mapping, arguments
        self.slots = _Slots(b, mapping.stages, stages_bytes(spec, mapping) // mapping.stages)

    def emit(self) -> None:
        """Its code; registers are dealt anew in it."""
        b, spec, mapping, slots = self._b, self._spec, self._mapping, self.slots
        _, cta, ctas = self._arguments.rest
        lots = [Lot(b, spec, mapping, self._arguments, outputs) for outputs in alike(spec)]
        parts = list(zip(lots, _firsts(b, lots, cta, ctas), strict=True))
        slots.make()

        def copy() -> None:
            warpgroup.keep_registers(_COPYING_REGISTERS, more=False)
            state = slots.start()
            for lot, first in parts:
                thread = b.sub(b.thread(), THREADS)
                copier = Copier(b, spec, lot, WARPGROUP, thread, ctas)
                state = _copy_tiles(b, slots, lot, copier, first, state)

        def multiply() -> None:
            warpgroup.keep_registers(_MULTIPLYING_REGISTERS, more=True)
            state = slots.start()
            for lot, first in parts:
                multiplier = _Multiplier(b, spec, mapping, lot, slots)
                state = multiplier.run(first, ctas, state)

        b.when(b.cmp("slt", b.warp(), WARPS), multiply, copy)


def _firsts(b: GpuBuilder, lots: Sequence[Lot], cta: Value, ctas: Value) -> list[Value]:
    """The block's first tile of each lot; a lot is dealt on from where the one before ends."""
    firsts = [cta]
    for lot in lots[:-1]:
        firsts.append(b.rem(b.add(firsts[-1], b.sub(ctas, b.rem(lot.count, ctas))), ctas))
    return firsts


class _Slots:
    """The stages in shared memory and their barriers. A state is a slot and the parity of the round
    through the slots, i32 both."""

    def __init__(self, b: GpuBuilder, count: int, stage_bytes: int) -> None:
        self._b, self._count, self._stage_bytes = b, count, stage_bytes
        self._barriers = WORK_OFFSET + count * stage_bytes

    @property
    def size_bytes(self) -> int:
        """Shared memory that is used."""
        return self._count * (self._stage_bytes + 2 * _BARRIER_BYTES)

    def make(self) -> None:
        """Make the barriers; all threads of the block come here."""
        b = self._b

        def make() -> None:
            for slot in range(self._count):
                b.mbarrier_init(self.filled(b.idx(slot)), WARPGROUP)
                b.mbarrier_init(self.free(b.idx(slot)), WARPS)
            b.fence_mbarrier_init()

        b.when(b.cmp("eq", b.thread(), 0), make)
        b.sync(_ALL_THREADS)

    def start(self) -> list[Value]:
        """The first state."""
        return [self._b.idx(0), self._b.idx(0)]

    def after(self, state: Sequence[Value]) -> list[Value]:
        """The state behind."""
        b, (slot, parity) = self._b, state
        last = b.cmp("eq", slot, self._count - 1)
        return [
            b.select(last, b.idx(0), b.add(slot, 1)),
            b.select(last, b.bit_xor(parity, 1), parity),
        ]

    def before(self, slot: Value) -> Value:
        """The slot before."""
        b = self._b
        return b.select(b.cmp("eq", slot, 0), b.idx(self._count - 1), b.sub(slot, 1))

    def stage(self, slot: Value) -> Value:
        """Its stage."""
        offset = self._b.mul(slot, self._stage_bytes)
        return self._b.shared_memory(self._b.add(offset, WORK_OFFSET))

    def filled(self, slot: Value) -> Value:
        """The barrier where threads that copy arrive."""
        return self._b.shared_memory(
            self._b.add(self._b.mul(slot, 2 * _BARRIER_BYTES), self._barriers)
        )

    def free(self, slot: Value) -> Value:
        """The barrier where warps that multiply arrive."""
        return self._b.at(self.filled(slot), _BARRIER_BYTES)


def _copy_tiles(
    b: GpuBuilder,
    slots: _Slots,
    lot: Lot,
    copier: Copier,
    first: Value,
    state: Sequence[Value],
) -> list[Value]:
    """Copy all stages of a lot's tiles, one ahead of the one that is announced."""

    def announce(slot: Value) -> None:
        # `wgmma` reads what ordinary copies wrote only behind this fence.
        b.fence_async()
        b.mbarrier_arrive(slots.filled(slot))

    def some(*carried: Value) -> Value:
        return b.cmp("slt", Cursor.of(carried[3:]).tile, lot.count)

    def stage(begun: Value, slot: Value, parity: Value, *cursor: Value) -> list[Value]:
        b.mbarrier_wait(slots.free(slot), b.bit_xor(parity, 1))
        after = copier.copy(Cursor.of(cursor), slots.stage(slot))
        b.copy_commit()

        def last() -> None:
            b.copy_wait(1)
            announce(slots.before(slot))

        b.when(b.cmp("ne", begun, 0), last)
        return [b.idx(1), *slots.after([slot, parity]), *after.values()]

    start = [b.idx(0), *state, *copier.start(first).values()]
    begun, slot, parity, *_ = b.loop_while(start, some, stage)

    def rest() -> None:
        b.copy_wait(0)
        announce(slots.before(slot))

    b.when(b.cmp("ne", begun, 0), rest)
    return [slot, parity]


class _Multiplier:
    """The code of the warps that multiply, for one lot."""

    def __init__(
        self,
        b: GpuBuilder,
        spec: ProductSpec,
        mapping: TileMapping,
        lot: Lot,
        slots: _Slots,
    ) -> None:
        self.b, self.spec, self.lot, self.slots = b, spec, lot, slots
        self.weights = WarpWeights(b, mapping, lot.stage, b.warp())
        self.steps = -(-spec.blocks // STEP_BLOCKS)
        fragments = mapping.tokens // FRAGMENT_TOKENS
        self.sums = Sums(len(lot.stage.layouts), self.weights.panels, fragments)

    def run(self, first: Value, ctas: Value, state: Sequence[Value]) -> list[Value]:
        """Do the tiles `first`, `first + ctas`, ...; returns the state behind."""
        b, slots = self.b, self.slots

        def tile(number: Value, *state: Value) -> list[Value]:
            place = self.lot.place(number)
            multipliers = [load_multiplier(b, header) for header in place.headers]

            def step(index: Value, slot: Value, parity: Value, *sums: Value) -> list[Value]:
                b.mbarrier_wait(slots.filled(slot), parity)
                made = self.sums.nested(sums)
                lines = warpgroup.descriptor(b, slots.stage(slot))
                for block in range(STEP_BLOCKS):
                    self._multiply(slots.stage(slot), block, lines, multipliers, made)
                    warpgroup.wait(1)
                    if block == 0:
                        # The last group of the stage before is done.
                        self._release(slots.before(slot), b.cmp("ne", index, 0))
                return [*slots.after([slot, parity]), *flat(made)]

            start = [*state, *[b.const(0.0, b.f32)] * self.sums.count]
            slot, parity, *sums = b.loop(0, self.steps, carried=start, body=step)
            warpgroup.wait(0)
            self._release(slots.before(slot), b.const(1, b.i1))
            panel, token = self.weights.first_panel, b.idx(0)
            nested = self.sums.nested(sums)
            store_tile(b, self.spec, place, panel, token, self.lot.rows, nested)
            return [slot, parity]

        return b.loop(first, self.lot.count, ctas, carried=state, body=tile)

    def _multiply(
        self,
        stage: Value,
        block: int,
        lines: Value,
        multipliers: Sequence[Value],
        sums: list[list[list[list[Value]]]],
    ) -> None:
        """Begin to add the products of a block."""
        b = self.b
        weights = self.weights.read(stage, block, multipliers)
        warpgroup.fence()
        for step in range(2):
            numbers = b.add(lines, 2 * (2 * block + step))
            for segment, panels in enumerate(weights):
                for panel, steps in enumerate(panels):
                    row = sums[segment][panel]
                    before = [value for fragment in row for value in fragment]
                    after = warpgroup.multiply(b, steps[step], numbers, before)
                    row[:] = [after[i : i + 4] for i in range(0, len(after), 4)]
        warpgroup.commit()

    def _release(self, slot: Value, when: Value) -> None:
        """The warp no longer reads a slot."""
        b = self.b
        first = b.bit_and(b.cmp("eq", b.lane(), 0), when)
        b.when(first, lambda: b.mbarrier_arrive(self.slots.free(slot)))
