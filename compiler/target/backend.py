"""The contract of a backend: one object, found through the entry-point group `infc.backends`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from infc.target.runnable import Runnable
from infc.target.schema import Target, TargetStatus

if TYPE_CHECKING:  # the contract names layers above it; nothing is imported when it runs
    from infc.cost.estimate import Estimate
    from infc.cost.roofline import Work
    from infc.ir.mlir import ir
    from infc.ir.types import TensorType
    from infc.pipeline.passes import Pipeline

API_VERSION = 1

WeightData = Callable[[str], NDArray[np.uint8]]
"""The raw bytes of a tensor of the model file, by name."""

KernelMapping = Mapping[str, int | str | bool]
"""How a kernel is mapped to the machine: tile sizes, order, layout, partition; by name."""


@dataclass(frozen=True)
class KernelSummary:
    """What a backend and the cost model need to know of a kernel.

    Attributes:
        kind: `rows`, `matmul`, `rotary`, `attention` or `argmax`.
        phase: `prefill` or `decode`.
        rows: rows a call has at most.
        typical_rows: rows a call has in the expected use.
        operations: by dtype of the arithmetic, for `typical_rows`.
        weight_bytes: bytes of weights it reads, whatever the rows.
        activation_bytes: bytes of activations and cache it moves, for `typical_rows`.
        shapes: dimensions by name (`heads`, `kv_heads`, `head_dim`, `window`, `context`).
        matrices: `(n, k, storage type)` of each weight matrix of a product.
        kv_dtype: of the cache that attention reads; else empty.
        gate: the activation by which two products become one; else empty.
        out: the form of the rows that a product or an attention makes.
        split: whether it reads a matrix in two planes.
    """

    kind: str
    phase: str
    rows: int
    typical_rows: int
    operations: Mapping[str, float]
    weight_bytes: int
    activation_bytes: int
    shapes: Mapping[str, int]
    matrices: tuple[tuple[int, int, str], ...] = ()
    kv_dtype: str = ""
    gate: str = ""
    out: str = "f32"
    split: bool = False


@dataclass(frozen=True)
class Programs:
    """What a backend emitted.

    Attributes:
        members: files of the artifact by name, under `programs/`.
        write_weights: writes the packed weights, a stream of bytes of `weight_bytes`.
        signature: what `load` needs to know, as JSON values; goes into the manifest.
    """

    members: Mapping[str, bytes]
    write_weights: Callable[[BinaryIO], None]
    weight_bytes: int
    signature: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedPrograms:
    """What `load` is given: the emitted files, still in the artifact.

    Attributes:
        member: bytes of a file by name, mapped.
        extract: a path to a file by name, for the dynamic linker; it outlives the artifact.
        weights: the packed weights, mapped.
        weights_file: the file they are in and their offset, for backends that map it themselves.
        signature: as emitted.
        target: the resolved target the programs were compiled for.
        check: raises UserError where the files behind the mappings were truncated; for every call.
    """

    member: Callable[[str], memoryview]
    extract: Callable[[str], Path]
    weights: memoryview
    weights_file: tuple[Path, int]
    signature: Mapping[str, Any]
    target: Target
    check: Callable[[], None]


class KernelTimer(Protocol):
    """Some mappings of one kernel, ready to be called."""

    def __call__(self, repetitions: int) -> list[list[float]]:
        """Seconds of each of `repetitions` calls with the typical rows, for each mapping.

        Mappings take turns, so that a slow moment of the machine is bad luck for all. Weights come
        from where they are in a model's use.
        """


class MeasuringBackend(Protocol):
    """What a backend offers besides `Backend` where it can time kernels on the machine it runs on:
    `infc compile --tune`, `infc calibrate` and `infc bench` ask for it."""

    def measurable(self, kernel: KernelSummary) -> bool:
        """Whether a kernel can be timed alone."""

    def timer(
        self,
        kernel: KernelSummary,
        mappings: Sequence[KernelMapping],
        target: Target,
        *,
        threads: int,
    ) -> AbstractContextManager[KernelTimer]:
        """Code and operands of a kernel, which exist as long as the context does.

        Raises:
            UserError: the target is not this machine (INF3004).
        """


@dataclass(frozen=True)
class CallPrediction:
    """What one call of a program takes.

    Attributes:
        time: with its bounds, and for how long each resource binds.
        bytes: moved from and to the memory that holds the model.
        operations: of all dtypes.
    """

    time: Estimate
    bytes: float
    operations: float


@runtime_checkable
class PredictingBackend(Protocol):
    """What a backend offers besides `Backend` where its programs' time is no sum over kernels."""

    def predict_call(
        self,
        signature: Mapping[str, Any],
        target: Target,
        phase: str,
        *,
        tokens: int,
        position: int,
        logit_rows: int,
    ) -> CallPrediction:
        """One call of an emitted program, by the cost model.

        Args:
            signature: as emitted.
            target: the programs were compiled for, or the same machine with other figures.
            phase: `prefill` or `decode`.
            tokens: of the call, of one sequence.
            position: of the first of them.
            logit_rows: whose logits are wanted.
        """


