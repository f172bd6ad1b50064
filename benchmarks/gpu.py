"""The CUDA backend on a device: correctness, ceilings, speed, beside transformers and a prediction.

    python benchmarks/gpu.py prepare --out DIR               # needs MLIR and ptxas, no GPU
    python benchmarks/gpu.py measure --from DIR --output OUT.json      # needs a GPU, no MLIR

Each part of `measure` runs in a process of its own with a limit of time: one that fails or hangs
costs its own results. What was found so far is in the output after every part, and a short table
is printed last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

HERE = Path(__file__).resolve().parent


@click.group()
def main() -> None:
    """Prepare and measure."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--weights", type=click.Path(path_type=Path), help="Gets Gemma's packed weights.")
@click.option("--only", multiple=True, help="`cases`, `micro`, or a model's name.")
def prepare(out: Path, weights: Path | None, only: tuple[str, ...]) -> None:
    """Compile everything that is measured; nothing of it needs a GPU."""
    import gpu_prepare
    from gpu_micro import write_micro
    from gpu_plans import plans

    out.mkdir(parents=True, exist_ok=True)
    if not only or "cases" in only:
        shutil.rmtree(out / "cases", ignore_errors=True)
        print(f"cases: {gpu_prepare.prepare_cases(out / 'cases')}", flush=True)
    if not only or "micro" in only:
        write_micro(out / "micro", gpu_prepare.ARCH)
    with TemporaryDirectory() as models:
        for plan in plans(Path(models)):
            if only and plan.name not in only:
                continue
            start = time.perf_counter()
            folder = out / "models" / plan.name
            shutil.rmtree(folder, ignore_errors=True)
            with TemporaryDirectory() as scratch:
                gpu_prepare.prepare_model(plan, folder, Path(scratch), real=weights)
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            print(f"{plan.name}: {size:.1f} MB, {time.perf_counter() - start:.0f} s", flush=True)


@main.command()
@click.option("--from", "source", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--weights", type=click.Path(path_type=Path), help="Where `prepare` left pieces.")
@click.option("--seconds", default=460, show_default=True, help="What all of it may take.")
@click.option("--only", multiple=True, help="Parts by name.")
def measure(
    source: Path, output: Path, weights: Path | None, seconds: int, only: tuple[str, ...]
) -> None:
    """Run all parts, write OUT.json, print a table."""
    end = time.perf_counter() + seconds
    results: dict[str, Any] = {}
    for name, limit in parts(source):
        if only and name not in only:
            continue
        left = end - time.perf_counter()
        if left < 15:
            results[name] = {"error": "no time was left"}
            continue
        results[name] = run_part(name, source, weights, min(limit, left))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1))
        shown = results[name].get("error") or f"{results[name]['seconds']:.0f} s"
        print(f"# {name}: {shown}", flush=True)
    print(table(results))


def parts(source: Path) -> list[tuple[str, float]]:
    """The parts in the order of what matters, with the seconds each may take."""
    models = sorted(path.name for path in (source / "models").glob("*") if path.is_dir())
    tiny = [name for name in models if name.startswith("tiny-")]
    real = [name for name in models if not name.startswith("tiny-")]
    return [
        ("facts", 60),
        ("cases", 60),
        *((f"model {name}", 40) for name in tiny),
        ("micro", 30),
        ("ceilings", 60),
        *((f"model {name}", 90) for name in real),
        ("sanitizer", 100),
        *((f"peer {path.stem}", 120) for path in sorted((HERE / "data/gpu").glob("*.json"))),
    ]


