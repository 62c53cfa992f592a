"""A loss together with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from torch import Tensor, nn


class Gradient(NamedTuple):
    """A loss, and its gradient for each of some parameters.

    :param loss: a number
    :param parts: in the order of the parameters; None for one that has no part in the loss
    :param norm: of them all
    """

    loss: Tensor
    parts: Sequence[Tensor | None]
    norm: float


def gradient(loss: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> Gradient:
    """By autograd.

    :param keep_graph: other losses stand on the same graph
    """
    parts = th.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)
    norm = nn.utils.get_total_norm([part for part in parts if part is not None])
    return Gradient(loss.detach(), parts, norm.item())
