"""QAC: its gradients against exact answers, its critic against exact values, and what it keeps."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_pg_ext
from sb3_pg_ext.algorithms.qac import QAC, independent_actions
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPVectorEnv
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQRVectorEnv, lqr
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.nets.critics import DiscreteCritic, StateActionCritic, critic_like
from sb3_pg_ext.testing.environments import Echo, several

SGD = {"net_arch": [], "optimizer_class": th.optim.SGD}
FOREVER = {"horizon": math.inf}
TARGETS = [("sarsa", 0.0), ("sarsa", 0.7), ("sarsa", 1.0), ("expected_sarsa", 0.0), ("expected_sarsa", 0.7)]
every_target = pytest.mark.parametrize(("critic_target", "trace_decay"), TARGETS)

GARNET = garnet(n_states=5, n_actions=3, instance=9, horizon=10, gamma=0.7)
BANDIT = armed_bandit((1.0, 0.5, 0.0), reward_std=0.5)


def endings() -> FiniteMDP:
    """Four states; some actions end the episode, and a time limit cuts it after three steps."""
    rng = np.random.default_rng(5)
    ends = rng.uniform(0.0, 0.5, (4, 3))
    transition = rng.dirichlet(np.ones(4), (4, 3)) * (1 - ends)[..., None]
    return FiniteMDP(transition, 2 * ends + rng.normal(size=(4, 3)), features=np.eye(4), horizon=3, gamma=0.8)


ENDINGS = endings()


class Probe(QAC):
    """QAC that keeps each of its steps, of the actor and of the critic, and takes it back.

    With plain SGD, a learning rate of 1 and no clipping a step is the estimate of the gradient.
    """

    def train(self) -> None:
        nets = {"actor": list(self.policy.action_net.parameters()), "critic": list(self.critic.parameters())}
        if hasattr(self.policy, "log_std"):
            nets["actor"].append(self.policy.log_std)
        before = {name: flat(net) for name, net in nets.items()}
        super().train()
        for name, net in nets.items():
            self.__dict__.setdefault("steps", {}).setdefault(name, []).append(flat(net) - before[name])
            th.nn.utils.vector_to_parameters(before[name], net)

    def collect(self, n_rollouts: int) -> dict[str, th.Tensor]:
        """The steps (K, P) that the actor and the critic would have taken."""
        self.steps: dict[str, list[th.Tensor]] = {}
        for _ in range(n_rollouts):
            self.learn(1, reset_num_timesteps=False, log_interval=None)
        return {name: th.stack(steps).double() for name, steps in self.steps.items()}


def flat(parameters: Any) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(parameters).detach().clone()


def probe(env: Any, n_steps: int, gamma: float, **options: Any) -> Probe:
    common = {"max_grad_norm": math.inf, "critic_learning_rate": 1.0, "policy_kwargs": SGD, "seed": 1, "device": "cpu"}
    return Probe("MlpPolicy", env, 1.0, n_steps, gamma=gamma, **{**common, **options})


def mdp_probe(mdp: FiniteMDP, n_steps: int, n_envs: int = 128, exact: bool = True, **options: Any) -> Probe:
    """A linear softmax policy with random weights, and (``exact``) its true Q in place of the critic's weights."""
    model = probe(FiniteMDPVectorEnv(mdp, n_envs), n_steps, mdp.gamma, **options)
    generator = th.Generator().manual_seed(3)
    with th.no_grad():
        model.policy.action_net.weight.normal_(generator=generator)
        for parameter in model.critic.parameters():
            parameter.zero_()
        if exact:
            model.critic.q_net[0].weight.copy_(oracles.mdp_values(mdp, probabilities(model, mdp), **FOREVER).Q.T)
    return model


def probabilities(model: QAC, mdp: FiniteMDP) -> th.Tensor:
    """pi(a|s), (S, A), with its history."""
    return model.policy.get_distribution(th.tensor(mdp.features).float()).distribution.probs.double()


