"""The steps that REINFORCE really takes, against the exact gradient.

With plain SGD, a learning rate of 1 and no clipping, the change of the parameters in one ``train()`` is the estimate of
the gradient. :class:`Probe` keeps it and takes the step back, so that one policy is estimated again and again: in float64,
over K independent rollouts of M episodes that the class itself collects.

A mean agrees with the exact gradient if no component is off by 4 standard errors. For one component of a right estimator
that happens with one seed in 6,000 (Student's t with 63 degrees of freedom: 1.7e-4), so for all that is compared here
about once in ten sets of fresh seeds; the seeds are fixed. What such a test can see is shown, not claimed: every mistake of
:data:`MISTAKES` is off by more than 8, so that 4 standard errors let it through with a chance below 1e-4.
"""

from __future__ import annotations

import dataclasses
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
from sb3_pg_ext.functional.likelihood import squared_score_norms
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

    ``start`` gives parameters a value; the others, those of the critic too, are ``spread`` times a standard normal number.
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


GARNET = {"n_states": 5, "n_actions": 3, "instance": 5, "horizon": 5, "gamma": 0.8, "at_horizon": "terminate"}
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
    parts = [columns(r, i, n_episodes) for i in range(0, N_EPISODES - n_episodes, n_episodes) for r in rollouts]
    return parts[:n_parts]


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
def test_gae_of_any_critic_has_the_mean_that_its_bias_gives_it(discount_states, collected):
    model = probe(BEDS["endings"], gae_lambda=0.9, discount_states=discount_states)
    estimates = model.estimates(collected("endings"))
    assert off(estimates, exact_gradient(BEDS["endings"], model)) < AGREES
    model.gae_lambda = 1.0
    assert off(estimates, exact_gradient(BEDS["endings"], model)) > SEEN, "this critic is too good to show a bias"


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
    pi, V = mdp_policy(model, mdp), th.ones(5, dtype=th.float64)
    for discount_states in (True, False):
        theirs = gradient(model, oracles.mdp_surrogate(mdp, pi, discount_states=discount_states))
        th.testing.assert_close(gradient(model, surrogate_with_critic(mdp, pi, V, 1.0, discount_states)), theirs)


@pytest.mark.parametrize("baseline", [None, "mean"])
def test_a_rollout_of_at_least_so_many_steps_has_an_unbiased_sum(baseline):
    """The number of episodes depends on how long they are, so what is unbiased is the sum over them, not the mean."""
    model = probe(BEDS["endings"], 32, baseline=baseline, n_steps=7, discount_states=True)
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
    ("space", "places"), [(spaces.MultiBinary(2), [1, 2]), (spaces.MultiDiscrete([2, 3]), [3, 1])], ids=str
)
def test_actions_of_several_numbers(space, places, baseline):
    means = np.array([1.0, 0.5, 0.0, -1.0, 2.0, 0.3][: 4 if len(set(places)) == 2 and 2 in places else 6])
    bed = mdp_bed(armed_bandit(tuple(means), reward_std=0.3), 128)
    model = collector(bed, wrap=lambda env: Coded(env, space, places), baseline=baseline)
    model.collect()
    sizes = [2, 2] if isinstance(space, spaces.MultiBinary) else space.nvec.tolist()
    actions = th.cartesian_prod(*(th.arange(n) for n in sizes))
    arms = th.tensor(means[(actions.numpy() @ places)])
    log_prob = LogDensity(model.policy)(th.ones(len(actions), 1), actions.double())
    assert log_prob.exp().sum().item() == pytest.approx(1.0)
    assert off(model.estimates(), gradient(model, (log_prob.exp() * arms).sum())) < AGREES


# The baselines leave their own episode out


def with_its_own(psi: th.Tensor, weights: th.Tensor) -> th.Tensor:
    """The mean over all episodes: what the leave-one-out mean must not be."""
    weights = weights.to(psi.dtype)
    return ((weights * psi).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1e-300)).expand_as(psi)


@pytest.mark.parametrize(("bed", "n_episodes", "n_rollouts"), [("bandit", 2, 1000), ("lqr", 3, 1000)])
@pytest.mark.parametrize("baseline", ["mean", "optimal"])
def test_few_episodes_are_compared_without_bias(bed, n_episodes, n_rollouts, baseline, collected, monkeypatch):
    """With M = 2 or 3 a baseline that counts its own episode would shrink the gradient by 1 / M or so."""
    model = probe(BEDS[bed], baseline=baseline, discount_states=True)
    rollouts = in_parts(collected(bed), n_episodes, n_rollouts)
    exact = exact_gradient(BEDS[bed], model)
    assert off(model.estimates(rollouts), exact) < AGREES
    monkeypatch.setattr(R, "leave_one_out_mean", with_its_own)
    monkeypatch.setattr(R, "leave_one_out_weighted_mean", with_its_own)
    assert off(model.estimates(rollouts), exact) > SEEN
