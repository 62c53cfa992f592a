"""What must not pass silently: non-finite numbers from an environment, and errors that do not say where they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

Array = np.ndarray[Any, Any]


class NonFiniteError(ValueError):
    """NaN or infinity in an observation, a reward or an update. The parameters are those before the faulty step."""


def all_finite(x: Array) -> bool:
    """Whether every number in ``x`` is finite; one dot product unless the squares overflow."""
    if x.dtype.kind != "f":
        return True
    flat = x.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(flat).all())


def check_observations(obs: Any, where: str) -> None:
    """:raises NonFiniteError: naming the env, the entry and its value"""
    for key, array in obs.items() if isinstance(obs, Mapping) else [(None, obs)]:
        if not all_finite(array):
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            part = f"observation[{key!r}]" if key is not None else "observation"
            raise NonFiniteError(
                f"The {part} of env {index[0]} has {array[index]} at index {index[1:]} {where}. "
                "The environment must return finite observations; nothing was learned from this step."
            )


def check_rewards(rewards: Array, where: str) -> None:
    """:raises NonFiniteError: naming the env and the value"""
    if not all_finite(rewards):
        index = int(np.argmin(np.isfinite(rewards)))
        raise NonFiniteError(
            f"The reward of env {index} is {rewards[index]} {where}. "
            "The environment must return finite rewards (in float32); nothing was learned from this step."
        )


def step(stepper: Callable[[Array], Any], env: VecEnv, actions: Array, num_timesteps: int) -> Any:
    """``stepper(actions)``; an error that the env raises says at which step, and a dead worker says that it died."""
    try:
        return stepper(actions)
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise RuntimeError(
            f"A worker process of {type(env.unwrapped).__name__} died in step() after {num_timesteps} steps; "
            "its own traceback, if it left one, is printed above. Run the same env in a DummyVecEnv to see the error."
        ) from error
    except Exception as error:
        error.add_note(_origin("step()", env, num_timesteps))
        raise


def reset(env: VecEnv, num_timesteps: int) -> Any:
    """``env.reset()``, checked and explained as :func:`step`."""
    try:
        obs = env.reset()
    except Exception as error:
        error.add_note(_origin("reset()", env, num_timesteps))
        raise
    check_observations(obs, f"after reset() at step {num_timesteps}")
    return obs


def _origin(call: str, env: VecEnv, num_timesteps: int) -> str:
    return (
        f"Raised by the environment in {call} after {num_timesteps} steps. Its spaces are "
        f"observation_space={env.observation_space}, action_space={env.action_space}; "
        "an error about shapes usually means that it returned an observation of another shape."
    )


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses observations of another shape than the space's and rewards that are no single number.

    A vectorised env would broadcast them into its buffer without a word.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        space = env.observation_space
        self._shape = space.shape if isinstance(space, spaces.Box) else None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._check(obs, "reset()")
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._check(obs, "step()")
        if np.ndim(reward) != 0 or not isinstance(reward, (int, float, np.number, np.bool_, np.ndarray)):
            raise ValueError(f"reward={reward!r} from step(): a single number is needed")
        return obs, reward, terminated, truncated, info

    def _check(self, obs: Any, call: str) -> None:
        if self._shape is not None and np.shape(obs) != self._shape:
            raise ValueError(
                f"The observation from {call} has shape {np.shape(obs)}, but observation_space has shape {self._shape}"
            )
