"""From a problem, written once over a batch, to a ``gymnasium.Env`` and a ``gymnasium.vector.VectorEnv``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_pg_ext.envs.simulation import Array, Problem, Simulation


class ProblemEnv(gymnasium.Env):
    """One copy of a problem as a ``gymnasium.Env``.

    ``reset(options={"state": state})`` starts from a given state.

    :param problem: the problem; also the attribute ``problem``, which the oracles take
    :param render_mode: ``"rgb_array"``, to :meth:`render` the observation as bars
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, problem: Problem, render_mode: str | None = None):
        self.problem, self.render_mode = problem, render_mode
        self.observation_space, self.action_space = problem.observation_space, problem.action_space
        self._simulation = Simulation(problem, 1)

    @property
    def state(self) -> Array:
        """A copy of the state, in full precision."""
        return self._simulation.states[0].copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._simulation.generators != [self.np_random]:
            self._simulation.seed([self.np_random])
        self._simulation.restart(self._simulation.everyone)
        if options and "state" in options:
            self._simulation.place(np.asarray(options["state"])[None])
        return self._simulation.observations()[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        rewards, terminated, truncated = self._simulation.advance(np.asarray(action)[None])
        return self._simulation.observations()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        """The observation as bars, ``(96, width, 3)`` uint8."""
        return bars(self._simulation.observations()[0])


class ProblemVectorEnv(VectorEnv):
    """N copies of a problem in one ``gymnasium.vector.VectorEnv`` that restarts a copy in the step in which it ends.

    In that step the observation is the first of the new episode; the last one of the old is ``infos["final_obs"][i]``.

    :param problem: the problem
    :param num_envs: N
    :param max_episode_steps: a further time limit, as ``gymnasium.make_vec`` may ask for one
    :param render_mode: as for :class:`ProblemEnv`
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self, problem: Problem, num_envs: int = 1, max_episode_steps: int | None = None, render_mode: str | None = None
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: at least one environment is needed")
        self.problem, self.num_envs, self.render_mode = problem, num_envs, render_mode
        self.single_observation_space, self.single_action_space = problem.observation_space, problem.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._simulation = Simulation(problem, num_envs, max_episode_steps)

    @property
    def state(self) -> Array:
        """A copy of the states ``(N, ...)``, in full precision."""
        return self._simulation.states.copy()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Restart every copy.

        :param seed: copy i is seeded ``seed + i``, or ``seed[i]``; None goes on with the generators that there are
        :param options: ``{"state": states}``, to start from given states ``(N, ...)``
        """
        seeds = _seed_of_each(seed, self.num_envs)
        super().reset(seed=seeds[0])
        if seed is not None or not self._simulation.generators:
            self._simulation.seed([seeding.np_random(one)[0] for one in seeds])
        self._simulation.restart(self._simulation.everyone)
        if options and "state" in options:
            self._simulation.place(options["state"])
        return self._simulation.observations(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        rewards, terminated, truncated = self._simulation.advance(actions)
        observations = self._simulation.observations()
        done = terminated | truncated
        if not done.any():
            return observations, rewards, terminated, truncated, {}
        final = np.full(self.num_envs, None, dtype=object)
        ended = np.flatnonzero(done)
        for slot in ended:
            final[slot] = observations[slot]
        self._simulation.restart(ended)
        infos = {"final_obs": final, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}
        return self._simulation.observations(), rewards, terminated, truncated, infos

    def render(self) -> Any:
        """The observation of each copy as bars."""
        return tuple(bars(observation) for observation in self._simulation.observations())


def _seed_of_each(seed: int | Sequence[int | None] | None, n_envs: int) -> list[int | None]:
    if seed is None:
        return [None] * n_envs
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + i for i in range(n_envs)]
    if len(seed) != n_envs:
        raise ValueError(f"seed={seed!r} has {len(seed)} entries; one for each of the {n_envs} environments is needed")
    return [None if one is None else int(one) for one in seed]


def bars(observation: Array, height: int = 96, width: int = 24) -> Array:
    """A picture of numbers ``(height, *, 3)``: one bar each, up for positive, down for negative, squashed by tanh."""
    values = np.tanh(np.atleast_1d(observation).astype(np.float64))
    level = np.linspace(1, -1, height)[:, None]
    inside = (level * values > 0) & (np.abs(level) <= np.abs(values))
    picture = np.where(np.repeat(inside, width, axis=1)[..., None], [204, 77, 77], [255, 255, 255])
    picture[height // 2] = 0
    return picture.astype(np.uint8)
