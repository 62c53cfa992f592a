"""SVG(0), the stochastic value gradient without a model (Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015).

    theta <- theta + alpha grad_theta mean_t Q_w(s_t, pi_theta(s_t, z_t)),     z_t drawn anew
    w     <- w - beta grad_w mean_t (Q_w(s_t, a_t) - target_t)^2

The action is a differentiable function of the policy's outputs and of noise, so the gradient goes through it: DDPG for
stochastic policies. Both steps are taken at once, with the policy and the critics as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Unpack

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import RolloutReturn, Schedule
from torch import Tensor, nn

from sb3_pg_ext.bases.off_policy import OffPolicyBase
from sb3_pg_ext.bases.options import OffPolicyOptions, check_choice, check_number
from sb3_pg_ext.functional import returns
from sb3_pg_ext.nets.ensemble_critics import EnsembleCritic
from sb3_pg_ext.nets.pathwise_gradients import Gradients, gradients_of
from sb3_pg_ext.nets.reparametrised import Actor, CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_pg_ext.rollout.replay import Minibatch, Window, latest
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus

Data = Literal["replay", "on_policy"]


class SVG0(OffPolicyBase):
    """SVG(0): a stochastic policy that climbs Q(s, pi(s, z)) through its own action.

    ``Box`` actions are tanh(mu + sigma z); ``Discrete``, ``MultiDiscrete`` and ``MultiBinary`` ones are drawn by
    Gumbel-softmax: executed and judged as what they are, differentiated as if they were soft. Targets continue by the
    smallest of the target critics at an action drawn from the policy; the actor climbs the first critic.

    :param data: ``"replay"`` learns from minibatches of the buffer, ``"on_policy"`` from the steps just collected and
        TD(lambda), all of them in each of ``gradient_steps`` updates (take a ``train_freq`` of 100 or more)
    :param trace_decay: lambda of the on-policy target; 0 is one step, 1 all steps up to the end of the window
    :param ent_coef: weight of the policy's entropy in the actor's objective
    :param initial_temperature: of Gumbel-softmax at the start of the training
    :param final_temperature: and after ``temperature_fraction`` of it
    :param temperature_fraction: share of the training in which the temperature falls, linearly
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    actor: Actor
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    gradients: Gradients
    _window: Window

    def __init__(
        self,
        policy: str | type[MlpPolicy],
        env: Any,
        learning_rate: float | Schedule = 1e-3,
        data: Data = "replay",
        trace_decay: float = 0.9,
        ent_coef: float = 0.0,
        initial_temperature: float = 1.0,
        final_temperature: float = 0.5,
        temperature_fraction: float = 0.5,
        **common: Unpack[OffPolicyOptions],
    ):
        check_choice("data", data, Data)
        check_number("trace_decay", trace_decay, 0, 1)
        check_number("ent_coef", ent_coef, 0)
        check_number("initial_temperature", initial_temperature, 0, above=True)
        check_number("final_temperature", final_temperature, 0, above=True)
        check_number("temperature_fraction", temperature_fraction, 0, 1, above=True)
        if data == "on_policy" and common.get("optimize_memory_usage"):
            raise ValueError(
                "optimize_memory_usage=True with data='on_policy': that buffer forgets the observation after the "
                "latest step, from which the returns are continued"
            )
        self.data = data
        self.trace_decay = trace_decay
        self.ent_coef = ent_coef
        self.initial_temperature = initial_temperature
        self.final_temperature = final_temperature
        self.temperature_fraction = temperature_fraction
        super().__init__(policy, env, learning_rate, **common)

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        self.gradients = gradients_of(self.actor, self.critic)

    def _optimizers(self) -> dict[str, th.optim.Optimizer]:
        return {"actor": self.actor.optimizer, "critic": self.critic.optimizer}

    def _targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critic, self.critic_target)]

    @property
    def temperature(self) -> float:
        """Of Gumbel-softmax now."""
        done = min((1 - self._current_progress_remaining) / self.temperature_fraction, 1.0)
        return self.initial_temperature + done * (self.final_temperature - self.initial_temperature)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        rollout = super().collect_rollouts(*args, **kwargs)
        self._fresh_rows = rollout.episode_timesteps // self.n_envs
        return rollout

    def minibatches(self, gradient_steps: int, batch_size: int) -> Iterator[Minibatch]:
        return MINIBATCHES[self.data](self, gradient_steps, batch_size)

    @th.no_grad()
    def update(self, batch: Minibatch) -> Mapping[str, Tensor | float]:
        targets = TARGETS[self.data](self, batch, self.next_values(batch))
        critic, q = self.gradients.critic(batch.observations, self.actor.head.encode(batch.actions), targets)
        actor, entropy = self.gradients.actor(batch.observations, self.temperature, self.ent_coef)
        norms = self.step(actor=actor, critic=critic)
        return {"actor_loss": actor.loss, "critic_loss": critic.loss, "entropy": entropy, "q_value": q, **norms}

    def next_values(self, batch: Minibatch) -> Tensor:
        """min_i Q'_i(s', pi(s', z)), (B,): at terminal states as well, where it means nothing."""
        codes = self.actor(batch.next_observations)
        return self.critic_target(batch.next_observations, codes).amin(0)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "actor",
            "critic",
            "critic_target",
            "gradients",
            "_window",
            "_fresh_rows",
        ]


