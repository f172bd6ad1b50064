"""`infc estimate`: what a model would do on machines that need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from infc.cli.output import print_json
from infc.cli.paths import NamedPath

if TYPE_CHECKING:
    from infc.driver.comparison import Comparison
    from infc.driver.estimation import Deployment, Model

AUTO = "auto"
EPILOG = """\b
Examples:
  infc estimate model.gguf --target cpu --prompt 512 --new-tokens 128
  infc estimate config.json --target CHIP --devices 8 --dtype fp8 --concurrency 32
  infc estimate config.json --compare --plot targets.svg
  infc estimate config.json --target auto --optimize watt
  infc estimate config.json --target CHIP --set memory.hbm.bandwidth=4.8TB/s,8TB/s
  infc estimate config.json --prefill-target CHIP --decode-target auto --concurrency 32
  infc estimate config.json --target ./mychip.toml --json

CHIP is a name of `infc targets`; samples/configs has configurations of public models.
docs/targets.md says what a target file holds and which figures --set takes.
"""


@click.command("estimate", epilog=EPILOG, short_help="Predict a model on any machine.")
@click.argument("model", metavar="MODEL-OR-CONFIG.json", type=NamedPath())
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="A target of `infc targets`, a target file (.toml), or auto; several with --compare.",
)
@click.option("--prefill-target", metavar="TARGET", help="Where prefill runs; also auto.")
@click.option("--decode-target", metavar="TARGET", help="Where decoding runs then; also auto.")
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Chips that share the model (of each phase).  [default: the fewest that hold it]",
)
@click.option(
    "--tensor-parallel",
    type=click.IntRange(min=1),
    metavar="N",
    help="Chips that share each block; the rest are pipeline stages.  [default: as many as can]",
)
@click.option(
    "--dtype",
    metavar="TYPE",
    help="Weights and their arithmetic: f32, bf16, f16, fp8, int8, fp4.  [default: the file's]",
)
@click.option(
    "--kv-dtype",
    metavar="TYPE",
    help="The KV cache, likewise.  [default: the engine's, that of infc compile, else bf16]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Requests that start together; of several users, if above 1, the most served at a time.",
)
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Tokens of a prompt.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=1024,
    show_default=True,
    help="Tokens of an answer.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Users, each of whom sends the next request when the last is answered.",
)
@click.option(
    "--engine",
    metavar="NAME",
    help="The engine that serves: none, a name, a file.  [default: generic, where measured]",
)
@click.option(
    "--varied-lengths",
    is_flag=True,
    help="Prompts and answers vary about the given lengths, so that users do not keep step.",
)
@click.option("--link", metavar="NAME", help="A link in place of the chips' own: a name or a file.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIGURE=VALUE[,VALUE]",
    help="Set a figure of the target, as memory.hbm.bandwidth=4.8TB/s; several values sweep.",
)
@click.option(
    "--compare", "compares", is_flag=True, help="The named targets, or all, side by side."
)
@click.option(
    "--optimize",
    type=click.Choice(["latency", "throughput", "watt", "dollar"]),
    help="What auto looks for.  [default: dollar, output tokens for the money]",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg|.html",
    help="Draw what is compared.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate_command(
    model: Path,
    targets: tuple[str, ...],
    prefill_target: str | None,
    decode_target: str | None,
    devices: int | None,
    tensor_parallel: int | None,
    dtype: str | None,
    kv_dtype: str | None,
    batch: int,
    prompt: int,
    new_tokens: int,
    concurrency: int,
    engine: str | None,
    varied_lengths: bool,
    link: str | None,
    settings: tuple[str, ...],
    compares: bool,
    optimize: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Predict times, throughput, power and cost of a model.

    The model is a GGUF file, a Hugging Face folder or, for its sizes alone, a config.json. No
    weight is read and no hardware is needed.
    """
    from infc.cli.estimate_plot import check_plot
    from infc.cli.progress import progress_bar
    from infc.cost.workload import Workload
    from infc.driver import comparison, estimation
    from infc.driver.candidates import candidates, read_settings

    figures = read_settings(settings)
    side_by_side = compares or any(len(values) > 1 for values in figures.values())
    _check_options(targets, prefill_target, decode_target, side_by_side, optimize, plot)
    if plot is not None:
        check_plot(plot, model)
    read = estimation.read_model(model)
    setup = estimation.Setup(
        Workload(batch, prompt, new_tokens, 0, concurrency),
        devices,
        tensor_parallel,
        dtype,
        kv_dtype,
        engine,
        not varied_lengths,
    )
    objective = optimize or "dollar"
    if prefill_target is not None and decode_target is not None:
        phases = (prefill_target, decode_target)
        first, second = (
            candidates(() if name == AUTO else [name], link, figures) for name in phases
        )
        if AUTO in phases:
            found = comparison.compare_phases(read, first, second, setup)
            _show(read, comparison.best(found, objective), as_json, found, objective)
        else:
            done = comparison.deploy_phases(read, first[0][1], second[0][1], setup)
            _show(read, done, as_json)
        return
    automatic = targets == (AUTO,)
    chosen = candidates(() if automatic else targets, link, figures)
    if not side_by_side and not automatic:
        _show(read, estimation.deploy(read, chosen[0][1], setup), as_json)
        return
    with progress_bar() as progress:
        found = comparison.compare(read, chosen, setup, curves=plot is not None, progress=progress)
    if automatic:
        _show(read, comparison.best(found, objective), as_json, found, objective)
    else:
        _show_all(read, found, plot, as_json)


