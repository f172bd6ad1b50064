"""GGUF files against the `gguf` package's own reader, split files, and files that change."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_gguf

from infc.diagnostics import Code, UserError
from infc.frontends import check_finite, open_model
from infc.frontends.files import ModelFile
from infc.frontends.gguf_header import StringArray, read_header


def llama(path: Path, storage: str = "F32", **more: Any) -> Path:
    values, tensors = make_family("llama2")
    write_gguf(path, values, tensors, storage, **more)
    return path


def header_of(path: Path) -> dict[str, object]:
    file = ModelFile(path)
    try:
        return read_header(file).metadata
    finally:
        file.close()


def metadata_file(path: Path, *entries: bytes, version: int = 3) -> Path:
    """A file of metadata only, from encoded entries."""
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(entries))
    path.write_bytes(head + b"".join(entries))
    return path


def entry(key: str, kind: gguf.GGUFValueType, value: bytes) -> bytes:
    raw = key.encode()
    return struct.pack("<Q", len(raw)) + raw + struct.pack("<I", kind) + value


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_tensors_are_those_the_package_reads(storage: str, tmp_path: Path) -> None:
    path = llama(tmp_path / "model.gguf", storage)
    source = open_model(path)
    oracle = gguf.GGUFReader(path)
    assert list(source.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        info = source.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.storage == tensor.tensor_type.name.lower()
        got = source.data(tensor.name)
        assert not got.flags.writeable
        assert got.tobytes() == tensor.data.tobytes()
    source.close()


def test_every_kind_of_metadata_value(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m", "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -32768)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "grüße\n")
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.flags", [True, False])
    writer.add_array("a.words", ["x", "", "é"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert {k: v for k, v in header_of(tmp_path / "m").items() if k.startswith("a.")} == {
        "a.u8": 255,
        "a.i8": -128,
        "a.u16": 65535,
        "a.i16": -32768,
        "a.u32": 2**32 - 1,
        "a.i32": -(2**31),
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f32": 0.5,
        "a.f64": 0.1,
        "a.bool": True,
        "a.text": "grüße\n",
        "a.numbers": [1, -2, 3],
        "a.flags": [True, False],
        "a.words": ["x", "", "é"],
    }


@pytest.mark.parametrize("count", [1023, 1024, 5000])
def test_long_string_arrays(count: int, tmp_path: Path) -> None:
    words = [("ü" * (index % 9)) + str(index) for index in range(count)]
    words[-1] = "x" * 5_000_000  # longer than a piece of the file as it is read
    packed = b"".join(struct.pack("<Q", len(w.encode())) + w.encode() for w in words)
    array = struct.pack("<IQ", gguf.GGUFValueType.STRING, count) + packed
    path = metadata_file(
        tmp_path / "m",
        entry("words", gguf.GGUFValueType.ARRAY, array),
        entry("after", gguf.GGUFValueType.UINT8, b"\x07"),
    )
    metadata = header_of(path)
    read = metadata["words"]
    if count >= 1024:
        assert isinstance(read, StringArray)
        assert len(read) == count
        read = read.strings()
    assert read == words
    assert metadata["after"] == 7


def test_nested_arrays(tmp_path: Path) -> None:
    numbers = struct.pack("<IQ", gguf.GGUFValueType.UINT8, 2) + b"\x01\x02"
    array = struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 2) + numbers + numbers
    path = metadata_file(tmp_path / "m", entry("deep", gguf.GGUFValueType.ARRAY, array))
    assert header_of(path) == {"deep": [[1, 2], [1, 2]]}


def test_version_2_is_the_same(tmp_path: Path) -> None:
    path = llama(tmp_path / "model.gguf")
    whole = bytearray(path.read_bytes())
    whole[4] = 2
    (tmp_path / "old").write_bytes(whole)
    assert open_model(tmp_path / "old").config == open_model(path).config


def test_other_alignments(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m", "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("t", np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = ModelFile(tmp_path / "m")
    header = read_header(file)
    assert header.alignment == 256
    assert header.tensors[0].offset == header.data_offset
    assert header.data_offset % 256 == 0
    file.close()


def test_the_ending_does_not_matter(tmp_path: Path) -> None:
    path = llama(tmp_path / "weights.bin")
    assert open_model(path).format == "gguf"
    assert open_model(str(tmp_path)).path == path  # the only one in its folder


def test_tokenizer_fields(tmp_path: Path) -> None:
    path = llama(tmp_path / "with.gguf", with_tokenizer=True)
    tokenizer = open_model(path).tokenizer
    assert tokenizer is not None
    assert tokenizer.kind == "gguf"
    tokens = tokenizer.fields["tokenizer.ggml.tokens"]
    oracle = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    assert tokens == oracle
    assert all(key.startswith("tokenizer.") for key in tokenizer.fields)
    assert open_model(llama(tmp_path / "without.gguf")).tokenizer is None


def test_digest_is_the_files_own(tmp_path: Path) -> None:
    path = llama(tmp_path / "model.gguf")
    source = open_model(path)
    assert source.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.digest() == open_model(path).digest()


def split(path: Path, tensors_each: int = 9) -> list[Path]:
    """A llama in shards of so many tensors."""
    whole = gguf.GGUFReader(llama(path.with_name("whole.gguf")))
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_each)
    for key, field in whole.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-*"))


def test_shards_make_the_whole(tmp_path: Path) -> None:
    shards = split(tmp_path / "split.gguf")
    assert len(shards) == 3
    whole = open_model(tmp_path / "whole.gguf")
    for shard in shards:  # any of them leads to the others
        source = open_model(shard)
        assert sorted(source.files()) == sorted(shards)  # so none is taken for an output
        assert source.config == whole.config
        for name in whole.tensors:
            np.testing.assert_array_equal(source.data(name), whole.data(name))
    assert open_model(shards[0]).digest() == open_model(shards[2]).digest() != whole.digest()
    (tmp_path / "whole.gguf").unlink()
    assert open_model(tmp_path).config == whole.config


@pytest.mark.parametrize("how", ["cut", "touched", "replaced", "gone"])
def test_a_file_that_changes_is_an_error(how: str, tmp_path: Path) -> None:
    path = llama(tmp_path / "model.gguf")
    source = open_model(path)
    if how == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "touched":
        os.utime(path, ns=(1, 1))
    elif how == "replaced":
        path.rename(tmp_path / "old")
        path.write_bytes((tmp_path / "old").read_bytes())
    else:
        path.unlink()
    for action in (lambda: source.data("output.weight"), source.digest):
        with pytest.raises(UserError) as caught:
            action()
        assert caught.value.code == Code.MODEL_CHANGED
    source.close()


def test_cut_between_the_check_and_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no check can rule out: the read itself finds that the file is shorter."""
    path = llama(tmp_path / "model.gguf")
    source = open_model(path)
    monkeypatch.setattr(ModelFile, "_check_unchanged", lambda self: os.truncate(path, 100))
    with pytest.raises(UserError, match="it is shorter"):
        source.data("output.weight")


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    source = open_model(llama(tmp_path / "model.gguf"))
    source.close()
    source.close()
    with pytest.raises(UserError, match="the model was closed"):
        source.data("output.weight")


