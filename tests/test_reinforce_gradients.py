"""The steps that REINFORCE really takes, against the exact gradient.

With plain SGD, a learning rate of 1 and no clipping, the change of the parameters in one ``train()`` is the estimate of
the gradient. :class:`Probe` keeps it and takes the step back, so that one policy is estimated again and again: in
float64, over K independent rollouts of M episodes that the class itself collects.

A mean agrees with the exact gradient if no component is off by 4 standard errors. For one component of a right
estimator that happens with one seed in 6,000 (Student's t, 63 degrees of freedom), so for all that is compared here
with about one set of fresh seeds in ten; the seeds are fixed. What such a test can see is shown, not claimed: each
mistake that is made on purpose below is off by more than 8, and would slip below 4 with a chance under 1e-4.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common import policies
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import nn
from torch.func import functional_call, grad, vmap

from sb3_pg_ext.algorithms import reinforce
from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.bases import on_policy
from sb3_pg_ext.bases.on_policy import LogDensity
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import PolynomialBandit, PolynomialBanditVectorEnv, armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPVectorEnv
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQRVectorEnv, lqr
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.functional.likelihood import score_function_loss, squared_score_norms
from sb3_pg_ext.rollout import acting
from sb3_pg_ext.rollout.collector import EpisodeQueue
from sb3_pg_ext.rollout.episodes import Rollout
from sb3_pg_ext.rollout.vector_env import as_vec_env

N_ROLLOUTS, N_EPISODES, SEED = 64, 256, 0
AGREES, SEEN = 4.0, 8.0


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    """Stable-Baselines3 turns observations into float32 whatever the policy's precision is."""
    original = policies.preprocess_obs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "preprocess_obs", lambda *args, **kwargs: original(*args, **kwargs).double())
        yield


# What is estimated: testbeds


@dataclasses.dataclass(frozen=True)
class Bed:
    """A problem and the policy that is tried on it.

    ``start`` gives parameters a value; the others, the critic's too, are ``spread`` times standard normal numbers.
    """

    problem: Any
    make: Callable[[int], Any]
    n_slots: int
    net_arch: Any = dataclasses.field(default_factory=list)
    start: dict[str, float] = dataclasses.field(default_factory=dict)
    spread: float = 0.7


def mdp_bed(mdp: FiniteMDP, n_slots: int, **kwargs: Any) -> Bed:
    return Bed(mdp, lambda n: FiniteMDPVectorEnv(mdp, n), n_slots, **kwargs)


def endings() -> FiniteMDP:
    """Four states. Actions that end the episode pay, so that length and return hang together; 6 steps at most."""
    rng = np.random.default_rng(5)
    ends = np.array([[0.02, 0.5, 0.3], [0.6, 0.05, 0.2], [0.1, 0.4, 0.02], [0.3, 0.02, 0.5]])
    transition = rng.dirichlet(np.ones(4), (4, 3)) * (1 - ends)[..., None]
    reward = 2 * ends - 0.5 + 0.3 * rng.normal(size=(4, 3))
    return FiniteMDP(transition, reward, features=np.eye(4), horizon=6, gamma=0.8)


GARNET = {"n_states": 5, "n_actions": 3, "instance": 9, "horizon": 5, "gamma": 0.7, "at_horizon": "terminate"}
SCALAR = {"noise_std": 0.2, "start_std": 0.3, "horizon": 4, "gamma": 0.8, "at_horizon": "terminate"}
SQUARE = PolynomialBandit((0.0, 0.0, 1.0))
BEDS = {
    "bandit": mdp_bed(armed_bandit((1.0, 0.5, 0.0), reward_std=0.5), 128),
    "garnet": mdp_bed(garnet(**GARNET), 256, net_arch={"pi": [4], "vf": []}, spread=1.2),
    "endings": mdp_bed(endings(), 96),  # fewer slots than episodes; a time limit as well as terminal steps
    "lqr": Bed(
        lqr("scalar", **SCALAR),
        lambda n: LQRVectorEnv(n, preset="scalar", **SCALAR),
        256,
        start={"action_net.weight": -0.4, "action_net.bias": 0.2, "log_std": -0.7},
    ),
}
A_SQUARE = Bed(
    SQUARE,
    lambda n: PolynomialBanditVectorEnv(SQUARE, n),
    256,
    start={"action_net.weight": 0.4, "action_net.bias": 0.6, "log_std": 0.0},
)
CUT = mdp_bed(garnet(**{**GARNET, "horizon": 2, "at_horizon": "truncate"}), 256, spread=1.2)
every_bed = pytest.mark.parametrize("bed", BEDS)
every_bed_of_several_steps = pytest.mark.parametrize("bed", [name for name in BEDS if name != "bandit"])


