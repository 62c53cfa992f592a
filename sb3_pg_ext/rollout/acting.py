"""The acting path: observations in, sampled actions out, and nothing else.

A plain MLP policy on the CPU acts through numpy views of the same memory as its torch parameters, with preallocated
outputs: one batched action costs a few microseconds instead of a few hundred. Any other policy takes the torch path
under ``inference_mode``. Values and log-probabilities are computed for the whole rollout afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_pg_ext.rollout.guards import NonFiniteError, all_finite

#: Steps for which the exploration noise is drawn at once.
NOISE_BLOCK = 128

Array = np.ndarray[Any, Any]


class Actor(Protocol):
    """Samples one action for every env slot."""

    def __call__(self, obs: Any) -> Array:
        """Actions as the policy samples them (unclipped), (N, ...).

        :param obs: (N, ...) or a dict of such
        :raises NonFiniteError: the policy gives NaN or infinity for these observations
        """


def make_actor(policy: Any, n_envs: int, rng: np.random.Generator) -> Actor:
    """The fastest actor that samples from exactly this policy's distribution.

    Cheap enough to be called at every rollout, so that it always sees the current parameters, wherever they live.
    During a rollout it follows in-place changes of the weights, but not of ``log_std``.

    :param policy: an SB3 actor-critic policy
    :param n_envs: N
    :param rng: source of the exploration noise of the numpy path; the torch path uses torch's generator, as SB3 does
    :raises NonFiniteError: the policy's standard deviation is no positive number
    """
    policy = getattr(policy, "_orig_mod", policy)
    return NumpyActor(policy, n_envs, rng) if is_plain_mlp(policy) else TorchActor(policy)


def clip_to_space(policy: Any, action_space: spaces.Space) -> Callable[[Array], Array]:
    """What happens to a sampled action before the env sees it: Box actions are un-squashed or clipped, others kept."""
    if not isinstance(action_space, spaces.Box):
        return lambda actions: actions
    if policy.squash_output:
        return policy.unscale_action
    low, high = action_space.low, action_space.high
    return lambda actions: np.minimum(np.maximum(actions, low), high)


class TorchActor:
    """Samples as the policy itself does: through a ``forward`` of its own, or else from its distribution."""

    def __init__(self, policy: Any):
        self.policy = policy
        if isinstance(getattr(policy, "action_dist", None), DiagGaussianDistribution):
            _standard_deviation(policy)
        self.sample = self._forward if _replaces(policy, "forward") else self._from_distribution

    def _forward(self, tensors: Any) -> th.Tensor:
        return self.policy(tensors)[0]

    def _from_distribution(self, tensors: Any) -> th.Tensor:
        return self.policy.get_distribution(tensors).get_actions()

    def __call__(self, obs: Any) -> Array:
        with th.inference_mode():
            tensors, _ = self.policy.obs_to_tensor(obs)
            try:
                actions = self.sample(tensors)
            except (ValueError, RuntimeError) as error:
                if any(words in str(error) for words in _REFUSALS_OF_TORCH):
                    raise NonFiniteError(_BROKEN_POLICY) from error
                raise
        array: Array = actions.cpu().numpy().reshape(-1, *self.policy.action_space.shape)
        if not all_finite(array):
            raise NonFiniteError(_BROKEN_POLICY)
        return array


_BROKEN_POLICY = (
    "The policy gives NaN or infinity for finite observations, or a standard deviation that is no positive number: its "
    "parameters have run away. Usual causes: learning_rate too large, or observations or rewards of a large scale "
    "(VecNormalize evens them out)."
)
# What torch says when it is asked for a distribution with such parameters, or, unvalidated, for a sample of one.
_REFUSALS_OF_TORCH = ("Expected parameter", "Expected p_in", "probability tensor contains", "normal expects all")
_OVERRIDABLE = ("forward", "get_distribution", "_get_action_dist_from_latent", "extract_features", "obs_to_tensor")


def _replaces(policy: Any, name: str) -> bool:
    """Whether the class of ``policy``, or the instance, has a ``name`` other than stock ActorCriticPolicy's."""
    return name in vars(policy) or getattr(type(policy), name, None) is not getattr(ActorCriticPolicy, name)


def is_plain_mlp(policy: Any) -> bool:
    """Whether :class:`NumpyActor` samples as ``policy`` does: stock MLP on the CPU, flat inputs, no gSDE, no hooks."""
    return (
        isinstance(policy, ActorCriticPolicy)
        and not any(_replaces(policy, name) for name in (*_OVERRIDABLE, "__call__"))
        and isinstance(policy.observation_space, (spaces.Box, spaces.Discrete, spaces.MultiBinary))
        and not (policy.normalize_images and is_image_space(policy.observation_space))
        and type(policy.pi_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist) in _HEADS
        and policy.device.type == "cpu"
        and type(policy.action_net) is nn.Linear
        and _are_compilable(_actor_layers(policy))
        and not any(m._forward_hooks or m._forward_pre_hooks for m in policy.modules())
    )


def _actor_layers(policy: ActorCriticPolicy) -> list[nn.Module]:
    return [*policy.mlp_extractor.policy_net, policy.action_net]


def _are_compilable(layers: list[nn.Module]) -> bool:
    """Linear layers with a bias, each followed by at most one known activation."""
    after_linear = [False, *(type(layer) is nn.Linear for layer in layers)]
    return all(
        (type(layer) is nn.Linear and layer.bias is not None) or (type(layer) in _ACTIVATIONS and follows)
        for layer, follows in zip(layers, after_linear, strict=False)
    )


