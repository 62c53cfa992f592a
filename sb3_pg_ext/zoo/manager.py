"""How an experiment of rl_zoo3 gets its settings, and survives what a trial may do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.values import SettingError, materialise, read_value
from sb3_pg_ext.experiments.zoo_configs import config_folder
from sb3_pg_ext.zoo import untuned

if TYPE_CHECKING:
    from rl_zoo3.exp_manager import ExperimentManager
else:
    ExperimentManager = object


class BridgedExperiment(ExperimentManager):
    """To be put before rl_zoo3's ``ExperimentManager``: settings of ``zoo_configs``, and schedules for any argument."""

    def __init__(self, *arguments: Any, config: str | None = None, **options: Any):
        super().__init__(*arguments, **options)
        self.config = config or settings_source(self.algo, self.env_name.gym_id)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the parent's, of which trial 0 is a trial as well, with policy and budget where no file has them.

        :raises SettingError: there is no budget
        """
        if self.trial_id == 0 and self.storage and self.study_name:
            trial = self.load_trial(self.storage, self.study_name, 0)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        hyperparams, saved = super().read_hyperparameters()
        missing = self._missing(hyperparams)
        return {**hyperparams, **missing}, {**saved, **missing}

    def load_trial(
        self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True
    ) -> dict[str, Any]:
        """As the parent's.

        :raises SettingError: there is no such study, no such trial in it, or the trial is of another algorithm
        """
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER

        try:
            params = super().load_trial(storage, study_name, trial_id, convert=False)
        except KeyError as error:
            raise SettingError(f"--study-name {study_name}: there is no study of that name in {storage}") from error
        except IndexError as error:
            raise SettingError(f"--trial-id {trial_id}: the study {study_name} has no such trial") from error
        if not convert:
            return params
        try:
            return HYPERPARAMS_CONVERTER[self.algo](params)
        except (KeyError, ValueError) as error:
            raise SettingError(
                f"--study-name {study_name}: its trials do not have the parameters of {self.algo} ({error})"
            ) from error

    def _missing(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        from rl_zoo3 import ALGOS

        missing: dict[str, Any] = {}
        # The default entries of rl_zoo3 say MlpPolicy for every algorithm, and RecurrentPPO has none of that name.
        unknown = {"MlpPolicy"} - set(ALGOS[self.algo].policy_aliases)
        if hyperparams.get("policy") in {None, *unknown}:
            missing["policy"] = self._default_policy(hyperparams)
            print(f"Policy for these observations: {missing['policy']}")
        if "n_timesteps" not in hyperparams:
            if self.n_timesteps <= 0:
                raise SettingError(f"-n STEPS is needed: {self.config} names no n_timesteps for {self.env_name.gym_id}")
            missing["n_timesteps"] = self.n_timesteps
        return missing

    def _default_policy(self, hyperparams: dict[str, Any]) -> str:
        import gymnasium as gym
        from rl_zoo3 import ALGOS, get_wrapper_class

        wrap = get_wrapper_class(dict(hyperparams)) or (lambda env: env)
        env = wrap(gym.make(self.env_name.gym_id, **self.env_kwargs))
        env.close()
        spec = registry.get(registry.key_of(ALGOS[self.algo]))
        return registry.default_policy(spec, env.observation_space)

    # An instance method in the place of a static one, which is called on the instance as well.
    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Texts as the values that they stand for; ``lin_3e-4`` is a schedule, whatever the argument's name.

        Numbers are left to the algorithm, which makes the schedules it needs of them.
        """
        return {name: materialise(_read(value)) for name, value in hyperparams.items()}

    def objective(self, trial: Any) -> float:
        """As the parent's; a trial of which the numbers go astray is pruned, whatever the error, and says why."""
        import optuna
        import torch

        try:
            return super().objective(trial)
        except (ArithmeticError, torch.linalg.LinAlgError) as error:
            trial.set_user_attr("pruned_because", f"{type(error).__name__}: {error}")
            raise optuna.TrialPruned(str(error)) from error
        except optuna.TrialPruned as pruned:
            if pruned.__cause__ is not None:
                trial.set_user_attr("pruned_because", f"{type(pruned.__cause__).__name__}: {pruned.__cause__}")
            raise


def _read(value: Any) -> Any:
    try:
        return read_value(value) if isinstance(value, str) else value
    except SettingError:
        return value  # an expression that rl_zoo3 evaluates itself


def settings_source(algo: str, env_id: str) -> str:
    """Where ``algo`` has settings for ``env_id``: a file of rl_zoo3, else of ``zoo_configs``, else nowhere.

    :param algo: a name in rl_zoo3's ``ALGOS``
    :param env_id: a registered environment
    :return: path of a file, or the name of :mod:`~sb3_pg_ext.zoo.untuned`, as rl_zoo3's option ``-conf`` takes them
    """
    import rl_zoo3

    names = [name for name, cls in rl_zoo3.ALGOS.items() if cls is rl_zoo3.ALGOS[algo]]
    files = [Path(rl_zoo3.__file__).parent / "hyperparams" / f"{name}.yml" for name in names]
    own = config_folder()
    files += [own / f"{algo}.yml"] if own else []
    tables = {str(file): _entries(file) for file in files if file.is_file()}
    # rl_zoo3's default entries cover everything: they come after the entries for this very environment.
    found = (file for keys in _keys(env_id) for file, table in tables.items() if not keys.isdisjoint(table))
    return next(found, untuned.__name__)


def _keys(env_id: str) -> tuple[set[str], set[str]]:
    """Names of the entry for ``env_id``, and of those that rl_zoo3 takes if there is none."""
    import gymnasium as gym

    atari = "AtariEnv" in str(gym.spec(env_id).entry_point)
    return {env_id}, {"default", "atari"} if atari else {"default"}


def _entries(file: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
