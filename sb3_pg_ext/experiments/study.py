"""A study: which runs there are, and the loop that has them carried out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from sb3_pg_ext.experiments.executor import Executor
from sb3_pg_ext.experiments.results import Reference
from sb3_pg_ext.experiments.run_spec import Protocol as EvaluationProtocol
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.seeds import Seeds, seeds_of
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.values import SettingError, suggestion
from sb3_pg_ext.experiments.variants import Variant

MAX_SEEDS, MAX_STEPS = 10_000, 10**12  # more is a slip of the hand
MAX_MASTER_SEED = 2**53  # to which every whole number can be told from its neighbours, however it is written
LEASE = 1800.0  # seconds after which a silent worker on another machine is taken for dead
_SECONDS_BETWEEN_LOOKS = 0.25
_LOOKS_BETWEEN_RELEASES = 40


@dataclass(frozen=True)
class Problem:
    """An environment, the budget that a run has in it, and how runs are judged there.

    :param env_id: of the environment
    :param total_steps: environment steps per run
    :param protocol: how runs are judged
    :param kwargs: passed to the environment
    :param around: ``n_envs``, ``normalize``, ``env_wrapper`` and ``frame_stack``; they win over ``zoo_configs``, and
        the settings of a variant win over them
    :param vec_env: how the copies of the environment run
    :param reference: returns for 0 and 1, for the report
    """

    env_id: str
    total_steps: int
    protocol: EvaluationProtocol
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    around: Mapping[str, Any] = field(default_factory=dict)
    vec_env: str = "dummy"
    reference: Reference | None = None


@dataclass(frozen=True)
class Study:
    """Algorithms times environments times seeds.

    :param variants: the algorithms with their settings, each in all environments or in those that it names
    :param problems: the environments, each at most once
    :param n_seeds: runs of each algorithm in each environment
    :param master_seed: chooses the set of seeds
    :param use_zoo_configs: whether tuned settings are used where there are any
    """

    variants: Sequence[Variant]
    problems: Sequence[Problem]
    n_seeds: int
    master_seed: int = 0
    use_zoo_configs: bool = True

    def seeds(self, replicate: int) -> Seeds:
        """Those of run number ``replicate`` of each algorithm."""
        return seeds_of(self.master_seed, replicate)

    @property
    def references(self) -> dict[str, Reference]:
        """Environment id -> its reference scores, where there are any."""
        return {p.env_id: p.reference for p in self.problems if p.reference is not None}

    def runs(self) -> list[RunSpec]:
        """All runs of the study, completely described.

        :raises SettingError: two variants have one label, or are the same
        """
        return [
            self._run(variant, problem, replicate)
            for problem in self.problems
            for variant in self._distinct(problem)
            for replicate in range(self.n_seeds)
        ]

    def _distinct(self, problem: Problem) -> Sequence[Variant]:
        labels: set[str] = set()
        contents: dict[str, str] = {}
        here = [variant for variant in self.variants if variant.runs_in(problem.env_id)]
        for variant in here:
            if variant.label in labels:
                raise SettingError(f"the label {variant.label!r} is given twice; name one of them: label=key:...")
            key = self._run(variant, problem, 0).key
            if key in contents:
                raise SettingError(f"{variant.label!r} and {contents[key]!r} are the same settings on {problem.env_id}")
            labels.add(variant.label)
            contents[key] = variant.label
        return here

    def _run(self, variant: Variant, problem: Problem, replicate: int) -> RunSpec:
        return resolve(
            variant,
            problem.env_id,
            seeds=self.seeds(replicate),
            total_steps=problem.total_steps,
            protocol=problem.protocol,
            replicate=replicate,
            around=problem.around,
            vec_env=problem.vec_env,
            env_kwargs=problem.kwargs,
            use_zoo_config=self.use_zoo_configs,
        )


def select(runs: Sequence[RunSpec], patterns: Sequence[str]) -> list[RunSpec]:
    """The runs that any of ``patterns`` means.

    :param patterns: ``ALGORITHM/ENV``, ``ALGORITHM`` or ``/ENV``; an algorithm by its label or its key, and ``*`` and
        ``?`` stand for anything. None at all means all runs
    :raises SettingError: a pattern means none of them, or is empty
    """
    if not all(pattern.strip(" /") for pattern in patterns):
        raise SettingError("--only '': expected ALGO/ENV, ALGO or /ENV; without --only, all runs are meant")
    found: dict[str, RunSpec] = {}
    for pattern in patterns:
        meant = {run.key: run for run in runs if _is_meant(run, pattern)}
        if not meant:
            known = dict.fromkeys(f"{run.label}/{run.environment.id}" for run in runs)
            hint = suggestion(pattern, known)
            raise SettingError(f"--only {pattern}: there is no such run. {hint} There are: {', '.join(known)}")
        found |= meant
    return [run for run in runs if run.key in found or not patterns]


def _is_meant(run: RunSpec, pattern: str) -> bool:
    # Ids may hold a slash of their own, and so may labels: each cut is tried.
    cuts = [at for at, character in enumerate(pattern) if character == "/"]
    pairs = [(pattern[:at], pattern[at + 1 :]) for at in cuts] + [(pattern, "")]
    return any(
        any(_matches(name, algorithm) for name in (run.label, run.algo)) and _matches(run.environment.id, env)
        for algorithm, env in pairs
    )


def _matches(name: str, pattern: str) -> bool:
    """Whether ``*`` and ``?`` of the pattern can be filled in; brackets stand for themselves, as in net_arch=[64]."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return not pattern or re.fullmatch("".join(parts), name) is not None


class Watcher(Protocol):
    """Told several times a second how the runs are."""

    def look(self, rows: Mapping[str, Any]) -> None:
        """
        :param rows: key of each run -> its row, see :meth:`Store.statuses`
        """


def check_all(runs: Iterable[RunSpec], where: Callable[[RunSpec], str] = lambda run: "") -> None:
    """Build each setting once, before anything runs.

    :param where: the place at which the setting of a run is asked for, to begin an error with
    :raises SettingError: the first that cannot be built
    """
    from sb3_pg_ext.experiments.building import check

    for spec in {run.settings_key: run for run in runs}.values():
        try:
            check(spec)
        except SettingError as error:
            raise SettingError(f"{where(spec)}{error}") from error


def carry_out(runs: Sequence[RunSpec], store: Store, executor: Executor, watcher: Watcher) -> None:
    """Have every run carried out that is not finished or failed already.

    Returns when none is pending or running; runs that another process has taken are waited for. On an exception, Ctrl-C
    included, the runs under way are ended and become pending; the next call begins them anew.

    :param runs: the runs; :meth:`Store.declare` comes first
    """
    keys = [run.key for run in runs]
    looks = count()
    try:
        while True:
            if next(looks) % _LOOKS_BETWEEN_RELEASES == 0:
                store.release_dead(LEASE, watched=executor.keys)
            rows = store.statuses(keys)
            watcher.look(rows)
            if all(row["status"] in ("finished", "failed") for row in rows.values()):
                return
            if executor.free > 0:
                # What was submitted may not have been taken yet.
                waiting = [key for key, row in rows.items() if row["status"] == "pending" and key not in executor.keys]
                for run in store.pending(waiting, limit=executor.free) if waiting else []:
                    executor.submit(run)
            executor.supervise(_SECONDS_BETWEEN_LOOKS)
    finally:
        executor.close()


def default_folder(study: Study) -> Path:
    """A folder name made of what is compared."""
    words = [*(variant.key for variant in study.variants), *(problem.env_id for problem in study.problems)]
    return Path("results", "_".join(words).replace(":", ".")[:100])
