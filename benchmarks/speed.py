"""Tokens a second of infc beside another engine, in turns, with what the machine gave meanwhile.

A round measures decode on one engine, then on the other, then prefill likewise; whose turn is
first alternates. Each engine is a process that stays alive and warm (engines/protocol.py). Before
every sample a probe measures the read bandwidth, and the share of processor time that other
processes took is noted beside it: a sample from a busy machine can be told from a slow engine. A
sample that others disturbed is taken again, a few times at most; the quietest one counts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
from engines.protocol import Client
from machine import describe_machine
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
PHASES = ("decode", "prefill")


@dataclass(frozen=True)
class Workload:
    """What one sample runs.

    Attributes:
        prompt: tokens before decoding starts, not timed there.
        tokens: decoded tokens a sample.
        prefill: tokens of the timed prompt.
    """

    prompt: int
    tokens: int
    prefill: int


@dataclass(frozen=True)
class Sample:
    """One measurement and its circumstances.

    Attributes:
        others_busy: share of all processor time, during the sample, taken by processes other than
            the measured engine.
        read_bytes_per_s: of the probe, just before.
        int8_operations_per_s: of the probe, just before; None where it has no such instruction.
    """

    engine: str
    phase: str
    round: int
    seconds: float
    tokens_per_second: float
    others_busy: float
    read_bytes_per_s: float
    int8_operations_per_s: float | None


class Probe:
    """The C program beside this file, built for this machine; it reads 1 GiB."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._command = [str(folder / "probe"), str(threads), "1024"]
        source = str(HERE / "probes" / "probe.c")
        flags = ["-O2", "-march=native", "-pthread"]
        subprocess.run(["gcc", *flags, source, "-o", self._command[0]], check=True)

    def run(self) -> dict[str, Any]:
        done = subprocess.run(self._command, check=True, capture_output=True, text=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def busy_ticks() -> tuple[int, int]:
    """Clock ticks that all processors have spent working, and in all (man 5 proc_stat)."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def process_ticks(pid: int) -> int:
    """Clock ticks a process has spent working, in user and kernel mode."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])


def run_sample(
    engine: Client,
    name: str,
    phase: str,
    round_: int,
    probe: Probe,
    load: Workload,
    ids: list[int],
) -> Sample:
    """Measure one phase of one engine once."""
    machine = probe.run()
    busy, total, own = *busy_ticks(), process_ticks(engine.pid)
    if phase == "decode":
        seconds = engine.call("decode", ids=ids[: load.prompt], tokens=load.tokens)["seconds"]
        tokens = load.tokens
    else:
        seconds = engine.call("prefill", ids=ids[: load.prefill])["seconds"]
        tokens = load.prefill
    busy_after, total_after, own_after = *busy_ticks(), process_ticks(engine.pid)
    others = (busy_after - busy) - (own_after - own)
    return Sample(
        engine=name,
        phase=phase,
        round=round_,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        others_busy=max(0.0, others / max(1, total_after - total)),
        read_bytes_per_s=machine["read_bytes_per_s"],
        int8_operations_per_s=machine["int8_operations_per_s"],
    )


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


def decode_bytes(model: Path) -> int:
    """Bytes of weights a decoded token reads: every matrix once; the embedding is the head too."""
    reader = gguf.GGUFReader(model)
    names = {tensor.name for tensor in reader.tensors}
    skipped = "token_embd.weight" if "output.weight" in names else None
    return sum(int(t.n_bytes) for t in reader.tensors if t.name != skipped)


def summarise(samples: list[Sample], names: list[str], floor_bytes: int) -> dict[str, Any]:
    """Medians by engine and phase, ratios of each round's pair, and the floor of decoding."""
    summary: dict[str, Any] = {}
    for phase in PHASES:
        rates = {
            name: [s.tokens_per_second for s in samples if (s.engine, s.phase) == (name, phase)]
            for name in names
        }
        entry: dict[str, Any] = {
            "tokens_per_second": {name: statistics.median(rates[name]) for name in names},
            "best_tokens_per_second": {name: max(rates[name]) for name in names},
        }
        if len(names) == 2:
            ratios = [a / b for a, b in zip(rates[names[0]], rates[names[1]], strict=True)]
            entry["ratio_by_round"] = ratios
            entry["ratio"] = statistics.median(ratios)
        summary[phase] = entry
    bandwidth = statistics.median(s.read_bytes_per_s for s in samples)
    summary["read_bytes_per_s"] = bandwidth
    summary["others_busy"] = statistics.median(s.others_busy for s in samples)
    summary["decode"]["floor_bytes_per_token"] = floor_bytes
    summary["decode"]["floor_tokens_per_second"] = bandwidth / floor_bytes
    return summary


def print_summary(record: dict[str, Any], names: list[str]) -> None:
    """The figures as a table, the circumstances below it."""
    console = Console()
    machine, summary, load = record["machine"], record["summary"], record["workload"]
    table = Table(title=f"{record['model']['file']}, {record['date']}, tokens a second (median)")
    table.add_column("phase")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("ratio (each round)" if len(names) == 2 else "", justify="right")
    labels = {
        "decode": f"decode {load['tokens']} after {load['prompt']}",
        "prefill": f"prefill {load['prefill']}",
    }
    for phase in PHASES:
        rates = summary[phase]["tokens_per_second"]
        ratios = " ".join(f"{r:.2f}" for r in summary[phase].get("ratio_by_round", []))
        ratio = f"{summary[phase]['ratio']:.2f} ({ratios})" if ratios else ""
        table.add_row(labels[phase], *(f"{rates[n]:.1f}" for n in names), ratio)
    console.print(table)
    decode = summary["decode"]
    console.print(
        f"{machine['cpu']} {'/'.join(machine['family_model_stepping'])}, {machine['cores']} cores, "
        f"{record['threads']} threads; {', '.join(machine['extensions'])}"
    )
    console.print(
        f"read {summary['read_bytes_per_s'] / 1e9:.1f} GB/s, "
        f"others took {summary['others_busy']:.0%} of the processors; a decoded token reads at "
        f"least {decode['floor_bytes_per_token'] / 1e6:.1f} MB: at most "
        f"{decode['floor_tokens_per_second']:.1f} a second"
    )
    for about in record["engines"]:
        console.print(f"{about['name']}: {about['version']}", highlight=False)


def random_prompt(vocab_limit: int, length: int) -> list[int]:
    """A beginning-of-text token and random ids: what they are does not change the work."""
    return [2, *np.random.default_rng(512).integers(1000, vocab_limit, length - 1).tolist()]


def measure(
    commands: dict[str, str], threads: int, load: Workload, rounds: int, attempts: int, quiet: float
) -> tuple[list[dict[str, Any]], list[Sample]]:
    """Run all rounds: what the engines say they are, and the samples in the order taken."""
    ids = random_prompt(200_000, max(load.prompt, load.prefill))
    samples: list[Sample] = []
    with ExitStack() as stack:
        probe = Probe(Path(stack.enter_context(tempfile.TemporaryDirectory())), threads)
        engines = {
            name: stack.enter_context(Client(shlex.split(command)))
            for name, command in commands.items()
        }
        abouts = [{"name": name, **engine.call("hello")} for name, engine in engines.items()]
        for engine in engines.values():
            engine.call("prefill", ids=ids[: load.prefill])
            engine.call("decode", ids=ids[: load.prompt], tokens=8)
        for round_ in range(rounds):
            turn = list(engines) if round_ % 2 == 0 else list(engines)[::-1]
            samples += [
                run_quietest(
                    attempts,
                    quiet,
                    engine=engines[name],
                    name=name,
                    phase=phase,
                    round_=round_,
                    probe=probe,
                    load=load,
                    ids=ids,
                )
                for phase in PHASES
                for name in turn
            ]
        for about in abouts:
            about["resident_bytes"] = engines[about["name"]].resident_bytes()
    return abouts, samples


def file_name(record: dict[str, Any]) -> str:
    """`speed-DATE-CPU.json`."""
    machine = record["machine"]
    cpu = re.sub(r"\((r|tm)\)", "", machine["cpu"].lower())
    words = [*re.findall(r"[a-z0-9]+", cpu), *machine["family_model_stepping"]]
    return f"speed-{record['date']}-{'-'.join(words)}.json"


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option(
    "--engine",
    "named_commands",
    multiple=True,
    required=True,
    metavar="NAME=COMMAND",
    help="A name and the command that serves the model (engines/protocol.py); one or two.",
)
@click.option("--threads", default=2, show_default=True, help="Of the engines; noted and probed.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--attempts", default=4, show_default=True, help="At a sample, while others disturb.")
@click.option("--quiet", default=0.05, show_default=True, help="Share of time others may take.")
@click.option("--prompt", default=32, show_default=True, help="Tokens before decoding.")
@click.option("--tokens", default=64, show_default=True, help="Decoded tokens a sample.")
@click.option("--prefill", default=512, show_default=True, help="Prompt tokens of a sample.")
@click.option("--output", type=click.Path(path_type=Path), default=None)
def main(
    model: Path,
    named_commands: tuple[str, ...],
    threads: int,
    rounds: int,
    attempts: int,
    quiet: float,
    prompt: int,
    tokens: int,
    prefill: int,
    output: Path | None,
) -> None:
    """Measure in turns, print a table and write results/speed-DATE-CPU.json."""
    load = Workload(prompt, tokens, prefill)
    commands = dict(named.split("=", 1) for named in named_commands)
    abouts, samples = measure(commands, threads, load, rounds, attempts, quiet)
    record = {
        "schema_version": 1,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "model": {"file": model.name, "sha256": hashlib.sha256(model.read_bytes()).hexdigest()},
        "threads": threads,
        "workload": asdict(load),
        "engines": abouts,
        "summary": summarise(samples, list(commands), decode_bytes(model)),
        "samples": [asdict(sample) for sample in samples],
    }
    print_summary(record, list(commands))
    output = output or HERE / "results" / file_name(record)
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
