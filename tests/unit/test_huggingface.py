"""Hugging Face folders: safetensors against the library, shards, tokenizer files, paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_huggingface
from safetensors import safe_open

from infc.diagnostics import Code, UserError
from infc.frontends import check_finite, open_model
from infc.ir.storage import STORAGE_TYPES

INDEX = "model.safetensors.index.json"


def llama(folder: Path, dtype: str = "F32", shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    values, tensors = make_family("llama2")
    write_huggingface(folder, values, tensors, dtype, shards=shards)
    return folder


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_are_those_the_library_reads(dtype: str, tmp_path: Path) -> None:
    source = open_model(llama(tmp_path, dtype))
    assert source.format == "huggingface"
    _, tensors = make_family("llama2")
    with safe_open(tmp_path / "model.safetensors", "np") as oracle:
        assert set(source.tensors) == set(oracle.keys())
        for name, info in source.tensors.items():
            assert info.storage == dtype.lower()
            assert info.shape == tuple(oracle.get_slice(name).get_shape())
            if dtype != "BF16":  # NumPy has none, so the library cannot answer
                assert source.data(name).tobytes() == oracle.get_tensor(name).tobytes()
            values = STORAGE_TYPES[info.storage].dequantize(source.data(name), info.shape)
            np.testing.assert_allclose(values, tensors[name], rtol=2.0**-8, atol=1e-6)
    check_finite(source, source.tensors)


def test_shards_make_the_whole(tmp_path: Path) -> None:
    whole = open_model(llama(tmp_path / "whole"))
    parts = open_model(llama(tmp_path / "parts", shards=3))
    assert parts.config == whole.config
    assert set(parts.tensors) == set(whole.tensors)
    for name in whole.tensors:
        np.testing.assert_array_equal(parts.data(name), whole.data(name))


def test_tokenizer_files(tmp_path: Path) -> None:
    llama(tmp_path)
    assert open_model(tmp_path).tokenizer is None
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": {}}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": "yes"},
                ]
            }
        )
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    tokenizer = open_model(tmp_path).tokenizer
    assert tokenizer is not None
    assert (tokenizer.kind, tokenizer.data) == ("huggingface", b'{"model": {}}')
    assert tokenizer.chat_template == "yes"
    assert tokenizer.fields["generation_config.json"] == {"eos_token_id": [1, 2]}
    assert set(tokenizer.fields) == {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
    }
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "plain"}')
    tokenizer = open_model(tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer.chat_template == "plain"
    (tmp_path / "chat_template.jinja").write_text("own file")
    tokenizer = open_model(tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer.chat_template == "own file"


def test_digest_covers_all_that_matters(tmp_path: Path) -> None:
    llama(tmp_path)
    seen = {open_model(tmp_path).digest()}
    assert seen == {open_model(tmp_path).digest()}
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.add(open_model(tmp_path).digest())
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    seen.add(open_model(tmp_path).digest())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    seen.add(open_model(tmp_path).digest())
    assert len(seen) == 4
    (tmp_path / "README.md").write_text("no matter")
    assert open_model(tmp_path).digest() in seen


def point_at(folder: Path, name: str) -> None:
    """Makes the index say that one tensor is in the file `name`."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("how", ["../out.safetensors", "absolute", "link", "nul", "a/../../x"])
def test_the_index_cannot_leave_the_folder(how: str, tmp_path: Path) -> None:
    folder = llama(tmp_path / "model", shards=2)
    outside = tmp_path / "out.safetensors"
    outside.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    if how == "link":
        (folder / "link.safetensors").symlink_to(outside)
    point_at(
        folder, {"absolute": str(outside), "link": "link.safetensors", "nul": "a\0b"}.get(how, how)
    )
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert caught.value.code == Code.MODEL_PATH


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    folder = llama(tmp_path / "model", shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.rename(folder / "moved")
    shard.symlink_to("moved")
    open_model(folder).close()


def test_the_layout_of_the_hubs_cache(tmp_path: Path) -> None:
    """There every file of a snapshot is a link to ../../blobs."""
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "blobs").mkdir()
    folder = llama(tmp_path / "snapshots" / "abc", shards=2)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(Path("../../blobs") / str(number))
    open_model(folder).close()


def test_a_changed_file_is_an_error(tmp_path: Path) -> None:
    source = open_model(llama(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError) as caught:
        source.data("model.norm.weight")
    assert caught.value.code == Code.MODEL_CHANGED


def safetensors(path: Path, header: object, data: bytes = b"") -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "expected JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": {}, "a": {}}', 'key "a" appears twice'),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "byte 0 is not UTF-8"),
        ({"a": 1}, "expected an object in the header"),
        ({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, "got F33"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "got [-1]"),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, "dimensions"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "got [1.0]"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "got -4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "expected two offsets"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, "expected 4 bytes"),
        ({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, "got a file of"),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            },
            'overlap those of "a"',
        ),
    ],
)
def test_hostile_headers(header: object, message: str, tmp_path: Path) -> None:
    llama(tmp_path)
    safetensors(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(UserError) as caught:
        open_model(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("size", "code"), [(2**64 - 1, "INF1002"), (2**20, "INF1003")])
def test_header_lengths_are_not_believed(size: int, code: str, tmp_path: Path) -> None:
    llama(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError) as caught:
        open_model(tmp_path)
    assert caught.value.code == code
