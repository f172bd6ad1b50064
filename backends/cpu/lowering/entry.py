"""The exported functions: the ABI around a program's body, and the constants a caller needs."""

from __future__ import annotations

import ctypes

from infc.backends.cpu.codegen.amx import emit_request_tiles
from infc.backends.cpu.codegen.builder import Builder, Value
from infc.backends.cpu.kernels.sync import BARRIER_NAME
from infc.backends.cpu.lowering import abi
from infc.backends.cpu.lowering.forms import Environment
from infc.backends.cpu.lowering.programs import KINDS, MainArguments, ProgramLowering
from infc.ir.mlir import ir, llvm


def emit_entry(b: Builder, program: ProgramLowering, signature: dict[str, int]) -> str:
    """Define `int32 infc_<phase>(const infc_call *call, int32 thread, int32 threads)`; its name.

    Every thread checks the whole call for itself, so that all return the same status without
    having met.
    """
    name = f"infc_{program.phase}"
    with b.function(name, [b.ptr, b.i32, b.i32], [b.i32], private=False) as arguments:
        call, thread, threads = arguments[0], b.as_i64(arguments[1]), b.as_i64(arguments[2])
        entry = _Entry(b, program, signature, call, thread, threads)
        (status,) = b.when(
            entry.right_version(),
            lambda: b.when(
                entry.in_range(),
                lambda: entry.run_where_allowed(),
                lambda: [b.const(abi.OUT_OF_RANGE, b.i32)],
                [b.i32],
            ),
            lambda: [b.const(abi.WRONG_ABI, b.i32)],
            [b.i32],
        )
        b.ret(status)
    return name