def _relu(x: Array) -> None:
    np.maximum(x, 0, out=x)


def _tanh(x: Array) -> None:
    np.tanh(x, out=x)


_ACTIVATIONS: dict[type[nn.Module], Callable[[Array], None]] = {
    nn.Tanh: _tanh,
    nn.ReLU: _relu,
    nn.Identity: lambda x: None,
}


class NumpyActor:
    """Acts through numpy views of the policy's parameters (``tensor.detach().numpy()`` shares the memory)."""

    def __init__(self, policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator):
        layers = _actor_layers(policy)
        self.dtype = layers[-1].weight.detach().numpy().dtype  # type: ignore[operator]
        self.forward = self._compile(layers, n_envs)
        self.head = _HEADS[type(policy.action_dist)](policy, n_envs, rng)
        space = policy.observation_space
        self.inputs = _one_hot(space.n, self.dtype) if isinstance(space, spaces.Discrete) else self._flat
        self.action_shape = (n_envs, *policy.action_space.shape)  # type: ignore[misc]

    def _compile(self, layers: list[nn.Module], n_envs: int) -> Callable[[Array], Array]:
        steps: list[tuple[Array, Array, Array]] = []
        activations: list[Callable[[Array], None] | None] = []
        for layer in layers:
            if isinstance(layer, nn.Linear):
                weight = layer.weight.detach().numpy().T
                steps.append((weight, layer.bias.detach().numpy(), np.empty((n_envs, weight.shape[1]), self.dtype)))
                activations.append(None)
            else:
                activations[-1] = _ACTIVATIONS[type(layer)]
        plan = [(*step, activation) for step, activation in zip(steps, activations, strict=True)]

        def forward(x: Array) -> Array:
            for weight, bias, out, activation in plan:
                np.matmul(x, weight, out=out)
                out += bias
                if activation is not None:
                    activation(out)
                x = out
            return x

        return forward

    def _flat(self, obs: Array) -> Array:
        return obs.reshape(len(obs), -1).astype(self.dtype, copy=False)

    def parameters(self, obs: Array) -> Array:
        """Distribution parameters (mean or logits), (N, A); the array is overwritten by the next call."""
        parameters = self.forward(self.inputs(obs))
        if not all_finite(parameters):
            raise NonFiniteError(_BROKEN_POLICY)
        return parameters

    def __call__(self, obs: Array) -> Array:
        return self.head(self.parameters(obs)).reshape(self.action_shape)


def _one_hot(n: int, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    rows = np.eye(int(n), dtype=dtype)
    return lambda obs: rows[obs]


class _Noise:
    """Rows of exploration noise, drawn in blocks. A new block begins with every rollout."""

    def __init__(self, draw: Callable[[tuple[int, ...]], Array], shape: tuple[int, ...]):
        self.draw, self.shape, self.row = draw, (NOISE_BLOCK, *shape), NOISE_BLOCK

    def __call__(self) -> Array:
        if self.row == NOISE_BLOCK:
            self.block, self.row = self.draw(self.shape), 0
        self.row += 1
        return self.block[self.row - 1]


Head = Callable[[Array], Array]


def _width(policy: ActorCriticPolicy) -> int:
    """A: number of distribution parameters."""
    return int(policy.action_net.out_features)  # type: ignore[arg-type]


def _standard_deviation(policy: ActorCriticPolicy) -> Array:
    """sigma, (A,).

    :raises NonFiniteError: an entry is no positive number
    """
    std: Array = policy.log_std.detach().exp().cpu().numpy()
    if not (all_finite(std) and (std > 0).all()):
        raise NonFiniteError(_BROKEN_POLICY)
    return std


def _gaussian(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Head:
    """a = mu + sigma z, z ~ N(0, 1)."""
    std = _standard_deviation(policy)
    noise = _Noise(lambda shape: rng.standard_normal(shape, std.dtype) * std, (n_envs, len(std)))
    return lambda mean: mean + noise()


def _categorical(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Head:
    """argmax of logits + Gumbel noise is a sample of softmax(logits)   (Gumbel 1954)."""
    noise = _Noise(lambda shape: _gumbel(rng, shape), (n_envs, _width(policy)))
    return lambda logits: (logits + noise()).argmax(1)


def _multi_categorical(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Head:
    sizes: Any = policy.action_dist.action_dims  # type: ignore[attr-defined]
    stops = np.cumsum(sizes)
    parts = [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    noise = _Noise(lambda shape: _gumbel(rng, shape), (n_envs, int(stops[-1])))

    def sample(logits: Array) -> Array:
        perturbed = logits + noise()
        return np.stack([perturbed[:, part].argmax(1) for part in parts], axis=1)

    return sample


def _bernoulli(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator) -> Head:
    """logit + logistic noise > 0 has probability sigmoid(logit)."""
    noise = _Noise(lambda shape: rng.logistic(size=shape).astype(np.float32), (n_envs, _width(policy)))
    return lambda logits: (logits + noise() > 0).astype(np.int8)


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    # In float64, since one float32 exponential in 8 million is exactly 0: infinite noise, whatever the logits are.
    return -np.log(np.maximum(rng.standard_exponential(shape), np.finfo(np.float64).tiny)).astype(np.float32)


_HEADS: dict[type, Callable[[ActorCriticPolicy, int, np.random.Generator], Head]] = {
    DiagGaussianDistribution: _gaussian,
    CategoricalDistribution: _categorical,
    MultiCategoricalDistribution: _multi_categorical,
    BernoulliDistribution: _bernoulli,
}
