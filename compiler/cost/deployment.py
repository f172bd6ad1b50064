"""A model on devices for a workload: times, throughput, power, money, and what fits the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from infc.cost.assumptions import assumptions_of
from infc.cost.bounds import Machinery
from infc.cost.engine import EngineProfile
from infc.cost.estimate import Estimate
from infc.cost.footprint import MemoryUse, footprint
from infc.cost.kernels.profile import Profile
from infc.cost.model_shape import ModelShape
from infc.cost.programs import Programs
from infc.cost.serving import serve
from infc.cost.transformer import ACTIVATION, Split, check_split
from infc.cost.workload import Workload
from infc.diagnostics import Code, UserError
from infc.memory.fit import FitReport
from infc.target.schema import Link, Target

_POWER_BASES = {
    "chip": "chips at full load, without host, cooling and network",
    "system": "whole systems at full load",
}


@dataclass(frozen=True)
class DeploymentEstimate:
    """What a deployment does.

    Attributes:
        split: of the model over the devices.
        ttft: time to first token, waiting for room included.
        tpot: time per output token after the first.
        running: requests in prefill or decoding at a time.
        wait_seconds: of the time to first token until there is room.
        tokens_per_s_per_user: output, after the first token.
        tokens_per_s: output of all requests together, prefills included.
        tokens_per_s_per_watt: that over the power of all devices; None where none is known.
        power_basis: which power that is.
        dollars_per_million_tokens: rent of all devices for as many output tokens; None where no
            price is known.
        memory: of the fullest device.
        memory_bytes: of all devices.
        fit: whether the workload fits the memory, and what would.
        dtypes: of the arithmetic.
        bound: the resource that output tokens spend most of their time on.
        fits: all requests of a batch do; of users who wait for one another, at least one does.
        assumptions: figures of the target that are not published and that the estimate leans on,
            and what the model takes for granted.
    """

    split: Split
    ttft: Estimate
    tpot: Estimate
    running: int
    wait_seconds: float
    tokens_per_s_per_user: float
    tokens_per_s: float
    tokens_per_s_per_watt: float | None
    power_basis: str
    dollars_per_million_tokens: float | None
    memory: MemoryUse
    memory_bytes: int
    fit: FitReport
    fits: bool
    dtypes: tuple[str, ...]
    bound: str

    assumptions: tuple[str, ...]


def split_over(
    shape: ModelShape, target: Target, devices: int, *, dtype: str, kv_dtype: str
) -> Split:
    """The usual split: as much tensor parallelism as heads and one machine allow, then stages.

    Raises:
        UserError: no split uses exactly so many devices (INF5001).
    """
    if devices < 1:
        raise UserError(Code.OPTION, f"expected at least 1 device, got {devices}")
    most = max(target.count, 1) if target.link("chips") else 1
    for tensor in range(min(devices, most, shape.heads), 0, -1):
        if devices % tensor:
            continue
        split = Split(tensor, devices // tensor, dtype, kv_dtype)
        try:
            check_split(shape, split)
        except UserError:
            continue
        return split
    raise UserError(
        Code.OPTION,
        f"expected a number of devices that {shape.name} can be spread over (its {shape.heads} "
        f"heads within {most} devices, its {shape.layers} layers over groups of them), "
        f"got {devices}",
    )


def deployment_estimate(
    shape: ModelShape,
    target: Target,
    *,
    devices: int,
    tensor_parallel: int | None = None,
    pipeline_parallel: int | None = None,
    dtype: str = "bf16",
    kv_dtype: str | None = None,
    workload: Workload,
    profile: Profile | None = None,
    engine: EngineProfile | None = None,
    link: Link | None = None,
    equal_lengths: bool = True,
    head_dtype: str = ACTIVATION,
    programs: Programs | None = None,
) -> DeploymentEstimate:
    """What a model on devices does.

    Args:
        shape: the model.
        target: one of the devices.
        devices: how many.
        tensor_parallel, pipeline_parallel: their product is `devices`; where one is None it
            follows from the other, where both are, `split_over` decides.
        dtype: of the weights of the blocks and the arithmetic with them.
        kv_dtype: of the KV cache; None is what the engine takes, without one 16 bits.
        workload: one user with a batch, or several users in a closed loop.
        profile: fitted constants of the target's kernels.
        engine: that serves; None counts the kernels alone.
        link: in place of the target's own link between chips.
        equal_lengths: see `infc.cost.serving.serve`.
        head_dtype: of the arithmetic with the vocabulary head.
        programs: that run in place of single kernels, with dtypes of their own; of one device.

    Raises:
        UserError: a split that is not possible, an unknown dtype (INF5001), a target without the
            dtype or without a link (INF3004).
    """
    if link is not None:
        target = target.model_copy(update={"links": (link, *target.links)})
    if programs is not None:
        dtype, kv_dtype = programs.dtype, programs.kv_dtype
    if kv_dtype is None:
        kv_dtype = ACTIVATION if engine is None else engine.cache_dtypes.get(dtype, ACTIVATION)
    if tensor_parallel is None and pipeline_parallel is None:
        split = split_over(shape, target, devices, dtype=dtype, kv_dtype=kv_dtype)
    else:
        split = _given_split(devices, tensor_parallel, pipeline_parallel, dtype, kv_dtype)
    split = replace(split, head_dtype=head_dtype)
    check_split(shape, split)
    machinery = Machinery(target, profile, engine, programs)
    held = footprint(shape, split, workload, target, engine, programs)
    served = serve(
        shape, split, workload, machinery, room=max(1, held.room), equal_lengths=equal_lengths
    )
    watts, price = power_watts(target), target.price_usd_per_hour
    rate = served.tokens_per_s
    return DeploymentEstimate(
        split=split,
        ttft=_priced(served.first_token, target, split.devices),
        tpot=_priced(served.output_token, target, split.devices),
        running=served.running,
        wait_seconds=served.wait,
        tokens_per_s_per_user=1.0 / served.output_token.mid,
        tokens_per_s=rate,
        tokens_per_s_per_watt=None if watts is None else rate / (watts * split.devices),
        power_basis=_POWER_BASES[target.power_basis],
        dollars_per_million_tokens=(
            None if price is None else price * split.devices / 3600.0 / rate * 1e6
        ),
        memory=held.use,
        memory_bytes=held.use.total * split.devices,
        fit=held.fit,
        fits=held.fit.fits or (workload.concurrency > 1 and held.room > 0),
        dtypes=(
            tuple(dict.fromkeys((split.dtype, split.head_dtype, ACTIVATION)))
            if programs is None
            else tuple(programs.dtypes)
        ),
        bound=served.output_token.bound,
        assumptions=assumptions_of(
            split, workload, machinery, shape.weights, equal_lengths=equal_lengths
        ),
    )


def power_watts(target: Target) -> float | None:
    """Of one device with its ports at full load."""
    link = target.link("chips")
    ports = 0.0 if link is None or link.power_watts is None else link.power_watts
    return None if target.power_watts is None else target.power_watts + ports


def _priced(times: Estimate, target: Target, devices: int) -> Estimate:
    """With the energy and the rent of all devices."""
    watts, price = power_watts(target), target.price_usd_per_hour
    return replace(
        times,
        energy_joules=None if watts is None else watts * devices * times.mid,
        dollars=None if price is None else price * devices * times.mid / 3600.0,
    )


def _given_split(
    devices: int, tensor: int | None, pipeline: int | None, dtype: str, kv_dtype: str
) -> Split:
    tensor = tensor if tensor is not None else devices // max(1, pipeline or 1)
    pipeline = pipeline if pipeline is not None else devices // max(1, tensor)
    if tensor * pipeline != devices:
        raise UserError(
            Code.OPTION,
            f"expected tensor times pipeline parallelism to be the {devices} devices, "
            f"got {tensor} times {pipeline}",
        )
    return Split(tensor, pipeline, dtype, kv_dtype)
