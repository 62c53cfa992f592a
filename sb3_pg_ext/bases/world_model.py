"""How an environment works, as far as it is known, and learned where it is not: the next state, the reward, the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch as th
from torch import Tensor, nn

from sb3_pg_ext.bases.model_fitting import fit, multi_step_errors
from sb3_pg_ext.nets.dynamics import (
    GaussianDynamics,
    KnownDynamics,
    RewardModel,
    TerminationModel,
    equations_of,
    of_batch,
)

#: Observations (B, S), actions (B, A) and next observations (B, S) -> (B,).
OfTransition = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Transitions by name of column: ``states``, ``executed``, ``next_states``, ``rewards``, ``terminated``, ``held_out``.
Columns = dict[str, Tensor]
#: Steps ahead over which the error of a model is measured.
ERROR_HORIZON = 10


class WorldModel(nn.Module):
    """The three maps of a Markov decision process; actions are in the environment's units.

    :param n_states: S
    :param n_actions: A
    :param known: names among ``dynamics``, ``reward_fn``, ``termination_fn`` of what is not to be learned
    :param dynamics: as for :class:`~sb3_pg_ext.nets.dynamics.KnownDynamics`, or None
    :param reward_fn: r(s, a, s'), or None
    :param termination_fn: p(s, a, s'), or None
    :param n_models: members of the ensemble that learns the dynamics
    :param net_arch: hidden layers of what is learned
    :param learning_rate: first step size of what is learned
    """

    def __init__(
        self,
        n_states: int,
        n_actions: int,
        known: Iterable[str],
        dynamics: Any,
        reward_fn: OfTransition | None,
        termination_fn: OfTransition | None,
        n_models: int,
        net_arch: Sequence[int],
        learning_rate: float,
    ):
        super().__init__()
        self.reward_fn, self.termination_fn, self.env = reward_fn, termination_fn, equations_of(dynamics)
        self.known_dynamics = None if dynamics is None else KnownDynamics(dynamics, n_states)
        known = set(known)
        parts: dict[str, Any] = {}
        if "dynamics" not in known:
            parts["dynamics"] = GaussianDynamics(n_states, n_actions, n_members=n_models, net_arch=net_arch)
        if "reward_fn" not in known:
            parts["reward"] = RewardModel(n_states, n_actions, net_arch=net_arch)
        if "termination_fn" not in known:
            parts["termination"] = TerminationModel(n_states, n_actions, net_arch=net_arch)
        for model in parts.values():
            model.optimizer = th.optim.Adam(model.parameters(), lr=learning_rate)
        self.learned: Any = nn.ModuleDict(parts)

    @property
    def dynamics(self) -> Any:
        """f(s, a, zeta) with its ``infer_noise`` and ``sample_noise``."""
        return self.learned["dynamics"] if self.known_dynamics is None else self.known_dynamics

    def reward(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:
        """r(s, a, s'): (B, S), (B, A), (B, S) -> (B,)."""
        if self.reward_fn is not None:
            return of_batch("reward_fn", self.reward_fn(states, actions, next_states), (len(states),))
        if "reward" in self.learned:
            return self.learned["reward"](states, actions, next_states)
        return self.env.reward(self.env.state_of(states), actions, self.env.state_of(next_states))

    def termination(self, states: Tensor, actions: Tensor, next_states: Tensor) -> Tensor:
        """Probability that the step ends the episode: (B, S), (B, A), (B, S) -> (B,)."""
        if self.termination_fn is not None:
            ends = of_batch("termination_fn", self.termination_fn(states, actions, next_states), (len(states),))
            return ends.to(states.dtype)
        return self.learned["termination"](states, actions, next_states)

    def learn(self, new: Columns, data: Columns, rng: np.random.Generator, **settings: Any) -> dict[str, float]:
        """Fit all that is not known.

        :param new: transitions (n, ...) that came in since the last fit: statistics are taken of these
        :param data: all transitions that are kept, the new ones among them: weights are fitted to these
        :param settings: as for :func:`sb3_pg_ext.bases.model_fitting.fit`
        :return: what is worth logging
        """
        found: dict[str, float] = {}
        for name, model in self.learned.items():
            model.learn_scales(*regression(name, new))
            if name != "termination" or model.has_seen_an_end:
                result = fit(model, model.optimizer, *regression(name, data), data["held_out"], rng, **settings)
                found |= {f"{name}_loss": result.loss.mean().item(), f"{name}_epochs": result.epochs}
        if "dynamics" in self.learned:
            unseen = data["held_out"] if data["held_out"].any() else slice(None)
            inputs, targets = (rows[unseen] for rows in regression("dynamics", data))
            self.learned["dynamics"].learn_sigma(inputs, targets)
            likelihood = self.learned["dynamics"].log_likelihood(inputs, targets)
            found["holdout_log_likelihood"] = likelihood.mean().item()
        return found

    def errors_ahead(self, columns: Columns) -> dict[str, float]:
        """How far learned dynamics are off one and several steps ahead, in standard deviations of the states.

        :param columns: transitions (T, N, ...), best those that were not learned from yet
        """
        if "dynamics" not in self.learned:
            return {}
        model = self.learned["dynamics"]
        states, executed, reached = (columns[name] for name in ("states", "executed", "next_states"))
        n_steps, n_envs, size = states.shape
        noise = states.new_zeros(min(ERROR_HORIZON, n_steps), n_steps * n_envs, size)
        scale = model.inputs.std[:size].to(noise.dtype)
        errors = multi_step_errors(model, states, executed, reached, columns["continues"], noise, scale)
        return {"error_1_step": errors[0].item(), f"error_{len(errors)}_steps": errors[-1].item()}


def regression(name: str, data: Columns) -> tuple[Tensor, Tensor]:
    """Inputs (n, I) and targets (n, O) of the part called ``name``, from transitions (n, ...)."""
    states, executed, next_states = data["states"], data["executed"], data["next_states"]
    if name == "dynamics":
        return th.cat([states, executed], 1), next_states - states
    targets = data["rewards"] if name == "reward" else data["terminated"]
    return th.cat([states, executed, next_states], 1), targets.unsqueeze(1)
