"""What an engineer is told about an artifact or an output that cannot be used: the whole text."""

import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from infc.artifact import Facts, Form, MemberSource, ModelRecord, open_artifact, write_artifact
from infc.artifact.manifest import MAX_MEMBERS
from infc.diagnostics import InternalError, UserError

MEMBERS: dict[str, MemberSource] = {
    "programs/decode.so": b"\x7fELF decode",
    "tokenizer/tokenizer.json": b"{}",
    "weights/packed.bin": bytes(range(256)) * 40,
}
AGAIN = "   = hint: copy or compile the artifact again"


def write(path: Path, form: Form = "zip") -> Path:
    model = ModelRecord(name="tiny.gguf", format="gguf", sha256="0" * 64)
    facts = Facts(
        dialect_version=1,
        model=model,
        targets={},
        toolchain={},
        options={},
        programs={},
        kv_layout={},
        memory_plan={},
        cost_estimate={},
    )
    write_artifact(path, facts, MEMBERS, form=form)
    return path


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_artifact(path)
    return str(caught.value).replace(str(path.parent), "DIR")


def lines(*text: str) -> str:
    return "\n".join(text)


# ---- what is not there or is something else -------------------------------------------------


def test_missing(tmp_path: Path) -> None:
    assert message(tmp_path / "m.infc") == lines(
        "error[INF4001]: there is no artifact here", "  --> DIR/m.infc"
    )


def test_below_a_file(tmp_path: Path) -> None:
    write(tmp_path / "m.infc")
    assert message(tmp_path / "m.infc" / "x") == lines(
        "error[INF4001]: there is no artifact here", "  --> DIR/x"
    )


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert message(path) == lines(
        "error[INF4002]: expected an infc artifact: it is a model in the GGUF format",
        "  --> DIR/m.gguf",
        "   = hint: compile it first: infc compile DIR/m.gguf -o model.infc",
    )


@pytest.mark.parametrize("data", [b"", b"PK", b"hello, world" * 100])
def test_not_a_zip(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.infc"
    path.write_bytes(data)
    assert message(path) == lines(
        "error[INF4002]: expected an infc artifact: it is no zip file", "  --> DIR/m.infc"
    )


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert message(tmp_path / "m") == lines(
        "error[INF4002]: expected an infc artifact: it has no manifest.json", "  --> DIR/m"
    )


def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.infc")
    assert message(tmp_path / "m.infc") == lines(
        "error[INF4002]: expected an infc artifact: it is neither a file nor a folder",
        "  --> DIR/m.infc",
    )


# ---- damaged or hostile files ----------------------------------------------------------------


def damaged_zip(reason: str, member: str | None = None) -> str:
    where = f': member "{member}"' if member else ""
    return lines(
        f"error[INF4003]: the artifact is damaged or was not written by infc: {reason}",
        f"  --> DIR/m.infc{where}",
        AGAIN,
    )


@pytest.mark.parametrize("kept", [4, 100, 5_000, -1])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "m.infc")
    path.write_bytes(path.read_bytes()[:kept])
    missing = "the end of the file is missing"
    assert message(path) == damaged_zip(
        missing if kept < 98 and kept > 0 else f"{missing} or damaged"
    )


@pytest.mark.parametrize(
    "member", ["programs/decode.so", "tokenizer/tokenizer.json", "weights/packed.bin"]
)
@pytest.mark.parametrize("form", ["zip", "dir"])
def test_flipped_bit(tmp_path: Path, member: str, form: Form) -> None:
    path = write(tmp_path / "m.infc", form)
    with open_artifact(path) as artifact:
        offset = artifact.member_offset(member)
    with (path if form == "zip" else path / member).open("r+b") as file:
        file.seek(offset)
        first = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([first ^ 4]))
    assert message(path) == lines(
        "error[INF4003]: the artifact is damaged: the checksum does not match",
        f'  --> DIR/m.infc: member "{member}"',
        AGAIN,
    )


def test_flipped_bit_in_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    path.write_bytes(path.read_bytes().replace(b'"gguf"', b'"ggug"'))
    assert message(path) == lines(
        "error[INF4003]: the artifact is damaged: the checksum does not match",
        '  --> DIR/m.infc: member "manifest.json"',
        AGAIN,
    )


def test_a_zip_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "m.infc"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/w", b"0" * 1000)
    assert message(path) == damaged_zip("the end of the file is missing or damaged")


def rewrite_zip(path: Path, old: bytes, new: bytes, count: int = -1) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))


@pytest.mark.parametrize(
    "name", [b"../grams/decode.so", b"/rograms/decode.so", b"programs\\decode.so"]
)
def test_a_name_that_climbs_out(tmp_path: Path, name: bytes) -> None:
    path = write(tmp_path / "m.infc")
    rewrite_zip(path, b"programs/decode.so", name)
    assert message(path) == damaged_zip("its directory holds a name that is not allowed")


