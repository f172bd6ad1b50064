"""Measurements survive what happens to files: kills, damage, other versions, full disks, rivals."""

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infc.diagnostics import Code, UserError
from infc.driver.tuning_database import Circumstances, TuningDatabase

WHERE = Circumstances('{"kind":"matmul"}', "machine", "code", 2)
NAMES = [f'{{"row_tile":{number}}}' for number in range(50)]
WRITER = """
import sys
from pathlib import Path
from infc.driver.tuning_database import Circumstances, TuningDatabase
path, first = Path(sys.argv[1]), int(sys.argv[2])
names = [f'{{"row_tile":{number}}}' for number in range(50)]
with TuningDatabase(path) as database:
    print("open", flush=True)
    for turn in range(first, first + int(sys.argv[3])):
        where = Circumstances(f"kernel {turn}", "machine", "code", 2)
        database.store(where, {name: 1.0 + turn for name in names})
"""


def writer(path: Path, first: int, turns: int) -> "subprocess.Popen[str]":
    """A process that stores 50 times of so many kernels."""
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kept(path: Path, turn: int) -> dict[str, float]:
    with TuningDatabase(path) as database:
        return database.seconds(Circumstances(f"kernel {turn}", "machine", "code", 2), NAMES)


def test_what_is_stored_is_there_for_the_same_circumstances_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "tuning.sqlite"
    with TuningDatabase(path) as database:
        database.store(WHERE, {NAMES[0]: 1.5, NAMES[1]: 2.5})
        database.store(WHERE, {NAMES[1]: 0.5})
    with TuningDatabase(path) as database:
        assert database.seconds(WHERE, NAMES[:3]) == {NAMES[0]: 1.5, NAMES[1]: 0.5}
        for change in ({"kernel": "x"}, {"machine": "x"}, {"code": "x"}, {"threads": 1}):
            other = Circumstances(**{**vars(WHERE), **change})
            assert database.seconds(other, NAMES) == {}
        assert database.notes == []


@pytest.mark.parametrize("value", ["'fast'", "NULL", "-1.0", "0.0", "9e999", "x'00'"])
def test_what_is_no_time_counts_as_not_measured(tmp_path: Path, value: str) -> None:
    path = tmp_path / "tuning.sqlite"
    with TuningDatabase(path) as database:
        database.store(WHERE, {NAMES[0]: 1.5, NAMES[1]: 2.5})
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        try:
            connection.execute(f"UPDATE measured SET seconds = {value} WHERE seconds = 1.5")
        except sqlite3.IntegrityError:
            return  # the schema refuses it
    with TuningDatabase(path) as database:
        assert database.seconds(WHERE, NAMES) == {NAMES[1]: 2.5}


def test_killed_writers_leave_whole_kernels(tmp_path: Path) -> None:
    path, rng = tmp_path / "tuning.sqlite", random.Random(1)
    for first in range(0, 4000, 1000):
        process = writer(path, first, 1000)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with TuningDatabase(path) as database:
        assert database.notes == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute(
            "SELECT kernel, count(*), min(seconds), max(seconds) FROM measured GROUP BY kernel"
        ).fetchall()
    for kernel, count, least, most in rows:
        assert (count, least, most) == (50, 1.0 + int(kernel[7:]), least)


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    processes = [writer(path, first, 10) for first in (0, 10, 20)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    for turn in range(30):
        assert kept(path, turn) == dict.fromkeys(NAMES, 1.0 + turn)


def damage(path: Path, seed: int) -> None:
    """Overwrite, cut or fill a file."""
    rng, data = random.Random(seed), bytearray(path.read_bytes())
    kind = seed % 3
    if kind == 0:
        del data[rng.randrange(1, len(data)) :]
    else:
        for _ in range(1 if kind == 1 else 400):
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(24))
def test_damage_is_set_aside_or_harmless(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "tuning.sqlite"
    with TuningDatabase(path) as database:
        database.store(WHERE, dict.fromkeys(NAMES, 1.0))
    damage(path, seed)
    reasons: list[Code] = []
    for _ in range(2):  # where it shows late, the next one sets it aside
        try:
            with TuningDatabase(path) as database:
                found = database.seconds(WHERE, NAMES)
                assert set(found) <= set(NAMES)
                assert all(0 < seconds < float("inf") for seconds in found.values())
                database.store(WHERE, {NAMES[0]: 3.0})
                assert database.seconds(WHERE, NAMES[:1]) == {NAMES[0]: 3.0}
            break
        except UserError as error:
            reasons.append(error.diagnostic.code)
    else:
        pytest.fail("a damaged database was in the way twice")
    assert set(reasons) <= {Code.OUTPUT}


def test_a_file_that_is_none_is_set_aside_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    for number in (1, 2):
        path.write_bytes(b"not a database, but long enough to be one" * 100)
        with TuningDatabase(path) as database:
            aside = tmp_path / f"tuning.sqlite.aside{number}"
            assert database.notes == [f"the tuning database was damaged; set aside as {aside}"]
            database.store(WHERE, {NAMES[0]: 1.0})
        assert aside.read_bytes().startswith(b"not a database")


def test_another_version_is_set_aside_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    with TuningDatabase(path) as database:
        database.store(WHERE, {NAMES[0]: 1.0})
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with TuningDatabase(path) as database:
        aside = tmp_path / "tuning.sqlite.aside1"
        assert database.notes == [
            f"the tuning database was of version 7, expected 1; set aside as {aside}"
        ]
        assert database.seconds(WHERE, NAMES) == {}


def test_a_locked_database_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    with TuningDatabase(path, wait_seconds=0.05) as database:
        rival = sqlite3.connect(path, isolation_level=None)
        rival.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError) as caught:
            database.store(WHERE, {NAMES[0]: 1.0})
        rival.close()
        database.store(WHERE, {NAMES[0]: 1.0})
    assert str(caught.value) == (
        "error[INF4006]: the tuning database cannot be used: database is locked\n"
        f"  --> {path}\n"
        "   = hint: another process holds it: wait for that one, or end it"
    )


def test_a_full_disk_is_one_error_and_loses_nothing_older(tmp_path: Path) -> None:
    path = tmp_path / "tuning.sqlite"
    with TuningDatabase(path) as database:
        database.store(WHERE, {NAMES[0]: 1.0})
        database._connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(UserError) as caught:
            database.store(WHERE, {f"{name}{'x' * 900}": 1.0 for name in NAMES})
        assert database.seconds(WHERE, NAMES) == {NAMES[0]: 1.0}
    assert str(caught.value) == (
        "error[INF4006]: the tuning database cannot be used: database or disk is full\n"
        f"  --> {path}\n"
        "   = hint: free some space there, or set XDG_CACHE_HOME to a folder elsewhere"
    )


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        TuningDatabase(tmp_path / "file" / "tuning.sqlite")
    assert str(caught.value) == (
        f"error[INF4006]: cannot write the output: file exists\n  --> {tmp_path / 'file'}"
    )
