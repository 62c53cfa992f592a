"""Does it pay to train each trial with several seeds? Protocols at equal budget, each repeated.

* *single*: one run a trial, with a seed of its own; its value is the last evaluation, of 5 episodes; the best trial
  wins. This is what rl_zoo3 does.
* *choice*: the same, but a part of the budget is kept for a final choice among the best on fresh seeds. This is what
  ``sb3-pg tune --seeds-per-trial 1`` does.
* *several*: three runs a trial, the mean of their last evaluations of 10 episodes, and the final choice. This is what
  ``sb3-pg tune --aggregate mean`` does.

All prune by the median. The budget is environment steps of training, pruned runs and the final choice included. The
winners are judged on seeds that had no part in either. A repetition is the whole procedure with another master seed;
*single* and *choice* share their trials as far as the budget of *choice* goes.

    python tuning/protocols.py --repetitions 10 -j 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.seeds import Seeds, choice_seeds, seeds_of
from sb3_pg_ext.experiments.statistics import stratified_interval
from sb3_pg_ext.experiments.tuning.choice import finalists
from sb3_pg_ext.experiments.tuning.objective import objective
from sb3_pg_ext.experiments.tuning.plan import Plan, plan_tuning
from sb3_pg_ext.experiments.tuning.samplers import make_pruner, make_sampler

TOP, CHOICE_SEEDS = 4, 4
PROTOCOLS = ("single", "choice", "several")


class LastEvaluation:
    """A recorder that keeps the last mean return."""

    def progress(self, step: int, train_seconds: float) -> None:
        self.steps = step

    def evaluation(self, kind: str, evaluation: Evaluation) -> None:
        self.value = evaluation.mean_return


def score(plan: Plan, settings: dict[str, Any], seeds: Seeds) -> float:
    """The last evaluation of one run."""
    recorder = LastEvaluation()
    execute(plan.run("x", settings, 0, seeds), recorder)
    return recorder.value


def search(plan: Plan, budget: int, seed_of_trial: bool) -> list[optuna.trial.FrozenTrial]:
    """Trials one after another until ``budget`` environment steps are used up."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner("median", plan))
    while used(study.trials, plan) < budget:
        number = len(study.trials)
        study.sampler = make_sampler("tpe", plan.master_seed, number, n_startup_trials=10)
        # The runs of a trial take seeds 0, 1, 2 of its plan's master seed.
        mine = replace(plan, master_seed=plan.master_seed * 10_000 + number) if seed_of_trial else plan
        study.optimize(lambda trial, mine=mine: objective(trial, mine), n_trials=1, catch=(Exception,))
    return study.trials


def used(trials: list[optuna.trial.FrozenTrial], plan: Plan) -> int:
    """Environment steps of some trials; one that failed counts in full."""
    whole = plan.total_steps * plan.seeds_per_trial
    return sum(whole if t.state is TrialState.FAIL else max(t.intermediate_values) for t in trials)


def fresh_choice(trials: list[optuna.trial.FrozenTrial], plan: Plan, master: int) -> dict[str, Any]:
    """The best of the best trials on fresh seeds."""
    best = finalists(trials, TOP)
    scores = [[score(plan, dict(c.settings), choice_seeds(master, k)) for k in range(CHOICE_SEEDS)] for c in best]
    return dict(best[int(np.argmax(np.mean(scores, axis=1)))].settings)


