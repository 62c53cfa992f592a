"""Storage of a rollout: growing (T, N) arrays, and the whole episodes that are cut out of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray[Any, Any]
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Steps:
    """Everything that happened in T steps of N env slots, as numpy arrays (T, N, ...) that double when full.

    :param observation_space: one env's space, as the policy sees it
    :param action_space: one env's space
    :param n_envs: N
    :param capacity: first guess of T
    :param dtype: float type of the policy; float observations are kept in it
    :raises TypeError: observations that are no arrays, nor a dict of arrays
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        n_envs: int,
        capacity: int = 256,
        dtype: Any = np.float32,
    ):
        self.n_envs = n_envs
        self.size = 0
        self.is_dict = isinstance(observation_space, spaces.Dict)
        observed = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        if not all(isinstance(space, ARRAY_SPACES) for space in observed.values()):
            names = ", ".join(space.__name__ for space in ARRAY_SPACES)
            raise TypeError(f"observation_space={observation_space}: one of {names} is needed, or a Dict of these")
        self.observations = {
            key: self._empty(capacity, space.shape, dtype if np.dtype(space.dtype).kind == "f" else space.dtype)
            for key, space in observed.items()
        }
        # torch's Bernoulli has no log-probability for whole numbers.
        floating = np.dtype(action_space.dtype).kind == "f" or isinstance(action_space, spaces.MultiBinary)
        self.actions = self._empty(capacity, action_space.shape, dtype if floating else np.int64)
        self.rewards = self._empty(capacity, (), dtype)
        self.dones = self._empty(capacity, (), np.bool_)
        self.cut_observations: dict[tuple[int, int], Any] = {}

    def _empty(self, capacity: int, shape: tuple[int, ...] | None, dtype: Any) -> Array:
        return np.empty((capacity, self.n_envs, *(shape or ())), dtype)

    def _grow(self) -> None:
        def doubled(array: Array) -> Array:
            return np.concatenate([array, np.empty_like(array)])

        self.observations = {key: doubled(array) for key, array in self.observations.items()}
        self.actions, self.rewards, self.dones = doubled(self.actions), doubled(self.rewards), doubled(self.dones)

    def add(self, obs: Any, actions: Array, rewards: Array, dones: Array) -> None:
        """Append one step: what was seen, what was done, what it gave, and where it ended an episode."""
        t = self.size
        if t == len(self.rewards):
            self._grow()
        if self.is_dict:
            for key, array in self.observations.items():
                array[t] = obs[key]
        else:
            self.observations[""][t] = obs
        self.actions[t], self.rewards[t], self.dones[t] = actions, rewards, dones
        self.size = t + 1

    def add_cut(self, env: int, info: dict[str, Any]) -> None:
        """Remember the terminal observation if the step just added cut env ``env`` by a time limit."""
        if info.get("TimeLimit.truncated", False) and info.get("terminal_observation") is not None:
            self.cut_observations[self.size - 1, env] = deepcopy(info["terminal_observation"])

    def observations_at(self, index: Any) -> Any:
        """Observations at ``index`` of the leading (T, N), in the env's structure."""
        picked = {key: array[: self.size][index] for key, array in self.observations.items()}
        return picked if self.is_dict else picked[""]


class Batch(NamedTuple):
    """Some steps: observations (b, ...), a tensor or a dict of such, and actions (b, ...) as they were sampled."""

    observations: Any
    actions: Tensor


