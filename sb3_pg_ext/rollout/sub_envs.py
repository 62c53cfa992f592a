"""Attributes and methods of the single environments inside a gymnasium vector environment, by slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped

from sb3_pg_ext.rollout.autoreset import layers

_BARRED = frozenset({"reset", "step", "close"})


class SubEnvs(Protocol):
    """How the slots ``indices`` of a vector environment are reached."""

    def get(self, name: str, indices: Sequence[int]) -> list[Any]: ...

    def set(self, name: str, value: Any, indices: Sequence[int]) -> None: ...

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]: ...

    def wrapped_with(self, cls: type, indices: Sequence[int]) -> list[bool]: ...


def sub_envs(env: VectorEnv) -> SubEnvs:
    """The way to the single environments that ``env`` allows."""
    if isinstance(env.unwrapped, SyncVectorEnv):
        return _InProcess(env.unwrapped)
    if isinstance(env.unwrapped, AsyncVectorEnv):
        return _InWorkers(env.unwrapped)
    return _Native(env)


class _InProcess:
    """The environments of a ``SyncVectorEnv``, each on its own."""

    def __init__(self, env: SyncVectorEnv):
        self.envs = env.envs

    def get(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [self.envs[i].get_wrapper_attr(name) for i in indices]

    def set(self, name: str, value: Any, indices: Sequence[int]) -> None:
        for i in indices:
            self.envs[i].set_wrapper_attr(name, value)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        return [self.envs[i].get_wrapper_attr(name)(*args, **kwargs) for i in indices]

    def wrapped_with(self, cls: type, indices: Sequence[int]) -> list[bool]:
        return [is_wrapped(self.envs[i], cls) for i in indices]


class _InWorkers:
    """The environments of an ``AsyncVectorEnv``, which answer all together."""

    def __init__(self, env: AsyncVectorEnv):
        self.env = env

    def get(self, name: str, indices: Sequence[int]) -> list[Any]:
        # A worker that is asked for what it does not have dies.
        if not all(self.env.call("has_wrapper_attr", name)):
            raise AttributeError(f"the environments of the AsyncVectorEnv have no attribute {name!r}")
        values = self.env.get_attr(name)
        return [values[i] for i in indices]

    def set(self, name: str, value: Any, indices: Sequence[int]) -> None:
        _require_all("set_attr", name, indices, self.env)
        self.env.set_attr(name, [value] * self.env.num_envs)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        _require_all("env_method", name, indices, self.env)
        if name in _BARRED or not all(self.env.call("has_wrapper_attr", name)):
            raise AttributeError(f"the environments of the AsyncVectorEnv have no method {name!r} that can be called")
        return list(self.env.call(name, *args, **kwargs))

    def wrapped_with(self, cls: type, indices: Sequence[int]) -> list[bool]:
        # Workers do not answer for classes, but print as <ClipReward<TimeLimit<CartPoleEnv instance>>>.
        names = self.env.call("__str__")
        return [f"<{cls.__name__}<" in names[i] for i in indices]


class _Native:
    """A vector environment that is one object: each slot has its attributes, and its methods are called once."""

    def __init__(self, env: VectorEnv):
        self.env = env

    def get(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [getattr(self._owner(name), name)] * len(indices)

    def set(self, name: str, value: Any, indices: Sequence[int]) -> None:
        _require_all("set_attr", name, indices, self.env)
        setattr(self._owner(name, default=self.env.unwrapped), name, value)

    def call(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        _require_all("env_method", name, indices, self.env)
        return [getattr(self._owner(name), name)(*args, **kwargs)] * len(indices)

    def wrapped_with(self, cls: type, indices: Sequence[int]) -> list[bool]:
        return [False] * len(indices)

    def _owner(self, name: str, default: VectorEnv | None = None) -> VectorEnv:
        owner = next((layer for layer in layers(self.env) if hasattr(layer, name)), default)
        if owner is None:
            raise AttributeError(f"{self.env} has no attribute {name!r}")
        return owner


def _require_all(action: str, name: str, indices: Sequence[int], env: VectorEnv) -> None:
    if sorted(indices) != list(range(env.num_envs)):
        raise ValueError(
            f"{action}({name!r}) with indices={list(indices)}: {type(env.unwrapped).__name__} can only do this for all "
            f"{env.num_envs} environments at once (indices=None)"
        )
