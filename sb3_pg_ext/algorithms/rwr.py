"""RWR, reward-weighted regression (Peters & Schaal 2007): policy search by expectation maximisation.

    E-step   w_i = u(R_i) / sum_j u(R_j)
    M-step   theta <- argmax sum_i w_i sum_t log pi(a_{i,t}|s_{i,t})

u makes returns positive. Weights of single steps, u(G_t), and returns from which V(s) is subtracted, give
advantage-weighted regression (Peng et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Unpack

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor
from torch.nn import functional as F

from sb3_pg_ext.bases.behaviour import acting_behaviour
from sb3_pg_ext.bases.on_policy import OnPolicyBase, log_prob_and_entropy
from sb3_pg_ext.bases.options import OnPolicyOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.transaction import all_or_nothing
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.functional.likelihood import (
    Transform,
    effective_sample_size,
    reward_weights,
    temperature_for,
    weighted_least_squares,
)
from sb3_pg_ext.rollout.episodes import Rollout, joined
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus, When

Weight = Literal["trajectory", "reward_to_go"]
Baseline = Literal["value"]
MStep = Literal["gradient", "closed_form"]


class RWR(OnPolicyBase):
    """RWR: imitate your own actions, the better ones more.

    The Gaussian's standard deviation is fitted as well, and shrinks towards the best actions seen: ``min_log_std``
    keeps it from collapsing, ``ent_coef`` slows it down. What is climbed is E[u(R)]: ``"shift"`` and ``"identity"`` are
    linear, but ``"exp"`` with a small temperature is convex and prefers risk.

    Without ``baseline="value"`` nothing follows a time limit; with it, gamma V(s_T) does.

    :param n_steps: steps per env and update, at least; every episode that was begun is finished
    :param n_episodes: episodes per update in all, at least one per env; overrides ``n_steps``
    :param transform: ``"exp"``: u = exp((R - max R) / temperature); ``"shift"``: u = R - min R; ``"rank"``: u = 0 for
        the worst, 1 for the next, ...; ``"identity"``: u = R, which must not be negative
    :param temperature: of ``"exp"``, in units of the return; None solves it for ``ess_target`` in every update
    :param ess_target: share of the batch that the effective sample size of the weights shall be
    :param weight: ``"reward_to_go"``: each step by its own G_t; ``"trajectory"``: all steps of an episode by R(tau)
    :param baseline: ``"value"``: V(s_t) (or V(s_0)) is subtracted from the return first; None
    :param gae_lambda: with ``baseline="value"`` and ``weight="reward_to_go"``: below 1 the advantage is GAE(lambda)
    :param m_step: ``"gradient"``: ``n_epochs`` of minibatches; ``"closed_form"``: weighted least squares, for policies
        whose mean is linear in the observation (Box actions, ``policy_kwargs={"net_arch": []}``), whatever
        ``learning_rate``; a critic takes gradient steps all the same
    :param n_epochs: passes over the batch per update
    :param batch_size: steps in a minibatch, at most (an epoch is cut into equal parts); None for all of them
    :param n_batches_kept: rollouts to learn from: the present one and those before it, as if all came from the present
        policy. They are not saved with the model
    :param min_log_std: floor of the Gaussian's log standard deviation; ``float("-inf")`` for none
    """

    whole_episodes: ClassVar[bool] = True

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 3e-3,
        n_steps: int = 256,
        n_episodes: int | None = None,
        transform: Transform = "exp",
        temperature: float | None = None,
        ess_target: float = 0.5,
        weight: Weight = "reward_to_go",
        baseline: Baseline | None = "value",
        gae_lambda: float = 1.0,
        m_step: MStep = "gradient",
        n_epochs: int = 10,
        batch_size: int | None = 128,
        n_batches_kept: int = 1,
        min_log_std: float = -3.0,
        **common: Unpack[OnPolicyOptions],
    ):
        check_choice("transform", transform, Transform)
        check_number("ess_target", ess_target, 0, 1, above=True)
        check_choice("weight", weight, Weight)
        check_choice("baseline", baseline, Baseline | None)
        check_choice("m_step", m_step, MStep)
        check_count("n_epochs", n_epochs)
        check_count("batch_size", batch_size, optional=True)
        check_count("n_batches_kept", n_batches_kept)
        check_number("min_log_std", min_log_std, float("-inf"))
        if temperature is not None:
            check_number("temperature", temperature, 0, above=True)
        if temperature is not None and transform != "exp":
            raise ValueError(f"temperature={temperature} belongs to transform='exp', not to transform={transform!r}")
        if gae_lambda != 1.0 and (baseline != "value" or weight != "reward_to_go"):
            raise ValueError(
                f"gae_lambda={gae_lambda} needs baseline='value' and weight='reward_to_go'; else it must be 1"
            )
        self.transform = transform
        self.temperature = temperature
        self.ess_target = ess_target
        self.weight = weight
        self.baseline = baseline
        self.m_step = m_step
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.n_batches_kept = n_batches_kept
        self.min_log_std = min_log_std
        self._kept: list[Rollout] = []
        super().__init__(
            policy, env, learning_rate, n_steps=n_steps, n_episodes=n_episodes, gae_lambda=gae_lambda, **common
        )

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.m_step == "closed_form":
            check_linear_gaussian(self.policy)

    @all_or_nothing
    def update(self, rollout: Rollout) -> None:
        self._kept = [*self._kept, rollout][-self.n_batches_kept :]
        data = joined(self._kept)
        old = acting_behaviour(self.policy, data)
        returns, targets = self._returns(data)
        weights = self._e_step(returns)
        if self.weight == "trajectory":
            weights = data.flatten(weights.expand(data.live.shape))
        M_STEPS[self.m_step](self, data, weights / weights.mean(), targets)
        self._keep_exploring()
        self.record(kl=old.kl(acting_behaviour(self.policy, data)).mean())

    def _returns(self, data: Rollout) -> tuple[Tensor, Tensor | None]:
        """What the weights are made of, (M,) or (B,), and the critic's regression targets (B,), if there is one."""
        r, c = data.rewards, data.continues
        if self.baseline is None:
            to_go = R.reward_to_go(r, c, self.gamma)
            return (to_go[0] if self.weight == "trajectory" else data.flatten(to_go)), None
        with th.no_grad():
            values = self.policy.predict_values(data.observations).flatten()
        advantages, targets = self.gae(data, values)
        self.record_fit(values, targets)
        return (data.pad(advantages)[0] if self.weight == "trajectory" else advantages), targets

    def _e_step(self, returns: Tensor) -> Tensor:
        """The weights, which sum to 1, of the shape of ``returns``."""
        temperature = self.temperature or 1.0
        if self.transform == "exp":
            temperature = self.temperature or temperature_for(returns, self.ess_target)
            self.record(temperature=temperature)
        weights = reward_weights(returns, self.transform, temperature)
        self.record(effective_sample_share=effective_sample_size(weights.log()), largest_weight=weights.max())
        return weights

    def _by_gradient(self, data: Rollout, weights: Tensor, targets: Tensor | None) -> None:
        self._fit(data, weights, targets)

    def _in_closed_form(self, data: Rollout, weights: Tensor, targets: Tensor | None) -> None:
        policy: Any = self.policy
        with th.no_grad():
            features = policy.extract_features(data.observations, policy.pi_features_extractor)
            matrix, bias, variance = weighted_least_squares(features, data.actions, weights)
            policy.action_net.weight.copy_(matrix)
            policy.action_net.bias.copy_(bias)
            policy.log_std.copy_(variance.log() / 2)
        if targets is not None:
            self._fit(data, None, targets)

    def _fit(self, data: Rollout, weights: Tensor | None, targets: Tensor | None) -> None:
        """Epochs of minibatches.

        :param weights: of the likelihood, (B,), of mean 1; None leaves the actor alone
        :param targets: of the regression of V, (B,); None leaves the critic alone
        """
        for _ in range(self.n_epochs):
            for index in data.epoch(self.batch_size, self.rng):
                batch, losses = data.at(index), {}
                if weights is not None:
                    pi = self.policy.get_distribution(batch.observations)
                    log_prob, entropy = log_prob_and_entropy(pi, batch.actions)
                    policy_loss = -(weights[index] * log_prob).mean()
                    losses["policy"] = policy_loss - self.ent_coef * entropy.mean()
                    self.record(policy_loss=policy_loss, entropy_loss=-entropy.mean())
                if targets is not None:
                    values = self.policy.predict_values(batch.observations).flatten()
                    losses["value"] = self.vf_coef * F.mse_loss(values, targets[index])
                    self.record(value_loss=losses["value"])
                self.descend(**losses)
                self._keep_exploring()

    @th.no_grad()
    def _keep_exploring(self) -> None:
        """Lift the log standard deviation to its floor, and log the share of it that lies there."""
        log_std = getattr(self.policy, "log_std", None)
        if log_std is not None:
            log_std.clamp_(min=self.min_log_std)
            self.record(min_log_std_hits=(log_std <= self.min_log_std).double().mean())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_kept"]


