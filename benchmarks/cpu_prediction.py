"""Predicted beside measured on this CPU, for models whose shapes took no part in calibrating it.

Each model is compiled with the machine's profile (`infc calibrate` first; without one the figures
of the machine's class predict), and runs in turns with the others: prefill of prompts and decode
after them. Before and after every phase a probe reads and multiplies, so that a slow moment of a
shared machine can be told from a wrong prediction: `scaled` predictions are those of a machine with
the bandwidth that the probe got on average, where that is less than the profile's, and the part of
its peak.

Decoding is greedy. A model of random weights (`--random`) decodes with all logits: what its best
tokens need of the vocabulary head is not what a language model's do.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from machine import describe_machine
from measure import Probe, busy_ticks
from rich.console import Console
from rich.table import Table

import infc
from infc.artifact import Artifact, open_artifact
from infc.cost.peaks import memory_bandwidth
from infc.diagnostics import UserError
from infc.driver import load, predict
from infc.driver.prediction import Output, predict_on
from infc.driver.quality import sample_text
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session
from infc.target.schema import Target

HERE = Path(__file__).resolve().parent
PROMPTS = (128, 512)
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Sample:
    """One phase, once.

    Attributes:
        bytes_per_s: that the probe read on average, the mean of before and after.
        int8_share: of the fastest product, what it got on average, likewise.
        busy: share of all processor time that was used meanwhile, by anybody.
    """

    model: str
    threads: int
    phase: str
    prompt: int
    seconds: float
    bytes_per_s: float
    int8_share: float
    busy: float


def prompt_tokens(session: Session, count: int, seed: int) -> list[int]:
    """Natural text from another place on each round, over and over, as what a vocabulary head reads
    depends on it; random tokens where a model has no tokenizer."""
    try:
        text = session.tokenizer.encode(sample_text())
    except UserError:
        return list(np.random.default_rng(seed).integers(session.vocab_size, size=count).tolist())
    start = 29 * seed % len(text)
    return [text[(start + i) % len(text)] for i in range(count)]


def run_samples(
    name: str, session: Session, prompt: int, tokens: int, output: Output, probe: Probe, seed: int
) -> list[Sample]:
    """Measure both phases once."""
    ids = prompt_tokens(session, prompt, seed)
    sampler = Sampler(SamplingOptions(temperature=0.0))

    def prefill() -> None:
        if output == "argmax":
            session.prefill_next(ids, sampler)
        else:
            session.prefill(ids)

    def decode() -> None:
        for i in range(tokens):
            if output == "argmax":
                session.next_token(sampler)
            else:
                session.decode(ids[i % len(ids)])

    samples = []
    before = probe.run(session.threads)
    for phase, run in zip(PHASES, (prefill, decode), strict=True):
        busy, total = busy_ticks()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        busy_after, total_after = busy_ticks()
        after = probe.run(session.threads)
        probed = [machine_share(found) for found in (before, after)]
        samples.append(
            Sample(
                model=name,
                threads=session.threads,
                phase=phase,
                prompt=prompt,
                seconds=seconds,
                bytes_per_s=sum(read for read, _ in probed) / 2,
                int8_share=sum(part for _, part in probed) / 2,
                busy=(busy_after - busy) / max(1, total_after - total),
            )
        )
        before = after
    session.reset()
    return samples


def machine_share(found: dict[str, float | None]) -> tuple[float, float]:
    """Bytes a second read on average, and the part of the fastest product."""
    read, share = found["read_bytes_per_s"], found["read_share"]
    assert read is not None
    assert share is not None
    return read * share, found["int8_share"] or 1.0


def disturbed(target: Target, read_share: float, int8_share: float) -> Target:
    """A target of whose bandwidth and arithmetic others take a part."""
    holding = target.holding_memory()
    slower = {
        name: getattr(holding, name) * read_share
        for name in ("bandwidth_bytes_per_s", "unit_bandwidth_bytes_per_s")
        if getattr(holding, name) is not None
    }
    memories = [
        memory.model_copy(update=slower) if memory == holding else memory
        for memory in target.memories
    ]
    compute = [
        unit.model_copy(
            update={
                "operations_per_s": {
                    dtype: rate * int8_share for dtype, rate in unit.operations_per_s.items()
                }
            }
        )
        for unit in target.compute
    ]
    return target.model_copy(update={"memories": tuple(memories), "compute": tuple(compute)})


def summarise(
    artifact: Artifact, samples: list[Sample], tokens: int, output: Output
) -> list[dict[str, Any]]:
    """Medians of the samples of one model on so many threads, beside the predictions."""
    rows = []
    target = Target.from_json(json.dumps(artifact.manifest.targets["decode"]))
    for prompt, phase in product(PROMPTS, PHASES):
        own = [sample for sample in samples if (sample.prompt, sample.phase) == (prompt, phase)]
        threads = own[0].threads
        asked = {"prompt_tokens": prompt, "new_tokens": tokens, "threads": threads}
        peak = memory_bandwidth(target.holding_memory(), target, threads)
        read_share = min(1.0, median(sample.bytes_per_s for sample in own) / peak)
        int8_share = median(sample.int8_share for sample in own)
        expected = predict(artifact, **asked, output=output)[phase]
        slower = disturbed(target, read_share, int8_share)
        then = predict_on(artifact, slower, **asked, output=output)[phase]
        assert expected is not None
        assert then is not None
        times = [sample.seconds for sample in own]
        rows.append(
            {
                "model": own[0].model,
                "threads": threads,
                "phase": phase,
                "prompt": prompt,
                "output": output,
                "measured": median(times),
                "least": min(times),
                "predicted": expected.seconds,
                "low": expected.seconds_low,
                "high": expected.seconds_high,
                "scaled": then.seconds,
                "error": expected.seconds / median(times) - 1.0,
                "error_to_least": expected.seconds / min(times) - 1.0,
                "error_scaled": then.seconds / median(times) - 1.0,
                "read_share": read_share,
                "int8_share": int8_share,
                "busy": median(sample.busy for sample in own),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The summary as a table."""
    table = Table(
        "model", "threads", "phase", "ms", "least", "predicted", "error", "scaled", "busy"
    )
    for row in rows:
        table.add_row(
            row["model"],
            str(row["threads"]),
            f"{row['phase']} {row['prompt']}",
            f"{1e3 * row['measured']:.1f}",
            f"{1e3 * row['least']:.1f}",
            f"{1e3 * row['predicted']:.1f}",
            f"{100 * row['error']:+.0f}%",
            f"{100 * row['error_scaled']:+.0f}%",
            f"{100 * row['busy']:.0f}%",
        )
    console.print(table)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--random",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="One more model, whose weights are random. Repeatable.",
)
@click.option("--threads", multiple=True, default=(1, 2), show_default=True, help="Repeatable.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Decoded tokens a sample.")
@click.option("--output", type=click.Path(path_type=Path))
def main(
    models: tuple[Path, ...],
    random: tuple[Path, ...],
    threads: tuple[int, ...],
    rounds: int,
    tokens: int,
    output: Path | None,
) -> None:
    """Compile MODELS (files, or artifacts made with today's profile), measure them in turns and
    write results/cpu-prediction-DATE.json."""
    console = Console()
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Probe(Path(folder))
        artifacts: dict[str, Artifact] = {}
        outputs: dict[str, Output] = {model.stem: "argmax" for model in models}
        outputs |= {model.stem: "logits" for model in random}
        for model in (*models, *random):
            made = Path(folder, f"{model.stem}.infc")
            ready = model.suffix == ".infc"
            artifacts[model.stem] = (
                open_artifact(model) if ready else infc.compile(model, output=made)
            )
        for count in threads:
            sessions = {name: load(opened, threads=count) for name, opened in artifacts.items()}
            for round_ in range(rounds + 1):
                console.print(f"round {round_} of {rounds}, {count} threads", highlight=False)
                for prompt in PROMPTS:
                    for name, session in sessions.items():
                        found = run_samples(
                            name, session, prompt, tokens, outputs[name], probe, round_
                        )
                        if round_:  # the first one maps pages and wakes threads
                            samples += found
            for name, opened in artifacts.items():
                own = [s for s in samples if (s.model, s.threads) == (name, count)]
                rows += summarise(opened, own, tokens, outputs[name])
    show(rows, console)
    errors = {key: [abs(row[key]) for row in rows] for key in ("error", "error_scaled")}
    inside = [row["low"] <= row["measured"] <= row["high"] for row in rows]
    record = {
        "schema_version": 1,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "mean_error": {key: float(np.mean(values)) for key, values in errors.items()},
        "largest_error": {key: float(np.max(values)) for key, values in errors.items()},
        "share_inside_bounds": float(np.mean(inside)),
        "summary": rows,
        "samples": [asdict(sample) for sample in samples],
    }
    output = output or HERE / "results" / f"cpu-prediction-{record['date']}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {output}", highlight=False)


if __name__ == "__main__":
    main()
