"""CEM: its refit against closed forms, its noise, what is kept in the file, and that it learns what was published."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_pg_ext.algorithms.cem import CEM, FULL_COVARIANCE_LIMIT, SPEC, WEIGHTINGS, weighted_moments
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.population import evaluate
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing import Determinism, Echo, Learning, Saving
from sb3_pg_ext.testing.environments import several
from sb3_pg_ext.testing.measures import differences, learned
from sb3_pg_ext.testing.recorders import log_to_table


def cem(env=None, policy="LinearPolicy", **kwargs):
    """With a log that leads nowhere, so that ``tell`` can be called by hand."""
    model = CEM(policy, Echo() if env is None else env, **{"seed": 0, **kwargs})
    log_to_table(model)
    return model


# --- weights and refit


def test_weights_by_hand():
    returns = np.array([3.0, 10.0, -2.0, 3.0, 7.0])
    expected = {
        "elite": [1 / 3, 1 / 3, 0, 0, 1 / 3],  # of equals the earlier
        "rank": np.array([np.log(3.5 / 3), np.log(3.5), 0, 0, np.log(3.5 / 2)]) / np.log(3.5**3 / 6),
        "return": np.array([5, 12, 0, 5, 9]) / 31,
    }
    for name, weights in expected.items():
        np.testing.assert_allclose(WEIGHTINGS[name](returns, 3), weights, err_msg=name)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("returns", [np.zeros(5), np.full(5, -1e300), np.array([1.7e308, 0, 0, 1e3, -1.0])], ids=str)
def test_weights_are_a_distribution_whatever_the_returns(weighting, returns):
    weights = WEIGHTINGS[weighting](returns, 2)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


def test_moments_are_those_of_a_weighted_sample():
    rng = np.random.default_rng(0)
    theta, weights = rng.standard_normal((30, 4)) @ rng.standard_normal((4, 4)), rng.dirichlet(np.ones(30))
    mean, covariance = weighted_moments(theta, weights, full=True)
    np.testing.assert_allclose(mean, np.average(theta, axis=0, weights=weights))
    np.testing.assert_allclose(covariance, np.cov(theta.T, aweights=weights, ddof=0))
    np.testing.assert_allclose(weighted_moments(theta, weights, full=False)[1], covariance.diagonal())


@pytest.mark.parametrize(
    ("elite_frac", "shift", "factor"), [(0.05, 2.0627, 0.3716), (0.1, 1.7550, 0.4113), (0.2, 1.3998, 0.4676)]
)
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_elite_of_a_linear_objective(elite_frac, shift, factor, covariance):
    """The upper tail of a Gaussian: its mean lies ``shift`` standard deviations up, and it is ``factor`` as wide."""
    model = cem(population_size=100_000, elite_frac=elite_frac, covariance=covariance, init_std=3.0)
    theta = model.ask()
    model.tell(theta, 5.0 * theta[:, 1] - 7.0)
    variances = model.search["covariance"]
    std = np.sqrt(variances if covariance == "diag" else variances.diagonal()) / 3.0
    mean = model.search["mean"] / 3.0
    assert mean[1] == pytest.approx(shift, rel=0.01)
    assert std[1] == pytest.approx(factor, rel=0.01)
    others = np.arange(8) != 1
    np.testing.assert_allclose(mean[others], 0, atol=0.05)
    np.testing.assert_allclose(std[others], 1, atol=0.03)


def test_return_weights_of_a_linear_objective():
    """w ~ theta - min theta: uniform candidates in [-1, 1] get the density (1 + theta) / 2."""
    model = cem(population_size=100_001, weighting="return")
    theta = np.zeros((100_001, 8))
    theta[:, 0] = np.linspace(-1, 1, 100_001)
    model.tell(theta, 100 * theta[:, 0])
    assert model.search["mean"][0] == pytest.approx(1 / 3, rel=1e-3)
    assert model.search["covariance"][0] == pytest.approx(2 / 9, rel=1e-3)


def test_full_covariance_is_sampled_and_found_again():
    model = cem(population_size=200_000, elite_frac=1.0, covariance="full", extra_std=0.5)
    root = np.tril(np.random.default_rng(1).standard_normal((8, 8)))
    model.search["covariance"], model.search["mean"] = root @ root.T, np.arange(8)
    expected = root @ root.T + 0.25 * np.eye(8)
    theta = model.ask()
    np.testing.assert_allclose(np.cov(theta.T), expected, atol=0.03 * expected.max())
    model.tell(theta, np.zeros(200_000))
    np.testing.assert_allclose(model.search["mean"], np.arange(8), atol=0.05)
    np.testing.assert_allclose(model.search["covariance"], np.cov(theta.T, ddof=0), rtol=1e-9)


def test_full_covariance_goes_along_a_valley():
    """An objective that falls steeply to both sides of a diagonal: only correlations can follow it."""
    model = cem(population_size=200, covariance="full", elite_frac=0.2)
    direction = np.ones(8) / np.sqrt(8)
    theta = model.ask()
    along = theta @ direction
    aside = ((theta - np.outer(along, direction)) ** 2).sum(1)
    model.tell(theta, along - 100 * aside)
    values, vectors = np.linalg.eigh(model.search["covariance"])
    assert abs(vectors[:, -1] @ direction) > 0.7
    assert values[-1] > 3 * values[-2] or values[-1] > values[:-1].mean() * 3


def test_fewer_elites_than_parameters_leave_a_covariance_that_can_be_sampled():
    model = cem(population_size=4, covariance="full", elite_frac=0.25)
    for _ in range(5):
        theta = model.ask()
        assert np.isfinite(theta).all()
        model.tell(theta, theta[:, 0])
        model._n_updates += 1


def test_full_covariance_of_many_parameters_is_refused():
    kwargs = {"net_arch": [32, 32]}
    with pytest.raises(ValueError, match=rf"covariance='full'.*{FULL_COVARIANCE_LIMIT}.*1250"):
        cem(policy="MlpPolicy", policy_kwargs=kwargs, covariance="full")
    assert len(cem(policy="MlpPolicy", policy_kwargs=kwargs).search["mean"]) == 1250


def test_learning_rate_is_the_share_of_the_way():
    whole, half = cem(population_size=20), cem(population_size=20, learning_rate=0.25)
    theta = whole.ask()
    for model in (whole, half):
        model.tell(theta, theta[:, 0])
    np.testing.assert_allclose(half.search["mean"], 0.25 * whole.search["mean"])
    np.testing.assert_allclose(half.search["covariance"], 0.75 + 0.25 * whole.search["covariance"])
    with pytest.raises(ValueError, match=r"learning_rate=1\.5"):
        cem(learning_rate=1.5).learn(1)


# --- noise


def test_noise_falls_linearly_to_zero():
    model = cem(noise_init=0.25, noise_decay=10, extra_std=0.1)
    noises = []
    for model._n_updates in (0, 4, 10, 50):
        noises.append(model.noise)
    np.testing.assert_allclose(noises, [0.26, 0.16, 0.01, 0.01])
    model = cem(noise_init=0.25)
    model._n_updates = 1000
    assert model.noise == 0.25


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_noise_widens_the_candidates_but_is_not_kept(covariance):
    model = cem(population_size=50_000, noise_init=3.0, init_std=1.0, covariance=covariance)
    before = model.search["covariance"].copy()
    np.testing.assert_allclose(model.ask().std(0), 2.0, rtol=0.02)
    np.testing.assert_array_equal(model.search["covariance"], before)


# --- the search as a whole


def test_result_of_an_iteration_is_the_refit_of_its_candidates():
    class Asked(CEM):
        def tell(self, candidates, returns):
            super().tell(candidates, returns)
            self.told = candidates, returns, self.evaluation

    model = Asked("LinearPolicy", several(Echo, 3), population_size=10, elite_frac=0.3, n_eval_episodes=2, seed=0)
    model.learn(1)
    theta, returns, evaluation = model.told
    np.testing.assert_array_equal(returns, evaluation.returns.mean(1))
    best = np.argsort(-returns)[:3]
    np.testing.assert_allclose(model.search["mean"], theta[best].mean(0))
    np.testing.assert_allclose(model.search["covariance"], theta[best].var(0))
    np.testing.assert_array_equal(model.search["best"], theta[best[0]])
    assert model.search["best_return"] == returns.max()
    vector = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()
    np.testing.assert_array_equal(vector, model.search["mean"].astype(np.float32))


def test_alive_bonus_is_taken_from_every_step():
    told = []

    class Asked(CEM):
        def tell(self, candidates, returns):
            told.append(returns)

    for offset in (0.0, -2.5):
        env = Echo(length=8)
        Asked("LinearPolicy", env, population_size=3, alive_bonus_offset=offset, seed=0).learn(1)
    np.testing.assert_allclose(told[1], told[0] - 20)


def test_best_ever_is_kept_with_the_moments_that_it_was_seen_with():
    model = cem(several(Echo, 4), population_size=8, normalize_observations=True, deploy="best", n_eval_episodes=2)
    seen = []
    for i in range(6):
        model.learn(1, reset_num_timesteps=i == 0)
        seen.append(model.search["best_return"].item())
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]
    best = learned(model)
    np.testing.assert_array_equal(best["/policy/moments.mean"], best["/search/observations_of_best.mean"])
    np.testing.assert_array_equal(
        th.nn.utils.parameters_to_vector(model.policy.parameters()).detach(), model.search["best"].astype(np.float32)
    )
    model.deploy_policy("mean")
    mean = learned(model)
    np.testing.assert_array_equal(mean["/policy/moments.mean"], mean["/search/observations.mean"])
    assert differences(best, mean)
    model.deploy_policy("best")
    assert differences(best, learned(model)) == []


def test_best_of_an_environment_without_chance_gets_its_return_again():
    env = several(lambda: Echo(length=5), 1)
    model = cem(env, population_size=6, deploy="best", common_seeds=True, normalize_observations=True)
    seeds = []
    model.rng = Recording(model.rng, seeds)
    returns = []
    for i in range(4):
        model.learn(1, reset_num_timesteps=i == 0)
        returns.append(model.search["best_return"].item())
    _, callback = model._setup_learn(10)
    again = evaluate(model, env, callback, model.search["best"][None], 1, seeds[returns.index(returns[-1])])
    assert again.returns.item() == pytest.approx(returns[-1], rel=1e-5)


class Recording:
    """A generator that tells which seeds it gave."""

    def __init__(self, rng, seeds):
        self.rng, self.seeds = rng, seeds
        self.standard_normal = rng.standard_normal

    def integers(self, *args, **kwargs):
        self.seeds.append(self.rng.integers(*args, **kwargs))
        return self.seeds[-1]


def test_failed_update_leaves_the_search_as_it_was():
    class Fails(CEM):
        def tell(self, candidates, returns):
            super().tell(candidates, returns)
            self.search["mean"] = self.wrong

    for wrong, error in ((np.nan, NonFiniteError), (1e39, NonFiniteError), (np.zeros(3), ValueError)):
        model = Fails("LinearPolicy", Echo(), population_size=4, seed=0)
        model.wrong, before = wrong, learned(model)
        with pytest.raises(error):
            model.learn(1)
        assert differences(before, learned(model)) == []
        assert model._n_updates == 0


class Stop(BaseCallback):
    """Stops after so many calls."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def _on_step(self):
        return self.n_calls < self.call


