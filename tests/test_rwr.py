"""RWR: the E-step's weights, both M-steps against closed forms, kept batches, the floor of the noise, and learning."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_pg_ext
from sb3_pg_ext.algorithms import rwr
from sb3_pg_ext.algorithms.rwr import RWR
from sb3_pg_ext.envs.bandit import ArmedBanditVectorEnv, PolynomialBanditVectorEnv, armed_bandit, bandit
from sb3_pg_ext.rollout.episodes import joined
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing.environments import Echo

LINEAR = {"net_arch": []}
ALL_AT_ONCE = {"batch_size": None, "max_grad_norm": float("inf")}


def model_of(action="Discrete", env=None, **options):
    small = {"n_episodes": 4, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return RWR("MlpPolicy", env or Echo(action, "vector"), **{**small, **options})


def collected(model):
    """The model with one rollout and without an update."""
    train, model.train = model.train, lambda: None
    model.learn(1, log_interval=None)
    model.train = train
    return model


def logged(model, name):
    return model.logger.name_to_value[f"train/{name}"]


def weights_of(model, monkeypatch):
    """The weights, of mean 1, that an update hands to its M-step, (B,)."""
    seen = []
    monkeypatch.setitem(rwr.M_STEPS, "gradient", lambda _model, _data, weights, _targets: seen.append(weights))
    model.update(model.rollout)
    return seen[0]


# Closed forms


def test_one_step_on_a_bandit_takes_arms_in_proportion_to_their_rewards():
    """From a uniform policy and rewards (1, 1/2, 0) the best policy for the weights is (2/3, 1/3, 0)."""
    env = ArmedBanditVectorEnv(armed_bandit((1.0, 0.5, 0.0)), 3000)
    options = {"transform": "identity", "baseline": None, "n_episodes": 6000, "n_epochs": 300, "learning_rate": 0.1}
    model = model_of(env=as_vec_env(env), policy_kwargs=LINEAR, **options, **ALL_AT_ONCE).learn(1, log_interval=None)
    pi = model.policy.get_distribution(th.ones(1, 1)).distribution.probs[0].detach()
    arms = np.bincount(model.rollout.actions.numpy(), minlength=3)
    expected = arms * np.array([1, 0.5, 0]) / (arms @ [1, 0.5, 0])
    assert pi.numpy() == pytest.approx(expected, abs=2e-3)
    assert pi.numpy() == pytest.approx([2 / 3, 1 / 3, 0], abs=0.03)


def quadratic_bandit(b, c, n):
    """Reward -b (a - c)^2 / 2."""
    problem = bandit((-b * c**2 / 2, b * c, -b / 2))
    return as_vec_env(PolynomialBanditVectorEnv(problem, n))


def test_closed_form_steps_on_a_gaussian_follow_the_exact_recursion():
    """Precision 1/s0^2 + n b, mean (mu0/s0^2 + n b c) / (1/s0^2 + n b) after n steps with temperature 1."""
    b, c, std, n = 0.5, 1.5, 1.2, 20_000
    options = {"temperature": 1.0, "baseline": None, "m_step": "closed_form", "n_episodes": n}
    kwargs = {"net_arch": [], "log_std_init": math.log(std)}
    model = model_of(env=quadratic_bandit(b, c, n), policy_kwargs=kwargs, **options)
    mean = model.policy.get_distribution(th.ones(1, 1)).distribution.mean.item()
    precision, total = 1 / std**2, mean / std**2
    for _ in range(4):
        model.learn(1, log_interval=None)
        precision, total = precision + b, total + b * c
        pi = model.policy.get_distribution(th.ones(1, 1)).distribution
        assert 1 / pi.variance.item() == pytest.approx(precision, rel=0.06)
        assert pi.mean.item() == pytest.approx(total / precision, abs=0.05)


def test_gradient_steps_lead_to_the_closed_form():
    options = {"n_episodes": 12, "baseline": None, "policy_kwargs": LINEAR, "min_log_std": -math.inf}
    exact = collected(model_of("Box", m_step="closed_form", **options))
    model = collected(model_of("Box", n_epochs=1500, learning_rate=0.02, **options, **ALL_AT_ONCE))
    assert th.equal(exact.rollout.actions, model.rollout.actions)
    exact.update(exact.rollout)
    model.update(model.rollout)
    pis = [m.policy.get_distribution(exact.rollout.observations).distribution for m in (exact, model)]
    assert th.allclose(pis[0].mean, pis[1].mean, atol=2e-3)
    assert th.allclose(pis[0].stddev, pis[1].stddev, atol=2e-3)
    assert ((pis[0].stddev - 1).abs() > 0.02).all(), "nothing was fitted"


def test_the_closed_form_leaves_the_critic_to_gradient_steps():
    model = collected(model_of("Box", m_step="closed_form", policy_kwargs={"net_arch": {"pi": [], "vf": [8]}}))
    before = model.policy.value_net.weight.detach().clone()
    model.update(model.rollout)
    assert not th.equal(before, model.policy.value_net.weight)
    twice = model.policy.action_net.weight.detach().clone()
    model._in_closed_form(model.rollout, th.ones(len(model.rollout)), None)
    assert not th.equal(twice, model.policy.action_net.weight), "weights make no difference"


# The E-step


@pytest.mark.parametrize("transform", ["exp", "shift", "rank"])
def test_trajectories_are_weighted_as_a_whole(transform, monkeypatch):
    options = {"weight": "trajectory", "transform": transform, "baseline": None, "gamma": 0.9}
    model = collected(model_of(**options))
    rollout = model.rollout
    R = (rollout.rewards * 0.9 ** th.arange(8).unsqueeze(1)).sum(0)
    u = {"shift": R - R.min(), "rank": ((R[:, None] > R).sum(1) + (R[:, None] >= R).sum(1) - 1) / 2}
    per_step = weights_of(model, monkeypatch).reshape(4, 8)
    assert th.equal(per_step, per_step[:, :1].expand(4, 8))
    assert per_step.mean().item() == pytest.approx(1)
    if transform == "exp":
        assert logged(model, "effective_sample_share") == pytest.approx(0.5, rel=1e-3)
        u["exp"] = ((R - R.max()) / logged(model, "temperature")).exp()
    assert th.allclose(per_step[:, 0], 4 * u[transform] / u[transform].sum(), rtol=1e-3, atol=1e-5)


def test_steps_are_weighted_by_their_own_reward_to_go(monkeypatch):
    model = collected(model_of(baseline=None, gamma=0.5, temperature=2.0))
    r = model.rollout.rewards
    G = th.stack([sum(0.5 ** (k - t) * r[k] for k in range(t, 8)) for t in range(8)]).T.flatten()
    u = ((G - G.max()) / 2).exp()
    assert th.allclose(weights_of(model, monkeypatch), u / u.mean(), rtol=1e-4)
    assert logged(model, "temperature") == 2.0
    assert logged(model, "largest_weight") == pytest.approx((u / u.sum()).max().item(), rel=1e-4)


@pytest.mark.parametrize("weight", ["trajectory", "reward_to_go"])
def test_a_value_is_subtracted_first(weight, monkeypatch):
    model = collected(model_of(weight=weight, gamma=0.9, temperature=1.0))
    with th.no_grad():
        values = model.policy.predict_values(model.rollout.observations).flatten()
    advantages, _ = model.gae(model.rollout, values)
    returns = advantages.reshape(4, 8)[:, :1].expand(4, 8).flatten() if weight == "trajectory" else advantages
    u = (returns - returns.max()).exp()
    assert th.allclose(weights_of(model, monkeypatch), u / u.mean(), rtol=1e-4)


def test_better_actions_become_likelier():
    """Echo pays for the right action: the weighted likelihood and the return both rise."""
    model = model_of(n_episodes=32, n_epochs=20, gamma=0.0, learning_rate=1e-2).learn(256 * 12, log_interval=None)
    assert evaluate_policy(model, Echo("Discrete", "vector"), 20, warn=False)[0] >= 0.85 * 8


def test_a_negative_return_is_refused_by_identity_and_nothing_is_lost():
    model = collected(model_of(env=Echo("Discrete", "vector", reward=-1.0), transform="identity", baseline=None))
    before = [p.detach().clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"transform='identity'.*'exp', 'shift' and 'rank'"):
        model.update(model.rollout)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


# Kept batches


def test_joined_rollouts_are_all_their_columns():
    model = model_of(env=sb3_pg_ext.rollout.vector_env.as_vec_env("CartPole-v1", n_envs=2, seed=0), n_episodes=3)
    rollouts = []
    model.train = lambda: rollouts.append(model.rollout)
    model.learn(200, log_interval=None)
    first, second = rollouts[:2]
    both = joined([first, second])
    assert len(first.live) != len(second.live)
    assert len(both) == len(first) + len(second)
    assert both.live.shape == (max(len(first.live), len(second.live)), 6)
    assert th.equal(both.actions, th.cat([first.actions, second.actions]))
    assert th.equal(both.observations, th.cat([first.observations, second.observations]))
    for name in ("rewards", "continues"):
        parts = [rollout.flatten(getattr(rollout, name)) for rollout in (first, second)]
        assert th.equal(both.flatten(getattr(both, name)), th.cat(parts))
        assert th.equal(both.pad(both.flatten(getattr(both, name))), getattr(both, name))
    assert both.collected == first.collected + second.collected
    assert joined([first]) is first


def test_joined_rollouts_keep_what_time_limits_cut():
    env = Echo("Discrete", "dict", truncates=True)
    model = RWR("MultiInputPolicy", env, n_episodes=2, seed=0, n_epochs=1, n_batches_kept=2)
    rollouts = []
    model.train = lambda: rollouts.append(model.rollout)
    model.learn(32, log_interval=None)
    both = joined(rollouts[:2])
    values = [model.cut_values(rollout) for rollout in rollouts[:2]]
    assert both.cut.sum() == 4
    assert values[0].abs().sum() > 0
    assert th.allclose(model.cut_values(both), th.cat(values, dim=1))


@pytest.mark.parametrize("kept", [1, 3])
def test_the_last_batches_are_reused(kept, monkeypatch):
    sizes = []
    original = RWR._by_gradient
    monkeypatch.setitem(
        rwr.M_STEPS, "gradient", lambda m, data, *rest: (sizes.append(len(data)), original(m, data, *rest))
    )
    model = model_of(n_batches_kept=kept).learn(32 * 5, log_interval=None)
    assert sizes == [32 * min(i, kept) for i in range(1, 6)]
    assert model._kept[-1] is model.rollout
    assert "_kept" in model._excluded_save_params()


# The floor of the noise


def test_the_noise_has_a_floor_whose_hits_are_logged():
    options = {"env": None, "n_epochs": 30, "learning_rate": 0.1, "ess_target": 0.05}
    free = model_of("Box", min_log_std=-math.inf, **options).learn(32 * 4, log_interval=None)
    assert (free.policy.log_std < -0.5).all()
    assert logged(free, "min_log_std_hits") == 0
    model = model_of("Box", min_log_std=-0.5, **options).learn(32 * 4, log_interval=None)
    assert model.policy.log_std.min().item() == -0.5
    assert 0 < logged(model, "min_log_std_hits") <= 1


def test_a_single_sample_does_not_end_exploration():
    """The variance of one action is 0: the closed form falls to the floor, and acting goes on."""
    options = {"n_episodes": 1, "m_step": "closed_form", "baseline": None, "policy_kwargs": LINEAR}
    model = model_of(env=quadratic_bandit(1.0, 0.0, 1), **options).learn(5, log_interval=None)
    assert model.policy.log_std.item() == -3.0
    assert logged(model, "min_log_std_hits") == 1


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "softmax"}, "transform='softmax'.*'exp', 'shift', 'rank', 'identity'"),
        ({"transform": "rank", "temperature": 1.0}, r"temperature=1\.0 belongs to transform='exp'"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"ess_target": 0.0}, r"ess_target=0\.0"),
        ({"ess_target": 1.5}, r"ess_target=1\.5"),
        ({"weight": "step"}, "weight='step'"),
        ({"baseline": "mean"}, "baseline='mean'.*'value', None"),
        ({"gae_lambda": 0.9, "weight": "trajectory"}, r"gae_lambda=0\.9 needs"),
        ({"n_batches_kept": 0}, "n_batches_kept=0"),
        ({"min_log_std": float("nan")}, "min_log_std=nan"),
        ({"m_step": "exact"}, "m_step='exact'"),
        ({"m_step": "closed_form"}, "closed_form.*Box.*net_arch.*CategoricalDistribution"),
    ],
)
def test_senseless_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RWR("MlpPolicy", "CartPole-v1", **options)


@pytest.mark.parametrize("options", [{}, {"policy_kwargs": LINEAR, "use_sde": True}], ids=["layers", "gSDE"])
def test_the_closed_form_needs_a_linear_gaussian(options):
    with pytest.raises(ValueError, match=r"m_step='closed_form'.*net_arch.*m_step='gradient' takes any policy"):
        RWR("MlpPolicy", "Pendulum-v1", m_step="closed_form", **options)


def test_a_closed_form_model_is_saved_and_goes_on(tmp_path):
    model = model_of("Box", m_step="closed_form", policy_kwargs=LINEAR).learn(64, log_interval=None)
    model.save(tmp_path / "model")
    loaded = RWR.load(tmp_path / "model", env=Echo("Box", "vector"))
    assert th.equal(loaded.policy.log_std, model.policy.log_std)
    loaded.learn(64, log_interval=None)