# The estimates


class Probe(REINFORCE):
    """REINFORCE that takes each of its steps back and keeps it, with the rollout that it came from."""

    steps: list[dict[str, th.Tensor]]
    rollouts: list[Rollout]

    def train(self) -> None:
        before = [p.detach().clone() for p in self.policy.parameters()]
        super().train()
        named = self.policy.named_parameters()
        self.steps.append({name: p.detach() - b for (name, p), b in zip(named, before, strict=True)})
        self.rollouts.append(self.rollout)
        with th.no_grad():
            for parameter, value in zip(self.policy.parameters(), before, strict=True):
                parameter.copy_(value)

    def collect(self, n_rollouts: int = N_ROLLOUTS) -> list[Rollout]:
        """Through ``learn()``, one rollout a call."""
        for _ in range(n_rollouts):
            self.learn(1, reset_num_timesteps=False, log_interval=None)
        return self.rollouts

    def estimates(self, rollouts: list[Rollout] | None = None) -> th.Tensor:
        """(K, P), the actor's parameters: of the rollouts just collected, or what it makes of those of another."""
        if rollouts is not None:
            self.steps = []
            for self.rollout in rollouts:
                self.train()
        assert not any(x.any() for step in self.steps for name, x in step.items() if not is_actor(name))
        return th.stack([actor_vector(step) for step in self.steps])


def is_actor(name: str) -> bool:
    return "value" not in name


def actor_vector(named: dict[str, th.Tensor]) -> th.Tensor:
    return th.cat([x.flatten() for name, x in named.items() if is_actor(name)])


def probe(bed: Bed, n_envs: int = 1, wrap: Callable[[VecEnv], VecEnv] = lambda env: env, **options: Any) -> Probe:
    settings: dict[str, Any] = {
        "gamma": bed.problem.gamma,
        "vf_coef": 0.0,
        "max_grad_norm": math.inf,
        "policy_kwargs": {"net_arch": bed.net_arch, "optimizer_class": th.optim.SGD},
        "seed": SEED,
    }
    model = Probe("MlpPolicy", wrap(as_vec_env(bed.make(n_envs))), 1.0, **{**settings, **options})
    model.policy.double()
    generator = th.Generator().manual_seed(1)
    for name, parameter in model.policy.named_parameters():
        noise = th.randn(parameter.shape, generator=generator, dtype=th.float64)
        parameter.data = th.full_like(noise, bed.start[name]) if name in bed.start else bed.spread * noise
    model.steps, model.rollouts = [], []
    model.set_logger(Logger(None, []))
    return model


def collector(bed: Bed, **options: Any) -> Probe:
    return probe(bed, bed.n_slots, **{"n_episodes": N_EPISODES, "baseline": None, **options})


@pytest.fixture(scope="module")
def collected():
    """The rollouts of each testbed, by the class's own collector; made when they are first asked for."""
    made: dict[str, list[Rollout]] = {}

    def get(name: str) -> list[Rollout]:
        if name not in made:
            made[name] = collector(BEDS[name]).collect()
        return made[name]

    return get


def columns(rollout: Rollout, first: int, count: int) -> Rollout:
    """A rollout of ``count`` of the episodes."""
    lengths = rollout.live.sum(0)
    start, size = int(lengths[:first].sum()), int(lengths[first : first + count].sum())
    part = (slice(int(lengths[first : first + count].max())), slice(first, first + count))
    padded = {name: getattr(rollout, name)[part] for name in ("rewards", "live", "continues", "cut")}
    steps = slice(start, start + size)
    return Rollout(rollout.observations[steps], rollout.actions[steps], **padded, cut_observations=None, collected=size)


