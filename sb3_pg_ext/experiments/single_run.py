"""Training of one model into a :class:`~sb3_pg_ext.experiments.log_folder.LogFolder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_pg_ext import registry
from sb3_pg_ext.bases.model_file import load_vec_normalize, save_model
from sb3_pg_ext.experiments.building import build_model, gamma_of, training_env
from sb3_pg_ext.experiments.evaluation import EvaluationCallback, Evaluator, log_evaluation
from sb3_pg_ext.experiments.log_folder import LogFolder, find_statistics
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.runner import save_statistics, save_with_statistics
from sb3_pg_ext.experiments.values import materialise


class Training:
    """A model, new or loaded, with its environments and its folder.

    :param spec: the run
    :param folder: where everything is written
    :param trained_agent: model file to go on with; its settings are kept, but for ``typed``
    :param typed: constructor arguments to set on a loaded model
    :param options: ``verbose`` and ``tensorboard_log``
    """

    def __init__(
        self,
        spec: RunSpec,
        folder: LogFolder,
        trained_agent: Path | None = None,
        typed: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        self.spec, self.folder = spec, folder
        self.evaluations: list[Evaluation] = []
        self.continued = trained_agent is not None
        venv = training_env(spec.environment, spec.seeds.train, gamma_of(spec), str(folder.path))
        self.model: BaseAlgorithm
        if trained_agent is None:
            self.model = build_model(spec, venv, **options)
        else:
            self._share_statistics(venv, find_statistics(trained_agent))
            self.model = registry.load(trained_agent, venv, **options, **materialise(dict(typed or {})))
        self._evaluator = Evaluator(spec.environment, spec.protocol.episodes, spec.seeds.evaluation)

    @staticmethod
    def _share_statistics(venv: VecEnv, path: Path | None) -> None:
        normalize = unwrap_vec_normalize(venv)
        if normalize is not None and path is not None:
            stored = load_vec_normalize(path, normalize.venv)
            normalize.obs_rms, normalize.ret_rms = stored.obs_rms, stored.ret_rms

    def learn(
        self, save_freq: int | None = None, progress_bar: bool = False, callbacks: Sequence[BaseCallback] = ()
    ) -> None:
        """Train, and save the model at the end, also if it comes early by Ctrl-C.

        :param save_freq: environment steps between saved models
        :param callbacks: what else is called while it trains
        """
        protocol, total_steps = self.spec.protocol, self.spec.total_steps
        callback = EvaluationCallback(self._evaluator, protocol.every, total_steps, self._on_evaluation)
        everything: list[BaseCallback] = [callback, *self._checkpoints(save_freq), *callbacks]
        try:
            self.model.learn(
                total_steps,
                callback=CallbackList(everything),
                reset_num_timesteps=not self.continued,
                progress_bar=progress_bar,
            )
        finally:
            save_model(self.model, self.folder.final_model)
            save_statistics(self.model, self.folder.settings / "vecnormalize.pkl")

    def _checkpoints(self, save_freq: int | None) -> list[BaseCallback]:
        if save_freq is None:
            return []
        calls = max(save_freq // self.spec.environment.n_envs, 1)
        return [CheckpointCallback(calls, str(self.folder.path), save_vecnormalize=True)]

    def _on_evaluation(self, evaluation: Evaluation) -> None:
        best = max((earlier.mean_return for earlier in self.evaluations), default=float("-inf"))
        self.evaluations.append(evaluation)
        self.folder.write_evaluations(self.evaluations)
        if evaluation.mean_return > best:
            save_with_statistics(self.model, self.folder.best_model)
        log_evaluation(self.model.logger, evaluation)

    def close(self) -> None:
        self._evaluator.close()
        if self.model.env is not None:
            self.model.env.close()
