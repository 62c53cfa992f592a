"""Whatever a user has as an environment, as a Stable-Baselines3 ``VecEnv``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import is_wrapped, make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_pg_ext.rollout.autoreset import PARTIAL_RESET, register_partial_reset
from sb3_pg_ext.rollout.envpool import is_envpool
from sb3_pg_ext.rollout.vector_adapter import VectorEnvAdapter

__all__ = ["PARTIAL_RESET", "VectorEnvAdapter", "as_vec_env", "register_partial_reset"]

VecEnvName = Literal["dummy", "subproc", "native"]


def as_vec_env(
    env: Any, *, n_envs: int | None = None, seed: int | None = None, vec_env: VecEnvName = "dummy"
) -> VecEnv:
    """What a user has as an environment, as a Stable-Baselines3 ``VecEnv`` that reports episodes.

    ===================================  ===================================================================
    ``env``                              result
    ===================================  ===================================================================
    environment id                       ``n_envs`` copies (one by default), run as ``vec_env`` says
    function or class that gives an env  the same; without ``n_envs`` it may also give any of those below
    ``gymnasium.Env``                    ``Monitor``, unless it has one, in a ``DummyVecEnv``
    gymnasium ``VectorEnv``              :class:`VectorEnvAdapter`
    EnvPool environment                  :class:`VectorEnvAdapter`
    Stable-Baselines3 ``VecEnv``         the same object
    ===================================  ===================================================================

    :param n_envs: number N of environments; for one that exists already it must agree
    :param seed: seeds the next reset, slot i with ``seed + i``; native environments have one generator for all slots
    :param vec_env: how copies are run: ``"dummy"`` in turn, ``"subproc"`` in processes, both monitored; ``"native"``
        is the one vectorised environment that the id is registered with (``vector_entry_point``)
    :raises TypeError: ``env`` is none of these
    :raises ValueError: an unknown ``vec_env``, an ``n_envs`` that does not agree, or one that cannot be adapted
    """
    if vec_env not in _COPIES:
        raise ValueError(f"vec_env={vec_env!r}: allowed are {', '.join(map(repr, get_args(VecEnvName)))}")
    if n_envs is not None and n_envs < 1:
        raise ValueError(f"n_envs={n_envs}: at least 1 environment is needed")
    if isinstance(env, str):
        return _COPIES[vec_env](env, n_envs or 1, seed)
    if isinstance(env, (VecEnv, VectorEnv, gym.Env)) or is_envpool(env):
        return _existing(env, n_envs, seed, vec_env)
    if callable(env):
        return _from_function(env, n_envs, seed, vec_env)
    raise TypeError(
        f"env={env!r} of type {type(env).__name__}: allowed are an environment id, a gymnasium.Env, a function that "
        "returns one, a gymnasium VectorEnv, an EnvPool environment and a Stable-Baselines3 VecEnv"
    )


def _existing(env: Any, n_envs: int | None, seed: int | None, vec_env: str) -> VecEnv:
    name = type(env).__name__
    if vec_env != "dummy":
        raise ValueError(f"vec_env={vec_env!r} is for copies of an environment id or a function, but a {name} exists")
    size = env.num_envs if isinstance(env, (VecEnv, VectorEnv)) else 1
    if n_envs not in (None, size):
        raise ValueError(f"n_envs={n_envs}, but the {name} has {size}: leave n_envs out, or pass an id or a function")
    adapted = _adapted(env)
    if seed is not None:
        adapted.seed(seed)
    return adapted


def _adapted(env: Any) -> VecEnv:
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, VectorEnv) or is_envpool(env):
        return VectorEnvAdapter(env)
    monitored = env if is_wrapped(env, Monitor) else Monitor(env)
    return DummyVecEnv([lambda: monitored])


def _from_function(function: Callable[[], Any], n_envs: int | None, seed: int | None, vec_env: str) -> VecEnv:
    if vec_env == "native":
        raise ValueError("vec_env='native' needs an environment id, not a function")
    if n_envs is None and vec_env == "dummy":
        return as_vec_env(function(), seed=seed)
    return _COPIES[vec_env](partial(_single, function), n_envs or 1, seed)


def _single(function: Callable[[], Any]) -> gym.Env:
    env = function()
    if not isinstance(env, gym.Env) or is_envpool(env):
        raise TypeError(f"{function!r} returned a {type(env).__name__}, but copies are made of a gymnasium.Env only")
    return env


def _native(env_id: str, n_envs: int, seed: int | None) -> VecEnv:
    if gym.spec(env_id).vector_entry_point is None:
        raise ValueError(f"vec_env='native': {env_id!r} has no vector_entry_point; use 'dummy' or 'subproc'")
    return as_vec_env(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point"), seed=seed)


_COPIES: dict[str, Callable[..., VecEnv]] = {
    "dummy": partial(make_vec_env, vec_env_cls=DummyVecEnv),
    "subproc": partial(make_vec_env, vec_env_cls=SubprocVecEnv),
    "native": _native,
}
