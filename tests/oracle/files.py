"""Writes the tiny families as model files: a Hugging Face folder, or GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from oracle.families import Config, Tensors, is_gemma, sliding_layers
from oracle.vocabularies import add_gguf_tokenizer, write_huggingface_tokenizer
from safetensors.numpy import save_file

_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}

_GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}

# A Gemma norms a block's output too, under the name that others give the next block's input.
_GGUF_GEMMA_NAMES = {
    **_GGUF_NAMES,
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}

_GGUF_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

# Where a block's f16 scale and minimum (or offset) lie, in bytes, and the minimum in scales that
# centres uniformly random codes on zero. Layouts: ggml-common.h of llama.cpp.
_BLOCK_FIELDS: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0.0),
    "Q4_1": (0, 2, -7.5),
    "Q5_0": (0, None, 0.0),
    "Q5_1": (0, 2, -15.5),
    "Q8_0": (0, None, 0.0),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}

BLOCK_STORAGE: tuple[str, ...] = tuple(_BLOCK_FIELDS)
"""The quantised storage types `write_gguf` can write."""


def write_huggingface(
    folder: Path,
    config: Config,
    tensors: Tensors,
    dtype: str = "F32",
    *,
    shards: int = 1,
    with_tokenizer: bool = False,
) -> None:
    """Write `config.json` and safetensors into an existing folder.

    Args:
        folder: where to.
        config: from `make_family`.
        tensors: from `make_family`, or what `write_gguf` returned.
        dtype: `F32`, `F16` or `BF16`, of every tensor.
        shards: number of safetensors files; more than one also writes the index.
        with_tokenizer: also write `tokenizer.json` and its companions.
    """
    torch_dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    text = json.dumps({**config, "torch_dtype": torch_dtype}, indent=2)
    (folder / "config.json").write_text(text)
    if with_tokenizer:
        write_huggingface_tokenizer(folder, config["vocab_size"])
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        _write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.size for t in tensors.values()) * (4 if dtype == "F32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str) -> None:
    if dtype == "BF16":
        # NumPy has no bfloat16: write the raw halves and name their type in the header by hand.
        raw = {name: gguf.quants.quantize(t, _TYPES["BF16"]) for name, t in tensors.items()}
        header: dict[str, Any] = {}
        offset = 0
        for name, halves in raw.items():
            shape = list(tensors[name].shape)
            end = offset + halves.nbytes
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        body = b"".join(halves.tobytes() for halves in raw.values())
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
        return
    numpy_dtype = {"F32": np.float32, "F16": np.float16}[dtype]
    stored = {name: np.ascontiguousarray(t, numpy_dtype) for name, t in tensors.items()}
    save_file(stored, path, {"format": "pt"})


_TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType}


def write_gguf(
    path: Path,
    config: Config,
    tensors: Tensors,
    storage: str = "F32",
    *,
    others: Mapping[str, str] | None = None,
    with_tokenizer: bool = False,
) -> Tensors:
    """Write a GGUF file as llama.cpp's converter would.

    Quantised types are not rounded from `tensors`: their blocks are filled with random bits, with
    scales that give the matrix its standard deviation, so every code and sub-scale occurs.

    Args:
        path: the file.
        config: from `make_family`.
        tensors: from `make_family`.
        storage: of all matrices: `F32`, `F16`, `BF16` or one of `BLOCK_STORAGE`; vectors are F32.
        others: another storage for matrices with a word in their name, as `{"q_proj": "F16"}`.
        with_tokenizer: also write a SentencePiece-style vocabulary.

    Returns:
        What the file holds, in float32 and in Hugging Face naming and layout.
    """
    family: str = config["model_type"]
    architecture = _ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, architecture)
    _add_metadata(writer, config)
    if with_tokenizer:
        add_gguf_tokenizer(writer, config["vocab_size"])
    stored: Tensors = {}
    rng = np.random.default_rng(7)
    for name, tensor in tensors.items():
        named = [kind for word, kind in (others or {}).items() if word in name]
        kind = named[0] if named else storage
        stored[name] = _add_tensor(writer, config, name, tensor, kind, rng)
    if config.get("rope_scaling", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add_metadata(writer: gguf.GGUFWriter, config: Config) -> None:
    family = config["model_type"]
    writer.add_name(f"tiny {family}")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if not is_gemma(config):
        writer.add_rope_dimension_count(config["head_dim"])
    if any(sliding_layers(config)):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_tensor(
    writer: gguf.GGUFWriter,
    config: Config,
    name: str,
    tensor: NDArray[np.float32],
    storage: str,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Write one tensor in GGUF's name and layout; its stored values, in Hugging Face's layout."""
    target = _gguf_name(config, name)
    if tensor.ndim == 1:
        # llama.cpp multiplies by the weight itself, so its files hold a Gemma's weight plus one.
        offset = np.float32(1.0 if is_gemma(config) and name.endswith("norm.weight") else 0.0)
        writer.add_tensor(target, tensor + offset)
        return tensor
    heads = _interleaved_heads(config, name)
    if heads:
        tensor = _interleave(tensor, heads)
    kind = _TYPES[storage]
    if storage in _BLOCK_FIELDS:
        raw = _random_blocks(storage, tensor.shape, float(tensor.std()), rng)
    else:
        raw = gguf.quants.quantize(tensor, kind)
    writer.add_tensor(target, raw, raw_dtype=kind)
    stored = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(tensor.shape)
    return _deinterleave(stored, heads) if heads else stored


