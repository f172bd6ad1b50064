"""A small builder for machine-level MLIR: pointers, lanes and loops, in the order they run.

Every method appends one operation (or a few) at the insertion point and returns its value. Pointers
are opaque (`!llvm.ptr`), offsets are in bytes. A backend's own instructions are in a class of its
own that derives from this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from infc.ir.mlir import arith, func, ir, llvm, math, scf, vector

Value: TypeAlias = ir.Value
Type: TypeAlias = ir.Type
_DYNAMIC = -2147483648


class Builder:
    """Appends operations to one module.

    Needs an active MLIR context and location (`with ir.Context(), ir.Location.unknown()`).

    Attributes:
        index: the type of loop counters and of what `idx` makes.
    """

    def __init__(self, module: ir.Module) -> None:
        self.module = module
        self.ptr: Type = Type.parse("!llvm.ptr")
        self.i1: Type = ir.IntegerType.get_signless(1)
        self.i8: Type = ir.IntegerType.get_signless(8)
        self.i16: Type = ir.IntegerType.get_signless(16)
        self.i32: Type = ir.IntegerType.get_signless(32)
        self.i64: Type = ir.IntegerType.get_signless(64)
        self.f16: Type = ir.F16Type.get()
        self.bf16: Type = ir.BF16Type.get()
        self.f32: Type = ir.F32Type.get()
        self.index: Type = self.i64

    # ---- functions -------------------------------------------------------------------------

    def ret(self, *values: Value) -> None:
        """Return from the function."""
        func.ReturnOp(list(values))

    def call(
        self, name: str, operands: Sequence[Value], results: Sequence[Type] = ()
    ) -> list[Value]:
        """Call a function of this module by name."""
        op = func.CallOp(list(results), name, list(operands))
        return list(op.results)

    def defined(self, name: str) -> bool:
        """Whether the module has a function of this name already."""
        return name in ir.SymbolTable(self.module.operation)

    # ---- types and constants ---------------------------------------------------------------

    def vec(self, lanes: int, element: Type) -> Type:
        """The type of a vector."""
        return ir.VectorType.get([lanes], element)

    def const(self, value: int | float, type_: Type) -> Value:
        """A scalar constant, or a vector with `value` in every lane."""
        element = ir.VectorType(type_).element_type if isinstance(type_, ir.VectorType) else type_
        attribute: ir.Attribute
        if isinstance(element, ir.IntegerType):
            attribute = ir.IntegerAttr.get(element, int(value))
        else:
            attribute = ir.FloatAttr.get(element, float(value))
        if isinstance(type_, ir.VectorType):
            attribute = ir.DenseElementsAttr.get_splat(type_, attribute)
        return arith.ConstantOp(type_, attribute).result

    def lanes(self, values: Sequence[int], element: Type) -> Value:
        """A constant vector of integers, one value a lane."""
        type_ = self.vec(len(values), element)
        attributes = [ir.IntegerAttr.get(element, int(value)) for value in values]
        return arith.ConstantOp(type_, ir.DenseElementsAttr.get(attributes, type_)).result

    def idx(self, value: int) -> Value:
        """A constant of the type `index`."""
        return self.const(value, self.index)

    def as_i64(self, value: Value | int) -> Value:
        """`value` as an `i64` (a constant where it is a Python int; sign-extended where `i32`)."""
        if isinstance(value, int):
            return self.const(value, self.i64)
        return value if value.type == self.i64 else arith.ExtSIOp(self.i64, value).result

    def as_index(self, value: Value | int) -> Value:
        """`value` as a loop's bound: of the type `index`, sign-extended where it is narrower."""
        if isinstance(value, int):
            return self.idx(value)
        return value if value.type == self.index else arith.ExtSIOp(self.index, value).result

    # ---- integers --------------------------------------------------------------------------

    def add(self, a: Value | int, b: Value | int) -> Value:
        """Integer sum (of `i64`, or of integer vectors)."""
        return arith.AddIOp(*self._pair(a, b)).result

    def sub(self, a: Value | int, b: Value | int) -> Value:
        """Integer difference."""
        return arith.SubIOp(*self._pair(a, b)).result

    def mul(self, a: Value | int, b: Value | int) -> Value:
        """Integer product."""
        return arith.MulIOp(*self._pair(a, b)).result

    def div(self, a: Value | int, b: Value | int) -> Value:
        """Unsigned integer quotient."""
        return arith.DivUIOp(*self._pair(a, b)).result

    def rem(self, a: Value | int, b: Value | int) -> Value:
        """Unsigned integer remainder."""
        return arith.RemUIOp(*self._pair(a, b)).result

    def min(self, a: Value | int, b: Value | int) -> Value:
        """Signed integer minimum."""
        return arith.MinSIOp(*self._pair(a, b)).result

    def max(self, a: Value | int, b: Value | int) -> Value:
        """Signed integer maximum."""
        return arith.MaxSIOp(*self._pair(a, b)).result

    def ceil_div(self, a: Value | int, b: int) -> Value:
        """`ceil(a / b)` for `a >= 0`."""
        return self.div(self.add(a, b - 1), b)

    def cmp(self, predicate: str, a: Value | int, b: Value | int) -> Value:
        """Integer comparison: `eq ne slt sle sgt sge ult ule ugt uge`."""
        names = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")
        return arith.CmpIOp(
            ir.IntegerAttr.get(self.i64, names.index(predicate)), *self._pair(a, b)
        ).result

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """`a` where `condition`, else `b`."""
        return arith.SelectOp(condition, a, b).result

    def _pair(self, a: Value | int, b: Value | int) -> tuple[Value, Value]:
        if isinstance(a, int):
            a = self.const(a, b.type if not isinstance(b, int) else self.index)
        if isinstance(b, int):
            b = self.const(b, a.type)
        return a, b

    def bit_and(self, a: Value, b: Value | int) -> Value:
        """Bitwise and."""
        return arith.AndIOp(*self._pair(a, b)).result

    def bit_or(self, a: Value, b: Value | int) -> Value:
        """Bitwise or."""
        return arith.OrIOp(*self._pair(a, b)).result

    def bit_xor(self, a: Value, b: Value | int) -> Value:
        """Bitwise exclusive or."""
        return arith.XOrIOp(*self._pair(a, b)).result

    def shl(self, a: Value, b: Value | int) -> Value:
        """Shift left."""
        return arith.ShLIOp(*self._pair(a, b)).result

    def shr(self, a: Value, b: Value | int) -> Value:
        """Logical shift right."""
        return arith.ShRUIOp(*self._pair(a, b)).result

    def shr_s(self, a: Value, b: Value | int) -> Value:
        """Arithmetic shift right."""
        return arith.ShRSIOp(*self._pair(a, b)).result

    # ---- floats ----------------------------------------------------------------------------

    def fadd(self, a: Value, b: Value) -> Value:
        """Float sum."""
        return arith.AddFOp(a, b).result

    def fsub(self, a: Value, b: Value) -> Value:
        """Float difference."""
        return arith.SubFOp(a, b).result

    def fmul(self, a: Value, b: Value) -> Value:
        """Float product."""
        return arith.MulFOp(a, b).result

    def fdiv(self, a: Value, b: Value) -> Value:
        """Float quotient."""
        return arith.DivFOp(a, b).result

    def fmax(self, a: Value, b: Value) -> Value:
        """The larger one (one instruction; the second operand where either is NaN is allowed)."""
        return arith.MaxNumFOp(a, b).result

    def fmin(self, a: Value, b: Value) -> Value:
        """The smaller one."""
        return arith.MinNumFOp(a, b).result

    def fabs(self, a: Value) -> Value:
        """Absolute value."""
        return math.AbsFOp(a).result

    def fneg(self, a: Value) -> Value:
        """Negation."""
        return arith.NegFOp(a).result

    def fsqrt(self, a: Value) -> Value:
        """Square root (correctly rounded)."""
        return math.SqrtOp(a).result

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once."""
        return math.FmaOp(a, b, c).result

    def fcmp(self, predicate: str, a: Value, b: Value) -> Value:
        """Ordered float comparison: `oeq ogt oge olt ole one`."""
        names = ("false", "oeq", "ogt", "oge", "olt", "ole", "one")
        return arith.CmpFOp(ir.IntegerAttr.get(self.i64, names.index(predicate)), a, b).result

    def round_even(self, a: Value) -> Value:
        """Round to the nearest integer, ties to even; stays a float."""
        return math.RoundEvenOp(a).result

    # ---- conversions -----------------------------------------------------------------------

    def ext_f(self, a: Value, type_: Type) -> Value:
        """Widen floats (f16 or bf16 to f32)."""
        return arith.ExtFOp(type_, a).result

    def trunc_f(self, a: Value, type_: Type) -> Value:
        """Narrow floats, nearest even."""
        return arith.TruncFOp(type_, a).result

    def si_to_f(self, a: Value, type_: Type) -> Value:
        """Signed integers to floats."""
        return arith.SIToFPOp(type_, a).result

    def f_to_si(self, a: Value, type_: Type) -> Value:
        """Floats to signed integers, toward zero."""
        return arith.FPToSIOp(type_, a).result

    def ext_s(self, a: Value, type_: Type) -> Value:
        """Sign-extend integers."""
        return arith.ExtSIOp(type_, a).result

    def ext_u(self, a: Value, type_: Type) -> Value:
        """Zero-extend integers."""
        return arith.ExtUIOp(type_, a).result

    def trunc_i(self, a: Value, type_: Type) -> Value:
        """Narrow integers."""
        return arith.TruncIOp(type_, a).result

    def bitcast(self, a: Value, type_: Type) -> Value:
        """Reinterpret the bits of a scalar or of a vector."""
        if isinstance(type_, ir.VectorType):
            return vector.BitCastOp(type_, a).result
        return arith.BitcastOp(type_, a).result

    # ---- vectors ---------------------------------------------------------------------------

    def splat(self, a: Value, lanes: int) -> Value:
        """A vector with the scalar `a` in every lane."""
        return vector.BroadcastOp(self.vec(lanes, a.type), a).result

    def shuffle(self, a: Value, b: Value, mask: Sequence[int]) -> Value:
        """Lanes of `a` and `b` (numbered on) in the order of `mask`."""
        return vector.ShuffleOp(a, b, ir.DenseI64ArrayAttr.get(list(mask))).result

    def extract(self, a: Value, lane: int) -> Value:
        """One lane."""
        return vector.ExtractOp(a, [], ir.DenseI64ArrayAttr.get([lane])).result

    def reduce(self, kind: str, a: Value) -> Value:
        """Sum (`add`) or maximum (`maxnumf`, `maxsi`) over the lanes, in a fixed order.

        Float sums are a tree of halves, the same for every lane count and thread.
        """
        lanes = ir.VectorType(a.type).shape[0]
        is_float = not isinstance(ir.VectorType(a.type).element_type, ir.IntegerType)
        if not is_float:
            return vector.ReductionOp(
                ir.VectorType(a.type).element_type,
                ir.Attribute.parse(f"#vector.kind<{kind}>"),
                a,
            ).result
        combine = self.fadd if kind == "add" else self.fmax
        while lanes > 1:
            half = lanes // 2
            low = self.shuffle(a, a, range(half))
            high = self.shuffle(a, a, range(half, lanes))
            a, lanes = combine(low, high), half
        return self.extract(a, 0)

    def intrinsic(self, name: str, result: Type | None, *operands: Value) -> Value:
        """Call an LLVM intrinsic."""
        op = llvm.CallIntrinsicOp(result, name, list(operands), [], ir.DenseI32ArrayAttr.get([]))
        return op.results[0] if result is not None else None

    # ---- memory ----------------------------------------------------------------------------

    def at(self, pointer: Value, offset: Value | int) -> Value:
        """`pointer + offset` bytes."""
        if isinstance(offset, int):
            if offset == 0:
                return pointer
            # MLIR keeps 29 bits of a constant index (GEPConstantIndex), signed.
            if -(2**28) <= offset < 2**28:
                return llvm.GEPOp(
                    pointer.type, pointer, [], ir.DenseI32ArrayAttr.get([offset]), self.i8, 0
                ).result
            offset = self.const(offset, self.i64)
        return llvm.GEPOp(
            pointer.type, pointer, [offset], ir.DenseI32ArrayAttr.get([_DYNAMIC]), self.i8, 0
        ).result

    def load(self, pointer: Value, type_: Type, align: int) -> Value:
        """Load a scalar or a vector."""
        return llvm.LoadOp(type_, pointer, alignment=align).result

    def store(self, value: Value, pointer: Value, align: int) -> None:
        """Store a scalar or a vector."""
        llvm.StoreOp(value, pointer, alignment=align)

    def load_first(self, pointer: Value, type_: Type, count: int, align: int) -> Value:
        """Load the first `count` lanes of a vector, zero in the others; reads nothing beyond."""
        lanes = ir.VectorType(type_).shape[0]
        if count == lanes:
            return self.load(pointer, type_, align)
        mask = self.lanes([lane < count for lane in range(lanes)], self.i1)
        return llvm.MaskedLoadOp(type_, pointer, mask, align, pass_thru=self.const(0, type_)).result

    def store_first(self, value: Value, pointer: Value, count: int, align: int) -> None:
        """Store the first `count` lanes of a vector and touch nothing beyond."""
        lanes = ir.VectorType(value.type).shape[0]
        if count == lanes:
            self.store(value, pointer, align)
            return
        mask = self.lanes([lane < count for lane in range(lanes)], self.i1)
        llvm.MaskedStoreOp(value, pointer, mask, align)

    def load_where(self, mask: Value, pointer: Value, type_: Type, align: int) -> Value:
        """Load the lanes whose `mask` is set, zero in the others; reads nothing else."""
        zero = self.const(0, type_)
        return llvm.MaskedLoadOp(type_, pointer, mask, align, pass_thru=zero).result

    def store_where(self, mask: Value, value: Value, pointer: Value, align: int) -> None:
        """Store the lanes whose `mask` is set and touch nothing else."""
        llvm.MaskedStoreOp(value, pointer, mask, align)

    # ---- control ---------------------------------------------------------------------------

    def loop(
        self,
        start: Value | int,
        stop: Value | int,
        step: Value | int = 1,
        carried: Sequence[Value] = (),
        *,
        body: Callable[..., Sequence[Value] | Value | None],
    ) -> list[Value]:
        """`for i in range(start, stop, step)`: `body(i, *carried)` returns what is carried on."""
        op = scf.ForOp(*(self.as_index(v) for v in (start, stop, step)), list(carried))
        with ir.InsertionPoint(op.body):
            out = body(op.induction_variable, *op.inner_iter_args)
            scf.YieldOp([] if out is None else [out] if isinstance(out, ir.Value) else list(out))
        return list(op.results)

    def loop_while(
        self,
        carried: Sequence[Value],
        condition: Callable[..., Value],
        body: Callable[..., Sequence[Value]],
    ) -> list[Value]:
        """`while condition(*carried): carried = body(*carried)`; returns what was carried last."""
        types = [value.type for value in carried]
        op = scf.WhileOp(types, list(carried))
        before, after = op.before.blocks.append(*types), op.after.blocks.append(*types)
        with ir.InsertionPoint(before):
            scf.ConditionOp(condition(*before.arguments), list(before.arguments))
        with ir.InsertionPoint(after):
            scf.YieldOp(list(body(*after.arguments)))
        return list(op.results)

    def when(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value] | None],
        otherwise: Callable[[], Sequence[Value] | None] | None = None,
        results: Sequence[Type] = (),
    ) -> list[Value]:
        """`if condition: then() else: otherwise()`; both return values of the types `results`."""
        op = scf.IfOp(condition, list(results), has_else=otherwise is not None)
        with ir.InsertionPoint(op.then_block):
            scf.YieldOp(list(then() or []))
        if otherwise is not None:
            with ir.InsertionPoint(op.else_block):
                scf.YieldOp(list(otherwise() or []))
        return list(op.results)
