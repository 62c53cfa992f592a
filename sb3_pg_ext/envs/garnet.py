"""Random finite decision processes (Archibald, McKinnon & Thomas 1995; Bhatnagar et al. 2009), drawn from a number."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPEnv, FiniteMDPVectorEnv
from sb3_pg_ext.envs.simulation import AtHorizon

Features = Literal["onehot", "state"]


def garnet(
    n_states: int = 10,
    n_actions: int = 3,
    branching: int = 3,
    instance: int = 0,
    features: Features = "onehot",
    reward_std: float = 0.0,
    horizon: int | None = 20,
    at_horizon: AtHorizon = "truncate",
    gamma: float = 0.95,
) -> FiniteMDP:
    """The record of a random process that never terminates of itself and starts anywhere.

    Each action of each state leads to ``branching`` states chosen at random, with the probabilities that uniform cuts
    of [0, 1] give them; its mean reward is a standard normal number.

    :param n_states: S
    :param n_actions: A
    :param branching: how many states an action may lead to
    :param instance: which process: the same number always gives the same one
    :param features: ``"onehot"`` for a Box of unit vectors, ``"state"`` for a Discrete observation
    :param reward_std: standard deviation of the noise on the reward
    :param horizon: steps of an episode
    :param at_horizon: as for :class:`~sb3_pg_ext.envs.lqr.LQR`
    :param gamma: discount of the objective
    """
    if not 1 <= branching <= n_states:
        raise ValueError(f"branching={branching}: allowed are 1 to n_states={n_states}")
    if features not in ("onehot", "state"):
        raise ValueError(f"features={features!r}: allowed are 'onehot' and 'state'")
    rng = np.random.default_rng(instance)
    transition = np.zeros((n_states, n_actions, n_states))
    for row in transition.reshape(-1, n_states):
        cuts = np.concatenate([[0], np.sort(rng.random(branching - 1)), [1]])
        row[rng.choice(n_states, branching, replace=False)] = np.diff(cuts)
    return FiniteMDP(
        transition=transition,
        reward=rng.standard_normal((n_states, n_actions)),
        reward_std=reward_std,
        features=np.eye(n_states) if features == "onehot" else None,
        horizon=horizon,
        at_horizon=at_horizon,
        gamma=gamma,
    )


class GarnetEnv(FiniteMDPEnv):
    """One random process; its arrays are ``env.unwrapped.problem.transition`` and ``.reward``.

    :param kwargs: as for :func:`garnet`
    """

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(garnet(**kwargs), render_mode)


class GarnetVectorEnv(FiniteMDPVectorEnv):
    """N copies of one random process.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :func:`garnet`
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(garnet(**kwargs), num_envs, max_episode_steps, render_mode)
