"""Env steps per CPU second, training included: REINFORCE, SB3's A2C and PPO, and raw stepping as the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.interleaved import Lane, ratio, rounds
from sb3_pg_ext import make
from sb3_pg_ext.rollout.vector_env import as_vec_env

#: What is measured of REINFORCE against whom, and how much faster it has to be.
TARGETS = [
    ("CartPole-v1 dummy 8", "REINFORCE", "A2C", 6.0),
    ("CartPole-v1 dummy 8", "REINFORCE", "A2C n_steps=256", 3.0),
    ("CartPole-v1 dummy 1", "REINFORCE", "A2C", 10.0),
    ("HalfCheetah-v5 dummy 8", "REINFORCE", "raw stepping", 0.7),
]


def native(env_id: str, n_envs: int) -> VecEnv:
    return as_vec_env(gym.make_vec(env_id, n_envs, vectorization_mode="vector_entry_point"))


def trained(model: Any, steps: int) -> Callable[[], int]:
    def work() -> int:
        before = model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return model.num_timesteps - before

    return work


def raw(env: VecEnv, steps: int) -> Callable[[], int]:
    """Random actions, drawn beforehand."""
    env.action_space.seed(0)
    actions = np.array([[env.action_space.sample() for _ in range(env.num_envs)] for _ in range(64)])

    def work() -> int:
        env.reset()
        for i in range(steps // env.num_envs):
            env.step(actions[i % 64])
        return steps // env.num_envs * env.num_envs

    return work


def scenario(env: VecEnv, steps: int, peers: bool = True) -> list[Lane]:
    def lane(name: str, cls: Any, share: float, **kwargs: Any) -> Lane:
        return Lane(name, trained(cls("MlpPolicy", env, seed=0, device="cpu", **kwargs), int(steps * share)))

    reinforce = make("reinforce", env, seed=0, device="cpu")
    lanes = [Lane("REINFORCE", trained(reinforce, steps)), Lane("raw stepping", raw(env, steps))]
    if peers:
        lanes += [lane("A2C", A2C, 0.2), lane("A2C n_steps=256", A2C, 0.4, n_steps=256), lane("PPO", PPO, 0.2)]
    return lanes


SCENARIOS: dict[str, Callable[[], list[Lane]]] = {
    "CartPole-v1 dummy 1": lambda: scenario(make_vec_env("CartPole-v1", 1, seed=0), 8_000),
    "CartPole-v1 dummy 8": lambda: scenario(make_vec_env("CartPole-v1", 8, seed=0), 40_000),
    "CartPole-v1 dummy 16": lambda: scenario(make_vec_env("CartPole-v1", 16, seed=0), 40_000),
    "CartPole-v1 native 16": lambda: scenario(native("CartPole-v1", 16), 80_000, peers=False),
    "CartPole-v1 native 64": lambda: scenario(native("CartPole-v1", 64), 200_000, peers=False),
    "CartPole-v1 native 256": lambda: scenario(native("CartPole-v1", 256), 400_000, peers=False),
    "Pendulum-v1 dummy 8": lambda: scenario(make_vec_env("Pendulum-v1", 8, seed=0), 24_000),
    "HalfCheetah-v5 dummy 8": lambda: scenario(make_vec_env("HalfCheetah-v5", 8, seed=0), 16_000),
}


def table(lanes: list[Lane]) -> list[str]:
    first = lanes[0]
    return [f"    {lane.name:18s} {lane.median:10,.0f} steps/s   {ratio(first, lane):6.2f}" for lane in lanes]


def throughput(n_rounds: int) -> bool:
    """Print all scenarios; the last column is REINFORCE's rate divided by the lane's.

    The native vector env is compared with A2C on DummyVecEnv(8) in one interleaved run.

    :return: whether every target is reached
    """
    met = []
    for name, build in SCENARIOS.items():
        lanes = build()
        rounds(lanes, n_rounds)
        by_name = {lane.name: lane for lane in lanes}
        print(name, *table(lanes), sep="\n", flush=True)
        for _, ours, peer, least in [target for target in TARGETS if target[0] == name]:
            met.append(verdict(f"{ours} / {peer}", ratio(by_name[ours], by_name[peer]), least))
    wide = scenario(native("CartPole-v1", 64), 200_000, peers=False)[0]
    a2c = scenario(make_vec_env("CartPole-v1", 8, seed=0), 40_000)[2]
    rounds([wide, a2c], n_rounds)
    met.append(verdict("native 64 REINFORCE / dummy 8 A2C", ratio(wide, a2c), 20.0))
    return all(met)


def verdict(what: str, value: float, least: float) -> bool:
    print(f"    {'reached' if value >= least else 'MISSED ':8s} {what}: {value:.2f} (at least {least:g})", flush=True)
    return value >= least
