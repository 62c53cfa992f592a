"""How the outputs of a net and noise become an action that can be differentiated, one class for each kind of action.

A *code* is an action as the critics see it, C numbers: a ``Box`` action scaled to [-1, 1], unit vectors for
``Discrete`` and ``MultiDiscrete`` ones, bits for ``MultiBinary`` ones.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_pg_ext.functional import reparametrisation as R

#: sigma(s) of the state, one sigma for all states, or one that stays as it is.
Std = Literal["state", "shared", "fixed"]
LOG_STD_BOUNDS = (-5.0, 2.0)


class Head(nn.Module):
    """How the outputs of a net, (B, P), and noise become codes, (B, C)."""

    n_outputs: int
    n_codes: int

    def noise(self, y: Tensor) -> Tensor:
        """z for each row of the outputs ``y``."""
        raise NotImplementedError

    def code(self, y: Tensor, z: Tensor, temperature: float) -> Tensor:
        """pi(s, z), differentiable in ``y``; discrete ones as if they were softened by ``temperature``."""
        raise NotImplementedError

    def pull(self, y: Tensor, z: Tensor, codes: Tensor, temperature: float, cotangent: Tensor) -> list[Tensor]:
        """The derivative of :meth:`code` backwards: from a cotangent of the codes to those of ``y`` and of what the
        head has learned itself.
        """
        raise NotImplementedError

    def mode(self, y: Tensor) -> Tensor:
        """The code of the most likely action."""
        raise NotImplementedError

    def entropy(self, y: Tensor, z: Tensor) -> Tensor:
        """Entropy of pi(.|s), (B,); of squashed actions an unbiased estimate from z."""
        raise NotImplementedError

    def encode(self, actions: Tensor) -> Tensor:
        """Actions of the replay buffer, (B, A), to codes."""
        return actions

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to actions, (B, ...)."""
        return codes