def in_parts(rollouts: list[Rollout], n_episodes: int, n_parts: int) -> list[Rollout]:
    """The first ``n_parts`` rollouts of ``n_episodes`` episodes, taken from all of ``rollouts`` in turn."""
    starts = ((r, first) for first in range(0, N_EPISODES - n_episodes, n_episodes) for r in rollouts)
    return [columns(r, first, n_episodes) for r, first in itertools.islice(starts, n_parts)]


# The exact gradients


def mdp_policy(model: Probe, mdp: FiniteMDP) -> th.Tensor:
    """pi(a|s), (S, A), differentiable in the policy's parameters."""
    return model.policy.get_distribution(th.tensor(mdp.features)).distribution.probs


def gradient(model: Probe, objective: th.Tensor) -> th.Tensor:
    named = dict(model.policy.named_parameters())
    gradients = th.autograd.grad(objective, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), gradients, strict=True)
    return actor_vector({name: th.zeros_like(p) if g is None else g for (name, p), g in pairs})


def surrogate_with_critic(mdp: FiniteMDP, pi: th.Tensor, V: th.Tensor, lam: float, discount_states: bool) -> th.Tensor:
    """A scalar whose gradient is what REINFORCE expects from TD(lambda) returns of a critic V over H steps:

    sum_t w_t sum_s Pr(s_t = s) sum_a grad pi(a|s) Q_t(s, a),
    Q_t = r + gamma P ((1 - lambda) V + lambda sum_a pi Q_{t+1}),      Q_{H-1} = r + gamma P V at a time limit, else r
    """
    reward, transition, fixed = th.tensor(mdp.reward), th.tensor(mdp.transition), pi.detach()
    Q = [reward + mdp.gamma * transition @ (V if mdp.at_horizon == "truncate" else 0 * V)]
    for _ in range(mdp.horizon - 1):
        Q.insert(0, reward + mdp.gamma * transition @ ((1 - lam) * V + lam * (fixed * Q[0]).sum(1)))
    total, visits = th.zeros(()), th.tensor(mdp.start)
    for t, Q_t in enumerate(Q):
        weight = mdp.gamma**t if discount_states else 1.0
        total = total + weight * (visits[:, None] * pi * Q_t).sum()
        visits = th.einsum("s,sa,saz->z", visits, fixed, transition)
    return total


def exact_mdp_gradient(mdp: FiniteMDP, model: Probe, discount_states: bool) -> th.Tensor:
    pi, horizon = mdp_policy(model, mdp), mdp.horizon or 1
    if model.baseline == "value" and mdp.at_horizon == "truncate" and mdp.horizon:
        V = model.policy.predict_values(th.tensor(mdp.features)).flatten().detach()
        return gradient(model, surrogate_with_critic(mdp, pi, V, model.gae_lambda, discount_states))
    if discount_states:
        return gradient(model, oracles.mdp_objective(mdp, pi, horizon=horizon))
    return gradient(model, oracles.mdp_surrogate(mdp, pi, horizon=horizon, discount_states=False))


def exact_lqr_gradient(problem: Any, model: Probe, discount_states: bool) -> th.Tensor:
    def mean(x: th.Tensor) -> th.Tensor:
        return model.policy.get_distribution(x).distribution.mean

    K, bias = oracles.affine_gain(mean, 1, dtype=th.float64)
    std = model.policy.log_std.exp()
    if discount_states:
        return gradient(model, oracles.lqr_objective(problem, K, std, bias))
    by = oracles.lqr_gradient(problem, K, std, bias, discount_states=False)
    return actor_vector({"log_std": by.log_std, "weight": -by.K, "bias": by.bias}).detach()


def exact_gradient(bed: Bed, model: Probe, *, discount_states: bool | None = None) -> th.Tensor:
    """What ``model`` must have on average: the gradient of J, or what its options put in its place.

    R(tau) is discounted from the first step on, so with ``returns="trajectory"`` it is always the former.
    """
    if discount_states is None:
        discount_states = model.discount_states or model.returns == "trajectory"
    exact = exact_mdp_gradient if isinstance(bed.problem, FiniteMDP) else exact_lqr_gradient
    return exact(bed.problem, model, discount_states)


