"""EnvPool environments as gymnasium vector environments that reset single slots on demand, without importing EnvPool.

As of EnvPool 1.2.5 a finished slot is reset one step late, with reward 0. ``reset(env_id)`` resets just the slots that
it is given, to the observations that the late reset would have given, and no other reset follows.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

_NOT_OF_A_SLOT = frozenset({"env_id", "players"})


def is_envpool(env: Any) -> bool:
    """Whether ``env`` was made by ``envpool.make``, told without importing EnvPool."""
    return any(cls.__module__ == "envpool.python.envpool" for cls in type(env).__mro__)


class EnvPoolVectorEnv(VectorWrapper):
    """An EnvPool environment as a gymnasium ``VectorEnv`` with auto-reset ``DISABLED`` and the option ``reset_mask``.

    EnvPool seeds its environments when it is made (``envpool.make(..., seed=0)``); a later ``reset(seed=...)`` cannot
    change that and warns if it asks for another seed. EnvPool reports an episode that ends by itself in the very step
    that reaches ``max_episode_steps`` as truncated; nothing in what it returns tells the two apart.

    :param env: made with ``env_type="gymnasium"``, in its synchronous mode, for one player
    :raises TypeError: it was made for dm_env, or it is inside another wrapper
    :raises ValueError: it is asynchronous (``batch_size != num_envs``) or has several players
    """

    copy = True  # EnvPool gives new arrays with every step

    def __init__(self, env: Any):
        _check(env)
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        with warnings.catch_warnings():  # EnvPool gives float32 spaces float64 bounds
            warnings.filterwarnings("ignore", message=".*precision lowered", category=UserWarning)
            self.single_observation_space = env.observation_space
            self.single_action_space = env.action_space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        pool: Any = self.env
        if seed is not None and seed != pool.config["seed"]:
            warnings.warn(
                f"EnvPool seeds environments when they are made: seed={seed} is ignored, they follow "
                f"envpool.make(..., seed={pool.config['seed']})",
                UserWarning,
                stacklevel=2,
            )
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        ids = np.flatnonzero(mask).astype(np.int32)
        observations, infos = pool.reset(ids)
        if not np.array_equal(infos["env_id"], ids):
            raise RuntimeError(f"EnvPool reset the slots {infos['env_id']} when asked for {ids}")
        entries = _of_slots(infos)
        masks = {f"_{name}": mask for name in entries}
        return self._batched(_scatter(observations, ids, self.num_envs)), _scatter(entries, ids, self.num_envs) | masks

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        return self._batched(observations), rewards, terminations, truncations, _of_slots(infos)

    def _batched(self, observations: Any) -> Any:
        """Discrete observations come as (N, 1) from some environments."""
        if isinstance(observations, dict) or observations.shape == self.observation_space.shape:
            return observations
        return observations.reshape(self.observation_space.shape)


def _check(env: Any) -> None:
    if not is_envpool(env):
        raise TypeError(f"{env!r} wraps an EnvPool environment: pass what envpool.make returned, without wrappers")
    if not isinstance(env, VectorEnv):
        raise TypeError("this EnvPool environment speaks another interface: make it with env_type='gymnasium'")
    config = env.config  # type: ignore[attr-defined]
    if config["batch_size"] != config["num_envs"]:
        raise ValueError(
            f"batch_size={config['batch_size']} with num_envs={config['num_envs']} is EnvPool's asynchronous mode, in "
            "which a step returns some environments only: make it with batch_size equal to num_envs"
        )
    if config["max_num_players"] != 1:
        raise ValueError(
            f"max_num_players={config['max_num_players']}: only EnvPool environments of one player are supported"
        )


def _of_slots(infos: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in infos.items() if name not in _NOT_OF_A_SLOT}


def _scatter(values: Any, ids: np.ndarray, n: int) -> Any:
    """Rows of the slots ``ids`` -> a batch of n slots, part by part for dicts."""
    if isinstance(values, dict):
        return {name: _scatter(rows, ids, n) for name, rows in values.items()}
    batch = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    batch[ids] = values
    return batch
