"""What a model would do on machines that need not be here: `infc estimate`.

One deployment of a model; `infc.driver.comparison` has several, and those that share the phases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from infc.cost.calibrations import NO_ENGINE, Calibrations, find_engine, load_calibrations
from infc.cost.deployment import DeploymentEstimate, deployment_estimate
from infc.cost.disaggregation import Handover, Side
from infc.cost.engine import EngineProfile
from infc.cost.kernels.profile import Profile
from infc.cost.kernels.queries import DTYPE_BYTES
from infc.cost.model_shape import ModelShape, read_shape, shape_from_source
from infc.cost.transformer import ACTIVATION
from infc.cost.workload import Workload
from infc.diagnostics import Code, UserError
from infc.driver.own_programs import OwnPrograms, PlannedPrograms, holds_cache, makes_programs
from infc.frontends import open_model
from infc.target.schema import ComputeUnit, Target

MOST_DEVICES = 4096
"""As many devices as are tried where none are asked for and a chip links that many."""
_ROUNDS = 5
"""As often as programs are planned again for the requests that fit beside them."""
_NEAR = 0.02
"""Programs for a number of requests stand for those of a number so near."""
_CONVERTED = {"bf16": "f32", "f16": "f32", "fp4": "int8"}
"""What a processor without arithmetic in a dtype converts it to."""


@dataclass(frozen=True)
class Model:
    """A model without its weights.

    Attributes:
        shape: its sizes, and what its matrices take in a file.
        path: of the file or folder; None where there are sizes alone.
    """

    shape: ModelShape
    path: Path | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the cost model that stands for its weights, but for the head."""
        return "bf16" if self.shape.weights is None else self.shape.weights.dtype

    @property
    def head_dtype(self) -> str:
        """The same of the vocabulary head."""
        return ACTIVATION if self.shape.weights is None else self.shape.weights.head_dtype

    def counted_by_dtype(self) -> Model:
        """The model of which only the sizes count."""
        return Model(replace(self.shape, weights=None))


@dataclass(frozen=True)
class Setup:
    """How a model is served, wherever.

    Attributes:
        workload: what users ask for.
        devices: how many; None is the fewest that hold the model.
        tensor_parallel: devices that share a block; None leaves it to the cost model.
        dtype: of the weights; None takes those of the file, of mere sizes 16 bits.
        kv_dtype: of the KV cache; None is what the engine takes, without one 16 bits.
        engine: that serves, as in `Calibrations.engine`.
        equal_lengths: all requests have exactly the prompt and the answer of the workload.
    """

    workload: Workload
    devices: int | None = None
    tensor_parallel: int | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    engine: str | None = None
    equal_lengths: bool = True


@dataclass(frozen=True)
class Deployment:
    """A model on devices.

    Attributes:
        name: of the target, and what was set for it.
        target: one of the devices.
        devices: how many.
        setup: with the devices and the dtype that were chosen.
        profile: constants of its kernels, if any were measured.
        engine: that serves; None counts the kernels alone.
        counted: the model as it was counted: with the weights of its file, or by a dtype.
        programs: that its backend would make, where these were counted.
        estimate: what they do.
        handover: between the phases, where `prefill` is on other devices.
        prefill: the prefill side; then `target` and `devices` are the decode side.
    """

    name: str
    target: Target
    devices: int
    setup: Setup
    profile: Profile | None
    engine: EngineProfile | None
    counted: Model
    programs: OwnPrograms | None
    estimate: DeploymentEstimate
    handover: Handover | None = None
    prefill: Side | None = None


def read_model(path: Path) -> Model:
    """The sizes of a GGUF file, a Hugging Face folder or a config.json.

    Raises:
        UserError: INF1001 to INF1009.
    """
    if path.suffix == ".json":
        return Model(read_shape(path))
    source = open_model(path)
    try:
        return Model(shape_from_source(source), path)
    finally:
        source.close()


def deploy(
    model: Model,
    target: Target,
    setup: Setup,
    name: str | None = None,
    measured: Calibrations | None = None,
) -> Deployment:
    """A model on a target.

    Args:
        model, target, setup: what, where, how.
        name: of the deployment; None is that of the target.
        measured: what `load_calibrations` read; None reads it.

    Raises:
        UserError: it does not fit (INF2101), the target lacks a dtype or a link (INF3004), or no
            split has so many devices (INF5001).
    """
    check_setup(setup)
    measured = measured or load_calibrations()
    engine = measured.engine(target, setup.engine)
    counted = model if setup.dtype is None else model.counted_by_dtype()
    programs = None
    if engine is None and counted.path is not None and makes_programs(target):
        programs = OwnPrograms(counted.path, target)
    else:  # programs compute in what there is, single kernels also in what is converted
        target = with_conversions(target)
    case = _Case(counted, target, measured.profile(target), engine, programs)
    setup = replace(setup, dtype=setup.dtype or _dtype_for(counted.dtype, case.target))
    if setup.devices is None:
        setup = replace(setup, devices=_fewest(case, setup))
    estimate = case.estimate(setup)
    if not estimate.fits:
        raise _does_not_fit(case, setup, estimate)
    return Deployment(
        name or target.name,
        case.target,
        estimate.split.devices,
        setup,
        case.profile,
        engine,
        counted,
        programs,
        estimate,
    )


def again(deployment: Deployment, target: Target) -> DeploymentEstimate:
    """The same deployment with other figures of its target."""
    case = _Case(
        deployment.counted, target, deployment.profile, deployment.engine, deployment.programs
    )
    return case.estimate(deployment.setup)


