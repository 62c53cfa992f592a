"""Policies a = pi(s, z) that can be differentiated through the action, each with n critics Q_i(s, a) and their targets.

Codes are explained in :mod:`sb3_pg_ext.nets.heads`.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from sb3_pg_ext.nets.ensemble_critics import EnsembleCritic, features_of, is_plain_vector
from sb3_pg_ext.nets.fused import FusedMlp, can_be_fused
from sb3_pg_ext.nets.heads import LOG_STD_BOUNDS, Std, head_of


class Actor(BasePolicy):
    """The net of pi(s, z), and its head.

    :param observation_space: one env's space
    :param action_space: one env's space
    :param net_arch: widths of the hidden layers
    :param activation_fn: after each hidden layer
    :param squash_output: Box actions are tanh(mu + sigma z)
    :param std: what sigma depends on
    :param std_init: its first value
    :param features_extractor_class: from observations to vectors
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        net_arch: list[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        squash_output: bool = True,
        std: Std = "state",
        std_init: float = 0.5,
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
            squash_output=isinstance(action_space, spaces.Box),  # predict() takes actions for numbers in [-1, 1] then
        )
        self.net_arch, self.activation_fn = net_arch, activation_fn
        self.squash, self.std, self.std_init = squash_output, std, std_init
        self.features_extractor = self.make_features_extractor()
        self.head = head_of(action_space, squash_output, std, std_init)
        self.net = nn.Sequential(
            *create_mlp(self.features_extractor.features_dim, self.head.n_outputs, net_arch, activation_fn)
        )
        self.quick = FusedMlp(self.net) if can_be_fused(self.net) else None
        self.is_plain = is_plain_vector(self)

    @property
    def last_layer(self) -> nn.Linear:
        """Whose outputs the head takes."""
        return cast(nn.Linear, self.net[-1])

    def features(self, obs: Any) -> Tensor:
        """What the net sees, (B, F)."""
        dtype = self.last_layer.weight.dtype if self.quick is None else self.quick.dtype
        return features_of(self, obs, dtype)

    def outputs(self, obs: Any) -> Tensor:
        """What the head takes, (B, P)."""
        features = self.features(obs)
        if self.quick is None or th.is_grad_enabled():
            return cast(Tensor, self.net(features))
        return self.quick(features)[-1]

    def forward(self, obs: Any, temperature: float = 1.0) -> Tensor:
        """A code pi(s, z) with fresh noise, (B, C)."""
        outputs = self.outputs(obs)
        return self.head.code(outputs, self.head.noise(outputs), temperature)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.head.decode(self.head.mode(self.outputs(observation)) if deterministic else self(observation))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["net_arch", "activation_fn", "std", "std_init"]
        names += ["features_extractor_class", "features_extractor_kwargs"]
        own = {name: getattr(self, name) for name in names}
        return super()._get_constructor_parameters() | own | {"squash_output": self.squash}


class MlpPolicy(BasePolicy):
    """An actor pi(s, z), n critics and their targets; nothing is shared between them.

    :param observation_space: one env's space
    :param action_space: one env's space
    :param lr_schedule: step size of both optimizers, as a function of the remaining progress
    :param net_arch: widths of the hidden layers, or a dict of those of the actor, ``pi``, and of the critics, ``qf``
    :param activation_fn: after each hidden layer
    :param n_critics: n
    :param squash_output: Box actions are tanh(mu + sigma z); without it mu + sigma z, clipped where it is executed
    :param std: sigma is a function of the ``"state"``, ``"shared"`` by all states, or ``"fixed"``
    :param std_init: first sigma, in units of half the action range
    :param features_extractor_class: from observations to vectors
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: of both optimizers
    :param optimizer_kwargs: its further keyword arguments
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        n_critics: int = 2,
        squash_output: bool = True,
        std: Std = "state",
        std_init: float = 0.5,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        _check_shape(n_critics, std, std_init)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.net_arch: Any = [64, 64] if net_arch is None else net_arch
        self.activation_fn, self.n_critics = activation_fn, n_critics
        self.squash, self.std, self.std_init = squash_output, std, std_init
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        actor_arch, critic_arch = get_actor_critic_arch(self.net_arch)
        common: dict[str, Any] = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "activation_fn": self.activation_fn,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "normalize_images": self.normalize_images,
        }
        shape: dict[str, Any] = {"squash_output": self.squash, "std": self.std, "std_init": self.std_init}
        self.actor = Actor(net_arch=actor_arch, **shape, **common)
        n_codes, linear = self.actor.head.n_codes, isinstance(self.action_space, spaces.Discrete)
        critics = {"net_arch": critic_arch, "n_codes": n_codes, "n_critics": self.n_critics, "linear": linear, **common}
        self.critic, self.critic_target = EnsembleCritic(**critics), EnsembleCritic(**critics)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        optimizer: Any = self.optimizer_class
        for net in (self.actor, self.critic):
            net.optimizer = optimizer(net.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def set_training_mode(self, mode: bool) -> None:
        """Training or evaluation; the targets always stay in evaluation."""
        for net in (self.actor, self.critic):
            net.train(mode)
        self.critic_target.train(False)
        self.training = mode

    def forward(self, obs: Any, deterministic: bool = False) -> Tensor:
        """Actions, (B, ...): Box ones in [-1, 1]."""
        return self._predict(obs, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.actor._predict(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["net_arch", "activation_fn", "n_critics", "std", "std_init", "optimizer_class", "optimizer_kwargs"]
        names += ["features_extractor_class", "features_extractor_kwargs"]
        own = {name: getattr(self, name) for name in names}
        made = {"squash_output": self.squash, "lr_schedule": self._dummy_schedule}
        return super()._get_constructor_parameters() | own | made


class CnnPolicy(MlpPolicy):
    """The same from images. Parameters as for :class:`MlpPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)


class MultiInputPolicy(MlpPolicy):
    """The same from dicts of observations. Parameters as for :class:`MlpPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)


def _check_shape(n_critics: Any, std: Any, std_init: Any) -> None:
    if isinstance(n_critics, bool) or not isinstance(n_critics, int) or n_critics < 1:
        raise ValueError(f"n_critics={n_critics!r}: a whole number >= 1 is needed")
    if std not in ("state", "shared", "fixed"):
        raise ValueError(f"std={std!r}: allowed are 'state', 'shared', 'fixed'")
    low, high = (math.exp(bound) for bound in LOG_STD_BOUNDS)
    if not low <= std_init <= high:
        raise ValueError(f"std_init={std_init!r}: a number in [{low:.3g}, {high:.3g}] is needed")
