"""QAC, the action-value actor-critic (Sutton, McAllester, Singh & Mansour 2000; Konda & Tsitsiklis 2000).

    delta_t = r_t + gamma (1 - terminated_t) Q_w(s_{t+1}, a_{t+1}) - Q_w(s_t, a_t),   a_{t+1} ~ pi(.|s_{t+1})
    theta <- theta + alpha Q_w(s_t, a_t) score_t,     w <- w + beta delta_t grad_w Q_w(s_t, a_t)

Both steps are taken at once, from a window of T steps of N envs, with the policy and the critic that it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.on_policy import OnPolicyBase, log_prob_and_entropy
from sb3_pg_ext.bases.options import OnPolicyOptions, check_choice, check_count, check_learning_rate, check_number
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.nets.critics import DiscreteCritic, StateActionCritic, critic_like
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus

CriticTarget = Literal["sarsa", "expected_sarsa"]
ActorWeight = Literal["advantage", "q"]
#: Of Q(s, a) and its mean E_pi Q(s, .), what continues the critic's target, and what the score is multiplied by.
Pick = Callable[[Tensor, Tensor], Tensor]
CRITIC_TARGETS: dict[str, Pick] = {"sarsa": lambda q, mean: q, "expected_sarsa": lambda q, mean: mean}
ACTOR_WEIGHTS: dict[str, Pick] = {"advantage": lambda q, mean: q - mean, "q": lambda q, mean: q}


class QAC(OnPolicyBase):
    """QAC: an actor that climbs a learned action value, and a critic that follows the actor.

    The critic is a net of its own, with its own optimizer: one output an action for ``Discrete`` actions, Q(s, a) of
    the state and the action for all others. Inside the window a_{t+1} is the action that was then taken; after its
    last step, and at a time-out, it is drawn from the same policy at the observation reached (the *terminal* one).

    :param n_steps: T, steps per env and update
    :param critic_learning_rate: step size of the critic, or a schedule of the remaining progress (1 to 0)
    :param critic_target: ``"sarsa"`` continues the return by Q(s', a'), ``"expected_sarsa"`` by sum_a pi(a|s') Q(s', a)
        (``Discrete`` actions only)
    :param trace_decay: lambda of the SARSA(lambda) target within the window; 0 is one step, 1 all steps of the window
    :param actor_weight: the score is multiplied by ``"advantage"``, Q(s, a) - E_pi Q(s, .), or by ``"q"``, Q(s, a)
    :param n_action_samples: K, actions whose mean Q stands for E_pi Q(s, .) where the actions are not ``Discrete``
    :param all_actions: follow sum_a grad pi(a|s) Q(s, a) in place of the score of the action taken (``Discrete`` only);
        ``actor_weight`` makes no difference then
    :param discount_states: weigh the actor's step t of an episode by gamma^t, as the gradient of the discounted
        start-state objective does; without it (usual practice) the gradient is biased when gamma < 1
    """

    usual_log_interval: ClassVar[int] = 100
    critic: DiscreteCritic | StateActionCritic

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 5e-4,
        n_steps: int = 16,
        critic_learning_rate: float | Schedule = 5e-3,
        critic_target: CriticTarget = "sarsa",
        trace_decay: float = 0.9,
        actor_weight: ActorWeight = "advantage",
        n_action_samples: int = 8,
        all_actions: bool = False,
        discount_states: bool = False,
        **common: Unpack[OnPolicyOptions],
    ):
        check_learning_rate(critic_learning_rate, "critic_learning_rate")
        check_choice("critic_target", critic_target, CriticTarget)
        check_number("trace_decay", trace_decay, 0, 1)
        check_choice("actor_weight", actor_weight, ActorWeight)
        check_count("n_action_samples", n_action_samples)
        self.critic_learning_rate = critic_learning_rate
        self.critic_target = critic_target
        self.trace_decay = trace_decay
        self.actor_weight = actor_weight
        self.n_action_samples = n_action_samples
        self.all_actions = all_actions
        self.discount_states = discount_states
        super().__init__(policy, env, learning_rate, n_steps=n_steps, **common)

    def _setup_model(self) -> None:
        self._refuse_sums_over_actions()
        super()._setup_model()
        self.critic_lr_schedule = FloatSchedule(self.critic_learning_rate)
        self.critic = critic_like(self.policy).to(self.device)
        optimizer: Any = self.policy.optimizer_class
        self.critic.optimizer = optimizer(
            self.critic.parameters(), lr=self.critic_lr_schedule(1), **self.policy.optimizer_kwargs
        )
        self._elapsed = np.zeros(self.n_envs, dtype=np.int64)

    def _refuse_sums_over_actions(self) -> None:
        sums = {"critic_target": self.critic_target == "expected_sarsa", "all_actions": self.all_actions}
        for name, asked_for in sums.items():
            if asked_for and not isinstance(self.action_space, spaces.Discrete):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} sums over all actions, so it needs a Discrete action space, "
                    f"not {self.action_space}; other spaces take critic_target='sarsa' and all_actions=False"
                )

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *_: Any, **__: Any) -> bool:
        self._elapsed[self._last_episode_starts] = 0
        going_on = super().collect_rollouts(env, callback)
        if not going_on and self.discount_states:
            self._last_obs = None  # how old the episodes are is not known in mid-window: the next learn() resets
        return going_on

    def update(self, rollout: Rollout) -> None:
        update_learning_rate(
            self.critic.optimizer, rate := self._scheduled("critic_learning_rate", self.critic_lr_schedule)
        )
        cut = self.cut_values(rollout)  # first: a policy has but one distribution object, which each call overwrites
        pi = self.policy.get_distribution(rollout.observations)
        log_prob, entropy = log_prob_and_entropy(pi, rollout.actions)
        q, mean = self.action_values(pi, rollout.observations, rollout.actions)
        targets = self.critic_targets(rollout, q.detach(), mean.detach(), cut)
        gain = mean if self.all_actions else ACTOR_WEIGHTS[self.actor_weight](q, mean).detach() * log_prob
        policy_loss = -(self._state_weights(rollout) * gain).mean()
        entropy_loss = -entropy.mean()
        critic_loss = self.vf_coef * F.mse_loss(q, targets)
        self.descend(policy=policy_loss + self.ent_coef * entropy_loss, critic=critic_loss)
        self.record(policy_loss=policy_loss, entropy_loss=entropy_loss, critic_loss=critic_loss)
        self.record(critic_learning_rate=rate)
        self.record_fit(q, targets)

    def action_values(self, pi: Any, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Q_w(s, a), (B,), which carries the gradient in w alone, and E_pi Q_w(s, .), (B,), which carries none in w.

        For ``Discrete`` actions the latter is sum_a pi(a|s) Q_w(s, a) with its gradient in theta, for others the mean
        of K independent actions; where nothing asks for it, 0.

        :param pi: the policy's distribution at ``obs``
        :param obs: (B, ...) or a dict of such
        :param actions: (B, ...)
        """
        if isinstance(self.critic, DiscreteCritic):
            every = self.critic.every_action(obs)
            return every.gather(1, actions.unsqueeze(1)).squeeze(1), (pi.distribution.probs * every.detach()).sum(1)
        q = self.critic(obs, actions)
        if self.actor_weight == "q":
            return q, th.zeros_like(q)
        with th.no_grad():
            return q, self.critic(obs, independent_actions(pi, self.n_action_samples)).mean(0)

    def cut_values(self, rollout: Rollout) -> Tensor:
        """The continuation after time-outs and after the window, by an action drawn there, (T, N); 0 elsewhere."""
        if rollout.cut_observations is None:
            return th.zeros_like(rollout.rewards)
        with th.no_grad():
            obs, _ = self.policy.obs_to_tensor(rollout.cut_observations)
            pi = self.policy.get_distribution(obs)
            values = self.action_values(pi, obs, independent_actions(pi, 1)[0])
            return rollout.pad_cut(CRITIC_TARGETS[self.critic_target](*values))

    def critic_targets(self, rollout: Rollout, q: Tensor, mean: Tensor, cut: Tensor) -> Tensor:
        """The SARSA(lambda) or expected SARSA(lambda) target of every step, (B,).

        :param q: Q(s_t, a_t), (B,)
        :param mean: E_pi Q(s_t, .), (B,)
        :param cut: as :meth:`cut_values` gives it, (T, N)
        """
        following = rollout.pad(CRITIC_TARGETS[self.critic_target](q, mean))
        next_values = R.successor_values(following, rollout.continues, cut)
        targets = R.td_lambda(rollout.rewards, rollout.continues, next_values, self.gamma, self.trace_decay)
        return rollout.flatten(targets)

    def _state_weights(self, rollout: Rollout) -> Tensor | float:
        """gamma^t of each step's place t in its episode, (B,), or 1."""
        if not self.discount_states:
            return 1.0
        time = R.episode_time(rollout.continues, th.from_numpy(self._elapsed).to(self.device))
        self._elapsed = time[-1].cpu().numpy() + 1
        return self.gamma ** rollout.flatten(time).to(rollout.rewards.dtype)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [self.policy.optimizer, self.critic.optimizer]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "critic", "critic.optimizer"], tensors

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "critic_lr_schedule", "_elapsed"]