def off(estimates: th.Tensor, exact: th.Tensor) -> float:
    """The largest distance of the mean of estimates (K, P) from ``exact``, in standard errors."""
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    return ((estimates.mean(0) - exact) / standard_error).abs().max().item()


# Unbiasedness

VARIANTS = [
    {"returns": returns, "baseline": baseline, "discount_states": discount_states}
    for returns in ("reward_to_go", "trajectory")
    for baseline in (None, "mean", "optimal", "value")
    for discount_states in (True, False)
]


def described(options: dict[str, Any]) -> str:
    return "-".join(str(v) for v in options.values())


@every_bed
@pytest.mark.parametrize("options", VARIANTS, ids=described)
def test_the_mean_step_is_the_exact_gradient(bed, options, collected):
    model = probe(BEDS[bed], **options)
    assert off(model.estimates(collected(bed)), exact_gradient(BEDS[bed], model)) < AGREES


@every_bed_of_several_steps
def test_without_discounted_states_it_is_another_one(bed, collected):
    model = probe(BEDS[bed], baseline="mean", discount_states=False)
    assert off(model.estimates(collected(bed)), exact_gradient(BEDS[bed], model, discount_states=True)) > SEEN


@pytest.mark.parametrize("discount_states", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9])
def test_gae_of_any_critic_has_the_mean_that_its_bias_gives_it(lam, discount_states, collected):
    model = probe(BEDS["endings"], gae_lambda=lam, discount_states=discount_states)
    estimates = model.estimates(collected("endings"))
    assert off(estimates, exact_gradient(BEDS["endings"], model)) < AGREES
    model.gae_lambda = 1.0
    assert lam == 0.9 or off(estimates, exact_gradient(BEDS["endings"], model)) > SEEN, "too good a critic for a bias"


@pytest.mark.parametrize("discount_states", [True, False])
def test_a_time_limit_is_continued_by_the_critic(discount_states):
    model = collector(CUT, baseline="value", discount_states=discount_states)
    model.collect()
    assert off(model.estimates(), exact_gradient(CUT, model)) < AGREES


@pytest.mark.parametrize("lam", [0.0, 0.9])
def test_gae_of_the_exact_critic_is_unbiased(lam, collected):
    mdp = BEDS["endings"].problem
    model = probe(BEDS["endings"], gae_lambda=lam, discount_states=True)
    pi = mdp_policy(model, mdp).detach()
    V = oracles.mdp_values(mdp, pi, horizon=math.inf).V
    model.policy.value_net.weight.data, model.policy.value_net.bias.data = V[None], th.zeros(1, dtype=th.float64)
    exact = exact_gradient(BEDS["endings"], model)
    estimates = model.estimates(collected("endings"))
    model.gae_lambda = 1.0
    th.testing.assert_close(exact_gradient(BEDS["endings"], model), exact, rtol=1e-10, atol=1e-12)
    assert off(estimates, exact) < AGREES


def test_the_two_ways_to_the_exact_gradient_agree():
    mdp, model = BEDS["garnet"].problem, probe(BEDS["garnet"])
    V = th.ones(5, dtype=th.float64)
    for discount_states in (True, False):
        theirs = gradient(model, oracles.mdp_surrogate(mdp, mdp_policy(model, mdp), discount_states=discount_states))
        ours = gradient(model, surrogate_with_critic(mdp, mdp_policy(model, mdp), V, 1.0, discount_states))
        th.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_rollout_of_at_least_so_many_steps_has_an_unbiased_sum():
    """The number of episodes depends on how long they are, so what is unbiased is the sum over them, not the mean."""
    model = probe(BEDS["endings"], 32, baseline=None, n_steps=7, discount_states=True)
    n_episodes = th.tensor([[r.live.shape[1]] for r in model.collect(192)])
    exact = exact_gradient(BEDS["endings"], model)
    assert n_episodes.unique().numel() > 10
    assert off(n_episodes * (model.estimates() - exact), th.zeros_like(exact)) < AGREES


