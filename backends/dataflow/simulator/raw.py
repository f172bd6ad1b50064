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
# numba's types of these are not those of what they make.
_made: Final[Any] = intrinsic
_declared: Final[Any] = cgutils.get_or_insert_function


def _place(builder: Any, base: Any, index: Any, of: Any) -> Any:
    return builder.gep(builder.inttoptr(base, of.as_pointer()), [index])


def _load(number: Any) -> Callable[[int, int], Any]:
    """The function of (base, i): the number there."""

    def load(typing: Any, base: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _place(builder, values[0], values[1], context.get_value_type(number))
            return builder.load(place, align=1)

        return number(types.int64, types.int64), generate

    made: Callable[[int, int], Any] = _made(load)
    return made


def _store(number: Any) -> Callable[[int, int, Any], None]:
    """The function of (base, i, value): the number is there from now on."""

    def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = _place(builder, values[0], values[1], context.get_value_type(number))
            builder.store(values[2], place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), generate

    made: Callable[[int, int, Any], None] = _made(store)
    return made


def _dot(length: int) -> Callable[[int, int, int], Any]:
    """The function of (x, w, i): the sum of `length` products of int8 from i on, an int32."""

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
            add = _declared(builder.module, kind, name)
            return builder.call(add, [builder.mul(*factors)])

        return types.int32(types.int64, types.int64, types.int64), generate

    made: Callable[[int, int, int], Any] = _made(dot)
    return made


def _copy() -> Callable[[int, int, int], None]:
    """The function of (d, a, count): `count` bytes from address a to d, which may overlap."""

    def copy(typing: Any, d: Any, a: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer, volatile = _BYTE.as_pointer(), ir.Constant(ir.IntType(1), 0)
            places = [builder.inttoptr(value, pointer) for value in values[:2]]
            kinds = [pointer, pointer, ir.IntType(64), ir.IntType(1)]
            kind = ir.FunctionType(ir.VoidType(), kinds)
            move = _declared(builder.module, kind, "llvm.memmove.p0.p0.i64")
            builder.call(move, [*places, values[2], volatile])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    made: Callable[[int, int, int], None] = _made(copy)
    return made


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
copy_bytes: Final = _copy()
