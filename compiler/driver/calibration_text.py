"""How much of a vocabulary head a token of natural text is worth.

What the search of the best token reads depends on how the model's products lie about their bounds,
so a model is asked: it reads the page that comes with infc, and each step's search is timed. Of a
search's formula only the share of the second plane is fitted; the rest is that of streams, which
both planes are. Without a model the share is an assumption with bounds that nearly all texts keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from infc.artifact import Artifact
from infc.cost.calibrated import call_columns
from infc.cost.fit import described, fit_constants
from infc.cost.kernels.classes import Array
from infc.cost.kernels.machine import machine_of
from infc.cost.kernels.profile import ClassProfile, Residuals
from infc.cost.kernels.threaded import FLOAT_SURVIVORS, HEAD_SEARCH, SURVIVORS, THREADED
from infc.cost.machine_profile import Speeds
from infc.cost.roofline import Work
from infc.diagnostics import Code, UserError
from infc.driver.compilation import compile
from infc.driver.loading import load, load_runnable
from infc.driver.prediction import Turns, greedy_kernels, sized_work
from infc.driver.quality import MAX_TOKENS
from infc.driver.sample_text import sample_text
from infc.target.runnable import Call, OutputKind, Phase
from infc.target.schema import Target

ASSUMED: Final = {SURVIVORS: 0.2, FLOAT_SURVIVORS: 0.05}
"""Gemma 3 270M, prose and code (docs/exact-head.md, docs/cost-model.md)."""
_ASSUMED_RANGE: Final = {
    SURVIVORS: (0.02, 1.0),
    FLOAT_SURVIVORS: (0.002, 0.3),
}
"""From English prose to texts whose bounds say little."""
_READS: Final = 6
"""Times that the text is read; the fastest look at each step counts. One read after the other, as a
slow moment of the machine lasts for several steps."""
_SOURCE: Final = "as stream-product"


@dataclass(frozen=True)
class HeadTimes:
    """The search of the best token on so many threads: seconds for each token of a text."""

    work: Work
    threads: int
    seconds: Sequence[float]

    @property
    def share(self) -> str:
        """The constant that the weights of this head ask for."""
        return FLOAT_SURVIVORS if self.work.sizes["weights_float"] else SURVIVORS


def trace_heads(model: Path, target: str, counts: Sequence[int]) -> list[HeadTimes]:
    """Read the text with a model, on one thread and on the most.

    Args:
        model: a GGUF file or a Hugging Face folder, with a tokenizer.
        target: this machine.
        counts: numbers of threads.

    Raises:
        UserError: as `infc.compile`; the model has no tokenizer (INF1101), or its head is
            multiplied whole (INF5001).
    """
    with tempfile.TemporaryDirectory(prefix="infc-calibrate-") as folder:
        output = Path(folder, "text.infc")
        with compile(model, target=target, output=output, max_context=MAX_TOKENS) as artifact:
            heads = [
                kernel
                for kernel in greedy_kernels(artifact, "decode")
                if kernel.get("class") == HEAD_SEARCH
            ]
            if not heads:
                raise UserError(
                    Code.OPTION,
                    "the best token of this model is not searched: its head is multiplied whole",
                    location=str(model),
                    hint="`infc compile --remarks split-head` says why; give another model",
                )
            tokens = load(artifact, threads=1).tokenizer.encode(sample_text())[:MAX_TOKENS]
            work = sized_work(heads[0], "decode", Turns(1, 1, 1))
            name = heads[0]["kernel"]
            return [
                HeadTimes(work, threads, _steps(artifact, tokens, name, threads))
                for threads in sorted({min(counts), max(counts)})
            ]


def _steps(artifact: Artifact, tokens: Sequence[int], kernel: str, threads: int) -> list[float]:
    """Seconds of one kernel in each step through a text, behind the first one."""
    number = artifact.manifest.memory_plan["decode"]["order"].index(kernel)
    runnable = load_runnable(artifact)
    kv = runnable.new_kv()
    steps = np.full(len(tokens), np.inf)
    for _, (position, token) in product(range(_READS), enumerate(tokens)):
        call = Call(
            tokens=np.array([token], np.int32),
            row_offsets=np.array([0, 1], np.int32),
            slots=np.zeros(1, np.int32),
            positions=np.array([position], np.int32),
            logit_rows=np.zeros(1, np.int32),
            output=OutputKind.ARGMAX,
        )
        look = runnable.trace(Phase.DECODE, call, kv, threads=threads)
        if look is not None:
            steps[position] = min(steps[position], look[number])
    return [float(seconds) for seconds in steps[1:]]


def fit_heads(
    heads: Sequence[HeadTimes], streams: ClassProfile, target: Target, speeds: Speeds
) -> ClassProfile:
    """The constants of searches.

    Args:
        heads: what `trace_heads` found; nothing leaves the share assumed.
        streams: constants of products with one row.
        target: on which.
        speeds: how much the machine wandered, which the bounds hold.
    """
    constants = {**streams.values, **ASSUMED}
    low, high = streams.quantiles("any")
    if not heads:
        apart = _assumed_bounds(constants)
        return _profile(constants, 0, f"{_SOURCE}; survivors are assumed", (low, high), apart)
    share = heads[0].share
    columns = call_columns([(head.work, head.threads) for head in heads], target)
    machine, searches = machine_of(target), THREADED[HEAD_SEARCH]
    # What is predicted are texts of many tokens: their mean.
    means = np.array([np.mean(head.seconds) for head in heads])
    fixed = {name: value for name, value in constants.items() if name != share}
    constants = fit_constants(searches, columns, means, machine, pinned=fixed)
    predicted = searches.times(columns, machine, constants).seconds
    apart = np.concatenate(
        [np.log(np.array(head.seconds) / one) for head, one in zip(heads, predicted, strict=True)]
    )
    source = f"{_SOURCE}; {share} of {len(apart)} steps of a text"
    # A text varies, and the machine as it does for streams.
    wander = (speeds.low, streams.quantiles("any")[1])
    return _profile(constants, len(apart), source, wander, apart)


def _assumed_bounds(constants: Mapping[str, float]) -> Array:
    """`ln(seconds / expected)` at the ends of what is assumed, of a head that memory binds."""
    share, (least, most) = constants[SURVIVORS], _ASSUMED_RANGE[SURVIVORS]
    # Both planes are about as large.
    return np.log((1.0 + np.array([least, most])) / (1.0 + share))


def _profile(
    constants: Mapping[str, float],
    rows: int,
    source: str,
    wander: tuple[float, float],
    apart: Array,
) -> ClassProfile:
    low, high = np.quantile(apart, [0.1, 0.9])
    return ClassProfile(
        rows=rows,
        source=source,
        constants=described(THREADED[HEAD_SEARCH], constants),
        residuals={
            "any": Residuals(
                rows=rows,
                low=-float(np.hypot(min(low, 0.0), wander[0])),
                high=float(np.hypot(max(high, 0.0), wander[1])),
            )
        },
    )
