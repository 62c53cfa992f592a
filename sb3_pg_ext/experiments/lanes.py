"""Environments that are stepped together until each has run its share of the episodes of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

MAX_LANES = 25


class EvaluationLanes(DummyVecEnv):
    """A ``DummyVecEnv`` whose environments rest when they are done, and whose infos are not copied.

    ``evaluate_policy`` gives environment i of n its share of the episodes beforehand, ``(n_episodes + i) // n``, so
    that short ones do not count more often than long ones; what an environment does after its share is thrown away.
    Here it does nothing. A resting environment repeats its last observation, with reward 0.

    :param env_fns: n functions that make the environments, each with a ``Monitor``
    :param n_episodes: episodes of an evaluation, which begins with a reset
    """

    def __init__(self, env_fns: Any, n_episodes: int):
        super().__init__(env_fns)
        self.n_episodes = n_episodes

    def reset(self) -> Any:
        self._left = [(self.n_episodes + lane) // self.num_envs for lane in range(self.num_envs)]
        return super().reset()

    def step_wait(self) -> Any:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        rewards, dones = np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=bool)
        for lane, left in enumerate(self._left):
            if left:
                rewards[lane], dones[lane], infos[lane] = self._step(lane)
        return self._obs_from_buf(), rewards, dones, infos

    def _step(self, lane: int) -> tuple[float, bool, dict[str, Any]]:
        env = self.envs[lane]
        observation, reward, terminated, truncated, info = env.step(self.actions[lane])
        done = terminated or truncated
        if done:
            info["terminal_observation"] = observation
            self._left[lane] -= "episode" in info  # a lost life is the end of an episode to some wrappers only
            if self._left[lane]:
                observation, self.reset_infos[lane] = env.reset()
        self._save_obs(lane, observation)
        return float(reward), done, info
