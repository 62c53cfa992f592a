"""The linear-quadratic regulator: the one continuous control problem whose every gradient has a closed form.

    x_{t+1} = A x_t + B u_t + L z_t,   z_t ~ N(0, I),        r_t = -(x_t' Q x_t + u_t' R u_t)

Its answers are in :mod:`sb3_pg_ext.envs.oracles.lqr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_pg_ext.envs.core import ProblemEnv, ProblemVectorEnv
from sb3_pg_ext.envs.differentiable import Array, Differentiable, like
from sb3_pg_ext.envs.simulation import AtHorizon, check_horizon

Preset = Literal["scalar", "mushroom", "dean"]


@dataclass(frozen=True, eq=False)
class LQR:
    """The record of one regulator; S states, A actions. Arguments may be anything that numpy turns into arrays.

    :param A: ``(S, S)`` dynamics
    :param B: ``(S, A)`` effect of the action
    :param Q: ``(S, S)`` cost of the state, symmetric
    :param R: ``(A, A)`` cost of the action, symmetric
    :param noise_std: process noise: a number, ``(S,)`` of them, or a factor L ``(S, k)`` of the covariance LL'
    :param start_mean: mean of the first state: a number or ``(S,)``
    :param start_std: spread of the first state, given as ``noise_std`` is
    :param horizon: steps of an episode; None for one that never ends
    :param at_horizon: ``"truncate"`` for a time limit, ``"terminate"`` for a task of that many steps, whose return a
        learner must not extend by a bootstrapped value
    :param gamma: discount of the objective; the dynamics do not use it, the oracles do
    :param action_bound: the action space is the box of this half width
    :param clip_actions: whether the dynamics clip the action to that box, too
    :param state_bound: clip states to this half width, which also bounds the observation space; None for neither.
        The oracles know nothing of clipping: they hold as long as no bound is reached
    """

    A: Any
    B: Any
    Q: Any
    R: Any
    noise_std: Any = 0.0
    start_mean: Any = 0.0
    start_std: Any = 0.0
    horizon: int | None = 50
    at_horizon: AtHorizon = "truncate"
    gamma: float = 0.9
    action_bound: float = 10.0
    clip_actions: bool = False
    state_bound: float | None = None

    def __post_init__(self) -> None:
        A, B = _matrix("A", self.A), _matrix("B", self.B)
        n_states, n_actions = B.shape
        arrays = {
            "A": _shaped("A", A, (n_states, n_states)),
            "B": B,
            "Q": _symmetric("Q", self.Q, n_states),
            "R": _symmetric("R", self.R, n_actions),
            "noise_std": _factor("noise_std", self.noise_std, n_states),
            "start_mean": _vector("start_mean", self.start_mean, n_states),
            "start_std": _factor("start_std", self.start_std, n_states),
        }
        for name, array in arrays.items():
            object.__setattr__(self, name, array)
        check_horizon(self.horizon, self.at_horizon, self.gamma)

    @cached_property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-self.action_bound, self.action_bound, (self.B.shape[1],), np.float32)

    @cached_property
    def observation_space(self) -> spaces.Box:
        bound = np.inf if self.state_bound is None else self.state_bound
        return spaces.Box(-bound, bound, self.state_shape, np.float32)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.B.shape[0],)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.noise_std.shape[1],)

    def start_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, self.start_std.shape[1]))

    def start_state(self, noise: np.ndarray) -> np.ndarray:
        return self.start_mean + noise @ self.start_std.T

    def step_noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, *self.noise_shape))

    def step(
        self, state: np.ndarray, action: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        next_state = self.dynamics(state, action, noise)
        return next_state, self.reward(state, action, next_state), np.zeros(len(state), dtype=bool)

    def dynamics(self, state: Array, action: Array, noise: Array | None = None) -> Array:
        """``A x + B u + L z``, clipped where the record says so."""
        action = self._applied(action)
        next_state = state @ like(self.A, state).T + action @ like(self.B, action).T
        if noise is not None:
            next_state = next_state + noise @ like(self.noise_std, noise).T
        if self.state_bound is not None:
            next_state = next_state.clip(-self.state_bound, self.state_bound)
        return next_state

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """``-(x' Q x + u' R u)``; the next state plays no part."""
        action = self._applied(action)
        state_cost = ((state @ like(self.Q, state)) * state).sum(-1)
        return -(state_cost + ((action @ like(self.R, action)) * action).sum(-1))

    def observe(self, state: Array) -> Array:
        return state

    def state_of(self, observation: Array) -> Array:
        return observation

    def _applied(self, action: Array) -> Array:
        return action.clip(-self.action_bound, self.action_bound) if self.clip_actions else action


PRESETS: dict[str, dict[str, Any]] = {
    # x' = x + u, the textbook case: optimal gain .588403, optimal return -1.588403 at gamma .9 from x = 1.
    "scalar": {"A": [[1.0]], "B": [[1.0]], "Q": [[1.0]], "R": [[1.0]], "start_mean": 1.0},
    # The instance of the MushroomRL benchmark.
    "mushroom": {
        "A": np.eye(3),
        "B": np.eye(3),
        "Q": np.diag([0.9, 0.1, 0.1]),
        "R": np.diag([0.1, 0.9, 0.9]),
        "start_mean": 0.9,
        "action_bound": 1.0,
        "clip_actions": True,
        "state_bound": 1.0,
    },
    # Dean et al. 2017, "On the sample complexity of the linear quadratic regulator": barely unstable, cheap states.
    "dean": {
        "A": [[1.01, 0.01, 0.0], [0.01, 1.01, 0.01], [0.0, 0.01, 1.01]],
        "B": np.eye(3),
        "Q": np.eye(3) / 1000,
        "R": np.eye(3),
        "noise_std": 1.0,
        "horizon": 300,
        "gamma": 1.0,
        "action_bound": 100.0,
    },
}


def lqr(preset: Preset | None = "mushroom", **changes: Any) -> LQR:
    """A published regulator, or one of your own.

    :param preset: ``"scalar"``, ``"mushroom"``, ``"dean"``; None to give every matrix
    :param changes: fields of :class:`LQR` that replace the preset's
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: allowed are {', '.join(map(repr, PRESETS))}, and None with A, B, Q and R")
    return LQR(**{**(PRESETS[preset] if preset else {}), **changes})


