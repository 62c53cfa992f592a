"""Folders of single runs, laid out so that the zoo's own scripts read them too.

::

    <root>/<algo>/<env>_<n>/
        0.monitor.csv     episodes of training, one file per copy of the environment
        evaluations.npz   timesteps (k,), results (k, episodes), ep_lengths (k, episodes)
        best_model.zip    of the best evaluation, with its own statistics in best_model.vecnormalize.pkl
        <env>.zip         at the end
        rl_model_*.zip    in between
        <env>/            args.yml, config.yml, command.txt, vecnormalize.pkl
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.log_files import read_zoo_yaml
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import Environment, RunSpec
from sb3_pg_ext.experiments.values import SettingError, as_text, read_value

STATISTICS_SUFFIX = ".vecnormalize.pkl"  # of a file beside a model, from the same moment


class LogFolder:
    """The folder of one run.

    :param path: ``<root>/<algo>/<env>_<n>``
    :param env_id: the environment, from which the names inside come
    """

    def __init__(self, path: Path, env_id: str):
        self.path, self.env_name = path, file_name(env_id)

    @classmethod
    def create(cls, root: Path, algo: str, env_id: str) -> LogFolder:
        """A new folder with the next free number, also if others ask at the same moment."""
        parent, name = root / algo, file_name(env_id)
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path.name, name) for path in parent.iterdir()), default=0)
        while True:
            folder = cls(parent / f"{name}_{number}", env_id)
            try:
                folder.path.mkdir()
            except FileExistsError:
                number += 1
                continue
            (folder.path / name).mkdir()
            return folder

    @property
    def final_model(self) -> Path:
        return self.path / f"{self.env_name}.zip"

    @property
    def best_model(self) -> Path:
        return self.path / "best_model.zip"

    @property
    def settings(self) -> Path:
        """Where the description of the run is."""
        return self.path / self.env_name

    def write_settings(self, args: Mapping[str, Any], spec: RunSpec, command: str) -> None:
        """``args.yml``, ``config.yml`` and ``command.txt``, as plain YAML without any tags."""
        self._write_yaml("args.yml", dict(args))
        self._write_yaml("config.yml", config_of(spec))
        with atomic_write(self.settings / "command.txt") as temporary:
            temporary.write_text(command + "\n", encoding="utf-8")

    def _write_yaml(self, name: str, content: dict[str, Any]) -> None:
        import yaml

        with atomic_write(self.settings / name) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=True, allow_unicode=True), encoding="utf-8")

    def write_evaluations(self, evaluations: list[Evaluation]) -> None:
        """``evaluations.npz``, as Stable-Baselines3's ``EvalCallback`` writes it."""
        with atomic_write(self.path / "evaluations.npz") as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                timesteps=np.array([e.step for e in evaluations]),
                results=np.array([e.returns for e in evaluations]),
                ep_lengths=np.array([e.lengths for e in evaluations]),
            )


def file_name(env_id: str) -> str:
    """``module:Name-v0`` and ``Space/Name-v0`` as something that a file can be called."""
    return re.sub(r"[^\w.-]+", "-", env_id)


def _number(folder: str, name: str) -> int:
    found = re.fullmatch(re.escape(name) + r"_(\d+)", folder)
    return int(found[1]) if found else 0


def config_of(spec: RunSpec) -> dict[str, Any]:
    """The settings of a run as an entry in the zoo's format."""
    environment = spec.environment
    around = {
        "policy": spec.policy,
        "n_envs": environment.n_envs,
        "n_timesteps": spec.total_steps,
        "normalize": True if environment.normalize == {} else _text_or_none(environment.normalize),
        "env_wrapper": list(environment.wrappers) or None,
        "frame_stack": environment.frame_stack,
    }
    arguments = {name: as_text(value) if isinstance(value, dict) else value for name, value in spec.arguments.items()}
    return {**{name: value for name, value in around.items() if value is not None}, **arguments}


def _text_or_none(value: Any) -> str | None:
    return None if value is None else as_text(value)


def find_model(path: Path) -> Path:
    """The model that ``path`` means: a file, or the best, else the last, of a run's folder.

    :raises FileNotFoundError: there is none
    """
    if path.is_file():
        return path
    if path.is_dir():
        name = re.sub(r"_\d+$", "", path.name)
        candidates = [path / "best_model.zip", path / f"{name}.zip", *sorted(path.glob("*.zip"))]
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    elif path.with_name(path.name + ".zip").is_file():
        return path.with_name(path.name + ".zip")
    raise FileNotFoundError(f"{path}: there is no model file here")


def find_statistics(model: Path) -> Path | None:
    """The statistics of ``VecNormalize`` that belong to a model file."""
    checkpoint = model.with_name(re.sub(r"(_\d+_steps)\.zip$", r"_vecnormalize\1.pkl", model.name))
    beside = [path for path in (model.with_suffix(STATISTICS_SUFFIX), checkpoint) if path != model]
    candidates = [*beside, *sorted(model.parent.glob("*/vecnormalize.pkl"))]
    return next((path for path in candidates if path.is_file()), None)


def find_environment(model: Path, env_id: str | None) -> Environment:
    """The environment that a model was trained in, as far as its folder tells.

    :param env_id: what the user says; ``None`` takes it from the folder
    :raises SettingError: neither says it, or the environment has something around it that cannot be made here
    :raises UnreadableRunError: the settings in the folder are damaged
    """
    settings = next(iter(sorted(model.parent.glob("*/config.yml"))), None)
    args = {} if settings is None else read_zoo_yaml(settings.with_name("args.yml"))
    config = {} if settings is None else read_zoo_yaml(settings)
    env_id = env_id or args.get("env")
    if not isinstance(env_id, str):
        raise SettingError(f"{model} does not say which environment it is for: give it with --env")
    if config.get("vec_env_wrapper"):
        raise SettingError(f"{settings}: vec_env_wrapper={config['vec_env_wrapper']!r} cannot be made here")
    return Environment(
        env_id,
        kwargs=args.get("env_kwargs") or {},
        wrappers=_wrappers(config.get("env_wrapper") or ()),
        normalize=_normalize(config.get("normalize")),
        frame_stack=config.get("frame_stack"),
    )


def _wrappers(value: Any) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for name in names:
        if not isinstance(name, str):
            raise SettingError(f"env_wrapper={name!r}: wrappers with arguments cannot be made here")
    return names


def _normalize(value: Any) -> dict[str, Any] | None:
    read = read_value(value) if isinstance(value, str) else value
    if isinstance(read, Mapping):
        return dict(read)
    return {} if read else None
