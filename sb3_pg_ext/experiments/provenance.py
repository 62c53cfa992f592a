"""Where a result comes from: versions, commit, machine and command."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sb3_pg_ext

_PACKAGES = ("stable_baselines3", "sb3_contrib", "torch", "gymnasium", "numpy")
_MODULES_OF_THE_SCRIPT = ("sb3_pg_ext", "sb3_pg_ext.experiments.cli")


def versions(*classes: type) -> dict[str, str]:
    """Versions that results can depend on: of this package, its foundations, and the packages of ``classes``."""
    origins = {cls.__module__.partition(".")[0] for cls in classes}
    found = {"sb3_pg_ext": sb3_pg_ext.__version__}
    for package in (*_PACKAGES, *sorted(origins - {"sb3_pg_ext"})):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """The circumstances of a run: for the record, no part of its identity."""
    return {
        "command": command(),
        "git": git_state(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
    }


def command() -> str:
    """The command of this process as it can be typed again, without the passwords in it: it is kept with results."""
    import shlex

    program, *arguments = sys.argv
    return shlex.join([*_program(program), *map(without_password, arguments)])


def without_password(text: str) -> str:
    """``text`` with the passwords of the URLs in it left out."""
    return re.sub(r"(://[^:/@\s]*:)[^@\s]+@|(\w*passw(?:or)?d=)[^&\s'\"]+", _hidden, text)


def _hidden(match: re.Match[str]) -> str:
    return f"{match[1]}***@" if match[1] else f"{match[2]}***"


def _program(called: str) -> list[str]:
    """What is typed to call it: the name of a script that is installed, or that of a module of this package.

    :param called: what ``sys.argv`` begins with
    """
    name, *words = called.split(" ")
    if name == f"{sb3_pg_ext.__name__}.zoo":  # it names itself so, with its command
        return ["python", "-m", name, *words]
    path, package = Path(called).resolve(), Path(sb3_pg_ext.__file__).resolve().parent
    if path.suffix != ".py" or not path.is_relative_to(package):
        return [Path(called).name]
    module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__main__")
    return ["sb3-pg"] if module in _MODULES_OF_THE_SCRIPT else ["python", "-m", module]


@cache
def git_state() -> str | None:
    """``commit`` or ``commit (modified)`` of the checkout that this package runs from; ``None`` outside one."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return f"{commit} (modified)" if _git("status", "--porcelain", "--untracked-files=no") else commit


def other_code(commits: Iterable[str | None], present: str | None) -> str:
    """A sentence on results that other code than the present one may have given; nothing if there are none.

    :param commits: as by :func:`git_state`, one of each result
    :param present: the same, of now; modified code may be any
    """
    counts = Counter(commit for commit in commits if commit != present or (commit or "").endswith("(modified)"))
    if not counts:
        return ""
    listed = ", ".join(f"{number} of {commit or 'no commit'}" for commit, number in counts.items())
    return (
        f"Finished runs that are taken as they are, though made by other or modified code: {listed}; "
        f"this is {present or 'no commit'}. To run them anew, choose another folder."
    )


def _git(*arguments: str) -> str | None:
    folder = Path(sb3_pg_ext.__file__).parents[1]
    if not (folder / ".git").exists():  # an installed package may lie inside the user's own repository
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def cpu_name() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
