"""Matrix instructions of a warp: 8x8 matrices from shared memory, and products of fragments.

A fragment is a list of 32-bit registers of each thread, as in `GpuBuilder`.
"""

from __future__ import annotations

from collections.abc import Sequence

from infc.backends.cuda.codegen.builder import GpuBuilder, Type, Value
from infc.ir.mlir import ir, nvvm


def load_matrices(b: GpuBuilder, address: Value, *, transposed: bool = False) -> list[Value]:
    """Four 8x8 matrices of 16-bit numbers from shared memory (`ldmatrix.x4`): lane
    `8 i + j` gives the address of row `j` (16 bytes, 16-aligned) of matrix `i`.

    Register `i` of lane `4 r + c` holds numbers `2c` and `2c + 1` of row `r` of matrix `i`;
    where `transposed`, of column `r` instead: rows `2c` and `2c + 1`.
    """
    layout = "col" if transposed else "row"
    struct = Type.parse("!llvm.struct<(i32, i32, i32, i32)>")
    op = nvvm.LdMatrixOp(
        struct,
        address,
        4,
        ir.Attribute.parse(f"#nvvm.mma_layout<{layout}>"),
        ir.Attribute.parse("#nvvm.ld_st_matrix_shape<m = 8, n = 8>"),
        ir.Attribute.parse("#nvvm.ld_st_matrix_elt_type<b16>"),
    )
    return b.fields(op.res, [b.i32] * 4)


def mma(
    b: GpuBuilder,
    kind: str,
    left: Sequence[Value],
    right: Sequence[Value],
    sums: Sequence[Value],
) -> list[Value]:
    """`sums + left @ right` of 16x16 and 16x8 `bf16` or `f16` and 16x8 f32 (`mma.sync.m16n8k16`).

    With lane `4 r + q`: `left` has four i32 of two numbers each: row r columns 2q, 2q+1; row r+8
    the same columns; row r columns 2q+8, 2q+9; row r+8 those. `right` has two: column r (of 8),
    rows 2q, 2q+1 and 2q+8, 2q+9. `sums` has four f32: row r columns 2q, 2q+1, row r+8 those.
    """
    type_ = ir.Attribute.parse(f"#nvvm.mma_type<{kind}>")
    struct = Type.parse("!llvm.struct<(f32, f32, f32, f32)>")
    op = nvvm.MmaOp(
        struct,
        ir.Attribute.parse("#nvvm.shape<m = 16, n = 8, k = 16>"),
        ir.Attribute.parse("#nvvm.mma_layout<row>"),
        ir.Attribute.parse("#nvvm.mma_layout<col>"),
        [_multiplicand(b, kind, register) for register in left],
        [_multiplicand(b, kind, register) for register in right],
        list(sums),
        multiplicandAPtxType=type_,
        multiplicandBPtxType=type_,
    )
    return b.fields(op.res, [b.f32] * 4)


def _multiplicand(b: GpuBuilder, kind: str, register: Value) -> Value:
    """MLIR wants vectors where the numbers are f16, and i32 where they are bf16."""
    return b.number(register, b.vec(2, b.f16)) if kind == "f16" else register
