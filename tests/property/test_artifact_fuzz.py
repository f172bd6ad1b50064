"""Hostile artifacts: whatever is done to one, opening it is a UserError or gives what was written.

INFC_FUZZ is the number of mutations (default 500).
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from infc.artifact import Facts, Form, MemberSource, ModelRecord, open_artifact, write_artifact
from infc.diagnostics import UserError

MUTATIONS = int(os.environ.get("INFC_FUZZ", "500"))
MEMBERS: dict[str, MemberSource] = {
    "programs/decode.so": bytes(300),
    "tokenizer/tokenizer.json": b'{"a": 1}',
    "weights/packed.bin": random.Random(0).randbytes(3000),
}
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1]


def write(path: Path, form: Form) -> None:
    facts = Facts(
        dialect_version=1,
        model=ModelRecord(name="tiny.gguf", format="gguf", sha256="0" * 64),
        targets={"decode": {"name": "cpu"}},
        toolchain={"llvm": "22"},
        options={},
        programs={"decode": {"member": "programs/decode.so", "limits": [1, 2.5, None]}},
        kv_layout={},
        memory_plan={},
        cost_estimate={},
    )
    write_artifact(path, facts, MEMBERS, form=form)


def open_and_read(path: Path) -> None:
    """Open; where that succeeds, the members must be what was written."""
    try:
        artifact = open_artifact(path)
    except UserError:
        return
    with artifact:
        artifact.verify()
        assert {name: bytes(artifact.member(name)) for name in artifact.names()} == MEMBERS


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_in_the_directory(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data) - 500, len(data))] = rng.randrange(256)


def write_number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice([2, 4, 8])
    offset = rng.randrange(len(data) - 8)
    value = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
    data[offset : offset + width] = value.to_bytes(width, "little")


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove_a_piece(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 4, 64, 1000])]


def repeat_a_piece(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice([1, 4, 64, 1000])]
    at = rng.randrange(len(data))
    data[at:at] = piece


def change_a_name(data: bytearray, rng: random.Random) -> None:
    old, new = rng.choice(
        [(b"weights/", b"../../x/"), (b"programs", b"weights/"), (b".json", b"\x00\xff..\\")]
    )
    data[:] = data.replace(old, new, rng.choice([1, 2, -1]))


BYTE_MUTATORS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits, flip_in_the_directory, write_number, truncate, remove_a_piece, repeat_a_piece,
    change_a_name,
]  # fmt: skip


def test_mutated_files(tmp_path: Path) -> None:
    path = tmp_path / "m.infc"
    write(path, "zip")
    original = path.read_bytes()
    for seed in range(MUTATIONS * 3 // 5):
        rng = random.Random(seed)
        data = bytearray(original)
        BYTE_MUTATORS[seed % len(BYTE_MUTATORS)](data, rng)
        path.unlink()
        path.write_bytes(data)
        try:
            open_and_read(path)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")


def mutate_json(value: object, rng: random.Random) -> object:
    """The value with one of its parts replaced, removed or added."""
    odd: list[object] = [
        None, True, -1, 1 << 70, 1e308, "", "x" * 300, "\ud800", "../..", [], {}, [[[]]],
    ]  # fmt: skip
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        action = rng.random()
        if action < 0.2:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.3:
            return {**value, rng.choice(["extra", "../x", "a/b"]): rng.choice(odd)}
        return {**value, key: mutate_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(odd)


def sign(manifest: object) -> object:
    """Put the right digest on a manifest, as a forger would, so that it is not what stops it."""
    if not isinstance(manifest, dict):
        return manifest
    unsigned = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    return {**unsigned, "digest": hashlib.sha256(canonical).hexdigest()}


def test_mutated_manifests(tmp_path: Path) -> None:
    path = tmp_path / "m.infc"
    write(path, "dir")
    manifest = (path / "manifest.json").read_bytes()
    for seed in range(MUTATIONS // 5):
        rng = random.Random(seed)
        data = bytearray(manifest)
        if seed % 2:
            data[:] = json.dumps(sign(mutate_json(json.loads(manifest), rng))).encode()
        else:
            rng.choice([flip_bits, truncate, remove_a_piece, repeat_a_piece])(data, rng)
        (path / "manifest.json").write_bytes(data)
        try:
            open_and_read(path)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")


def mutate_folder(path: Path, rng: random.Random) -> None:
    name = rng.choice(["manifest.json", *MEMBERS])
    place = path / name
    match rng.randrange(8):
        case 0:
            place.unlink()
        case 1:
            place.rename(path / rng.choice(["weights/other", "other", "programs/a b", ".hidden"]))
        case 2:
            os.truncate(place, rng.randrange(5000))
        case 3:
            place.unlink()
            place.symlink_to(rng.choice(["/etc/hostname", "nowhere", place.name, "/dev/zero"]))
        case 4:
            place.unlink()
            place.mkdir()
        case 5:
            place.unlink()
            os.mkfifo(place)
        case 6:
            os.symlink(path, path / "programs" / "loop")
        case _:
            data = bytearray(place.read_bytes())
            flip_bits(data, rng)
            place.write_bytes(data)


def test_mutated_folders(tmp_path: Path) -> None:
    original, path = tmp_path / "original", tmp_path / "m.infc"
    write(original, "dir")
    for seed in range(MUTATIONS // 5):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original, path)
        mutate_folder(path, random.Random(seed))
        try:
            open_and_read(path)
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
