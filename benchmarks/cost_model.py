"""How wrong the model of kernels is on measurements it was not fitted to.

    python cost_model.py [--kernel-class NAME ...] [-o results/cost-model-DATE.json]

Three protocols over `data/silicon`. *folds*: each fifth of the rows in turn, drawn at random, is
predicted by constants and bounds from the others. *withheld*: a whole region is (the largest
kernels, batches or contexts never seen). *without*: a term of the formula is taken out, the other
constants are fitted again to the same rows, and the error grows by what the term was worth.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Printed
from silicon import TARGET, Table, tables

from infc.cost.fit import fit_columns, fit_constants, folds, rows_of
from infc.cost.kernels import gemm
from infc.cost.kernels.classes import Array, Columns, KernelClass, Values
from infc.cost.kernels.machine import Machine, machine_of
from infc.cost.kernels.profile import ClassProfile
from infc.cost.kernels.registry import CLASSES
from infc.target.discovery import resolve_target

Mask = NDArray[np.bool_]
Region = Callable[[Columns], Mask]


def largest_fifth(work: Callable[[Columns], Array]) -> Region:
    """The rows with the most work."""
    return lambda rows: work(rows) >= np.quantile(work(rows), 0.8)


def _cache_elements(rows: Columns) -> Array:
    return rows["batch"] * rows["seen"] * rows["kv_heads"] * rows["head_dim"] * rows["kv_bytes"]


_GEMM_REGIONS: Final[dict[str, Region]] = {
    "largest fifth (m n k)": largest_fifth(lambda rows: rows["m"] * rows["n"] * rows["k"]),
    "n or k >= 51200": lambda rows: (rows["n"] >= 51200) | (rows["k"] >= 51200),
    "m >= 8192": lambda rows: rows["m"] >= 8192,
}
_EXCHANGE_REGIONS: Final[dict[str, Region]] = {
    "messages > 64 MB": lambda rows: rows["bytes"] > 64e6,
    "8 devices": lambda rows: rows["devices"] == 8,
}
REGIONS: Final[dict[str, dict[str, Region]]] = {
    "gemm-16bit": _GEMM_REGIONS,
    "gemm-8bit": _GEMM_REGIONS,
    "prefill-attention": {
        "largest fifth (scores)": largest_fifth(
            lambda rows: rows["batch"] * rows["heads"] * rows["tiles"] * rows["head_dim"]
        ),
        "length >= 8192": lambda rows: rows["length"] >= 8192,
        "batch >= 128": lambda rows: rows["batch"] >= 128,
    },
    "decode-attention": {
        "largest fifth (cache bytes)": largest_fifth(_cache_elements),
        "context > 16384": lambda rows: rows["context"] > 16384,
        "batch >= 128": lambda rows: rows["batch"] >= 128,
    },
    "all-reduce": _EXCHANGE_REGIONS,
    "exchange": _EXCHANGE_REGIONS,
}


@dataclass(frozen=True)
class Ablation:
    """A formula without one term.

    Attributes:
        pinned: constants at a value that silences their term.
        change: of the sizes.
        patched: a context in which the formula has changed.
    """

    pinned: Values = field(default_factory=dict)
    change: Callable[[Columns], Columns] = lambda rows: rows
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext


def _one_tile() -> AbstractContextManager[Any]:
    tile = np.array([[128.0]])
    return patch.multiple(gemm, _TILE_M=tile, _TILE_N=tile)


def _setting(**values: float) -> Callable[[Columns], Columns]:
    return lambda rows: {
        **rows,
        **{name: np.full_like(rows[name], value) for name, value in values.items()},
    }


_NEVER: Final = 1e30
_GEMM_ABLATIONS: Final = {
    "choice of tile (128 x 128 always)": Ablation(patched=_one_tile),
    "splitting the inner dimension": Ablation({"split_seconds": 1.0, "split_bytes_per_s": _NEVER}),
    "feeding of tiles": Ablation({"feed_bytes_per_s": _NEVER}),
    "cost of a tile": Ablation({"tile_seconds": 0.0, "tile_bytes_per_s": _NEVER}),
    "what the cache holds": Ablation(change=_setting(cached=0.0)),
    "partial overlap (the longer one counts)": Ablation({"overlap": 50.0}),
    "partial overlap (taking turns)": Ablation({"overlap": 1.0}),
}
ABLATIONS: Final[dict[str, dict[str, Ablation]]] = {
    "gemm-16bit": _GEMM_ABLATIONS,
    "gemm-8bit": _GEMM_ABLATIONS
    | {
        "conversion": Ablation({"conversion_bytes": 0.0, "cached_conversion_bytes": 0.0}),
    },
    "prefill-attention": {
        "exponentials": Ablation(
            {"exponentials_per_s_16bit": _NEVER, "exponentials_per_s_8bit": _NEVER}
        ),
        "set-up of blocks": Ablation({"block_seconds": 0.0}),
        "cost of windows": Ablation({"window_seconds_16bit": 0.0, "window_seconds_8bit": 0.0}),
        "waiting for the longest block": Ablation({"tail": 0.0}),
        "causal mask and window (all scores)": Ablation(
            change=lambda rows: {
                **rows,
                "tiles": np.ceil(rows["length"] / 128) * np.ceil(rows["length"] / 64),
            }
        ),
    },
    "decode-attention": {
        "grouping of query heads": Ablation(
            change=lambda rows: {**rows, "heads": rows["kv_heads"]}
        ),
        "windows": Ablation(change=lambda rows: {**rows, "seen": rows["context"]}),
        "set-up of blocks": Ablation(
            {"plain_block_seconds": 0.0, "block_seconds_16bit": 0.0, "block_seconds_8bit": 0.0}
        ),
        "set-up by the tile's size": Ablation({"tile_elements_per_s": _NEVER}),
        "preparation of the plain kernel": Ablation({"plain_seconds": 0.0}),
        "walking along the cache": Ablation(
            {"plain_elements_per_s": _NEVER, "grouped_bytes_per_s": _NEVER}
        ),
        "cost of splits": Ablation({"split_seconds": 0.0}),
        "several blocks a unit": Ablation({"resident": 1.0}),
        "partial overlap (the longer one counts)": Ablation({"overlap": 50.0}),
    },
    "all-reduce": {
        "exchange in one shot": Ablation({"direct_share": 1e-9}),
        "filling the pipeline": Ablation({"fill_seconds": 0.0}),
    },
    "exchange": {"filling the pipeline": Ablation({"fill_seconds": 0.0})},
}


def errors(seconds: Array, predicted: Array) -> dict[str, float]:
    """Absolute errors in percent of what was measured."""
    percent = 100.0 * np.abs(predicted / seconds - 1.0)
    return {
        "rows": len(seconds),
        "mape": round(float(percent.mean()), 2),
        "median": round(float(np.median(percent)), 2),
        "p90": round(float(np.quantile(percent, 0.9)), 2),
    }


@dataclass(frozen=True)
class Judge:
    """One class with its measurements."""

    kernel_class: KernelClass[Any]
    table: Table
    columns: Columns
    machine: Machine

    def fitted_without(self, held_out: Mask) -> tuple[Array, Mask]:
        """Seconds of the rows held out, and which of them lie within their bounds."""
        fitted = fit_columns(
            self.kernel_class,
            rows_of(self.columns, ~held_out),
            self.table.seconds[~held_out],
            self.machine,
            self.table.source,
        )
        return self._bounds(fitted, held_out)

    def _bounds(self, fitted: ClassProfile, held_out: Mask) -> tuple[Array, Mask]:
        rows = rows_of(self.columns, held_out)
        times = self.kernel_class.times(rows, self.machine, fitted.values)
        regimes = [self.kernel_class.regimes[index] for index in times.regime]
        low, high = np.array([fitted.quantiles(regime) for regime in regimes]).T
        residual = np.log(self.table.seconds[held_out] / times.seconds)
        return times.seconds, (low <= residual) & (residual <= high)

    def folds(self) -> dict[str, float]:
        """Every row predicted once by the others."""
        predicted = np.empty_like(self.table.seconds)
        inside = np.empty(len(predicted), bool)
        for held_out in folds(len(predicted)):
            predicted[held_out], inside[held_out] = self.fitted_without(held_out)
        return errors(self.table.seconds, predicted) | _coverage(inside)

    def withheld(self, region: Region) -> dict[str, float]:
        """A region predicted by the rest."""
        held_out = region(self.columns)
        predicted, inside = self.fitted_without(held_out)
        return errors(self.table.seconds[held_out], predicted) | _coverage(inside)

    def without(self, ablation: Ablation) -> dict[str, float]:
        """All rows by a formula that lacks a term."""
        columns = ablation.change(self.columns)
        with ablation.patched():
            constants = fit_constants(
                self.kernel_class,
                columns,
                self.table.seconds,
                self.machine,
                pinned=ablation.pinned,
            )
            predicted = self.kernel_class.times(columns, self.machine, constants).seconds
        return errors(self.table.seconds, predicted)


def _coverage(inside: Mask) -> dict[str, float]:
    return {"coverage": round(100.0 * float(inside.mean()), 1)}


def judged(judge: Judge) -> dict[str, Any]:
    """All protocols of one class."""
    name = judge.kernel_class.name
    return {
        "constants": len(judge.kernel_class.constants),
        "fitted_to_all": judge.without(Ablation()),
        "folds": judge.folds(),
        "withheld": {label: judge.withheld(region) for label, region in REGIONS[name].items()},
        "without": {label: judge.without(term) for label, term in ABLATIONS[name].items()},
    }


def printed(name: str, result: dict[str, Any]) -> Printed:
    """One class as a table."""
    shown = Printed(title=f"{name}, {result['constants']} constants", title_justify="left")
    for column in ("", "rows", "mean %", "median %", "p90 %", "in bounds %"):
        shown.add_column(column, justify="left" if not column else "right")
    lines = {"fitted to all rows": result["fitted_to_all"], "folds": result["folds"]}
    lines |= {f"withheld: {label}": line for label, line in result["withheld"].items()}
    lines |= {f"without: {label}": line for label, line in result["without"].items()}
    for label, line in lines.items():
        cells = [str(line.get(key, "")) for key in ("rows", "mape", "median", "p90", "coverage")]
        shown.add_row(label, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel-class", nargs="*", choices=list(REGIONS), default=list(REGIONS))
    parser.add_argument("-o", "--output", type=Path, help="a record; its other classes are kept")
    arguments = parser.parse_args()
    _, target = resolve_target(TARGET)
    machine, console = machine_of(target), Console(file=sys.stdout, width=100)
    measured = tables()
    results: dict[str, Any] = {}
    for name in arguments.kernel_class:
        kernel_class, table = CLASSES[name], measured[name]
        columns = kernel_class.columns(table.queries, machine)
        results[name] = judged(Judge(kernel_class, table, columns, machine))
        console.print(printed(name, results[name]))
    if arguments.output is not None:
        path: Path = arguments.output
        before = json.loads(path.read_text())["classes"] if path.exists() else {}
        record = {
            "date": datetime.date.today().isoformat(),
            "target": TARGET,
            "source": "data/silicon",
            "fitted_on": describe_machine(),
            "classes": {name: (before | results).get(name) for name in REGIONS},
        }
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
