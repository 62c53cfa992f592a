"""A study: which runs there are, and the loop that has them carried out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from sb3_pg_ext.experiments.executor import Executor
from sb3_pg_ext.experiments.run_spec import Protocol as EvaluationProtocol
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.variants import Variant

_SECONDS_BETWEEN_LOOKS = 0.25
_LOOKS_BETWEEN_RELEASES = 40
_LEASE = 1800.0  # seconds after which a silent worker on another machine is taken for dead


@dataclass(frozen=True)
class Study:
    """Algorithms times environments times seeds.

    :param variants: the algorithms with their settings
    :param env_ids: the environments
    :param n_seeds: runs of each algorithm in each environment
    :param total_steps: environment steps per run
    :param protocol: how runs are judged
    :param master_seed: chooses the set of seeds
    :param n_envs: copies of the environment to train in; ``None`` leaves it to ``zoo_configs``, or 1
    :param vec_env: how they run
    :param env_kwargs: passed to the environments
    :param use_zoo_configs: whether tuned settings are used where there are any
    """

    variants: Sequence[Variant]
    env_ids: Sequence[str]
    n_seeds: int
    total_steps: int
    protocol: EvaluationProtocol
    master_seed: int = 0
    n_envs: int | None = None
    vec_env: str = "dummy"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    use_zoo_configs: bool = True

    def runs(self) -> list[RunSpec]:
        """All runs of the study, completely described.

        :raises SettingError: two variants have one label, or are the same
        """
        return [
            self._run(variant, env_id, replicate)
            for env_id in self.env_ids
            for variant in self._distinct(env_id)
            for replicate in range(self.n_seeds)
        ]

    def _distinct(self, env_id: str) -> Sequence[Variant]:
        labels: set[str] = set()
        contents: dict[str, str] = {}
        for variant in self.variants:
            if variant.label in labels:
                raise SettingError(f"the label {variant.label!r} is given twice; name one of them: label=key:...")
            key = self._run(variant, env_id, 0).key
            if key in contents:
                raise SettingError(f"{variant.label!r} and {contents[key]!r} are the same settings on {env_id}")
            labels.add(variant.label)
            contents[key] = variant.label
        return self.variants

    def _run(self, variant: Variant, env_id: str, replicate: int) -> RunSpec:
        return resolve(
            variant,
            env_id,
            seeds=seeds_of(self.master_seed, replicate),
            total_steps=self.total_steps,
            protocol=self.protocol,
            replicate=replicate,
            n_envs=self.n_envs,
            vec_env=self.vec_env,
            env_kwargs=self.env_kwargs,
            use_zoo_config=self.use_zoo_configs,
        )


class Watcher(Protocol):
    """Told several times a second how the runs are."""

    def look(self, rows: Mapping[str, Any]) -> None:
        """
        :param rows: key of each run -> its row, see :meth:`Store.statuses`
        """


def check_all(runs: Iterable[RunSpec]) -> None:
    """Build each setting once, before anything runs.

    :raises SettingError: the first that cannot be built
    """
    from sb3_pg_ext.experiments.building import check

    for spec in {run.settings_key: run for run in runs}.values():
        check(spec)


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
                store.release_dead(_LEASE, watched=executor.keys)
            rows = store.statuses(keys)
            watcher.look(rows)
            if all(row["status"] in ("finished", "failed") for row in rows.values()):
                return
            waiting = (run for run in store.pending(keys) if run.key not in executor.keys)
            for run in list(islice(waiting, max(executor.free, 0))):
                executor.submit(run)
            executor.supervise(_SECONDS_BETWEEN_LOOKS)
    finally:
        executor.close()


def default_folder(variants: Sequence[Variant], env_ids: Sequence[str]) -> Path:
    """A folder name made of what is compared."""
    return Path("results", "_".join([*(variant.key for variant in variants), *env_ids]).replace(":", ".")[:100])
