"""Stepping the envs of a ``DummyVecEnv`` without its deep copies, which cost as much as a cheap environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

Array = np.ndarray[Any, Any]
StepReturn = tuple[Any, Array, Array, list[dict[str, Any]]]


def stepper(env: VecEnv) -> Callable[[Array], StepReturn]:
    """``env.step``, or for a bare ``DummyVecEnv`` an equal that is faster.

    The results are those of ``DummyVecEnv.step`` in fresh arrays and fresh info dicts; only what lies *inside* an info dict
    is the environment's own object instead of a deep copy. Wrappers and subclasses keep their own ``step``.
    """
    if type(env) is not DummyVecEnv or isinstance(env.observation_space, spaces.Tuple):
        return env.step  # type: ignore[return-value]
    envs, buffers, is_dict = env.envs, env.buf_obs, isinstance(env.observation_space, spaces.Dict)

    def step(actions: Array) -> StepReturn:
        observations: dict[Any, Array] = {key: np.empty_like(buffer) for key, buffer in buffers.items()}
        rewards, dones = np.empty(len(envs), np.float32), np.zeros(len(envs), np.bool_)
        infos: list[dict[str, Any]] = []
        for i, one in enumerate(envs):
            obs, rewards[i], terminated, truncated, info = one.step(actions[i])
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            if terminated or truncated:
                dones[i] = True
                info["terminal_observation"] = obs
                obs, env.reset_infos[i] = one.reset()
            infos.append(info)
            for key, array in observations.items():
                array[i] = obs if key is None else obs[key]
        return observations if is_dict else observations[None], rewards, dones, infos

    return step
