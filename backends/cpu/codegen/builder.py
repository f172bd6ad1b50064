"""A small builder for machine-level MLIR: pointers, lanes and loops, in the order they run.

Every method appends one operation (or a few) at the insertion point and returns its value. Pointers
are opaque (`!llvm.ptr`), offsets are in bytes, indices are `i64`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from infc.backends.cpu.codegen.isa import Isa
from infc.ir.mlir import arith, func, ir, llvm, math, scf, vector

Value: TypeAlias = ir.Value
Type: TypeAlias = ir.Type
LANES = 16
"""Every vector of 32-bit elements has 16 lanes; LLVM splits it where registers are narrower."""

_DYNAMIC = -2147483648
_HIDDEN = 1
"""LLVM's number of the visibility."""


class Builder:
    """Appends operations to one module for one instruction set.

    Needs an active MLIR context and location (`with ir.Context(), ir.Location.unknown()`).
    """

    def __init__(self, module: ir.Module, isa: Isa) -> None:
        self.module = module
        self.isa = isa
        self.ptr: Type = Type.parse("!llvm.ptr")
        self.i1: Type = ir.IntegerType.get_signless(1)
        self.i8: Type = ir.IntegerType.get_signless(8)
        self.i16: Type = ir.IntegerType.get_signless(16)
        self.i32: Type = ir.IntegerType.get_signless(32)
        self.i64: Type = ir.IntegerType.get_signless(64)
        self.f16: Type = ir.F16Type.get()
        self.bf16: Type = ir.BF16Type.get()
        self.f32: Type = ir.F32Type.get()

    # ---- functions -------------------------------------------------------------------------

    @contextmanager
    def function(
        self,
        name: str,
        arguments: Sequence[Type],
        results: Sequence[Type] = (),
        *,
        private: bool = True,
        noalias: bool = False,
        inline: bool = True,
    ) -> Iterator[list[Value]]:
        """Open a function and yield its arguments; the caller ends it with `ret`.

        `inline=False` keeps it one: its stack is then given back at every return.
        """
        with ir.InsertionPoint(self.module.body):
            op = func.FuncOp(
                name,
                ir.FunctionType.get(list(arguments), list(results)),
                visibility="private" if private else None,
            )
        if private:  # MLIR's visibility does not reach the object file
            op.attributes["llvm.linkage"] = ir.Attribute.parse("#llvm.linkage<internal>")
        if noalias:
            op.attributes["arg_attrs"] = ir.ArrayAttr.get(
                [
                    ir.DictAttr.get({"llvm.noalias": ir.UnitAttr.get()} if t == self.ptr else {})
                    for t in arguments
                ]
            )
        if not inline:
            op.attributes["passthrough"] = ir.ArrayAttr.get([ir.StringAttr.get("noinline")])
        block = op.add_entry_block()
        with ir.InsertionPoint(block):
            yield list(block.arguments)

    def ret(self, *values: Value) -> None:
        """Return from the function."""
        func.ReturnOp(list(values))

    def call(
        self, name: str, operands: Sequence[Value], results: Sequence[Type] = ()
    ) -> list[Value]:
        """Call a function of this module by name."""
        op = func.CallOp(list(results), name, list(operands))
        return list(op.results)

    def declare(self, name: str, pointers: int) -> None:
        """Declare a C function of another object file of the program: it is given pointers."""
        kind = ir.Type.parse(f"!llvm.func<void ({', '.join(['ptr'] * pointers)})>")
        with ir.InsertionPoint(self.module.body):
            function = llvm.LLVMFuncOp(name, ir.TypeAttr.get(kind))
            function.attributes["visibility_"] = ir.IntegerAttr.get(self.i64, _HIDDEN)

    def call_declared(self, name: str, operands: Sequence[Value]) -> None:
        """Call a declared function."""
        llvm.CallOp(None, list(operands), [], ir.DenseI32ArrayAttr.get([]), callee=name)

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
        """An `i64` constant."""
        return self.const(value, self.i64)

    def as_i64(self, value: Value | int) -> Value:
        """`value` as an `i64` (a constant where it is a Python int; sign-extended where `i32`)."""
        if isinstance(value, int):
            return self.idx(value)
        return value if value.type == self.i64 else arith.ExtSIOp(self.i64, value).result

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
            a = self.const(a, b.type if not isinstance(b, int) else self.i64)
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

    def splat(self, a: Value, lanes: int = LANES) -> Value:
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

    def dot_i8(self, accumulator: Value, unsigned: Value, signed: Value) -> Value:
        """`accumulator[i] += sum(unsigned[4i + j] * signed[4i + j] for j in range(4))`.

        Args:
            accumulator: `vector<16xi32>`.
            unsigned: `vector<64xi8>` read as u8. On the `avx2` path pairs of products are summed in
                16 bits with saturation, and `neon-dot` reads them as s8, so values must stay at or
                below 127 there.
            signed: `vector<64xi8>` read as s8, within [-127, 127].
        """
        if self.isa.dot_i8 == "neon-i8mm":
            return self._quarters("llvm.aarch64.neon.usdot", accumulator, unsigned, signed)
        if self.isa.dot_i8 == "neon-dot":
            return self.dot_s8_neon(accumulator, unsigned, signed)
        if self.isa.dot_i8 == "avx512-vnni":
            return self.intrinsic(
                "llvm.x86.avx512.vpdpbusd.512", accumulator.type, accumulator, unsigned, signed
            )
        if self.isa.dot_i8 == "avx-vnni":
            halves = []
            for part in range(2):
                acc = self.shuffle(accumulator, accumulator, range(8 * part, 8 * part + 8))
                u, s = (self._half(v, part) for v in (unsigned, signed))
                name = "llvm.x86.avx512.vpdpbusd.256"
                halves.append(self.intrinsic(name, acc.type, acc, u, s))
            return self.shuffle(halves[0], halves[1], range(16))
        return self.add(accumulator, self.add_pairs(self.pair_products(unsigned, signed)))

    def pair_products(self, unsigned: Value, signed: Value) -> Value:
        """`unsigned[2i] * signed[2i] + unsigned[2i + 1] * signed[2i + 1]`, saturated; on AVX2.

        Takes `vector<64xi8>`, read as u8 and s8; returns `vector<32xi16>`.
        """
        half = self.vec(16, self.i16)
        name = "llvm.x86.avx2.pmadd.ub.sw"
        halves = [
            self.intrinsic(name, half, self._half(unsigned, part), self._half(signed, part))
            for part in range(2)
        ]
        return self.shuffle(halves[0], halves[1], range(32))

    def add_pairs(self, numbers: Value) -> Value:
        """`numbers[2i] + numbers[2i + 1]`, of `vector<32xi16>` as `vector<16xi32>`; on AVX2."""
        half, ones = self.vec(8, self.i32), self.const(1, self.vec(16, self.i16))
        name = "llvm.x86.avx2.pmadd.wd"
        halves = [self.intrinsic(name, half, self._half(numbers, part), ones) for part in range(2)]
        return self.shuffle(halves[0], halves[1], range(16))

    def _half(self, v: Value, part: int) -> Value:
        """The lower or upper lanes of a vector."""
        lanes = ir.VectorType(v.type).shape[0] // 2
        return self.shuffle(v, v, range(lanes * part, lanes * part + lanes))

    def dot_s8_neon(self, accumulator: Value, a: Value, b: Value) -> Value:
        """`dot_i8` of two `vector<64xi8>` read as s8, on AArch64."""
        return self._quarters("llvm.aarch64.neon.sdot", accumulator, a, b)

    def dot_bf16(self, accumulator: Value, a: Value, b: Value) -> Value:
        """`accumulator[i] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1]`, rounded as the processor does.

        Takes `vector<16xf32>` and two `vector<32xbf16>`; needs `Isa.bf16_dot`.
        """
        if self.isa.architecture == "aarch64":
            return self._quarters("llvm.aarch64.neon.bfdot", accumulator, a, b)
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return self.intrinsic(name, accumulator.type, accumulator, a, b)

    def _quarters(self, name: str, accumulator: Value, a: Value, b: Value) -> Value:
        """A dot product instruction of 16-byte registers, for each quarter of the operands."""
        quarters, lanes = [], ir.VectorType(a.type).shape[0] // 4
        for part in range(4):
            acc = self.shuffle(accumulator, accumulator, range(4 * part, 4 * part + 4))
            x, y = (self.shuffle(v, v, range(lanes * part, lanes * (part + 1))) for v in (a, b))
            quarters.append(self.intrinsic(name, acc.type, acc, x, y))
        low, high = (self.shuffle(quarters[i], quarters[i + 1], range(8)) for i in (0, 2))
        return self.shuffle(low, high, range(16))

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
                    self.ptr, pointer, [], ir.DenseI32ArrayAttr.get([offset]), self.i8, 0
                ).result
            offset = self.idx(offset)
        return llvm.GEPOp(
            self.ptr, pointer, [offset], ir.DenseI32ArrayAttr.get([_DYNAMIC]), self.i8, 0
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

    def stack(self, size_bytes: int, align: int) -> Value:
        """Room on the stack until the function returns: once a call, also from within a loop."""
        block = ir.InsertionPoint.current.block
        while block.owner.operation.name != "func.func":
            block = block.owner.operation.block
        with ir.InsertionPoint.at_block_begin(block):
            return llvm.AllocaOp(self.ptr, self.idx(size_bytes), self.i8, alignment=align).result

    def prefetch(self, pointer: Value, locality: int = 3) -> None:
        """Hint that a line will be read soon: `locality` 3 into the nearest cache, 2 the next."""
        llvm.Prefetch(pointer, 0, locality, 1)

    def prefetch_to_write(self, pointer: Value) -> None:
        """Hint that a line will be written soon."""
        llvm.Prefetch(pointer, 1, 3, 1)

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
        op = scf.ForOp(self.as_i64(start), self.as_i64(stop), self.as_i64(step), list(carried))
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
