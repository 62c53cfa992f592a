"""One-step problems, where the whole law of an estimator can be written down: arms, or a polynomial of the action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_pg_ext.envs.core import ProblemEnv, ProblemVectorEnv
from sb3_pg_ext.envs.differentiable import Array, Differentiable
from sb3_pg_ext.envs.finite_mdp import FiniteMDP
from sb3_pg_ext.envs.simulation import AtHorizon, Problem


@dataclass(frozen=True, eq=False)
class PolynomialBandit:
    """The record of a bandit with A real actions: r = sum_i f(a_i) + noise, f(a) = c_0 + c_1 a + c_2 a^2 + ...

    :param coefficients: (c_0, c_1, c_2, ...)
    :param n_actions: A
    :param reward_std: standard deviation of normal noise on the reward
    :param action_bound: the action space is the box of this half width; nothing is clipped to it here
    """

    coefficients: Sequence[float]
    n_actions: int = 1
    reward_std: float = 0.0
    action_bound: float = 10.0

    horizon = None  # every step is terminal
    at_horizon: ClassVar[AtHorizon] = "terminate"
    gamma = 1.0
    state_shape = (1,)
    noise_shape = (0,)

    @cached_property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-self.action_bound, self.action_bound, (self.n_actions,), np.float32)

    @cached_property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (1,), np.float32)

    def start_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.empty((count, 0))

    def start_state(self, noise: np.ndarray) -> np.ndarray:
        return np.ones((len(noise), 1))

    def step_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, 1 if self.reward_std else 0))

    def step(
        self, state: np.ndarray, action: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = self.reward(state, action, state) + self.reward_std * noise.sum(-1)
        return state, reward, np.ones(len(state), dtype=bool)

    def dynamics(self, state: Array, action: Array, noise: Array | None = None) -> Array:
        """Nothing moves."""
        return state

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """``sum_i f(a_i)``, by Horner's rule."""
        value = 0.0 * action
        for coefficient in reversed(self.coefficients):
            value = value * action + coefficient
        return value.sum(-1)

    def observe(self, state: Array) -> Array:
        return state

    def state_of(self, observation: Array) -> Array:
        return observation


def armed_bandit(means: Sequence[float] = (1.0, 0.5, 0.0), reward_std: float = 0.0) -> FiniteMDP:
    """The record of a bandit with one arm for each of ``means``: a process of one state that always ends.

    :param means: mean rewards of the arms
    :param reward_std: standard deviation of normal noise on the reward
    """
    return FiniteMDP(np.zeros((1, len(means), 1)), [list(means)], reward_std=reward_std, features=np.ones((1, 1)))


class ArmedBanditEnv(ProblemEnv):
    """One bandit with arms; see :func:`armed_bandit`."""


class ArmedBanditVectorEnv(ProblemVectorEnv):
    """N bandits with arms; see :func:`armed_bandit`."""


class PolynomialBanditEnv(Differentiable, ProblemEnv):
    """One bandit with real actions; see :class:`PolynomialBandit`."""


class PolynomialBanditVectorEnv(Differentiable, ProblemVectorEnv):
    """N bandits with real actions; see :class:`PolynomialBandit`."""


def bandit(coefficients: Sequence[float] | None = None, **kwargs: Any) -> FiniteMDP | PolynomialBandit:
    """The record of a bandit.

    :param coefficients: of the polynomial of :class:`PolynomialBandit`, ``(0, 0, 1)`` for r = a^2; None for arms
    :param kwargs: as for :class:`PolynomialBandit`, or for :func:`armed_bandit`
    """
    return armed_bandit(**kwargs) if coefficients is None else PolynomialBandit(coefficients, **kwargs)


def bandit_env(render_mode: str | None = None, **kwargs: Any) -> ProblemEnv:
    """One bandit.

    :param kwargs: as for :func:`bandit`
    """
    problem = bandit(**kwargs)
    cls = ArmedBanditEnv if isinstance(problem, FiniteMDP) else PolynomialBanditEnv
    return cls(problem, render_mode)


def bandit_vector_env(
    num_envs: int = 1, max_episode_steps: int | None = None, render_mode: str | None = None, **kwargs: Any
) -> ProblemVectorEnv:
    """N bandits.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :func:`bandit`
    """
    problem: Problem = bandit(**kwargs)
    cls = ArmedBanditVectorEnv if isinstance(problem, FiniteMDP) else PolynomialBanditVectorEnv
    return cls(problem, num_envs, max_episode_steps, render_mode)
