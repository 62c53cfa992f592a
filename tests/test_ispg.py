"""ISPG: REINFORCE at equal policies, the exact gradient off-policy, and what its options do to each step.

With plain SGD, a learning rate of 1 and no clipping, the change of the parameters in one update is the estimate of the
gradient. Means of 64 independent rollouts must be within 4 standard errors of the exact gradient; a wrong estimator is
off by more than 8.
"""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common import policies
from stable_baselines3.common.logger import Logger

from sb3_pg_ext.algorithms import ispg
from sb3_pg_ext.algorithms.ispg import ISPG
from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.bases.behaviour import acting_behaviour
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.bandit import armed_bandit
from sb3_pg_ext.envs.finite_mdp import FiniteMDPVectorEnv
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQRVectorEnv, lqr
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing.environments import Echo

RATIOS = ["step", "trajectory", "per_decision"]
every_ratio = pytest.mark.parametrize("ratio", RATIOS)


# Equal policies


@every_ratio
@pytest.mark.parametrize("action", ["Box", "Discrete", "MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "value"},
        {"baseline": "mean", "normalize_advantage": True},
        {"baseline": None, "discount_states": True},
        {"baseline": "value", "gae_lambda": 0.9, "ent_coef": 0.01, "normalize_advantage": True},
    ],
    ids=str,
)
def test_the_first_step_is_that_of_reinforce_bit_for_bit(action, ratio, options):
    common = {"n_episodes": 4, "seed": 3, "gamma": 0.9, "policy_kwargs": {"net_arch": [8]}, **options}
    expected = REINFORCE("MlpPolicy", Echo(action, "vector"), **common).learn(1)
    model = ISPG("MlpPolicy", Echo(action, "vector"), n_epochs=1, ratio=ratio, self_normalize=True, **common).learn(1)
    assert th.equal(model.rollout.actions, expected.rollout.actions)
    for (name, p), q in zip(model.policy.named_parameters(), expected.policy.parameters(), strict=True):
        assert (p.grad is None) is (q.grad is None), name
        assert p.grad is None or th.equal(p.grad, q.grad), name
        assert th.equal(p, q), name


def test_the_second_step_is_another_one():
    common = {"n_episodes": 4, "seed": 3}
    once, twice = (ISPG("MlpPolicy", Echo("Discrete", "vector"), n_epochs=n, **common).learn(1) for n in (1, 2))
    assert not th.equal(once.policy.action_net.weight, twice.policy.action_net.weight)


# Different policies


@pytest.fixture
def double_precision(monkeypatch):
    """Stable-Baselines3 turns observations into float32 whatever the policy's precision is."""
    original = policies.preprocess_obs

    def doubled(*args, **kwargs):
        result = original(*args, **kwargs)
        return result.double() if isinstance(result, th.Tensor) and result.is_floating_point() else result

    monkeypatch.setattr(policies, "preprocess_obs", doubled)


GARNET = {"n_states": 4, "n_actions": 3, "instance": 9, "horizon": 4, "gamma": 0.7, "at_horizon": "terminate"}
SCALAR = {"noise_std": 0.2, "start_std": 0.3, "horizon": 3, "gamma": 0.8, "at_horizon": "terminate"}
MDPS = {"bandit": armed_bandit((1.0, 0.5, 0.0), reward_std=0.5), "garnet": garnet(**GARNET)}
LQR = lqr("scalar", **SCALAR)
N_ROLLOUTS, N_EPISODES = 64, 256


def bed(name):
    if name == "lqr":
        return as_vec_env(LQRVectorEnv(N_EPISODES, preset="scalar", **SCALAR))
    return as_vec_env(FiniteMDPVectorEnv(MDPS[name], N_EPISODES))


def problem(name):
    return LQR if name == "lqr" else MDPS[name]


def plain(name, **options):
    """A linear policy in float64 whose update is one step of plain gradient ascent."""
    settings = {"n_epochs": 1, "max_ratio": math.inf, "target_kl": None, "vf_coef": 0.0, "max_grad_norm": math.inf}
    kwargs = {"net_arch": [], "optimizer_class": th.optim.SGD}
    common = {"n_episodes": N_EPISODES, "gamma": problem(name).gamma, "policy_kwargs": kwargs, "seed": 0}
    model = ISPG("MlpPolicy", bed(name), 1.0, **{**settings, **common, **options})
    model.policy.double()
    model.set_logger(Logger(None, []))
    return model


