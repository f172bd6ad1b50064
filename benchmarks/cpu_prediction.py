"""Predicted beside measured on this CPU, for models whose shapes took no part in calibrating it.

Each model is compiled with the machine's profile (`infc calibrate` first; without one the figures
of the machine's class predict): prefill of prompts and decode after them. As in `infc bench`,
kernels of the calibration run in turns with the measured calls, so that a slow moment of a shared
machine can be told from a wrong prediction: `meanwhile` is what is predicted for a machine on which
these kernels take as long as they took. One model and prompt after the other: all their kernels at
once would take so much memory that large pages run out.

Decoding is greedy. A model of random weights (`--random`) decodes with all logits: what its best
tokens need of the vocabulary head is not what a language model's do.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from machine import describe_machine
from measure import busy_ticks
from rich.console import Console
from rich.table import Table

import infc
from infc.artifact import Artifact, open_artifact
from infc.driver import DisturbanceProbe, load, predict
from infc.driver.prediction import Output
from infc.driver.sample_text import sample_tokens
from infc.driver.simulation import turns_of
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session
from infc.target.runnable import Phase

HERE = Path(__file__).resolve().parent
PROMPTS = (128, 512)
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Sample:
    """One phase, once."""

    phase: str
    seconds: float
    busy: float
    """Share of all processor time that was used meanwhile, by anybody on this side."""


@dataclass
class Case:
    """A model on some threads behind some prompt, and what was measured of it."""

    name: str
    artifact: Artifact
    session: Session
    prompt: int
    tokens: int
    output: Output
    probe: DisturbanceProbe
    samples: list[Sample] = field(default_factory=list)

    def run(self, round_: int) -> list[Sample]:
        """Measure both phases once."""
        session, sampler = self.session, Sampler(SamplingOptions(temperature=0.0))
        # From another place on each round: what a vocabulary head reads depends on the text.
        ids = sample_tokens(session, self.prompt, 29 * round_)

        def prefill() -> None:
            if self.output == "argmax":
                session.prefill_next(ids, sampler)
            else:
                session.prefill(ids)

        def step(number: int) -> None:
            if self.output == "argmax":
                session.next_token(sampler)
            else:
                session.decode(ids[number % len(ids)])

        self.probe.begin()
        samples = [self._sample(Phase.PREFILL, [prefill])]
        steps = [partial(step, number) for number in range(self.tokens)]
        samples.append(self._sample(Phase.DECODE, steps))
        session.reset()
        return samples

    def _sample(self, phase: Phase, calls: Sequence[Callable[[], None]]) -> Sample:
        seconds, (busy, total) = 0.0, busy_ticks()
        for call in calls:
            start = time.perf_counter()
            call()
            passed = time.perf_counter() - start
            seconds += passed
            self.probe.passed(phase, passed)
        busy_after, total_after = busy_ticks()
        share = (busy_after - busy) / max(1, total_after - total)
        return Sample(phase.name.lower(), seconds, share)

    def summary(self) -> list[dict[str, Any]]:
        """Medians of the samples, beside the predictions."""
        threads = self.session.threads
        asked = {"prompt_tokens": self.prompt, "new_tokens": self.tokens, "threads": threads}
        slowdowns = self.probe.slowdowns()
        before = predict(self.artifact, **asked, output=self.output)
        then = predict(self.artifact, **asked, output=self.output, slowdowns=slowdowns)
        rows = []
        for phase in PHASES:
            own = [sample for sample in self.samples if sample.phase == phase]
            times = [sample.seconds for sample in own]
            expected, meanwhile = before[phase], then[phase]
            assert expected is not None
            assert meanwhile is not None
            rows.append(
                {
                    "model": self.name,
                    "threads": threads,
                    "phase": phase,
                    "prompt": self.prompt,
                    "output": self.output,
                    "measured": median(times),
                    "least": min(times),
                    "predicted": expected.seconds,
                    "low": expected.seconds_low,
                    "high": expected.seconds_high,
                    "slowdowns": asdict(slowdowns[phase]) if phase in slowdowns else None,
                    "meanwhile": meanwhile.seconds,
                    "error": expected.seconds / median(times) - 1.0,
                    "error_to_least": expected.seconds / min(times) - 1.0,
                    "error_meanwhile": meanwhile.seconds / median(times) - 1.0,
                    "busy": median(sample.busy for sample in own),
                    "samples": times,
                }
            )
        return rows


def measure_case(
    name: str,
    artifact: Artifact,
    output: Output,
    *,
    threads: int,
    prompt: int,
    tokens: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Both phases of a model behind one prompt."""
    session = load(artifact, threads=threads)
    turns = turns_of(session, prompt, tokens)
    # Maps pages and wakes threads.
    session.prefill(sample_tokens(session, prompt))
    session.decode(0)
    session.reset()
    with DisturbanceProbe(artifact, threads=threads, turns=turns, output=output) as probe:
        case = Case(name, artifact, session, prompt, tokens, output, probe)
        for round_ in range(1, rounds + 1):
            case.samples += case.run(round_)
        return case.summary()


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The summary as a table."""
    table = Table(
        "model", "threads", "phase", "ms", "least", "predicted", "error", "meanwhile", "busy"
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
            f"{100 * row['error_meanwhile']:+.0f}%",
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
    """Compile MODELS (files, or artifacts made with today's profile), measure them and write
    results/cpu-prediction-DATE.json."""
    console = Console()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        opened: dict[str, tuple[Artifact, Output]] = {}
        for model in (*models, *random):
            made = Path(folder, f"{model.stem}.infc")
            ready = model.suffix == ".infc"
            artifact = open_artifact(model) if ready else infc.compile(model, output=made)
            opened[model.stem] = artifact, "logits" if model in random else "argmax"
        for count, name, prompt in product(threads, opened, PROMPTS):
            console.print(f"{name}, prompt of {prompt}, {count} threads", highlight=False)
            rows += measure_case(
                name, *opened[name], threads=count, prompt=prompt, tokens=tokens, rounds=rounds
            )
    show(rows, console)
    errors = {key: [abs(row[key]) for row in rows] for key in ("error", "error_meanwhile")}
    inside = [row["low"] <= row["measured"] <= row["high"] for row in rows]
    record = {
        "schema_version": 2,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "mean_error": {key: float(np.mean(values)) for key, values in errors.items()},
        "largest_error": {key: float(np.max(values)) for key, values in errors.items()},
        "share_inside_bounds": float(np.mean(inside)),
        "summary": rows,
    }
    output = output or HERE / "results" / f"cpu-prediction-{record['date']}.json"
    output.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {output}", highlight=False)


if __name__ == "__main__":
    main()
