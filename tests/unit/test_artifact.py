"""The `.infc` container: what is written is what is read, whole or not at all."""

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import pytest

from infc.artifact import Facts, Form, MemberSource, ModelRecord, open_artifact, write_artifact
from infc.artifact.checksums import CHUNK_BYTES
from infc.artifact.output import TEMPORARY_PREFIX, remove_abandoned
from infc.diagnostics import Code, UserError

FORMS: tuple[Form, ...] = ("zip", "dir")
MEMBERS: dict[str, MemberSource] = {
    "programs/prefill.so": b"\x7fELF prefill",
    "programs/decode.so": b"\x7fELF decode",
    "tokenizer/tokenizer.json": b"{}",
    "weights/packed.bin": bytes(range(256)) * 40,
    "weights/extra.bin": b"x",
    "report/empty": b"",
}


def make_facts(**changes: object) -> Facts:
    values: dict[str, object] = {
        "dialect_version": 1,
        "model": ModelRecord(name="tiny.gguf", format="gguf", sha256="0" * 64),
        "targets": {"prefill": {"name": "cpu", "bandwidth": 1.5e10}},
        "toolchain": {"llvm": "22.1.8"},
        "options": {"max_context": 4096},
        "programs": {"prefill": {"member": "programs/prefill.so"}},
        "kv_layout": {"page_tokens": 4096},
        "memory_plan": {},
        "cost_estimate": {"prefill": {"seconds": 0.25}},
    }
    return Facts.model_validate({**values, **changes})


def content(path: Path) -> dict[str, bytes]:
    """Name -> bytes of everything at `path`, in either form."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "model.infc"
    digest = write_artifact(path, make_facts(), MEMBERS, form=form)
    with open_artifact(path) as artifact:
        assert artifact.manifest.digest == digest
        assert artifact.names() == tuple(sorted(MEMBERS))
        for name, expected in MEMBERS.items():
            view = artifact.member(name)
            assert view.readonly
            assert bytes(view) == expected
            file = path if form == "zip" else path / name
            offset = artifact.member_offset(name)
            assert file.read_bytes()[offset : offset + len(view)] == expected
            assert offset % (4096 if name.startswith("weights/") else 64) == 0
        facts = artifact.manifest.model_dump(include=set(Facts.model_fields))
        assert facts == make_facts().model_dump()
        artifact.verify()


def test_both_forms_have_one_digest(tmp_path: Path) -> None:
    zipped = write_artifact(tmp_path / "a.infc", make_facts(), MEMBERS, form="zip")
    folder = write_artifact(tmp_path / "b.infc", make_facts(), MEMBERS, form="dir")
    changed = write_artifact(tmp_path / "c.infc", make_facts(options={"a": 1}), MEMBERS)
    assert zipped == folder != changed


@pytest.mark.parametrize("form", FORMS)
def test_same_inputs_same_bytes(tmp_path: Path, form: Form) -> None:
    for name, members in (
        ("a.infc", MEMBERS),
        ("b.infc", dict(reversed(MEMBERS.items()))),
    ):
        write_artifact(tmp_path / name, make_facts(), members, form=form)
    assert content(tmp_path / "a.infc") == content(tmp_path / "b.infc")


def test_the_file_is_a_plain_zip(tmp_path: Path) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), MEMBERS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*sorted(MEMBERS), "manifest.json"]
        assert archive.read("weights/packed.bin") == MEMBERS["weights/packed.bin"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_members_around_the_chunk_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), {"weights/w": bytes(size)})
    with open_artifact(path) as artifact:
        assert artifact.member("weights/w").nbytes == size
        assert len(artifact.manifest.members["weights/w"].crc32) == max(1, -(-size // CHUNK_BYTES))


def test_members_from_functions_and_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc" * 1_000_000)

    def stream(out: BinaryIO) -> None:
        for index in range(3000):
            assert out.write(bytes([index % 251]) * 7) == 7

    digest = write_artifact(
        tmp_path / "a.infc", make_facts(), {"weights/s": stream, "weights/f": source}
    )
    by_value = {
        "weights/s": b"".join(bytes([index % 251]) * 7 for index in range(3000)),
        "weights/f": source.read_bytes(),
    }
    assert digest == write_artifact(tmp_path / "b.infc", make_facts(), by_value)
    assert content(tmp_path / "a.infc") == content(tmp_path / "b.infc")


@pytest.mark.parametrize("form", FORMS)
def test_replaces_an_artifact_that_stays_open(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), {"weights/w": b"old"}, form=form)
    with open_artifact(path) as old:
        write_artifact(path, make_facts(), {"weights/w": b"new"}, form=form)
        assert bytes(old.member("weights/w")) == b"old"
    with open_artifact(path) as new:
        assert bytes(new.member("weights/w")) == b"new"
    assert os.listdir(tmp_path) == ["model.infc"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_leaves_what_was_there(
    tmp_path: Path, form: Form, error: type[BaseException]
) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), MEMBERS, form=form)
    before = content(path)

    def fail(out: BinaryIO) -> None:
        out.write(b"half")
        raise error

    with pytest.raises(error):
        write_artifact(path, make_facts(), {"programs/a": b"a", "weights/w": fail}, form=form)
    assert content(path) == before
    assert os.listdir(tmp_path) == ["model.infc"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_artifact import make_facts
from infc.artifact import write_artifact

def stall(out):
    out.write(bytes(1 << 21))
    print("writing", flush=True)
    time.sleep(60)

write_artifact(Path(sys.argv[1]), make_facts(), {"weights/w": stall}, form=sys.argv[2])
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_writer_leaves_only_a_temporary(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "model.infc"
    command = [sys.executable, "-c", KILLED, str(path), form, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        remove_abandoned(tmp_path)
        assert len(leftovers(tmp_path)) == 1, "its owner is alive: nobody may remove it"
        writer.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == leftovers(tmp_path)
    write_artifact(path, make_facts(), MEMBERS, form=form)
    assert os.listdir(tmp_path) == ["model.infc"]


REPEATED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_artifact import make_facts
from infc.artifact import write_artifact

value = int(sys.argv[4])
for _ in range(10):
    members = {f"weights/w{index}": bytes([value]) * 100_000 for index in range(4)}
    facts = make_facts(options={"value": value})
    write_artifact(Path(sys.argv[1]), facts, members, form=sys.argv[2])
"""


