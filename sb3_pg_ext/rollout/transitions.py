"""Transitions that are kept: what a model of the environment is learned from, and what is replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from torch import Tensor, nn

from sb3_pg_ext.rollout.episodes import Steps


class StepsWithEnds(Steps):
    """Steps that also remember what an episode ended in when no time limit cut it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.end_observations: dict[tuple[int, int], Any] = {}

    def add_cut(self, env: int, info: dict[str, Any]) -> None:
        """Remember the terminal observation of env ``env``, whose episode the step just added has ended."""
        super().add_cut(env, info)
        if info.get("terminal_observation") is not None:
            self.end_observations[self.size - 1, env] = np.array(info["terminal_observation"])

    def next_observations(self, last_observations: Any) -> np.ndarray[Any, Any]:
        """What each step led to, (T, N, ...): of an episode's last step the last observation, not the next first one.

        :param last_observations: (N, ...), what the last step led to
        """
        following = np.empty_like(self.observations[""][: self.size])
        following[:-1] = self.observations[""][1 : self.size]
        following[-1] = last_observations
        for (step, env), observation in self.end_observations.items():
            following[step, env] = observation
        return following

    def terminated(self) -> np.ndarray[Any, Any]:
        """(T, N) bool: the step ended an episode, and not by a time limit."""
        terminated = self.dones[: self.size].copy()
        for step, env in self.cut_observations:
            terminated[step, env] = False
        return terminated


class Transitions(nn.Module):
    """The last transitions, as columns of tensors; saved and loaded with the module.

    :param capacity: how many are kept
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def add(self, **columns: Tensor) -> None:
        """Append n transitions, each column (n, ...); the oldest ones give way."""
        kept = self.columns or {name: column[:0] for name, column in columns.items()}
        self.columns = {name: th.cat([kept[name], columns[name]])[-self.capacity :] for name in columns}

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """The transitions ``index`` (b,), by name of column."""
        return {name: column[index] for name, column in self.columns.items()}

    def sample(self, size: int, generator: np.random.Generator) -> dict[str, Tensor]:
        """``size`` transitions drawn with replacement, by name of column."""
        return self.at(th.from_numpy(generator.integers(len(self), size=size)))

    def get_extra_state(self) -> dict[str, Tensor]:
        return dict(self.columns)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.columns = dict(state)