def place(model, spread, seed):
    """Parameters drawn from ``seed``; those of an LQR stay stable and near each other."""
    generator = th.Generator().manual_seed(seed)
    for name, parameter in model.policy.named_parameters():
        noise = th.randn(parameter.shape, generator=generator, dtype=th.float64)
        start = {"log_std": -0.7}.get(name, -0.4 if parameter.numel() == 1 and "action" in name else 0.0)
        parameter.data = start + spread * noise


SPREAD = {"bandit": 0.7, "garnet": 0.5, "lqr": 0.1}


COLLECTED = {}


@pytest.fixture
def collected(double_precision):
    """Rollouts of each testbed, each with what the policy that acted said of it; all in float64."""

    def get(name):
        made = COLLECTED
        if name not in made:
            model = plain(name, baseline=None)
            place(model, SPREAD[name], seed=1)
            made[name] = []
            train = model.train
            model.train = lambda: made[name].append((model.rollout, acting_behaviour(model.policy, model.rollout)))
            for _ in range(N_ROLLOUTS):
                model.learn(1, reset_num_timesteps=False, log_interval=None)
            model.train = train
        return made[name]

    return get


def actor(model):
    return [p for name, p in model.policy.named_parameters() if "value" not in name]


def estimates(model, rollouts, monkeypatch):
    """The step that the class takes from each rollout, whose actions pi_old chose, (K, P)."""
    before, steps = [p.detach().clone() for p in model.policy.parameters()], []
    for rollout, old in rollouts:
        monkeypatch.setattr(ispg, "acting_behaviour", lambda *_, old=old: old)
        start = th.cat([p.detach().flatten().clone() for p in actor(model)])
        model.update(rollout)
        steps.append(th.cat([p.detach().flatten() for p in actor(model)]) - start)
        for parameter, value in zip(model.policy.parameters(), before, strict=True):
            parameter.data = value.clone()
    return th.stack(steps)


def flat_gradient(model, objective):
    gradients = th.autograd.grad(objective, actor(model), allow_unused=True)
    return th.cat(
        [(th.zeros_like(p) if g is None else g).flatten() for p, g in zip(actor(model), gradients, strict=True)]
    )


def probabilities(model, mdp):
    return model.policy.get_distribution(th.tensor(mdp.features)).distribution.probs


def exact(model, name, discount_states=True):
    """The gradient of J at the target policy, or what it is without the weights gamma^t."""
    if name != "lqr":
        pi, kwargs = probabilities(model, MDPS[name]), {"horizon": MDPS[name].horizon or 1}
        objective = oracles.mdp_objective if discount_states else oracles.mdp_surrogate
        return flat_gradient(
            model, objective(MDPS[name], pi, **kwargs, **({} if discount_states else {"discount_states": False}))
        )
    K, bias = oracles.affine_gain(lambda x: model.policy.get_distribution(x).distribution.mean, 1, dtype=th.float64)
    assert discount_states
    return flat_gradient(model, oracles.lqr_objective(LQR, K, model.policy.log_std.exp(), bias))


def surrogate(model, name, discount_states):
    """grad sum_t w_t sum_s Pr_old(s_t = s) sum_a pi(a|s) Q_old(s, a): what ``ratio="step"`` is the estimate of."""
    mdp, kwargs = MDPS[name], {"horizon": MDPS[name].horizon or 1, "discount_states": discount_states}
    behaviour = plain(name)
    place(behaviour, SPREAD[name], seed=1)
    derivative = oracles.mdp_policy_derivative(mdp, probabilities(behaviour, mdp).detach(), **kwargs)
    return flat_gradient(model, (derivative * probabilities(model, mdp)).sum())


