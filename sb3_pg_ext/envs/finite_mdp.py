"""Finite Markov decision processes: the record, and its environment. Garnet, bandit and corridor are instances.

Their answers are in :mod:`sb3_pg_ext.envs.oracles.mdp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_pg_ext.envs.core import ProblemEnv, ProblemVectorEnv
from sb3_pg_ext.envs.simulation import AtHorizon, check_horizon


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """The record of a finite decision process; S states, A actions.

    :param transition: ``(S, A, S)`` probabilities of the next state; what a row lacks to 1 ends the episode
    :param reward: ``(S, A)`` mean reward of an action in a state
    :param start: ``(S,)`` probabilities of the first state; None for uniform
    :param reward_std: standard deviation of normal noise on the reward
    :param features: ``(S, F)`` what is seen of each state; None to see its number (a Discrete observation)
    :param horizon: steps of an episode; None for no limit
    :param at_horizon: as for :class:`~sb3_pg_ext.envs.lqr.LQR`
    :param gamma: discount of the objective; the dynamics do not use it, the oracles do
    """

    transition: Any
    reward: Any
    start: Any = None
    reward_std: float = 0.0
    features: Any = None
    horizon: int | None = None
    at_horizon: AtHorizon = "truncate"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        transition, reward = np.asarray(self.transition, float), np.asarray(self.reward, float)
        n_states = len(transition)
        if reward.ndim != 2 or transition.shape != (*reward.shape, n_states):
            raise ValueError(
                f"transition {transition.shape} and reward {reward.shape}: (S, A, S) and (S, A) are needed"
            )
        start = np.full(n_states, 1 / n_states) if self.start is None else np.asarray(self.start, float)
        if start.shape != (n_states,) or not np.isclose(start.sum(), 1):
            raise ValueError(f"start={start.tolist()}: {n_states} probabilities that sum to 1 are needed")
        if transition.min() < 0 or transition.sum(-1).max() > 1 + 1e-9:
            raise ValueError("transition: the rows must be probabilities whose sum is at most 1")
        features = None if self.features is None else np.asarray(self.features, float)
        if features is not None and (features.ndim != 2 or len(features) != n_states):
            raise ValueError(f"features has the shape {features.shape}; ({n_states}, F) is needed")
        check_horizon(self.horizon, self.at_horizon, self.gamma)
        for name, array in {"transition": transition, "reward": reward, "start": start, "features": features}.items():
            object.__setattr__(self, name, array)

    @property
    def n_states(self) -> int:
        return self.reward.shape[0]

    @property
    def n_actions(self) -> int:
        return self.reward.shape[1]

    @cached_property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.n_actions)

    @cached_property
    def observation_space(self) -> spaces.Space:
        if self.features is None:
            return spaces.Discrete(self.n_states)
        low, high = np.minimum(self.features.min(0), 0), np.maximum(self.features.max(0), 1)
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    @cached_property
    def _cumulative_start(self) -> np.ndarray:
        return _cumulative(self.start)

    @cached_property
    def _cumulative_transition(self) -> np.ndarray:
        return _cumulative(self.transition)

    def start_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 1))

    def start_state(self, noise: np.ndarray) -> np.ndarray:
        return (noise >= self._cumulative_start).sum(-1)

    def step_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """A uniform number for the next state and, where rewards are noisy, a standard normal for the reward."""
        uniform = rng.random((count, 1))
        return np.hstack([uniform, rng.standard_normal((count, 1))]) if self.reward_std else uniform

    def step(
        self, state: np.ndarray, action: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step; a copy whose episode ends stays where it is."""
        if action.min() < 0 or action.max() >= self.n_actions:
            raise ValueError(f"actions {action.tolist()}: allowed are 0 to {self.n_actions - 1}")
        next_state = (noise[:, :1] >= self._cumulative_transition[state, action]).sum(-1)
        terminated = next_state == self.n_states
        reward = self.reward[state, action]
        if self.reward_std:
            reward = reward + self.reward_std * noise[:, 1]
        return np.where(terminated, state, next_state), reward, terminated

    def observe(self, state: np.ndarray) -> np.ndarray:
        return state if self.features is None else self.features[state]


def _cumulative(probabilities: np.ndarray) -> np.ndarray:
    """Cumulative sums over the last axis; those that reach 1 but for rounding reach it exactly."""
    cumulative = probabilities.cumsum(-1)
    return np.where(cumulative > 1 - 1e-9, 1.0, cumulative)


def kakade_two_state() -> FiniteMDP:
    """The two-state process of Kakade 2001, "A natural policy gradient", section 5.

    Action 0 stays, for a reward of 1 in state 0 and of 2 in state 1; action 1 changes state for nothing. The objective
    there is the average reward. The plain gradient is caught in state 0, the natural one is not.
    """
    stay, change = np.eye(2), np.eye(2)[::-1]
    return FiniteMDP(
        transition=np.stack([stay, change], axis=1), reward=[[1.0, 0.0], [2.0, 0.0]], features=np.eye(2), horizon=100
    )


class FiniteMDPEnv(ProblemEnv):
    """One copy of a process of your own.

    :param mdp: its record
    """

    problem: FiniteMDP

    def __init__(self, mdp: FiniteMDP, render_mode: str | None = None):
        super().__init__(mdp, render_mode)


class FiniteMDPVectorEnv(ProblemVectorEnv):
    """N copies of a process of your own.

    :param mdp: its record
    :param num_envs: N
    :param max_episode_steps: a further time limit
    """

    problem: FiniteMDP

    def __init__(
        self, mdp: FiniteMDP, num_envs: int = 1, max_episode_steps: int | None = None, render_mode: str | None = None
    ):
        super().__init__(mdp, num_envs, max_episode_steps, render_mode)
