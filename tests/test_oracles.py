"""The oracles against enumeration, finite differences, simulation, and published or hand-computed numbers.

A mean over n samples is compared with its exact value in units of its standard error: four of them, with fixed seeds.
"""

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from torch import nn

from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPVectorEnv, kakade_two_state
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQR, LQRVectorEnv, lqr
from sb3_pg_ext.envs.point_mass import point_mass
from sb3_pg_ext.envs.short_corridor import short_corridor

TASKS = [(1, 0.9), (6, 0.8), (6, 1.0), (math.inf, 0.8)]
every_task = pytest.mark.parametrize(("horizon", "gamma"), TASKS)
finite_tasks = pytest.mark.parametrize(("horizon", "gamma"), TASKS[1:3])


def close(actual, expected, **tolerance):
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-9, "atol": 1e-11, **tolerance})


def assert_mean(samples, expected, errors=4.0):
    """The mean of samples (n, ...) is within so many standard errors of what is expected, in every entry."""
    samples = torch.as_tensor(samples, dtype=torch.float64)
    standard_error = samples.std(0) / math.sqrt(len(samples))
    z = (samples.mean(0) - torch.as_tensor(expected)) / standard_error
    assert z.abs().max() < errors, f"z = {z}"


def general_lqr(**changes):
    """Three states, two actions, noise and a random start, nothing symmetric but the costs."""
    rng = np.random.default_rng(3)
    Q, R = rng.normal(size=(3, 3)), rng.normal(size=(2, 2))
    return LQR(
        A=0.4 * rng.normal(size=(3, 3)),
        B=rng.normal(size=(3, 2)),
        Q=Q @ Q.T,
        R=R @ R.T,
        noise_std=0.3 * rng.normal(size=(3, 2)),
        start_mean=rng.normal(size=3),
        start_std=0.5 * rng.normal(size=(3, 3)),
        **{"horizon": 6, "gamma": 0.8, **changes},
    )


def general_policy():
    rng = np.random.default_rng(4)
    return (torch.tensor(x, dtype=torch.float64) for x in (0.2 * rng.normal(size=(2, 3)), [0.3, 0.7], [0.1, -0.4]))


def tiny_mdp(**changes):
    """Three states, two actions, endings, zero probabilities: 6 to the power T trajectories at most."""
    rng = np.random.default_rng(5)
    transition = rng.dirichlet(np.ones(4), (3, 2))[..., :3]
    transition[0, 1] = [0, 1, 0]
    transition[2, 0] = [0.5, 0, 0.2]
    return FiniteMDP(
        transition, rng.normal(size=(3, 2)), start=[0.7, 0, 0.3], **{"horizon": 4, "gamma": 0.8, **changes}
    )


LOGITS = torch.tensor([[0.5, -0.2], [0.1, 0.9], [-1.0, 0.3]], dtype=torch.float64)
PI = LOGITS.softmax(-1)


