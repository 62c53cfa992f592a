"""Train every algorithm in every environment with several seeds, evaluate on held-out start states, and report.

What is compared is said by a study file or by options. Runs go to parallel processes. Every finished run is kept in
study.sqlite in the folder: give the same command again after a crash, a kill or Ctrl-C and it goes on; give it again
when all is done and nothing runs twice; give it with more seeds, algorithms or environments and only these are added.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole
from sb3_pg_ext.experiments.tracking import Tracking, add_tracking

EXAMPLES = """\
algorithms:
  reinforce                                        tuned settings for the environment if there are any, else defaults
  reinforce:baseline=mean,returns=trajectory       with arguments of the constructor (sb3-pg algos reinforce lists them)
  ppo:n_envs=8,learning_rate=lin_3e-4              also n_envs, normalize, policy; lin_ falls linearly to 0
  "small=ppo:policy_kwargs.net_arch=[32, 32]"      label=... names it in tables and figures

examples:
  sb3-pg compare --algo reinforce ppo a2c trpo --env CartPole-v1 --seeds 5 -n 50000
  sb3-pg compare --algo ppo big=ppo:n_steps=512 --env CartPole-v1 Acrobot-v1 -n 100000 -f results/ppo_steps
  sb3-pg compare study.yml --dry-run               what would run, and how long it would take
  sb3-pg compare study.yml --only ppo/Pendulum-v1  a part of it
  sb3-pg compare -f results/ppo_steps --resume     go on with what is in a folder
  sb3-pg study status results/ppo_steps            how far it is, from another terminal
  sb3-pg report results/ppo_steps                  look at it while it runs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", type=Path, metavar="STUDY.yml", help="a study file, in place of --algo ...")
    _add_study_arguments(parser.add_argument_group("what is compared, without a study file").add_argument)
    _add_evaluation_arguments(parser.add_argument_group("evaluation, without a study file").add_argument)
    _add_run_arguments(parser.add_argument_group("what is done").add_argument)


def _add_study_arguments(add: Callable[..., Any]) -> None:
    add("--algo", nargs="+", metavar="ALGO", help="algorithms, with arguments if need be (see below)")
    add("--env", nargs="+", metavar="ENV", help="environment ids; module:Name-v0 imports the module first")
    add("-n", "--n-timesteps", type=whole, metavar="STEPS", help="environment steps of each run")
    add("--seeds", type=whole, metavar="K", help="runs of each algorithm in each environment (5)")
    add("--n-envs", type=whole, metavar="N", help="copies of the environment to train in (tuned settings, else 1)")
    add("--vec-env", choices=("dummy", "subproc", "native"), help="how the copies run (dummy)")
    add("--env-kwargs", nargs="+", metavar="K:V", help="arguments for the environments")
    add("--seed", type=count, metavar="S", help="master seed, from which all seeds are derived (0)")
    add("--no-zoo-config", action="store_true", help="defaults of the signature instead of tuned settings")


def _add_evaluation_arguments(add: Callable[..., Any]) -> None:
    add("--n-evaluations", type=whole, metavar="K", help="evaluations per run, evenly spread (20)")
    add("--eval-freq", type=whole, metavar="STEPS", help="steps between evaluations, instead of --n-evaluations")
    add("--eval-episodes", type=whole, metavar="K", help="episodes per evaluation (20)")
    add("--test-episodes", type=count, metavar="K", help="episodes of the test after training, 0 for none (100)")
    add("--stochastic", action="store_true", help="evaluate with sampled actions instead of the mode of the policy")


def _add_run_arguments(add: Callable[..., Any]) -> None:
    folder_help = "where the results are kept (results/<name of the file>, results/<algorithms>_<envs>)"
    jobs_help = "runs at once (one per core); has no effect on the results"
    add("--executor", choices=("local", "ray"), default="local", help="where runs are carried out (local)")
    add("--address", metavar="HOST:PORT", help="head of the Ray cluster (one that this machine is part of)")
    add("-f", "--folder", "--log-folder", type=Path, metavar="DIR", help=folder_help)
    add("-P", "-j", "--jobs", type=whole, metavar="JOBS", help=jobs_help)
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="ALGO/ENV",
        help="carry out a part of the runs: ALGO/ENV, ALGO or /ENV; * stands for anything",
    )
    add("--dry-run", action="store_true", help="say what would run and how long it would take; nothing is written")
    add("--probe", type=count, default=1, metavar="S", help="seconds of training by which --dry-run judges speed (1)")
    add("--resume", action="store_true", help="go on with a study, and refuse if there is none in the folder yet")
    add_tracking(add)
    add("--retry-failed", action="store_true", help="run again what has failed before")
    stall_help = "end a run that has stood still for S seconds (1800)"
    add("--stall-limit", type=whole, default=1800, metavar="S", help=stall_help)


