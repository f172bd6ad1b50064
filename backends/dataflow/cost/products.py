"""Products: strips of columns, pieces of weights, tiles of rows."""

from __future__ import annotations

from infc.backends.dataflow.codegen.linear import FINE_COLUMNS
from infc.backends.dataflow.codegen.values import deal
from infc.backends.dataflow.cost.rates import BINARY, CONVERT, QUANTIZE, SPECIAL
from infc.backends.dataflow.cost.sketch import Step
from infc.backends.dataflow.cost.timeline import MATRIX, Timeline
from infc.backends.dataflow.isa import BLOCK
from infc.backends.dataflow.tiles import TileFormat, tile_format
from infc.diagnostics import InternalError
from infc.ir.types import A8


def slice_of(width: int, unit: int, cores: int) -> int:
    """Columns of the core that has most."""
    return max(stop - first for first, stop in deal(width, unit, cores))


def form_of(storage: str) -> TileFormat:
    """The form of a storage type's tiles."""
    form = tile_format(storage)
    if form is None:
        raise InternalError(f"the matrix unit has no {storage} weights")
    return form


def products(time: Timeline, step: Step, slot_bytes: int) -> None:
    """All products of one input; two of a gate strip by strip in turns."""
    gate = bool(step.sizes["gate"])
    unit = BLOCK if gate else FINE_COLUMNS
    rows, k = time.rows[step.space], step.sizes["width"]
    if rows == 0:
        return
    run = _Products(time, rows, k, slot_bytes)
    found = [(slice_of(n, unit, time.cores), form_of(storage)) for n, storage in step.matrices]
    if gate:
        (columns, _), *_ = found
        for first in range(0, columns, run.tile_n):
            for _, form in found:
                run.strip(form, min(run.tile_n, columns - first))
    else:
        for columns, form in found:
            for first in range(0, columns, run.tile_n):
                run.strip(form, min(run.tile_n, columns - first))


def gated(time: Timeline, step: Step, slot_bytes: int, form: str) -> None:
    """The product of a gate for many rows: the vector unit activates and rounds a strip while the
    matrix unit makes the next one, and the send stream sends the one before."""
    rates = time.rates
    rows, k = time.rows[step.space], step.sizes["width"]
    n, _ = step.matrices[0]
    columns, run = slice_of(n, BLOCK, time.cores), _Products(time, rows, k, slot_bytes)
    forms = [form_of(each) for _, each in step.matrices]
    behind, moved = 0.0, 0.0
    for first in range(0, columns, run.tile_n):
        width, begin = min(run.tile_n, columns - first), time.now
        for each in forms:
            run.strip(each, width)
        made = time.now - begin
        time.vector(max(0.0, behind - made))
        at_once = max(rates.machine.vector.native // width, 1)
        vectors = -(-rows // at_once)
        elements = min(rows, at_once) * width
        codes = form == A8
        body = rates.vector(SPECIAL, elements) + rates.vector(BINARY, elements)
        body += rates.vector(QUANTIZE if codes else CONVERT, elements)
        behind = rates.each_row(vectors, body, 3, 5)
        moved = rows * width * (1.125 if codes else 2.0)
    time.vector(behind)
    time.exchange(time.network.to_all(moved), 2.0 if form == A8 else 1.0)


class _Products:
    """The matrix stream of a core for one input."""

    def __init__(self, time: Timeline, rows: int, k: int, slot_bytes: int) -> None:
        self.time, self.rows, self.k, self.slot_bytes = time, rows, k, slot_bytes
        unit = time.rates.machine.matrix
        self.tile_n, self.tile_k, self.tile_m = unit.n, unit.k, unit.m
        self._pieces: dict[tuple[TileFormat, int], list[tuple[int, float]]] = {}

    def strip(self, form: TileFormat, n: int) -> None:
        """`n` columns over the whole depth."""
        time, constants = self.time, self.time.rates.constants
        for size, cycles in self._pieces_of(form, n):
            if time.loader is not None:
                there = time.loader.piece(size, time.now)
                if there > time.now:
                    time.spend(time.rates.machine.far[0].name, there - time.now)
            time.spend(MATRIX, cycles + constants.piece)
            if time.loader is not None:
                time.loader.release(time.now)

    def _pieces_of(self, form: TileFormat, n: int) -> list[tuple[int, float]]:
        """Bytes and cycles of each piece of a strip."""
        if (form, n) in self._pieces:
            return self._pieces[form, n]
        whole, rest = divmod(self.k, self.tile_k)
        depths = [self.tile_k] * whole + [rest] * (rest > 0)
        tile_bytes = form.tile_bytes(n, self.tile_k)
        at_once = max(self.slot_bytes // tile_bytes, 1) if self.time.loader else len(depths)
        pieces = [depths[at : at + at_once] for at in range(0, len(depths), at_once)]
        self._pieces[form, n] = [
            (
                sum(form.tile_bytes(n, depth) for depth in piece),
                sum(
                    self._tile(form, n, depth, add=number + at > 0)
                    for at, depth in enumerate(piece)
                ),
            )
            for number, piece in enumerate(pieces)
        ]
        return self._pieces[form, n]

    def _tile(self, form: TileFormat, n: int, depth: int, *, add: bool) -> float:
        """One tile of weights against all rows."""
        whole, rest = divmod(self.rows, self.tile_m)
        cycles = 0.0
        for rows, times in ((self.tile_m, whole), (rest, 1)):
            if rows and times:
                cycles += times * self.time.rates.tile(form, rows, n, depth, add=add)
        return cycles