def returns_to_go(rewards, gamma):
    """``G_t = r_t + gamma G_{t+1}``: (M, T) -> (M, T)."""
    out = torch.zeros_like(rewards)
    following = torch.zeros(len(rewards), dtype=rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        out[:, t] = following
    return out


# The regulator: published numbers


def test_scalar_regulator():
    problem = lqr("scalar")
    close(oracles.lqr_objective(problem, [[0.5]], 0.0, horizon=math.inf), -1.612903, atol=1e-6)
    close(oracles.lqr_gradient(problem, [[0.5]], 0.0, horizon=math.inf).K, [[0.582726]], atol=1e-6)
    optimum = oracles.lqr_optimum(problem, horizon=math.inf)
    close(optimum.K, [[0.588403]], atol=1e-6)
    close(optimum.J, -1.588403, atol=1e-6)
    for k in (0.3, 0.5, 1.2):
        close(oracles.lqr_objective(problem, [[k]], 0.0, horizon=math.inf), -(1 + k**2) / (1 - 0.9 * (1 - k) ** 2))


def test_mushroom_regulator_and_that_its_bounds_are_never_reached():
    problem = lqr("mushroom")
    forever, episode = oracles.lqr_optimum(problem, horizon=math.inf), oracles.lqr_optimum(problem)
    close(forever.K, np.diag([0.899083, 0.240253, 0.240253]), atol=1e-6)
    close(forever.J, -1.3141147, atol=1e-7)
    close(oracles.lqr_objective(problem, forever.K, 0.0), -1.3141147, atol=1e-7)
    close(oracles.lqr_objective(problem, forever.K, 0.0, gamma=1.0), -1.384881, atol=1e-6)
    assert episode.K.shape == (50, 3, 3)
    env = LQRVectorEnv(1, preset="mushroom")
    x, total = env.reset(seed=0)[0], 0.0
    for t in range(50):
        action = -x @ forever.K.numpy().T
        assert np.abs(action).max() < 1
        x, reward, *_ = env.step(action)
        total += 0.9**t * reward[0]
    assert total == pytest.approx(forever.J.item(), abs=1e-6)


def test_dean_regulator():
    problem = lqr("dean")
    K, P = oracles.riccati(problem.A, problem.B, problem.Q, problem.R)
    rows = [[0.043731, 0.012509, 0.001269], [0.012509, 0.045000, 0.012509], [0.001269, 0.012509, 0.043731]]
    close(K, rows, atol=1e-6)
    close(P.trace(), 0.13728717, atol=1e-8)
    close(oracles.lqr_average_cost(problem, K), P.trace())
    K = torch.eye(3, dtype=torch.float64) * 0.1
    costs = []
    for _ in range(5):  # policy iteration: the greedy gain of P_K
        costs.append(oracles.lqr_average_cost(problem, K).item())
        A, B, R = (torch.as_tensor(m, dtype=torch.float64) for m in (problem.A, problem.B, problem.R))
        cost = torch.as_tensor(problem.Q) + K.T @ R @ K
        P_K = torch.zeros(3, 3, dtype=torch.float64)
        for _ in range(3000):
            P_K = cost + (A - B @ K).T @ P_K @ (A - B @ K)
        K = torch.linalg.solve(R + B.T @ P_K @ B, B.T @ P_K @ A)
    close(costs, [0.195067, 0.147707, 0.137894, 0.137290, 0.137287], atol=1e-6)


def test_gradient_of_the_average_cost_is_the_published_one():
    """Fazel et al. 2018: grad C = 2 [(R + B'PB) K - B'PA] Sigma_K."""
    problem = lqr("dean")
    K = (0.1 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(oracles.lqr_average_cost(problem, K), K)
    A, B, Q, R = (torch.as_tensor(m) for m in (problem.A, problem.B, problem.Q, problem.R))
    F = A - B @ K.detach()
    P, Sigma = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(3000):
        P = Q + K.detach().T @ R @ K.detach() + F.T @ P @ F
        Sigma = torch.eye(3, dtype=torch.float64) + F @ Sigma @ F.T
    close(gradient, 2 * ((R + B.T @ P @ B) @ K.detach() - B.T @ P @ A) @ Sigma)


# The regulator: J, gradient, values, Fisher


@every_task
def test_lqr_gradient_is_that_of_the_objective(horizon, gamma):
    """The backward closed form against autograd through the forward moments, bias and spread included."""
    problem = general_lqr()
    K, std, bias = general_policy()
    K, log_std, bias = K.requires_grad_(), std.log().requires_grad_(), bias.requires_grad_()
    J = oracles.lqr_objective(problem, K, log_std.exp(), bias, horizon=horizon, gamma=gamma)
    by_autograd = torch.autograd.grad(J, (K, bias, log_std))
    closed = oracles.lqr_gradient(problem, K.detach(), std, bias.detach(), horizon=horizon, gamma=gamma)
    for ours, theirs in zip(closed, by_autograd, strict=True):
        close(ours, theirs)
        assert ours.abs().min() > 1e-6
    assert torch.autograd.gradcheck(
        lambda K, s, b: oracles.lqr_objective(problem, K, s.exp(), b, horizon=horizon, gamma=gamma), (K, log_std, bias)
    )


def test_a_long_horizon_is_an_infinite_one():
    problem, (K, std, bias) = general_lqr(), general_policy()
    long, forever = ({"horizon": h, "gamma": 0.8} for h in (400, math.inf))
    close(oracles.lqr_objective(problem, K, std, bias, **long), oracles.lqr_objective(problem, K, std, bias, **forever))
    pairs = (oracles.lqr_gradient(problem, K, std, bias, **task) for task in (long, forever))
    for ours, theirs in zip(*pairs, strict=True):
        close(ours, theirs)
    close(oracles.lqr_fisher(problem, K, std, bias, **long), oracles.lqr_fisher(problem, K, std, bias, **forever))
    close(oracles.lqr_optimum(problem, **long).J, oracles.lqr_optimum(problem, **forever).J)
    close(oracles.lqr_optimum(problem, **long).K[0], oracles.lqr_optimum(problem, **forever).K)
    mdp, pi = garnet(n_states=4), torch.full((4, 3), 1 / 3)
    close(oracles.mdp_objective(mdp, pi, horizon=900), oracles.mdp_objective(mdp, pi, horizon=math.inf))


def simulated(problem, K, std, bias, n, seed=0):
    """Scores and rewards of n episodes in the environment: x (n, T, S), z (n, T, A), r (n, T)."""
    env = LQRVectorEnv(n, preset=None, **{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)})
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    states, noises, rewards = [], [], []
    for _ in range(problem.horizon):
        x, z = env.state, rng.standard_normal((n, len(std)))
        states.append(x)
        noises.append(z)
        rewards.append(env.step(-x @ K.numpy().T + bias.numpy() + std.numpy() * z)[1])
    return tuple(torch.as_tensor(np.stack(part, axis=1)) for part in (states, noises, rewards))


@pytest.mark.parametrize("discount_states", [True, False])
def test_lqr_oracles_against_episodes_of_the_environment(discount_states):
    """What REINFORCE samples: J, and sum_t w_t score_t G_t with and without w_t = gamma^t."""
    problem, (K, std, bias) = general_lqr(), general_policy()
    x, z, rewards = simulated(problem, K, std, bias, n=40_000)
    gamma, T = problem.gamma, problem.horizon
    discounts = gamma ** torch.arange(T, dtype=torch.float64)
    assert_mean(rewards @ discounts, oracles.lqr_objective(problem, K, std, bias))
    psi = returns_to_go(rewards, gamma) * (discounts if discount_states else 1.0)
    # A baseline that depends on the state alone leaves the mean and takes away most of the variance.
    psi = psi - torch.stack([oracles.lqr_state_value(problem, K, std, x[:, t], bias, t=t) for t in range(T)], dim=1) * (
        discounts if discount_states else 1.0
    )
    exact = oracles.lqr_gradient(problem, K, std, bias, discount_states=discount_states)
    by_mean = z / std
    assert_mean(torch.einsum("nt,nta,nts->nas", psi, by_mean, -x), exact.K)
    assert_mean(torch.einsum("nt,nta->na", psi, by_mean), exact.bias)
    assert_mean(torch.einsum("nt,nta->na", psi, z**2 - 1), exact.log_std)


def test_the_two_state_weightings_differ_by_more_than_the_test_of_them_could_miss():
    problem, (K, std, bias) = general_lqr(), general_policy()
    discounted = oracles.lqr_gradient(problem, K, std, bias)
    usual = oracles.lqr_gradient(problem, K, std, bias, discount_states=False)
    for ours, theirs in zip(discounted, usual, strict=True):
        assert ((ours - theirs).abs() > 0.1 * ours.abs()).any()
    undiscounted = (oracles.lqr_gradient(problem, K, std, gamma=1.0, discount_states=flag).K for flag in (True, False))
    close(*undiscounted)


def test_lqr_values():
    """V_0 averaged over starts is J; V is the mean of Q; Q is the reward and the next V, in the mean over the noise."""
    problem, (K, std, bias) = general_lqr(), general_policy()
    x, z, rewards = simulated(problem, K, std, bias, n=20_000, seed=1)
    u = -x @ K.T + bias + std * z
    J = oracles.lqr_objective(problem, K, std, bias)
    assert_mean(oracles.lqr_state_value(problem, K, std, x[:, 0], bias), J)
    for t in (0, 3):
        V = oracles.lqr_state_value(problem, K, std, x[:, t], bias, t=t)
        Q = oracles.lqr_action_value(problem, K, std, x[:, t], u[:, t], bias, t=t)
        after = oracles.lqr_state_value(problem, K, std, x[:, t + 1], bias, t=t + 1)
        assert_mean(Q - V, 0.0)
        assert_mean(Q - rewards[:, t] - problem.gamma * after, 0.0)
        assert_mean(Q - returns_to_go(rewards, problem.gamma)[:, t], 0.0)
    last = problem.horizon - 1
    close(oracles.lqr_action_value(problem, K, std, x[:, last], u[:, last], bias, t=last), rewards[:, last])
    task = {"horizon": math.inf, "gamma": 0.8}
    V = oracles.lqr_state_value(problem, K, std, x[:, 0], bias, **task)
    Q = oracles.lqr_action_value(problem, K, std, x[:, 0], u[:, 0], bias, **task)
    assert_mean(Q - rewards[:, 0] - 0.8 * oracles.lqr_state_value(problem, K, std, x[:, 1], bias, **task), 0.0)
    assert_mean(Q - V, 0.0)
    assert_mean(V, oracles.lqr_objective(problem, K, std, bias, **task))


@pytest.mark.parametrize("discount_states", [True, False])
def test_lqr_fisher_is_the_second_moment_of_scores(discount_states):
    problem, (K, std, bias) = general_lqr(), general_policy()
    x, z, _ = simulated(problem, K, std, bias, n=30_000, seed=2)
    weights = problem.gamma ** torch.arange(problem.horizon) if discount_states else torch.ones(problem.horizon)
    by_gain = torch.einsum("nta,nts->ntas", z / std, -x).flatten(2)
    scores = torch.cat([by_gain, z / std, z**2 - 1], dim=-1)
    outer = torch.einsum("t,ntp,ntq->npq", (weights / weights.sum()).double(), scores, scores)
    F = oracles.lqr_fisher(problem, K, std, bias, discount_states=discount_states)
    assert_mean(outer, F, errors=4.5)  # 55 entries
    without = oracles.lqr_fisher(problem, K, std, None, discount_states=discount_states)
    assert without.shape == (8, 8)
    shifted = oracles.lqr_fisher(problem, K, std, 0 * bias, discount_states=discount_states)
    keep = [0, 1, 2, 3, 4, 5, 8, 9]
    close(without, shifted[keep][:, keep])


def test_natural_gradient_of_the_mean_is_the_gauss_newton_step():
    """F^-1 dJ/dK = -2 (1-gamma)^-1 diag(std^2) E_K: the second moments cancel (Fazel et al. 2018, section 3)."""
    problem = general_lqr()
    K, std, _ = general_policy()
    task = {"horizon": math.inf, "gamma": 0.8}
    F = oracles.lqr_fisher(problem, K, std, **task)[:6, :6]
    step = oracles.natural_gradient(F, oracles.lqr_gradient(problem, K, std, **task).K)
    A, B, Q, R = (torch.as_tensor(m) for m in (problem.A, problem.B, problem.Q, problem.R))
    P = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(500):
        P = Q + K.T @ R @ K + 0.8 * (A - B @ K).T @ P @ (A - B @ K)
    close(step, -2 / 0.2 * torch.diag(std**2) @ ((R + 0.8 * B.T @ P @ B) @ K - 0.8 * B.T @ P @ A), rtol=1e-7)


@every_task
def test_the_optimum_is_optimal(horizon, gamma):
    problem = general_lqr()
    optimum = oracles.lqr_optimum(problem, horizon=horizon, gamma=gamma)
    if horizon in (1, math.inf):  # where a constant gain is best, the gradient vanishes there
        K = optimum.K[0] if horizon == 1 else optimum.K
        close(oracles.lqr_objective(problem, K, 0.0, horizon=horizon, gamma=gamma), optimum.J)
        close(oracles.lqr_gradient(problem, K, 0.0, horizon=horizon, gamma=gamma).K, torch.zeros(2, 3), atol=1e-9)
    else:
        best = minimize(
            lambda K: -oracles.lqr_objective(problem, K.reshape(2, 3), 0.0, horizon=horizon, gamma=gamma).item(),
            np.zeros(6),
        )
        assert optimum.J.item() > -best.fun - 1e-9
        assert optimum.J.item() == pytest.approx(-best.fun, rel=0.05)


def test_time_varying_gains_earn_the_return_that_is_promised():
    problem = general_lqr(gamma=0.9, horizon=5)
    optimum = oracles.lqr_optimum(problem)
    env = LQRVectorEnv(20_000, preset=None, **{f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)})
    env.reset(seed=0)
    total = 0.0
    for t in range(5):
        total = total + 0.9**t * env.step(-env.state @ optimum.K[t].numpy().T)[1]
    assert_mean(total, optimum.J)
    K, P = oracles.riccati_recursion(problem.A, problem.B, problem.Q, problem.R, 5, 0.9, final=np.eye(3))
    close(P[-1], np.eye(3))
    assert (K.shape, P.shape) == ((5, 2, 3), (6, 3, 3))


