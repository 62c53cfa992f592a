"""The fast acting path: the policy's own distribution, sampled without bias, and left alone where it would not be."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, MlpExtractor
from torch import nn
from torch.distributions import Distribution

from sb3_pg_ext.rollout.acting import (
    NOISE_BLOCK,
    NumpyActor,
    TorchActor,
    _gumbel,
    clip_to_space,
    is_plain_mlp,
    make_actor,
)
from sb3_pg_ext.rollout.guards import NonFiniteError

OBSERVATIONS = {
    "box": spaces.Box(-10, 10, (2, 3), np.float32),
    "box64": spaces.Box(-10, 10, (3,), np.float64),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi_binary": spaces.MultiBinary(4),
}
ACTIONS = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
NETS = {"none": [], "one": [64], "two": [64, 64], "dict": dict(pi=[8], vf=[16, 16]), "no_pi": dict(vf=[4])}
N = 3


def make_policy(observation="box", action="box", net="two", cls=ActorCriticPolicy, seed=0, spread=0.3, **kwargs):
    """A policy whose outputs differ visibly between observations and actions, as a fresh one's do not."""
    th.manual_seed(seed)
    obs_space = observation if isinstance(observation, spaces.Space) else OBSERVATIONS[observation]
    action_space = action if isinstance(action, spaces.Space) else ACTIONS[action]
    policy = cls(obs_space, action_space, lambda _: 1e-3, net_arch=NETS[net] if isinstance(net, str) else net, **kwargs)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(spread * th.randn_like(parameter))
    return policy


def observations(policy, n=N, seed=0):
    policy.observation_space.seed(seed)
    return np.stack([policy.observation_space.sample() for _ in range(n)])


def rng(seed=0):
    return np.random.default_rng(seed)


def distribution(policy, obs):
    with th.no_grad():
        return policy.get_distribution(policy.obs_to_tensor(obs)[0])


def torch_parameters(policy, obs):
    """Mean or logits before any normalisation, from the policy's own modules."""
    seen = []
    handle = policy.action_net.register_forward_hook(lambda module, args, output: seen.append(output))
    distribution(policy, obs)
    handle.remove()
    return seen[0].numpy()


# --- the same distribution ---


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_both_paths_have_the_same_distribution_parameters(observation, action, net, activation):
    policy = make_policy(observation, action, net, activation_fn=activation)
    obs = observations(policy, 8)
    expected = torch_parameters(policy, obs)
    actual = NumpyActor(policy, 8, rng()).parameters(obs)
    assert actual.dtype == np.float32
    assert np.ptp(expected) > 0.1  # the comparison means something
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_in_float64_they_agree_to_twelve_digits(observation, net, activation):
    policy = make_policy(observation, "box", net, activation_fn=activation).double()
    obs = observations(policy, 8)
    flat = np.eye(7)[obs] if observation == "discrete" else obs.reshape(8, -1)
    with th.no_grad():
        latent = policy.mlp_extractor.forward_actor(th.from_numpy(flat.astype(np.float64)))
        expected = policy.action_net(latent).numpy()
    actor = make_actor(policy, 8, rng())
    assert isinstance(actor, NumpyActor)
    actual = actor.parameters(obs)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    assert actor(obs).dtype == np.float64


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("actor_class", [NumpyActor, lambda policy, n, generator: TorchActor(policy)])
def test_actions_have_the_shape_of_the_space_and_are_fresh_arrays(actor_class, action):
    policy = make_policy(action=action)
    actor, obs = actor_class(policy, N, rng()), observations(policy)
    first = actor(obs)
    before = first.copy()
    assert first.shape == (N, *policy.action_space.shape)
    assert not any(np.shares_memory(first, actor(obs)) for _ in range(NOISE_BLOCK + 1))
    np.testing.assert_array_equal(first, before)
    if action not in ("box", "matrix"):
        assert all(policy.action_space.contains(row.astype(policy.action_space.dtype)) for row in first)