def _matrix(name: str, value: Any) -> np.ndarray:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"{name} has the shape {matrix.shape}; a matrix is needed")
    return matrix


def _shaped(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}; {shape} is needed")
    return array


def _vector(name: str, value: Any, size: int) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    return np.full(size, array) if array.ndim == 0 else _shaped(name, array, (size,))


def _symmetric(name: str, value: Any, size: int) -> np.ndarray:
    matrix = _shaped(name, _matrix(name, value), (size, size))
    if not np.allclose(matrix, matrix.T):
        raise ValueError(f"{name} must be symmetric, and is {matrix.tolist()}")
    return matrix


def _factor(name: str, value: Any, size: int) -> np.ndarray:
    """A standard deviation, ``(size,)`` of them, or a factor ``(size, k)`` -> the factor; k = 0 if it is zero."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 2 or (array.ndim and len(array) != size):
        raise ValueError(f"{name} has the shape {array.shape}; a number, ({size},) or ({size}, k) is needed")
    factor = array if array.ndim == 2 else np.diag(np.full(size, array))
    return factor if factor.any() else np.zeros((size, 0))


class LQREnv(Differentiable, ProblemEnv):
    """One regulator.

    :param kwargs: as for :func:`lqr`
    """

    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(lqr(**kwargs), render_mode)


class LQRVectorEnv(Differentiable, ProblemVectorEnv):
    """N regulators side by side.

    :param num_envs: N
    :param max_episode_steps: a further time limit
    :param kwargs: as for :func:`lqr`
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(lqr(**kwargs), num_envs, max_episode_steps, render_mode)
