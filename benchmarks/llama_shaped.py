"""Writes a model of TinyLlama's shape (1.1B) with random weights, a stand-in for that size.

One set of weights, stored as `llama-q4_0.gguf`, `llama-q8_0.gguf`, `llama-bf16.gguf` and as a
Hugging Face folder in bfloat16 (`llama-hf`) for the engines that convert from one. The vocabulary
is GPT-2's byte alphabet, padded with words that no text contains, so that a text has about one
token a byte. Speed is all that such a model can show: the text it makes is noise.

The shape: https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 2048, 22, 32, 4, 64, 5632, 32000
CONTEXT, ROPE_THETA, EPSILON = 8192, 10000.0, 1e-5
BOS, EOS = 0, 1
STORAGES = {
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "bf16": gguf.GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}
# A layer's matrices: name in GGUF, in Hugging Face, [rows, columns].
MATRICES = {
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
    "ffn_gate": ("mlp.gate_proj", (FFN, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (FFN, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, FFN)),
}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def tensors(seed: int) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Each tensor's GGUF name, Hugging Face name and values, `[rows, columns]` or `[HIDDEN]`.

    Matrices have variance 1 / columns, so that activations keep their size from layer to layer.
    """
    rng = np.random.default_rng(seed)

    def matrix(shape: tuple[int, int]) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)

    ones = np.ones(HIDDEN, np.float32)
    yield "token_embd.weight", "model.embed_tokens.weight", matrix((VOCAB, HIDDEN))
    for layer in range(LAYERS):
        here, there = f"blk.{layer}.", f"model.layers.{layer}."
        for name, (huggingface, shape) in MATRICES.items():
            yield f"{here}{name}.weight", f"{there}{huggingface}.weight", matrix(shape)
        for name, huggingface in NORMS.items():
            yield f"{here}{name}.weight", f"{there}{huggingface}.weight", ones
    yield "output_norm.weight", "model.norm.weight", ones
    yield "output.weight", "lm_head.weight", matrix((VOCAB, HIDDEN))


def interleave(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from Hugging Face's order to GGUF's: rotated pairs (i, i + n/2) become neighbours."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def merge() -> tuple[str, str]:
    """The one pair of letters that makes a word."""
    first, second, *_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    return first, second


def vocabulary() -> list[str]:
    """Two special tokens, the letters that stand for the 256 bytes, one pair, and padding.

    The pair is there because readers of GGUF files expect at least one merge.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = ["<|begin|>", "<|end|>", *letters, "".join(merge())]
    return fixed + [f"<|unused{i}|>" for i in range(VOCAB - len(fixed))]


def start_gguf(path: Path, storage: str) -> gguf.GGUFWriter:
    """A file with its metadata and vocabulary, and no tensors yet."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Llama-shaped 1.1B, random weights")
    writer.add_file_type(FILE_TYPES[storage])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCAB)
    words = vocabulary()
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    kinds = [unused if word.startswith("<|unused") else normal for word in words]
    kinds[BOS] = kinds[EOS] = control
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge())])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    return writer


def write_gguf(path: Path, storage: str, seed: int) -> None:
    """One GGUF file; matrices in the storage type, norms in float32."""
    kind = STORAGES[storage]
    writer = start_gguf(path, storage)
    for name, _, values in tensors(seed):
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2], 0)
        rows = interleave(values, heads) if heads else values
        writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(folder: Path, seed: int) -> None:
    """The same weights rounded to bfloat16, as a Hugging Face folder with a tokenizer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: torch.from_numpy(values).bfloat16() for _, name, values in tensors(seed)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    words = vocabulary()
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [merge()]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:2]])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": words[0]}
    described |= {"eos_token": words[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1))


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=11, show_default=True)
def main(folder: Path, seed: int) -> None:
    """Write the three GGUF files and the Hugging Face folder (about 6.3 GB) into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for storage in STORAGES:
        write_gguf(folder / f"llama-{storage}.gguf", storage, seed)
    write_folder(folder / "llama-hf", seed)


if __name__ == "__main__":
    main()