M_STEPS: dict[str, Callable[[RWR, Rollout, Tensor, Tensor | None], None]] = {
    "gradient": RWR._by_gradient,
    "closed_form": RWR._in_closed_form,
}


def check_linear_gaussian(policy: Any) -> None:
    """:raises ValueError: the policy is not a Gaussian of constant variance whose mean is linear in the observation"""
    gaussian = type(policy.action_dist) is DiagGaussianDistribution
    before_the_mean = [policy.pi_features_extractor, policy.mlp_extractor.policy_net]
    n_tensors = sum(len(list(module.parameters())) for module in before_the_mean)
    if not (gaussian and n_tensors == 0):
        raise ValueError(
            "m_step='closed_form' is weighted least squares, for a Gaussian whose mean is linear in the observation: a "
            "Box action space, policy_kwargs={'net_arch': []}, no use_sde, a features extractor without parameters. "
            f"This policy has {type(policy.action_dist).__name__} over {n_tensors // 2} layers before the last. "
            "m_step='gradient' takes any policy"
        )


#: The first step of the regression is along the gradient of E[u(R)], which for a linear u is along that of J.
_ONE_STEP = {"transform": "shift", "baseline": None, "n_epochs": 1, "batch_size": None, "min_log_std": float("-inf")}

SPEC = AlgorithmSpec(
    RWR,
    family="on_policy",
    paper="Peters & Schaal 2007, Reinforcement learning by reward-weighted regression for operational space control; "
    "Peng, Kumar, Zhang & Levine 2019, Advantage-weighted regression, arXiv:1910.00177",
    space={
        "learning_rate": Float(1e-4, 3e-2, log=True),
        "gamma": OneMinus(1e-4, 0.1),
        "n_steps": Int(5, 10, power=2),
        "transform": Choice("exp", "shift", "rank"),
        "ess_target": When("transform", ("exp",), Float(0.05, 0.9)),
        "weight": Choice("reward_to_go", "trajectory"),
        "baseline": Choice("value", None),
        "n_epochs": Int(1, 30, log=True),
        "batch_size": Choice(32, 128, 512),
        "n_batches_kept": Int(1, 8, log=True),
        "min_log_std": Float(-4.0, -1.0),
        "ent_coef": Float(1e-8, 0.1, log=True),
        "max_grad_norm": Float(0.3, 5.0, log=True),
        "policy_kwargs.net_arch": Choice([], [64], [64, 64], [256, 256]),
    },
    claims=(
        GradientClaim("linear, trajectory", {**_ONE_STEP, "weight": "trajectory"}, holds="direction"),
        GradientClaim(
            "linear, to-go",
            {**_ONE_STEP, "weight": "reward_to_go"},
            target="gradient_undiscounted_states",
            holds="direction",
            bias="steps are not weighed by gamma^t, the usual practice",
        ),
    ),
)
