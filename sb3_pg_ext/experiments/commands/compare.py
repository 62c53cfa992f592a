"""Train every algorithm in every environment with several seeds, evaluate on held-out start states, and report.

Runs go to parallel processes. Every finished run is kept in study.sqlite in the folder: give the same command
again after a crash, a kill or Ctrl-C and it goes on; give it again when all is done and nothing runs twice; give
it with more seeds, algorithms or environments and only these are added.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole

EXAMPLES = """\
algorithms:
  reinforce                                        tuned settings for the environment if there are any, else defaults
  reinforce:baseline=mean,returns=trajectory       with arguments of the constructor (sb3-pg algos reinforce lists them)
  ppo:n_envs=8,learning_rate=lin_3e-4              also n_envs, normalize, policy; lin_ falls linearly to 0
  "small=ppo:policy_kwargs.net_arch=[32, 32]"      label=... names it in tables and figures

examples:
  sb3-pg compare --algo reinforce ppo a2c trpo --env CartPole-v1 --seeds 5 -n 50000
  sb3-pg compare --algo ppo big=ppo:n_steps=512 --env CartPole-v1 Acrobot-v1 -n 100000 -f results/ppo_steps
  sb3-pg report results/ppo_steps                  look at it while it runs, from another terminal
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--algo", nargs="+", required=True, metavar="ALGO", help="algorithms, with arguments if need be (see below)")
    add(
        "--env",
        nargs="+",
        required=True,
        metavar="ENV",
        help="environment ids; module:Name-v0 imports the module first",
    )
    add("-n", "--n-timesteps", type=whole, required=True, metavar="STEPS", help="environment steps of each run")
    add("--seeds", type=whole, default=5, metavar="K", help="runs of each algorithm in each environment (5)")
    add(
        "-f",
        "--folder",
        "--log-folder",
        type=Path,
        metavar="DIR",
        help="where the results are kept (results/<algorithms>_<envs>)",
    )
    add(
        "-P",
        "-j",
        "--jobs",
        type=whole,
        metavar="JOBS",
        help="runs at once (one per core); has no effect on the results",
    )
    add("--n-envs", type=whole, metavar="N", help="copies of the environment to train in (tuned settings, else 1)")
    add("--vec-env", choices=("dummy", "subproc", "native"), default="dummy", help="how the copies run (dummy)")
    add("--env-kwargs", nargs="+", default=[], metavar="K:V", help="arguments for the environments")
    _add_evaluation_arguments(parser.add_argument_group("evaluation").add_argument)
    _add_other_arguments(parser.add_argument_group("other").add_argument)


def _add_evaluation_arguments(add: Callable[..., Any]) -> None:
    add("--n-evaluations", type=whole, default=20, metavar="K", help="evaluations per run, evenly spread (20)")
    add("--eval-freq", type=whole, metavar="STEPS", help="steps between evaluations, instead of --n-evaluations")
    add("--eval-episodes", type=whole, default=20, metavar="K", help="episodes per evaluation (20)")
    add(
        "--test-episodes",
        type=count,
        default=100,
        metavar="K",
        help="episodes of the test after training, 0 for none (100)",
    )
    add("--stochastic", action="store_true", help="evaluate with sampled actions instead of the mode of the policy")


def _add_other_arguments(add: Callable[..., Any]) -> None:
    add("--seed", type=count, default=0, metavar="S", help="master seed, from which all seeds are derived (0)")
    add("--no-zoo-config", action="store_true", help="defaults of the signature instead of tuned settings")
    add("--retry-failed", action="store_true", help="run again what has failed before")
    add(
        "--stall-limit",
        type=whole,
        default=1800,
        metavar="S",
        help="end a run that has stood still for S seconds (1800)",
    )


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.executor import LocalProcesses, warm_up
    from sb3_pg_ext.experiments.variants import read_arguments, read_variant

    variants = [read_variant(text) for text in args.algo]
    env_kwargs = read_arguments(args.env_kwargs, separator=":")
    warm_up()  # the workers' imports go on while this process does its own

    from sb3_pg_ext.experiments.provenance import command
    from sb3_pg_ext.experiments.run_spec import Protocol
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.study import Study, check_all, default_folder

    every = args.eval_freq or math.ceil(args.n_timesteps / args.n_evaluations)
    study = Study(
        variants,
        list(dict.fromkeys(args.env)),
        n_seeds=args.seeds,
        total_steps=args.n_timesteps,
        protocol=Protocol(every, args.eval_episodes, not args.stochastic, args.test_episodes),
        master_seed=args.seed,
        n_envs=args.n_envs,
        vec_env=args.vec_env,
        env_kwargs=env_kwargs,
        use_zoo_configs=not args.no_zoo_config,
    )
    runs = study.runs()
    folder = args.folder or default_folder(variants, study.env_ids)
    check_all(runs)
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(runs, command())
        if args.retry_failed:
            store.retry_failed([run.key for run in runs])
        executor = LocalProcesses(store, args.jobs, silence=args.stall_limit)
        factors = ((len(variants), "algorithm"), (len(study.env_ids), "environment"), (args.seeds, "seed"))
        size = " × ".join(f"{number} {noun}{'s' * (number > 1)}" for number, noun in factors)
        print(f"{len(runs)} runs ({size}), {executor.jobs} at once, in {folder}", flush=True)
        return _carry_out(runs, store, executor, folder)


def _carry_out(runs: Sequence[Any], store: Any, executor: Any, folder: Path) -> int:
    from sb3_pg_ext.experiments.commands.report import show
    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.progress import progress_of
    from sb3_pg_ext.experiments.provenance import command
    from sb3_pg_ext.experiments.study import carry_out

    terminal = console()
    stopped = False
    with progress_of(runs, terminal) as progress:
        try:
            carry_out(runs, store, executor, progress)
        except KeyboardInterrupt:
            stopped = True
    show(folder, terminal)
    if stopped:
        terminal.print("Stopped. Finished runs are kept; to go on, give the same command again:", highlight=False)
        terminal.print(f"  {command()}", highlight=False, markup=False, soft_wrap=True)
        return 130
    failed = [row for row in store.statuses([run.key for run in runs]).values() if row["status"] == "failed"]
    return 1 if failed else 0
