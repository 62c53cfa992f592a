"""Actions as differentiable functions of the policy's outputs and of noise that does not depend on the policy.

    Gaussian      a = mu + sigma z,                       z ~ N(0, 1)
    categorical   a = argmax_k (l_k + g_k),               g ~ Gumbel(0, 1)        so that P(k) = softmax(l)_k
    Bernoulli     a = [l + e > 0],                        e ~ Logistic(0, 1)      so that P(1) = sigmoid(l)

The last two are steps, whose derivative is 0 almost everywhere. The straight-through estimator puts the derivative of
softmax((l + g) / tau), or sigmoid((l + e) / tau), in its place (Bengio, Leonard & Courville 2013; Jang, Gu & Poole
2017; Maddison, Mnih & Teh 2017). It is biased, even for a function f that is linear in the action: the derivative of
E[a] of a Bernoulli action comes out as E[s'((l + e) / tau) / tau], s the sigmoid, in place of s'(l). The bias vanishes
with tau, but the variance then grows as 1 / tau.

Notation: B batch, A numbers, K categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from torch import Tensor
from torch.nn import functional as F


def gaussian(mean: Tensor, log_std: Tensor, z: Tensor) -> Tensor:
    """a = mu + sigma z, all (B, A)."""
    return mean + log_std.exp() * z


def standard_gumbel(like: Tensor) -> Tensor:
    """Gumbel(0, 1) noise in the shape, type and device of ``like``: -log of a standard exponential."""
    exponential = th.empty_like(like).exponential_()
    return -exponential.clamp_min_(th.finfo(like.dtype).tiny).log_()


def standard_logistic(like: Tensor) -> Tensor:
    """Logistic(0, 1) noise in the shape, type and device of ``like``: the difference of two Gumbel variables."""
    return standard_gumbel(like) - standard_gumbel(like)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard`` with the derivative of ``soft``."""
    return hard + (soft - soft.detach())


def categorical(logits: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """One-hot actions, (B, K), of softmax(logits) with the derivative of softmax((logits + gumbel) / temperature)."""
    perturbed = logits + gumbel
    hard = F.one_hot(perturbed.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return straight_through(hard, (perturbed / temperature).softmax(-1))


def categoricals(logits: Tensor, gumbel: Tensor, temperature: float, sizes: Sequence[int]) -> Tensor:
    """:func:`categorical` for several actions at once, side by side: (B, sum of sizes)."""
    parts = zip(logits.split(list(sizes), -1), gumbel.split(list(sizes), -1), strict=True)
    return th.cat([categorical(part, noise, temperature) for part, noise in parts], -1)


def bernoulli(logits: Tensor, logistic: Tensor, temperature: float) -> Tensor:
    """Actions 0 or 1, (B, A), of sigmoid(logits) with the derivative of sigmoid((logits + logistic) / temperature)."""
    perturbed = logits + logistic
    return straight_through((perturbed > 0).to(logits.dtype), (perturbed / temperature).sigmoid())