def run_part(name: str, source: Path, weights: Path | None, limit: float) -> dict[str, Any]:
    """One part in a process of its own: what it found, or `error`."""
    start = time.perf_counter()
    command = [sys.executable, str(HERE / "gpu.py"), "part", name, "--from", str(source)]
    if weights is not None:
        command += ["--weights", str(weights)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        text = error.stderr.decode(errors="replace") if error.stderr else ""
        return {"error": f"took longer than {limit:.0f} s", "log": text[-2000:]}
    lines = run.stdout.strip().splitlines()
    if run.returncode or not lines:
        return {"error": f"exit status {run.returncode}", "log": (run.stdout + run.stderr)[-4000:]}
    found: dict[str, Any] = json.loads(lines[-1])
    return {**found, "seconds": time.perf_counter() - start}


@main.command(hidden=True)
@click.argument("name")
@click.option("--from", "source", type=click.Path(path_type=Path), required=True)
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--every", default=1)
def part(name: str, source: Path, weights: Path | None, every: int) -> None:
    """Run one part here; its last line is JSON."""
    kind, _, what = name.partition(" ")
    if kind == "facts":
        found = facts()
    elif kind == "ceilings":
        from gpu_ceilings import measure_ceilings

        found = measure_ceilings()
    elif kind == "peer":
        found = peer(what)
    elif kind == "sanitizer":
        found = sanitize(source)
    else:
        from infc.backends.cuda.runtime.probe import open_device

        if kind == "cases":
            from gpu_cases import run_cases

            found = run_cases(source / "cases", open_device(), every=every)
        elif kind == "micro":
            from gpu_micro import measure_micro

            found = measure_micro(source / "micro", open_device())
        else:
            from gpu_models import PreparedModel
            from gpu_sections import measure_model

            found = measure_model(PreparedModel(source / "models" / what), open_device, weights)
    print(json.dumps(found))


def facts() -> dict[str, Any]:
    """The device, its driver, and the software beside it."""
    from importlib.metadata import version

    from machine import describe_machine

    from infc.backends.cuda.runtime.probe import probe_device

    device = probe_device()
    if isinstance(device, str):
        raise click.ClickException(f"there is no device: {device}")
    packages = {}
    for name in ("cuda-bindings", "torch", "transformers", "triton", "numpy"):
        try:
            packages[name] = version(name)
        except ImportError:
            packages[name] = "missing"
    return {"device": asdict(device), "packages": packages, "machine": describe_machine()}


def peer(name: str) -> dict[str, Any]:
    """A peer's process on a model's shape."""
    engine = HERE / "engines" / "transformers_gpu.py"
    config = HERE / "data" / "gpu" / f"{name}.json"
    run = subprocess.run(
        [sys.executable, str(engine), str(config)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise click.ClickException(run.stderr[-3000:])
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def sanitize(source: Path) -> dict[str, Any]:
    """compute-sanitizer over a few cases and a tiny model: what it says of each."""
    tiny = sorted(path.name for path in (source / "models").glob("tiny-*"))[:1]
    runs = [("memcheck", ["cases", "--every", "3"]), ("racecheck", ["cases", "--every", "6"])]
    runs += [(tool, [f"model {name}"]) for name in tiny for tool in ("memcheck", "racecheck")]
    found: dict[str, Any] = {}
    for tool, arguments in runs:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
        command += [str(HERE / "gpu.py"), "part", *arguments, "--from", str(source)]
        name = f"{tool} {arguments[0]}"
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            found[name] = f"not run: {type(error).__name__}"
            continue
        lines = [line for line in run.stdout.splitlines() if line.startswith("=========")]
        found[name] = lines[-1].strip("= ") if lines else f"exit status {run.returncode}"
        if run.returncode == 9:
            found[f"{name} log"] = "\n".join(lines[:60])
    return found


def table(results: dict[str, Any]) -> str:
    """What a person wants to see, in a few lines."""
    device = results.get("facts", {}).get("device", {})
    memory = device.get("memory_bytes_per_s") or None
    lines = [device.get("name", "unknown device")]
    top = results.get("ceilings", {})
    if "copy_bytes_per_s" in top:
        lines.append(
            f"ceilings: copy {top['copy_bytes_per_s'] / 1e12:.2f} TB/s, read "
            f"{top['read_bytes_per_s'] / 1e12:.2f} TB/s, bf16 products "
            f"{top['matmul_operations_per_s'] / 1e12:.0f} TFLOP/s"
        )
    for name, found in results.items():
        if "error" in found:
            lines.append(f"{name}: {found['error']}")
            lines += [f"    {line}" for line in found.get("log", "").splitlines()[-3:]]
        elif name == "cases":
            lines.append(f"cases: {found['cases']}, {len(found['failed'])} failed")
            lines += [f"    {f['test']}: {f['problem']}" for f in found["failed"][:8]]
        elif name.startswith("model "):
            lines += model_lines(name.removeprefix("model "), found, memory)
        elif name in ("micro", "sanitizer") or name.startswith("peer "):
            shown = {k: v for k, v in found.items() if k != "seconds" and not k.endswith(" log")}
            lines.append(f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in shown.items()))
    return "\n".join(lines)


def model_lines(name: str, found: dict[str, Any], memory: float | None) -> list[str]:
    """A model's part of the table; `memory` is bytes a second by the memory's clock and width."""
    wrong = "; ".join(found.get("problems", []))
    lines = [f"{name}: {wrong or 'right'}"] if "problems" in found else []
    if "greedy" in found:
        greedy = found["greedy"]
        lines.append(
            f"{name}: greedy text of {greedy['tokens']}: {greedy['same']} the same, "
            f"{greedy['ties']} near ties"
        )
    for row in found.get("decode", []):
        share = f", {row['bytes_per_s'] / memory:.0%} of the memory" if memory else ""
        guess = row.get("predicted_seconds")
        beside = f", predicted {guess / row['seconds']['median']:.2f} of it" if guess else ""
        lines.append(
            f"{name} decode {row['kind']} batch {row['batch']}: {row['tokens_per_s']:.0f} tok/s"
            f"{share}{beside}"
        )
    if "session" in found:
        lines.append(f"{name} decode session: {found['session']['tokens_per_s']:.0f} tok/s")
    for row in found.get("prefill", []):
        share = row.get("library_share")
        of = f", {share:.0%} of the library's rate" if share else ""
        guess = row.get("predicted_seconds")
        beside = f", predicted {guess / row['seconds']['median']:.2f} of it" if guess else ""
        lines.append(f"{name} prefill {row['tokens']}: {row['tokens_per_s']:.0f} tok/s{of}{beside}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
