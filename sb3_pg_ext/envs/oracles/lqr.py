r"""Exact answers for the linear-quadratic regulator under a policy u ~ N(-K x + c, diag(std^2)).

Everything follows from two recursions over the closed loop F = A - BK, in which Sigma = B diag(std^2) B' + LL' is the
covariance of what noise adds to the state:

    second moments    M_{t+1} = F M_t F' + Sigma                    forwards,  M_0 = E[x_0 x_0']
    cost to go        P_t = Q + K'RK + gamma F' P_{t+1} F           backwards, P_H = 0

A bias c is a gain on a constant: the state is (x, 1) throughout. S states, A actions, H horizon. Clipping of actions
and states, where the record asks for it, is not seen here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.envs.oracles.exact import exact, horizon_and_gamma, steps
from sb3_pg_ext.envs.oracles.riccati import covariance, discounted_sum


class LinearGaussianGradient(NamedTuple):
    """Derivatives with respect to K ``(A, S)``, the bias ``(A,)`` and log std ``(A,)`` of u ~ N(-K x + bias, std^2).

    A linear layer of weight W computes the mean W x + bias: dJ/dW = -dJ/dK.
    """

    K: Tensor
    bias: Tensor
    log_std: Tensor


class _ClosedLoop:
    """The regulator under a policy, for the state (x, 1): S + 1 rows in place of S."""

    def __init__(self, problem: LQR, K: Any, std: Any, bias: Any):
        n_states, n_actions = problem.B.shape
        gain = exact(K)
        if gain.shape != (n_actions, n_states):
            raise ValueError(f"K has the shape {tuple(gain.shape)}; {(n_actions, n_states)} is needed, for u = -K x")
        offset = torch.zeros(n_actions, dtype=torch.float64) if bias is None else exact(bias)
        one, nothing = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        mean = torch.cat([exact(problem.start_mean), torch.ones(1, dtype=torch.float64)])
        self.K = torch.cat([gain, -offset[:, None]], dim=1)
        self.variance = exact(std).expand(n_actions) ** 2
        self.A = torch.block_diag(exact(problem.A), one)
        self.B = torch.cat([exact(problem.B), torch.zeros(1, n_actions, dtype=torch.float64)])
        self.Q, self.R = torch.block_diag(exact(problem.Q), nothing), exact(problem.R)
        self.process = torch.block_diag(covariance(problem.noise_std), nothing)
        self.M = torch.block_diag(covariance(problem.start_std), nothing) + torch.outer(mean, mean)

    @cached_property
    def F(self) -> Tensor:
        return self.A - self.B @ self.K

    @cached_property
    def cost(self) -> Tensor:
        """``Q + K'RK``: what a state costs under the mean action."""
        return self.Q + self.K.T @ self.R @ self.K

    @cached_property
    def exploration_cost(self) -> Tensor:
        """``tr(R diag(std^2))``: what the noise of the action costs in every step."""
        return (self.R.diagonal() * self.variance).sum()

    @cached_property
    def diffusion(self) -> Tensor:
        return self.process + (self.B * self.variance) @ self.B.T

    def spread(self, M: Tensor) -> Tensor:
        """The second moments one step later."""
        return self.F @ M @ self.F.T + self.diffusion

    def costs_to_go(self, horizon: float, gamma: float) -> list[Tensor]:
        """``P_0, ..., P_H``; for the infinite horizon the two equal ``P, P``."""
        if horizon == math.inf:
            return [discounted_sum(self.F.T, self.cost, gamma)] * 2
        backwards = [torch.zeros_like(self.A)]
        for _ in steps(horizon):
            backwards.append(self.cost + gamma * self.F.T @ backwards[-1] @ self.F)
        return backwards[::-1]

    def noise_costs_to_go(self, P: list[Tensor], horizon: float, gamma: float) -> list[Tensor]:
        """``v_0, ..., v_H``: the part of the cost to go that no state can avoid; ``v, v`` for the infinite horizon."""
        if horizon == math.inf:
            return [(self.exploration_cost + gamma * (P[0] * self.diffusion).sum()) / (1 - gamma)] * 2
        backwards = [torch.zeros((), dtype=torch.float64)]
        for P_next in P[:0:-1]:
            backwards.append(self.exploration_cost + gamma * ((P_next * self.diffusion).sum() + backwards[-1]))
        return backwards[::-1]

    def steepness(self, P_next: Tensor, gamma: float) -> Tensor:
        """``R + gamma B'P'B``: curvature of the cost in the action."""
        return self.R + gamma * self.B.T @ P_next @ self.B

    def discounted_moments(self, gamma: float) -> Tensor:
        """``sum_t gamma^t M_t`` of the infinite horizon."""
        return discounted_sum(self.F, self.M + gamma / (1 - gamma) * self.diffusion, gamma)

    def weighted_moments(self, horizon: float, gamma: float, discount_states: bool) -> tuple[list[float], list[Tensor]]:
        """``w_t`` and ``w_t M_t`` of each step; for the infinite horizon one entry, their sums."""
        if horizon == math.inf and not discount_states:
            raise ValueError("discount_states=False has no limit for an infinite horizon: give a finite one")
        if horizon == math.inf:
            return [1 / (1 - gamma)], [self.discounted_moments(gamma)]
        weights, moments, M = [gamma**t if discount_states else 1.0 for t in steps(horizon)], [], self.M
        for weight in weights:
            moments.append(weight * M)
            M = self.spread(M)
        return weights, moments