def test_point_mass_optimum_is_a_regulators():
    problem = point_mass()
    optimum = oracles.lqr_optimum(problem, horizon=math.inf)
    close(oracles.lqr_gradient(problem, optimum.K, 0.0, horizon=math.inf).K, torch.zeros(2, 4), atol=1e-8)


def test_average_cost_is_the_limit_of_the_discounted_one():
    problem, (K, std, _) = general_lqr(), general_policy()
    J = oracles.lqr_objective(problem, K, std, horizon=math.inf, gamma=1 - 1e-7)
    close(-1e-7 * J, oracles.lqr_average_cost(problem, K, std), rtol=1e-5)
    assert oracles.lqr_optimum(problem, horizon=math.inf, gamma=1.0).J.item() == float("-inf")


def test_a_linear_network_through_the_objective():
    """The gain of a two-layer linear network with bias, and the chain rule into its weights."""
    torch.manual_seed(0)
    problem = general_lqr()
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    K, bias = oracles.affine_gain(network, 3, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    close(network(x), -x @ K.T + bias)
    J = oracles.lqr_objective(problem, K, torch.full((2,), 0.4), bias)
    weight = network[0].weight
    (gradient,) = torch.autograd.grad(J, weight)
    for at in ((0, 0), (3, 2)):
        moved = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += step
            moved.append(oracles.lqr_objective(problem, *with_std(network)).item())
            with torch.no_grad():
                weight[at] -= step
        assert gradient[at].item() == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-6)
    with pytest.raises(ValueError, match="not an affine function"):
        oracles.affine_gain(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), 3)


