"""Scores and their norms against one backward pass a sample, in float64, for every kind of policy and network."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common import policies
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn
from torch.nn import functional as F

from sb3_pg_ext.bases.on_policy import LogDensity
from sb3_pg_ext.functional import likelihood
from sb3_pg_ext.functional.likelihood import score_function_loss, squared_score_norms

B = 7


@pytest.fixture(autouse=True)
def observations_in_double_precision(monkeypatch):
    """Stable-Baselines3 turns observations into float32 whatever the policy's precision is."""
    original = policies.preprocess_obs

    def doubled(*args, **kwargs):
        result = original(*args, **kwargs)
        return {k: v.double() for k, v in result.items()} if isinstance(result, dict) else result.double()

    monkeypatch.setattr(policies, "preprocess_obs", doubled)


class LinearExtractor(BaseFeaturesExtractor):
    """A layer of weights in front of actor and critic."""

    def __init__(self, observation_space, features_dim=6):
        super().__init__(observation_space, features_dim)
        self.layer = nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, observations):
        return th.tanh(self.layer(observations))


class UnbiasedExtractor(LinearExtractor):
    """A layer without a bias."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layer = nn.Linear(observation_space.shape[0], 6, bias=False)


class SmallCnn(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        channels = observation_space.shape[0]
        self.net = nn.Sequential(nn.Conv2d(channels, 3, 5, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(features_dim))
        self.net(th.zeros(1, *observation_space.shape))

    def forward(self, observations):
        return self.net(observations)


class RecurrentExtractor(BaseFeaturesExtractor):
    """The same layer of weights twice."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        self.layer = nn.Linear(observation_space.shape[0], observation_space.shape[0])

    def forward(self, observations):
        return th.tanh(self.layer(th.tanh(self.layer(observations))))


class TiedExtractor(BaseFeaturesExtractor):
    """Two layers with one matrix of weights."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        width = observation_space.shape[0]
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, observations):
        return th.tanh(self.second(th.tanh(self.first(observations))))


class NormalisedExtractor(LinearExtractor):
    """Parameters that are not those of a linear layer."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = nn.LayerNorm(6)

    def forward(self, observations):
        return self.norm(super().forward(observations))


class TokenExtractor(BaseFeaturesExtractor):
    """One linear layer over each entry of the observation: several rows a sample."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 2 * observation_space.shape[0])
        self.layer = nn.Linear(1, 2)

    def forward(self, observations):
        return self.layer(observations[..., None]).flatten(1)


class ConstantExtractor(LinearExtractor):
    """A linear layer over a constant, shared by all samples."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.shift = nn.Linear(2, 6)

    def forward(self, observations):
        constant = th.ones(1, 2, dtype=observations.dtype)
        return super().forward(observations) + self.shift(constant)


