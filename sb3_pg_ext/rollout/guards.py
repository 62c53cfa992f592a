"""What must not pass silently: numbers that are not finite, and errors that do not say where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

Array = np.ndarray[Any, Any]
_LARGEST = float(np.finfo(np.float32).max)
_SMALL_SQUARES = 1e38  # none of the numbers is beyond 1e19 then, and none is NaN


class NonFiniteError(ValueError):
    """NaN or infinity in an observation, a reward, a policy's output or an update.

    The parameters are those before the faulty step.
    """


def all_finite(x: Array) -> bool:
    """Whether every number in ``x`` is finite, also in float32."""
    if x.dtype.kind != "f" or (x.itemsize in (4, 8) and np.vdot(x, x) < _SMALL_SQUARES):  # quick, and mostly enough
        return True
    return np.count_nonzero(_finite(x)) == x.size


def _finite(x: Array) -> Array:
    finite: Array = np.isfinite(x) if x.itemsize <= 4 else np.abs(x) <= _LARGEST
    return finite


def check_observations(obs: Any, where: str) -> None:
    """:raises NonFiniteError: naming the env, the entry and its value

    :param obs: (N, ...) or a dict of such
    """
    for part, array in _parts(obs, "observation"):
        if not all_finite(array):
            env, *index = bad = _first_bad(array)
            raise NonFiniteError(
                f"The {part} of env {env} has {array[bad]} at index {index} {where}. "
                "The environment must return finite observations (in float32); nothing was learned from this step."
            )


def check_last_observation(obs: Any, env: int, where: str) -> None:
    """:raises NonFiniteError: naming the entry and its value

    :param obs: of the last step of an episode of one env, without a leading axis
    """
    for part, array in _parts(obs, "last observation"):
        if not all_finite(array := np.asarray(array)):
            bad = _first_bad(array)
            raise NonFiniteError(
                f"The {part} of an episode of env {env} has {array[bad]} at index {list(bad)} {where}. "
                "The environment must return finite observations (in float32); nothing was learned from this step."
            )


def check_rewards(rewards: Array, where: str) -> None:
    """:raises NonFiniteError: naming the env and the value

    :param rewards: (N,)
    """
    if not all_finite(rewards):
        (env,) = _first_bad(rewards)
        raise NonFiniteError(
            f"The reward of env {env} is {rewards[env]} {where}. "
            "The environment must return finite rewards (in float32); nothing was learned from this step."
        )


def check_input(obs: Any) -> None:
    """:raises NonFiniteError: an observation that an action is asked for holds NaN or infinity"""
    if isinstance(obs, tuple):
        return  # what gymnasium's reset() returns; Stable-Baselines3 explains that mistake
    for part, values in _parts(obs, "observation"):
        array = np.asarray(values)
        if not all_finite(array):
            bad = _first_bad(array)
            raise NonFiniteError(f"The {part} given to predict() has {array[bad]} at index {list(bad)}.")


def largest(obs: Any) -> float:
    """The largest absolute value in an observation; 0 without one."""
    arrays = [np.abs(np.asarray(part, dtype=np.float64)) for _, part in _parts(obs, "") if part is not None]
    return max((float(array.max(initial=0.0)) for array in arrays), default=0.0)


def _parts(obs: Any, name: str) -> list[tuple[str, Any]]:
    return [(f"{name}[{key!r}]", part) for key, part in obs.items()] if isinstance(obs, Mapping) else [(name, obs)]


def _first_bad(array: Array) -> tuple[int, ...]:
    return tuple(np.argwhere(~_finite(array))[0].tolist())


def step(stepper: Callable[[Array], Any], env: VecEnv, actions: Array, num_timesteps: int) -> Any:
    """``stepper(actions)``; an error that the env raises says at which step, and a dead worker says that it died."""
    try:
        return stepper(actions)
    except Exception as error:
        raise explained(error, "step()", env, num_timesteps)  # noqa: B904  (it is the same error, or has its cause)


def reset(env: VecEnv, num_timesteps: int) -> Any:
    """``env.reset()``, checked and explained as :func:`step`."""
    try:
        obs = env.reset()
    except Exception as error:
        raise explained(error, "reset()", env, num_timesteps)  # noqa: B904
    check_observations(obs, f"after reset() at step {num_timesteps}")
    return obs


def explained(error: Exception, call: str, env: VecEnv, num_timesteps: int) -> Exception:
    """``error`` with a note that says where it comes from, or what stands for a worker process that gives no error.

    :param error: what ``env`` has raised
    :param call: which of its methods
    :param num_timesteps: env steps before
    """
    if isinstance(error, (EOFError, BrokenPipeError, ConnectionResetError)) and type(env.unwrapped) is not DummyVecEnv:
        dead = RuntimeError(
            f"A worker process of {type(env.unwrapped).__name__} died in {call} after {num_timesteps} steps; "
            "its own traceback, if it left one, is printed above. Run the same env in a DummyVecEnv to see the error."
        )
        dead.__cause__ = error
        return dead
    note = f"Raised by the environment in {call} after {num_timesteps} steps."
    if isinstance(error, (TypeError, ValueError)):
        note += (
            " If the error is about types or shapes: reset() must return (observation, info), and step() (observation, "
            "reward, terminated, truncated, info): an observation of the space's shape, and an info that is a dict. "
            f"observation_space={env.observation_space}, action_space={env.action_space}."
        )
    elif call == "reset()" and _refuses_early_resets(env):
        note += (
            " This algorithm resets environments in mid-episode: "
            "they need Monitor(env, allow_early_resets=True), which is the default."
        )
    error.add_note(note)
    return error


def _refuses_early_resets(env: VecEnv) -> bool:
    try:
        return not all(env.get_attr("allow_early_resets"))
    except Exception:
        return False  # no Monitor, or nothing answers any more


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses observations of another shape than the space's, and rewards and flags that are no single ones.

    A vectorised env would broadcast or convert them into its buffers without a word.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        space = env.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        self._shapes = {key: part.shape for key, part in parts.items() if part.shape is not None}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        check_shapes(obs, self._shapes)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        check_shapes(obs, self._shapes)
        check_reward(reward)
        if terminated or truncated:
            check_flags(terminated, truncated)
        return obs, reward, terminated, truncated, info


def check_shapes(obs: Any, shapes: Mapping[Any, tuple[int, ...]]) -> None:
    """:raises ValueError: a part of the observation has another shape

    :param shapes: of each part of an observation; the key None stands for one that has no parts
    """
    for key, shape in shapes.items():
        part = obs if key is None else obs[key]
        if np.shape(part) != shape:
            name = "observation" if key is None else f"observation[{key!r}]"
            raise ValueError(f"The {name} has shape {np.shape(part)}, but its space has shape {shape}: {part!r}")


def check_reward(reward: Any) -> None:
    """:raises ValueError: no single number"""
    if not isinstance(reward, (float, int, np.number, np.bool_)) and (
        np.ndim(reward) != 0 or not hasattr(reward, "__float__")
    ):
        raise ValueError(f"reward={reward!r} from step(): a single number is needed")


def check_flags(terminated: Any, truncated: Any) -> None:
    """:raises ValueError: one of the two is neither true nor false, such as NaN"""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if np.size(flag) != 1 or flag not in (0, 1):
            raise ValueError(f"{name}={flag!r} from step(): True or False is needed")
