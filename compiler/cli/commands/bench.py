"""`infc bench`: how fast an artifact is, beside what was predicted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infc.cli.output import print_json, write_text
from infc.cli.progress import progress_bar
from infc.cli.tables import print_table
from infc.cli.units import human_bytes, human_count, human_seconds
from infc.diagnostics import count

if TYPE_CHECKING:
    from infc.driver import PhasePrediction
    from infc.driver.simulation import PhaseTime
    from infc.runtime.session import Session

EPILOG = """\b
Examples:
  infc bench model.infc
  infc bench model.infc --prompt-tokens 512 --new-tokens 128 --threads 2 --json
  infc bench chip.infc --prompt-tokens 64 --trace trace.json

Seconds, bytes and operations are for all tokens of a phase together; measured ones are the median
of three runs through a page of text, after a short one that is not counted.

Where the machine was calibrated when the artifact was compiled, predictions are those of a machine
with nothing else to do. Kernels of the calibration run in turns with the measured calls, and tell
how many times slower the machine was meanwhile and what is predicted for such a one.

Where the target is a simulated machine, measured seconds are its own, as the simulator counts them,
not those that the simulator takes; long decoding is timed at eight contexts that stand for all. The
trace has one call of each phase, unit by unit; ui.perfetto.dev opens it.
"""


@click.command("bench", epilog=EPILOG, short_help="Measure an artifact beside its prediction.")
@click.argument("artifact", metavar="ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=512,
    show_default=True,
    help="Tokens to prefill.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=128,
    show_default=True,
    help="Tokens to decode after them.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to run with.  [default: one a physical core that this process may use]",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what every unit of a simulated machine does during one call of each phase.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_command(
    artifact: Path,
    prompt_tokens: int,
    new_tokens: int,
    threads: int | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Measure an artifact and print the prediction beside it."""
    from infc import driver
    from infc.artifact import open_artifact
    from infc.artifact.output import check_output
    from infc.cli.memory import OwnMemory
    from infc.driver.simulation import time_phases, turns_of
    from infc.driver.timeline import check_simulated

    if trace is not None:
        check_output(trace, folder=False, inputs=[artifact])
    start = time.perf_counter()
    opened = open_artifact(artifact)
    session = driver.load(opened, threads=threads)
    load_seconds = time.perf_counter() - start
    if trace is not None:
        check_simulated(opened, session)
    turns, memory = turns_of(session, prompt_tokens, new_tokens), OwnMemory()
    with ExitStack() as stack:
        with progress_bar() as progress:  # gone before anything is measured
            probe = driver.DisturbanceProbe(
                opened, threads=session.threads, turns=turns, progress=progress
            )
            stack.enter_context(probe)
        memory.measuring()
        times = time_phases(session, prompt_tokens, new_tokens, probe)
        peak_bytes, resident = memory.peak_bytes(), memory.resident()
    predict = partial(
        driver.predict,
        opened,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        threads=session.threads,
    )
    slowdowns = probe.slowdowns()
    predicted, meanwhile = predict(), predict(slowdowns=slowdowns)
    targets = opened.manifest.targets
    names = sorted({str(facts["name"]) for facts in targets.values()})
    report: dict[str, Any] = {
        **{
            phase: _phase(
                tokens,
                times[phase],
                predicted[phase],
                meanwhile[phase] if phase in slowdowns else None,
            )
            for phase, tokens in (("prefill", prompt_tokens), ("decode", new_tokens))
        },
        "peak_memory_bytes": peak_bytes,
        "resident_mapped_bytes": resident.mapped_bytes,
        "resident_private_bytes": resident.private_bytes,
        "planned_memory_bytes": session.planned_memory_bytes,
        "load_seconds": load_seconds,
        "threads": session.threads,
        "target": "+".join(names),
        "assumptions": [],
    }
    report["assumptions"] = [*_assumptions(report, probe.unavailable), *_timed_at(times)]
    left_out = None if trace is None else _write_trace(trace, session, prompt_tokens)
    if as_json:
        print_json(report)
        return
    _print_for_people(report)
    if left_out is not None:
        cut = f", {left_out} events left out" if left_out else ""
        write_text(f"{trace}: one call of each simulated phase, for ui.perfetto.dev{cut}\n")


def _write_trace(path: Path, session: Session, prompt_tokens: int) -> int:
    from infc.artifact.output import whole_file
    from infc.driver.timeline import write_timeline

    with whole_file(path) as file:
        return write_timeline(file, session, prompt_tokens)