class UncalledExtractor(LinearExtractor):
    """A layer whose weights are used without calling it."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.decoder = nn.Linear(6, 6, bias=False)

    def forward(self, observations):
        return super().forward(observations) @ self.decoder.weight


FLAT, IMAGE = spaces.Box(-1, 1, (5,)), spaces.Box(0, 255, (2, 12, 12), np.uint8)
VECTORS = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4)})
MIXED = spaces.Dict({"picture": spaces.Box(0, 255, (3, 36, 36), np.uint8), "vector": FLAT})
BOX, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
MULTI_DISCRETE, MULTI_BINARY = spaces.MultiDiscrete([3, 2, 4]), spaces.MultiBinary(3)
SEPARATE = {"net_arch": [8], "share_features_extractor": False}
# name -> policy class, observations, actions, keyword arguments, whether every parameter sits in linear layers
CASES = {
    "gaussian": (ActorCriticPolicy, FLAT, BOX, {"net_arch": [8, 6]}, True),
    "categorical": (ActorCriticPolicy, FLAT, DISCRETE, {"net_arch": [8, 6]}, True),
    "multi_categorical": (ActorCriticPolicy, FLAT, MULTI_DISCRETE, {"net_arch": [8]}, True),
    "bernoulli": (ActorCriticPolicy, FLAT, MULTI_BINARY, {"net_arch": [8]}, True),
    "linear": (ActorCriticPolicy, FLAT, BOX, {"net_arch": []}, True),
    "discrete observations": (ActorCriticPolicy, spaces.Discrete(6), DISCRETE, {"net_arch": [8]}, True),
    "relu": (ActorCriticPolicy, FLAT, BOX, {"net_arch": [8], "activation_fn": nn.ReLU}, True),
    "different critic": (ActorCriticPolicy, FLAT, BOX, {"net_arch": {"pi": [4], "vf": [9, 9]}}, True),
    "shared extractor": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": LinearExtractor}, True),
    "no bias": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": UnbiasedExtractor}, True),
    "separate extractors": (
        ActorCriticPolicy,
        FLAT,
        DISCRETE,
        {"features_extractor_class": LinearExtractor, **SEPARATE},
        True,
    ),
    "dict of vectors": (MultiInputActorCriticPolicy, VECTORS, BOX, {"net_arch": [8]}, True),
    "dict with a picture": (
        MultiInputActorCriticPolicy,
        MIXED,
        DISCRETE,
        {"features_extractor_class": CombinedExtractor, "features_extractor_kwargs": {"cnn_output_dim": 4}},
        False,
    ),
    "dict with a number": (
        MultiInputActorCriticPolicy,
        VECTORS,
        BOX,
        {"net_arch": [4], "use_sde": True},
        False,
    ),
    "cnn": (ActorCriticCnnPolicy, IMAGE, DISCRETE, {"features_extractor_class": SmallCnn}, False),
    "cnn, separate": (ActorCriticCnnPolicy, IMAGE, BOX, {"features_extractor_class": SmallCnn, **SEPARATE}, False),
    "gsde": (ActorCriticPolicy, FLAT, BOX, {"net_arch": [4], "use_sde": True}, False),
    "gsde, one scale a feature": (
        ActorCriticPolicy,
        FLAT,
        BOX,
        {"net_arch": [4], "use_sde": True, "full_std": False, "use_expln": True},
        False,
    ),
    "layer norm": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": NormalisedExtractor}, False),
    "layer used twice": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": RecurrentExtractor}, False),
    "tied layers": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": TiedExtractor}, False),
    "several rows a sample": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": TokenExtractor}, False),
    "layer over a constant": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": ConstantExtractor}, False),
    "layer not called": (ActorCriticPolicy, FLAT, BOX, {"features_extractor_class": UncalledExtractor}, False),
}
every_case = pytest.mark.parametrize("name", CASES)


def sampled(space, seed, n=B):
    """n draws as tensors as a rollout holds them: images as bytes, numbers of classes as int64, all else as float64."""
    space.seed(seed)
    draws = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {k: th.as_tensor(np.stack([d[k] for d in draws])) for k in space.spaces}
    batch = th.as_tensor(np.stack(draws))
    return (
        batch
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or batch.dtype == th.uint8
        else batch.double()
    )


def case(name, n=B):
    """The density of a policy with weights far from zero, a batch to evaluate it on, and whether it is plain."""
    cls, observation_space, action_space, kwargs, plain = CASES[name]
    th.manual_seed(0)
    policy = cls(observation_space, action_space, lambda _: 1e-3, **kwargs).double()
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.4)
    return LogDensity(policy), (sampled(observation_space, 1, n), sampled(action_space, 2, n)), plain


def row(batch, b):
    return {k: v[b : b + 1] for k, v in batch.items()} if isinstance(batch, dict) else batch[b : b + 1]


def scores(density, inputs):
    """grad log pi(a_b|s_b), one backward pass a sample: (B, P) over the parameters that require gradients."""
    parameters = [p for p in density.parameters() if p.requires_grad]
    rows = []
    for b in range(len(inputs[1])):
        gradients = th.autograd.grad(density(*(row(x, b) for x in inputs)).sum(), parameters, allow_unused=True)
        pairs = zip(gradients, parameters, strict=True)
        rows.append(th.cat([(th.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return th.stack(rows)


def close(actual, expected):
    assert expected.min() > 1e-3
    th.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


@every_case
def test_squared_score_norms(name):
    density, inputs, _ = case(name)
    expected = scores(density, inputs).square().sum(1)
    actual = squared_score_norms(density, inputs)
    assert not actual.requires_grad
    close(actual, expected)
    assert expected.max() / expected.min() > 1.05, "samples that are all alike prove little"


@every_case
def test_both_ways_agree_and_the_plain_networks_take_the_fast_one(name):
    density, inputs, plain = case(name, n=33)
    generic = likelihood._norms_from_vmap(density, inputs, chunk_size=None)
    fast = likelihood._norms_from_layers(density, inputs) if likelihood._only_linear_layers(density) else None
    assert (fast is not None) == plain
    if plain:
        close(fast, generic)


@pytest.mark.parametrize("name", ["categorical", "cnn", "dict with a picture", "gsde", "layer used twice"])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_change_nothing(name, chunk_size):
    density, inputs, _ = case(name)
    close(squared_score_norms(density, inputs, chunk_size=chunk_size), squared_score_norms(density, inputs))


def test_the_generic_way_holds_few_numbers_at_once(monkeypatch):
    density, inputs, _ = case("layer norm", n=64)
    seen, size = [], sum(p.numel() for p in density.parameters())
    monkeypatch.setattr(likelihood, "_CHUNK_NUMBERS", 10 * size + 1)
    original = likelihood.vmap
    monkeypatch.setattr(likelihood, "vmap", lambda *a, chunk_size: seen.append(chunk_size) or original(*a))
    expected = squared_score_norms(density, inputs)
    monkeypatch.setattr(likelihood, "_CHUNK_NUMBERS", 1)
    close(squared_score_norms(density, inputs), expected)
    assert seen == [10, 1]


@pytest.mark.parametrize("name", ["gaussian", "shared extractor", "cnn"])
@pytest.mark.parametrize("frozen", ["extractor", "log_std", "first layer"])
def test_frozen_parameters_have_no_score(name, frozen):
    density, inputs, _ = case(name)
    policy = density.policy
    before = squared_score_norms(density, inputs)
    parts = {
        "extractor": list(policy.features_extractor.parameters()),
        "log_std": [policy.log_std] if hasattr(policy, "log_std") else [],
        "first layer": list(policy.mlp_extractor.policy_net[0].parameters()) if policy.mlp_extractor.policy_net else [],
    }[frozen]
    for parameter in parts:
        parameter.requires_grad_(False)
    after = squared_score_norms(density, inputs)
    close(after, scores(density, inputs).square().sum(1))
    assert (after < before).all() if parts else th.equal(after, before)


@every_case
def test_parameters_hooks_and_gradients_are_left_as_they_were(name):
    density, inputs, _ = case(name)
    objects = list(density.named_parameters(remove_duplicate=False))
    before = [p.detach().clone() for _, p in objects]
    squared_score_norms(density, inputs)
    after = list(density.named_parameters(remove_duplicate=False))
    assert [(k, id(p)) for k, p in after] == [(k, id(p)) for k, p in objects], "the policy must keep its own parameters"
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.grad is None for _, p in after)
    assert all(th.equal(p, q) for (_, p), q in zip(after, before, strict=True))
    assert not any(m._forward_hooks for m in density.modules())


def test_no_hook_stays_behind_an_error():
    density, (obs, actions), _ = case("gaussian")
    with pytest.raises(RuntimeError):
        squared_score_norms(density, (obs[:, :2], actions))
    assert not any(m._forward_hooks for m in density.modules())


def test_norms_are_had_without_gradients_being_recorded():
    density, inputs, _ = case("gaussian")
    expected = squared_score_norms(density, inputs)
    with th.no_grad():
        close(squared_score_norms(density, inputs), expected)


def test_arguments_of_distributions_are_checked_again_afterwards():
    density, inputs, _ = case("categorical")
    squared_score_norms(density, inputs)
    assert th.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="invalid"):
        th.distributions.Normal(0.0, -1.0)


def test_norms_of_a_normal_and_of_a_softmax_in_closed_form():
    density, (obs, actions), _ = case("linear")
    distribution = density.policy.get_distribution(obs).distribution
    z = ((actions - distribution.mean) / distribution.stddev).detach()
    by_mean = (z / distribution.stddev.detach()).square().sum(1) * (obs.square().sum(1) + 1)
    close(squared_score_norms(density, (obs, actions)), by_mean + (z**2 - 1).square().sum(1))
    density, (obs, actions), _ = case("discrete observations")
    density.policy.mlp_extractor.policy_net = nn.Identity()
    density.policy.action_net = nn.Linear(6, 3).double()
    error = F.one_hot(actions, 3) - density.policy.get_distribution(obs).distribution.probs.detach()
    close(squared_score_norms(density, (obs, actions)), 2 * error.square().sum(1))  # weights and bias alike


@every_case
def test_score_function_loss_descends_along_minus_the_mean_of_weighted_scores(name):
    density, inputs, _ = case(name)
    psi = th.linspace(-1.0, 2.0, B, dtype=th.float64)
    expected = (psi[:, None] * scores(density, inputs)).sum(0) / 3
    loss = score_function_loss(density(*inputs), psi, n_episodes=3)
    assert loss.ndim == 0
    parameters = list(density.parameters())
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(gradients, parameters, strict=True)
    actual = -th.cat([(th.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    th.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    assert expected.abs().max() > 0.1
