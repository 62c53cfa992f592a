"""The short corridor with switched actions (Sutton & Barto 2018, example 13.1): where only a random policy is good.

    state 0 -- state 1 -- state 2 -- goal,   reward -1 a step

Right is right in states 0 and 2, but in state 1 the actions are exchanged; all three states look alike. A policy that
goes right with probability p has the return J(p) = -(4 - 2p) / (p (1 - p)): at most -11.657, for p = 2 - sqrt(2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPEnv, FiniteMDPVectorEnv

LEFT, RIGHT = 0, 1


def short_corridor(horizon: int | None = 1000) -> FiniteMDP:
    """The record of the corridor: actions 0 (left) and 1 (right), a constant observation, an undiscounted return.

    :param horizon: time limit; a policy with p in [.05, .95] reaches the goal long before 1000 steps, all but surely
    """
    transition = np.zeros((3, 2, 3))
    transition[0, LEFT, 0] = transition[0, RIGHT, 1] = 1
    transition[1, LEFT, 2] = transition[1, RIGHT, 0] = 1
    transition[2, LEFT, 1] = 1  # and right, from state 2, is the goal
    return FiniteMDP(transition, reward=-np.ones((3, 2)), start=[1, 0, 0], features=np.ones((3, 1)), horizon=horizon)


class ShortCorridorEnv(FiniteMDPEnv):
    """One corridor.

    :param kwargs: as for :func:`short_corridor`
    """

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(short_corridor(**kwargs), render_mode)


class ShortCorridorVectorEnv(FiniteMDPVectorEnv):
    """N corridors.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :func:`short_corridor`
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(short_corridor(**kwargs), num_envs, max_episode_steps, render_mode)
