"""What the loop is worth: every candidate of each matrix product measured, against what was chosen.

    python benchmarks/ablation.py MODEL [--shapes llama-1.1b] [--seconds 40] [--only TEXT] -o OUT

Each kernel of the programs that `infc compile` would make is measured under all its mappings, with
weights from memory as in a decode step. Machines are shared: what counts is how a mapping's calls
compare with those of the model's choice just before them, and the median of that over the rounds.
The slower half is dropped after each few rounds; the last eight, with those of interest, are then
measured afresh, so that the best one is not merely the luckiest one. The report holds, for each
kernel, how much longer than the best one found these take:

    fixed    one mapping for all kernels
    model    the cost model's choice: what runs without --tune
    tune     the best of the model's first eight: what --tune 8 would run
    best     all candidates

Results are added to OUT kernel by kernel, so that a run may be cut short and taken up again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from machine import describe_machine

from infc import driver
from infc.backends.cpu.measure import KernelBench
from infc.cost.estimate import Estimate
from infc.cost.roofline import estimate_work
from infc.diagnostics import UserError
from infc.driver.threads import default_threads
from infc.driver.tuning import Tuner, low_quantile
from infc.ir.types import storage_bytes
from infc.target.backend import Backend, KernelMapping, KernelSummary
from infc.target.discovery import resolve_target
from infc.target.schema import Target

FIXED = {"row_tile": 4, "col_tile": 2, "unroll": 1, "prefetch_bytes": 4096}
"""What somebody might choose who knows neither the kernel nor the machine."""
_TUNED = 8
_ROUNDS = (2, 3, 5)
"""After so many more rounds the slower half is dropped."""
_LAST, _LEAST = 8, 30
"""Mappings that are measured afresh, and for how many rounds at least."""
_CALLS = 3
_LLAMA = {"hidden": 2048, "inner": 5632, "keys": 256}
"""TinyLlama 1.1B (its config.json)."""


class Listener:
    """A tuner that only listens: the kernels of a model with their candidates."""

    def __init__(self) -> None:
        self.kernels: list[tuple[KernelSummary, list[KernelMapping]]] = []

    def choose(
        self, kernel: KernelSummary, ranked: Sequence[tuple[KernelMapping, Estimate]]
    ) -> int:
        """The model's choice."""
        known = any(kernel == other for other, _ in self.kernels)
        if kernel.kind == "matmul" and not kernel.split and not known:
            self.kernels.append((kernel, [mapping for mapping, _ in ranked]))
        return 0


def kernels_of_model(model: Path) -> list[tuple[KernelSummary, list[KernelMapping]]]:
    """The products of both programs, each with its mappings as the model ranks them."""
    listener = Listener()

    def listen(
        _tuner: Tuner,
        kernel: KernelSummary,
        ranked: Sequence[tuple[KernelMapping, Estimate]],
    ) -> int:
        return listener.choose(kernel, ranked)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Tuner, "choose", listen):
        driver.compile(model, output=Path(folder, "model.infc"), tuning=driver.Tuning(1))
    return listener.kernels


def kernels_of_llama() -> Iterator[tuple[KernelSummary, list[KernelMapping]]]:
    """The decode products of a Llama-shaped model with 1.1 billion weights in q4_0."""
    backend, target = resolve_target("cpu")
    hidden, inner, keys = _LLAMA["hidden"], _LLAMA["inner"], _LLAMA["keys"]
    shapes: list[tuple[list[tuple[int, int]], str]] = [
        ([(hidden, hidden), (keys, hidden), (keys, hidden)], ""),
        ([(hidden, hidden)], ""),
        ([(inner, hidden), (inner, hidden)], "silu"),
        ([(hidden, inner)], ""),
    ]
    for matrices, gate in shapes:
        kernel = KernelSummary(
            kind="matmul",
            phase="decode",
            rows=1,
            typical_rows=1,
            operations={"int8": 2.0 * sum(n * k for n, k in matrices)},
            weight_bytes=sum(storage_bytes("q4_0", shape) for shape in matrices),
            activation_bytes=0,
            shapes={},
            matrices=tuple((n, k, "q4_0") for n, k in matrices),
            gate=gate,
        )
        yield kernel, ranked(kernel, backend, target)


def ranked(kernel: KernelSummary, backend: Backend, target: Target) -> list[KernelMapping]:
    """All mappings, the model's choice first."""

    def expected(mapping: KernelMapping) -> float:
        return estimate_work(backend.work(kernel, mapping, target), target).mid

    return sorted(backend.candidates(kernel, target), key=expected)