def test_it_sees_what_the_optimizer_changes_in_place():
    policy = make_policy("box", "discrete")
    actor, obs = NumpyActor(policy, N, rng()), observations(policy)
    before = actor.parameters(obs).copy()
    loss = policy.evaluate_actions(th.from_numpy(obs), th.zeros(N, dtype=th.int64))[1].sum()
    policy.optimizer.param_groups[0]["lr"] = 0.1
    policy.optimizer.zero_grad()
    loss.backward()
    policy.optimizer.step()
    after = actor.parameters(obs)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, torch_parameters(policy, obs), rtol=1e-5, atol=1e-5)


def test_it_sees_what_load_state_dict_changes():
    policy, other = make_policy("box", "box"), make_policy("box", "box", seed=1)
    actor, obs = NumpyActor(policy, N, rng()), observations(policy)
    assert np.abs(actor.parameters(obs) - torch_parameters(other, obs)).max() > 0.1
    policy.load_state_dict(other.state_dict())
    np.testing.assert_allclose(actor.parameters(obs), torch_parameters(other, obs), rtol=1e-5, atol=1e-5)


def test_the_next_rollout_sees_a_new_standard_deviation():
    policy = make_policy("box", "box")
    obs = observations(policy, 1)
    with th.no_grad():
        policy.log_std.fill_(-30.0)
    mean = torch_parameters(policy, obs)
    np.testing.assert_allclose(make_actor(policy, 1, rng())(obs), mean, rtol=1e-5, atol=1e-5)
    with th.no_grad():
        policy.log_std.fill_(5.0)
    assert np.abs(make_actor(policy, 1, rng())(obs) - mean).max() > 1


# --- the samples ---
# Each test rejects a correct sampler with probability 1e-6 over the choice of its seed; the seeds are fixed.

REJECT = 1e-6
DRAWS = 40_000


