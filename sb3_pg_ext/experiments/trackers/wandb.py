"""Runs in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import Figure, HParam, Image, Video

from sb3_pg_ext.experiments.trackers.description import Description
from sb3_pg_ext.experiments.trackers.tracker import Status, Tracker, require
from sb3_pg_ext.experiments.trackers.values import finite_entries, number, pixels

STEP = "global_step"  # the x axis, under the name that Stable-Baselines3's users know
_EXIT_CODES: dict[Status, int] = {"finished": 0, "failed": 1, "killed": 130}
_LONGEST_TAG = 64
_NO_LABELS = {"key", "folder"}


class WandbTracker(Tracker):
    """A run in Weights & Biases, beside any that is open already.

    Without a login the run is written to disk, and ``wandb sync`` uploads it later; ``WANDB_MODE`` goes before.

    :param project: that the run belongs to
    :param folder: its files are in ``<folder>/wandb``
    :param options: further arguments of ``wandb.init``, such as ``entity``, ``notes`` or ``mode``
    """

    package: ClassVar[str] = "wandb"

    def __init__(
        self,
        project: str = "sb3_pg_ext",
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        folder: str | Path = ".",
        **options: Any,
    ):
        super().__init__(name, group, tags, hyperparameters)
        self.project, self.folder, self.options = project, Path(folder), options

    def _open(self, run: Description) -> _Run:
        wandb = require(self.package)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "project": self.project,
            "name": run.name,
            "group": run.group,
            "job_type": run.tags.get("label"),
            "tags": _labels(run.tags),
            "config": {**run.hyperparameters, "tags": dict(run.tags), "provenance": dict(run.provenance)},
            "dir": str(self.folder),
            "mode": mode_of(wandb),
            "reinit": "create_new",
            **self.options,
        }
        return _Run(wandb, wandb.init(**options))


def mode_of(wandb: Any) -> str | None:
    """``None`` where the environment or a login decides, else ``"offline"``, in place of a question."""
    if os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False):
        return None
    return "offline"


def check_login(wandb: Any) -> None:
    """
    :raises ConnectionError: runs would go to a server, and it cannot be reached or does not know the login
    """
    mode = os.environ.get("WANDB_MODE")
    if mode and mode != "online":
        return
    try:
        logged_in = wandb.login(prompt=False, verify=True)
    except wandb.Error as error:
        raise ConnectionError(f"{error} With WANDB_MODE=offline runs are written to disk.") from error
    if mode and not logged_in:
        raise ConnectionError("WANDB_MODE=online, and there is no login; wandb login makes one")


def _labels(tags: Mapping[str, str]) -> list[str]:
    """Tags that one may want to tick: short, and the seed with a word before it."""
    named = {name: text for name, text in tags.items() if text and name not in _NO_LABELS}
    texts = (f"seed {text}" if name == "seed" else text for name, text in named.items())
    return list(dict.fromkeys(text[:_LONGEST_TAG] for text in texts))


class _Run:
    def __init__(self, wandb: Any, run: Any):
        self.wandb, self.run = wandb, run
        self.row: dict[str, Any] = {}
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)

    def put(self, key: str, value: Any, step: int) -> None:
        scalar = number(value)
        if isinstance(value, HParam):
            self.run.config.update(dict(value.hparam_dict), allow_val_change=True)
        else:
            self.row[key] = self._shown(value) if scalar is None else scalar

    def _shown(self, value: Any) -> Any:
        match value:
            case str():
                return value
            case Image():
                return self.wandb.Image(pixels(value))
            case Figure():
                return self.wandb.Image(value.figure)
            case Video():
                return self.wandb.Video(np.asarray(value.frames), fps=int(value.fps), format="gif")
            case np.ndarray() | torch.Tensor():
                return self.wandb.Histogram(finite_entries(value))
        raise TypeError("W&B has nothing to show it with")

    def flush(self, step: int) -> None:
        row, self.row = self.row, {}
        if row:
            self.run.log({**row, STEP: step})

    def finish(self, status: Status) -> None:
        self.run.finish(exit_code=_EXIT_CODES[status])
