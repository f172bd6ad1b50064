"""The model of serving beside measured rows that took no part in its fit, and the engine profiles.

Protocols, each within one engine: `random` holds out a tenth of the rows in turn; `parallelism`,
`prompt` and `concurrency` hold out all rows of one tensor parallelism, prompt length or concurrency
in turn; `model` predicts one model by another's constants. The bounds of a row are the quantiles of
other rows' residuals.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from serving_fit import (
    STATED,
    Columns,
    Row,
    columns_of,
    deviation,
    engine_profile,
    fit,
    predict,
    read_rows,
)

from infc.backends.chips import BACKEND
from infc.cost.bounds import Machinery
from infc.cost.engine import TPOT, TTFT, EngineProfile, EngineResiduals, dump_engine
from infc.cost.kernels.profile import INTERVAL, load_profile

HERE = Path(__file__).resolve().parent
TARGET: Final = "nvidia-h100-sxm"
FOLDS: Final = 10
GENERIC: Final = "generic"
POOLED: Final = ("trtllm", "vllm")
"""Engines whose scheduling is alike; SGLang puts half of all prefills before the first tokens."""
JUDGED: Final = ("Llama-3.1-70B", "Qwen3-32B")
PROTOCOLS: Final[dict[str, Callable[[int, Row], object]]] = {
    "random": lambda index, row: index * 7 % FOLDS,
    "parallelism": lambda index, row: row.tensor,
    "prompt": lambda index, row: row.prompt,
    "concurrency": lambda index, row: row.concurrency,
    "model": lambda index, row: row.model,
}
Array = NDArray[np.float64]


class Engine:
    """The rows of one engine, with predictions for each by the constants of other rows."""

    def __init__(self, name: str, rows: Sequence[Row], machinery: Machinery) -> None:
        """Reads the rows of the engine and fits all of them."""
        self.name = name
        self.rows = [row for row in rows if row.engine == name]
        self.columns = columns_of(self.rows, machinery)
        self.values = fit(self.columns, STATED[name])
        self.held_out = {
            protocol: self._held_out(key)
            for protocol, key in PROTOCOLS.items()
            if len({key(index, row) for index, row in enumerate(self.rows)}) > 1
        }

    def _held_out(self, key: Callable[[int, Row], object]) -> tuple[Array, Array]:
        """Times to first token and per output token of each row by constants of the others.

        Not a number where the others have no times to first token that were fitted.
        """
        parts = np.array([str(key(index, row)) for index, row in enumerate(self.rows)])
        first, token = np.empty(len(self.rows)), np.empty(len(self.rows))
        for part in np.unique(parts):
            chosen = parts == part
            others = self.columns.take(~chosen)
            values = fit(others, STATED[self.name])
            first[chosen], token[chosen] = predict(values, self.columns.take(chosen))
            if not others.steady.any():
                first[chosen] = np.nan
        return first, token

    def profile(self, elsewhere: Mapping[str, float]) -> EngineProfile:
        """Constants from all rows, bounds from rows held out at random."""
        first, token = self.held_out["random"]
        columns, steady = self.columns, self.columns.steady
        residuals = {
            TTFT: _residuals(columns.ttft[steady], first[steady], elsewhere[TTFT]),
            TPOT: _residuals(columns.tpot, token, elsewhere[TPOT]),
        }
        versions = ", ".join(sorted({row.version for row in self.rows if row.version}))
        return engine_profile(self.name, versions, TARGET, len(self.rows), self.values, residuals)

    def offsets(self, first: Array, token: Array) -> dict[str, list[float]]:
        """What predictions of the rows of each model are off by as a whole."""
        models = np.array([row.model for row in self.rows])
        found: dict[str, list[float]] = {TTFT: [], TPOT: []}
        for model in np.unique(models):
            chosen = models == model
            found[TPOT].append(deviation(self.columns.tpot[chosen], token[chosen]))
            if self.columns.steady[chosen].all() and np.isfinite(first[chosen]).all():
                found[TTFT].append(deviation(self.columns.ttft[chosen], first[chosen]))
        return found


def off_elsewhere(engines: Sequence[Engine]) -> dict[str, float]:
    """Root mean square of what sets of rows are off by, predicted by another model's or by the
    other of two engines that are alike."""
    parts = [engine.offsets(*engine.held_out["model"]) for engine in _with(engines, "model")]
    alike = [engine for engine in engines if engine.name in POOLED]
    for engine in alike:
        others = _pooled([other for other in alike if other is not engine])
        parts.append(engine.offsets(*predict(fit(others, STATED[GENERIC]), engine.columns)))
    return {
        phase: float(np.sqrt(np.mean(np.square([one for part in parts for one in part[phase]]))))
        for phase in (TTFT, TPOT)
    }


def _with(engines: Sequence[Engine], protocol: str) -> list[Engine]:
    return [engine for engine in engines if protocol in engine.held_out]


def _residuals(measured: Array, predicted: Array, elsewhere: float) -> EngineResiduals:
    low, high = _quantiles(np.log(measured / predicted))
    return EngineResiduals(
        rows=len(measured),
        low=round(min(low, 0.0), 4),
        high=round(max(high, 0.0), 4),
        elsewhere=round(elsewhere, 4),
    )


def _quantiles(residuals: Array) -> tuple[float, float]:
    tail = (1.0 - INTERVAL) / 2.0
    low, high = np.quantile(residuals, [tail, 1.0 - tail])
    return float(low), float(high)


def coverage(measured: Array, predicted: Array) -> float:
    """Share of rows within bounds that the residuals of the other folds gave."""
    residuals = np.log(measured / predicted)
    folds = np.arange(len(residuals)) * 7 % FOLDS
    inside = 0
    for fold in range(FOLDS):
        low, high = _quantiles(residuals[folds != fold])
        inside += int(
            np.sum((low <= residuals[folds == fold]) & (residuals[folds == fold] <= high))
        )
    return inside / len(residuals)


def score(measured: Array, predicted: Array) -> dict[str, float | int] | None:
    """Mean and median absolute error, and the median deviation, of what was predicted."""
    error = (predicted / measured - 1.0)[np.isfinite(predicted)]
    if not error.size:
        return None
    return {
        "rows": len(error),
        "mean_absolute_error": round(float(np.mean(np.abs(error))), 4),
        "median_absolute_error": round(float(np.median(np.abs(error))), 4),
        "median_deviation": round(float(np.median(error)), 4),
    }


def evaluate(engines: Sequence[Engine]) -> list[dict[str, Any]]:
    """One entry for each protocol and group, and for all judged rows together."""
    entries = []
    for protocol in PROTOCOLS:
        parts = _with(engines, protocol)
        rows = [row for engine in parts for row in engine.rows]
        measured = {
            TTFT: np.concatenate([engine.columns.ttft for engine in parts]),
            TPOT: np.concatenate([engine.columns.tpot for engine in parts]),
        }
        predicted = {
            phase: np.concatenate([engine.held_out[protocol][index] for engine in parts])
            for index, phase in enumerate((TTFT, TPOT))
        }
        groups = np.array([row.group for row in rows])
        chosen = {" and ".join(JUDGED): np.array([row.model.endswith(JUDGED) for row in rows])}
        chosen |= {group: groups == group for group in sorted(set(groups.tolist()))}
        for name, mask in chosen.items():
            entries.append(
                {"protocol": protocol, "rows_of": name}
                | {
                    phase: score(measured[phase][mask], predicted[phase][mask])
                    for phase in (TPOT, TTFT)
                }
            )
    return entries


def covered(engines: Sequence[Engine]) -> dict[str, float]:
    """Share of rows held out at random that their bounds hold, which are to hold 80%."""
    shares = {}
    for index, phase in enumerate((TTFT, TPOT)):
        inside = rows = 0.0
        for engine in engines:
            kept = engine.columns.steady if phase == TTFT else np.ones(len(engine.rows), bool)
            measured = engine.columns.ttft if phase == TTFT else engine.columns.tpot
            share = coverage(measured[kept], engine.held_out["random"][index][kept])
            inside, rows = inside + share * kept.sum(), rows + kept.sum()
        shares[phase] = round(inside / rows, 3)
    return shares


def set_aside(
    rows: Sequence[Row], engines: Sequence[Engine], machinery: Machinery
) -> list[dict[str, Any]]:
    """The rows that are not modelled, by the constants of all others."""
    entries = []
    for engine in engines:
        mine = [row for row in rows if row.engine == engine.name]
        if mine:
            columns = columns_of(mine, machinery)
            first, token = predict(engine.values, columns)
            entries.append(
                {"protocol": "set aside", "rows_of": f"{engine.name}, prompts of 4000"}
                | {TPOT: score(columns.tpot, token), TTFT: score(columns.ttft, first)}
            )
    return entries


def generic_profile(engines: Sequence[Engine], elsewhere: Mapping[str, float]) -> EngineProfile:
    """An engine that is not named: constants of two, bounds from each predicted by the others."""
    pooled = _pooled([engine for engine in engines if engine.name in POOLED])
    values = fit(pooled, STATED[GENERIC])
    measured: dict[str, list[Array]] = {TTFT: [], TPOT: []}
    predicted: dict[str, list[Array]] = {TTFT: [], TPOT: []}
    for engine in engines:
        others = [one for one in engines if one.name in POOLED and one is not engine]
        first, token = predict(fit(_pooled(others), STATED[GENERIC]), engine.columns)
        steady = engine.columns.steady
        measured[TTFT].append(engine.columns.ttft[steady])
        predicted[TTFT].append(first[steady])
        measured[TPOT].append(engine.columns.tpot)
        predicted[TPOT].append(token)
    residuals = {
        phase: _residuals(
            np.concatenate(measured[phase]),
            np.concatenate(predicted[phase]),
            elsewhere[phase],
        )
        for phase in (TTFT, TPOT)
    }
    rows = len(pooled.tpot)
    return engine_profile(GENERIC, " and ".join(POOLED), TARGET, rows, values, residuals)


def _pooled(engines: Sequence[Engine]) -> Columns:
    """The rows of several engines, one engine after the other."""
    tables = [vars(engine.columns) for engine in engines]
    return Columns(
        **{name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    )


def _table(entries: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="absolute error of rows not fitted: mean / median %, deviation %")
    for heading in ("held out", "rows of", "rows", "TPOT", "TTFT"):
        table.add_column(heading, justify="left" if heading != "rows" else "right")
    for entry in entries:
        cells = [_errors(entry[phase]) for phase in (TPOT, TTFT)]
        table.add_row(entry["protocol"], entry["rows_of"], str(entry[TPOT]["rows"]), *cells)
    return table


def _errors(errors: Mapping[str, float] | None) -> str:
    if errors is None:
        return "none fitted"
    mean, median = errors["mean_absolute_error"], errors["median_absolute_error"]
    return f"{100 * mean:.1f} / {100 * median:.1f}, {100 * errors['median_deviation']:+.1f}"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the results.")
@click.option("--write-profiles", is_flag=True, help="Write the engine profiles of the chips.")
def main(output: Path | None, write_profiles: bool) -> None:
    """Fit the engines, judge them by rows held out, and write what was found."""
    folder = Path(str(files("infc.backends.chips")))
    machinery = Machinery(
        BACKEND.resolve(TARGET), load_profile(folder / "profiles" / f"{TARGET}.toml")
    )
    rows, aside = read_rows()
    engines = [Engine(name, rows, machinery) for name in STATED if name != GENERIC]
    entries = evaluate(engines) + set_aside(aside, engines, machinery)
    Console(width=120).print(_table(entries))
    if write_profiles:
        (folder / "engines").mkdir(exist_ok=True)
        elsewhere = off_elsewhere(engines)
        profiles = [engine.profile(elsewhere) for engine in engines]
        for profile in (generic_profile(engines, elsewhere), *profiles):
            path = folder / "engines" / f"{profile.name}.toml"
            path.write_text(dump_engine(profile), encoding="utf-8")
    if output is not None:
        document = {
            "date": datetime.date.today().isoformat(),
            "target": TARGET,
            "rows": len(rows),
            "rows_set_aside": len(aside),
            "constants": {engine.name: engine.values for engine in engines},
            "share_within_80_percent_bounds": covered(engines),
            "errors": entries,
        }
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