def _phase(
    tokens: int,
    time: PhaseTime,
    predicted: PhasePrediction | None,
    meanwhile: PhasePrediction | None,
) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "measured": {
            "seconds": time.seconds,
            "tokens_per_second": tokens / time.seconds,
            "clock": time.clock,
        },
        "predicted": _seconds(predicted),
        "predicted_meanwhile": {
            "slowdown": predicted and meanwhile and meanwhile.seconds / predicted.seconds,
            **_seconds(meanwhile),
        },
        "bytes": predicted and round(predicted.bytes),
        "operations": predicted and round(predicted.operations),
        "bound": predicted and predicted.bound,
    }


def _seconds(predicted: PhasePrediction | None) -> dict[str, float | None]:
    names = ("seconds", "seconds_low", "seconds_high")
    return {name: None if predicted is None else getattr(predicted, name) for name in names}


def _assumptions(report: dict[str, Any], unavailable: str) -> list[str]:
    """Why each null is null."""
    uncalibrated = f"the target was not calibrated with {count(report['threads'], 'thread')}"
    notes = [
        f"{phase}.predicted, bytes, operations, bound: the artifact holds no cost estimate"
        for phase in ("prefill", "decode")
        if report[phase]["bound"] is None
    ]
    notes += [
        f"{phase}.predicted_meanwhile: {unavailable or uncalibrated}"
        for phase in ("prefill", "decode")
        if report[phase]["predicted_meanwhile"]["seconds"] is None
    ]
    notes += [
        f"{key}: this system does not tell it"
        for key in ("peak_memory_bytes", "resident_mapped_bytes", "resident_private_bytes")
        if report[key] is None
    ]
    return notes


def _timed_at(times: Mapping[str, PhaseTime]) -> list[str]:
    return [
        f"{phase}.measured: {time.timed_calls} of {time.calls} calls were simulated, the others "
        "are taken to be like them"
        for phase, time in times.items()
        if time.timed_calls < time.calls
    ]


def _print_for_people(report: dict[str, Any]) -> None:
    print_table(
        ["phase", "tokens", "tokens/s", "measured", "predicted", "range", "bytes", "ops", "bound"],
        [_row(phase, report[phase]) for phase in ("prefill", "decode")],
        right=["tokens", "tokens/s", "measured", "predicted", "range", "bytes", "ops"],
    )
    simulated = [
        phase
        for phase in ("prefill", "decode")
        if report[phase]["measured"]["clock"] == "simulated"
    ]
    if simulated:
        write_text(
            f"measured {' and '.join(simulated)}: simulated seconds of the target's machine\n"
        )
    for phase in ("prefill", "decode"):
        then = report[phase]["predicted_meanwhile"]
        if then["seconds"] is not None:
            write_text(
                f"{phase}: the machine was {then['slowdown']:.2f} times as slow as undisturbed; "
                f"predicted for that: {human_seconds(then['seconds'])} ({_range(then)})\n"
            )
    write_text(
        f"target {report['target']}, threads {report['threads']}, "
        f"loaded in {human_seconds(report['load_seconds'])}\n"
        f"memory: planned {human_bytes(report['planned_memory_bytes'])}, "
        f"resident {_bytes(report['resident_mapped_bytes'])} mapped "
        f"and {_bytes(report['resident_private_bytes'])} private, "
        f"peak {_bytes(report['peak_memory_bytes'])}\n"
    )


def _bytes(count: int | None) -> str:
    return "unknown" if count is None else human_bytes(count)


def _row(name: str, phase: dict[str, Any]) -> list[str]:
    measured, predicted = phase["measured"], phase["predicted"]
    row = [
        name,
        str(phase["tokens"]),
        f"{measured['tokens_per_second']:.1f}",
        human_seconds(measured["seconds"]),
    ]
    if phase["bound"] is None:
        return [*row, *["unknown"] * 5]
    return [
        *row,
        human_seconds(predicted["seconds"]),
        _range(predicted),
        human_bytes(phase["bytes"]),
        human_count(phase["operations"]),
        phase["bound"],
    ]


def _range(predicted: dict[str, Any]) -> str:
    low, high = human_seconds(predicted["seconds_low"]), human_seconds(predicted["seconds_high"])
    return f"{low} to {high}"
