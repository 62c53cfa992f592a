"""Beginning the next episode of single slots with given seeds: common random numbers.

A vectorised environment resets a finished slot by itself and takes no seed for that. What is done about it depends on
its kind:

=====================================  ===============================================================================
environment                            the slot is
=====================================  ===============================================================================
``DummyVecEnv``, ``SubprocVecEnv``     reset once more, with the seed: start and noise of the episode are common
gymnasium's ``SyncVectorEnv``          the same
vectorised environment of one object,  reset by that function while the environment's generator is one made from the
with a :data:`PARTIAL_RESET` function  seed: starts are common, noise within an episode is not
``AsyncVectorEnv``, EnvPool, others    refused: they reset no single slot with a seed
=====================================  ===============================================================================

Stable-Baselines3's own wrappers may lie around them, except those for videos. Any other is refused: it might keep a
memory that such a reset does not clear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_pg_ext.rollout import guards
from sb3_pg_ext.rollout.autoreset import PartialResetWrapper, reset_slots
from sb3_pg_ext.rollout.vector_adapter import VectorEnvAdapter

Array = np.ndarray[Any, Any]
#: (slots (k,), seeds (k,)) -> first observations of these slots, k of them, as the environment itself gives them.
SlotReset = Callable[[list[int], list[int]], list[Any]]


def _onto_stack(stacked: StackedObservations, obs: Any, slots: Array) -> Any:
    """The stacks of slots that hold one frame so far, with ``obs`` (k, ...) in place of it."""
    if isinstance(obs, dict):
        return {name: _onto_stack(stacked.sub_stacked_observations[name], part, slots) for name, part in obs.items()}
    last = slice(-obs.shape[stacked.stack_dimension], None)
    stacked.stacked_obs[(slots, last) if stacked.channels_first else (slots, ..., last)] = obs
    return stacked.stacked_obs[slots]


#: Wrapper -> its observations of slots (k,) that have just been reset, from those that it is given.
_TRANSFORMS: dict[type[VecEnvWrapper], Callable[[Any, Any, Array], Any]] = {
    VecMonitor: lambda wrapper, obs, slots: obs,
    VecCheckNan: lambda wrapper, obs, slots: obs,
    VecNormalize: lambda wrapper, obs, slots: wrapper.normalize_obs(obs),
    VecTransposeImage: lambda wrapper, obs, slots: wrapper.transpose_observations(obs),
    VecExtractDictObs: lambda wrapper, obs, slots: obs[wrapper.key],
    VecFrameStack: lambda wrapper, obs, slots: _onto_stack(wrapper.stacked_obs, obs, slots),
}


class SeededSlots:
    """Restarts slots of ``env`` that stand at the first observation of an episode.

    :raises ValueError: ``env`` has no way to reset single slots with seeds
    """

    def __init__(self, env: VecEnv):
        self.env, self.wrappers = env, []
        while isinstance(env, VecEnvWrapper):
            if type(env) not in _TRANSFORMS:
                raise ValueError(_refusal(f"{type(env).__name__} around the environment"))
            self.wrappers.append(env)
            env = env.venv
        self.base, self.reset = env, _slot_reset(env)

    def restart(self, obs: Any, slots: Array, seeds: Array, num_timesteps: int) -> Any:
        """``obs`` (N, ...) with the rows of ``slots`` (k,) replaced by those of new episodes with ``seeds`` (k,)."""
        try:
            first = self.reset(slots.tolist(), seeds.tolist())
        except Exception as error:
            raise guards.explained(error, "reset()", self.env, num_timesteps)  # noqa: B904
        batch = _stacked(first)
        for wrapper in reversed(self.wrappers):
            batch = _TRANSFORMS[type(wrapper)](wrapper, batch, slots)
        guards.check_observations(batch, f"after reset() at step {num_timesteps} (counting the slots that were reset)")
        return _replaced(obs, batch, slots)


def _refusal(what: str) -> str:
    return (
        f"common_seeds=True: {what} cannot begin the next episode of a single slot with a seed. "
        "Use common_seeds=False, or a DummyVecEnv, SubprocVecEnv or SyncVectorEnv."
    )


def _slot_reset(env: VecEnv) -> SlotReset:
    if isinstance(env, VectorEnvAdapter):
        vector = env.env
        if isinstance(vector, SyncVectorEnv):
            return lambda slots, seeds: _reset_each(env, slots, seeds)
        if isinstance(vector, PartialResetWrapper):
            return lambda slots, seeds: [_reset_native(env, *each) for each in zip(slots, seeds, strict=True)]
        raise ValueError(_refusal(type(vector).__name__))
    if isinstance(env, (DummyVecEnv, SubprocVecEnv)):
        return lambda slots, seeds: _reset_each(env, slots, seeds)
    raise ValueError(_refusal(type(env).__name__))


def _reset_each(env: VecEnv, slots: list[int], seeds: list[int]) -> list[Any]:
    """Slots with the same seed are reset by one call, so that worker processes do it at the same time."""
    first: dict[int, Any] = {}
    env.reset_infos = list(env.reset_infos)  # a tuple in SubprocVecEnv
    for seed in dict.fromkeys(seeds):
        together = [slot for slot, own in zip(slots, seeds, strict=True) if own == seed]
        for slot, (obs, info) in zip(together, env.env_method("reset", indices=together, seed=seed), strict=True):
            first[slot], env.reset_infos[slot] = obs, info
    return [first[slot] for slot in slots]


def _reset_native(adapter: VectorEnvAdapter, slot: int, seed: int) -> Any:
    core = adapter.env.unwrapped
    mask = np.zeros(adapter.num_envs, dtype=bool)
    mask[slot] = True
    own = core.np_random
    try:
        core.np_random = seeding.np_random(seed)[0]
        observations, _ = reset_slots(adapter.env, mask)
    finally:
        core.np_random = own
    return _row(observations, slot)


def _row(batch: Any, index: int) -> Any:
    return {name: part[index] for name, part in batch.items()} if isinstance(batch, dict) else batch[index]


def _stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)


def _replaced(obs: Any, new: Any, slots: Array) -> Any:
    if isinstance(obs, dict):
        return {name: _replaced(part, new[name], slots) for name, part in obs.items()}
    replaced = obs.copy()
    replaced[slots] = new
    return replaced