def central(path: Path, name: bytes) -> int:
    """Where a member's entry in the central directory starts."""
    return path.read_bytes().rindex(b"PK\x01\x02", 0, path.read_bytes().rindex(name))


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_compressed_member(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    patch(path, central(path, b"weights/packed.bin") + 10, struct.pack("<H", 8))
    assert message(path) == damaged_zip(
        "it is compressed: members are stored as they are", "weights/packed.bin"
    )


def test_a_name_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    rewrite_zip(path, b"tokenizer/tokenizer.json", b"programs/decode.so.json1")
    start = central(path, b"programs/decode.so.json1")
    first = central(path, b"programs/decode.so\x01")
    data = path.read_bytes()
    entry = data[first : first + 46 + 18 + 28]
    patch(path, start, entry)
    assert message(path) == damaged_zip("it occurs twice", "programs/decode.so")


def test_overlapping_members(tmp_path: Path) -> None:
    """Two entries that name one place, as a zip bomb without compression does."""
    path = write(tmp_path / "m.infc")
    place = central(path, b"weights/packed.bin") + 46 + 18 + 4 + 16
    patch(path, place, struct.pack("<Q", 0))
    assert message(path) == damaged_zip("its header is damaged", "weights/packed.bin")


def test_a_member_beyond_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    place = central(path, b"weights/packed.bin") + 46 + 18 + 4
    patch(path, place, struct.pack("<QQ", 1 << 60, 1 << 60))
    assert message(path) == damaged_zip("it does not lie within the file", "weights/packed.bin")


def test_too_many_members(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    end = path.stat().st_size - 98
    patch(path, end + 24, struct.pack("<QQ", MAX_MEMBERS + 1, MAX_MEMBERS + 1))
    assert message(path) == damaged_zip(f"expected at most {MAX_MEMBERS} members, got 10001")


def test_bytes_after_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    path.write_bytes(path.read_bytes() + b"x")
    assert message(path) == damaged_zip("the end of the file is missing or damaged")


# ---- folders ---------------------------------------------------------------------------------


def test_missing_member(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc", "dir")
    (path / "weights/packed.bin").unlink()
    assert message(path) == lines(
        "error[INF4003]: the artifact is damaged: it is missing",
        '  --> DIR/m.infc: member "weights/packed.bin"',
        AGAIN,
    )


def test_unknown_member(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc", "dir")
    (path / "weights/more.bin").write_bytes(b"")
    (path / ".DS_Store").write_bytes(b"")
    assert message(path) == lines(
        "error[INF4003]: the artifact is damaged: the manifest does not list it",
        '  --> DIR/m.infc: member "weights/more.bin"',
        AGAIN,
    )


def test_short_member(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc", "dir")
    os.truncate(path / "weights/packed.bin", 100)
    assert message(path) == lines(
        "error[INF4003]: the artifact is damaged: expected 10240 bytes, got 100",
        '  --> DIR/m.infc: member "weights/packed.bin"',
        AGAIN,
    )


@pytest.mark.parametrize("member", ["weights", "weights/packed.bin"])
def test_symbolic_link(tmp_path: Path, member: str) -> None:
    path = write(tmp_path / "m.infc", "dir")
    shutil.move(path / member, tmp_path / "outside")
    (path / member).symlink_to(tmp_path / "outside")
    assert message(path) == lines(
        f'error[INF4002]: expected an infc artifact: "{member}" is a symbolic link',
        "  --> DIR/m.infc",
    )


# ---- manifests -------------------------------------------------------------------------------


def message_for_manifest(folder: Path, data: bytes) -> str:
    path = write(folder / "m.infc", "dir")
    (path / "manifest.json").write_bytes(data)
    return message(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", "it is not a JSON object"),
        (b'{"a": NaN}', "it is not JSON (NaN is not a JSON number)"),
        (b'{"a": 1, "a": 2}', "it is not JSON (a key occurs twice)"),
        (b"[" * 100_000, "it is not JSON (too deeply nested)"),
        (b"{}", 'it does not say "format": "infc"'),
    ],
)
def test_manifest_that_is_none(tmp_path: Path, data: bytes, reason: str) -> None:
    assert message_for_manifest(tmp_path, data) == lines(
        f"error[INF4002]: manifest.json cannot be read: {reason}", "  --> DIR/m.infc"
    )


def changed_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> str:
    path = write(folder / "m.infc", "dir")
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return message(path)


@pytest.mark.parametrize(("version", "shown"), [(2, "2"), (0, "0"), ("1", "'1'"), (True, "True")])
def test_another_version(tmp_path: Path, version: object, shown: str) -> None:
    assert changed_manifest(tmp_path, lambda m: m.update(format_version=version)) == lines(
        f"error[INF4004]: expected artifact format version 1, got {shown}",
        "  --> DIR/m.infc",
        "   = hint: compile the model again with this infc",
    )


def test_wrong_types(tmp_path: Path) -> None:
    assert changed_manifest(tmp_path, lambda m: m.update(dialect_version="1", options=[])) == lines(
        "error[INF4002]: manifest.json cannot be read: 2 of its entries are missing or wrong",
        "  --> DIR/m.infc",
        "   - input should be a valid integer ('dialect_version')",
        "   - input should be a valid dictionary ('options')",
    )


def test_changed_content(tmp_path: Path) -> None:
    assert changed_manifest(tmp_path, lambda m: m.update(options={"x": 1})) == lines(
        "error[INF4003]: manifest.json is damaged: its digest does not match its content",
        "  --> DIR/m.infc",
        AGAIN,
    )


def test_member_name_in_the_manifest(tmp_path: Path) -> None:
    def climb(manifest: dict[str, object]) -> None:
        members = manifest["members"]
        assert isinstance(members, dict)
        members["../../etc/passwd"] = members.pop("weights/packed.bin")

    assert changed_manifest(tmp_path, climb) == lines(
        "error[INF4002]: manifest.json cannot be read: "
        "member name '../../etc/passwd' is not allowed",
        "  --> DIR/m.infc",
    )


def test_manifest_too_large(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc", "dir")
    os.truncate(path / "manifest.json", (64 << 20) + 1)
    assert message(path) == lines(
        "error[INF4002]: expected an infc artifact: its manifest.json is larger than 64 MiB",
        "  --> DIR/m.infc",
    )


# ---- asking and writing ----------------------------------------------------------------------


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "m.infc")
    with open_artifact(path) as artifact, pytest.raises(UserError) as caught:
        artifact.member("programs/prefill.so")
    assert str(caught.value).replace(str(tmp_path), "DIR") == lines(
        'error[INF4002]: the artifact has no member "programs/prefill.so"',
        "  --> DIR/m.infc",
        "   = hint: compile the model again with this infc",
    )


def output_message(path: Path, form: Form = "zip") -> str:
    with pytest.raises(UserError) as caught:
        write(path, form)
    return str(caught.value).replace(str(path.parent), "DIR")


def test_output_without_its_folder(tmp_path: Path) -> None:
    assert output_message(tmp_path / "no" / "m.infc") == lines(
        "error[INF4006]: cannot write the output: its folder does not exist",
        "  --> DIR/m.infc",
        "   = hint: create it: mkdir -p DIR",
    )


@pytest.mark.parametrize("form", ["zip", "dir"])
def test_output_is_a_folder(tmp_path: Path, form: Form) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").touch()
    assert output_message(tmp_path / "m", form) == lines(
        "error[INF4006]: cannot write the output: it is a folder",
        "  --> DIR/m",
        "   = hint: name a file in it",
    )
    assert (tmp_path / "m" / "precious").exists()


def test_output_has_too_long_a_name(tmp_path: Path) -> None:
    assert output_message(tmp_path / ("a" * 300)) == lines(
        "error[INF4006]: cannot write the output: file name too long",
        "  --> DIR/" + "a" * 300,
    )


def test_folder_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"precious")
    assert output_message(tmp_path / "m", "dir") == lines(
        "error[INF4006]: cannot write the output: something else has that name",
        "  --> DIR/m",
        "   = hint: remove it or choose another name",
    )
    assert (tmp_path / "m").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_output_in_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert output_message(tmp_path / "m.infc") == lines(
        "error[INF4006]: cannot write the output: its folder is not writable",
        "  --> DIR/m.infc",
        "   = hint: choose another place",
    )


@pytest.mark.parametrize("form", ["zip", "dir"])
def test_full_disk(tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert output_message(tmp_path / "m.infc", form) == lines(
        "error[INF4006]: cannot write the output: no space left on device",
        "  --> DIR/m.infc",
        "   = hint: free some space there or choose another place; nothing was left behind",
    )
    assert os.listdir(tmp_path) == []


def test_a_member_name_the_compiler_must_not_use(tmp_path: Path) -> None:
    for name in ("manifest.json", "../x/y", "/x/y", "x", "a/../b", "a//b", "a/.b"):
        with pytest.raises(InternalError, match="cannot have a member called"):
            write_artifact(tmp_path / "m.infc", Facts.model_construct(), {name: b""})


def test_crc_of_a_forged_manifest_is_not_enough(tmp_path: Path) -> None:
    """A manifest changed together with its CRC is still caught by its own digest."""
    path = write(tmp_path / "m.infc")
    data = path.read_bytes()
    start, end = data.index(b"{\n "), data.rindex(b"}\n") + 2
    changed = data[start:end].replace(b'"gguf"', b'"ggug"')
    old, new = (struct.pack("<I", zlib.crc32(text)) for text in (data[start:end], changed))
    path.write_bytes(data.replace(data[start:end], changed).replace(old, new))
    assert message(path) == lines(
        "error[INF4003]: manifest.json is damaged: its digest does not match its content",
        "  --> DIR/m.infc",
        AGAIN,
    )