# Options that say what is compared, which a study file says as well.
_DESCRIBING = (
    *("algo", "env", "n_timesteps", "seeds", "n_envs", "vec_env", "env_kwargs", "seed", "no_zoo_config"),
    *("n_evaluations", "eval_freq", "eval_episodes", "test_episodes", "stochastic"),
)
_SPELLINGS = {"n_timesteps": "-n"}


@dataclass(frozen=True)
class _Request:
    """What is asked for.

    :param study: what is compared
    :param text: the same as a study file
    :param place: where a run comes from, to begin an error with
    """

    study: Any
    text: str
    folder: Path
    jobs: int | None = None
    place: Callable[[Any], str] = lambda run: ""


def run(args: argparse.Namespace) -> int:
    if args.resume and args.study is None and not _given(args) and args.folder is not None:
        args.study = _kept_study(args.folder)
    _check_options(args)
    if args.address is not None and args.executor != "ray":
        raise ValueError(f"--address {args.address}: only --executor ray has one")
    if not args.dry_run and args.executor == "local":
        from sb3_pg_ext.experiments.executor import warm_up

        warm_up()  # the workers' imports go on while this process does its own

    from sb3_pg_ext.experiments.store import FILE_NAME
    from sb3_pg_ext.experiments.study import check_all, select

    request = _typed(args) if args.study is None else _read(args)
    if args.resume and not (request.folder / FILE_NAME).is_file():
        raise FileNotFoundError(f"--resume: there is no study in {request.folder} yet; without it, one is begun")
    runs = request.study.runs()
    chosen = select(runs, args.only)
    check_all(runs, request.place)
    return _foretell(args, request, chosen) if args.dry_run else _begin(args, request, runs, chosen)


def _kept_study(folder: Path) -> Path:
    path = folder / "study.yml"
    if not path.is_file():
        begin = "one is begun by a study file, or by --algo, --env and -n"
        raise FileNotFoundError(f"--resume: there is no study in {folder} yet, as {path} does not exist; {begin}")
    return path


def _given(args: argparse.Namespace) -> list[str]:
    """The options that say what is compared, as they are spelled."""
    values = {name: getattr(args, name) for name in _DESCRIBING}
    return [_spelled(name) for name, value in values.items() if value is not None and value is not False]


def _spelled(name: str) -> str:
    return _SPELLINGS.get(name, "--" + name.replace("_", "-"))


def _check_options(args: argparse.Namespace) -> None:
    given = _given(args)
    if args.study is not None and given:
        raise ValueError(f"{', '.join(given)}: {args.study} says what is compared; change it there")
    if args.eval_freq is not None and args.n_evaluations is not None:
        pair = f"--eval-freq {args.eval_freq}, --n-evaluations {args.n_evaluations}"
        raise ValueError(f"{pair}: one of them says the other")
    missing = [spelling for spelling in ("--algo", "--env", "-n") if spelling not in given]
    if args.study is None and missing:
        _look_for_a_file_among_values(args)
        raise ValueError(f"either a study file is needed, or --algo, --env and -n: {', '.join(missing)} missing")


def _look_for_a_file_among_values(args: argparse.Namespace) -> None:
    for name in ("only", "algo", "env", "env_kwargs"):
        for value in getattr(args, name) or []:
            if value.endswith((".yml", ".yaml")):
                raise ValueError(
                    f"{value} was taken for one of the values of {_spelled(name)}, which go on up to the next option; "
                    f"put the study file first: sb3-pg compare {shlex.quote(value)} {_spelled(name)} ..."
                )


def _read(args: argparse.Namespace) -> _Request:
    """The study of a file."""
    from sb3_pg_ext.experiments import study_file
    from sb3_pg_ext.experiments.store import FILE_NAME

    file = study_file.read_study(args.study)
    kept = args.study.name == study_file.FILE_NAME and args.study.with_name(FILE_NAME).is_file()
    own = args.study.parent if kept else Path("results", args.study.stem)
    return _Request(file.study, file.text, args.folder or file.folder or own, args.jobs or file.jobs, file.place)


def _typed(args: argparse.Namespace) -> _Request:
    """The study of the command line."""
    from sb3_pg_ext.experiments import study_file as usual
    from sb3_pg_ext.experiments.run_spec import Protocol
    from sb3_pg_ext.experiments.study import Problem, Study, default_folder
    from sb3_pg_ext.experiments.variants import read_arguments, read_variant

    _check_sizes(args)
    variants = [read_variant(text) for text in args.algo]
    every = args.eval_freq or math.ceil(args.n_timesteps / (args.n_evaluations or usual.N_EVALUATIONS))
    tests = usual.TEST_EPISODES if args.test_episodes is None else args.test_episodes
    problems = [
        Problem(
            env_id,
            args.n_timesteps,
            Protocol(every, args.eval_episodes or usual.EPISODES, not args.stochastic, tests),
            kwargs=read_arguments(args.env_kwargs or [], separator=":"),
            around={} if args.n_envs is None else {"n_envs": args.n_envs},
            vec_env=args.vec_env or "dummy",
        )
        for env_id in dict.fromkeys(args.env)
    ]
    study = Study(variants, problems, args.seeds or usual.N_SEEDS, args.seed or 0, not args.no_zoo_config)
    return _Request(study, usual.study_text(study), args.folder or default_folder(study), args.jobs)


