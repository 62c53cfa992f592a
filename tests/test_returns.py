"""Returns, advantages and baselines against their definitions, summed in plain Python, and against closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch as th
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sb3_pg_ext.functional import returns as R

SCALES = (1.0, 1e8, 1e-8)
LENGTHS = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33]))
every_scale = pytest.mark.parametrize("scale", SCALES)


class Window:
    """T steps of N slots with ends anywhere, and everything that a return may be made of; also as nested lists."""

    def __init__(self, n_steps, n_slots, end_probability, seed, scale=1.0):
        rng = np.random.default_rng(seed)
        shape = (n_steps, n_slots)
        ends = rng.random(shape) < end_probability
        self.rewards = th.tensor(scale * rng.normal(size=shape))
        self.values = th.tensor(scale * rng.normal(size=shape))
        self.cut_values = th.tensor(scale * rng.normal(size=shape) * (rng.random(shape) < 0.5))  # 0: terminal
        self.continues = th.tensor(1.0 - ends)
        self.gamma, self.lam = rng.choice([0.0, 0.5, 0.99, 1.0]), rng.choice([0.0, 0.3, 0.95, 1.0])
        self.n_steps, self.n_slots, self.scale = n_steps, n_slots, scale

    @property
    def next_values(self):
        return R.successor_values(self.values, self.continues, self.cut_values)

    def episodes(self):
        """(slot, first step, one past the last step) of everything between two ends."""
        for n in range(self.n_slots):
            stops = [t + 1 for t in range(self.n_steps) if self.continues[t, n] == 0 or t == self.n_steps - 1]
            yield from ((n, a, b) for a, b in itertools.pairwise([0, *stops]))

    def by_definition(self, function):
        """(T, N) of ``function(rewards, values, next values)``, which gets the rest of an episode from step t on."""
        result = th.full((self.n_steps, self.n_slots), math.nan, dtype=th.float64)
        next_values = self.next_values
        for n, start, stop in self.episodes():
            for t in range(start, stop):
                rest = (x[t:stop, n].tolist() for x in (self.rewards, self.values, next_values))
                result[t, n] = function(*rest)
        return result

    def close(self, actual, expected):
        assert actual.dtype == th.float64
        th.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11 * self.scale)


windows = st.builds(
    Window, LENGTHS, st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.integers(0, 2**32), st.just(1.0)
)


def over_windows(test):
    return settings(max_examples=40, deadline=None, derandomize=True)(given(w=windows)(test))


# The definitions: explicit sums, no recursion


def discounted(rewards, gamma, tail):
    """sum_k gamma^k r_k + gamma^n tail, for n rewards."""
    return sum(gamma**k * r for k, r in enumerate(rewards)) + gamma ** len(rewards) * tail


def n_step_sum(rewards, next_values, gamma, n):
    n = min(n, len(rewards))
    return discounted(rewards[:n], gamma, next_values[n - 1])


def lambda_mix(rewards, next_values, gamma, lam):
    """(1 - lam) sum_{n<L} lam^(n-1) G^(n) + lam^(L-1) G^(L): the forward view, Sutton & Barto 2018, eq. 12.3."""
    whole = len(rewards)
    shorter = sum((1 - lam) * lam ** (n - 1) * n_step_sum(rewards, next_values, gamma, n) for n in range(1, whole))
    return shorter + lam ** (whole - 1) * n_step_sum(rewards, next_values, gamma, whole)


# Against the definitions


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n_steps=LENGTHS, seed=st.integers(0, 2**32))
@example(n_steps=1, seed=0)
@example(n_steps=64, seed=0)
@example(n_steps=65, seed=0)
def test_linear_recurrence(n_steps, seed):
    rng = np.random.default_rng(seed)
    b, a = th.tensor(rng.normal(size=(n_steps, 3))), th.tensor(rng.normal(size=(n_steps, 3)))
    x = R.linear_recurrence(b, a)
    assert x.shape == b.shape
    for n in range(3):
        following = 0.0
        for t in reversed(range(n_steps)):
            following = b[t, n].item() + a[t, n].item() * following
            assert x[t, n].item() == pytest.approx(following, rel=1e-9, abs=1e-11)


def test_recurrence_over_no_steps_is_empty():
    assert R.linear_recurrence(th.empty(0, 3), th.empty(0, 3)).shape == (0, 3)


@over_windows
def test_reward_to_go(w):
    alone = R.reward_to_go(w.rewards, w.continues, w.gamma)
    w.close(alone, w.by_definition(lambda r, v, nv: discounted(r, w.gamma, 0.0)))
    continued = R.reward_to_go(w.rewards, w.continues, w.gamma, w.next_values)
    w.close(continued, w.by_definition(lambda r, v, nv: discounted(r, w.gamma, nv[-1])))


@over_windows
def test_total_return(w):
    for next_values in (None, w.next_values):
        expected = th.full_like(w.rewards, math.nan)
        for n, start, stop in w.episodes():
            tail = 0.0 if next_values is None else next_values[stop - 1, n].item()
            expected[start:stop, n] = discounted(w.rewards[start:stop, n].tolist(), w.gamma, tail)
        w.close(R.total_return(w.rewards, w.continues, w.gamma, next_values), expected)


@over_windows
def test_n_step_return(w):
    for n in (1, 2, 3, 5, w.n_steps, w.n_steps + 7):
        expected = w.by_definition(lambda r, v, nv, n=n: n_step_sum(r, nv, w.gamma, n))
        w.close(R.n_step_return(w.rewards, w.continues, w.next_values, w.gamma, n), expected)


@over_windows
def test_td_lambda_is_the_weighted_mix_of_n_step_returns(w):
    actual = R.td_lambda(w.rewards, w.continues, w.next_values, w.gamma, w.lam)
    w.close(actual, w.by_definition(lambda r, v, nv: lambda_mix(r, nv, w.gamma, w.lam)))


@over_windows
def test_gae_is_the_weighted_sum_of_td_errors(w):
    def advantage(r, v, nv):
        errors = [r[k] + w.gamma * nv[k] - v[k] for k in range(len(r))]
        return discounted(errors, w.gamma * w.lam, 0.0)

    actual = R.gae(w.rewards, w.continues, w.values, w.next_values, w.gamma, w.lam)
    w.close(actual, w.by_definition(advantage))


@over_windows
def test_successor_values(w):
    actual = R.successor_values(w.values, w.continues, w.cut_values)
    for n, start, stop in w.episodes():
        inside = [*w.values[start + 1 : stop, n].tolist(), w.cut_values[stop - 1, n].item()]
        assert actual[start:stop, n].tolist() == inside


@over_windows
def test_episode_time(w):
    elapsed = th.arange(w.n_slots) * 3
    fresh, going_on = R.episode_time(w.continues), R.episode_time(w.continues, elapsed)
    assert fresh.dtype == going_on.dtype == th.int64
    for n, start, stop in w.episodes():
        before = 0 if start else elapsed[n].item()
        assert fresh[start:stop, n].tolist() == list(range(stop - start))
        assert going_on[start:stop, n].tolist() == list(range(before, before + stop - start))


@every_scale
def test_everything_is_right_at_every_scale_of_the_rewards(scale):
    w = Window(33, 3, 0.1, seed=1, scale=scale)
    w.gamma, w.lam = 0.99, 0.95
    w.close(
        R.reward_to_go(w.rewards, w.continues, w.gamma),
        w.by_definition(lambda r, v, nv: discounted(r, w.gamma, 0.0)),
    )
    w.close(
        R.td_lambda(w.rewards, w.continues, w.next_values, w.gamma, w.lam),
        w.by_definition(lambda r, v, nv: lambda_mix(r, nv, w.gamma, w.lam)),
    )
    w.close(
        R.gae(w.rewards, w.continues, w.values, w.next_values, w.gamma, w.lam) + w.values,
        w.by_definition(lambda r, v, nv: lambda_mix(r, nv, w.gamma, w.lam)),
    )


# Identities between them


@over_windows
def test_gae_plus_values_is_td_lambda(w):
    advantages = R.gae(w.rewards, w.continues, w.values, w.next_values, w.gamma, w.lam)
    w.close(advantages + w.values, R.td_lambda(w.rewards, w.continues, w.next_values, w.gamma, w.lam))


@over_windows
def test_gae_of_lambda_one_is_the_return_minus_the_value(w):
    advantages = R.gae(w.rewards, w.continues, w.values, w.next_values, w.gamma, 1.0)
    w.close(advantages, R.reward_to_go(w.rewards, w.continues, w.gamma, w.next_values) - w.values)


@over_windows
def test_the_ends_of_the_scales_of_n_and_lambda(w):
    args = (w.rewards, w.continues, w.next_values, w.gamma)
    target = w.rewards + w.gamma * w.next_values
    w.close(R.n_step_return(*args, n=1), target)
    w.close(R.td_lambda(*args, lam=0.0), target)
    monte_carlo = R.reward_to_go(w.rewards, w.continues, w.gamma, w.next_values)
    w.close(R.n_step_return(*args, n=w.n_steps), monte_carlo)
    w.close(R.td_lambda(*args, lam=1.0), monte_carlo)


@over_windows
def test_total_return_is_the_return_to_go_of_the_first_step(w):
    total = R.total_return(w.rewards, w.continues, w.gamma)
    to_go = R.reward_to_go(w.rewards, w.continues, w.gamma)
    for n, start, stop in w.episodes():
        assert (total[start:stop, n] == to_go[start, n]).all()


# Closed forms


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 7, 8, 9])
def test_a_constant_reward_gives_geometric_sums(gamma, n_steps):
    one = th.ones(n_steps, 1, dtype=th.float64)
    left = th.arange(n_steps, 0, -1, dtype=th.float64)[:, None]
    expected = left if gamma == 1 else (1 - gamma**left) / (1 - gamma)
    th.testing.assert_close(R.reward_to_go(one, one, gamma), expected)
    th.testing.assert_close(R.total_return(one, one, gamma), expected[0].expand(n_steps, 1))


@pytest.mark.parametrize("n", [1, 3, 50])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_value_of_a_constant_reward_for_ever_is_its_own_target(n, lam):
    gamma = 0.9
    reward, going_on = th.ones(20, 2, dtype=th.float64), th.ones(20, 2, dtype=th.float64)
    going_on[7, 0] = going_on[3, 1] = 0  # time limits: the value goes on
    forever = th.full_like(reward, 1 / (1 - gamma))
    next_values = R.successor_values(forever, going_on, forever)
    for target in (
        R.n_step_return(reward, going_on, next_values, gamma, n),
        R.td_lambda(reward, going_on, next_values, gamma, lam),
        R.reward_to_go(reward, going_on, gamma, next_values),
        R.total_return(reward, going_on, gamma, next_values),
    ):
        th.testing.assert_close(target, forever)
    advantages = R.gae(reward, going_on, forever, next_values, gamma, lam)
    th.testing.assert_close(advantages, th.zeros_like(advantages))


def test_a_terminal_step_ends_the_value_and_a_time_limit_does_not():
    rewards = th.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=th.float64)
    values = th.tensor([[10.0, 10.0], [20.0, 20.0]], dtype=th.float64)
    continues = th.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=th.float64)
    cut_values = th.tensor([[0.0, 0.0], [0.0, 100.0]], dtype=th.float64)  # slot 0 terminates, slot 1 is cut
    next_values = R.successor_values(values, continues, cut_values)
    assert next_values.tolist() == [[20.0, 20.0], [0.0, 100.0]]
    assert R.reward_to_go(rewards, continues, 0.5, next_values).tolist() == [[2.0, 27.0], [2.0, 52.0]]
    assert R.gae(rewards, continues, values, next_values, 0.5, 0.0).tolist() == [[1.0, 1.0], [-18.0, 32.0]]


def test_what_follows_an_end_is_without_effect():
    w = Window(16, 2, 0.0, seed=2)
    w.continues[6] = 0
    for function in (
        lambda r, v: R.reward_to_go(r, w.continues, 0.9),
        lambda r, v: R.reward_to_go(r, w.continues, 0.9, v),
        lambda r, v: R.total_return(r, w.continues, 0.9, v),
        lambda r, v: R.n_step_return(r, w.continues, v, 0.9, 5),
        lambda r, v: R.td_lambda(r, w.continues, v, 0.9, 0.8),
        lambda r, v: R.gae(r, w.continues, v, v, 0.9, 0.8),
    ):
        rewards, values = w.rewards.clone(), w.values.clone()
        before = function(rewards, values)[:7]
        rewards[7:], values[7:] = 1e6, -1e6
        assert th.equal(function(rewards, values)[:7], before)


def test_an_n_step_return_needs_a_step():
    w = Window(3, 1, 0.0, seed=0)
    with pytest.raises(ValueError, match=r"n=0: .* n >= 1"):
        R.n_step_return(w.rewards, w.continues, w.next_values, 0.9, 0)


def test_a_thousand_steps_in_single_precision():
    w = Window(1025, 2, 0.0, seed=3)
    exact = R.reward_to_go(w.rewards, w.continues, 0.999)
    single = R.reward_to_go(w.rewards.float(), w.continues.float(), 0.999)
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()


# Baselines


def loo_by_definition(psi, weights):
    n_steps, n_episodes = psi.shape
    result = th.zeros_like(psi)
    for t in range(n_steps):
        for i in range(n_episodes):
            others = [j for j in range(n_episodes) if j != i]
            total = math.fsum(weights[t, j].item() for j in others)
            weighted = math.fsum(weights[t, j].item() * psi[t, j].item() for j in others)
            result[t, i] = weighted / total if total > 0 else 0.0
    return result


@st.composite
def padded_episodes(draw):
    """Psi and which steps exist: (T, M), at least one episode is T long; sometimes a step has one episode left."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_steps, n_episodes = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    lengths = rng.integers(1, n_steps + 1, n_episodes)
    lengths[rng.integers(n_episodes)] = n_steps
    live = th.tensor(np.arange(n_steps)[:, None] < lengths)
    return th.tensor(rng.normal(size=live.shape)) * live, live


