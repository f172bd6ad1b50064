"""Measured serving rows, and the constants of an engine that explain them best."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from infc.cost.bounds import Machinery
from infc.cost.engine import CONSTANTS, TPOT, TTFT, EngineProfile, EngineResiduals
from infc.cost.footprint import footprint
from infc.cost.kernels.profile import Constant
from infc.cost.model_shape import ModelShape, read_shape
from infc.cost.serving import prefills, step_parts
from infc.cost.transformer import Rows, Split
from infc.cost.workload import Workload

HERE = Path(__file__).resolve().parent
FILE: Final = HERE / "data" / "silicon" / "h100_serving.csv"
SOURCE: Final = (
    "ai-dynamo/aiconfigurator, Apache-2.0, commit 095f58a: end-to-end rows of silicon_sample.csv"
)
CONFIGS: Final = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b.json",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b.json",
    "Qwen/Qwen3-32B": "qwen3-32b.json",
}
STATED: Final[Mapping[str, Mapping[str, float]]] = {
    # The share is what each engine's documentation gives as the default (vLLM's
    # gpu_memory_utilization; of what the weights leave in TensorRT-LLM). What is reserved makes the
    # wait of the rows whose caches do not fit come out, to half a GB (vLLM, TensorRT-LLM) or one.
    # Launches in a graph: 1.3 of 2.1 us (hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles), for
    # the kernels and the conversions to 8 bits that TensorRT-LLM launches. The others compile
    # conversions into other kernels; what is left is the same for every block, and so in
    # `layer_seconds`. The collectives that were measured are those of TensorRT-LLM.
    "trtllm": {
        "memory_share": 0.9,
        "reserved_bytes": 7e9,
        "launch_share": 0.62,
        "collective_share": 1.0,
    },
    "vllm": {"memory_share": 0.9, "reserved_bytes": 4e9, "launch_share": 0.0},
    "sglang": {"memory_share": 0.9, "reserved_bytes": 1e10, "launch_share": 0.0},
    "generic": {"memory_share": 0.9, "reserved_bytes": 7e9},
}
"""Constants that are stated, not fitted, by engine."""
CACHE_DTYPES: Final[Mapping[str, Mapping[str, str]]] = {
    # NVIDIA's quantised checkpoints ask TensorRT-LLM for a cache in fp8.
    "trtllm": {"fp8": "fp8", "fp4": "fp8"},
}
"""By engine and dtype of the weights; the rest is in 16 bits."""
FITTED: Final = (
    "layer_seconds",
    "launch_share",
    "collective_share",
    "request_seconds",
    "first_token_seconds",
    "prompts_ahead",
    "queue_share",
)
_START: Final = dict(zip(FITTED, (4e-5, 0.3, 0.8, 1e-5, 1e-2, 3.0, 0.06), strict=True))
_TTFT_WEIGHT: Final = 0.3
"""Of a time to first token beside a time per output token."""
_SOFT_FROM: Final = 0.04
"""Deviation in ln(seconds) from which the loss grows linearly."""
_DIGITS: Final = 4
_NOTHING: Final = 1e-6
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One measured row; `concurrency` users, seconds.

    Attributes:
        equal_lengths: whether all requests are equally long. Rows without an engine version come
            from a harness that draws lengths at random.
        first_token_is_steady: the time to first token is that of a steady state. In the rows of
            the 8B model it falls with the concurrency and grows with the output: they hold the
            start of the run.
    """

    engine: str
    version: str
    model: str
    dtype: str
    tensor: int
    prompt: int
    output: int
    concurrency: int
    ttft: float
    tpot: float

    @property
    def group(self) -> str:
        """What was measured together."""
        return f"{self.engine} {self.version or '-'} {self.model.split('/')[1]} {self.dtype}"

    @property
    def shape(self) -> ModelShape:
        """Of the model."""
        return _shape(CONFIGS[self.model])

    @property
    def split(self) -> Split:
        """With the cache in the engine's dtype."""
        kv_dtype = CACHE_DTYPES.get(self.engine, {}).get(self.dtype, "bf16")
        return Split(self.tensor, 1, self.dtype, kv_dtype)

    @property
    def workload(self) -> Workload:
        """The users."""
        return Workload(prompt=self.prompt, new_tokens=self.output, concurrency=self.concurrency)

    @property
    def equal_lengths(self) -> bool:
        """See the class."""
        return self.version != ""

    @property
    def first_token_is_steady(self) -> bool:
        """See the class."""
        return "8B" not in self.model


@cache
def _shape(name: str) -> ModelShape:
    return read_shape(HERE.parent / "samples" / "configs" / name)


def read_rows(file: Path = FILE) -> tuple[list[Row], list[Row]]:
    """The rows that are modelled, and those that are not.

    Rows of 4000 prompt tokens are set aside: their ids carry no concurrency, and times of one token
    as short as theirs leave no room for as many requests as `batch_size` says.
    """
    rows = []
    with file.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            rows.append(
                Row(
                    engine=line["backend"],
                    version=line["backend_version"],
                    model=line["model_path"],
                    dtype=line["precision"] or "bf16",
                    tensor=int(float(line["tp_size"])),
                    prompt=int(line["isl"]),
                    output=int(line["osl"]),
                    concurrency=int(float(line["batch_size"])),
                    ttft=float(line["silicon_ttft_ms"]) / 1e3,
                    tpot=float(line["silicon_tpot_ms"]) / 1e3,
                )
            )
    return [row for row in rows if row.prompt != 4000], [row for row in rows if row.prompt == 4000]


