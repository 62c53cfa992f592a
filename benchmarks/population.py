"""``python -m benchmarks.population``: candidates and env steps per CPU second of searches in parameter space.

Ours against sb3-contrib's ARS, against evotorch's CEM (one process, its ``GymNE``; left out if it is not installed),
and against pycma with linear policies batched by hand and stepped in the bare gymnasium vector environment. The latter
keeps the return of every slot until its first episode ends, and nothing else: no callbacks, no checks, no infos, no
statistics of episodes; slots that are done step on until the longest episode of the batch has ended. One process,
interleaved, with another seed every round; exit 1 if a target is missed. pycma comes with the extra `bench`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cma
import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib import ARS
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_pg_ext import make
from sb3_pg_ext.rollout.direct_step import stepper
from sb3_pg_ext.rollout.vector_env import as_vec_env

GENERATIONS = 10
UNITS = ("steps", "candidates")
#: Who against whom, in which unit, and how many times as much it has to be. Linear policies on a DummyVecEnv have no
#: place here: stepping it without any policy is but 2.8 times as fast as ARS with one.
TARGETS = [
    ("CEM native 256", "CartPole-v1 ARS dummy 8", "steps", 40.0),
    ("CEM native 256", "evotorch CEM", "steps", 30.0),
    ("CartPole-v1 CEM dummy 8, MLP", "CartPole-v1 ARS dummy 8, MLP", "steps", 2.5),
    ("CEM native 256", "pycma by hand 256", "candidates", 0.8),
    ("CMAES native 256", "pycma by hand 256", "candidates", 0.8),
    ("CEM native 64", "pycma by hand 64", "candidates", 0.8),
    ("CMAES native 64", "pycma by hand 64", "candidates", 0.8),
]
#: Seed -> the env steps and the candidates that some generations took.
Search = Callable[[int], tuple[int, int]]


def by_hand(n_slots: int, population: int) -> Search:
    """pycma on the linear policies of CartPole-v1, ``n_slots`` of them at a time."""
    env = gym.make_vec("CartPole-v1", n_slots, vectorization_mode="vector_entry_point")

    def returns(candidates: np.ndarray) -> tuple[np.ndarray, int]:
        weights, biases = candidates[:, :4].astype(np.float32), candidates[:, 4].astype(np.float32)
        observations, _ = env.reset()
        alive, total, steps = np.ones(n_slots, bool), np.zeros(n_slots), 0
        while alive.any():
            actions = (np.einsum("ij,ij->i", weights, observations) + biases > 0).astype(np.int64)
            observations, rewards, terminated, truncated, _ = env.step(actions)
            total += rewards * alive
            alive &= ~(terminated | truncated)
            steps += n_slots
        return total, steps

    def work(seed: int) -> tuple[int, int]:
        search = cma.CMAEvolutionStrategy(np.zeros(5), 0.5, {"popsize": population, "verbose": -9, "seed": seed + 1})
        steps = 0
        for _ in range(GENERATIONS):
            candidates = search.ask()
            parts = [returns(np.array(candidates[i : i + n_slots])) for i in range(0, population, n_slots)]
            search.tell(candidates, (-np.concatenate([part for part, _ in parts])).tolist())
            steps += sum(taken for _, taken in parts)
        return steps, GENERATIONS * population

    return work


def searched(key: str, env: VecEnv, population: int, policy: str = "LinearPolicy", **options: Any) -> Search:
    def work(seed: int) -> tuple[int, int]:
        model = make(key, env, policy, population_size=population, seed=seed, **options)
        for _ in range(GENERATIONS):
            model.learn(1, log_interval=None, reset_num_timesteps=False)
        return model.num_timesteps, GENERATIONS * population

    return work


def ars(env: VecEnv, policy: str) -> Search:
    def work(seed: int) -> tuple[int, int]:
        model = ARS(policy, env, n_delta=8, seed=seed).learn(20_000, log_interval=None)
        return model.num_timesteps, 16 * model._n_updates

    return work


def evotorch_cem(population: int) -> Search:
    """evotorch's CEM on the linear policies of CartPole-v1, 3 generations: its candidates act one after the other."""
    from evotorch.algorithms import CEM
    from evotorch.neuroevolution import GymNE

    logging.getLogger("evotorch").setLevel(logging.WARNING)

    def work(seed: int) -> tuple[int, int]:
        th.manual_seed(seed)
        problem = GymNE("CartPole-v1", "Linear(obs_length, act_length)")
        search = CEM(problem, popsize=population, parenthood_ratio=0.2, stdev_init=1.0)
        for _ in range(3):
            search.step()
        return int(search.status["total_interaction_count"]), 3 * population

    return work


