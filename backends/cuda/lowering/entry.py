"""An entry for each kernel: programs run as a sequence of launches.

    func @prefill_k3_matmul_entry(call, i64 offset of each operand in its space)

The entry finds the operands by the call block and calls the device function; of a product that
reads its weights through the ring, another warp brings them.
"""

from __future__ import annotations

from infc.backends.cuda.call_block import ARRIVALS, offset_of
from infc.backends.cuda.codegen.builder import WARP, GpuBuilder, Value
from infc.backends.cuda.kernels.frame import THREADS, WARPS, WORK_OFFSET
from infc.backends.cuda.kernels.ring import Ring
from infc.backends.cuda.lowering.forms import Argument, Form, arguments_of
from infc.backends.cuda.lowering.programs import ProgramKernels
from infc.backends.cuda.signature import Entry, Launch

RING_THREADS = THREADS + WARP
"""Threads of a block with a warp that fetches weights."""
_MOST_CTAS = 8
"""Blocks of a kernel on a multiprocessor, where so many fit: those that move rows need many loads
at a time."""
ROWS = {"t": "n_tokens", "r": "n_logit_rows"}
"""The field of the call block that is the value of a symbol."""


class CallFields:
    """Loads the fields of the call block."""

    def __init__(self, b: GpuBuilder, call: Value) -> None:
        self.b, self.call = b, call

    def number(self, field: str) -> Value:
        """An i32."""
        return self.b.load(self.b.at(self.call, offset_of(field)), self.b.i32, 4)

    def is_set(self, field: str) -> Value:
        """Whether a pointer is there, i1."""
        value = self.b.load(self.b.at(self.call, offset_of(field)), self.b.i64, 8)
        return self.b.cmp("ne", value, 0)

    def pointer(self, field: str) -> Value:
        """A pointer into global memory."""
        return self.b.load(self.b.at(self.call, offset_of(field)), self.b.ptr, 8)

    def words(self, form: Form) -> dict[str, Value]:
        """The words that a form asks for, as far as they are in the call block."""
        b, asked = self.b, {*form.arguments, *form.produce}
        words: dict[str, Value] = {"rows": self.number(ROWS[form.symbol])}
        if "scratch" in asked:
            words["scratch"] = self.pointer("scratch")
        if "arrivals" in asked:
            words["arrivals"] = b.at(self.pointer("counters"), ARRIVALS)
        if "wanted" in asked:
            words["wanted"] = self.number("top_k")
        return words


def emit_launches(b: GpuBuilder, program: ProgramKernels) -> list[Launch]:
    """Define the entries of all kernels; the launches in order."""
    entries = {name: _emit_entry(b, program, name) for name in program.forms}
    return [
        Launch(
            **entries[step.kernel],
            kernel=step.kernel,
            offsets=[place.offset for place in step.operands],
            rows="r" if program.forms[step.kernel].symbol == "r" else "t",
            outputs=sorted(step.outputs),
        )
        for step in program.steps()
    ]


def _emit_entry(b: GpuBuilder, program: ProgramKernels, kernel: str) -> Entry:
    form, spaces = program.forms[kernel], program.spaces(kernel)
    ring = program.ring if form.produce else None
    name = f"{form.emitted.name}_entry"
    threads = RING_THREADS if ring is not None else form.emitted.threads
    with (
        program.kernels[kernel].function.location,
        b.kernel(name, [b.ptr, *[b.i64] * len(spaces)], threads=threads) as arguments,
    ):
        call, *offsets = arguments
        fields = CallFields(b, call)
        operands = [
            _operand(b, program, fields, space, offset)
            for space, offset in zip(spaces, offsets, strict=True)
        ]
        none = b.idx(0)
        words = fields.words(form) | {"cta": b.cta(), "ctas": b.ctas()}
        words |= {"first": none, "count": none}
        if kernel in program.replicated:
            words |= {"cta": none, "ctas": b.idx(1)}
        if ring is None:
            b.call(form.emitted.name, arguments_of(form.arguments, operands, words))
        else:
            start_ring(b, ring)
            produces = b.cmp("eq", b.warp(), WARPS)
            b.when(
                produces,
                lambda: _run(b, f"{form.emitted.name}_produce", form.produce, operands, words),
                lambda: _run(b, form.emitted.name, form.arguments, operands, words),
            )
    return Entry(
        module=program.phase,
        entry=name,
        threads=threads,
        shared_bytes=WORK_OFFSET + form.emitted.work_bytes if ring is None else ring.end,
        # Where blocks keep rows of their own, all kernels have the same blocks.
        ctas_per_sm=1 if program.thread_bytes else _MOST_CTAS,
    )


def start_ring(b: GpuBuilder, ring: Ring) -> None:
    """Make a ring ready, at the start of a kernel of `RING_THREADS`."""
    ring.emit_init(b)
    b.sync(RING_THREADS)


def _run(
    b: GpuBuilder,
    name: str,
    arguments: tuple[Argument, ...],
    operands: list[Value],
    words: dict[str, Value],
) -> None:
    """Call a function that returns how much of the ring was used."""
    b.call(name, arguments_of(arguments, operands, words), [b.i32])


def _operand(
    b: GpuBuilder, program: ProgramKernels, fields: CallFields, space: str, offset: Value
) -> Value:
    """Where an operand lies in a call."""
    if space == "call":
        return b.load(b.at(fields.call, offset), b.ptr, 8)
    base = fields.pointer(space)
    if space == "thread":
        base = b.at(base, b.mul(b.wide(b.cta()), program.thread_bytes))
    return b.at(base, offset)
