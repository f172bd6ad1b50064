"""The builder of code for NVIDIA GPUs: threads, shared memory, copies, numbers.

A module is a `gpu.module`. Pointers are `!llvm.ptr<1>` (global memory) and `!llvm.ptr<3>` (shared
memory); indices are `i32`, byte offsets into global memory that may pass 2 GiB are made `i64` by
`wide`. A fragment is a list of 32-bit registers of a thread. What a method emits is what the
lockstep interpreter executes and what PTX is made from: the instruction's name in the PTX ISA
(https://docs.nvidia.com/cuda/parallel-thread-execution/) stands in each docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from infc.backends.cuda.codegen.inline_ptx import AND_OR, SELECT_BITS, TEST_WAIT
from infc.ir.mlir import arith, func, ir, llvm, nvvm, vector
from infc.passes.codegen import builder
from infc.passes.codegen.builder import Type, Value

__all__ = ["WARP", "GpuBuilder", "Type", "Value"]

WARP = 32
"""Threads of a warp."""
_SHARED_SPACE = 3
SYNC = "llvm.nvvm.barrier.cta.sync.aligned.count"
"""LLVM's name of `bar.sync`, of a barrier and how many threads meet."""
DYNAMIC_SHARED = "shared_memory"
"""The symbol of a kernel's dynamic shared memory."""

_ALL = -1
"""The mask of all threads of a warp."""
_DEVICE = "device"
"""LLVM's name of the scope of all threads on the device."""