def off(samples, expected):
    """The largest distance of the mean from ``expected``, in standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    return ((samples.mean(0) - expected) / error).abs().max().item()


def target(name, **options):
    model = plain(name, **options)
    place(model, SPREAD[name], seed=2)
    return model


@pytest.mark.parametrize("name", ["bandit", "garnet", "lqr"])
@pytest.mark.parametrize("baseline", [None, "mean", "value"])
@pytest.mark.parametrize("ratio", ["trajectory", "per_decision"])
def test_products_give_the_exact_gradient_of_another_policy(name, ratio, baseline, collected, monkeypatch):
    model = target(name, ratio=ratio, baseline=baseline, discount_states=True)
    assert off(estimates(model, collected(name), monkeypatch), exact(model, name)) < 4


@pytest.mark.parametrize("ratio", ["trajectory", "per_decision"])
def test_without_discounted_states_it_is_the_usual_one(ratio, collected, monkeypatch):
    model = target("garnet", ratio=ratio, baseline="mean")
    samples = estimates(model, collected("garnet"), monkeypatch)
    assert off(samples, exact(model, "garnet", discount_states=False)) < 4
    assert off(samples, exact(model, "garnet")) > 8


@pytest.mark.parametrize("name", ["bandit", "garnet"])
@pytest.mark.parametrize("discount_states", [True, False])
@pytest.mark.parametrize("baseline", [None, "mean", "value"])
def test_single_ratios_have_the_stated_mean(name, baseline, discount_states, collected, monkeypatch):
    model = target(name, ratio="step", baseline=baseline, discount_states=discount_states)
    assert off(estimates(model, collected(name), monkeypatch), surrogate(model, name, discount_states)) < 4


@every_ratio
def test_gae_of_any_critic_keeps_to_the_weights(ratio, collected, monkeypatch):
    """With one step an episode every lambda gives the same: the exact gradient."""
    model = target("bandit", ratio=ratio, baseline="value", gae_lambda=0.5)
    assert off(estimates(model, collected("bandit"), monkeypatch), exact(model, "bandit")) < 4


@pytest.mark.parametrize("options", [{"ratio": "step"}, {"ratio": "trajectory", "max_ratio": 1.0}], ids=str)
def test_biased_weights_are_seen(options, collected, monkeypatch):
    """What the agreement above could have missed: single ratios, and products cut at 1, over four steps."""
    model = target("garnet", baseline="mean", discount_states=True, **options)
    assert off(estimates(model, collected("garnet"), monkeypatch), exact(model, "garnet")) > 8


@pytest.mark.parametrize("ratio", ["trajectory", "per_decision"])
def test_self_normalised_weights_are_consistent(ratio, collected, monkeypatch):
    """All rollouts as one: the bias, of order 1 / number of episodes, is gone, and the estimate is the gradient."""
    model = target("garnet", ratio=ratio, baseline="mean", discount_states=True, self_normalize=True)
    mean = estimates(model, collected("garnet"), monkeypatch).mean(0)
    expected = exact(model, "garnet")
    assert (mean - expected).norm() < 0.1 * expected.norm()


def test_decision_by_decision_has_less_variance(collected, monkeypatch):
    variance = {
        ratio: estimates(target("garnet", ratio=ratio, baseline=None), collected("garnet"), monkeypatch).var(0).sum()
        for ratio in RATIOS
    }
    assert variance["step"] < variance["per_decision"] < variance["trajectory"]


# Steps by hand


def by_hand(model, rollout, old_log_prob, steps):
    """Plain gradient ascent with products, truncation and returns written out, episode by episode."""
    lengths, gamma = rollout.live.sum(0).tolist(), model.gamma
    for _ in range(steps):
        log_prob = model.policy.get_distribution(rollout.observations).log_prob(rollout.actions)
        objective, start = th.zeros(()), 0
        for i, length in enumerate(lengths):
            new = log_prob[start : start + length]
            rho = (new.detach() - old_log_prob[start : start + length]).exp().tolist()
            r = rollout.rewards[:length, i].tolist()
            for t in range(length):
                if model.ratio == "per_decision":
                    w = [min(math.prod(rho[: k + 1]), model.max_ratio) for k in range(length)]
                    psi = sum(gamma ** (k - t) * w[k] * r[k] for k in range(t, length))
                else:
                    w = rho[t] if model.ratio == "step" else math.prod(rho)
                    psi = min(w, model.max_ratio) * sum(gamma ** (k - t) * r[k] for k in range(t, length))
                objective = objective + psi * new[t] / len(lengths)
            start += length
        for p, g in zip(actor(model), th.autograd.grad(objective, actor(model)), strict=True):
            p.data += model.learning_rate * g


@every_ratio
def test_three_steps_by_hand(ratio, collected):
    """The old log-probabilities are those of before the first step; truncation is at work."""
    rollout, old = collected("garnet")[0]
    models = [target("garnet", ratio=ratio, baseline=None, n_epochs=3, max_ratio=1.1) for _ in range(2)]
    for model in models:
        model.learning_rate = 0.5
        place(model, SPREAD["garnet"], seed=1)
        model.policy.optimizer.param_groups[0]["lr"] = 0.5
    models[0].update(rollout)
    by_hand(models[1], rollout, old.log_prob, 3)
    assert models[0].logger.name_to_value["train/truncated_share"] > 0.01
    for p, q in zip(actor(models[0]), actor(models[1]), strict=True):
        assert th.allclose(p, q, rtol=1e-9, atol=1e-12)


# What is logged, and when the epochs stop


def logged(model, name):
    return model.logger.name_to_value[f"train/{name}"]


@pytest.mark.parametrize(
    ("ratio", "share"), [("step", -(0.25**2)), ("trajectory", -3 * 0.25**2), ("per_decision", -3 * 0.25**2)]
)
def test_the_logged_effective_sample_size_is_that_of_a_gaussian_chain(ratio, share, collected):
    """T = 3 and the mean moved by d = s / 4: exp(-T d^2 / s^2) of the episodes, exp(-d^2 / s^2) of the steps."""
    model = target("lqr", ratio=ratio)
    place(model, SPREAD["lqr"], seed=1)
    model.policy.action_net.bias.data += 0.25 * model.policy.log_std.exp().detach()
    shares, kls = [], []
    for rollout, old in collected("lqr"):
        model._record_weights(rollout, old)
        shares.append(logged(model, "effective_sample_share"))
        kls.append(logged(model, "kl"))
    assert np.mean(shares) == pytest.approx(math.exp(share), rel=0.03)
    assert kls == pytest.approx([0.25**2 / 2] * len(kls), rel=1e-6)


def test_the_epochs_stop_at_the_target_kl():
    def trained(**options):
        env = Echo("Discrete", "vector")
        model = ISPG("MlpPolicy", env, n_episodes=4, n_epochs=50, seed=0, policy_kwargs={"net_arch": [8]}, **options)
        model.learn(1, log_interval=None)
        return model

    stopped, free = trained(target_kl=0.01, learning_rate=1e-2), trained(target_kl=None, learning_rate=1e-2)
    assert logged(free, "gradient_steps") == 50
    assert logged(free, "kl") > 0.02
    assert 1 < logged(stopped, "gradient_steps") < 50
    assert 0.01 < logged(stopped, "kl") < 0.02, "the last step is the first that goes beyond"


@pytest.mark.parametrize(
    ("ratio", "batch_size", "sizes"), [("step", 20, {16}), ("trajectory", 2, {16}), ("per_decision", 1, {8})]
)
def test_minibatches_are_of_steps_or_of_whole_episodes(ratio, batch_size, sizes, monkeypatch):
    """Four episodes of eight steps: in two equal parts of at most 20 steps, or two, or one, whole episodes a part."""
    seen = []
    original = ispg.behaviour

    def spy(policy, batch):
        seen.append(len(batch.actions))
        return original(policy, batch)

    monkeypatch.setattr(ispg, "behaviour", spy)
    env = Echo("Discrete", "vector")
    model = ISPG("MlpPolicy", env, n_episodes=4, n_epochs=3, ratio=ratio, batch_size=batch_size, target_kl=None, seed=0)
    model.learn(1, log_interval=None)
    assert set(seen) == sizes
    assert sum(seen) == 3 * 32
    assert logged(model, "gradient_steps") == len(seen)


def test_a_minibatch_is_an_estimate_of_the_whole_gradient(collected, monkeypatch):
    """The parts of an epoch, each taken from the same point, average to the step of the whole batch."""
    rollout, old = collected("garnet")[0]
    whole = target("garnet", ratio="step", baseline=None)
    expected = estimates(whole, [(rollout, old)], monkeypatch)[0]
    parts = target("garnet", ratio="step", baseline=None, batch_size=len(rollout) // 4)
    parts.policy.optimizer.param_groups[0]["lr"] = 1e-6
    total = estimates(parts, [(rollout, old)], monkeypatch)[0] / 1e-6
    assert th.allclose(total / 4, expected, rtol=1e-3, atol=1e-6)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": "steps"}, "ratio='steps'.*'step'"),
        ({"max_ratio": 0.5}, r"max_ratio=0\.5.*\[1"),
        ({"baseline": "optimal"}, "baseline='optimal'.*'value', 'mean', None"),
        ({"baseline": None, "gae_lambda": 0.9}, r"gae_lambda=0\.9 needs baseline='value'"),
        ({"baseline": "mean", "n_episodes": 1}, "n_episodes=1"),
        ({"target_kl": 0.0}, "target_kl=0"),
        ({"n_epochs": 0}, "n_epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_senseless_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ISPG("MlpPolicy", "CartPole-v1", **options)