def independent_actions(pi: Any, n: int) -> Tensor:
    """``n`` actions of every state, independent of all others and of those that were taken: (n, B, ...).

    An SB3 distribution samples one; with gSDE it would be the noise matrix of the rollout once more.

    :param pi: an SB3 distribution
    """
    parts = pi.distribution
    if isinstance(parts, list):  # of a MultiDiscrete action, one for each number
        return th.stack([part.sample((n,)) for part in parts], dim=-1)
    actions: Tensor = parts.sample((n,))
    bijector = getattr(pi, "bijector", None)
    return actions if bijector is None else bijector.forward(actions)


SPEC = AlgorithmSpec(
    QAC,
    family="on_policy",
    paper="Sutton, McAllester, Singh & Mansour 2000, Policy gradient methods for reinforcement learning with function "
    "approximation; Konda & Tsitsiklis 2000, Actor-critic algorithms",
    space={
        "learning_rate": Float(1e-5, 1e-2, log=True),
        "critic_learning_rate": Float(1e-4, 3e-2, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "n_steps": Int(0, 7, power=2),
        "trace_decay": Choice(0.0, 0.5, 0.8, 0.9, 0.95, 1.0),
        "actor_weight": Choice("advantage", "q"),
        "ent_coef": Float(1e-8, 0.1, log=True),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([], [64], [64, 64], [256, 256]),
    },
    claims=(
        *(
            GradientClaim(
                f"exact Q, {weight}",
                {"actor_weight": weight, "discount_states": True},
                mean_over="steps",
                estimate="with_exact_critic",
            )
            for weight in ("q", "advantage")
        ),
        GradientClaim(
            "exact Q, all actions",
            {"all_actions": True, "discount_states": True},
            mean_over="steps",
            estimate="with_exact_critic",
            action_spaces=("Discrete",),
        ),
        GradientClaim(
            "exact Q, usual",
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
            estimate="with_exact_critic",
        ),
    ),
)
