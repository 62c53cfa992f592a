"""Evaluate a saved model in fresh environments, on start states that no training has seen.

The class is found from the file. Nothing in the file is executed, unless you say --trusted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole

EXAMPLES = """\
examples:
  sb3-pg eval logs/ppo/CartPole-v1_1                                    the best model of a training run
  sb3-pg eval logs/ppo/CartPole-v1_1/CartPole-v1.zip --stochastic       the last one, with sampled actions
  sb3-pg eval results/demo/models/ppo_CartPole-v1_seed0_1a2b3c4d.zip --env CartPole-v1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    path_help = "a model file, or the folder of a training run, be it one of rl_zoo3"
    add("path", type=Path, metavar="FILE_OR_FOLDER", help=path_help)
    add("--env", help="environment id; the folder of a training run knows it")
    add("--env-kwargs", nargs="+", default=[], metavar="K:V", help="arguments for the environment")
    add("--n-episodes", type=whole, default=100, metavar="K", help="episodes (100)")
    add("--stochastic", action="store_true", help="sampled actions instead of the mode of the policy")
    add("--seed", type=count, default=0, help="chooses the start states (0)")
    add("--device", default="auto", help="cpu, cuda or auto (auto)")
    add("--trusted", action="store_true", help="unpickle everything in the file: only if you trust who made it")


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    import torch

    from sb3_pg_ext import registry
    from sb3_pg_ext.experiments.building import check_env_id
    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.evaluation import Evaluator
    from sb3_pg_ext.experiments.log_folder import find_environment, find_model, find_statistics
    from sb3_pg_ext.experiments.seeds import seeds_for
    from sb3_pg_ext.experiments.variants import read_arguments

    torch.set_num_threads(1)
    file = find_model(args.path)
    environment = find_environment(file, args.env)
    if args.env_kwargs:
        environment = replace(environment, kwargs=read_arguments(args.env_kwargs, separator=":"))
    check_env_id(environment.id)
    model = registry.load(file, trusted=args.trusted, device=args.device)
    statistics = find_statistics(file)
    if statistics is not None and environment.normalize is None:
        environment = replace(environment, normalize={})
    evaluator = Evaluator(environment, args.n_episodes, seeds_for(args.seed).test, not args.stochastic, statistics)
    try:
        _show(file, type(model).__name__, environment.id, evaluator(model), not args.stochastic, console())
    finally:
        evaluator.close()
    return 0


def _show(file: Path, name: str, env_id: str, evaluation: Any, deterministic: bool, terminal: Any) -> None:
    import numpy as np

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.statistics import iqm
    from sb3_pg_ext.experiments.summary import number

    returns, lengths = np.array(evaluation.returns), np.array(evaluation.lengths)
    how = "deterministic" if deterministic else "stochastic"
    terminal.print(f"{name} in {env_id}, {len(returns)} {how} episodes", markup=False)
    terminal.print(f"  {file}", markup=False, soft_wrap=True)
    columns: dict[str, Callable[[Any], Any]] = {
        "mean": np.mean,
        "s.d.": lambda sample: np.std(sample, ddof=min(1, len(sample) - 1)),
        "interquartile mean": iqm,
        "worst": np.min,
        "best": np.max,
    }
    rows = [
        [what, *(number(float(of(sample))) for of in columns.values())]
        for what, sample in (("return", returns), ("length", lengths))
    ]
    terminal.print(table("", ["", *columns], rows, right_from=1))
