"""The cost model of the dataflow machine beside its simulator.

    python benchmarks/dataflow_cost.py --fit       # fits the constants, writes them and a record
    python benchmarks/dataflow_cost.py             # judges the constants that are shipped

Simulated seconds of calls of models under the mappings that the compiler chooses, and under others.
The constants are fitted to the pairs of model and preset in `FIT`; all others never are. The
simulator knows nothing of the cost model, nor the cost model of the simulator: they meet here.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from dataflow_shapes import SHAPES
from numpy.typing import NDArray

from infc.backends.dataflow.choose import partitions_of
from infc.backends.dataflow.codegen.model import read_program
from infc.backends.dataflow.cost.constants import FILE, Constants, Residuals, fitted
from infc.backends.dataflow.cost.predict import call_cost
from infc.backends.dataflow.cost.sketch import Sketch
from infc.backends.dataflow.emission import EmittedModel, emit_model
from infc.backends.dataflow.image import Image
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.partition import Mapping
from infc.backends.dataflow.simulator.timing import simulate_time
from infc.diagnostics import UserError
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.context import context
from infc.ir.mlir import ir
from infc.passes.walk import programs
from infc.pipeline.options import CompileOptions

PACKAGE: Final = Path(__file__).resolve().parents[1] / "backends" / "dataflow" / "cost"
RESULTS: Final = Path(__file__).parent / "results"
SMALL: Final = (("decode", 1, 5), ("decode", 1, 60), ("prefill", 16, 0), ("prefill", 9, 20))
MIDDLE: Final = (("decode", 1, 10), ("decode", 1, 400), ("prefill", 64, 0), ("prefill", 50, 100))
LONG: Final = (("decode", 1, 900), ("decode", 1, 1900), ("prefill", 128, 0), ("prefill", 100, 1024))
_FACTOR: Final = 2e-2
"""Step of the derivatives of a fit."""


@dataclass(frozen=True)
class Pair:
    """A model on a preset.

    Attributes:
        shape: of `SHAPES`.
        storage: of all matrices.
        spec: the target.
        calls: phase, tokens, position of the first one.
        every: all partitions that the compiler considers, not only the one that it chooses.
    """

    shape: str
    storage: str
    spec: str
    calls: Sequence[tuple[str, int, int]]
    every: bool = False

    @property
    def options(self) -> CompileOptions:
        """As large as the calls need."""
        context = 96 if self.calls is SMALL else 512 if self.calls is MIDDLE else 2048
        chunk = max(tokens for _, tokens, _ in self.calls)
        return CompileOptions(max_context=context, chunk=chunk, prompt=context // 2)


FIT: Final = (
    Pair("llama-tiny", "q8_0", "dataflow:test", SMALL),
    Pair("llama-tiny", "q8_0", "dataflow:test-sram", SMALL, every=True),
    Pair("gemma-tiny", "q4_0", "dataflow:test", SMALL),
    Pair("gemma-tiny", "q4_0", "dataflow:test-sram", SMALL, every=True),
    Pair("qwen2-tiny", "bf16", "dataflow:test", SMALL),
    Pair("qwen2-tiny", "bf16", "dataflow:test-sram", SMALL),
    Pair("llama-tiny", "q8_0", "dataflow:lpu-like@4", SMALL),
    Pair("llama-512", "q4_0", "dataflow:systolic-hbm", MIDDLE),
    Pair("llama-512", "q4_0", "dataflow:lpu-like@4", MIDDLE, every=True),
    Pair("gemma-384", "q8_0", "dataflow:systolic-hbm", MIDDLE),
)
TEST: Final = (
    Pair("qwen3-tiny", "q4_0", "dataflow:test", SMALL),
    Pair("qwen3-tiny", "q4_0", "dataflow:test-sram", SMALL, every=True),
    Pair("qwen3-tiny", "q8_0", "dataflow:lpu-like", SMALL),
    Pair("mistral-tiny", "q8_0", "dataflow:test", SMALL),
    Pair("mistral-tiny", "q8_0", "dataflow:test-sram", SMALL, every=True),
    Pair("mistral-tiny", "bf16", "dataflow:lpu-like@2", SMALL, every=True),
    Pair("llama-512", "q4_0", "dataflow:three-tier@1", MIDDLE),
    Pair("llama-512", "q8_0", "dataflow:systolic-hbm", LONG),
    Pair("gemma-384", "q4_0", "dataflow:lpu-like@4", LONG),
    Pair("gemma3-270m", "q4_0", "dataflow:systolic-hbm", MIDDLE),
    Pair("gemma3-270m", "q4_0", "dataflow:lpu-like", MIDDLE),
    Pair("qwen2.5-0.5b", "q8_0", "dataflow:systolic-hbm", MIDDLE),
    Pair("tinyllama-1.1b", "q4_0", "dataflow:systolic-hbm", LONG),
    Pair("tinyllama-1.1b", "q4_0", "dataflow:three-tier@2", LONG[::2]),
)


@dataclass(frozen=True)
class Row:
    """One simulated call."""

    pair: Pair
    phase: str
    tokens: int
    position: int
    stages: int
    chosen: bool
    seconds: float
    machine: Machine
    sketch: Sketch
    mapping: Mapping

    def predicted(self, constants: Constants) -> float:
        """Seconds, by the cost model."""
        return call_cost(
            self.sketch,
            self.machine,
            self.mapping,
            tokens=self.tokens,
            position=self.position,
            logit_rows=1,
            constants=constants,
        ).seconds


def simulate_pair(pair: Pair, folder: Path) -> Iterator[Row]:
    """All calls of a pair."""
    path = folder / f"{pair.shape}.json"
    path.write_text(json.dumps(SHAPES[pair.shape]))
    with context():
        module, target = lower_model(ConfigSource(path, pair.storage), pair.spec, pair.options)
        machine = Machine.of(target)
        sketches = [Sketch.of(read_program(op)) for op in programs(module)]
        for number, model in enumerate(_models(module, machine, every=pair.every)):
            for phase, tokens, position in pair.calls:
                image, mapping = model.images[phase], model.mappings[phase]
                if tokens <= image.max_tokens:
                    seconds = simulate_time(image, machine, _arguments(image, tokens, position))
                    sketch = next(each for each in sketches if each.phase == phase)
                    yield Row(
                        pair, phase, tokens, position, len(mapping.stages), number == 0,
                        seconds.seconds, machine, sketch, mapping,
                    )  # fmt: skip


def _models(module: ir.Module, machine: Machine, *, every: bool) -> Iterator[EmittedModel]:
    """The chosen one first."""
    yield emit_model(module, machine)
    for partition in partitions_of(module)[1:] if every else []:
        try:
            yield emit_model(module, machine, partition["prefill"])
        except UserError:
            continue


def _arguments(image: Image, tokens: int, position: int) -> NDArray[np.int32]:
    args = np.zeros(8 + image.max_tokens + image.max_logit_rows, np.int32)
    args[:4] = tokens, 1, 0, position
    args[8 : 8 + tokens] = np.arange(tokens)
    args[8 + image.max_tokens :] = tokens - 1
    return args


def fit(rows: Sequence[Row]) -> Constants:
    """The constants that explain simulated seconds best, every call alike."""
    from scipy.optimize import least_squares

    ranges, start = Constants.ranges(), asdict(Constants())
    names = list(ranges)
    logs = np.array([math.log(row.seconds) for row in rows])

    def deviations(point: NDArray[np.float64]) -> NDArray[np.float64]:
        constants = Constants(**dict(zip(names, point.tolist(), strict=True)))
        return np.array([math.log(row.predicted(constants)) for row in rows]) - logs

    found = least_squares(
        deviations,
        np.array([start[name] for name in names]),
        bounds=([ranges[n].low for n in names], [ranges[n].high for n in names]),
        loss="soft_l1",
        f_scale=0.05,
        x_scale=np.array([max(start[name], 1.0) for name in names]),
        diff_step=_FACTOR,
        max_nfev=15,
    )
    return Constants(
        **{name: float(f"{x:.3g}") for name, x in zip(names, found.x.tolist(), strict=True)}
    )


def residuals(rows: Sequence[Row], constants: Constants) -> dict[str, Residuals]:
    """Of calls that took no part in the fit, by phase."""
    found = {}
    for phase in ("prefill", "decode"):
        logs = [
            math.log(row.seconds / row.predicted(constants)) for row in rows if row.phase == phase
        ]
        low, high = np.quantile(logs, [0.1, 0.9])
        found[phase] = Residuals(min(0.0, round(float(low), 4)), max(0.0, round(float(high), 4)))
    return found


def write_constants(constants: Constants, bounds: dict[str, Residuals]) -> None:
    """The file that is shipped."""
    lines = [
        "# Constants of the cost model of the dataflow machine, fitted by `python",
        "# benchmarks/dataflow_cost.py --fit` to simulated times. Residuals are quantiles (10% and",
        "# 90%) of ln(simulated / predicted) of models and presets that took no part in the fit.",
    ]
    for name, value in asdict(constants).items():
        known = Constants.ranges()[name]
        lines += [
            "",
            f"[constants.{name}]",
            f"value = {value}",
            f'unit = "{known.unit}"',
            f"low = {known.low}",
            f"high = {known.high}",
            f'meaning = "{known.meaning}"',
        ]
    for phase, each in bounds.items():
        lines += ["", f"[residuals.{phase}]", f"low = {each.low}", f"high = {each.high}"]
    (PACKAGE / FILE).write_text("\n".join(lines) + "\n")


def judged(rows: Sequence[Row], constants: Constants) -> list[dict[str, Any]]:
    """Every call with its prediction."""
    return [
        {
            "model": row.pair.shape,
            "storage": row.pair.storage,
            "target": row.pair.spec,
            "phase": row.phase,
            "tokens": row.tokens,
            "position": row.position,
            "stages": row.stages,
            "chosen": row.chosen,
            "simulated_us": round(row.seconds * 1e6, 3),
            "predicted_us": round(row.predicted(constants) * 1e6, 3),
        }
        for row in rows
    ]


def summary(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Absolute errors in percent."""
    errors = np.array([abs(r["predicted_us"] / r["simulated_us"] - 1.0) for r in records]) * 100.0
    return {
        "calls": len(records),
        "mean_percent": round(float(errors.mean()), 2),
        "most_percent": round(float(errors.max()), 2),
    }


