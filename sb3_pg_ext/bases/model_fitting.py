"""Regression with a holdout set and an early stop, for every member of an ensemble at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch as th
from torch import Tensor

from sb3_pg_ext.functional.imagine import Dynamics
from sb3_pg_ext.nets.dynamics import Regressor
from sb3_pg_ext.rollout.guards import NonFiniteError


class Fit(NamedTuple):
    """What a fit came to.

    :param epochs: passes over the data
    :param loss: each member's loss on the holdout rows, with the weights that were kept, (E,)
    """

    epochs: int
    loss: Tensor


def fit(
    model: Regressor,
    optimizer: th.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    held_out: Tensor,
    rng: np.random.Generator,
    *,
    batch_size: int = 256,
    n_epochs: int = 20,
    patience: int = 3,
) -> Fit:
    """Fit each member to minibatches of its own, until no member has become better on the holdout for some epochs.

    Each member keeps the weights that were best on the holdout, which may be those before the fit.

    :param inputs: (n, I)
    :param targets: (n, O)
    :param held_out: (n,) bool, rows that serve for the early stop only; if there are none, all rows serve for both
    :param n_epochs: passes over the data, at most
    :param patience: epochs without a better member after which the fit stops
    :raises NonFiniteError: the loss is not finite; the weights are those before the fit
    """
    test = held_out if held_out.any() else th.ones_like(held_out)
    train = ~held_out if not held_out.all() else th.ones_like(held_out)
    rows, unseen = (inputs[train], targets[train]), (inputs[test], targets[test])
    kept = [p.detach().clone() for p in model.net.parameters()]
    best, since, epoch = holdout_loss(model, *unseen), 0, 0
    try:
        while epoch < n_epochs and since < patience:
            _epoch(model, optimizer, *rows, rng, batch_size)
            epoch += 1
            loss = holdout_loss(model, *unseen)
            better = loss < best
            for old, new in zip(kept, model.net.parameters(), strict=True):
                old[better] = new.detach()[better]
            best = th.where(better, loss, best)
            since = 0 if better.any() else since + 1
    finally:
        with th.no_grad():
            for old, new in zip(kept, model.net.parameters(), strict=True):
                new.copy_(old)
    return Fit(epoch, best)


@th.no_grad()
def holdout_loss(model: Regressor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Each member's loss on rows (n, I) and (n, O), (E,)."""
    return model.loss(inputs, targets)


def _epoch(
    model: Regressor,
    optimizer: th.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    rng: np.random.Generator,
    batch_size: int,
) -> None:
    """One pass, in which each member sees the rows in an order of its own."""
    orders = rng.permuted(np.tile(np.arange(len(inputs)), (model.n_members, 1)), axis=1)
    for index in th.from_numpy(orders).tensor_split(-(-len(inputs) // batch_size), dim=1):
        loss = model.loss(inputs[index], targets[index]).sum()
        if not th.isfinite(loss):
            raise NonFiniteError(
                f"The loss of the {type(model).__name__} is {loss.item()}; its weights are those before the fit. "
                "Usual causes: model_learning_rate too large, or rewards or observations too large for float32."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@th.no_grad()
def multi_step_errors(
    dynamics: Dynamics,
    states: Tensor,
    actions: Tensor,
    next_states: Tensor,
    continues: Tensor,
    noise: Tensor,
    scale: Tensor,
) -> Tensor:
    """Root mean square error of the states predicted 1, ..., H steps ahead from every step, (H,), in units of scale.

    The executed actions are repeated; what lies beyond the end of an episode is left out (NaN if nothing else is left).

    :param states: (T, N, S)
    :param actions: (T, N, A), as executed
    :param next_states: (T, N, S)
    :param continues: (T, N) bool, whether the next row goes on with the same episode
    :param noise: the noise of every step, (H, T * N, k); zeros for the mean prediction
    :param scale: (S,)
    """
    predicted, alive = states, th.ones_like(continues, dtype=th.bool)
    errors = []
    for ahead, zeta in enumerate(noise):
        if ahead:
            predicted, alive = predicted[:-1], (alive & continues[ahead - 1 : len(continues)])[:-1]
        if not len(predicted):
            break
        shape = predicted.shape[:2]
        n = predicted[..., 0].numel()
        predicted = dynamics(predicted.flatten(0, 1), actions[ahead:].flatten(0, 1), zeta[:n]).unflatten(0, shape)
        gap = ((predicted - next_states[ahead:]) / scale)[alive]
        errors.append(gap.square().mean().sqrt())
    return th.stack(errors)
