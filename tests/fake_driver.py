"""A driver that answers the command line from a fake model."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fake_model import ScriptedRunnable, make_tokenizer

from infc.memory.fit import FitReport
from infc.pipeline.passes import Remark
from infc.runtime import Session
from infc.target.runnable import Phase

REMARKS = [
    Remark("fuse-kernels", 'loc("layers.0.rope")', "needs whole rows"),
    Remark("quantize-activations", "loc(unknown)", "weights are kept as f32"),
    Remark("fuse-kernels", 'loc("layers.0.rope")', "needs whole rows"),
]
PROMPT_TOKENS = len(["<bos>", "H", "i"])


class FakeProbe:
    """Finds that the machine is as slow as it is told."""

    unavailable = ""

    def __init__(self, slowdowns: Mapping[str, float]) -> None:
        self._slowdowns = slowdowns

    def __enter__(self) -> "FakeProbe":
        return self

    def __exit__(self, *error: object) -> None: ...

    def begin(self) -> None: ...

    def passed(self, phase: Phase, seconds: float) -> None: ...

    def slowdowns(self) -> Mapping[str, float]:
        return self._slowdowns


class FakeDriver(SimpleNamespace):
    """`infc.driver` as the command line uses it; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(calls=[], text="there", runnable=None, fit=None, slowdowns={})

    def load(self, source: Any, *, threads: int | None = None) -> Session:
        self.calls.append(("load", source, threads))
        runnable = self.runnable or ScriptedRunnable(PROMPT_TOKENS, self.text.encode())
        template = "{{ bos_token }}{{ messages[0].content }}"
        return Session(runnable, make_tokenizer(template), threads=threads or 2)

    def cached_compile(self, model: Path, *, progress: Any = None) -> Any:
        self.calls.append(("cached_compile", model, progress))
        return ARTIFACT

    def compile(self, model: Path, **options: Any) -> Any:
        options["remarks"] += REMARKS
        self.calls.append(("compile", model, options))
        return ARTIFACT

    def program_notes(self, artifact: Any) -> tuple[str, ...]:
        return ("the code is slow",) if artifact is ARTIFACT else ()

    def artifact_fit(self, artifact: Any) -> FitReport | None:
        assert artifact is ARTIFACT
        return self.fit

    def DisturbanceProbe(self, artifact: Any, **calls: Any) -> Any:
        self.calls.append(("DisturbanceProbe", artifact, sorted(calls)))
        return FakeProbe(self.slowdowns)

    def predict(
        self, artifact: Any, *, slowdowns: Mapping[str, float] | None = None, **workload: int
    ) -> dict[str, Any]:
        self.calls.append(("predict", artifact, workload))
        slow = (slowdowns or {}).get("prefill", 1.0)
        estimate = SimpleNamespace(
            seconds=0.25 * slow,
            seconds_low=0.2 * slow,
            seconds_high=float("inf"),
            bytes=float(170 << 20),
            operations=3.4e9,
            bound="memory",
        )
        return {"prefill": estimate, "decode": None}

    def run_opt(self, source: str, pipeline: str, *, location: str, remarks: list[Remark]) -> str:
        remarks += REMARKS
        self.calls.append(("run_opt", source, pipeline, location))
        return "module {}\n"

    def explain(self, path: Path, *, threads: int | None = None) -> Any:
        self.calls.append(("explain", path, threads))
        kernel = SimpleNamespace(
            program="decode",
            kernel="mlp",
            location="layers.0",
            launches=18,
            bytes=2048,
            operations=1_500_000,
            bound="memory",
            floor_seconds=0.0012,
            predicted_seconds=0.0015,
            measured_seconds=0.0024 if threads else None,
            floor_reached=0.5 if threads else None,
        )
        buffer = SimpleNamespace(
            program="decode",
            function="main",
            space="arena",
            buffer="%hidden",
            offset_bytes=64,
            size_bytes=2560,
            first_launch=0,
            last_launch=3,
        )
        cache = SimpleNamespace(dtype="f16", slots=1, size_bytes=4096)
        code = SimpleNamespace(
            program="decode",
            function="step",
            threads=288,
            registers=168,
            local_bytes=48,
            shared_bytes=2048,
        )
        unassembled = SimpleNamespace(
            **{**vars(code), "function": "mlp", "registers": None, "local_bytes": None}
        )
        program = SimpleNamespace(
            program="decode",
            target="toy:a",
            tokens=1,
            predicted_seconds=0.0015,
            predicted_seconds_low=0.001,
            predicted_seconds_high=0.002,
            measured_seconds=0.0024 if threads else None,
        )
        return SimpleNamespace(
            programs=[program],
            kernels=[kernel],
            ops=[],
            code=[code, unassembled],
            buffers=[buffer],
            kv_cache=cache,
            unmeasured="" if threads else "there is no device to run on: none",
            notes=["the code is slow"],
        )


ARTIFACT = SimpleNamespace(
    manifest=SimpleNamespace(
        digest="c0ffee",
        quantization={},
        options={"quantize": "keep"},
        targets={"prefill": {"name": "toy:a"}, "decode": {"name": "toy:a"}},
    )
)
