"""Adam on the CPU, stepping all parameters in one kernel and past the bookkeeping of ``torch.optim``."""

from __future__ import annotations

import operator
from typing import Any

import torch as th
from torch import Tensor


class Stepper:
    """``optimizer.step()``; for a fused Adam without extras the same numbers, sooner.

    The optimizer's state stays where torch looks for it. Only its counters are made neighbours in one vector, so that
    they can be raised at once.

    :param optimizer: any one; its ``load_state_dict`` may be called at any time
    """

    def __init__(self, optimizer: th.optim.Optimizer):
        self.optimizer = optimizer
        self.state: Any = None
        self.parameters: list[Tensor] = []
        self.counters = th.zeros(0)
        self.columns: dict[str, list[Tensor]] = {}

    @th.no_grad()
    def __call__(self) -> None:
        group = self.optimizer.param_groups[0]
        gradients = [parameter.grad for parameter in group["params"]]
        if not self._is_simple(group) or not self._has_state(group["params"], gradients):
            self.optimizer.step()  # whose first call makes the state
            return
        beta1, beta2 = group["betas"]
        self.counters.add_(1)
        th._fused_adam_(
            self.parameters,
            [gradient for gradient in gradients if gradient is not None],
            self.columns["exp_avg"],
            self.columns["exp_avg_sq"],
            [],
            self.columns["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )

    def _is_simple(self, group: dict[str, Any]) -> bool:
        optimizer = self.optimizer
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        extras = hooks or group.get("amsgrad") or group.get("decoupled_weight_decay") or len(optimizer.param_groups) > 1
        adam = type(optimizer) is th.optim.Adam and group["fused"] and isinstance(group["lr"], float)
        return adam and not extras and group["params"][0].device.type == "cpu"

    def _has_state(self, parameters: list[Tensor], gradients: list[Tensor | None]) -> bool:
        """Whether all that have a gradient have a state; it is collected anew unless it is that of the last time."""
        moved = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        if self._is_known(moved):
            return True
        known = self.optimizer.state
        states = [known[parameter] for parameter in moved if known.get(parameter)]
        if not moved or len(states) < len(moved):
            return False
        self.state, self.parameters, self.counters = known, moved, th.stack([state["step"] for state in states])
        for state, counter in zip(states, self.counters.unbind(), strict=True):
            state["step"] = counter
        self.columns = {name: [state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq")}
        return True

    def _is_known(self, moved: list[Tensor]) -> bool:
        """Loading puts another object in the place of the whole state; clearing it takes the first counter away."""
        same = self.state is self.optimizer.state and len(moved) == len(self.parameters)
        if not same or not all(map(operator.is_, moved, self.parameters)):
            return False
        return bool(moved) and self.state.get(moved[0], {}).get("step") is self.columns["step"][0]
