"""ISPG, the importance-sampled policy gradient: several gradient steps on one batch drawn from pi_old.

    grad J = E_old[ sum_t w_t score_t A_t ],   rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)

with w_t = rho_t, or the product of all rho of the episode; or, decision by decision (Precup, Sutton & Singh 2000), with
each reward r_k weighted by the product of the rho up to k. The two products leave the gradient unbiased, at a variance
exponential in the horizon. w_t = rho_t keeps the states and the returns of pi_old: it gives the gradient of

    L(theta) = sum_s d_old(s) sum_a pi(a|s) Q_old(s, a),   which is that of J at pi = pi_old.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.behaviour import Behaviour, acting_behaviour, behaviour
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.bases.options import OnPolicyOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.transaction import all_or_nothing
from sb3_pg_ext.functional import likelihood as L
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.rollout.episodes import Rollout, gather, scatter
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus, When

Baseline = Literal["value", "mean"]


@dataclass
class Evidence:
    """What the gradient steps of an update share, fixed before the first of them. Padded columns (T, M).

    :param baseline: b_t
    :param next_values: V(s_{t+1}); read with ``baseline="value"`` only
    :param discounts: gamma^t, or 1
    :param advantages: A_t of pi_old; (A_t - ``mean``) / ``scale`` is what is followed
    """

    live: Tensor
    rewards: Tensor
    continues: Tensor
    baseline: Tensor
    next_values: Tensor
    discounts: Tensor
    advantages: Tensor
    mean: float = 0.0
    scale: float = 1.0

    def episodes(self, chosen: Tensor) -> Evidence:
        """Of the columns ``chosen`` (m,): (T, m)."""
        return self._each(lambda padded: padded[:, chosen])

    def steps(self, chosen: Tensor) -> Evidence:
        """Of the steps ``chosen`` (b,) of the flat batch, each a column of its own: (1, b)."""
        return self._each(lambda padded: gather(padded, self.live)[chosen].unsqueeze(0))

    def _each(self, part: Callable[[Tensor], Tensor]) -> Evidence:
        tensors: dict[str, Any] = {k: part(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


class ISPG(OnPolicyBase):
    """ISPG: REINFORCE that takes several gradient steps on each batch, corrected by importance sampling.

    The first step on the whole batch is REINFORCE's, bit for bit. What a time limit means depends on ``baseline`` as it
    does there: with ``"value"`` the cut is continued by gamma V(s_T), otherwise nothing follows it.

    :param n_steps: steps per env and update, at least; every episode that was begun is finished
    :param n_episodes: episodes per update in all, at least one per env; overrides ``n_steps``
    :param n_epochs: passes over the batch per update
    :param batch_size: steps (``ratio="step"``) or whole episodes (the products) a gradient step, at most; None for all
    :param ratio: ``"step"``: w_t = rho_t; ``"trajectory"``: the product over the episode; ``"per_decision"``: the
        product up to k for the reward r_k
    :param max_ratio: w is truncated there, which bounds the variance and biases the gradient; ``float("inf")`` never
    :param self_normalize: divide w by its mean over the batch: less variance, a bias of order 1 / number of episodes
    :param target_kl: no further step in this update once KL(pi_old || pi) of the minibatch is larger; None never stops
    :param baseline: ``"value"`` V(s) of before the first step; ``"mean"`` of the other episodes' returns at t; None
    :param gae_lambda: with ``baseline="value"``: below 1 the advantage is GAE(lambda), with less variance and some bias
    :param discount_states: weigh step t by gamma^t, as in REINFORCE
    :param normalize_advantage: standardise the advantages of the batch
    """

    whole_episodes: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 128,
        n_episodes: int | None = None,
        n_epochs: int = 8,
        batch_size: int | None = None,
        ratio: L.Ratio = "step",
        max_ratio: float = 10.0,
        self_normalize: bool = False,
        target_kl: float | None = 0.02,
        baseline: Baseline | None = "value",
        gae_lambda: float = 1.0,
        discount_states: bool = False,
        normalize_advantage: bool = False,
        **common: Unpack[OnPolicyOptions],
    ):
        check_count("n_epochs", n_epochs)
        check_count("batch_size", batch_size, optional=True)
        check_choice("ratio", ratio, L.Ratio)
        check_number("max_ratio", max_ratio, 1, math.inf)
        check_choice("baseline", baseline, Baseline | None)
        if target_kl is not None:
            check_number("target_kl", target_kl, 0, above=True)
        if gae_lambda != 1.0 and baseline != "value":
            raise ValueError(f"gae_lambda={gae_lambda} needs baseline='value'; else it must be 1")
        if n_episodes == 1 and baseline == "mean":
            raise ValueError("n_episodes=1: baseline='mean' compares an episode with others, so at least 2 are needed")
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.ratio = ratio
        self.max_ratio = max_ratio
        self.self_normalize = self_normalize
        self.target_kl = target_kl
        self.baseline = baseline
        self.discount_states = discount_states
        self.normalize_advantage = normalize_advantage
        super().__init__(
            policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, gae_lambda=gae_lambda, **common
        )

    def _least_episodes(self) -> int:
        return 2 if self.baseline == "mean" else 1

    @all_or_nothing
    def update(self, rollout: Rollout) -> None:
        old = acting_behaviour(self.policy, rollout)
        evidence, targets = self.evidence(rollout)
        losses: dict[str, Tensor] = {}
        for steps_taken, chosen in enumerate(self._minibatches(rollout)):
            part, index = self._part(rollout, evidence, chosen)
            new = behaviour(self.policy, batch := rollout.at(index))
            if losses and self.target_kl is not None and old.kl(new, index).mean() > self.target_kl:
                break
            psi = self.weighted_advantages(part, new.log_prob.detach() - old.log_prob[index])
            n_episodes = rollout.live.shape[1] * len(index) / len(rollout)
            policy_loss = L.score_function_loss(new.log_prob, psi, n_episodes)
            losses = {"policy": policy_loss - self.ent_coef * new.entropy.sum() / n_episodes}
            if targets is not None:
                values = self.policy.predict_values(batch.observations).flatten()
                losses["value"] = self.vf_coef * F.mse_loss(values, targets[index])
            self.descend(**losses)
            self.record(gradient_steps=steps_taken + 1, policy_loss=policy_loss, entropy_loss=-new.entropy.mean())
        self._record_weights(rollout, old)

    def evidence(self, rollout: Rollout) -> tuple[Evidence, Tensor | None]:
        """What the gradient steps share, and the critic's regression targets (B,), if there is one."""
        r, c = rollout.rewards, rollout.continues
        discounts = self.gamma ** R.episode_time(c).to(r.dtype) if self.discount_states else th.ones_like(r)
        baseline, next_values, targets = th.zeros_like(r), th.zeros_like(r), None
        if self.baseline == "mean":
            baseline = R.leave_one_out_mean(R.reward_to_go(r, c, self.gamma), rollout.live)
        elif self.baseline == "value":
            with th.no_grad():
                values = self.policy.predict_values(rollout.observations).flatten()
            baseline = rollout.pad(values)
            next_values = R.successor_values(baseline, c, self.cut_values(rollout))
        evidence = Evidence(rollout.live, r, c, baseline, next_values, discounts, baseline)
        evidence.advantages = self._advantages(evidence)
        flat = rollout.flatten(evidence.advantages)
        if self.baseline == "value":
            targets = flat + values
            self.record_fit(values, targets)
        if self.normalize_advantage and len(flat) > 1:
            evidence.mean, evidence.scale = flat.mean().item(), flat.std().item() + 1e-8
        return evidence, targets

    def _minibatches(self, rollout: Rollout) -> Iterator[Tensor]:
        """Of all epochs: indices of steps, or of episodes."""
        for _ in range(self.n_epochs):
            parts = rollout.epoch if self.ratio == "step" else rollout.epoch_of_columns
            yield from parts(self.batch_size, self.rng)

    def _part(self, rollout: Rollout, evidence: Evidence, chosen: Tensor) -> tuple[Evidence, Tensor]:
        """A minibatch's evidence, and the indices of its steps (b,)."""
        if self.ratio == "step":
            return evidence.steps(chosen), chosen
        return evidence.episodes(chosen), rollout.steps_of(chosen)

    def weighted_advantages(self, part: Evidence, log_ratio: Tensor) -> Tensor:
        """What the scores are multiplied by, (b,).

        :param part: of the minibatch
        :param log_ratio: log rho of its steps, (b,)
        """
        w = L.importance_weights(scatter(log_ratio, part.live), self.ratio, self.max_ratio, self.self_normalize)
        weighted = self._advantages(part, w) if self.ratio == "per_decision" else w * part.advantages
        return gather(part.discounts * ((weighted - w * part.mean) / part.scale), part.live)

    def _advantages(self, e: Evidence, w: Tensor | float = 1.0) -> Tensor:
        """sum_{k>=t} gamma^(k-t) w_k r_k - w_t b_t, or GAE(lambda) of w_k delta_k, padded."""
        if self.baseline == "value":
            values, next_values = w * e.baseline, w * e.next_values
            return R.gae(w * e.rewards, e.continues, values, next_values, self.gamma, self.gae_lambda)
        return R.reward_to_go(w * e.rewards, e.continues, self.gamma) - w * e.baseline

    def _record_weights(self, rollout: Rollout, old: Behaviour) -> None:
        """Log how far the policy has moved, and what is left of the batch: of steps, or of episodes."""
        new = acting_behaviour(self.policy, rollout)
        log_weights = L.LOG_PRODUCTS[self.ratio](rollout.pad(new.log_prob - old.log_prob))
        of_steps = rollout.flatten(log_weights)
        samples = of_steps if self.ratio == "step" else log_weights[-1]
        self.record(
            kl=old.kl(new).mean(),
            effective_sample_share=L.effective_sample_size(samples),
            truncated_share=(of_steps > math.log(self.max_ratio)).double().mean(),
        )


