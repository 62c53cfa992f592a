"""Many policies of one architecture acting at once, one in every slot of a vectorised environment.

Each slot has its own weights, so a layer is one batched product (N, out, in) x (N, in, 1) for all of them. Perceptrons
on the CPU take numpy with preallocated outputs; anything else is mapped over its parameters by ``torch.vmap``. A policy
is deterministic and has what those of :mod:`sb3_pg_ext.nets.search_policies` and of sb3-contrib's ARS have: a
``features_extractor``, an ``action_net``, ``squash_output`` and possibly ``moments``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_pg_ext.nets.search_policies import CLIP, choices_of, logit_sizes
from sb3_pg_ext.rollout.guards import NonFiniteError, all_finite

Array = np.ndarray[Any, Any]
#: A sum of squares below it has no term that is NaN, or infinite in float32.
SMALL_SQUARES = 1e38
_ACTIVATIONS: dict[type[nn.Module], Callable[[Array], Any]] = {
    nn.Tanh: lambda x: np.tanh(x, out=x),
    nn.ReLU: lambda x: np.maximum(x, 0, out=x),
    nn.Identity: lambda x: x,
}


def check_searchable(cls: type) -> None:
    """:raises TypeError: ``cls`` is no class of deterministic policies, but one of those that follow gradients"""
    if "lr_schedule" in inspect.signature(cls).parameters:
        raise TypeError(
            f"policy={cls.__name__}: a search in parameter space needs a deterministic policy with a "
            "features_extractor and an action_net, such as LinearPolicy and MlpPolicy of "
            "sb3_pg_ext.nets.search_policies or those of sb3-contrib's ARS"
        )


class BatchedPolicies:
    """Candidates loaded into slots, and acting there: number i % n in slot i, until others are loaded.

    :param policy: the architecture; what is no parameter (moments of the features) is taken from it as it is now
    :param candidates: (n, P) parameters in the order of ``policy.parameters()``
    :param n_slots: N
    :raises NonFiniteError: a candidate is not finite in float32
    """

    def __init__(self, policy: Any, candidates: Array, n_slots: int):
        _check_candidates(candidates)
        self.action_shape = (n_slots, *policy.action_space.shape)
        self.net: Any  # _Bits, _NumpyNets or _TorchNets
        if any(True for _ in policy.features_extractor.parameters()):
            self.inputs: Callable[[Any], Any] = _preprocessor(policy)
            self.features: Features | None = None
            self.net = _TorchNets(policy, candidates, n_slots, with_extractor=True)
        else:
            self.inputs = self.features = Features(policy)
            self.net = _nets_of(policy)(policy, candidates, n_slots)
        self.head = _head(policy)
        self.net.slots[:] = self.net.candidates[[slot % len(candidates) for slot in range(n_slots)]]

    def load(self, slots: int | list[int], candidate: int) -> None:
        """Let a slot, or some of them, act by this candidate from now on."""
        self.net.slots[slots] = self.net.candidates[candidate]

    @property
    def counts(self) -> bool:
        """Whether moments of the features are kept."""
        return self.features is not None and self.features.normalized

    def count(self, live: Array | None) -> None:
        """Count what the slots ``live`` (k,) have seen last in the moments of the features; None counts all slots."""
        assert self.features is not None
        self.features.count(live)

    def seen(self) -> tuple[int, Array, Array] | None:
        """Number, mean (S,) and variance (S,) of the features that were counted; None if no moments are kept."""
        return self.features.seen() if self.features is not None and self.features.normalized else None

    def __call__(self, obs: Any) -> Array:
        """Actions for the env, (N, ...).

        :param obs: (N, ...) or a dict of such
        :raises NonFiniteError: a candidate answers with NaN or infinity
        """
        if isinstance(self.net, _Bits):
            return self.net.act(self.inputs(obs))
        outputs = self.net(self.inputs(obs))
        _check_outputs(outputs)
        return self.head(outputs).reshape(self.action_shape)


def _check_candidates(candidates: Array) -> None:
    if not all_finite(candidates):
        raise NonFiniteError(
            "A candidate has parameters that are not finite in float32; what was found so far is kept as it is. Usual "
            "causes: learning_rate or the initial spread too large."
        )


def _check_outputs(outputs: Array) -> None:
    if not all_finite(outputs):
        raise NonFiniteError(
            "A candidate policy gives NaN or infinity for finite observations: its parameters, or the "
            "observations, are too large for float32 (normalize_observations=True evens them out)."
        )


class Features:
    """phi(s) of all slots, normalised; and the moments of what was seen meanwhile.

    :param policy: with a features extractor that has no parameters
    """

    def __init__(self, policy: Any):
        self.flat = _flattener(policy)
        moments = getattr(policy, "moments", None)
        self.normalized = moments is not None
        if moments is not None:
            self.shift = moments.mean.cpu().numpy().astype(np.float32)
            self.scale = moments.scale().cpu().numpy().astype(np.float32)
            self.center, self.unit = self.shift.astype(np.float64), 1.0 / self.scale.astype(np.float64)
            self.n, self.sum, self.squares = 0, np.zeros(len(self.shift)), np.zeros(len(self.shift))

    def __call__(self, obs: Any) -> Array:
        """(N, S)"""
        x = self.flat(obs)
        if not self.normalized:
            return x
        with np.errstate(over="ignore"):  # clipped below
            self.z = (x - self.shift) * self.scale
        clipped: Array = np.minimum(np.maximum(self.z, -CLIP), CLIP)
        return clipped

    def count(self, live: Array | None) -> None:
        """Count the last features of the slots ``live`` (k,) in the moments; None counts all of them."""
        z = self.z if live is None else self.z[live]
        self.n += len(z)
        self.sum += z.sum(0, dtype=np.float64)
        self.squares += np.einsum("ns,ns->s", z, z, dtype=np.float64)

    def seen(self) -> tuple[int, Array, Array]:
        """Number, mean (S,) and variance (S,) of the features that were counted."""
        mean = self.sum / self.n
        variance = np.maximum(self.squares / self.n - mean**2, 0.0)
        return self.n, self.center + mean * self.unit, variance * self.unit**2


def _flattener(policy: Any) -> Callable[[Any], Array]:
    space, extractor = policy.observation_space, policy.features_extractor
    if type(extractor) is FlattenExtractor:
        if isinstance(space, spaces.Box) and not is_image_space(space):
            return _flat
        if isinstance(space, spaces.Discrete):
            rows = np.eye(int(space.n), dtype=np.float32)
            return lambda obs: rows[obs]
    prepare = _preprocessor(policy)

    def extract(obs: Any) -> Array:
        with th.no_grad():
            features: Array = extractor(prepare(obs)).cpu().numpy()
        return features

    return extract


def _flat(obs: Array) -> Array:
    return obs if obs.ndim == 2 and obs.dtype == np.float32 else obs.reshape(len(obs), -1).astype(np.float32)


def _preprocessor(policy: Any) -> Callable[[Any], Any]:
    """Observations as Stable-Baselines3 hands them to a features extractor."""

    def prepare(obs: Any) -> Any:
        tensors, _ = policy.obs_to_tensor(obs)
        normalize_images = getattr(policy, "normalize_images", True)
        return preprocess_obs(tensors, policy.observation_space, normalize_images=normalize_images)

    return prepare


def _nets_of(policy: Any) -> type[_Bits | _NumpyNets | _TorchNets]:
    """The quickest of the classes below that do what the policy's net does."""
    if not _is_plain(policy):
        return _TorchNets
    return _Bits if len(policy.action_net) == 1 and _is_of_bits(policy) else _NumpyNets