def with_std(network):
    K, bias = oracles.affine_gain(network, 3, dtype=torch.float64)
    return K, torch.full((2,), 0.4), bias


def test_policies_of_stable_baselines3_through_the_objectives():
    """J as a function of the weights of a linear Gaussian and of a softmax policy, ascended a little."""
    from stable_baselines3 import A2C

    model = A2C("MlpPolicy", "LQR-v0", policy_kwargs={"net_arch": []}, seed=0, device="cpu")
    problem, policy = lqr("mushroom", start_std=0.1), model.policy

    def continuous():
        K, bias = oracles.affine_gain(lambda x: policy.get_distribution(x).distribution.mean, 3)
        return oracles.lqr_objective(problem, K, policy.log_std.exp(), bias)

    mdp = garnet()
    softmax = A2C("MlpPolicy", "Garnet-v0", seed=0, device="cpu").policy
    features = torch.as_tensor(mdp.features, dtype=torch.float32)

    def discrete():
        return oracles.mdp_objective(mdp, softmax.get_distribution(features).distribution.probs)

    for objective, module in ((continuous, policy), (discrete, softmax)):
        before = objective()
        before.backward()
        reached = [p for p in module.parameters() if p.grad is not None]
        length = sum((p.grad**2).sum() for p in reached).sqrt().item()
        with torch.no_grad():
            for p in reached:
                p.add_(p.grad, alpha=1e-3 / length)
        assert (objective() - before).item() == pytest.approx(1e-3 * length, rel=0.05)


