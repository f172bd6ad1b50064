"""What `emit` writes into a program's signature and the runtime reads, as types: `CudaSignature`.

Beside what the signature of every backend has (`vocab_size`, `max_tokens`, `max_logit_rows`,
`max_context`, `max_slots`, `max_threads`, `max_top_k`, `capacity`, `windows`, `kv_heads`,
`head_dim`, `kv_dtype`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from infc.target.backend import CodeUse
from infc.target.signature import Count, Phases, Size


class Entry(TypedDict):
    """A kernel that the host can launch.

    Attributes:
        module: the member that holds it: `MODULE.ptx`, and `MODULE.cubin` where it was assembled.
        entry: its symbol.
        threads: of a block.
        shared_bytes: of dynamic shared memory a block.
        ctas_per_sm: blocks on a multiprocessor, at most; a persistent program has one.
    """

    module: str
    entry: str
    threads: Count
    shared_bytes: Size
    ctas_per_sm: Count


class Launch(Entry):
    """One launch of a program of separate kernels: `entry(call, i64 offset of each operand)`.

    Attributes:
        kernel: its name at the memory level.
        offsets: of each operand in bytes, in its space; of an operand of the call, of its pointer
            in the call block.
        rows: the symbol of its rows, `t` (tokens) or `r` (rows of logits): a kernel of no rows is
            not launched.
        outputs: the kinds of output it works for (`logits`, `argmax`, `top_k`).
    """

    kernel: str
    offsets: list[Size]
    rows: Literal["t", "r"]
    outputs: list[str]


class PhaseProgram(TypedDict):
    """One program.

    Attributes:
        arena_bytes: of the `arena` space.
        thread_bytes: of one block's copy of the `thread` space, a multiple of 256.
        scratch_bytes: of partial results, for the largest call.
        counter_bytes: of counters, which are zero when a call begins.
        launches: in order, one for each kernel.
        persistent: the one kernel `entry(call)` that does the same, launched cooperatively with
            one block a multiprocessor; None where there is none.
        reason: why a decode program is not persistent; empty where it is.
        kernels: names of the kernels in the order of the trace.
    """

    arena_bytes: Size
    thread_bytes: Size
    scratch_bytes: Size
    counter_bytes: Size
    launches: Annotated[list[Launch], Field(min_length=1)]
    persistent: Entry | None
    reason: str
    kernels: list[str]


class CudaSignature(TypedDict):
    """The signature's own fields.

    Attributes:
        arch: what the modules were compiled for: `sm_80`, `sm_90a`, `sm_100a`.
        phases: the programs, `prefill` and `decode`.
        functions: what the assembler says of each function, where there was one: registers of a
            thread, bytes of its stack and of spilled registers.
    """

    arch: Annotated[str, Field(pattern=r"^sm_\d+a?$")]
    phases: Phases[PhaseProgram]
    functions: dict[str, dict[str, Size]]


def code_use(signature: CudaSignature, phase: str) -> Sequence[CodeUse]:
    """What the functions take that a program launches: of a persistent one that is one."""
    program = signature["phases"][phase]
    if program["persistent"] is not None:
        return [_code_use(signature, program["persistent"], "")]
    found: dict[str, CodeUse] = {}
    for launch in program["launches"]:
        if launch["entry"] not in found:
            found[launch["entry"]] = _code_use(signature, launch, launch["kernel"])
    return list(found.values())


def code_notes(signature: CudaSignature, phase: str) -> Sequence[str]:
    """Why a step is not one kernel, and that nobody assembled the programs."""
    notes, reason = [], signature["phases"][phase]["reason"]
    if reason:
        notes.append(f"{phase} is a launch for each kernel, not one persistent kernel: {reason}")
    if not signature["functions"]:
        notes.append(
            "the programs are PTX alone, as ptxas was not found: the driver compiles them when "
            "they are first loaded, and what they take of registers and spill is not known; pip "
            "install nvidia-cuda-nvcc, or put ptxas on the search path"
        )
    return notes


def _code_use(signature: CudaSignature, entry: Entry, kernel: str) -> CodeUse:
    usage = signature["functions"].get(entry["entry"], {})
    return CodeUse(
        function=entry["entry"],
        kernel=kernel,
        threads=entry["threads"],
        registers=usage.get("registers"),
        local_bytes=usage.get("stack"),
        shared_bytes=entry["shared_bytes"],
    )