def with_conversions(target: Target) -> Target:
    """A processor also computes in dtypes that it converts, at the rate of the wider one."""
    if target.kind != "cpu":
        return target
    units, notes = [], dict(target.assumptions)
    for unit in target.compute:
        added = {
            dtype: unit.operations_per_s[wider]
            for dtype, wider in _CONVERTED.items()
            if dtype not in unit.operations_per_s and wider in unit.operations_per_s
        }
        for dtype in added:
            path = f"compute.{unit.name}.operations_per_s.{dtype}"
            notes[path] = f"converted to {_CONVERTED[dtype]}, at whose rate it computes"
        units.append(ComputeUnit.model_validate(_with_operations(unit, added)))
    return target.model_copy(update={"compute": tuple(units), "assumptions": notes})


def _with_operations(unit: ComputeUnit, added: Mapping[str, float]) -> dict[str, object]:
    return unit.model_dump() | {"operations_per_s": {**unit.operations_per_s, **added}}


@dataclass(frozen=True)
class _Case:
    """What stays the same while a setup is looked for."""

    model: Model
    target: Target
    profile: Profile | None
    engine: EngineProfile | None
    programs: OwnPrograms | None

    def estimate(self, setup: Setup) -> DeploymentEstimate:
        """What the devices of a setup do, whether or not the model fits them."""
        workload, owned = setup.workload, self.programs
        if owned is None or setup.devices not in (None, 1) or not holds_cache(setup.kv_dtype):
            return self._estimate(setup, None)
        # Who waits has no rows in the programs, whose memory decides who waits: a few rounds meet.
        requests = workload.at_once
        for _ in range(_ROUNDS):
            programs = owned.planned(workload, requests, setup.kv_dtype)
            found = self._estimate(setup, programs)
            if abs(found.running - requests) <= _NEAR * requests:
                break
            requests = found.running
        return found

    def _estimate(self, setup: Setup, programs: PlannedPrograms | None) -> DeploymentEstimate:
        return deployment_estimate(
            self.model.shape,
            self.target if programs is not None else with_conversions(self.target),
            devices=setup.devices or 1,
            tensor_parallel=setup.tensor_parallel,
            dtype=setup.dtype or self.model.dtype,
            kv_dtype=setup.kv_dtype,
            workload=setup.workload,
            profile=self.profile,
            engine=self.engine,
            equal_lengths=setup.equal_lengths,
            head_dtype=_dtype_for(self.model.head_dtype, self.target),
            programs=programs,
        )

    def fits(self, setup: Setup) -> bool:
        """Whether a setup is possible."""
        try:
            return self.estimate(setup).fits
        except UserError:
            return False


def check_setup(setup: Setup) -> None:
    """Raise UserError (INF5001) where a setup names a dtype or an engine that does not exist."""
    if setup.engine is not None and setup.engine != NO_ENGINE:
        find_engine(setup.engine)
    for option, dtype in (("--dtype", setup.dtype), ("--kv-dtype", setup.kv_dtype)):
        if dtype is not None and dtype not in DTYPE_BYTES:
            raise UserError(Code.OPTION, f"expected {option} {', '.join(DTYPE_BYTES)}, got {dtype}")


def _dtype_for(dtype: str, target: Target) -> str:
    """The dtype of some weights, or the next wider one that the target computes in, or its widest.

    Floats of 8 bits are no integers times one scale.
    """
    known = {name for unit in target.compute for name in unit.operations_per_s}
    exact = known & set(DTYPE_BYTES) - ({"int8"} if dtype == "fp8" else set())
    wide = sorted(exact, key=lambda name: (DTYPE_BYTES[name], name))
    if dtype in known:
        return dtype
    wider = [name for name in wide if DTYPE_BYTES[name] >= DTYPE_BYTES[dtype]]
    return (wider or wide[-1:] or [dtype])[0]


def _fewest(case: _Case, setup: Setup) -> int:
    """The least power of two of devices that holds the workload; of all too few, as many as are.

    Where so many are to share each layer, that many times a power of two.
    """
    most = 1 if not case.target.links else min(MOST_DEVICES, max(case.target.count, 64))
    tried = least = setup.tensor_parallel or 1
    for devices in (least * 2**power for power in range(max(1, most // least).bit_length())):
        try:
            fits = case.estimate(replace(setup, devices=devices)).fits
        except UserError as error:
            if error.code is not Code.OPTION:
                raise
            continue  # the model cannot be spread over so many
        tried = devices
        if fits:
            break
    return tried


def _does_not_fit(case: _Case, setup: Setup, estimate: DeploymentEstimate) -> UserError:
    """What does not fit, and what would."""
    more = _fewest(case, setup)
    ways = {f"--devices {more}": (case, replace(setup, devices=more))}
    asked = DTYPE_BYTES[setup.dtype or case.model.dtype]
    offered = {dtype for unit in case.target.compute for dtype in unit.operations_per_s}
    by_dtype = replace(case, model=case.model.counted_by_dtype(), programs=None)
    for dtype in ("fp8", "int8", "fp4"):
        if dtype in offered and DTYPE_BYTES[dtype] < asked:
            ways[f"--dtype {dtype}"] = (by_dtype, replace(setup, dtype=dtype))
    if setup.kv_dtype is None:
        narrow = "fp8" if case.programs is None else "int8"
        ways[f"--kv-dtype {narrow}"] = (case, replace(setup, kv_dtype=narrow))
    fitting = [way for way, (of, changed) in ways.items() if of.fits(changed)]
    devices = estimate.split.devices
    return UserError(
        Code.PLAN,
        f"{case.model.shape.name} on {devices} x {case.target.name}: {estimate.fit.message}",
        notes=["the bytes are those of the fullest device"] if devices > 1 else [],
        hint=f"this fits: {' or '.join(fitting)}"
        if fitting
        else "choose a target with more memory, or more of them",
    )
