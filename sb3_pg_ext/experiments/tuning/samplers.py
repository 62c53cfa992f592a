"""Samplers and pruners by name, complete with what they need: nothing is found missing at the tenth trial."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from sb3_pg_ext.experiments.tuning.plan import Plan
from sb3_pg_ext.experiments.values import SettingError

SamplerName = Literal["tpe", "gp", "cmaes", "random", "qmc"]
PrunerName = Literal["median", "hyperband", "wilcoxon", "none"]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
PRUNERS: tuple[PrunerName, ...] = get_args(PrunerName)
# Optuna imports these when they are first used, which is after the startup trials.
_NEEDS = {"gp": ("scipy", "torch"), "qmc": ("scipy",), "cmaes": ("cmaes",), "wilcoxon": ("scipy",)}


def check_packages(*names: str) -> None:
    """
    :raises ModuleNotFoundError: a package that one of the samplers or pruners needs is not installed
    """
    for name in names:
        missing = [package for package in _NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            raise ModuleNotFoundError(f"{name!r} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def make_sampler(name: SamplerName, master_seed: int, place: int, n_startup_trials: int) -> BaseSampler:
    """A sampler for one trial.

    Each trial gets a new one, whose random numbers depend on the arguments alone. So one worker proposes the same
    trials in a tuning that was interrupted as in one that was not, and several workers, on whatever machines, never
    draw the same random numbers. Points of ``"qmc"`` come from one sequence, in which all workers take turns.

    :param name: of the sampler
    :param master_seed: of the tuning
    :param place: of the trial in its study, see :func:`~sb3_pg_ext.experiments.tuning.ledger.place_of`
    :param n_startup_trials: random trials before the model is used
    :raises SettingError: no such sampler
    """
    seed = int(np.random.SeedSequence(master_seed, spawn_key=(place, 0)).generate_state(1)[0] >> 1)
    samplers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=n_startup_trials),
        # deterministic_objective=False, the default, has the model treat values as noisy.
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=n_startup_trials),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(
            seed=seed, n_startup_trials=n_startup_trials, warn_independent_sampling=False
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        # The points come from one sequence, so its seed must be the same for every trial and worker.
        "qmc": lambda: optuna.samplers.QMCSampler(
            scramble=True,
            seed=master_seed,
            independent_sampler=optuna.samplers.RandomSampler(seed=seed),
            warn_independent_sampling=False,
        ),
    }
    if name not in samplers:
        raise SettingError(f"sampler={name!r}: allowed are {', '.join(map(repr, SAMPLERS))}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers[name]()


def compared(pruner: PrunerName) -> str:
    """How trials are compared by a pruner, and reported on for it: such reports are worth nothing to the other kind."""
    return "run by run" if pruner == "wilcoxon" else "step by step"


def make_pruner(name: PrunerName, plan: Plan) -> BasePruner:
    """A pruner for values that are reported at the environment steps of a trial, all its runs counted.

    :param name: ``"median"`` stops a trial that is worse than half of the others at the same step, from a third of the
        first run on; ``"hyperband"`` has brackets of trials race each other; ``"wilcoxon"`` stops a trial after a run
        if it is worse than the best trial on the same seeds by a signed-rank test; ``"none"`` lets all trials end
    :param plan: of the tuning
    :raises SettingError: no such pruner, or it makes no sense with the plan
    """
    whole = plan.total_steps * plan.seeds_per_trial
    pruners: dict[str, Callable[[], BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=plan.total_steps // 3),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            min_resource=max(plan.every, plan.total_steps // 3), max_resource=whole, reduction_factor=3
        ),
        "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2),
        "none": optuna.pruners.NopPruner,
    }
    if name not in pruners:
        raise SettingError(f"pruner={name!r}: allowed are {', '.join(map(repr, PRUNERS))}")
    if name == "wilcoxon" and plan.seeds_per_trial < 5:  # four differences of one sign have p = .06, after the last run
        raise SettingError(
            f"pruner='wilcoxon' compares trials seed by seed, but seeds_per_trial={plan.seeds_per_trial}: at least 5"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return pruners[name]()
