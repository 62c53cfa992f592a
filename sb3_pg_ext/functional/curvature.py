"""Curvature of a policy: Fisher-vector products, conjugate gradients, natural steps, compatible approximation.

A policy with P parameters theta maps B observations to the parameters eta (B, D) of as many action distributions (see
:mod:`~sb3_pg_ext.functional.families`). With its Jacobian J = d eta / d theta and the Fisher matrix M in eta,

    F = E[score score^T] = E[J^T M J] = Hessian of E[KL(pi_old || pi)] at theta_old     (Kakade 2001)

where E is the mean over the B observations and, over actions, the exact expectation under the policy itself. F v is a
tangent J v pushed forward through the network, the product with M, and a cotangent pulled back; F is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import Tensor

from sb3_pg_ext.functional.families import Metric
from sb3_pg_ext.functional.jacobian import Jacobian

Product = Callable[[Tensor], Tensor]


def fisher_vector_product(jacobian: Jacobian, metric: Metric, v: Tensor, damping: float = 0.0) -> Tensor:
    """(F + damping I) v with F = (1/B) sum_b J_b^T M_b J_b.

    :param metric: u -> M u, (B, D) -> (B, D): ``Family.fisher(jacobian.eta)`` for the Fisher matrix
    :param v: (P,)
    :param damping: >= 0
    :return: (P,)
    """
    tangents = jacobian.push(v)  #                            v -> J v
    cotangents = metric(tangents)  #                        J v -> M J v
    product = jacobian.pull(cotangents / len(cotangents))  # M J v -> E[J^T M J v]
    return product.add_(v, alpha=damping)  #                          + damping v


def squared_length(jacobian: Jacobian, metric: Metric, v: Tensor) -> float:
    """v^T F v = (1/B) sum_b (J_b v)^T M_b (J_b v): to second order twice the KL divergence of a step v.

    Costs half a Fisher-vector product and is >= 0 whatever the rounding.
    """
    tangents = jacobian.push(v)
    return (tangents * metric(tangents)).sum(1).mean().item()


class Solution(NamedTuple):
    """What a solver found: x (P,), |b - A x| / |b|, and the number of products with A that it took."""

    x: Tensor
    residual: float
    iterations: int


def conjugate_gradient(product: Product, b: Tensor, max_steps: int = 10, tolerance: float = 1e-10) -> Solution:
    """Solve A x = b for a symmetric, positive semi-definite A   (Hestenes & Stiefel 1952).

    It starts at x = 0, so that for a singular A with b in its range it goes to the shortest solution A^+ b.

    :param product: v -> A v, (P,) -> (P,)
    :param b: (P,)
    :param max_steps: products with A at most
    :param tolerance: stops when |b - A x| <= tolerance |b|
    :return: the solution; its residual is the recurrence's, which rounding lets drift from the true one
    """
    scale = b.abs().max().item()
    if scale == 0:
        return Solution(th.zeros_like(b), 0.0, 0)
    r = b / scale  # squares of very small and very large numbers would leave the range of float32
    x, p = th.zeros_like(b), r.clone()
    rr = first = (r @ r).item()
    steps = 0
    while steps < max_steps and rr > tolerance**2 * first:
        Ap = product(p)
        curvature = (p @ Ap).item()
        if not curvature > 0:  # p is in the null space but for rounding
            break
        alpha = rr / curvature
        x.add_(p, alpha=alpha)
        r.sub_(Ap, alpha=alpha)
        rr, before = (r @ r).item(), rr
        p.mul_(rr / before).add_(r)
        steps += 1
    return Solution(x.mul_(scale), math.sqrt(rr / first), steps)


def kl_step_size(target_kl: float, squared_length: float) -> float:
    """sqrt(2 delta / x^T F x), by which x = F^-1 g becomes the step of KL divergence delta to second order.

    x^T F x is g^T F^-1 g where x solves F x = g; of a truncated or damped solution it is still the right length.

    :param target_kl: delta
    :param squared_length: x^T F x
    :return: 0 if x changes no distribution
    """
    return math.sqrt(2 * target_kl / squared_length) if squared_length > 0 else 0.0


def compatible_weights(scores: Tensor, advantages: Tensor, damping: float = 0.0) -> Tensor:
    """w = argmin (1/B) sum_b (w^T score_b - A_b)^2 + damping |w|^2   (Kakade 2001, theorem 1; Sutton et al. 2000).

    The normal equations say w = (E[score score^T] + damping I)^-1 E[score A], with E the mean over the B samples: that
    is F^-1 g with the *empirical* Fisher matrix, of the actions that were taken. It becomes the Fisher matrix, which
    averages over all actions, where the samples exhaust the policy: as B grows, or if each action stands in the batch
    as often as its probability says.

    Solved where the system is smaller, by Cholesky in float64: for P <= B as above, otherwise for the B residuals,
    w = S^T (S S^T / B + damping I)^-1 A / B, which without damping is the shortest w that fits all samples.

    :param scores: S, (B, P)
    :param advantages: A, (B,)
    :param damping: ridge, >= 0; must be positive if the smaller system is singular
    :return: w, (P,)
    :raises torch.linalg.LinAlgError: the system is singular
    """
    n, n_parameters = scores.shape
    if n_parameters <= n:
        return _solve(scores.T @ scores / n, scores.T @ advantages / n, damping)
    return scores.T @ (_solve(scores @ scores.T / n, advantages, damping) / n)


def _solve(gram: Tensor, b: Tensor, damping: float) -> Tensor:
    system = gram.double()
    system.diagonal().add_(damping)
    return th.cholesky_solve(b.double().unsqueeze(1), th.linalg.cholesky(system)).squeeze(1).to(b.dtype)
