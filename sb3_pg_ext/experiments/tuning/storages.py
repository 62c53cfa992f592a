"""Where the trials of a tuning are kept."""

from __future__ import annotations

import importlib.util
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from sb3_pg_ext.experiments.provenance import without_password
from sb3_pg_ext.experiments.tuning.journal import journal_storage
from sb3_pg_ext.experiments.values import SettingError

JOURNAL = "journal:"
_SECONDS_BETWEEN_HEARTBEATS = 15
_GRACE = 600  # longer than the silence of the ledger, which has a lost trial carried out again
_WAIT_FOR_LOCK = 60.0
_ATTEMPTS = 10


def open_storage(url: str) -> BaseStorage:
    """The storage behind ``url``, made if it does not exist.

    * ``journal:PATH``: a file to which every change is appended; for one machine, or several with a shared file system
    * ``sqlite:///PATH``: a database file; for one machine
    * ``postgresql://USER:PASSWORD@HOST/DATABASE`` (and ``mysql+pymysql://``): a server; for any number of machines

    The heartbeats of Optuna are on where it has them.

    :raises SettingError: ``url`` has none of these forms, or nothing answers there
    :raises ModuleNotFoundError: the driver of the database is not installed
    """
    if url.startswith(JOURNAL):
        return _journal(url)
    if "://" not in url:
        raise SettingError(f"storage={url!r}: expected journal:PATH, sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return _database(url)


def _journal(url: str) -> BaseStorage:
    path = url.removeprefix(JOURNAL)
    if not path or Path(path).is_dir():
        raise SettingError(f"storage={url!r}: expected journal:PATH with the path of a file")
    try:
        _check_first_line(Path(path))
        storage = journal_storage(Path(path))
        storage.get_all_studies()  # it is read when it is first asked for something
    except (ValueError, KeyError) as error:
        raise SettingError(f"storage={url!r}: {path} is not a journal of Optuna, or is damaged: {error}") from error
    return storage


def _check_first_line(journal: Path) -> None:
    """Optuna passes over a last line that it cannot read, be it the only one.

    :raises ValueError: the first line is whole, and none of a journal
    """
    line = ""
    if journal.is_file():
        with open(journal, encoding="utf-8") as file:
            line = file.readline()
    if line.endswith("\n"):
        json.loads(line)


def close_storage(storage: BaseStorage) -> None:
    """End the connections to a database, if there are any."""
    if isinstance(storage, optuna.storages.RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def _database(url: str) -> BaseStorage:
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    if url.startswith("sqlite") and (url.endswith("://") or ":memory:" in url):
        raise SettingError(f"storage={url!r}: the trials are carried out by other processes, which need a file")
    options = {"connect_args": {"timeout": _WAIT_FOR_LOCK}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    try:
        for _ in range(_ATTEMPTS):
            try:
                return _opened(with_driver(url), options)
            except DBAPIError as error:
                if not _tables_are_being_made(error):
                    raise
                time.sleep(random.uniform(0.2, 1.0))
        return _opened(with_driver(url), options)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise SettingError(f"storage={without_password(url)!r} cannot be opened: {reason}") from error


def _tables_are_being_made(error: Exception) -> bool:
    """Whether another process makes the tables of a new database at the same time, to judge by ``error``."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    # PostgreSQL gives either of these two; SQLite an OperationalError like any other
    return isinstance(error, (IntegrityError, ProgrammingError)) or "already exists" in str(error)


def _opened(url: str, options: dict[str, Any]) -> BaseStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url, engine_kwargs=options, heartbeat_interval=_SECONDS_BETWEEN_HEARTBEATS, grace_period=_GRACE
        )


def with_driver(url: str) -> str:
    """``postgresql://`` spelt with the driver that is installed.

    :raises ModuleNotFoundError: there is none
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql"):
        return url
    if importlib.util.find_spec("psycopg") is None:
        raise ModuleNotFoundError('a PostgreSQL storage needs psycopg: pip install "sb3_pg_ext[postgres]"')
    return f"postgresql+psycopg://{rest}"