def stepping(env: VecEnv) -> Search:
    """2000 random actions in all slots, without any policy, as quickly as a search could step ``env``."""
    actions = np.array([[env.action_space.sample() for _ in range(env.num_envs)] for _ in range(2000)])

    def work(_seed: int) -> tuple[int, int]:
        env.reset()
        step = stepper(env, quiet=True)
        for each in actions:
            step(each)
        return actions.shape[0] * actions.shape[1], 0

    return work


def measured(searches: dict[str, Search], n_rounds: int) -> dict[str, np.ndarray]:
    """Name -> env steps and candidates per CPU second of each round, (n_rounds, 2); one round before warms up."""
    rates: dict[str, list[np.ndarray]] = {name: [] for name in searches}
    for seed in range(n_rounds + 1):
        for name, search in searches.items():
            start = time.process_time()
            counts = np.array(search(seed))
            rates[name].append(counts / (time.process_time() - start))
    return {name: np.array(rounds[1:]) for name, rounds in rates.items()}


def native(n_slots: int) -> VecEnv:
    return as_vec_env("CartPole-v1", n_envs=n_slots, seed=0, vec_env="native")


def side_by_side(env_id: str) -> dict[str, Search]:
    """CEM and ARS on the same ``DummyVecEnv(8)``, with linear policies and with perceptrons."""
    env = as_vec_env(env_id, n_envs=8, seed=0)
    return {
        f"{env_id} no policy dummy 8": stepping(env),
        f"{env_id} CEM dummy 8": searched("cem", env, 16),
        f"{env_id} ARS dummy 8": ars(env, "LinearPolicy"),
        f"{env_id} CEM dummy 8, MLP": searched("cem", env, 16, "MlpPolicy", zero_policy=False, init_std=0.3),
        f"{env_id} ARS dummy 8, MLP": ars(env, "MlpPolicy"),
    }


def seconds_to_475(key: str, env: VecEnv, policy: str, seed: int, **options: Any) -> float:
    """CPU seconds of training on CartPole-v1 until 20 episodes of the policy have a mean return of 475."""
    model = make(key, env, policy, seed=seed, **options)
    test, seconds = native(20), 0.0
    while seconds < 60:
        start = time.process_time()
        model.learn(1, log_interval=None, reset_num_timesteps=False)
        seconds += time.process_time() - start
        if evaluate_policy(model, test, 20)[0] >= 475:
            return seconds
    return float("inf")


def race(n_seeds: int = 5) -> None:
    """Print medians over seeds of :func:`seconds_to_475`."""
    noisy = {"noise_init": 0.25, "noise_decay": 20, "elite_frac": 0.1}
    lanes: dict[str, Callable[[int], float]] = {
        "CEM native 64": lambda seed: seconds_to_475("cem", native(64), "LinearPolicy", seed, **noisy),
        "CMAES native 64": lambda seed: seconds_to_475("cmaes", native(64), "LinearPolicy", seed, population_size=64),
        "ARS dummy 8": lambda seed: seconds_to_475("ars", as_vec_env("CartPole-v1", n_envs=8), "LinearPolicy", seed),
    }
    for name, seconds in lanes.items():
        print(f"{name:32s} {np.median([seconds(seed) for seed in range(n_seeds)]):8.2f} CPU seconds to a return of 475")


def main(n_rounds: int = 5) -> int:
    th.set_num_threads(1)
    searches = {
        "CMAES native 256": searched("cmaes", native(256), 256),
        "pycma by hand 256": by_hand(256, 256),
        "CMAES native 64": searched("cmaes", native(64), 256),
        "pycma by hand 64": by_hand(64, 256),
        "CEM native 256": searched("cem", native(256), 256),
        "CEM native 64": searched("cem", native(64), 256),
    }
    if importlib.util.find_spec("evotorch"):
        searches["evotorch CEM"] = evotorch_cem(256)
    else:
        print("evotorch is not installed: its CEM is left out")
    for env_id in ("CartPole-v1", "Pendulum-v1", "Swimmer-v5"):
        searches |= side_by_side(env_id)
    rates = measured(searches, n_rounds)
    for name, of_rounds in rates.items():
        steps, candidates = np.median(of_rounds, axis=0)
        print(f"{name:32s} {steps:12,.0f} steps/s {candidates:10,.0f} candidates/s")
    race()
    met = True
    for ours, peer, unit, least in [target for target in TARGETS if target[1] in rates]:
        found = np.median(rates[ours] / rates[peer], axis=0)[UNITS.index(unit)]
        met &= bool(found >= least)
        print(f"{'reached' if found >= least else 'MISSED':8s} {ours} / {peer}: {found:.2f} {unit} (at least {least})")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
