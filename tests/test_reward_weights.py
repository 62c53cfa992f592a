"""Reward weights, their temperature, and weighted least squares: by hand, and against closed forms and numpy."""

import math

import numpy as np
import pytest
import torch as th

from sb3_pg_ext.functional.likelihood import (
    effective_sample_size,
    reward_weights,
    temperature_for,
    weighted_least_squares,
)

TRANSFORMS = ["exp", "shift", "rank", "identity"]


def f64(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float64)


def close(a: th.Tensor, b: th.Tensor, rtol: float = 1e-12) -> bool:
    return th.allclose(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize(
    ("transform", "weights"),
    [
        ("exp", [math.exp(-1.5), math.exp(-2), math.exp(-2), 1.0]),
        ("shift", [1.0, 0.0, 0.0, 4.0]),
        ("rank", [2.0, 0.5, 0.5, 3.0]),
    ],
)
def test_transforms_by_hand(transform, weights):
    expected = f64(*weights)
    assert close(reward_weights(f64(-2, -3, -3, 1), transform, temperature=2.0), expected / expected.sum())


def test_identity_takes_returns_as_they_are():
    """The E-step of a uniform policy on the three-armed bandit: one RWR step gives exactly this policy."""
    assert close(reward_weights(f64(1, 0.5, 0), "identity"), f64(2 / 3, 1 / 3, 0))


def test_identity_refuses_negative_returns_and_says_what_to_use():
    with pytest.raises(ValueError, match=r"transform='identity'.*-0\.5: 'exp', 'shift' and 'rank'"):
        reward_weights(f64(1, -0.5), "identity")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("returns", [[0.0, 0.0, 0.0], [3.0, 3.0], [7.0]])
def test_without_a_preference_weights_are_equal(transform, returns):
    assert close(reward_weights(f64(*returns), transform), f64(*[1 / len(returns)] * len(returns)))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_weights_of_any_scale_are_finite_and_sum_to_one(transform, scale):
    returns = scale * th.rand(1000, generator=th.Generator().manual_seed(0))
    weights = reward_weights(returns, transform)
    assert weights.dtype == returns.dtype
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    better = returns.argsort()
    assert (weights[better].diff() >= 0).all(), "a better return has a smaller weight"


def test_what_each_transform_does_not_care_about():
    returns = th.randn(50, generator=th.Generator().manual_seed(0), dtype=th.float64)
    assert close(reward_weights(returns + 1000, "exp"), reward_weights(returns, "exp"), 1e-9)
    assert close(reward_weights(5 * returns - 7, "shift"), reward_weights(returns, "shift"), 1e-9)
    assert close(reward_weights(returns.exp(), "rank"), reward_weights(returns, "rank"))
    assert close(reward_weights(5 * returns.abs(), "identity"), reward_weights(returns.abs(), "identity"))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_temperature_meets_the_effective_sample_size(share, scale):
    returns = scale * th.randn(300, generator=th.Generator().manual_seed(0)).double() + 5 * scale
    temperature = temperature_for(returns, share)
    weights = reward_weights(returns, "exp", temperature)
    assert effective_sample_size(weights.log()).item() == pytest.approx(share, rel=1e-6)
    assert temperature == pytest.approx(scale * temperature_for(returns / scale, share), rel=1e-6)


def test_temperature_with_ties():
    best_is_half = f64(1, 1, 0, -5)
    weights = reward_weights(best_is_half, "exp", temperature_for(best_is_half, 0.1))
    assert close(weights, f64(0.5, 0.5, 0, 0)), "half of the returns are the best ones: their share is the least"
    assert temperature_for(f64(3, 3, 3), 0.5) == 1
    assert temperature_for(f64(3), 0.5) == 1
    assert effective_sample_size(reward_weights(best_is_half, "exp", temperature_for(best_is_half, 1.0)).log()) > 0.999


def regression(n: int = 200) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(n, 3)), rng.exponential(size=n)
    y = x @ rng.normal(size=(3, 2)) + rng.normal(size=2) + 0.3 * rng.normal(size=(n, 2))
    return th.from_numpy(x), th.from_numpy(y), th.from_numpy(w)


def test_weighted_least_squares_is_numpys():
    x, y, w = regression()
    W, c, variance = weighted_least_squares(x, y, w)
    root, design = np.sqrt(w.numpy())[:, None], np.c_[x.numpy(), np.ones(len(x))]
    expected = np.linalg.lstsq(root * design, root * y.numpy(), rcond=None)[0]
    assert np.allclose(th.cat([W, c[:, None]], 1).numpy(), expected.T, rtol=1e-10)
    residuals = (y.numpy() - design @ expected) ** 2
    assert np.allclose(variance.numpy(), np.average(residuals, axis=0, weights=w.numpy()), rtol=1e-10)


def test_weighted_least_squares_maximises_the_weighted_likelihood():
    x, y, w = regression()
    solution = [part.requires_grad_() for part in weighted_least_squares(x, y, w)]
    W, c, variance = solution
    likelihood = (w[:, None] * th.distributions.Normal(x @ W.T + c, variance.sqrt()).log_prob(y)).sum()
    assert all(g.abs().max() < 1e-8 for g in th.autograd.grad(likelihood, solution))


def test_weighted_least_squares_ignores_what_weighs_nothing():
    x, y, w = regression()
    w[:150] = 0
    whole, part = weighted_least_squares(x, y, w), weighted_least_squares(x[150:], y[150:], w[150:])
    assert all(close(a, b, 1e-9) for a, b in zip(whole, part, strict=True))


def test_weighted_least_squares_takes_features_that_depend_on_each_other():
    """One-hot features sum to the constant: the shortest of the solutions predicts the weighted mean of each state."""
    states, w = th.tensor([0, 0, 1, 1, 1]), f64(1, 3, 1, 1, 2)
    x, y = th.nn.functional.one_hot(states).double(), f64(4, 8, 1, 2, 3).unsqueeze(1)
    W, c, _ = weighted_least_squares(x, y, w)
    assert close((x @ W.T + c).flatten(), f64(7, 7, 2.25, 2.25, 2.25))


def test_repeated_steps_on_a_gaussian_follow_the_exact_recursion():
    """Weights exp(-b (a - c)^2 / 2) turn precision 1/s^2 and mean m into 1/s^2 + b and (m/s^2 + b c)/(1/s^2 + b)."""
    b, c, mean, std = 0.4, 2.0, -1.0, 1.5
    quantiles = th.special.ndtri((th.arange(200_000, dtype=th.float64) + 0.5) / 200_000)
    constant = th.zeros(200_000, 1, dtype=th.float64)
    precision, weighted_mean = 1 / std**2, mean / std**2
    for _ in range(4):
        actions = mean + std * quantiles
        weights = reward_weights(-b * (actions - c) ** 2 / 2, "exp", temperature=1.0)
        _, bias, variance = weighted_least_squares(constant, actions.unsqueeze(1), weights)
        mean, std = bias.item(), variance.sqrt().item()
        precision, weighted_mean = precision + b, weighted_mean + b * c
        assert 1 / std**2 == pytest.approx(precision, rel=1e-3)
        assert mean == pytest.approx(weighted_mean / precision, rel=1e-3)
