"""A machine whose kernels take what planted constants say: calibrating it must find these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from infc.backends.cpu.mappings import kernel_candidates
from infc.cost.calibrated import call_columns
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.threaded import THREADED
from infc.cost.machine_profile import MachineProfile, with_speeds
from infc.cost.roofline import Work
from infc.driver.calibration import Measured, fit_machine, speeds_of
from infc.driver.calibration_set import best_alone, calibration_kernels, kernel_name
from infc.target.backend import KernelMapping, KernelSummary, KernelTimer
from infc.target.discovery import load_backend
from infc.target.schema import Target

PLANTED: Mapping[str, Mapping[str, float]] = {
    "stream-product": {
        "memory_share": 0.85,
        "dot_share": 0.5,
        "unpack_8bit": 1.0,
        "unpack_4bit": 3.0,
        "unpack_6bit": 7.0,
        "unpack_5bit": 6.0,
        "unpack_float": 2.0,
        "overlap": 3.0,
        "call_seconds": 2e-6,
    },
    "blocked-product": {
        "dot_share": 0.4,
        "stage_8bit": 8.0,
        "stage_4bit": 12.0,
        "stage_6bit": 21.0,
        "stage_5bit": 20.0,
        "stage_float": 4.0,
        "gate_operations": 30.0,
        "call_seconds": 3e-6,
    },
    "staged-product": {
        "share_8bit": 0.4,
        "share_6bit": 0.6,
        "share_5bit": 0.7,
        "share_4bit": 0.9,
        "stage_codes": 3.0,
        "gate_operations": 60.0,
        "call_seconds": 3e-6,
    },
    "float-product": {"dot_share": 0.7, "stage_float": 6.0, "call_seconds": 3e-6},
    "row-attention": {
        "memory_share": 0.6,
        "dot_share": 0.3,
        "score_operations": 20.0,
        "part_seconds": 5e-7,
        "overlap": 2.0,
        "call_seconds": 2e-6,
    },
    "tile-attention": {
        "dot_share": 0.3,
        "score_operations": 30.0,
        "edge_keys": 40.0,
        "stage_operations": 6.0,
        "element_operations": 20.0,
        "call_seconds": 4e-6,
    },
    "rows": {"operation_cost": 5.0, "byte_operations": 1.5, "call_seconds": 1e-6},
    "rotary": {"operation_cost": 4.0, "byte_operations": 2.0, "call_seconds": 1e-6},
}
SPEEDS = speeds_of({1: [9e9, 10e9, 10e9], 2: [19e9, 20e9, 20e9]}, [150e9, 151e9])
ROW_SIZES = [(1, 2560, 10240, 1), (96, 2560, 10240, 0), (448, 7168, 4096, 0), (64, 512, 128, 0)]


def planted_seconds(work: Work, threads: int, target: Target) -> float:
    columns = call_columns([(work, threads)], target)
    kernel_class = THREADED[work.kernel]
    return float(kernel_class.times(columns, machine_of(target), PLANTED[work.kernel]).seconds[0])


def planted_rows(target: Target) -> list[Measured]:
    """Every kernel of the calibration set on one and two threads, as the planted constants say."""
    backend = load_backend("cpu")
    works = []
    for kernel in calibration_kernels(backend, target):
        mappings = kernel_candidates(kernel, target)
        works += [backend.work(kernel, mapping, target) for mapping in mappings[:2]]
    for name in ("rows", "rotary"):
        for rows, operations, moved, replicated in ROW_SIZES * 2:
            sizes = {
                "rows": rows,
                "row_operations": operations + rows,
                "row_bytes": moved,
                "replicated": replicated,
            }
            works.append(Work(barriers=1, kernel=name, sizes=sizes))
    return [
        Measured.of(work, threads, [planted_seconds(work, threads, target)])
        for work in works
        if work.kernel
        for threads in (1, 2)
    ]


@dataclass(frozen=True)
class Timed:
    """A kernel on so many threads, and the seconds of a call."""

    kernel: KernelSummary
    kernel_class: str
    threads: int
    seconds: float


class PlantedBackend:
    """The CPU's backend with two mappings of each kernel, which are soon compared, and kernels that
    take what the planted constants say.

    Attributes:
        slow: how many times as long as undisturbed calls of a kernel take.
        timed: kernels that timers were asked for, with their threads and undisturbed seconds.
        open: timers that exist.
    """

    def __init__(self) -> None:
        self.backend = load_backend("cpu")
        self.slow: Callable[[Timed], float] = lambda timed: 1.0
        self.timed: list[Timed] = []
        self.open = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)

    def candidates(self, kernel: KernelSummary, target: Target) -> Sequence[KernelMapping]:
        return self.backend.candidates(kernel, target)[:2]

    @contextmanager
    def timer(
        self,
        kernel: KernelSummary,
        mappings: Sequence[KernelMapping],
        target: Target,
        *,
        threads: int,
    ) -> Iterator[KernelTimer]:
        [mapping] = mappings
        work = replace(self.backend.work(kernel, mapping, target), barriers=0)
        timed = Timed(kernel, work.kernel, threads, planted_seconds(work, threads, target))
        self.timed.append(timed)
        self.open += 1
        yield lambda repetitions: [[self.slow(timed) * timed.seconds] * repetitions]
        self.open -= 1


def planted_profile(target: Target) -> MachineProfile:
    """What calibrating it gives."""
    kernels, backend = fit_machine(target, planted_rows(target), SPEEDS), PlantedBackend()
    measured, quiet = with_speeds(target, SPEEDS, "here"), dict[str, dict[str, float]]()
    for kernel in calibration_kernels(backend, target):  # type: ignore[arg-type]
        for threads in (1, 2):
            _, work = best_alone(backend, kernel, measured, threads)  # type: ignore[arg-type]
            seconds = planted_seconds(work, threads, measured)
            quiet.setdefault(work.kernel, {})[kernel_name(kernel, threads)] = seconds
    return MachineProfile(
        infc="0.1.0", date="2026-11-22", speeds=SPEEDS, kernels=kernels, quiet_seconds=quiet
    )
