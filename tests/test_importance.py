"""Importance weights, effective sample sizes, parts of a rollout: against plain loops and against closed forms."""

import math

import numpy as np
import pytest
import torch as th

from sb3_pg_ext.functional.likelihood import effective_sample_size, importance_weights
from sb3_pg_ext.rollout.episodes import Rollout

RATIOS = ["step", "trajectory", "per_decision"]
LENGTHS = [4, 1, 6, 3, 6]


def log_ratios(scale: float = 0.7) -> th.Tensor:
    """(T, M) in float64, zero after the end of each episode."""
    generator = th.Generator().manual_seed(0)
    x = scale * th.randn(max(LENGTHS), len(LENGTHS), generator=generator, dtype=th.float64)
    return x * live()


def live() -> th.Tensor:
    return th.arange(max(LENGTHS)).unsqueeze(1) < th.tensor(LENGTHS)


def by_loops(log_ratio: th.Tensor, ratio: str) -> th.Tensor:
    rho, w = log_ratio.exp(), th.zeros_like(log_ratio)
    for i in range(rho.shape[1]):
        for t in range(rho.shape[0]):
            factors = {"step": rho[t : t + 1, i], "trajectory": rho[:, i], "per_decision": rho[: t + 1, i]}[ratio]
            w[t, i] = math.prod(factors.tolist())
    return w