# Finite processes


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_enumeration_agrees_with_the_recursions(gamma):
    """All trajectories of four steps, written out: J, visits, V, Q, and both gradients."""
    mdp = tiny_mdp(gamma=gamma)
    found = oracles.enumerate_trajectories(mdp, PI, 4)
    p, live = found.probability, found.live.double()
    close(p.sum(), 1.0)
    assert not found.live.all()
    discounts = gamma ** torch.arange(4, dtype=torch.float64)
    close(p @ (found.rewards @ discounts), oracles.mdp_objective(mdp, PI))
    visits = torch.stack([((found.states == s) * live * discounts).sum(1) @ p for s in range(3)])
    close(visits, oracles.mdp_visitation(mdp, PI))
    V, Q = oracles.mdp_values(mdp, PI)
    to_go = returns_to_go(found.rewards, gamma)
    for t in range(4):
        for s in range(3):
            here = (found.states[:, t] == s) & found.live[:, t]
            for a in range(2):
                chosen = here & (found.actions[:, t] == a)
                if chosen.any():
                    close((p * to_go[:, t])[chosen].sum() / p[chosen].sum(), Q[t, s, a])
            if here.any():
                close((p * to_go[:, t])[here].sum() / p[here].sum(), V[t, s])
    for discount_states in (True, False):
        weights = discounts if discount_states else torch.ones(4, dtype=torch.float64)
        scores = score_table()[found.states, found.actions] * live[..., None]  # (M, T, S A)
        estimates = (scores * (to_go * weights)[..., None]).sum(1)
        exact = oracles.mdp_gradient(mdp, LOGITS, discount_states=discount_states)
        close(p @ estimates, exact.flatten())
        total = (scores * (found.rewards @ discounts)[:, None, None]).sum(1)
        close(p @ total, oracles.mdp_gradient(mdp, LOGITS).flatten())  # the whole return needs no weights


def score_table():
    """grad log pi(a|s) with respect to all logits: (S, A, S A)."""
    logits = LOGITS.clone().requires_grad_()
    log_pi = logits.log_softmax(-1)
    rows = [
        torch.autograd.grad(log_pi[s, a], logits, retain_graph=True)[0].flatten() for s in range(3) for a in range(2)
    ]
    return torch.stack(rows).reshape(3, 2, 6)


@every_task
def test_mdp_gradient_is_that_of_the_objective(horizon, gamma):
    mdp = tiny_mdp()
    logits = LOGITS.clone().requires_grad_()
    task = {"horizon": horizon, "gamma": gamma}
    (by_autograd,) = torch.autograd.grad(oracles.mdp_objective(mdp, logits.softmax(-1), **task), logits)
    close(oracles.mdp_gradient(mdp, LOGITS, **task), by_autograd)
    (by_surrogate,) = torch.autograd.grad(oracles.mdp_surrogate(mdp, logits.softmax(-1), **task), logits)
    close(by_surrogate, by_autograd)
    assert torch.autograd.gradcheck(lambda x: oracles.mdp_objective(mdp, x.softmax(-1), **task), (logits,))


@finite_tasks
def test_surrogate_without_the_weights(horizon, gamma):
    mdp, logits = tiny_mdp(), LOGITS.clone().requires_grad_()
    task = {"horizon": horizon, "gamma": gamma, "discount_states": False}
    (by_surrogate,) = torch.autograd.grad(oracles.mdp_surrogate(mdp, logits.softmax(-1), **task), logits)
    close(by_surrogate, oracles.mdp_gradient(mdp, LOGITS, **task))
    weighted = oracles.mdp_gradient(mdp, LOGITS, horizon=horizon, gamma=gamma)
    assert torch.allclose(by_surrogate, weighted) == (gamma == 1.0)


@pytest.mark.parametrize("discount_states", [True, False])
def test_mdp_oracles_against_episodes_of_the_environment(discount_states):
    """Garnet, sampled as REINFORCE samples it: J and sum_t w_t score_t (G_t - V_t)."""
    mdp = garnet(n_states=4, n_actions=2, branching=2, horizon=6, gamma=0.8, reward_std=0.5)
    logits = torch.tensor(np.random.default_rng(0).normal(size=(4, 2)))
    pi, n = logits.softmax(-1), 30_000
    env = FiniteMDPVectorEnv(mdp, n)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    states, actions, rewards = [], [], []
    for _ in range(6):
        states.append(env.state)
        actions.append((rng.random(n) > pi[env.state, 0].numpy()).astype(int))
        rewards.append(env.step(actions[-1])[1])
    states, actions, rewards = (torch.as_tensor(np.stack(x, axis=1)) for x in (states, actions, rewards))
    discounts = 0.8 ** torch.arange(6, dtype=torch.float64)
    weights = discounts if discount_states else torch.ones(6, dtype=torch.float64)
    assert_mean(rewards @ discounts, oracles.mdp_objective(mdp, pi))
    V = oracles.mdp_values(mdp, pi).V
    advantage = (returns_to_go(rewards, 0.8) - V[torch.arange(6), states]) * weights
    one_hot = (
        nn.functional.one_hot(states, 4)[..., None] * (nn.functional.one_hot(actions, 2) - pi[states])[..., None, :]
    )
    exact = oracles.mdp_gradient(mdp, logits, discount_states=discount_states)
    assert_mean((one_hot * advantage[..., None, None]).sum(1), exact)


