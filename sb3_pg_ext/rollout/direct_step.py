"""Stepping the envs of a ``DummyVecEnv`` without its deep copies, which cost as much as a cheap environment."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_pg_ext.rollout.guards import check_flags, check_reward, check_shapes
from sb3_pg_ext.rollout.vector_adapter import VectorEnvAdapter

Array = np.ndarray[Any, Any]
_NO_NEWS: dict[str, Any] = {}
StepReturn = tuple[Any, Array, Array, list[dict[str, Any]]]


def stepper(env: VecEnv, quiet: bool = False) -> Callable[[Array], StepReturn]:
    """``env.step``, or for a bare ``DummyVecEnv`` or :class:`VectorEnvAdapter` an equal that is faster.

    Slots of an adapter that are in mid-episode share one info dict, unless the environment has infos of its own. The
    results of a ``DummyVecEnv`` are those of its ``step`` in fresh arrays and fresh info dicts; only what lies *inside*
    an info dict is the environment's own object instead of a deep copy. What it would broadcast or convert without a
    word is refused: observations of another shape than the space's, rewards that are no single number, flags that are
    neither true nor false. Wrappers and subclasses keep their own ``step``.

    :param quiet: for callers that look at infos of slots that are done only, and at everything before the next step:
        then there need not be other infos, and :meth:`VectorEnvAdapter.step_quietly` is taken
    """
    if type(env) is VectorEnvAdapter:
        return env.step_quietly if quiet else env.step_with_shared_infos
    if type(env) is not DummyVecEnv or isinstance(env.observation_space, spaces.Tuple):
        return env.step
    envs, buffers, is_dict = env.envs, env.buf_obs, isinstance(env.observation_space, spaces.Dict)
    shapes: dict[Any, tuple[int, ...]] = {key: buffer.shape[1:] for key, buffer in buffers.items()}

    def step(actions: Array) -> StepReturn:
        observations: dict[Any, Array] = {key: np.empty_like(buffer) for key, buffer in buffers.items()}
        whole = observations.get(None)
        rewards, dones = np.empty(len(envs), np.float32), np.zeros(len(envs), np.bool_)
        infos: list[dict[str, Any]] = [_NO_NEWS] * len(envs)
        for i, one in enumerate(envs):
            obs, reward, terminated, truncated, info = one.step(actions[i])
            if is_dict or type(obs) is not np.ndarray or obs.shape != shapes[None]:
                check_shapes(obs, shapes)
            if type(reward) is not float:
                check_reward(reward)
            rewards[i] = reward
            if not quiet or terminated or truncated:
                infos[i] = info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                check_flags(terminated, truncated)
                dones[i] = True
                # A copy, since an env may write its next first observation into the same array.
                info["terminal_observation"] = deepcopy(obs)
                obs, env.reset_infos[i] = one.reset()
                check_shapes(obs, shapes)
            if whole is not None:
                whole[i] = obs
            else:
                for key, array in observations.items():
                    array[i] = obs[key]
        return observations if whole is None else whole, rewards, dones, infos

    return step
