"""Models of the dynamics: invertible, exact members of an ensemble, fitted no further than the holdout allows."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_pg_ext.bases.model_fitting import fit, holdout_loss, multi_step_errors
from sb3_pg_ext.envs.lqr import LQREnv
from sb3_pg_ext.envs.pendulum import Pendulum, PendulumEnv
from sb3_pg_ext.nets.dynamics import (
    GaussianDynamics,
    KnownDynamics,
    RewardModel,
    Standardiser,
    TerminationModel,
)
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.transitions import Transitions

S, A = 3, 2


def data(n, seed=0):
    """States, actions and next states of a noisy linear system, float64."""
    rng = np.random.default_rng(seed)
    x, u = 3 + 2 * rng.standard_normal((n, S)), 10 * rng.standard_normal((n, A))
    F, G = np.random.default_rng(1).standard_normal((2, S, S))
    y = x + 0.1 * x @ F + 0.05 * u @ G[:A] + np.array([0.1, 0.2, 0.4]) * rng.standard_normal((n, S))
    return [th.from_numpy(part) for part in (x, u, y)]


def dynamics(n_members=1, net_arch=(), rows=None, **kwargs):
    th.manual_seed(0)
    model = GaussianDynamics(S, A, n_members=n_members, net_arch=net_arch, **kwargs).double()
    x, u, y = rows or data(500)
    model.learn_scales(th.cat([x, u], 1), y - x)
    model.learn_sigma(th.cat([x, u], 1), y - x)
    return model


# Statistics


def test_statistics_are_those_of_all_rows_whatever_the_portions():
    rows = th.from_numpy(1000 + np.random.default_rng(0).standard_normal((100, 4)) * [1, 10, 1e-3, 0])
    scale = Standardiser(4)
    for part in rows.split([1, 30, 2, 67]):
        scale.learn(part)
    th.testing.assert_close(scale.mean, rows.mean(0))
    th.testing.assert_close(scale.std[:3], rows.std(0, correction=0)[:3])
    assert scale.std[3] == 1
    standard = scale(rows)
    th.testing.assert_close(standard.mean(0), th.zeros(4).double(), atol=1e-8, rtol=0)
    th.testing.assert_close(scale.inverse(standard), rows)


# The noise


@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("n_rows", [1, 5, 12])
def test_inferred_noise_gives_the_transition_back(n_members, n_rows):
    model = dynamics(n_members, (16,))
    x, u, y = data(n_rows, seed=5)
    zeta = model.infer_noise(x, u, y)
    th.testing.assert_close(model(x, u, zeta), y, rtol=1e-13, atol=1e-13)
    drawn = th.randn_like(x)
    th.testing.assert_close(model.infer_noise(x, u, model(x, u, drawn)), drawn, rtol=1e-9, atol=1e-10)


def test_inferred_noise_gives_the_transition_back_in_float32_even_without_noise():
    """The scale has a floor: a model without any error would divide by zero."""
    x, u, _ = data(200)
    y = x + 0.5
    model = dynamics(rows=(x, u, y)).float()
    x, u, y = x.float(), u.float(), y.float()
    zeta = model.infer_noise(x, u, y)
    assert zeta.isfinite().all()
    th.testing.assert_close(model(x, u, zeta), y, rtol=1e-6, atol=1e-6)


def test_the_derivatives_in_state_and_action_are_those_of_the_mean():
    model = dynamics(1, (16,))
    x, u, y = data(4)
    zeta = model.infer_noise(x, u, y).detach()
    by_step = th.autograd.functional.jacobian(lambda u: model(x, u, zeta), u)
    by_mean = th.autograd.functional.jacobian(lambda u: model.mean(x, u), u)
    th.testing.assert_close(by_step, by_mean)


# Ensembles


def test_each_row_is_imagined_by_its_member():
    """The members one by one, as plain networks."""
    n_members, n = 3, 7
    model = dynamics(n_members, (16, 8), activation_fn=nn.Tanh)
    model.sigma.copy_(th.rand(n_members, S) + 0.1)
    x, u, _ = data(n)
    zeta = th.randn(n, S).double()
    result = model(x, u, zeta)
    for row in range(n):
        member = row // 3  # ceil(7 / 3) rows each
        hidden = model.inputs(th.cat([x[row], u[row]]))
        layers = [layer for layer in model.net if not isinstance(layer, nn.Tanh)]
        for i, layer in enumerate(layers):
            hidden = hidden @ layer.weight[member] + layer.bias[member, 0]
            hidden = hidden.tanh() if i < len(layers) - 1 else hidden
        expected = x[row] + model.targets.inverse(hidden) + model.sigma[member] * zeta[row]
        th.testing.assert_close(result[row], expected)


def test_members_begin_and_stay_different():
    model = dynamics(3, (16,))
    x, u, y = data(300)
    inputs = th.cat([x, u], 1)
    run_fit(model, inputs, y - x, n_epochs=3)
    mean = model.every_member(inputs)
    assert (mean[0] - mean[1]).abs().max() > 1e-3
    assert (mean[1] - mean[2]).abs().max() > 1e-3


# Fits


def run_fit(model, inputs, targets, held_out=None, rate=1e-2, **settings):
    rng = np.random.default_rng(0)
    held_out = th.from_numpy(rng.random(len(inputs)) < 0.2) if held_out is None else held_out
    optimizer = th.optim.Adam(model.parameters(), lr=rate)
    return fit(model, optimizer, inputs, targets, held_out, rng, **{"batch_size": 32, **settings})


def test_least_squares_and_noise_of_a_linear_system_are_found():
    x, u, y = data(4000)
    inputs, targets = th.cat([x, u], 1), y - x
    model = dynamics(2, (), (x, u, y))
    for rate in (1e-2, 1e-3, 1e-4):
        run_fit(model, inputs, targets, rate=rate, n_epochs=40)
    solution = th.linalg.lstsq(th.cat([inputs, th.ones(len(x), 1)], 1), targets).solution
    best = th.cat([inputs, th.ones(len(x), 1)], 1) @ solution
    fresh = data(2000, seed=9)
    model.learn_sigma(th.cat(fresh[:2], 1), fresh[2] - fresh[0])
    assert (model.every_member(inputs) - best).abs().max() < 0.03
    th.testing.assert_close(model.sigma, th.tensor([[0.1, 0.2, 0.4]] * 2).double(), rtol=0.05, atol=0)


def test_each_member_is_fitted_to_all_rows_but_those_held_out():
    x, u, y = data(103)
    inputs, targets = th.cat([x, u], 1), y - x
    held_out = th.arange(103) % 4 == 0
    model = dynamics(2)
    fitted, tested, loss = [], [], model.loss

    def watched(rows, goals):
        result = loss(rows, goals)
        (fitted if result.requires_grad else tested).append(rows)
        return result

    model.loss = watched
    run_fit(model, inputs, targets, held_out, n_epochs=1)
    assert all(th.equal(rows, inputs[held_out]) for rows in tested)
    seen = th.cat(fitted, 1)
    assert max(part.shape[1] for part in fitted) <= 32
    for rows in seen:
        assert sorted(rows[:, 0].tolist()) == sorted(inputs[~held_out, 0].tolist())
    assert not th.equal(seen[0], seen[1]), "the members see them in different orders"


def test_it_stops_when_the_holdout_gets_worse_and_keeps_the_best():
    """Pure noise in many inputs: the only thing to learn is the sample."""
    rng = np.random.default_rng(0)
    inputs, targets = th.from_numpy(rng.standard_normal((60, S + A))), th.from_numpy(rng.standard_normal((60, S)))
    th.manual_seed(0)
    model = GaussianDynamics(S, A, n_members=2, net_arch=(64,)).double()
    model.learn_scales(inputs, targets)
    held_out = th.arange(60) < 30
    seen = []
    loss = model.loss

    def watched(x, y):
        result = loss(x, y)
        if not result.requires_grad:
            seen.append(result.detach())
        return result

    model.loss = watched
    result = run_fit(model, inputs, targets, held_out, n_epochs=500, patience=4)
    assert result.epochs < 100
    losses = th.stack(seen)  # (epochs + 1, E)
    assert len(losses) == result.epochs + 1
    assert (losses[-1] > losses.min(0).values).all(), "it went on past the best"
    th.testing.assert_close(result.loss, losses.min(0).values)
    del model.loss
    th.testing.assert_close(holdout_loss(model, inputs[held_out], targets[held_out]), result.loss)


def test_without_holdout_all_rows_serve():
    x, u, y = data(100)
    model = dynamics()
    result = run_fit(model, th.cat([x, u], 1), y - x, th.zeros(100, dtype=th.bool), n_epochs=30)
    assert result.loss.item() < 1


def test_a_fit_that_is_not_finite_is_refused_and_undone():
    x, u, y = data(100)
    y[3] = float("inf")
    model = dynamics()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteError, match=r"GaussianDynamics.*model_learning_rate.*rewards"):
        run_fit(model, th.cat([x, u], 1), y - x, th.arange(100) > 80)
    assert all(th.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# Rewards and ends


def test_the_likelihood_is_that_of_the_normal_distribution():
    model = dynamics(2)
    x, u, y = data(50)
    law = th.distributions.Normal(model.every_member(th.cat([x, u], 1)), model.sigma[:, None])
    expected = law.log_prob((y - x).expand(2, -1, -1)).sum((1, 2)) / 50
    th.testing.assert_close(model.log_likelihood(th.cat([x, u], 1), y - x), expected)


def test_rewards_are_learned():
    x, u, y = data(2000)
    rewards = 100 + x[:, :1].square() - 0.1 * u[:, 1:] * y[:, 1:2]
    inputs = th.cat([x, u, y], 1)
    th.manual_seed(0)
    model = RewardModel(S, A, net_arch=(64, 64)).double()
    model.learn_scales(inputs, rewards)
    result = run_fit(model, inputs, rewards, n_epochs=40, patience=10, rate=3e-3)
    assert result.loss.item() < 0.02
    th.testing.assert_close(model(x, u, y), model.every_member(inputs)[0, :, 0])


def test_ends_are_learned_once_one_was_seen():
    x, u, y = data(2000)
    inputs = th.cat([x, u, y], 1)
    th.manual_seed(0)
    model = TerminationModel(S, A, net_arch=(32,)).double()
    model.learn_scales(inputs, th.zeros(2000, 1).double())
    assert model(x, u, y).eq(0).all()
    ends = (y[:, :1] > 4).double()
    model.learn_scales(inputs, ends)
    run_fit(model, inputs, ends, n_epochs=40, patience=10)
    assert ((model(x, u, y) > 0.5).double() == ends[:, 0]).double().mean() > 0.97


# Known dynamics


def test_the_equations_of_an_environment_serve_as_a_model():
    env = LQREnv(preset=None, A=0.9 * np.eye(S), B=np.ones((S, A)), Q=np.eye(S), R=np.eye(A), noise_std=[1.0, 2.0, 3.0])
    model = KnownDynamics(env, S)
    x, u, y = data(5)
    zeta = model.infer_noise(x, u, y)
    assert (zeta[:, :S] == 0).all()
    th.testing.assert_close(model(x, u, zeta), y, rtol=1e-14, atol=1e-14)
    drawn = model.sample_noise(2, 5)
    assert (drawn[..., S:] == 0).all()
    expected = 0.9 * x + u.sum(1, keepdim=True) + drawn[0, :, :S] * th.tensor([1.0, 2.0, 3.0])
    th.testing.assert_close(model(x, u, drawn[0]), expected)


def test_a_function_serves_as_a_model():
    model = KnownDynamics(lambda obs, action: obs + action[:, :1], S)
    x, u, y = data(5)
    th.testing.assert_close(model(x, u, model.infer_noise(x, u, y)), y)
    assert model.sample_noise(3, 5).abs().sum() == 0


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"dynamics=3: an environment"):
        KnownDynamics(3, S)


# A real environment


@pytest.fixture(scope="module")
def swings():
    """300 steps of 20 pendulums under random torque: observations (T, N, 3), actions, next observations."""
    problem, rng = Pendulum(), np.random.default_rng(0)
    state, columns = problem.start_state(problem.start_noise(rng, 20)), ([], [], [])
    for _ in range(300):
        action = rng.uniform(-2, 2, (20, 1))
        following = problem.dynamics(state, action)
        for column, entry in zip(columns, (problem.observe(state), action, problem.observe(following)), strict=True):
            column.append(entry)
        state = following
    return [th.from_numpy(np.stack(column)).float() for column in columns]


def test_the_pendulum_is_predicted(swings):
    x, u, y = swings
    train = [part[:, :16].flatten(0, 1) for part in (x, u, y)]
    th.manual_seed(0)
    model = GaussianDynamics(3, 1, n_members=2, net_arch=(64, 64))
    inputs, targets = th.cat(train[:2], 1), train[2] - train[0]
    model.learn_scales(inputs, targets)
    for rate in (3e-3, 3e-4):
        run_fit(model, inputs, targets, rate=rate, n_epochs=15, batch_size=128)
    test = [part[:, 16:] for part in (x, u, y)]
    continues = th.ones(300, 4, dtype=th.bool)
    errors = multi_step_errors(model, *test, continues, th.zeros(10, 1200, 3), model.inputs.std[:3].float())
    assert errors[0] < 0.01
    assert errors[9] < 0.1
    assert (errors.diff() > 0).all(), "errors grow with the distance"


def test_errors_several_steps_ahead_stay_within_episodes():
    """A model that is off by 1 a step is off by k after k steps; a jump at an end counts for nothing."""
    T = 12
    x = th.arange(T).double().reshape(T, 1, 1)
    x[5:] += 1000  # another episode
    following = x + 1
    continues = th.ones(T, 1, dtype=th.bool)
    continues[4] = False
    errors = multi_step_errors(
        lambda s, a, z: s + 2, x, th.zeros(T, 1, 1), following, continues, th.zeros(4, T, 1), th.full((1,), 0.5)
    )
    th.testing.assert_close(errors, 2 * th.arange(1, 5).double())


def test_the_known_pendulum_is_predicted_to_rounding():
    env = PendulumEnv()
    model = KnownDynamics(env, 3)
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        action = env.action_space.sample()
        following, *_ = env.step(action)
        step = [th.from_numpy(part)[None].double() for part in (obs, action, following)]
        assert model.infer_noise(*step).abs().max() < 1e-5
        obs = following


# What is kept


def test_the_last_transitions_are_kept_and_saved():
    kept = Transitions(5)
    for i in range(4):
        kept.add(states=th.full((2, S), float(i)), ends=th.tensor([False, True]))
    assert len(kept) == 5
    assert kept.columns["states"][:, 0].tolist() == [1, 2, 2, 3, 3]
    copy = Transitions(5)
    copy.load_state_dict(kept.state_dict())
    assert th.equal(copy.columns["states"], kept.columns["states"])
    sample = copy.sample(200, np.random.default_rng(0))
    assert sample["states"].shape == (200, S)
    assert set(sample["states"][:, 0].tolist()) == {1, 2, 3}