def measured(
    kernel: KernelSummary, mappings: Sequence[KernelMapping], kept: set[int], seconds: float
) -> tuple[dict[int, list[float]], float]:
    """Times of mappings as shares of the first one's at that moment; seconds of the first one.

    Of those that were measured afresh: the best ones, and what is in `kept`.
    """
    _, target = resolve_target("cpu")
    with KernelBench(kernel, target, threads=default_threads()) as bench:
        for mapping in mappings:
            bench.add(mapping)
        bench.build()
        shares: dict[int, list[float]] = {number: [] for number in range(1, len(mappings))}
        first: list[float] = []

        def round_of(numbers: Sequence[int]) -> None:
            for number in numbers:
                own, other = bench.time([0, number], _CALLS)
                first.extend(own)
                shares[number].append(median(other) / median(own))

        start = time.perf_counter()
        numbers = list(shares)
        for rounds in _ROUNDS:
            for _ in range(rounds):
                round_of(numbers)
            numbers = sorted(numbers, key=lambda number: median(shares[number]))
            numbers = numbers[: max(_LAST, len(numbers) // 2)]
        numbers = [*numbers[:_LAST], *(kept - set(numbers[:_LAST]) - {0})]
        for number in numbers:
            shares[number].clear()
        rounds = 0
        while rounds < _LEAST or time.perf_counter() - start < seconds:
            round_of(numbers)
            rounds += 1
    return {0: [1.0], **{number: shares[number] for number in numbers}}, low_quantile(first)


def compared(
    kernel: KernelSummary, mappings: list[KernelMapping], seconds: float
) -> dict[str, Any]:
    """One kernel's entry in the report."""
    fixed = {**mappings[0], **FIXED}
    if "bf16" in kernel.operations:  # the height of a block is not free there
        fixed["row_tile"] = mappings[0]["row_tile"]
    count = len(mappings)
    everything = mappings if fixed in mappings else [*mappings, fixed]
    number_of_fixed = everything.index(fixed)
    shares, own = measured(kernel, everything, {*range(_TUNED), number_of_fixed}, seconds)
    found = {number: median(each) for number, each in shares.items()}
    best = min(found, key=found.__getitem__)
    tuned = min(range(_TUNED), key=found.__getitem__)

    def share(number: int) -> float:
        return round(found[number] / found[best] - 1.0, 4)

    return {
        "phase": kernel.phase,
        "rows": kernel.typical_rows,
        "matrices": [list(matrix) for matrix in kernel.matrices],
        "gate": kernel.gate,
        "candidates": count,
        "rounds": max(map(len, shares.values())),
        "model_seconds": own,
        "model_mapping": dict(everything[0]),
        "best_mapping": dict(everything[best]),
        "fixed": share(number_of_fixed),
        "model": share(0),
        "tune": share(tuned),
    }


def main() -> None:
    """Measure, and add to the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--shapes", choices=["llama-1.1b"])
    parser.add_argument("--seconds", type=float, default=40.0, help="for each kernel")
    parser.add_argument("--only", default="", help="kernels whose description has this text")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        _, target = resolve_target("cpu")
    except UserError as error:
        raise SystemExit(str(error)) from None
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "cpu": target.backend_facts["cpu"],
        "kernels": {},
    }
    if options.output.exists():
        report = json.loads(options.output.read_text())
    report["threads"] = default_threads()
    kernels = list(kernels_of_llama()) if options.shapes else kernels_of_model(options.model)
    for kernel, mappings in kernels:
        name = described(kernel)
        if options.only not in name or name in report["kernels"]:
            continue
        report["kernels"][name] = compared(kernel, mappings, options.seconds)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        print(name, summary(report["kernels"][name]), flush=True)


def described(kernel: KernelSummary) -> str:
    """A name for a kernel."""
    shapes = " + ".join(f"{n}x{k} {storage}" for n, k, storage in kernel.matrices)
    return f"{kernel.phase} {kernel.typical_rows} x {shapes}"


def summary(entry: Mapping[str, Any]) -> str:
    """A line of a kernel's entry."""
    shares = ", ".join(f"{name} {entry[name]:+.1%}" for name in ("fixed", "model", "tune"))
    return f"{1e6 * entry['model_seconds']:.1f} us, {entry['candidates']} candidates: {shares}"


if __name__ == "__main__":
    main()
