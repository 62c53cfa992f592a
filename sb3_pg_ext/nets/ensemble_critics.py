"""n action values Q_i(s, a) in one module."""

from __future__ import annotations

from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import Tensor, nn

from sb3_pg_ext.nets.ensembles import EnsembleMlp
from sb3_pg_ext.nets.fused import FusedMlp, can_be_fused


def is_plain_vector(model: BaseModel) -> bool:
    """Whether the features of an observation are its own numbers, in one row."""
    space = model.observation_space
    return (
        type(model.features_extractor) is FlattenExtractor
        and isinstance(space, spaces.Box)
        and not (model.normalize_images and is_image_space(space))
    )


def features_of(model: Any, obs: Any, dtype: th.dtype) -> Tensor:
    """phi(s) of a model with one features extractor: (B, ...) or a dict of such -> (B, F).

    Vectors that are only flattened take on the type that is given, so that a model in float64 stays exact.

    :param model: with ``is_plain`` as :func:`is_plain_vector` gives it
    """
    return obs.flatten(1).to(dtype) if model.is_plain else model.extract_features(obs, model.features_extractor)


class EnsembleCritic(BaseModel):
    """n action values Q_i(s, a) from one features extractor and one batched perceptron.

    :param observation_space: one env's space
    :param action_space: one env's space
    :param n_codes: numbers in an action as the critic sees it
    :param net_arch: widths of the hidden layers
    :param n_critics: n
    :param linear: Q_i(s, a) = q_i(s)'a, so that for unit vectors its slope in the action is the value of each action;
        otherwise the numbers of s and a enter side by side
    :param activation_fn: after each hidden layer
    :param features_extractor_class: from observations to vectors
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_codes: int,
        net_arch: list[int],
        n_critics: int = 2,
        linear: bool = False,
        activation_fn: type[nn.Module] = nn.ReLU,
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
        self.n_critics, self.n_codes, self.linear = n_critics, n_codes, linear
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.features_extractor = self.make_features_extractor()
        self.is_plain = is_plain_vector(self)
        width = self.features_extractor.features_dim
        n_inputs, n_outputs = (width, n_codes) if linear else (width + n_codes, 1)
        self.q_net = EnsembleMlp(n_critics, n_inputs, n_outputs, net_arch, activation_fn)

        self.quick = FusedMlp(self.q_net) if can_be_fused(self.q_net) else None

    def features(self, obs: Any) -> Tensor:
        """phi(s), (B, F)."""
        return features_of(self, obs, self.dtype)

    def inputs(self, obs: Any, codes: Tensor) -> Tensor:
        """What the perceptrons see: (B, ...) and (B, C), or (K, B, C) -> (B, I), or (K B, I)."""
        features, dtype = self.features(obs), self.dtype
        if codes.dim() == 2:
            return th.cat([features, codes.to(dtype)], dim=1)
        return th.cat([features.expand(*codes.shape[:-1], -1), codes.to(dtype)], dim=-1).flatten(0, -2)

    def forward(self, obs: Any, codes: Tensor) -> Tensor:
        """Q_i(s, a): (n, B); for K actions of each state (n, K, B).

        :param obs: (B, ...) or a dict of such
        :param codes: (B, C), or (K, B, C)
        """
        if self.linear:
            q = self._net(self.features(obs))  # (n, B, C)
            return (q.unsqueeze(1) * codes).sum(-1) if codes.dim() == 3 else (q * codes).sum(-1)
        return self._net(self.inputs(obs, codes)).reshape(-1, *codes.shape[:-1])

    def _net(self, inputs: Tensor) -> Tensor:
        if self.quick is None or th.is_grad_enabled():
            return cast(Tensor, self.q_net(inputs))
        return self.quick(inputs)[-1]

    @property
    def dtype(self) -> th.dtype:
        """Of the parameters."""
        if self.quick is not None:
            return self.quick.dtype
        last: Any = self.q_net[-1]
        return cast(th.dtype, last.weight.dtype)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["n_codes", "net_arch", "n_critics", "linear", "activation_fn"]
        names += ["features_extractor_class", "features_extractor_kwargs"]
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}
