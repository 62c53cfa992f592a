"""Where the trials of a tuning are kept."""

from __future__ import annotations

import importlib.util
import random
import re
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

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
        return journal_storage(Path(url.removeprefix(JOURNAL)))
    if "://" not in url:
        raise SettingError(f"storage={url!r}: expected journal:PATH, sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return _database(url)


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
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
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


def without_password(text: str) -> str:
    """``text`` with the passwords of the URLs in it left out."""
    return re.sub(r"(://[^:/@\s]+:)[^@\s]+@|(\bpassword=)[^&\s'\"]+", _hidden, text)


def _hidden(match: re.Match[str]) -> str:
    return f"{match[1]}***@" if match[1] else f"{match[2]}***"
