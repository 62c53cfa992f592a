"""SVG(1), the one-step stochastic value gradient (Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015).

    zeta = s' - f(s, a),   z = (a - mu(s)) / sigma(s)   inferred from a real transition, then frozen

    grad J = E[ w grad ( r(s, a) + gamma V(f(s, a) + zeta) ) ],   a = pi(s, z),   w = pi(a|s) / pi_old(a|s)

The model f only carries the gradient: the next state at which V is differentiated is the real one.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from sb3_pg_ext.bases.model_based import ModelBasedBase, ModelBasedOptions
from sb3_pg_ext.bases.options import check_count, check_number
from sb3_pg_ext.bases.world_model import Columns
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus


class SVG1(ModelBasedBase):
    """SVG(1): a learned value, differentiated through one step of a model at real transitions.

    Transitions of the last ``buffer_size`` steps are replayed. Those of an earlier policy count by the importance
    weight w, truncated at ``max_ratio``, in both losses. Nothing follows a terminal state; a time limit ends nothing.

    :param n_steps: steps per env and update
    :param gradient_steps: minibatches per update
    :param batch_size: transitions in a minibatch
    :param max_ratio: largest importance weight
    :param tau: share of the value that the target value, which is differentiated and continued by, takes per minibatch
    """

    has_target: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 200,
        gradient_steps: int = 100,
        batch_size: int = 128,
        max_ratio: float = 5.0,
        tau: float = 0.02,
        **common: Unpack[ModelBasedOptions],
    ):
        check_count("gradient_steps", gradient_steps)
        check_count("batch_size", batch_size)
        check_number("max_ratio", max_ratio, 0, float("inf"), above=True)
        check_number("tau", tau, 0, 1)
        self.gradient_steps = gradient_steps
        self.batch_size = batch_size
        self.max_ratio = max_ratio
        self.tau = tau
        super().__init__(policy, env, learning_rate, n_steps=n_steps, **common)

    def improve(self, rollout: Rollout, columns: Columns) -> None:
        for _ in range(self.gradient_steps):
            self.step(self.transitions.sample(self.batch_size, self.rng))
            self._follow(self.tau)

    def step(self, batch: Columns) -> None:
        """One step of policy and value, from transitions (B, ...)."""
        states = batch["states"]
        with th.no_grad():
            ratios = (self.pathwise.log_prob(states, batch["actions"]) - batch["log_probs"]).exp()
            weights = ratios.clamp(max=self.max_ratio)
            following = (1 - batch["terminated"]) * self.target.value(batch["next_states"])
            targets = batch["rewards"] + self.gamma * following
        gains = self.imagined_values(batch)
        values = self.pathwise.value(states)
        entropy = self.pathwise.entropy(states).mean()
        policy_loss = -(weights * gains).mean()
        value_loss = self.vf_coef * (weights * (values - targets).square()).mean()
        self.descend(policy=policy_loss - self.ent_coef * entropy, value=value_loss)
        self.record(policy_loss=policy_loss, value_loss=value_loss, entropy_loss=-entropy)
        self.record(truncated_share=(ratios > self.max_ratio).double().mean())
        self.record(effective_share=weights.mean().square() / weights.square().mean().clamp(min=1e-30))
        self.record_fit(values, targets)

    def imagined_values(self, batch: Columns) -> Tensor:
        """r(s, a, s') + gamma V(s') of real transitions, (B,), as a function of the policy's parameters."""
        z, zeta = self.infer_noise(batch["states"], batch["actions"], batch["next_states"])
        imagined = self.imagined(
            batch["states"],
            z.unsqueeze(0),
            zeta.unsqueeze(0),
            termination=lambda *_: batch["terminated"],
            value=self.target.value,
        )
        error = (imagined.states[1] - batch["next_states"]).abs().max()
        self.logger.record("svg/reconstruction_error", error.item())
        return imagined.returns


_KNOWN = {
    "dynamics": "testbed:dynamics",
    "termination_fn": "testbed:termination",
    "batch_size": "testbed:steps",
}

SPEC = AlgorithmSpec(
    SVG1,
    family="model_based",
    paper="Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015, Learning continuous control policies by stochastic "
    "value gradients, algorithm 2",
    action_spaces=("Box",),
    policies=("MlpPolicy",),
    space={
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "gamma": OneMinus(1e-3, 0.1),
        "n_steps": Int(5, 9, power=2),
        "gradient_steps": Int(4, 8, power=2),
        "batch_size": Int(5, 9, power=2),
        "max_ratio": Choice(1.0, 2.0, 5.0, 10.0),
        "tau": Float(1e-3, 0.1, log=True),
        "ent_coef": Float(1e-4, 1.0, log=True),
        "max_grad_norm": Float(0.3, 100.0, log=True),
        "buffer_size": Choice(1_000, 3_000, 10_000, 30_000),
        "n_models": Int(1, 5),
        "model_net_arch": Choice([], [64, 64], [128, 128]),
        "model_learning_rate": Float(3e-4, 1e-2, log=True),
        "policy_kwargs.net_arch": Choice([], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim(
            "exact V",
            {**_KNOWN, "gradient_steps": 1},
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
            estimate="with_exact_value",
            kind="pathwise",
        ),
        GradientClaim(
            "exact V, replayed",
            {**_KNOWN, "gradient_steps": 2, "max_ratio": math.inf},
            target="gradient_at_old_states",
            bias="states and returns stay those of the policy that acted",
            mean_over="steps",
            estimate="at_another_policy_with_exact_value",
            kind="pathwise",
        ),
    ),
)
