"""A mass on a line, a plane or in space, pushed to rest at the origin by a force of limited size.

    position' = position + dt * velocity,   velocity' = (1 - drag * dt) * velocity + dt * force / mass + noise

A regulator in disguise: its record is an :class:`~sb3_pg_ext.envs.lqr.LQR`, so every oracle of the regulator holds
until the force saturates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_pg_ext.envs.core import ProblemEnv, ProblemVectorEnv
from sb3_pg_ext.envs.differentiable import Differentiable
from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.envs.simulation import AtHorizon


def point_mass(
    dimension: int = 2,
    mass: float = 1.0,
    drag: float = 0.1,
    dt: float = 0.1,
    velocity_cost: float = 0.1,
    force_cost: float = 0.01,
    noise_std: float = 0.0,
    start_std: float = 0.5,
    horizon: int | None = 100,
    at_horizon: AtHorizon = "truncate",
    gamma: float = 0.99,
) -> LQR:
    """The record of a point mass: states (position, velocity), S = 2 * dimension; forces in [-1, 1], A = dimension.

    :param dimension: of the space in which the mass moves
    :param mass: kg
    :param drag: linear friction, 1/s
    :param dt: seconds of one step
    :param velocity_cost: cost of the squared speed, against 1 for the squared distance to the origin
    :param force_cost: cost of the squared force
    :param noise_std: standard deviation of the change of each velocity in one step
    :param start_std: standard deviation of each coordinate of the start; it starts at rest
    :param horizon: steps of an episode
    :param at_horizon: as for :class:`~sb3_pg_ext.envs.lqr.LQR`
    :param gamma: discount of the objective
    """
    if dimension < 1:
        raise ValueError(f"dimension={dimension}: allowed are positive integers")
    eye, zero = np.eye(dimension), np.zeros((dimension, dimension))
    return LQR(
        A=np.block([[eye, dt * eye], [zero, (1 - drag * dt) * eye]]),
        B=np.vstack([zero, dt / mass * eye]),
        Q=np.diag([1.0] * dimension + [velocity_cost] * dimension),
        R=force_cost * eye,
        noise_std=np.vstack([zero, noise_std * eye]),
        start_std=np.vstack([start_std * eye, zero]),
        horizon=horizon,
        at_horizon=at_horizon,
        gamma=gamma,
        action_bound=1.0,
        clip_actions=True,
    )


class PointMassEnv(Differentiable, ProblemEnv):
    """One point mass.

    :param kwargs: as for :func:`point_mass`
    """

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(point_mass(**kwargs), render_mode)


class PointMassVectorEnv(Differentiable, ProblemVectorEnv):
    """N point masses side by side.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :func:`point_mass`
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(point_mass(**kwargs), num_envs, max_episode_steps, render_mode)
