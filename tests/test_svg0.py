"""SVG(0): its gradient against exact ones, its targets by hand, and that it goes on where it stopped."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import Tensor

from sb3_pg_ext.algorithms.svg0 import SVG0, TARGETS
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.functional import reparametrisation as R
from sb3_pg_ext.nets.pathwise_gradients import ByAutograd, ClosedForm
from sb3_pg_ext.rollout.replay import Minibatch
from sb3_pg_ext.testing.environments import Echo
from sb3_pg_ext.testing.measures import differences, learned


def make(env: Any = None, **kwargs: Any) -> SVG0:
    quick = {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "seed": 0, "device": "cpu"}
    policy = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    return SVG0("MlpPolicy", env or Echo(), **{**quick, "policy_kwargs": policy, **kwargs})


# --- the gradient, exactly

HORIZON = 5
REGULATOR = LQR(
    A=[[0.9, 0.2], [-0.1, 0.8]],
    B=[[0.3], [1.0]],
    Q=[[1.0, 0.2], [0.2, 0.5]],
    R=[[0.4]],
    noise_std=0.1,
    start_mean=[1.0, -0.5],
    start_std=0.3,
    horizon=HORIZON,
    gamma=0.9,
    action_bound=2.0,
)


class ExactCritic(th.nn.Module):
    """Q_t of a policy u ~ N(-K x + bias, std^2), as a critic of codes."""

    def __init__(self, t: int, law: tuple[Tensor, Tensor, Tensor]):
        super().__init__()
        self.t, self.law = t, law

    def forward(self, obs: Tensor, codes: Tensor) -> Tensor:
        K, std, bias = self.law
        u = REGULATOR.action_bound * codes
        return oracles.lqr_action_value(REGULATOR, K, std, obs, u, bias, t=self.t).unsqueeze(0)


def sigma_points(mean: Tensor, covariance: Tensor) -> Tensor:
    """Points with exactly these moments: expectations of quadratic functions are their averages."""
    L = th.linalg.cholesky(covariance) * math.sqrt(len(mean))
    return th.cat([mean + L.T, mean - L.T])


def test_with_the_exact_q_it_is_the_exact_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """sum_t gamma^t E grad Q_t(s_t, pi(s_t, z)) over the states that the policy meets, in float64."""
    env = gym_of(REGULATOR)
    shape = {"net_arch": [], "squash_output": False, "std": "shared", "std_init": 0.3}
    model = make(env, policy_kwargs=shape)
    actor, bound = model.actor.double(), REGULATOR.action_bound
    weight, offset = actor.net[0].weight, actor.net[0].bias  # type: ignore[union-attr]
    with th.no_grad():
        weight.copy_(th.tensor([[-0.1, 0.25]]))  # type: ignore[operator]
        offset.fill_(0.05)  # type: ignore[operator,union-attr]
    K, bias = -bound * weight.detach(), bound * offset.detach()  # type: ignore[operator,union-attr]
    std = bound * actor.head.log_std.detach().exp()
    A, B = th.tensor(REGULATOR.A), th.tensor(REGULATOR.B)
    mean, covariance = th.tensor(REGULATOR.start_mean), th.tensor(REGULATOR.start_std @ REGULATOR.start_std.T)
    total: list[Tensor] = []
    monkeypatch.setattr(actor.head, "noise", lambda y: th.tensor([1.0, -1.0]).double().repeat(len(y) // 2)[:, None])
    for t in range(HORIZON):
        states = sigma_points(mean, covariance).repeat_interleave(2, 0)
        estimate, _ = ByAutograd(actor, ExactCritic(t, (K, std, bias))).actor(states, 1.0, 0.0)  # type: ignore[arg-type]
        parts = [REGULATOR.gamma**t * part for part in estimate.parts if part is not None]
        total = parts if not total else [a + b for a, b in zip(total, parts, strict=True)]
        F = A - B @ K
        mean = F @ mean + B @ bias
        covariance = F @ covariance @ F.T + B * std**2 @ B.T + 0.01 * th.eye(2).double()
    exact = oracles.lqr_gradient(REGULATOR, K, std, bias)
    log_std, of_weight, of_bias = (-part for part in total)  # the loss is the negative objective
    th.testing.assert_close(of_weight, -bound * exact.K, rtol=1e-5, atol=0)
    th.testing.assert_close(of_bias, bound * exact.bias, rtol=1e-5, atol=0)
    th.testing.assert_close(log_std, exact.log_std, rtol=1e-5, atol=0)


def gym_of(problem: LQR) -> Any:
    """Only its spaces are needed."""
    return Echo(problem.action_space, problem.observation_space)


def test_the_pathwise_variance_is_4() -> None:
    """a ~ N(1, 1), f = a^2: each sample's derivative in the mean is 2 a."""
    n = 1_000_000
    mean = th.ones(n, 1, dtype=th.float64, requires_grad=True)
    z = th.randn(n, 1, dtype=th.float64, generator=th.Generator().manual_seed(0))
    (samples,) = th.autograd.grad(R.gaussian(mean, th.zeros(1), z).square().sum(), mean)
    assert samples.mean().item() == pytest.approx(2, abs=0.01)
    assert samples.var().item() == pytest.approx(4, rel=0.03)
    exact = oracles.gaussian_estimator_moments(lambda a: a**2, 1.0, 1.0, "pathwise")
    assert exact[1].item() == pytest.approx(4)


