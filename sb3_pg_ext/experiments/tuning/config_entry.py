"""The winner as an entry of ``zoo_configs/<key>.yml``, which says in its head where it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext import registry
from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.provenance import versions
from sb3_pg_ext.experiments.settings import plain
from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning.choice import Winner
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.values import as_text

_FIRST = ("normalize", "n_envs", "policy")


def write_entry(folder: Path, plan: Plan, winner: Winner, commands: Sequence[str]) -> Path:
    """Write or replace the entry of the plan's environment in ``<folder>/<key>.yml``; other entries stay as they are.

    :param commands: for the head: by which the entry was found, and by which its result can be repeated
    :return: the file
    """
    path = folder / f"{plan.algo}.yml"
    name = registry.get(plan.algo).cls.__name__
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Only what differs from the signature of {name}.\n"
    name = _entry_name(plan)
    entry = entry_text(name, departures(plan.algo, winner.settings), [*_evidence(winner), *commands])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(with_entry(text, name, entry), encoding="utf-8")
    return path


def remove_entry(folder: Path, plan: Plan) -> bool:
    """Take the entry of the plan's environment out of ``<folder>/<key>.yml``, and the file away if it was the last one.

    :return: whether there was one
    """
    path = folder / f"{plan.algo}.yml"
    if not has_entry(folder, plan):
        return False
    blocks = _blocks(path.read_text(encoding="utf-8"))
    kept = [block for block in blocks if not _header(_entry_name(plan)).search(block)]
    if not any(re.search(r"^[^#\s]", block, re.MULTILINE) for block in kept):
        path.unlink()
        return True
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(kept) + "\n", encoding="utf-8")
    return True


def has_entry(folder: Path, plan: Plan) -> bool:
    """Whether ``<folder>/<key>.yml`` has an entry for the plan's environment."""
    path = folder / f"{plan.algo}.yml"
    header = _header(_entry_name(plan))
    return path.is_file() and any(map(header.search, _blocks(path.read_text(encoding="utf-8"))))


def _entry_name(plan: Plan) -> str:
    return plan.env_id.rpartition(":")[2]


def departures(algo: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``settings`` differs from the constructor's defaults, those of the environment first."""
    defaults = {name: plain(value) for name, value in registry.get(algo).defaults.items()}
    changed = {name: value for name, value in settings.items() if name not in defaults or value != defaults[name]}
    return {name: changed[name] for name in (*_FIRST, *changed) if name in changed}


def entry_text(name: str, settings: Mapping[str, Any], head: Sequence[str]) -> str:
    """The lines of an entry, comments before it."""
    lines = [f"# {line}" for line in head] + [f"{name}:" if settings else f"{name}: {{}}"]
    return "\n".join([*lines, *(f"  {key}: {_yaml(value)}" for key, value in settings.items())]) + "\n"


def _yaml(value: Any) -> str:
    """As the zoo writes it; read back by ``zoo_configs``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return as_text(value)


def with_entry(text: str, name: str, entry: str) -> str:
    """``text`` with the block of ``name``, the comments right before it included, replaced or added at the end."""
    blocks, header = _blocks(text), _header(name)
    entry = entry.strip("\n")
    if any(header.search(block) for block in blocks):
        blocks = [entry if header.search(block) else block for block in blocks]
    else:
        blocks.append(entry)
    return "\n\n".join(blocks) + "\n"


def _blocks(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text.strip("\n"))


def _header(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(['\"]?){re.escape(name)}\1\s*:", re.MULTILINE)


def _evidence(winner: Winner) -> list[str]:
    used = versions()
    packages = ", ".join(f"{package} {used[package]}" for package in ("sb3_pg_ext", "stable_baselines3", "torch"))
    return [
        f"Tuned {datetime.now(UTC):%Y-%m-%d} with {packages}: {winner.label} of {winner.n_trials}, chosen of "
        f"{len(winner.contenders)} contenders. "
        f"On {len(winner.scores)} fresh seeds: {describe(winner.scores)}; defaults: {describe(winner.default_scores)}."
    ]


def describe(scores: Sequence[float]) -> str:
    """Mean and worst."""
    if not scores:
        return "no run came to its end"
    return f"mean {number(float(np.mean(scores)))}, worst {number(min(scores))}"
