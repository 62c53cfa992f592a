"""ES: its gradient against closed forms, shaping, the optimizers against torch's, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th

from sb3_pg_ext.algorithms.es import ES, OPTIMIZERS, SAMPLINGS, SHAPINGS, SPEC, centered_ranks, standard_scores
from sb3_pg_ext.bases.policy_search import SearchState
from sb3_pg_ext.rollout.population import evaluate
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing import Determinism, Echo, Learning, Saving
from sb3_pg_ext.testing.recorders import log_to_table

PLAIN = {"shaping": "none", "optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}


def es(**kwargs):
    """With a log that leads nowhere, so that ``tell`` can be called by hand; 8 parameters."""
    model = ES("LinearPolicy", Echo(), **{"seed": 0, **kwargs})
    log_to_table(model)
    return model


def estimates(model, f, count):
    """Steps (count, P) that the model takes from where it stands, each taken back."""
    before, found = model.search.copies(), []
    for _ in range(count):
        candidates = model.ask()
        model.tell(candidates, f(candidates))
        found.append(model.search["mean"] - before["mean"])
        for name, value in before.items():
            model.search[name] = value
    return np.array(found)


# --- the gradient


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("sigma", [0.2, 1.7])
def test_gradient_of_a_quadratic_is_unbiased(sampling, sigma):
    """f = b . theta - theta' H theta / 2 has the gradient b - H mu wherever it is smoothed."""
    rng = np.random.default_rng(5)
    root, b, mu = rng.standard_normal((8, 8)), rng.standard_normal(8), rng.standard_normal(8)
    H = root @ root.T / 8
    model = es(population_size=100, sampling=sampling, sigma=sigma, **PLAIN)
    model.search["mean"] = mu
    level = b @ mu - mu @ H @ mu / 2  # with independent candidates a high level would be noise and nothing else
    found = estimates(model, lambda theta: theta @ b - np.einsum("np,pq,nq->n", theta, H, theta) / 2 - level, 400)
    exact, error = b - H @ mu, found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) < 4 * error).all()
    assert (4 * error).max() < 0.35 * np.linalg.norm(exact), "the error is too large to tell factors of two apart"


def test_gradient_of_a_cubic_is_that_of_the_smoothed_objective():
    """E[(mu + sigma e)^3] = mu^3 + 3 mu sigma^2: the gradient 3 mu^2 + 3 sigma^2 is more than that of mu^3."""
    model = es(population_size=100, sigma=0.5, **PLAIN)
    model.search["mean"] = 1.0
    found = estimates(model, lambda theta: theta[:, 3] ** 3, 400)[:, 3]
    assert found.mean() == pytest.approx(3.75, abs=4 * found.std() / np.sqrt(400))
    assert found.std() / np.sqrt(400) < 0.05


def test_pairs_cancel_what_is_even():
    """Of a level and a curvature nothing is left: the variance of (g . e) e over n / 2 pairs, 2 |g|^2 (P + 1) / n."""
    variances = {}
    for sampling in SAMPLINGS:
        model = es(population_size=20, sampling=sampling, sigma=0.3, **PLAIN)
        gradient = np.eye(8)[0] - 2 * model.search["mean"]
        found = estimates(model, lambda theta: 10 + theta[:, 0] - (theta**2).sum(1), 1000)
        variances[sampling] = found.var(0).sum()
    assert variances["antithetic"] == pytest.approx(2 * gradient @ gradient * 9 / 20, rel=0.15)
    assert variances["independent"] > 20 * variances["antithetic"]


def test_pairs_are_pairs_and_as_wide_as_sigma():
    model = es(population_size=20_000, sigma=0.3)
    candidates = model.ask()
    np.testing.assert_allclose(candidates.mean(0), model.search["mean"], atol=1e-12)
    np.testing.assert_allclose(candidates.std(0), 0.3, rtol=0.03)
    with pytest.raises(ValueError, match="population_size=7"):
        es(population_size=7)
    assert len(es(population_size=7, sampling="independent").ask()) == 7


# --- shaping


