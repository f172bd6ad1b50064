"""Computes what a GGUF Gemma 3 means, in float32, with transformers: the oracle of `quality.py`.

Needs torch, transformers and gguf (see README.md). Weights are dequantised exactly; activations and
arithmetic are float32. Writes float32 logits `[positions, vocab]` as a .npy file (about 200 MB).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import torch
import transformers

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}


def load_gemma3(path: Path) -> Any:
    """The model of a GGUF file as transformers' Gemma 3, float32."""
    reader = gguf.GGUFReader(path)

    def field(key: str) -> Any:
        return reader.fields[f"gemma3.{key}"].contents()

    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    head_dim = field("attention.key_length")
    config = transformers.Gemma3TextConfig(
        vocab_size=int(embedding.shape[1]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=head_dim,
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        sliding_window=field("attention.sliding_window"),
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": field("rope.freq_base")},
            # The file has no key for it: every published Gemma 3 has this one.
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        query_pre_attn_scalar=head_dim,
        max_position_embeddings=field("context_length"),
    )
    config._attn_implementation = "eager"
    model: Any = transformers.Gemma3ForCausalLM(config)
    model.eval()
    state = model.model.state_dict()
    for tensor in reader.tensors:
        name = _huggingface_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("norm.weight"):
            # llama.cpp stores the factor, transformers the factor less one.
            values = values - np.float32(1)
        state[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))
    return model


def _huggingface_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.weight"
    return f"{_TOP_NAMES[parts[0]]}.weight"


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option(
    "--ids",
    type=click.Path(exists=True, path_type=Path),
    default=Path(__file__).parent / "texts" / "ids.json",
    show_default=True,
)
def main(model: Path, output: Path, ids: Path) -> None:
    """Write the logits after every position of every text, one text after the other."""
    texts: dict[str, list[int]] = json.loads(ids.read_text())["ids"]
    network = load_gemma3(model)
    with torch.no_grad():
        rows = [network(torch.tensor([tokens])).logits[0].numpy() for tokens in texts.values()]
    np.save(output, np.concatenate(rows))


if __name__ == "__main__":
    main()
