"""Estimates as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infc.cli.output import write_text
from infc.cli.tables import print_table
from infc.cli.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from infc.cost.estimate import Estimate
    from infc.cost.footprint import MemoryUse
    from infc.driver.comparison import Comparison
    from infc.driver.estimation import Deployment, Model
    from infc.driver.sensitivity import Sensitivity

UNKNOWN = "unknown"


def deployment_object(
    model: Model, deployment: Deployment, rows: Sequence[Sensitivity] = ()
) -> dict[str, Any]:
    """One deployment; what is not known is null, and `assumptions` says why."""
    estimate, workload = deployment.estimate, deployment.setup.workload
    weights = deployment.counted.shape.weights
    report: dict[str, Any] = {
        "model": model.shape.name,
        "target": deployment.name,
        "devices": deployment.devices,
        "tensor_parallel": estimate.split.tensor,
        "pipeline_parallel": estimate.split.pipeline,
        "dtype": estimate.split.dtype,
        "weight_types": None if weights is None else list(weights.types),
        "kv_dtype": estimate.split.kv_dtype,
        "engine": deployment.engine and deployment.engine.name,
        "batch": workload.batch,
        "prompt_tokens": workload.prompt,
        "new_tokens": workload.new_tokens,
        "concurrency": workload.concurrency,
        **_times("time_to_first_token", estimate.ttft),
        **_times("time_per_output_token", estimate.tpot),
        "output_tokens_per_second_per_user": estimate.tokens_per_s_per_user,
        "output_tokens_per_second_total": estimate.tokens_per_s,
        "tokens_per_second_per_watt": estimate.tokens_per_s_per_watt,
        "power_basis": estimate.power_basis,
        "dollars_per_million_output_tokens": estimate.dollars_per_million_tokens,
        "memory_bytes": estimate.memory_bytes,
        "memory_bytes_of_fullest_device": estimate.memory.total,
        "weight_bytes_of_fullest_device": estimate.memory.weights,
        "kv_cache_bytes_of_fullest_device": estimate.memory.kv_cache,
        "activation_bytes_of_fullest_device": estimate.memory.activations,
        "engine_bytes_of_fullest_device": estimate.memory.reserved,
        "memory_bytes_of_each_device": estimate.fit.capacity_bytes,
        "largest_context": estimate.fit.largest_context,
        "largest_batch": estimate.fit.largest_batch,
        "running_requests": estimate.running,
        "wait_seconds": estimate.wait_seconds,
        "fits": estimate.fits,
        "bound": estimate.bound,
        "time_to_first_token_bound": estimate.ttft.bound,
        "assumptions": list(estimate.assumptions),
    }
    if deployment.handover is not None and deployment.prefill is not None:
        report |= {
            "prefill_target": deployment.prefill.target.name,
            "prefill_devices": deployment.prefill.devices,
            "kv_transfer_seconds": deployment.handover.seconds,
            "kv_transfer_bytes": deployment.handover.bytes,
            "limited_by": deployment.handover.busiest,
        }
    if rows:
        report["sensitivity"] = [
            {
                "figure": row.figure,
                "change": row.change,
                "time_to_first_token_change": row.ttft,
                "time_per_output_token_change": row.tpot,
                "output_tokens_per_second_total_change": row.tokens_per_s,
            }
            for row in rows
        ]
    return report


def comparison_object(model: Model, comparison: Comparison) -> dict[str, Any]:
    """Several deployments, and the targets that were left out."""
    return {
        "comparison": [deployment_object(model, row) for row in comparison.rows],
        "left_out": [{"target": name, "reason": reason} for name, reason in comparison.left_out],
    }


def print_deployment(model: Model, deployment: Deployment, rows: Sequence[Sensitivity]) -> None:
    """One deployment, what more of each resource would buy, and what was assumed."""
    estimate = deployment.estimate
    split, memory = estimate.split, estimate.memory
    engine = f", engine {deployment.engine.name}" if deployment.engine else ""
    write_text(f"{model.shape.name} on {_where(deployment)}{engine}\n{_asked(deployment)}\n\n")
    print_table(
        ["", "expected", "range", "bound"],
        [
            _time_row("time to first token", estimate.ttft),
            _time_row("time per output token", estimate.tpot),
        ],
        right=["expected", "range"],
    )
    lines = [
        f"tokens/s: {_rate(estimate.tokens_per_s_per_user)} a user, "
        f"{_rate(estimate.tokens_per_s)} in all",
        f"tokens/s/W: {_known(estimate.tokens_per_s_per_watt)} ({estimate.power_basis})",
        f"$ per million output tokens: {_known(estimate.dollars_per_million_tokens)}",
        f"memory of the fullest device: {human_bytes(memory.total)} ({_parts(memory)}); "
        f"{estimate.fit.message}",
    ]
    if split.devices > 1:
        lines.append(f"split: {split.tensor} chips a block, {split.pipeline} pipeline stages")
    handover = deployment.handover
    if handover is not None:
        lines.append(
            f"KV transfer: {human_bytes(handover.bytes)} in {human_seconds(handover.seconds)}; "
            f"requests a second are limited by {handover.busiest}"
        )
    write_text("\n" + "\n".join(lines) + "\n")
    if rows:
        write_text("\nWhat 10% of each resource would buy:\n")
        print_table(
            ["figure", "change", "first token", "output token", "tokens/s"],
            [
                [row.figure, *map(_percent, (row.change, row.ttft, row.tpot, row.tokens_per_s))]
                for row in rows
            ],
            right=["change", "first token", "output token", "tokens/s"],
        )
    write_text("\nAssumptions:\n" + "".join(f"- {text}\n" for text in estimate.assumptions))


def print_comparison(model: Model, comparison: Comparison, objective: str = "latency") -> None:
    """A line for each deployment, the best first, and what was left out."""
    from infc.driver.comparison import ranked

    rows = ranked(comparison, objective)[:_MOST_ROWS]
    if rows:
        write_text(f"{heading(model, rows)}\n\n")
        print_table(
            ["target", "devices", "dtype", *_COLUMNS],
            [_row(row) for row in rows],
            right=["devices", *_COLUMNS],
        )
    if len(comparison.rows) > len(rows):
        write_text(f"and {len(comparison.rows) - len(rows)} others; --json has all\n")
    if comparison.left_out:
        write_text("\nLeft out:\n" + "".join(f"- {n}: {why}\n" for n, why in comparison.left_out))
    if rows:
        write_text("\nWhat each leans on: infc estimate with that target alone, or --json\n")


def heading(model: Model, deployments: Sequence[Deployment]) -> str:
    """The model and the workload of all deployments in one line."""
    return f"{model.shape.name}, {_asked(*deployments)}"


def print_choice(chosen: Deployment, objective: str) -> None:
    """What an objective chose."""
    write_text(f"\nBest by {_OBJECTIVES[objective]}: {chosen.name}\n\n")


def print_plot(path: Path) -> None:
    """Where a plot is."""
    write_text(f"\n{path}: tokens/s of a user against tokens/s/W and against dollars\n")


_OBJECTIVES = {
    "latency": "the time of an output token",
    "throughput": "output tokens a second, on the fewest devices that hold the model or --devices",
    "watt": "output tokens a second for each watt",
    "dollar": "output tokens for each dollar",
}


_MOST_ROWS = 20
_COLUMNS = ("first token", "tokens/s a user", "range", "tokens/s", "tokens/s/W", "$/M tokens")


def _row(row: Deployment) -> list[str]:
    estimate = row.estimate
    low, high = 1.0 / estimate.tpot.high, 1.0 / estimate.tpot.low
    return [
        row.name,
        str(row.devices),
        estimate.split.dtype,
        human_seconds(estimate.ttft.mid),
        _rate(estimate.tokens_per_s_per_user),
        f"{_rate(low)} to {_rate(high)}",
        _rate(estimate.tokens_per_s),
        _known(estimate.tokens_per_s_per_watt),
        _known(estimate.dollars_per_million_tokens),
    ]


def _times(name: str, times: Estimate) -> dict[str, float]:
    return {
        f"{name}_seconds": times.mid,
        f"{name}_seconds_low": times.low,
        f"{name}_seconds_high": times.high,
    }


def _time_row(name: str, times: Estimate) -> list[str]:
    spread = f"{human_seconds(times.low)} to {human_seconds(times.high)}"
    return [name, human_seconds(times.mid), spread, times.bound]


def _where(deployment: Deployment) -> str:
    there = f"{deployment.devices} x {deployment.target.name}"
    if deployment.prefill is None:
        return there if deployment.name == deployment.target.name else deployment.name
    side = deployment.prefill
    return f"{side.devices} x {side.target.name} (prefill) and {there} (decode)"


def _asked(deployment: Deployment, *others: Deployment) -> str:
    """The workload in words; what the first of several deployments was asked, all were."""
    workload, split = deployment.setup.workload, deployment.estimate.split
    stored = deployment.counted.shape.weights
    weights = split.dtype if stored is None else f"{', '.join(stored.types)} as in the file"
    caches = dict.fromkeys(row.estimate.split.kv_dtype for row in (deployment, *others))
    users = (
        f"{workload.concurrency} users" if workload.concurrency > 1 else f"batch {workload.batch}"
    )
    return (
        f"{users}, prompt {workload.prompt}, {workload.new_tokens} new tokens, "
        f"weights {weights}, KV cache {' or '.join(caches)}"
    )


def _parts(memory: MemoryUse) -> str:
    """What the bytes of a device are for."""
    parts = {
        "weights": memory.weights,
        "KV cache": memory.kv_cache,
        "activations": memory.activations,
        "engine": memory.reserved,
    }
    return ", ".join(f"{name} {human_bytes(taken)}" for name, taken in parts.items() if taken)


def _rate(per_s: float) -> str:
    """Four figures at most below a thousand, whole numbers beyond."""
    return f"{per_s:.4g}" if per_s < 1000 else f"{per_s:.0f}"


def _known(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _percent(part: float) -> str:
    return f"{100 * part:+.1f}%" if abs(part) >= 5e-4 else "0"