@pytest.mark.parametrize("form", FORMS)
def test_concurrent_writers_never_mix(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "model.infc"
    command = [sys.executable, "-c", REPEATED, str(path), form, str(Path(__file__).parent)]
    writers = [subprocess.Popen([*command, value]) for value in ("1", "2")]
    assert [writer.wait() for writer in writers] == [0, 0]
    with open_artifact(path) as artifact:
        value = artifact.manifest.options["value"]
        assert isinstance(value, int)
        assert {bytes(artifact.member(name)) for name in artifact.names()} == {
            bytes([value]) * 100_000
        }
        artifact.verify()
    assert os.listdir(tmp_path) == ["model.infc"]


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        write_artifact(tmp_path / "model.infc", make_facts(), MEMBERS, form=form)
    assert caught.value.code == Code.OUTPUT
    assert os.listdir(tmp_path) == []


def test_a_write_beyond_the_file_size_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(UserError) as caught:
            write_artifact(tmp_path / "m.infc", make_facts(), {"weights/w": bytes(2 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.code == Code.OUTPUT
    assert os.listdir(tmp_path) == []


def test_closing_keeps_views_that_are_in_use(tmp_path: Path) -> None:
    write_artifact(tmp_path / "m.infc", make_facts(), MEMBERS)
    artifact = open_artifact(tmp_path / "m.infc")
    view = artifact.member("weights/packed.bin")
    artifact.close()
    assert bytes(view[:4]) == b"\0\1\2\3"


def forbid_memory_files(*_: object) -> int:
    raise PermissionError(errno.EACCES, "forbidden")


def make_library(folder: Path, answer: int) -> bytes:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = folder / "answer.c"
    source.write_text(f"int answer(void) {{ return {answer}; }}")
    out = folder / "answer.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", out, source], check=True)
    return out.read_bytes()


@pytest.mark.parametrize("in_memory", [True, False])
def test_extracted_programs_can_be_loaded(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs, the first artifact closed before the second is loaded: no mix-up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not in_memory:
        monkeypatch.setattr(os, "memfd_create", forbid_memory_files, raising=False)
    for answer in (41 + 10 * in_memory, 42 + 10 * in_memory):
        path = tmp_path / "model.infc"
        write_artifact(path, make_facts(), {"programs/p.so": make_library(tmp_path, answer)})
        with open_artifact(path) as artifact:
            library = ctypes.CDLL(str(artifact.extract("programs/p.so")))
        assert library.answer() == answer


def test_the_cache_is_private_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "memfd_create", forbid_memory_files, raising=False)
    write_artifact(tmp_path / "m.infc", make_facts(), {"programs/p.so": b"the program"})
    with open_artifact(tmp_path / "m.infc") as artifact:
        path = artifact.extract("programs/p.so")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.write_bytes(b"something else")
        assert artifact.extract("programs/p.so") == path
    assert path.read_bytes() == b"the program"


@pytest.mark.parametrize("offset", [0, 1, 5_000, 10_239])
def test_a_flipped_bit_of_the_weights_is_found(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), MEMBERS)
    with open_artifact(path) as artifact:
        offset += artifact.member_offset("weights/packed.bin")
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        open_artifact(path)
    assert caught.value.code == Code.ARTIFACT_DAMAGED
    assert "weights/packed.bin" in str(caught.value)


def test_verify_names_all_that_changed_since(tmp_path: Path) -> None:
    path = tmp_path / "model.infc"
    write_artifact(path, make_facts(), MEMBERS, form="dir")
    with open_artifact(path) as artifact:
        for name in ("weights/packed.bin", "programs/decode.so"):
            with (path / name).open("r+b") as file:
                file.write(b"?")
        with pytest.raises(UserError) as caught:
            artifact.verify()
    assert caught.value.code == Code.ARTIFACT_DAMAGED
    assert "programs/decode.so" in str(caught.value)
    assert "weights/packed.bin" in str(caught.value)
