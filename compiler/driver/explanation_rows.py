"""What `explain` finds, as rows: what the command line prints, draws and writes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from infc.driver.simulation import Clock
from infc.target.simulated import MachineLayout


@dataclass(frozen=True)
class ProgramRow:
    """One call of one program.

    Attributes:
        tokens: of the call.
        max_tokens, max_context, max_slots: what the program was compiled for.
        bandwidth_bytes_per_s: peak of each memory that its kernels use, for these threads.
        operations_per_s: peak for each dtype that its kernels compute in, for these threads.
        predicted_seconds, and its bounds: None where the artifact holds no estimate.
        measured_seconds: None where this host cannot run it or the backend cannot tell.
        clock: of the measured seconds; `simulated`: the target machine's own.
        utilisation: of each resource of a simulated machine over the call, 0 to 1; empty elsewhere.
    """

    program: str
    target: str
    tokens: int
    max_tokens: int
    max_context: int
    max_slots: int
    bandwidth_bytes_per_s: Mapping[str, float]
    operations_per_s: Mapping[str, float]
    predicted_seconds: float | None
    predicted_seconds_low: float | None
    predicted_seconds_high: float | None
    measured_seconds: float | None = None
    clock: Clock = "wall"
    utilisation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OpRow:
    """One operation of the model in a call on a simulated machine.

    Attributes:
        operation: layers that share their code share an operation.
        seconds: for how long nothing but it could make the call faster: all operations' add up to
            the call's, but for the launch.
        share: of the call.
        bound: the resource that binds, or `latency`, or `hidden`; see `OpTime`.
        bound_kind: what kind of resource that is; `overhead` where it is none.
        utilisation: of each resource that it uses, 0 to 1; see `OpTime`.
    """

    program: str
    operation: str
    seconds: float
    share: float
    bound: str
    bound_kind: Literal["memory", "compute", "network", "overhead"]
    utilisation: Mapping[str, float]


@dataclass(frozen=True)
class LayoutRow:
    """Where programs and their data are on a simulated machine.

    Attributes:
        programs: that have this layout.
    """

    programs: tuple[str, ...]
    layout: MachineLayout


@dataclass(frozen=True)
class KernelRow:
    """One kernel of one program, all its launches of a call together.

    Attributes:
        location: the operation of the model that the kernel was made for first.
        bound: the resource that binds, as the cost model has it; empty where there is no work.
        bound_kind: what kind of resource that is.
        memory_peak_seconds: what its bytes take at the machine's peak bandwidth.
        compute_peak_seconds: what its operations take at the machine's peak rate.
        floor_seconds: the larger of both: no code on this machine can be faster.
        floor_reached: the floor as a part of the measured time, where that is known.
    """

    program: str
    kernel: str
    location: str
    launches: int
    bytes: float
    operations: float
    bound: str
    bound_kind: Literal["memory", "compute", "overhead"]
    memory_peak_seconds: float
    compute_peak_seconds: float
    floor_seconds: float
    predicted_seconds: float
    measured_seconds: float | None = None
    floor_reached: float | None = None


@dataclass(frozen=True)
class FrameRow:
    """One arena of one function: the bytes its plan takes, and those that no plan can go below."""

    program: str
    function: str
    space: str
    height_bytes: int
    lower_bound_bytes: int


@dataclass(frozen=True)
class BufferRow:
    """One planned buffer: bytes `[offset, offset + size)` of its frame, live for some steps."""

    program: str
    function: str
    space: str
    buffer: str
    type: str
    offset_bytes: int
    size_bytes: int
    first_launch: int
    last_launch: int


@dataclass(frozen=True)
class TransferRow:
    """One transfer between far memory and bytes of a scratchpad, under way for some steps.

    Attributes:
        load: into the scratchpad; else out of it.
    """

    program: str
    function: str
    space: str
    buffer: str
    load: bool
    offset_bytes: int
    size_bytes: int
    first_launch: int
    last_launch: int


@dataclass(frozen=True)
class StagingRow:
    """What the schedule of a program's transfers is expected to take.

    Attributes:
        lower_bound_seconds: no schedule takes less.
        stall_seconds: in which kernels wait for transfers.
        moved_bytes: from and to far memory.
        scratchpad_bytes: that there are.
    """

    program: str
    seconds: float
    lower_bound_seconds: float
    stall_seconds: float
    moved_bytes: int
    scratchpad_bytes: int


@dataclass(frozen=True)
class CodeRow:
    """One function that a program starts on its device; None where nobody counted.

    Attributes:
        kernel: that it is; empty where it is the whole program.
        registers: of a thread.
        local_bytes: of memory that a thread has for spilled registers and the like.
        shared_bytes: of shared memory a block.
    """

    program: str
    function: str
    kernel: str
    threads: int
    registers: int | None
    local_bytes: int | None
    shared_bytes: int


@dataclass(frozen=True)
class CacheRow:
    """The KV cache of a session: what every slot may come to hold, without a layout's padding."""

    dtype: str
    slots: int
    size_bytes: int


@dataclass(frozen=True)
class Explanation:
    """All rows, in the order of the programs.

    Attributes:
        model: name of the model's file.
        digest: of the artifact.
        compiler: version of infc that made it.
        member_bytes: size of each file of the artifact.
        threads: that the figures are for; None means all compute units of the target.
        unmeasured: why there are no measured times; empty where there are, or the backend cannot
            tell.
        notes: what the code lacks, why it is not what it could be, one sentence each.
    """

    model: str
    digest: str
    compiler: str
    member_bytes: Mapping[str, int]
    threads: int | None
    kv_cache: CacheRow
    programs: tuple[ProgramRow, ...]
    kernels: tuple[KernelRow, ...]
    frames: tuple[FrameRow, ...]
    buffers: tuple[BufferRow, ...]
    transfers: tuple[TransferRow, ...] = ()
    staging: tuple[StagingRow, ...] = ()
    ops: tuple[OpRow, ...] = ()
    layouts: tuple[LayoutRow, ...] = ()
    code: tuple[CodeRow, ...] = ()
    unmeasured: str = ""
    notes: tuple[str, ...] = ()
