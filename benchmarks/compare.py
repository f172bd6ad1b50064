"""infc beside other engines on one model: speed, memory, loading, and quality, in turns.

A round runs every workload on every engine; whose turn is first rotates. Each engine is a process
that stays alive and warm (engines/protocol.py), each round has another prompt, and the same prompt
for all. A sample that other processes disturbed is taken again, a few times at most; the quietest
one counts. Medians are over the rounds, ratios over each round's pair.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
from engines.protocol import Client, EngineError
from machine import describe_machine
from measure import Probe, Sample, Workload, run_quietest, run_workload
from quality import compare, engine_logits
from rich.console import Console
from summary import print_record, summarise

HERE = Path(__file__).resolve().parent
FULL = (128, 512, 2048), (1, 512, 4096)
QUICK = (512,), (512,)


@dataclass(frozen=True)
class Plan:
    """How much is measured, and how patiently.

    Attributes:
        workloads: of every engine, in every round.
        attempts: at a sample, while others take `quiet` of the processors' time or more.
    """

    workloads: list[Workload]
    rounds: int
    attempts: int
    quiet: float


@dataclass
class Running:
    """An engine at work.

    Attributes:
        ready_seconds: from starting its process to its first answer.
        able: the workloads it can run.
        refused: by workload, what it said to those it cannot.
    """

    client: Client
    about: dict[str, Any]
    ready_seconds: float
    able: list[Workload] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def prompts(text_ids: list[int], length: int, rounds: int) -> list[list[int]]:
    """A prompt for each round: the beginning-of-text token, then the text from another place on."""
    begin, *text = text_ids
    ids = np.array(text)
    starts = [round_ * len(text) // rounds for round_ in range(rounds)]
    return [[begin, *np.resize(np.roll(ids, -start), length - 1).tolist()] for start in starts]


def start_engine(command: list[str], stack: ExitStack) -> Running:
    """Start a process and wait until its model is loaded."""
    started = time.perf_counter()
    client = stack.enter_context(Client(command))
    about = client.call("hello")
    return Running(client, about, time.perf_counter() - started)


def warm_up(running: Running, workloads: list[Workload], ids: list[int]) -> None:
    """Run each workload once; one that the engine refuses is left out from then on.

    Raises:
        EngineError: the engine died of one.
    """
    for workload in workloads:
        try:
            run_workload(running.client, workload, ids)
        except EngineError as error:
            if not running.client.alive:
                raise
            running.refused[workload.name] = str(error)
        else:
            running.able.append(workload)


def run_rounds(
    engines: dict[str, Running],
    threads: int,
    plan: Plan,
    probe: Probe,
    ids: list[list[int]],
    console: Console,
) -> list[Sample]:
    """All rounds on engines that are warm; the samples in the order taken."""
    samples = []
    names = list(engines)
    for round_ in range(plan.rounds):
        console.print(f"round {round_ + 1} of {plan.rounds}, {threads} threads", highlight=False)
        first = round_ % len(names)
        for workload in plan.workloads:
            for name in names[first:] + names[:first]:
                if workload not in engines[name].able:
                    continue
                sample = run_quietest(
                    plan.attempts,
                    plan.quiet,
                    engine=engines[name].client,
                    name=name,
                    threads=threads,
                    workload=workload,
                    round_=round_,
                    probe=probe,
                    ids=ids[round_],
                )
                samples.append(sample)
    return samples


def measure(
    commands: dict[str, str], threads: int, plan: Plan, text: str, console: Console
) -> tuple[list[dict[str, Any]], list[Sample]]:
    """One thread count: what the engines are and need, and the samples."""
    with ExitStack() as stack:
        probe = Probe(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        engines: dict[str, Running] = {}
        for name, command in commands.items():
            engines[name] = start_engine([*shlex.split(command), "--threads", str(threads)], stack)
        text_ids = next(iter(engines.values())).client.call("tokenize", text=text)["ids"]
        longest = max(workload.prompt for workload in plan.workloads)
        ids = prompts(text_ids, longest, plan.rounds)
        for name, running in engines.items():
            console.print(f"warming up {name}, {threads} threads", highlight=False)
            warm_up(running, plan.workloads, ids[-1])
        samples = run_rounds(engines, threads, plan, probe, ids, console)
        abouts = [
            {
                "name": name,
                **running.about,
                "ready_seconds": running.ready_seconds,
                "peak_resident_bytes": running.client.peak_resident_bytes(),
                "refused": running.refused,
            }
            for name, running in engines.items()
        ]
    return abouts, samples


def qualities(commands: dict[str, str], threads: int, oracle: Path) -> dict[str, Any]:
    """By engine: divergence from the oracle of whole prompts, and of one token after the other."""
    texts: dict[str, list[int]] = json.loads((HERE / "texts" / "ids.json").read_text())["ids"]
    expected = np.load(oracle)
    result: dict[str, Any] = {}
    for name, command in commands.items():
        _, logits = engine_logits(f"{command} --threads {threads}", texts)
        result[name] = {form: compare(expected, rows, texts) for form, rows in logits.items()}
    return result


def work_of(model: Path) -> dict[str, int]:
    """What a token takes: bytes of every matrix once; 2 operations a weight outside the head.

    A prompt's tokens but the last need no head. The embedding is read as a head only where the
    file has no other.
    """
    reader = gguf.GGUFReader(model)
    head = "output.weight"
    if all(tensor.name != head for tensor in reader.tensors):
        head = "token_embd.weight"
    layers = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.")]
    read = sum(int(t.n_bytes) for t in reader.tensors if t.name == head or t in layers)
    matrices = [tensor for tensor in layers if len(tensor.shape) > 1]
    operations = 2 * sum(int(tensor.n_elements) for tensor in matrices)
    return {"decode_bytes": read, "prefill_operations": operations}


def file_name(record: dict[str, Any]) -> str:
    """`compare-DATE-MODEL-CPU.json`."""
    machine = record["machine"]
    cpu = re.sub(r"\((r|tm)\)", "", machine["cpu"].lower())
    words = [*re.findall(r"[a-z0-9]+", cpu), *machine["family_model_stepping"]]
    model = Path(record["model"]["file"]).stem
    return f"compare-{record['date']}-{model}-{'-'.join(words)}.json"


@click.command()
@click.option("--model", type=click.Path(exists=True, path_type=Path), required=True)
@click.option(
    "--engine",
    "named_commands",
    multiple=True,
    required=True,
    metavar="NAME=COMMAND",
    help="A name and the command that serves the model, without --threads; may be repeated. "
    "The first is the one that the others are compared with, and makes the prompts' tokens.",
)
@click.option("--threads", multiple=True, default=(1, 2), show_default=True, help="Repeatable.")
@click.option("--quick", is_flag=True, help="Prefill 512 and decode after 512 only, 3 rounds.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Decoded tokens a sample.")
@click.option("--attempts", default=3, show_default=True, help="At a sample, while others disturb.")
@click.option("--quiet", default=0.05, show_default=True, help="Share of time others may take.")
@click.option(
    "--text",
    type=click.Path(exists=True, path_type=Path),
    default=HERE.parent / "docs" / "design.md",
    help="What the prompts are made of.  [default: the project's docs/design.md]",
)
@click.option(
    "--oracle",
    type=click.Path(exists=True, path_type=Path),
    help="Logits from oracle_logits.py; without it quality is not measured.",
)
@click.option("--output", type=click.Path(path_type=Path))
def main(
    model: Path,
    named_commands: tuple[str, ...],
    threads: tuple[int, ...],
    quick: bool,
    rounds: int,
    tokens: int,
    attempts: int,
    quiet: float,
    text: Path,
    oracle: Path | None,
    output: Path | None,
) -> None:
    """Measure in turns, print tables and write results/compare-DATE-MODEL-CPU.json."""
    console = Console()
    prefills, decodes = QUICK if quick else FULL
    workloads = [Workload("prefill", n, n) for n in prefills]
    workloads += [Workload("decode", n, tokens) for n in decodes]
    plan = Plan(workloads, min(rounds, 3) if quick else rounds, attempts, quiet)
    commands = dict(named.split("=", 1) for named in named_commands)
    words = text.read_text()
    engines: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    try:
        if oracle is not None:
            console.print("comparing logits with the oracle's")
            measured_quality = qualities(commands, threads[-1], oracle)
        for count in threads:
            # What the engines are is kept of the last thread count.
            engines, measured = measure(commands, count, plan, words, console)
            samples += [asdict(sample) for sample in measured]
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    if oracle is not None:
        engines = [{**engine, "quality": measured_quality[engine["name"]]} for engine in engines]
    work = work_of(model)
    record = {
        "schema_version": 2,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "model": {
            "file": model.name,
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            **work,
        },
        "text_sha256": hashlib.sha256(words.encode()).hexdigest(),
        "plan": asdict(plan),
        "engines": engines,
        "summary": summarise(samples, next(iter(commands)), work),
        "samples": samples,
    }
    print_record(record, console)
    output = output or HERE / "results" / file_name(record)
    output.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {output}", highlight=False)


if __name__ == "__main__":
    main()
