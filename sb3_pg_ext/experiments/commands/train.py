"""Train one model. Options, folders and files are those of rl_zoo3, so that its scripts read the results.

The folder <log-folder>/<algo>/<env>_<n> gets the last model (<env>.zip), the best one (best_model.zip), all evaluations
(evaluations.npz), the episodes of training (0.monitor.csv) and everything needed to repeat the run.
"""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from sb3_pg_ext.experiments.commands.arguments import count, whole
from sb3_pg_ext.experiments.tracking import Tracking, add_tracking, tracked

EXAMPLES = """\
examples:
  sb3-pg train --algo reinforce --env CartPole-v1 -n 50000
  sb3-pg train --algo ppo --env Pendulum-v1 -n 1e5 -params gamma:0.95 "policy_kwargs:dict(net_arch=[64, 64])" -P
  sb3-pg train --algo ppo --env CartPole-v1 -n 20000 -i logs/ppo/CartPole-v1_1/CartPole-v1.zip     go on with a model
  sb3-pg eval logs/ppo/CartPole-v1_1                                                               how good is it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--algo", required=True, help="algorithm (sb3-pg algos lists them)")
    add("--env", required=True, help="environment id; module:Name-v0 imports the module first")
    add("-n", "--n-timesteps", type=whole, required=True, metavar="STEPS", help="environment steps")
    add("--seed", type=count, default=0, help="of the algorithm and the training environments (0)")
    add(
        "-f",
        "--log-folder",
        type=Path,
        default=Path("logs"),
        metavar="DIR",
        help="where the folder of the run goes (logs)",
    )
    add(
        "-i",
        "--trained-agent",
        type=Path,
        metavar="FILE",
        help="go on with this model; its settings stay, except -params",
    )
    add("-params", "--hyperparams", nargs="+", default=[], metavar="K:V", help="arguments of the constructor")
    add("--no-zoo-config", action="store_true", help="defaults of the signature instead of tuned settings")
    add("--n-envs", type=whole, metavar="N", help="copies of the environment (tuned settings, else 1)")
    add("--vec-env", choices=("dummy", "subproc", "native"), default="dummy", help="how the copies run (dummy)")
    add("--env-kwargs", nargs="+", default=[], metavar="K:V", help="arguments for the environment")
    add("--eval-freq", type=whole, metavar="STEPS", help="steps between evaluations (a twentieth of all)")
    add("--eval-episodes", type=whole, default=20, metavar="K", help="episodes per evaluation (20)")
    add("--save-freq", type=whole, metavar="STEPS", help="steps between saved models (only best and last)")
    add("-tb", "--tensorboard-log", metavar="DIR", help="write tensorboard logs")
    add_tracking(add)
    add("-P", "--progress", action="store_true", help="show a progress bar")
    add("--device", default="auto", help="cpu, cuda or auto (auto)")
    add("--num-threads", type=whole, default=1, metavar="K", help="threads of torch; results depend on it (1)")
    add("--verbose", type=int, default=1, help="0 says nothing, 1 logs training (1)")


def run(args: argparse.Namespace) -> int:
    import torch

    from sb3_pg_ext.experiments.building import check
    from sb3_pg_ext.experiments.log_folder import LogFolder, find_model
    from sb3_pg_ext.experiments.provenance import command

    torch.set_num_threads(args.num_threads)
    spec, typed = _spec(args)
    check(spec)
    if args.trained_agent is not None:
        args.trained_agent = find_model(args.trained_agent)
    tracking = Tracking.prepared(args.track, args.track_project, args.log_folder)
    folder = LogFolder.create(args.log_folder, spec.algo, args.env)
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    plain.update(env_kwargs=dict(spec.environment.kwargs), algo=spec.algo)
    folder.write_settings({n: v for n, v in plain.items() if n != "run"}, spec, command())
    if args.verbose:
        print(f"Folder: {folder.path}")
    return _train(args, spec, typed, folder, tracking)


def _spec(args: argparse.Namespace) -> Any:
    """The run, and the constructor arguments that were typed."""
    from sb3_pg_ext.experiments.run_spec import Protocol
    from sb3_pg_ext.experiments.seeds import seeds_for
    from sb3_pg_ext.experiments.settings import resolve
    from sb3_pg_ext.experiments.values import merge
    from sb3_pg_ext.experiments.variants import Variant, read_arguments, read_variant

    named = read_variant(args.algo)
    typed = merge(named.arguments, read_arguments(args.hyperparams, separator=":"))
    every = args.eval_freq or math.ceil(args.n_timesteps / 20)
    spec = resolve(
        Variant(named.label, named.key, typed),
        args.env,
        seeds=seeds_for(args.seed),
        total_steps=args.n_timesteps,
        protocol=Protocol(every, args.eval_episodes, test_episodes=0),
        n_envs=args.n_envs,
        vec_env=args.vec_env,
        env_kwargs=read_arguments(args.env_kwargs, separator=":"),
        use_zoo_config=not args.no_zoo_config,
        device=args.device,
    )
    return spec, {name: spec.arguments[name] for name in typed if name in spec.arguments}


def _train(args: argparse.Namespace, spec: Any, typed: dict[str, Any], folder: Any, tracking: Tracking | None) -> int:
    from sb3_pg_ext.experiments.provenance import command
    from sb3_pg_ext.experiments.single_run import Training

    training = Training(
        spec, folder, args.trained_agent, typed, verbose=args.verbose, tensorboard_log=args.tensorboard_log
    )
    try:
        with tracked(tracking, spec, args.log_folder, f"{spec.algo}_{folder.path.name}", command()) as trackers:
            training.learn(args.save_freq, args.progress, trackers)
    except KeyboardInterrupt:
        print(f"Stopped at step {training.model.num_timesteps:,}. The model is saved; to go on with it:")
        model = shlex.quote(str(folder.final_model))
        print(f"  sb3-pg train --algo {spec.algo} --env {shlex.quote(args.env)} -n STEPS -i {model}")
        return 130
    finally:
        training.close()
    if args.verbose:
        best = max(training.evaluations, key=lambda evaluation: evaluation.mean_return)
        last = training.evaluations[-1]
        print(f"Best evaluation: {best.mean_return:.2f} at step {best.step:,}. Last: {last.mean_return:.2f}.")
        print(f"Models: {folder.best_model} and {folder.final_model}")
    if tracking is not None:
        print(f"To look at it:\n{tracking.ways_to_look()}")
    return 0
