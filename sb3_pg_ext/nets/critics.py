"""Action-value networks Q(s, a), each with a features extractor of its own.

One interface for two shapes: a finite set of actions has one output an action, any other action is an input.
"""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, create_mlp
from torch import Tensor, nn


class Critic(BaseModel):
    """Q_w(s, a): features of the observation, then a perceptron. Use one of the two subclasses.

    :param observation_space: one env's space
    :param action_space: one env's space
    :param net_arch: widths of the hidden layers
    :param activation_fn: between them
    :param features_extractor_class: from observations to vectors
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.Tanh,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
        )
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.features_extractor = self.make_features_extractor()
        n_inputs, n_outputs = self._sizes(self.features_extractor.features_dim)
        self.q_net = nn.Sequential(*create_mlp(n_inputs, n_outputs, net_arch, activation_fn))

    def _sizes(self, n_features: int) -> tuple[int, int]:
        """Inputs and outputs of the perceptron."""
        raise NotImplementedError

    def _features(self, obs: Any) -> Tensor:
        """(B, ...) or a dict of such -> (B, number of features)."""
        assert self.features_extractor is not None
        return self.extract_features(obs, self.features_extractor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("net_arch", "activation_fn", "features_extractor_class", "features_extractor_kwargs")
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}


class DiscreteCritic(Critic):
    """Q(s, a) for a ``Discrete`` action: one output for each of the A actions. Arguments as for :class:`Critic`."""

    action_space: spaces.Discrete

    def _sizes(self, n_features: int) -> tuple[int, int]:
        return n_features, int(self.action_space.n)

    def every_action(self, obs: Any) -> Tensor:
        """Q(s, .): (B, ...) or a dict of such -> (B, A)."""
        q: Tensor = self.q_net(self._features(obs))
        return q

    def forward(self, obs: Any, actions: Tensor) -> Tensor:
        """Q(s, a), (B,).

        :param obs: (B, ...) or a dict of such
        :param actions: (B,) whole numbers
        """
        return self.every_action(obs).gather(1, actions.long().unsqueeze(1)).squeeze(1)


class StateActionCritic(Critic):
    """Q(s, a) for any action: the features of s and the numbers of a are the input. Arguments as for :class:`Critic`.

    ``Box`` and ``MultiBinary`` actions enter as they are (a Gaussian policy's before they are clipped), those of
    ``MultiDiscrete`` and ``Discrete`` as unit vectors.
    """

    def _sizes(self, n_features: int) -> tuple[int, int]:
        return n_features + get_flattened_obs_dim(self.action_space), 1

    def forward(self, obs: Any, actions: Tensor) -> Tensor:
        """Q(s, a), (B,); for K actions of each state (K, B).

        :param obs: (B, ...) or a dict of such
        :param actions: (B, ...), or (K, B, ...)
        """
        features = self._features(obs)
        action_shape = self.action_space.shape or ()
        leading = actions.shape[:-1] if action_shape else actions.shape  # the entries of an action stand in one row
        coded = preprocess_obs(actions.reshape(-1, *action_shape), self.action_space, normalize_images=False)
        assert isinstance(coded, Tensor)
        inputs = th.cat([features.repeat(len(coded) // len(features), 1), coded.reshape(len(coded), -1)], dim=1)
        return self.q_net(inputs).reshape(leading)


def critic_like(policy: ActorCriticPolicy) -> DiscreteCritic | StateActionCritic:
    """A critic for the policy's spaces, built from what the policy is built from; no parameter is shared.

    Hidden layers: ``qf`` of the policy's ``net_arch``, or else its ``vf``.
    """
    net_arch: Any = getattr(policy, "net_arch", [64, 64])
    if isinstance(net_arch, dict):
        net_arch = net_arch.get("qf", net_arch.get("vf", []))
    critic = DiscreteCritic if isinstance(policy.action_space, spaces.Discrete) else StateActionCritic
    return critic(
        policy.observation_space,
        policy.action_space,
        net_arch,
        getattr(policy, "activation_fn", nn.Tanh),
        policy.features_extractor_class,
        policy.features_extractor_kwargs,
        policy.normalize_images,
    )
