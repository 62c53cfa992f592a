"""What an update may be an estimate of: exact vectors of a testbed at the policy of a model, (P,) in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch import Tensor

from sb3_pg_ext.diagnostics.testbeds import Net, SearchBed, Testbed, net_of
from sb3_pg_ext.envs.oracles import natural_gradient as solved

#: How far the policy that acts is from the one whose gradient is estimated, for estimators that can do with another.
SHIFT = 0.25


def gradient(bed: Testbed, model: Any) -> Tensor:
    """grad J, the gradient of the expected discounted return."""
    net = net_of(model.policy)
    return net.gradient(bed.objective(bed.law(net)))


def _surrogate_gradient(bed: Testbed, net: Net, discount_states: bool, **critic: Any) -> Tensor:
    law = bed.law(net)
    return net.gradient(bed.surrogate(law, law.detach(), discount_states, **critic))


def gradient_undiscounted_states(bed: Testbed, model: Any) -> Tensor:
    """E[sum_t score_t Q_t], the usual practice: grad J without its weights gamma^t."""
    return _surrogate_gradient(bed, net_of(model.policy), discount_states=False)


def gradient_with_critic(bed: Testbed, model: Any) -> Tensor:
    """E[sum_t w_t score_t Q_t], Q_t as GAE(lambda) has it from the model's critic V: right if V is, or lambda = 1."""
    net = net_of(model.policy)
    discount_states = getattr(model, "discount_states", False)
    return _surrogate_gradient(bed, net, discount_states, critic=bed.critic(net), lam=model.gae_lambda)


def gradient_at_old_states(bed: Testbed, model: Any) -> Tensor:
    """E_old[sum_t w_t rho_t score_t Q_t]: states and returns are those of the policy that acted."""
    net, old = net_of(model.policy), net_of(model.policy)
    with th.no_grad():
        bed.place(old.policy, SHIFT)
    surrogate = bed.surrogate(bed.law(net), bed.law(old).detach(), getattr(model, "discount_states", False))
    return net.gradient(surrogate)


def natural_gradient(bed: Testbed, model: Any, discount_states: bool = True) -> Tensor:
    """F^-1 g, g = grad J and F = E[score score^T], both of one step; ``cg_damping`` of the model is added to F."""
    net = net_of(model.policy)
    F = bed.fisher(net, discount_states) + getattr(model, "cg_damping", 0.0) * th.eye(len(_flat(net)), dtype=th.float64)
    g = _surrogate_gradient(bed, net, discount_states) / sum(bed.weights(discount_states))
    return solved(F, g)


def natural_gradient_undiscounted_states(bed: Testbed, model: Any) -> Tensor:
    """F^-1 g, both without the weights gamma^t of the steps: what practice calls the natural gradient."""
    return natural_gradient(bed, model, discount_states=False)


def smoothed_gradient(bed: Testbed, model: Any) -> Tensor:
    """Gradient of E[J(theta + std e)], e ~ N(0, I): std is the ``delta`` or the ``sigma`` of the model."""
    assert isinstance(bed, SearchBed)
    return bed.smoothed_gradient(net_of(model.policy), model.delta if hasattr(model, "delta") else model.sigma)


def _flat(net: Net) -> Tensor:
    return th.cat([parameter.flatten() for parameter in net.parameters])


TARGETS: dict[str, Callable[[Testbed, Any], Tensor]] = {
    function.__name__: function
    for function in (
        gradient,
        gradient_undiscounted_states,
        gradient_with_critic,
        gradient_at_old_states,
        natural_gradient,
        natural_gradient_undiscounted_states,
        smoothed_gradient,
    )
}
