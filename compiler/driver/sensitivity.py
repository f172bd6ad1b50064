"""What 10% more of each resource would buy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from infc.cost.kernels.queries import DTYPE_BYTES
from infc.diagnostics import UserError
from infc.driver.estimation import Deployment, again
from infc.target.changes import with_scaled
from infc.target.schema import Target

STEP = 0.1


@dataclass(frozen=True)
class Sensitivity:
    """What one better figure would change, as parts of what it is: 0.05 is 5% more, -0.05 less.

    Attributes:
        figure: the name that `--set` takes.
        change: of the figure; negative for latencies, where less is better.
        ttft, tpot: of the times.
        tokens_per_s: of the output of all requests.
    """

    figure: str
    change: float
    ttft: float
    tpot: float
    tokens_per_s: float


def sensitivity(deployment: Deployment) -> list[Sensitivity]:
    """Every resource that a deployment uses, the one that buys the most output first."""
    before = deployment.estimate
    found = []
    for figure, change in _figures(deployment):
        try:
            target = with_scaled(deployment.target, figure, 1.0 + change)
        except UserError:
            continue  # beyond all plausible machines
        after = again(deployment, target)
        found.append(
            Sensitivity(
                figure,
                change,
                after.ttft.mid / before.ttft.mid - 1.0,
                after.tpot.mid / before.tpot.mid - 1.0,
                after.tokens_per_s / before.tokens_per_s - 1.0,
            )
        )
    return sorted(found, key=lambda row: (-row.tokens_per_s, row.figure))


def _figures(deployment: Deployment) -> Iterator[tuple[str, float]]:
    """The figures that estimates read, each with its change for the better."""
    target = deployment.target
    memory = target.holding_memory()
    yield f"memory.{memory.name}.bandwidth", STEP
    alone, together = memory.unit_bandwidth_bytes_per_s, memory.bandwidth_bytes_per_s
    # One unit never draws more than all of them.
    if alone is not None and alone * (1.0 + STEP) <= together:
        yield f"memory.{memory.name}.unit_bandwidth", STEP
    yield f"memory.{memory.name}.size", STEP
    yield from ((name, STEP) for name in _operations(target, deployment.estimate.dtypes))
    if target.launch_ns:
        yield "launch", -STEP
    if "barrier" in deployment.estimate.tpot.by_resource:
        yield "barrier", -STEP
    link = target.link("chips")
    if link is not None and deployment.devices > 1:
        yield f"link.{link.name}.bandwidth", STEP
        yield f"link.{link.name}.latency", -STEP


def _operations(target: Target, dtypes: Collection[str]) -> list[str]:
    """The rates of what is computed in."""
    return [
        f"compute.{unit.name}.operations.{name}"
        for unit in target.compute
        for name in unit.operations_per_s
        if name in dtypes and name in DTYPE_BYTES
    ]
