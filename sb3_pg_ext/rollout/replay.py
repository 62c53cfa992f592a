"""Minibatches of an SB3 replay buffer, and its latest steps in order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

Array = np.ndarray[Any, Any]


class Minibatch(NamedTuple):
    """B steps (s, a, r, s') in no order.

    :param observations: s, (B, ...) or a dict of such
    :param actions: a as the buffer keeps it, (B, A): Box actions scaled to [-1, 1], others as the space counts them
    :param next_observations: s', the *terminal* observation at the end of an episode
    :param rewards: r, (B,); with n-step returns the discounted sum of n of them
    :param discounts: what V(s') counts, (B,): gamma (gamma^n), and 0 after a terminal step; a time-out is none
    """

    observations: Any
    actions: Tensor
    next_observations: Any
    rewards: Tensor
    discounts: Tensor


def draw(
    buffer: ReplayBuffer, batch_size: int, gamma: float, rng: np.random.Generator, env: VecNormalize | None = None
) -> Minibatch:
    """``batch_size`` steps, uniformly and with replacement.

    A plain ``ReplayBuffer`` gives up its rows with one gather an array. Any other class, and one whose numbers are to
    be normalised, samples by itself, from numpy's global generator as everywhere in SB3.

    :param gamma: discount per step
    :param rng: chooses the rows of a plain buffer
    :param env: normalises observations and rewards
    """
    if type(buffer) is ReplayBuffer and env is None and not buffer.optimize_memory_usage:
        return _draw_plain(buffer, rng.integers(buffer.size() * buffer.n_envs, size=batch_size), gamma)
    batch = buffer.sample(batch_size, env=env)
    discounts = gamma if batch.discounts is None else batch.discounts.flatten()
    return Minibatch(
        batch.observations,
        batch.actions,
        batch.next_observations,
        batch.rewards.flatten(),
        discounts * (1 - batch.dones.flatten()),
    )


def _draw_plain(buffer: ReplayBuffer, index: Array, gamma: float) -> Minibatch:
    def rows(array: Array) -> Array:
        return array.reshape(-1, *array.shape[2:]).take(index, axis=0)

    going_on = 1 - rows(buffer.dones) * (1 - rows(buffer.timeouts))
    arrays = buffer.observations, buffer.actions, buffer.next_observations, buffer.rewards
    tensors = [th.from_numpy(array) for array in (*map(rows, arrays), going_on * np.float32(gamma))]
    return Minibatch(*(tensor.to(buffer.device) for tensor in tensors))


class Window(NamedTuple):
    """The latest T steps of N envs in order: ``steps`` flat in B = T N, first all envs of the first step.

    :param steps: as :class:`Minibatch`, with gamma as discount
    :param continues: (T, N): 1 where the next step belongs to the same episode
    """

    steps: Minibatch
    continues: Tensor


def latest(buffer: ReplayBuffer, n_rows: int, gamma: float, env: VecNormalize | None = None) -> Window:
    """The last ``n_rows`` steps of every env.

    :raises ValueError: the buffer holds fewer, or keeps no next observations
    """
    if n_rows > buffer.size() or buffer.optimize_memory_usage:
        raise ValueError(
            f"The latest {n_rows} steps of each env are needed, but the buffer holds {buffer.size()} "
            f"(buffer_size={buffer.buffer_size} per env, optimize_memory_usage={buffer.optimize_memory_usage}): "
            "make buffer_size larger, or train_freq smaller"
        )
    index = (buffer.pos + np.arange(-n_rows, 0)) % buffer.buffer_size

    def rows(array: Array) -> Array:
        return array[index].reshape(-1, *array.shape[2:])

    def tensor(array: Array) -> Tensor:
        return th.from_numpy(np.ascontiguousarray(array)).to(buffer.device)

    def observed(arrays: Any) -> Any:
        if isinstance(buffer, DictReplayBuffer):
            normalised: Any = buffer._normalize_obs({key: rows(array) for key, array in arrays.items()}, env)
            return {key: tensor(array) for key, array in normalised.items()}
        return tensor(buffer._normalize_obs(rows(arrays), env))  # type: ignore[arg-type]

    dones = tensor(buffer.dones[index])
    terminal = dones * (1 - tensor(buffer.timeouts[index]))
    steps = Minibatch(
        observed(buffer.observations),
        tensor(rows(buffer.actions)),
        observed(buffer.next_observations),
        tensor(buffer._normalize_reward(rows(buffer.rewards), env)),
        gamma * (1 - terminal.flatten()),
    )
    return Window(steps, 1 - dones)
