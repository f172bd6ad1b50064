"""Writes a model of TinyLlama's shape (1.1B) with random weights, a stand-in for that size.

With `--shape 0.6b` it has the sizes of Qwen3 0.6B, and not its norms of heads; it is called `qwen`.

One set of weights, stored as `llama-q4_0.gguf`, `llama-q8_0.gguf`, `llama-bf16.gguf` and as a
Hugging Face folder in bfloat16 (`llama-hf`) for the engines that convert from one. The vocabulary
is GPT-2's byte alphabet, padded with words that no text contains, so that a text has about one
token a byte. Speed is all that such a model can show: the text it makes is noise.

The shapes: https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/blob/main/config.json,
https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTEXT, ROPE_THETA, EPSILON = 8192, 10000.0, 1e-5
BOS, EOS = 0, 1


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        name: what its files are called by.
        hidden: numbers a row.
        layers: how many there are.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: numbers of a head.
        inner: of the gated layer.
        vocabulary: tokens.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int

    @property
    def matrices(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """A layer's: by name in GGUF, the name in Hugging Face's files and [rows, columns]."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": ("self_attn.q_proj", (queries, self.hidden)),
            "attn_k": ("self_attn.k_proj", (keys, self.hidden)),
            "attn_v": ("self_attn.v_proj", (keys, self.hidden)),
            "attn_output": ("self_attn.o_proj", (self.hidden, queries)),
            "ffn_gate": ("mlp.gate_proj", (self.inner, self.hidden)),
            "ffn_up": ("mlp.up_proj", (self.inner, self.hidden)),
            "ffn_down": ("mlp.down_proj", (self.hidden, self.inner)),
        }


SHAPES = {
    "1.1b": Shape("llama", 2048, 22, 32, 4, 64, 5632, 32000),
    "0.6b": Shape("qwen", 1024, 28, 16, 8, 128, 3072, 151936),
}
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
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def tensors(shape: Shape, seed: int) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Each tensor's GGUF name, Hugging Face name and values, `[rows, columns]` or `[hidden]`.

    Matrices have variance 1 / columns, so that activations keep their size from layer to layer.
    """
    rng = np.random.default_rng(seed)

    def matrix(shape: tuple[int, int]) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)

    ones = np.ones(shape.hidden, np.float32)
    yield "token_embd.weight", "model.embed_tokens.weight", matrix((shape.vocabulary, shape.hidden))
    for layer in range(shape.layers):
        here, there = f"blk.{layer}.", f"model.layers.{layer}."
        for name, (huggingface, sizes) in shape.matrices.items():
            yield f"{here}{name}.weight", f"{there}{huggingface}.weight", matrix(sizes)
        for name, huggingface in NORMS.items():
            yield f"{here}{name}.weight", f"{there}{huggingface}.weight", ones
    yield "output_norm.weight", "model.norm.weight", ones
    yield "output.weight", "lm_head.weight", matrix((shape.vocabulary, shape.hidden))


def interleave(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows from Hugging Face's order to GGUF's: rotated pairs (i, i + n/2) become neighbours."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def merge() -> tuple[str, str]:
    """The one pair of letters that makes a word."""
    first, second, *_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    return first, second


def vocabulary(shape: Shape) -> list[str]:
    """Two special tokens, the letters that stand for the 256 bytes, one pair, and padding.

    The pair is there because readers of GGUF files expect at least one merge.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = ["<|begin|>", "<|end|>", *letters, "".join(merge())]
    return fixed + [f"<|unused{i}|>" for i in range(shape.vocabulary - len(fixed))]


def start_gguf(path: Path, shape: Shape, storage: str) -> gguf.GGUFWriter:
    """A file with its metadata and vocabulary, and no tensors yet."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"{shape.name}-shaped, random weights")
    writer.add_file_type(FILE_TYPES[storage])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(shape.vocabulary)
    words = vocabulary(shape)
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


def write_gguf(path: Path, shape: Shape, storage: str, seed: int) -> None:
    """One GGUF file; matrices in the storage type, norms in float32."""
    kind = STORAGES[storage]
    writer = start_gguf(path, shape, storage)
    for name, _, values in tensors(shape, seed):
        if values.ndim == 1:
            writer.add_tensor(name, values)
            continue
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2], 0)
        rows = interleave(values, heads) if heads else values
        writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(folder: Path, shape: Shape, seed: int) -> None:
    """The same weights rounded to bfloat16, as a Hugging Face folder with a tokenizer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: torch.from_numpy(values).bfloat16() for _, name, values in tensors(shape, seed)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocabulary,
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
    words = vocabulary(shape)
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
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), default="1.1b", show_default=True)
@click.option("--storage", multiple=True, type=click.Choice(list(STORAGES)), help="These alone.")
@click.option("--seed", default=11, show_default=True)
def main(folder: Path, name: str, storage: tuple[str, ...], seed: int) -> None:
    """Write three GGUF files and the Hugging Face folder (of 1.1B about 6.3 GB) into FOLDER."""
    shape = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    for kind in storage or STORAGES:
        write_gguf(folder / f"{shape.name}-{kind}.gguf", shape, kind, seed)
    if not storage:
        write_folder(folder / f"{shape.name}-hf", shape, seed)


if __name__ == "__main__":
    main()
