"""PPO with a KL penalty: each step by hand, the KL divergence against torch's, and the coefficient's adaptation."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

import sb3_pg_ext
from sb3_pg_ext.algorithms.ppo_penalty import LARGEST_KL_COEF, SMALLEST_KL_COEF, PPOPenalty, adapted_coefficient
from sb3_pg_ext.bases.behaviour import acting_behaviour, behaviour
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.testing.environments import ACTION_SPACES, Echo
from sb3_pg_ext.testing.learning import BatchNormExtractor

ACTIONS = ["Box", "Discrete", "MultiDiscrete", "MultiBinary"]


def model_of(action="Discrete", **options):
    small = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return PPOPenalty("MlpPolicy", Echo(action, "vector"), **{**small, **options})


def logged(model, name):
    return model.logger.name_to_value[f"train/{name}"]


# The KL divergence


def torch_kl(old, new):
    """KL(old || new) by torch, summed over the parts of an action, (B,)."""
    parts = zip(old, new, strict=True) if isinstance(old, list) else [(old, new)]
    kls = [th.distributions.kl_divergence(*pair) for pair in parts]
    return th.stack([kl if kl.ndim == 1 else kl.sum(1) for kl in kls]).sum(0)


def policy_of(action_space, use_sde=False):
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, net_arch=[8], use_sde=use_sde)
    generator = th.Generator().manual_seed(3)
    for parameter in policy.parameters():
        parameter.data = 0.5 * th.randn(parameter.shape, generator=generator)
    return policy


class Steps:
    def __init__(self, policy, n=50):
        self.observations = th.randn(n, 3, generator=th.Generator().manual_seed(1))
        self.actions = policy.get_distribution(self.observations).sample()


@pytest.mark.parametrize("action", [*ACTIONS, "gSDE"])
def test_kl_is_that_of_torch(action):
    policy = policy_of(ACTION_SPACES["Box" if action == "gSDE" else action], use_sde=action == "gSDE")
    batch = Steps(policy)
    old, old_torch = behaviour(policy, batch), policy.get_distribution(batch.observations).distribution
    for parameter in policy.parameters():
        parameter.data = 0.8 * parameter + 0.1
    new = behaviour(policy, batch)
    expected = torch_kl(old_torch, policy.get_distribution(batch.observations).distribution)
    assert expected.min() > 1e-4
    assert th.allclose(old.kl(new), expected, rtol=1e-4, atol=1e-6)
    assert not th.allclose(new.kl(old), expected, rtol=1e-2), "the order of the arguments matters"
    assert old.kl(new).requires_grad


def test_kl_of_some_steps_is_taken_at_these_steps():
    policy = policy_of(ACTION_SPACES["Box"])
    batch = Steps(policy)
    old = acting_behaviour(policy, batch)
    assert not old.eta.requires_grad
    policy.action_net.bias.data += 0.3
    index = th.tensor([7, 3, 40])
    some = Steps(policy)
    some.observations, some.actions = batch.observations[index], batch.actions[index]
    assert th.allclose(old.kl(behaviour(policy, some), index), old.kl(behaviour(policy, batch))[index])


def test_the_acting_policy_is_in_evaluation_mode():
    model = model_of(policy_kwargs={"net_arch": [8], "features_extractor_class": BatchNormExtractor})
    model.learn(32, log_interval=None)
    model.policy.set_training_mode(True)
    statistics = {k: v.clone() for k, v in model.policy.state_dict().items() if "running" in k}
    once, again = (acting_behaviour(model.policy, model.rollout).log_prob for _ in range(2))
    assert statistics
    assert th.equal(once, again)
    assert all(th.equal(v, model.policy.state_dict()[k]) for k, v in statistics.items())
    assert model.policy.training


# Steps by hand


@pytest.mark.parametrize("action", ACTIONS)
def test_four_steps_by_hand(action):
    """Gradient ascent on the surrogate, written with torch's own distributions."""
    sgd = {"net_arch": [8], "optimizer_class": th.optim.SGD}
    options = {"n_epochs": 4, "batch_size": None, "learning_rate": 0.3, "kl_coef": 2.0, "ent_coef": 0.01}
    model = model_of(action, policy_kwargs=sgd, max_grad_norm=float("inf"), vf_coef=0.0, **options)
    model.train = lambda: None
    model.learn(32, log_interval=None)
    rollout, policy = model.rollout, model.policy
    start = {name: p.detach().clone() for name, p in policy.named_parameters()}
    model.update(rollout)
    by_class = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.load_state_dict(start)
    with th.no_grad():
        values, old_log_prob, _ = policy.evaluate_actions(rollout.observations, rollout.actions)
        old = policy.get_distribution(rollout.observations).distribution
    advantages = model.gae(rollout, values.flatten())[0]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    for _ in range(4):
        _, log_prob, entropy = policy.evaluate_actions(rollout.observations, rollout.actions)
        kl = torch_kl(old, policy.get_distribution(rollout.observations).distribution)
        objective = ((log_prob - old_log_prob).exp() * advantages - 2.0 * kl + 0.01 * entropy).mean()
        for p, g in zip(
            policy.parameters(), th.autograd.grad(objective, policy.parameters(), allow_unused=True), strict=True
        ):
            if g is not None:
                p.data += 0.3 * g
    moved = max((by_class[name] - start[name]).abs().max() for name in start)
    assert moved > 1e-3
    for name, parameter in policy.named_parameters():
        assert th.allclose(by_class[name], parameter, rtol=1e-3, atol=1e-6), name


