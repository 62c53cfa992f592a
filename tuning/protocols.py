"""Does it pay to train each trial with several seeds? Two protocols at equal budget, each repeated.

* *single*: one run a trial, with a seed of its own; its value is the last evaluation, of 5 episodes; the best trial
  wins. This is what rl_zoo3 does.
* *several*: three runs a trial with the same seeds for all, their last evaluations of 10 episodes summed up by
  ``--aggregate``, and a part of the budget kept for a final choice among the best on fresh seeds. This is what
  ``sb3-pg tune`` does.

Both prune by the median. The budget is environment steps of training, pruned runs and the final choice included. The
winners are judged on seeds that had no part in either. A repetition is the whole procedure with another master seed.

    python tuning/protocols.py --repetitions 8 -j 2
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


def search(plan: Plan, pruner: str, budget: int, seed_of_trial: bool) -> optuna.Study:
    """Trials one after another until ``budget`` environment steps are used up."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner, plan))
    used = 0
    while used < budget:
        number = len(study.trials)
        study.sampler = make_sampler("tpe", plan.master_seed, number, 0, n_startup_trials=10)
        # The runs of a trial take seeds 0, 1, 2 of its plan's master seed.
        mine = replace(plan, master_seed=plan.master_seed * 10_000 + number) if seed_of_trial else plan
        study.optimize(lambda trial, mine=mine: objective(trial, mine), n_trials=1, catch=(Exception,))
        used += steps_of(study.trials[-1], plan)
    return study


def steps_of(trial: optuna.trial.FrozenTrial, plan: Plan) -> int:
    """Environment steps of a trial; one that failed counts in full."""
    if trial.state is TrialState.FAIL:
        return plan.total_steps * plan.seeds_per_trial
    return max(trial.intermediate_values)


def single(master: int, args: argparse.Namespace) -> dict[str, Any]:
    plan = plan_of(args, master, seeds_per_trial=1, episodes=5)
    return dict(finalists(search(plan, "median", args.budget * args.steps, True).trials, 1)[0].settings)


def several(master: int, args: argparse.Namespace) -> dict[str, Any]:
    plan = plan_of(args, master, seeds_per_trial=3, episodes=10, aggregate=args.aggregate)
    study = search(plan, "median", (args.budget - TOP * CHOICE_SEEDS) * args.steps, False)
    best = finalists(study.trials, TOP)
    fresh = [[score(plan, dict(c.settings), choice_seeds(master, k)) for k in range(CHOICE_SEEDS)] for c in best]
    return dict(best[int(np.argmax([np.mean(scores) for scores in fresh]))].settings)


PROTOCOLS = {"single": single, "several": several}


def plan_of(args: argparse.Namespace, master: int, **options: Any) -> Plan:
    fixed = {"n_envs": args.n_envs}
    return plan_tuning(
        args.algo, args.env, args.steps, n_evaluations=4, arguments=fixed, master_seed=1000 + master, **options
    )


def repetition(job: tuple[str, int, argparse.Namespace]) -> tuple[str, int, dict[str, Any], list[float]]:
    """One tuning by one protocol, and what its winner is worth."""
    protocol, master, args = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = PROTOCOLS[protocol](master, args)
    judge = plan_of(args, master, episodes=50)
    # seeds_of is the stream of ordinary studies, which no tuning takes from.
    return protocol, master, settings, [score(judge, settings, seeds_of(7, k)) for k in range(args.judges)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--algo", default="reinforce")
    add("--env", default="CartPole-v1")
    add("--steps", type=int, default=20_000, help="environment steps of a run (20000)")
    add("--n-envs", type=int, default=8)
    add("--aggregate", default="mean", help="of the seeds of a trial: mean, median, iqm or min (mean)")
    add("--budget", type=int, default=60, help="runs' worth of steps for each protocol (60)")
    add("--judges", type=int, default=10, help="seeds that judge each winner (10)")
    add("--repetitions", type=int, default=10)
    add("-j", "--jobs", type=int, default=2)
    add("-o", "--output", type=Path, default=Path("results/protocols.json"))
    args = parser.parse_args()

    jobs = [(protocol, master, args) for master in range(args.repetitions) for protocol in PROTOCOLS]
    found: list[Any] = []
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for outcome in pool.imap_unordered(repetition, jobs, chunksize=1):
            found.append(outcome)
            protocol, master, settings, scores = outcome
            print(
                f"{protocol:8} {master:2}: mean {np.mean(scores):7.1f}, worst {min(scores):7.1f}  {settings}",
                flush=True,
            )
            with atomic_write(args.output) as temporary:
                temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    summarise(found)


def summarise(found: list[Any]) -> None:
    """Mean over repetitions of the winners' mean return and worst seed, with 95 % bootstrap intervals."""
    means = {p: {m: float(np.mean(s)) for q, m, _, s in found if q == p} for p in PROTOCOLS}
    worst = {p: {m: min(s) for q, m, _, s in found if q == p} for p in PROTOCOLS}
    for title, values in (("mean return", means), ("worst of the judging seeds", worst)):
        for protocol in PROTOCOLS:
            estimate = stratified_interval([list(values[protocol].values())], np.mean)
            print(f"{title}, {protocol}: {estimate.point:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]")
        gains = [values["several"][m] - values["single"][m] for m in values["single"] if m in values["several"]]
        estimate = stratified_interval([gains], np.mean)
        better = sum(gain > 0 for gain in gains)
        print(
            f"{title}, several - single: {estimate.point:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}], "
            f"better in {better} of {len(gains)} repetitions"
        )


if __name__ == "__main__":
    main()