def lqr_objective(
    problem: LQR, K: Any, std: Any, bias: Any = None, *, horizon: float | None = None, gamma: float | None = None
) -> Tensor:
    """The expected discounted return ``J = E sum_{t<H} gamma^t r_t`` of u ~ N(-K x + bias, std^2); differentiable.

    :param problem: the regulator
    :param K: gain ``(A, S)``; tensors that require gradients are fine, here and below
    :param std: standard deviation of the action, a number or ``(A,)``; 0 for a deterministic policy
    :param bias: offset of the action ``(A,)``; None for 0
    :param horizon: H; None for the problem's own, ``math.inf`` for no limit
    :param gamma: discount; None for the problem's own
    :return: a scalar
    :raises ValueError: for the infinite horizon, gamma = 1 or a gain whose discounted cost is infinite
    """
    loop = _ClosedLoop(problem, K, std, bias)
    horizon, gamma = _checked(horizon_and_gamma(problem, horizon, gamma))
    if horizon == math.inf:
        return -(loop.cost * loop.discounted_moments(gamma)).sum() - loop.exploration_cost / (1 - gamma)
    M, J = loop.M, torch.zeros((), dtype=torch.float64)
    for t in steps(horizon):
        J = J - gamma**t * ((loop.cost * M).sum() + loop.exploration_cost)
        M = loop.spread(M)
    return J


