"""Compilations for GPUs that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import SmallModels

import infc
from infc.diagnostics import Code, UserError

ONE_LAYER = {"num_hidden_layers": 1}


def refusal(model: Path, tmp_path: Path, **options: object) -> UserError:
    asked = {"max_context": 64, "chunk": 8, **options}
    with pytest.raises(UserError) as raised:
        infc.compile(model, target="cuda:sm_90a", output=tmp_path / "a.infc", **asked)  # type: ignore[arg-type]
    return raised.value


def test_heads_that_no_matrix_instruction_takes(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.model("llama3", "BF16", **ONE_LAYER, head_dim=24)
    error = refusal(model, tmp_path)
    assert error.code is Code.TARGET_UNSUPPORTED
    assert "expected a head_dim of a multiple of 16 up to 256, got 24" in str(error)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_a_cache_that_attention_does_not_read(
    dtype: str, small_models: SmallModels, tmp_path: Path
) -> None:
    model = small_models.model("llama3", "BF16", **ONE_LAYER)
    error = refusal(model, tmp_path, kv_dtype=dtype)
    assert error.code is Code.TARGET_UNSUPPORTED
    assert f"target 'cuda:sm_90a' holds no cache of {dtype}" in str(error)
    assert "--kv-dtype f16 or bf16" in str(error)


def test_an_edited_mapping_that_does_not_fit(
    small_models: SmallModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.model("llama3", "BF16", **ONE_LAYER)
    no_programs = {"prefill": "", "decode": ""}
    monkeypatch.setattr("infc.backends.cuda.emission.to_ptx", lambda module, arch: no_programs)
    monkeypatch.setattr("infc.backends.cuda.emission.assemble", lambda ptx, arch: None)
    infc.compile(
        model,
        target="cuda:sm_90a",
        output=tmp_path / "a.infc",
        dump=tmp_path / "dump",
        max_context=64,
        chunk=40,
    )
    (dump,) = (tmp_path / "dump").glob("*-record-plan.mlir")
    text = dump.read_text()
    assert 'product = "tiles"' in text
    dump.write_text(text.replace('product = "tiles"', 'product = "stream"'))
    error = refusal(model, tmp_path, resume_from=dump)
    assert error.code is Code.PLAN
    assert "40 rows of 64 numbers do not fit into shared memory beside a ring" in str(error)
