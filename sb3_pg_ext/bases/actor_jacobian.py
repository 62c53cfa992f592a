"""Stable-Baselines3 policies in the terms of :mod:`sb3_pg_ext.functional`: families of distributions and Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from sb3_pg_ext.bases.on_policy import LogDensity
from sb3_pg_ext.functional.families import Bernoulli, Categorical, Family, Gaussian
from sb3_pg_ext.functional.jacobian import AutogradJacobian, Jacobian, MLPJacobian, score_matrix
from sb3_pg_ext.rollout.acting import is_plain_mlp

# Squashed and state-dependent (gSDE) Gaussians are Gaussian before the squashing, which is what counts.
_FAMILIES: dict[type, Callable[[Any], Family]] = {
    sb3.DiagGaussianDistribution: lambda _: Gaussian(),
    sb3.StateDependentNoiseDistribution: lambda _: Gaussian(),
    sb3.CategoricalDistribution: lambda one: Categorical((int(one.action_dim),)),
    sb3.MultiCategoricalDistribution: lambda several: Categorical(tuple(int(n) for n in several.action_dims)),
    sb3.BernoulliDistribution: lambda _: Bernoulli(),
}


def family_of(distribution: Any) -> Family:
    """The family that an SB3 action distribution belongs to.

    :raises TypeError: to none of those with a closed form
    """
    for kind, family in _FAMILIES.items():
        if isinstance(distribution, kind):
            return family(distribution)
    raise TypeError(
        f"The action distribution {type(distribution).__name__} has no closed-form Fisher matrix here; "
        f"allowed are {', '.join(kind.__name__ for kind in _FAMILIES)}"
    )


def parameters_of(distribution: Any) -> Tensor:
    """eta (B, D) of an SB3 action distribution, as its family has them, with their graph."""
    inner = distribution.distribution
    if isinstance(inner, list):
        return th.cat([choice.logits for choice in inner], dim=1)
    if isinstance(inner, th.distributions.Normal):
        return th.cat([inner.mean, inner.stddev.log()], dim=1)
    logits: Tensor = inner.logits
    return logits


def actor_jacobian(policy: Any, obs: Any) -> Jacobian:
    """d eta / d theta of a policy at B observations; theta are its parameters that require gradients and move eta.

    In closed form for a plain MLP on the CPU, by autograd for any other net.

    :param policy: an SB3 actor-critic policy
    :param obs: tensor (B, ...) or dict of such
    :raises ValueError: there is no such parameter
    """
    plain = getattr(policy, "_orig_mod", policy)
    if is_plain_mlp(plain) and all(p.requires_grad for p in plain.parameters()):
        return _closed_form(policy, obs)
    eta = parameters_of(policy.get_distribution(obs))
    return AutogradJacobian(eta, _moving(eta, policy))


def actor_scores(policy: Any, obs: Any, actions: Tensor, jacobian: Jacobian) -> Tensor:
    """grad_theta log pi(a_b|s_b) of every step, (B, P), with theta as in ``jacobian``.

    :param obs: tensor (B, ...) or dict of such
    :param actions: (B, ...) as the policy sampled them
    :param jacobian: what :func:`actor_jacobian` gave for this policy, at whatever observations
    """
    if isinstance(jacobian, MLPJacobian):
        at_obs = _closed_form(policy, obs)
        return at_obs.rows(family_of(policy.action_dist).score(at_obs.eta, actions))
    return score_matrix(LogDensity(policy), jacobian.parameters, (obs, actions))


def _closed_form(policy: Any, obs: Any) -> MLPJacobian:
    policy = getattr(policy, "_orig_mod", policy)
    features = policy.pi_features_extractor(preprocess_obs(obs, policy.observation_space, policy.normalize_images))
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    return MLPJacobian(layers, features, getattr(policy, "log_std", None))


def _moving(eta: Tensor, policy: nn.Module) -> list[nn.Parameter]:
    candidates = [p for p in policy.parameters() if p.requires_grad]
    gradients = th.autograd.grad(eta.sum(), candidates, retain_graph=True, allow_unused=True) if candidates else []
    moving = [p for p, g in zip(candidates, gradients, strict=True) if g is not None]
    if not moving:
        raise ValueError("No parameter of the policy that requires a gradient moves its action distribution")
    return moving
