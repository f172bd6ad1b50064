"""What an artifact's programs take, from the sketches and mappings that it keeps."""

from __future__ import annotations

import math

from infc.backends.dataflow.cost.amounts import Amounts
from infc.backends.dataflow.cost.constants import fitted
from infc.backends.dataflow.cost.predict import call_cost
from infc.backends.dataflow.cost.sketch_rules import holds
from infc.backends.dataflow.machine import Machine
from infc.backends.dataflow.signature import Timed
from infc.cost.estimate import Estimate, binding_resource
from infc.target.backend import CallPrediction
from infc.target.schema import Target
from infc.target.signature import other_programs


def predict_call(
    timed: Timed, target: Target, *, tokens: int, position: int, logit_rows: int
) -> CallPrediction:
    """One call; longer ones than the program takes at once are cut as they are when they run.

    Args:
        timed: the program.
        target: that it was made for, or the same machine with other figures.
        tokens: of the call.
        position: of the first one.
        logit_rows: whose logits are wanted.

    Raises:
        UserError: INF4003, the sketch lacks something, or contradicts itself or the mapping.
    """
    sketch, mapping = timed["sketch"], timed["mapping"]
    if not holds(sketch, mapping):
        raise other_programs()
    machine, known = Machine.of(target), fitted()
    most = min(sketch.most["t"], mapping.max_tokens)
    seconds, by_resource = 0.0, dict[str, float]()
    moved, operations = 0.0, 0.0
    for first in range(0, tokens, most):
        count = min(most, tokens - first)
        wanted = min(logit_rows, mapping.max_logit_rows) if first + count == tokens else 0
        cost = call_cost(
            sketch, machine, mapping,
            tokens=count, position=position + first, logit_rows=wanted, constants=known.constants,
        )  # fmt: skip
        amounts = Amounts.of(sketch, tokens=count, position=position + first, logit_rows=wanted)
        seconds += cost.seconds
        moved, operations = moved + amounts.bytes, operations + amounts.operations
        for name, spent in cost.by_resource.items():
            by_resource[name] = by_resource.get(name, 0.0) + spent
    residuals = known.residuals[sketch.phase]
    price = target.price_usd_per_hour
    time = Estimate(
        seconds * math.exp(residuals.low),
        seconds,
        seconds * math.exp(residuals.high),
        binding_resource(by_resource),
        by_resource,
        None if machine.chip_watts is None else machine.chip_watts * machine.chips * seconds,
        None if price is None else price * machine.chips * seconds / 3600.0,
    )
    return CallPrediction(time, moved, operations)
