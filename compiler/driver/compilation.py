"""Compiles a model to an artifact: each phase for its target, then one file of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from infc.artifact import Artifact, open_artifact, write_artifact
from infc.artifact.output import check_output, output_error
from infc.diagnostics import Code, UserError
from infc.diagnostics.progress import Progress
from infc.driver.artifact_cache import cache_path
from infc.driver.artifact_contents import facts, program_members, tokenizer_members
from infc.driver.oracle import Oracle
from infc.driver.sections import check_sections
from infc.driver.target_compilation import Compiled, TargetCompiler
from infc.driver.tuning import Tuning
from infc.frontends import open_model
from infc.frontends.source import ModelSource
from infc.pipeline.options import CompileOptions
from infc.pipeline.passes import Remark
from infc.target.discovery import resolve_target

PHASES = ("prefill", "decode")


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
    if resume_from is not None:
        _check_resumed(prefill_target or decode_target, tuning)
    source = open_model(model)
    folder = Path(gettempdir() if output is None else Path(output).parent)
    compiler = TargetCompiler(
        source, report, verify=verify, remarks=remarks, folder=folder, tuning=tuning
    )
    try:
        if output is not None:
            inputs = [Path(model), *source.files()]
            inputs += [] if resume_from is None else [Path(resume_from)]
            check_output(Path(output), folder=False, inputs=inputs)
        with ThreadPoolExecutor(1, "infc-tokenizer") as pool:
            # While LLVM generates code, Python has nothing else to do.
            tokenizer = pool.submit(tokenizer_members, source)
            specs = [prefill_target or target, decode_target or target]
            phases = _compile_phases(compiler, specs, options, dump, resume_from)
            report("packing weights", 0.8)
            tuned = _tuning_records(tuning)
            path = _kept_path(source, phases, tuned) if output is None else Path(output)
        oracle = compiler.oracle
        write_artifact(
            path,
            facts(source, phases, compiler.losses, tuned),
            program_members(phases) | tokenizer.result(),
            check=None if oracle is None else partial(_check, oracle, verified),
        )
        report("done", 1.0)
    finally:
        compiler.close()
    return open_artifact(path)


def _check_resumed(own_target: str | None, tuning: Tuning | None) -> None:
    """Refuse options that a dump has decided."""
    if own_target:
        raise UserError(
            Code.OPTION,
            "a resumed compilation keeps the target of its dump",
            hint="leave out --prefill-target and --decode-target",
        )
    if tuning is not None:
        raise UserError(
            Code.OPTION,
            "a resumed compilation keeps the mappings of its dump",
            hint="leave out --tune, or edit infc.mapping in the dump",
        )


def _compile_phases(
    compiler: TargetCompiler,
    specs: Sequence[str],
    options: CompileOptions,
    dump: str | Path | None,
    resume_from: str | Path | None,
) -> dict[str, Compiled]:
    """What runs each phase; `specs` are their targets, and equal ones share what is compiled."""
    compiled: dict[str, Compiled] = {}
    for number, spec in enumerate(dict.fromkeys(specs)):
        dumps = None if dump is None else Path(dump)
        if dumps is not None and number:
            dumps = dumps / "decode"
        compiled[spec] = (
            compiler.compile(spec, options, dumps)
            if resume_from is None
            else compiler.resume(Path(resume_from), dumps)
        )
    return dict(zip(PHASES, (compiled[spec] for spec in specs), strict=True))


def _kept_path(
    source: ModelSource, phases: Mapping[str, Compiled], tuned: Sequence[Mapping[str, Any]]
) -> Path:
    """Where an artifact is kept that nobody gave a name, in a folder that is there."""
    targets = [part.target for part in phases.values()]
    path = cache_path(source, phases["decode"].options, targets, tuned)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path.parent, error) from error
    return path


def _check(oracle: Oracle, verified: list[str] | None, path: Path) -> None:
    """Run what was compiled, and say what that showed."""
    said = oracle.check_artifact(open_artifact(path))
    if verified is not None:
        verified.append(said)


def _tuning_records(tuning: Tuning | None) -> list[dict[str, Any]]:
    return [] if tuning is None else [kernel.record() for kernel in tuning.kernels]


def cached_compile(model: str | Path, *, progress: Progress | None = None) -> Artifact:
    """The artifact of a model with default options for this host, compiled unless cached."""
    source = open_model(model)
    try:
        _, target = resolve_target("cpu")
        path = cache_path(source, CompileOptions(), [target, target], [])
    finally:
        source.close()
    if path.exists():
        try:
            kept = open_artifact(path)
            check_sections(kept)
            return kept
        except UserError:
            # Damaged, of another version or of another infc: made again below.
            with suppress(OSError):  # compiling says what is the matter with the folder
                path.unlink()
    return compile(model, progress=progress)
