"""What has become of a trial: a state of Optuna's, but for those that have a value of some of their seeds only."""

from __future__ import annotations

from typing import Literal

from optuna.trial import FrozenTrial, Trial, TrialState

Fate = Literal["completed", "cut", "pruned", "failed", "running", "waiting"]
_FATES: dict[TrialState, Fate] = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
_MARK = "cut"


def mark_cut(trial: Trial, n_runs: int, n_seeds: int) -> None:
    """Say of a trial that the pruner has ended it after ``n_runs`` of its ``n_seeds`` whole runs.

    To Optuna it is complete: the value of these runs is worth knowing, to the sampler as well.
    """
    trial.set_user_attr(_MARK, f"after {n_runs} of {n_seeds} seeds")


def fate_of(trial: FrozenTrial) -> Fate:
    """What has become of ``trial``, or not yet."""
    return "cut" if trial.state is TrialState.COMPLETE and _MARK in trial.user_attrs else _FATES[trial.state]


def fate_text(trial: FrozenTrial) -> str:
    """The same in words; of one that was cut, after how many seeds."""
    fate = fate_of(trial)
    return f"cut by the pruner {trial.user_attrs[_MARK]}" if fate == "cut" else fate