ACTIONS = [spaces.Box(-1, 2, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("n_critics", [1, 3])
@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("std", ["state", "shared", "fixed"])
@pytest.mark.parametrize("space", ACTIONS, ids=lambda space: type(space).__name__)
def test_both_ways_to_the_gradients_agree(space: Any, std: str, squash: bool, n_critics: int, ent_coef: float) -> None:
    shape = {"std": std, "squash_output": squash, "n_critics": n_critics, "net_arch": [6, 5]}
    model = make(Echo(space), policy_kwargs=shape)
    model.policy.double()
    obs = th.randn(7, 3).double()
    codes, targets = model.actor(obs).detach(), th.randn(7).double()
    found = []
    for way in (ClosedForm, ByAutograd):
        gradients = way(model.actor, model.critic)
        th.manual_seed(1)
        with th.no_grad():
            found.append((gradients.critic(obs, codes, targets), gradients.actor(obs, 0.7, ent_coef)))
    for ours, theirs in zip(*found, strict=True):
        th.testing.assert_close(ours[0].loss, theirs[0].loss)
        th.testing.assert_close(ours[1], theirs[1])
        assert ours[0].norm == pytest.approx(theirs[0].norm)
        th.testing.assert_close(list(ours[0].parts), list(theirs[0].parts))


# --- Gumbel-softmax


def test_hard_samples_have_the_probabilities_of_softmax() -> None:
    th.manual_seed(0)
    n, logits = 200_000, th.tensor([0.5, -1.0, 0.2], dtype=th.float64).expand(200_000, 3)
    codes = R.categorical(logits, R.standard_gumbel(logits), 0.5)
    p = logits[0].softmax(0)
    assert set(codes.unique().tolist()) == {0.0, 1.0}
    assert ((codes.mean(0) - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    bits = R.bernoulli(logits, R.standard_logistic(logits), 0.5)
    p = logits[0].sigmoid()
    assert ((bits.mean(0) - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.5), (0.1, 0.01)])
def test_straight_through_against_enumeration(temperature: float, bias: float) -> None:
    """f = c'a has the gradient p_k (c_k - p'c). The estimate is biased at temperature 1 and hardly at 0.1."""
    th.manual_seed(0)
    n, c = 400_000, th.tensor([1.0, -2.0, 0.5], dtype=th.float64)
    logits = th.tensor([0.5, -1.0, 0.2], dtype=th.float64).repeat(n, 1).requires_grad_()
    codes = R.categorical(logits, R.standard_gumbel(logits), temperature)
    (samples,) = th.autograd.grad((codes * c).sum(), logits)
    p = logits[0].detach().softmax(0)
    exact = p * (c - (p * c).sum())
    off = (samples.mean(0) - exact).abs()
    standard_error = samples.std(0) / math.sqrt(n)
    assert (off < bias * exact.abs().max() + 4 * standard_error).all()
    if temperature == 1.0:
        assert (off > 10 * standard_error).any(), "the bias that is stated is not there"
    assert (samples.mean(0) * exact > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_bias_of_a_bit_is_the_stated_one(temperature: float) -> None:
    """E[s'((l + e) / tau) / tau] by quadrature over e = logit(u)."""
    th.manual_seed(0)
    n, logit = 400_000, 0.8
    u = (th.arange(100_000, dtype=th.float64) + 0.5) / 100_000
    s = ((logit + u.logit()) / temperature).sigmoid()
    stated = (s * (1 - s) / temperature).mean()
    logits = th.full((n, 1), logit, dtype=th.float64, requires_grad=True)
    (samples,) = th.autograd.grad(R.bernoulli(logits, R.standard_logistic(logits), temperature).sum(), logits)
    assert (samples.mean() - stated).abs() < 4 * samples.std() / math.sqrt(n)
    exact = 1 / (2 + 2 * math.cosh(logit))
    assert abs(stated.item() - exact) > 0.003


def test_the_temperature_falls_as_it_is_told() -> None:
    model = make(Echo("Discrete"), initial_temperature=2.0, final_temperature=0.5, temperature_fraction=0.25)
    seen = {}
    for progress in (1.0, 0.875, 0.75, 0.2):
        model._current_progress_remaining = progress
        seen[progress] = model.temperature
    assert seen == {1.0: 2.0, 0.875: 1.25, 0.75: 0.5, 0.2: 0.5}


def test_the_slope_of_a_discrete_critic_is_the_value_of_each_action() -> None:
    model = make(Echo("Discrete"))
    obs, codes = th.randn(4, 3), th.eye(3)[[0, 2, 1, 1]].requires_grad_()
    (slope,) = th.autograd.grad(model.critic(obs, codes)[0].sum(), codes)
    each = th.stack([model.critic(obs, th.eye(3)[[k] * 4])[0] for k in range(3)], 1)
    th.testing.assert_close(slope, each)


# --- targets


def batch_of(n: int) -> Minibatch:
    rewards, discounts = th.arange(float(n)), th.tensor([0.9, 0.0] * n)[:n]
    return Minibatch(th.randn(n, 3), th.rand(n, 2) * 2 - 1, th.randn(n, 3), rewards, discounts)


def test_the_critic_is_told_r_plus_gamma_times_the_smallest_target(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(policy_kwargs={"n_critics": 3})
    batch, told = batch_of(6), []
    original = model.gradients.critic
    monkeypatch.setattr(model.gradients, "critic", lambda *args: told.append(args[2]) or original(*args))
    monkeypatch.setattr(model.actor.head, "noise", lambda y: th.zeros(len(y), 2))
    with th.no_grad():
        for parameter in model.critic_target.parameters():
            parameter.add_(0.1)
        mode = model.actor.head.mode(model.actor.outputs(batch.next_observations))
        q = model.critic_target(batch.next_observations, mode)
    model.update(batch)
    assert q.shape == (3, 6)
    th.testing.assert_close(told[0], batch.rewards + batch.discounts * q.min(0).values)


def test_an_update_moves_each_net_by_its_own_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of 0 for one, the other moves alone."""
    for still, moves in (("actor", "critic"), ("critic", "actor")):
        model = make()
        getattr(model, still).optimizer.param_groups[0]["lr"] = 0.0
        before = {name: [p.clone() for p in getattr(model, name).parameters()] for name in ("actor", "critic")}
        model.update(batch_of(8))
        after = {name: list(getattr(model, name).parameters()) for name in before}
        same = {name: all(map(th.equal, before[name], after[name])) for name in before}
        assert same == {still: True, moves: False}


def test_the_actor_climbs_and_the_critic_descends() -> None:
    model = make(learning_rate=1e-2, policy_kwargs={"std": "fixed", "std_init": 0.01})
    batch = batch_of(8)
    with th.no_grad():
        value = model.critic(batch.observations, model.actor(batch.observations))[0].mean()
    critic = {name: p.clone() for name, p in model.critic.named_parameters()}
    losses = []
    for _ in range(20):
        losses.append(float(model.update(batch)["critic_loss"]))
    assert losses[-1] < losses[0]
    model.critic.load_state_dict(critic)
    with th.no_grad():
        assert model.critic(batch.observations, model.actor(batch.observations))[0].mean() > value


def test_on_policy_targets_by_hand() -> None:
    """Two steps of one episode that goes on, then one that terminates; then one that a time limit cuts."""
    model = make(data="on_policy", train_freq=4, learning_starts=0, gamma=0.5, trace_decay=0.5)
    model._setup_learn(4)
    rewards, dones, cut = [1.0, 2.0, 4.0, 8.0], [False, False, True, True], [False, False, False, True]
    for i in range(4):
        obs = np.full((1, 3), i, np.float32)
        infos = [{"TimeLimit.truncated": cut[i]}]
        model.replay_buffer.add(obs, obs + 1, np.zeros((1, 2)), np.array([rewards[i]]), np.array([dones[i]]), infos)
    model.num_timesteps, model._fresh_rows = 4, 4
    (batch,) = model.minibatches(1, 99)
    v = th.tensor([10.0, 20.0, 30.0, 40.0])  # what follows step 2 is terminal, what follows step 3 is not
    targets = TARGETS["on_policy"](model, batch, v).tolist()
    last = 8 + 0.5 * 40
    third = 4.0
    second = 2 + 0.5 * (0.5 * 20 + 0.5 * third)
    first = 1 + 0.5 * (0.5 * 10 + 0.5 * second)
    assert targets == pytest.approx([first, second, third, last])


def test_on_policy_data_leave_out_the_random_actions() -> None:
    model = make(data="on_policy", train_freq=20, learning_starts=8).learn(20)
    assert len(model._window.steps.rewards) == 12
    model.learn(20, reset_num_timesteps=False)
    assert len(model._window.steps.rewards) == 20


# --- as a whole


@pytest.mark.parametrize(
    ("space", "data"),
    [*((space, "replay") for space in ACTIONS), (ACTIONS[0], "on_policy")],
    ids=[*(type(space).__name__ for space in ACTIONS), "on_policy"],
)
def test_it_learns_what_can_be_learned(space: Any, data: Any) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-2, "gamma": 0.0, "batch_size": 32, "ent_coef": 0.01}
    options |= {"buffer_size": 3000, "learning_starts": 100}
    options |= (
        {"train_freq": 60, "gradient_steps": 10} if data == "on_policy" else {"train_freq": 6, "gradient_steps": 2}
    )
    model = make(Echo(space), data=data, policy_kwargs={"net_arch": [32]}, **options).learn(1500)
    env, returns = Echo(space), 0.0
    obs, _ = env.reset(seed=7)
    for _ in range(25 * 8):
        obs, reward, over, _, _ = env.step(model.predict(obs, deterministic=True)[0])
        returns += reward
        if over:
            obs, _ = env.reset()
    assert returns / 25 / 8 > 0.75


@pytest.mark.parametrize("options", [{}, {"data": "on_policy", "train_freq": 10}, {"n_steps": 3}], ids=str)
def test_a_loaded_model_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Any) -> None:
    model = make(**options).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = SVG0.load(tmp_path / "model", device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    results = []
    for each in (model, loaded):
        each.set_env(Echo())
        each.get_env().seed(11)
        th.manual_seed(5)
        np.random.seed(5)
        results.append(learned(each.learn(60, reset_num_timesteps=False)))
    assert differences(*results) == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data", "fresh"),
        ("trace_decay", 1.5),
        ("ent_coef", -1.0),
        ("initial_temperature", 0.0),
        ("final_temperature", -0.5),
        ("temperature_fraction", 0.0),
        ("batch_size", 0),
        ("tau", 1.5),
        ("gradient_steps", -2),
    ],
)
def test_senseless_arguments_are_named(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        make(**{argument: value})


@pytest.mark.parametrize("kwargs", [{"n_critics": 0}, {"std": "learned"}, {"std_init": 0.0}], ids=str)
def test_senseless_policies_are_named(kwargs: dict[str, Any]) -> None:
    (name,) = kwargs
    with pytest.raises(ValueError, match=name):
        make(policy_kwargs=kwargs)