@dataclass(frozen=True)
class CodeUse:
    """What one function that the host starts takes of each core; None where nobody counted.

    Attributes:
        kernel: at the memory level; empty where the function is a whole program.
        registers: of a thread.
        local_bytes: of memory that a thread has for spilled registers and the like.
        shared_bytes: of shared memory a block.
    """

    function: str
    kernel: str
    threads: int
    registers: int | None
    local_bytes: int | None
    shared_bytes: int


@runtime_checkable
class CodeReportingBackend(Protocol):
    """What a backend offers besides `Backend` where `explain` is to show what code takes."""

    def code_use(self, signature: Mapping[str, Any], phase: str) -> Sequence[CodeUse]:
        """The functions of an emitted program in the order of their first start.

        Args:
            signature: as emitted.
            phase: `prefill` or `decode`.
        """

    def code_notes(self, signature: Mapping[str, Any], phase: str) -> Sequence[str]:
        """What is to be said of the code of an emitted program, one sentence each: what it lacks,
        why it is not what it could be."""


@dataclass(frozen=True)
class Emulator:
    """Runs emitted programs where their machine is not, slowly.

    Attributes:
        load: makes them callable.
        what: was executed by what, a clause for the user.
    """

    load: Callable[[LoadedPrograms], Runnable]
    what: str


@runtime_checkable
class EmulatingBackend(Protocol):
    """What a backend offers besides `Backend` where `--verify` is to run programs on any host."""

    def emulator(self, module: ir.Module, target: Target) -> Emulator | str:
        """What runs the programs of a module that went through the whole pipeline, or why nothing
        does: a sentence for the user."""


class CostOnlyBackend(Protocol):
    """What makes a chip a target of the cost model: all its targets are of kind `model-only`.

    Any backend may have more to offer: links in place of a target's own, by `links() ->
    Sequence[str]`, their names, and `link(name) -> infc.target.links.LinkOption`; constants fitted
    to measurements, by `profiles() -> Sequence[infc.cost.kernels.profile.Profile]`; and serving
    engines, by `engines() -> Sequence[str]` and `engine(name) -> infc.cost.engine.EngineProfile`.
    """

    api_version: int
    name: str

    def targets(self) -> Sequence[TargetStatus]:
        """The targets it knows, with the reason for each that cannot be used here."""

    def resolve(self, spec: str) -> Target:
        """The facts of a target by name; probes the host where the name asks for it."""


class Backend(CostOnlyBackend, Protocol):
    """What makes a chip a target. Every method is a function of its arguments alone.

    A backend whose KV cache does not hold all of `infc.ir.kv_storage.KV_DTYPES` names those that it
    does hold in an attribute `kv_dtypes`, first the one that stands in for the usual one.
    """

    storage_types: frozenset[str]
    """Storage types its matrix products read as they are."""

    def unsupported(self, op: ir.Operation, target: Target) -> str | None:
        """Why a graph-level op cannot be compiled, or None where it can."""

    def activation_forms(self, storage: str, k: int, rows: int, target: Target) -> Sequence[str]:
        """Forms in which a product with `storage` weights of `k` columns takes its input.

        `f32`, or one of `infc.ir.types.ACTIVATION_FORMS`; never empty, the best guess for about
        `rows` rows first: the cost model chooses, and this order breaks its ties.
        """

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        """Mappings of a kernel worth considering, the best guess first; never empty."""

    def work(self, kernel: KernelSummary, mapping: KernelMapping, target: Target) -> Work:
        """Bytes, operations and barriers of a kernel under a mapping: what the cost model ranks."""

    def splits(self, tensor: TensorType) -> bool:
        """Whether it can keep a matrix in two planes and find the best products of a row from a
        part of them: a kernel for `infc.head_candidates`."""

    def weight_layout(self, tensor: TensorType, *, split: bool = False) -> tuple[str, int]:
        """The packed layout of a weight, by name, and its bytes: by shape and storage alone.

        `split` asks for two planes, where `splits` has said yes.
        """

    def pipeline(self, shared: Pipeline) -> Pipeline:
        """The shared pipeline, edited."""

    def emit(self, module: ir.Module, target: Target, weights: WeightData) -> Programs:
        """Programs and packed weights of a module that went through `pipeline`."""

    def load(self, programs: LoadedPrograms) -> Runnable:
        """Make emitted programs callable.

        Raises:
            UserError: INF4005 where this host lacks what the programs need.
        """
