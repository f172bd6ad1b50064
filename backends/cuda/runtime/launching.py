"""Runs one program: the persistent kernel, or separate kernels in order.

Separate kernels are launched as graphs, one for each set of kernels that a call may need, cut into
pieces so that a long prefill can be given up between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from infc.backends.cuda.call_block import KINDS
from infc.backends.cuda.runtime.driver import Device, KernelLaunch
from infc.backends.cuda.signature import Entry, Launch, PhaseProgram
from infc.diagnostics import Code, InternalError, UserError
from infc.diagnostics.quantities import human_bytes
from infc.target.runnable import Call, Cancellation

PIECE = 32
"""Kernels of a graph: two pieces take a few milliseconds, and no time is lost between pieces."""


class Kernels:
    """The loaded kernels of a program, before it is known where the call block lies.

    Args:
        modules: loaded, by name.
    """

    def __init__(self, device: Device, modules: dict[str, Any], program: PhaseProgram) -> None:
        self.device = device
        self.program = program
        self._modules = modules
        self._functions: dict[str, Any] = {}
        self._grids: dict[str, int] = {}
        for launch in program["launches"]:
            self._load(launch)
        if program["persistent"] is not None:
            self._load(program["persistent"])

    @property
    def copies(self) -> int:
        """Blocks of the largest launch."""
        return max(self._grids.values())

    def _load(self, entry: Entry) -> None:
        name = entry["entry"]
        if name in self._functions:
            return
        facts, shared = self.device.facts, entry["shared_bytes"]
        if shared > facts.shared_bytes_per_block:
            raise UserError(
                Code.ARTIFACT_HOST,
                f"the kernel {name} needs {human_bytes(shared)} of shared memory a block, and "
                f"{facts} has {human_bytes(facts.shared_bytes_per_block)}",
                hint="compile the model again with --target cuda on this machine",
            )
        function = self.device.function(self._modules[entry["module"]], name, shared)
        fitting = self.device.blocks_per_multiprocessor(function, entry["threads"], shared)
        if fitting == 0:
            raise InternalError(f"no block of the kernel {name} fits on {facts}")
        self._functions[name] = function
        self._grids[name] = min(fitting, entry["ctas_per_sm"]) * facts.multiprocessors

    def bind(self, entry: Entry, arguments: Sequence[int], *, cooperative: bool) -> KernelLaunch:
        """A launch with its arguments."""
        name = entry["entry"]
        return KernelLaunch(
            self._functions[name],
            self._grids[name],
            entry["threads"],
            entry["shared_bytes"],
            tuple(arguments),
            cooperative,
        )


class Program:
    """One program, ready to run.

    Args:
        call: address of the call block.
    """

    def __init__(self, kernels: Kernels, call: int) -> None:
        self._device = kernels.device
        self.entries: list[Launch] = kernels.program["launches"]
        self._launches = [
            kernels.bind(entry, [call, *entry["offsets"]], cooperative=False)
            for entry in self.entries
        ]
        self._persistent: KernelLaunch | None = None
        whole = kernels.program["persistent"]
        if whole is not None and self._device.facts.cooperative:
            self._persistent = kernels.bind(whole, [call], cooperative=True)
        self._graphs: dict[tuple[int, bool], list[Any]] = {}

    @property
    def is_persistent(self) -> bool:
        """Whether one kernel does it all, and can tell when each of its steps ended."""
        return self._persistent is not None

    def start(self, call: Call, cancel: Cancellation | None) -> None:
        """Begin to run a call whose block is on its way to the device.

        Raises:
            UserError: INF5006, it was cancelled; some of it may still be running.
        """
        if cancel is not None and cancel.is_set():
            raise _cancelled()
        if self._persistent is not None:
            self._device.launch(self._persistent)
            return
        marks: list[Any] = []
        try:
            for number, graph in enumerate(self._graphs_of(call)):
                if cancel is not None:
                    # One piece runs, one waits: the device always has work.
                    if number >= 2:
                        self._device.wait(marks[number - 2])
                    if cancel.is_set():
                        raise _cancelled()
                self._device.launch_graph(graph)
                if cancel is not None:
                    marks.append(self._device.record())
        finally:
            for mark in marks:
                self._device.forget(mark)

    def _graphs_of(self, call: Call) -> list[Any]:
        """The pieces that such a call needs, captured when one comes for the first time."""
        key = (int(call.output), len(call.logit_rows) > 0)
        if key not in self._graphs:
            launches = [launch for _, launch in self._needed(call)]
            self._graphs[key] = [
                self._device.capture(launches[i : i + PIECE])
                for i in range(0, len(launches), PIECE)
            ]
        return self._graphs[key]

    def _needed(self, call: Call) -> list[tuple[int, KernelLaunch]]:
        """The launches that a call needs, with their numbers."""
        kind, rows = KINDS[call.output], len(call.logit_rows)
        return [
            (number, launch)
            for number, (entry, launch) in enumerate(zip(self.entries, self._launches, strict=True))
            if kind in entry["outputs"] and (entry["rows"] == "t" or rows > 0)
        ]

    def timed(self, call: Call) -> list[float]:
        """Run a call launch by launch; seconds of each of `entries`, zero for those not needed."""
        device = self._device
        needed = self._needed(call)
        marks = [device.record()]
        for _, launch in needed:
            device.launch(launch)
            marks.append(device.record())
        device.synchronize()
        seconds = [0.0] * len(self.entries)
        for (number, _), (start, stop) in zip(needed, pairwise(marks), strict=True):
            seconds[number] = device.seconds(start, stop)
        for mark in marks:
            device.forget(mark)
        return seconds


def _cancelled() -> UserError:
    return UserError(Code.CANCELLED, "the call was cancelled")
