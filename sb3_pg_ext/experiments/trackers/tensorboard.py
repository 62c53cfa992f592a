"""Runs as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat
from stable_baselines3.common.utils import get_latest_run_id

from sb3_pg_ext.experiments.trackers.description import Description, flat
from sb3_pg_ext.experiments.trackers.tracker import Status, Tracker
from sb3_pg_ext.experiments.trackers.values import finite_entries, number

_SHOWN_WITH_SETTINGS = ("eval/mean_reward", "test/mean_reward", "rollout/ep_rew_mean")


class TensorboardTracker(Tracker):
    """Event files with settings for the tab of hyperparameters; ``tensorboard --logdir FOLDER`` shows them.

    :param folder: the run is written to ``<folder>/<name>``; without a name to ``<folder>/<class>_<n>``, the next free
    """

    package: ClassVar[str] = "tensorboard"

    def __init__(
        self,
        folder: str | Path = "tensorboard",
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ):
        super().__init__(name, group, tags, hyperparameters)
        self.folder = Path(folder)

    def _open(self, run: Description) -> _Events:
        name = self.name
        if name is None:
            kind = str(run.hyperparameters.get("algo", "run"))
            name = f"{kind}_{get_latest_run_id(str(self.folder), kind) + 1}"
        return _Events(self.folder / name, run)


class _Events:
    def __init__(self, folder: Path, run: Description):
        self.format = TensorBoardOutputFormat(str(folder))
        settings = HParam(flat(run.hyperparameters), dict.fromkeys(_SHOWN_WITH_SETTINGS, 0.0))
        self.put("settings", settings, 0)
        self.format.writer.add_text("run", _table({"group": run.group, **run.tags, **flat(run.provenance)}))
        self.flush(0)

    def put(self, key: str, value: Any, step: int) -> None:
        scalar = number(value)
        if scalar is not None:
            self.format.writer.add_scalar(key, scalar, step)
        elif isinstance(value, (np.ndarray, torch.Tensor)):
            self.format.writer.add_histogram(key, finite_entries(value), step)
        else:
            self.format.write({key: value}, {key: ()}, step)

    def flush(self, step: int) -> None:
        self.format.writer.flush()

    def finish(self, status: Status) -> None:
        self.format.close()


def _table(content: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {value} |" for name, value in content.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])
