"""QAC: its gradients against exact answers, its critic against exact values, and what it keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_pg_ext
from sb3_pg_ext.algorithms.qac import QAC, independent_actions
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPEnv, FiniteMDPVectorEnv
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
    assert by_advantage < 0.75 * by_q
    assert by_sum < 0.75 * by_advantage  # what is left is the chance of which states are visited


def test_nothing_is_left_to_chance_by_sums_over_actions_but_the_states():
    """In one state, which every step starts anew, the mean over the actions is exact in every window."""
    one = FiniteMDP(np.ones((1, 3, 1)) / 2, [[1.0, 0.5, -2.0]], features=np.ones((1, 1)), gamma=0.9)
    by_sum, by_score = (mdp_probe(one, 10, all_actions=x).collect(32)["actor"].var(0).sum() for x in (True, False))
    assert by_sum < 1e-9 < 1e-5 < by_score


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
        q = oracles.lqr_action_value(
            self.problem, *gaussian(self.policy)[:2], x, u, gaussian(self.policy)[2], **FOREVER
        )
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


@pytest.mark.parametrize(("critic_target", "trace_decay"), [("sarsa", 0.0), ("sarsa", 0.7), ("expected_sarsa", 0.0)])
def test_critic_converges_to_the_exact_values(critic_target, trace_decay):
    options = {"critic_target": critic_target, "trace_decay": trace_decay}
    learned = [learned_values(seed, 120, **options) for seed in range(4)]
    pi = probabilities(mdp_probe(GARNET, 4, 1), GARNET)
    exact = oracles.mdp_values(GARNET, pi, **FOREVER).Q.detach().flatten()
    assert z_scores(th.stack(learned).double(), exact).max() < 12  # of Student's t with 3 degrees of freedom
    assert (th.stack(learned).mean(0) - exact).abs().max() < 0.05 * exact.abs().max()


def learned_values(seed: int, n_updates: int, **options: Any) -> th.Tensor:
    """Q(s, a), (S A,), learned from nothing while the policy stays as it is."""
    adam = {"net_arch": [], "optimizer_class": th.optim.Adam}
    steps = {"critic_learning_rate": LinearSchedule(0.2, 0.0, 1.0), "max_grad_norm": math.inf}
    env = FiniteMDPVectorEnv(GARNET, 64)
    fixed = QAC("MlpPolicy", env, 0.0, 4, gamma=GARNET.gamma, seed=seed, policy_kwargs=adam, **steps, **options)
    fixed.policy.load_state_dict(mdp_probe(GARNET, 4, 1).policy.state_dict())
    before = flat(fixed.policy.parameters())
    fixed.learn(n_updates * 4 * 64, log_interval=None)
    assert th.equal(flat(fixed.policy.parameters()), before)
    return fixed.critic.every_action(th.eye(5)).detach().flatten()


# --- the targets, one by one


def collected(model: QAC) -> Any:
    model.learn(1, log_interval=None)
    return model.rollout


class Ledger(DummyVecEnv):
    """Writes down what each step of the first environment gave."""

    def __init__(self, make: Any):
        super().__init__([make])
        self.steps: list[tuple[float, bool, bool, Any]] = []

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        cut = bool(infos[0]["TimeLimit.truncated"])
        self.steps.append((float(rewards[0]), bool(dones[0]), cut, infos[0].get("terminal_observation", obs[0].copy())))
        return obs, rewards, dones, infos


@every_target
def test_targets_by_hand(critic_target, trace_decay):
    """r + gamma ((1 - lambda) next + lambda target), where next is 0, Q(s', a'), or the continuation after a cut."""
    env = Ledger(lambda: FiniteMDPEnv(ENDINGS))
    model = mdp_probe_of(env, 40, critic_target=critic_target, trace_decay=trace_decay)
    rollout = collected(model)
    q, mean = values_of(model, rollout)
    cut = model.cut_values(rollout)
    following = q if critic_target == "sarsa" else mean
    expected, later = [], 0.0
    kinds = set()
    for t in reversed(range(40)):
        reward, done, truncated, _ = env.steps[t]
        kinds.add((done, truncated))
        if done or t == 39:
            expected.append(reward + 0.8 * (cut[t, 0].item() if truncated or not done else 0.0))
        else:
            blend = (1 - trace_decay) * following[t + 1].item() + trace_decay * later
            expected.append(reward + 0.8 * blend)
        later = expected[-1]
    assert kinds == {(False, False), (True, False), (True, True)}
    assert model.critic_targets(rollout, q, mean, cut).tolist() == pytest.approx(expected[::-1], rel=1e-5, abs=1e-5)


def mdp_probe_of(env: Any, n_steps: int, **options: Any) -> QAC:
    model = QAC("MlpPolicy", env, n_steps=n_steps, gamma=0.8, seed=0, device="cpu", **options)
    model.train = lambda: None
    return model


def values_of(model: QAC, rollout: Any) -> tuple[th.Tensor, th.Tensor]:
    pi = model.policy.get_distribution(rollout.observations)
    q, mean = model.action_values(pi, rollout.observations, rollout.actions)
    return q.detach(), mean.detach()


def test_a_cut_is_continued_at_the_terminal_observation_by_an_action_of_the_policy():
    env = Ledger(lambda: FiniteMDPEnv(ENDINGS))
    model = mdp_probe_of(env, 40)
    rollout = collected(model)
    [*cuts, last] = [t for t, (_, done, truncated, _) in enumerate(env.steps) if truncated or t == 39]
    assert cuts
    assert last == 39
    drawn = th.stack([model.cut_values(rollout)[:, 0] for _ in range(400)]).double()
    assert (drawn.mean(0) != 0).nonzero().flatten().tolist() == [*cuts, *([last] if not env.steps[39][1] else [])]
    for t in cuts:
        obs = th.tensor(env.steps[t][3]).unsqueeze(0)
        q, p = model.critic.every_action(obs)[0].double(), model.policy.get_distribution(obs).distribution.probs[0]
        # of the terminal state, not of the next episode's first
        assert (drawn[:, t : t + 1] - q).abs().min(1).values.max() < 1e-6
        assert z_scores(drawn[:, t : t + 1], (p * q).sum().detach()).max() < 4


def test_expected_sarsa_continues_a_cut_by_the_mean():
    model = mdp_probe_of(FiniteMDPVectorEnv(GARNET, 8), 10, critic_target="expected_sarsa")
    rollout = collected(model)
    obs = th.from_numpy(rollout.cut_observations)
    mean = (model.policy.get_distribution(obs).distribution.probs * model.critic.every_action(obs)).sum(1)
    assert th.allclose(model.cut_values(rollout)[9], mean)
    assert not model.cut_values(rollout)[:9].any()


# --- the age of a state


@pytest.mark.parametrize("n_steps", [1, 7, 25])
def test_states_are_discounted_by_their_place_in_the_episode(n_steps):
    weights: list[th.Tensor] = []

    class Spy(QAC):
        def _state_weights(self, rollout: Any) -> Any:
            weights.append(super()._state_weights(rollout))
            return weights[-1]

    env = several(lambda: Echo("Discrete", length=10), 2)
    model = Spy("MlpPolicy", env, n_steps=n_steps, gamma=0.9, discount_states=True, seed=0, device="cpu")
    model.learn(2 * 75, log_interval=None)
    by_time = th.cat([w.reshape(2, n_steps) for w in weights], dim=1)
    assert by_time.shape[1] >= 75
    assert by_time[0].tolist() == pytest.approx([0.9 ** (t % 10) for t in range(by_time.shape[1])], rel=1e-5)
    assert th.equal(by_time[0], by_time[1])


class StopAt(BaseCallback):
    def __init__(self, n_calls: int):
        super().__init__()
        self.last = n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last


def test_after_a_stop_in_mid_window_the_ages_are_known_again():
    env = several(lambda: Echo("Discrete", length=10), 2)
    model = QAC("MlpPolicy", env, n_steps=6, gamma=0.9, discount_states=True, seed=0, device="cpu")
    model.learn(100, StopAt(9), log_interval=None)
    model.learn(12, reset_num_timesteps=False, log_interval=None)
    assert model._elapsed.tolist() == [6, 6]


def test_ages_go_on_from_one_call_to_the_next():
    env = several(lambda: Echo("Discrete", length=10), 2)
    model = QAC("MlpPolicy", env, n_steps=4, gamma=0.9, discount_states=True, seed=0, device="cpu")
    model.learn(8, log_interval=None).learn(8, reset_num_timesteps=False, log_interval=None)
    assert model._elapsed.tolist() == [8, 8]
    assert R.episode_time(th.ones(2, 1), th.tensor([3])).tolist() == [[3], [4]]
    assert R.episode_time(th.tensor([[0.0], [1.0]]), th.tensor([3])).tolist() == [[3], [0]]


# --- actions of every kind


@pytest.mark.parametrize("action", ["Box", "MultiDiscrete", "MultiBinary"])
def test_the_mean_over_actions_is_that_of_independent_samples(action):
    env = several(lambda: Echo(action), 3)
    model = QAC("MlpPolicy", env, n_steps=8, n_action_samples=4000, seed=0, device="cpu")
    rollout = collected(model)
    pi = model.policy.get_distribution(rollout.observations)
    assert isinstance(model.critic, StateActionCritic)
    q, mean = model.action_values(pi, rollout.observations, rollout.actions)
    assert q.requires_grad
    assert not mean.requires_grad
    again = model.action_values(pi, rollout.observations, rollout.actions)[1]
    drawn = model.critic(rollout.observations, independent_actions(pi, 4000))
    assert drawn.shape == (4000, 24)
    assert ((mean - drawn.mean(0)).abs() < 6 * drawn.std(0) * math.sqrt(2 / 4000) + 1e-6).all()
    assert not th.equal(again, mean)  # drawn anew, so it cannot hang on the action that was taken


def test_samples_follow_their_distribution():
    box, tuples, bits = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)
    gaussian_pi = make_proba_distribution(box)
    gaussian_pi.proba_distribution_net(4)
    gaussian_pi.proba_distribution(th.tensor([[1.0, -1.0]]), th.zeros(2))
    drawn = independent_actions(gaussian_pi, 20_000)
    assert drawn.shape == (20_000, 1, 2)
    assert drawn.mean(0)[0].tolist() == pytest.approx([1.0, -1.0], abs=0.04)
    for space, logits, exact in (
        (tuples, [[2.0, 0.0, 0.0, 1.0, 0.0]], [(2 / (math.exp(2) + 2)) * 1.5, 1 / (1 + math.e)]),
        (bits, [[1.0, -1.0]], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)]),
    ):
        pi = make_proba_distribution(space)
        pi.proba_distribution_net(4)
        drawn = independent_actions(pi.proba_distribution(th.tensor(logits)), 20_000)
        assert drawn.shape == (20_000, 1, 2)
        assert drawn.double().mean(0)[0].tolist() == pytest.approx(exact, abs=0.02)


def test_samples_under_gsde_are_not_the_noise_of_the_rollout():
    env = several(lambda: Echo("Box"), 3)
    kwargs = {"squash_output": True, "net_arch": [8], "log_std_init": 0.0}
    model = QAC("MlpPolicy", env, n_steps=8, use_sde=True, policy_kwargs=kwargs, seed=0, device="cpu").learn(48)
    pi = model.policy.get_distribution(model.rollout.observations)
    drawn = independent_actions(pi, 5)
    assert drawn.shape == (5, *model.rollout.actions.shape)
    assert drawn.abs().max() <= 1
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == 5


@pytest.mark.parametrize("action", ["Box", "MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize("option", [{"critic_target": "expected_sarsa"}, {"all_actions": True}], ids=str)
def test_sums_over_actions_are_refused_where_there_is_no_list_of_them(action, option):
    [name] = option
    with pytest.raises(ValueError, match=rf"{name}=.* needs a Discrete action space"):
        QAC("MlpPolicy", Echo(action), **option)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"critic_target": "q"}, "critic_target='q': allowed are 'sarsa', 'expected_sarsa'"),
        ({"actor_weight": "advantages"}, "did you mean 'advantage'"),
        ({"trace_decay": 1.1}, r"trace_decay=1.1: a number in \[0, 1\]"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate=-1.0"),
        ({"n_action_samples": 0}, "n_action_samples=0"),
    ],
    ids=str,
)
def test_wrong_options_are_named(option, words):
    with pytest.raises(ValueError, match=words):
        QAC("MlpPolicy", Echo("Discrete"), **option)


def test_a_schedule_of_the_critic_that_runs_away_is_named():
    schedule = lambda progress: 1e-3 if progress == 1 else math.nan  # noqa: E731
    model = QAC("MlpPolicy", Echo("Discrete"), n_steps=4, critic_learning_rate=schedule, device="cpu")
    with pytest.raises(ValueError, match="critic_learning_rate=nan from the schedule"):
        model.learn(8)


def test_the_critic_has_a_schedule_of_its_own():
    model = QAC("MlpPolicy", Echo("Discrete"), 1e-3, 4, LinearSchedule(1.0, 0.0, 1.0), device="cpu")
    model.learn(8)
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3
    assert model.critic.optimizer.param_groups[0]["lr"] == 0.0


# --- the nets


@pytest.mark.parametrize(
    ("net_arch", "widths"),
    [([5], [5]), ({"pi": [5], "vf": [6]}, [6]), ({"pi": [5], "vf": [6], "qf": [7, 8]}, [7, 8]), ({"pi": [5]}, [])],
    ids=str,
)
def test_layers_of_the_critic(net_arch, widths):
    model = QAC("MlpPolicy", Echo("Discrete"), policy_kwargs={"net_arch": net_arch}, device="cpu")
    linear = [layer for layer in model.critic.q_net if isinstance(layer, th.nn.Linear)]
    assert [layer.out_features for layer in linear] == [*widths, 3]


@pytest.mark.parametrize("observation", ["vector", "image", "dict"])
@pytest.mark.parametrize("action", ["Box", "Discrete"])
def test_the_critic_shares_nothing_with_the_policy(observation, action):
    env = several(lambda: Echo(action, observation), 2)
    name = {"vector": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}[observation]
    model = QAC(name, env, n_steps=4, seed=0, device="cpu")
    before = [p.clone() for p in model.critic.parameters()]
    model.learn(16, log_interval=None)
    shared = {p.data_ptr() for p in model.policy.parameters()} & {p.data_ptr() for p in model.critic.parameters()}
    assert not shared
    assert type(model.critic.features_extractor) is type(model.policy.pi_features_extractor)
    assert all(not th.equal(a, b) for a, b in zip(before, model.critic.parameters(), strict=True))


def test_several_actions_of_each_state_are_valued_as_one_by_one():
    for space in (spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Discrete(4)):
        critic = StateActionCritic(spaces.Box(-1, 1, (3,)), space, [8])
        obs = th.rand(5, 3)
        actions = th.stack([th.stack([th.as_tensor(space.sample()) for _ in range(5)]) for _ in range(6)])
        together = critic(obs, actions)
        assert together.shape == (6, 5)
        assert th.allclose(together, th.stack([critic(obs, a) for a in actions]), atol=1e-6)


def test_one_output_an_action():
    critic = DiscreteCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), [8])
    obs, actions = th.rand(5, 3), th.tensor([0, 3, 1, 2, 2])
    assert th.equal(critic(obs, actions), critic.every_action(obs)[range(5), actions])


def test_a_critic_can_be_saved_by_itself(tmp_path):
    model = QAC("MlpPolicy", Echo("Box"), policy_kwargs={"activation_fn": th.nn.ReLU}, device="cpu")
    model.critic.save(tmp_path / "critic.pth")
    copy = StateActionCritic.load(tmp_path / "critic.pth", device="cpu")
    obs, actions = th.rand(4, 3), th.rand(4, 2)
    assert th.equal(copy(obs, actions), model.critic(obs, actions))
    assert isinstance(critic_like(model.policy), StateActionCritic)


# --- what is kept


@pytest.mark.parametrize("action", ["Discrete", "Box"])
def test_the_critic_and_its_optimizer_are_saved_bit_for_bit(tmp_path, action):
    env = several(lambda: Echo(action), 2)
    schedule = LinearSchedule(3e-3, 1e-3, 1.0)
    model = QAC("MlpPolicy", env, n_steps=4, critic_learning_rate=schedule, seed=0, device="cpu").learn(80)
    model.save(tmp_path / "model")
    copy = sb3_pg_ext.load(tmp_path / "model", env=several(lambda: Echo(action), 3))
    assert isinstance(copy, QAC)
    for ours, theirs in zip(model.get_parameters().values(), copy.get_parameters().values(), strict=True):
        assert_equal(ours, theirs)
    assert set(model.get_parameters()) == {"policy", "policy.optimizer", "critic", "critic.optimizer"}
    copy.learn(24, reset_num_timesteps=False)
    assert copy.critic_learning_rate(0.5) == pytest.approx(2e-3)
    assert any(not th.equal(a, b) for a, b in zip(model.critic.parameters(), copy.critic.parameters(), strict=True))
    one_step = {group["step"].item() for group in copy.critic.optimizer.state.values()}
    assert one_step == {80 // 8 + 24 // 12}


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(ours, th.Tensor):
        assert th.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert ours == theirs


def test_nothing_changes_if_one_of_the_two_gradients_is_not_finite():
    model = QAC("MlpPolicy", several(lambda: Echo("Discrete"), 2), n_steps=4, seed=0, device="cpu").learn(16)
    before = flat([*model.policy.parameters(), *model.critic.parameters()])
    model.vf_coef = math.inf
    with pytest.raises(ValueError, match="gradient of the critic loss"):
        model.learn(8, reset_num_timesteps=False)
    assert th.equal(flat([*model.policy.parameters(), *model.critic.parameters()]), before)
