"""The loop that has trials carried out, and what comes after it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sb3_pg_ext import registry
from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.bases.options import check_count, check_number
from sb3_pg_ext.experiments.building import check
from sb3_pg_ext.experiments.executor import usable_cores
from sb3_pg_ext.experiments.provenance import provenance, versions, without_password
from sb3_pg_ext.experiments.tuning.choice import STALL_LIMIT, Winner, choose
from sb3_pg_ext.experiments.tuning.ledger import ENDED, Recovery, counts, enqueue_once, process_of
from sb3_pg_ext.experiments.tuning.plan import Plan, plan_of
from sb3_pg_ext.experiments.tuning.samplers import check_packages, compared, make_pruner, make_sampler
from sb3_pg_ext.experiments.tuning.starting_point import parameters_of
from sb3_pg_ext.experiments.tuning.storages import JOURNAL, close_storage, open_storage
from sb3_pg_ext.experiments.tuning.worker import Proposal
from sb3_pg_ext.experiments.tuning.workers import Order, TuningError, Workers
from sb3_pg_ext.experiments.values import SettingError, merge

TUNING_FILE, WINNER_FILE = "tuning.json", "winner.json"
_SECONDS_BETWEEN_LOOKS = 0.5
_FAILURES_IN_A_ROW = 5
_SECONDS_FOR_A_PLAN = 10.0
_SECONDS_WITHOUT_STORAGE = 120.0
_SECONDS_TO_DIE = 5.0  # of a process, after it was killed


class Watcher(Protocol):
    """Told about twice a second how the trials are."""

    def look(self, trials: list[FrozenTrial], n_trials: int | None) -> None:
        """
        :param trials: all of the study
        :param n_trials: how many are wanted
        """


class _Nobody:
    def look(self, trials: list[FrozenTrial], n_trials: int | None) -> None:
        """Nothing to show."""


class Tuning:
    """A study of Optuna that any number of processes, on any number of machines, may work on.

    :param plan: what is tuned, see :func:`~sb3_pg_ext.experiments.tuning.plan.plan_tuning`
    :param folder: for the report, the log files and the runs of the final choice
    :param storage: URL of the trials, see :func:`~sb3_pg_ext.experiments.tuning.storages.open_storage`; by default a
        journal file in ``folder``
    :param study_name: of the study in it; algorithm and environment by default
    :param proposal: sampler and pruner
    :param start: settings that stand for the defaults: of the first trial, and of what the winner is compared with;
        only the call that begins the study can choose them
    :raises SettingError: the study was begun with another plan, the folder belongs to another study, or an option is
        not allowed
    :raises ModuleNotFoundError: a package that an option needs is not installed
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | Path,
        storage: str | None = None,
        study_name: str | None = None,
        proposal: Proposal | None = None,
        start: Mapping[str, Any] | None = None,
    ):
        self.plan, self.folder, self.proposal = plan, Path(folder), proposal or Proposal()
        self.storage = storage or f"{JOURNAL}{self.folder / 'trials.log'}"
        self.study_name = study_name or f"{plan.algo}_{plan.env_id}"
        check_packages(self.proposal.sampler, self.proposal.pruner)
        make_sampler(self.proposal.sampler, plan.master_seed, 0, self.proposal.n_startup_trials)
        make_pruner(self.proposal.pruner, plan)
        check(plan.run("the first trial", start or {}, 0))
        self._check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._storage = open_storage(self.storage)
        self.study = self._open(start or {})
        self._write(TUNING_FILE, {"storage": without_password(self.storage), "study_name": self.study_name})

    def _check_folder(self) -> None:
        """One study to a folder: reports, choice and entry of a second one would take the place of the first's."""
        path = self.folder / TUNING_FILE
        owner = json.loads(path.read_text(encoding="utf-8"))["study_name"] if path.is_file() else self.study_name
        if owner != self.study_name:
            raise SettingError(
                f"folder={str(self.folder)!r} belongs to the study {owner!r}: {self.study_name!r} needs another one"
            )

    def close(self) -> None:
        """End the connections to the storage."""
        close_storage(self._storage)

    def __enter__(self) -> Tuning:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _open(self, start: Mapping[str, Any]) -> Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:  # only one process can create it, and that one says what it is
            study = optuna.create_study(
                study_name=self.study_name, storage=self._storage, direction=StudyDirection.MAXIMIZE
            )
            self._begin(study, start)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=self.study_name, storage=self._storage)
            self._join(study, start)
        call = {name: str(value) for name, value in provenance().items()}
        study.set_user_attr("calls", [*study.user_attrs.get("calls", []), call])
        given = study.user_attrs["start"]
        first = merge(registry.get(self.plan.algo).defaults, self.plan.arguments, given)
        enqueue_once(study, parameters_of(self.plan.dimensions, first), "the first trial", given=given)
        return study

    def _begin(self, study: Study, start: Mapping[str, Any]) -> None:
        study.set_user_attr("start", dict(start))
        study.set_user_attr("versions", versions(registry.get(self.plan.algo).cls))
        study.set_user_attr("compared", compared(self.proposal.pruner))
        study.set_user_attr("plan", self.plan.to_json())  # the last one: who finds it finds the others

    def _join(self, study: Study, start: Mapping[str, Any]) -> None:
        """
        :raises SettingError: the study is of something else
        """
        where = f"the study {self.study_name!r} in {without_password(self.storage)}"
        patience = time.monotonic() + _SECONDS_FOR_A_PLAN
        while "plan" not in study.user_attrs and time.monotonic() < patience and not study.trials:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if "plan" not in study.user_attrs:
            if study.trials or study.direction is not StudyDirection.MAXIMIZE:
                raise SettingError(f"{where} was not begun by sb3-pg tune. Give another --study-name")
            self._begin(study, start)  # who created it was killed
        differences = self.plan.differences(plan_of(study.user_attrs))
        how, before = compared(self.proposal.pruner), study.user_attrs.get("compared") or _compared_before(study)
        if before is None:
            study.set_user_attr("compared", how)
        elif how != before:
            pruner = f"pruner={self.proposal.pruner!r}"
            differences.append(f"{pruner} compares trials {how}, but so far they were compared {before}")
        if start and start != study.user_attrs["start"]:
            differences.append(f"start is {dict(start)!r}, but was {study.user_attrs['start']!r}")
        if differences:
            raise SettingError(
                f"{where} was begun otherwise: {'; '.join(differences)}. "
                "Give another --study-name, or the options it was begun with"
            )

    def run(
        self,
        n_trials: int | None = 100,
        jobs: int | None = None,
        timeout: float | None = None,
        watcher: Watcher | None = None,
        stall_limit: float = STALL_LIMIT,
    ) -> None:
        """Have trials carried out until there are ``n_trials`` in the study, or the time is over.

        Trials that were lost, by a kill or Ctrl-C or a crash of their process, are carried out again. On an exception,
        Ctrl-C included, the trials under way are ended, and begun again by the next call.

        :param n_trials: how many are wanted in all, those of other processes and earlier calls included
        :param jobs: worker processes; one per usable core by default
        :param timeout: seconds after which no trial is begun
        :param watcher: told of the progress
        :param stall_limit: seconds after which a worker that has not come any further is ended, and its trial lost
        :raises TuningError: the first trials have all failed
        :raises ValueError: neither ``n_trials`` nor ``timeout`` is given, or a number is not allowed
        """
        check_count("n_trials", n_trials, optional=True)
        check_count("jobs", jobs, optional=True)
        check_number("stall_limit", stall_limit, 0, math.inf, above=True)
        if n_trials is None and timeout is None:
            raise ValueError("n_trials=None and timeout=None: one of them must end the tuning")
        if timeout is not None:
            check_number("timeout", timeout, 0, math.inf)
        before = self.study.get_trials(deepcopy=False)
        workers = Workers(self._order(n_trials, stall_limit), self.folder / "logs", jobs or usable_cores(), before)
        recover, end = Recovery(self.study), time.monotonic() + (float("inf") if timeout is None else timeout)
        watcher, connection_ = watcher or _Nobody(), _Connection(self.storage)
        ended_before = {trial.number for trial in before if trial.state in ENDED}
        ended: dict[int, str] = {}
        try:
            while True:
                ended |= workers.reap()
                with connection_:
                    recover(ended)
                    ended.clear()
                    trials = self.study.get_trials(deepcopy=False)
                    watcher.look(trials, n_trials)
                    workers.end_hung(trials)
                    workers.check_fruitful(trials)
                    wanted = _open_places(trials, n_trials) if _is_worth_while(trials, ended_before) else 0
                    if time.monotonic() < end:
                        workers.start(wanted, trials)
                    elif not workers:
                        return
                    if not workers and n_trials is not None and _all_ended(trials, n_trials):
                        return
                workers.wait(_SECONDS_BETWEEN_LOOKS)
        finally:
            under_way = workers.close()
            with contextlib.suppress(Exception):  # the next call does it as well
                self._recover(under_way)

    def _recover(self, ended: set[int]) -> None:
        """Have the trials of ``ended`` processes begun again by the next call.

        What the study knows may have been cut short by Ctrl-C in the middle, and is read anew.
        """
        storage, patience = open_storage(self.storage), time.monotonic() + _SECONDS_TO_DIE
        try:
            study = optuna.load_study(study_name=self.study_name, storage=storage)
            while True:
                Recovery(study)()
                running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                if time.monotonic() > patience or not any(process_of(trial) in ended for trial in running):
                    return
                time.sleep(0.1)
        finally:
            close_storage(storage)

    def _order(self, n_trials: int | None, stall_limit: float) -> Order:
        return Order(self.storage, self.study_name, self.proposal, n_trials, stall_limit)

    def choose(
        self,
        top: int = 5,
        seeds: int = 5,
        jobs: int | None = None,
        total_steps: int | None = None,
        console: Any = None,
        stall_limit: float = STALL_LIMIT,
    ) -> Winner:
        """Train the best trials and the defaults again on fresh seeds, take the best, and judge it on others.

        :param top: how many trials
        :param seeds: runs of each
        :param jobs: runs at once
        :param total_steps: environment steps of each run; those of the tuning by default
        :param console: of rich, for progress
        :param stall_limit: seconds after which a run that stands still is ended
        :raises TuningError: no trial has been completed, or some runs of every contender have failed
        :raises ValueError: a number is not allowed
        """
        check_count("top", top)
        check_count("seeds", seeds)
        check_count("jobs", jobs, optional=True)
        check_count("total_steps", total_steps, optional=True)
        check_number("stall_limit", stall_limit, 0, math.inf, above=True)
        if not any(trial.state is TrialState.COMPLETE for trial in self.study.get_trials(deepcopy=False)):
            raise TuningError(f"no trial of {self.study_name!r} has been completed: there is nothing to choose from")
        winner = choose(self.study, self.plan, self.folder, top, seeds, jobs, total_steps, console, stall_limit)
        self._write(WINNER_FILE, asdict(winner))
        return winner

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


