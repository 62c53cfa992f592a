"""Adam on the CPU, stepping all parameters in one kernel and past the bookkeeping of ``torch.optim``."""

from __future__ import annotations

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
        self.counters = th.zeros(0)
        self.columns: dict[str, list[Tensor]] = {"step": []}

    def __call__(self) -> None:
        group = self.optimizer.param_groups[0]
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not self._is_simple(group) or not all(self.optimizer.state.get(p) for p in parameters):
            self.optimizer.step()  # whose first call makes the state
            return
        self._look_for_state(parameters)
        self.counters.add_(1)
        with th.no_grad():
            th._fused_adam_(
                parameters,
                [parameter.grad for parameter in parameters],
                self.columns["exp_avg"],
                self.columns["exp_avg_sq"],
                [],
                self.columns["step"],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
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

    def _look_for_state(self, parameters: list[Tensor]) -> None:
        """Collect the state anew, unless every counter is the one that was put there."""
        states = [self.optimizer.state[parameter] for parameter in parameters]
        ours = self.columns["step"]
        if len(ours) == len(states) and all(s["step"] is c for s, c in zip(states, ours, strict=True)):
            return
        self.counters = th.stack([state["step"] for state in states])
        for state, counter in zip(states, self.counters.unbind(), strict=True):
            state["step"] = counter
        self.columns = {name: [state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq")}
