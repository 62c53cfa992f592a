"""How one estimate is had from a model: (P,), after which the model is what it was before.

The model stands at the parameters of its testbed, collects through its own ``learn()``, and takes the step that it
really takes. Since its optimizer is plain gradient descent with a learning rate of 1, that step is the estimate; then
it is taken back. Nothing is replaced inside the model but the optimizer class, so that what runs is what runs for a
user, in the same float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch as th
from torch import Tensor, nn

from sb3_pg_ext.diagnostics.critics import ExactQuadratic, ExactSlope, as_recorded, exact_critic
from sb3_pg_ext.diagnostics.targets import SHIFT
from sb3_pg_ext.diagnostics.testbeds import Testbed, actor_parameters


class Steps(th.optim.SGD):
    """Plain gradient descent. If told of places to ``visit``, its next steps go there, whatever the gradient is."""

    def __init__(self, params: Any, **kwargs: Any):
        super().__init__(params, **kwargs)
        self.visit: list[list[Tensor]] = []

    @th.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if not self.visit:
            super().step(closure)
            return
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter, value in zip(parameters, self.visit.pop(0), strict=True):
            parameter.copy_(value)


def one_update(bed: Testbed, model: Any) -> Tensor:
    """The step of one update."""
    before = _values(model.policy)
    _learn(model)
    return _taken_back(model.policy, before)


def at_another_policy(bed: Testbed, model: Any) -> Tensor:
    """The second of two gradient steps on one batch, where the first has gone from the policy that acted to this one.

    For algorithms that take several steps on a batch (options: two epochs, the batch as a whole).
    """
    here = _values(model.policy)
    bed.place(model.policy, SHIFT)
    model.policy.optimizer.visit = [here]
    _learn(model)
    if model.policy.optimizer.visit:
        raise ValueError("estimate='at_another_policy' is for updates of two gradient steps; there was none")
    return _taken_back(model.policy, here)


def with_exact_critic(bed: Testbed, model: Any) -> Tensor:
    """The step of one update whose ``critic`` has been replaced by the exact Q_t(s, a)."""
    if not hasattr(model.critic, "exact"):
        model.critic = exact_critic(bed, model.policy)
        model.critic.optimizer = Steps(model.critic.parameters(), lr=1.0)
    return one_update(bed, model)


def with_exact_slope(bed: Testbed, model: Any) -> Tensor:
    """The step of one update in which the actor follows the slope of the exact Q_t(s, a) in its action."""
    if not isinstance(model.gradients, ExactSlope):
        buffer = model.replay_buffer
        when = as_recorded(lambda: th.from_numpy(buffer.observations).flatten(0, 1), buffer.n_envs)
        model.gradients = ExactSlope(model, exact_critic(bed, model.policy, when))
    return one_update(bed, model)


def with_exact_value(bed: Testbed, model: Any) -> Tensor:
    """The step of one update that continues by the exact V_t(s)."""
    _continue_exactly(bed, model, 0.0)
    return one_update(bed, model)


def at_another_policy_with_exact_value(bed: Testbed, model: Any) -> Tensor:
    """As :func:`at_another_policy`, of updates that continue by the exact V_t(s) of the policy that acted."""
    _continue_exactly(bed, model, SHIFT)
    return at_another_policy(bed, model)


def _continue_exactly(bed: Testbed, model: Any, shift: float) -> None:
    """Let the target be the V_t of the policy ``shift`` away; a state is met one step after the one it comes from."""
    if isinstance(model.target, ExactQuadratic):
        return
    when = as_recorded(lambda: model.transitions.columns["next_states"], model.n_envs)
    bed.place(model.policy, shift)
    model.target = exact_critic(bed, model.policy, lambda states: when(states) + 1)
    bed.place(model.policy)


def one_iteration(bed: Testbed, model: Any) -> Tensor:
    """The step that the mean of a search in parameter space takes in one iteration."""
    before = deepcopy(model.search.state_dict())
    bed.place(model.policy)
    here = nn.utils.parameters_to_vector(model.policy.parameters()).detach().double()
    model.search["mean"] = here.numpy()
    _learn(model)
    step = th.tensor(model.search["mean"]) - here
    model.search.load_state_dict(before)
    bed.place(model.policy)
    return step


def _learn(model: Any) -> None:
    with warnings.catch_warnings():
        # Episodes end by their length here, which no function of the state foresees; imagined ones are as long.
        warnings.filterwarnings("ignore", "termination_fn is off")
        model.learn(1, reset_num_timesteps=False, log_interval=None)


def _values(policy: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in policy.parameters()]


@th.no_grad()
def _taken_back(policy: nn.Module, before: list[Tensor]) -> Tensor:
    """Put the parameters back to ``before``; how far the actor's had moved from there."""
    moved = th.cat([parameter.flatten().double() for parameter in actor_parameters(policy)])
    for parameter, value in zip(policy.parameters(), before, strict=True):
        parameter.copy_(value)
    return moved - th.cat([parameter.flatten().double() for parameter in actor_parameters(policy)])


ESTIMATES: dict[str, Callable[[Testbed, Any], Tensor]] = {
    function.__name__: function
    for function in (
        one_update,
        at_another_policy,
        with_exact_critic,
        with_exact_slope,
        with_exact_value,
        at_another_policy_with_exact_value,
        one_iteration,
    )
}
