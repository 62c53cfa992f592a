"""NPG, the natural policy gradient (Kakade 2001), without a line search.

    theta <- theta + alpha F^-1 g,   g = E[score_t A_t],   F = E[score score^T],   score = grad log pi(a|s)

with A_t from GAE. F^-1 g comes from conjugate gradients on Fisher-vector products, or as the weights w of the least
squares fit w^T score_t ~ A_t (compatible function approximation). alpha is sqrt(2 delta / g^T F^-1 g), so that
KL(pi_old || pi) = delta to second order, or a constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Unpack

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sb3_pg_ext.bases.actor_jacobian import actor_jacobian, actor_scores, family_of, parameters_of
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.bases.options import OnPolicyOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.value_regression import fit_values, frozen, fuse_adam
from sb3_pg_ext.functional import curvature as C
from sb3_pg_ext.functional.families import Metric
from sb3_pg_ext.functional.jacobian import Jacobian, flatten, unflatten
from sb3_pg_ext.functional.returns import standardised
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int, OneMinus, When

Natural = Literal["fisher", "compatible"]
StepRule = Literal["kl", "fixed"]
#: Numbers in the scores of ``natural="compatible"`` at most: 2 GiB.
MAX_SCORES = 2**29


class NPG(OnPolicyBase):
    """Natural policy gradient: steepest ascent where policies are as far apart as their KL divergence says.

    The natural step moves everything that the action distribution depends on, and the critic's regression all the rest.
    A features extractor that both share (as in ``CnnPolicy`` by default) therefore belongs to the actor: the critic
    reads its features as they are. ``policy_kwargs={"share_features_extractor": False}`` gives the critic one to train.

    :param learning_rate: of the critic alone: the actor's step follows from ``step_rule``
    :param n_steps: steps per env and update
    :param batch_size: steps in a minibatch of the critic's regression at most; None for all of them
    :param gae_lambda: of the advantages and of the critic's targets
    :param natural: ``"fisher"``: F in expectation over all actions, by conjugate gradients; ``"compatible"``: least
        squares on the scores of the actions taken, solved directly, with all these scores in memory at once
    :param step_rule: ``"kl"``: a step of KL divergence ``target_kl``; ``"fixed"``: ``step_size`` times F^-1 g
    :param target_kl: delta; for ``step_rule="kl"``
    :param step_size: alpha; for ``step_rule="fixed"``
    :param cg_max_steps: conjugate gradients: Fisher-vector products at most
    :param cg_damping: what is added to the diagonal of F; the ridge of the least squares
    :param cg_tolerance: conjugate gradients stop when the residual is this share of g
    :param fvp_subsample: share of the steps, drawn at random, that F (or the least squares) is made of
    :param n_critic_updates: epochs of the critic's regression
    :param normalize_advantage: subtract the batch's mean and divide by its standard deviation
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int | None = 128,
        gae_lambda: float = 0.95,
        natural: Natural = "fisher",
        step_rule: StepRule = "kl",
        target_kl: float = 0.01,
        step_size: float = 0.1,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        cg_tolerance: float = 1e-5,
        fvp_subsample: float = 1.0,
        n_critic_updates: int = 10,
        normalize_advantage: bool = True,
        **common: Unpack[OnPolicyOptions],
    ):
        check_choice("natural", natural, Natural)
        check_choice("step_rule", step_rule, StepRule)
        check_number("target_kl", target_kl, 0, above=True)
        check_number("step_size", step_size, 0, above=True)
        check_count("cg_max_steps", cg_max_steps)
        check_number("cg_damping", cg_damping, 0, above=natural == "compatible")
        check_number("cg_tolerance", cg_tolerance, 0)
        check_number("fvp_subsample", fvp_subsample, 0, 1, above=True)
        check_count("n_critic_updates", n_critic_updates)
        check_count("batch_size", batch_size, optional=True)
        self.natural, self.step_rule = natural, step_rule
        self.target_kl, self.step_size = target_kl, step_size
        self.cg_max_steps, self.cg_damping, self.cg_tolerance = cg_max_steps, cg_damping, cg_tolerance
        self.fvp_subsample = fvp_subsample
        self.n_critic_updates, self.batch_size = n_critic_updates, batch_size
        self.normalize_advantage = normalize_advantage
        super().__init__(policy, env, learning_rate, n_steps=n_steps, gae_lambda=gae_lambda, **common)

    def _setup_model(self) -> None:
        super()._setup_model()
        fuse_adam(self.policy.optimizer)
        family_of(self.policy.action_dist)  # what cannot be done is said now, not after the first rollout
        n_samples = math.ceil(self.fvp_subsample * self.n_steps * self.n_envs)
        n_parameters = sum(p.numel() for p in self.policy.parameters())
        if self.natural == "compatible" and n_samples * n_parameters > MAX_SCORES:
            raise ValueError(
                f"natural='compatible' holds the scores of {n_samples} steps for up to {n_parameters} parameters at "
                f"once, more than {MAX_SCORES} numbers: use natural='fisher', or smaller n_steps, fvp_subsample or nets"
            )

    def update(self, rollout: Rollout) -> None:
        with th.no_grad():
            values = self.policy.predict_values(rollout.observations).flatten()
        advantages, targets = self.gae(rollout, values)
        if self.normalize_advantage:
            advantages = standardised(advantages)
        jacobian = actor_jacobian(self.policy, rollout.observations)
        x = NATURAL[self.natural](self, rollout, advantages, jacobian)  # F^-1 g
        length = C.squared_length(jacobian, self._metric(jacobian), x)  # x^T F x
        alpha = STEP_RULES[self.step_rule](self, length)
        self._step(alpha * x, jacobian, rollout.observations)
        self.record(kl_asked=0.5 * alpha**2 * length)
        self.record_fit(values, targets)
        with frozen(jacobian.parameters):
            self.record(value_loss=fit_values(self, rollout, targets, self.n_critic_updates, self.batch_size))

    def _metric(self, jacobian: Jacobian) -> Metric:
        return family_of(self.policy.action_dist).fisher(jacobian.eta)

    def _fisher(self, rollout: Rollout, advantages: Tensor, jacobian: Jacobian) -> Tensor:
        """(F + damping I)^-1 g by conjugate gradients, (P,)."""
        log_prob, entropy = self.evaluate_actor(rollout)
        objective = (advantages * log_prob).mean() + self.ent_coef * entropy.mean()
        g = flatten(th.autograd.grad(objective, jacobian.parameters, materialize_grads=True))
        self._check_gradient("policy", -objective, g.norm().item())
        if self.fvp_subsample < 1:
            jacobian = actor_jacobian(self.policy, rollout.observations_at(self._sample(rollout)))
        product = partial(C.fisher_vector_product, jacobian, self._metric(jacobian), damping=self.cg_damping)
        x, residual, iterations = C.conjugate_gradient(product, g, self.cg_max_steps, self.cg_tolerance)
        self.record(policy_loss=-objective, entropy_loss=-entropy.mean(), policy_grad_norm=g.norm())
        self.record(cg_residual=residual, cg_iterations=iterations)
        return x

    def _compatible(self, rollout: Rollout, advantages: Tensor, jacobian: Jacobian) -> Tensor:
        """argmin_w E[(w^T score - A)^2] + damping |w|^2, (P,)."""
        index = self._sample(rollout)
        obs, actions = rollout.observations_at(index), rollout.actions[index]
        with th.no_grad():
            log_prob = self.policy.get_distribution(obs).log_prob(actions)
        # The gradient of the entropy is -E[score log pi], so that -log pi is another advantage.
        targets = advantages[index] - self.ent_coef * log_prob
        self.record(policy_loss=-(targets * log_prob).mean(), entropy_loss=log_prob.mean())
        return C.compatible_weights(actor_scores(self.policy, obs, actions, jacobian), targets, self.cg_damping)

    def _sample(self, rollout: Rollout) -> Tensor:
        """Indices of a random share ``fvp_subsample`` of the steps."""
        order = th.from_numpy(self.rng.permutation(len(rollout)))
        return order[: math.ceil(self.fvp_subsample * len(rollout))].to(self.device)

    def _step(self, step: Tensor, jacobian: Jacobian, observations: Any) -> None:
        """theta <- theta + step.

        :raises NonFiniteError: that would break the policy; theta is what it was
        """
        with th.no_grad(), _restored_after_errors(jacobian.parameters):
            for parameter, change in zip(jacobian.parameters, unflatten(step, jacobian.parameters), strict=True):
                parameter.add_(change)
            eta = parameters_of(self.policy.get_distribution(observations))
            kl = family_of(self.policy.action_dist).kl(jacobian.eta, eta).mean().item()
            if not math.isfinite(kl):
                raise ValueError(f"KL(pi_old || pi) = {kl}")
        self.record(kl=kl, step_norm=step.norm())