def _check_sizes(args: argparse.Namespace) -> None:
    from sb3_pg_ext.experiments.study import MAX_MASTER_SEED, MAX_SEEDS, MAX_STEPS

    for name, most in (("seeds", MAX_SEEDS), ("n_timesteps", MAX_STEPS), ("seed", MAX_MASTER_SEED)):
        value = getattr(args, name)
        if value is not None and value > most:
            raise ValueError(f"{_spelled(name)} {value:,} is too much: at most {most:,}")


def _foretell(args: argparse.Namespace, request: _Request, chosen: Sequence[Any]) -> int:
    from rich.markup import escape
    from rich.progress import track

    from sb3_pg_ext.experiments.console import console, table
    from sb3_pg_ext.experiments.executor import usable_cores
    from sb3_pg_ext.experiments.forecast import HEADER, forecasts, study_seconds
    from sb3_pg_ext.experiments.progress import duration

    terminal = console()
    bar = partial(track, description="", console=terminal, transient=True, disable=not terminal.is_terminal)
    found = forecasts(chosen, request.folder, args.probe, tell=terminal.print, one_by_one=bar)
    terminal.print(table(f"What would run, in {request.folder}", HEADER, [tuple(map(escape, f.row())) for f in found]))
    n_open = sum(forecast.open for forecast in found)
    # How many cores a cluster will have is not for this machine to say.
    jobs = request.jobs or (usable_cores() if args.executor == "local" else 1)
    seconds = study_seconds(found, jobs)
    time = "how long is not known" if seconds is None else f"about {duration(seconds)}"
    terminal.print(f"{len(chosen)} runs, {n_open} still to do; {time} with {jobs} at once. Nothing was written.")
    return 0


def _begin(args: argparse.Namespace, request: _Request, runs: Sequence[Any], chosen: Sequence[Any]) -> int:
    from sb3_pg_ext.experiments.kept_study import check_replaceable, keep_study
    from sb3_pg_ext.experiments.provenance import command
    from sb3_pg_ext.experiments.store import FILE_NAME, Store
    from sb3_pg_ext.experiments.study import LEASE

    study, folder = request.study, request.folder
    check_replaceable(folder, request.text)
    executor_of = _executor(args)  # before anything is written
    local = args.executor == "local"
    tracking = Tracking.prepared(args.track, args.track_project, folder, folder.resolve().name, shared_folder=local)
    with Store(folder / FILE_NAME, create=True) as store:
        store.release_dead(LEASE)
        store.declare(runs, command(), study.references, whole=args.study is not None, seeds=study.seeds)
        keep_study(folder, request.text)
        if args.retry_failed:
            store.retry_failed([run.key for run in chosen])
        executor = executor_of(store, jobs=request.jobs, silence=args.stall_limit, tracking=tracking)
        part = f"{len(chosen)} of " if len(chosen) < len(runs) else ""
        print(f"{part}{len(runs)} runs ({_size(study, len(runs))}), {executor.jobs} at once, in {folder}", flush=True)
        _tell_of_other_code(store, chosen)
        if tracking is not None:
            print(f"To look at the runs:\n{tracking.ways_to_look()}", flush=True)
        return _carry_out(chosen, store, executor, folder)


def _tell_of_other_code(store: Any, runs: Sequence[Any]) -> None:
    from sb3_pg_ext.experiments.provenance import git_state, other_code

    found = store.finished_by(run.key for run in runs)
    commits = [circumstances["git"] for circumstances in found if "git" in circumstances]
    if told := other_code(commits, git_state()):
        print(told, flush=True)


def _size(study: Any, n_runs: int) -> str:
    factors = ((len(study.variants), "algorithm"), (len(study.problems), "environment"), (study.n_seeds, "seed"))
    # Where algorithms run in some of the environments only, the numbers are no factors.
    product = math.prod(number for number, _ in factors) == n_runs
    return (" × " if product else ", ").join(f"{number} {noun}{'s' * (number > 1)}" for number, noun in factors)


def _executor(args: argparse.Namespace) -> Callable[..., Any]:
    """What the runs will be carried out with, given a store; a cluster is connected to at once."""
    if args.executor == "ray":
        from sb3_pg_ext.experiments.ray_cluster import RayCluster, connect

        return partial(RayCluster, ray=connect(args.address))

    from sb3_pg_ext.experiments.executor import LocalProcesses

    return LocalProcesses


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
