"""Weighted log-likelihood: scores, importance weights, reward weights, for any policy that gives log pi(a|s).

T steps, B steps in a batch, M episodes, P parameters, F features, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap


def score_function_loss(log_prob: Tensor, psi: Tensor, n_episodes: float) -> Tensor:
    """L = -(1/M) sum_i sum_t Psi_{i,t} log pi(a_{i,t}|s_{i,t}), so that -grad L is the REINFORCE estimate.

    grad J = E[sum_t score_t Psi_t], score_t = grad log pi(a_t|s_t)   (Williams 1992).

    :param log_prob: log pi(a|s), (B,), all steps of all episodes
    :param psi: Psi, (B,), without gradient
    :param n_episodes: M
    :return: scalar
    """
    return -(psi * log_prob).sum() / n_episodes


#: Numbers that the generic path holds at once: few enough for a processor's cache, where it is several times faster.
_CHUNK_NUMBERS = 2**22


def squared_score_norms(log_density: nn.Module, inputs: tuple[Any, ...], *, chunk_size: int | None = None) -> Tensor:
    """Squared norm of grad_theta log pi(a_b|s_b) for every step b, without a loop over steps.

    Theta is what requires gradients. Where all parameters sit in linear layers (a plain MLP policy), the gradient of
    one sample in a layer y = W x + c is the outer product of the layer's input x and the output gradient d, so its
    squared norm is ``|d|^2 (|x|^2 + 1)``: two small products a layer after one backward pass (Goodfellow 2015,
    arXiv:1510.01799). A free vector such as the Gaussian's log-std is given one row a sample. Any other module takes
    ``torch.func``: vmap of grad, in chunks.

    :param log_density: module whose ``forward(*inputs)`` is log pi(a|s), (B,)
    :param inputs: tensors (or dicts of tensors) with leading dimension B
    :param chunk_size: samples a chunk of the generic path, which holds chunk_size * P numbers at once; None chooses
    :return: (B,), without gradient
    """
    norms = _norms_from_layers(log_density, inputs) if _only_linear_layers(log_density) else None
    return _norms_from_vmap(log_density, inputs, chunk_size) if norms is None else norms


def _batch_size(inputs: tuple[Any, ...]) -> int:
    first = inputs[0]
    return len(next(iter(first.values()))) if isinstance(first, Mapping) else len(first)


def _free_vectors(module: nn.Module) -> dict[str, nn.Parameter]:
    """Vectors that broadcast over the batch and belong to no layer, such as the Gaussian's log-std."""
    layers = {id(p) for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    return {name: p for name, p in module.named_parameters() if id(p) not in layers}


def _only_linear_layers(module: nn.Module) -> bool:
    places = places_of_parameters(module)
    tied_or_frozen = len(set(places.values())) < len(places) or not all(p.requires_grad for p in module.parameters())
    leaves_are_plain = all(
        type(m) is nn.Linear
        or not list(m.parameters(recurse=False))
        or set(dict(m.named_parameters(recurse=False))) == {"log_std"}
        for m in module.modules()
    )
    return leaves_are_plain and not tied_or_frozen and all(p.ndim == 1 for p in _free_vectors(module).values())


def _norms_from_layers(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
    n = _batch_size(inputs)
    rows = {name: p.detach().expand(n, -1).clone().requires_grad_() for name, p in _free_vectors(module).items()}
    with th.enable_grad(), _recorded_layers(module) as layers:
        total = functional_call(module, rows, inputs, tie_weights=False).sum()
    if len({layer for layer, _, _ in layers}) < len(layers) or any(y.shape[:-1] != (n,) for _, _, y in layers):
        return None  # a layer that runs twice, or on other than one row a sample: the norm of a sum is no sum of norms
    elsewhere = _parameters_of_idle_layers(module, [layer for layer, _, _ in layers])
    gradients = th.autograd.grad(total, [*(y for _, _, y in layers), *rows.values(), *elsewhere], allow_unused=True)
    used = len(layers) + len(rows)
    if any(g is not None for g in gradients[used:]):
        return None  # a layer's weight that is used without calling the layer
    norms = th.zeros(n, dtype=total.dtype, device=total.device)
    for i, d in enumerate(gradients[:used]):
        if d is not None:
            norms += (d * d).sum(1) * (_squared_input_norms(*layers[i][:2]) if i < len(layers) else 1)
    return norms


def _squared_input_norms(layer: nn.Linear, x: Tensor) -> Tensor:
    """|x|^2 of the inputs (B, in), and 1 more where there is a bias: |d x^T|^2 = |d|^2 |x|^2."""
    return (x * x).sum(1) + (layer.bias is not None)


def _parameters_of_idle_layers(module: nn.Module, ran: list[nn.Linear]) -> list[nn.Parameter]:
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return [p for m in layers if not any(m is r for r in ran) for p in m.parameters()]


@contextmanager
def _recorded_layers(module: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Collect (layer, input, output) of every linear layer that runs inside the block."""
    seen: list[tuple[nn.Linear, Tensor, Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda layer, args, output: seen.append((layer, args[0].detach(), output)))
        for m in module.modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _norms_from_vmap(module: nn.Module, inputs: tuple[Any, ...], chunk_size: int | None) -> Tensor:
    places = places_of_parameters(module)
    parameters = {id(p): p.detach() for p in places.values()}
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_NUMBERS // max(1, sum(p.numel() for p in parameters.values())))

    def log_density(theta: dict[int, Tensor], *sample: Any) -> Tensor:
        one_row = th.utils._pytree.tree_map(lambda x: x.unsqueeze(0), sample)
        placed = {name: theta[id(p)] for name, p in places.items()}
        return functional_call(module, placed, one_row, tie_weights=False).squeeze(0)

    def norm(*sample: Any) -> Tensor:
        return th.stack([(g * g).sum() for g in grad(log_density)(parameters, *sample).values()]).sum()

    return vmap(norm, chunk_size=chunk_size)(*inputs).detach()


def places_of_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of every place that holds one which requires gradients, each place under one name only.

    A submodule may be known by several names, as the shared features extractor of a Stable-Baselines3 policy is.
    ``functional_call`` must not be given more than one of them: it would put back what it had put there itself, and the
    module would lose its parameters.
    """
    return {
        f"{prefix}.{name}" if prefix else name: p
        for prefix, submodule in module.named_modules()  # every submodule once
        for name, p in submodule.named_parameters(recurse=False, remove_duplicate=False)
        if p.requires_grad
    }


Ratio = Literal["step", "trajectory", "per_decision"]
LOG_PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "step": lambda log_ratio: log_ratio,
    "trajectory": lambda log_ratio: log_ratio.sum(0).expand_as(log_ratio),
    "per_decision": lambda log_ratio: log_ratio.cumsum(0),
}
#: e^40 is beyond any use, and its products with rewards still fit into float32.
_LARGEST_LOG_WEIGHT = 40.0


def importance_weights(
    log_ratio: Tensor, ratio: Ratio = "step", max_ratio: float = math.inf, self_normalize: bool = False
) -> Tensor:
    """w_t that turn expectations under pi_old into such under pi, from rho_t = pi(a_t|s_t) / pi_old(a_t|s_t).

    ``"step"``: w_t = rho_t; ``"trajectory"``: w_t = rho_0 ... rho_{T-1}; ``"per_decision"``: w_t = rho_0 ... rho_t
    (Precup, Sutton & Singh 2000). Products are sums of logarithms. Afterwards w <- min(w, c), and then, if
    ``self_normalize``, w <- w / mean over the last dimension, which makes the estimate consistent instead of unbiased.

    :param log_ratio: log rho; (T, M), one episode a column and 0 after its end, or (B,) for ``"step"``
    :param ratio: which product
    :param max_ratio: c; infinity leaves only the bound e^40, for the sake of finite numbers
    :param self_normalize: divide by the mean over the M episodes at the same t (an ended one keeps its product), or
        over the B steps
    :return: w, of the shape of ``log_ratio``; exactly 1 where all ratios are
    """
    log_weights = LOG_PRODUCTS[ratio](log_ratio).clamp(max=min(math.log(max_ratio), _LARGEST_LOG_WEIGHT))
    if not self_normalize:
        return log_weights.exp()
    relative = (log_weights - log_weights.amax(-1, keepdim=True)).exp()
    return relative / relative.mean(-1, keepdim=True)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2): the share of n samples that as many equally weighted ones would make (Kong 1992).

    :param log_weights: log w, (n,), up to a common constant; -inf for w = 0
    :return: scalar in [1/n, 1]
    """
    relative = (log_weights - log_weights.max()).exp()
    return relative.sum().square() / (relative.square().sum() * len(relative))


Transform = Literal["exp", "shift", "rank", "identity"]


def reward_weights(returns: Tensor, transform: Transform = "exp", temperature: float = 1.0) -> Tensor:
    """w_i = u(R_i) / sum_j u(R_j), the E-step of reward-weighted regression (Peters & Schaal 2007).

    ``"exp"``: u = exp((R - max R) / temperature); ``"shift"``: u = R - min R; ``"rank"``: u = 0 for the worst to n - 1
    for the best, ties share their mean; ``"identity"``: u = R. Where every u is 0, all weights are equal.

    :param returns: R, (n,)
    :param temperature: for ``"exp"``, in units of the return
    :return: w, (n,), non-negative, sum 1
    :raises ValueError: ``"identity"`` and a negative return
    """
    utility = UTILITIES[transform](returns.double(), temperature)
    total = utility.sum()
    weights = utility / total if total > 0 else th.full_like(utility, 1 / len(utility))
    return weights.to(returns.dtype)


def _identity(returns: Tensor, _: float) -> Tensor:
    if returns.min() < 0:
        raise ValueError(
            f"transform='identity' takes returns as weights, and one of them is {returns.min().item():g}: "
            "'exp', 'shift' and 'rank' take returns of any sign"
        )
    return returns


def _rank(returns: Tensor, _: float) -> Tensor:
    ordered = returns.sort().values
    below = th.searchsorted(ordered, returns)
    not_above = th.searchsorted(ordered, returns, right=True)
    return (below + not_above - 1).to(returns.dtype) / 2


UTILITIES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "exp": lambda returns, temperature: ((returns - returns.max()) / temperature).exp(),
    "shift": lambda returns, _: returns - returns.min(),
    "rank": _rank,
    "identity": _identity,
}


def temperature_for(returns: Tensor, share: float) -> float:
    """The temperature at which the ``"exp"`` weights have the effective sample size ``share``, by bisection.

    The effective sample size grows with the temperature, from the share of the best returns among all to 1. A ``share``
    below that cannot be met: the temperature is then so small that nothing but the best counts.

    :param returns: R, (n,)
    :param share: in (0, 1), of the n samples
    :return: temperature > 0, in units of the return; 1 if all returns are equal
    """
    gaps = returns.max().double() - returns.double()
    if not gaps.any():
        return 1.0
    low, high = math.log(gaps[gaps > 0].min().item() / 50), math.log(gaps.max().item() * 1e3)
    for _ in range(60):
        middle = (low + high) / 2
        too_even = effective_sample_size(-gaps / math.exp(middle)) > share
        low, high = (low, middle) if too_even else (middle, high)
    return math.exp((low + high) / 2)


def weighted_least_squares(features: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """argmax_{W, c, s} sum_b w_b log N(y_b; W x_b + c, diag(s^2)): the closed-form M-step of a linear-Gaussian policy.

    (W, c) solves the weighted normal equations (the shortest solution, where there are several), and s^2 is the
    weighted mean of the squared residuals. Computed in float64.

    :param features: x, (B, F)
    :param targets: y, (B, A)
    :param weights: w >= 0, (B,), not all 0
    :return: W (A, F), c (A,), s^2 (A,)
    """
    x = th.cat([features, th.ones_like(features[:, :1])], dim=1).double()
    y, w = targets.double(), (weights / weights.sum()).double()
    root = w.sqrt().unsqueeze(1)
    solution = th.linalg.pinv(root * x) @ (root * y)
    variance = w @ (y - x @ solution).square()
    coefficients = solution.T.to(features.dtype)
    return coefficients[:, :-1], coefficients[:, -1], variance.to(features.dtype)
