"""What NVIDIA's assembler says of all kernels of models of real sizes: registers and spills.

No weights are read and no GPU is needed. For each model, storage type, architecture and batch both
programs are made and assembled; a register that is spilled, or a frame in local memory, is a line.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from machine import describe_machine
from rich.console import Console
from rich.table import Table

from infc.backends.cuda.codegen.assembler import assemble, find_assembler
from infc.backends.cuda.codegen.ptx import to_ptx
from infc.driver.lowering import lower_model
from infc.frontends.config_source import ConfigSource
from infc.ir.attributes import from_attribute
from infc.ir.context import context
from infc.pipeline.options import CompileOptions

HERE = Path(__file__).resolve().parent
GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""https://huggingface.co/google/gemma-3-270m/blob/main/config.json"""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json, without the scaling of
rotary frequencies, which no kernel sees."""
MODELS = {"gemma-3-270m": GEMMA, "llama-3.2-1b": LLAMA}
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")


@dataclass(frozen=True)
class Case:
    """One compilation."""

    model: str
    storage: str
    arch: str
    batch: int


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Registers and spills of the entries of both programs."""
    path = folder / f"{case.model}.json"
    path.write_text(json.dumps(MODELS[case.model]))
    options = CompileOptions(max_context=4096, max_batch=case.batch, chunk=512)
    start = time.perf_counter()
    with context():
        source = ConfigSource(path, case.storage)
        module, _ = lower_model(source, f"cuda:{case.arch}", options)
        lowered = time.perf_counter()
        programs = to_ptx(module, case.arch)
        info = from_attribute(module.operation.attributes["infc.info"])
    translated = time.perf_counter()
    functions: dict[str, dict[str, int]] = {}
    for ptx in programs.values():
        done = assemble(ptx, case.arch)
        if done is None:
            raise click.ClickException("no ptxas was found: pip install nvidia-cuda-nvcc")
        functions |= {name: vars(usage) for name, usage in done.functions.items()}
    entries = {name: usage for name, usage in functions.items() if usage["registers"]}
    return {
        **vars(case),
        "seconds": {
            "lowering": lowered - start,
            "translation": translated - lowered,
            "assembly": time.perf_counter() - translated,
        },
        "ptx_bytes": {name: len(ptx) for name, ptx in programs.items()},
        "not_persistent": info["phases"]["decode"]["reason"],
        "registers": {name: usage["registers"] for name, usage in entries.items()},
        "in_local_memory": {
            name: {key: value for key, value in usage.items() if key != "registers"}
            for name, usage in functions.items()
            if usage["stack"] or usage["spill_stores"] or usage["spill_loads"]
        },
    }


def show(rows: list[dict[str, Any]]) -> None:
    """A line for each case."""
    columns = ("persistent", "largest prefill", "spilled: prefill", "decode")
    table = Table("model", "weights", "arch", "batch", *columns)
    for row in rows:
        registers = row["registers"]
        prefill = max(v for name, v in registers.items() if name.startswith("prefill"))
        spilled = {phase: 0 for phase in ("prefill", "decode")}
        for name, usage in row["in_local_memory"].items():
            spilled[name.partition("_")[0]] += usage["spill_stores"]
        table.add_row(
            row["model"],
            row["storage"],
            row["arch"],
            str(row["batch"]),
            str(registers.get("decode_step", row["not_persistent"])),
            str(prefill),
            *(f"{count} B" for count in spilled.values()),
        )
    Console().print(table)


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)))
@click.option("--storage", "storages", multiple=True, default=("q4_0", "bf16"))
@click.option("--arch", "architectures", multiple=True, type=click.Choice(ARCHITECTURES))
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8))
@click.option("--record/--no-record", default=True, help="Write into results/.")
def main(
    models: tuple[str, ...],
    storages: tuple[str, ...],
    architectures: tuple[str, ...],
    batches: tuple[int, ...],
    record: bool,
) -> None:
    """Assemble the kernels of models of real sizes."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models or MODELS:
            for storage in storages:
                for arch in architectures or ARCHITECTURES:
                    for batch in batches:
                        case = Case(model, storage, arch, batch)
                        rows.append(measure(case, Path(folder)))
    show(rows)
    if record:
        date = datetime.date.today().isoformat()
        document = {
            "date": date,
            "assembler": "ptxas" if find_assembler() else "",
            "machine": describe_machine(),
            "cases": rows,
        }
        path = HERE / "results" / f"ptx-assembly-{date}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
