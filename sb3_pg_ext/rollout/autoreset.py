"""Resetting single slots of a gymnasium vector environment within the step that ends their episodes.

Stable-Baselines3 wants the first observation of the next episode from the step that ends the last one. A vector
environment in the mode ``NEXT_STEP`` would give it one step later, with a reward of 0 for an action that did nothing: a
transition that must not reach a learner. So finished slots, and only they, are reset at once, by
``reset(options={"reset_mask": mask})``. gymnasium's ``SyncVectorEnv`` and ``AsyncVectorEnv`` know that option;
:data:`PARTIAL_RESET` teaches it to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import vector as wrappers

from sb3_pg_ext.rollout.envpool import EnvPoolVectorEnv, is_envpool

PartialReset = Callable[[Any, np.ndarray], Any]
_COUNTERS = ("episode_returns", "episode_lengths", "episode_start_times", "prev_dones")
# Wrappers that take any reset for a reset of every slot, and what does their work on the side of Stable-Baselines3.
_REPLACED_BY = {
    getattr(wrappers, name): replacement
    for name, replacement in {
        "NormalizeObservation": "VecNormalize",
        "NormalizeReward": "VecNormalize",
        "RecordVideo": "VecVideoRecorder",
    }.items()
    if hasattr(wrappers, name)  # RecordVideo is younger than gymnasium 1.2.0
}


def _reset_cart_poles(env: CartPoleVectorEnv, mask: np.ndarray) -> np.ndarray:
    assert env.state is not None
    env.state[:, mask] = env.np_random.uniform(low=env.low, high=env.high, size=(4, np.count_nonzero(mask)))
    env.steps[mask] = 0
    env.prev_done[mask] = False
    return env.state.T.astype(np.float32)


PARTIAL_RESET: dict[type, PartialReset] = {CartPoleVectorEnv: _reset_cart_poles}


def register_partial_reset(cls: type, function: PartialReset) -> None:
    """Say how single slots of a ``NEXT_STEP`` vector environment are reset at once.

    :param cls: the class of the unwrapped vector environment; it covers its subclasses
    :param function: ``function(env, mask) -> observations``. ``mask`` (N,) bool: the slots to reset, at least one.
        It does what the next ``env.step`` would do for slots that ended, and clears what would make it repeat that.
        ``observations``: a batch of N, of which the rows under ``mask`` are read.
    :raises TypeError: ``cls`` is not a ``VectorEnv`` class, or ``function`` cannot be called
    """
    if not (isinstance(cls, type) and issubclass(cls, VectorEnv)):
        raise TypeError(f"cls={cls!r}: it must be a subclass of gymnasium.vector.VectorEnv")
    if not callable(function):
        raise TypeError(f"function={function!r}: it must be callable as function(env, mask)")
    PARTIAL_RESET[cls] = function


class PartialResetWrapper(VectorWrapper):
    """Gives a vector environment the option ``reset_mask`` through its entry in :data:`PARTIAL_RESET`."""

    def __init__(self, env: VectorEnv, function: PartialReset):
        super().__init__(env)
        self._function = function

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options is None or "reset_mask" not in options:
            return self.env.reset(seed=seed, options=options)
        return self._function(self.env, options["reset_mask"]), {}


def layers(env: VectorEnv) -> Iterator[VectorEnv]:
    """``env`` and everything that it wraps, from the outside in."""
    while isinstance(env, VectorWrapper):
        yield env
        env = env.env
    yield env


def autoreset_mode(env: VectorEnv) -> AutoresetMode:
    """When ``env`` resets the slots whose episodes have ended, by its metadata.

    :raises ValueError: its metadata do not say so
    """
    mode = env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f"metadata['autoreset_mode']={mode!r} of {_name(env)}: set it to a gymnasium.vector.AutoresetMode "
            f"({', '.join(m.name for m in AutoresetMode)}); without it nobody can tell which steps are resets"
        ) from None


def with_partial_reset(env: VectorEnv) -> VectorEnv:
    """``env``, made to understand ``reset(options={"reset_mask": mask})`` where its auto-reset mode needs that.

    :raises ValueError: its finished slots can only be reset one step late
    :raises TypeError: it has a wrapper that would not survive this, or that changes the form of ``info``
    """
    if is_envpool(env) or (is_envpool(env.unwrapped) and not _has_layer(env, EnvPoolVectorEnv)):
        return EnvPoolVectorEnv(env)
    _refuse_wrapper(env, wrappers.DictInfoToList, "remove it: infos are given as a list of dicts anyway")
    mode = autoreset_mode(env)
    if mode is AutoresetMode.SAME_STEP:
        return env
    for wrapper, replacement in _REPLACED_BY.items():
        _refuse_wrapper(env, wrapper, f"it cannot reset single slots; use Stable-Baselines3's {replacement} instead")
    return env if mode is AutoresetMode.DISABLED else _with_next_step_reset(env)


def _with_next_step_reset(env: VectorEnv) -> VectorEnv:
    base = env.unwrapped
    if isinstance(base, AsyncVectorEnv) and not base.shared_memory:
        # Its workers forget that they were reset unless memory is shared, and would reset a second time.
        raise ValueError(
            f"{_name(base)} with shared_memory=False and autoreset_mode=NEXT_STEP cannot reset single slots: "
            "use shared_memory=True or autoreset_mode=AutoresetMode.SAME_STEP"
        )
    if isinstance(base, (SyncVectorEnv, AsyncVectorEnv)) or _has_layer(env, PartialResetWrapper):
        return env
    function = next((PARTIAL_RESET[cls] for cls in type(base).__mro__ if cls in PARTIAL_RESET), None)
    if function is None:
        raise ValueError(
            f"{_name(base)} resets finished slots one step late (autoreset_mode=NEXT_STEP), in a step that ignores the "
            "action. Make it with autoreset_mode=AutoresetMode.SAME_STEP, or say how a slot is reset at once: "
            f"sb3_pg_ext.rollout.vector_env.register_partial_reset({type(base).__name__}, function)"
        )
    return _wrap_base(env, PartialResetWrapper(base, function))


def _wrap_base(env: VectorEnv, wrapper: VectorWrapper) -> VectorEnv:
    """Put ``wrapper`` directly around the unwrapped environment, below the wrappers of ``env``."""
    if env is env.unwrapped:
        return wrapper
    *_, innermost, _base = layers(env)
    assert isinstance(innermost, VectorWrapper)
    innermost.env = wrapper
    return env


def reset_slots(env: VectorEnv, mask: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Reset some slots of an environment that :func:`with_partial_reset` has seen.

    :param mask: (N,) bool, at least one true
    :return: observations, N rows of which those under ``mask`` are new; batched infos
    """
    # RecordEpisodeStatistics does not get to see the mask and clears the counts of all slots: restore the others.
    counters = [layer for layer in layers(env) if isinstance(layer, wrappers.RecordEpisodeStatistics)]
    before = [{name: np.copy(getattr(counter, name)) for name in _COUNTERS} for counter in counters]
    observations, infos = env.reset(options={"reset_mask": mask})
    for counter, counts in zip(counters, before, strict=True):
        for name, count in counts.items():
            setattr(counter, name, np.where(mask, getattr(counter, name), count))
    return observations, infos


def _has_layer(env: VectorEnv, cls: type) -> bool:
    return any(isinstance(layer, cls) for layer in layers(env))


def _refuse_wrapper(env: VectorEnv, wrapper: type, advice: str) -> None:
    if _has_layer(env, wrapper):
        raise TypeError(f"the vector environment is wrapped with {wrapper.__name__}: {advice}")


def _name(env: VectorEnv) -> str:
    return f"{type(env).__module__}.{type(env).__qualname__}"
