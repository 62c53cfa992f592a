"""Target networks."""

from __future__ import annotations

import torch as th
from torch import Tensor, nn


class Follower:
    """target <- target + tau (online - target), for all parameters in one fused step; other tensors are copied.

    :param online: the learned net
    :param target: a net of the same make, which is made equal to it
    """

    def __init__(self, online: nn.Module, target: nn.Module):
        target.load_state_dict(online.state_dict())
        self.online, self.target = online, target
        self.parameters: tuple[list[Tensor], list[Tensor]] = list(online.parameters()), list(target.parameters())
        self.has_buffers = any(True for _ in online.buffers())

    @th.no_grad()
    def __call__(self, tau: float) -> None:
        online, target = self.parameters
        th._foreach_lerp_(target, online, tau)
        if not self.has_buffers:
            return
        for ours, theirs in zip(self.target.buffers(), self.online.buffers(), strict=True):
            ours.copy_(theirs)
