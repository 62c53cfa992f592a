"""Tiny environments whose behaviour is known beforehand: one that every algorithm can learn, and broken ones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_pg_ext.spec import ActionSpaceName

Array = np.ndarray[Any, Any]
ObservationName = Literal["vector", "float64", "matrix", "discrete", "multi_discrete", "multi_binary", "image", "dict"]
Fault = Literal[
    "nan reward",
    "inf reward",
    "-inf reward",
    "nan observation",
    "inf observation",
    "short observation",
    "broadcast observation",
    "vector reward",
    "no reward",
    "error",
]

#: One small space of each supported kind. The Box is neither symmetric nor alike in its two entries.
ACTION_SPACES: dict[ActionSpaceName, spaces.Space[Any]] = {
    "Box": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32)),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(3),
}
#: Images are as small as Stable-Baselines3's convolutional network takes them, with the channel last.
OBSERVATION_SPACES: dict[ObservationName, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "float64": spaces.Box(-1, 1, (3,), np.float64),
    "matrix": spaces.Box(-1, 1, (2, 3)),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
    "dict": spaces.Dict({"vector": spaces.Box(-1, 1, (2,)), "discrete": spaces.Discrete(3)}),
}


class Echo(gym.Env[Any, Any]):
    """What is seen is to be done: a number u, uniform in [0, 1), is shown in one space and to be repeated in another.

    u is drawn anew at every step and stands in a space as :func:`encode` says. The reward is 1 for the action that
    stands for u and falls to 0 for the one that is furthest from it, so a perfect policy gets ``length`` in an episode.
    Actions have no influence on what follows.

    :param action: name in :data:`ACTION_SPACES`, or a space
    :param observation: name in :data:`OBSERVATION_SPACES`, or a space
    :param length: steps of every episode; None never ends one
    :param reward: given, this is the reward of every step
    :param scale: what rewards are multiplied by
    :param truncates: whether episodes are cut by a time limit instead of ending in a terminal state

    ``info["is_success"]`` of the last step is true for the first, third, ... episode. ``steps``, ``episodes`` (whole
    ones) and ``resets`` count what was ever done. An action outside its space is a ValueError.
    """

    def __init__(
        self,
        action: ActionSpaceName | spaces.Space[Any] = "Box",
        observation: ObservationName | spaces.Space[Any] = "vector",
        *,
        length: int | None = 8,
        reward: float | None = None,
        scale: float = 1.0,
        truncates: bool = False,
    ):
        self.action_space = ACTION_SPACES[action] if isinstance(action, str) else action
        self.observation_space = OBSERVATION_SPACES[observation] if isinstance(observation, str) else observation
        self.length, self.reward, self.scale, self.truncates = length, reward, scale, truncates
        self.steps = self.episodes = self.resets = self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.resets += 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} of type {type(action).__name__} is not in {self.action_space}")
        reward = self.scale * (likeness(self.action_space, action, self.u) if self.reward is None else self.reward)
        self.time += 1
        self.steps += 1
        over = self.time == self.length
        info = {"is_success": self.episodes % 2 == 0} if over else {}
        self.episodes += over
        return self._observe(), reward, over and not self.truncates, over and self.truncates, info

    def _observe(self) -> Any:
        self.u = self.np_random.random()
        return encode(self.observation_space, self.u)


def encode(space: spaces.Space[Any], u: float) -> Any:
    """The element of ``space`` that stands for u in [0, 1): a Box between its bounds, numbers in u's proportion."""
    match space:
        case spaces.Box():
            return (space.low + u * (space.high.astype(float) - space.low)).astype(space.dtype)
        case spaces.Discrete():
            return np.int64(space.start + int(u * space.n))
        case spaces.MultiDiscrete():
            return (u * space.nvec).astype(space.dtype)
        case spaces.MultiBinary():
            return np.full(space.shape, u >= 0.5, np.int8)
        case spaces.Dict():
            return {name: encode(part, u) for name, part in space.items()}
    raise TypeError(f"{space}: a Box, Discrete, MultiDiscrete, MultiBinary or Dict of such is needed")


def likeness(space: spaces.Space[Any], action: Any, u: float) -> float:
    """1 for the action that stands for u, 0 for the furthest one; the share of equal entries if they are numbers."""
    target = encode(space, u)
    if isinstance(space, spaces.Box):
        return float(1 - np.mean(np.abs(action - target) / (space.high - space.low)))
    return float(np.mean(action == target))


def _raise() -> Any:
    raise RuntimeError("the motor is stuck")


#: Fault -> (observation, reward) as the broken environment returns them, of those that it should return.
FAULTS: dict[Fault, Callable[[Array, float], tuple[Any, Any]]] = {
    "nan reward": lambda obs, reward: (obs, np.nan),
    "inf reward": lambda obs, reward: (obs, np.inf),
    "-inf reward": lambda obs, reward: (obs, -np.inf),
    "nan observation": lambda obs, reward: (np.where(np.arange(len(obs)) == 1, np.nan, obs), reward),
    "inf observation": lambda obs, reward: (np.where(np.arange(len(obs)) == 1, np.inf, obs), reward),
    "short observation": lambda obs, reward: (obs[:-1], reward),
    "broadcast observation": lambda obs, reward: (obs[:1], reward),
    "vector reward": lambda obs, reward: (obs, np.full(2, reward)),
    "no reward": lambda obs, reward: (obs, None),
    "error": lambda obs, reward: _raise(),
}
RESET_FAULTS: tuple[Fault, ...] = tuple(fault for fault in get_args(Fault) if "reward" not in fault)


class Faulty(gym.Wrapper[Any, Any, Any, Any]):
    """Goes wrong once, as :data:`FAULTS` says, and is healthy before and after.

    :param env: an environment with a flat Box to look at
    :param fault: what goes wrong
    :param when: in which step, counted from 1 over all episodes; or in which reset
    :param call: ``"step"`` or ``"reset"``
    """

    def __init__(self, env: gym.Env[Any, Any], fault: Fault, when: int = 5, call: Literal["step", "reset"] = "step"):
        super().__init__(env)
        self.fault, self.left = FAULTS[fault], {"step": 0, "reset": 0, call: when}

    def _strikes(self, call: str) -> bool:
        self.left[call] -= 1
        return self.left[call] == 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return (self.fault(obs, 0.0)[0] if self._strikes("reset") else obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._strikes("step"):
            obs, reward = self.fault(obs, float(reward))
        return obs, reward, terminated, truncated, info


EnvName = Literal["dummy", "subproc", "native"]


def several(make: Callable[[], gym.Env[Any, Any]], n_envs: int, kind: EnvName = "dummy") -> Any:
    """``n_envs`` copies of an environment.

    :param make: gives one of them
    :param kind: in turn in a DummyVecEnv, each in a process, or as a gymnasium ``VectorEnv``
    """
    if kind == "native":
        return SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    monitored = partial(_monitored, make)
    if kind == "dummy":
        return DummyVecEnv([monitored] * n_envs)
    # Forked workers start at once; elsewhere they import everything again.
    start = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    return SubprocVecEnv([monitored] * n_envs, start_method=start)


def _monitored(make: Callable[[], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    return Monitor(make())


def total_steps(env: VecEnv) -> int:
    """Steps that the :class:`Echo` environments in ``env`` were ever asked for."""
    return sum(env.get_attr("steps"))