class _Connection:
    """Errors of a database are waited out for a while: servers are restarted.

    :param storage: URL
    """

    def __init__(self, storage: str):
        self.storage = storage
        self._failing_since: float | None = None

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> bool:
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, (SQLAlchemyError, optuna.exceptions.StorageInternalError)):
            self._failing_since = None if error is None else self._failing_since
            return False
        self._failing_since = self._failing_since or time.monotonic()
        if time.monotonic() - self._failing_since > _SECONDS_WITHOUT_STORAGE:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            where_ = without_password(self.storage)
            raise TuningError(f"{where_} has not answered for {_SECONDS_WITHOUT_STORAGE:.0f} s: {reason}") from None
        time.sleep(1.0)
        return True


def _open_places(trials: list[FrozenTrial], n_trials: int | None) -> float:
    """How many trials are still to be begun; those that wait in the queue are among them."""
    if n_trials is None:
        return float("inf")
    return n_trials - sum(counts(trial) for trial in trials if trial.state is not TrialState.WAITING)


def _all_ended(trials: list[FrozenTrial], n_trials: int) -> bool:
    return sum(counts(trial) and trial.state in ENDED for trial in trials) >= n_trials and not any(
        trial.state is TrialState.RUNNING for trial in trials
    )


def _is_worth_while(trials: list[FrozenTrial], ended_before: Collection[int]) -> bool:
    """Whether to begin more trials: not if all have failed so far; those under way have the last word then.

    :param trials: of the study
    :param ended_before: numbers of those that earlier calls have seen end
    :raises TuningError: there is none under way
    """
    if any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials):
        return True
    failed = [t for t in trials if t.state is TrialState.FAIL and counts(t) and t.number not in ended_before]
    if len(failed) < _FAILURES_IN_A_ROW:
        return True
    if any(trial.state is TrialState.RUNNING for trial in trials):
        return False
    reasons = dict.fromkeys(trial.user_attrs["reason"] for trial in failed)
    raise TuningError(f"all of the first {len(failed)} trials have failed: {'; '.join(list(reasons)[:3])}")


def _compared_before(study: Study) -> str | None:
    """How the trials of a study were compared that does not say so; ``None`` if nothing was reported."""
    reported = [trial.intermediate_values for trial in study.get_trials(deepcopy=False) if trial.intermediate_values]
    if not reported:
        return None
    return compared("wilcoxon" if any(0 in values for values in reported) else "median")
