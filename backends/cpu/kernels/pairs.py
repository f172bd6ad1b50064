"""Dots of a tile by `smmla`, AArch64's product of two 2 x 8 matrices of bytes.

An instruction multiplies two rows of x with two columns of a panel, 8 numbers along k, and adds to
four sums, `[row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1]`. Staged codes are in
*octets* of 8 k for that: `[group / 8][16 columns][8]` bytes instead of steps of 4 k. The dots are
exact, so the bits of a product are those of the other paths.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cpu.codegen.builder import LANES, Builder, Value

_REGISTER_BYTES = 16
_COLUMN_PAIRS = LANES // 2


def uses_pairs(b: Builder) -> bool:
    """Whether tiles are computed this way; an even number of rows suits them."""
    return b.isa.dot_i8 == "neon-i8mm"


def to_octets(b: Builder, steps: Sequence[Value]) -> list[Value]:
    """Codes in steps of 4 k (`vector<64xi8>` each) as octets, in as many vectors."""
    words = b.vec(LANES, b.i32)
    out = []
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        low, high = (b.bitcast(step, words) for step in (first, second))
        for start in (0, LANES // 2):
            order = [LANES * step + start + word for word in range(LANES // 2) for step in (0, 1)]
            out.append(b.bitcast(b.shuffle(low, high, order), first.type))
    return out


def emit_pair_dots(b: Builder, codes: Value, rows: tuple[Value, Value], group: int) -> list[Value]:
    """Dots of two rows with the 16 columns of a panel over one group: two `vector<16xi32>`.

    Args:
        codes: pointer to the staged codes of the group.
        rows: pointers to the a8 codes of the group in each row, 16-byte aligned.
        group: numbers along k, a multiple of 16.
    """
    bytes_, words = b.vec(_REGISTER_BYTES, b.i8), b.vec(4, b.i32)
    sums = [b.const(0, words)] * _COLUMN_PAIRS
    for octet in range(group // 8):
        both = _row_pair(b, *rows, octet)
        for pair in range(_COLUMN_PAIRS):
            at = _REGISTER_BYTES * (_COLUMN_PAIRS * octet + pair)
            weights = b.load(b.at(codes, at), bytes_, _REGISTER_BYTES)
            name = "llvm.aarch64.neon.smmla"
            sums[pair] = b.intrinsic(name, words, sums[pair], both, weights)
    return [_row(b, sums, row) for row in (0, 1)]


def _row_pair(b: Builder, first: Value, second: Value, octet: int) -> Value:
    """8 a8 codes of each of two rows: `vector<16xi8>`."""
    halves = b.vec(2, b.i64)
    at = _REGISTER_BYTES * (octet // 2)
    both = [b.load(b.at(row, at), halves, _REGISTER_BYTES) for row in (first, second)]
    return b.bitcast(b.shuffle(*both, [octet % 2, 2 + octet % 2]), b.vec(_REGISTER_BYTES, b.i8))


def _row(b: Builder, sums: Sequence[Value], row: int) -> Value:
    """The dots of one row of a pair, in the order of the columns."""
    order = [2 * row, 2 * row + 1, 4 + 2 * row, 5 + 2 * row]
    parts = [b.shuffle(a, c, order) for a, c in zip(sums[::2], sums[1::2], strict=True)]
    while len(parts) > 1:
        lanes = range(2 * LANES // len(parts))
        parts = [b.shuffle(a, c, lanes) for a, c in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