class _Entry:
    def __init__(
        self,
        b: Builder,
        program: ProgramLowering,
        signature: dict[str, int],
        call: Value,
        thread: Value,
        threads: Value,
    ) -> None:
        self.b = b
        self.program = program
        self.signature = signature
        self.call, self.thread, self.threads = call, thread, threads

    def number(self, field: str) -> Value:
        b = self.b
        return b.as_i64(b.load(b.at(self.call, abi.offset_of(field)), b.i32, 4))

    def pointer(self, field: str) -> Value:
        return self.b.load(self.b.at(self.call, abi.offset_of(field)), self.b.ptr, 8)

    def null(self) -> Value:
        return llvm.ZeroOp(self.b.ptr).res

    def item(self, base: Value, index: Value) -> Value:
        b = self.b
        return b.as_i64(b.load(b.at(base, b.mul(index, 4)), b.i32, 4))

    def all_of(self, *conditions: Value) -> Value:
        result, *others = conditions
        for condition in others:
            result = self.b.bit_and(result, condition)
        return result

    def between(self, value: Value, low: int, high: Value | int) -> Value:
        """`low <= value < high`."""
        return self.b.bit_and(self.b.cmp("sge", value, low), self.b.cmp("slt", value, high))

    def run_where_allowed(self) -> list[Value]:
        """Run the program, if the system lends it the registers it needs; the status."""
        b = self.b
        if not b.isa.amx:
            return [self.run()]
        return b.when(
            emit_request_tiles(b),
            lambda: [self.run()],
            lambda: [b.const(abi.NO_TILES, b.i32)],
            [b.i32],
        )

    def right_version(self) -> Value:
        b = self.b
        size = self.number("struct_size")
        return self.all_of(
            b.cmp("eq", self.number("abi_version"), abi.ABI_VERSION),
            b.cmp("sge", size, ctypes.sizeof(abi.InfcCall)),
        )

    def in_range(self) -> Value:
        """The limits first; only then the arrays may be read."""
        b, s, maxima = self.b, self.signature, self.program.maxima
        limits = self.all_of(
            self.between(self.number("n_tokens"), 1, maxima["t"] + 1),
            self.between(self.number("n_logit_rows"), 0, maxima["r"] + 1),
            self.between(self.number("n_sequences"), 1, s["max_slots"] + 1),
            self.between(self.threads, 1, s["max_threads"] + 1),
            self.between(self.thread, 0, self.threads),
            b.bit_or(
                b.cmp("ne", self.number("output_kind"), KINDS.index("top_k")),
                self.between(self.number("top_k"), 1, s["max_top_k"] + 1),
            ),
        )
        (result,) = b.when(
            limits, lambda: [self.arrays_in_range()], lambda: [b.const(0, b.i1)], [b.i1]
        )
        return result

    def arrays_in_range(self) -> Value:
        b, s = self.b, self.signature
        tokens, sequences = self.number("n_tokens"), self.number("n_sequences")
        ids, positions = self.pointer("tokens"), self.pointer("positions")
        offsets, slots = self.pointer("row_offsets"), self.pointer("slots")
        rows = self.pointer("logit_rows")

        def token(i: Value, ok: Value) -> Value:
            return self.all_of(
                ok,
                self.between(self.item(ids, i), 0, s["vocab_size"]),
                self.between(self.item(positions, i), 0, s["max_context"]),
            )

        def sequence(i: Value, ok: Value) -> Value:
            start, end = self.item(offsets, i), self.item(offsets, b.add(i, 1))
            return self.all_of(
                ok,
                b.cmp("slt", start, end),
                self.between(self.item(slots, i), 0, s["max_slots"]),
            )

        def row(i: Value, ok: Value) -> Value:
            return b.bit_and(ok, self.between(self.item(rows, i), 0, tokens))

        ok = self.all_of(
            b.cmp("eq", self.item(offsets, b.idx(0)), 0),
            b.cmp("eq", self.item(offsets, sequences), tokens),
        )
        (ok,) = b.loop(0, tokens, carried=[ok], body=token)
        (ok,) = b.loop(0, sequences, carried=[ok], body=sequence)
        (ok,) = b.loop(0, self.number("n_logit_rows"), carried=[ok], body=row)
        return ok

    def run(self) -> Value:
        b = self.b
        control = self.program.control
        arena, cancel = self.pointer("arena"), self.pointer("cancel")
        row_slots, flags = b.at(arena, control.row_slots), b.at(arena, control.flags)
        self.fill_row_slots(row_slots)
        b.call(BARRIER_NAME, [arena, self.thread, self.threads])
        base = control.size_bytes + self.program.space_bytes("arena")
        own = b.add(b.mul(self.thread, thread_bytes(self.program)), base)
        trace = self.pointer("trace")
        wanted = llvm.ICmpOp(1, trace, self.null()).res
        traces = b.bit_and(wanted, b.cmp("eq", self.thread, 0))
        env = Environment(
            {"t": self.number("n_tokens"), "r": self.number("n_logit_rows")},
            self.thread,
            self.threads,
            arena,
            b.at(trace, 8),
            b.ext_u(traces, b.i64),
            self.number("top_k"),
        )
        # Entry 0 of the trace is the start.
        self.program.emit_trace(env, -1)
        stopped = self.program.emit_main(
            MainArguments(
                operands=[
                    self.pointer("tokens"),
                    self.pointer("positions"),
                    row_slots,
                    *(self.pointer(f) for f in ("logit_rows", "logits", "best")),
                    *(self.pointer(f) for f in ("top_logits", "top_ids")),
                ],
                spaces={"arena": b.at(arena, control.size_bytes), "thread": b.at(arena, own)},
                weights=self.pointer("weights"),
                kv=self.pointer("kv"),
                flags=flags,
                cancel=cancel,
                kind=self.number("output_kind"),
                env=env,
            )
        )
        # Nobody may return (and let the caller reuse the arena) before all are done.
        b.call(BARRIER_NAME, [arena, self.thread, self.threads])
        return b.select(stopped, b.const(abi.CANCELLED, b.i32), b.const(abi.OK, b.i32))

    def fill_row_slots(self, row_slots: Value) -> None:
        """Thread 0 writes each row's slot."""
        b = self.b
        offsets, slots = self.pointer("row_offsets"), self.pointer("slots")

        def sequence(i: Value) -> None:
            slot = b.load(b.at(slots, b.mul(i, 4)), b.i32, 4)

            def row(r: Value) -> None:
                b.store(slot, b.at(row_slots, b.mul(r, 4)), 4)

            b.loop(self.item(offsets, i), self.item(offsets, b.add(i, 1)), body=row)

        def fill() -> None:
            b.loop(0, self.number("n_sequences"), body=sequence)

        b.when(b.cmp("eq", self.thread, 0), fill)


def thread_bytes(program: ProgramLowering) -> int:
    """Bytes of arena for each thread of a call: its buffers and a line, so that none is shared."""
    return -(-program.space_bytes("thread") // 64) * 64 + 64


def arena_bytes(program: ProgramLowering) -> int:
    """Bytes of arena before the threads' own parts."""
    return program.control.size_bytes + program.space_bytes("arena")


def emit_info(b: Builder, values: dict[str, int]) -> None:
    """Define the exported constant `infc_info`: what a caller without Python needs to know."""
    numbers = [values[field] for field in abi.INFO_FIELDS]
    kind = ir.Type.parse(f"!llvm.array<{len(numbers)} x i64>")
    dense = ir.DenseElementsAttr.get(
        [ir.IntegerAttr.get(b.i64, n) for n in numbers],
        type=ir.RankedTensorType.get([len(numbers)], b.i64),
    )
    with ir.InsertionPoint(b.module.body):
        llvm.GlobalOp(
            global_type=ir.TypeAttr.get(kind),
            sym_name="infc_info",
            linkage=ir.Attribute.parse("#llvm.linkage<external>"),
            constant=True,
            value=dense,
        )
