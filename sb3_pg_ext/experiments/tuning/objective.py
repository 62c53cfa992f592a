"""One trial: a training run for each seed, given up as soon as the pruner has seen enough."""

from __future__ import annotations

import copy
import math
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.pruners import MedianPruner, WilcoxonPruner
from optuna.study import Study
from optuna.trial import Trial

from sb3_pg_ext.experiments.results import Evaluation, Kind
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.tuning.fate import mark_cut
from sb3_pg_ext.experiments.tuning.ledger import VoidTrialError, claim
from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.spec import suggest

SECONDS_BETWEEN_BEATS = 15.0


class _StopTrial(Exception):
    """Ends the run under way."""


def objective(
    trial: Trial, plan: Plan, n_trials: int | None = None, beats_every: float = SECONDS_BETWEEN_BEATS
) -> float:
    """The value of a trial: ``plan.aggregate`` over its seeds of the mean return in the last evaluation.

    :param trial: of a study of ``plan``
    :param n_trials: how many trials are wanted in all
    :param beats_every: seconds between signs of life
    :raises VoidTrialError: the trial is not needed
    :raises optuna.TrialPruned: the pruner has ended it
    :raises Exception: a run has failed; why is kept in the trial, as ``reason`` and ``traceback``
    """
    claim(trial.study, trial, n_trials)
    began = time.perf_counter()
    try:
        runs = _Runs(trial, plan)
        with _beating(trial, runs, beats_every):
            return runs.value()
    except optuna.TrialPruned:
        raise
    except (Exception, SystemExit) as error:
        trial.set_user_attr("traceback", traceback.format_exc())
        trial.set_user_attr("reason", f"{type(error).__name__}: {error}")
        if isinstance(error, SystemExit):
            raise RuntimeError("a run has asked the process to end") from error
        raise
    finally:
        if "reason" not in trial.user_attrs:
            trial.set_user_attr("seconds", time.perf_counter() - began)


class _Runs:
    """The runs of a trial, one after another; it is the recorder of each."""

    def __init__(self, trial: Trial, plan: Plan):
        self.trial, self.plan = trial, plan
        self.scores: list[float] = []  # of the runs that have ended
        self.latest = math.nan
        self.moves = 0  # steps and evaluations so far
        self.by_seed = isinstance(trial.study.pruner, WilcoxonPruner)

    def value(self) -> float:
        sampled = suggest(self.plan.dimensions, self.trial)
        # The space may not hold what a trial is asked for with, such as the defaults: it has the nearest parameters.
        settings = self.trial.user_attrs.get("given", sampled)
        self.trial.set_user_attr("settings", settings)
        for replicate in range(self.plan.seeds_per_trial):
            try:
                execute(self.plan.run(f"trial {self.trial.number}", settings, replicate), self)
            except _StopTrial:
                raise optuna.TrialPruned(f"after {replicate} runs and a part of another") from None
            self.scores.append(self.latest)
            self.trial.set_user_attr("scores", self.scores)
            if self.by_seed and self._is_worse_by_seed(replicate):
                if len(self.scores) < self.plan.seeds_per_trial:
                    mark_cut(self.trial, len(self.scores), self.plan.seeds_per_trial)
                break
        return self.plan.value(self.scores)

    def _is_worse_by_seed(self, replicate: int) -> bool:
        # What has been seen of the trial stays its value: the signed-rank test says that it is worse, not how much.
        self.trial.report(self.latest, step=replicate)
        return self.trial.should_prune()

    def progress(self, step: int, train_seconds: float) -> None:
        """The runs are getting on."""
        self.moves += 1

    def evaluation(self, kind: Kind, evaluation: Evaluation) -> None:
        """Report what the trial is worth so far, at the environment steps of all its runs."""
        self.moves += 1
        self.latest = evaluation.mean_return
        if self.by_seed or evaluation.step == 0:
            return
        total, every = self.plan.total_steps, self.plan.every
        # Trials with other rollouts are evaluated some steps later: reports go to the step at which they were due.
        due = total if evaluation.step >= total else evaluation.step // every * every
        step = len(self.scores) * total + due
        value = self.plan.value([*self.scores, self.latest])
        self.trial.report(value, step)
        last = step == total * self.plan.seeds_per_trial
        if not last and should_prune(self.trial.study, self.trial, step, value):
            raise _StopTrial


def should_prune(study: Study, trial: Trial, step: int, value: float) -> bool:
    """What the study's pruner says of ``trial``, which has come to ``value`` at ``step``.

    Optuna's median pruner compares the best value that the trial ever had, and one lucky seed would protect a trial to
    its end. It is shown the present value only.
    """
    if not isinstance(study.pruner, MedianPruner):
        return trial.should_prune()
    present = copy.copy(study.get_trials(deepcopy=False)[trial.number])
    present.intermediate_values = {step: value}
    return study.pruner.prune(study, present)


@contextmanager
def _beating(trial: Trial, runs: _Runs, every: float) -> Iterator[None]:
    """Signs of life from a thread, as a run may be silent for long: that the process is there, and how far it is."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(every):
            number += 1
            try:
                trial.set_user_attr("beat", [number, runs.moves])
            except optuna.exceptions.UpdateFinishedTrialError:
                return
            except Exception:
                continue  # the storage does not answer; the next beat may come through

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


__all__ = ["VoidTrialError", "objective", "should_prune"]