def test_a_price_on_the_kl_divergence_keeps_it_down():
    kls = []
    for kl_coef in (0.0, 3.0, 100.0):
        model = model_of(kl_coef=kl_coef, target_kl=None, n_epochs=30, learning_rate=1e-2).learn(32, log_interval=None)
        kls.append(logged(model, "kl"))
        assert model.kl_coef == kl_coef, "target_kl=None keeps it"
    assert kls[0] > 2 * kls[1] > 4 * kls[2] > 0


# The coefficient


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.016, 6.0), (0.014, 3.0), (0.01, 3.0), (0.007, 3.0), (0.006, 1.5), (float("inf"), 6.0)]
)
def test_the_coefficient_doubles_and_halves_outside_its_band(kl, expected):
    assert adapted_coefficient(3.0, kl, target_kl=0.01) == expected


def test_the_coefficient_can_always_recover():
    kl_coef = 1.0
    for _ in range(2000):
        kl_coef = adapted_coefficient(kl_coef, 0.0, 0.01)
    assert kl_coef == SMALLEST_KL_COEF
    for _ in range(2000):
        kl_coef = adapted_coefficient(kl_coef, 1.0, 0.01)
    assert kl_coef == LARGEST_KL_COEF


def test_each_update_adapts_the_coefficient_by_its_own_kl():
    model = model_of(learning_rate=1e-2, target_kl=0.01)
    seen = []
    adapt = model._adapt
    model._adapt = lambda kl: (seen.append((model.kl_coef, kl.item())), adapt(kl))
    model.learn(32 * 12, log_interval=None)
    del model._adapt
    coefficients = [*(c for c, _ in seen), model.kl_coef]
    assert coefficients == [1.0, *(adapted_coefficient(c, kl, 0.01) for c, kl in seen)]
    assert len(set(coefficients)) > 1


def test_the_kl_divergence_settles_at_its_target():
    model = model_of(learning_rate=1e-2, target_kl=0.01, n_epochs=10)
    kls = []
    adapt = model._adapt
    model._adapt = lambda kl: (kls.append(kl.item()), adapt(kl))
    model.learn(32 * 60, log_interval=None)
    assert 0.01 / 1.7 < np.median(kls[20:]) < 0.01 * 1.7


def test_the_coefficient_is_saved_and_training_goes_on_with_it(tmp_path):
    model = model_of(learning_rate=1e-2).learn(32 * 5, log_interval=None)
    assert model.kl_coef != 1.0
    model.save(tmp_path / "model")
    loaded = PPOPenalty.load(tmp_path / "model", env=Echo("Discrete", "vector"))
    assert loaded.kl_coef == model.kl_coef
    assert type(loaded.kl_coef) is float
    loaded._setup_model()
    assert loaded.kl_coef == model.kl_coef
    assert PPOPenalty.load(tmp_path / "model", kl_coef=7.0).kl_coef == 7.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": -1.0}, r"kl_coef=-1\.0"),
        ({"kl_coef": float("nan")}, "kl_coef=nan"),
        ({"target_kl": 0}, "target_kl=0"),
        ({"n_epochs": 0}, "n_epochs=0"),
        ({"batch_size": 1.5}, r"batch_size=1\.5.*or None"),
        ({"clip_range": 0.2}, "no argument 'clip_range'"),
    ],
)
def test_senseless_arguments_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PPOPenalty("MlpPolicy", "CartPole-v1", **options)


def learned(model):
    """All tensors of the policy and of its optimizer."""
    moments = [x for state in model.policy.optimizer.state_dict()["state"].values() for x in state.values()]
    return [*model.policy.state_dict().values(), *moments]


@pytest.mark.parametrize("learning_rate", [1e4, 1e30])
@pytest.mark.parametrize("key", ["ppo_penalty", "ispg", "rwr"])
def test_an_update_that_fails_in_its_middle_changes_nothing(key, learning_rate):
    """The first of several steps with such a learning rate is taken, and ruins the policy."""
    options = {"seed": 0, "policy_kwargs": {"net_arch": [8]}, "n_steps": 32, "n_epochs": 20}
    model = sb3_pg_ext.make(key, Echo("Box", "vector"), **options)
    model.learn(64, log_interval=None)
    model.policy.log_std.data -= 1
    before = copy.deepcopy(learned(model))
    model.lr_schedule = lambda _: learning_rate
    with pytest.raises(NonFiniteError, match=r"The parameters are those before this update.*learning_rate"):
        model.learn(64, log_interval=None, reset_num_timesteps=False)
    assert len(before) > 30
    assert all(th.equal(a, b) for a, b in zip(before, learned(model), strict=True))