def _is_plain(policy: Any) -> bool:
    """Whether :class:`_NumpyNets` does what the policy's net does."""
    layers = list(policy.action_net)
    after_linear = [False, *(type(layer) is nn.Linear for layer in layers)]
    return (
        policy.device.type == "cpu"
        and len(layers) > 0
        and all(
            type(layer) is nn.Linear or (type(layer) in _ACTIVATIONS and follows)
            for layer, follows in zip(layers, after_linear, strict=False)
        )
        and not any(m._forward_hooks or m._forward_pre_hooks for m in policy.modules())
    )


class _Layer:
    """One linear layer of every slot, then possibly an activation.

    :param weight: (N, out, in)
    :param bias: (N, out, 1), or None
    """

    def __init__(self, weight: Array, bias: Array | None):
        self.weight, self.bias = weight, bias
        self.out = np.empty((*weight.shape[:2], 1), np.float32)
        self.activation: Callable[[Array], Any] | None = None


class _NumpyNets:
    """Perceptrons: y_i = act(W_i x_i + b_i) for all slots i in one batched product a layer."""

    def __init__(self, policy: Any, candidates: Array, n_slots: int):
        self.candidates = candidates.astype(np.float32)
        self.slots = np.empty((n_slots, candidates.shape[1]), np.float32)  # the layers are views of it
        self.layers: list[_Layer] = []
        used = 0
        for module in policy.action_net:
            if not isinstance(module, nn.Linear):
                self.layers[-1].activation = _ACTIVATIONS[type(module)]
                continue
            rows, columns = module.weight.shape
            weight = self.slots[:, used : used + rows * columns].reshape(-1, rows, columns)
            used += rows * columns
            bias = None if module.bias is None else self.slots[:, used : used + rows, None]
            used += 0 if bias is None else rows
            self.layers.append(_Layer(weight, bias))

    @np.errstate(over="ignore", invalid="ignore")  # said better by the caller
    def __call__(self, x: Array) -> Array:
        x = x[:, :, None]
        for layer in self.layers:
            x = np.matmul(layer.weight, x, out=layer.out)
            if layer.bias is not None:
                x += layer.bias
            if layer.activation is not None:
                layer.activation(x)
        return x[:, :, 0]


