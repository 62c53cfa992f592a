"""What a tuning shows in the terminal while it is under way."""

from __future__ import annotations

import time
from types import TracebackType

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from sb3_pg_ext.experiments.progress import duration
from sb3_pg_ext.experiments.summary import number
from sb3_pg_ext.experiments.tuning.choice import rounded
from sb3_pg_ext.experiments.tuning.fate import fate_of, fate_text
from sb3_pg_ext.experiments.tuning.ledger import ENDED, counts
from sb3_pg_ext.experiments.values import as_text

_SIGNS = {"completed": "[green]✓[/]", "cut": "[yellow]✂[/]", "pruned": "[yellow]✂[/]", "failed": "[red]✗[/]"}


class TuningProgress:
    """A line for each trial that has ended, and one that says how far the tuning is.

    :param console: where to
    """

    def __init__(self, console: Console):
        self.console = console
        self._told: set[int] = set()
        self._first = True
        self._began = time.monotonic()
        self._status: Status | None = console.status("starting …") if console.is_terminal else None

    def __enter__(self) -> TuningProgress:
        if self._status:
            self._status.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._status:
            self._status.__exit__(kind, error, where)

    def look(self, trials: list[FrozenTrial], n_trials: int | None) -> None:
        """See :class:`~sb3_pg_ext.experiments.tuning.tuning.Watcher`."""
        ended = [trial for trial in trials if trial.state in ENDED]
        if self._first and ended:
            self.console.print(f"{sum(map(counts, ended))} trials are in the storage already.", highlight=False)
            self._told = {trial.number for trial in ended}
        self._first = False
        for trial in ended:
            if trial.number not in self._told:
                self._told.add(trial.number)
                self.console.print(self._line(trial, trials), highlight=False, soft_wrap=True)
        if self._status:
            self._status.update(self._state(trials, n_trials))

    def _line(self, trial: FrozenTrial, trials: list[FrozenTrial]) -> str:
        fate = fate_of(trial)
        head = f"{_SIGNS[fate]} trial {trial.number:<4}"
        if fate in ("completed", "cut"):
            best = _best(trials)
            mark = "  [bold]best so far[/]" if best is not None and best.number == trial.number else ""
            mark = f"  {fate_text(trial)}" if fate == "cut" else mark
            return f"{head} {number(trial.value or 0.0):>9}{mark}  {escape(short_settings(trial))}"
        if fate == "pruned":
            return f"{head} {'pruned':>9}  {escape(short_settings(trial))}"
        reason = trial.user_attrs.get("reason")
        if reason:
            return f"{head} {'failed':>9}  {escape(reason.splitlines()[0])}"
        void = trial.user_attrs.get("void")
        return f"[dim]- trial {trial.number:<4} {escape(void or _loss(trial))}[/]"

    def _state(self, trials: list[FrozenTrial], n_trials: int | None) -> str:
        ended = sum(counts(trial) and trial.state in ENDED for trial in trials)
        running = [trial for trial in trials if trial.state is TrialState.RUNNING]
        best = _best(trials)
        parts = (
            f"{ended} of {n_trials} trials" if n_trials else f"{ended} trials",
            f"{len(running)} running",
            f"best {number(best.value or 0.0)} (trial {best.number})" if best else "",
            f"{duration(time.monotonic() - self._began)} elapsed",
        )
        return " · ".join(part for part in parts if part)


def _loss(trial: FrozenTrial) -> str:
    why = trial.user_attrs.get("lost")
    return f"was lost and is done again: its worker {why}" if why else "was lost and is done again"


def short_settings(trial: FrozenTrial) -> str:
    """The sampled settings of a trial on one line."""
    settings = trial.user_attrs.get("settings", {})
    return ", ".join(f"{name}={as_text(rounded(value))}" for name, value in settings.items())


def _best(trials: list[FrozenTrial]) -> FrozenTrial | None:
    complete = [trial for trial in trials if fate_of(trial) == "completed" and trial.value is not None]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)
