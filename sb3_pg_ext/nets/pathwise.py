"""A Stable-Baselines3 actor-critic as functions of the state that can be differentiated: a = pi(s, z) and V(s).

A state is what the policy's networks see: the numbers of a ``Box`` observation, or the unit vectors and bits of a
discrete one, in one row.
"""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from torch import Tensor
from torch.distributions import Normal

VECTOR_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class PathwisePolicy:
    """a = mu(s) + sigma(s) z,  z ~ N(0, I): a Gaussian policy with its noise as an argument.

    Actions stand in rows, as the policy samples them: neither clipped nor in the units of the environment, which is
    what :meth:`executed` is for. A squashed policy's are tanh(mu + sigma z).

    :param policy: an actor-critic with Box actions; its parameters are used, not copied
    """

    def __init__(self, policy: ActorCriticPolicy):
        self.policy = policy
        space = policy.action_space
        assert isinstance(space, spaces.Box)
        device = policy.device
        self.low = th.as_tensor(space.low.reshape(-1), device=device)
        self.high = th.as_tensor(space.high.reshape(-1), device=device)
        probe = preprocess_obs(th.zeros(1, *(policy.observation_space.shape or ())), policy.observation_space, False)
        assert isinstance(probe, Tensor)
        self.state_shape = probe.shape[1:]

    def state(self, obs: Any) -> Tensor:
        """Observations (B, ...) -> states (B, S), in the policy's dtype."""
        space, dtype = self.policy.observation_space, next(self.policy.parameters()).dtype
        rows: Any = obs if isinstance(space, spaces.Box) else preprocess_obs(obs, space, normalize_images=False)
        return rows.to(dtype).reshape(len(rows), -1)

    def distribution(self, states: Tensor) -> Normal:
        """States (B, S) -> N(mu(s), sigma(s)^2) of the actions before squashing, (B, A)."""
        policy = self.policy
        features = policy.pi_features_extractor(states.reshape(-1, *self.state_shape))
        latent = policy.mlp_extractor.forward_actor(features)
        if policy.use_sde:
            law: Any = policy._get_action_dist_from_latent(latent)
            return law.distribution
        mean = policy.action_net(latent)
        # Unchecked: numbers that are not finite are found where they would do harm, in the gradient.
        return Normal(mean, policy.log_std.exp().expand_as(mean), validate_args=False)

    def __call__(self, states: Tensor, noise: Tensor) -> Tensor:
        """pi(s, z): states (B, S) and noise (B, A) -> actions (B, A)."""
        law = self.distribution(states)
        actions = law.mean + law.stddev * noise
        return actions.tanh() if self.policy.squash_output else actions

    def infer_noise(self, states: Tensor, actions: Tensor) -> Tensor:
        """The z with pi(s, z) = a: states (B, S) and actions (B, A) -> (B, A)."""
        law = self.distribution(states)
        return (self._unsquashed(actions) - law.mean) / law.stddev

    def log_prob(self, states: Tensor, actions: Tensor) -> Tensor:
        """log pi(a|s), (B,), up to a term of a alone if actions are squashed; it cancels in every ratio."""
        return self.distribution(states).log_prob(self._unsquashed(actions)).sum(1)

    def entropy(self, states: Tensor) -> Tensor:
        """Entropy of pi(.|s) before squashing, (B,)."""
        return self.distribution(states).entropy().sum(1)

    def executed(self, actions: Tensor) -> Tensor:
        """What the environment is given, (B, A): clipped to its bounds, or scaled to them if actions are squashed."""
        low, high = self.low.to(actions.dtype), self.high.to(actions.dtype)
        if self.policy.squash_output:
            return low + 0.5 * (actions + 1) * (high - low)
        return actions.clamp(low, high)

    def value(self, states: Tensor) -> Tensor:
        """V(s): states (B, S) -> (B,)."""
        policy = self.policy
        features = policy.vf_features_extractor(states.reshape(-1, *self.state_shape))
        return policy.value_net(policy.mlp_extractor.forward_critic(features)).flatten()

    def _unsquashed(self, actions: Tensor) -> Tensor:
        if not self.policy.squash_output:
            return actions
        bound = 1 - th.finfo(actions.dtype).eps
        return actions.clamp(-bound, bound).atanh()


def state_size(space: spaces.Space[Any]) -> int:
    """S, the numbers in a state.

    :raises ValueError: for images and for dicts of observations
    """
    if not isinstance(space, VECTOR_SPACES) or is_image_space(space):
        names = ", ".join(vector.__name__ for vector in VECTOR_SPACES)
        raise ValueError(f"observation_space={space}: a model of the dynamics needs vectors: {names}, and no image")
    return get_flattened_obs_dim(space)