class Coded(VecEnvWrapper):
    """Arms that are named by several small numbers at once."""

    def __init__(self, venv: VecEnv, action_space: spaces.Space, places: list[int]):
        super().__init__(venv, action_space=action_space)
        self.places = np.array(places)

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async((actions @ self.places).astype(np.int64))

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def reset(self) -> Any:
        return self.venv.reset()


@pytest.mark.parametrize("baseline", ["mean", "optimal"])
@pytest.mark.parametrize(
    ("space", "sizes", "places"),
    [(spaces.MultiBinary(2), [2, 2], [1, 2]), (spaces.MultiDiscrete([2, 3]), [2, 3], [3, 1])],
    ids=["MultiBinary", "MultiDiscrete"],
)
def test_actions_of_several_numbers(space, sizes, places, baseline):
    means = np.array([1.0, 0.5, 0.0, -1.0, 2.0, 0.3])[: math.prod(sizes)]
    bed = mdp_bed(armed_bandit(tuple(means), reward_std=0.3), 128)
    model = collector(bed, wrap=lambda env: Coded(env, space, places), baseline=baseline)
    model.collect()
    actions = th.cartesian_prod(*(th.arange(n) for n in sizes))
    of_arms = th.tensor(means[actions.numpy() @ places])
    log_prob = LogDensity(model.policy)(th.ones(len(actions), 1), actions.double())
    assert log_prob.exp().sum().item() == pytest.approx(1.0)
    assert off(model.estimates(), gradient(model, (log_prob.exp() * of_arms).sum())) < AGREES


# The baselines leave their own episode out


def with_its_own(psi: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """The mean over all episodes: what the leave-one-out mean must not be."""
    weights = weights.to(psi.dtype)
    return ((weights * psi).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-300)).expand_as(psi)


FEW = [("bandit", "mean", 2, 400), ("garnet", "mean", 2, 400), ("lqr", "mean", 2, 600)] + [
    (bed, "optimal", 3, 400) for bed in ("bandit", "garnet", "lqr")
]


@pytest.mark.parametrize(("bed", "baseline", "n_episodes", "n_rollouts"), FEW)
def test_few_episodes_are_compared_without_bias(bed, baseline, n_episodes, n_rollouts, collected, monkeypatch):
    """A baseline that counts its own episode as well shrinks the gradient by about 1 / M."""
    model = probe(BEDS[bed], baseline=baseline, discount_states=True)
    rollouts = in_parts(collected(bed), n_episodes, n_rollouts)
    exact = exact_gradient(BEDS[bed], model)
    assert off(model.estimates(rollouts), exact) < AGREES
    monkeypatch.setattr(R, "leave_one_out_mean", with_its_own)
    monkeypatch.setattr(R, "leave_one_out_weighted_mean", with_its_own)
    assert off(model.estimates(rollouts), exact) > SEEN


# Variances


def scores(model: Probe, rollout: Rollout) -> th.Tensor:
    """grad log pi(a|s) of every step in the actor's parameters, (B, P)."""
    density = LogDensity(model.policy)
    theta = {n: p.detach() for n, p in density.named_parameters() if is_actor(n)}

    def log_density(theta: dict[str, th.Tensor], obs: th.Tensor, action: th.Tensor) -> th.Tensor:
        return functional_call(density, theta, (obs[None], action[None])).squeeze(0)

    by_name = vmap(grad(log_density), in_dims=(None, 0, 0))(theta, rollout.observations, rollout.actions)
    return th.cat([g.flatten(1) for g in by_name.values()], 1)


def terms(model: Probe, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch) -> th.Tensor:
    """The terms that the class's estimate is the mean over M and the sum over T of: (K * M, T, P)."""
    weights: list[th.Tensor] = []

    def overheard(log_prob: th.Tensor, psi: th.Tensor, n_episodes: int) -> th.Tensor:
        weights.append(psi)
        return score_function_loss(log_prob, psi, n_episodes)

    with monkeypatch.context() as patch:
        patch.setattr(reinforce, "score_function_loss", overheard)
        model.estimates(rollouts)
    pairs = zip(weights, rollouts, strict=True)
    padded = [th.stack([r.pad(x) for x in (psi[:, None] * scores(model, r)).T], -1).transpose(0, 1) for psi, r in pairs]
    longest = max(x.shape[1] for x in padded)
    return th.cat([nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in padded])


