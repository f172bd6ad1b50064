"""Memory by address, inside compiled code: no bounds, no reference counts, bytes as any number.

A place is `(base, i)`: the i-th number from the address `base` on. Whoever uses these has checked
before that the place is inside its memory (`memory.refused`). Arrays would cost more than what is
done with them: numba counts references to each part of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTE: Final = ir.IntType(8)
_WORD: Final = ir.IntType(32)


def _place(builder: Any, base: Any, index: Any, of: Any) -> Any:
    return builder.gep(builder.inttoptr(base, of.as_pointer()), [index])


def _load(number: Any) -> Callable[[int, int], Any]:
    """The function of (base, i): the number there."""

    @intrinsic
    def load(typing: Any, base: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _place(builder, *values, context.get_value_type(number))
            return builder.load(place, align=1)

        return number(types.int64, types.int64), generate

    return load  # type: ignore[no-any-return]


def _store(number: Any) -> Callable[[int, int, Any], None]:
    """The function of (base, i, value): the number is there from now on."""

    @intrinsic
    def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _place(builder, *values[:2], context.get_value_type(number))
            builder.store(values[2], place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), generate

    return store  # type: ignore[no-any-return]


def _dot(length: int) -> Callable[[int, int, int], Any]:
    """The function of (x, w, i): the sum of `length` products of int8 from i on, an int32."""

    @intrinsic
    def dot(typing: Any, x: Any, w: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            narrow, wide = ir.VectorType(_BYTE, length), ir.VectorType(_WORD, length)
            factors = [
                builder.sext(
                    builder.load(
                        builder.bitcast(
                            _place(builder, base, values[2], _BYTE), narrow.as_pointer()
                        ),
                        align=1,
                    ),
                    wide,
                )
                for base in values[:2]
            ]
            kind = ir.FunctionType(_WORD, [wide])
            name = f"llvm.vector.reduce.add.v{length}i32"
            add = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(add, [builder.mul(*factors)])

        return types.int32(types.int64, types.int64, types.int64), generate

    return dot  # type: ignore[no-any-return]


@intrinsic
def copy_bytes(typing: Any, d: Any, a: Any, count: Any) -> Any:
    """`count` bytes from address `a` to address `d`; they may overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _BYTE.as_pointer()
        places = [builder.inttoptr(value, pointer) for value in values[:2]]
        kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, ir.IntType(64), ir.IntType(1)])
        move = cgutils.get_or_insert_function(builder.module, kind, "llvm.memmove.p0.p0.i64")
        builder.call(move, [*places, values[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


u8: Final = _load(types.uint8)
u16: Final = _load(types.uint16)
i8: Final = _load(types.int8)
i32: Final = _load(types.int32)
f32: Final = _load(types.float32)
put_i8: Final = _store(types.int8)
put_u16: Final = _store(types.uint16)
put_i32: Final = _store(types.int32)
put_f32: Final = _store(types.float32)
dot_16: Final = _dot(16)
dot_32: Final = _dot(32)
