"""Writes a GGUF Gemma 3 as a Hugging Face folder in float32, for engines that convert from one.

Needs torch, transformers and gguf (see README.md). Weights are dequantised exactly, so what another
engine makes of them is measured against the same oracle as what reads the GGUF file itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import transformers
from oracle_logits import load_gemma3


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(model: Path, folder: Path) -> None:
    """Write FOLDER: weights, configuration and tokenizer of MODEL."""
    network = load_gemma3(model)
    network.config.update({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
    network.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(model.resolve().parent), gguf_file=model.name
    )
    tokenizer.save_pretrained(folder)
    # Exporters pin older transformers, which know the rotary bases by these names; newer ones
    # read both.
    path = folder / "config.json"
    config = json.loads(path.read_text())
    bases = config.pop("rope_parameters")
    config["rope_theta"] = bases["full_attention"]["rope_theta"]
    config["rope_local_base_freq"] = bases["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config["dtype"]
    path.write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
