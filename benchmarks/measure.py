"""One sample of one engine, with what the machine gave meanwhile.

Around every sample a probe measures the read bandwidth and the peaks of the dot products, and the
share of processor time that other processes took is noted beside it: a sample from a busy machine
can be told from a slow engine.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.protocol import Client

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Workload:
    """What one sample runs.

    Attributes:
        phase: `prefill` times the prompt, `decode` the tokens after it.
        prompt: tokens of the prompt, its beginning-of-text token included.
        tokens: tokens the clock covers: the prompt, or those decoded after it.
    """

    phase: Literal["prefill", "decode"]
    prompt: int
    tokens: int

    @property
    def name(self) -> str:
        """As in the tables: `prefill 512`, `decode after 512`."""
        return f"{self.phase}{' after' if self.phase == 'decode' else ''} {self.prompt}"


@dataclass(frozen=True)
class Sample:
    """One measurement and its circumstances.

    Attributes:
        workload: its name.
        others_busy: share of all processor time, during the sample, taken by processes other than
            the measured engine.
        machine: the mean of what the probe printed just before and just after (probes/probe.c).
    """

    engine: str
    threads: int
    workload: str
    round: int
    seconds: float
    tokens_per_second: float
    others_busy: float
    machine: dict[str, float | None]


class Probe:
    """probes/probe.c, built for this machine; it reads 1 GiB."""

    def __init__(self, folder: Path) -> None:
        self._program = str(folder / "probe")
        source = str(HERE / "probes" / "probe.c")
        flags = ["-O2", "-march=native", "-pthread"]
        subprocess.run(["gcc", *flags, source, "-o", self._program], check=True)

    def run(self, threads: int) -> dict[str, float | None]:
        """Bytes and operations a second of so many threads together."""
        command = [self._program, str(threads), "1024"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        answer: dict[str, float | None] = json.loads(done.stdout)
        return answer


def run_workload(engine: Client, workload: Workload, ids: list[int]) -> float:
    """Seconds of the timed part, on a cleared cache."""
    prompt = ids[: workload.prompt]
    if workload.phase == "prefill":
        return float(engine.call("prefill", ids=prompt)["seconds"])
    return float(engine.call("decode", ids=prompt, tokens=workload.tokens)["seconds"])


def run_sample(
    engine: Client,
    name: str,
    threads: int,
    workload: Workload,
    round_: int,
    probe: Probe,
    ids: list[int],
) -> Sample:
    """Measure one workload of one engine once."""
    before = probe.run(threads)
    busy, total, own = *busy_ticks(), process_ticks(engine.pid)
    seconds = run_workload(engine, workload, ids)
    busy_after, total_after, own_after = *busy_ticks(), process_ticks(engine.pid)
    after = probe.run(threads)
    machine = {name: _mean(value, after[name]) for name, value in before.items()}
    others = (busy_after - busy) - (own_after - own)
    return Sample(
        engine=name,
        threads=threads,
        workload=workload.name,
        round=round_,
        seconds=seconds,
        tokens_per_second=workload.tokens / seconds,
        others_busy=max(0.0, others / max(1, total_after - total)),
        machine=machine,
    )


def _mean(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2


def run_quietest(attempts: int, quiet: float, **arguments: Any) -> Sample:
    """The first sample that others disturbed by less than `quiet`, or the least disturbed."""
    best: Sample | None = None
    for _ in range(attempts):
        sample = run_sample(**arguments)
        if best is None or sample.others_busy < best.others_busy:
            best = sample
        if best.others_busy < quiet:
            break
    assert best is not None
    return best


def busy_ticks() -> tuple[int, int]:
    """Clock ticks that all processors have spent working, and in all (man 5 proc_stat)."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def process_ticks(pid: int) -> int:
    """Clock ticks a process has spent working, in user and kernel mode."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])
