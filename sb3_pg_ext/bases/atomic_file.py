"""Files that are replaced whole or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_ABANDONED_AFTER = 24 * 3600.0  # seconds


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` when the block ends without an error.

    A reader finds the old file or the new one, never a part, also after ``kill -9``, a full disk or a power cut.
    Missing folders are made, the permissions of the old file are kept, symbolic links are followed. Devices and pipes
    have no old content to protect: for them the path itself is given.

    >>> with atomic_write("report.md") as temporary:  # doctest: +SKIP
    ...     temporary.write_text("# Report")

    :param path: the file to replace or create
    :raises IsADirectoryError: ``path`` is a folder
    :raises PermissionError: the old file is write-protected
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; the name of a file is needed")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"path={str(path)!r} is write-protected")
    if target.exists() and not target.is_file():
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{_HOST}{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _publish(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _publish(temporary: Path, target: Path) -> None:
    # The order matters: content on disk, then the name, then the folder that holds the name.
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    if target.exists():
        shutil.copymode(target, temporary)
    os.replace(temporary, target)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(target: Path) -> None:
    """Remove what writers of ``target`` that no longer exist have left behind."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(\d{1,9})\.([0-9a-f]{8})[0-9a-f]{8}\.tmp")
    with os.scandir(target.parent) as entries:
        for entry in entries:
            if match := pattern.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if _is_stray(Path(entry.path), pid=int(match[1]), host=match[2]):
                        os.unlink(entry.path)


def _is_stray(temporary: Path, pid: int, host: str) -> bool:
    # A folder can be shared: the process ids of other hosts say nothing here, so their files go by age alone.
    return (host == _HOST and not _is_alive(pid)) or time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would be Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
