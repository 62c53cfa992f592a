"""n networks of one shape in one module: every layer is one batched product for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """y_e = x_e W_e + b_e for the E members e, each initialised as an ``nn.Linear`` of its own.

    :param n_members: E
    :param n_inputs: I
    :param n_outputs: O
    """

    def __init__(self, n_members: int, n_inputs: int, n_outputs: int):
        super().__init__()
        members = [nn.Linear(n_inputs, n_outputs) for _ in range(n_members)]
        self.in_features, self.out_features = n_inputs, n_outputs
        self.weight = nn.Parameter(th.stack([member.weight.detach().T for member in members]))  # (E, I, O)
        self.bias = nn.Parameter(th.stack([member.bias.detach() for member in members]).unsqueeze(1))  # (E, 1, O)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I), the same input for every member, or (E, B, I), one for each -> (E, B, O)."""
        if x.dim() == 2:
            x = x.expand(len(self.weight), *x.shape)
        return th.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        return f"n_members={len(self.weight)}, in_features={self.in_features}, out_features={self.out_features}"


class EnsembleMlp(nn.Sequential):
    """E perceptrons: (B, I) or (E, B, I) -> (E, B, O).

    :param n_members: E
    :param n_inputs: I
    :param n_outputs: O
    :param net_arch: widths of the hidden layers
    :param activation_fn: after each hidden layer
    """

    def __init__(
        self,
        n_members: int,
        n_inputs: int,
        n_outputs: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.ReLU,
    ):
        layers: list[nn.Module] = []
        for width in net_arch:
            layers += [EnsembleLinear(n_members, n_inputs, width), activation_fn()]
            n_inputs = width
        super().__init__(*layers, EnsembleLinear(n_members, n_inputs, n_outputs))