def test_any_network_over_one_hot_observations():
    """A network with a hidden layer: autograd through J against finite differences in a weight."""
    torch.manual_seed(0)
    mdp = garnet(n_states=5, horizon=8)
    network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    features = torch.as_tensor(mdp.features, dtype=torch.float32)

    def objective():
        return oracles.mdp_objective(mdp, network(features).softmax(-1))

    (gradient,) = torch.autograd.grad(objective(), network[0].weight)
    with torch.no_grad():
        network[0].weight[2, 3] += 1e-2
        up = objective().item()
        network[0].weight[2, 3] -= 2e-2
        down = objective().item()
    assert gradient[2, 3].item() == pytest.approx((up - down) / 2e-2, rel=2e-3)


def test_kakades_two_states():
    """Kakade 2001: J, rho, gradient, Fisher and natural gradient at p = (.8, .1) of staying."""
    mdp = kakade_two_state()
    stay = torch.tensor([0.8, 0.1], dtype=torch.float64)
    theta = torch.logit(stay).requires_grad_()  # log-odds of staying in either state

    def policy(theta):
        return torch.stack([theta.sigmoid(), (-theta).sigmoid()], dim=-1)

    J = oracles.average_reward(mdp, policy(theta))
    rho = oracles.stationary_distribution(mdp, policy(theta)).detach()
    (gradient,) = torch.autograd.grad(J, theta)
    close(J, 0.690909, atol=1e-6)
    close(rho, [0.818182, 0.181818], atol=1e-6)
    close(gradient, [0.202314, 0.023802], atol=1e-6)
    # theta moves the first logit of its state alone: that row and column of the softmax Fisher.
    F = oracles.softmax_fisher(policy(theta).detach(), rho)[::2, ::2]
    close(F, np.diag([0.130909, 0.016364]), atol=1e-6)
    close(oracles.natural_gradient(F, gradient), [1.545455, 1.454545], atol=1e-6)


def test_kakades_plateau_and_the_natural_way_out():
    """Exact ascent, with eta t as time: the natural gradient is done by 2.8 and keeps visiting state 1."""
    mdp = kakade_two_state()

    def ascend(natural, step, n_steps):
        theta, lowest, J = torch.logit(torch.tensor([0.8, 0.1], dtype=torch.float64)), 1.0, None
        for _ in range(n_steps):
            theta = theta.detach().requires_grad_()
            pi = torch.stack([theta.sigmoid(), (-theta).sigmoid()], dim=-1)
            J = oracles.average_reward(mdp, pi)
            (direction,) = torch.autograd.grad(J, theta)
            rho = oracles.stationary_distribution(mdp, pi.detach())
            lowest = min(lowest, rho[1].item())
            if natural:
                direction = oracles.natural_gradient(oracles.softmax_fisher(pi.detach(), rho)[::2, ::2], direction)
            theta = theta + step * direction
        return J.item(), lowest

    J, lowest = ascend(natural=True, step=0.25, n_steps=12)  # eta t = 2.75 when J is last taken
    assert J >= 1.99
    assert lowest == pytest.approx(0.052, abs=0.003)
    J, lowest = ascend(natural=True, step=0.01, n_steps=281)
    assert J >= 1.99
    assert lowest == pytest.approx(0.058, abs=0.0005)  # the limit of small steps is .0582
    J, _ = ascend(natural=False, step=50.0, n_steps=1000)  # eta t = 5e4
    assert 0.99 < J < 1.01


def test_tabular_natural_gradient_is_the_advantage():
    """Agarwal et al. 2021: F^+ grad J = A / (1 - gamma), up to a constant in each state; and their bound."""
    mdp = garnet(n_states=5, n_actions=3, gamma=0.9)
    logits = torch.tensor(np.random.default_rng(2).normal(size=(5, 3)))
    task = {"horizon": math.inf}
    V, Q = oracles.mdp_values(mdp, logits.softmax(-1), **task)
    step = oracles.natural_gradient(oracles.mdp_fisher(mdp, logits, **task), oracles.mdp_gradient(mdp, logits, **task))
    advantage = (Q - V[:, None]) / 0.1
    close(step - step.mean(-1, keepdim=True), advantage - advantage.mean(-1, keepdim=True), rtol=1e-7, atol=1e-9)
    best, logits = oracles.mdp_optimum(mdp, **task), torch.zeros(5, 3, dtype=torch.float64)
    for t in range(1, 60):
        V, Q = oracles.mdp_values(mdp, logits.softmax(-1), **task)
        logits = logits + 1.0 * (Q - V[:, None]) / 0.1
        gap = best.J - oracles.mdp_objective(mdp, logits.softmax(-1), **task)
        scale = np.ptp(mdp.reward)  # the bound is for rewards in [0, 1]
        assert -1e-9 <= gap <= scale * (math.log(3) / t + 1 / (0.1**2 * t))
    assert gap < 1e-3


