"""Evaluating a population: every slot of a vectorised environment acts by a candidate of its own.

The n x E episodes (E for each of n candidates) are a queue. A slot that ends an episode takes the next one from it, so
episodes of any length follow each other without a gap. When the queue is empty, the slots that are done idle until the
last episode ends: their steps count in ``num_timesteps``, for they are made, but in nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.rollout import collector, guards
from sb3_pg_ext.rollout.batched_policies import SMALL_SQUARES, BatchedPolicies
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
        self.waiting = min(n_slots, self.total)  # the next to begin
        self.slot = {j: j for j in range(self.waiting)}  # of each episode in progress, those begun first in front
        self.episode = [j if j < self.total else -1 for j in range(n_slots)]  # of each slot; -1: it idles
        self.idlers = list(range(self.total, n_slots))
        self.leader, self.n_followers = 0, 0  # the episode by whose candidate so many of them act
        self.returns, self.lengths = np.zeros(self.total), np.zeros(self.total, np.int64)
        self.rewards, self.start = np.zeros(n_slots), [0] * n_slots
        self.t = 0
        self.longest = self.next_look = max(budget / n_slots, collector.LONG_EPISODE)

    @property
    def live(self) -> Array | None:
        """Slots (k,) that do not idle; None stands for all."""
        all_busy = len(self.slot) == len(self.episode)
        return None if all_busy else np.sort(np.fromiter(self.slot.values(), np.int64, len(self.slot)))

    def add(self, rewards: Array) -> None:
        """Book the rewards (N,) of one step.

        :raises RuntimeError: an episode does not end
        """
        self.t += 1
        self.rewards += rewards
        if self.t > self.next_look:
            self._look_for_endless()

    def finish(self, slots: list[int]) -> tuple[list[int], list[int]]:
        """Book the ends of the episodes of ``slots`` (k,), and give these slots what is waiting.

        :return: those of them that did not idle, and those that begin another episode of the table
        """
        counted = [slot for slot in slots if self.episode[slot] >= 0]
        begun = counted[: self.total - self.waiting]
        for slot in counted:
            over = self.episode[slot]
            self.returns[over], self.lengths[over] = self.rewards[slot], self.t - self.start[slot]
            del self.slot[over]
            self.episode[slot] = -1
        for slot in begun:
            self.episode[slot], self.slot[self.waiting] = self.waiting, slot
            self.waiting += 1
        self.idlers += counted[len(begun) :]
        for slot in slots:
            self.rewards[slot], self.start[slot] = 0.0, self.t
        return counted, begun

    def followers(self) -> tuple[list[int], int]:
        """Idle slots that are to act by another candidate, and by which.

        All act by that of the oldest episode: it has outlived the others, so that idle episodes end seldom.
        """
        leader = next(iter(self.slot), self.leader)
        changing = self.idlers[self.n_followers if leader == self.leader else 0 :]
        self.leader, self.n_followers = leader, len(self.idlers)
        return changing, leader % self.n

    def _look_for_endless(self) -> None:
        slot = next(iter(self.slot.values()))
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
    listens, counts = not _is_deaf(callback), policies.counts
    env_step = stepper(env, quiet=not listens)  # if nobody listens, infos in mid-episode need not be made
    callback.on_rollout_start()
    if not np.all(model._last_episode_starts):  # a slot idled, or was stopped in mid-episode
        model._last_obs, model._last_episode_starts = guards.reset(env, before), np.ones(n_envs, dtype=bool)

    def begin(slots: list[int]) -> None:
        """Let the episodes of these slots begin with their seeds."""
        if slots_with_seeds is not None and seeds is not None and slots:
            theirs = seeds[[table.episode[slot] // n for slot in slots]]
            model._last_obs = slots_with_seeds.restart(model._last_obs, np.array(slots), theirs, model.num_timesteps)

    begin(list(table.slot.values()))
    while table.slot:
        obs = model._last_obs
        actions = policies(obs)
        if counts:
            policies.count(table.live)
        new_obs, rewards, dones, infos = guards.step(env_step, env, actions, model.num_timesteps)
        model.num_timesteps += n_envs
        if not _are_small(new_obs, rewards):
            guards.check_observations(new_obs, where := f"after step {model.num_timesteps}")
            guards.check_rewards(rewards, where)
        model._last_obs, model._last_episode_starts = new_obs, dones
        if listens:
            callback.update_locals(locals())
            if not callback.on_step():
                return None
        table.add(rewards)
        if np.count_nonzero(dones):
            counted, begun = table.finish(dones.nonzero()[0].tolist())
            model._update_info_buffer([infos[slot] for slot in counted], dones[counted])
            for slot in begun:
                policies.load(slot, table.episode[slot] % n)
            begin(begun)
            policies.load(*table.followers())
    callback.update_locals(locals())
    callback.on_rollout_end()
    return Evaluation(
        table.returns.reshape(n_episodes, n).T,
        table.lengths.reshape(n_episodes, n).T,
        model.num_timesteps - before,
        policies.seen(),
    )


def _is_deaf(callback: BaseCallback) -> bool:
    """Whether nobody has asked to be called."""
    return type(callback) is ConvertCallback and callback.callback is None


def _are_small(obs: Any, rewards: Array) -> bool:
    """Whether all these are floats small enough to be finite: a quick answer, that is mostly yes."""
    if not (isinstance(obs, np.ndarray) and obs.dtype.kind == rewards.dtype.kind == "f"):
        return False
    flat = obs.ravel("K")  # in whatever order they are stored, so that nothing is copied
    return bool(np.vdot(flat, flat) < SMALL_SQUARES > np.vdot(rewards, rewards))
