"""The optimal linear-quadratic regulator, with and without a horizon. S states, A actions, H horizon."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import scipy.linalg
import torch
from torch import Tensor

from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.envs.oracles.exact import exact, horizon_and_gamma, steps


class LQROptimum(NamedTuple):
    """Optimal gain, cost to go and return.

    ``K`` is ``(H, A, S)`` and ``P`` ``(H + 1, S, S)`` for a finite horizon, ``(A, S)`` and ``(S, S)`` for none.
    """

    K: Tensor
    P: Tensor
    J: Tensor


def lqr_average_cost(problem: LQR, K: Any, std: Any = 0.0) -> Tensor:
    """The mean cost of a step, after infinitely many, of u ~ N(-K x, std^2); differentiable.

    :raises ValueError: the closed loop is not stable
    """
    gain, B, R = exact(K), exact(problem.B), exact(problem.R)
    variance = exact(std).expand(len(R)) ** 2
    diffusion = covariance(problem.noise_std) + (B * variance) @ B.T
    stationary = discounted_sum(exact(problem.A) - B @ gain, diffusion, 1.0)
    return ((exact(problem.Q) + gain.T @ R @ gain) * stationary).sum() + (R.diagonal() * variance).sum()


def riccati(A: Any, B: Any, Q: Any, R: Any, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """The infinite-horizon optimum: P of ``P = Q + gamma A'P(A - BK)`` and ``K = gamma (R + gamma B'PB)^-1 B'PA``.

    A discount is a system whose A and B are sqrt(gamma) times as large.

    :return: K ``(A, S)``, P ``(S, S)``
    """
    scale = math.sqrt(gamma)
    P = exact(scipy.linalg.solve_discrete_are(scale * exact(A).numpy(), scale * exact(B).numpy(), exact(Q), exact(R)))
    return _greedy_gain(exact(A), exact(B), exact(R), P, gamma), P


def riccati_recursion(
    A: Any, B: Any, Q: Any, R: Any, horizon: int, gamma: float = 1.0, final: Any = None
) -> tuple[Tensor, Tensor]:
    """The finite-horizon optimum: ``P_t = Q + gamma A'P_{t+1}(A - B K_t)`` backwards from ``P_H``.

    :param final: cost of the last state ``(S, S)``; None for none
    :return: K ``(H, A, S)``, P ``(H + 1, S, S)``
    """
    A, B, Q, R = exact(A), exact(B), exact(Q), exact(R)
    P = [torch.zeros_like(Q) if final is None else exact(final)]
    K: list[Tensor] = []
    for _ in range(horizon):
        K.append(_greedy_gain(A, B, R, P[-1], gamma))
        P.append(Q + gamma * A.T @ P[-1] @ (A - B @ K[-1]))
    return torch.stack(K[::-1]), torch.stack(P[::-1])


def lqr_optimum(problem: LQR, *, horizon: float | None = None, gamma: float | None = None) -> LQROptimum:
    """The optimal gain, its cost to go and its expected return (-inf for noise that is never discounted).

    :param horizon: H; None for the problem's own, ``math.inf`` for no limit
    :param gamma: discount; None for the problem's own
    """
    horizon, gamma = horizon_and_gamma(problem, horizon, gamma)
    matrices = (problem.A, problem.B, problem.Q, problem.R)
    W, mean = covariance(problem.noise_std), exact(problem.start_mean)
    M = covariance(problem.start_std) + torch.outer(mean, mean)
    if horizon == math.inf:
        K, P = riccati(*matrices, gamma)
        per_step = (P * W).sum()
        noise = gamma / (1 - gamma) * per_step if gamma < 1 else per_step.where(per_step == 0, math.inf)
        return LQROptimum(K, P, -(P * M).sum() - noise)
    K, P = riccati_recursion(*matrices, int(horizon), gamma)
    noise = sum((gamma ** (t + 1) * (P[t + 1] * W).sum() for t in steps(horizon)), torch.zeros((), dtype=torch.float64))
    return LQROptimum(K, P, -(P[0] * M).sum() - noise)


def covariance(factor: Any) -> Tensor:
    """``L L'`` of a factor ``(S, k)``."""
    return exact(factor) @ exact(factor).T


def discounted_sum(F: Tensor, X: Tensor, gamma: float) -> Tensor:
    """``sum_t gamma^t F^t X F'^t``: the solution of ``D = X + gamma F D F'``.

    :raises ValueError: the sum diverges
    """
    radius = torch.linalg.eigvals(F.detach()).abs().max().item()
    if gamma * radius**2 >= 1:
        raise ValueError(
            f"the spectral radius {radius:.4g} of A - BK is too large: the cost is infinite for gamma={gamma}"
        )
    operator = torch.eye(X.numel(), dtype=X.dtype) - gamma * torch.kron(F, F)
    return torch.linalg.solve(operator, X.flatten()).reshape(X.shape)


def _greedy_gain(A: Tensor, B: Tensor, R: Tensor, P: Tensor, gamma: float) -> Tensor:
    return gamma * torch.linalg.solve(R + gamma * B.T @ P @ B, B.T @ P @ A)