def winners(master: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each protocol that is asked for finds."""
    budget, found = args.budget * args.steps, {}
    search_budget = budget - TOP * CHOICE_SEEDS * args.steps
    if {"single", "choice"} & set(args.protocols):
        plan = plan_of(args, master, seeds_per_trial=1, episodes=5)
        trials = search(plan, budget if "single" in args.protocols else search_budget, seed_of_trial=True)
        if "single" in args.protocols:
            found["single"] = dict(finalists(trials, 1)[0].settings)
        if "choice" in args.protocols:
            early = [trials[: n + 1] for n in range(len(trials)) if used(trials[:n], plan) < search_budget][-1]
            found["choice"] = fresh_choice(early, replace(plan, episodes=20), master)
    if "several" in args.protocols:
        plan = plan_of(args, master, seeds_per_trial=3, episodes=10, aggregate="mean")
        trials = search(plan, search_budget, seed_of_trial=False)
        found["several"] = fresh_choice(trials, replace(plan, episodes=20), master)
    return found


def plan_of(args: argparse.Namespace, master: int, **options: Any) -> Plan:
    fixed = {"n_envs": args.n_envs}
    return plan_tuning(
        args.algo, args.env, args.steps, n_evaluations=4, arguments=fixed, master_seed=1000 + master, **options
    )


def repetition(job: tuple[int, argparse.Namespace]) -> tuple[int, dict[str, Any]]:
    """One tuning by each protocol, and what its winner is worth: protocol -> settings and scores."""
    master, args = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    judge = plan_of(args, master, episodes=50)
    # seeds_of is the stream of ordinary studies, which no tuning takes from.
    return master, {
        protocol: (settings, [score(judge, settings, seeds_of(7, k)) for k in range(args.judges)])
        for protocol, settings in winners(master, args).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--algo", default="reinforce")
    add("--env", default="CartPole-v1")
    add("--steps", type=int, default=20_000, help="environment steps of a run (20000)")
    add("--n-envs", type=int, default=8)
    add("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="those that are compared (all)")
    add("--budget", type=int, default=60, help="runs' worth of steps for each protocol (60)")
    add("--judges", type=int, default=10, help="seeds that judge each winner (10)")
    add("--repetitions", type=int, default=10)
    add("-j", "--jobs", type=int, default=2)
    add("-o", "--output", type=Path, default=Path("results/protocols.json"))
    args = parser.parse_args()
    final = TOP * CHOICE_SEEDS
    if args.budget <= (0 if args.protocols == ["single"] else final):
        parser.error(f"--budget {args.budget}: the final choice alone takes {final} runs")

    jobs = [(master, args) for master in range(args.repetitions)]
    found: dict[int, Any] = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for master, outcome in pool.imap_unordered(repetition, jobs, chunksize=1):
            found[master] = outcome
            for protocol, (settings, scores) in outcome.items():
                print(f"{master:2} {protocol:8} mean {np.mean(scores):7.1f}, worst {min(scores):7.1f}  {settings}")
            print(end="", flush=True)
            with atomic_write(args.output) as temporary:
                temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    summarise(found)


def summarise(found: dict[int, Any]) -> None:
    """Mean over repetitions of the winners' mean return and worst seed, with 95 % bootstrap intervals."""
    for title, measure in (("mean return", np.mean), ("worst judging seed", np.min)):
        values = {p: np.array([measure(scores) for _, scores in column(found, p)]) for p in next(iter(found.values()))}
        for protocol, each in values.items():
            print(f"{title}, {protocol}: {with_interval(each, '.1f')}")
            if protocol != "single" and "single" in values:
                gains = each - values["single"]
                higher, equal = np.sum(gains > 0), np.sum(gains == 0)
                print(
                    f"   above single: {with_interval(gains, '+.1f')}; higher in {higher} of {len(gains)} repetitions, "
                    f"equal in {equal}"
                )


def with_interval(values: np.ndarray, form: str) -> str:
    """Mean and interval, of which there is none for a single value."""
    estimate = stratified_interval([values], np.mean)
    interval = f" [{estimate.low:{form}}, {estimate.high:{form}}]" if len(values) > 1 else " (one repetition)"
    return f"{estimate.point:{form}}{interval}"


def column(found: dict[int, Any], protocol: str) -> list[Any]:
    return [outcome[protocol] for _, outcome in sorted(found.items())]


if __name__ == "__main__":
    main()