def test_mdp_fisher_is_the_second_moment_of_scores():
    mdp = tiny_mdp()
    found = oracles.enumerate_trajectories(mdp, PI, 4)
    scores = score_table()[found.states, found.actions]
    for discount_states in (True, False):
        steps = (0.8 if discount_states else 1.0) ** torch.arange(4, dtype=torch.float64)
        weight = found.probability[:, None] * found.live * steps
        F = torch.einsum("mt,mtp,mtq->pq", weight / weight.sum(), scores, scores)
        close(oracles.mdp_fisher(mdp, LOGITS, discount_states=discount_states), F)
    network = nn.Linear(3, 2).double()
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(network, {"weight": w}, torch.eye(3).double()))(
        network.weight.detach()
    ).reshape(6, 6)
    logits = network(torch.eye(3, dtype=torch.float64)).detach()
    F = jacobian.T @ oracles.mdp_fisher(mdp, logits) @ jacobian
    pi = logits.softmax(-1)
    direct = sum(
        w * pi[s, a] * torch.outer(g, g)
        for s, w in enumerate(oracles.mdp_visitation(mdp, pi) / oracles.mdp_visitation(mdp, pi).sum())
        for a in range(2)
        for g in [(jacobian.reshape(3, 2, 6)[s, a] - pi[s] @ jacobian.reshape(3, 2, 6)[s])]
    )
    close(F, direct)


def test_the_corridor():
    """J(p) = -(4 - 2p) / (p (1 - p)), greatest at 2 - sqrt(2); aliased states share one row of the policy."""
    mdp = short_corridor()

    def J(p):
        return oracles.mdp_objective(mdp, [[1 - p, p]], horizon=math.inf).item()

    for p, published in ((0.05, -82.1), (0.95, -44.2)):
        assert J(p) == pytest.approx(-(4 - 2 * p) / (p * (1 - p)))
        assert J(p) == pytest.approx(published, abs=0.05)
        assert oracles.mdp_objective(mdp, [[1 - p, p]]).item() == pytest.approx(J(p), rel=1e-3)  # with its time limit
    best = minimize_scalar(lambda p: -J(p), bounds=(0.1, 0.9), method="bounded", options={"xatol": 1e-9})
    assert best.x == pytest.approx(2 - math.sqrt(2), abs=1e-6)
    assert -best.fun == pytest.approx(-11.6568542, abs=1e-6)
    assert oracles.mdp_optimum(mdp, horizon=math.inf).J == -3  # for those who can tell the states apart
    logit = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(oracles.mdp_objective(mdp, logit.softmax(-1), horizon=math.inf), logit)
    # dJ/dp at 1/2 is 8, and dp/dlogit is 1/4.
    close(gradient, [[-2.0, 2.0]])


def test_the_uniform_bandit():
    """Published: gradient (1/6, 0, -1/6), natural gradient r - mean r, Fisher diag(p) - pp'."""
    mdp, logits = armed_bandit((1.0, 0.5, 0.0)), torch.zeros(1, 3, dtype=torch.float64)
    close(oracles.mdp_objective(mdp, logits.softmax(-1), horizon=math.inf), 0.5)
    gradient = oracles.mdp_gradient(mdp, logits, horizon=math.inf)
    close(gradient, [[1 / 6, 0, -1 / 6]])
    F = oracles.mdp_fisher(mdp, logits, horizon=math.inf)
    close(F, np.eye(3) / 3 - 1 / 9)
    close(oracles.natural_gradient(F, gradient), [[0.5, 0, -0.5]])


def test_the_optimum_of_a_finite_process():
    """Against every deterministic policy of a tiny process, and every time-dependent one."""
    mdp = tiny_mdp()
    policies = [torch.as_tensor(np.eye(2)[list(choice)]) for choice in np.ndindex(2, 2, 2)]
    forever = oracles.mdp_optimum(mdp, horizon=math.inf)
    close(forever.J, max(oracles.mdp_objective(mdp, pi, horizon=math.inf).item() for pi in policies))
    close(oracles.mdp_values(mdp, np.eye(2)[forever.action], horizon=math.inf).V, forever.V)
    episode = oracles.mdp_optimum(mdp, horizon=2)
    best = -math.inf
    reward, transition, start = (torch.as_tensor(x) for x in (mdp.reward, mdp.transition, mdp.start))
    for first in policies:
        for second in policies:
            V = (first * (reward + 0.8 * transition @ (second * reward).sum(-1))).sum(-1)
            best = max(best, (start @ V).item())
    close(episode.J, best)
    assert episode.action.shape == (2, 3)
    with pytest.raises(ValueError, match="did not converge"):
        oracles.mdp_optimum(garnet(n_states=3), horizon=math.inf, gamma=1.0)