class _Bits:
    """Linear policies that choose between two values, once or more often: W_i x_i + b_i > 0, asked as W_i x_i > -b_i.

    That is exact: a sum of two floats is positive if, and only if, one of them is above the negative of the other.
    """

    def __init__(self, policy: Any, candidates: Array, n_slots: int):
        (layer,), space = policy.action_net, policy.action_space
        rows, columns = layer.weight.shape
        self.candidates = np.zeros((len(candidates), rows * (columns + 1)), np.float32)
        self.candidates[:, : candidates.shape[1]] = candidates
        self.candidates[:, rows * columns :] *= -1
        self.slots = np.empty((n_slots, self.candidates.shape[1]), np.float32)  # the two below are views of it
        self.weight = self.slots[:, : rows * columns].reshape(n_slots, *space.shape, columns)
        self.threshold = self.slots[:, rows * columns :].reshape(n_slots, *space.shape)
        self.dtype = _dtype_of_choices(space)

    def act(self, x: Array) -> Array:
        """Actions for the env, (N, ...)."""
        products = np.einsum("n...i,ni->n...", self.weight, x)  # no word of overflow
        if not np.vdot(products, products) < SMALL_SQUARES:
            _check_outputs(products)
        actions: Array = (products > self.threshold).astype(self.dtype)
        return actions


def _is_of_bits(policy: Any) -> bool:
    """Whether actions are choices between two values with one output each."""
    if isinstance(policy.action_space, spaces.Box):
        return False
    choices = choices_of(policy.action_space)
    return set(choices) == {2} and policy.action_net[-1].out_features == len(choices)


def _dtype_of_choices(space: spaces.Space) -> type[np.integer]:
    return np.int8 if isinstance(space, spaces.MultiBinary) else np.int64


class _Outputs(nn.Module):
    """The part of a policy between preprocessed observations, or features, and outputs."""

    def __init__(self, policy: Any, with_extractor: bool):
        super().__init__()
        self.action_net = policy.action_net
        if with_extractor:
            self.features_extractor = policy.features_extractor
        self.with_extractor = with_extractor

    def forward(self, x: Any) -> th.Tensor:
        return self.action_net(self.features_extractor(x) if self.with_extractor else x)


class _TorchNets:
    """Any net, mapped over its parameters."""

    def __init__(self, policy: Any, candidates: Array, n_slots: int, with_extractor: bool = False):
        policy.set_training_mode(False)
        self.device, self.net = policy.device, _Outputs(policy, with_extractor)
        self.candidates = th.as_tensor(candidates, dtype=th.float32, device=self.device)
        self.slots = th.empty((n_slots, candidates.shape[1]), dtype=th.float32, device=self.device)
        self.shapes = {name: parameter.shape for name, parameter in policy.named_parameters()}
        self.buffers = dict(self.net.named_buffers())
        self.call = th.vmap(self._one, in_dims=(0, 0), randomness="error")

    def _one(self, parameters: dict[str, th.Tensor], x: Any) -> th.Tensor:
        batch = th.utils._pytree.tree_map(lambda part: part.unsqueeze(0), x)
        return th.func.functional_call(self.net, (parameters, self.buffers), (batch,))[0]

    def __call__(self, x: Any) -> Array:
        inputs = th.as_tensor(x, device=self.device) if isinstance(x, np.ndarray) else x
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), self.slots.split(sizes, dim=1), strict=True)
        parameters = {name: part.reshape(-1, *shape) for (name, shape), part in parts}
        with th.no_grad():
            outputs: Array = self.call(parameters, inputs).cpu().numpy()
        return outputs


def _head(policy: Any) -> Callable[[Array], Array]:
    """From outputs (N, ...) to actions for the env."""
    space = policy.action_space
    if isinstance(space, spaces.Box):
        return _box_head(space, policy.squash_output)
    choices = choices_of(space)
    sizes = logit_sizes(choices)
    if policy.action_net[-1].out_features != sum(sizes):
        sizes = choices  # ARS's policies have one logit for every value
    if len(choices) == 1:
        return (lambda y: (y[:, 0] > 0).astype(np.int64)) if sizes == [1] and choices == [2] else lambda y: y.argmax(1)
    stops = np.cumsum(sizes).tolist()
    parts = [slice(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    dtype = _dtype_of_choices(space)
    if all(n == 2 for n in choices) and sizes != choices:
        return lambda y: (y > 0).astype(dtype)

    def choose(y: Array) -> Array:
        logits = zip(choices, (y[:, part] for part in parts), strict=True)
        chosen = [part[:, 0] > 0 if part.shape[1] < n else part.argmax(1) for n, part in logits]
        return np.stack(chosen, axis=1).astype(dtype)

    return choose


def _box_head(space: spaces.Box, squashed: bool) -> Callable[[Array], Array]:
    low, high = (bound.reshape(-1) for bound in (space.low, space.high))
    if squashed:
        return lambda y: (low + 0.5 * (y + 1.0) * (high - low)).astype(space.dtype, copy=False)
    return lambda y: np.minimum(np.maximum(y, low), high).astype(space.dtype, copy=False)