#: Two whole-batch steps without truncation: from pi_old to pi, and the one that is of interest.
_PLAIN = {"n_epochs": 2, "max_ratio": math.inf, "target_kl": None, "baseline": "mean", "discount_states": True}

SPEC = AlgorithmSpec(
    ISPG,
    family="on_policy",
    paper="Precup, Sutton & Singh 2000, Eligibility traces for off-policy policy evaluation; Degris, White & Sutton "
    "2012, Off-policy actor-critic",
    space={
        "learning_rate": Float(1e-4, 3e-2, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "n_steps": Int(5, 10, power=2),
        "n_epochs": Int(1, 16, log=True),
        "ratio": Choice("step", "per_decision", "trajectory"),
        "batch_size": When("ratio", ("step",), Choice(None, 64, 256)),
        "max_ratio": Float(1.0, 100.0, log=True),
        "self_normalize": Choice(False, True),
        "target_kl": Choice(None, 0.01, 0.03, 0.1),
        "baseline": Choice("value", "mean", None),
        "gae_lambda": When("baseline", ("value",), Choice(0.9, 0.95, 0.98, 1.0)),
        "normalize_advantage": Choice(False, True),
        "ent_coef": Float(1e-8, 0.1, log=True),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([], [64], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim("on-policy", {**_PLAIN, "n_epochs": 1}),
        *(
            GradientClaim(f"off-policy, {ratio}", {**_PLAIN, "ratio": ratio}, estimate="at_another_policy")
            for ratio in ("trajectory", "per_decision")
        ),
        GradientClaim(
            "off-policy, step",
            {**_PLAIN, "ratio": "step"},
            target="gradient_at_old_states",
            bias="states and returns stay those of the policy that acted",
            estimate="at_another_policy",
        ),
        GradientClaim(
            "off-policy, normalised",
            {**_PLAIN, "ratio": "per_decision", "self_normalize": True},
            holds="limit",
            estimate="at_another_policy",
        ),
    ),
)
