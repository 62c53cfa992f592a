"""Environments and models as a :class:`~sb3_pg_ext.experiments.run_spec.RunSpec` describes them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
    unwrap_vec_normalize,
)

import sb3_pg_ext.envs  # noqa: F401  (registers its environment ids)
from sb3_pg_ext import registry
from sb3_pg_ext.bases.model_file import load_vec_normalize
from sb3_pg_ext.experiments.lanes import MAX_LANES, EvaluationLanes
from sb3_pg_ext.experiments.run_spec import Environment, RunSpec
from sb3_pg_ext.experiments.values import SettingError, materialise
from sb3_pg_ext.rollout.vector_env import as_vec_env

_WRAPPER_MODULES = ("gymnasium.wrappers", "stable_baselines3.common.atari_wrappers", "sb3_contrib.common.wrappers")
_NOISES = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}
_TUPLES = ("train_freq",)  # arguments that are only understood as tuples, which YAML and JSON do not have
_MONITORED: dict[str, type[DummyVecEnv] | type[SubprocVecEnv]] = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}


def training_env(environment: Environment, seed: int, gamma: float = 0.99, monitor_folder: str | None = None) -> VecEnv:
    """The environments to train in.

    :param seed: of the first reset; copy i takes ``seed + i``
    :param gamma: discount by which ``VecNormalize`` scales rewards
    :param monitor_folder: where ``<i>.monitor.csv`` is written
    :raises SettingError: the id, the arguments or a wrapper do not exist
    """
    normalize = None if environment.normalize is None else {"gamma": gamma, **environment.normalize}
    copies = _copies(environment, environment.n_envs, seed, environment.vec_env, monitor_folder)
    return _wrapped(copies, normalize, environment.frame_stack)


def evaluation_env(environment: Environment, n_episodes: int, statistics: Path | None = None) -> VecEnv:
    """Environments to evaluate in: rewards as they are, and no statistics collected.

    :param n_episodes: of each evaluation
    :param statistics: file of ``VecNormalize`` to take the statistics from
    """
    normalize = None if environment.normalize is None else {**environment.normalize, "norm_reward": False}
    share = {"n_episodes": n_episodes}
    lanes = _monitored(environment, min(n_episodes, MAX_LANES), EvaluationLanes, vec_env_kwargs=share)
    venv = _wrapped(lanes, normalize, environment.frame_stack)
    normalized = unwrap_vec_normalize(venv)
    if normalized is not None:
        normalized.training = False
        if statistics is not None:
            normalized.obs_rms = load_vec_normalize(statistics, normalized.venv).obs_rms
    return BaseAlgorithm._wrap_env(venv, monitor_wrapper=False)


def _wrapped(venv: VecEnv, normalize: Mapping[str, Any] | None, frame_stack: int | None) -> VecEnv:
    # The zoo's order: statistics of single frames, then the stack.
    if normalize is not None:
        venv = VecNormalize(venv, **normalize)
    return VecFrameStack(venv, frame_stack) if frame_stack else venv


def _copies(
    environment: Environment, n_envs: int, seed: int | None, vec_env: str, monitor_folder: str | None
) -> VecEnv:
    if vec_env == "native":
        return _native(environment, n_envs, seed)
    if vec_env not in _MONITORED:
        raise SettingError(f"vec_env={vec_env!r}: allowed are 'dummy', 'subproc', 'native'")
    return _monitored(environment, n_envs, _MONITORED[vec_env], seed=seed, monitor_dir=monitor_folder)


def _monitored(environment: Environment, n_envs: int, vec_env_cls: Any, **options: Any) -> VecEnv:
    check_env_id(environment.id)
    single = partial(_single, environment.id, dict(environment.kwargs), environment.wrappers)
    return make_vec_env(single, n_envs, vec_env_cls=vec_env_cls, **options)


def _native(environment: Environment, n_envs: int, seed: int | None) -> VecEnv:
    name = check_env_id(environment.id)
    if environment.wrappers:
        raise SettingError(f"vec_env='native' cannot have wrappers, but env_wrapper={list(environment.wrappers)}")
    if not environment.kwargs:
        return as_vec_env(name, n_envs=n_envs, seed=seed, vec_env="native")
    made = gym.make_vec(name, n_envs, vectorization_mode="vector_entry_point", **environment.kwargs)
    return as_vec_env(made, seed=seed)


def _single(env_id: str, kwargs: Mapping[str, Any], wrappers: tuple[str, ...]) -> gym.Env:
    env = gym.make(env_id, **kwargs)
    for name in wrappers:
        env = wrapper_class(name)(env)
    return env


def wrapper_class(name: str) -> type[gym.Wrapper]:
    """A wrapper class of the few packages that may be named in settings.

    :raises SettingError: it is none of them
    """
    module, _, attribute = name.rpartition(".")
    if module not in _WRAPPER_MODULES:
        raise SettingError(f"env_wrapper={name!r}: allowed are classes of {', '.join(_WRAPPER_MODULES)}")
    wrapper = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(wrapper, type) and issubclass(wrapper, gym.Wrapper)):
        raise SettingError(f"env_wrapper={name!r}: {module} has no wrapper {attribute!r}")
    return wrapper


def check_env_id(env_id: str) -> str:
    """Import the module of ``module:Name-v0``, if there is one.

    :return: the id without it
    :raises SettingError: gymnasium does not know it; its message has the nearest name
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise SettingError(f"environment {env_id!r}: {error}") from None
    return name


