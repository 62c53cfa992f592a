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
#: Sizes of batches for which a net keeps memory; ever new ones begin afresh.
MOST_PLANS = 8


def can_be_fused(layers: Iterable[nn.Module]) -> bool:
    """Whether :class:`FusedMlp` does what the layers do one after another, and all of them learn."""
    after_linear = False
    for layer in layers:
        linear = type(layer) in LINEAR and layer.bias is not None
        if not (linear or (type(layer) in ACTIVATIONS and after_linear)) or layer._forward_hooks:
            return False
        after_linear = linear
    return all(parameter.requires_grad for layer in layers for parameter in layer.parameters())


class Step(NamedTuple):
    """One layer of a :class:`FusedMlp` for one size of batch; every tensor in it is a view or memory of its own.

    :param bias: (O,), or (E, 1, O)
    :param weight: from inputs to outputs, (I, O), or (E, I, O)
    :param back: from outputs to inputs, (O, I), or (E, O, I)
    :param activation: after the layer, or None
    :param out: (B, O), or (E, B, O); None in the last layer, whose outputs belong to the caller
    :param to_inputs: cotangent of the inputs, (B, I), or (E, B, I)
    """

    bias: Tensor
    weight: Tensor
    back: Tensor
    activation: Activation | None
    out: Tensor | None
    to_inputs: Tensor


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
        self.plans: dict[tuple[Any, ...], list[Step]] = {}
        functions: Any = (th.baddbmm, th.bmm) if self.stacked else (th.addmm, th.mm)
        self.affine, self.product = functions

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "plans": {}}  # which are about the places of these parameters, not of those of a copy

    @property
    def dtype(self) -> th.dtype:
        """Of the parameters."""
        return self.parameters[0].dtype

    def __call__(self, x: Tensor, n: int | None = None) -> list[Tensor]:
        """What goes into each layer, and what comes out of the last one.

        :param x: (B, I)
        :param n: the first so many members of an ensemble; None asks them all
        """
        plan = self._plan(x.shape[0], n)
        kept = [x.expand(plan[0].weight.shape[0], -1, -1) if self.stacked else x]
        for bias, weight, _, activation, memory, _ in plan:
            if memory is None:
                out = self.affine(bias, kept[-1], weight)
            else:
                out = self.affine(bias, kept[-1], weight, out=memory)
            if activation is not None:
                activation.apply(out)
            kept.append(out)
        return kept

    def pull(self, kept: list[Tensor], cotangent: Tensor, gradients: Sequence[Tensor]) -> None:
        """Write the gradient of a loss into ``gradients``, one tensor a parameter.

        :param kept: as the last call has given it, of all members
        :param cotangent: of the outputs, in their shape; spoilt afterwards
        """
        plan = self._plan(cotangent.shape[-2], None)
        for i in reversed(range(len(plan))):
            step, (weight_gradient, bias_gradient) = plan[i], gradients[2 * i : 2 * i + 2]
            if step.activation is not None:
                step.activation.pull(cotangent, kept[i + 1])
            th.sum(cotangent, -2, keepdim=self.stacked, out=bias_gradient)
            if self.stacked:
                th.bmm(kept[i].mT, cotangent, out=weight_gradient)
            else:
                th.mm(cotangent.t(), kept[i], out=weight_gradient)
            if i:
                cotangent = self.product(cotangent, step.back, out=step.to_inputs)

    def pull_inputs(self, kept: list[Tensor], cotangent: Tensor, n: int | None = None) -> Tensor:
        """The cotangent of the inputs, (B, I), summed over the members asked. Arguments as before."""
        for step, y in zip(reversed(self._plan(cotangent.shape[-2], n)), reversed(kept), strict=False):
            if step.activation is not None:
                step.activation.pull(cotangent, y)
            cotangent = self.product(cotangent, step.back, out=step.to_inputs)
        if not self.stacked:
            return cotangent
        return cotangent.sum(0) if cotangent.shape[0] > 1 else cotangent[0]

    def _plan(self, batch_size: int, n: int | None) -> list[Step]:
        """The steps for a size of batch, found again as long as the parameters stay where they are."""
        places = tuple([parameter.data_ptr() for parameter in self.parameters])
        key = (batch_size, n, th.is_inference_mode_enabled(), self.dtype, places)
        plan = self.plans.get(key)
        if plan is None:
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            plan = self.plans[key] = [self._step(i, batch_size, n) for i in range(len(self.activations))]
        return plan

    def _step(self, i: int, batch_size: int, n: int | None) -> Step:
        weight, bias = (parameter.detach() for parameter in self.parameters[2 * i : 2 * i + 2])
        if self.stacked:
            weight, bias = weight[:n], bias[:n]
        else:
            weight = weight.t()
        rows = (*weight.shape[:-2], batch_size)
        out = weight.new_empty(*rows, weight.shape[-1]) if i < len(self.activations) - 1 else None
        to_inputs = weight.new_empty(*rows, weight.shape[-2])
        return Step(bias, weight, weight.mT, self.activations[i], out, to_inputs)