def lower(one: th.Tensor, other: th.Tensor) -> tuple[float, float]:
    """Ratio of two mean squares |x|^2 of (n, ...), and by how many standard errors its logarithm is below 0.

    Delta method; what the two have in common cancels.
    """
    a, b = (x.square().flatten(1).sum(1) for x in (one, other))
    log_ratio = (a.mean() / b.mean()).log()
    standard_error = (a / a.mean() - b / b.mean()).std() / math.sqrt(len(a))
    return log_ratio.exp().item(), (-log_ratio / standard_error).item()


def centred(x: th.Tensor) -> th.Tensor:
    return x - x.mean(0)


@pytest.mark.parametrize("bed", [*BEDS, "square"])
def test_the_optimal_baseline_has_the_lowest_variance(bed, collected, monkeypatch):
    """What b_t = E[|score_t|^2 Psi_t] / E[|score_t|^2] minimises is sum_t Var(score_t (Psi_t - b_t)).

    Where an episode has one step that is the variance of the estimate. Where it has several the covariances between the
    steps come on top, so that lower is no theorem but a finding. And b_t is itself an estimate, which adds about one
    part in M: in ``endings``, where all scores are alike, the optimal baseline and the mean come to the same.
    """
    testbed = A_SQUARE if bed == "square" else BEDS[bed]
    rollouts = collector(A_SQUARE).collect() if bed == "square" else collected(bed)
    none, mean, optimal = (
        terms(probe(testbed, baseline=baseline, discount_states=True), rollouts, monkeypatch)
        for baseline in (None, "mean", "optimal")
    )
    for one in (none, mean):
        of_steps, of_episodes = lower(optimal, one), lower(centred(optimal.sum(1)), centred(one.sum(1)))
        if bed == "endings" and one is mean:
            assert max(of_steps[0], of_episodes[0]) < 1.005
        else:
            assert min(of_steps[1], of_episodes[1]) > AGREES


def test_variances_on_the_bandit_are_those_of_the_enumeration(collected, monkeypatch):
    bed = BEDS["bandit"]
    for baseline in (None, "mean", "optimal"):
        model = probe(bed, baseline=baseline)
        one = Rollout(th.ones(3, 1), th.arange(3), *[th.ones(1, 3)] * 4, cut_observations=None, collected=3)
        score, p, r = scores(model, one), mdp_policy(model, bed.problem)[0].detach(), th.tensor(bed.problem.reward[0])
        norms = score.square().sum(1)
        b = {None: 0.0, "mean": p @ r, "optimal": (p * norms) @ r / (p @ norms)}[baseline]
        exact = oracles.estimator_variance(p, score * (r - b)[:, None]) + bed.problem.reward_std**2 * (p @ norms)
        squares = centred(terms(model, collected("bandit"), monkeypatch).sum(1)).square().sum(1)
        assert abs(squares.mean() - exact) < AGREES * squares.std() / math.sqrt(len(squares)) + exact / N_EPISODES


def test_variances_of_the_square_of_a_normal_action():
    """a ~ N(1, 1), f = a^2: variances 30 (none), 18 (b = E f) and 14 (optimal b) of the estimates of d/dmu E f = 2."""

    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Linear(1, 1, bias=False).double()
            self.mean.weight.data.fill_(1.0)

        def forward(self, obs: th.Tensor, action: th.Tensor) -> th.Tensor:
            return -0.5 * (action - self.mean(obs)).square().sum(1)

    n = 1_000_000
    action = 1 + th.randn(n, 1, dtype=th.float64, generator=th.Generator().manual_seed(SEED))
    psi, score = action.square().T, (action - 1).T
    norms = squared_score_norms(Normal(), (th.ones_like(action), action))[None]
    baselines = {
        30: th.zeros_like(psi),
        18: R.leave_one_out_mean(psi, th.ones_like(psi, dtype=th.bool)),
        14: R.leave_one_out_weighted_mean(psi, norms),
    }
    for exact, baseline in baselines.items():
        estimates = score * (psi - baseline)
        assert abs(estimates.mean() - 2) < AGREES * estimates.std() / math.sqrt(n)
        assert estimates.var().item() == pytest.approx(exact, rel=0.03)


