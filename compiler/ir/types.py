"""The types of the dialect as Python values: made, taken apart, measured.

IRDL types have no Python classes of their own; these dataclasses stand for them and `mlir()` turns
each into the MLIR type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from infc.diagnostics import InternalError
from infc.ir.kv_storage import position_bytes
from infc.ir.mlir import ir
from infc.ir.storage import STORAGE_TYPES

Dim = int | str
"""A dimension: a number, or the symbol of an `infc.dim`."""

A8 = "a8"
"""Storage name of activations quantised to 8 bits by `infc.quantize`."""
ABF16 = "abf16"
"""Storage name of activations rounded to bf16 by `infc.quantize`, in padded rows."""
ACTIVATION_FORMS = (A8, ABF16)
PRODUCT_DTYPES = {A8: "int8", ABF16: "bf16", "f32": "f32"}
"""The arithmetic a product runs in, by the form of its input."""

ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4, "i8": 1}


@dataclass(frozen=True)
class TensorType:
    """A ranked tensor.

    Attributes:
        shape: numbers and symbols, outermost first.
        element: `f32`, `f16`, `bf16`, `i32`, `i8`, or the name of a storage type (`q8_0`, `a8`).
    """

    shape: tuple[Dim, ...]
    element: str

    def mlir(self) -> ir.Type:
        """The MLIR type; symbols become `?` with an encoding that names them."""
        dims = [ir.ShapedType.get_dynamic_size() if isinstance(d, str) else d for d in self.shape]
        encoding = None
        if any(isinstance(d, str) for d in self.shape):
            encoding = ir.ArrayAttr.get(
                [
                    ir.StringAttr.get(d)
                    if isinstance(d, str)
                    else ir.IntegerAttr.get(ir.IntegerType.get_signless(64), d)
                    for d in self.shape
                ]
            )
        return ir.RankedTensorType.get(dims, _element(self.element), encoding)

    @staticmethod
    def of(type_: ir.Type) -> TensorType:
        """Take an MLIR tensor type apart."""
        ranked = ir.RankedTensorType(type_)
        shape: list[Dim] = []
        encoding = ranked.encoding
        for axis in range(ranked.rank):
            if ranked.is_dynamic_dim(axis):
                if encoding is None:
                    raise InternalError(f"dimension {axis} of {type_} has no symbol")
                shape.append(ir.StringAttr(ir.ArrayAttr(encoding)[axis]).value)
            else:
                shape.append(ranked.get_dim_size(axis))
        text = str(ranked.element_type)
        match = re.fullmatch(r'!infc\.storage<"([a-z0-9_]+)">', text)
        return TensorType(tuple(shape), match.group(1) if match else text)

    @property
    def is_float(self) -> bool:
        """Whether elements are plain floats."""
        return self.element in ("f32", "f16", "bf16")

    def with_element(self, element: str) -> TensorType:
        """The same shape with other elements."""
        return TensorType(self.shape, element)

    def size_bytes(self, maxima: dict[str, int]) -> int:
        """Bytes of the plain row-major layout with every symbol at its maximum."""
        shape = [maxima[d] if isinstance(d, str) else d for d in self.shape]
        return storage_bytes(self.element, shape)


def storage_bytes(element: str, shape: Sequence[int]) -> int:
    """Bytes of a row-major tensor of any element or storage type."""
    if element in ELEMENT_BYTES:
        return math.prod(shape) * ELEMENT_BYTES[element]
    if element == A8:
        return math.prod(shape[:-1]) * a8_row_bytes(shape[-1])
    if element == ABF16:
        return math.prod(shape[:-1]) * abf16_row_bytes(shape[-1])
    return STORAGE_TYPES[element].size_bytes(tuple(shape))


def a8_row_bytes(k: int) -> int:
    """Bytes of one quantised activation row: int8 `q[k]`, f32 `scale[k/32]`, i32 `sum[k/16]`."""
    return -(-(k + k // 32 * 4 + k // 16 * 4) // 64) * 64


def abf16_row_bytes(k: int) -> int:
    """Bytes of one row of bf16 activations: padded to 32 numbers, then to an odd number of lines.

    With an even number of lines the rows of a block could fall into few sets of a cache.
    """
    return (-(-k // 32) | 1) * 64


def _element(name: str) -> ir.Type:
    if name in ELEMENT_BYTES:
        return ir.Type.parse(name)
    return ir.Type.parse(f'!infc.storage<"{name}">')


@dataclass(frozen=True)
class KVType:
    """One layer's KV cache.

    Attributes:
        dtype: one of `KV_DTYPES`.
        capacity: positions held a slot; a ring where `window` is not 0.
        window: the sliding window, 0 for none.
    """

    dtype: str
    kv_heads: int
    head_dim: int
    capacity: int
    window: int

    @property
    def position_bytes(self) -> int:
        """Bytes of one position: keys and values of all heads, and their scales."""
        return self.kv_heads * position_bytes(self.dtype, self.head_dim)

    def mlir(self) -> ir.Type:
        """The MLIR type."""
        return ir.Type.parse(
            f'!infc.kv<"{self.dtype}", {self.kv_heads}, {self.head_dim}, '
            f"{self.capacity}, {self.window}>"
        )

    @staticmethod
    def of(type_: ir.Type) -> KVType:
        """Take an MLIR type apart."""
        match = re.fullmatch(
            r'!infc\.kv<"(\w+)", (\d+) : i64, (\d+) : i64, (\d+) : i64, (\d+) : i64>', str(type_)
        )
        if match is None:
            raise InternalError(f"expected an !infc.kv type, got {type_}")
        dtype, *numbers = match.groups()
        return KVType(dtype, *map(int, numbers))


@dataclass(frozen=True)
class BufferType:
    """A tensor that has a place.

    Attributes:
        tensor: what it holds.
        layout: `rows` (row-major), `frame` (raw bytes that other buffers are placed in), or a
            backend's packed layout by name.
        space: `call` (operands of the program call), `weights`, `arena` (one for all threads),
            `thread` (one for each thread). A KV cache is not a buffer: `!infc.kv` says it all.
    """

    tensor: TensorType
    layout: str
    space: str

    def mlir(self) -> ir.Type:
        """The MLIR type."""
        return ir.Type.parse(f'!infc.buffer<{self.tensor.mlir()}, "{self.layout}", "{self.space}">')

    @staticmethod
    def of(type_: ir.Type) -> BufferType:
        """Take an MLIR type apart."""
        match = re.fullmatch(r'!infc\.buffer<(.*), "([^"]*)", "([^"]*)">', str(type_))
        if match is None:
            raise InternalError(f"expected an !infc.buffer type, got {type_}")
        tensor = TensorType.of(ir.Type.parse(match.group(1)))
        return BufferType(tensor, match.group(2), match.group(3))


def is_tensor(type_: ir.Type) -> bool:
    """Whether this is a ranked tensor type."""
    return isinstance(type_, ir.RankedTensorType)


def is_kv(type_: ir.Type) -> bool:
    """Whether this is an `!infc.kv` type."""
    return str(type_).startswith("!infc.kv<")


def is_buffer(type_: ir.Type) -> bool:
    """Whether this is an `!infc.buffer` type."""
    return str(type_).startswith("!infc.buffer<")
