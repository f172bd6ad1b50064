"""Records what tests run in lockstep, so that a device can be asked to do the same.

    pytest -p cuda_recording --record-launches FOLDER tests/unit

Each launch becomes a case: the memory before it, what the test read after it, and the machine code.
`benchmarks/gpu.py` runs the cases where there is a device but no MLIR.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.backends.cuda import lockstep
from infc.backends.cuda.codegen.assembler import assemble
from infc.backends.cuda.codegen.ptx import to_ptx
from infc.ir.mlir import ir

ARCH = "sm_90a"
MOST_BYTES = 2 << 20
"""Of memory that a case may have."""
MOST_OF_ONE = 6
"""Cases of one test function."""
POISON = 0xFF
"""What lies where nobody wrote: NaN as a float, -1 as a number."""


@dataclass
class Case:
    """One launch.

    Attributes:
        module: text of the module of kernels.
        image: the device's memory from `base` on.
        reads: address, dtype and numbers of what was read behind it.
    """

    test: str
    module: str
    kernel: str
    grid: int
    threads: int
    shared_bytes: int
    arguments: list[int]
    base: int
    image: NDArray[np.uint8]
    reads: list[tuple[int, NDArray[Any]]] = field(default_factory=list)


class Recorder:
    """The plugin: puts recording functions in the place of the interpreter's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[Case] = []
        self.modules: list[tuple[Any, str]] = []  # the first keeps its `id`
        self.test = ""
        self.counts: Counter[str] = Counter()
        self.launch, self.read = lockstep.launch, lockstep.read
        lockstep.launch, lockstep.read = self.record, self.record_module
        lockstep.Device = self.device_class(lockstep.Device)  # type: ignore[misc]

    def device_class(self, device: Any) -> Any:
        """A device that tells what is read from it."""
        recorder = self

        class RecordingDevice(device):  # type: ignore[misc]
            last: Case | None = None

            def read(self, address: int, dtype: Any, shape: Any) -> Any:
                values = super().read(address, dtype, shape)
                if self.last is not None and recorder.counts[self.last.test] <= MOST_OF_ONE:
                    self.last.reads.append((address, values.copy()))
                return values

        return RecordingDevice

    def record_module(self, module: Any) -> Any:
        """As `read`; remembers the text."""
        program = self.read(module)
        self.modules.append((program, str(module)))
        return program

    def record(self, module: Any, kernel: str, *, device: Any, **options: Any) -> None:
        """As `launch`."""
        image = device.memory.data.copy()
        image[device.memory.state != 0] = POISON
        device.last = None
        self.launch(module, kernel, device=device, **options)
        known = [text for program, text in self.modules if program is module]
        name = self.test.partition("[")[0]
        self.counts[name] += 1
        if self.counts[name] > MOST_OF_ONE or device._end > MOST_BYTES:
            return
        device.last = Case(
            self.test,
            known[0] if known else str(module),
            kernel,
            options["grid"],
            options["threads"],
            options.get("shared_bytes", 0),
            [int(a) for a in options["arguments"]],
            device.memory.base,
            image[: device._end],
        )
        self.cases.append(device.last)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.test = item.name

    def pytest_sessionfinish(self) -> None:
        """Assemble the modules and write the cases that read something."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = []
        for case in self.cases:
            if not case.reads or any(not isinstance(a, int) for a in case.arguments):
                continue
            name = hashlib.sha256(case.module.encode()).hexdigest()[:16]
            cubin = self.folder / f"{name}.cubin"
            if not cubin.exists():
                with ir.Context():
                    module = ir.Module.parse(f"module {{\n{case.module}\n}}")
                    (ptx,) = to_ptx(module, ARCH).values()
                assembled = assemble(ptx, ARCH)
                assert assembled is not None, "recording needs an assembler"
                cubin.write_bytes(assembled.code)
            number = len(written)
            arrays = {f"read{i}": values for i, (_, values) in enumerate(case.reads)}
            np.savez_compressed(self.folder / f"case{number}.npz", image=case.image, **arrays)
            keys = ("test", "kernel", "grid", "threads", "shared_bytes", "arguments", "base")
            facts = {key: getattr(case, key) for key in keys}
            written.append({**facts, "module": name, "reads": [a for a, _ in case.reads]})
        (self.folder / "cases.json").write_text(json.dumps(written, indent=1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-launches", metavar="FOLDER")


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--record-launches")
    if folder:
        config.pluginmanager.register(Recorder(Path(folder)))