# The formula, number for number


def by_hand(model: Probe, rollout: Rollout) -> th.Tensor:
    """The step that the class has to take, in loops over episodes and steps."""
    policy, gamma, lam = model.policy, model.gamma, model.gae_lambda
    lengths, at = rollout.live.sum(0).tolist(), 0
    cuts = iter(() if rollout.cut_observations is None else rollout.cut_observations)
    episodes = []
    for i, length in enumerate(lengths):
        steps = slice(at, at := at + length)
        obs, rewards = rollout.observations[steps], rollout.rewards[:length, i].tolist()
        values = policy.predict_values(obs).flatten().tolist()
        cut = rollout.cut[length - 1, i] and policy.predict_values(th.tensor(next(cuts))[None]).item()
        critic = model.baseline == "value"
        after = [*values[1:], float(cut)] if critic else [0.0] * length  # V(s_{t+1})

        def n_step(t: int, n: int, rewards: list[float] = rewards, after: list[float] = after) -> float:
            return sum(gamma**k * rewards[t + k] for k in range(n)) + gamma**n * after[t + n - 1]

        def mixed(t: int, length: int = length, n_step: Callable[[int, int], float] = n_step) -> float:
            last = length - t
            weights = [(1 - lam) * lam ** (n - 1) if n < last else lam ** (n - 1) for n in range(1, last + 1)]
            return sum(w * n_step(t, n) for n, w in enumerate(weights, 1))

        psi = [mixed(t if model.returns == "reward_to_go" else 0) for t in range(length)]
        log_probs = policy.get_distribution(obs).log_prob(rollout.actions[steps])
        score = [gradient_again(model, log_prob) for log_prob in log_probs]
        entropy = gradient_again(model, policy.get_distribution(obs).entropy().sum())
        episodes.append((psi, score, values, entropy))
    total = th.zeros_like(episodes[0][3])
    for i, (psi, score, values, entropy) in enumerate(episodes):
        total += model.ent_coef * entropy
        for t in range(len(psi)):
            others = [
                (e[0][t], e[1][t].square().sum().item()) for j, e in enumerate(episodes) if j != i and len(e[0]) > t
            ]
            if model.baseline == "optimal":
                mass = sum(w for _, w in others)
                b = sum(w * p for p, w in others) / mass if others else 0.0
            elif model.baseline == "mean":
                b = sum(p for p, _ in others) / len(others) if others else 0.0
            else:
                b = values[t] if model.baseline == "value" else 0.0
            weight = gamma**t if model.discount_states and model.returns == "reward_to_go" else 1.0
            total += weight * (psi[t] - b) * score[t]
    return total / len(episodes)


def gradient_again(model: Probe, scalar: th.Tensor) -> th.Tensor:
    named = {n: p for n, p in model.policy.named_parameters() if is_actor(n)}
    return th.cat([g.flatten() for g in th.autograd.grad(scalar, list(named.values()), retain_graph=True)])


@pytest.mark.parametrize(
    "options",
    [*VARIANTS, {"gae_lambda": 0.9}, {"gae_lambda": 0.0, "discount_states": True}, {"baseline": None, "ent_coef": 0.3}],
    ids=described,
)
def test_one_step_is_the_formula(options):
    model = probe(BEDS["endings"], 8, n_episodes=40, **options)
    (rollout,) = model.collect(1)
    assert rollout.cut.any()
    assert rollout.live.sum(0).unique().numel() > 3
    th.testing.assert_close(model.estimates()[0], by_hand(model, rollout), rtol=1e-10, atol=1e-12)


def test_a_layer_that_is_frozen_stays_and_the_others_learn_as_before():
    rollouts = collector(BEDS["garnet"]).collect(1)
    whole, frozen = (probe(BEDS["garnet"], baseline="mean") for _ in range(2))
    first_layer = list(frozen.policy.mlp_extractor.policy_net[0].parameters())
    for parameter in first_layer:
        parameter.requires_grad_(False)
    (with_all,), (with_rest,) = whole.estimates(rollouts), frozen.estimates(rollouts)
    size = sum(p.numel() for p in first_layer)
    assert with_all.all()
    assert not with_rest[:size].any()
    assert th.equal(with_rest[size:], with_all[size:])


