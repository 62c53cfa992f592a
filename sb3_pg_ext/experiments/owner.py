"""Who works on a run: a process that can be told apart from every other, and known to be alive or dead."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process.

    :param host: name of the machine
    :param boot: identity of the machine's uptime, so that numbers are not taken for those before a restart
    :param pid: process number
    :param started: when it began, in clock ticks since boot: process numbers are used again
    """

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Owner:
        """The calling process."""
        return cls(platform.node(), _boot_id(), os.getpid(), _started(os.getpid()) or "")

    def __str__(self) -> str:
        return "|".join((self.host, self.boot, str(self.pid), self.started))

    @classmethod
    def parse(cls, text: str) -> Owner:
        host, boot, pid, started = text.rsplit("|", 3)
        return cls(host, boot, int(pid), started)

    def is_dead(self) -> bool | None:
        """Whether the process has ended; ``None`` if it is on another machine, where that cannot be seen."""
        if self.host != platform.node():
            return None
        if self.boot != _boot_id():
            return True
        if not Path("/proc/self/stat").exists():
            return not _answers(self.pid)
        return _started(self.pid) != self.started


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a living process; ``None`` for one that has ended, zombies included."""
    try:
        # The command name, second field, may hold spaces and brackets: count from behind it.
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
