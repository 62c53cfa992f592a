"""Runs that were made elsewhere: log folders of rl_zoo3 and of ``sb3-pg train``, and files of ``Monitor``.

They become finished runs of a study, marked as imported and never carried out.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.log_files import (
    UnreadableRunError,
    read_evaluations,
    read_header,
    read_monitors,
    read_zoo_yaml,
    windows,
)
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds
from sb3_pg_ext.experiments.settings import ENVIRONMENT_KEYS

EVALUATIONS, MONITOR = "evaluations.npz", "*monitor.csv"
UNKNOWN_SEED = -1
_NO_SETTINGS = ("n_timesteps", "policy", *ENVIRONMENT_KEYS)


@dataclass(frozen=True)
class Imported:
    """A run that was made elsewhere.

    :param spec: as far as its files tell
    :param evaluations: in the order of their steps
    :param source: where it was read from, and what from
    """

    spec: RunSpec
    evaluations: tuple[Evaluation, ...]
    source: str

    @property
    def provenance(self) -> dict[str, Any]:
        """For the record of the run."""
        return {"imported_from": self.source}


def find_runs(path: Path) -> list[Path]:
    """The folders below ``path``, itself included, with the files of a run, ``1`` before ``10``; or the single file.

    :raises FileNotFoundError: there is none
    """
    if path.is_file():
        return [path]
    evaluated = {file.parent for file in path.rglob(EVALUATIONS)}
    monitored = {file.parent for file in path.rglob(MONITOR)}
    # Files of Monitor in a folder of their own below that of an evaluated run belong to it.
    alone = {folder for folder in monitored if evaluated.isdisjoint(folder.parents)}
    if not evaluated | alone:
        raise FileNotFoundError(f"{path}: there is no {EVALUATIONS} and no {MONITOR} in it or below")
    return sorted(evaluated | alone, key=_by_number)


def _by_number(path: Path) -> list[Any]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", str(path))]


@dataclass(frozen=True)
class _Files:
    """The files of a run.

    :param folder: in which they are
    :param results: the file of evaluations, or those of ``Monitor``
    :param evaluated: which of them it is
    :param args: content of ``args.yml``, empty without one; ``config`` likewise
    """

    folder: Path
    results: Sequence[Path]
    evaluated: bool
    args: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> _Files:
        folder = path if path.is_dir() else path.parent
        evaluated = (folder / EVALUATIONS).is_file() and (path.is_dir() or path.name == EVALUATIONS)
        monitors = sorted(path.glob(MONITOR)) if path.is_dir() else [path]
        config = next(iter(sorted(folder.glob("*/config.yml"))), folder / "config.yml")
        settings = read_zoo_yaml(config.with_name("args.yml")), read_zoo_yaml(config)
        return cls(folder, [folder / EVALUATIONS] if evaluated else monitors, evaluated, *settings)

    @property
    def named(self) -> tuple[Any, Any]:
        """Algorithm and environment, as far as settings, header and the names of folders tell."""
        header = {} if self.evaluated else read_header(self.results[0])
        of_zoo = self.evaluated or self.config
        algo = self.args.get("algo") or (self.folder.parent.name if of_zoo else None)
        numbered = re.fullmatch(r"(.+)_\d+", self.folder.name) if of_zoo else None
        return algo, self.args.get("env") or header.get("env_id") or (numbered and numbered[1])

    def evaluations(self) -> list[Evaluation]:
        """The learning curve."""
        return read_evaluations(self.results[0]) if self.evaluated else windows(read_monitors(self.results))


def read_run(path: Path, algo: str | None = None, env_id: str | None = None, label: str | None = None) -> Imported:
    """Read one run.

    :param path: from :func:`find_runs`
    :param algo: key of the algorithm; ``None`` takes it from ``args.yml`` or the folder above
    :param env_id: environment; ``None`` takes it from ``args.yml``, the header of ``Monitor`` or the folder's name
    :param label: the name under which it is shown; by default ``<algo> (imported)``
    :raises UnreadableRunError: its files are damaged or tell too little, or it did not come to its end
    """
    files = _Files.of(path)
    named = (algo or files.named[0], env_id or files.named[1])
    if not all(isinstance(name, str) and name not in ("", "None") for name in named):
        raise UnreadableRunError(f"{path} does not say its algorithm and environment: give them by --algo and --env")
    evaluations = files.evaluations()
    spec = _spec(files, *named, label or f"{named[0]} (imported)", _checked(evaluations, path, _budget(files)))
    what = "evaluations" if files.evaluated else f"episodes of training, in {len(evaluations)} windows"
    return Imported(spec, tuple(evaluations), f"{path.resolve()} ({what})")


def read_runs(
    logs: Iterable[Path], algo: str | None = None, env_id: str | None = None, label: str | None = None
) -> tuple[list[tuple[Path, Imported]], list[str]]:
    """Every run in or below ``logs``, once, with its path; and what is wrong with those that cannot be read.

    :param algo: as for :func:`read_run`, like ``env_id`` and ``label``
    """
    found: dict[Path, Imported] = {}
    troubles: list[str] = []
    for path in logs:
        for run in _found(path, troubles):
            try:
                found[run] = read_run(run, algo, env_id, label)
            except (OSError, ValueError) as error:
                troubles.append(f"{error}" if str(run) in str(error) else f"{run}: {error}")
    return list(found.items()), list(dict.fromkeys(troubles))


def _found(path: Path, troubles: list[str]) -> list[Path]:
    try:
        return find_runs(path)
    except OSError as error:
        troubles.append(str(error))
        return []


def _spec(files: _Files, algo: str, env_id: str, label: str, evaluations: Sequence[Evaluation]) -> RunSpec:
    told = _budget(files)
    settings = {key: value for key, value in files.config.items() if key not in _NO_SETTINGS}
    seed = _whole(files.args.get("seed"))
    return RunSpec(
        label=label,
        algo=algo,
        policy=files.config.get("policy"),
        environment=_environment(env_id, files),
        replicate=0,
        seeds=Seeds(UNKNOWN_SEED if seed is None else seed, UNKNOWN_SEED, UNKNOWN_SEED),
        total_steps=max(told or 0, evaluations[-1].step),
        arguments={},
        hyperparameters={**settings, **({} if told is None else {"n_timesteps": told})},
        protocol=_protocol(evaluations, files.evaluated),
        versions={},
        origin=_digest(files.results),
    )


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and 0 <= value < math.inf and value == int(value) else None


def _digest(files: Sequence[Path]) -> str:
    """The same run has the same digest wherever it lies."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _budget(files: _Files) -> int | None:
    """Environment steps that were asked for, if the settings tell."""
    asked = (_whole(settings.get("n_timesteps")) for settings in (files.args, files.config))
    return next((steps for steps in asked if steps), None)


