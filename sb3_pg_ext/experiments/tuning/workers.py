"""The processes that work on a tuning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from sb3_pg_ext.experiments.executor import context
from sb3_pg_ext.experiments.tuning.ledger import process_of
from sb3_pg_ext.experiments.tuning.objective import SECONDS_BETWEEN_BEATS
from sb3_pg_ext.experiments.tuning.worker import Proposal, work

_IN_VAIN_IN_A_ROW = 5
_BEATS_IN_LIMIT = 4
# Seconds between two looks that count at most: while this process was stopped itself, nobody has stood still.
_LONGEST_LOOK = 10.0


class TuningError(RuntimeError):
    """The tuning cannot go on."""


class Order(NamedTuple):
    """What workers are to do: ask a study for trials, up to ``n_trials`` in all, and carry them out.

    One that has stood still for ``stall_limit`` seconds is ended.
    """

    storage: str
    study_name: str
    proposal: Proposal
    n_trials: int | None
    stall_limit: float

    @property
    def beats_every(self) -> float:
        """Seconds between signs of life: several within the limit."""
        return min(SECONDS_BETWEEN_BEATS, self.stall_limit / _BEATS_IN_LIMIT)


class _Sign(NamedTuple):
    """What was last seen of a worker: its trial, how far that was, and the seconds since."""

    of: Any
    still: float


class Workers:
    """The worker processes of one call, in numbered slots.

    :param order: what each of them is to do
    :param logs: folder of their log files
    :param jobs: number of slots
    :param trials: of the study, before any of them is started
    """

    def __init__(self, order: Order, logs: Path, jobs: int, trials: Sequence[FrozenTrial] = ()):
        self.order, self.logs, self.jobs = order, logs, jobs
        self._context = context()
        self._slots: dict[int, BaseProcess] = {}
        self._signs: dict[int, _Sign] = {}
        self._looked = time.monotonic()
        self._ended: list[int] = []
        self._in_vain = 0
        # Process numbers are used again: those of earlier trials say nothing of the processes started here.
        self._claimed_before = {trial.number for trial in trials if "owner" in trial.user_attrs}
        logs.mkdir(exist_ok=True)

    def __bool__(self) -> bool:
        return bool(self._slots)

    def start(self, wanted: float, trials: Sequence[FrozenTrial]) -> None:
        """Fill free slots, as long as more trials are wanted than workers have yet to ask for.

        :param trials: of the study, those from which ``wanted`` was counted
        """
        busy = {process_of(trial) for trial in trials if trial.state is TrialState.RUNNING}
        asking = sum(process.pid not in busy for process in self._slots.values())
        for slot in range(self.jobs):
            if slot not in self._slots and asking < wanted:
                self._slots[slot] = self._started(slot)
                asking += 1

    def _started(self, slot: int) -> BaseProcess:
        order, log = self.order, str(self.logs / f"worker{slot}_{time.time_ns()}.log")
        arguments = (order.storage, order.study_name, order.proposal, order.n_trials, order.beats_every, log)
        process: Any = self._context.Process(target=work, args=arguments, name=f"worker {slot}")
        process.start()
        return process

    def end_hung(self, trials: Sequence[FrozenTrial]) -> None:
        """Kill the processes that have not come any further for ``stall_limit`` seconds.

        :param trials: of the study
        """
        signs = {process_of(trial): _progress(trial) for trial in trials if trial.state is TrialState.RUNNING}
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, _LONGEST_LOOK), now
        for slot, process in self._slots.items():
            before, sign = self._signs.get(slot), signs.get(process.pid)
            still = before.still + passed if before and before.of == (process.pid, sign) else 0.0
            self._signs[slot] = _Sign((process.pid, sign), still)
            if still > self.order.stall_limit:
                process.kill()

    def reap(self) -> dict[int, str]:
        """Free the slots of processes that have ended; the numbers of these, and how.

        An exit code of 0 says little: whatever runs in a trial can end the process with it.
        """
        ended = {}
        for slot, process in list(self._slots.items()):
            if not process.is_alive():
                process.join()
                ended[process.pid or 0] = self._cause(slot, process.exitcode or 0)
                del self._slots[slot]
        self._ended += ended
        return ended

    def _cause(self, slot: int, exitcode: int) -> str:
        limit = self.order.stall_limit
        if slot in self._signs and self._signs[slot].still > limit:
            return f"had stood still for {limit:g} s and was ended"
        return f"ended with {f'signal {-exitcode}' if exitcode < 0 else f'exit code {exitcode}'}"

    def check_fruitful(self, trials: Sequence[FrozenTrial]) -> None:
        """
        :param trials: of the study
        :raises TuningError: worker processes end before they have claimed a trial, and would do so for ever
        """
        if self._ended:
            claimed = {process_of(trial) for trial in trials if trial.number not in self._claimed_before}
            for number in self._ended:
                self._in_vain = 0 if number in claimed else self._in_vain + 1
            self._ended.clear()
        if self._in_vain >= _IN_VAIN_IN_A_ROW:
            raise TuningError(f"{self._in_vain} worker processes in a row have ended without a trial: see {self.logs}")

    def wait(self, timeout: float) -> None:
        """Until a worker has ended, ``timeout`` seconds at most."""
        if not self._slots:
            time.sleep(timeout)
        connection.wait([process.sentinel for process in self._slots.values()], timeout)

    def close(self) -> set[int]:
        """End all processes; their numbers."""
        ended = {process.pid or 0 for process in self._slots.values()}
        for process in self._slots.values():
            process.kill()
        for process in self._slots.values():
            process.join()
        self._slots.clear()
        return ended


def _progress(trial: FrozenTrial) -> tuple[Any, ...]:
    """What is different once ``trial`` has come further."""
    beat = trial.user_attrs.get("beat")
    return trial.number, beat[1] if beat else None, len(trial.intermediate_values)
