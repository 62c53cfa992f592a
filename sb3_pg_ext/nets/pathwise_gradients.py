"""The two gradients of a pathwise actor-critic: by autograd for any nets, in closed form for perceptrons of vectors.

critic   grad_w sum_i mean_b (Q_i(s_b, a_b) - target_b)^2
actor    grad_theta mean_b [-Q_1(s_b, pi(s_b, z_b)) - c H(pi(.|s_b))]
"""

from __future__ import annotations

from typing import Any, Protocol

import torch as th
from torch import Tensor, nn
from torch.linalg import vector_norm

from sb3_pg_ext.functional.jacobian import unflatten
from sb3_pg_ext.nets.ensemble_critics import EnsembleCritic
from sb3_pg_ext.nets.fused import FusedMlp, can_be_fused
from sb3_pg_ext.nets.gradient import Gradient, gradient
from sb3_pg_ext.nets.heads import Head
from sb3_pg_ext.nets.reparametrised import Actor


class Gradients(Protocol):
    """Both gradients, computed outside of any graph; of each net those that were computed last are valid."""

    def critic(self, obs: Any, codes: Tensor, targets: Tensor) -> tuple[Gradient, Tensor]:
        """For targets (B,) of the actions (B, C); and the mean of Q_1 at them."""

    def actor(self, obs: Any, temperature: float, ent_coef: float) -> tuple[Gradient, Tensor]:
        """With fresh noise; and the mean entropy, 0 if it counts for nothing."""


def gradients_of(actor: Actor, critic: EnsembleCritic) -> Gradients:
    """The fastest way to them."""
    plain = actor.is_plain and critic.is_plain and can_be_fused(actor.net) and can_be_fused(critic.q_net)
    return ClosedForm(actor, critic) if plain else ByAutograd(actor, critic)


class ByAutograd:
    """For any nets."""

    def __init__(self, actor: Actor, critic: EnsembleCritic):
        self.nets = actor, critic

    @th.enable_grad()
    def critic(self, obs: Any, codes: Tensor, targets: Tensor) -> tuple[Gradient, Tensor]:
        _, critic = self.nets
        q = critic(obs, codes)
        return gradient((q - targets).square().mean(1).sum(), _learned(critic)), q.detach()[0].mean()

    @th.enable_grad()
    def actor(self, obs: Any, temperature: float, ent_coef: float) -> tuple[Gradient, Tensor]:
        actor, critic = self.nets
        y, head = actor.outputs(obs), actor.head
        z = head.noise(y)
        value = critic(obs, head.code(y, z, temperature))[0].mean()
        entropy = head.entropy(y, z).mean() if ent_coef else y.new_zeros(())
        return gradient(-value - ent_coef * entropy, _learned(actor)), entropy.detach()


def _learned(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


class ClosedForm:
    """For perceptrons of vectors: a chain of few products, without autograd's bookkeeping."""

    def __init__(self, actor: Actor, critic: EnsembleCritic):
        self.nets = actor, critic
        self.pi, self.q = FusedMlp(actor.net), FusedMlp(critic.q_net)
        self.of_actor, self.of_critic = _parts(actor), _parts(critic)
        self.codes_enter, self.nothing = not critic.linear, self.of_actor[0].new_zeros(())

    def critic(self, obs: Any, codes: Tensor, targets: Tensor) -> tuple[Gradient, Tensor]:
        flat, parts = self.of_critic
        kept = self.q(self._seen(obs, codes))
        q = kept[-1] if self.codes_enter else (kept[-1] * codes).sum(2, keepdim=True)  # (n, B, 1)
        error, batch_size = q - targets.unsqueeze(1), targets.shape[0]
        loss = error.square().sum() / batch_size
        cotangent = error * (2 / batch_size)
        self.q.pull(kept, cotangent if self.codes_enter else cotangent * codes, parts)
        return Gradient(loss, parts, vector_norm(flat).item()), q[0].mean()

    def _seen(self, obs: Any, codes: Tensor) -> Tensor:
        """What the critics' perceptrons take."""
        critic = self.nets[1]
        return critic.inputs(obs, codes) if self.codes_enter else critic.features(obs)

    def value_and_slope(self, obs: Any, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of Q_1, and the derivative of its negative in the codes, (B, C)."""
        kept, n = self.q(self._seen(obs, codes), 1), codes.shape[0]
        if not self.codes_enter:
            return (kept[-1][0] * codes).sum() / n, kept[-1][0] / -n
        slope = self.q.pull_inputs(kept, th.full_like(kept[-1], -1 / n), 1)
        return kept[-1].mean(), slope[:, -codes.shape[1] :]

    def actor(self, obs: Any, temperature: float, ent_coef: float) -> tuple[Gradient, Tensor]:
        actor, _ = self.nets
        head, (flat, parts) = actor.head, self.of_actor
        kept = self.pi(actor.features(obs))
        y = kept[-1]
        z = head.noise(y)
        codes = head.code(y, z, temperature)
        value, slope = self.value_and_slope(obs, codes)
        loss, entropy = -value, self.nothing
        to_head = head.pull(y, z, codes, temperature, slope)
        if ent_coef:
            entropy, of_entropy = _entropy_and_gradient(head, y, z)
            loss = loss - ent_coef * entropy
            th._foreach_add_(to_head, of_entropy, alpha=-ent_coef)
        to_net, *to_shared = to_head
        self.pi.pull(kept, to_net, parts[len(to_shared) :])
        for part, cotangent in zip(parts, to_shared, strict=False):
            part.copy_(cotangent)
        return Gradient(loss, parts, vector_norm(flat).item()), entropy


@th.enable_grad()
def _entropy_and_gradient(head: Head, y: Tensor, z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The mean entropy, and its gradient for the outputs and for what the head has learned itself."""
    y = y.detach().requires_grad_()
    entropy = head.entropy(y, z).mean()
    inner = [y, *head.parameters()]
    if not entropy.requires_grad:  # a Gaussian whose sigma stays as it is
        return entropy, tuple(th.zeros_like(x) for x in inner)
    gradients = th.autograd.grad(entropy, inner, allow_unused=True)
    return entropy.detach(), tuple(th.zeros_like(x) if g is None else g for x, g in zip(inner, gradients, strict=True))


def _parts(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """A vector for the gradient of all parameters, and its parts in their shapes."""
    parameters = list(net.parameters())
    flat = th.zeros_like(th.nn.utils.parameters_to_vector(parameters)).detach()
    return flat, unflatten(flat, parameters)
