"""Tune all algorithms on a set of environments within a budget, one ``sb3-pg tune`` after another.

    python tuning/tune_all.py --minutes 5                           every algorithm of this package, where it can act
    python tuning/tune_all.py --algo npg qac --env Acrobot-v1       some of them
    python tuning/tune_all.py --minutes 5 --dry-run                 only show the commands

Each pair gets ``--minutes`` of trials, and the final choice on top. A pair that is done is left alone by the next call;
one that was interrupted goes on. The winners are written to ``--write`` as entries in the format of zoo_configs, each
with its command, versions and result in its head. An environment that is not in the table of this file needs
``--steps``. Options that are not listed here go to ``sb3-pg tune``.
"""

from __future__ import annotations

import argparse
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.commands.arguments import whole
from sb3_pg_ext.experiments.tuning.tuning import WINNER_FILE


@dataclass(frozen=True)
class Setting:
    """How an environment is tuned.

    :param steps: environment steps of a run
    :param normalize: whether observations and rewards are normalised for algorithms that learn by gradients
    """

    steps: int
    normalize: bool = False


ENVIRONMENTS = {
    "CartPole-v1": Setting(50_000),
    "Acrobot-v1": Setting(40_000),
    "Pendulum-v1": Setting(100_000),
    "MountainCarContinuous-v0": Setting(60_000, normalize=True),
    "InvertedPendulum-v5": Setting(40_000, normalize=True),
    "Swimmer-v5": Setting(100_000, normalize=True),
    "HalfCheetah-v5": Setting(200_000, normalize=True),
    "LunarLander-v3": Setting(200_000),
    "LunarLanderContinuous-v3": Setting(200_000),
}
N_ENVS = 8
# Off-policy and model-based methods learn from fewer steps and need more time for each.
STEPS_OF_FAMILY = {"off_policy": 0.2, "model_based": 0.2}


def pairs(algos: list[str], env_ids: list[str]) -> Iterator[tuple[str, str]]:
    """Algorithm and environment, wherever the one can act in the other."""
    for env_id in env_ids:
        try:
            actions = type(gym.make(env_id).action_space).__name__
        except gym.error.Error as error:
            print(f"{env_id} is left out: {error}", file=sys.stderr)
            continue
        yield from ((algo, env_id) for algo in algos if actions in registry.get(algo).action_spaces)


def command(algo: str, env_id: str, args: argparse.Namespace, others: list[str]) -> list[str]:
    """The arguments of ``sb3-pg`` for one pair."""
    setting, family = ENVIRONMENTS.get(env_id, Setting(0)), registry.get(algo).family
    steps = args.steps or round(setting.steps * STEPS_OF_FAMILY.get(family, 1.0))
    return [
        *("tune", "--algo", algo, "--env", env_id, "-n", str(steps), "-params", *fixed(setting, family, args.params)),
        *("--timeout", f"{np.format_float_positional(args.minutes, trim='-')}m"),
        *("--n-evaluations", "5", "--eval-episodes", "10"),
        *("--final-top", "3", "--final-seeds", "5", "-j", str(args.jobs)),
        *("-f", str(args.folder / f"{algo}_{env_id}"), "--write", str(args.write), *others),
    ]


def fixed(setting: Setting, family: str, typed: list[str]) -> list[str]:
    """Settings that are not searched; typed ones win."""
    own = {"n_envs": f"n_envs:{1 if family in STEPS_OF_FAMILY else N_ENVS}"}
    if setting.normalize and family == "on_policy":  # population methods have an option of their own for it
        own["normalize"] = "normalize:True"
    names = {text.partition(":")[0].strip() for text in typed}
    return [*(text for name, text in own.items() if name not in names), *typed]


def minutes(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of minutes")
    return value


def main() -> int:
    own = [key for key in registry.available() if registry.get(key).cls.__module__.startswith("sb3_pg_ext.")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--algo", nargs="+", default=own, metavar="KEY", help="algorithms (all of this package)")
    add("--env", nargs="+", default=list(ENVIRONMENTS), metavar="ID", help="environments (the nine of zoo_configs)")
    add("--minutes", type=minutes, default=5.0, help="of trials for each pair (5)")
    add("--steps", type=whole, help="environment steps of a run, instead of the table in this file")
    params_help = "settings that are fixed, not searched, beside those of this file"
    add(
        "-params",
        "--hyperparams",
        dest="params",
        nargs="+",
        action="extend",
        default=[],
        metavar="K:V",
        help=params_help,
    )
    add("-j", "--jobs", type=int, default=2, help="worker processes (2)")
    add("-f", "--folder", type=Path, default=Path("results/tune_all"), help="for trials and reports (results/tune_all)")
    add("--write", type=Path, default=Path("results/tune_all/zoo_configs"), help="for the entries")
    add("--dry-run", action="store_true", help="only show the commands")
    args, others = parser.parse_known_args()
    try:
        for key in args.algo:
            registry.get(key)
    except registry.UnknownAlgorithmError as error:
        parser.error(f"--algo: {error}")
    unknown = [env_id for env_id in args.env if env_id not in ENVIRONMENTS]
    if unknown and not args.steps:
        parser.error(
            f"--env {' '.join(unknown)}: --steps is needed, there are none in the table of {Path(__file__).name}"
        )

    failed = []
    for algo, env_id in pairs(args.algo, args.env):
        arguments = command(algo, env_id, args, others)
        print(f"sb3-pg {shlex.join(arguments)}", flush=True)
        if args.dry_run or (args.folder / f"{algo}_{env_id}" / WINNER_FILE).exists():
            continue
        began = time.monotonic()
        done = subprocess.run([Path(sys.executable).with_name("sb3-pg"), *arguments], check=False)
        if done.returncode == 130:
            return 130
        failed += [f"{algo} on {env_id}"] if done.returncode else []
        print(f"-> exit status {done.returncode}, {time.monotonic() - began:.0f} s\n", flush=True)
    if failed:
        print("Failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
