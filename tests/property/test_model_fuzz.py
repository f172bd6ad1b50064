"""Damaged model files: whatever the bytes, opening them succeeds or raises a UserError.

Mutations are drawn from a fixed seed, so a failure names itself. `INFC_FUZZ=10000` runs that many;
without it a sample runs.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_huggingface
from oracle.scaled_floats import write_scaled_floats

from infc.diagnostics import UserError
from infc.frontends import check_finite, open_model

COUNT = int(os.environ.get("INFC_FUZZ", "600"))
SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "vocab_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
# More address space than any of these files of a few kilobytes justifies; an announced length that
# is believed asks for more.
ALLOCATION_BYTES = 64 << 20
SECONDS_EACH = 20.0  # far above what any takes: it finds loops, not slowness


def tiny_gguf(path: Path) -> bytes:
    """A model of a few kilobytes with every kind of metadata value."""
    values, tensors = make_family("llama2", **SMALL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_string("tokenizer.ggml.model", "llama")
    writer.add_token_list([f"t{index}" for index in range(8)])
    writer.add_token_scores([0.5] * 8)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_int64("general.wide", -1)
    writer.add_array("general.flags", [True, False])
    writer.add_uint32("general.alignment", 32)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    layer = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in tensors.items():
        role = name.removeprefix("model.layers.0.").removesuffix(".weight")
        writer.add_tensor(names.get(name) or f"blk.0.{layer[role]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def mutations(original: bytes, count: int, header: int, seed: int) -> Iterator[bytes]:
    """Deterministic damage, most of it to the first `header` bytes."""
    rng = np.random.default_rng(seed)
    interesting = [
        0,
        1,
        0x7F,
        0xFF,
        2**16,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**40,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ]
    for _ in range(count):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 4))):
            end = min(header, len(data)) if rng.random() < 0.9 else len(data)
            if end < 16:
                break
            at = int(rng.integers(0, end))
            kind = int(rng.integers(0, 6))
            if kind == 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                data[at] = int(rng.integers(0, 256))
            elif kind == 2:
                del data[at:]
            elif kind == 3:  # a length, a count, an offset
                width = int(rng.choice([4, 8]))
                value = interesting[int(rng.integers(0, len(interesting)))] % 2 ** (8 * width)
                data[at : at + width] = value.to_bytes(width, "little")
            elif kind == 4:  # a piece from elsewhere, over or between
                start, size = int(rng.integers(0, end)), int(rng.integers(1, 64))
                keep = at + (size if rng.random() < 0.5 else 0)
                data[at:keep] = original[start : start + size]
            else:
                del data[at : at + int(rng.integers(1, 32))]
        yield bytes(data)


def exercise(path: Path) -> bool:
    """Opens and reads everything; False where that was refused."""
    try:
        source = open_model(path)
    except UserError as error:
        if not error.code.startswith("INF1"):
            raise  # not a code of model files
        return False
    try:
        # A width changed in one place only is caught; what still opens must also be readable.
        assert set(source.config.weights.values()) <= set(source.tensors)
        for info in source.tensors.values():
            assert source.data(info.name).size == info.size_bytes
        assert len(source.digest()) == 64
        return _readable(lambda: source.tokenizer) & _readable(
            lambda: check_finite(source, source.config.weights.values())
        )
    finally:
        source.close()


def _readable(action: Callable[[], object]) -> bool:
    try:
        action()
    except UserError:
        return False
    return True


@contextmanager
def limited_memory() -> Iterator[None]:
    """Lets the process grow by no more than ALLOCATION_BYTES; beyond that is a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + ALLOCATION_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (allowed, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def run(path: Path, damaged: Path, original: bytes, count: int, header: int, seed: int) -> None:
    """Damages the file `damaged` of the model at `path` in `count` ways."""
    damaged.write_bytes(original)
    assert exercise(path)
    refused = 0
    with limited_memory():
        for number, content in enumerate(mutations(original, count, header, seed)):
            damaged.unlink()  # writing over a file waits for the disk on some file systems
            damaged.write_bytes(content)
            started = time.perf_counter()
            try:
                refused += not exercise(path)
            except Exception as error:
                raise AssertionError(f"mutation {number}: {error!r}") from error
            seconds = time.perf_counter() - started
            assert seconds < SECONDS_EACH, f"mutation {number}: {seconds} s"
    # Most damage to a header must be noticed; some of it is harmless (a name, a score).
    assert refused > count // 2


def test_damaged_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    original = tiny_gguf(path)
    header = gguf.GGUFReader(path).data_offset
    run(path, path, original, COUNT // 2, header, seed=1)


@pytest.mark.parametrize(
    ("name", "share", "seed"),
    [
        ("model.safetensors", 3, 2),
        ("config.json", 12, 3),
        ("tokenizer_config.json", 24, 4),
        ("model.safetensors.index.json", 12, 5),
    ],
)
def test_damaged_folder(name: str, share: int, seed: int, tmp_path: Path) -> None:
    values, tensors = make_family("llama2", **SMALL)
    index = name.endswith("index.json")
    write_huggingface(tmp_path, values, tensors, shards=2 if index else 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    damaged = tmp_path / name
    original = damaged.read_bytes()
    header = len(original)
    if name == "model.safetensors":
        header = 8 + int.from_bytes(original[:8], "little")
    run(tmp_path, damaged, original, COUNT // share, header, seed)


@pytest.mark.parametrize(("name", "seed"), [("model.safetensors", 6), ("config.json", 7)])
def test_damaged_folder_of_scaled_floats(name: str, seed: int, tmp_path: Path) -> None:
    wide = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    values, tensors = make_family("llama2", **SMALL | wide)
    write_scaled_floats(tmp_path, values, tensors, "block")
    damaged = tmp_path / name
    original = damaged.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little") if seed == 6 else len(original)
    run(tmp_path, damaged, original, COUNT // 12, header, seed)


def test_every_truncation_of_a_gguf_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    original = tiny_gguf(path)
    header = gguf.GGUFReader(path).data_offset
    for size in (*range(0, header, 7), *range(header, len(original), 101)):
        path.write_bytes(original[:size])
        with pytest.raises(UserError):
            open_model(path)
