"""What happens to the sums of a matrix product before they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.vmath import (
    emit_gelu_tanh,
    emit_gelu_tanh_short,
    emit_silu,
    emit_silu_short,
    emit_tanh,
)
from infc.passes.codegen.panels import PANEL_ROWS

COMBINATIONS = {"silu": emit_silu, "gelu_tanh": emit_gelu_tanh}
"""The activations of gated feed-forward layers."""
_SHORT_COMBINATIONS = {"silu": emit_silu_short, "gelu_tanh": emit_gelu_tanh_short}

ROOM_BYTES_PER_ROW = 4 * LANES


@dataclass(frozen=True)
class Epilogue:
    """The steps on 16 output columns of a row, in this order.

    Attributes:
        scaled: multiply by the multiplier of the packed weights.
        bias: add a bias.
        combine: replace the output `g` that is there by `activation(g) * value`. Unlike the other
            steps this must be done once only.
        softcap: `softcap * tanh(value / softcap)`.
        partial: the last panel has fewer than 16 columns.
        short: the result is rounded to bf16, so that an activation need not be more exact.
    """

    scaled: bool
    bias: bool = False
    combine: str | None = None
    softcap: float | None = None
    partial: bool = False
    short: bool = False

    @property
    def is_long(self) -> bool:
        """Whether it is worth a loop over the rows rather than a copy for each."""
        return self.combine is not None or self.softcap is not None

    @property
    def name(self) -> str:
        """A part of a function name."""
        cap = None if self.softcap is None else "cap" + repr(self.softcap)
        flags = (
            self.scaled and "s",
            self.bias and "bias",
            self.combine,
            cap,
            self.partial and "n",
            self.short and "short",
        )
        return ".".join(flag for flag in flags if flag) or "plain"


@dataclass(frozen=True)
class PanelOutput:
    """Where the results of one panel go.

    Attributes:
        multiplier: `f32`, of the packed weights.
        bias: points to the panel's first bias.
        out: points to the panel's first column of row 0.
        row_bytes: `i64`, from a row of the output to the next.
        columns: `i64`, columns of the matrix from the panel's first on; may exceed 16.
    """

    multiplier: Value
    bias: Value
    out: Value
    row_bytes: Value
    columns: Value


@dataclass(frozen=True)
class RowTile:
    """Rows done together; `i64` both.

    Attributes:
        first: the first of them.
        fresh: those before this one were done by an earlier tile.
    """

    first: Value
    fresh: Value


def emit_finished(
    b: Builder, epilogue: Epilogue, value: Value, bias: Value | None, gate: Value | None
) -> Value:
    """The steps behind the scaling on 16 sums, `vector<16xf32>` like the bias and the gate."""
    if bias is not None:
        value = b.fadd(value, bias)
    if epilogue.combine is not None:
        combinations = _SHORT_COMBINATIONS if epilogue.short else COMBINATIONS
        value = b.fmul(combinations[epilogue.combine](b, gate), value)
    if epilogue.softcap is not None:
        cap, inverse = (b.const(c, value.type) for c in (epilogue.softcap, 1.0 / epilogue.softcap))
        value = b.fmul(cap, emit_tanh(b, b.fmul(value, inverse)))
    return value


def emit_epilogue(
    b: Builder,
    epilogue: Epilogue,
    target: PanelOutput,
    tile: RowTile,
    sums: list[Value],
    room: Value,
) -> None:
    """Finish and store the sums (`vector<16xf32>`) of the consecutive rows of a tile.

    Args:
        room: `ROOM_BYTES_PER_ROW` of scratch for each row, so aligned; used by long epilogues of
            several rows.
    """
    floats = b.vec(LANES, b.f32)
    mask = None
    if epilogue.partial:
        ids = b.lanes(range(PANEL_ROWS), b.i32)
        columns = b.trunc_i(b.min(target.columns, PANEL_ROWS), b.i32)
        mask = b.cmp("slt", ids, b.splat(columns))

    def load(pointer: Value) -> Value:
        if mask is None:
            return b.load(pointer, floats, 4)
        return b.load_where(mask, pointer, floats, 4)

    bias = load(target.bias) if epilogue.bias else None

    def finish(row: Value, value: Value) -> None:
        pointer = b.at(target.out, b.mul(row, target.row_bytes))
        if epilogue.scaled:
            value = b.fmul(value, b.splat(target.multiplier))
        gate = load(pointer) if epilogue.combine is not None else None
        value = emit_finished(b, epilogue, value, bias, gate)
        if mask is None:
            b.store(value, pointer, 4)
        else:
            b.store_where(mask, value, pointer, 4)

    if not epilogue.is_long or len(sums) == 1:
        for index, value in enumerate(sums):
            finish(b.add(tile.first, index), value)
        return
    for index, value in enumerate(sums):
        b.store(value, b.at(room, ROOM_BYTES_PER_ROW * index), ROOM_BYTES_PER_ROW)

    def kept(index: Value) -> None:
        at = b.at(room, b.mul(index, ROOM_BYTES_PER_ROW))
        finish(b.add(tile.first, index), b.load(at, floats, ROOM_BYTES_PER_ROW))

    b.loop(b.sub(tile.fresh, tile.first), len(sums), body=kept)