@click.command()
@click.option("--fit", "fits", is_flag=True, help="Fit the constants and write them.")
@click.option("--output", type=click.Path(path_type=Path), help="Write a record as JSON.")
def main(fits: bool, output: Path | None) -> None:
    """Put predictions beside simulated times."""
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            name: [row for pair in pairs for row in simulate_pair(pair, Path(folder))]
            for name, pairs in (("fit", FIT), ("test", TEST))
        }
    constants = fit(rows["fit"]) if fits else fitted().constants
    if fits:
        write_constants(constants, residuals(rows["test"], constants))
    report: dict[str, Any] = {"constants": asdict(constants)}
    for name, found in rows.items():
        records = judged(found, constants)
        for record in records:
            error = 100.0 * (record["predicted_us"] / record["simulated_us"] - 1.0)
            click.echo(
                f"{name:5} {record['model']:15} {record['target']:22} {record['phase']:8}"
                f"{record['tokens']:4} at {record['position']:4} {record['stages']:3} stages "
                f"{record['simulated_us']:9.2f} us, predicted {record['predicted_us']:9.2f} us, "
                f"{error:5.1f}%"
            )
        by_phase = {
            phase: summary([r for r in records if r["phase"] == phase])
            for phase in ("prefill", "decode")
        }
        report[name] = {"summary": by_phase, "calls": records}
        click.echo(f"{name}: {by_phase}")
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
