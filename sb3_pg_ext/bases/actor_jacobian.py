"""Stable-Baselines3 policies in the terms of :mod:`sb3_pg_ext.functional`: families of distributions and Jacobians."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, distributions, nn

from sb3_pg_ext.functional.curvature import AutogradJacobian, Jacobian, MLPJacobian
from sb3_pg_ext.functional.families import Bernoulli, Categorical, Family, Gaussian
from sb3_pg_ext.rollout.acting import is_plain_mlp


def family_and_parameters(distribution: Any) -> tuple[Family, Tensor]:
    """The family of an SB3 action distribution and its parameters eta (B, D), with their graph.

    Squashed and state-dependent (gSDE) Gaussians are Gaussian before the squashing, which is what counts here.

    :param distribution: what ``policy.get_distribution(obs)`` returned; it is not kept
    :raises TypeError: a distribution of any other kind
    """
    torch_distribution = distribution.distribution
    if isinstance(torch_distribution, distributions.Normal):
        return Gaussian(), th.cat([torch_distribution.mean, torch_distribution.stddev.log()], dim=1)
    if isinstance(torch_distribution, distributions.Bernoulli):
        return Bernoulli(), torch_distribution.logits
    choices = torch_distribution if isinstance(torch_distribution, list) else [torch_distribution]
    if all(isinstance(choice, distributions.Categorical) for choice in choices):
        logits = [choice.logits for choice in choices]
        return Categorical(tuple(part.shape[1] for part in logits)), th.cat(logits, dim=1)
    raise TypeError(
        f"The policy's action distribution {type(distribution).__name__} has no closed-form Fisher matrix here; "
        "diagonal Gaussian (also with gSDE), Categorical, MultiCategorical and Bernoulli have"
    )


def actor_jacobian(policy: Any, obs: Any) -> tuple[Family, Jacobian]:
    """d eta / d theta of the policy at B observations, with theta the parameters that require gradients and move eta.

    In closed form for a plain MLP on the CPU, by autograd for any other net.

    :param policy: an SB3 actor-critic policy
    :param obs: tensor (B, ...) or dict of such
    :raises ValueError: there is no such parameter
    """
    policy = getattr(policy, "_orig_mod", policy)
    if is_plain_mlp(policy) and all(p.requires_grad for p in policy.parameters()):
        return _plain_family(policy), _closed_form(policy, obs)
    family, eta = family_and_parameters(policy.get_distribution(obs))
    return family, AutogradJacobian(eta, _moving(eta, policy))


def _closed_form(policy: Any, obs: Any) -> MLPJacobian:
    features = policy.pi_features_extractor(preprocess_obs(obs, policy.observation_space, policy.normalize_images))
    layers = [*policy.mlp_extractor.policy_net, policy.action_net]
    return MLPJacobian(layers, features, getattr(policy, "log_std", None))


def _plain_family(policy: Any) -> Family:
    width = policy.action_net.out_features
    with th.no_grad():  # one row of zeros: the family does not depend on them
        latent = th.zeros(1, policy.action_net.in_features, dtype=policy.action_net.weight.dtype)
        return family_and_parameters(policy._get_action_dist_from_latent(latent))[0] if width else Gaussian()


def _moving(eta: Tensor, policy: nn.Module) -> list[nn.Parameter]:
    candidates = [p for p in policy.parameters() if p.requires_grad]
    gradients = th.autograd.grad(eta.sum(), candidates, retain_graph=True, allow_unused=True) if candidates else []
    moving = [p for p, g in zip(candidates, gradients, strict=True) if g is not None]
    if not moving:
        raise ValueError("No parameter of the policy that requires a gradient moves its action distribution")
    return moving