NATURAL: dict[str, Callable[[NPG, Rollout, Tensor, Jacobian], Tensor]] = {
    "fisher": NPG._fisher,
    "compatible": NPG._compatible,
}
STEP_RULES: dict[str, Callable[[NPG, float], float]] = {
    "kl": lambda npg, squared_length: C.kl_step_size(npg.target_kl, squared_length),
    "fixed": lambda npg, squared_length: npg.step_size,
}


@contextmanager
def _restored_after_errors(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put ``parameters`` back if the block finds that they are not fit for a distribution."""
    before = [parameter.clone() for parameter in parameters]
    try:
        yield
    except ValueError as error:  # torch's own, when it is given NaN for a parameter of a distribution, or ours
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
        raise NonFiniteError(
            f"The natural step left no usable policy: {error}. The parameters are those before this update. "
            "Usual causes: step_size or learning_rate too large, or rewards too large for float32."
        ) from error


SPEC = AlgorithmSpec(
    NPG,
    family="on_policy",
    paper="Kakade 2001, A Natural Policy Gradient, Advances in Neural Information Processing Systems 14",
    space={
        "natural": Choice("fisher"),
        "step_rule": Choice("kl", "fixed"),
        "target_kl": When("step_rule", ("kl",), Float(1e-3, 0.1, log=True)),
        "step_size": When("step_rule", ("fixed",), Float(1e-2, 0.5, log=True)),
        "n_steps": Int(7, 12, power=2),
        "gamma": OneMinus(1e-4, 0.1),
        "gae_lambda": OneMinus(1e-3, 0.2),
        "cg_max_steps": Int(5, 30),
        "cg_damping": Float(1e-3, 1.0, log=True),
        "learning_rate": Float(1e-4, 1e-2, log=True),
        "batch_size": Int(5, 9, power=2),
        "n_critic_updates": Int(5, 30),
        "ent_coef": Choice(0.0, 1e-4, 1e-3, 1e-2),
        "policy_kwargs.net_arch": Choice([64], [64, 64], [256, 256]),
    },
    claims=tuple(
        GradientClaim(
            natural,
            {
                "natural": natural,
                "step_rule": "fixed",
                "step_size": 1.0,
                "cg_max_steps": 100,
                "n_critic_updates": 1,
                "gae_lambda": 1.0,
                "normalize_advantage": False,
            },
            target="natural_gradient_undiscounted_states",
            holds="limit",
            bias="it is the natural gradient, with damping, and steps are not weighed by gamma^t",
        )
        for natural in ("fisher", "compatible")
    ),
)
