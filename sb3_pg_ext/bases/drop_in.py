"""What every algorithm of this package adds to its Stable-Baselines3 base class."""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext.bases.acceptance import check_policy_class, check_policy_fits, check_row, check_spaces, policy_named
from sb3_pg_ext.bases.model_file import load_model, save_model
from sb3_pg_ext.bases.options import check_flags, full_signature
from sb3_pg_ext.rollout import guards
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.vector_env import as_vec_env

#: Larger observations are to be suspected where a gradient is not finite: losses have their fourth power in them.
LARGE_OBSERVATION = 1e9


class DropIn(BaseAlgorithm):
    """Atomic saving, loading without executing the file, native vector envs, a generator of its own, early errors."""

    #: What a policy class must be derived from; if empty, from one of those in ``policy_aliases``.
    policy_bases: ClassVar[tuple[type[BasePolicy], ...]] = ()
    #: Whether ``MultiDiscrete`` and ``MultiBinary`` actions must stand in one row.
    flat_actions: ClassVar[bool] = True
    rng: np.random.Generator
    _rng_state: dict[str, Any] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Before anything is built: what shall be true or false must be."""
        check_flags(cls, dict(zip(inspect.signature(cls).parameters, args, strict=False)) | kwargs)
        return super().__new__(cls)

    def __init__(self, policy: Any, *args: Any, **kwargs: Any):
        check_policy_class(policy, self.policy_bases or self.policy_aliases.values(), self.policy_aliases)
        super().__init__(policy, *args, **kwargs)
        if self.env is not None:
            check_policy_fits(self.policy_class, self.policy_aliases, self.policy_kwargs, self.observation_space)
            if self.flat_actions:
                check_row("action", self.action_space)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = full_signature(cls)  # type: ignore[attr-defined]

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.Env):
            env = guards.CheckedEnv(env)
        elif not isinstance(env, VecEnv):
            env = as_vec_env(env)
        env = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_spaces(env.observation_space, env.action_space)
        return env

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        return policy_named(type(self).__name__, policy_name, self.policy_aliases)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed python, numpy, torch, the action space, the env's next reset, and the exploration noise."""
        super().set_random_seed(seed)
        self.rng = np.random.default_rng(seed)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """As upstream's, but never below 0: the last rollout may go past the total, and a schedule with it."""
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

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
        :param kwargs: ``custom_objects``, ``print_system_info``, ``force_reset``, ``allow`` (further classes that the
            file may hold), and attributes to replace
        :raises UnsafeModelError: the file holds something that is not on the list of harmless classes
        :raises ModelFileError: the file is damaged, or holds a model of another class
        :raises TypeError: one of ``kwargs`` is neither an argument nor an attribute
        """
        return load_model(cls, path, env, device, *args, trusted=trusted, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "rng"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """As the parent's; an error of the env's first ``reset()`` says where it comes from."""
        resets, before = reset_num_timesteps or self._last_obs is None, self._last_obs
        try:
            prepared = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        except Exception as error:
            if resets and self._last_obs is before and self.env is not None:
                raise guards.explained(error, "reset()", self.env, self.num_timesteps)  # noqa: B904
            raise
        if resets:
            try:
                guards.check_observations(self._last_obs, f"after reset() at step {self.num_timesteps}")
            except NonFiniteError:
                self._last_obs = None  # the next learn() resets again
                raise
        return prepared

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        self._scheduled("learning_rate", self.lr_schedule)
        super()._update_learning_rate(optimizers)

    def _scheduled(self, name: str, schedule: Schedule) -> float:
        """The step size ``name`` now.

        :raises ValueError: the schedule gives no finite number >= 0
        """
        rate = schedule(self._current_progress_remaining)
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"{name}={rate!r} from the schedule at progress_remaining={self._current_progress_remaining:g}: "
                "a finite number >= 0 is needed. The parameters are those before this update."
            )
        return rate

    def _check_gradient(self, name: str, loss: th.Tensor, norm: float) -> None:
        """:raises NonFiniteError: the norm of the gradient of a loss is not finite"""
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"The gradient of the {name} loss (value {loss.item():g}) has norm {norm} in update "
                f"{self._n_updates + 1}, after {self.num_timesteps} steps. "
                f"The parameters are those before this update. {self._suspicion()}"
            )

    def _suspicion(self) -> str:
        """What most likely is the cause of numbers beyond float32."""
        largest = guards.largest(self._last_obs)
        if largest > LARGE_OBSERVATION:
            return (
                f"The observations are as large as {largest:.3g}, too large for float32 to compute with: "
                "scale them, for example by VecNormalize."
            )
        return "Usual causes: learning_rate too large, or rewards too large for float32."

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The policy's action for an observation, and the next hidden state (None without a recurrent policy).

        :param observation: one observation, or a batch of N
        :param state: hidden state of a recurrent policy
        :param episode_start: (N,), where an episode begins
        :param deterministic: take the most likely action instead of sampling one
        :raises NonFiniteError: the observation holds NaN or infinity
        """
        guards.check_input(observation)
        return super().predict(observation, state, episode_start, deterministic)


def check_total_timesteps(value: Any) -> None:
    """:raises ValueError: not a finite number >= 0"""
    if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value >= 0):
        raise ValueError(f"total_timesteps={value!r}: a number of env steps >= 0 is needed")
