"""Elements of the cache in registers: sixteen lanes of f32, whatever the cache's dtype is.

What a kernel loads at once is a *group*: `pack` vectors of 16 lanes that lie together (see
`kv_layout`). Of keys, the lanes are the positions of a strip and the group is the next `pack`
elements; of values, the lanes are 16 elements and the group is `pack` positions.

Codes of `int8` become floats without their scales. Scales of keys differ by element and are
multiplied in (`emit_key_scales`); a value has one, which the kernels multiply with the value's
softmax term instead: 16 positions with one instruction.
"""

from __future__ import annotations

from infc.backends.cpu.codegen.builder import LANES, Builder, Value
from infc.backends.cpu.kernels.kv_layout import STRIP, KVLayer
from infc.ir.kv_storage import KV_KEY_GROUP, SCALE_BYTES

_UPPER_HALF = -(2**16)


def group_bytes(kv: KVLayer) -> int:
    """Bytes of a group."""
    return LANES * kv.pack * kv.element_bytes


def emit_load_group(b: Builder, kv: KVLayer, pointer: Value) -> list[Value]:
    """The `pack` vectors `f32[16]` of a group; of `int8` the codes as floats."""
    vector = b.vec(LANES, b.f32)
    if kv.dtype == "f32":
        return [b.load(pointer, vector, kv.element_bytes)]
    if kv.dtype == "f16":
        return [b.ext_f(b.load(pointer, b.vec(LANES, b.f16), kv.element_bytes), vector)]
    if kv.dtype == "int8":
        codes = b.load(pointer, b.vec(LANES, b.i8), kv.element_bytes)
        return [b.si_to_f(b.ext_s(codes, b.vec(LANES, b.i32)), vector)]
    both = b.load(pointer, b.vec(LANES, b.i32), kv.element_bytes)
    upper = b.bit_and(both, b.const(_UPPER_HALF, both.type))
    return [b.bitcast(x, vector) for x in (b.shl(both, 16), upper)]


def emit_load_scales(b: Builder, pointer: Value) -> Value:
    """Sixteen scales as f32."""
    halves = b.load(pointer, b.vec(LANES, b.i16), SCALE_BYTES)
    wide = b.shl(b.ext_u(halves, b.vec(LANES, b.i32)), 16)
    return b.bitcast(wide, b.vec(LANES, b.f32))


def emit_key_scales(b: Builder, strip_scales: Value, group: Value) -> Value:
    """The scales of 32 elements from `32 * group` on, for the 16 positions of a strip.

    Args:
        strip_scales: where the strip's scales start.
    """
    return emit_load_scales(b, b.at(strip_scales, b.mul(group, STRIP * SCALE_BYTES)))


def scale_groups(kv: KVLayer) -> list[tuple[int, int]]:
    """Runs of a key's elements with one scale each: whole groups as one run, then a shorter one.

    Returns:
        `(start, stop)` pairs; without scales there is one pair, the whole head.
    """
    whole = kv.head_dim // KV_KEY_GROUP * KV_KEY_GROUP if kv.scaled else kv.head_dim
    runs = [(0, whole), (whole, kv.head_dim)]
    return [(start, stop) for start, stop in runs if start < stop]


def emit_round_bf16(b: Builder, x: Value) -> Value:
    """Float32 bits of the nearest bf16, ties to even: a vector of i32 whose lower halves mean
    nothing. NaN must have a zero in the lower half."""
    bits = b.bitcast(x, b.vec(LANES, b.i32))
    odd = b.bit_and(b.shr(bits, 16), b.const(1, bits.type))
    return b.add(b.add(bits, b.const(0x7FFF, bits.type)), odd)