def exact_actor_step(model: QAC, mdp: FiniteMDP, n_steps: int, discount_states: bool) -> th.Tensor:
    """1/T sum_t w_t Pr(s_t = s) sum_a grad pi(a|s) Q(s, a), for windows that are episodes."""
    pi = probabilities(model, mdp)
    visits = oracles.mdp_visitation(mdp, pi, horizon=n_steps, gamma=mdp.gamma if discount_states else 1.0)
    Q = oracles.mdp_values(mdp, pi, **FOREVER).Q
    surrogate = (visits.detach()[:, None] * Q.detach() * pi).sum() / n_steps
    return th.cat([g.flatten() for g in th.autograd.grad(surrogate, model.policy.action_net.parameters())]).double()


def z_scores(samples: th.Tensor, exact: Any) -> th.Tensor:
    """(K, P) against (P,): how many standard errors each component of the mean is off; float32 is allowed for."""
    return (samples.mean(0) - exact).abs() / (samples.std(0) / math.sqrt(len(samples)) + 1e-6)


# --- the actor, with the exact Q for a critic


@pytest.mark.parametrize("discount_states", [False, True])
@pytest.mark.parametrize("variant", [{}, {"actor_weight": "q"}, {"all_actions": True}], ids=str)
def test_actor_follows_the_exact_gradient_of_a_finite_process(variant, discount_states):
    model = mdp_probe(GARNET, 10, discount_states=discount_states, **variant)
    exact = exact_actor_step(model, GARNET, 10, discount_states)
    steps = model.collect(64)["actor"]
    assert z_scores(steps, exact).max() < 4
    wrong = exact_actor_step(model, GARNET, 10, not discount_states)
    assert z_scores(steps, wrong).max() > 8  # so that the right weights of the states are seen


def test_discounted_states_give_the_gradient_of_the_objective():
    mdp = garnet(n_states=5, n_actions=3, instance=9, horizon=30, gamma=0.7)
    model = mdp_probe(mdp, 30)
    logits = model.policy.action_net(th.eye(5)).double()
    by_logits = oracles.mdp_gradient(mdp, logits, **FOREVER)
    surrogate = (by_logits * logits).sum() / 30
    exact = th.cat([g.flatten() for g in th.autograd.grad(surrogate, model.policy.action_net.parameters())])
    assert th.allclose(exact_actor_step(model, mdp, 30, True), exact.double(), atol=1e-5)


def test_advantages_and_sums_over_actions_lower_the_variance():
    def variance(**options: Any) -> float:
        return mdp_probe(GARNET, 10, **options).collect(32)["actor"].var(0).sum().item()

    by_q, by_advantage, by_sum = variance(actor_weight="q"), variance(), variance(all_actions=True)
    assert by_advantage < 0.5 * by_q
    assert by_sum < 0.1 * by_advantage


def test_weights_make_no_difference_to_sums_over_actions():
    by_q, by_advantage = (
        mdp_probe(GARNET, 10, all_actions=True, actor_weight=weight).collect(3)["actor"]
        for weight in ("q", "advantage")
    )
    assert th.equal(by_q, by_advantage)


@pytest.mark.parametrize("options", [{}, {"actor_weight": "q"}, {"all_actions": True}], ids=str)
def test_actor_follows_the_exact_gradient_of_a_bandit(options):
    model = mdp_probe(BANDIT, 4, **options)
    p, r = probabilities(model, BANDIT)[0].detach(), th.tensor([1.0, 0.5, 0.0]).double()
    exact = (p * (r - p @ r)).repeat(2)  # of the weights and of the biases: the observation is 1
    steps = model.collect(64)["actor"]
    assert z_scores(steps, exact).max() < 4
    if options.get("all_actions"):
        assert steps.std(0).max() < 1e-6  # one state: nothing is left to chance


