"""Which trial is the best one: settled by fresh seeds, and told by others that had no part in the choice.

The best value of many noisy ones is too good to be true. So the best trials train again on seeds that no trial has
seen, beside the defaults; the best of these is the winner. What it is worth is measured a third time, on the seeds of
an ordinary comparison, by exactly the runs that ``sb3-pg compare`` would make.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from sb3_pg_ext.experiments.results import Record
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import choice_seeds, seeds_of
from sb3_pg_ext.experiments.tuning.fate import fate_of
from sb3_pg_ext.experiments.tuning.ledger import counts
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.tuning.workers import TuningError
from sb3_pg_ext.experiments.values import merge

#: What the best trials stand against: the defaults, or the settings that were given to stand for them.
DEFAULTS, START = "defaults", "start"
STALL_LIMIT = 1800.0  # seconds
_TEST_EPISODES = 100
_REASONS = 3  # in an error
_EVALUATIONS, _EPISODES = 20, 20  # those of sb3-pg compare


@dataclass(frozen=True)
class Contender:
    """Settings that stand for choice.

    :param label: ``trial <number>``, ``defaults`` or ``start``
    :param settings: sampled ones, as plain data, rounded to what anyone would type
    :param value: of the trial; ``None`` for the defaults, or the start
    :param scores: mean return of each run on fresh seeds
    """

    label: str
    settings: Mapping[str, Any]
    value: float | None
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Winner:
    """The outcome of a tuning.

    :param label: ``trial <number>``, ``defaults`` or ``start``
    :param settings: all that differs from the constructor's defaults, as plain data
    :param contenders: all that stood for choice, the best first
    :param n_trials: of the tuning, those that were given up included
    :param scores: mean return of each run of the winner on the seeds that judge it, of those that the rival has
        finished as well
    :param rival: the defaults, or the settings that were given to stand for them, with the same on the same seeds
    :param missing: number of the seeds that judge it on which one of the two has not finished its run
    """

    label: str
    settings: Mapping[str, Any]
    contenders: Sequence[Contender]
    n_trials: int
    scores: tuple[float, ...]
    rival: Contender
    missing: int = 0

    @property
    def doubt(self) -> str | None:
        """Why the settings are not worth an entry, as a sentence; ``None`` if they are."""
        if self.label == self.rival.label:
            return f"No trial is better than the {self.rival.label}."
        if self.missing:
            n_seeds = self.missing + len(self.scores)
            return f"There is no verdict: runs on {self.missing} of its {n_seeds} seeds are not finished."
        advantage = worth(self.scores) - worth(self.rival.scores)
        if advantage == 0:
            return f"By the verdict the trial is no better than the {self.rival.label}."
        return "The verdict is against the trial." if advantage < 0 else None


def choose(
    study: Study,
    plan: Plan,
    folder: Path,
    top: int = 5,
    seeds: int = 5,
    jobs: int | None = None,
    total_steps: int | None = None,
    console: Any = None,
    stall_limit: float = STALL_LIMIT,
) -> Winner:
    """See :meth:`~sb3_pg_ext.experiments.tuning.tuning.Tuning.choose`. Finished runs are kept: nothing runs twice."""
    plan = replace(plan, total_steps=total_steps or plan.total_steps)
    train = partial(_records, jobs=jobs, console=console, stall_limit=stall_limit)
    start = study.user_attrs.get("start", {})
    rival = Contender(START if start else DEFAULTS, start, None)
    trials = study.get_trials(deepcopy=False)
    contenders = [*finalists([t for t in trials if "given" not in t.user_attrs], top), rival]
    candidates = {c.label: [_candidate_run(plan, c, number) for number in range(seeds)] for c in contenders}
    found = train(candidates, folder / "choice")
    scores = {label: _finished(records) for label, records in found.items()}
    ranked = sorted(
        # One whose runs have failed is not chosen by those that have not.
        (replace(c, scores=tuple(scores[c.label].values())) for c in contenders if len(scores[c.label]) == seeds),
        key=lambda c: standing(c.label, worth(c.scores)),
        reverse=True,
    )
    if not ranked:
        raise TuningError(_none_finished(folder / "choice", found))
    best = ranked[0]
    judged = {rival.label: rival} if best.label == rival.label else {"tuned": best, rival.label: rival}
    verdict = {label: [_judged_run(plan, label, c, number) for number in range(seeds)] for label, c in judged.items()}
    ours, theirs = _paired(train(verdict, folder / "verdict"), rival.label)
    settings, n_trials = merge(_around(plan), best.settings), sum(map(counts, trials))
    rival = replace(rival, scores=theirs)
    return Winner(best.label, settings, ranked, n_trials, ours, rival, missing=seeds - len(ours))


def finalists(trials: Sequence[FrozenTrial], top: int) -> list[Contender]:
    """The ``top`` best of the trials that were completed, equal settings once."""
    complete = [trial for trial in trials if fate_of(trial) == "completed"]
    whole = max((len(trial.user_attrs.get("scores", ())) for trial in complete), default=0)
    complete = [trial for trial in complete if len(trial.user_attrs.get("scores", ())) == whole]
    best: dict[str, Contender] = {}
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        settings = rounded(trial.user_attrs["settings"])
        best.setdefault(repr(settings), Contender(f"trial {trial.number}", settings, float(trial.value or 0.0)))
    return list(best.values())[:top]


def worth(scores: Sequence[float]) -> float:
    """What contenders are compared by: the mean over seeds, since medians are equal wherever a task has a ceiling."""
    return float(np.mean(scores))


def standing(label: str, value: float) -> tuple[float, bool]:
    """What contenders are ranked by, the best has the most: who is only as good as the rival is not chosen."""
    return value, label in (DEFAULTS, START)


def rounded(value: Any) -> Any:
    """Numbers with three significant digits, those just below 1 by their distance from it."""
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    if 0.9 < value < 1.0:
        return round(1.0 - float(f"{1.0 - value:.2g}"), 12)
    return float(f"{value:.3g}")


def _around(plan: Plan) -> dict[str, Any]:
    """Settings that were fixed."""
    return merge({} if plan.n_envs is None else {"n_envs": plan.n_envs}, plan.arguments)


def _candidate_run(plan: Plan, contender: Contender, number: int) -> RunSpec:
    run = plan.run(contender.label, contender.settings, number, choice_seeds(plan.master_seed, number))
    # The test alone decides: evaluations on the way would take longer than many a training.
    return replace(run, protocol=Protocol(plan.total_steps, 1, plan.deterministic, _TEST_EPISODES))


def _judged_run(plan: Plan, label: str, contender: Contender, number: int) -> RunSpec:
    # Those of `sb3-pg compare` with its own master seed, so that the command repeats the number.
    protocol = Protocol(math.ceil(plan.total_steps / _EVALUATIONS), _EPISODES, plan.deterministic, _TEST_EPISODES)
    return replace(plan.run(label, contender.settings, number, seeds_of(0, number)), protocol=protocol)


def _records(
    runs: Mapping[str, list[RunSpec]], folder: Path, jobs: int | None, console: Any, stall_limit: float
) -> dict[str, list[Record]]:
    """Have the runs carried out; label -> what has become of each of its runs."""
    from sb3_pg_ext.experiments.console import console as default_console
    from sb3_pg_ext.experiments.executor import LocalProcesses
    from sb3_pg_ext.experiments.progress import progress_of
    from sb3_pg_ext.experiments.provenance import command
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.study import carry_out

    specs = [spec for group in runs.values() for spec in group]
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(specs, command())
        executor = LocalProcesses(store, jobs, silence=stall_limit)
        with progress_of(specs, console or default_console()) as progress:
            carry_out(specs, store, executor, progress)
        records = {record.spec.key: record for record in store.records(hidden=True)}
        return {label: [records[spec.key] for spec in group] for label, group in runs.items()}


def _paired(found: Mapping[str, Sequence[Record]], rival: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Final returns of the winner and of the rival, who may be the same, with the seeds of which both have finished."""
    theirs = _finished(found[rival])
    ours = _finished(found.get("tuned", found[rival]))
    both = [number for number in ours if number in theirs]
    return tuple(ours[number] for number in both), tuple(theirs[number] for number in both)


def _finished(records: Sequence[Record]) -> dict[int, float]:
    """Replicate -> final return of the runs that have come to their end."""
    return {record.spec.replicate: record.final_return for record in records if record.status == "finished"}


def _none_finished(folder: Path, found: Mapping[str, Sequence[Record]]) -> str:
    """Why there is nobody to choose, with the last line of some tracebacks."""
    errors = [(label, record.error) for label, records in found.items() for record in records if record.error]
    reasons = list(dict.fromkeys(f"{label}: {error.strip().splitlines()[-1]}" for label, error in errors))
    return (
        f"some runs of every contender have failed: {'; '.join(reasons[:_REASONS])}. "
        f"All of them: {shlex.join(['sb3-pg', 'report', str(folder)])}"
    )
