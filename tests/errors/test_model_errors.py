"""What users read when a model file is at fault: the whole text, one test a case."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_gguf, write_huggingface

from infc.diagnostics import UserError
from infc.frontends import check_finite, open_model
from infc.frontends.families import BY_ARCHITECTURE, BY_MODEL_TYPE

HINT = "give a GGUF file, or a folder with config.json and model.safetensors"
DAMAGED = "the file is damaged or was not copied to its end"


def text_of(action: Callable[[], object], folder: Path) -> str:
    """The rendered error, with the folder of the test as `DIR`."""
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value).replace(str(folder), "DIR")


def text_of_opening(path: Path) -> str:
    return text_of(lambda: open_model(path), path if path.is_dir() else path.parent)


def llama(folder: Path) -> Path:
    values, tensors = make_family("llama2")
    path = folder / "model.gguf"
    write_gguf(path, values, tensors)
    return path


def folder_of_llama(folder: Path, **changes: object) -> Path:
    values, tensors = make_family("llama2")
    write_huggingface(folder, values | changes, tensors)
    return folder


def test_inf1001_no_such_file(tmp_path: Path) -> None:
    assert text_of_opening(tmp_path / "no.gguf") == (
        "error[INF1001]: cannot open the model: no such file or directory\n  --> DIR/no.gguf"
    )


def test_inf1001_empty_folder(tmp_path: Path) -> None:
    assert text_of_opening(tmp_path) == (
        "error[INF1001]: expected config.json or one GGUF file in the folder, got none\n"
        "  --> DIR\n"
        f"   = hint: {HINT}"
    )


def test_inf1001_folder_of_several(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert text_of_opening(tmp_path) == (
        "error[INF1001]: expected config.json or one GGUF file in the folder, got a.gguf, b.gguf\n"
        "  --> DIR\n"
        f"   = hint: {HINT}"
    )


def test_inf1001_folder_without_weights(tmp_path: Path) -> None:
    folder_of_llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert text_of_opening(tmp_path) == (
        "error[INF1001]: expected model.safetensors or model.safetensors.index.json, got neither\n"
        "  --> DIR\n"
        "   = hint: infc does not read PyTorch checkpoints: save the model as safetensors"
    )


def test_inf1001_missing_shards(tmp_path: Path) -> None:
    values, tensors = make_family("llama2")
    write_huggingface(tmp_path, values, tensors, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    assert text_of_opening(tmp_path) == (
        "error[INF1001]: 2 of 3 shards are missing\n"
        "  --> DIR\n"
        "   - expected model-00002-of-00003.safetensors, got none\n"
        "   - expected model-00003-of-00003.safetensors, got none\n"
        "   = hint: put all shards into the folder"
    )


def test_inf1001_missing_gguf_shard(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name in ("a", "b"):
        writer.add_tensor(name, np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    first = tmp_path / "m-00001-of-00002.gguf"
    assert text_of_opening(first) == (
        "error[INF1001]: shard 2 of 2 is missing\n"
        "  --> DIR/m-00002-of-00002.gguf\n"
        "   = hint: put all shards into one folder"
    )
    first.rename(tmp_path / "renamed.gguf")
    assert text_of_opening(tmp_path / "renamed.gguf") == (
        "error[INF1002]: expected a file name that ends in -NNNNN-of-00002.gguf, as the file is "
        'one of 2 shards, got "renamed.gguf"\n'
        "  --> DIR/renamed.gguf\n"
        "   = hint: keep the names that the shards were made with"
    )


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04abc", "a zip file (perhaps a PyTorch checkpoint)"),
        (b"\x80\x02}", "a Python pickle, which infc never loads"),
        (b"\x02\0\0\0\0\0\0\0{}", "a single safetensors file"),
        (b'{"model_type": "llama"}', "a JSON file"),
        (b"#!/bin/sh\n", "a file that starts with b'#!/bin/s'"),
    ],
)
def test_inf1002_other_files(content: bytes, got: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert text_of_opening(path) == (
        f"error[INF1002]: expected a GGUF file or a Hugging Face folder, got {got}\n"
        "  --> DIR/model.gguf\n"
        f"   = hint: {HINT}"
    )


def gguf_bytes(*entries: bytes, version: int = 3, tensors: int = 0, count: int = -1) -> bytes:
    counts = struct.pack("<IQQ", version, tensors, len(entries) if count < 0 else count)
    return b"GGUF" + counts + b"".join(entries)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5
ALIGNMENT = string(b"general.alignment") + struct.pack("<II", 4, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_bytes(version=1), "INF1002]: expected GGUF version 2 or 3, got 1"),
        (gguf_bytes(version=99), "INF1002]: expected GGUF version 2 or 3, got 99"),
        (
            gguf_bytes(string(b"\xff") + struct.pack("<IB", 0, 1)),
            "INF1002]: expected UTF-8 in a metadata key, got b'\\xff'",
        ),
        (
            gguf_bytes(string(b"k") + struct.pack("<IB", 77, 1)),
            'INF1002]: unknown type 77 of "k"',
        ),
        (
            gguf_bytes(*[string(b"k") + struct.pack("<IB", 0, 1)] * 2),
            'INF1002]: metadata key "k" appears twice',
        ),
        (gguf_bytes(string(b"k") + NESTED), 'INF1002]: arrays of "k" are nested deeper than 4'),
        (
            gguf_bytes(ALIGNMENT),
            "INF1002]: expected general.alignment to be a power of two up to 1048576, got 0",
        ),
    ],
)
def test_inf1002_malformed_headers(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert text_of_opening(path) == f"error[{message}\n  --> DIR/model.gguf"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"GGUF\x03\0\0",
            "the file ends inside the version: expected at least 8 bytes, got 7",
        ),
        (
            gguf_bytes(count=2**63),
            "the header announces 9223372036854775808 metadata entries, which need "
            "119903836479112085504 bytes or more, but only 0 bytes are left in the file",
        ),
        (
            gguf_bytes(tensors=2**40),
            "the header announces 1099511627776 tensors, which need 35184372088832 bytes or more, "
            "but only 0 bytes are left in the file",
        ),
        (
            gguf_bytes(string(b"k") + struct.pack("<IIQ", 9, 10, 2**61)),
            'the header announces 2305843009213693952 elements of "k", which need '
            "18446744073709551616 bytes or more, but only 0 bytes are left in the file",
        ),
        (
            gguf_bytes(string(b"long") + struct.pack("<IQ", 8, 2**62)),
            'the file ends inside the value of "long": expected at least 4611686018427387952 '
            "bytes, got 48",
        ),
    ],
)
def test_inf1003_announced_but_not_there(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert text_of_opening(path) == (
        f"error[INF1003]: {message}\n  --> DIR/model.gguf\n   = hint: {DAMAGED}"
    )


def test_inf1003_data_cut_off(tmp_path: Path) -> None:
    path = llama(tmp_path)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert text_of_opening(path) == (
        f"error[INF1003]: expected tensor data up to byte {size}, got a file of {size - 1} bytes\n"
        "  --> DIR/model.gguf\n"
        f"   = hint: {DAMAGED}"
    )


def tensor_row(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([tensor_row(b"t", [1] * 5)], "expected 1 to 4 dimensions, got 5"),
        ([tensor_row(b"t", [])], "expected 1 to 4 dimensions, got 0"),
        (
            [tensor_row(b"t", [4, 0])],
            "expected dimensions above zero and fewer than 2^62 elements, got [4, 0]",
        ),
        (
            [tensor_row(b"t", [2**32, 2**32])],
            "expected dimensions above zero and fewer than 2^62 elements, got "
            "[4294967296, 4294967296]",
        ),
        ([tensor_row(b"t", [4]), tensor_row(b"t", [4])], "the tensor appears twice"),
        ([tensor_row(b"t", [4], offset=8)], "expected an offset that is a multiple of 32, got 8"),
    ],
)
def test_inf1004_impossible_tensors(rows: list[bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    # A row without dimensions is the shortest, so some bytes follow it.
    path.write_bytes(gguf_bytes(tensors=len(rows)) + b"".join(rows) + bytes(64))
    assert text_of_opening(path) == (f'error[INF1004]: {message}\n  --> DIR/model.gguf: tensor "t"')


def test_inf1004_shapes_and_missing_tensors_in_one_report(tmp_path: Path) -> None:
    values, tensors = make_family("llama2")
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((64, 95), np.float32)
    tensors["lm_head.weight"] = np.zeros((320, 64, 1), np.float32)
    write_huggingface(tmp_path, values, tensors)
    assert text_of_opening(tmp_path) == (
        "error[INF1004]: the model's tensors are not as expected\n"
        "  --> DIR\n"
        '   - expected tensor "model.norm.weight" of shape 64, got none\n'
        "   - expected shape 320x64, got 320x64x1 "
        '(DIR/model.safetensors: tensor "lm_head.weight")\n'
        "   - expected shape 64x96, got 64x95 "
        '(DIR/model.safetensors: tensor "model.layers.1.mlp.down_proj.weight")'
    )


def test_inf1005_settings(tmp_path: Path) -> None:
    folder_of_llama(tmp_path, num_attention_heads=None, rms_norm_eps=-1, vocab_size=321)
    assert text_of_opening(tmp_path) == (
        "error[INF1005]: the model's settings are incomplete or contradict one another\n"
        "  --> DIR\n"
        '   - expected a whole number from 1 to 2147483647 in "num_attention_heads", got nothing '
        "(DIR/config.json)\n"
        '   - expected a finite number above zero in "rms_norm_eps", got -1 (DIR/config.json)'
    )


def test_inf1006_all_that_is_unsupported_in_one_report(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba9")
    for name, kind in (("a", "IQ4_NL"), ("b", "F32"), ("c", "TQ1_0"), ("d", "I8")):
        number = gguf.GGMLQuantizationType[kind]
        elems, size = gguf.GGML_QUANT_SIZES[number]
        writer.add_tensor(name, np.zeros((1, 512 // elems * size), np.uint8), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path = tmp_path / "model.gguf"
    assert text_of_opening(path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR/model.gguf\n"
        '   - storage type IQ4_NL (DIR/model.gguf: tensor "a")\n'
        '   - storage type TQ1_0 (DIR/model.gguf: tensor "c")\n'
        '   - storage type I8 (DIR/model.gguf: tensor "d")\n'
        f"   - expected one of the architectures {', '.join(sorted(BY_ARCHITECTURE))}, "
        'got "mamba9"'
    )


def test_inf1006_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    assert text_of_opening(path) == (
        "error[INF1006]: expected a little-endian GGUF file, got a big-endian one\n"
        "  --> DIR/model.gguf\n"
        "   = hint: convert it with gguf_convert_endian.py of the gguf package"
    )


def test_inf1006_folder(tmp_path: Path) -> None:
    folder_of_llama(tmp_path, model_type="mixtral")
    assert text_of_opening(tmp_path) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> DIR\n"
        f'   - expected one of the model types {", ".join(sorted(BY_MODEL_TYPE))}, got "mixtral"'
    )


def test_inf1007_path_out_of_the_folder(tmp_path: Path) -> None:
    values, tensors = make_family("llama2")
    write_huggingface(tmp_path, values, tensors, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../../secret"
    path.write_text(json.dumps(index))
    assert text_of_opening(tmp_path) == (
        'error[INF1007]: expected a file inside the model\'s folder, got "../../secret"\n'
        "  --> DIR/model.safetensors.index.json"
    )


def test_inf1008_weights_that_are_not_numbers(tmp_path: Path) -> None:
    values, tensors = make_family("llama2")
    tensors["model.norm.weight"][:3] = np.nan
    tensors["lm_head.weight"][7, 7] = -np.inf
    write_huggingface(tmp_path, values, tensors)
    source = open_model(tmp_path)
    assert text_of(lambda: check_finite(source, source.tensors), tmp_path) == (
        "error[INF1008]: expected finite weights, got others in 2 tensors\n"
        "  --> DIR\n"
        '   - 1 numbers are NaN or infinite (DIR/model.safetensors: tensor "lm_head.weight")\n'
        '   - 3 numbers are NaN or infinite (DIR/model.safetensors: tensor "model.norm.weight")\n'
        "   = hint: the file is damaged or was converted wrongly: get it again"
    )


def test_inf1009_file_cut_while_open(tmp_path: Path) -> None:
    path = llama(tmp_path)
    source = open_model(path)
    size = path.stat().st_size
    os.truncate(path, 4096)
    assert text_of(lambda: source.data("output.weight"), tmp_path) == (
        "error[INF1009]: the file changed while it was in use: "
        f"it had {size} bytes and has 4096\n"
        "  --> DIR/model.gguf\n"
        "   = hint: wait until the file is complete, then start again"
    )
