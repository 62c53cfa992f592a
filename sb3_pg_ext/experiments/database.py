"""The SQLite file of a study: its tables, and how it is opened."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_VERSION_1 = """
CREATE TABLE IF NOT EXISTS runs (
    key         TEXT PRIMARY KEY,  -- SHA-256 of the content of the run
    settings    TEXT NOT NULL,     -- the same without seeds
    label       TEXT NOT NULL,
    env         TEXT NOT NULL,
    replicate   INTEGER NOT NULL,
    spec        TEXT NOT NULL,     -- canonical JSON
    shown       INTEGER NOT NULL DEFAULT 1,  -- 0: replaced by a run with other settings under the same label
    status      TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'finished', 'failed')),
    owner       TEXT,
    heartbeat   REAL,              -- Unix time of the last sign of life
    step        INTEGER NOT NULL DEFAULT 0,
    seconds     REAL NOT NULL DEFAULT 0,     -- of training so far
    deaths      INTEGER NOT NULL DEFAULT 0,
    created     REAL NOT NULL,
    started     REAL,
    ended       REAL,
    outcome     TEXT,              -- JSON: seconds of wall clock, CPU and training
    error       TEXT,              -- traceback
    provenance  TEXT               -- JSON: commit, machine, command
);
CREATE TABLE IF NOT EXISTS calls (
    time        REAL NOT NULL,
    command     TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS evaluations (
    run         TEXT NOT NULL REFERENCES runs (key),
    kind        TEXT NOT NULL CHECK (kind IN ('training', 'test')),
    step        INTEGER NOT NULL,
    mean_return REAL NOT NULL,
    returns     TEXT NOT NULL,     -- JSON, one per episode
    lengths     TEXT NOT NULL,     -- JSON, the same episodes
    seconds     REAL NOT NULL,
    PRIMARY KEY (run, kind, step)
);
"""


_VERSION_2 = """
-- Digest of the files that a run was read from, NULL for one that was made here.
ALTER TABLE runs ADD COLUMN origin TEXT;
CREATE TABLE reference_scores (
    env         TEXT PRIMARY KEY,
    low         REAL NOT NULL,
    high        REAL NOT NULL
);
"""
_VERSION_3 = """
-- Of training before the evaluation, NULL where it was not taken down.
ALTER TABLE evaluations ADD COLUMN train_seconds REAL;
"""
# Each leads from the version before it to its own; files of any age take the rest.
_STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)
SCHEMA_VERSION = len(_STEPS)
_TABLES = {"runs", "calls", "evaluations"}  # of every version
_PATIENCE = 60.0  # seconds to wait for other writers


def connect(path: Path, create: bool = False, check: bool = True, read_only: bool = False) -> sqlite3.Connection:
    """Open the file, and bring an older one up to date.

    What is only read stays as it is: an older file is brought up to date in memory. So it is where the folder cannot be
    written to.

    :param create: whether to make the file and its tables
    :param check: whether to read through the file for damage first
    :param read_only: whether nothing will be written
    :raises ValueError: it is damaged, not a study, or of a newer version of this package
    :raises OSError: its folder cannot be created
    """
    if create:
        _make_folder(path.parent)
    try:
        return _opened(path, create, check, read_only or not (create or _is_writable(path)))
    except sqlite3.DatabaseError as error:
        _raise_if_locked(path, error)
        hint = _rescue(path) if "malformed" in str(error) else ""
        raise ValueError(f"{path} is not a study that can be used: {error}{hint}") from error


def _opened(path: Path, create: bool, check: bool, read_only: bool) -> sqlite3.Connection:
    database = sqlite3.connect(_address(path, create), timeout=_PATIENCE, isolation_level=None, uri=True)
    try:
        database.row_factory = sqlite3.Row
        _check_kind(database, create)
        if not read_only:
            # WAL lets readers and one writer work at once; FULL waits for the disk, so that what is told of is kept.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
        if check:
            _check_damage(database)
        if read_only:
            return _to_read(database)
        _bring_up_to_date(database)
    except BaseException:
        database.close()
        raise
    return database


def _raise_if_locked(path: Path | str, error: sqlite3.DatabaseError) -> None:
    """
    :raises TimeoutError: it is for that reason
    """
    if "locked" in str(error):
        raise TimeoutError(f"{path}: another process has kept it locked for more than {_PATIENCE:g} s") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {folder} cannot be created: {error.strerror}") from error


def _is_writable(path: Path) -> bool:
    """Whether SQLite can work in the folder, where it keeps files of its own beside the study's."""
    return os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)


def _address(path: Path, create: bool) -> str:
    """The file as SQLite wants to be told of it."""
    if create:
        mode = "rwc"
    elif _is_writable(path):
        mode = "rw"
    else:
        # Without its log, what is read is all that there is, and nobody writes to it.
        log = path.with_name(f"{path.name}-wal")
        mode = "ro" if log.is_file() and log.stat().st_size else "ro&immutable=1"
    return f"{path.absolute().as_uri()}?mode={mode}"


def _check_kind(database: sqlite3.Connection, create: bool) -> None:
    """
    :raises sqlite3.DatabaseError: it is something else than a study, or of a newer version of this package
    """
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    version = _version(database)  # after the tables, which another process may make at the same time, version included
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"it has version {version}, but this package reads {SCHEMA_VERSION} at most")
    if tables and not (version and tables >= _TABLES):
        raise sqlite3.DatabaseError(f"it is a database of something else, with the tables {', '.join(sorted(tables))}")
    if not tables and not create:
        raise sqlite3.DatabaseError("it is empty")


def _to_read(database: sqlite3.Connection) -> sqlite3.Connection:
    if _version(database) < SCHEMA_VERSION:
        copy = sqlite3.connect(":memory:", isolation_level=None)
        copy.row_factory = sqlite3.Row
        with closing(database):
            database.backup(copy)
        _bring_up_to_date(copy)
        database = copy
    database.execute("PRAGMA query_only = ON")
    return database


def _rescue(path: Path) -> str:
    """What can be done about a damaged file. The tables that are read go into a new file, up to where it is damaged."""
    rescued = path.with_name("rescued.sqlite")
    commands = (
        f"sqlite3 {shlex.quote(str(path))} .dump | sed 's/^ROLLBACK;.*/COMMIT;/'; "
        f"echo 'PRAGMA user_version = {SCHEMA_VERSION};'"
    )
    return (
        ". Nothing was changed. Copy the file first; what can still be read is rescued, with a complaint for each row "
        f"that is lost, by: ({commands}) | sqlite3 {shlex.quote(str(rescued))}"
    )


def _check_damage(database: sqlite3.Connection) -> None:
    """
    :raises sqlite3.DatabaseError: the file is damaged
    """
    found = [row[0] for row in database.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise sqlite3.DatabaseError(f"it is damaged (malformed): {'; '.join(' '.join(f.split()) for f in found)}")


def _bring_up_to_date(database: sqlite3.Connection) -> None:
    if _version(database) == SCHEMA_VERSION:
        return
    with transaction(database):
        # Somebody else may have been faster.
        for step in _STEPS[_version(database) :]:
            for statement in step.split(";\n"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing; other writers wait.

    :raises TimeoutError: one of them does not come to an end
    """
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        _raise_if_locked(next(row[2] for row in database.execute("PRAGMA database_list")), error)
        raise
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