def draw(policy, n_draws=DRAWS, seed=0):
    """``n_draws`` actions for one observation, through an actor of 400 slots (more than one block of noise)."""
    obs = np.repeat(observations(policy, 1), 400, axis=0)
    actor = make_actor(policy, 400, rng(seed))
    assert isinstance(actor, NumpyActor)
    return np.concatenate([actor(obs) for _ in range(n_draws // 400)]), distribution(policy, obs[:1]).distribution


def chi_square(counts, probabilities):
    assert len(counts) == len(probabilities)
    return stats.chisquare(counts, probabilities / probabilities.sum() * counts.sum()).pvalue


def test_discrete_actions_follow_the_policy():
    actions, expected = draw(make_policy("box", "discrete"))
    assert expected.probs.min() > 1e-3
    assert chi_square(np.bincount(actions, minlength=5), expected.probs[0].double().numpy()) > REJECT


def test_multi_discrete_actions_follow_the_policy_and_are_independent():
    actions, expected = draw(make_policy("box", "multi_discrete", spread=0.1))
    marginals = [d.probs[0].double().numpy() for d in expected]
    joint = np.einsum("i,j,k->ijk", *marginals)
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(actions.T), 1)
    assert (joint * DRAWS).min() > 5
    assert np.ptp(joint) > 0.05
    assert chi_square(counts.ravel(), joint.ravel()) > REJECT


def test_multi_binary_actions_follow_the_policy_and_are_independent():
    actions, expected = draw(make_policy("box", "multi_binary", spread=0.1))
    p = expected.probs[0].double().numpy()
    joint = np.einsum("i,j,k->ijk", *np.stack([1 - p, p], 1))
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(actions.T), 1)
    assert (joint * DRAWS).min() > 5
    assert np.ptp(joint) > 0.05
    assert chi_square(counts.ravel(), joint.ravel()) > REJECT


def test_gaussian_actions_follow_the_policy_and_are_independent():
    actions, expected = draw(make_policy("box", "box"))
    z = (actions - expected.mean.numpy()) / expected.stddev.numpy()
    assert abs(expected.stddev[0, 0] - expected.stddev[0, 1]) > 0.1  # each dimension has its own
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > REJECT
    assert stats.pearsonr(*z.T).pvalue > REJECT


@pytest.mark.parametrize("action", ["discrete", "box"])
def test_slots_and_steps_are_independent(action):
    actions, _ = draw(make_policy("box", action))
    series = actions.reshape(-1, 400, *actions.shape[1:])[..., 0] if action == "box" else actions.reshape(-1, 400)
    series = series.astype(float)
    assert stats.pearsonr(series[1:].ravel(), series[:-1].ravel()).pvalue > REJECT
    assert stats.pearsonr(series[:, 1:].ravel(), series[:, :-1].ravel()).pvalue > REJECT


def test_no_action_is_taken_that_the_policy_all_but_rules_out():
    """The noise exceeds 40 with probability 4e-18 a draw; an exponential drawn in float32 is 0 once in 8 million."""
    assert _gumbel(rng(), (1 << 24,)).max() < 40


@pytest.mark.parametrize("action", ACTIONS)
def test_equal_generators_give_equal_actions_over_several_blocks(action):
    policy = make_policy("box", action)
    obs = observations(policy)

    def actions(generator):
        actor = NumpyActor(policy, N, generator)
        return np.stack([actor(obs) for _ in range(2 * NOISE_BLOCK + 3)])

    first = actions(rng(5))
    np.testing.assert_array_equal(first, actions(rng(5)))
    assert (first != actions(rng(6))).any()
    assert (first[NOISE_BLOCK:] != first[:-NOISE_BLOCK]).any()  # a block is not used twice


def test_the_torch_path_follows_torchs_generator():
    policy = make_policy("box", "box")
    obs = observations(policy)
    samples = []
    for seed in (1, 1, 2):
        th.manual_seed(seed)
        samples.append(TorchActor(policy)(obs))
    np.testing.assert_array_equal(samples[0], samples[1])
    assert (samples[0] != samples[2]).any()


# --- where it must not be used ---


class OtherForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return th.full_like(actions, 7), values, log_prob


class OtherDistribution(ActorCriticPolicy):
    def get_distribution(self, obs):
        distribution = super().get_distribution(obs)
        distribution.distribution.loc = th.full_like(distribution.distribution.loc, 100.0)
        return distribution


class OtherLatent(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(2 * latent_pi)


class OtherFeatures(ActorCriticPolicy):
    def extract_features(self, obs, features_extractor=None):
        return super().extract_features(-obs, features_extractor)


class OtherObservations(ActorCriticPolicy):
    def obs_to_tensor(self, observation):
        return super().obs_to_tensor(-observation)


class OtherCall(ActorCriticPolicy):
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Doubled(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, int(np.prod(observation_space.shape)))

    def forward(self, observations):
        return 2 * observations.flatten(1)


class OtherExtractor(MlpExtractor):
    def forward_actor(self, features):
        return 2 * super().forward_actor(features)


class OtherNets(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = OtherExtractor(self.features_dim, self.net_arch, self.activation_fn, self.device)


class Flat2(FlattenExtractor):
    pass


class OtherCategorical(CategoricalDistribution):
    pass


class JustAName(ActorCriticPolicy):
    """Changes nothing that matters for acting."""

    def predict_values(self, obs):
        return super().predict_values(obs)


IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def with_replaced(name, value, **kwargs):
    policy = make_policy(**kwargs)
    setattr(policy, name, value(policy))
    return policy


def two_activations():
    policy = make_policy(net=[8])
    policy.mlp_extractor.policy_net.append(nn.ReLU())
    return policy


def starts_with_an_activation():
    policy = make_policy(net=[8])
    policy.mlp_extractor.policy_net.insert(0, nn.Tanh())
    return policy


def without_bias():
    policy = make_policy(net=[8])
    policy.action_net = nn.Linear(8, 2, bias=False)
    return policy


def with_hook():
    policy = make_policy()
    policy.action_net.register_forward_hook(lambda module, args, output: 2 * output)
    return policy


def with_pre_hook():
    policy = make_policy()
    policy.mlp_extractor.policy_net[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return policy


def with_parametrization():
    policy = make_policy()
    nn.utils.parametrizations.weight_norm(policy.action_net)
    return policy


DICT = spaces.Dict({"x": OBSERVATIONS["box"]})
NOT_PLAIN = {
    "forward": lambda: make_policy(cls=OtherForward),
    "forward of the instance": lambda: with_replaced("forward", lambda policy: policy.forward),
    "get_distribution": lambda: make_policy(cls=OtherDistribution),
    "get_distribution of the instance": lambda: with_replaced(
        "get_distribution", lambda policy: policy.get_distribution
    ),
    "_get_action_dist_from_latent": lambda: make_policy(cls=OtherLatent),
    "extract_features": lambda: make_policy(cls=OtherFeatures),
    "obs_to_tensor": lambda: make_policy(cls=OtherObservations),
    "__call__": lambda: make_policy(cls=OtherCall),
    "features extractor": lambda: make_policy(features_extractor_class=Doubled),
    "subclass of the features extractor": lambda: make_policy(features_extractor_class=Flat2),
    "mlp extractor": lambda: make_policy(cls=OtherNets),
    "distribution": lambda: with_replaced("action_dist", lambda policy: OtherCategorical(5), action="discrete"),
    "two activations": two_activations,
    "starts with an activation": starts_with_an_activation,
    "no bias": without_bias,
    "no action net": lambda: with_replaced("action_net", lambda policy: nn.Identity(), net=[2]),
    "activation": lambda: make_policy(activation_fn=nn.SiLU),
    "hook": with_hook,
    "pre-hook": with_pre_hook,
    "parametrization": with_parametrization,
    "gSDE": lambda: make_policy(use_sde=True),
    "squashed gSDE": lambda: make_policy(use_sde=True, squash_output=True),
    "image": lambda: make_policy(IMAGE, cls=ActorCriticCnnPolicy),
    "flattened image": lambda: make_policy(IMAGE),
    "multi-discrete observation": lambda: make_policy(spaces.MultiDiscrete([3, 4])),
    "dict": lambda: make_policy(DICT, cls=MultiInputActorCriticPolicy),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_it_is_not_used_for_other_policies(name):
    policy = NOT_PLAIN[name]()
    assert not is_plain_mlp(policy)
    assert isinstance(make_actor(policy, N, rng()), TorchActor)


def test_it_is_not_used_on_another_device():
    assert not is_plain_mlp(make_policy().to("meta"))


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("action", ACTIONS)
def test_on_a_gpu_actions_come_back_as_numpy_arrays(action):
    policy = make_policy(action=action).to("cuda")
    actions = make_actor(policy, N, rng())(observations(policy))
    assert isinstance(actions, np.ndarray)
    assert actions.shape == (N, *policy.action_space.shape)


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_policies_act_all_the_same(name):
    policy = NOT_PLAIN[name]()
    policy.set_training_mode(False)
    if policy.use_sde:
        policy.reset_noise(N)
    policy.observation_space.seed(0)
    samples = [policy.observation_space.sample() for _ in range(N)]
    obs = {"x": np.stack([s["x"] for s in samples])} if isinstance(samples[0], dict) else np.stack(samples)
    actions = make_actor(policy, N, rng())(obs)
    assert actions.shape == (N, *policy.action_space.shape)
    assert np.isfinite(actions).all()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("cls", [ActorCriticPolicy, JustAName])
def test_it_is_used_for_stock_policies_however_they_are_named(cls, share):
    policy = make_policy(cls=cls, share_features_extractor=share)
    assert isinstance(make_actor(policy, N, rng()), NumpyActor)


def test_it_is_used_for_raw_pixels_that_are_not_scaled():
    policy = make_policy(IMAGE, "box", [4], normalize_images=False)
    obs = observations(policy, N)
    actor = make_actor(policy, N, rng())
    assert isinstance(actor, NumpyActor)
    expected = torch_parameters(policy, obs)
    np.testing.assert_allclose(actor.parameters(obs), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_compiled_policy_acts_as_the_policy_inside(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", True)  # torch.compile() switches it off for good
    policy = make_policy()
    compiled = th.compile(policy, backend="eager")  # nothing is compiled before it is called
    actor, obs = make_actor(compiled, N, rng()), observations(policy)
    assert isinstance(actor, NumpyActor)
    np.testing.assert_array_equal(actor.parameters(obs), NumpyActor(policy, N, rng()).parameters(obs))


def test_a_forward_of_its_own_decides():
    policy = make_policy(cls=OtherForward)
    np.testing.assert_array_equal(make_actor(policy, N, rng())(observations(policy)), np.full((N, 2), 7))


def test_a_distribution_of_its_own_decides():
    policy = make_policy(cls=OtherDistribution)
    assert make_actor(policy, N, rng())(observations(policy)).min() > 50


# --- numbers that are not finite ---


@pytest.fixture(params=[True, False])
def validating(request, monkeypatch):
    """Whether torch's distributions check their arguments; ``torch.compile`` switches that off for good."""
    monkeypatch.setattr(Distribution, "_validate_args", request.param)


def spoil(policy, name, value):
    with th.no_grad():
        dict(policy.named_parameters())[name].view(-1)[0] = value
    return policy


BROKEN = r"The policy gives NaN or infinity.*learning_rate too large"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("action", ACTIONS)
def test_outputs_that_are_not_finite_are_refused(action, value):
    policy = spoil(make_policy(action=action), "action_net.bias", value)
    with pytest.raises(NonFiniteError, match=BROKEN):
        NumpyActor(policy, N, rng())(observations(policy))


@pytest.mark.usefixtures("validating")
@pytest.mark.parametrize(
    ("action", "value"), [*((action, np.nan) for action in ACTIONS), ("box", np.inf), ("box", -np.inf)]
)
def test_the_torch_path_refuses_them_too(action, value):
    """Infinite logits are left out: by these a policy of one's own may rule actions out."""
    policy = spoil(make_policy(action=action), "action_net.bias", value)
    with pytest.raises(NonFiniteError, match=BROKEN):
        TorchActor(policy)(observations(policy))


@pytest.mark.usefixtures("validating")
@pytest.mark.parametrize("cls", [ActorCriticPolicy, OtherCall])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 200.0, -200.0])
def test_a_standard_deviation_that_is_none_is_refused(value, cls):
    """exp(200) is infinite in float32, exp(-200) is 0."""
    policy = spoil(make_policy(cls=cls), "log_std", value)
    with pytest.raises(NonFiniteError, match="standard deviation"):
        make_actor(policy, N, rng())(observations(policy))


def test_other_errors_of_a_policy_stay_what_they_are():
    class Broken(ActorCriticPolicy):
        def get_distribution(self, obs):
            raise ValueError("my own mistake")

    policy = make_policy(cls=Broken)
    with pytest.raises(ValueError, match="my own mistake") as caught:
        make_actor(policy, N, rng())(observations(policy))
    assert not isinstance(caught.value, NonFiniteError)


# --- what the env gets ---


def test_box_actions_are_clipped_as_stable_baselines3_does():
    policy = make_policy(action=spaces.Box(np.array([-1.0, 0.0]), np.array([0.5, 2.0]), dtype=np.float64))
    sampled = np.array([[-3.0, 1.0], [0.7, 9.0], [0.1, -0.1]], np.float32)
    before = sampled.copy()
    to_env = clip_to_space(policy, policy.action_space)
    np.testing.assert_array_equal(to_env(sampled), np.clip(sampled, policy.action_space.low, policy.action_space.high))
    np.testing.assert_array_equal(sampled, before)  # the learner keeps what was sampled


def test_squashed_actions_are_unscaled():
    policy = make_policy(action=spaces.Box(2.0, 6.0, (1,), np.float32), use_sde=True, squash_output=True)
    np.testing.assert_allclose(
        clip_to_space(policy, policy.action_space)(np.array([[-1.0], [0.0], [1.0]])), [[2], [4], [6]]
    )


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary"])
def test_other_actions_are_passed_on(action):
    policy = make_policy(action=action)
    actions = NumpyActor(policy, N, rng())(observations(policy))
    assert clip_to_space(policy, policy.action_space)(actions) is actions


def test_a_policy_that_stable_baselines3_made_is_plain():
    assert is_plain_mlp(PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8).policy)
