"""The study file that a folder of results keeps: that of the last call, and never in place of one written by hand."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.study_file import FILE_NAME, read_study, study_text

_MARK = "# Kept by sb3-pg compare ({digest}); changed by hand, it is not replaced any more.\n"
_MARKED = re.compile(r"# Kept by sb3-pg compare \((\w+)\)[^\n]*\n")


def check_replaceable(folder: Path, text: str) -> None:
    """Look at the file that is there, before anything is written.

    :param text: of the study that is asked for
    :raises FileExistsError: it says something else, and was not written by :func:`keep_study`
    """
    path = folder / FILE_NAME
    if not path.exists():
        return
    there = path.read_text(encoding="utf-8", errors="replace")
    if _content(there) == _content(text) or _is_marked(there) or _is_generated(path, there):
        return
    again = ["sb3-pg", "compare", str(path), "-f", str(folder)]
    raise FileExistsError(
        f"{path} is another study than the one that is asked for, and would be lost, as it was written by hand. "
        f"Choose another folder by -f, rename the file, or run what it says: {shlex.join(again)}"
    )


def keep_study(folder: Path, text: str) -> None:
    """Keep the file of a study with its results; one that says the same stays as it is."""
    path = folder / FILE_NAME
    if path.exists() and _content(path.read_text(encoding="utf-8", errors="replace")) == _content(text):
        return
    with atomic_write(path) as temporary:
        temporary.write_text(_MARK.format(digest=_digest(_content(text))) + _content(text), encoding="utf-8")


def _content(text: str) -> str:
    """What a file says, without the line by which it is known."""
    return _MARKED.sub("", text, count=1)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _is_marked(text: str) -> bool:
    found = _MARKED.match(text)
    return found is not None and found[1] == _digest(_content(text))


def _is_generated(path: Path, text: str) -> bool:
    """Whether it is a command line as a file, from before such files had a mark."""
    try:
        return study_text(read_study(path).study) == text
    except ValueError:
        return False
