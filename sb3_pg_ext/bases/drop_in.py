"""What every algorithm of this package adds to its Stable-Baselines3 base class."""

from __future__ import annotations

import math
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.bases.model_file import load_model, save_model
from sb3_pg_ext.bases.options import full_signature
from sb3_pg_ext.rollout.guards import CheckedEnv
from sb3_pg_ext.rollout.vector_env import as_vec_env


class DropIn(BaseAlgorithm):
    """Atomic saving, loading without executing the file, native vector envs, a generator of its own, early errors."""

    rng: np.random.Generator
    _rng_state: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = full_signature(cls)  # type: ignore[attr-defined]

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.Env):
            env = CheckedEnv(env)
        elif not isinstance(env, VecEnv):
            env = as_vec_env(env)
        env = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        start = int(getattr(env.action_space, "start", 0)) if isinstance(env.action_space, spaces.Discrete) else 0
        if start != 0:
            raise ValueError(
                f"action_space={env.action_space}: Stable-Baselines3 policies give actions from 0 on; "
                f"wrap the environment in one that adds {start} to the action"
            )
        return env

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed python, numpy, torch, the action space, the env's next reset, and the exploration noise."""
        super().set_random_seed(seed)
        self.rng = np.random.default_rng(seed)

    def _restore_rng(self) -> None:
        """Continue a loaded model's noise where it was, instead of replaying it from the seed."""
        if self._rng_state is not None:
            self.rng.bit_generator.state = self._rng_state
            self._rng_state = None

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Save to a zip file that Stable-Baselines3 can read as well.

        An old file of this name stays whole until the new one is complete, whatever happens in between.

        :param path: where; ``.zip`` is added if it has no suffix
        :param exclude: attributes to leave out in addition to the default ones
        :param include: attributes to keep although they are left out by default
        """
        self._rng_state = dict(self.rng.bit_generator.state)
        try:
            save_model(self, path, exclude, include)
        finally:
            self._rng_state = None

    @classmethod
    def load(
        cls, path: Any, env: Any = None, device: Any = "auto", *args: Any, trusted: bool = False, **kwargs: Any
    ) -> Self:
        """Load a model without executing anything that the file holds.

        :param path: the file, with or without ``.zip``, or a file object
        :param env: a new environment; may be left out for prediction
        :param device: where the parameters go
        :param trusted: unpickle everything in the file, as Stable-Baselines3 does; only for files that you trust
        :param kwargs: ``custom_objects``, ``print_system_info``, ``force_reset``, and attributes to replace
        :raises UnsafeModelError: the file holds something that is not on the list of harmless classes
        """
        return load_model(cls, path, env, device, *args, trusted=trusted, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rng"]


def check_total_timesteps(value: Any) -> None:
    """:raises ValueError: not a finite number >= 0"""
    if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value >= 0):
        raise ValueError(f"total_timesteps={value!r}: a number of env steps >= 0 is needed")
