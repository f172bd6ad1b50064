"""Compilations for GPUs that cannot be."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from tempfile import gettempdir

import pytest
from small_models import SmallModels

import infc
from infc.backends.cuda.codegen import assembler
from infc.backends.cuda.codegen.assembler import assemble
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


def broken_assembler(monkeypatch: pytest.MonkeyPatch, path: Path, code: bytes | None) -> None:
    """One that cannot be started, or that ends well and leaves `code`."""

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        if code is None:
            raise OSError(8, "Exec format error")
        (cwd / command[-1]).write_bytes(code)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assembler, "find_assembler", lambda: path)
    monkeypatch.setattr(assembler.subprocess, "run", run)


def elf(section_end: int) -> bytes:
    """A file of one section, 64 bytes from byte 64 on, whose table lies behind it."""
    header = struct.pack("<32xQQ6xHHHH2x", 0, 128, 56, 0, 64, 1)
    section = struct.pack("<4xI16xQQ24x", 1, 64, section_end - 64)
    return header + bytes(64) + section


def test_machine_code_is_never_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The assembler ends well on a full disk and leaves a part of its file."""
    whole = elf(128)
    broken_assembler(monkeypatch, tmp_path, whole)
    assembled = assemble("", "sm_90a")
    assert assembled is not None
    assert assembled.code == whole
    for code in (b"", whole[:40], whole[:-1], elf(300)):
        broken_assembler(monkeypatch, tmp_path, code)
        with pytest.raises(UserError) as raised:
            assemble("", "sm_90a")
        assert str(raised.value) == (
            "error[INF4006]: cannot write the assembler's files: no space left on device\n"
            f"  --> {gettempdir()}\n"
            "   = hint: free some space there, or name another folder in TMPDIR"
        )


def test_an_assembler_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken_assembler(monkeypatch, tmp_path / "ptxas", None)
    with pytest.raises(UserError) as raised:
        assemble("", "sm_90a")
    assert str(raised.value) == (
        "error[INF3005]: the assembler cannot be started: exec format error\n"
        f"  --> {tmp_path / 'ptxas'}\n"
        "   = hint: install it again, or take it off the search path: without one the device's "
        "driver translates the programs"
    )