@pytest.mark.parametrize("ratio", RATIOS)
def test_products_are_those_of_their_definition(ratio):
    assert th.allclose(importance_weights(log_ratios(), ratio), by_loops(log_ratios(), ratio), rtol=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
def test_truncation_bounds_the_product_and_leaves_the_rest(ratio):
    exact = by_loops(log_ratios(), ratio)
    truncated = importance_weights(log_ratios(), ratio, max_ratio=1.3)
    assert (exact > 1.3).any()
    assert (exact < 1.3).any()
    assert th.allclose(truncated, exact.clamp(max=1.3), rtol=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
def test_self_normalised_weights_have_mean_one_at_every_step(ratio):
    """Episodes that have ended keep their product, so that the mean is over the same M episodes at every t."""
    exact = by_loops(log_ratios(), ratio).clamp(max=2)
    normalised = importance_weights(log_ratios(), ratio, max_ratio=2, self_normalize=True)
    assert th.allclose(normalised.mean(1), th.ones(6, dtype=th.float64), rtol=1e-12)
    assert th.allclose(normalised, exact / exact.mean(1, keepdim=True), rtol=1e-12)


def test_steps_may_be_given_flat():
    flat = log_ratios()[live()]
    assert th.equal(importance_weights(flat), flat.exp())
    assert importance_weights(flat, self_normalize=True).mean().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("self_normalize", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_equal_policies_give_exactly_one(ratio, self_normalize):
    weights = importance_weights(th.zeros(50, 7), ratio, max_ratio=1.0, self_normalize=self_normalize)
    assert th.equal(weights, th.ones(50, 7))


@pytest.mark.parametrize("self_normalize", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_weights_stay_finite_when_products_overflow(ratio, self_normalize):
    log_ratio = th.tensor([[60.0, -60.0, 0.0], [60.0, -60.0, 0.0]])
    weights = importance_weights(log_ratio, ratio, self_normalize=self_normalize)
    assert weights.dtype == th.float32
    assert (weights * 1e8).sum().isfinite()
    assert (weights >= 0).all()


def test_effective_sample_size_is_a_share():
    assert effective_sample_size(th.full((10,), -300.0)).item() == pytest.approx(1)
    one_counts = th.tensor([0.0, -math.inf, -math.inf, -math.inf])
    assert effective_sample_size(one_counts).item() == pytest.approx(1 / 4)
    w = th.tensor([1.0, 2.0, 3.0], dtype=th.float64)
    assert effective_sample_size(w.log() + 700).item() == pytest.approx(36 / (3 * 14), rel=1e-12)


N, STD = 1_000_000, 1.7


def gaussian_chain(n_steps: int, shift: float, n: int = N) -> tuple[th.Tensor, th.Tensor]:
    """Actions of N(0, s^2), (T, n), and their log ratios against a target whose mean is ``shift`` s."""
    generator = th.Generator().manual_seed(1)
    actions = STD * th.randn(n_steps, n, generator=generator, dtype=th.float64)
    target = th.distributions.Normal(th.tensor(shift * STD, dtype=th.float64), STD)
    behaviour = th.distributions.Normal(th.tensor(0.0, dtype=th.float64), STD)
    return actions, target.log_prob(actions) - behaviour.log_prob(actions)


@pytest.mark.parametrize(("n_steps", "share"), [(1, 0.7788), (4, 0.3679)])
def test_effective_sample_size_of_a_gaussian_chain(n_steps, share):
    """exp(-T d^2 / s^2) of the N trajectories, for d = s / 2."""
    _, log_ratio = gaussian_chain(n_steps, 0.5)
    assert share == pytest.approx(math.exp(-n_steps / 4), abs=1e-4)
    assert effective_sample_size(log_ratio.sum(0)).item() == pytest.approx(share, rel=0.03)
    assert effective_sample_size(log_ratio[0]).item() == pytest.approx(math.exp(-1 / 4), rel=0.03)


@pytest.mark.parametrize("ratio", ["trajectory", "per_decision"])
def test_weighted_samples_have_the_moments_of_the_target(ratio):
    """Mean weight 1, and E[w_t f(a_t)] the expectation under the target, within 4 standard errors, at every step."""
    actions, log_ratio = gaussian_chain(4, 0.3, 200_000)
    weights = importance_weights(log_ratio, ratio)
    for samples, exact in [(weights, 1.0), (weights * actions, 0.3 * STD), (weights * actions**2, 1.09 * STD**2)]:
        error = (samples.mean(1) - exact) / (samples.std(1) / math.sqrt(samples.shape[1]))
        assert error.abs().max() < 4


def test_the_product_up_to_t_has_less_variance_than_the_whole_one():
    _, log_ratio = gaussian_chain(4, 0.5, 100_000)
    per_decision = importance_weights(log_ratio, "per_decision").var(1)
    assert (per_decision.diff() > 0).all()
    assert per_decision[0] < 0.2 * importance_weights(log_ratio, "trajectory").var(1)[0]


# Parts of a rollout


def rollout() -> Rollout:
    """Actions number the steps; the columns are episodes of LENGTHS."""
    actions = th.arange(sum(LENGTHS))
    zeros = th.zeros(6, len(LENGTHS))
    return Rollout(actions * 10.0, actions, zeros, live(), zeros, live() & False, None, sum(LENGTHS))


@pytest.mark.parametrize("size", [1, 3, 7, 19])
def test_an_epoch_visits_every_step_once_in_equal_parts(size):
    parts = list(rollout().epoch(size, np.random.default_rng(0)))
    assert sorted(th.cat(parts).tolist()) == list(range(20))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert th.cat(parts).tolist() != list(range(20))


@pytest.mark.parametrize("size", [None, 20, 1000])
def test_the_whole_batch_keeps_its_order(size):
    (part,) = rollout().epoch(size, np.random.default_rng(0))
    assert part.tolist() == list(range(20))
    assert [columns.tolist() for columns in rollout().epoch_of_columns(size, np.random.default_rng(0))] == [[*range(5)]]


def test_an_epoch_of_columns_visits_every_column_once():
    parts = list(rollout().epoch_of_columns(2, np.random.default_rng(0)))
    assert sorted(len(part) for part in parts) == [1, 2, 2]
    assert sorted(th.cat(parts).tolist()) == [0, 1, 2, 3, 4]


def test_steps_of_columns_are_theirs_column_by_column():
    first = [0, 4, 5, 11, 14]
    expected = [*range(first[3], first[3] + 3), *range(first[0], first[0] + 4)]
    index = rollout().steps_of(th.tensor([3, 0]))
    assert index.tolist() == expected
    batch = rollout().at(index)
    assert batch.actions.tolist() == expected
    assert batch.observations.tolist() == [10.0 * i for i in expected]
