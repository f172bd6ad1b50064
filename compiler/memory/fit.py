"""Whether weights, caches and activations fit a memory, and the most that does, ahead of any run.

    bytes(context, batch) = fixed + activations(batch)
                            + batch * (per sequence + per position * context)

Weights and programs are fixed; a KV cache takes bytes for each position of each sequence; what a
sequence takes whatever its length (a cache that is a ring, a recurrent state) is counted once for
each of them. All figures are those of one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from infc.diagnostics import Code, InternalError, UserError
from infc.diagnostics.quantities import human_bytes

_ANY_BATCH = 2**32
"""What so many sequences fit in is not limited by them."""


@dataclass(frozen=True)
class FitReport:
    """What fits.

    Attributes:
        fits: the wanted context and batch do.
        needed_bytes: that they take.
        capacity_bytes: that there are.
        largest_context: positions of each of the wanted sequences, no more than the model was
            trained for; 0 where not even one fits, None where nothing limits it.
        largest_batch: sequences of the wanted context; 0 and None as above.
        context_limit: what `largest_context` follows from: the `memory`, or what the `model` was
            trained for; None where nothing limits it.
        message: one sentence for the user, lower case, without a full stop.
    """

    fits: bool
    needed_bytes: int
    capacity_bytes: int
    largest_context: int | None
    largest_batch: int | None
    context_limit: Literal["memory", "model"] | None
    message: str


def fit_report(
    capacity_bytes: int,
    fixed_bytes: int,
    bytes_per_position: float,
    bytes_per_sequence: float,
    wanted_context: int,
    wanted_batch: int,
    trained_context: int | None = None,
    activation_bytes: Callable[[int], int] = lambda batch: 0,
) -> FitReport:
    """Compare what is wanted with what there is.

    Args:
        capacity_bytes: of the memory, of one device.
        fixed_bytes: weights, programs: whatever the context and the batch.
        bytes_per_position: of one sequence; may be a fraction where devices share a cache.
        bytes_per_sequence: whatever its length; a fraction likewise.
        wanted_context: positions of each sequence, prompt and output together.
        wanted_batch: sequences at once.
        trained_context: positions that the model was trained for, where it says.
        activation_bytes: of so many sequences at once, whatever the context; never falls with them.

    Raises:
        UserError: a capacity (INF2101), a context or a batch (INF5001) below one.
        InternalError: a negative amount of bytes.
    """
    if capacity_bytes < 1:
        raise UserError(
            Code.PLAN, f"expected a memory of at least one byte, got {capacity_bytes} bytes"
        )
    for name, wanted in (("context", wanted_context), ("batch", wanted_batch)):
        if wanted < 1:
            raise UserError(Code.OPTION, f"expected a {name} of at least 1, got {wanted}")
    amounts = {"fixed": fixed_bytes, "a position": bytes_per_position}
    for name, amount in (amounts | {"a sequence": bytes_per_sequence}).items():
        if not 0 <= amount < math.inf:
            raise InternalError(f"expected bytes of {name} of at least zero, got {amount}")

    # Exact: a float's floor could be one position too many.
    position, sequence = Fraction(bytes_per_position), Fraction(bytes_per_sequence)
    whole, activations = sequence + position * wanted_context, activation_bytes(wanted_batch)
    fixed = fixed_bytes + activations
    needed = fixed + math.ceil(wanted_batch * whole)
    held = _most(capacity_bytes - fixed - wanted_batch * sequence, wanted_batch * position)
    context, limit = _limited(held, trained_context)
    batch = largest_batch(capacity_bytes - fixed_bytes, whole, activation_bytes)
    found = FitReport(
        needed <= capacity_bytes, needed, capacity_bytes, context, batch, limit, message=""
    )
    return replace(found, message=_message(found, fixed, wanted_context, wanted_batch))


def largest_batch(free: int, each: Fraction, activation_bytes: Callable[[int], int]) -> int | None:
    """The most sequences of `each` bytes and their activations in `free`; None for any number.

    `activation_bytes` is as in `fit_report`.
    """
    most = _most(Fraction(free), each)
    fits, beyond = 0, _ANY_BATCH if most is None else most + 1
    if most is None and activation_bytes(beyond) <= free:
        return None
    while fits + 1 < beyond:
        middle = (fits + beyond) // 2
        if activation_bytes(middle) + middle * each <= free:
            fits = middle
        else:
            beyond = middle
    return fits


def _limited(
    held: int | None, trained: int | None
) -> tuple[int | None, Literal["memory", "model"] | None]:
    """The largest context by what the memory holds and the model was trained for, and which of
    both it is."""
    if trained is not None and (held is None or trained < held):
        return trained, "model"
    return held, None if held is None else "memory"


def _most(free: Fraction, each: Fraction) -> int | None:
    """How many pieces of `each` bytes go into `free`; None for any number."""
    if each == 0:
        return None if free >= 0 else 0
    return max(0, math.floor(free / each))


def _message(found: FitReport, fixed: int, wanted_context: int, wanted_batch: int) -> str:
    """What a person wants to know: what fits, and what is missing for the rest."""
    needed, capacity = found.needed_bytes, found.capacity_bytes
    context, batch = found.largest_context, found.largest_batch
    missing = f"{human_bytes(needed - capacity)} more"
    longest = f"context {context}"
    if found.context_limit == "model":
        longest = f"all of the model's {context} positions"
    if found.fits:
        wanted = f"context {wanted_context} and batch {wanted_batch}"
        beyond = context is not None and context < wanted_context
        limits = [longest] if context is not None and not beyond else []
        limits += [f"batch {batch}"] if batch is not None else []
        room = f"; room for {' or '.join(limits)}" if limits else ""
        warning = f"; the model was trained for context {context}" if beyond else ""
        return (
            f"fits with {wanted}: {human_bytes(needed)} of {human_bytes(capacity)}{room}{warning}"
        )
    if context:
        of = f" at batch {wanted_batch}" if wanted_batch > 1 else ""
        return f"fits with {longest}{of}; context {wanted_context} needs {missing}"
    if batch:
        return (
            f"fits with batch {batch} at context {wanted_context}; "
            f"batch {wanted_batch} needs {missing}"
        )
    return (
        f"does not fit: context {wanted_context} and batch {wanted_batch} take "
        f"{human_bytes(needed)} of {human_bytes(capacity)}, {human_bytes(fixed)} of it "
        "whatever the context"
    )