def _gguf_name(config: Config, name: str) -> str:
    if name in _GGUF_TOP_NAMES:
        return _GGUF_TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    names = _GGUF_GEMMA_NAMES if is_gemma(config) else _GGUF_NAMES
    return f"blk.{layer}.{names[rest]}"


def _interleaved_heads(config: Config, name: str) -> int:
    """Heads of a matrix that the `llama` architecture stores with rotated pairs side by side."""
    if config["model_type"] not in ("llama", "mistral"):
        return 0
    if name.endswith("q_proj.weight"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if name.endswith("k_proj.weight") else 0


def _interleave(tensor: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a head from (i, i + n/2) pairs to (2i, 2i + 1) pairs."""
    rows, columns = tensor.shape
    halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _deinterleave(tensor: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    rows, columns = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def _random_blocks(
    storage: str, shape: tuple[int, ...], std: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Blocks of random codes, uint8 `[rows, bytes a row]`, whose values spread by about `std`."""
    kind = _TYPES[storage]
    block_elems, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    scale_at, min_at, min_in_scales = _BLOCK_FIELDS[storage]
    rows, columns = shape
    blocks = rng.integers(
        0, 256, (rows * columns // block_elems, block_bytes), np.uint8, endpoint=False
    )
    relative = rng.uniform(0.5, 1.5, len(blocks))

    def set_scales(scale: float) -> NDArray[np.uint8]:
        _put_f16(blocks, scale_at, relative * scale)
        if min_at is not None:
            _put_f16(blocks, min_at, relative * scale * min_in_scales)
        return blocks.reshape(rows, -1)

    # With scales of 1/256 nothing overflows float16; then one proportion gives the right ones.
    trial = gguf.quants.dequantize(set_scales(1 / 256), kind)
    return set_scales(std / float(trial.std()) / 256)


def _put_f16(blocks: NDArray[np.uint8], offset: int, values: NDArray[np.float64]) -> None:
    halves = values.astype(np.float16).view(np.uint8).reshape(-1, 2)
    blocks[:, offset : offset + 2] = halves


def _llama3_factors(config: Config) -> NDArray[np.float32]:
    """Divisors of the rotary frequencies, float32 `[head_dim / 2]`.

    The rule is Llama 3.1's (`_compute_llama3_parameters` in transformers), as llama.cpp's
    converter stores it.
    """
    scaling = config["rope_scaling"]
    head_dim = config["head_dim"]
    frequencies = config["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    original = scaling["original_max_position_embeddings"]
    turns = original * frequencies / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float32] = (1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)).astype(
        np.float32
    )
    return factors
