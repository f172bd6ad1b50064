"""Deployments side by side: all targets, the best of them, phases on two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from infc.cost.calibrations import load_calibrations
from infc.cost.deployment import DeploymentEstimate
from infc.cost.disaggregation import Side, decode_part, disaggregate, prefill_part
from infc.diagnostics import Code, UserError
from infc.diagnostics.progress import Progress
from infc.driver.estimation import Deployment, Model, Setup, again, check_setup, deploy
from infc.target.schema import Target

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Requests at a time along the curve of a comparison."""
Objective = Callable[[DeploymentEstimate], float | None]
OBJECTIVES: Mapping[str, Objective] = {
    "latency": lambda estimate: -estimate.tpot.mid,
    "throughput": lambda estimate: estimate.tokens_per_s,
    "watt": lambda estimate: estimate.tokens_per_s_per_watt,
    "dollar": lambda estimate: (
        None
        if estimate.dollars_per_million_tokens is None
        else -estimate.dollars_per_million_tokens
    ),
}
"""What `--optimize` compares, more is better: the time of an output token, the output tokens a
second of all devices, those over their power, and those over their rent."""


@dataclass(frozen=True)
class Comparison:
    """Several deployments of one model.

    Attributes:
        rows: those that are possible.
        left_out: name and reason of the others.
        curves: the rows again with more and more requests at a time, by name.
    """

    rows: Sequence[Deployment]
    left_out: Sequence[tuple[str, str]]
    curves: Mapping[str, Sequence[Deployment]] = field(default_factory=dict)


def compare(
    model: Model,
    targets: Sequence[tuple[str, Target]],
    setup: Setup,
    *,
    curves: bool,
    progress: Progress | None = None,
) -> Comparison:
    """A model on each of some named targets; what cannot be is left out with its reason.

    Args:
        model, targets, setup: what, on which, how.
        curves: with more and more requests at a time, too.
        progress: is told the target at work and the part of all that is done.

    Raises:
        UserError: the setup means nothing on any target (INF5001).
    """
    check_setup(setup)
    rows: list[Deployment] = []
    left_out: list[tuple[str, str]] = []
    measured = load_calibrations()
    drawn: dict[str, Sequence[Deployment]] = {}
    for number, (name, target) in enumerate(targets):
        if progress is not None:
            progress(name, number / len(targets))
        try:
            row = deploy(model, target, setup, name, measured)
        except UserError as error:
            left_out.append((name, error.diagnostic.message))
            continue
        rows.append(row)
        if curves:
            drawn[row.name] = _curve(row)
    return Comparison(rows, left_out, drawn)


def ranked(comparison: Comparison, objective: str) -> list[Deployment]:
    """The rows, the best first; those without the figure that the objective needs are last."""
    score = OBJECTIVES[objective]

    def rank(row: Deployment) -> tuple[bool, float]:
        value = score(row.estimate)
        return value is None, 0.0 if value is None else -value

    return sorted(comparison.rows, key=rank)


def best(comparison: Comparison, objective: str) -> Deployment:
    """The best of the rows, the first among equals.

    Raises:
        UserError: no row is possible, or none has the figure that the objective needs (INF3004).
    """
    check_possible(comparison)
    row = ranked(comparison, objective)[0]
    if OBJECTIVES[objective](row.estimate) is None:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            "no target that holds the model has a "
            + {"watt": "power", "dollar": "price"}.get(objective, "figure"),
            hint="choose another --optimize",
        )
    return row


def check_possible(comparison: Comparison) -> None:
    """Raise UserError (INF3004) where there is nothing to compare."""
    if not comparison.rows:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            "no target holds the model",
            notes=[f"{name}: {reason}" for name, reason in comparison.left_out],
            hint="leave --devices out to try as many of each as hold the model",
        )


def compare_phases(
    model: Model,
    prefill: Sequence[tuple[str, Target]],
    decode: Sequence[tuple[str, Target]],
    setup: Setup,
) -> Comparison:
    """A model whose phases are on two groups of devices, `setup.devices` of each.

    Every target for prefill with every one for decoding; what cannot be is left out with its
    reason.
    """
    parts = (prefill_part(setup.workload), decode_part(setup.workload))
    first, second = (
        compare(model, targets, replace(setup, workload=part), curves=False)
        for targets, part in zip((prefill, decode), parts, strict=True)
    )
    rows: list[Deployment] = []
    left_out = [
        (f"{name} ({phase})", reason)
        for phase, side in (("prefill", first), ("decode", second))
        for name, reason in side.left_out
    ]
    for pair in product(first.rows, second.rows):
        try:
            rows.append(_handed_over(model, pair[0], pair[1], setup))
        except UserError as error:
            left_out.append((f"{pair[0].name} to {pair[1].name}", error.diagnostic.message))
    return Comparison(rows, left_out)


def _handed_over(model: Model, prefill: Deployment, decode: Deployment, setup: Setup) -> Deployment:
    side = Side(prefill.target, prefill.estimate)
    estimate, handover = disaggregate(
        model.shape, setup.workload, side, Side(decode.target, decode.estimate)
    )
    return replace(
        decode,
        name=f"{prefill.name} to {decode.name}",
        setup=replace(decode.setup, workload=setup.workload),
        estimate=estimate,
        handover=handover,
        prefill=side,
    )


def deploy_phases(model: Model, prefill: Target, decode: Target, setup: Setup) -> Deployment:
    """A model whose prefill and decoding are on different targets, `setup.devices` of each.

    Raises:
        UserError: as `deploy`, or a target has no link between machines (INF3004).
    """
    parts = (prefill_part(setup.workload), decode_part(setup.workload))
    measured = load_calibrations()
    first, second = (
        deploy(model, target, replace(setup, workload=part), measured=measured)
        for target, part in zip((prefill, decode), parts, strict=True)
    )
    return _handed_over(model, first, second, setup)


def _curve(row: Deployment) -> list[Deployment]:
    """The same deployment with more and more requests at a time, as long as they fit."""
    points = []
    workload = row.setup.workload
    for requests in _BATCHES:
        changed = (
            replace(workload, concurrency=requests)
            if workload.concurrency > 1
            else replace(workload, batch=requests)
        )
        point = replace(row, setup=replace(row.setup, workload=changed))
        estimate = again(point, row.target)
        if not estimate.fits:
            break
        points.append(replace(point, estimate=estimate))
    return points
