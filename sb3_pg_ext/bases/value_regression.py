"""Regression of V(s) on given targets, where small nets cost little more than their matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.functional.jacobian import MLPJacobian, has_closed_form, unflatten
from sb3_pg_ext.rollout.acting import is_plain_mlp
from sb3_pg_ext.rollout.episodes import Rollout

Step = Callable[[Tensor], Tensor]


def fit_values(model: OnPolicyBase, rollout: Rollout, targets: Tensor, n_epochs: int, batch_size: int | None) -> Tensor:
    """Take ``n_epochs`` epochs of optimizer steps down c_V E[(V(s) - target)^2].

    Each step's gradient is clipped to ``max_grad_norm``. Parameters that require no gradient stay as they are.

    :param model: the algorithm; its policy and optimizer, ``vf_coef``, ``max_grad_norm`` and ``rng`` are used
    :param targets: (B,)
    :param batch_size: steps in a minibatch at most; None for all of them
    :return: the squared error, averaged over all minibatches
    :raises NonFiniteError: a gradient is not finite; its step is not taken
    """
    plain = is_plain_mlp(model.policy) and _is_plain_critic(model.policy)
    descend = (_closed_form_step if plain else _autograd_step)(model, rollout, targets)
    losses = [descend(i) for _ in range(n_epochs) for i in rollout.epoch(batch_size, model.rng)]
    return th.stack(losses).mean()


def _autograd_step(model: OnPolicyBase, rollout: Rollout, targets: Tensor) -> Step:
    def descend(index: Tensor) -> Tensor:
        values = model.policy.predict_values(rollout.observations_at(index)).flatten()
        loss = F.mse_loss(values, targets[index])
        model.descend(value=model.vf_coef * loss)
        return loss.detach()

    return descend


def _critic_layers(policy: Any) -> list[nn.Module]:
    return [*policy.mlp_extractor.value_net, policy.value_net]


def _is_plain_critic(policy: Any) -> bool:
    """Whether the critic of a policy that is a plain MLP is one as well, and all of it learns."""
    layers = _critic_layers(policy)
    stock = type(policy).predict_values is ActorCriticPolicy.predict_values and "predict_values" not in vars(policy)
    learns = all(p.requires_grad for layer in layers for p in layer.parameters())
    return stock and learns and has_closed_form(layers) and not list(policy.vf_features_extractor.parameters())


def _closed_form_step(model: OnPolicyBase, rollout: Rollout, targets: Tensor) -> Step:
    """The same without autograd, whose bookkeeping takes longer than the products of a small net."""
    policy = model.policy
    obs = preprocess_obs(rollout.observations, policy.observation_space, policy.normalize_images)
    features, layers = policy.vf_features_extractor(obs), _critic_layers(policy)

    V = MLPJacobian(layers, features[:1])
    gradient = features.new_empty(sum(p.numel() for p in V.parameters))
    parts = unflatten(gradient, V.parameters)

    def descend(index: Tensor) -> Tensor:
        error = V.at(features[index]).eta - targets[index].unsqueeze(1)
        loss = error.square().mean()
        V.pull_into(error.mul_(2 * model.vf_coef / len(index)), parts)  # d loss / d theta = E[2 c_V error J]
        norm = gradient.norm().item()
        model._check_gradient("value", loss, norm)
        gradient.mul_(min(1.0, model.max_grad_norm / (norm + 1e-6)))
        policy.optimizer.step()
        return loss

    for parameter, part in zip(V.parameters, parts, strict=True):
        parameter.grad = part
    return descend


def fuse_adam(optimizer: th.optim.Optimizer) -> None:
    """Let Adam on the CPU step all parameters in one kernel, unless its owner chose otherwise: the same, faster."""
    for group in optimizer.param_groups if type(optimizer) is th.optim.Adam else []:
        on_cpu = all(p.device.type == "cpu" and p.is_floating_point() for p in group["params"])
        if on_cpu and group["fused"] is None and not (group["foreach"] or group["differentiable"]):
            group["fused"] = True


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient reaches ``parameters`` inside the block."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, learns in zip(parameters, before, strict=True):
            parameter.requires_grad_(learns)
