"""Whole laws of gradient estimators, where they can be had: by enumeration, or by quadrature over a normal action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sb3_pg_ext.envs.finite_mdp import FiniteMDP
from sb3_pg_ext.envs.oracles.exact import exact

Estimator = Literal["score", "pathwise"]
Parameter = Literal["mean", "log_std"]
Baseline = float | Literal["value", "optimal"] | None


class Trajectories(NamedTuple):
    """All M trajectories of T steps that have a chance to occur; steps that are not live stand after the end.

    probability ``(M,)``; states, actions ``(M, T)`` int64; rewards ``(M, T)``; live ``(M, T)`` bool
    """

    probability: Tensor
    states: Tensor
    actions: Tensor
    rewards: Tensor
    live: Tensor


def enumerate_trajectories(mdp: FiniteMDP, policy: Any, horizon: int) -> Trajectories:
    """Write out every trajectory of a tiny process; their number grows as (S A)^T.

    :param policy: probabilities ``(S, A)``
    :param horizon: T
    """
    pi = exact(policy).detach().expand(mdp.n_states, -1).numpy()
    starts = ((p, s) for s, p in enumerate(mdp.start) if p > 0)
    found = [one for p, s in starts for one in _continuations(mdp, pi, float(p), s, horizon)]
    probability = torch.tensor([p for p, _ in found], dtype=torch.float64)
    states, actions = torch.zeros(2, len(found), horizon, dtype=torch.int64)
    live = torch.zeros(len(found), horizon, dtype=torch.bool)
    for row, (_, path) in enumerate(found):
        for t, (state, action) in enumerate(path):
            states[row, t], actions[row, t], live[row, t] = state, action, True
    return Trajectories(probability, states, actions, exact(mdp.reward)[states, actions] * live, live)


Path = tuple[tuple[int, int], ...]


def _continuations(mdp: FiniteMDP, pi: np.ndarray, p: float, state: int, left: int) -> Iterator[tuple[float, Path]]:
    """Probabilities and (state, action) pairs of everything that may follow within ``left`` steps."""
    for action in np.flatnonzero(pi[state]):
        here, p_action = ((state, int(action)),), p * pi[state, action]
        row = mdp.transition[state, action]
        p_end = 1.0 if left == 1 else 1 - row.sum()
        if p_end > 1e-12:
            yield p_action * p_end, here
        for after in np.flatnonzero(row) if left > 1 else ():
            for p_path, path in _continuations(mdp, pi, p_action * row[after], int(after), left - 1):
                yield p_path, here + path


def optimal_baseline(probability: Any, squared_scores: Any, returns: Any) -> Tensor:
    """``E[|score|^2 Psi] / E[|score|^2]``: the constant that minimises the variance of ``score (Psi - b)``.

    :param probability: of M outcomes ``(M,)``
    :param squared_scores: ``|score|^2``, ``(M,)`` or ``(M, T)`` for a baseline of each step
    :param returns: what the score is multiplied with, shaped alike
    :return: a scalar, or ``(T,)``
    """
    weight = torch.einsum("m,m...->m...", exact(probability), exact(squared_scores))
    return (weight * exact(returns)).sum(0) / weight.sum(0)


def estimator_variance(probability: Any, estimates: Any) -> Tensor:
    """Trace of the covariance of an estimator that takes the values ``(M, P)`` with probabilities ``(M,)``."""
    p, g = exact(probability)[:, None], exact(estimates)
    return (p * g**2).sum() - ((p * g).sum(0) ** 2).sum()


def gaussian_estimator_moments(
    reward: Callable[[Tensor], Tensor],
    mean: float,
    std: float,
    estimator: Estimator = "score",
    baseline: Baseline = None,
    parameter: Parameter = "mean",
    n_nodes: int = 32,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of one sample's estimate of ``d/dparameter E f(a)``, a ~ N(mean, std^2).

    ``"score"`` is ``score(a) (f(a) - b)``, ``"pathwise"`` is ``f'(mean + std z) da/dparameter``. The expectations are
    Gauss-Hermite sums, exact for polynomials of degree below ``2 n_nodes``. For f = a^2 at (1, 1) the variances are 30
    without a baseline, 18 with ``"value"`` (b = E f), 14 with ``"optimal"``, and 4 pathwise.

    :param reward: f, on a tensor of actions
    :param baseline: b: a number, ``"value"``, ``"optimal"`` or None
    :param parameter: ``"mean"`` or ``"log_std"``
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    z, p = exact(nodes), exact(weights / weights.sum())
    action = (mean + std * z).requires_grad_()
    value = reward(action)
    (slope,) = torch.autograd.grad(value.sum(), action)
    score, velocity = (z / std, torch.ones_like(z)) if parameter == "mean" else (z**2 - 1, std * z)
    if estimator == "pathwise":
        estimates = slope * velocity
    else:
        estimates = score * (value.detach() - _baseline_value(baseline, p, score, value.detach()))
    average = (p * estimates).sum()
    return average, (p * (estimates - average) ** 2).sum()


def _baseline_value(baseline: Baseline, p: Tensor, score: Tensor, value: Tensor) -> Tensor | float:
    if baseline == "value":
        return (p * value).sum()
    if baseline == "optimal":
        return optimal_baseline(p, score**2, value)
    if isinstance(baseline, str):
        raise ValueError(f"baseline={baseline!r}: allowed are a number, 'value', 'optimal' and None")
    return baseline or 0.0