@settings(max_examples=60, deadline=None, derandomize=True)
@given(padded_episodes())
def test_leave_one_out_mean(case):
    psi, live = case
    actual = R.leave_one_out_mean(psi, live)
    th.testing.assert_close(actual, loo_by_definition(psi, live.double()), rtol=1e-10, atol=1e-12)
    assert actual.dtype == psi.dtype


@settings(max_examples=60, deadline=None, derandomize=True)
@given(padded_episodes(), st.integers(0, 2**32))
def test_leave_one_out_weighted_mean(case, seed):
    psi, live = case
    weights = th.tensor(np.random.default_rng(seed).exponential(size=psi.shape)) * live
    actual = R.leave_one_out_weighted_mean(psi, weights)
    th.testing.assert_close(actual, loo_by_definition(psi, weights), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_dominating_weight_does_not_drown_the_others(place):
    psi = th.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]], dtype=th.float64)
    weights = th.full_like(psi, 1e-9)
    weights[0, place] = 1e12
    actual = R.leave_one_out_weighted_mean(psi, weights)
    expected = th.full_like(psi, psi[0, place].item())
    expected[0, place] = (15 - psi[0, place]) / 4  # without itself, the four small ones count alike
    th.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_an_episode_that_is_alone_has_no_baseline():
    psi = th.tensor([[1.0, 3.0], [5.0, 0.0]], dtype=th.float64)
    live = th.tensor([[True, True], [True, False]])
    assert R.leave_one_out_mean(psi, live).tolist() == [[3.0, 1.0], [0.0, 5.0]]
    assert R.leave_one_out_mean(psi[:, :1], live[:, :1]).tolist() == [[0.0], [0.0]]
    assert R.leave_one_out_weighted_mean(psi, th.zeros_like(psi)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_baseline_does_not_depend_on_its_own_episode():
    w = Window(6, 5, 0.0, seed=4)
    weights = w.values.exp()
    for change in range(5):
        psi, other_weights = w.rewards.clone(), weights.clone()
        psi[:, change], other_weights[:, change] = 1e9, 7.0
        own = R.leave_one_out_weighted_mean(psi, other_weights)[:, change]
        assert th.equal(own, R.leave_one_out_weighted_mean(w.rewards, weights)[:, change])


@every_scale
def test_standardised(scale):
    advantages = th.tensor(np.random.default_rng(5).normal(3.0, 2.0, 50)) * scale
    actual = R.standardised(advantages, epsilon=0.0)
    assert actual.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert actual.std().item() == pytest.approx(1.0, rel=1e-12)
    assert th.equal(actual.argsort(), advantages.argsort())


def test_standardised_where_there_is_no_spread():
    assert R.standardised(th.full((4,), 7.0)).tolist() == [0.0] * 4
    assert R.standardised(th.tensor([7.0])).tolist() == [0.0]


# What all of them promise

PROMISES = {
    "linear_recurrence": lambda w: R.linear_recurrence(w.rewards, w.continues),
    "reward_to_go": lambda w: R.reward_to_go(w.rewards, w.continues, 0.9),
    "reward_to_go with values": lambda w: R.reward_to_go(w.rewards, w.continues, 0.9, w.cut_values),
    "total_return": lambda w: R.total_return(w.rewards, w.continues, 0.9, w.cut_values),
    "1-step": lambda w: R.n_step_return(w.rewards, w.continues, w.cut_values, 0.9, 1),
    "4-step": lambda w: R.n_step_return(w.rewards, w.continues, w.cut_values, 0.9, 4),
    "td_lambda": lambda w: R.td_lambda(w.rewards, w.continues, w.cut_values, 0.9, 0.8),
    "gae": lambda w: R.gae(w.rewards, w.continues, w.values, w.cut_values, 0.9, 0.8),
    "successor_values": lambda w: R.successor_values(w.values, w.continues, w.cut_values),
    "leave_one_out_mean": lambda w: R.leave_one_out_mean(w.rewards, w.continues.bool()),
    "leave_one_out_weighted_mean": lambda w: R.leave_one_out_weighted_mean(w.rewards, w.values.exp()),
    "standardised": lambda w: R.standardised(w.rewards),
}


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_dtype_and_shape_are_kept_and_inputs_left_alone(name, dtype):
    w = Window(9, 3, 0.2, seed=6)
    fields = ("rewards", "continues", "values", "cut_values")
    for field in fields:
        setattr(w, field, getattr(w, field).to(dtype))
    before = {field: getattr(w, field).clone() for field in fields}
    result = PROMISES[name](w)
    assert (result.dtype, result.shape) == (dtype, w.rewards.shape)
    assert all(th.equal(getattr(w, field), before[field]) for field in fields)
    result += 1.0
    assert all(th.equal(getattr(w, field), before[field]) for field in fields), "the result shares memory"
