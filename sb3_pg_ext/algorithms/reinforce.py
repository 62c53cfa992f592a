"""REINFORCE (Williams 1992), with every baseline.

    grad J = E[ sum_t score_t (Psi_t - b_t) ],   score_t = grad log pi(a_t|s_t)

Psi_t is the reward-to-go G_t or the return R(tau) of the whole episode; b_t is V(s_t), the mean of the other episodes,
the constant of least variance, or nothing. The estimate is the mean over M whole episodes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.on_policy import LogDensity, OnPolicyBase
from sb3_pg_ext.bases.options import OnPolicyOptions, check_choice
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.functional.likelihood import score_function_loss, squared_score_norms
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus, When

Returns = Literal["reward_to_go", "trajectory"]
Baseline = Literal["value", "mean", "optimal"]
RETURNS = {"reward_to_go": R.reward_to_go, "trajectory": R.total_return}


class REINFORCE(OnPolicyBase):
    """REINFORCE: the score-function gradient over whole episodes.

    A time limit is part of the task for ``baseline`` ``"mean"``, ``"optimal"`` and None: what would come after it
    counts as 0. With ``baseline="value"`` the cut is continued by gamma V(s_T) of the terminal observation.

    :param n_steps: steps per env and update, at least; every episode that was begun is finished
    :param n_episodes: episodes per update in all, at least one per env; overrides ``n_steps``
    :param returns: ``"reward_to_go"``: Psi_t = G_t; ``"trajectory"``: Psi_t = R(tau) for every t
    :param discount_states: weigh step t by gamma^t, the exact gradient of the discounted start-state objective;
        without it (usual practice) the estimate is biased when gamma < 1. R(tau) is discounted from the start,
        so with ``returns="trajectory"`` the gradient is the exact one either way
    :param baseline: ``"value"`` V(s), fitted to the returns after the policy step; ``"mean"`` of the other episodes at
        their step t; ``"optimal"`` the same, weighted by the squared score norms (least variance); None
    :param gae_lambda: with ``baseline="value"``: below 1 the advantage is GAE(lambda), with less variance and some bias
    :param normalize_advantage: subtract the batch's mean and divide by its standard deviation
    """

    whole_episodes: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 128,
        n_episodes: int | None = None,
        returns: Returns = "reward_to_go",
        discount_states: bool = False,
        baseline: Baseline | None = "value",
        gae_lambda: float = 1.0,
        normalize_advantage: bool = False,
        **common: Unpack[OnPolicyOptions],
    ):
        check_choice("returns", returns, Returns)
        check_choice("baseline", baseline, Baseline | None)
        if gae_lambda != 1.0 and (baseline != "value" or returns != "reward_to_go"):
            raise ValueError(
                f"gae_lambda={gae_lambda} needs baseline='value' and returns='reward_to_go'; else it must be 1"
            )
        if n_episodes == 1 and baseline in ("mean", "optimal"):
            raise ValueError(
                f"n_episodes=1: baseline={baseline!r} compares an episode with others, so at least 2 are needed"
            )
        self.returns = returns
        self.discount_states = discount_states
        self.baseline = baseline
        self.normalize_advantage = normalize_advantage
        super().__init__(
            policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, gae_lambda=gae_lambda, **common
        )

    def _least_episodes(self) -> int:
        return 2 if self.baseline in ("mean", "optimal") else 1  # an episode is compared with the others

    def update(self, rollout: Rollout) -> None:
        if self.baseline == "value":
            values, log_prob, entropy = self.evaluate(rollout)
            psi, targets = self._critic_weights(rollout, values.detach())
            losses = {"value": self.vf_coef * F.mse_loss(values, targets)}
            self.record_fit(values, targets)
        else:
            log_prob, entropy = self.evaluate_actor(rollout)
            psi, losses = self._monte_carlo_weights(rollout), {}
        if self.normalize_advantage:
            psi = R.standardised(psi)
        if self.discount_states and self.returns == "reward_to_go":  # R(tau) is discounted from the start already
            psi = psi * self.gamma ** rollout.flatten(R.episode_time(rollout.continues)).to(psi.dtype)
        n_episodes = rollout.live.shape[1]
        policy_loss = score_function_loss(log_prob, psi, n_episodes)
        entropy_loss = -entropy.sum() / n_episodes
        self.descend(policy=policy_loss + self.ent_coef * entropy_loss, **losses)
        self.record(
            policy_loss=policy_loss, entropy_loss=-entropy.mean(), **{f"{k}_loss": v for k, v in losses.items()}
        )

    def _critic_weights(self, rollout: Rollout, values: Tensor) -> tuple[Tensor, Tensor]:
        """Psi - V(s) and the regression targets of V, both (B,)."""
        if self.returns == "reward_to_go":
            return self.gae(rollout, values)
        r, c = rollout.rewards, rollout.continues
        next_values = R.successor_values(rollout.pad(values), c, self.cut_values(rollout))
        psi = R.total_return(r, c, self.gamma, next_values)
        targets = R.reward_to_go(r, c, self.gamma, next_values)
        return rollout.flatten(psi) - values, rollout.flatten(targets)

    def _monte_carlo_weights(self, rollout: Rollout) -> Tensor:
        """Psi - b without a critic, (B,)."""
        psi = RETURNS[self.returns](rollout.rewards, rollout.continues, self.gamma)
        if self.baseline is None:
            return rollout.flatten(psi)
        if self.baseline == "mean":
            return rollout.flatten(psi - R.leave_one_out_mean(psi, rollout.live))
        norms = squared_score_norms(LogDensity(self.policy), (rollout.observations, rollout.actions))
        return rollout.flatten(psi - R.leave_one_out_weighted_mean(psi, rollout.pad(norms)))


SPEC = AlgorithmSpec(
    REINFORCE,
    family="on_policy",
    paper="Williams 1992, Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    space={
        "learning_rate": Float(1e-4, 1e-1, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "n_steps": Int(5, 10, power=2),
        "baseline": Choice("value", "mean", "optimal", None),
        "gae_lambda": When("baseline", ("value",), Choice(1.0, 0.99, 0.97, 0.95)),
        "normalize_advantage": Choice(False, True),
        "ent_coef": Float(1e-8, 0.1, log=True),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([], [64], [64, 64], [256, 256]),
    },
    claims=(
        *(
            GradientClaim(f"to-go, {baseline or 'none'}", {"baseline": baseline, "discount_states": True})
            for baseline in (None, "mean", "optimal", "value")
        ),
        *(
            GradientClaim(
                f"to-go, {baseline or 'none'}, usual",
                {"baseline": baseline},
                target="gradient_undiscounted_states",
                bias="steps are not weighed by gamma^t, the usual practice",
            )
            for baseline in (None, "mean", "optimal", "value")
        ),
        *(
            GradientClaim(f"trajectory, {baseline or 'none'}", {"returns": "trajectory", "baseline": baseline})
            for baseline in (None, "mean", "optimal", "value")
        ),
        GradientClaim(
            "GAE 0.8, wrong critic",
            {"discount_states": True, "gae_lambda": 0.8},
            target="gradient_with_critic",
            bias="lambda < 1 lets the critic's errors in, and here the critic is random",
        ),
    ),
)
