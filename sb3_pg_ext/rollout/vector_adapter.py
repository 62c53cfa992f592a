"""A gymnasium ``VectorEnv`` as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.rollout.autoreset import autoreset_mode, layers, reset_slots, with_partial_reset
from sb3_pg_ext.rollout.envpool import is_envpool
from sb3_pg_ext.rollout.sub_envs import sub_envs
from sb3_pg_ext.rollout.vector_infos import unbatch

Infos = list[dict[str, Any]]
Indices = int | Iterable[int] | None
TIME_LIMIT = "TimeLimit.truncated"
TERMINAL = "terminal_observation"
_NOT_OF_THE_STEP = frozenset({TIME_LIMIT, "final_obs", "_final_obs", "final_info", "_final_info"})
_NONE = np.empty(0, np.int64)
_SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class VectorEnvAdapter(VecEnv):
    """A gymnasium ``VectorEnv`` as a Stable-Baselines3 ``VecEnv`` that behaves like ``DummyVecEnv`` over ``Monitor``.

    When the episode of slot i ends, that step returns the first observation of its next episode, with
    ``infos[i]["terminal_observation"]``, ``infos[i]["TimeLimit.truncated"]`` and ``infos[i]["episode"]``: return ``r``,
    length ``l`` in steps, ``t`` seconds since construction. ``reset_infos[i]`` is then new. All auto-reset modes of
    gymnasium give the same trajectories; :mod:`sb3_pg_ext.rollout.autoreset` explains how. Statistics that the
    environment keeps itself (Stable-Baselines3's ``Monitor``, gymnasium's ``RecordEpisodeStatistics``) take precedence.

    :param env: N environments with Box, Discrete, MultiDiscrete or MultiBinary actions, and with observations of these
        spaces or of a Dict of them; from now on it belongs to the adapter
    :raises TypeError: not a ``VectorEnv``, or a space or wrapper that cannot be supported
    :raises ValueError: its finished slots cannot be reset at once, see :func:`register_partial_reset`
    """

    def __init__(self, env: VectorEnv):
        if not (isinstance(env, VectorEnv) or is_envpool(env)):
            raise TypeError(f"env={env!r} of type {type(env).__name__}: it must be a gymnasium.vector.VectorEnv")
        self.env = env = with_partial_reset(env)
        _check_spaces(env)
        self._sub_envs = sub_envs(env)
        self._restart = _RESTARTS[autoreset_mode(env)]
        # Rollouts keep the last observations, so arrays that the environment may write to again are copied.
        self._copies = getattr(env, "copy", False) is not True
        self._batched_action_space = env.action_space
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = {name: value for name, value in env.metadata.items() if name != "autoreset_mode"}
        self._started_at = time.time()
        self._step = 0
        self._first_step = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs)
        self._form = self.observation_space.dtype, (self.num_envs, *(self.observation_space.shape or ()))
        self._none_done = np.zeros(self.num_envs, dtype=bool)
        self._none_done.flags.writeable = False

    def reset(self) -> Any:
        """The first observations of N new episodes; seeds and options that were set are used once."""
        # From one seed gymnasium seeds slot i with seed + i, as Stable-Baselines3 does; it takes Python's int only.
        seed = None if self._seeds[0] is None else int(self._seeds[0])
        observations, infos = self.env.reset(seed=seed, options=self._options[0] or None)
        self.reset_infos = unbatch(infos, self._empty_infos())
        self._reset_seeds()
        self._reset_options()
        self._first_step[:] = self._step
        self._returns[:] = 0
        return self._own(observations)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options for the next reset. All slots of a vector environment share them.

        :raises ValueError: they differ between slots, or hold ``reset_mask``
        """
        super().set_options(options)
        if any(each != self._options[0] for each in self._options) or "reset_mask" in self._options[0]:
            self._reset_options()
            raise ValueError(f"options={options!r}: they must be the same for all slots, and without 'reset_mask'")

    def step_async(self, actions: np.ndarray) -> None:
        space = self._batched_action_space
        self._actions = np.asarray(actions, dtype=space.dtype).reshape(space.shape)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        """Observations (N, ...), rewards (N,) float32, dones (N,) bool and N infos."""
        return self._finish_step(self.env.step(self._actions), shared=False)

    def step_with_shared_infos(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        """``step``, for callers that do not write into infos: slots in mid-episode share one."""
        self.step_async(actions)
        return self._finish_step(self.env.step(self._actions), shared=True)

    def step_quietly(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        """``step``, for callers that look at infos of slots that are done only, and at everything before the next step.

        As long as no episode ends and the environment has no infos, there are none, and observations are in the arrays
        of the environment, which may write to them again.
        """
        self.step_async(actions)
        batch, rewards, terminations, truncations, batched_infos = step = self.env.step(self._actions)
        if batched_infos or np.count_nonzero(terminations) or np.count_nonzero(truncations):
            return self._finish_step(step, shared=True)
        self._step += 1
        self._returns += self._per_slot("rewards", rewards)
        if type(batch) is not np.ndarray or batch.dtype != self._form[0] or batch.shape != self._form[1]:
            batch = _typed(self.observation_space, batch, False, (self.num_envs,))
        return batch, rewards.astype(np.float32), self._none_done, []

    def _infos(self, terminated: np.ndarray, truncated: np.ndarray, done: np.ndarray, shared: bool) -> Infos:
        """With the time-outs; with ``shared`` slots other than ``done`` (k,) have one between them."""
        if not shared:
            return [{TIME_LIMIT: each} for each in (truncated & ~terminated).tolist()]
        infos: Infos = [{TIME_LIMIT: False}] * self.num_envs
        for i in done.tolist():
            infos[i] = {TIME_LIMIT: not terminated[i]}
        return infos

    def _finish_step(self, step: tuple[Any, ...], shared: bool) -> tuple[Any, np.ndarray, np.ndarray, Infos]:
        batch, rewards, terminations, truncations, batched_infos = step
        observations = self._own(batch)
        rewards = self._per_slot("rewards", rewards)
        terminated = self._per_slot("terminations", terminations, bool)
        truncated = self._per_slot("truncations", truncations, bool)
        dones = terminated | truncated
        done = dones.nonzero()[0] if np.count_nonzero(dones) else _NONE
        infos = self._infos(terminated, truncated, done, shared and not batched_infos)
        if batched_infos:
            unbatch(batched_infos, infos, skip=_NOT_OF_THE_STEP)
        self._step += 1
        self._returns += rewards
        if len(done):
            self._restart(self, dones, done, observations, batched_infos, infos)
            self._report_episodes(done, infos)
        return observations, rewards.astype(np.float32), dones, infos

    def _restart_by_mask(
        self, dones: np.ndarray, done: np.ndarray, observations: Any, _infos: dict[str, Any], infos: Infos
    ) -> None:
        """``NEXT_STEP`` and ``DISABLED``: finished slots stand at their last observation, and are reset now."""
        last = _rows(observations, done)
        first, batched_infos = reset_slots(self.env, dones)
        _overwrite(observations, first, done)
        reset_infos = unbatch(batched_infos, self._empty_infos()) if batched_infos else None
        for k, i in enumerate(done.tolist()):
            infos[i][TERMINAL] = _rows(last, k)
            self.reset_infos[i] = reset_infos[i] if reset_infos else {}

    def _restart_in_step(
        self, _dones: np.ndarray, done: np.ndarray, _obs: Any, batched_infos: dict[str, Any], infos: Infos
    ) -> None:
        """``SAME_STEP``: finished slots were reset already; their infos are the reset's, ``final_*`` the step's."""
        if "final_obs" not in batched_infos:
            raise ValueError(f"{self.env} resets in the same step, but its infos have no 'final_obs' of finished slots")
        if "final_info" in batched_infos:
            step_infos = unbatch(batched_infos["final_info"], self._empty_infos(), skip=_NOT_OF_THE_STEP)
            for i in done.tolist():
                # A wrapper around the resetting environment puts its statistics beside the infos of the reset.
                kept = {name: infos[i].pop(name) for name in (TIME_LIMIT, "episode") if name in infos[i]}
                self.reset_infos[i], infos[i] = infos[i], step_infos[i] | kept
        for i in done.tolist():
            infos[i][TERMINAL] = _typed(self.observation_space, _rows(batched_infos["final_obs"], i), copy=True)

    def _report_episodes(self, done: np.ndarray, infos: Infos) -> None:
        elapsed = round(time.time() - self._started_at, 6)
        lengths = self._step - self._first_step[done]
        for i, total, length in zip(done.tolist(), self._returns[done].tolist(), lengths.tolist(), strict=True):
            theirs = infos[i].get("episode")
            if not (isinstance(theirs, dict) and {"r", "l"} <= theirs.keys()):
                infos[i]["episode"] = {"r": round(total, 6), "l": length, "t": elapsed}
        self._returns[done] = 0
        self._first_step[done] = self._step

    def _empty_infos(self) -> Infos:
        return [{} for _ in range(self.num_envs)]

    def _own(self, observations: Any) -> Any:
        return _typed(self.observation_space, observations, self._copies, (self.num_envs,))

    def _per_slot(self, name: str, values: Any, dtype: type | None = None) -> np.ndarray:
        array = np.asarray(values, dtype)
        if array.shape != (self.num_envs,):
            raise ValueError(f"{self.env} returned {name} of shape {array.shape}, expected ({self.num_envs},)")
        return array

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        return self._sub_envs.get(attr_name, self._slots(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        self._sub_envs.set(attr_name, value, self._slots(indices))

    def env_method(self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any) -> list:
        return self._sub_envs.call(method_name, self._slots(indices), *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type, indices: Indices = None) -> list[bool]:
        """True for ``Monitor`` too, whose statistics the adapter gives."""
        slots = self._slots(indices)
        if wrapper_class is Monitor or any(isinstance(layer, wrapper_class) for layer in layers(self.env)):
            return [True] * len(slots)
        return self._sub_envs.wrapped_with(wrapper_class, slots)

    def get_images(self) -> Sequence[np.ndarray | None]:
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode={self.render_mode!r} gives no images: it must be 'rgb_array'", stacklevel=2)
            return [None] * self.num_envs
        frames: Any = self.env.render()
        return list(frames)

    def _slots(self, indices: Indices) -> list[int]:
        return [int(i) for i in self._get_indices(indices)]


_RESTARTS: dict[AutoresetMode, Callable[..., None]] = {
    AutoresetMode.SAME_STEP: VectorEnvAdapter._restart_in_step,
    AutoresetMode.NEXT_STEP: VectorEnvAdapter._restart_by_mask,
    AutoresetMode.DISABLED: VectorEnvAdapter._restart_by_mask,
}


def _typed(space: spaces.Space, values: Any, copy: bool, batch: tuple[int, ...] = ()) -> Any:
    """``values`` in the dtype of ``space``, checked to have the shape ``batch + space.shape``."""
    if isinstance(space, spaces.Dict):
        return {name: _typed(part, values[name], copy, batch) for name, part in space.items()}
    array = np.array(values, dtype=space.dtype, order="C") if copy else np.asarray(values, dtype=space.dtype)
    shape = batch + (space.shape or ())
    if array.shape != shape:
        raise ValueError(f"the environment returned observations of shape {array.shape}, but {space} needs {shape}")
    return array


def _rows(batch: Any, index: Any) -> Any:
    """``batch[index]``, part by part for dicts; rows under an index array are copies."""
    if isinstance(batch, dict):
        return {name: _rows(part, index) for name, part in batch.items()}
    return batch[index]


def _overwrite(batch: Any, new: Any, slots: np.ndarray) -> None:
    """``batch[slots] = new[slots]``, part by part for dicts."""
    if isinstance(batch, dict):
        for name, part in batch.items():
            _overwrite(part, new[name], slots)
    else:
        batch[slots] = np.asarray(new)[slots]


def _check_spaces(env: VectorEnv) -> None:
    observation = env.single_observation_space
    parts = list(observation.values()) if isinstance(observation, spaces.Dict) else [observation]
    names = ", ".join(cls.__name__ for cls in _SUPPORTED_SPACES)
    if not all(isinstance(part, _SUPPORTED_SPACES) for part in parts):
        raise TypeError(f"observation space {observation}: it must be one of {names}, or a Dict of these, not nested")
    if not isinstance(env.single_action_space, _SUPPORTED_SPACES):
        raise TypeError(f"action space {env.single_action_space}: it must be one of {names}")