def test_closing_gives_back_the_descriptors(tmp_path: Path) -> None:
    shards = split(tmp_path / "split.gguf")
    before = len(os.listdir("/proc/self/fd"))
    open_model(shards[0]).close()
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(UserError):
        open_model(shards[0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_pipes_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a regular file"):
        open_model(tmp_path / "pipe")


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16", "Q8_0", "Q5_1"])
def test_finite_weights_pass_and_others_are_listed(storage: str, tmp_path: Path) -> None:
    path = llama(tmp_path / "model.gguf", storage)
    source = open_model(path)
    check_finite(source, source.tensors)
    whole = bytearray(path.read_bytes())
    oracle = gguf.GGUFReader(path)
    bad = {"blk.0.ffn_up.weight": b"\x00\x7e", "output.weight": b"\x00\xfc"}  # NaN, -inf in f16
    if storage in ("F32", "BF16"):
        bad = dict.fromkeys(bad, b"\x80\xff")
    for tensor in oracle.tensors:
        if tensor.name in bad:
            end = int(tensor.data_offset + tensor.n_bytes)
            at = end - 2 if storage in ("F32", "F16", "BF16") else end - (34, 24)["5" in storage]
            whole[at : at + 2] = bad[tensor.name]
    path.write_bytes(whole)
    source = open_model(path)
    with pytest.raises(UserError) as caught:
        check_finite(source, source.tensors)
    assert caught.value.code == Code.MODEL_NUMERIC
    listed = [problem.location for problem in caught.value.diagnostic.problems]
    assert sorted(str(one).split('"')[1] for one in listed) == sorted(bad)


def test_gemma(gemma_path: Path) -> None:
    source = open_model(gemma_path)
    config = source.config
    assert (config.family, len(config.layers), len(source.tensors)) == ("gemma3", 18, 236)
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 1, 256)
    assert [i for i, layer in enumerate(config.layers) if layer.window is None] == [5, 11, 17]
    assert {info.storage for info in source.tensors.values()} == {
        "f32", "q4_k", "q5_0", "q6_k", "q8_0",
    }  # fmt: skip
    tokenizer = source.tokenizer
    assert tokenizer is not None
    tokens = tokenizer.fields["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == config.vocab_size == 262144
    assert tokens[2] == "<bos>"
    check_finite(source, source.tensors)
    source.close()
