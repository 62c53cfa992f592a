"""N copies of a problem side by side.

A :class:`Problem` is immutable and holds no state: pure maps over N copies. :class:`Simulation` adds states, clocks and
noise. The single environment is its N = 1 case and the vector environment its general one, so that dynamics, time
limits and seeding exist once.

Seeding. Copy i of a vector environment reset with ``seed`` has a generator of its own, seeded ``seed + i``, and its
trajectory is the one that a single environment reset with ``seed + i`` would show: the same noise, number for number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces

Array = np.ndarray
AtHorizon = Literal["truncate", "terminate"]


class Problem(Protocol):
    """What is true of a testbed, whoever runs it. N is the number of copies; noise is random numbers of a fixed law."""

    @property
    def observation_space(self) -> spaces.Space: ...

    @property
    def action_space(self) -> spaces.Space: ...

    @property
    def horizon(self) -> int | None:
        """Steps after which an episode ends, if it has not ended before; None for never."""
        ...

    @property
    def at_horizon(self) -> AtHorizon:
        """Whether the horizon is a time limit ("truncate") or the end of the task ("terminate")."""
        ...

    def start_noise(self, rng: np.random.Generator, count: int) -> Array:
        """``(count, k)`` random numbers, a row for each start."""
        ...

    def start_state(self, noise: Array) -> Array:
        """Start noise ``(N, k)`` -> states ``(N, ...)``."""
        ...

    def step_noise(self, rng: np.random.Generator, count: int) -> Array:
        """``(count, k)`` random numbers, a row for each step."""
        ...

    def step(self, state: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
        """States, actions and step noise of N copies -> next states, rewards ``(N,)``, terminated ``(N,)`` bool."""
        ...

    def observe(self, state: Array) -> Array:
        """States ``(N, ...)`` -> observations ``(N, ...)``."""
        ...


def check_horizon(horizon: int | None, at_horizon: str, gamma: float) -> None:
    """Refuse an impossible horizon or discount.

    :raises ValueError: naming the argument and what is allowed
    """
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon={horizon}: allowed are positive integers, and None for episodes without a limit")
    if at_horizon not in ("truncate", "terminate"):
        raise ValueError(f"at_horizon={at_horizon!r}: allowed are 'truncate' and 'terminate'")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma}: allowed are numbers in (0, 1]")


class NoiseStreams:
    """Random numbers for N slots, each from its own generator, drawn ``block`` rows at a time.

    What a slot sees depends on its own generator and its own history alone, whatever the other slots do.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        draw: Callable[[np.random.Generator, int], Array],
        block: int = 32,
    ):
        self._generators, self._draw, self._block = generators, draw, block
        width = draw(np.random.default_rng(0), 1).shape[1:]
        self._rows = np.empty((len(generators), block, *width))
        self._next = np.full(len(generators), block)

    def take(self, slots: Array) -> Array:
        """The next row of each of ``slots``: ``(len(slots), k)``."""
        if not self._rows.size:  # k = 0
            return self._rows[slots, 0]
        at = self._next[slots]
        if at.max() == self._block:
            for slot in slots[at == self._block]:
                self._rows[slot] = self._draw(self._generators[slot], self._block)
            at = np.where(at == self._block, 0, at)
        self._next[slots] = at + 1
        return self._rows[slots, at]


class Simulation:
    """N copies of a problem: states, clocks and noise. It never restarts a copy of its own accord."""

    def __init__(self, problem: Problem, n_copies: int, max_episode_steps: int | None = None):
        self.problem, self.n_copies = problem, n_copies
        self.everyone = np.arange(n_copies)
        self.generators: list[np.random.Generator] = []
        self.states: Array = np.empty(0)
        self.elapsed = np.zeros(n_copies, dtype=np.int64)
        self._horizon = np.inf if problem.horizon is None else problem.horizon
        self._limit = np.inf if max_episode_steps is None else max_episode_steps
        self._shape = (n_copies, *(problem.action_space.shape or ()))
        self._dtype = problem.observation_space.dtype

    def seed(self, generators: list[np.random.Generator]) -> None:
        """Give every copy its generator; noise that was drawn ahead is dropped."""
        self.generators = generators
        self._start_noise = NoiseStreams(generators, self.problem.start_noise)
        self._step_noise = NoiseStreams(generators, self.problem.step_noise)

    def restart(self, slots: Array) -> None:
        """Begin a new episode in each of ``slots``."""
        started = self.problem.start_state(self._start_noise.take(slots))
        if len(slots) == self.n_copies:
            self.states = started
        else:
            self.states[slots] = started
        self.elapsed[slots] = 0

    def advance(self, actions: Any) -> tuple[Array, Array, Array]:
        """One step of every copy: rewards, terminated, truncated, each ``(N,)``."""
        if not self.states.size:
            raise RuntimeError("step() before reset(): call reset() first")
        actions = np.asarray(actions)
        if actions.shape != self._shape:
            raise ValueError(
                f"actions have the shape {actions.shape}; expected {self._shape} for {self.problem.action_space}"
            )
        noise = self._step_noise.take(self.everyone)
        self.states, rewards, terminated = self.problem.step(self.states, actions, noise)
        self.elapsed += 1
        expired = self.elapsed >= self._horizon
        if self.problem.at_horizon == "terminate":
            terminated, expired = terminated | expired, np.zeros_like(expired)
        return rewards, terminated, (expired | (self.elapsed >= self._limit)) & ~terminated

    def observations(self) -> Array:
        """What the copies show now: ``(N, ...)``, freshly allocated, in the dtype of the observation space."""
        return self.problem.observe(self.states).astype(self._dtype)

    def place(self, states: Any) -> None:
        """Put the copies into given states ``(N, ...)``."""
        states = np.array(states, dtype=self.states.dtype)
        if states.shape != self.states.shape:
            raise ValueError(f"options['state'] has the shape {states.shape}; expected {self.states.shape}")
        self.states = states
