"""Search for the settings with which an algorithm does best in an environment.

Each trial trains with several seeds and is given up early if others have done better. At the end the best trials and
the defaults train again on fresh seeds, the best of them is judged on still others, and the settings are written as an
entry of zoo_configs. Give the same command again after a crash, a kill or Ctrl-C and it goes on; give it on several
machines with one database and they share the work.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole

EXAMPLES = """\
examples:
  sb3-pg tune --algo reinforce --env CartPole-v1 -n 20000 --n-trials 50
  sb3-pg tune --algo npg --env Pendulum-v1 -n 100000 --timeout 2h -params n_envs:8 normalize:True
  sb3-pg tune --algo ppo --env CartPole-v1 -n 20000 --sampler gp --pruner wilcoxon --seeds-per-trial 5
  sb3-pg tune ... --storage postgresql://me@server/tuning --trials-only    the same on each of many machines
  optuna-dashboard results/tune_reinforce_CartPole-v1/trials.log           look at it in a browser

A trial that is lost with its process is carried out again. Storages: journal:FILE (the default, in the folder),
sqlite:///FILE, postgresql://USER@HOST/DATABASE.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--algo", required=True, help="algorithm (sb3-pg algos lists them); sb3-pg algos <key> shows what is searched")
    add("--env", required=True, help="environment id; module:Name-v0 imports the module first")
    add("-n", "--n-timesteps", type=whole, required=True, metavar="STEPS", help="environment steps of each run")
    add("--n-trials", "--max-total-trials", type=whole, metavar="K", help="trials in all (100, without --timeout)")
    add("--timeout", type=seconds, metavar="TIME", help="begin no trial after this time: 90s, 30m, 2h")
    add("--seeds-per-trial", type=whole, default=3, metavar="K", help="runs of each trial (3)")
    add("--aggregate", default="median", metavar="HOW", help="value of a trial: median, iqm, mean or min (median)")
    add("-j", "-P", "--n-jobs", type=whole, metavar="JOBS", help="worker processes (one per core)")
    stall_help = "end a worker that has stood still for S seconds; its trial is done again (1800)"
    add("--stall-limit", type=whole, default=1800, metavar="S", help=stall_help)
    add("-f", "--folder", "--log-folder", type=Path, metavar="DIR", help="for everything (results/tune_<study name>)")
    add("-params", "--hyperparams", nargs="+", default=[], metavar="K:V", help="settings that are fixed, not searched")
    add("--n-envs", type=whole, metavar="N", help="copies of the environment to train in (1)")
    add("--vec-env", choices=("dummy", "subproc", "native"), default="dummy", help="how the copies run (dummy)")
    add("--env-kwargs", nargs="+", default=[], metavar="K:V", help="arguments for the environment")
    add("--seed", type=count, default=0, metavar="S", help="master seed, from which all seeds are derived (0)")
    _add_search_arguments(parser.add_argument_group("search").add_argument)
    _add_evaluation_arguments(parser.add_argument_group("evaluation").add_argument)
    _add_choice_arguments(parser.add_argument_group("final choice").add_argument)


def _add_search_arguments(add: Callable[..., Any]) -> None:
    add("--sampler", default="tpe", metavar="NAME", help="tpe, gp, cmaes, random or qmc (tpe)")
    add("--pruner", default="median", metavar="NAME", help="median, hyperband, wilcoxon or none (median)")
    add("--n-startup-trials", type=count, default=10, metavar="K", help="random trials before the model is used (10)")
    add("--start", nargs="+", default=[], metavar="K:V", help="settings that stand for the defaults")
    add("--space", type=Path, metavar="FILE", help="search space as JSON instead of that of the algorithm")
    add("--storage", metavar="URL", help="where the trials are kept (journal:<folder>/trials.log)")
    add("--study-name", metavar="NAME", help="of the study in the storage (<algo>_<env>)")


def _add_evaluation_arguments(add: Callable[..., Any]) -> None:
    add("--n-evaluations", type=whole, default=10, metavar="K", help="evaluations per run, evenly spread (10)")
    add("--eval-episodes", type=whole, default=20, metavar="K", help="episodes per evaluation (20)")
    add("--stochastic", action="store_true", help="evaluate with sampled actions instead of the mode of the policy")


