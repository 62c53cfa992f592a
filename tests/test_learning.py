"""What REINFORCE reaches on small real environments, in how many steps, over several seeds."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

import sb3_pg_ext


@pytest.fixture(autouse=True)
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


def mean_return(model, env_id: str, episodes: int = 100) -> float:
    """Mean return of ``episodes`` deterministic episodes from start states that no training run has seen."""
    env = make_vec_env(env_id, 10, seed=987_654)
    return float(evaluate_policy(model, env, episodes, deterministic=True)[0])


def cartpole(seed: int, steps: int, n_envs: int = 4, **options):
    """With the settings of zoo_configs/reinforce.yml, spelled out so that neither can change unnoticed."""
    settings = {"learning_rate": LinearSchedule(3e-3, 0.0, 1.0), "n_steps": 32, "normalize_advantage": True}
    model = sb3_pg_ext.make("reinforce", "CartPole-v1", n_envs=n_envs, seed=seed, **{**settings, **options})
    return model.learn(steps)


def test_yml_holds_the_settings_that_are_tested_here() -> None:
    from sb3_pg_ext.experiments.zoo_configs import zoo_config

    entry = dict(zoo_config("reinforce", "CartPole-v1"))
    entry.pop("policy", None)
    assert entry == {"n_envs": 4, "learning_rate": "lin_0.003", "n_steps": 32, "normalize_advantage": True}


def test_cartpole_is_on_its_way_after_40k_steps() -> None:
    assert mean_return(cartpole(seed=0, steps=40_000), "CartPole-v1", 20) >= 300


@pytest.mark.parametrize("baseline", ["mean", "optimal", None])
def test_every_baseline_learns(baseline: str | None) -> None:
    model = cartpole(0, 40_000, baseline=baseline, normalize_advantage=False, learning_rate=5e-3)
    assert mean_return(model, "CartPole-v1", 20) >= 100  # a random policy reaches 20


@pytest.mark.slow
def test_cartpole_is_solved_at_200k_steps() -> None:
    returns = [mean_return(cartpole(seed, 200_000), "CartPole-v1") for seed in range(5)]
    assert np.mean(returns) >= 475
    assert min(returns) >= 400
