"""A perceptron, or n of one shape, forwards and backwards without autograd, whose bookkeeping costs more than the
products of a small net: activations and cotangents are overwritten in place, gradients land in one vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch as th
from torch import Tensor, nn

from sb3_pg_ext.nets.ensembles import EnsembleLinear


class Activation(NamedTuple):
    """y = f(u), in place; and the cotangent of y turned into that of u, in place, given y."""

    apply: Callable[[Tensor], Any]
    pull: Callable[[Tensor, Tensor], Any]


def _pull_relu(cotangent: Tensor, y: Tensor) -> None:
    th.ops.aten.threshold_backward.grad_input(cotangent, y, 0, grad_input=cotangent)


def _pull_tanh(cotangent: Tensor, y: Tensor) -> None:
    th.ops.aten.tanh_backward.grad_input(cotangent, y, grad_input=cotangent)


ACTIVATIONS = {nn.ReLU: Activation(th.relu_, _pull_relu), nn.Tanh: Activation(th.tanh_, _pull_tanh)}
LINEAR = (nn.Linear, EnsembleLinear)
#: Pieces of memory that a net keeps; batches of ever new sizes begin afresh.
MOST_SCRATCH = 64


def can_be_fused(layers: Iterable[nn.Module]) -> bool:
    """Whether :class:`FusedMlp` does what the layers do one after another, and all of them learn."""
    after_linear = False
    for layer in layers:
        linear = type(layer) in LINEAR and layer.bias is not None
        if not (linear or (type(layer) in ACTIVATIONS and after_linear)) or layer._forward_hooks:
            return False
        after_linear = linear
    return all(parameter.requires_grad for layer in layers for parameter in layer.parameters())


class FusedMlp:
    """The layers' own parameters, seen again at every call: (B, I) -> (B, O), or (E, B, O) for an ensemble.

    Hidden activations and cotangents live in memory that the next call uses again. Call it without gradients.

    :param layers: ``Linear`` or ``EnsembleLinear`` ones, each followed by at most one known activation; see
        :func:`can_be_fused`
    """

    def __init__(self, layers: Iterable[nn.Module]):
        self.activations: list[Activation | None] = []
        self.parameters: list[Tensor] = []
        for layer in layers:
            if isinstance(layer, LINEAR):
                self.activations.append(None)
                self.parameters += [layer.weight, layer.bias]
            else:
                self.activations[-1] = ACTIVATIONS[type(layer)]
        self.stacked = self.parameters[0].dim() == 3
        self.scratch: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, x: Tensor, n: int | None = None) -> list[Tensor]:
        """What goes into each layer, and what comes out of the last one.

        :param x: (B, I)
        :param n: the first so many members of an ensemble; None asks them all
        """
        kept = [x]
        for i, activation in enumerate(self.activations):
            weight, bias = self._layer(i, n)
            shape = (*weight.shape[:-2], x.shape[0], bias.shape[-1])
            out = self._memory("y", i, shape, x) if i < len(self.activations) - 1 else x.new_empty(shape)
            if self.stacked:
                th.baddbmm(bias, kept[-1].expand(weight.shape[0], -1, -1), weight, out=out)
            else:
                th.addmm(bias, kept[-1], weight.t(), out=out)
            if activation is not None:
                activation.apply(out)
            kept.append(out)
        return kept

    def pull(self, kept: list[Tensor], cotangent: Tensor, gradients: Sequence[Tensor]) -> None:
        """Write the gradient of a loss into ``gradients``, one tensor a parameter.

        :param kept: as the last call has given it, of all members
        :param cotangent: of the outputs, in their shape; spoilt afterwards
        """
        for i in reversed(range(len(self.activations))):
            self._pull_activation(i, cotangent, kept[i + 1])
            weight_gradient, bias_gradient = gradients[2 * i : 2 * i + 2]
            th.sum(cotangent, -2, keepdim=self.stacked, out=bias_gradient)
            if self.stacked:
                x = kept[i].expand(weight_gradient.shape[0], -1, -1)
                th.bmm(x.transpose(1, 2), cotangent, out=weight_gradient)
            else:
                th.mm(cotangent.t(), kept[i], out=weight_gradient)
            if i:
                cotangent = self._pull_layer(i, cotangent, None)

    def pull_inputs(self, kept: list[Tensor], cotangent: Tensor, n: int | None = None) -> Tensor:
        """The cotangent of the inputs, (B, I), summed over the members asked. Arguments as before."""
        for i in reversed(range(len(self.activations))):
            self._pull_activation(i, cotangent, kept[i + 1])
            cotangent = self._pull_layer(i, cotangent, n)
        return cotangent.sum(0) if self.stacked else cotangent

    def _layer(self, i: int, n: int | None) -> Sequence[Tensor]:
        layer = self.parameters[2 * i : 2 * i + 2]
        return layer if n is None or n == layer[0].shape[0] else [parameter[:n] for parameter in layer]

    def _memory(self, name: str, i: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        key = (name, i, shape, like.dtype, th.is_inference_mode_enabled())
        memory = self.scratch.get(key)
        if memory is None or memory.device != like.device:
            if len(self.scratch) >= MOST_SCRATCH:
                self.scratch.clear()
            memory = self.scratch[key] = like.new_empty(shape)
        return memory

    def _pull_activation(self, i: int, cotangent: Tensor, y: Tensor) -> None:
        activation = self.activations[i]
        if activation is not None:
            activation.pull(cotangent, y)

    def _pull_layer(self, i: int, cotangent: Tensor, n: int | None) -> Tensor:
        weight, _ = self._layer(i, n)
        n_inputs = weight.shape[-2] if self.stacked else weight.shape[-1]
        out = self._memory("dx", i, (*cotangent.shape[:-1], n_inputs), cotangent)
        return th.bmm(cotangent, weight.transpose(1, 2), out=out) if self.stacked else th.mm(cotangent, weight, out=out)
