"""Deterministic policies for search in parameter space: linear, perceptron, and a perceptron of Dict observations.

    s -> (phi(s) - m) / sd -> net_theta -> action

phi flattens the observation (one-hot where it is discrete); m and sd are running statistics of phi(s), part of the
policy but not of theta, or absent. The outputs are the action itself (Box) or logits. A choice between two takes one
logit, the second being chosen where it is positive: the linear policy of CartPole-v1 has 5 parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    create_mlp,
)
from torch import Tensor, nn

#: Normalised features are clipped to [-CLIP, CLIP].
CLIP = 10.0


class Moments(nn.Module):
    """Running mean and variance of vectors (S,), in float64; ``count`` 0 means that nothing was seen yet."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", th.zeros(width, dtype=th.float64))
        self.register_buffer("variance", th.ones(width, dtype=th.float64))
        self.register_buffer("count", th.zeros((), dtype=th.float64))

    def scale(self) -> Tensor:
        """1 / sd, (S,); 1 for what never varies, so that a constant is shifted to 0 and not blown up."""
        return th.where(self.variance > 1e-8, self.variance, 1.0).rsqrt()

    def forward(self, features: Tensor) -> Tensor:
        """(B, S) -> (B, S), clipped."""
        z = (features - self.mean.to(features.dtype)) * self.scale().to(features.dtype)
        return z.clamp(-CLIP, CLIP)

    def add(self, n: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Join the moments of ``n`` further vectors (Chan et al. 1979).

        :param mean: theirs, (S,)
        :param variance: theirs, (S,), divided by n
        """
        share = n / (self.count.item() + n)
        device = self.mean.device
        shift = th.as_tensor(mean, device=device) - self.mean
        self.variance.lerp_(th.as_tensor(variance, device=device), share).add_(shift**2, alpha=share * (1 - share))
        self.mean.add_(shift, alpha=share)
        self.count.add_(n)


class MlpPolicy(BasePolicy):
    """A deterministic perceptron.

    :param observation_space: one env's space
    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary
    :param net_arch: widths of the hidden layers, [64, 64] by default
    :param activation_fn: between them
    :param with_bias: whether the layers have biases
    :param squash_output: Box actions: tanh, stretched to the bounds; without it they are clipped to the bounds
    :param normalize_observations: set by the algorithm: keep running moments of the features
    :param features_extractor_class: from observations to vectors
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        with_bias: bool = True,
        squash_output: bool = True,
        normalize_observations: bool = False,
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
            squash_output=squash_output and isinstance(action_space, spaces.Box),
        )
        self.net_arch = [64, 64] if net_arch is None else list(net_arch)
        self.activation_fn, self.with_bias = activation_fn, with_bias
        self.features_extractor = self.make_features_extractor()
        width = self.features_extractor.features_dim
        if normalize_observations and any(True for _ in self.features_extractor.parameters()):
            raise ValueError(
                f"normalize_observations=True, but {type(self.features_extractor).__name__} has parameters of its own: "
                "what it gives differs from candidate to candidate. Use VecNormalize instead."
            )
        self.moments = Moments(width) if normalize_observations else None
        outputs = None if isinstance(action_space, spaces.Box) else sum(logit_sizes(choices_of(action_space)))
        layers = create_mlp(
            width,
            outputs or get_action_dim(action_space),
            self.net_arch,
            activation_fn,
            squash_output=self.squash_output,
            with_bias=with_bias,
        )
        self.action_net = nn.Sequential(*layers)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "with_bias": self.with_bias,
            "squash_output": self.squash_output,
            "normalize_observations": self.moments is not None,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
        }

    def forward(self, obs: Any) -> Tensor:
        """Actions (B, A): Box ones unclipped, or squashed in [-1, 1]; others as the space counts them."""
        features = self.extract_features(obs, self.features_extractor)
        if self.moments is not None:
            features = self.moments(features)
        return actions_of(self.action_net(features), self.action_space)

    def _predict(self, observation: Any, deterministic: bool = True) -> Tensor:
        return self(observation)


class LinearPolicy(MlpPolicy):
    """A linear deterministic policy. Box actions are clipped to their bounds unless ``squash_output`` is set.

    :param with_bias: without it the action is a linear function of the observation
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        with_bias: bool = True,
        squash_output: bool = False,
        normalize_observations: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            [],
            with_bias=with_bias,
            squash_output=squash_output,
            normalize_observations=normalize_observations,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {name: value for name, value in parameters.items() if name not in ("net_arch", "activation_fn")}


class MultiInputPolicy(MlpPolicy):
    """The perceptron for Dict observations, whose parts are flattened and joined."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        with_bias: bool = True,
        squash_output: bool = True,
        normalize_observations: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            activation_fn,
            with_bias,
            squash_output,
            normalize_observations,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
        )


def choices_of(space: spaces.Space) -> list[int]:
    """Between how many values each choice is that an action consists of.

    :raises TypeError: a Box, or a space that no policy here has actions for
    """
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec.ravel()]
        case spaces.MultiBinary():
            return [2] * int(np.prod(space.shape))
    raise TypeError(f"action_space={space}: a Discrete, MultiDiscrete or MultiBinary one has logits")


def logit_sizes(choices: list[int]) -> list[int]:
    """Number of logits of each choice; one between two values has one."""
    return [1 if n == 2 else n for n in choices]


def actions_of(outputs: Tensor, space: spaces.Space) -> Tensor:
    """Outputs of the net (B, ...) as actions (B, ...)."""
    if isinstance(space, spaces.Box):
        return outputs
    choices = choices_of(space)
    parts = outputs.split(logit_sizes(choices), dim=1)
    chosen = [(part[:, 0] > 0).long() if n == 2 else part.argmax(1) for n, part in zip(choices, parts, strict=True)]
    actions = th.stack(chosen, dim=1)
    if isinstance(space, spaces.MultiBinary):
        actions = actions.to(th.int8)
    return actions[:, 0] if isinstance(space, spaces.Discrete) else actions