def _add_choice_arguments(add: Callable[..., Any]) -> None:
    add("--final-top", type=whole, default=5, metavar="K", help="best trials that train again (5)")
    add("--final-seeds", type=whole, default=5, metavar="K", help="fresh seeds for each of them (5)")
    add("--final-timesteps", type=whole, metavar="STEPS", help="environment steps of these runs (those of the trials)")
    add("--trials-only", action="store_true", help="leave the final choice to another call or machine")
    add("--write", type=Path, metavar="DIR", help="folder of another <algo>.yml that gets the entry as well")


def seconds(text: str) -> float:
    """A time such as 90s, 30m, 2h or 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def run(args: argparse.Namespace) -> int:
    from sb3_pg_ext.experiments.executor import warm_up

    _check_writable(args.write)
    # The workers' imports go on while this process does its own.
    warm_up(["sb3_pg_ext.experiments.tuning.worker", "sb3_contrib"])

    from sb3_pg_ext.experiments.console import console
    from sb3_pg_ext.experiments.provenance import command, without_password
    from sb3_pg_ext.experiments.tuning.progress import TuningProgress
    from sb3_pg_ext.experiments.tuning.tuning import TuningError

    terminal, tuning = console(), _tuning(args)
    n_trials = args.n_trials or (None if args.timeout else 100)
    dimensions = tuning.plan.dimensions
    terminal.print(
        f"{tuning.study_name}: {len(dimensions)} settings are searched, {args.seeds_per_trial} seeds a trial; "
        f"trials in {without_password(tuning.storage)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    try:
        with TuningProgress(terminal) as progress:
            tuning.run(n_trials, args.n_jobs, args.timeout, progress, args.stall_limit)
        return 0 if args.trials_only else _choose(args, tuning, terminal)
    except KeyboardInterrupt:
        terminal.print("Stopped. Trials that have ended are kept; to go on, give the same command again:")
        terminal.print(f"  {command()}", highlight=False, markup=False, soft_wrap=True)
        return 130
    except TuningError as error:
        terminal.print(f"sb3-pg tune: {error}", highlight=False, markup=False, soft_wrap=True)
        return 1
    finally:
        _report(tuning, terminal)
        tuning.close()


def _check_writable(folder: Path | None) -> None:
    """Before hours of work, not after them.

    :raises ValueError: entries cannot be written to ``folder``
    """
    if folder is None:
        return
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--write {folder}: {there} is not a folder that can be written to")


def _tuning(args: argparse.Namespace) -> Any:
    from sb3_pg_ext.experiments.tuning import Tuning, plan_tuning
    from sb3_pg_ext.experiments.tuning.worker import Proposal
    from sb3_pg_ext.experiments.values import SettingError, merge
    from sb3_pg_ext.experiments.variants import read_arguments, read_variant
    from sb3_pg_ext.spec import space_from_json

    named, start = read_variant(args.algo), read_arguments(args.start, separator=":")
    fixed = merge(named.arguments, read_arguments(args.hyperparams, separator=":"))
    if args.n_envs is not None and "n_envs" in fixed:
        raise SettingError(f"--n-envs {args.n_envs} and n_envs={fixed['n_envs']} among the settings: one is enough")
    if twice := [name for name in start if name in fixed]:
        raise SettingError(
            f"--start {', '.join(twice)}: fixed by -params or --algo, so that there is nothing to start from"
        )
    try:
        space = None if args.space is None else space_from_json(args.space.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"--space {args.space}: {error}") from None
    plan = plan_tuning(
        named.key,
        args.env,
        args.n_timesteps,
        seeds_per_trial=args.seeds_per_trial,
        aggregate=args.aggregate,
        arguments=fixed,
        space=space,
        n_evaluations=args.n_evaluations,
        episodes=args.eval_episodes,
        deterministic=not args.stochastic,
        master_seed=args.seed,
        n_envs=args.n_envs,
        vec_env=args.vec_env,
        env_kwargs=read_arguments(args.env_kwargs, separator=":"),
    )
    name = args.study_name or f"{plan.algo}_{plan.env_id}".replace(":", ".")
    folder = args.folder or Path("results", f"tune_{re.sub(r'[^A-Za-z0-9_.=,-]+', '_', name)[:100]}")
    proposal = Proposal(args.sampler, args.pruner, args.n_startup_trials)
    return Tuning(plan, folder, args.storage, args.study_name, proposal, start)


def _choose(args: argparse.Namespace, tuning: Any, terminal: Any) -> int:
    from rich.markup import escape

    from sb3_pg_ext.experiments.console import table
    from sb3_pg_ext.experiments.tuning.config_entry import departures, describe, write_entry
    from sb3_pg_ext.experiments.values import as_text

    rival = "start" if tuning.study.user_attrs["start"] else "defaults"
    terminal.print(f"The best {args.final_top} trials and the {rival} train on {args.final_seeds} fresh seeds:")
    winner = tuning.choose(
        args.final_top, args.final_seeds, args.n_jobs, args.final_timesteps, terminal, args.stall_limit
    )
    rows = [(c.label, _number(c.value), describe(c.scores)) for c in winner.contenders]
    terminal.print(table("Final choice", ("contender", "value in the tuning", "on fresh seeds"), rows, right_from=1))
    changed = departures(tuning.plan.algo, winner.settings)
    terminal.print(f"[bold]{winner.label}[/]: {escape(', '.join(f'{k}={as_text(v)}' for k, v in changed.items()))}")
    terminal.print(f"On seeds that had no part in this: {describe(winner.scores)}; the {rival}: ", end="")
    terminal.print(describe(winner.rival.scores), highlight=False)
    if winner.label == rival:
        terminal.print(f"{winner.doubt} No entry is written.")
        _take_back(args, tuning, terminal)
        return 0
    if winner.doubt:
        terminal.print(f"[yellow]{winner.doubt}[/] The entry is only kept in the folder.")
    for folder in (tuning.folder, *([args.write] if args.write and winner.doubt is None else [])):
        file = write_entry(folder, tuning.plan, winner, _commands(args, tuning.plan))
        terminal.print(f"  {file}", markup=False, soft_wrap=True)
    terminal.print("To repeat the verdict, with the entry in zoo_configs or with all settings typed:")
    shown = shlex.join(["sb3-pg", "report", str(tuning.folder / "verdict")])
    terminal.print(f"  {shown}    # shows its runs", markup=False, soft_wrap=True)
    terminal.print(f"  {_typed(args, tuning.plan, changed)}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _take_back(args: argparse.Namespace, tuning: Any, terminal: Any) -> None:
    """Remove the entry of an earlier choice from the folder of the tuning."""
    from sb3_pg_ext.experiments.tuning.config_entry import has_entry, remove_entry

    name = f"{tuning.plan.algo}.yml"
    if remove_entry(tuning.folder, tuning.plan):
        file = tuning.folder / name
        terminal.print(f"The one of an earlier choice is taken out of {file}.", markup=False, soft_wrap=True)
    if args.write and has_entry(args.write, tuning.plan):
        file = args.write / name
        terminal.print(f"The one in {file} stays: see whether it comes from here.", markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    from sb3_pg_ext.experiments.summary import number

    return "–" if value is None else number(value)


def _comparison(args: argparse.Namespace, plan: Any, algo: str) -> list[str]:
    """The command that makes the runs of the verdict."""
    steps = args.final_timesteps or args.n_timesteps
    compare = ["sb3-pg", "compare", "--algo", algo, "--env", plan.env_id, "--seeds", str(args.final_seeds)]
    compare += ["-n", str(steps), *(["--stochastic"] if args.stochastic else [])]
    compare += ["--env-kwargs", *args.env_kwargs] if args.env_kwargs else []
    compare += ["--vec-env", args.vec_env] if args.vec_env != "dummy" else []
    return compare


def _commands(args: argparse.Namespace, plan: Any) -> list[str]:
    """By which the entry was found, and by which its result can be repeated."""
    from sb3_pg_ext.experiments.provenance import command

    return [command(), shlex.join(_comparison(args, plan, plan.algo))]


def _typed(args: argparse.Namespace, plan: Any, changed: dict[str, Any]) -> str:
    """The command that makes the runs of the verdict, whatever zoo_configs holds."""
    from sb3_pg_ext.experiments.values import as_text

    settings = ",".join(f"{name}={as_text(value)}" for name, value in changed.items())
    return shlex.join([*_comparison(args, plan, f"tuned={plan.algo}:{settings}"), "--no-zoo-config"])


def _report(tuning: Any, terminal: Any) -> None:
    from optuna.exceptions import StorageInternalError

    from sb3_pg_ext.experiments.tuning.report import write_report

    try:
        files = write_report(tuning.study, tuning.plan, tuning.folder)
    except StorageInternalError:
        terminal.print("The trials cannot be read now. For the report, once they can:", highlight=False)
        terminal.print(f"  {shlex.join(['sb3-pg', 'report', str(tuning.folder)])}", markup=False, soft_wrap=True)
        return
    for file in files:
        terminal.print(f"  {file}", markup=False, soft_wrap=True)
