"""Curvature of a policy: Fisher-vector products, conjugate gradients, natural steps, compatible features.

A network with P parameters theta maps B observations to the parameters eta (B, D) of as many action distributions (see
:mod:`~sb3_pg_ext.functional.families`). With its Jacobian J = d eta / d theta and the Fisher matrix M in eta,

    F = E[score score^T] = E[J^T M J] = Hessian of E[KL(pi_old || pi)] at theta_old     (Kakade 2001; Martens 2020, eq. 11)

where E is the mean over the B observations, and over actions the exact expectation under the policy itself. F v is a
tangent J v pushed forward through the network, the product with M, and a cotangent pulled back; F is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sb3_pg_ext.functional.families import Metric
from sb3_pg_ext.functional.likelihood import _places_of_parameters

Product = Callable[[Tensor], Tensor]


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


#: phi'(z) as a function of phi(z); None where it is 1.
_SLOPES: dict[type[nn.Module], Callable[[Tensor], Tensor] | None] = {
    nn.Tanh: lambda y: 1 - y * y,
    nn.ReLU: lambda y: (y > 0).to(y.dtype),
    nn.Identity: None,
}


class MLPJacobian:
    """J of a plain MLP, from activations kept of one forward pass.

    With x_l = phi(z_l), z_l = W_l x_{l-1} + b_l, a tangent (dW, db) goes forwards and a cotangent u backwards by

        dz_l = dW_l x_{l-1} + W_l dx_{l-1} + db_l,   dx_l = phi'(z_l) dz_l
        W_l <- u_l x_{l-1}^T,   b_l <- u_l,          u_{l-1} = phi'(z_{l-1}) W_l^T u_l

    which is two matrix products a layer either way. ``theta`` is W_1, b_1, ..., W_L, b_L and, for a Gaussian whose scale
    does not depend on the observation, log_std; eta = (z_L, log_std) then.

    :param layers: ``nn.Linear`` with bias, each followed by at most one of ``nn.Tanh``, ``nn.ReLU``, ``nn.Identity``
    :param inputs: x_0, (B, S)
    :param log_std: (A,), or None
    :raises TypeError: any other layer
    """

    def __init__(self, layers: Iterable[nn.Module], inputs: Tensor, log_std: nn.Parameter | None = None):
        self._linear: list[nn.Linear] = []
        self._inputs: list[Tensor] = []
        self._slopes: list[Tensor | None] = []
        with th.no_grad():
            x = inputs
            for layer in layers:
                x = self._forward(layer, x)
        self._log_std = log_std
        self._width = x.shape[1]
        self.eta = x if log_std is None else th.cat([x, log_std.detach().expand_as(x)], dim=1)
        self.parameters = [p for layer in self._linear for p in (layer.weight, layer.bias)]
        self.parameters += [] if log_std is None else [log_std]
        self._weights = [layer.weight.detach() for layer in self._linear]
        self._work = [th.empty_like(x) for x in self._inputs[1:]]  # tangents and cotangents of the hidden layers

    def _forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = layer(x)
        if type(layer) is nn.Linear and layer.bias is not None:
            self._linear.append(layer)
            self._inputs.append(x)
            self._slopes.append(None)
        elif type(layer) in _SLOPES and self._linear and self._slopes[-1] is None:
            slope = _SLOPES[type(layer)]
            self._slopes[-1] = None if slope is None else slope(y)
        else:
            raise TypeError(f"{layer} at this place has no closed form: see AutogradJacobian for other networks")
        return y

    def push(self, v: Tensor) -> Tensor:
        """v -> J v, (P,) -> (B, D)."""
        tangents = unflatten(v, self.parameters)
        out = th.empty_like(self.eta)
        dx = None
        for i, dz in enumerate([*self._work, out[:, : self._width]]):
            dW, db = tangents[2 * i : 2 * i + 2]
            th.addmm(db, self._inputs[i], dW.T, out=dz)  # dz = dW x + db
            if dx is not None:
                dz.addmm_(dx, self._weights[i].T)  #        + W dx
            if (slope := self._slopes[i]) is not None:
                dz.mul_(slope)  #                        dx' = phi'(z) dz
            dx = dz
        if self._log_std is not None:
            out[:, self._width :] = tangents[-1]
        return out

    def pull(self, u: Tensor) -> Tensor:
        """u -> J^T u, summed over the batch, (B, D) -> (P,)."""
        result = u.new_empty(sum(p.numel() for p in self.parameters))
        parts = unflatten(result, self.parameters)
        if self._log_std is not None:
            th.sum(u[:, self._width :], 0, out=parts[-1])
        u = u[:, : self._width]
        for i in reversed(range(len(self._linear))):
            if (slope := self._slopes[i]) is not None:
                u = th.mul(u, slope, out=self._work[i] if i < len(self._work) else None)  # u <- phi'(z) u
            th.mm(u.T, self._inputs[i], out=parts[2 * i])  # W <- u x^T
            th.sum(u, 0, out=parts[2 * i + 1])  # b <- u
            if i > 0:
                u = th.mm(u, self._weights[i], out=self._work[i - 1])  # u <- W^T u
        return result

    def rows(self, u: Tensor) -> Tensor:
        """u -> J^T u of every observation by itself, (B, D) -> (B, P)."""
        free = [] if self._log_std is None else [u[:, self._width :]]
        u, parts = u[:, : self._width], []
        for i in reversed(range(len(self._linear))):
            if (slope := self._slopes[i]) is not None:
                u = u * slope
            parts = [(u.unsqueeze(2) * self._inputs[i].unsqueeze(1)).flatten(1), u, *parts]
            u = u @ self._weights[i]
        return th.cat(parts + free, dim=1)


def fisher_vector_product(jacobian: Jacobian, metric: Metric, v: Tensor, damping: float = 0.0) -> Tensor:
    """(F + damping I) v with F = (1/B) sum_b J_b^T M_b J_b.

    :param metric: u -> M u, (B, D) -> (B, D): ``Family.fisher(jacobian.eta)`` for the Fisher matrix
    :param v: (P,)
    :param damping: >= 0
    :return: (P,)
    """
    tangents = jacobian.push(v)  #                            v -> J v
    cotangents = metric(tangents)  #                        J v -> M J v
    product = jacobian.pull(cotangents / len(cotangents))  # M J v -> E[J^T M J v]
    return product.add_(v, alpha=damping)  #                          + damping v


def squared_length(jacobian: Jacobian, metric: Metric, v: Tensor) -> float:
    """v^T F v = (1/B) sum_b (J_b v)^T M_b (J_b v): to second order twice the KL divergence of a step v.

    Costs half a Fisher-vector product and is >= 0 whatever the rounding.
    """
    tangents = jacobian.push(v)
    return (tangents * metric(tangents)).sum(1).mean().item()


class Solution(NamedTuple):
    """What a solver found: x (P,), |b - A x| / |b|, and the number of products with A that it took."""

    x: Tensor
    residual: float
    iterations: int


def conjugate_gradient(product: Product, b: Tensor, max_steps: int = 10, tolerance: float = 1e-10) -> Solution:
    """Solve A x = b for a symmetric, positive semi-definite A   (Hestenes & Stiefel 1952).

    It starts at x = 0, so that for a singular A with b in its range it goes to the shortest solution A^+ b.

    :param product: v -> A v, (P,) -> (P,)
    :param b: (P,)
    :param max_steps: products with A at most
    :param tolerance: stops when |b - A x| <= tolerance |b|
    :return: the solution; its residual is the recurrence's, which rounding lets drift from the true one
    """
    scale = b.abs().max().item()
    if scale == 0:
        return Solution(th.zeros_like(b), 0.0, 0)
    r = b / scale  # squares of very small and very large numbers would leave the range of float32
    x, p = th.zeros_like(b), r.clone()
    rr = first = (r @ r).item()
    steps = 0
    while steps < max_steps and rr > tolerance**2 * first:
        Ap = product(p)
        curvature = (p @ Ap).item()
        if not curvature > 0:  # p is in the null space but for rounding
            break
        alpha = rr / curvature
        x.add_(p, alpha=alpha)
        r.sub_(Ap, alpha=alpha)
        rr, before = (r @ r).item(), rr
        p.mul_(rr / before).add_(r)
        steps += 1
    return Solution(x.mul_(scale), math.sqrt(rr / first), steps)


def kl_step_size(target_kl: float, squared_length: float) -> float:
    """sqrt(2 delta / x^T F x), by which x = F^-1 g becomes the step of KL divergence delta to second order.

    x^T F x is g^T F^-1 g where x solves F x = g; of a truncated or damped solution it is still the right length.

    :param target_kl: delta
    :param squared_length: x^T F x
    :return: 0 if x changes no distribution
    """
    return math.sqrt(2 * target_kl / squared_length) if squared_length > 0 else 0.0


def compatible_weights(scores: Tensor, advantages: Tensor, damping: float = 0.0) -> Tensor:
    """w = argmin (1/B) sum_b (w^T score_b - A_b)^2 + damping |w|^2   (Kakade 2001, theorem 1; Sutton et al. 2000).

    The normal equations say w = (E[score score^T] + damping I)^-1 E[score A], with E the mean over the B samples. That is
    F^-1 g with the *empirical* Fisher matrix, of the actions that were taken. It becomes the Fisher matrix, which averages
    over all actions, when the samples exhaust the policy: as B grows, or if every action stands in the batch as often as
    its probability says.

    Solved where the system is smaller, by Cholesky in float64: for P <= B as above, otherwise for the B residuals,
    w = S^T (S S^T / B + damping I)^-1 A / B, which without damping is the shortest w that fits all samples.

    :param scores: S, (B, P)
    :param advantages: A, (B,)
    :param damping: ridge, >= 0; must be positive if the smaller system is singular
    :return: w, (P,)
    :raises torch.linalg.LinAlgError: the system is singular
    """
    n, n_parameters = scores.shape
    if n_parameters <= n:
        return _solve(scores.T @ scores / n, scores.T @ advantages / n, damping)
    return scores.T @ (_solve(scores @ scores.T / n, advantages, damping) / n)


def _solve(gram: Tensor, b: Tensor, damping: float) -> Tensor:
    system = gram.double()
    system.diagonal().add_(damping)
    return th.cholesky_solve(b.double().unsqueeze(1), th.linalg.cholesky(system)).squeeze(1).to(b.dtype)


def score_matrix(log_density: nn.Module, parameters: Sequence[nn.Parameter], inputs: tuple[Any, ...]) -> Tensor:
    """score_b = grad_theta log pi(a_b|s_b) of every sample, for any module, by vmap of grad.

    :param log_density: module whose ``forward(*inputs)`` is log pi(a|s), (B,)
    :param parameters: theta, all of them parameters of ``log_density``
    :param inputs: tensors (or dicts of tensors) with leading dimension B
    :return: (B, P)
    """
    number = {id(p): i for i, p in enumerate(parameters)}
    places = {name: p for name, p in _places_of_parameters(log_density).items() if id(p) in number}

    def of_one(theta: list[Tensor], *sample: Any) -> Tensor:
        one_row = th.utils._pytree.tree_map(lambda x: x.unsqueeze(0), sample)
        placed = {name: theta[number[id(p)]] for name, p in places.items()}
        return functional_call(log_density, placed, one_row, tie_weights=False).squeeze(0)

    theta = [p.detach() for p in parameters]
    gradients = vmap(lambda *sample: grad(of_one)(theta, *sample))(*inputs)
    return th.cat([g.detach().flatten(1) for g in gradients], dim=1)
