"""The imagined return against sums written out by hand; its gradient against closed forms and finite differences."""

import pytest
import torch as th

from sb3_pg_ext.functional.imagine import imagine

B, S, A, H, GAMMA = 4, 3, 2, 5, 0.8


def double(*shape, seed=0):
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def system():
    """A stable linear system with a linear policy, and all its noise."""
    F, G, K = 0.4 * double(S, S), 0.5 * double(S, A), (0.3 * double(A, S)).requires_grad_()
    return {
        "start": double(B, S, seed=7),
        "policy": lambda s, z: s @ K.T + 0.3 * z,
        "dynamics": lambda s, a, zeta: s @ F.T + a @ G.T + zeta,
        "reward": lambda s, a, following: -(s.square().sum(1) + a.square().sum(1) + following[:, 0]),
        "gamma": GAMMA,
        "action_noise": double(H, B, A),
        "model_noise": double(H, B, S),
    }, K


def by_hand(system, b, length=H, p=lambda t: 0.0, value=None):
    """The return of trajectory b, one number at a time."""
    state, total, weight = system["start"][b : b + 1], 0.0, 1.0
    for t in range(length):
        action = system["policy"](state, system["action_noise"][t, b : b + 1])
        following = system["dynamics"](state, action, system["model_noise"][t, b : b + 1])
        total = total + weight * system["reward"](state, action, following)
        weight = weight * GAMMA * (1 - p(t))
        state = following
    return (total if value is None else total + weight * value(state)).squeeze()


def value(s):
    return 3 + s[:, 0] - s[:, 1].square()


def test_it_is_the_discounted_sum(system):
    arguments, _ = system
    imagined = imagine(**arguments)
    th.testing.assert_close(imagined.returns, th.stack([by_hand(arguments, b) for b in range(B)]))
    assert imagined.states.shape == (H + 1, B, S)
    assert imagined.actions.shape == (H, B, A)
    assert imagined.rewards.shape == (H, B)
    th.testing.assert_close(imagined.discounts, GAMMA ** th.arange(H + 1).double().unsqueeze(1).expand(-1, B))


def test_the_value_of_the_last_state_counts_with_gamma_to_the_h(system):
    arguments, _ = system
    imagined = imagine(**arguments, value=value)
    th.testing.assert_close(imagined.returns, th.stack([by_hand(arguments, b, value=value) for b in range(B)]))


def test_what_follows_an_end_counts_by_the_probability_that_there_was_none(system):
    arguments, _ = system
    clock = iter(range(H))
    imagined = imagine(**arguments, value=value, termination=lambda s, a, f: th.full((B,), 0.1 * next(clock)))
    expected = [by_hand(arguments, b, value=value, p=lambda t: 0.1 * t) for b in range(B)]
    th.testing.assert_close(imagined.returns, th.stack(expected))


def test_a_certain_end_leaves_the_reward_of_its_step_and_nothing_else(system):
    arguments, _ = system
    imagined = imagine(**arguments, value=value, termination=lambda s, a, f: th.ones(B))
    th.testing.assert_close(imagined.returns, imagined.rewards[0])


@pytest.mark.parametrize("lengths", [[5, 3, 1, 4]])
def test_trajectories_may_have_different_lengths(system, lengths):
    arguments, _ = system
    live = th.arange(H).unsqueeze(1) < th.tensor(lengths)
    imagined = imagine(**arguments, value=value, live=live)
    expected = [by_hand(arguments, b, length, value=value) for b, length in enumerate(lengths)]
    th.testing.assert_close(imagined.returns, th.stack(expected))


def test_a_trajectory_may_begin_later(system):
    """Empty steps in front change nothing."""
    arguments, _ = system
    late = {**arguments}
    for name in ("action_noise", "model_noise"):
        late[name] = th.cat([th.full_like(arguments[name][:2], 1e3), arguments[name]])
    live = (th.arange(H + 2) >= 2).unsqueeze(1).expand(-1, B)
    th.testing.assert_close(imagine(**late, live=live).returns, imagine(**arguments).returns)


def test_the_gradient_is_that_of_finite_differences(system):
    arguments, K = system

    def total():
        return imagine(**arguments, value=value, termination=lambda s, a, f: s[:, 0].sigmoid()).returns.sum()

    (gradient,) = th.autograd.grad(total(), K)
    step = 1e-6
    with th.no_grad():
        for index in th.cartesian_prod(th.arange(A), th.arange(S)):
            K[tuple(index)] += step
            above = total()
            K[tuple(index)] -= 2 * step
            below = total()
            K[tuple(index)] += step
            assert (above - below).item() / (2 * step) == pytest.approx(gradient[tuple(index)].item(), rel=1e-6)


def test_the_pathwise_gradient_of_the_square_has_variance_four():
    """a ~ N(mu, 1) at mu = 1, f = a^2: d/dmu E f = 2; a pathwise sample of it is 2 a, whose variance is 4."""
    n = 200_000
    mu = th.ones(n, 1, dtype=th.float64, requires_grad=True)
    z = th.randn(1, n, 1, dtype=th.float64, generator=th.Generator().manual_seed(0))
    f = imagine(
        th.zeros(n, 1).double(), lambda s, z: mu + z, lambda s, a, _: s, lambda s, a, _: a[:, 0].square(), 1.0, z, z
    )
    (samples,) = th.autograd.grad(f.returns.sum(), mu)
    assert samples.mean().item() == pytest.approx(2, abs=0.02)
    assert samples.var().item() == pytest.approx(4, rel=0.03)


def test_noise_of_two_lengths_is_refused(system):
    arguments, _ = system
    with pytest.raises(ValueError, match=r"action_noise is for 5 steps and model_noise for 4"):
        imagine(**{**arguments, "model_noise": arguments["model_noise"][:-1]})
