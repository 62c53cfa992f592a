"""Action distributions as functions of their parameters: KL divergence, Fisher matrix, score, all in closed form.

A distribution of a family is given by a row eta of D numbers; B of them are (B, D):

===================== ======================================== ==========================================
family                eta                                      Fisher matrix M in eta
===================== ======================================== ==========================================
``Gaussian()``        mean and log standard deviation, (2 A)   diag(1 / s^2, 2)
``Categorical((n,))`` logits (any constant may be added)       diag(p) - p p^T
``Categorical(n)``    logits of several choices, side by side  one such block for each
``Bernoulli()``       logits, (A)                              diag(p (1 - p))
===================== ======================================== ==========================================

M = E_a[score score^T] with score = grad_eta log p(a|eta), which is also the Hessian of KL(p_old || p) at p_old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch as th
from torch import Tensor
from torch.nn import functional as F

Metric = Callable[[Tensor], Tensor]


class Family(Protocol):
    """The mathematics of one family of distributions; B rows, D parameters."""

    def fisher(self, eta: Tensor) -> Metric:
        """The map v -> M(eta) v, row by row, (B, D) -> (B, D)."""

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) of every row, (B, D), (B, D) -> (B,)."""

    def score(self, eta: Tensor, actions: Tensor) -> Tensor:
        """grad_eta log p(a|eta) of every row, (B, D), (B, ...) -> (B, D)."""


@dataclass(frozen=True)
class Gaussian:
    """A independent normal variables; eta = (mean, log std), D = 2 A.

    One-to-one transformations of the action, such as squashing by tanh, change neither KL nor Fisher matrix.
    """

    def fisher(self, eta: Tensor) -> Metric:
        mean, log_std = eta.chunk(2, dim=1)
        weights = th.cat([(-2 * log_std).exp(), th.full_like(mean, 2.0)], dim=1)  # 1 / s^2, 2
        return weights.mul

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        (mean, log_std), (new_mean, new_log_std) = old.chunk(2, dim=1), new.chunk(2, dim=1)
        log_ratio = log_std - new_log_std
        shift = (new_mean - mean) * (-new_log_std).exp()
        return 0.5 * (th.expm1(2 * log_ratio) - 2 * log_ratio + shift.square()).sum(1)

    def score(self, eta: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = eta.chunk(2, dim=1)
        z = (actions.reshape(mean.shape) - mean) * (-log_std).exp()
        return th.cat([z * (-log_std).exp(), z.square() - 1], dim=1)


@dataclass(frozen=True)
class Categorical:
    """One choice out of n for each n of ``sizes``; eta are the logits side by side, D = sum of ``sizes``."""

    sizes: tuple[int, ...]

    def fisher(self, eta: Tensor) -> Metric:
        probabilities = [logits.softmax(1) for logits in self._blocks(eta)]

        def product(v: Tensor) -> Tensor:
            blocks = zip(probabilities, self._blocks(v), strict=True)
            return self._join([p * (u - (p * u).sum(1, keepdim=True)) for p, u in blocks])  # p u - p (p^T u)

        return product

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        pairs = zip(self._blocks(old), self._blocks(new), strict=True)
        return sum(_categorical_kl(*pair) for pair in pairs)  # type: ignore[return-value]

    def score(self, eta: Tensor, actions: Tensor) -> Tensor:
        chosen = actions.long().reshape(len(eta), len(self.sizes)).unbind(1)
        blocks = zip(self._blocks(eta), chosen, self.sizes, strict=True)
        return self._join([F.one_hot(a, n) - logits.softmax(1) for logits, a, n in blocks])

    def _blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.sizes, dim=1)

    def _join(self, blocks: list[Tensor]) -> Tensor:
        return th.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]


def _categorical_kl(old: Tensor, new: Tensor) -> Tensor:
    log_p, log_q = old.log_softmax(1), new.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@dataclass(frozen=True)
class Bernoulli:
    """A independent coins; eta are their logits, D = A."""

    def fisher(self, eta: Tensor) -> Metric:
        return (eta.sigmoid() * (-eta).sigmoid()).mul

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        heads = old.sigmoid() * (F.logsigmoid(old) - F.logsigmoid(new))
        tails = (-old).sigmoid() * (F.logsigmoid(-old) - F.logsigmoid(-new))
        return (heads + tails).sum(1)

    def score(self, eta: Tensor, actions: Tensor) -> Tensor:
        return actions.reshape(eta.shape) - eta.sigmoid()
