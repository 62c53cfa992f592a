"""Contract: Stable-Baselines3's wrappers of vectorised environments, gymnasium's own, and changes of environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_pg_ext.testing.base import Contract, needs
from sb3_pg_ext.testing.environments import total_steps
from sb3_pg_ext.testing.measures import all_finite, differences, weights
from sb3_pg_ext.testing.recorders import Locals, log_to_table


class Wrappers(Contract):
    """Environments of every make."""

    def _learns(self, env: Any) -> Any:
        model = self.make(env)
        before = weights(model)
        self.learn(model)
        assert differences(before, weights(model))
        assert all_finite(model)
        return model

    def test_normalised_environments(self, n_envs: int) -> None:
        """The algorithm sees normalised numbers, the log the original returns."""
        env = VecNormalize(self.env(n_envs, reward=100.0))
        model, seen = self.make(env), Locals()
        table = log_to_table(model)
        self.learn(model, callback=seen, log_interval=1)
        assert all_finite(model)
        assert model.get_vec_normalize_env() is env
        assert env.obs_rms.count > model.num_timesteps
        assert table.column("rollout/ep_rew_mean")[-1] == 800.0
        if self.stops_at_step:
            assert max(float(step["rewards"].max()) for step in seen.steps[len(seen.steps) // 2 :]) <= 10.0

    def test_statistics_of_a_normalised_environment_survive(self, tmp_path: Path) -> None:
        env = VecNormalize(self.env(1))
        model = self.trained(env)
        model.save(tmp_path / "model")
        env.save(str(tmp_path / "statistics"))
        again = VecNormalize.load(str(tmp_path / "statistics"), self.env(1))
        loaded = self.spec.cls.load(tmp_path / "model", again, device="cpu")  # type: ignore[attr-defined]
        obs = np.array([[0.1, 0.2, 0.3]])
        np.testing.assert_array_equal(env.normalize_obs(obs), again.normalize_obs(obs))
        self.learn(loaded)
        assert loaded.get_vec_normalize_env() is again

    def test_stacked_frames(self) -> None:
        model = self._learns(VecFrameStack(self.env(1), 2))
        assert model.observation_space.shape == (6,)

    def test_monitored_vectorised_environments(self) -> None:
        model = self._learns(VecMonitor(DummyVecEnv([self.env])))
        assert {episode["l"] for episode in model.ep_info_buffer} == {8}

    @pytest.mark.parametrize("wrapper", [Monitor, gym.wrappers.RecordEpisodeStatistics], ids=lambda w: w.__name__)
    def test_wrapped_environment(self, wrapper: Any) -> None:
        self._learns(wrapper(self.env()))

    @needs("native")
    def test_native_environments(self, n_envs: int) -> None:
        model = self._learns(self.env(n_envs, "native"))
        assert model.n_envs == n_envs
        assert model.num_timesteps == total_steps(model.get_env())
        assert {episode["l"] for episode in model.ep_info_buffer} == {8}

    def test_another_environment_may_be_set(self, n_envs: int) -> None:
        model, env = self.trained(self.env(n_envs)), self.env(n_envs)
        model.set_env(env)
        self.learn(model, reset_num_timesteps=False)
        assert model.get_env() is env
        assert total_steps(env) >= self.steps

    def test_environment_with_other_spaces_is_refused(self) -> None:
        model = self.make()
        with pytest.raises(ValueError, match=r"[Oo]bservation space"):
            model.set_env(self.env(observation="matrix"))

    @needs("stops_at_step")
    def test_environment_is_not_reset_between_two_calls(self) -> None:
        """Only the first call and the ends of episodes reset it, unless the count begins anew."""
        env = self.env()
        model = self.trained(env)
        if getattr(model, "common_seeds", False):
            pytest.skip("with common random numbers every episode begins with a reset of its own")
        self.learn(model, reset_num_timesteps=False)
        assert env.resets == env.episodes + 1