class GpuBuilder(builder.Builder):
    """Appends operations to one `gpu.module` for one architecture.

    Attributes:
        arch: `sm_80`, `sm_90a`, ...
        compute_capability: 80, 90, 100: what instructions there are.
        ptr: a pointer to global memory.
        shared: a pointer to shared memory.
    """

    def __init__(self, module: ir.OpView, arch: str) -> None:
        super().__init__(module)
        self.arch = arch
        self.compute_capability = int("".join(c for c in arch if c.isdigit()))
        self.ptr = Type.parse("!llvm.ptr<1>")
        self.shared: Type = Type.parse("!llvm.ptr<3>")
        self.index = self.i32
        self.bf16x2: Type = self.vec(2, self.bf16)

    # ---- functions -------------------------------------------------------------------------

    @contextmanager
    def kernel(
        self, name: str, arguments: Sequence[Type], *, threads: int, min_ctas: int = 1
    ) -> Iterator[list[Value]]:
        """Open an entry point run by blocks of `threads` threads and yield its arguments.

        `min_ctas` blocks fit on a multiprocessor: the assembler keeps registers within that. The
        kernel returns by itself where the body ends.
        """
        kind = Type.parse(f"!llvm.func<void ({', '.join(str(a) for a in arguments)})>")
        with ir.InsertionPoint(self._block):
            op = llvm.LLVMFuncOp(name, ir.TypeAttr.get(kind))
        op.attributes["gpu.kernel"] = ir.UnitAttr.get()
        op.attributes["nvvm.kernel"] = ir.UnitAttr.get()
        op.attributes["nvvm.maxntid"] = ir.DenseI32ArrayAttr.get([threads])
        op.attributes["nvvm.minctasm"] = ir.IntegerAttr.get(self.i32, min_ctas)
        block = op.body.blocks.append(*arguments)
        with ir.InsertionPoint(block):
            yield list(block.arguments)
            llvm.ReturnOp()

    @contextmanager
    def function(
        self,
        name: str,
        arguments: Sequence[Type],
        results: Sequence[Type] = (),
        *,
        inline: bool = False,
    ) -> Iterator[list[Value]]:
        """Open a device function and yield its arguments; the caller ends it with `ret`.

        A function may have barriers in it, so LLVM must not copy its calls into both sides of a
        branch on which the threads of a warp part (`convergent`; LLVM takes the word away again
        where nothing in the function asks for it).
        """
        with ir.InsertionPoint(self._block):
            kind = ir.FunctionType.get(list(arguments), list(results))
            op = func.FuncOp(name, kind, visibility="private")
        op.attributes["llvm.linkage"] = ir.Attribute.parse("#llvm.linkage<internal>")
        word = "alwaysinline" if inline else "noinline"
        words = [ir.StringAttr.get(w) for w in ("convergent", word)]
        op.attributes["passthrough"] = ir.ArrayAttr.get(words)
        block = op.add_entry_block()
        with ir.InsertionPoint(block):
            yield list(block.arguments)

    @property
    def _block(self) -> ir.Block:
        return self.module.regions[0].blocks[0]

    # ---- who runs --------------------------------------------------------------------------

    def thread(self) -> Value:
        """The number of the thread in its block (`%tid.x`)."""
        return nvvm.ThreadIdXOp(self.i32).res

    def lane(self) -> Value:
        """The number of the thread in its warp; blocks are one-dimensional."""
        return self.bit_and(self.thread(), WARP - 1)

    def warp(self) -> Value:
        """The number of the warp in its block, known to be the same for all its threads."""
        return self.shuffle_index(self.shr(self.thread(), 5), self.idx(0))

    def cta(self) -> Value:
        """The number of the block (`%ctaid.x`)."""
        return nvvm.BlockIdXOp(self.i32).res

    def ctas(self) -> Value:
        """How many blocks there are (`%nctaid.x`)."""
        return nvvm.GridDimXOp(self.i32).res

    def clock_ns(self) -> Value:
        """Nanoseconds, i64, alike on all multiprocessors (`%globaltimer`)."""
        return nvvm.GlobalTimerOp(self.i64).res

    # ---- synchronisation -------------------------------------------------------------------

    def sync(self, threads: int, barrier: int = 0) -> None:
        """`threads` threads, a multiple of a warp, meet at a barrier of the block (`bar.sync`)."""
        # An intrinsic: MLIR reads no location behind its own operation, so dumps would not parse.
        self.intrinsic(SYNC, None, self.idx(barrier), self.idx(threads))

    def arrive(self, threads: int, barrier: int) -> None:
        """Arrive at a barrier of the block where `sync` waits, and go on (`bar.arrive`)."""
        nvvm.BarrierArriveOp(self.idx(threads), barrierId=self.idx(barrier))

    def sync_warp(self) -> None:
        """The threads of a warp meet and see one another's writes (`bar.warp.sync`)."""
        nvvm.SyncWarpOp(self.idx(_ALL))

    def fence_device(self) -> None:
        """Orders this thread's accesses around it for all threads (`fence.acq_rel.gpu`)."""
        self._fence(_DEVICE)

    def fence_block(self) -> None:
        """The same, for the threads of the block (`fence.acq_rel.cta`)."""
        self._fence("block")

    def _fence(self, scope: str) -> None:
        acq_rel = 6
        llvm.FenceOp(acq_rel, syncscope=scope)

    def fence_async(self) -> None:
        """Orders ordinary writes of shared memory before accesses by copies and matrix units that
        read it through descriptors (`fence.proxy.async.shared::cta`); sm_90 and later."""
        nvvm.FenceProxyOp(
            ir.Attribute.parse("#nvvm.proxy_kind<async.shared>"),
            space=ir.Attribute.parse("#nvvm.shared_space<cta>"),
        )

    def add_and_fetch_old(self, pointer: Value, value: Value | int) -> Value:
        """Atomic i32 sum in global or shared memory, unordered; the value before (`atom.add`)."""
        return self._atomic("add", pointer, self.as_index(value))

    def float_add(self, pointer: Value, value: Value) -> Value:
        """Atomic f32 sum, unordered; the value before (`atom.add.f32`)."""
        return self._atomic("fadd", pointer, value)

    def _atomic(self, kind: str, pointer: Value, value: Value) -> Value:
        kinds = {"add": 1, "fadd": 11}
        monotonic = 2
        return llvm.AtomicRMWOp(kinds[kind], pointer, value, monotonic, syncscope=_DEVICE).res

    def load_acquire(self, pointer: Value) -> Value:
        """Load an i32 that another block releases (`ld.acquire.gpu`)."""
        acquire = 4
        return llvm.LoadOp(
            self.i32, pointer, alignment=4, ordering=acquire, syncscope=_DEVICE
        ).result

    def store_release(self, value: Value, pointer: Value) -> None:
        """Store an i32 after all this thread did before (`st.release.gpu`)."""
        release = 5
        llvm.StoreOp(value, pointer, alignment=4, ordering=release, syncscope=_DEVICE)

    # ---- barriers in shared memory -----------------------------------------------------------

    def mbarrier_init(self, barrier: Value, arrivals: int) -> None:
        """Make 8 bytes of shared memory a barrier of `arrivals` arrivals a phase (`mbarrier.init`);
        `fence_mbarrier_init` and a `sync` follow before others use it."""
        nvvm.MBarrierInitOp(barrier, self.idx(arrivals))

    def fence_mbarrier_init(self) -> None:
        """Make initialised barriers known to copies (`fence.mbarrier_init`, sm_90 and later)."""
        if self.compute_capability >= 90:
            nvvm.FenceMbarrierInitOp()

    def mbarrier_arrive(self, barrier: Value) -> None:
        """Arrive once, after all this thread did before (`mbarrier.arrive`)."""
        nvvm.MBarrierArriveOp(self.i64, barrier)

    def mbarrier_expect(self, barrier: Value, size_bytes: Value) -> None:
        """Arrive once and let the phase wait for `size_bytes` of copies too
        (`mbarrier.arrive.expect_tx`, sm_90 and later)."""
        nvvm.MBarrierArriveExpectTxOp(None, barrier, size_bytes)

    def mbarrier_wait(self, barrier: Value, parity: Value) -> None:
        """Wait until the phase of this parity (0 for the first) has ended (`mbarrier.try_wait`, or
        a loop around `mbarrier.test_wait` before sm_90)."""
        if self.compute_capability >= 90:
            nvvm.MBarrierTryWaitParityOp(barrier, parity, self.idx(_WAIT_TICKS))
            return

        def done() -> Value:
            address = llvm.PtrToIntOp(self.i32, barrier).res
            return self.cmp("eq", self.assembly(TEST_WAIT, [self.i32], address, parity)[0], 0)

        self.loop_while([], lambda: done(), lambda: [])

    # ---- copies ------------------------------------------------------------------------------

    def copy_async(self, target: Value, source: Value, size_bytes: int = 16) -> None:
        """Copy 4, 8 or 16 bytes, aligned to their number, from global to shared memory without
        waiting (`cp.async`; 16 bytes pass by the first cache)."""
        nvvm.CpAsyncOp(target, source, size_bytes, _cache(size_bytes))

    def copy_async_or_zero(
        self, target: Value, source: Value, there: Value, size_bytes: int = 16
    ) -> None:
        """`copy_async` where `there` (i1); else zeros, and `source` is not read."""
        count = self.select(there, self.idx(size_bytes), self.idx(0))
        nvvm.CpAsyncOp(target, source, size_bytes, _cache(size_bytes), cpSize=count)

    def copy_commit(self) -> None:
        """This thread's copies since the last commit are a group (`cp.async.commit_group`)."""
        nvvm.CpAsyncCommitGroupOp()

    def copy_wait(self, groups: int) -> None:
        """Wait until all but the last `groups` groups of this thread are there
        (`cp.async.wait_group`); a `sync` makes them visible to others."""
        nvvm.CpAsyncWaitGroupOp(groups)

    def copy_arrive(self, barrier: Value) -> None:
        """Arrive at an mbarrier, which counts this arrival, once all copies this thread began are
        there (`cp.async.mbarrier.arrive.noinc`)."""
        nvvm.CpAsyncMBarrierArriveOp(barrier, noinc=True)

    def copy_bulk(self, target: Value, source: Value, size_bytes: Value, barrier: Value) -> None:
        """One thread copies a multiple of 16 bytes, 16-aligned, from global to shared memory; the
        bytes count at `barrier` (`cp.async.bulk`, sm_90 and later)."""
        cluster = llvm.AddrSpaceCastOp(Type.parse("!llvm.ptr<7>"), target).res
        nvvm.CpAsyncBulkGlobalToSharedClusterOp(cluster, source, barrier, size_bytes)

    # ---- between threads of a warp -----------------------------------------------------------

    def shuffle_xor(self, value: Value, mask: int) -> Value:
        """The i32 or f32 of the lane whose number differs by `mask` (`shfl.sync.bfly`)."""
        return self._shuffle("bfly", value, self.idx(mask))

    def shuffle_index(self, value: Value, lane: Value) -> Value:
        """The i32 or f32 of a lane (`shfl.sync.idx`)."""
        return self._shuffle("idx", value, lane)

    def _shuffle(self, kind: str, value: Value, offset: Value) -> Value:
        clamp = self.idx(WARP - 1)
        how = ir.Attribute.parse(f"#nvvm<shfl_kind {kind}>")
        return nvvm.ShflOp(value.type, self.idx(_ALL), value, offset, clamp, how).res

    def ballot(self, condition: Value) -> Value:
        """A bit for each lane (`vote.sync.ballot`)."""
        kind = ir.Attribute.parse("#nvvm<vote_sync_kind ballot>")
        return nvvm.VoteSyncOp(self.i32, self.idx(_ALL), condition, kind).res

    def warp_reduce(self, combine: Callable[[Value, Value], Value], value: Value) -> Value:
        """`value` of all lanes combined, the same on each: a butterfly of five steps."""
        for mask in (16, 8, 4, 2, 1):
            value = combine(value, self.shuffle_xor(value, mask))
        return value

    # ---- numbers -----------------------------------------------------------------------------

    def exp2(self, a: Value) -> Value:
        """`2**a`, to about 2 ulp, subnormal results may be zero (`ex2.approx.ftz`)."""
        return self.intrinsic("llvm.nvvm.ex2.approx.ftz.f", self.f32, a)

    def rsqrt(self, a: Value) -> Value:
        """`1 / sqrt(a)`, to about 2 ulp (`rsqrt.approx.ftz`)."""
        return self.intrinsic("llvm.nvvm.rsqrt.approx.ftz.f", self.f32, a)

    def reciprocal(self, a: Value) -> Value:
        """`1 / a`, to about 1 ulp, subnormal results are zero (`rcp.approx.ftz`)."""
        return self.intrinsic("llvm.nvvm.rcp.approx.ftz.f", self.f32, a)

    def vector_of(self, numbers: Sequence[Value]) -> Value:
        """A vector of scalars of one type, to store them at once."""
        type_ = self.vec(len(numbers), numbers[0].type)
        return vector.FromElementsOp(type_, list(numbers)).dest

    def pack_bf16(self, low: Value, high: Value) -> Value:
        """Two f32 rounded to bf16, ties to even, in an i32 (`cvt.rn.bf16x2.f32`)."""
        return self.bits(self.trunc_f(self.vector_of([low, high]), self.bf16x2))

    def pack_f16(self, low: Value, high: Value) -> Value:
        """Two f32 rounded to f16, ties to even, in an i32 (`cvt.rn.f16x2.f32`)."""
        return self.bits(self.trunc_f(self.vector_of([low, high]), self.vec(2, self.f16)))

    def permute_bytes(self, a: Value, b: Value, selector: int) -> Value:
        """Byte `i` of the result is byte `selector >> 4i & 7` of `b:a`, 0 to 3 in `a` (`prmt`)."""
        return self.intrinsic("llvm.nvvm.prmt", self.i32, a, b, self.idx(selector))

    def and_or(self, a: Value, b: Value | int, c: Value | int) -> Value:
        """`a & b | c` of i32 in one instruction (`lop3`), which two constants would keep the
        assembler from finding."""
        b, c = (self.idx(x) if isinstance(x, int) else x for x in (b, c))
        return self.assembly(AND_OR, [self.i32], a, b, c, pure=True)[0]

    def select_bits(self, mask: int, a: Value, b: Value) -> Value:
        """The bits of `a` where those of `mask` are set, else those of `b`; i32 (`lop3`)."""
        return self.assembly(SELECT_BITS, [self.i32], a, b, self.idx(mask), pure=True)[0]

    def bits(self, a: Value) -> Value:
        """The bits of a 32-bit number or of a vector of 32 bits as an i32."""
        return llvm.BitcastOp(self.i32, a).res

    def number(self, bits: Value, type_: Type) -> Value:
        """An i32 read as an f32 or a vector of 32 bits."""
        return llvm.BitcastOp(type_, bits).res

    def wide(self, value: Value | int) -> Value:
        """An i64, of an i32 that is not negative or of a constant."""
        if isinstance(value, int):
            return self.const(value, self.i64)
        return value if value.type == self.i64 else arith.ExtUIOp(self.i64, value).result

    # ---- the rest ------------------------------------------------------------------------------

    def shared_memory(self, offset: Value | int = 0) -> Value:
        """A pointer into the kernel's dynamic shared memory."""
        base = llvm.AddressOfOp(self.shared, DYNAMIC_SHARED).res
        return self.at(base, offset)

    def declare_shared_memory(self) -> None:
        """Once a module, before kernels are emitted."""
        with ir.InsertionPoint(self._block):
            llvm.GlobalOp(
                global_type=ir.TypeAttr.get(Type.parse("!llvm.array<0 x i8>")),
                sym_name=DYNAMIC_SHARED,
                linkage=ir.Attribute.parse("#llvm.linkage<external>"),
                addr_space=_SHARED_SPACE,
                alignment=1024,
            )

    def fields(self, struct: Value, types: Sequence[Type]) -> list[Value]:
        """The fields of a struct."""
        return [
            llvm.ExtractValueOp(type_, struct, ir.DenseI64ArrayAttr.get([i])).res
            for i, type_ in enumerate(types)
        ]

    def assembly(
        self, text: str, results: Sequence[Type], *operands: Value, pure: bool = False
    ) -> list[Value]:
        """Inline PTX, of `inline_ptx`: results `=r` or `=f`, operands `r` or `f` by type. What
        is `pure` only computes its results: it may be moved or left out."""
        letters = [*(f"={_letter(t)}" for t in results), *(_letter(v.type) for v in operands)]
        result: Type | None = None
        if len(results) == 1:
            result = results[0]
        elif results:
            result = Type.parse(f"!llvm.struct<({', '.join(str(t) for t in results)})>")
        op = llvm.InlineAsmOp(
            result, list(operands), text, ",".join(letters), has_side_effects=not pure
        )
        if len(results) < 2:
            return [op.results[0]] if results else []
        return self.fields(op.results[0], results)


_WAIT_TICKS = 0x989680
"""Nanoseconds after which a waiting thread looks again."""


def _cache(size_bytes: int) -> ir.Attribute:
    """Copies of 16 bytes may pass by the first cache."""
    return ir.Attribute.parse(f"#nvvm<load_cache_modifier {'cg' if size_bytes == 16 else 'ca'}>")


def _letter(type_: Type) -> str:
    """The constraint of an operand of inline assembly."""
    return {"f32": "f", "i64": "l"}.get(str(type_), "r")
