"""Callbacks and a log writer that keep what they see."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_pg_ext.testing.measures import learned


class Events(BaseCallback):
    """The order of calls, one letter each: T, t training start and end; R, r the same of a rollout; s a step."""

    def __init__(self) -> None:
        super().__init__()
        self.events = ""
        self.counts: list[int] = []

    def _on_training_start(self) -> None:
        self.events += "T"

    def _on_rollout_start(self) -> None:
        self.events += "R"

    def _on_step(self) -> bool:
        self.events += "s"
        self.counts.append(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.events += "r"

    def _on_training_end(self) -> None:
        self.events += "t"


class StopAt(Events):
    """Answers ``answer`` from call number ``call`` on.

    :param call: of ``on_step``, counted from 1
    :param answer: what ``_on_step`` then returns
    """

    def __init__(self, call: int, answer: Any = False):
        super().__init__()
        self.call, self.answer = call, answer

    def _on_step(self) -> bool:
        super()._on_step()
        return self.answer if self.n_calls >= self.call else True


class Locals(BaseCallback):
    """Keeps ``new_obs``, ``rewards``, ``dones`` and ``infos`` of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        seen = {name: self.locals.get(name, "missing") for name in ("new_obs", "rewards", "dones", "infos")}
        self.steps.append(seen)
        return True


class Start(BaseCallback):
    """What the model had learned when training started."""

    learned: dict[str, Any]

    def _on_training_start(self) -> None:
        self.learned = learned(self.model)

    def _on_step(self) -> bool:
        return True


class Table(KVWriter):
    """Every dump of a logger, as one dict with the step under ``"step"``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append({**key_values, "step": step})

    def close(self) -> None:
        pass

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """All values that were logged under ``name``."""
        return np.array([row[name] for row in self.rows if name in row])


def log_to_table(model: Any) -> Table:
    """Let ``model`` log into a new table only."""
    table = Table()
    model.set_logger(Logger(folder=None, output_formats=[table]))
    return table