class GaussianHead(Head):
    """a = mu + sigma z, or tanh of it. The outputs are mu and, if sigma depends on the state, log sigma beside it.

    :param n: A
    :param squash: tanh; otherwise actions are clipped to [-1, 1] where they are executed, but not for the critics
    :param std: what sigma depends on
    :param std_init: its first value
    """

    log_std: Tensor

    def __init__(self, n: int, squash: bool, std: Std, std_init: float):
        super().__init__()
        self.n_codes, self.squash, self.std = n, squash, std
        self.n_outputs = 2 * n if std == "state" else n
        log_std = th.full((n,), math.log(std_init))
        if std == "shared":
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def mean_and_log_std(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A) and (B, A), or (A,) if all states share it, before it is clamped; with ``"state"`` what is learned is
        the factor to ``std_init``.
        """
        if self.std != "state":
            return y, self.log_std
        mean, log_factor = y.chunk(2, dim=1)
        return mean, self.log_std + log_factor

    def noise(self, y: Tensor) -> Tensor:
        return th.randn(y.shape[0], self.n_codes, dtype=y.dtype, device=y.device)

    def code(self, y: Tensor, z: Tensor, temperature: float = 1.0) -> Tensor:
        mean, log_std = self.mean_and_log_std(y)
        actions = R.gaussian(mean, log_std.clamp(*LOG_STD_BOUNDS), z)
        return actions.tanh() if self.squash else actions

    def pull(self, y: Tensor, z: Tensor, codes: Tensor, temperature: float, cotangent: Tensor) -> list[Tensor]:
        to_mean = th.ops.aten.tanh_backward(cotangent, codes) if self.squash else cotangent
        if self.std == "fixed":
            return [to_mean]
        _, log_std = self.mean_and_log_std(y)
        to_clamped = to_mean * z * log_std.clamp(*LOG_STD_BOUNDS).exp()
        to_log_std = th.ops.aten.hardtanh_backward(to_clamped, log_std.expand_as(z), *LOG_STD_BOUNDS)
        return [to_mean, to_log_std.sum(0)] if self.std == "shared" else [th.cat([to_mean, to_log_std], 1)]

    def mode(self, y: Tensor) -> Tensor:
        mean = y[:, : self.n_codes]
        return mean.tanh() if self.squash else mean

    def entropy(self, y: Tensor, z: Tensor) -> Tensor:
        mean, log_std = self.mean_and_log_std(y)
        log_std = log_std.clamp(*LOG_STD_BOUNDS)
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e) + th.zeros_like(mean)
        if self.squash:
            u = R.gaussian(mean, log_std, z)
            entropy = entropy + 2 * (math.log(2) - u - F.softplus(-2 * u))  # log(1 - tanh(u)^2)
        return entropy.sum(1)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.clamp(-1, 1)


class CategoricalHead(Head):
    """One or several choices, by Gumbel-softmax; the outputs are logits.

    :param sizes: K of each choice
    :param shape: of an action
    """

    def __init__(self, sizes: list[int], shape: tuple[int, ...]):
        super().__init__()
        self.sizes, self.shape = sizes, shape
        self.n_codes = self.n_outputs = sum(sizes)

    def noise(self, y: Tensor) -> Tensor:
        return R.standard_gumbel(y)

    def code(self, y: Tensor, z: Tensor, temperature: float) -> Tensor:
        return R.categoricals(y, z, temperature, self.sizes)

    def pull(self, y: Tensor, z: Tensor, codes: Tensor, temperature: float, cotangent: Tensor) -> list[Tensor]:
        parts = zip(((y + z) / temperature).split(self.sizes, 1), cotangent.split(self.sizes, 1), strict=True)
        soft = [(logits.softmax(1), part) for logits, part in parts]
        pulled = [p * (part - (p * part).sum(1, keepdim=True)) for p, part in soft]
        return [th.cat(pulled, 1) / temperature]

    def mode(self, y: Tensor) -> Tensor:
        parts = y.split(self.sizes, 1)
        return th.cat([F.one_hot(part.argmax(1), part.shape[1]).to(part.dtype) for part in parts], 1)

    def entropy(self, y: Tensor, z: Tensor) -> Tensor:
        logs = [part.log_softmax(1) for part in y.split(self.sizes, 1)]
        return -th.stack([(log.exp() * log).sum(1) for log in logs]).sum(0)

    def encode(self, actions: Tensor) -> Tensor:
        columns = actions.long().unbind(1)
        return th.cat([F.one_hot(column, k) for column, k in zip(columns, self.sizes, strict=True)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        return th.stack([part.argmax(1) for part in codes.split(self.sizes, 1)], 1).reshape(-1, *self.shape)


class BernoulliHead(Head):
    """Bits, by the two-sided form of Gumbel-softmax; the outputs are logits.

    :param n: A
    """

    def __init__(self, n: int):
        super().__init__()
        self.n_codes = self.n_outputs = n

    def noise(self, y: Tensor) -> Tensor:
        return R.standard_logistic(y)

    def code(self, y: Tensor, z: Tensor, temperature: float) -> Tensor:
        return R.bernoulli(y, z, temperature)

    def pull(self, y: Tensor, z: Tensor, codes: Tensor, temperature: float, cotangent: Tensor) -> list[Tensor]:
        p = ((y + z) / temperature).sigmoid()
        return [cotangent * p * (1 - p) / temperature]

    def mode(self, y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)

    def entropy(self, y: Tensor, z: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(y, y.sigmoid(), reduction="none").sum(1)


def head_of(space: spaces.Space, squash: bool, std: Std, std_init: float) -> Head:
    """The head for actions of ``space``; what remains is for ``Box`` actions."""
    match space:
        case spaces.Discrete():
            return CategoricalHead([int(space.n)], ())
        case spaces.MultiDiscrete():
            return CategoricalHead(space.nvec.flatten().tolist(), space.shape)
        case spaces.MultiBinary():
            return BernoulliHead(int(np.prod(space.shape)))
    return GaussianHead(get_action_dim(space), squash, std, std_init)
