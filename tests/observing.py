"""Looking at processes from outside, while they work."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What ``condition`` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def rows(folder: Path, columns: str) -> list[Any]:
    """Columns of the runs of a study, straight from its file, also while others write to it."""
    if not (folder / "study.sqlite").exists():
        return []
    with sqlite3.connect(folder / "study.sqlite", timeout=30) as database:
        try:
            return database.execute(f"SELECT {columns} FROM runs ORDER BY key").fetchall()
        except sqlite3.OperationalError:  # the tables are not there yet
            return []
