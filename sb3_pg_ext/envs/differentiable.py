"""What a model-based method may ask of an environment whose equations can be differentiated."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

Array = Any  # a numpy array or a torch tensor: the equations are written once, for both


@runtime_checkable
class DifferentiableEnv(Protocol):
    """Known dynamics and reward, batch first, differentiable in every argument.

    The methods take torch tensors (of any floating dtype, on any device) and numpy arrays alike. A ``gymnasium``
    wrapper hides them: ask ``env.unwrapped``. Episodes of such an environment end by their horizon alone.
    """

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one step's noise, whose entries are independent standard normals; ``(0,)`` without noise."""
        ...

    def dynamics(self, state: Array, action: Array, noise: Array | None = None) -> Array:
        """States ``(B, S)``, actions ``(B, A)`` and noise ``(B, *noise_shape)`` -> next states ``(B, S)``.

        :param noise: ``None`` for the noise-free step
        """
        ...

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """States ``(B, S)``, actions ``(B, A)``, next states ``(B, S)`` -> rewards ``(B,)``."""
        ...

    def observe(self, state: Array) -> Array:
        """States ``(B, S)`` -> what the agent sees of them ``(B, O)``."""
        ...

    def state_of(self, observation: Array) -> Array:
        """Observations ``(B, O)`` -> states ``(B, S)`` with the same future; ``observe(state_of(o)) == o``."""
        ...


class Differentiable:
    """Passes the methods of :class:`DifferentiableEnv` on to ``self.problem``."""

    problem: Any

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.problem.state_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.problem.noise_shape

    def dynamics(self, state: Array, action: Array, noise: Array | None = None) -> Array:
        """See :meth:`DifferentiableEnv.dynamics`."""
        return self.problem.dynamics(state, action, noise)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """See :meth:`DifferentiableEnv.reward`."""
        return self.problem.reward(state, action, next_state)

    def observe(self, state: Array) -> Array:
        """See :meth:`DifferentiableEnv.observe`."""
        return self.problem.observe(state)

    def state_of(self, observation: Array) -> Array:
        """See :meth:`DifferentiableEnv.state_of`."""
        return self.problem.state_of(observation)


def namespace(x: Array) -> ModuleType:
    """The module whose ``sin``, ``clip``, ``stack`` ... work on ``x``: torch or numpy."""
    return torch if isinstance(x, torch.Tensor) else np


def like(constant: np.ndarray, x: Array) -> Array:
    """``constant`` as the kind of array that ``x`` is, with its dtype and device."""
    return torch.as_tensor(constant, dtype=x.dtype, device=x.device) if isinstance(x, torch.Tensor) else constant