# --- the two kinds of data: which steps an update learns from, and what its critic is told


def _replayed(model: SVG0, gradient_steps: int, batch_size: int) -> Iterator[Minibatch]:
    return super(SVG0, model).minibatches(gradient_steps, batch_size)


def _fresh(model: SVG0, gradient_steps: int, batch_size: int) -> Iterator[Minibatch]:
    """The steps of this round without the random ones of before ``learning_starts``."""
    acted = -(-(model.num_timesteps - model.learning_starts) // model.n_envs)
    model._window = latest(model.replay_buffer, min(model._fresh_rows, acted), model.gamma, model._vec_normalize_env)
    for _ in range(gradient_steps):
        yield model._window.steps


def _one_step(model: SVG0, batch: Minibatch, next_values: Tensor) -> Tensor:
    """r + gamma (1 - terminal) Q'(s', a'), (B,); with n-step returns the same n steps later."""
    return th.addcmul(batch.rewards, batch.discounts, next_values)


def _td_lambda(model: SVG0, batch: Minibatch, next_values: Tensor) -> Tensor:
    """The TD(lambda) target of each step of the window, (B,)."""
    window: Window = model._window
    shape = window.continues.shape
    following = (next_values * (batch.discounts > 0)).reshape(shape)
    targets = returns.td_lambda(
        batch.rewards.reshape(shape), window.continues, following, model.gamma, model.trace_decay
    )
    return targets.flatten()


MINIBATCHES: dict[str, Callable[[SVG0, int, int], Iterator[Minibatch]]] = {"replay": _replayed, "on_policy": _fresh}
TARGETS: dict[str, Callable[[SVG0, Minibatch, Tensor], Tensor]] = {"replay": _one_step, "on_policy": _td_lambda}


SPEC = AlgorithmSpec(
    SVG0,
    family="off_policy",
    paper="Heess, Wayne, Silver, Lillicrap, Tassa & Erez 2015, Learning continuous control policies by stochastic "
    "value gradients; Jang, Gu & Poole 2017, Categorical reparameterization with Gumbel-softmax",
    space={
        "learning_rate": Float(1e-4, 3e-3, log=True),
        "gamma": OneMinus(3e-3, 0.1),
        "tau": Float(1e-3, 0.05, log=True),
        "batch_size": Int(5, 9, power=2),
        "train_freq": Choice(1, 2, 4, 8),
        "ent_coef": Float(1e-4, 0.3, log=True),
        "learning_starts": Choice(100, 1000, 5000),
        "policy_kwargs.n_critics": Choice(1, 2),
        "policy_kwargs.std": Choice("state", "shared", "fixed"),
        "policy_kwargs.std_init": Float(0.1, 1.0, log=True),
        "policy_kwargs.net_arch": Choice([64, 64], [256, 256], [400, 300]),
    },
    claims=tuple(
        GradientClaim(
            f"exact Q, {data}",
            {
                "data": data.replace(" ", "_"),
                "learning_starts": 0,
                "train_freq": "testbed:horizon",
                "batch_size": "testbed:steps",
                "policy_kwargs": {"squash_output": False, "std": "shared", "n_critics": 1},
            },
            target="gradient_undiscounted_states",
            bias="steps are not weighed by gamma^t, the usual practice",
            mean_over="steps",
            estimate="with_exact_slope",
            action_spaces=("Box",),
            kind="pathwise",
        )
        for data in ("replay", "on policy")
    ),
)