@dataclass
class Rollout:
    """What was collected, as one flat batch of B steps and as padded columns (T, M), which pad and flatten convert.

    A column is one whole episode (:func:`whole_episodes`, M episodes) or one env slot (:func:`window`, M = N slots).
    The flat batch holds the live steps column by column.

    :param observations: (B, ...) tensor, or a dict of such
    :param actions: (B, ...) as the policy sampled them
    :param rewards: (T, M), 0 in the padding
    :param live: (T, M) bool, whether the step exists
    :param continues: (T, M) float, 1 where step t + 1 belongs to the same episode
    :param cut: (T, M) bool, where the future is unknown but not over: a time limit, or the end of the window
    :param cut_observations: the observations after these steps, (number cut, ...), column by column; None without any
    :param collected: env steps that the rollout took in all, including those of slots that had nothing left to do
    :param places: where the flat batch's steps stand among the stored ones: numbers of steps and of envs, each (B,)
    """

    observations: Any
    actions: Tensor
    rewards: Tensor
    live: Tensor
    continues: Tensor
    cut: Tensor
    cut_observations: Any
    collected: int
    places: tuple[Array, Array] | None = None

    def pad(self, flat: Tensor) -> Tensor:
        """(B, ...) -> (T, M, ...), 0 in the padding."""
        return scatter(flat, self.live)

    def pad_cut(self, flat: Tensor) -> Tensor:
        """(number cut,) -> (T, M), 0 elsewhere."""
        return scatter(flat, self.cut)

    def flatten(self, padded: Tensor) -> Tensor:
        """(T, M) -> (B,)."""
        return gather(padded, self.live)

    def __len__(self) -> int:
        """B, the number of steps."""
        return len(self.actions)

    def observations_at(self, index: Tensor) -> Any:
        """Observations of the steps ``index`` of the flat batch, in the env's structure."""
        if isinstance(self.observations, dict):
            return {key: tensor[index] for key, tensor in self.observations.items()}
        return self.observations[index]

    def at(self, index: Tensor) -> Batch:
        """The steps ``index`` (b,) of the flat batch."""
        return Batch(self.observations_at(index), self.actions[index])

    def steps_of(self, columns: Tensor) -> Tensor:
        """Indices (b,) into the flat batch of the live steps of ``columns`` (m,), column by column."""
        numbers = self.pad(th.arange(len(self), device=self.actions.device))
        return gather(numbers[:, columns], self.live[:, columns])

    def minibatches(self, batch_size: int | None, generator: np.random.Generator) -> Iterator[Tensor]:
        """Indices (b,) into the flat batch, in random order, that together visit every step once; None is one batch."""
        order = th.from_numpy(generator.permutation(len(self))).to(self.actions.device)
        yield from order.split(batch_size or len(self))

    def epoch(self, batch_size: int | None, generator: np.random.Generator) -> Iterator[Tensor]:
        """Indices (b,) into the flat batch, in random order, that together visit every step once, in equal parts.

        No part is larger than ``batch_size``. If one is enough, or for None, it is the batch as it stands.
        """
        yield from _equal_parts(len(self), batch_size, generator, self.actions.device)

    def epoch_of_columns(self, batch_size: int | None, generator: np.random.Generator) -> Iterator[Tensor]:
        """As :meth:`epoch`, of whole columns: indices (m,) of at most ``batch_size`` columns."""
        yield from _equal_parts(self.live.shape[1], batch_size, generator, self.actions.device)


