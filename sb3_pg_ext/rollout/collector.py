"""Rollouts: whole episodes without length bias, or a fixed number of steps; SB3's bookkeeping after every env step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.rollout import guards
from sb3_pg_ext.rollout.acting import clip_to_space, make_actor
from sb3_pg_ext.rollout.direct_step import stepper
from sb3_pg_ext.rollout.episodes import Steps

Array = np.ndarray[Any, Any]
#: Steps that an episode may always take, however short the training is to be.
LONG_EPISODE = 100_000


def run(model: Any, env: VecEnv, callback: BaseCallback, steps: Steps, finished: Callable[[Array], bool]) -> bool:
    """Step ``env`` with the model's policy until ``finished(dones)``.

    After each step ``num_timesteps`` grows by N, the callback sees ``new_obs``, ``rewards``, ``dones``, ``infos``, and
    any falsy answer of it stops at once; then the episode statistics are updated: the order of SB3's own collectors.

    :param model: the algorithm (its ``policy``, ``num_timesteps``, ``_last_obs``, ``_last_episode_starts`` are used)
    :param steps: storage that the rollout is appended to
    :param finished: called with ``dones`` (N,) after each stored step
    :return: False if the callback stopped the training
    :raises NonFiniteError: the env or the policy returned NaN or infinity
    """
    policy = model.policy
    policy.set_training_mode(False)
    if model.use_sde:
        policy.reset_noise(env.num_envs)
    callback.on_rollout_start()
    actor, to_env = make_actor(policy, env.num_envs, model.rng), clip_to_space(policy, model.action_space)
    env_step = stepper(env)
    resample_every = model.sde_sample_freq if model.use_sde else 0
    n_steps, done = 0, False
    while not done:
        if resample_every > 0 and n_steps % resample_every == 0:
            policy.reset_noise(env.num_envs)
        obs = model._last_obs
        actions = actor(obs)
        clipped_actions = to_env(actions)
        new_obs, rewards, dones, infos = guards.step(env_step, env, clipped_actions, model.num_timesteps)
        model.num_timesteps += env.num_envs
        n_steps += 1
        guards.check_observations(new_obs, where := f"after step {model.num_timesteps}")
        guards.check_rewards(rewards, where)
        model._last_obs, model._last_episode_starts = new_obs, dones
        callback.update_locals(locals())
        if not callback.on_step():
            return False
        model._update_info_buffer(infos, dones)
        steps.add(obs, actions, rewards, dones)
        if dones.any():
            for slot in np.flatnonzero(dones).tolist():
                steps.add_cut(slot, infos[slot])
        done = finished(dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


class EpisodeQueue:
    """Which episodes of a rollout count, decided when each one *starts*, so that no length is over-represented.

    Keeping whatever happens to be finished at some step favours short episodes and biases the gradient. Here every
    episode that was begun is finished, and a free slot begins another one as long as the target is not reached:

    * ``n_episodes``: exactly ``max(n_episodes, N)`` episodes. The number is fixed beforehand, and which ones count
      never depends on how they go on, so their mean is unbiased.
    * ``n_steps``: as long as fewer than ``n_steps * N`` steps lie behind. The number of episodes is a stopping time, so
      sums are unbiased (Wald's identity), means up to a term of order 1 / number of episodes.

    :param n_envs: N
    :param n_steps: steps per env, at least; unused if ``n_episodes`` is given
    :param n_episodes: episodes in all
    :param least: episodes that even a single env must complete when it goes by ``n_steps``
    :param budget: env steps of the whole training. An episode that has taken more than its slot's share of them, and
        more than :data:`LONG_EPISODE`, is held for endless
    """

    def __init__(self, n_envs: int, n_steps: int, n_episodes: int | None, least: int = 1, budget: float = 0):
        self.enough_steps, self.least = n_steps, least
        self.longest = self.next_look = max(budget / n_envs, LONG_EPISODE)
        self.to_start = None if n_episodes is None else max(n_episodes - n_envs, 0)
        self.start: dict[int, int] = dict.fromkeys(range(n_envs), 0)
        self.bounds: list[tuple[int, int, int]] = []
        self.t = 0

    def __call__(self, dones: Array) -> bool:
        """Book one step; True when every episode that counts is complete.

        :raises RuntimeError: an episode does not end
        """
        self.t += 1
        if dones.any():
            for slot in np.flatnonzero(dones).tolist():
                if slot in self.start:
                    self.bounds.append((slot, self.start.pop(slot), self.t))
                    if self._may_start():
                        self.start[slot] = self.t
        if self.t > self.next_look:
            self._look_for_endless()
        return not self.start

    def _may_start(self) -> bool:
        if self.to_start is None:
            return self.t < self.enough_steps or len(self.bounds) + len(self.start) < self.least
        self.to_start -= 1
        return self.to_start >= 0

    def _look_for_endless(self) -> None:
        slot, start = min(self.start.items(), key=lambda item: item[1], default=(0, self.t))
        if self.t - start > self.longest:
            raise RuntimeError(
                f"The episode of env {slot} has not ended within {self.t - start} steps, but a rollout consists of "
                "whole episodes. Give the environment a time limit: gymnasium.make(..., max_episode_steps=...) or "
                "gymnasium.wrappers.TimeLimit."
            )
        self.next_look = start + self.longest


def whole_number_of_steps(n_steps: int) -> Callable[[Array], bool]:
    """``finished`` of a rollout of exactly ``n_steps`` steps per env, wherever the episodes stand then."""
    remaining = iter(range(n_steps - 1, -1, -1))
    return lambda dones: next(remaining) == 0