# What the comparison sees


def gamma_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(reinforce.RETURNS, "reward_to_go", lambda r, c, gamma: R.reward_to_go(r, c, 1.0))


def sign_flipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reinforce, "score_function_loss", lambda *args: -score_function_loss(*args))


def mean_over_steps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reinforce, "score_function_loss", lambda x, psi, _: score_function_loss(x, psi, len(psi)))


def discounted_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(reinforce.RETURNS, "reward_to_go", R.total_return)


def weight_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(R, "episode_time", lambda continues: th.zeros_like(continues, dtype=th.int64))


def columns_mixed_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rollout, "flatten", lambda self, padded: padded[self.live])


def time_limit_taken_for_an_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Probe, "cut_values", lambda self, rollout: th.zeros_like(rollout.rewards))


def noise_too_small(patch: pytest.MonkeyPatch) -> None:
    original = acting._gumbel
    patch.setattr(acting, "_gumbel", lambda rng, shape: 0.8 * original(rng, shape))


class WhateverIsFinished(EpisodeQueue):
    """Runs for a number of steps, and keeps the episodes that are complete by then."""

    def __call__(self, dones: np.ndarray) -> bool:
        self.t += 1
        for slot in np.flatnonzero(dones).tolist():
            self.bounds.append((slot, self.start[slot], self.t))
            self.start[slot] = self.t
        return self.t == 6


def whatever_is_finished(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(on_policy, "EpisodeQueue", WhateverIsFinished)


class NoLastObservation(VecEnvWrapper):
    """Gives the first observation of the next episode for the last one of the old."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        for slot in np.flatnonzero(dones):
            infos[slot]["terminal_observation"] = obs[slot]
        return obs, rewards, dones, infos


MISTAKES = [
    ("garnet", gamma_dropped, {"baseline": "mean"}),
    ("lqr", gamma_dropped, {"baseline": None}),
    ("bandit", sign_flipped, {}),
    ("garnet", sign_flipped, {"baseline": "optimal"}),
    ("lqr", sign_flipped, {"baseline": "mean"}),
    ("garnet", mean_over_steps, {"baseline": "mean"}),
    ("lqr", mean_over_steps, {"baseline": "mean"}),
    ("garnet", discounted_twice, {"baseline": "mean", "discount_states": True}),
    ("lqr", discounted_twice, {"baseline": "optimal", "discount_states": True}),
    ("garnet", weight_forgotten, {"baseline": "mean", "discount_states": True}),
    ("lqr", weight_forgotten, {"baseline": "mean", "discount_states": True}),
    ("endings", columns_mixed_up, {"baseline": None}),
]
MISTAKES_OF_THE_COLLECTOR = [
    ("garnet", noise_too_small, {"baseline": "mean"}),
    ("endings", whatever_is_finished, {"baseline": None}),
    ("cut", NoLastObservation, {"baseline": "value"}),
    ("cut", time_limit_taken_for_an_end, {"baseline": "value"}),
]


def named(mistake: Any) -> str:
    return getattr(mistake, "__name__", mistake if isinstance(mistake, str) else "")


@pytest.mark.parametrize(("bed", "mistake", "options"), MISTAKES, ids=named)
def test_a_mistake_is_seen(bed, mistake, options, collected, monkeypatch):
    model = probe(BEDS[bed], **options)
    exact, rollouts = exact_gradient(BEDS[bed], model), collected(bed)
    mistake(monkeypatch)
    assert off(model.estimates(rollouts), exact) > SEEN


@pytest.mark.parametrize(("bed", "mistake", "options"), MISTAKES_OF_THE_COLLECTOR, ids=named)
def test_a_mistake_of_the_collector_is_seen(bed, mistake, options, monkeypatch):
    testbed, is_wrapper = CUT if bed == "cut" else BEDS[bed], isinstance(mistake, type)
    model = collector(testbed, **options, **({"wrap": mistake} if is_wrapper else {}))
    exact = exact_gradient(testbed, model)
    if not is_wrapper:
        mistake(monkeypatch)
    model.collect()
    assert off(model.estimates(), exact) > SEEN
