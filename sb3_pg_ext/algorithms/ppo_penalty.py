"""PPO with a KL penalty in place of the clipped ratio (Schulman et al. 2017, section 4).

    L = E[ rho_t A_t ] - beta KL(pi_old || pi),   rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)

is maximised over several epochs of minibatches, with A_t from GAE; beta is doubled or halved after each update whose KL
leaves [target / 1.5, 1.5 target].
"""

from __future__ import annotations

from typing import Any, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.behaviour import acting_behaviour, behaviour
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.bases.options import OnPolicyOptions, check_count, check_number
from sb3_pg_ext.bases.transaction import all_or_nothing
from sb3_pg_ext.functional.likelihood import importance_weights
from sb3_pg_ext.functional.returns import standardised
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus

#: Between these beta can recover within some twenty updates, whatever happened before.
SMALLEST_KL_COEF, LARGEST_KL_COEF = 1e-6, 1e6


class PPOPenalty(OnPolicyBase):
    """PPO with an adaptive KL penalty: the policy may move anywhere, at a price per nat.

    The KL divergence is exact: in closed form at every state. Advantages are bootstrapped where the window or a time
    limit cuts an episode.

    :param n_steps: steps per env and update
    :param batch_size: steps in a minibatch, at most (an epoch is cut into equal parts); None for all of them
    :param n_epochs: passes over the rollout per update
    :param gae_lambda: of the advantages and of the critic's targets
    :param kl_coef: beta at the start. The attribute holds the present one, which is saved with the model
    :param target_kl: KL(pi_old || pi) that an update should have; None keeps beta as it is
    :param normalize_advantage: standardise the advantages of each minibatch
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int | None = 64,
        n_epochs: int = 10,
        gae_lambda: float = 0.95,
        kl_coef: float = 1.0,
        target_kl: float | None = 0.01,
        normalize_advantage: bool = True,
        **common: Unpack[OnPolicyOptions],
    ):
        check_count("batch_size", batch_size, optional=True)
        check_count("n_epochs", n_epochs)
        check_number("kl_coef", kl_coef, 0)
        if target_kl is not None:
            check_number("target_kl", target_kl, 0, above=True)
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.kl_coef = kl_coef
        self.target_kl = target_kl
        self.normalize_advantage = normalize_advantage
        super().__init__(policy, env, learning_rate, n_steps=n_steps, gae_lambda=gae_lambda, **common)

    @all_or_nothing
    def update(self, rollout: Rollout) -> None:
        old = acting_behaviour(self.policy, rollout)
        with th.no_grad():
            values = self.policy.predict_values(rollout.observations).flatten()
        advantages, targets = self.gae(rollout, values)
        for _ in range(self.n_epochs):
            for index in rollout.epoch(self.batch_size, self.rng):
                new = behaviour(self.policy, batch := rollout.at(index))
                A = standardised(advantages[index]) if self.normalize_advantage else advantages[index]
                ratio = importance_weights(new.log_prob - old.log_prob[index])
                policy_loss = self.kl_coef * old.kl(new, index).mean() - (ratio * A).mean()
                value_loss = F.mse_loss(self.policy.predict_values(batch.observations).flatten(), targets[index])
                entropy_loss = -new.entropy.mean()
                self.descend(policy=policy_loss + self.ent_coef * entropy_loss, value=self.vf_coef * value_loss)
        self.record(policy_loss=policy_loss, value_loss=value_loss, entropy_loss=entropy_loss)
        self.record_fit(values, targets)
        self._adapt(old.kl(acting_behaviour(self.policy, rollout)).mean())

    def _adapt(self, kl: Tensor) -> None:
        """Set beta for the next update, from the KL(pi_old || pi) of this one."""
        self.record(kl=kl, kl_coef=self.kl_coef)
        if self.target_kl is not None:
            self.kl_coef = adapted_coefficient(self.kl_coef, kl.item(), self.target_kl)


def adapted_coefficient(kl_coef: float, kl: float, target_kl: float) -> float:
    """beta doubled where KL > 1.5 target, halved where KL < target / 1.5, within its bounds; else as it is."""
    if kl > 1.5 * target_kl:
        return min(2 * kl_coef, LARGEST_KL_COEF)
    if kl < target_kl / 1.5:
        return max(kl_coef / 2, SMALLEST_KL_COEF)
    return kl_coef


SPEC = AlgorithmSpec(
    PPOPenalty,
    family="on_policy",
    paper="Schulman et al. 2017, Proximal Policy Optimization Algorithms, eq. 8, arXiv:1707.06347",
    space={
        "learning_rate": Float(1e-5, 5e-3, log=True),
        "n_steps": Int(5, 11, power=2),
        "batch_size": Int(5, 9, power=2),
        "n_epochs": Int(1, 20, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "gae_lambda": OneMinus(1e-3, 0.2),
        "kl_coef": Float(0.1, 10.0, log=True),
        "target_kl": Float(3e-3, 0.1, log=True),
        "ent_coef": Choice(0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim(
            "first step",
            {"n_epochs": 1, "batch_size": None, "gae_lambda": 1.0, "target_kl": None, "normalize_advantage": False},
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
        ),
    ),
)
