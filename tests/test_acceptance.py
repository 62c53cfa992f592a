"""Which policies and spaces are taken: the words of the errors, and what must not be refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import ReshapeObservation
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy

from sb3_pg_ext.algorithms.cem import CEM
from sb3_pg_ext.algorithms.mbpg import MBPG
from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.algorithms.svg0 import SVG0
from sb3_pg_ext.testing.environments import OBSERVATION_SPACES, Echo

SCALAR = spaces.Box(-1, 1, ())
MATRIX = spaces.MultiDiscrete([[3, 2], [2, 4]])


def refusal(cls, policy, env=None, **kwargs):
    with pytest.raises((ValueError, TypeError)) as error:
        cls(policy, env or Echo(), device="cpu", **kwargs)
    return error.type, str(error.value)


def test_names():
    allowed = "allowed are 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy', and policy classes."
    assert refusal(REINFORCE, "MlpPolciy") == (
        ValueError, f"policy='MlpPolciy': {allowed} Did you mean 'MlpPolicy'?"
    )  # fmt: skip
    assert refusal(REINFORCE, "x") == (ValueError, f"policy='x': {allowed}")
    for name, what in (("CnnPolicy", "images"), ("MultiInputPolicy", "Dict observations")):
        assert refusal(MBPG, name)[1].endswith(f"MBPG has no policy for {what}.")


def test_classes():
    kind, message = refusal(SVG0, SACPolicy)
    assert kind is TypeError
    assert message == (
        "policy=stable_baselines3.sac.policies.SACPolicy: allowed are 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy', "
        "and classes derived from sb3_pg_ext.nets.reparametrised.MlpPolicy"
    )
    for cls, policy in ((SVG0, ActorCriticPolicy), (REINFORCE, SACPolicy), (CEM, ActorCriticPolicy), (CEM, SACPolicy)):
        assert refusal(cls, policy)[0] is TypeError
    for cls in (REINFORCE, SVG0, CEM):
        assert refusal(cls, None)[1].startswith("policy=None: allowed are ")
        assert refusal(cls, ActorCriticPolicy.__init__)[0] is TypeError


class Own(ActorCriticPolicy):
    """A user's policy."""


class OwnSearch(CEM.policy_aliases["LinearPolicy"]):
    """A user's policy."""


@pytest.mark.parametrize(("cls", "policy"), [(REINFORCE, Own), (CEM, OwnSearch)])
def test_ones_own_subclass_is_taken(cls, policy):
    assert type(cls(policy, Echo(), device="cpu").policy) is policy


@pytest.mark.parametrize(
    ("cls", "policy", "observation", "words"),
    [
        (REINFORCE, "MultiInputPolicy", "vector", "is for Dict observations, not observation_space=Box"),
        (REINFORCE, MultiInputActorCriticPolicy, "discrete", "is for Dict observations, not observation_space=Disc"),
        (REINFORCE, "CnnPolicy", "vector", "is for images, not observation_space=Box.*: allowed are 'MlpPolicy'$"),
        (REINFORCE, ActorCriticCnnPolicy, "matrix", "policy='CnnPolicy' is for images"),
        (REINFORCE, ActorCriticPolicy, "dict", "is for observations that are one array.*are 'MultiInputPolicy'$"),
        (CEM, "LinearPolicy", "dict", "policy='LinearPolicy' is for.*one array.*allowed are 'MultiInputPolicy'$"),
        (SVG0, "MultiInputPolicy", "image", "is for Dict.*allowed are 'MlpPolicy', 'CnnPolicy'$"),
    ],
)
def test_policies_for_other_observations(cls, policy, observation, words):
    with pytest.raises(ValueError, match=words):
        cls(policy, Echo(observation=observation), device="cpu")


class Sum(BaseFeaturesExtractor):
    """Takes whatever comes."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 1)

    def forward(self, obs):
        parts = obs.values() if isinstance(obs, dict) else [obs]
        return sum(part.reshape(len(part), -1).sum(1, keepdim=True) for part in parts)


@pytest.mark.parametrize("space", [SCALAR, OBSERVATION_SPACES["dict"], OBSERVATION_SPACES["vector"]], ids=str)
def test_an_extractor_of_ones_own_may_read_what_others_cannot(space):
    own = {"features_extractor_class": Sum, "net_arch": [8]}
    for policy in (ActorCriticPolicy, "MultiInputPolicy"):
        REINFORCE(policy, Echo(observation=space), policy_kwargs=dict(own), device="cpu", n_steps=16).learn(32)


@pytest.mark.parametrize("space", [SCALAR, spaces.Dict({"a": SCALAR, "b": spaces.Discrete(2)})], ids=["Box", "Dict"])
@pytest.mark.parametrize("cls", [REINFORCE, SVG0, CEM])
def test_scalar_observations_are_refused_with_a_wrapper_that_helps(cls, space):
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    kind, message = refusal(cls, policy, Echo(observation=space))
    assert kind is ValueError
    assert message.startswith(f"observation_space={space}: an observation needs an axis, and the shape () has none")
    assert "gymnasium.wrappers.ReshapeObservation(env, (1,))" in message
    cls("MlpPolicy", ReshapeObservation(Echo(observation=SCALAR), (1,)), device="cpu").learn(40)


def test_discrete_observations_have_no_axis_either_and_are_taken():
    REINFORCE("MlpPolicy", Echo(observation="discrete"), device="cpu", n_steps=16).learn(32)


@pytest.mark.parametrize("space", [MATRIX, spaces.MultiBinary([2, 2])], ids=["choices", "bits"])
def test_matrices_of_numbers(space):
    """A search takes them as actions; what takes gradients needs a row."""
    words = f"action_space={space} has shape (2, 2): {type(space).__name__} actions must stand in one row; wrap the"
    for cls in (REINFORCE, SVG0):
        assert refusal(cls, "MlpPolicy", Echo(space))[1].startswith(words)
    model = CEM("MlpPolicy", Echo(space), device="cpu", policy_kwargs={"net_arch": [4]}, population_size=4).learn(40)
    assert model.predict(np.zeros(3, np.float32))[0].shape == (2, 2)
    assert "observation_space" in refusal(CEM, "MlpPolicy", Echo(observation=MATRIX))[1]
    assert "observation_space" in refusal(CEM, "MultiInputPolicy", Echo(observation=spaces.Dict({"a": MATRIX})))[1]


def test_nothing_is_refused_without_an_environment():
    """As a model file is loaded for prediction."""
    for name in REINFORCE.policy_aliases:
        assert REINFORCE(name, None, _init_setup_model=False).policy_class is REINFORCE.policy_aliases[name]


def test_images_that_are_not_divided_by_255_have_a_policy():
    class Floats(gym.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Box(0, 1, (1, 36, 36))

        def observation(self, observation):
            return (observation / 255).astype(np.float32).transpose(2, 0, 1)

    kwargs = {"normalize_images": False, "net_arch": [4], "features_extractor_kwargs": {"features_dim": 4}}
    env = Floats(Echo(observation="image"))
    model = REINFORCE("CnnPolicy", env, policy_kwargs=kwargs, device="cpu", n_steps=8).learn(8)
    assert isinstance(model.policy, ActorCriticCnnPolicy)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