def lqr_gradient(
    problem: LQR,
    K: Any,
    std: Any,
    bias: Any = None,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> LinearGaussianGradient:
    """The gradient of :func:`lqr_objective` in closed form (Fazel et al. 2018, lemma 1, with a horizon and noise):

        dJ/dK       = -2 sum_t w_t [(R + gamma B'P_{t+1}B) K - gamma B'P_{t+1}A] M_t
        dJ/dlog std = -2 sum_t w_t diag(R + gamma B'P_{t+1}B) std^2

    :param discount_states: ``w_t = gamma^t``; False for ``w_t = 1``, the mean of ``sum_t score_t G_t``, which is not
        the gradient of J when gamma < 1 (finite horizon only)
    :return: K ``(A, S)``, bias ``(A,)``, log_std ``(A,)``
    :raises ValueError: as for :func:`lqr_objective`, and for undiscounted states without a horizon
    """
    loop = _ClosedLoop(problem, K, std, bias)
    horizon, gamma = _checked(horizon_and_gamma(problem, horizon, gamma))
    weights, moments = loop.weighted_moments(horizon, gamma, discount_states)
    by_gain, by_log_std = torch.zeros_like(loop.K), torch.zeros_like(loop.variance)
    for weight, moment, P_next in zip(weights, moments, loop.costs_to_go(horizon, gamma)[1:], strict=True):
        steepness = loop.steepness(P_next, gamma)
        by_gain = by_gain - 2 * (steepness @ loop.K - gamma * loop.B.T @ P_next @ loop.A) @ moment
        by_log_std = by_log_std - 2 * weight * steepness.diagonal() * loop.variance
    return LinearGaussianGradient(by_gain[:, :-1], -by_gain[:, -1], by_log_std)


def lqr_state_value(
    problem: LQR,
    K: Any,
    std: Any,
    state: Any,
    bias: Any = None,
    *,
    t: int = 0,
    horizon: float | None = None,
    gamma: float | None = None,
) -> Tensor:
    """``V_t(x) = -((x,1)' P_t (x,1) + v_t)``, ``(B,)``: the expected discounted return from step t on.

    :param state: x ``(B, S)``
    :param t: the step; without effect for the infinite horizon. Others as for :func:`lqr_objective`
    """
    loop = _ClosedLoop(problem, K, std, bias)
    horizon, gamma = _checked(horizon_and_gamma(problem, horizon, gamma))
    P = loop.costs_to_go(horizon, gamma)
    v = loop.noise_costs_to_go(P, horizon, gamma)
    t = 0 if horizon == math.inf else t
    return -(_quadratic(_with_one(exact(state)), P[t]) + v[t])


def lqr_action_value(
    problem: LQR,
    K: Any,
    std: Any,
    state: Any,
    action: Any,
    bias: Any = None,
    *,
    t: int = 0,
    horizon: float | None = None,
    gamma: float | None = None,
) -> Tensor:
    """``Q_t(x, u) = -(x'Qx + u'Ru) + gamma E V_{t+1}(Ax + Bu + Lz)``, ``(B,)``.

    :param state: x ``(B, S)``
    :param action: u ``(B, A)``
    :param t: the step; without effect for the infinite horizon. Others as for :func:`lqr_objective`
    """
    loop = _ClosedLoop(problem, K, std, bias)
    horizon, gamma = _checked(horizon_and_gamma(problem, horizon, gamma))
    P = loop.costs_to_go(horizon, gamma)
    v = loop.noise_costs_to_go(P, horizon, gamma)
    t = 0 if horizon == math.inf else t
    x, u = _with_one(exact(state)), exact(action)
    future = _quadratic(x @ loop.A.T + u @ loop.B.T, P[t + 1]) + (P[t + 1] * loop.process).sum() + v[t + 1]
    return -(_quadratic(x, loop.Q) + _quadratic(u, loop.R) + gamma * future)


def lqr_fisher(
    problem: LQR,
    K: Any,
    std: Any,
    bias: Any = None,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> Tensor:
    """``E[score score']`` of one step, its state drawn with weight w_t from the steps of an episode (weights sum to 1).

    The mean contributes E[x x'] / std^2 for each action, the log standard deviations 2 each.

    :param discount_states: ``w_t`` proportional to gamma^t, or equal. Others as for :func:`lqr_gradient`
    :return: ``(P, P)``; the parameters are K by rows, the bias if one is given, and log std
    """
    loop = _ClosedLoop(problem, K, std, bias)
    horizon, gamma = _checked(horizon_and_gamma(problem, horizon, gamma))
    weights, moments = loop.weighted_moments(horizon, gamma, discount_states)
    moment = sum(moments, torch.zeros_like(loop.M)) / sum(weights)
    n_actions, width = loop.K.shape
    # The score of a row of (K, bias) is (-x, 1) times the standardised action noise.
    sign = torch.tensor([-1.0] * (width - 1) + [1.0], dtype=torch.float64)
    by_row = torch.kron(torch.diag(1 / loop.variance), sign[:, None] * moment * sign)
    grid = torch.arange(n_actions * width).reshape(n_actions, width)
    order = torch.cat([grid[:, :-1].flatten(), grid[:, -1] if bias is not None else grid[:, :0].flatten()])
    return torch.block_diag(by_row[order][:, order], 2 * torch.eye(n_actions, dtype=torch.float64))


def affine_gain(
    mean: Callable[[Tensor], Tensor], n_states: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """K and bias of a policy whose mean action is affine in the state, differentiable in the policy's parameters.

    With it, :func:`lqr_objective` is a function of the weights of any linear network::

        K, bias = affine_gain(lambda x: policy.get_distribution(x).distribution.mean, n_states)
        lqr_objective(problem, K, policy.log_std.exp(), bias).backward()

    :param mean: observations ``(B, S)`` -> mean actions ``(B, A)``
    :param n_states: S
    :param dtype: of the observations that ``mean`` takes
    :return: K ``(A, S)``, bias ``(A,)``, so that mean(x) = -K x + bias
    :raises ValueError: ``mean`` is not affine
    """
    eye = torch.eye(n_states, dtype=dtype)
    up, bias, down = exact(mean(eye)), exact(mean(torch.zeros(1, n_states, dtype=dtype)))[0], exact(mean(-eye))
    if not torch.allclose(up + down, 2 * bias.expand_as(up), rtol=1e-4, atol=1e-5):
        raise ValueError("mean is not an affine function of the state: a linear policy (net_arch=[]) is needed")
    return (bias - up).T, bias


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def _quadratic(x: Tensor, P: Tensor) -> Tensor:
    return ((x @ P) * x).sum(-1)


def _checked(task: tuple[float, float]) -> tuple[float, float]:
    if task == (math.inf, 1.0):
        raise ValueError("horizon=inf needs gamma < 1; the undiscounted cost of a step is lqr_average_cost")
    return task