def test_stop_in_mid_iteration_learns_nothing_and_the_next_call_begins_a_new_one():
    model = cem(several(Echo, 2), population_size=6)
    before = learned(model)
    model.learn(100, Stop(11))
    assert (model.num_timesteps, model._n_updates) == (22, 0)
    assert differences(before, learned(model)) == []
    model.learn(1, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (22 + 6 * 8, 1)


def test_total_is_a_lower_bound_and_iterations_are_whole():
    model = cem(several(Echo, 3), population_size=7).learn(100)
    assert model.num_timesteps == 144  # 3 slots, 3 rounds of 8 steps an iteration
    assert model._n_updates == 2


# --- the contract, for what the registry's own run of it leaves out: perceptrons, and the other options


class TestPerceptron(Saving, Determinism, Learning):
    spec = replace(SPEC, policies=("MlpPolicy", "MultiInputPolicy"))
    fast = {  # noqa: RUF012
        "zero_policy": False,
        "init_std": 0.3,
        "normalize_observations": True,
        "covariance": "full",
        "weighting": "rank",
        "noise_init": 0.1,
        "noise_decay": 3,
    }


class TestCommonSeeds(Saving, Learning):
    spec = SPEC
    fast = {"common_seeds": True, "deploy": "best", "weighting": "return", "n_eval_episodes": 2}  # noqa: RUF012
    steps = 160


# --- what was published


def solved(seed, n, iterations, **kwargs):
    """The mean return of the final mean policy over 100 episodes, and the env steps taken."""
    model = CEM("LinearPolicy", as_vec_env("CartPole-v1", n_envs=n, vec_env="native"), population_size=n, **kwargs)
    model.set_random_seed(seed)
    while model._n_updates < iterations:
        model.learn(1, reset_num_timesteps=model._n_updates == 0, log_interval=None)
    steps = model.num_timesteps
    _, callback = model._setup_learn(1_000_000)
    evaluation = evaluate(model, model.get_env(), callback, model.search["mean"][None], 100)
    return evaluation.returns.mean(), steps


def test_cart_pole_is_solved_at_once():
    returns = [solved(seed, 50, 15, elite_frac=0.1, noise_init=0.25, noise_decay=15)[0] for seed in range(2)]
    assert min(returns) >= 475


@pytest.mark.slow
def test_published_settings_on_cart_pole():
    """Both of 5 parameters and 40 seeds: without noise the search stops short in many of them."""
    plain = [solved(seed, 25, 10, elite_frac=0.2)[0] >= 475 for seed in range(40)]
    noisy = [solved(seed, 50, 20, elite_frac=0.1, noise_init=0.25, noise_decay=20)[0] >= 475 for seed in range(40)]
    assert 0.4 <= np.mean(plain) <= 0.8
    assert np.mean(noisy) >= 0.95


@pytest.mark.slow
def test_mountain_car_is_solved():
    """Four of five seeds within 300,000 steps."""
    means = []
    for seed in range(5):
        env = as_vec_env("MountainCarContinuous-v0", n_envs=8, seed=seed)
        settings = {"population_size": 20, "init_std": 3.0, "extra_std": 0.3, "normalize_observations": True}
        model = CEM("LinearPolicy", env, seed=seed, **settings).learn(270_000)
        assert model.num_timesteps <= 300_000
        _, callback = model._setup_learn(10**6)
        means.append(evaluate(model, env, callback, model.search["mean"][None], 40).returns.mean())
    assert np.sum(np.array(means) >= 90) >= 4, means
