"""The swing-up of gymnasium's ``Pendulum-v1``, step for step, batched and differentiable.

    speed' = clip(speed + (3g / 2l sin(angle) + 3 / ml^2 torque) dt, +-8),     angle' = angle + speed' dt
    r = -(angle^2 + 0.1 speed^2 + 0.001 torque^2),     angle taken in [-pi, pi), 0 upright

The same seed gives the same starts as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_pg_ext.envs.core import ProblemEnv, ProblemVectorEnv
from sb3_pg_ext.envs.differentiable import Array, Differentiable, namespace
from sb3_pg_ext.envs.simulation import AtHorizon, check_horizon

MAX_SPEED, MAX_TORQUE, DT, MASS, LENGTH = 8.0, 2.0, 0.05, 1.0, 1.0


@dataclass(frozen=True, eq=False)
class Pendulum:
    """The record of a pendulum; the state is (angle, speed) in rad and rad/s, the observation (cos, sin, speed).

    :param g: gravity, m/s^2
    :param start_bound: starts are uniform within this distance of (0, 0)
    :param horizon: steps of an episode
    :param at_horizon: as for :class:`~sb3_pg_ext.envs.lqr.LQR`
    :param gamma: discount of the objective
    """

    g: float = 10.0
    start_bound: tuple[float, float] = (np.pi, 1.0)
    horizon: int | None = 200
    at_horizon: AtHorizon = "truncate"
    gamma: float = 0.99

    state_shape = (2,)
    noise_shape = (0,)

    def __post_init__(self) -> None:
        check_horizon(self.horizon, self.at_horizon, self.gamma)

    @cached_property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)

    @cached_property
    def observation_space(self) -> spaces.Box:
        high = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    def start_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        high = np.asarray(self.start_bound)
        return rng.uniform(-high, high, (count, 2))

    def start_state(self, noise: np.ndarray) -> np.ndarray:
        return noise

    def step_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.empty((count, 0))

    def step(
        self, state: np.ndarray, action: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        next_state = self.dynamics(state, action)
        return next_state, self.reward(state, action, next_state), np.zeros(len(state), dtype=bool)

    def dynamics(self, state: Array, action: Array, noise: Array | None = None) -> Array:
        """One semi-implicit Euler step; there is no noise."""
        xp = namespace(state)
        angle, speed = state[..., 0], state[..., 1]
        torque = action[..., 0].clip(-MAX_TORQUE, MAX_TORQUE)
        speed = speed + (3 * self.g / (2 * LENGTH) * xp.sin(angle) + 3.0 / (MASS * LENGTH**2) * torque) * DT
        speed = speed.clip(-MAX_SPEED, MAX_SPEED)
        return xp.stack((angle + speed * DT, speed), -1)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """Of the state that is left and the torque that was applied; the next state plays no part."""
        angle, speed = state[..., 0], state[..., 1]
        torque = action[..., 0].clip(-MAX_TORQUE, MAX_TORQUE)
        upright = (angle + np.pi) % (2 * np.pi) - np.pi
        return -(upright**2 + 0.1 * speed**2 + 0.001 * torque**2)

    def observe(self, state: Array) -> Array:
        xp = namespace(state)
        return xp.stack((xp.cos(state[..., 0]), xp.sin(state[..., 0]), state[..., 1]), -1)

    def state_of(self, observation: Array) -> Array:
        xp = namespace(observation)
        return xp.stack((xp.arctan2(observation[..., 1], observation[..., 0]), observation[..., 2]), -1)


class PendulumEnv(Differentiable, ProblemEnv):
    """One pendulum.

    :param kwargs: as for :class:`Pendulum`
    """

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(Pendulum(**kwargs), render_mode)


class PendulumVectorEnv(Differentiable, ProblemVectorEnv):
    """N pendulums side by side.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :class:`Pendulum`
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(Pendulum(**kwargs), num_envs, max_episode_steps, render_mode)