def _checked(evaluations: Sequence[Evaluation], path: Path, told: int | None) -> Sequence[Evaluation]:
    """
    :raises UnreadableRunError: they are no learning curve, or end before the budget does
    """
    if len(evaluations) < 2:
        raise UnreadableRunError(f"{path}: a learning curve needs two points at least, but it has {len(evaluations)}")
    last, before = evaluations[-1].step, evaluations[-2].step
    if told is not None and last + (last - before) < told:
        raise UnreadableRunError(f"{path}: the run ended at step {last:,} of {told:,}")
    return evaluations


def _environment(env_id: str, files: _Files) -> Environment:
    config, kwargs = files.config, files.args.get("env_kwargs")
    wrappers, normalize = config.get("env_wrapper") or (), config.get("normalize") or None
    return Environment(
        env_id,
        n_envs=_whole(config.get("n_envs")) or (1 if files.evaluated else len(files.results)),
        kwargs=kwargs if isinstance(kwargs, Mapping) else {},
        wrappers=tuple(map(str, wrappers if isinstance(wrappers, (list, tuple)) else [wrappers])),
        normalize=normalize if normalize is None or isinstance(normalize, Mapping) else {},
        frame_stack=_whole(config.get("frame_stack")),
    )


def _protocol(evaluations: Sequence[Evaluation], evaluated: bool) -> Protocol:
    every = evaluations[1].step - evaluations[0].step
    return Protocol(every, len(evaluations[-1].returns), deterministic=evaluated, test_episodes=0)