def _show(
    model: Model,
    deployment: Deployment,
    as_json: bool,
    considered: Comparison | None = None,
    objective: str = "",
) -> None:
    """One deployment, chosen by an objective where others were considered."""
    from infc.cli import estimate_report as report
    from infc.driver.sensitivity import sensitivity

    # What changes on one side of two says nothing about the other.
    rows = sensitivity(deployment) if deployment.prefill is None else []
    if as_json:
        printed = report.deployment_object(model, deployment, rows)
        if considered is not None:
            printed |= {"optimize": objective} | report.comparison_object(model, considered)
        print_json(printed)
        return
    if considered is not None:
        report.print_comparison(model, considered, objective)
        report.print_choice(deployment, objective)
    report.print_deployment(model, deployment, rows)


def _show_all(model: Model, found: Comparison, plot: Path | None, as_json: bool) -> None:
    """Several deployments side by side."""
    from infc.cli import estimate_report as report
    from infc.cli.estimate_plot import write_plot
    from infc.driver.comparison import check_possible

    check_possible(found)
    if plot is not None:
        write_plot(plot, report.heading(model, found.rows), found)
    if as_json:
        print_json(report.comparison_object(model, found))
        return
    report.print_comparison(model, found)
    if plot is not None:
        report.print_plot(plot)


def _check_options(
    targets: tuple[str, ...],
    prefill_target: str | None,
    decode_target: str | None,
    compares: bool,
    optimize: str | None,
    plot: Path | None,
) -> None:
    """Usage errors: options that contradict one another, or of which one is missing."""
    split = (prefill_target, decode_target)
    if any(split) and not all(split):
        raise click.UsageError("--prefill-target and --decode-target belong together")
    if all(split) and (targets or compares):
        raise click.UsageError(
            "--prefill-target and --decode-target stand by themselves: without --target, "
            "--compare or several values of --set"
        )
    if not any(split) and not targets and not compares:
        raise click.UsageError("missing --target: a name, a file, auto, or --compare for all")
    if len(targets) > 1 and not compares:
        raise click.UsageError(f"--target {targets[1]}: several targets need --compare")
    if AUTO in targets and (compares or len(targets) > 1):
        raise click.UsageError("--target auto stands by itself; --compare takes all as it is")
    if optimize is not None and AUTO not in (*targets, *split):
        raise click.UsageError("--optimize is for a target that is auto")
    if plot is not None and not compares:
        raise click.UsageError("--plot draws what --compare or several values of --set compare")
