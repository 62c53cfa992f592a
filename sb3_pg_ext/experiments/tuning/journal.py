"""The journal file of Optuna, made safe against ``kill -9`` in the middle of a write.

Optuna's own lock is a file beside the journal: that of a killed process stays, and for half a minute nobody can write.
Here the lock is the kernel's, which ends with the process. And a line that a killed process has left unfinished would
be joined with the next one, after which nobody can read the journal any more: who has the lock takes it away first.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class KernelLock:
    """Exclusive among all threads and processes that use it, also over NFS; it ends with its holder.

    :param journal: the file that is written to; the lock is on a file beside it
    """

    def __init__(self, journal: str | Path):
        self.journal = Path(journal)
        self._held = threading.local()

    def acquire(self) -> bool:
        # A descriptor of its own for each holder: flock tells these apart, and two threads with them.
        self._held.file = os.open(f"{self.journal}.flock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._held.file, fcntl.LOCK_EX)
        drop_unfinished_line(self.journal)
        return True

    def release(self) -> None:
        os.close(self._held.file)


def drop_unfinished_line(path: Path) -> None:
    """Cut a file behind its last line break."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep, block = end, 4096
        while keep:
            begin = max(keep - block, 0)
            file.seek(begin)
            line_break = file.read(keep - begin).rfind(b"\n")
            if line_break >= 0:
                keep = begin + line_break + 1
                break
            keep = begin
        if keep < end:
            file.truncate(keep)


def journal_storage(path: Path) -> BaseStorage:
    """A storage in a file to which every change is appended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = KernelLock(path) if fcntl else JournalFileOpenLock(str(path))
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
