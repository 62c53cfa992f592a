"""The SQLite file of a study: its tables, and how it is opened."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
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


def connect(path: Path, check: bool = True) -> sqlite3.Connection:
    """Open the file, creating it and its tables if need be, and bringing an older one up to date.

    :param check: whether to read through the file for damage first
    :raises ValueError: it is damaged, not a study, or of a newer version of this package
    :raises OSError: its folder cannot be created
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {path.parent} cannot be created: {error.strerror}") from error
    database = sqlite3.connect(path, timeout=60.0, isolation_level=None)
    database.row_factory = sqlite3.Row
    try:
        # WAL lets readers and one writer work at once; FULL waits for the disk, so that what is told of is kept.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if check:
            _check(database)
        _bring_up_to_date(database)
    except sqlite3.DatabaseError as error:
        database.close()
        hint = _RESCUE.format(path=path) if "malformed" in str(error) else ""
        raise ValueError(f"{path} is not a study that can be used: {error}{hint}") from error
    return database


_RESCUE = (
    ". Nothing was changed. Copy the file first; what can still be read of it is rescued by: "
    "sqlite3 {path} .recover | sqlite3 rescued.sqlite"
)


def _check(database: sqlite3.Connection) -> None:
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
        version = _version(database)  # somebody else may have been faster
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"it has version {version}, but this package reads {SCHEMA_VERSION} at most")
        for step in _STEPS[version:]:
            for statement in step.split(";\n"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(database: sqlite3.Connection) -> int:
    return database.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing; other writers wait."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
