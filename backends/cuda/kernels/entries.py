"""A logit and its index in one number that sorts: an *entry*.

An entry is an i64: above, an i32 that is ordered as the logits are; below, the complement of the
index. Larger is better, and of equal logits the lowest index is. What is no number is worse than
minus infinity, and minus infinity counts as index 0.
"""

from __future__ import annotations

from infc.backends.cuda.codegen.builder import GpuBuilder, Value

ENTRY_BYTES = 8
NOTHING = -(2**63)
"""An entry worse than all others."""
_MAGNITUDE = 2**31 - 1


def slot(b: GpuBuilder, entries: Value, index: Value) -> Value:
    """Where an entry of a list lies."""
    return b.at(entries, b.mul(index, ENTRY_BYTES))


def _ordered(b: GpuBuilder, logit: Value) -> Value:
    """An i32 for an f32 that is no NaN: signed order is the order of the numbers."""
    return _turn_negative(b, b.bits(logit))


def _turn_negative(b: GpuBuilder, bits: Value) -> Value:
    """Its own inverse: of negative numbers all bits but the sign are complemented."""
    return b.bit_xor(bits, b.bit_and(b.shr_s(bits, 31), _MAGNITUDE))


def entry_of(b: GpuBuilder, logit: Value, index: Value) -> Value:
    """The entry of a logit, `NOTHING` of NaN."""
    # Minus zero becomes zero: they are equal.
    ordered = _ordered(b, b.fadd(logit, b.const(0.0, b.f32)))
    low = b.ext_u(b.bit_xor(index, -1), b.i64)
    entry = b.bit_or(b.shl(b.ext_s(ordered, b.i64), 32), low)
    return b.select(b.fcmp("oeq", logit, logit), entry, b.const(NOTHING, b.i64))


def high_of(b: GpuBuilder, entry: Value) -> Value:
    """What orders an entry's logit, i32."""
    return b.trunc_i(b.shr_s(entry, 32), b.i32)


def parts_of(b: GpuBuilder, entry: Value) -> tuple[Value, Value]:
    """Logit and index of an entry."""
    logit = b.number(_turn_negative(b, high_of(b, entry)), b.f32)
    lowest = b.const(float("-inf"), b.f32)
    return b.select(b.fcmp("ogt", logit, lowest), logit, lowest), index_of(b, entry)


def index_of(b: GpuBuilder, entry: Value) -> Value:
    """The index of an entry; 0 where it is minus infinity or nothing."""
    counts = b.cmp("sgt", high_of(b, entry), _ordered(b, b.const(float("-inf"), b.f32)))
    return b.select(counts, b.bit_xor(b.trunc_i(entry, b.i32), -1), b.idx(0))


def better_of(b: GpuBuilder, entry: Value, other: Value) -> Value:
    """The better of two entries."""
    return b.select(b.cmp("sgt", entry, other), entry, other)
