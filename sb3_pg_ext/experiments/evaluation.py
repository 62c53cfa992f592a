"""Evaluation on held-out start states, without leaving a trace in training."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_pg_ext.experiments.building import evaluation_env
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import Environment


class Evaluator:
    """Runs ``n_episodes`` episodes from start states that depend on ``seed`` alone.

    Up to :data:`~sb3_pg_ext.experiments.lanes.MAX_LANES` environments are stepped together, whatever the machine, since
    batches of other sizes round differently. Each begins from a seed of its own; with more episodes than environments,
    the later ones follow on.

    :param environment: what to evaluate in; always fresh copies
    :param n_episodes: number of episodes
    :param seed: environment i begins with ``seed + i``, each time anew
    :param deterministic: act by the mode of the policy instead of sampling
    :param statistics: file of ``VecNormalize``, for a model that comes without its training environment
    """

    def __init__(
        self,
        environment: Environment,
        n_episodes: int,
        seed: int,
        deterministic: bool = True,
        statistics: Path | None = None,
    ):
        if n_episodes < 1:
            raise ValueError(f"n_episodes={n_episodes}: at least 1 is needed")
        self.n_episodes, self.seed, self.deterministic = n_episodes, seed, deterministic
        self.venv = evaluation_env(environment, n_episodes, statistics)

    def __call__(self, model: BaseAlgorithm, step: int = 0) -> Evaluation:
        """Evaluate ``model``; its random numbers, and anyone else's, go on afterwards as if nothing had happened.

        :raises FloatingPointError: a parameter of the policy or a return is not finite
        """
        check_finite(model, step)
        began = time.perf_counter()
        _share_statistics(model.get_vec_normalize_env(), unwrap_vec_normalize(self.venv))
        with own_random_state(self.seed):
            self.venv.seed(self.seed)
            returns, lengths = _evaluation_of(model, self.venv)(
                model, self.venv, self.n_episodes, self.deterministic, return_episode_rewards=True, warn=False
            )
        if not np.isfinite(returns).all():
            raise FloatingPointError(f"the evaluation at step {step} has returns that are not finite: {returns}")
        seconds = time.perf_counter() - began
        return Evaluation(step, tuple(map(float, returns)), tuple(map(int, lengths)), seconds)

    def close(self) -> None:
        self.venv.close()


def _share_statistics(source: VecNormalize | None, target: VecNormalize | None) -> None:
    # sync_envs_normalization wants both environments wrapped alike, which an algorithm's own wrappers would break.
    if source is not None and target is not None and hasattr(source, "obs_rms"):
        target.obs_rms = deepcopy(source.obs_rms)


def check_finite(model: BaseAlgorithm, step: int) -> None:
    """
    :raises FloatingPointError: a parameter of the policy is NaN or infinite; the message names it
    """
    for name, parameter in model.policy.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"the policy's parameter {name!r} is not finite at step {step}: training has diverged "
                "(a lower learning rate, gradient clipping or normalisation may help)"
            )


def log_evaluation(logger: Logger, evaluation: Evaluation, kind: Literal["eval", "test"] = "eval") -> None:
    """Log it under the names that Stable-Baselines3's ``EvalCallback`` uses.

    :param kind: first part of the names
    """
    logger.record(f"{kind}/mean_reward", evaluation.mean_return)
    logger.record(f"{kind}/mean_ep_length", sum(evaluation.lengths) / len(evaluation.lengths))
    logger.record("time/total_timesteps", evaluation.step, exclude="tensorboard")
    logger.dump(evaluation.step)


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's global generators inside, and restores them after."""
    with random_state_kept():
        set_random_seed(seed)
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever random numbers are drawn inside, those after it are the same."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _evaluation_of(model: BaseAlgorithm, venv: VecEnv) -> Callable[..., Any]:
    """Stable-Baselines3's evaluation, or sb3-contrib's for a policy that is to be told which actions are allowed."""
    if "action_masks" in signature(model.predict).parameters and venv.has_attr("action_masks"):
        from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked

        return evaluate_masked
    return evaluate_policy


class EvaluationCallback(BaseCallback):
    """Evaluates before the first step, after every ``every`` steps and at ``total_steps``, where it ends training.

    Ending there, and not where a rollout happens to end, gives all algorithms the same budget.

    :param evaluator: how to evaluate
    :param every: environment steps between evaluations
    :param total_steps: environment steps of this call of ``learn``
    :param on_evaluation: told of each :class:`Evaluation`
    :param on_progress: told of the number of steps so far and the seconds of training, after every step
    """

    def __init__(
        self,
        evaluator: Evaluator,
        every: int,
        total_steps: int,
        on_evaluation: Callable[[Evaluation], Any],
        on_progress: Callable[[int, float], Any] = lambda step, seconds: None,
    ):
        super().__init__()
        self.evaluator, self.every, self.total_steps = evaluator, every, total_steps
        self.on_evaluation, self.on_progress = on_evaluation, on_progress
        self.seconds = 0.0  # spent in evaluations
        self._last_step = -1

    def _on_training_start(self) -> None:
        self._start, self._began = self.num_timesteps, time.perf_counter()
        self._due = self.every
        self._evaluate()

    def _on_step(self) -> bool:
        steps = self.num_timesteps - self._start
        self.on_progress(self.num_timesteps, self._train_seconds())
        if steps >= min(self._due, self.total_steps) > self._last_step - self._start:
            self._evaluate()
            self._due = (steps // self.every + 1) * self.every
        return steps < self.total_steps

    def _on_training_end(self) -> None:
        if self._last_step - self._start < min(self.total_steps, self.num_timesteps - self._start):
            self._evaluate()

    def _train_seconds(self) -> float:
        return time.perf_counter() - self._began - self.seconds

    def _evaluate(self) -> None:
        train_seconds = self._train_seconds()
        evaluation = replace(self.evaluator(self.model, self.num_timesteps), train_seconds=train_seconds)
        self._last_step = self.num_timesteps
        self.seconds += evaluation.seconds
        self.on_evaluation(evaluation)