def build_model(spec: RunSpec, venv: VecEnv, **options: Any) -> BaseAlgorithm:
    """The untrained model of a run.

    :param venv: from :func:`training_env`
    :param options: constructor arguments that are no part of the run's identity: ``verbose``, ``tensorboard_log``
    :raises SettingError: the algorithm asks the environment for something that it does not have
    """
    _check_masks(spec, venv)
    arguments = {name: materialise(value) for name, value in spec.arguments.items()}
    for name in _TUPLES:
        if isinstance(arguments.get(name), list):
            arguments[name] = tuple(arguments[name])
    if "noise_type" in arguments:
        arguments["action_noise"] = _noise(arguments, venv)
    arguments.pop("noise_std", None)
    model = registry.make(spec.algo, venv, spec.policy, seed=spec.seeds.train, **arguments, **options)
    _check_train_freq(model)
    return model


def _check_masks(spec: RunSpec, venv: VecEnv) -> None:
    """What such an algorithm asks for in ``learn`` alone, which is too late.

    :raises SettingError: the algorithm needs masks of the actions, and the environment gives none
    """
    if "action_masks" in registry.get(spec.algo).tags and not venv.has_attr("action_masks"):
        raise SettingError(
            f"{spec.algo} needs an environment with an action_masks() method; {spec.environment.id} has none. "
            "Without masks it is ppo"
        )


def _check_train_freq(model: BaseAlgorithm) -> None:
    """Likewise.

    :raises SettingError: training waits for the end of an episode, which several environments have at different times
    """
    frequency = getattr(model, "train_freq", None)
    if isinstance(frequency, TrainFreq) and frequency.unit is TrainFrequencyUnit.EPISODE and model.n_envs > 1:
        raise SettingError(
            f"train_freq={frequency.frequency} episodes with n_envs={model.n_envs}: only n_envs=1 has it"
        )


def _noise(arguments: dict[str, Any], venv: VecEnv) -> ActionNoise:
    name = arguments.pop("noise_type")
    if name not in _NOISES:
        raise SettingError(f"noise_type={name!r}: allowed are {', '.join(map(repr, _NOISES))}")
    mean = np.zeros(venv.action_space.shape or (1,))
    return _NOISES[name](mean, float(arguments.get("noise_std", 0.1)) * np.ones_like(mean))


def check(spec: RunSpec) -> None:
    """Build environment and model once and throw them away, so that a mistake shows before anything runs.

    :raises SettingError: whatever is wrong, with the run's name before it
    """
    vec_env = "dummy" if spec.environment.vec_env == "subproc" else spec.environment.vec_env
    try:
        _check_discount(spec)
        venv = training_env(replace(spec.environment, vec_env=vec_env), spec.seeds.train, gamma_of(spec))
        try:
            build_model(spec, venv)
        finally:
            venv.close()
    except Exception as error:
        kind = "" if isinstance(error, (ValueError, AssertionError)) else f"{type(error).__name__}: "
        raise SettingError(f"{spec.label} on {spec.environment.id}: {kind}{error}") from error


def _check_discount(spec: RunSpec) -> None:
    """Stable-Baselines3 takes any.

    :raises SettingError: it is none
    """
    gamma = spec.hyperparameters.get("gamma")
    if isinstance(gamma, (int, float)) and not 0 <= gamma <= 1:
        raise SettingError(f"gamma={gamma}: a number in [0, 1] is needed")


def gamma_of(spec: RunSpec) -> float:
    """The run's discount, or the usual one for an algorithm that has none."""
    gamma = spec.hyperparameters.get("gamma")
    return gamma if isinstance(gamma, float) else 0.99
