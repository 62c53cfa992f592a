"""Families, Jacobians, Fisher-vector products and natural steps against dense definitions, in float64."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch as th
from torch import distributions as D
from torch import nn

from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.finite_mdp import kakade_two_state
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.functional import curvature as C
from sb3_pg_ext.functional.families import Bernoulli, Categorical, Gaussian
from sb3_pg_ext.functional.jacobian import (
    AutogradJacobian,
    MLPJacobian,
    flatten,
    has_closed_form,
    score_matrix,
    unflatten,
)

S, A, B = 3, 2, 6
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "identity": nn.Identity}
close = partial(th.testing.assert_close, rtol=1e-8, atol=1e-8)


def double(*shape, seed=0):
    return th.tensor(np.random.default_rng(seed).normal(size=shape))


class Policy(nn.Module):
    """eta(s) of one family, its actions enumerated with weights, and log pi(a|s) by torch's own distributions."""

    width: int

    def __init__(self, activation="tanh", hidden=(5, 4), width=None):
        super().__init__()
        th.manual_seed(3)
        widths, layers = [S, *hidden], []
        for n, m in itertools.pairwise(widths):
            layers += [nn.Linear(n, m), ACTIVATIONS[activation]()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], width or self.width))
        self.log_std = self.scale()
        self.double()

    def scale(self):
        return None

    def eta(self, obs):
        return self.net(obs)

    def forward(self, obs, actions):
        return self.log_prob(self.eta(obs), actions)

    def closed(self, obs):
        return MLPJacobian(list(self.net), obs, self.log_std)

    def theta(self):
        return [*self.net.parameters(), *([] if self.log_std is None else [self.log_std])]

    def by_autograd(self, obs):
        return AutogradJacobian(self.eta(obs), self.theta())

    def dense_fisher(self, obs):
        """(1/B) sum_b sum_a pi(a|s_b) score score^T, every score a gradient of its own."""
        theta, F = self.theta(), 0
        for s in obs.split(1):
            weights, actions = self.enumerate(self.eta(s).detach())
            for weight, action in zip(weights, actions, strict=True):
                score = flatten(th.autograd.grad(self(s, action.unsqueeze(0)).sum(), theta))
                F = F + weight * th.outer(score, score)
        return F / len(obs)