# Whole laws of estimators


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (-0.5, 0.7)])
def test_variances_of_the_gradient_of_a_square(mean, std):
    """The four estimators of d/dmean E a^2 = 2 mean: 30, 18, 14 and 4 at (1, 1)."""
    m2, s2 = mean**2, std**2
    published = {
        ("score", None): m2**2 / s2 + 14 * m2 + 15 * s2,
        ("score", "value"): 8 * m2 + 10 * s2,
        ("score", "optimal"): 8 * m2 + 6 * s2,
        ("pathwise", None): 4 * s2,
    }
    for (estimator, baseline), variance in published.items():
        moments = oracles.gaussian_estimator_moments(torch.square, mean, std, estimator, baseline)
        close(torch.stack(moments), [2 * mean, variance])
    if mean == std == 1:
        assert list(published.values()) == [30, 18, 14, 4]
    close(oracles.gaussian_estimator_moments(torch.square, mean, std, "score", m2 + 3 * s2)[1], 8 * m2 + 6 * s2)


def test_gradient_in_the_scale():
    """d/dlog std E a^2 = 2 std^2; pathwise it is 2 a std z, of variance 4 s^2 (m^2 + 2 s^2)."""
    for estimator in ("score", "pathwise"):
        mean, variance = oracles.gaussian_estimator_moments(torch.square, 0.7, 0.5, estimator, parameter="log_std")
        close(mean, 2 * 0.25)
    close(variance, 4 * 0.25 * (0.49 + 2 * 0.25))
    with pytest.raises(ValueError, match="baseline='mean': allowed are"):
        oracles.gaussian_estimator_moments(torch.square, 0.0, 1.0, baseline="mean")


def test_the_optimal_baseline_is_optimal():
    """On the bandit and step by step on all trajectories of a tiny process: no other constant has less variance."""
    mdp = tiny_mdp()
    found = oracles.enumerate_trajectories(mdp, PI, 3)
    scores = score_table()[found.states, found.actions] * found.live[..., None]
    to_go = returns_to_go(found.rewards, mdp.gamma)
    squared = (scores**2).sum(-1)
    b = oracles.optimal_baseline(found.probability, squared, to_go)
    assert b.shape == (3,)

    def variance(t, baseline):
        return oracles.estimator_variance(found.probability, scores[:, t] * (to_go[:, t] - baseline)[:, None]).item()

    for t in range(3):
        assert variance(t, b[t]) < min(variance(t, b[t] + 0.05), variance(t, b[t] - 0.05))
        close(oracles.optimal_baseline(found.probability, squared[:, t], to_go[:, t]), b[t])
    close(oracles.estimator_variance([0.5, 0.5], [[1.0, 0.0], [3.0, 2.0]]), 2.0)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oracles.lqr_objective(lqr("scalar"), [[0.5]], 0.0, horizon=math.inf, gamma=1.0), "lqr_average_cost"),
        (lambda: oracles.lqr_objective(lqr("scalar"), [[-0.5]], 0.0, horizon=math.inf), "spectral radius 1.5"),
        (
            lambda: oracles.lqr_objective(lqr("scalar"), [[0.5, 1.0]], 0.0),
            r"K has the shape \(1, 2\); \(1, 1\) is needed",
        ),
        (lambda: oracles.lqr_objective(lqr("scalar"), [[0.5]], 0.0, horizon=2.5), "horizon=2.5: allowed are positive"),
        (lambda: oracles.lqr_objective(lqr("scalar"), [[0.5]], 0.0, gamma=0.0), "gamma=0.0: allowed"),
        (
            lambda: oracles.lqr_gradient(lqr("scalar"), [[0.5]], 0.0, horizon=math.inf, discount_states=False),
            "discount_states=False has no limit",
        ),
        (
            lambda: oracles.mdp_objective(garnet(n_states=3), np.full((3, 3), 1 / 3), horizon=math.inf, gamma=1.0),
            "the process need not end",
        ),
        (lambda: oracles.mdp_objective(tiny_mdp(), np.ones((3, 2))), "the rows must be probabilities"),
        (lambda: oracles.mdp_objective(tiny_mdp(), np.full((2, 2), 0.5)), r"policy has the shape \(2, 2\); \(3, 2\)"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_defaults_are_the_problems_own_task():
    problem = lqr("scalar", horizon=3, gamma=0.5)
    close(
        oracles.lqr_objective(problem, [[0.5]], 0.1), oracles.lqr_objective(problem, [[0.5]], 0.1, horizon=3, gamma=0.5)
    )
    endless = lqr("scalar", horizon=None)
    close(oracles.lqr_objective(endless, [[0.5]], 0.0), -1.612903, atol=1e-6)
    env = gymnasium.make("Garnet-v0").unwrapped
    assert oracles.mdp_values(env.problem, np.full((10, 3), 1 / 3)).Q.shape == (20, 10, 3)
