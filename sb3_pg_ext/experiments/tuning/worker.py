"""The process that carries out one trial: a crash, a kill or a leak costs that trial and nothing else."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
from optuna.study import Study
from optuna.trial import Trial

from sb3_pg_ext.experiments.tuning.ledger import place_of
from sb3_pg_ext.experiments.tuning.objective import SECONDS_BETWEEN_BEATS, objective
from sb3_pg_ext.experiments.tuning.plan import plan_of
from sb3_pg_ext.experiments.tuning.samplers import PrunerName, SamplerName, make_pruner, make_sampler
from sb3_pg_ext.experiments.tuning.storages import close_storage, open_storage
from sb3_pg_ext.experiments.worker import remove_if_empty, settle_in, write_output_to


@dataclass(frozen=True)
class Proposal:
    """How trials are found and given up.

    :param sampler: name of the sampler
    :param pruner: name of the pruner
    :param n_startup_trials: random trials before the sampler's model is used
    """

    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    n_startup_trials: int = 10


def work(storage: str, study_name: str, proposal: Proposal, n_trials: int | None, beats_every: float, log: str) -> None:
    """Ask the study for a trial and carry it out.

    :param storage: URL, see :func:`~sb3_pg_ext.experiments.tuning.storages.open_storage`
    :param study_name: of the study in it
    :param proposal: how the trial is found
    :param n_trials: how many trials are wanted in all
    :param beats_every: seconds between signs of life
    :param log: file for warnings and prints
    """
    settle_in()
    write_output_to(Path(log))
    try:
        run_trial(storage, study_name, proposal, n_trials, beats_every)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        remove_if_empty(Path(log))


def run_trial(
    storage: str,
    study_name: str,
    proposal: Proposal,
    n_trials: int | None = None,
    beats_every: float = SECONDS_BETWEEN_BEATS,
) -> None:
    """The same in this process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    opened = open_storage(storage)
    try:
        study = optuna.load_study(study_name=study_name, storage=opened)
        _run_trial(study, proposal, partial(objective, n_trials=n_trials, beats_every=beats_every))
    finally:
        close_storage(opened)


def _run_trial(study: Study, proposal: Proposal, carry_out: Callable[..., float]) -> None:
    plan = plan_of(study.user_attrs)
    study.pruner = make_pruner(proposal.pruner, plan)

    def propose_and_carry_out(trial: Trial) -> float:
        # Only now it is known which trial this is. Optuna draws for it when it is asked for a parameter, not before.
        trials = study.get_trials(deepcopy=False)
        place = place_of(trials[trial.number], trials)
        study.sampler = make_sampler(proposal.sampler, plan.master_seed, place, proposal.n_startup_trials)
        return carry_out(trial, plan)

    # What goes wrong with a trial is written down in it, and the next one may be better.
    study.optimize(propose_and_carry_out, n_trials=1, catch=(Exception,))
