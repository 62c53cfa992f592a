"""What every on-policy algorithm owes to its base class beyond the contract suite."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_pg_ext import get, keys, make
from sb3_pg_ext.experiments.cli import main

OWN = [key for key in ("reinforce", "npg", "qac", "ispg", "rwr", "ppo_penalty") if key in keys()]


class Matrix(gym.Env):
    """Actions of shape (2, 2); the reward is highest at 0."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-2, 3, (2, 2), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        assert action.shape == (2, 2)
        self.t += 1
        return np.zeros(3, np.float32), -float(np.square(action).sum()), self.t == 5, False, {}


@pytest.mark.parametrize("key", OWN)
def test_actions_may_have_any_shape(key: str) -> None:
    model = make(key, Matrix, n_envs=2, seed=0, n_steps=16).learn(64)
    assert model.predict(np.zeros(3, np.float32))[0].shape == (2, 2)
    assert model._n_updates > 0


@pytest.mark.parametrize("baseline", ["mean", "optimal", None])
def test_actions_may_have_any_shape_with_every_baseline(baseline: str | None) -> None:
    assert make("reinforce", Matrix, n_envs=2, n_steps=16, baseline=baseline).learn(64)._n_updates > 0


@pytest.mark.parametrize("key", OWN)
def test_schedule_never_sees_progress_below_zero(key: str) -> None:
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 1e-3 * progress

    model = make(key, Matrix, seed=0, n_steps=16, learning_rate=schedule).learn(50)
    assert model.num_timesteps > 50
    assert min(seen) == 0.0


@pytest.mark.parametrize("key", [key for key in OWN if get(key).cls.whole_episodes])
def test_a_monitor_that_forbids_early_resets_is_named(key: str) -> None:
    """Slots that are ahead of the others idle, and must be reset in mid-episode."""

    class Uneven(Matrix):
        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, self.t == self.np_random.integers(3, 9) or self.t > 8, False, info

    def model(**kwargs):
        return make(key, DummyVecEnv([lambda: Monitor(Uneven(), **kwargs)] * 3), n_steps=16, seed=0)

    with pytest.raises(RuntimeError, match="before done") as error:
        model(allow_early_resets=False).learn(200)
    assert "resets environments in mid-episode: they need Monitor(env, allow_early_resets=True)" in str(
        error.value.__notes__
    )
    model().learn(200)


def test_other_errors_of_a_reset_say_nothing_of_monitors() -> None:
    class Broken(Matrix):
        def reset(self, *, seed=None, options=None):
            raise RuntimeError("stuck")

    with pytest.raises(RuntimeError, match="stuck") as error:
        make("reinforce", DummyVecEnv([lambda: Monitor(Broken())] * 3)).learn(10)
    assert "Monitor" not in str(error.value.__notes__)


def test_a_file_in_the_place_of_the_folder_is_one_clear_line(tmp_path, capsys) -> None:
    (tmp_path / "taken").touch()
    words = ["compare", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "100", "-f", str(tmp_path / "taken")]
    assert main(words) == 2
    assert "taken" in capsys.readouterr().err
