"""What a study would do, and how long that would take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg_ext.experiments.building import build_model, gamma_of, training_env
from sb3_pg_ext.experiments.evaluation import Evaluator
from sb3_pg_ext.experiments.progress import duration
from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import FILE_NAME, Store

Source = Literal["finished runs", "probe", "unknown"]
HEADER = ("algorithm", "environment", "seeds", "steps", "finished", "failed", "to do", "a run takes", "judged by")
_PATIENCE = 10  # times the length of a probe, for an algorithm that collects long before it learns


@dataclass(frozen=True)
class Forecast:
    """The runs of one setting.

    :param spec: one of them
    :param runs: number of all
    :param finished: done already
    :param failed: these are not run again unless that is asked for
    :param seconds: wall-clock time that a run takes; ``None`` if it is not known
    :param source: how that is known: the median of finished runs of the same setting, or a short probe
    """

    spec: RunSpec
    runs: int
    finished: int
    failed: int
    seconds: float | None
    source: Source

    @property
    def open(self) -> int:
        """Number of runs still to do."""
        return self.runs - self.finished - self.failed

    def row(self) -> tuple[str, ...]:
        """Text for the columns of :data:`HEADER`."""
        time = "?" if self.seconds is None else duration(self.seconds)
        counts = (self.finished, self.failed, self.open)
        steps = f"{self.spec.total_steps:,}"
        head = (self.spec.label, self.spec.environment.id, str(self.runs), steps)
        return (*head, *map(str, counts), time, self.source)


def forecasts(
    runs: Sequence[RunSpec],
    folder: Path,
    probe_seconds: float,
    tell: Callable[[str], Any] = print,
    one_by_one: Callable[[Sequence[Forecast]], Iterable[Forecast]] = iter,
) -> list[Forecast]:
    """A forecast for each setting, in the order of the runs.

    :param runs: of the study, checked
    :param folder: where the study is, or will be; nothing is written
    :param probe_seconds: of training in a setting that has no finished run; 0 for no probes
    :param tell: told before the first probe
    :param one_by_one: gives the settings to be probed in turn; here a bar can show how far that is
    """
    records = _records(folder)
    settings: dict[str, list[RunSpec]] = {}
    for run in runs:
        settings.setdefault(run.settings_key, []).append(run)
    found = {key: _from_records(group, records) for key, group in settings.items()}
    to_probe = [forecast for forecast in found.values() if forecast.open and forecast.seconds is None]
    if to_probe and probe_seconds:
        tell(f"Trying {len(to_probe)} setting{'s' * (len(to_probe) > 1)} for about {probe_seconds:g} s each ...")
        found |= {f.spec.settings_key: _probed(f, probe_seconds) for f in one_by_one(to_probe)}
    return list(found.values())


def _records(folder: Path) -> dict[str, Record]:
    if not (folder / FILE_NAME).is_file():
        return {}
    with Store(folder / FILE_NAME, read_only=True) as store:
        return {record.spec.key: record for record in store.records(hidden=True)}


def _from_records(runs: Sequence[RunSpec], records: Mapping[str, Record]) -> Forecast:
    present = [records[run.key] for run in runs if run.key in records]
    same = [r for r in records.values() if r.spec.settings_key == runs[0].settings_key and r.outcome is not None]
    seconds = statistics.median(r.outcome.wall_seconds for r in same if r.outcome) if same else None
    statuses = [record.status for record in present]
    counts = statuses.count("finished"), statuses.count("failed")
    return Forecast(runs[0], len(runs), *counts, seconds, "finished runs" if same else "unknown")


def _probed(forecast: Forecast, seconds: float) -> Forecast:
    return replace(forecast, seconds=probe(forecast.spec, seconds), source="probe")


def probe(spec: RunSpec, seconds: float) -> float:
    """Seconds that a run is likely to take, from some training and one evaluation of the untrained policy.

    :param seconds: of training; until the next update is done, at most
    """
    began = time.perf_counter()
    venv = training_env(spec.environment, spec.seeds.train, gamma_of(spec))
    evaluator = Evaluator(spec.environment, spec.protocol.episodes, spec.seeds.evaluation, spec.protocol.deterministic)
    try:
        model = build_model(spec, venv)
        built = time.perf_counter() - began
        evaluation = evaluator(model).seconds
        stopwatch = _Stopwatch(seconds)
        model.learn(spec.total_steps, callback=stopwatch)
    finally:
        evaluator.close()
        venv.close()
    n_evaluations = 1 + spec.total_steps / spec.protocol.every + spec.protocol.test_episodes / spec.protocol.episodes
    return built + n_evaluations * evaluation + spec.total_steps * stopwatch.seconds_per_step()


class _Stopwatch(BaseCallback):
    """Ends training after some seconds: at the first update after them, or when its patience is at an end.

    Steps before learning starts are cheap, and few in a whole run: they do not count, unless there are no others.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.limit = seconds

    def _on_training_start(self) -> None:
        self._start = self._began = self._now()
        self._updated = self._now()

    def _on_rollout_start(self) -> None:
        self._updated = self._now()

    def _on_step(self) -> bool:
        if self.num_timesteps <= getattr(self.model, "learning_starts", 0):
            self._began = self._updated = self._now()
        patient = self._now()[0] - self._start[0] < self.limit * _PATIENCE
        return patient and self._updated[0] - self._began[0] < self.limit

    def _now(self) -> tuple[float, int]:
        return time.perf_counter(), self.num_timesteps

    def seconds_per_step(self) -> float:
        """From the beginning of learning to the last update; if that is nothing, from the first step to the last."""
        spans = ((self._began, self._updated), (self._start, self._now()))
        seconds, steps = next((y[0] - x[0], y[1] - x[1]) for x, y in spans if y[1] > x[1] or y == spans[1][1])
        return seconds / max(steps, 1)


def study_seconds(found: Iterable[Forecast], jobs: int) -> float | None:
    """Wall-clock time of all that is to do, ``jobs`` runs at once: the work shared out evenly, but no less than the
    longest run; ``None`` if the time of some run is not known."""
    todo = [(forecast.open, forecast.seconds) for forecast in found if forecast.open]
    if any(seconds is None for _, seconds in todo):
        return None
    known = [(number, seconds) for number, seconds in todo if seconds is not None]
    return max(sum(n * s for n, s in known) / jobs, max((s for _, s in known), default=0.0))
