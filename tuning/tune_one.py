"""Tune one algorithm from Python: the same as ``sb3-pg tune``, with every step in the open.

    python tuning/tune_one.py                          REINFORCE on CartPole-v1, a few minutes
    python tuning/tune_one.py --algo ppo --env Acrobot-v1 -n 50000 --n-trials 30

Run it again after a crash or Ctrl-C and it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sb3_pg_ext.experiments.console import console
from sb3_pg_ext.experiments.executor import warm_up
from sb3_pg_ext.experiments.tuning import Tuning, plan_tuning
from sb3_pg_ext.experiments.tuning.config_entry import departures, describe
from sb3_pg_ext.experiments.tuning.progress import TuningProgress
from sb3_pg_ext.experiments.tuning.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="reinforce")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-n", "--n-timesteps", type=int, default=20_000)
    parser.add_argument("--n-trials", type=int, default=20)
    parser.add_argument("--seeds-per-trial", type=int, default=3)
    args = parser.parse_args()
    warm_up(["sb3_pg_ext.experiments.tuning.worker", "sb3_contrib"])  # the workers' imports go on meanwhile

    plan = plan_tuning(
        args.algo,
        args.env,
        total_steps=args.n_timesteps,
        seeds_per_trial=args.seeds_per_trial,
        arguments={"n_envs": 8},  # fixed: everything that is not searched and not the default
    )
    print("Searched:", *(f"  {name}: {dimension}" for name, dimension in plan.dimensions.items()), sep="\n")
    folder = Path("results", f"tune_one_{args.algo}_{args.env}")
    with Tuning(plan, folder) as tuning:
        with TuningProgress(console()) as progress:
            tuning.run(args.n_trials, watcher=progress)
        winner = tuning.choose(top=3, seeds=5)
        files = write_report(tuning.study, plan, folder)
    print(f"{winner.label}: {departures(plan.algo, winner.settings)}")
    print(f"On fresh seeds: {describe(winner.scores)}; the {winner.rival.label}: {describe(winner.rival.scores)}")
    print(*files, sep="\n")


if __name__ == "__main__":  # worker processes import this file
    main()
