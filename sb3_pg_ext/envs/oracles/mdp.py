"""Exact answers for finite decision processes under a policy pi(a|s), given as probabilities ``(S, A)``.

Every function of a policy is differentiable in it: with ``pi = softmax(network(features))`` autograd gives the exact
gradient with respect to the weights of any network. S states, A actions, H horizon. A policy whose states are
aliased may be given as ``(1, A)``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sb3_pg_ext.envs.finite_mdp import FiniteMDP
from sb3_pg_ext.envs.oracles.exact import exact, horizon_and_gamma, steps


class Values(NamedTuple):
    """V ``(H + 1, S)`` and Q ``(H, S, A)`` of a policy for a finite horizon, ``(S,)`` and ``(S, A)`` for none."""

    V: Tensor
    Q: Tensor


class MDPOptimum(NamedTuple):
    """The best return, its values as in :class:`Values`, and a best action for each state: ``(H, S)``, or ``(S,)``."""

    J: Tensor
    V: Tensor
    action: Tensor


def mdp_objective(mdp: FiniteMDP, policy: Any, *, horizon: float | None = None, gamma: float | None = None) -> Tensor:
    """The expected discounted return ``J = E sum_{t<H} gamma^t r_t``; differentiable in the policy.

    :param mdp: the process
    :param policy: probabilities ``(S, A)``
    :param horizon: H; None for the process's own, ``math.inf`` for no limit
    :param gamma: discount; None for the process's own
    :return: a scalar
    :raises ValueError: the infinite sum diverges
    """
    V, _ = mdp_values(mdp, policy, horizon=horizon, gamma=gamma)
    return exact(mdp.start) @ (V if V.ndim == 1 else V[0])


def mdp_values(mdp: FiniteMDP, policy: Any, *, horizon: float | None = None, gamma: float | None = None) -> Values:
    """``Q_t(s,a) = r(s,a) + gamma sum_s' P(s'|s,a) V_{t+1}(s')`` and ``V_t(s) = sum_a pi(a|s) Q_t(s,a)``, ``V_H = 0``.

    Arguments and errors as for :func:`mdp_objective`.
    """
    pi, reward, transition = _probabilities(mdp, policy), exact(mdp.reward), exact(mdp.transition)
    horizon, gamma = horizon_and_gamma(mdp, horizon, gamma)
    if horizon == math.inf:
        forever = _resolvent(_chain(mdp, pi), gamma) @ (pi * reward).sum(-1)
        return Values(forever, reward + gamma * transition @ forever)
    V, Q = [torch.zeros(mdp.n_states, dtype=torch.float64)], []
    for _ in steps(horizon):
        Q.append(reward + gamma * transition @ V[-1])
        V.append((pi * Q[-1]).sum(-1))
    return Values(torch.stack(V[::-1]), torch.stack(Q[::-1]))


def mdp_visitation(mdp: FiniteMDP, policy: Any, *, horizon: float | None = None, gamma: float | None = None) -> Tensor:
    """Discounted visits ``d(s) = sum_{t<H} gamma^t Pr(s_t = s)``, ``(S,)``; gamma = 1 counts them.

    The sum of d is 1 / (1 - gamma) for a process that never ends. Arguments and errors as for :func:`mdp_objective`.
    """
    pi, start = _probabilities(mdp, policy), exact(mdp.start)
    horizon, gamma = horizon_and_gamma(mdp, horizon, gamma)
    if horizon == math.inf:
        return start @ _resolvent(_chain(mdp, pi), gamma)
    chain, visits, now = _chain(mdp, pi), torch.zeros_like(start), start
    for _ in steps(horizon):
        visits, now = visits + now, gamma * now @ chain
    return visits


def mdp_policy_derivative(
    mdp: FiniteMDP,
    policy: Any,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> Tensor:
    """``sum_t w_t Pr(s_t = s) Q_t(s, a)``, ``(S, A)``: dJ / dpi(a|s) by Sutton et al. 2000, theorem 1.

    :param discount_states: ``w_t = gamma^t``; False for ``w_t = 1``. Others as for :func:`mdp_objective`
    :raises ValueError: the infinite sum diverges (also for states that are visited for ever and not discounted)
    """
    pi, start = _probabilities(mdp, policy), exact(mdp.start)
    horizon, gamma = horizon_and_gamma(mdp, horizon, gamma)
    decay = gamma if discount_states else 1.0
    Q = mdp_values(mdp, policy, horizon=horizon, gamma=gamma).Q
    if horizon == math.inf:
        return (start @ _resolvent(_chain(mdp, pi), decay))[:, None] * Q
    chain, derivative, now = _chain(mdp, pi), torch.zeros_like(pi), start
    for Q_t in Q:
        derivative, now = derivative + now[:, None] * Q_t, decay * now @ chain
    return derivative


def mdp_surrogate(
    mdp: FiniteMDP,
    policy: Tensor,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> Tensor:
    """A scalar whose gradient in the policy's parameters is ``E sum_t w_t score_t Q_t``; its value means nothing.

    For ``discount_states=True`` that is the gradient of :func:`mdp_objective`. For False it is what REINFORCE estimates
    without the weight gamma^t, which in general is the gradient of no function.

    Arguments as for :func:`mdp_policy_derivative`; ``policy`` carries the gradient.
    """
    derivative = mdp_policy_derivative(
        mdp, policy.detach(), horizon=horizon, gamma=gamma, discount_states=discount_states
    )
    return (derivative * _probabilities(mdp, policy)).sum()


def mdp_gradient(
    mdp: FiniteMDP,
    logits: Any,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> Tensor:
    """``sum_t w_t Pr(s_t = s) pi(a|s) A_t(s, a)``, ``(S, A)``: the gradient of J for pi = softmax(logits).

    :param logits: ``(S, A)``. Others as for :func:`mdp_policy_derivative`
    """
    pi = exact(logits).detach().softmax(-1)
    derivative = mdp_policy_derivative(mdp, pi, horizon=horizon, gamma=gamma, discount_states=discount_states)
    return pi * (derivative - (pi * derivative).sum(-1, keepdim=True))


def mdp_fisher(
    mdp: FiniteMDP,
    logits: Any,
    *,
    horizon: float | None = None,
    gamma: float | None = None,
    discount_states: bool = True,
) -> Tensor:
    """``E[score score']`` of one step of pi = softmax(logits), ``(S A, S A)``; states count as often as visited.

    For logits that depend on theta through a Jacobian Z ``(S A, P)``, the Fisher matrix of theta is ``Z' F Z``.

    :param discount_states: whether visits are discounted. Others as for :func:`mdp_gradient`
    """
    pi = exact(logits).detach().softmax(-1)
    _, gamma = horizon_and_gamma(mdp, horizon, gamma)
    visits = mdp_visitation(mdp, pi, horizon=horizon, gamma=gamma if discount_states else 1.0)
    return softmax_fisher(pi, visits / visits.sum())


def softmax_fisher(policy: Any, state_weights: Any) -> Tensor:
    """Blocks ``w(s) (diag(pi_s) - pi_s pi_s')``: policy ``(S, A)``, weights ``(S,)`` -> ``(S A, S A)``."""
    blocks = [w * (torch.diag(p) - torch.outer(p, p)) for p, w in zip(exact(policy), exact(state_weights), strict=True)]
    return torch.block_diag(*blocks)


def natural_gradient(fisher: Tensor, gradient: Tensor) -> Tensor:
    """``F^+ g``: the shortest solution of F x = g, in the shape of ``gradient``.

    :param fisher: ``(P, P)``; may be singular, as that of a softmax always is
    :param gradient: P numbers, in any shape
    """
    return (torch.linalg.pinv(fisher, hermitian=True) @ gradient.flatten()).reshape(gradient.shape)


def stationary_distribution(mdp: FiniteMDP, policy: Any) -> Tensor:
    """``rho = rho P_pi``, ``(S,)``, for a process that never ends and whose chain has one recurrent class."""
    chain = _chain(mdp, _probabilities(mdp, policy))
    ones = torch.ones_like(chain)
    # rho (I - P + 1 1') = rho 1 1' = 1', because rho sums to one.
    return torch.linalg.solve((torch.eye(len(chain), dtype=chain.dtype) - chain + ones).T, ones[0])


def average_reward(mdp: FiniteMDP, policy: Any) -> Tensor:
    """``sum_s rho(s) sum_a pi(a|s) r(s, a)``: the mean reward of a step, after infinitely many; differentiable."""
    pi = _probabilities(mdp, policy)
    return (stationary_distribution(mdp, policy)[:, None] * pi * exact(mdp.reward)).sum()


def mdp_optimum(mdp: FiniteMDP, *, horizon: float | None = None, gamma: float | None = None) -> MDPOptimum:
    """The best that a policy which sees the state (and the time, for a finite horizon) can do.

    :raises ValueError: the values do not converge: gamma = 1 and the process need not end
    """
    horizon, gamma = horizon_and_gamma(mdp, horizon, gamma)
    start = exact(mdp.start)
    if horizon == math.inf:
        action = _value_iteration(mdp, gamma)
        best = mdp_values(mdp, F.one_hot(action, mdp.n_actions), horizon=horizon, gamma=gamma).V
        return MDPOptimum(start @ best, best, action)
    V, actions = [torch.zeros(mdp.n_states, dtype=torch.float64)], []
    for _ in steps(horizon):
        best, action = _lookahead(mdp, V[-1], gamma)
        V.append(best)
        actions.append(action)
    return MDPOptimum(start @ V[-1], torch.stack(V[::-1]), torch.stack(actions[::-1]))


def _lookahead(mdp: FiniteMDP, V: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The best one-step return and its action, of each state: two times ``(S,)``."""
    best, action = (exact(mdp.reward) + gamma * exact(mdp.transition) @ V).max(-1)
    return best, action


def _value_iteration(mdp: FiniteMDP, gamma: float, tolerance: float = 1e-11, limit: int = 20_000) -> Tensor:
    V = torch.zeros(mdp.n_states, dtype=torch.float64)
    for _ in range(limit):
        best, action = _lookahead(mdp, V, gamma)
        if (best - V).abs().max() <= tolerance * (1 + V.abs().max()):
            return action
        V = best
    raise ValueError(f"gamma={gamma}: the optimal values did not converge; give a horizon or a smaller gamma")


def _probabilities(mdp: FiniteMDP, policy: Any) -> Tensor:
    pi = exact(policy)
    if pi.shape not in ((mdp.n_states, mdp.n_actions), (1, mdp.n_actions)):
        raise ValueError(f"policy has the shape {tuple(pi.shape)}; {(mdp.n_states, mdp.n_actions)} is needed")
    if not torch.allclose(pi.detach().sum(-1), torch.ones(len(pi), dtype=pi.dtype), atol=1e-5):
        raise ValueError("policy: the rows must be probabilities (logits go through a softmax first)")
    return pi.expand(mdp.n_states, -1)


def _chain(mdp: FiniteMDP, pi: Tensor) -> Tensor:
    """``P_pi(s, s') = sum_a pi(a|s) P(s'|s, a)``, ``(S, S)``."""
    return torch.einsum("sa,saz->sz", pi, exact(mdp.transition))


def _resolvent(chain: Tensor, gamma: float) -> Tensor:
    """``sum_t gamma^t P^t = (I - gamma P)^-1``, ``(S, S)``.

    :raises ValueError: the sum diverges
    """
    radius = gamma * torch.linalg.eigvals(chain.detach()).abs().max().item()
    if radius > 1 - 1e-12:
        raise ValueError("horizon=inf needs a discount below 1 here: under this policy the process need not end")
    return torch.linalg.inv(torch.eye(len(chain), dtype=chain.dtype) - gamma * chain)
