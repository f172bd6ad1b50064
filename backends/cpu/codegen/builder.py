"""The builder of the CPU's code: vectors of 16 lanes, and the instructions of its dot products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from infc.backends.cpu.codegen.isa import Isa
from infc.ir.mlir import func, ir, llvm
from infc.passes.codegen import builder
from infc.passes.codegen.builder import Type, Value

__all__ = ["LANES", "Builder", "Type", "Value"]

LANES = 16
"""Every vector of 32-bit elements has 16 lanes; LLVM splits it where registers are narrower."""

_SETTLED_TOGETHER = 6
"""Vectors of 64 bytes that twelve of AVX2's sixteen registers hold."""
_HIDDEN = 1
"""LLVM's number of the visibility."""


class Builder(builder.Builder):
    """Appends operations to one module for one instruction set; indices are `i64`."""

    def __init__(self, module: ir.Module, isa: Isa) -> None:
        super().__init__(module)
        self.isa = isa

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

    def declare(self, name: str, pointers: int) -> None:
        """Declare a C function of another object file of the program: it is given pointers."""
        kind = ir.Type.parse(f"!llvm.func<void ({', '.join(['ptr'] * pointers)})>")
        with ir.InsertionPoint(self.module.body):
            function = llvm.LLVMFuncOp(name, ir.TypeAttr.get(kind))
            function.attributes["visibility_"] = ir.IntegerAttr.get(self.i64, _HIDDEN)

    def call_declared(self, name: str, operands: Sequence[Value]) -> None:
        """Call a declared function."""
        llvm.CallOp(None, list(operands), [], ir.DenseI32ArrayAttr.get([]), callee=name)

    def splat(self, a: Value, lanes: int = LANES) -> Value:
        """A vector with the scalar `a` in every lane."""
        return super().splat(a, lanes)

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

    def add_pairs(self, numbers: Value, times: int = 1) -> Value:
        """`times * (numbers[2i] + numbers[2i + 1])`, `vector<32xi16>` to `vector<16xi32>`; AVX2."""
        half, factors = self.vec(8, self.i32), self.const(times, self.vec(16, self.i16))
        name = "llvm.x86.avx2.pmadd.wd"
        halves = [
            self.intrinsic(name, half, self._half(numbers, part), factors) for part in range(2)
        ]
        return self.shuffle(halves[0], halves[1], range(16))

    def settled(self, vectors: Sequence[Value]) -> list[Value]:
        """The same vectors, all there before what follows is begun; on AVX2.

        LLVM orders the instructions of a block by what they need. Where a block makes many sums of
        the same operands, it makes one sum after the other and keeps all operands on the stack.
        Empty assembly that the sums pass through holds it back.

        Args:
            vectors: of 64 bytes, all of one type.
        """
        out: list[Value] = []
        for first in range(0, len(vectors), _SETTLED_TOGETHER):
            out += self._through_assembly(vectors[first : first + _SETTLED_TOGETHER])
        return out

    def _through_assembly(self, vectors: Sequence[Value]) -> list[Value]:
        kind = ir.VectorType(vectors[0].type)
        half = self.vec(kind.shape[0] // 2, kind.element_type)
        halves = [self._half(vector, part) for vector in vectors for part in range(2)]
        constraints = [*["=x"] * len(halves), *map(str, range(len(halves)))]
        struct = ir.Type.parse(f"!llvm.struct<({', '.join([str(half)] * len(halves))})>")
        asm = llvm.InlineAsmOp(struct, halves, "", ",".join(constraints), has_side_effects=True)
        parts = [
            llvm.ExtractValueOp(half, asm.results[0], ir.DenseI64ArrayAttr.get([part])).result
            for part in range(len(halves))
        ]
        lanes = range(kind.shape[0])
        return [self.shuffle(*pair, lanes) for pair in zip(parts[::2], parts[1::2], strict=True)]

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
