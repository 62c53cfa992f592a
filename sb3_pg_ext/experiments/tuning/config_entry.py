"""The winner as an entry of ``zoo_configs/<key>.yml``, which says in its head where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.provenance import versions
from sb3_pg_ext.experiments.settings import plain
from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning.choice import Winner
from sb3_pg_ext.experiments.tuning.config_text import (
    entry_names,
    naming,
    read_text,
    with_entry,
    without_entry,
    write_text,
)
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.values import as_text

_FIRST = ("normalize", "n_envs", "policy")


def write_entry(folder: Path, plan: Plan, winner: Winner, commands: Sequence[str]) -> Path:
    """Write or replace the entry of the plan's environment in ``<folder>/<key>.yml``; other entries stay as they are.

    :param commands: for the head: by which the entry was found, and by which its result can be repeated
    :return: the file
    """
    path = folder / f"{plan.algo}.yml"
    text = read_text(path) or f"# Only what differs from the signature of {registry.get(plan.algo).cls.__name__}.\n"
    name = _entry_name(plan)
    entry = entry_text(name, departures(plan.algo, winner.settings), [*_evidence(winner), *commands])
    with naming(path):
        text = with_entry(text, name, entry)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def remove_entry(folder: Path, plan: Plan) -> bool:
    """Take the entry of the plan's environment out of ``<folder>/<key>.yml``, and the file away if it was the last one.

    :return: whether there was one
    """
    path = folder / f"{plan.algo}.yml"
    if not has_entry(folder, plan):
        return False
    with naming(path):
        text = without_entry(read_text(path), _entry_name(plan))
        left = entry_names(text)
    if left:
        write_text(path, text)
    else:
        path.unlink()
    return True


def has_entry(folder: Path, plan: Plan) -> bool:
    """Whether ``<folder>/<key>.yml`` has an entry for the plan's environment."""
    path = folder / f"{plan.algo}.yml"
    with naming(path):
        return _entry_name(plan) in entry_names(read_text(path))


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


def _evidence(winner: Winner) -> list[str]:
    used = versions()
    packages = ", ".join(f"{package} {used[package]}" for package in ("sb3_pg_ext", "stable_baselines3", "torch"))
    return [
        f"Tuned {datetime.now(UTC):%Y-%m-%d} with {packages}: {winner.label} of {winner.n_trials}, chosen of "
        f"{len(winner.contenders)} contenders. "
        f"On {len(winner.scores)} fresh seeds: {describe(winner.scores)}; {_rival(winner)}."
    ]


def _rival(winner: Winner) -> str:
    """What the winner was compared with, and how that did."""
    given = ", ".join(f"{name}={as_text(value)}" for name, value in winner.rival.settings.items())
    return f"{winner.rival.label}{f' ({given})' if given else ''}: {describe(winner.rival.scores)}"


def describe(scores: Sequence[float]) -> str:
    """Mean and worst."""
    if not scores:
        return "no run came to its end"
    return f"mean {number(float(np.mean(scores)))}, worst {number(min(scores))}"
