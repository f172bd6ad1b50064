"""`infc compile`: a model in, an artifact out."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import print_json, write_text
from infc.cli.paths import NamedPath
from infc.cli.progress import progress_bar
from infc.cli.quantization import quantization_object, quantization_text
from infc.cli.remarks import check_pass_name, print_remarks, remarks_option
from infc.cli.tuning import print_notes, tuning_object, tuning_text
from infc.cli.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from infc.driver import PredictionChange
    from infc.pipeline.passes import Remark

EPILOG = """\b
Examples:
  infc compile model.gguf --target cpu -o model.infc
  infc compile model.gguf --target cpu:x86-64-v3 --max-context 8192 -o model.infc
  infc compile model.gguf -o model.infc --resume-from out/edited.mlir
  infc compile model.gguf -o model.infc --json | jq -r .digest
  infc compile model.gguf -o model.infc --tune 8

The same model, options and version of infc give the same bytes, with --tune from the same database
of measurements ($XDG_CACHE_HOME/infc/tuning.sqlite, or ~/.cache/infc/tuning.sqlite).
"""


@click.command("compile", epilog=EPILOG, short_help="Compile a model to an artifact.")
@click.argument("model", metavar="MODEL", type=NamedPath())
@click.option(
    "--target", default="cpu", show_default=True, help="What to compile for; see `infc targets`."
)
@click.option("--prefill-target", metavar="TARGET", help="Where prefill runs, if elsewhere.")
@click.option("--decode-target", metavar="TARGET", help="Where decode runs, if elsewhere.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The artifact.  [default: the model's name with .infc, here]",
)
@click.option(
    "--max-context",
    type=click.IntRange(min=1),
    metavar="N",
    default=4096,
    show_default=True,
    help="Limit: positions a sequence.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Limit: sequences at once.",
)
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="N",
    default=512,
    show_default=True,
    help="Limit: tokens a prefill call; longer prompts take several.",
)
@click.option(
    "--prompt",
    "prompt_tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=512,
    show_default=True,
    help="Hint: tokens of a usual prompt; steers the cost model only.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=128,
    show_default=True,
    help="Hint: tokens of a usual answer; steers the cost model only.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Hint: sequences usually at once; steers the cost model only.",
)
@click.option(
    "--quantize",
    default="keep",
    show_default=True,
    metavar="TYPE",
    help="keep, or what to convert matrices to: q8_0, q6_k, q5_1, q5_0, q4_k, q4_1 or q4_0; says "
    "what that changed.",
)
@click.option(
    "--kv-dtype",
    default="auto",
    show_default=True,
    metavar="TYPE",
    help="The KV cache: f32, f16, bf16 or int8; auto is f16, or f32 where all weights are.",
)
@click.option(
    "--tune",
    type=click.IntRange(min=1),
    metavar="N",
    help="Measure the N best mappings of each kernel on this machine; they are kept and reused.",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the IR after every pass.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Run the reference after every pass and name the first that changes a number; then run "
    "what was compiled, as far as that is possible here.",
)
@click.option(
    "--resume-from",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.mlir",
    help="Go on from the IR that --dump wrote; its own limits, hints and target count.",
)
@remarks_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compile_command(
    model: Path,
    target: str,
    prefill_target: str | None,
    decode_target: str | None,
    output: Path | None,
    max_context: int,
    max_batch: int,
    chunk: int,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    quantize: str,
    kv_dtype: str,
    tune: int | None,
    dump: Path | None,
    verify: bool,
    resume_from: Path | None,
    remarks_of: str | None,
    as_json: bool,
) -> None:
    """Compile a model (a GGUF file or a Hugging Face folder) to an artifact."""
    from infc import driver
    from infc.cli.memory import peak_memory_bytes

    check_pass_name(remarks_of)
    remarks: list[Remark] = []
    verified: list[str] = []
    # The root of the file system has no name.
    path = output or Path(model.resolve().name or "model").with_suffix(".infc")
    tuning = None if tune is None else driver.Tuning(tune)
    start = time.perf_counter()
    with progress_bar() as progress:
        artifact = driver.compile(
            model,
            target=target,
            prefill_target=prefill_target,
            decode_target=decode_target,
            output=path,
            max_context=max_context,
            max_batch=max_batch,
            chunk=chunk,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch=batch,
            quantize=quantize,
            kv_dtype=kv_dtype,
            dump=dump,
            verify=verify,
            verified=verified,
            resume_from=resume_from,
            progress=progress,
            remarks=remarks,
            tuning=tuning,
        )
    seconds = time.perf_counter() - start
    change: PredictionChange | str | None = None
    if artifact.manifest.quantization:
        with progress_bar() as progress:
            change = driver.measure_prediction_change(
                model, artifact, target=prefill_target or target, progress=progress
            )
    print_remarks(remarks, remarks_of)
    if tuning is not None:
        print_notes(tuning.notes)
    notes = driver.program_notes(artifact)
    peak_bytes = peak_memory_bytes()
    fit = driver.artifact_fit(artifact)
    targets = {phase: facts["name"] for phase, facts in artifact.manifest.targets.items()}
    if as_json:
        print_json(
            {
                "artifact": str(path),
                "seconds": seconds,
                "peak_memory_bytes": peak_bytes,
                "targets": targets,
                "digest": artifact.manifest.digest,
                "quantization": quantization_object(artifact.manifest.quantization, change),
                "memory_fit": None if fit is None else asdict(fit),
                "verified": verified[0] if verified else None,
                "notes": list(notes),
                "tuning": None if tuning is None else tuning_object(tuning),
                "assumptions": _assumptions(peak_bytes, change),
            }
        )
        return
    print_notes(notes)
    names = ", ".join(sorted(set(map(str, targets.values()))))
    memory = "" if peak_bytes is None else f", peak memory {human_bytes(peak_bytes)}"
    write_text(f"{path}: compiled for {names} in {human_seconds(seconds)}{memory}\n")
    for said in verified:
        write_text(f"{said}\n")
    if fit is not None:
        write_text(f"{'' if fit.fits else 'warning: '}{fit.message}\n")
    if tuning is not None:
        write_text(tuning_text(tuning))
    if artifact.manifest.options["quantize"] != "keep":
        write_text(quantization_text(artifact.manifest.quantization, change))


def _assumptions(peak_bytes: int | None, change: PredictionChange | str | None) -> list[str]:
    unknown = [] if peak_bytes is not None else ["peak_memory_bytes: this system does not tell it"]
    if isinstance(change, str):
        unknown.append(f"quantization.mean_divergence_nats: {change}")
    return unknown
