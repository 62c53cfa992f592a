"""The Jacobian of a network as two linear maps, tangents forwards and cotangents backwards; it is never formed.

A network with P parameters theta maps B observations to as many rows eta of D numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sb3_pg_ext.functional.likelihood import places_of_parameters


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One vector (P,) of all entries, tensor by tensor."""
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``vector`` (P,) in the shapes of ``like``: the inverse of :func:`flatten`."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


class Jacobian(Protocol):
    """J = d eta / d theta of a network at B observations, as two linear maps.

    :param eta: (B, D), without gradient
    :param parameters: theta, P numbers in all
    """

    eta: Tensor
    parameters: list[nn.Parameter]

    def push(self, v: Tensor) -> Tensor:
        """v -> J v, (P,) -> (B, D)."""

    def pull(self, u: Tensor) -> Tensor:
        """u -> J^T u, summed over the batch, (B, D) -> (P,)."""


class AutogradJacobian:
    """J of any network that autograd can differentiate twice.

    The pullback u -> J^T u is linear in u, so its own pullback is v -> J v: two reverse passes make one forward one.

    :param eta: (B, D), with the graph that leads to ``parameters``
    :param parameters: theta
    """

    def __init__(self, eta: Tensor, parameters: Sequence[nn.Parameter]):
        self.parameters = list(parameters)
        self.eta, self._graph = eta.detach(), eta
        self._probe = th.zeros_like(eta, requires_grad=True)
        self._pulled = flatten(self._gradients(self._probe, create_graph=True))

    def _gradients(self, u: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        return th.autograd.grad(
            self._graph, self.parameters, u, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )

    def push(self, v: Tensor) -> Tensor:
        """v -> J v, (P,) -> (B, D)."""
        return th.autograd.grad(self._pulled, self._probe, v, retain_graph=True)[0]

    def pull(self, u: Tensor) -> Tensor:
        """u -> J^T u, summed over the batch, (B, D) -> (P,)."""
        return flatten(self._gradients(u))


class _Activation(NamedTuple):
    """y = phi(z) in place, and (u, y) -> phi'(z) u into ``grad_input``."""

    apply: Callable[[Tensor], Tensor]
    times_slope: Callable[..., Tensor]


def _relu_slope(u: Tensor, y: Tensor, *, grad_input: Tensor) -> Tensor:
    return th.ops.aten.threshold_backward.grad_input(u, y, 0, grad_input=grad_input)


_ACTIVATIONS: dict[type[nn.Module], _Activation | None] = {
    nn.Tanh: _Activation(th.tanh_, th.ops.aten.tanh_backward.grad_input),
    nn.ReLU: _Activation(th.relu_, _relu_slope),
    nn.Identity: None,
}


def has_closed_form(layers: Sequence[nn.Module]) -> bool:
    """Whether :class:`MLPJacobian` takes them: linear layers with bias, each followed by a known activation or none."""
    after_linear = [False, *(type(layer) is nn.Linear for layer in layers)]
    return all(
        (type(layer) is nn.Linear and layer.bias is not None) or (type(layer) in _ACTIVATIONS and follows)
        for layer, follows in zip(layers, after_linear, strict=False)
    )


class MLPJacobian:
    """J of a plain MLP, from the activations of one forward pass.

    With x_l = phi(z_l), z_l = W_l x_{l-1} + b_l, a tangent (dW, db) goes forwards and a cotangent u backwards by

        dz_l = dW_l x_{l-1} + W_l dx_{l-1} + db_l,   dx_l = phi'(z_l) dz_l
        W_l <- u_l x_{l-1}^T,   b_l <- u_l,          u_{l-1} = phi'(z_{l-1}) W_l^T u_l

    which is two matrix products a layer either way. theta is W_1, b_1, ..., W_L, b_L and eta is x_L; a Gaussian whose
    scale does not depend on the observation adds log_std to both. All memory is taken once.

    :param layers: as :func:`has_closed_form` says
    :param inputs: x_0, (B, S)
    :param log_std: (A,), or None
    :raises TypeError: other layers
    """

    def __init__(self, layers: Sequence[nn.Module], inputs: Tensor, log_std: nn.Parameter | None = None):
        if not has_closed_form(layers):
            raise TypeError(f"{layers} have no closed form: see AutogradJacobian for other networks")
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.parameters: list[nn.Parameter] = [cast(nn.Parameter, p) for m in linear for p in (m.weight, m.bias)]
        self.parameters += [] if log_std is None else [log_std]
        self._weights = [layer.weight.detach() for layer in linear]
        self._biases = [layer.bias.detach() for layer in linear]
        self._activations = _activations_after_linear(layers)
        self._log_std, self._width = log_std, linear[-1].out_features
        self._outputs: list[Tensor] = []
        self.at(inputs)

    def at(self, inputs: Tensor) -> MLPJacobian:
        """Move to other observations (B, S), and to the parameters as they are now."""
        if not self._outputs or len(self._outputs[0]) != len(inputs):
            self._outputs = [inputs.new_empty(len(inputs), len(bias)) for bias in self._biases]
            self._work = [th.empty_like(x) for x in self._outputs[:-1]]  # tangents and cotangents of hidden layers
        self._inputs = [inputs, *self._outputs[:-1]]
        for x, y, W, b, phi in zip(
            self._inputs, self._outputs, self._weights, self._biases, self._activations, strict=True
        ):
            th.addmm(b, x, W.T, out=y)
            if phi is not None:
                phi.apply(y)
        self.eta = self._outputs[-1].clone()
        if self._log_std is not None:
            self.eta = th.cat([self.eta, self._log_std.detach().expand_as(self.eta)], dim=1)
        return self

    def push(self, v: Tensor) -> Tensor:
        """v -> J v, (P,) -> (B, D)."""
        tangents = unflatten(v, self.parameters)
        result = th.empty_like(self.eta)
        dx: Tensor | None = None
        for i, dz in enumerate([*self._work, result[:, : self._width]]):
            dW, db = tangents[2 * i], tangents[2 * i + 1]
            th.addmm(db, self._inputs[i], dW.T, out=dz)  # dz = dW x + db
            if dx is not None:
                dz.addmm_(dx, self._weights[i].T)  #        + W dx
            dx = self._times_slope(i, dz, out=dz)  #     dx' = phi'(z) dz
        if self._log_std is not None:
            result[:, self._width :] = tangents[-1]
        return result

    def pull(self, u: Tensor) -> Tensor:
        """u -> J^T u, summed over the batch, (B, D) -> (P,)."""
        result = u.new_empty(sum(p.numel() for p in self.parameters))
        self.pull_into(u, unflatten(result, self.parameters))
        return result

    def pull_into(self, u: Tensor, parts: Sequence[Tensor]) -> None:
        """:meth:`pull` into tensors of the parameters' shapes."""
        if self._log_std is not None:
            th.sum(u[:, self._width :], 0, out=parts[-1])
        u = self._times_slope(len(self._weights) - 1, u[:, : self._width])
        for i in reversed(range(len(self._weights))):
            th.mm(u.T, self._inputs[i], out=parts[2 * i])  # W <- u x^T
            th.sum(u, 0, out=parts[2 * i + 1])  #            b <- u
            if i > 0:
                back = th.mm(u, self._weights[i], out=self._work[i - 1])  # W^T u
                u = self._times_slope(i - 1, back, out=back)  #   phi'(z) W^T u

    def rows(self, u: Tensor) -> Tensor:
        """u -> J^T u of every observation by itself, (B, D) -> (B, P)."""
        free = [] if self._log_std is None else [u[:, self._width :]]
        u = self._times_slope(len(self._weights) - 1, u[:, : self._width])
        parts: list[Tensor] = []
        for i in reversed(range(len(self._weights))):
            parts = [(u.unsqueeze(2) * self._inputs[i].unsqueeze(1)).flatten(1), u, *parts]  # u x^T, u
            if i > 0:
                u = self._times_slope(i - 1, u @ self._weights[i])
        return th.cat(parts + free, dim=1)

    def _times_slope(self, i: int, u: Tensor, out: Tensor | None = None) -> Tensor:
        """phi'(z_i) u."""
        phi = self._activations[i]
        if phi is None:
            return u
        return phi.times_slope(u, self._outputs[i], grad_input=th.empty_like(u) if out is None else out)


def _activations_after_linear(layers: Sequence[nn.Module]) -> list[_Activation | None]:
    following = [*layers[1:], nn.Identity()]
    return [
        _ACTIVATIONS.get(type(after))
        for layer, after in zip(layers, following, strict=True)
        if type(layer) is nn.Linear
    ]


def score_matrix(log_density: nn.Module, parameters: Sequence[nn.Parameter], inputs: tuple[Any, ...]) -> Tensor:
    """score_b = grad_theta log pi(a_b|s_b) of every sample, for any module, by vmap of grad.

    :param log_density: module whose ``forward(*inputs)`` is log pi(a|s), (B,)
    :param parameters: theta, all of them parameters of ``log_density``
    :param inputs: tensors (or dicts of tensors) with leading dimension B
    :return: (B, P)
    """
    number = {id(p): i for i, p in enumerate(parameters)}
    places = {name: p for name, p in places_of_parameters(log_density).items() if id(p) in number}

    def of_one(theta: list[Tensor], *sample: Any) -> Tensor:
        one_row = th.utils._pytree.tree_map(lambda x: x.unsqueeze(0), sample)
        placed = {name: theta[number[id(p)]] for name, p in places.items()}
        return functional_call(log_density, placed, one_row, tie_weights=False).squeeze(0)

    theta = [p.detach() for p in parameters]
    gradients = vmap(lambda *sample: grad(of_one)(theta, *sample))(*inputs)
    return th.cat([g.detach().flatten(1) for g in gradients], dim=1)
