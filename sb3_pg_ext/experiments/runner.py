"""One run, from its description to its results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg_ext.bases.model_file import atomic_write, save_model
from sb3_pg_ext.experiments.building import build_model, gamma_of, training_env
from sb3_pg_ext.experiments.evaluation import EvaluationCallback, Evaluator, log_evaluation
from sb3_pg_ext.experiments.log_folder import STATISTICS_SUFFIX
from sb3_pg_ext.experiments.results import Evaluation, Kind, Outcome
from sb3_pg_ext.experiments.run_spec import RunSpec


class Recorder(Protocol):
    """Where the results of a run go while it is under way."""

    def progress(self, step: int, train_seconds: float) -> None:
        """The run has come to ``step``, after so much time of training."""

    def evaluation(self, kind: Kind, evaluation: Evaluation) -> None:
        """The run has been evaluated, during training or after it."""


def execute(
    spec: RunSpec, recorder: Recorder, model_path: Path | None = None, callbacks: Sequence[BaseCallback] = ()
) -> Outcome:
    """Train, evaluate and test as ``spec`` says. The same spec gives the same evaluations, whatever else goes on.

    :param spec: the run
    :param recorder: told of progress and evaluations
    :param model_path: where the trained model is saved
    :param callbacks: called while it trains; the model's logger has the evaluations and the test as well
    :raises FloatingPointError: training has diverged
    """
    torch.set_num_threads(spec.threads)
    clocks = time.perf_counter(), time.process_time()
    venv = training_env(spec.environment, spec.seeds.train, gamma_of(spec))
    try:
        model = build_model(spec, venv)
        train_seconds = _train(model, spec, recorder, callbacks)
        if spec.protocol.test_episodes:
            test = _test(model, spec)
            recorder.evaluation("test", test)
            log_evaluation(model.logger, test, "test")
        if model_path is not None:
            save_with_statistics(model, model_path)
    finally:
        venv.close()
    began, began_cpu = clocks
    return Outcome(model.num_timesteps, time.perf_counter() - began, time.process_time() - began_cpu, train_seconds)


def _train(model: BaseAlgorithm, spec: RunSpec, recorder: Recorder, callbacks: Sequence[BaseCallback]) -> float:
    """Seconds of training, evaluations not counted."""
    protocol = spec.protocol
    evaluator = Evaluator(spec.environment, protocol.episodes, spec.seeds.evaluation, protocol.deterministic)

    def record(evaluation: Evaluation) -> None:
        recorder.evaluation("training", evaluation)
        log_evaluation(model.logger, evaluation)

    callback = EvaluationCallback(evaluator, protocol.every, spec.total_steps, record, recorder.progress)
    began = time.perf_counter()
    try:
        model.learn(spec.total_steps, callback=[callback, *callbacks])
    finally:
        evaluator.close()
    return time.perf_counter() - began - callback.seconds


def _test(model: BaseAlgorithm, spec: RunSpec) -> Evaluation:
    protocol = spec.protocol
    evaluator = Evaluator(spec.environment, protocol.test_episodes, spec.seeds.test, protocol.deterministic)
    try:
        return evaluator(model, model.num_timesteps)
    finally:
        evaluator.close()


def save_with_statistics(model: BaseAlgorithm, path: Path) -> None:
    """Save a model, and beside it the statistics of ``VecNormalize`` of the same moment if it uses one."""
    save_model(model, path)
    save_statistics(model, path.with_suffix(STATISTICS_SUFFIX))


def save_statistics(model: BaseAlgorithm, path: Path) -> None:
    """Save the statistics of ``VecNormalize``, if the model uses one."""
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        with atomic_write(path) as temporary:
            normalize.save(str(temporary))
