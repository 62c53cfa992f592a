"""The functions that a user gives in place of a learned model, held against steps that were really taken.

A function of the right shape that says the wrong thing would be learned from without a word, and one whose result
carries no gradient would end in a policy that stands still.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch as th
from torch import Tensor

from sb3_pg_ext.bases.world_model import Columns, WorldModel

#: Share of what is to be explained that an error may have before it is spoken of.
TOLERANCE = 0.1


def check_given_parts(world: WorldModel, columns: Columns, given: Iterable[str]) -> None:
    """Call what was given at real transitions: wrong results are a warning, results without gradient an error.

    :param columns: transitions (T, N, ...)
    :param given: names among ``dynamics``, ``reward_fn``, ``termination_fn``
    :raises ValueError: a result that the policy gradient must go through does not depend on what it should
    """
    rows = {name: column.flatten(0, 1) for name, column in columns.items()}
    for name in given:
        try:
            PARTS[name](world, rows)
        except Exception as error:
            error.add_note(
                f"In the first call of {name}, with the {len(rows['states'])} transitions of the first rollout: "
                "tensors in, a tensor out, and the policy gradient goes through it."
            )
            raise


def _check_dynamics(world: WorldModel, rows: Columns) -> None:
    known, states, actions, reached = world.dynamics, rows["states"], rows["executed"], rows["next_states"]
    none = states.new_zeros(len(states), known.own_size)
    inputs = {"observations": states, "actions": actions}
    predicted, blind = _called(lambda s, a: known.step(s, a, none), inputs)
    if blind:
        raise _without_gradient("dynamics", blind)
    predicted = predicted.detach()
    error, change = _rms(predicted - reached), _rms(reached - states)
    excused = TOLERANCE * change + 2 * _spread(known, states, actions, predicted) + 1e-4 * _rms(reached)
    worst = int((error / excused.clamp(min=1e-12)).argmax())
    if error[worst] > excused[worst]:
        _warn(
            f"dynamics is off by {error[worst]:.3g} in entry {worst} of the next observation, which changes by "
            f"{change[worst]:.3g} in a step",
            rows,
        )


@th.no_grad()
def _spread(known: Any, states: Tensor, actions: Tensor, mean: Tensor) -> Tensor:
    """Root mean square, (S,), of what the noise of known equations does in a step."""
    if not known.own_size:
        return th.zeros_like(mean[0])
    with th.random.fork_rng(devices=[]):  # looking on changes nothing
        noise = known.sample_noise(1, len(states))[0, :, : known.own_size].to(states)
    return _rms(known.step(states, actions, noise) - mean)


def _check_reward(world: WorldModel, rows: Columns) -> None:
    rewards = rows["rewards"]
    inputs = {"observations": rows["states"], "actions": rows["executed"], "next observations": rows["next_states"]}
    predicted, blind = _called(world.reward, inputs)
    if blind and not predicted.requires_grad:  # a jump in one of them, such as a bonus behind a line, may be meant
        raise _without_gradient("reward_fn", blind)
    error = _rms(predicted.detach() - rewards)
    spread = rewards.std(correction=0)
    if error > TOLERANCE * spread + 1e-3 * _rms(rewards):
        _warn(f"reward_fn is off by {error:.3g}, where rewards vary by {spread:.3g}", rows)


@th.no_grad()
def _check_termination(world: WorldModel, rows: Columns) -> None:
    ended = rows["terminated"]
    p = world.termination(rows["states"], rows["executed"], rows["next_states"])
    error, chance = (p - ended).abs().mean(), (p * (1 - p)).mean()  # of true probabilities, error is 2 * chance
    if error > 4 * chance + TOLERANCE * ended.mean():
        found, said = int(ended.sum()), p.sum().item()
        _warn(f"termination_fn is off by {error:.3g} on average: it expects {said:.3g} ends, there were {found}", rows)


PARTS: dict[str, Callable[[WorldModel, Columns], None]] = {
    "dynamics": _check_dynamics,
    "reward_fn": _check_reward,
    "termination_fn": _check_termination,
}


def _called(function: Callable[..., Tensor], inputs: Columns) -> tuple[Tensor, list[str]]:
    """The result, (n, ...), and the names of those inputs on which it depends, but without a gradient."""
    leaves = [rows.clone().requires_grad_() for rows in inputs.values()]
    with th.enable_grad():
        result = function(*leaves)
        gradients: Any = [None] * len(leaves)
        if result.requires_grad:
            gradients = th.autograd.grad(result.sum(), leaves, allow_unused=True, retain_graph=True)
    blind = []
    for i, (name, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        others = [leaf.detach().roll(int(i == j), 0) for j, leaf in enumerate(leaves)]
        if gradient is None and not th.equal(function(*others), result):
            blind.append(name)
    return result, blind


def _without_gradient(name: str, inputs: list[str]) -> ValueError:
    return ValueError(
        f"{name} gave a tensor that depends on the {' and the '.join(inputs)} but carries no gradient in them, and the "
        "policy learns by that alone: compute it by torch operations, without detach(), no_grad() and numpy"
    )


def _rms(x: Tensor) -> Tensor:
    """Root mean square over the first axis."""
    return x.square().mean(0).sqrt()


def _warn(what: str, rows: Columns) -> None:
    message = (
        f"{what} (root mean squares over the first {len(rows['states'])} transitions). It gets observations as the "
        "policy sees them and actions as the environment does. Unless the environment is that noisy, it is wrong."
    )
    warnings.warn(message, UserWarning, stacklevel=4)