@dataclass(frozen=True)
class Columns:
    """Rows as arrays, one value a row; `decode` and `prefill` are `[rows, 3]`.

    Those are the parts of a decode step and of the prefill of one prompt: the kernels' work, their
    launches, their collectives (`infc.cost.serving.StepParts`).
    """

    layers: Array
    running: Array
    users: Array
    output: Array
    decode: Array
    prefill: Array
    equal_lengths: NDArray[np.bool_]
    steady: NDArray[np.bool_]
    ttft: Array
    tpot: Array

    def take(self, chosen: NDArray[np.bool_]) -> Columns:
        """Some of the rows."""
        return Columns(**{name: values[chosen] for name, values in vars(self).items()})


def columns_of(rows: Sequence[Row], machinery: Machinery) -> Columns:
    """The kernels' times of all rows; the engine of `machinery` plays no part."""
    target, profile = machinery.target, machinery.profile

    def parts(row: Row, step: Rows) -> tuple[float, float, float]:
        found = step_parts(row.shape, row.split, step, target, profile)
        return found.work.mid, found.launches.mid, found.exchanges.mid

    table, decode, prefill = [], [], []
    for row in rows:
        held = footprint(row.shape, row.split, row.workload, target, bare_engine(row.engine))
        running = min(row.concurrency, max(1, held.room))
        past = row.workload.mean_decode_context - 1
        decode.append(parts(row, Rows(running, 1, past)))
        prefill.append(parts(row, Rows(1, row.prompt, 0)))
        table.append((row.shape.layers, running, row.concurrency, row.output))
    layers, running, users, output = np.array(table, np.float64).T
    return Columns(
        layers,
        running,
        users,
        output,
        np.array(decode),
        np.array(prefill),
        np.array([row.equal_lengths for row in rows]),
        np.array([row.first_token_is_steady for row in rows]),
        np.array([row.ttft for row in rows]),
        np.array([row.tpot for row in rows]),
    )


def bare_engine(name: str) -> EngineProfile:
    """An engine with its share of the memory and without any time of its own."""
    values = {spec.name: spec.low for spec in CONSTANTS} | STATED[name]
    none = EngineResiduals(rows=1, low=0.0, high=0.0, elsewhere=0.0)
    return engine_profile(name, "", "", 1, values, {TTFT: none, TPOT: none})


def predict(values: Mapping[str, float], rows: Columns) -> tuple[Array, Array]:
    """Times to first token and per output token, as `infc.cost.serving` has them."""
    own = values["layer_seconds"] * rows.layers
    shares = np.array([1.0, values["launch_share"], values["collective_share"]])
    decode, prefill = rows.decode @ shares + own, rows.prefill @ shares + own
    ahead, between = prefills(values, rows.running, rows.output, equal_lengths=rows.equal_lengths)
    token = decode + values["request_seconds"] * rows.running + between * prefill
    start = values["first_token_seconds"] + decode + ahead * prefill
    wait = (rows.users - rows.running) / rows.running * (start + (rows.output - 1) * token)
    return start + wait, token


def fit(rows: Columns, stated: Mapping[str, float]) -> dict[str, float]:
    """Constants that explain the rows best: those of `FITTED` that are not stated, and these.

    Fitted ones stay inside their ranges.
    """
    specs = {spec.name: spec for spec in CONSTANTS}
    names = [name for name in FITTED if name not in stated]
    start = np.array([_START[name] for name in names])

    def constants(point: Array) -> dict[str, float]:
        return dict(stated) | dict(zip(names, point.tolist(), strict=True))

    def deviations(point: Array) -> Array:
        first, token = predict(constants(point), rows)
        of_first = np.log(first / rows.ttft)[rows.steady]
        return np.concatenate([np.log(token / rows.tpot), _TTFT_WEIGHT * of_first])

    found = least_squares(
        deviations,
        start,
        bounds=([specs[name].low for name in names], [specs[name].high for name in names]),
        x_scale=start,
        loss="soft_l1",
        f_scale=_SOFT_FROM,
    )
    # What is next to nothing beside where it started is nothing.
    values = np.where(found.x < _NOTHING * start, 0.0, found.x)
    return constants(np.array([float(f"{value:.{_DIGITS}g}") for value in values]))


def engine_profile(
    name: str,
    versions: str,
    target: str,
    rows: int,
    values: Mapping[str, float],
    residuals: Mapping[str, EngineResiduals],
) -> EngineProfile:
    """A profile with units and meanings filled in."""
    return EngineProfile(
        name=name,
        versions=versions,
        target=target,
        cache_dtypes=CACHE_DTYPES.get(name, {}),
        source=SOURCE,
        rows=rows,
        constants={
            spec.name: Constant(
                value=values[spec.name],
                unit=spec.unit,
                low=spec.low,
                high=spec.high,
                meaning=spec.meaning,
            )
            for spec in CONSTANTS
        },
        residuals=residuals,
    )


def deviation(measured: Array, predicted: Array) -> float:
    """Median of ln(measured / predicted): what a whole set of measurements is off by."""
    return float(np.median(np.log(measured / predicted)))
