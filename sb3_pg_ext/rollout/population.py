"""Evaluating a population: every slot of a vectorised environment acts by a candidate of its own.

The n x E episodes (E for each of n candidates) are a queue. A slot that ends an episode takes the next one from it, so
episodes of any length follow each other without a gap. When the queue is empty, the slots that are done idle until the
last episode ends: their steps count in ``num_timesteps``, for they are made, but in nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.rollout import collector, guards
from sb3_pg_ext.rollout.batched_policies import BatchedPolicies
from sb3_pg_ext.rollout.common_seeds import SeededSlots
from sb3_pg_ext.rollout.direct_step import stepper

Array = np.ndarray[Any, Any]


class Evaluation(NamedTuple):
    """What n candidates have got in E episodes each.

    :param returns: undiscounted, (n, E) float64
    :param lengths: in steps, (n, E) int64
    :param collected: env steps taken for it, idle slots included
    :param seen: number, mean (S,) and variance (S,) of the features that live slots have seen, or None
    """

    returns: Array
    lengths: Array
    collected: int
    seen: tuple[int, Array, Array] | None


class EpisodeTable:
    """Which slot does which of the n E episodes, and what came out. Episode j is the (j // n)-th of candidate j % n.

    :param n: candidates
    :param n_episodes: E
    :param n_slots: N
    :param budget: env steps of the whole training. An episode that has taken more than its slot's share of them, and
        more than ``collector.LONG_EPISODE``, is held for endless
    """

    def __init__(self, n: int, n_episodes: int, n_slots: int, budget: float = 0):
        self.n, self.total = n, n * n_episodes
        self.episode = np.arange(n_slots)  # of each slot; -1: it idles
        self.episode[self.total :] = -1
        self.waiting, self.left = min(n_slots, self.total), self.total  # the next to begin, and how many are not over
        self.returns, self.lengths = np.zeros(self.total), np.zeros(self.total, np.int64)
        self.rewards, self.start = np.zeros(n_slots), np.zeros(n_slots, np.int64)
        self.t = 0
        self.longest = self.next_look = max(budget / n_slots, collector.LONG_EPISODE)

    @property
    def live(self) -> Array | None:
        """Slots (k,) that do not idle; None stands for all."""
        in_progress = self.left - (self.total - self.waiting)
        return None if in_progress == len(self.episode) else np.flatnonzero(self.episode >= 0)

    def add(self, rewards: Array) -> None:
        """Book the rewards (N,) of one step.

        :raises RuntimeError: an episode does not end
        """
        self.t += 1
        self.rewards += rewards
        if self.t > self.next_look:
            self._look_for_endless()

    @property
    def oldest(self) -> int:
        """The episode that was begun first of those that are not over."""
        return int(self.episode[self.episode >= 0].min())

    def finish(self, slots: Array) -> tuple[Array, Array, Array]:
        """Book the ends of the episodes of ``slots`` (k,), and give these slots what is waiting.

        :return: slots that did not idle; slots that begin another episode of the table; slots that idle from now on
        """
        counted = slots[self.episode[slots] >= 0]
        over = self.episode[counted]
        self.returns[over] = self.rewards[counted]
        self.lengths[over] = self.t - self.start[counted]
        self.left -= len(over)
        self.rewards[slots], self.start[slots] = 0.0, self.t
        begun = counted[: self.total - self.waiting]
        self.episode[counted] = -1
        self.episode[begun] = np.arange(self.waiting, self.waiting + len(begun))
        self.waiting += len(begun)
        return counted, begun, slots if not len(begun) else counted[len(begun) :]

    def _look_for_endless(self) -> None:
        live = np.flatnonzero(self.episode >= 0)
        slot = live[self.start[live].argmin()]
        if self.t - self.start[slot] > self.longest:
            raise RuntimeError(
                f"The episode of env {slot} has not ended within {self.t - self.start[slot]} steps, but a candidate is "
                "judged by whole episodes. Give the environment a time limit: gymnasium.make(..., "
                "max_episode_steps=...) or gymnasium.wrappers.TimeLimit."
            )
        self.next_look = self.start[slot] + self.longest


def evaluate(
    model: Any, env: VecEnv, callback: BaseCallback, candidates: Array, n_episodes: int = 1, seeds: Array | None = None
) -> Evaluation | None:
    """Returns of all candidates, in as few steps as the slots of ``env`` allow.

    After each step ``num_timesteps`` grows by N, the callback sees ``new_obs``, ``rewards``, ``dones``, ``infos``, and
    any falsy answer of it stops at once; then the statistics of finished episodes are updated.

    :param model: the algorithm; its ``policy`` is the architecture, and ``num_timesteps``, ``_last_obs``,
        ``_last_episode_starts`` and the episode statistics are used
    :param candidates: (n, P) parameters
    :param n_episodes: E, of each candidate
    :param seeds: (E,), common random numbers: the e-th episode of every candidate begins with ``seeds[e]``
    :return: None if the callback stopped the training
    :raises NonFiniteError: the env or a candidate gave NaN or infinity
    :raises ValueError: ``seeds`` are given, but ``env`` cannot begin single episodes with a seed
    :raises RuntimeError: an episode does not end
    """
    n_envs, n, before = env.num_envs, len(candidates), model.num_timesteps
    slots_with_seeds = None if seeds is None else SeededSlots(env)
    policies = BatchedPolicies(model.policy, candidates, n_envs)
    table = EpisodeTable(n, n_episodes, n_envs, model._total_timesteps)
    env_step = stepper(env)
    callback.on_rollout_start()
    if not np.all(model._last_episode_starts):  # a slot idled, or was stopped in mid-episode
        model._last_obs, model._last_episode_starts = guards.reset(env, before), np.ones(n_envs, dtype=bool)

    def begin(slots: Array) -> None:
        policies.load(slots, table.episode[slots] % n)
        if slots_with_seeds is not None and seeds is not None:
            theirs = seeds[table.episode[slots] // n]
            model._last_obs = slots_with_seeds.restart(model._last_obs, slots, theirs, model.num_timesteps)

    begin(np.flatnonzero(table.episode >= 0))
    while table.left:
        obs = model._last_obs
        actions = policies(obs)
        if policies.counts:
            policies.count(table.live)
        new_obs, rewards, dones, infos = guards.step(env_step, env, actions, model.num_timesteps)
        model.num_timesteps += n_envs
        guards.check_observations(new_obs, where := f"after step {model.num_timesteps}")
        guards.check_rewards(rewards, where)
        model._last_obs, model._last_episode_starts = new_obs, dones
        callback.update_locals(locals())
        if not callback.on_step():
            return None
        table.add(rewards)
        if np.count_nonzero(dones):
            counted, begun, idle = table.finish(np.flatnonzero(dones))
            model._update_info_buffer([infos[i] for i in counted], dones[counted])
            if len(begun):
                begin(begun)
            if len(idle) and table.left:
                policies.load(idle, table.oldest % n)  # who has outlived the others: idle episodes shall end seldom
    callback.update_locals(locals())
    callback.on_rollout_end()
    return Evaluation(
        table.returns.reshape(n_episodes, n).T,
        table.lengths.reshape(n_episodes, n).T,
        model.num_timesteps - before,
        policies.seen(),
    )
