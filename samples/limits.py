"""Prints the speed of both phases beside what this machine could do at most.

    infc bench model.infc --json > bench.json
    probe 2 1024 > probe.json                      # built from benchmarks/probes/probe.c
    python samples/limits.py bench.json probe.json

A phase cannot take less than its bytes over the read bandwidth, nor less than its operations over
the peak of int8 dot products. The probe measures both on the same threads, just after: on a shared
machine they change from minute to minute. Two things can beat this limit: a last-level cache that
holds the model, and matrix units, which the probe does not use.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROW = "{:<8} {:>9} {:>12} {:>23} {:>10} {:>7}  {}"


def limit(phase: dict[str, Any], probe: dict[str, Any]) -> tuple[float, str]:
    """The least seconds a phase can take, and why."""
    bandwidth, peak = probe["read_bytes_per_s"], probe["int8_operations_per_s"]
    reading = phase["bytes"] / bandwidth
    computing = 0.0 if peak is None else phase["operations"] / peak
    if computing > reading:
        return computing, f"{phase['operations'] / 1e9:.3g} G operations at {peak / 1e9:.0f} G/s"
    return reading, f"{phase['bytes'] / 1e9:.3g} GB to read at {bandwidth / 1e9:.1f} GB/s"


def main() -> None:
    """Print one row a phase."""
    bench, probe = (json.loads(Path(name).read_text()) for name in sys.argv[1:])
    columns = ["phase", "tokens", "tokens/s", "predicted, range", "limit", "reached", "which is"]
    print(ROW.format(*columns))
    for name in ("prefill", "decode"):
        phase = bench[name]
        tokens, predicted = phase["tokens"], phase["predicted"]
        measured = phase["measured"]["tokens_per_second"]
        seconds, reason = limit(phase, probe)
        expected, low, high = (
            f"{tokens / predicted[key]:.0f}" for key in ("seconds", "seconds_high", "seconds_low")
        )
        row = [name, tokens, f"{measured:.1f}", f"{expected} ({low} to {high})"]
        row += [f"{tokens / seconds:.1f}", f"{measured * seconds / tokens:.0%}", reason]
        print(ROW.format(*row))
    print(f"target {bench['target']}, {bench['threads']} threads, all rates in tokens/s")


if __name__ == "__main__":
    main()
