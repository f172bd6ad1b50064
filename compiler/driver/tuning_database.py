"""What kernels took when they were measured, kept for the compilations that follow.

An SQLite file in the user's cache. SQLite sees to it that processes write one after the other, and
that a process that is killed leaves nothing half done. What is in it may be lost at any time: a
damaged file, or one of another version, is set aside with a note, and measuring starts over. It
only ever says which of the backend's own mappings is chosen, so it can make no program wrong.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infc.artifact.output import output_error
from infc.diagnostics import Code, UserError

_VERSION = 1
_WAIT_SECONDS = 30.0
"""Others hold the file for as long as it takes to write some rows."""
_BESIDE = ("-journal", "-wal", "-shm")
"""Files of SQLite beside a database; they go where it goes."""
_SCHEMA = """CREATE TABLE measured (
  kernel TEXT NOT NULL, machine TEXT NOT NULL, code TEXT NOT NULL, threads INTEGER NOT NULL,
  mapping TEXT NOT NULL, seconds REAL NOT NULL,
  PRIMARY KEY (kernel, machine, code, threads, mapping)
) WITHOUT ROWID"""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_CIRCUMSTANCES = _IN_USE | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT}
"""What says nothing about the file; a damaged one may also pass for read-only, or for too short."""
_PRIMARY_CODE = 0xFF


@dataclass(frozen=True)
class Circumstances:
    """What a measurement is good for.

    Attributes:
        kernel: kind, phase, shapes, storage types and rows, as canonical JSON.
        machine: digest of the target's facts.
        code: digest of the code that emits and measures kernels, and versions of its tools.
        threads: of a call.
    """

    kernel: str
    machine: str
    code: str
    threads: int

    def key(self) -> tuple[str, str, str, int]:
        """The first columns of its rows."""
        return (self.kernel, self.machine, self.code, self.threads)


class _UnusableError(Exception):
    """The file is not what this version writes; how it is."""


class TuningDatabase:
    """An open database; a context manager.

    Attributes:
        notes: what was set aside when it was opened, and why.

    Raises:
        UserError: it can be neither read nor made (INF4006); so do all methods.
    """

    def __init__(self, path: Path, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        self.path, self.notes = path, list[str]()
        self._wait_seconds = wait_seconds
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(path.parent, error) from error
        with self._failures():
            try:
                self._connection = self._opened()
            except _UnusableError as error:
                self._set_aside(str(error))
                self._connection = self._opened()

    def __enter__(self) -> TuningDatabase:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def seconds(self, where: Circumstances, mappings: Sequence[str]) -> dict[str, float]:
        """What is known of some mappings (canonical JSON): seconds of a call."""
        query = (
            "SELECT mapping, seconds FROM measured "
            "WHERE kernel = ? AND machine = ? AND code = ? AND threads = ?"
        )
        with self._failures():
            rows = dict(self._connection.execute(query, where.key()))
        return {
            mapping: float(rows[mapping])
            for mapping in mappings
            if isinstance(rows.get(mapping), float) and 0 < rows[mapping] < math.inf
        }

    def store(self, where: Circumstances, seconds: Mapping[str, float]) -> None:
        """Keep what was measured together: all of it or, where the process ends, none."""
        rows = [(*where.key(), mapping, taken) for mapping, taken in seconds.items()]
        with self._failures(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?, ?)", rows
            )

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._wait_seconds, isolation_level=None)
        connection.text_factory = _decoded
        try:
            self._prepare(connection)
        except UnicodeDecodeError as error:  # SQLite quotes what it cannot read
            connection.close()
            raise _UnusableError("damaged") from error
        except sqlite3.DatabaseError as error:
            connection.close()
            if _primary(error) not in _CIRCUMSTANCES and self._may_write():
                raise _UnusableError("damaged") from error
            raise
        except BaseException:
            connection.close()
            raise
        return connection

    def _may_write(self) -> bool:
        return os.access(self.path, os.R_OK | os.W_OK) and os.access(self.path.parent, os.W_OK)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Check what is in the file; a new one gets its table, all at once."""
        connection.execute("BEGIN IMMEDIATE")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")]
        if found == 0 and not tables:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif found != _VERSION:
            raise _UnusableError(f"of version {found}, expected {_VERSION}")
        elif tables != [_SCHEMA]:
            raise _UnusableError("damaged")
        connection.execute("COMMIT")
        (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise _UnusableError("damaged")

    def _set_aside(self, reason: str) -> None:
        """Rename the file, so that whoever wants to may look at it."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.aside{number}")).exists():
            number += 1
        try:
            for suffix in _BESIDE:
                beside = self.path.with_name(self.path.name + suffix)
                if beside.exists():
                    os.replace(beside, aside.with_name(aside.name + suffix))
            os.replace(self.path, aside)
        except FileNotFoundError:
            return  # somebody else was faster
        except OSError as error:
            raise output_error(self.path, error) from error
        self.notes.append(f"the tuning database was {reason}; set aside as {aside}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            code = _primary(error)
            hint = None
            if code in _IN_USE:
                hint = "another process holds it: wait for that one, or end it"
            elif code == sqlite3.SQLITE_FULL:
                hint = "free some space there, or set XDG_CACHE_HOME to a folder elsewhere"
            elif code in _DAMAGED:
                hint = "run the command again: the file is then set aside"
            raise UserError(
                Code.OUTPUT,
                f"the tuning database cannot be used: {error}",
                location=str(self.path),
                hint=hint,
            ) from error


def _primary(error: Exception) -> int:
    """SQLite's code without what it adds for details; text that is none is damage."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY_CODE


def _decoded(text: bytes) -> str:
    """Text of a damaged row is some other text: it names no mapping."""
    return text.decode(errors="replace")
