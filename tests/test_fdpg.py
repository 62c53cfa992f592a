"""FDPG: against the exact gradient of a regulator, its regression, its steps, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th

from sb3_pg_ext.algorithms.fdpg import FDPG, SPEC
from sb3_pg_ext.envs.lqr import LQREnv, LQRVectorEnv, lqr
from sb3_pg_ext.envs.oracles import lqr_objective
from sb3_pg_ext.rollout.population import evaluate
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing import Determinism, Echo, Learning, Saving
from sb3_pg_ext.testing.environments import several
from sb3_pg_ext.testing.recorders import log_to_table

#: A regulator of 2 states and 2 actions, undiscounted as returns are, with one start and no noise.
REGULATOR = {
    "preset": None,
    "A": [[0.9, 0.2], [-0.1, 0.8]],
    "B": [[1.0, 0.3], [0.2, 0.7]],
    "Q": [[1.0, 0.1], [0.1, 0.5]],
    "R": [[0.3, 0.0], [0.0, 0.2]],
    "start_mean": [1.0, -0.7],
    "horizon": 12,
    "gamma": 1.0,
    "action_bound": 1000.0,
}
#: u = W x + c.
WEIGHT, BIAS = np.array([[-0.3, 0.1], [0.2, -0.25]]), np.array([0.15, -0.1])
THETA = np.concatenate([WEIGHT.ravel(), BIAS])
#: One step of a learning rate of 1 is the gradient.
PLAIN = {"learning_rate": 1.0, "normalization": "none"}


def exact_gradient():
    problem = lqr(**REGULATOR)
    W, c = (th.tensor(part, requires_grad=True) for part in (WEIGHT, BIAS))
    W_grad, c_grad = th.autograd.grad(lqr_objective(problem, -W, 0.0, c), (W, c))
    return np.concatenate([W_grad.flatten(), c_grad])


def step(theta=THETA, env=None, seed=0, **kwargs):
    """The step that one iteration takes from ``theta``."""
    env = as_vec_env(LQRVectorEnv(5, **REGULATOR)) if env is None else env
    model = FDPG("LinearPolicy", env, **{"seed": seed, **PLAIN, **kwargs})
    model.search["mean"] = theta
    model.learn(1, log_interval=None)
    return model.search["mean"] - theta


def fdpg(**kwargs):
    """With a log that leads nowhere; 8 parameters."""
    model = FDPG("LinearPolicy", Echo(), **{"seed": 0, "common_seeds": False, **kwargs})
    log_to_table(model)
    return model


def relative(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


# --- against the exact gradient of a regulator

KINDS = [{"perturbation": "coordinate"}, {"perturbation": "regression", "population_size": 64}]


@pytest.mark.parametrize("kwargs", KINDS, ids=lambda kwargs: kwargs["perturbation"])
def test_central_differences_give_the_exact_gradient(kwargs):
    """To 1e-4: an error of delta^2 times the third derivative is left, and the rounding of actions to float32."""
    assert relative(step(delta=5e-4, common_seeds=False, **kwargs), exact_gradient()) < 1e-4


def test_errors_are_of_the_order_that_is_promised():
    """Of delta^2 for central differences, of delta for others; measured where rounding does not count yet."""
    exact = exact_gradient()
    for differences, factor in (("central", 4), ("forward", 2)):
        errors = [
            relative(step(delta=delta, perturbation="coordinate", differences=differences, common_seeds=False), exact)
            for delta in (0.08, 0.04)
        ]
        assert errors[0] / errors[1] == pytest.approx(factor, rel=0.25)


@pytest.mark.parametrize("kwargs", KINDS, ids=lambda kwargs: kwargs["perturbation"])
def test_common_random_numbers_make_the_gradient_exact_for_each_start(kwargs):
    """Starts at random. Every candidate sees the same one, so this is the gradient of the return from there."""
    noisy = {**REGULATOR, "start_std": 0.8}
    seen = []

    class Seen(LQREnv):
        def reset(self, **options):
            obs, info = super().reset(**options)
            if options.get("seed") is not None:
                seen.append(obs)
            return obs, info

    found = step(env=several(lambda: Seen(**noisy), 3), delta=5e-4, **kwargs)
    start = seen[-1].astype(float)  # of the last candidates, as of all
    W, c = (th.tensor(part, requires_grad=True) for part in (WEIGHT, BIAS))
    J = lqr_objective(lqr(**{**noisy, "start_mean": start, "start_std": 0.0}), -W, 0.0, c)
    exact = np.concatenate([part.flatten() for part in th.autograd.grad(J, (W, c))])
    assert relative(found, exact) < 1e-4
    others = step(env=several(lambda: LQREnv(**noisy), 3), delta=5e-4, common_seeds=False, **kwargs)
    assert relative(others, exact) > 1


# --- regression


def test_regression_is_as_good_as_its_standard_error():
    """Returns with noise of variance 1: g has the covariance (d' d)^-1 / 2, of pairs, and no bias."""
    b, errors = np.arange(8.0), []
    rng = np.random.default_rng(0)
    model = fdpg(population_size=60, delta=0.5, **PLAIN)
    theta = model.search["mean"].copy()
    for _ in range(300):
        model.search["mean"] = theta
        candidates = model.ask()
        model.tell(candidates, candidates @ b + 50 + rng.standard_normal(60))
        d = (candidates[:30] - candidates[30:]) / 2
        spread = np.sqrt(np.linalg.inv(d.T @ d).diagonal() / 2)
        errors.append((model.search["mean"] - theta - b) / spread)
    z = np.array(errors)
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(300)
    np.testing.assert_allclose(z.std(0), 1, atol=4 / np.sqrt(600))


def test_a_level_does_not_matter():
    for differences in ("central", "forward"):
        model = fdpg(population_size=40, differences=differences, **PLAIN)
        theta, candidates = model.search["mean"].copy(), model.ask()
        model.tell(candidates, candidates[:, 2] - 1e4)
        np.testing.assert_allclose(model.search["mean"] - theta, np.eye(8)[2], atol=1e-7)


def test_few_perturbations_give_the_gradient_in_their_span():
    model = fdpg(population_size=6, **PLAIN)
    theta, candidates, b = model.search["mean"].copy(), model.ask(), np.arange(8.0)
    model.tell(candidates, candidates @ b)
    d = (candidates[:3] - candidates[3:]) / 2
    np.testing.assert_allclose(model.search["mean"] - theta, np.linalg.pinv(d) @ d @ b)


@pytest.mark.parametrize(
    ("kwargs", "n"),
    [
        ({"population_size": 20}, 20),
        ({"population_size": 7, "differences": "forward"}, 7),
        ({"perturbation": "coordinate", "population_size": 7}, 16),
        ({"perturbation": "coordinate", "differences": "forward"}, 9),
    ],
)
def test_number_of_candidates(kwargs, n):
    assert fdpg(**kwargs).ask().shape == (n, 8)


def test_odd_number_of_a_pair_is_refused():
    with pytest.raises(ValueError, match="population_size=7"):
        fdpg(population_size=7)


def test_perturbation_that_rounding_swallows_is_refused():
    model = fdpg(perturbation="coordinate", delta=1e-9)
    with pytest.raises(ValueError, match=r"delta=1e-09.*learning_rate"):
        model.learn(1)


# --- steps


def test_normalizations():
    b, returns = np.array([3.0, 4.0, 0, 0, 0, 0, 0, 0]), None
    for normalization in ("gradient", "returns", "none"):
        model = fdpg(perturbation="coordinate", normalization=normalization, learning_rate=0.5)
        theta, candidates = model.search["mean"].copy(), model.ask()
        returns = candidates @ b
        model.tell(candidates, returns)
        norm = {"gradient": 5.0, "returns": returns.std(), "none": 1.0}[normalization]
        np.testing.assert_allclose(model.search["mean"] - theta, 0.5 * b / norm, atol=1e-5)


@pytest.mark.parametrize("normalization", ["gradient", "returns", "none"])
def test_returns_that_are_all_alike_move_nothing(normalization):
    model = fdpg(normalization=normalization)
    before = model.search["mean"].copy()
    model.tell(model.ask(), np.full(32, 0.1))
    np.testing.assert_array_equal(model.search["mean"], before)


# --- the contract, for what the registry's own run of it leaves out


class TestCoordinate(Saving, Determinism, Learning):
    spec = replace(SPEC, policies=("MlpPolicy", "MultiInputPolicy"))
    fast = {  # noqa: RUF012
        "perturbation": "coordinate",
        "differences": "forward",
        "normalization": "returns",
        "normalize_observations": True,
    }
    policy_kwargs = {"net_arch": [2]}  # noqa: RUF012
    steps = 1500


# --- learning


def test_cart_pole_is_learned():
    env = as_vec_env("CartPole-v1", n_envs=16, vec_env="native", seed=0)
    model = FDPG("LinearPolicy", env, zero_policy=True, delta=0.3, learning_rate=0.3, seed=0).learn(50_000)
    _, callback = model._setup_learn(10**6)
    assert evaluate(model, env, callback, model.search["mean"][None], 50).returns.mean() > 400
