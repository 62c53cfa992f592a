"""Which trials count: each is carried out once, whatever happens to the processes that work on them.

Optuna's storages have no transactions over several trials, and their heartbeats, where they have them, close a trial
whose worker has died but do not say what becomes of it. So here a trial carries the name of its *owner* and a *beat*
that changes while it lives. A trial is *lost* if its owner is dead or silent. Whoever notices enqueues it anew, as a
trial *in place of* the lost one, and only then closes the lost one: a kill between the two leaves something to notice.
If two processes notice at once, there are two trials in place of one; the one with the lower number is carried out, the
other is *void*. A new trial that was begun although there are enough is void as well. Neither void nor lost trials
count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from sb3_pg_ext.experiments.owner import Owner

MAX_DEATHS = 2  # a trial whose workers die this often is failed: it may well be what kills them
# Seconds without a beat after which a worker on another machine is taken for dead; and any worker of a trial that has
# no owner yet, as long as the sampler thinks about it.
SILENCE = 120.0
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class VoidTrialError(RuntimeError):
    """This trial is not needed."""


def counts(trial: FrozenTrial) -> bool:
    """Whether ``trial`` is one of those that were asked for: not void, and not lost."""
    if trial.state is TrialState.FAIL:
        return "reason" in trial.user_attrs
    return "void" not in trial.user_attrs


def name_of(trial: FrozenTrial) -> str | None:
    """Under which ``trial`` was asked for, see :func:`enqueue_once`; ``None`` of one that a sampler has proposed."""
    marks = trial.user_attrs
    # Earlier studies have it where there is now nothing but the number of a lost trial.
    return marks.get("name", marks["in_place_of"] if isinstance(marks.get("in_place_of"), str) else None)


def lost_of(trial: FrozenTrial) -> int | None:
    """Number of the lost trial that ``trial`` is in place of."""
    number = trial.user_attrs.get("in_place_of")
    return number if isinstance(number, int) else None


def origin_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The trial that was lost first, and that ``trial`` is in place of in the end; itself, if it is in place of none.

    :param trials: of the study, by number
    """
    while (number := lost_of(trial)) is not None and number < len(trials):
        trial = trials[number]
    return trial


def place_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """How many others were begun before ``trial``, each counted once however often it was lost or asked for.

    It never changes, whatever becomes of the others, and only trials of which one is void have the same.

    :param trials: of the study, by number
    """

    def identity(trial: FrozenTrial) -> str | int:
        origin = origin_of(trial, trials)
        return name_of(origin) or origin.number

    return list(dict.fromkeys(map(identity, trials))).index(identity(trial))


def claim(study: Study, trial: Trial, n_trials: int | None) -> None:
    """Make ``trial`` the work of this process.

    :param n_trials: how many are wanted in all
    :raises VoidTrialError: it is not needed
    """
    trial.set_user_attr("owner", str(Owner.current()))
    reason = _why_void(study.get_trials(deepcopy=False), trial.number, n_trials)
    if reason:
        trial.set_user_attr("void", reason)
        raise VoidTrialError(reason)


def _why_void(trials: Sequence[FrozenTrial], number: int, n_trials: int | None) -> str | None:
    trial = trials[number]
    same = (lost_of(trial), name_of(trial))
    twins = [t.number for t in trials[:number] if (lost_of(t), name_of(t)) == same and "void" not in t.user_attrs]
    if twins and same != (None, None):
        return f"trial {twins[0]} is the same"
    if n_trials is not None and lost_of(trial) is None and sum(map(counts, trials[:number])) >= n_trials:
        return f"there are {n_trials} trials already"
    return None


def enqueue_once(study: Study, parameters: dict[str, Any], name: str, **marks: Any) -> None:
    """Have a trial with ``parameters`` carried out, once however many processes ask for it under the same name.

    :param marks: user attributes of the trial, and of those in place of it
    """
    if not any(name_of(trial) == name for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(parameters, user_attrs={"name": name, **marks})


class Recovery:
    """Finds the lost trials of a study and has them carried out again.

    :param study: any number of processes may watch over it
    """

    def __init__(self, study: Study):
        self.study = study
        self._beats: dict[int, tuple[Any, float]] = {}

    def __call__(self, killed: Mapping[int, str] | None = None) -> list[int]:
        """Look once.

        :param killed: process numbers of workers of this machine that have ended, and how: ``"ended with signal 9"``;
            who has ended before its trial has died over it
        :return: numbers of the trials that are done again
        """
        killed = killed or {}
        trials = self.study.get_trials(deepcopy=False)
        replaced = {lost_of(trial) for trial in trials if "void" not in trial.user_attrs}
        again = []
        for trial in trials:
            if self._is_abandoned(trial):
                # It may have ended well after it was read, and its worker with it. Now that the worker is known to be
                # dead, it stays what it is.
                trial = self.study.get_trials(deepcopy=False)[trial.number]
            elif trial.state is TrialState.RUNNING:
                continue
            if trial.state not in (TrialState.RUNNING, TrialState.FAIL):
                continue
            settled = "void" in trial.user_attrs or "reason" in trial.user_attrs  # its worker had just said so
            why = killed.get(process_of(trial) or 0)
            deaths = trial.user_attrs.get("deaths", 0) + (why is not None)
            if not settled and trial.number not in replaced and deaths < MAX_DEATHS:
                given = {"given": trial.user_attrs["given"]} if "given" in trial.user_attrs else {}
                marks = {"in_place_of": trial.number, "deaths": deaths, **given}
                self.study.enqueue_trial(_parameters(trial), user_attrs=marks)
                again.append(trial.number)
            if trial.state is TrialState.RUNNING:
                fatal = not settled and deaths >= MAX_DEATHS
                reason = f"{deaths} workers died over it; the last one {why or 'did not end by itself'}"
                self._close(trial, reason=reason if fatal else None, lost=None if settled else why)
        return again

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        if trial.state is not TrialState.RUNNING:
            return False
        owner = trial.user_attrs.get("owner")
        dead = None if owner is None else Owner.parse(owner).is_dead()
        return self._is_silent(trial) if dead is None else dead

    def _is_silent(self, trial: FrozenTrial) -> bool:
        """By the clock of this process alone: those of two machines may differ."""
        beat, now = trial.user_attrs.get("beat"), time.monotonic()
        before, since = self._beats.get(trial.number, (None, now))
        if trial.number not in self._beats or before != beat:
            self._beats[trial.number] = (beat, now)
            return False
        return now - since > SILENCE

    def _close(self, trial: FrozenTrial, **marks: str | None) -> None:
        try:
            for name, mark in marks.items():
                if mark is not None:
                    Trial(self.study, trial._trial_id).set_user_attr(name, mark)
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        except (optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
            return  # somebody else was faster


def process_of(trial: FrozenTrial) -> int | None:
    """Number of the process that works, or has worked, on ``trial``, if it is one of this machine."""
    owner = trial.user_attrs.get("owner")
    here = owner and Owner.parse(owner).host == Owner.current().host
    return Owner.parse(owner).pid if owner and here else None


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """Those that the trial has, and those that it was to have: it may have been lost before it asked for all."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