def test_ranks_by_hand():
    np.testing.assert_allclose(centered_ranks(np.array([3.0, -1e30, 5.0, 3.0, 1e9])), [-0.125, -0.5, 0.25, -0.125, 0.5])
    np.testing.assert_array_equal(centered_ranks(np.full(4, 7.0)), 0)
    np.testing.assert_array_equal(centered_ranks(np.zeros(1)), -0.5)


def test_order_is_all_that_ranks_know():
    steps = []
    for transform in (lambda f: f, np.exp, lambda f: 3 * f**3 - 100):
        model = es(population_size=30)
        for _ in range(5):
            candidates = model.ask()
            model.tell(candidates, transform(candidates[:, 0] - candidates[:, 1] ** 2))
        steps.append(model.search["mean"].copy())
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[0], steps[2])


def test_standard_scores_know_neither_level_nor_scale():
    returns = np.random.default_rng(0).standard_normal(30)
    scores = standard_scores(returns)
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=1e-12)
    np.testing.assert_allclose(standard_scores(1e6 * returns + 3), scores, rtol=1e-6)
    np.testing.assert_array_equal(standard_scores(np.full(7, 0.1)), 0)


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_returns_that_are_all_alike_move_nothing(shaping):
    model = es(shaping=shaping)
    before = model.search["mean"].copy()
    model.tell(model.ask(), np.full(64, 0.1))
    np.testing.assert_allclose(model.search["mean"], before, atol=1e-9)


# --- optimizers


def test_adam_is_that_of_torch():
    rng = np.random.default_rng(0)
    state = SearchState(first_moment=np.zeros(5), second_moment=np.zeros(5), n_gradients=0.0)
    theirs = th.nn.Parameter(th.zeros(5, dtype=th.float64))
    optimizer, ours = th.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.999), maximize=True), np.zeros(5)
    for _ in range(20):
        gradient = rng.standard_normal(5) * 10 ** rng.uniform(-4, 4)
        ours += 0.1 * OPTIMIZERS["adam"](state, gradient, 0.8)
        theirs.grad = th.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9)


def test_momentum_is_a_running_mean():
    state = SearchState(first_moment=np.zeros(1))
    steps = [OPTIMIZERS["sgd"](state, np.array([g]), 0.5).item() for g in (8.0, 0.0, 4.0)]
    np.testing.assert_allclose(steps, [4, 2, 3])


def test_weight_decay_is_the_gradient_of_a_penalty():
    model = es(weight_decay=0.25, **{**PLAIN, "learning_rate": 2.0})
    before = model.search["mean"].copy()
    model.tell(model.ask(), np.zeros(64))
    np.testing.assert_allclose(model.search["mean"], 0.5 * before)


def test_schedule_is_followed():
    model = es(**{**PLAIN, "learning_rate": lambda left: 3 * left})
    candidates, before, steps = model.ask(), model.search["mean"].copy(), []
    for model._current_progress_remaining in (1.0, 0.5):
        model.search["mean"] = before
        model.tell(candidates, candidates[:, 0])
        steps.append(model.search["mean"] - before)
    np.testing.assert_allclose(steps[0], 2 * steps[1])


# --- the contract, for what the registry's own run of it leaves out


class TestPlain(Saving, Determinism, Learning):
    spec = replace(SPEC, policies=("MlpPolicy", "MultiInputPolicy"))
    fast = {  # noqa: RUF012
        "shaping": "standard",
        "optimizer": "sgd",
        "sampling": "independent",
        "weight_decay": 0.01,
        "normalize_observations": True,
    }


# --- learning


def test_cart_pole_is_learned():
    env = as_vec_env("CartPole-v1", n_envs=16, vec_env="native", seed=1)
    model = ES("LinearPolicy", env, zero_policy=True, **CART_POLE, seed=1).learn(60_000)
    _, callback = model._setup_learn(10**6)
    assert evaluate(model, env, callback, model.search["mean"][None], 50).returns.mean() > 400


CART_POLE = {"population_size": 16, "learning_rate": 0.3, "sigma": 0.5, "shaping": "standard", "momentum": 0.0}
