"""`infc run`: a prompt in, text out as it comes."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from infc.cli.output import write_text
from infc.cli.paths import NamedPath
from infc.cli.progress import progress_bar
from infc.cli.units import human_seconds
from infc.diagnostics import Code, UserError

ZIP_MAGIC = b"PK\x03\x04"

EPILOG = """\b
Examples:
  infc run model.gguf --prompt "The capital of France is"
  infc run model.infc --chat --prompt "Write a haiku about rain" --temperature 0.8 --seed 1
  git diff | infc run model.infc --prompt - --max-new-tokens 200

A model is compiled once and kept in the cache ($XDG_CACHE_HOME/infc/artifacts, or
~/.cache/infc/artifacts). The text goes to stdout, everything else to stderr.
"""


@click.command("run", epilog=EPILOG, short_help="Continue a prompt with a model or an artifact.")
@click.argument("path", metavar="MODEL-OR-ARTIFACT", type=NamedPath())
@click.option(
    "--prompt",
    required=True,
    help="Text to continue; - reads it from stdin, without its last line end.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=64,
    show_default=True,
    help="Stop after so many tokens.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    metavar="X",
    default=0.0,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Sample from the K likeliest tokens; 0 from all.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    metavar="X",
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens that have this probability together.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0.0, 1.0),
    metavar="X",
    default=0.0,
    show_default=True,
    help="Drop tokens less likely than this share of the likeliest.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="X",
    default=1.0,
    show_default=True,
    help="Above 1 makes tokens that occurred less likely.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Of the random numbers; the same seed gives the same text.",
)
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help="Stop before this text; may be given more than once.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads to run with.  [default: one a physical core that this process may use]",
)
def run_command(
    path: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    chat: bool,
    stop: tuple[str, ...],
    threads: int | None,
) -> None:
    """Continue a prompt with a model, or with an artifact that `infc compile` made."""
    text = _prompt_text(prompt)
    from infc import driver

    if _is_artifact(path):
        session = driver.load(path, threads=threads)
    else:
        with progress_bar() as progress:
            artifact = driver.cached_compile(path, progress=progress)
        session = driver.load(artifact, threads=threads)
    generation = session.generate(
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        chat=chat,
    )
    try:
        for piece in generation:
            write_text(piece)
    finally:
        if generation.new_tokens:
            write_text("\n")
    steps = generation.new_tokens - 1
    click.echo(
        f"prompt: {_speed(generation.prompt_tokens, generation.prefill_seconds)}; "
        f"new: {_speed(steps, generation.decode_seconds)}",
        err=True,
    )


def _is_artifact(path: Path) -> bool:
    """Whether a path is meant as an artifact: by its name, or by what is there."""
    if path.suffix == ".infc" or path.is_dir():
        return path.suffix == ".infc" or (path / "manifest.json").is_file()
    try:
        with path.open("rb") as file:
            return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    except OSError:
        return False


def _prompt_text(prompt: str) -> str:
    """The prompt, read from stdin for `-`; INF5001 where it is not text."""
    if prompt == "-":
        # Python has no stdin where it was closed (`<&-`).
        if sys.stdin is None:
            raise UserError(
                Code.OPTION, "the prompt could not be read: it is closed", location="stdin"
            )
        try:
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                Code.OPTION, f"the prompt could not be read: {reason}", location="stdin"
            ) from error
        except UnicodeDecodeError as error:
            raise _not_text("stdin", error.start) from error
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
        raise _not_text("--prompt", error.start) from error
    return prompt


def _not_text(where: str, index: int) -> UserError:
    return UserError(
        Code.OPTION,
        f"expected the prompt as UTF-8 text, got something else at index {index}",
        location=where,
        hint="convert it with iconv",
    )


def _speed(tokens: int, seconds: float) -> str:
    if tokens == 0 or seconds == 0.0:
        return f"{tokens} tokens"
    return f"{tokens} tokens in {human_seconds(seconds)} ({tokens / seconds:.1f} tokens/s)"
