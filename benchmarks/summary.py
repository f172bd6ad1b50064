"""What the samples of `compare.py` say: medians, spreads, ratios, shares of the limits."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

Record = dict[str, Any]


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


def summarise(samples: list[Record], first: str, work: Record) -> list[Record]:
    """One entry for each thread count, workload and engine, in the order they were measured.

    Args:
        samples: `measure.Sample` as dictionaries.
        first: the engine that the others are compared with.
        work: `decode_bytes` a token reads, `prefill_operations` a prompt token takes.

    Returns:
        Entries with the median, spread and best of tokens a second; `first_over_this`, the median
        of the rounds' ratios; for `first`, the shares of the limits probed beside each sample.
    """
    groups: dict[tuple[int, str], dict[str, dict[int, Record]]] = {}
    for sample in samples:
        group = groups.setdefault((sample["threads"], sample["workload"]), {})
        group.setdefault(sample["engine"], {})[sample["round"]] = sample
    entries = []
    for (threads, workload), engines in groups.items():
        for engine, rounds in engines.items():
            rates = [sample["tokens_per_second"] for sample in rounds.values()]
            entry = {
                "threads": threads,
                "workload": workload,
                "engine": engine,
                "tokens_per_second": statistics.median(rates),
                "spread": spread(rates),
                "best_tokens_per_second": max(rates),
                "others_busy": statistics.median(s["others_busy"] for s in rounds.values()),
            }
            if engine == first:
                entry |= limits(list(rounds.values()), work)
            elif first in engines:
                entry["first_over_this"] = statistics.median(
                    engines[first][round_]["tokens_per_second"] / sample["tokens_per_second"]
                    for round_, sample in rounds.items()
                    if round_ in engines[first]
                )
            entries.append(entry)
    return entries


def limits(samples: list[Record], work: Record) -> Record:
    """Median shares of what the probe measured just before each sample of one workload."""
    if samples[0]["workload"].startswith("decode"):
        amount, rates = work["decode_bytes"], ["read_bytes_per_s"]
    else:
        amount = work["prefill_operations"]
        rates = [key for key in samples[0]["machine"] if key.endswith("operations_per_s")]
    shares = {}
    for rate in rates:
        if samples[0]["machine"][rate] is not None:
            shares[f"share_of_{rate}"] = statistics.median(
                amount * sample["tokens_per_second"] / sample["machine"][rate] for sample in samples
            )
    return shares


def print_record(record: Record, console: Console) -> None:
    """The figures as tables, the circumstances below them."""
    entries = record["summary"]
    for threads in dict.fromkeys(entry["threads"] for entry in entries):
        chosen = [entry for entry in entries if entry["threads"] == threads]
        console.print(speed_table(record, chosen, threads))
    console.print(engine_table(record))
    machine = record["machine"]
    console.print(
        f"{machine['cpu']} {'/'.join(machine['family_model_stepping'])}, {machine['cores']} cores; "
        f"{', '.join(machine['extensions'])}"
    )
    for threads in dict.fromkeys(entry["threads"] for entry in entries):
        samples = [sample for sample in record["samples"] if sample["threads"] == threads]
        console.print(f"{threads} threads: {machine_line(samples)}", highlight=False)
    for engine in record["engines"]:
        about = f"{engine['version']}; {engine['system']}"
        console.print(f"{engine['name']}: {about}", highlight=False)


def speed_table(record: Record, entries: list[Record], threads: int) -> Table:
    """A row an engine, a column a workload: median, spread, how much faster the first is."""
    plural = "s" if threads > 1 else ""
    title = f"{record['model']['file']}, {record['date']}, {threads} thread{plural}: "
    table = Table(title=title + "tokens a second, median ± half the quartiles' distance")
    table.add_column("engine")
    workloads = list(dict.fromkeys(entry["workload"] for entry in entries))
    for workload in workloads:
        table.add_column(workload, justify="right")
    for engine in dict.fromkeys(entry["engine"] for entry in entries):
        cells = []
        for workload in workloads:
            found = [e for e in entries if (e["engine"], e["workload"]) == (engine, workload)]
            cells.append(speed_cell(found[0]) if found else "-")
        table.add_row(engine, *cells)
    return table


def speed_cell(entry: Record) -> str:
    """Median and spread; below, how many times faster the first engine is, or its shares."""
    names = {
        "read_bytes_per_s": "of reading",
        "int8_operations_per_s": "of int8",
        "amx_bf16_operations_per_s": "of AMX bf16",
    }
    lines = [f"{entry['tokens_per_second']:.4g} ±{entry['spread']:.0%}"]
    if "first_over_this" in entry:
        lines.append(f"{entry['first_over_this']:.2f}x")
    lines += [
        f"{entry[key]:.0%} {name}"
        for rate, name in names.items()
        if (key := f"share_of_{rate}") in entry
    ]
    return "\n".join(lines)


def engine_table(record: Record) -> Table:
    """Memory, load time and distance from the oracle."""
    table = Table(title="memory, loading, and mean KL divergence from float32 in nats")
    table.add_column("engine")
    for heading in ("peak memory", "loading", "process to ready", "KL, prompt", "KL, stepwise"):
        table.add_column(heading, justify="right")
    for engine in record["engines"]:
        qualities = engine.get("quality", {})
        table.add_row(
            engine["name"],
            f"{engine['peak_resident_bytes'] / 1e6:.0f} MB",
            f"{engine['load_seconds']:.2f} s",
            f"{engine['ready_seconds']:.2f} s",
            *(
                f"{qualities[form]['mean_kl_nats']:.5f}" if form in qualities else "-"
                for form in ("prompt", "stepwise")
            ),
        )
    return table


def machine_line(samples: list[Record]) -> str:
    """Medians of what the probe measured, and of what other processes took."""
    parts = []
    for key in samples[0]["machine"]:
        values = [s["machine"][key] for s in samples if s["machine"][key] is not None]
        if not values:
            continue
        middle = statistics.median(values)
        if key.endswith("_share"):
            parts.append(f"{middle:.0%} of {key.removesuffix('_share')} on average")
        elif key == "read_bytes_per_s":
            parts.append(f"read {middle / 1e9:.0f} GB/s")
        else:
            parts.append(f"{key.split('_operations')[0]} {middle / 1e9:.0f} GOP/s")
    busy = statistics.median(sample["others_busy"] for sample in samples)
    return ", ".join([*parts, f"others took {busy:.0%} of the processors"])