def _equal_parts(n: int, size: int | None, generator: np.random.Generator, device: th.device) -> Iterator[Tensor]:
    if size is None or size >= n:
        yield th.arange(n, device=device)
    else:  # a small remainder would count more a step, and batch normalisation refuses a batch of one
        yield from th.from_numpy(generator.permutation(n)).to(device).tensor_split(-(-n // size))


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """The columns of several rollouts side by side, padded to the longest."""
    if len(rollouts) == 1:
        return rollouts[0]
    length = max(len(rollout.live) for rollout in rollouts)

    def columns(name: str) -> Any:
        arrays = [getattr(rollout, name) for rollout in rollouts]
        return th.cat([F.pad(array, (0, 0, 0, length - len(array))) for array in arrays], dim=1)

    cuts = [rollout.cut_observations for rollout in rollouts if rollout.cut_observations is not None]
    return Rollout(
        observations=_concatenated([rollout.observations for rollout in rollouts], th.cat),
        actions=th.cat([rollout.actions for rollout in rollouts]),
        **{name: columns(name) for name in ("rewards", "live", "continues", "cut")},
        cut_observations=_concatenated(cuts, np.concatenate) if cuts else None,
        collected=sum(rollout.collected for rollout in rollouts),
    )


def _concatenated(parts: list[Any], concatenate: Any) -> Any:
    if isinstance(parts[0], dict):
        return {key: concatenate([part[key] for part in parts]) for key in parts[0]}
    return concatenate(parts)


def scatter(flat: Tensor, where: Tensor) -> Tensor:
    """(B, ...) -> (T, M, ...): column by column to the B places ``where`` (T, M) is True, 0 elsewhere."""
    columns = flat.new_zeros(where.T.shape + flat.shape[1:])
    columns[where.T] = flat
    return columns.transpose(0, 1)


def gather(padded: Tensor, where: Tensor) -> Tensor:
    """(T, M) -> (B,): the entries at the B places ``where`` (T, M) is True, column by column."""
    return padded.T[where.T]


def whole_episodes(steps: Steps, bounds: list[tuple[int, int, int]], device: th.device) -> Rollout:
    """Cut the episodes (env, first step, one past the last step) out of the stored steps.

    :raises ValueError: ``bounds`` is empty
    """
    if not bounds:
        raise ValueError("The rollout holds no complete episode, so there is nothing to learn from")
    lengths = np.array([stop - start for _, start, stop in bounds])
    at_env = np.repeat([env for env, _, _ in bounds], lengths)
    at_step = np.concatenate([np.arange(start, stop) for _, start, stop in bounds])
    time = np.arange(lengths.max())
    live = time < lengths[:, None]  # (M, T)
    cuts = [steps.cut_observations.get((stop - 1, env)) for env, _, stop in bounds]
    was_cut = np.array([cut is not None for cut in cuts])
    return _rollout(
        steps,
        (at_step, at_env),
        live,
        continues=time < lengths[:, None] - 1,
        cut=(time == lengths[:, None] - 1) & was_cut[:, None],
        cut_observations=[cut for cut in cuts if cut is not None],
        device=device,
    )


def window(steps: Steps, last_observations: Any, device: th.device) -> Rollout:
    """All stored steps, one column a slot; what is unfinished is cut at the end of the window.

    :param last_observations: (N, ...) or a dict of such: what the last step led to
    """
    t, n = steps.size, steps.n_envs
    dones = steps.dones[:t].T  # (N, T)
    continues = ~dones
    continues[:, -1] = False
    cuts = dict(steps.cut_observations)
    for slot in np.flatnonzero(~dones[:, -1]).tolist():
        pick = {k: v[slot] for k, v in last_observations.items()} if steps.is_dict else last_observations[slot]
        cuts[t - 1, slot] = pick
    cut = np.zeros((n, t), np.bool_)
    for step, slot in cuts:
        cut[slot, step] = True
    index = (np.tile(np.arange(t), n), np.repeat(np.arange(n), t))
    ordered = [cuts[step, slot] for slot, step in np.argwhere(cut).tolist()]
    return _rollout(steps, index, np.ones((n, t), np.bool_), continues, cut, ordered, device)


def _rollout(
    steps: Steps,
    index: tuple[Array, Array],
    live: Array,
    continues: Array,
    cut: Array,
    cut_observations: list[Any],
    device: th.device,
) -> Rollout:
    """Gather the steps at ``index`` (column by column); the masks are given as (M, T)."""

    def to_device(array: Array) -> Tensor:
        return th.from_numpy(array).to(device)

    rewards = np.zeros(live.shape, steps.rewards.dtype)
    rewards[live] = steps.rewards[index]
    observations = steps.observations_at(index)
    return Rollout(
        observations={k: to_device(v) for k, v in observations.items()} if steps.is_dict else to_device(observations),
        actions=to_device(_as_rows(steps.actions[index])),
        rewards=to_device(rewards).T,
        live=to_device(live).T,
        continues=to_device(continues.astype(rewards.dtype)).T,
        cut=to_device(cut).T,
        cut_observations=_stack(cut_observations),
        collected=steps.size * steps.n_envs,
        places=index,
    )


def _as_rows(actions: Array) -> Array:
    """(B,) or (B, A): distributions know the entries of an action, not the shape in which the env wants them."""
    return actions.reshape(len(actions), -1) if actions.ndim > 1 else actions


def _stack(observations: list[Any]) -> Any:
    if not observations:
        return None
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)