class ExactRegulator(th.nn.Module):
    """The exact Q(x, u) of an LQR policy in place of a critic."""

    def __init__(self, model: QAC, problem: Any):
        super().__init__()
        self.problem, self.policy = problem, model.policy
        self.nothing = th.nn.Parameter(th.zeros(1))

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        leading = actions.shape[:-1]
        x, u = obs.expand(*leading, -1).reshape(-1, obs.shape[-1]), actions.reshape(-1, actions.shape[-1])
        q = oracles.lqr_action_value(self.problem, *gaussian(self.policy)[:2], x, u, gaussian(self.policy)[2], **FOREVER)
        return q.float().reshape(leading) + 0 * self.nothing


def gaussian(policy: Any) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """K, std and bias of u ~ N(-K x + bias, std^2)."""
    return -policy.action_net.weight.detach(), policy.log_std.detach().exp(), policy.action_net.bias.detach()


@pytest.mark.parametrize("actor_weight", ["advantage", "q"])
def test_actor_follows_the_exact_gradient_of_a_regulator(actor_weight):
    problem = lqr("scalar", noise_std=0.2, start_std=0.3, horizon=40, gamma=0.8)
    env = LQRVectorEnv(128, preset="scalar", noise_std=0.2, start_std=0.3, horizon=40, gamma=0.8)
    model = probe(env, 40, 0.8, discount_states=True, actor_weight=actor_weight, n_action_samples=2)
    with th.no_grad():
        model.policy.action_net.weight.fill_(-0.4)
        model.policy.action_net.bias.fill_(0.2)
        model.policy.log_std.fill_(-0.7)
    exact_critic = ExactRegulator(model, problem)
    model.critic = exact_critic
    model.critic.optimizer = th.optim.SGD([exact_critic.nothing], 1.0)
    K, std, bias = gaussian(model.policy)
    gradient = oracles.lqr_gradient(problem, K, std, bias, **FOREVER)
    exact = th.cat([-gradient.K.flatten(), gradient.bias, gradient.log_std]) / 40
    steps = model.collect(48)["actor"]
    assert z_scores(steps, exact).max() < 4
    assert z_scores(steps, 0).max() > 8


# --- the critic


@every_target
@pytest.mark.parametrize("mdp", [GARNET, ENDINGS, BANDIT], ids=["garnet", "endings", "bandit"])
def test_exact_values_are_the_fixed_point(mdp, critic_target, trace_decay):
    """In windows that cut episodes anywhere, over time-outs and terminal steps."""
    model = mdp_probe(mdp, 4, critic_target=critic_target, trace_decay=trace_decay)
    assert z_scores(model.collect(64)["critic"], 0).max() < 4
    with th.no_grad():
        model.critic.q_net[0].bias += 0.5
    assert z_scores(model.collect(8)["critic"], 0).max() > 8


@every_target
def test_critic_converges_to_the_exact_values(critic_target, trace_decay):
    options = {"critic_target": critic_target, "trace_decay": trace_decay}
    learned = []
    for seed in range(6):
        model = mdp_probe(GARNET, 4, 64, exact=False, seed=seed, critic_learning_rate=LinearSchedule(12, 0.0, 1), **options)
        QAC_train(model, 150 * 4 * 64)
        learned.append(model.critic.every_action(th.eye(5)).detach().flatten())
    pi = probabilities(model, GARNET)
    exact = oracles.mdp_values(GARNET, pi, **FOREVER).Q.detach().flatten()
    assert z_scores(th.stack(learned).double(), exact).max() < 6  # of Student's t with 5 degrees of freedom
    assert (th.stack(learned).mean(0) - exact).abs().max() < 0.05 * exact.abs().max()


def QAC_train(model: Probe, total: int) -> None:
    """Learn with a fixed policy."""
    model.__class__, model.learning_rate = QAC, 0.0
    model._setup_lr_schedule()
    before = flat(model.policy.parameters())
    model.learn(total, log_interval=None)
    assert th.equal(flat(model.policy.parameters()), before)