class GaussianPolicy(Policy):
    family, width = Gaussian(), A

    def scale(self):
        return nn.Parameter(th.tensor([-0.3, 0.4]))

    def eta(self, obs):
        mean = self.net(obs)
        return th.cat([mean, self.log_std.expand_as(mean)], 1)

    def distribution(self, eta):
        mean, log_std = eta.chunk(2, 1)
        return D.Independent(D.Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def log_prob(self, eta, actions):
        return self.distribution(eta).log_prob(actions)

    def enumerate(self, eta):
        """Gauss-Hermite nodes: exact, since products of two scores are polynomials of degree 4."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        nodes, weights = th.tensor(nodes), th.tensor(weights / weights.sum())
        mean, log_std = eta[0].chunk(2)
        grid = th.cartesian_prod(*[nodes] * A)
        return th.cartesian_prod(*[weights] * A).prod(1), mean + log_std.exp() * grid


class CategoricalPolicy(Policy):
    family, width = Categorical((3,)), 3

    def distribution(self, eta):
        return D.Categorical(logits=eta, validate_args=False)

    def log_prob(self, eta, actions):
        return self.distribution(eta).log_prob(actions)

    def enumerate(self, eta):
        return eta[0].softmax(0), th.arange(3)


class MultiCategoricalPolicy(Policy):
    family, width = Categorical((2, 3)), 5

    def log_prob(self, eta, actions):
        parts = zip(eta.split((2, 3), 1), actions.unbind(1), strict=True)
        return sum(D.Categorical(logits=logits, validate_args=False).log_prob(a) for logits, a in parts)

    def distribution(self, eta):
        raise NotImplementedError

    def enumerate(self, eta):
        p, q = (logits.softmax(0) for logits in eta[0].split((2, 3)))
        return th.outer(p, q).flatten(), th.cartesian_prod(th.arange(2), th.arange(3))


class BernoulliPolicy(Policy):
    family, width = Bernoulli(), A

    def distribution(self, eta):
        return D.Independent(D.Bernoulli(logits=eta, validate_args=False), 1, validate_args=False)

    def log_prob(self, eta, actions):
        return self.distribution(eta).log_prob(actions)

    def enumerate(self, eta):
        actions = th.cartesian_prod(*[th.tensor([0.0, 1.0], dtype=th.float64)] * A)
        return self.distribution(eta).log_prob(actions).exp(), actions


POLICIES = [GaussianPolicy, CategoricalPolicy, MultiCategoricalPolicy, BernoulliPolicy]
every_policy = pytest.mark.parametrize("make", POLICIES, ids=lambda make: make.__name__)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
either_jacobian = pytest.mark.parametrize("jacobian", ["closed", "by_autograd"])


def dense(product, n):
    return th.stack([product(v) for v in th.eye(n, dtype=th.float64)], 1)


def fisher_of(policy, jacobian, damping=0.0):
    """v -> (F + damping I) v."""
    return partial(C.fisher_vector_product, jacobian, policy.family.fisher(jacobian.eta), damping=damping)


def some_actions(policy, obs, seed=0):
    generator = np.random.default_rng(seed)
    return th.stack([policy.enumerate(policy.eta(s).detach())[1][generator.integers(2)] for s in obs.split(1)])


# --- families


def torch_kl(policy, old, new):
    if isinstance(policy, MultiCategoricalPolicy):
        pairs = zip(old.split((2, 3), 1), new.split((2, 3), 1), strict=True)
        return sum(D.kl_divergence(D.Categorical(logits=p), D.Categorical(logits=q)) for p, q in pairs)
    return D.kl_divergence(policy.distribution(old), policy.distribution(new))


@every_policy
def test_kl_is_torchs(make):
    policy = make()
    old, new = policy.eta(double(B, S)).detach(), policy.eta(double(B, S, seed=1)).detach()
    close(policy.family.kl(old, new), torch_kl(policy, old, new))
    assert policy.family.kl(old, old).abs().max() < 1e-14
    assert (policy.family.kl(old, new) > 0).all()


@pytest.mark.parametrize("make", [CategoricalPolicy, MultiCategoricalPolicy, BernoulliPolicy])
def test_kl_of_certain_choices_is_finite(make):
    policy = make()
    old, new = th.full((1, policy.width), -800.0).double(), th.full((1, policy.width), -900.0).double()
    old[:, 0], new[:, -1] = 800.0, 900.0
    assert th.isfinite(policy.family.kl(old, new)).all()
    assert th.isfinite(policy.family.fisher(old)(th.ones_like(old))).all()


@every_policy
def test_score_in_eta_is_the_gradient(make):
    policy, obs = make(), double(B, S)
    actions = some_actions(policy, obs)
    eta = policy.eta(obs).detach().requires_grad_()
    (expected,) = th.autograd.grad(policy.log_prob(eta, actions).sum(), eta)
    close(policy.family.score(eta.detach(), actions), expected)


@every_policy
def test_fisher_in_eta_is_the_mean_of_squared_scores(make):
    policy = make()
    eta = policy.eta(double(1, S)).detach()
    weights, actions = policy.enumerate(eta)
    scores = policy.family.score(eta.expand(len(weights), -1), actions)
    expected = th.einsum("n,np,nq->pq", weights, scores, scores)
    metric = policy.family.fisher(eta)
    close(th.cat([metric(v.unsqueeze(0)) for v in th.eye(eta.shape[1]).double()]), expected)


# --- Jacobians


@every_policy
@every_activation
def test_closed_form_is_the_generic_path(make, activation):
    policy, obs = make(activation), double(B, S)
    closed, generic = policy.closed(obs), policy.by_autograd(obs)
    v, u = double(sum(p.numel() for p in policy.theta()), seed=1), double(*closed.eta.shape, seed=2)
    assert [id(p) for p in closed.parameters] == [id(p) for p in generic.parameters]
    close(closed.eta, generic.eta)
    close(closed.push(v), generic.push(v))
    close(closed.pull(u), generic.pull(u))
    close(closed.rows(u).sum(0), generic.pull(u))
    close((closed.push(v) * u).sum(), (closed.pull(u) * v).sum())


@either_jacobian
def test_jacobian_is_autograds(jacobian):
    policy, obs = GaussianPolicy(), double(1, S)
    J = getattr(policy, jacobian)(obs)
    gradients = [
        th.autograd.grad(eta, policy.theta(), retain_graph=True, materialize_grads=True) for eta in policy.eta(obs)[0]
    ]
    expected = th.stack([flatten(row) for row in gradients])
    n = expected.shape[1]
    close(dense(lambda v: J.push(v)[0], n), expected)
    close(dense(lambda u: J.pull(u.unsqueeze(0)), 2 * A), expected.T)


@pytest.mark.parametrize("hidden", [(), (4,), (4, 4, 4)], ids=str)
def test_any_depth(hidden):
    policy, obs = GaussianPolicy(hidden=hidden), double(B, S)
    v = double(sum(p.numel() for p in policy.theta()), seed=1)
    close(fisher_of(policy, policy.closed(obs))(v), fisher_of(policy, policy.by_autograd(obs))(v))


def test_activation_after_the_last_layer():
    layers = [nn.Linear(S, 4).double(), nn.Tanh(), nn.Linear(4, A).double(), nn.Tanh()]
    obs, u = double(B, S), double(B, A, seed=1)
    closed = MLPJacobian(layers, obs)
    generic = AutogradJacobian(nn.Sequential(*layers)(obs), closed.parameters)
    v = double(sum(p.numel() for p in closed.parameters), seed=2)
    close(closed.push(v), generic.push(v))
    close(closed.pull(u), generic.pull(u))
    close(closed.rows(u).sum(0), generic.pull(u))


def test_what_is_given_and_returned_is_not_overwritten():
    policy, obs = GaussianPolicy(), double(B, S)
    closed = policy.closed(obs)
    v, u = double(sum(p.numel() for p in policy.theta()), seed=1), double(B, 2 * A, seed=2)
    v_before, u_before, eta = v.clone(), u.clone(), closed.eta.clone()
    pushed, pulled = closed.push(v), closed.pull(u)
    kept = pushed.clone(), pulled.clone()
    closed.push(2 * v), closed.pull(2 * u)
    old_eta = closed.eta
    closed.at(obs + 1)
    close((pushed, pulled, v, u, old_eta), (*kept, v_before, u_before, eta))


@pytest.mark.parametrize("n", [B, B + 2])
def test_moving_to_other_observations_and_parameters(n):
    policy = GaussianPolicy()
    closed, obs = policy.closed(double(B, S)), double(n, S, seed=5)
    with th.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    moved, fresh = closed.at(obs), policy.by_autograd(obs)
    v = double(sum(p.numel() for p in policy.theta()), seed=1)
    close(moved.eta, fresh.eta)
    close(moved.push(v), fresh.push(v))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(S, A), nn.GELU()],
        [nn.Tanh(), nn.Linear(S, A)],
        [nn.Linear(S, A, bias=False)],
        [nn.Linear(S, A), nn.Tanh(), nn.Tanh()],
        [nn.Linear(S, A), nn.Tanh(), nn.LayerNorm(A)],
    ],
    ids=str,
)
def test_other_nets_have_no_closed_form(layers):
    assert not has_closed_form(layers)
    with pytest.raises(TypeError, match="closed form"):
        MLPJacobian(layers, th.zeros(1, S))


def test_generic_path_takes_any_net():
    """Shared weights, convolution, a net whose scale depends on the observation: against dense autograd Jacobians."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice, self.out = nn.Conv1d(1, 2, 2), nn.Linear(4, 4), nn.Linear(4, 2 * A)

        def forward(self, x):
            h = th.nn.functional.gelu(self.conv(x.unsqueeze(1)).flatten(1))
            return self.out(self.twice(th.tanh(self.twice(h))))

    th.manual_seed(0)
    net, obs = Odd().double(), double(B, S)
    J = AutogradJacobian(net(obs), list(net.parameters()))
    rows = [th.autograd.grad(net(obs)[b, i], list(net.parameters())) for b in range(B) for i in range(2 * A)]
    full = th.stack([flatten(row) for row in rows]).reshape(B, 2 * A, -1)
    metric = Gaussian().fisher(J.eta)
    M = th.stack([metric(e.expand(B, -1)) for e in th.eye(2 * A).double()], 2)
    F = th.einsum("bip,bij,bjq->pq", full, M, full) / B
    v = double(full.shape[2], seed=1)
    close(C.fisher_vector_product(J, metric, v), F @ v)


def test_a_parameter_that_eta_does_not_depend_on():
    policy, obs = CategoricalPolicy(), double(B, S)
    idle = nn.Parameter(double(3))
    J = AutogradJacobian(policy.eta(obs), [*policy.theta(), idle])
    v = double(sum(p.numel() for p in J.parameters), seed=1)
    close(J.push(v), policy.closed(obs).push(v[:-3]))
    assert (J.pull(J.eta)[-3:] == 0).all()


def test_flatten_and_unflatten():
    tensors = [double(2, 3), double(4), double(1, 1, 2)]
    vector = flatten(tensors)
    assert vector.shape == (12,)
    for part, tensor in zip(unflatten(vector, tensors), tensors, strict=True):
        assert th.equal(part, tensor)


@every_policy
def test_score_matrix(make):
    """By vmap, in closed form, and one gradient after the other."""
    policy, obs = make(), double(B, S)
    actions = some_actions(policy, obs)
    expected = th.stack(
        [
            flatten(th.autograd.grad(policy(s, a).sum(), policy.theta()))
            for s, a in zip(obs.split(1), actions.split(1), strict=True)
        ]
    )
    closed = policy.closed(obs)
    close(score_matrix(policy, policy.theta(), (obs, actions)), expected)
    close(closed.rows(policy.family.score(closed.eta, actions)), expected)


def test_score_matrix_of_some_of_the_parameters():
    policy, obs = CategoricalPolicy(), double(B, S)
    actions, chosen = some_actions(policy, obs), policy.theta()[2:4]
    whole = score_matrix(policy, policy.theta(), (obs, actions))
    start = sum(p.numel() for p in policy.theta()[:2])
    close(score_matrix(policy, chosen, (obs, actions)), whole[:, start : start + sum(p.numel() for p in chosen)])


# --- the Fisher matrix


@every_policy
@every_activation
@either_jacobian
def test_product_is_that_of_the_dense_fisher_matrix(make, activation, jacobian):
    policy, obs = make(activation), double(B, S)
    F = policy.dense_fisher(obs)
    close(dense(fisher_of(policy, getattr(policy, jacobian)(obs)), len(F)), F)


@every_policy
def test_fisher_matrix_is_the_hessian_of_kl(make):
    policy, obs = make(), double(B, S)
    theta, old = flatten(policy.theta()).detach(), policy.eta(obs).detach()
    names = {id(p): name for name, p in policy.named_parameters()}

    def kl(vector):
        placed = {names[id(p)]: part for p, part in zip(policy.theta(), unflatten(vector, policy.theta()), strict=True)}
        with_eta = th.func.functional_call(Eta(policy), {f"policy.{k}": v for k, v in placed.items()}, (obs,))
        return torch_kl(policy, old, with_eta).mean()

    H = th.autograd.functional.hessian(kl, theta)
    close(dense(fisher_of(policy, policy.closed(obs)), len(theta)), H)


class Eta(nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs):
        return self.policy.eta(obs)


@either_jacobian
def test_damping_is_added_once(jacobian):
    policy, obs = CategoricalPolicy(), double(B, S)
    v = double(sum(p.numel() for p in policy.theta()))
    J = getattr(policy, jacobian)(obs)
    close(fisher_of(policy, J, damping=0.3)(v), fisher_of(policy, J)(v) + 0.3 * v)


@every_policy
def test_squared_length_is_twice_the_kl_divergence(make):
    policy, obs = make(), double(B, S)
    J, v = policy.closed(obs), double(sum(p.numel() for p in policy.theta()))
    length = C.squared_length(J, policy.family.fisher(J.eta), v)
    assert length == pytest.approx((v @ policy.dense_fisher(obs) @ v).item(), rel=1e-10)
    old, step = J.eta, 1e-4
    with th.no_grad():
        for p, change in zip(policy.theta(), unflatten(step * v, policy.theta()), strict=True):
            p.add_(change)
    kl = policy.family.kl(old, policy.eta(obs)).mean().item()
    assert 2 * kl / step**2 == pytest.approx(length, rel=1e-3)


def test_gaussian_fisher_matrix():
    """1 / s^2 for the mean, 2 for the log standard deviation: here of a policy that sees nothing but its bias."""
    bias, log_std = nn.Linear(1, 1).double(), nn.Parameter(th.tensor([math.log(0.5)]).double())
    J = MLPJacobian([bias], th.zeros(4, 1).double(), log_std)
    F = dense(partial(C.fisher_vector_product, J, Gaussian().fisher(J.eta)), 3)
    close(F, th.diag(th.tensor([0.0, 4.0, 2.0]).double()))


def test_lqr_fisher_matrix():
    """States whose second moments are those that an episode visits: the oracle's matrix, for K and log std."""
    problem = LQR(
        A=[[1.0, 0.2], [0.0, 0.9]], B=np.eye(2), Q=np.eye(2), R=np.eye(2), noise_std=0.3, start_std=1.0, horizon=20
    )
    K, std = double(2, 2) * 0.2, th.tensor([0.5, 0.8]).double()
    F = oracles.lqr_fisher(problem, K, std, discount_states=False)
    moments = F[:2, :2] * std[0] ** 2
    root = math.sqrt(2) * th.linalg.cholesky(moments).T
    states = th.cat([root, -root])
    layer = nn.Linear(2, 2).double()
    with th.no_grad():
        layer.weight.copy_(-K)
    J = MLPJacobian([layer], states, nn.Parameter(std.log()))
    product = dense(partial(C.fisher_vector_product, J, Gaussian().fisher(J.eta)), 8)
    without_bias = [0, 1, 2, 3, 6, 7]
    close(product[without_bias][:, without_bias], F)
    g = oracles.lqr_gradient(problem, K, std, discount_states=False)
    g = th.cat([-g.K.flatten(), th.zeros(2).double(), g.log_std])
    x = C.conjugate_gradient(lambda v: product @ v, g, 50, 1e-14).x
    close(x[without_bias], oracles.natural_gradient(F, g[without_bias]))


# --- conjugate gradients


def positive(n, seed=0, decades=2.0):
    Q, _ = th.linalg.qr(double(n, n, seed=seed))
    return Q @ th.diag(th.logspace(-decades, 0, n, dtype=th.float64)) @ Q.T


@pytest.mark.parametrize("n", [1, 2, 12])
def test_conjugate_gradients_solve(n):
    M, b = positive(n), double(n, seed=1)
    x, residual, steps = C.conjugate_gradient(lambda v: M @ v, b, 5 * n, 1e-13)
    close(x, th.linalg.solve(M, b), rtol=1e-9, atol=1e-9)
    assert residual <= 1e-13
    assert 1 <= steps <= 5 * n


def test_residual_and_steps_are_what_they_say():
    M, b = positive(12), double(12, seed=1)
    calls = []
    x, residual, steps = C.conjugate_gradient(lambda v: calls.append(1) or M @ v, b, 4, 0.0)
    assert steps == len(calls) == 4
    assert residual == pytest.approx((b - M @ x).norm().item() / b.norm().item(), rel=1e-9)


def test_each_step_minimises_over_the_krylov_space():
    """What conjugacy means: after k steps x is the best of span(b, A b, ..., A^(k-1) b) in the norm of A."""
    M, b = positive(8), double(8, seed=1)
    krylov = th.stack([b, M @ b, M @ M @ b], 1)
    best = krylov @ th.linalg.solve(krylov.T @ M @ krylov, krylov.T @ b)
    close(C.conjugate_gradient(lambda v: M @ v, b, 3, 0.0).x, best, rtol=1e-6, atol=1e-6)


def test_tolerance_stops_early_and_is_relative():
    M, b = positive(30, decades=3), double(30, seed=1)
    cases = itertools.product((1e-1, 1e-6), (1, 1e6))
    steps = [C.conjugate_gradient(lambda v: M @ v, scale * b, 200, tol).iterations for tol, scale in cases]
    assert steps[0] == steps[1] < steps[2] == steps[3] < 200
    assert C.conjugate_gradient(lambda v: M @ v, b, 200, 0.1).residual <= 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_numbers_whose_squares_leave_float32(scale):
    M, b = positive(6).float(), double(6, seed=1).float()
    x = C.conjugate_gradient(lambda v: M @ v, scale * b, 30, 1e-6).x / scale
    th.testing.assert_close(x, th.linalg.solve(M, b), rtol=1e-3, atol=1e-3)


def test_nothing_to_solve():
    solution = C.conjugate_gradient(lambda v: v, th.zeros(3), 10)
    assert (solution.x == 0).all()
    assert solution[1:] == (0.0, 0)


def test_singular_system_gives_the_shortest_solution():
    M = positive(6)
    M = M @ th.diag(th.tensor([1.0, 1, 1, 0, 0, 1]).double()) @ M
    b = M @ double(6, seed=1)
    shortest = th.linalg.pinv(M, hermitian=True, rtol=1e-10) @ b
    close(C.conjugate_gradient(lambda v: M @ v, b, 60, 1e-13).x, shortest, rtol=1e-5, atol=1e-5)


def test_direction_in_the_null_space_changes_nothing():
    solution = C.conjugate_gradient(lambda v: 0 * v, th.ones(3), 10)
    assert (solution.x == 0).all()
    assert solution.residual == 1


# --- natural steps


def test_bandit():
    """Uniform softmax over rewards (1, .5, 0): F^+ g = r - mean r, and p' A = 0 whatever constant is added to r."""
    logits, r = th.zeros(1, 3).double(), th.tensor([1, 0.5, 0]).double()
    p = logits.softmax(1)[0]
    g = p * (r - p @ r)
    metric = Categorical((3,)).fisher(logits)
    x = C.conjugate_gradient(lambda v: metric(v.unsqueeze(0))[0], g, 10, 1e-14).x
    close(g, th.tensor([1, 0, -1]).double() / 6)
    close(x, th.tensor([0.5, 0, -0.5]).double())
    close(oracles.natural_gradient(th.diag(p) - th.outer(p, p), g), x)


def test_kl_step_size_has_the_kl_divergence_asked_for():
    policy, obs = GaussianPolicy(), double(B, S)
    J = policy.closed(obs)
    metric = policy.family.fisher(J.eta)
    g = J.pull(double(B, 2 * A, seed=1))
    x = C.conjugate_gradient(fisher_of(policy, J, 1e-3), g, 7, 0.0).x
    alpha = C.kl_step_size(1e-6, C.squared_length(J, metric, x))
    with th.no_grad():
        for p, change in zip(policy.theta(), unflatten(alpha * x, policy.theta()), strict=True):
            p.add_(change)
    assert policy.family.kl(J.eta, policy.eta(obs)).mean().item() == pytest.approx(1e-6, rel=1e-2)


def test_kl_step_size_is_the_textbooks_for_an_exact_solution():
    M, g = positive(5), double(5, seed=1)
    x = th.linalg.solve(M, g)
    assert C.kl_step_size(0.02, (x @ M @ x).item()) == pytest.approx(math.sqrt(2 * 0.02 / (g @ x).item()))
    assert C.kl_step_size(0.02, 0.0) == 0.0


def kakade_ascent(natural, step, n_steps):
    """J at the last step and the least visits to state 1, in Kakade's two-state process from (.8, .1) on."""
    mdp, theta = kakade_two_state(), th.logit(th.tensor([0.8, 0.1]).double())
    J, lowest = None, 1.0
    for _ in range(n_steps):
        theta = nn.Parameter(theta.detach())
        J = oracles.average_reward(mdp, th.stack([theta.sigmoid(), (-theta).sigmoid()], -1))
        (direction,) = th.autograd.grad(J, theta)
        pi = th.stack([theta.sigmoid(), (-theta).sigmoid()], -1).detach()
        rho = oracles.stationary_distribution(mdp, pi)
        lowest = min(lowest, rho[1].item())
        if natural:
            jacobian = AutogradJacobian(theta.unsqueeze(1), [theta])  # eta(s) = theta_s: log-odds of staying in s
            coins = Bernoulli().fisher(jacobian.eta)
            product = partial(C.fisher_vector_product, jacobian, lambda u, M=coins, w=rho: 2 * w.unsqueeze(1) * M(u))
            direction = C.conjugate_gradient(product, direction, 5, 1e-12).x
        theta = theta.detach() + step * direction
    return J.item(), lowest


def test_kakades_first_step():
    mdp, theta = kakade_two_state(), th.logit(th.tensor([0.8, 0.1]).double())
    theta = nn.Parameter(theta)
    J = oracles.average_reward(mdp, th.stack([theta.sigmoid(), (-theta).sigmoid()], -1))
    (g,) = th.autograd.grad(J, theta)
    rho = oracles.stationary_distribution(mdp, th.stack([theta.sigmoid(), (-theta).sigmoid()], -1).detach())
    jacobian = AutogradJacobian(theta.unsqueeze(1), [theta])
    coins = Bernoulli().fisher(jacobian.eta)
    product = partial(C.fisher_vector_product, jacobian, lambda u: 2 * rho.unsqueeze(1) * coins(u))
    close(dense(product, 2), th.diag(th.tensor([0.130909, 0.016364]).double()), rtol=0, atol=1e-6)
    close(C.conjugate_gradient(product, g, 5, 1e-12).x, th.tensor([1.545455, 1.454545]).double(), rtol=0, atol=1e-6)


def test_kakades_trajectory():
    """Published: the natural gradient is done by 2.8 and keeps visiting state 1; the plain one sits at J = 1."""
    J, lowest = kakade_ascent(natural=True, step=0.25, n_steps=12)
    assert J >= 1.99
    assert lowest == pytest.approx(0.052, abs=0.003)
    J, _ = kakade_ascent(natural=False, step=50.0, n_steps=1000)
    assert 0.99 < J < 1.01


def test_tabular_natural_gradient_is_the_advantage():
    """Agarwal et al. 2021, lemma 15, up to a constant a state; the Fisher matrix weighs states by their visits."""
    mdp = garnet(n_states=4, n_actions=3, gamma=0.9)
    logits = nn.Parameter(double(4, 3, seed=2))
    task = {"horizon": math.inf}
    V, Q = oracles.mdp_values(mdp, logits.detach().softmax(-1), **task)
    visits = oracles.mdp_visitation(mdp, logits.detach().softmax(-1), **task)
    g = oracles.mdp_gradient(mdp, logits, **task).flatten()
    jacobian = AutogradJacobian(logits * 1, [logits])
    M = Categorical((3,)).fisher(jacobian.eta)
    weights = (4 * visits / visits.sum()).unsqueeze(1)
    x = C.conjugate_gradient(partial(C.fisher_vector_product, jacobian, lambda u: weights * M(u)), g, 100, 1e-13).x
    advantage = (Q - V.unsqueeze(1)) / 0.1
    difference = x.reshape(4, 3) - advantage
    close(difference - difference.mean(1, keepdim=True), th.zeros(4, 3).double(), atol=1e-6)


# --- compatible function approximation


@pytest.mark.parametrize("n", [4, 60], ids=["sample-space", "parameter-space"])
def test_compatible_weights_are_the_ridge_regression(n):
    scores, advantages = double(n, 12), double(n, seed=1)
    w = C.compatible_weights(scores, advantages, 1e-2)
    normal = scores.T @ scores / n + 1e-2 * th.eye(12).double()
    close(w, th.linalg.solve(normal, scores.T @ advantages / n), rtol=1e-9, atol=1e-9)


def test_both_spaces_agree():
    """The same regression, its samples counted twice: 20 < 24 parameters, then 40 > 24."""
    scores, advantages = double(20, 24), double(20, seed=1)
    twice = C.compatible_weights(th.cat([scores] * 2), th.cat([advantages] * 2), 1e-3)
    close(C.compatible_weights(scores, advantages, 1e-3), twice)


def test_without_ridge_the_shortest_fit():
    scores, advantages = double(5, 9), double(5, seed=1)
    close(C.compatible_weights(scores, advantages), th.linalg.pinv(scores) @ advantages)


def test_singular_regression_is_an_error():
    with pytest.raises(th.linalg.LinAlgError):
        C.compatible_weights(th.zeros(5, 2).double(), double(5))


@pytest.mark.parametrize("make", [CategoricalPolicy, GaussianPolicy, BernoulliPolicy, MultiCategoricalPolicy])
def test_compatible_weights_are_f_inverse_g(make):
    """Where every action stands in the batch with its probability, the regression gives F^-1 g."""
    policy, obs = make(), double(B, S)
    enumerated = [policy.enumerate(policy.eta(s).detach()) for s in obs.split(1)]
    rows = th.cat([s.expand(len(w), -1) for s, (w, _) in zip(obs.split(1), enumerated, strict=True)])
    weights, actions = (th.cat(parts) for parts in zip(*enumerated, strict=True))
    advantages, damping = double(len(rows), seed=4), 1e-3
    scores = policy.closed(rows).rows(policy.family.score(policy.eta(rows).detach(), actions))
    scale = (weights * len(rows) / B).sqrt()  # a weighted mean over all actions is a mean of scaled rows
    w = C.compatible_weights(scale.unsqueeze(1) * scores, scale * advantages, damping)
    g = (weights * advantages) @ scores / B
    F = policy.dense_fisher(obs)
    close(w, th.linalg.solve(F + damping * th.eye(len(F)).double(), g), rtol=1e-6, atol=1e-6)
    by_cg = C.conjugate_gradient(fisher_of(policy, policy.closed(obs), damping), g, 400, 1e-12).x
    close(w, by_cg, rtol=1e-6, atol=1e-6)


def test_compatible_weights_of_a_sample_use_the_empirical_fisher_matrix():
    """Then they differ from F^-1 g with the Fisher matrix over all actions."""
    policy, obs = CategoricalPolicy(), double(40, S)
    actions, advantages = some_actions(policy, obs), double(40, seed=2)
    closed = policy.closed(obs)
    scores = closed.rows(policy.family.score(closed.eta, actions))
    w, g = C.compatible_weights(scores, advantages, 1e-2), scores.T @ advantages / 40
    empirical = scores.T @ scores / 40 + 1e-2 * th.eye(scores.shape[1]).double()
    close(w, th.linalg.solve(empirical, g), rtol=1e-6, atol=1e-6)
    exact = th.linalg.solve(policy.dense_fisher(obs) + 1e-2 * th.eye(len(g)).double(), g)
    assert (w - exact).norm() > 0.05 * exact.norm()
