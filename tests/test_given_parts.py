"""What users give in place of a learned model is held against the first rollout: wrong content, missing gradients."""

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_pg_ext.algorithms.mbpg import MBPG
from sb3_pg_ext.algorithms.svg1 import SVG1
from sb3_pg_ext.algorithms.svg_inf import SVGInf
from sb3_pg_ext.envs.lqr import LQRVectorEnv

CLASSES = [MBPG, SVG1, SVGInf]


class Cart(gym.Env):
    """x' = x + 0.1 v, v' = v + 0.2 a + noise; the reward is -x'^2; it ends where |x'| > 0.5, or after 20 steps.

    :param noise: standard deviation
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, noise=0.0):
        self.noise = noise

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.state = 0, self.np_random.normal(0, [0.3, 1.0])
        return self.state, {}

    def step(self, action):
        x, v = self.state
        self.time += 1
        self.state = np.array([x + 0.1 * v, v + 0.2 * action[0] + self.noise * self.np_random.normal()])
        x = self.state[0]
        return self.state, float(-(x**2)), bool(abs(x) > 0.5), self.time == 20, {}


def dynamics(obs, action, gain=0.2):
    return th.stack([obs[:, 0] + 0.1 * obs[:, 1], obs[:, 1] + gain * action[:, 0]], 1)


def reward(obs, action, following):
    return -(following[:, 0] ** 2)


def end(obs, action, following):
    return following[:, 0].abs() > 0.5


def trained(cls=MBPG, steps=64, env=None, **hooks):
    quick = {} if cls is SVGInf else {"gradient_steps": 1}
    model = cls(
        "MlpPolicy", env or Cart(), n_steps=64, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **quick, **hooks
    )
    return model.learn(steps)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_truth_is_no_warning(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(cls, dynamics=dynamics, reward_fn=reward, termination_fn=end)


WRONG = {
    "sign of the action": ("dynamics", lambda s, a: dynamics(s, -a), "in entry 1 "),
    "length of the step": ("dynamics", lambda s, a: 2 * dynamics(s, a) - s, "in entry "),
    "a change in place of the next state": ("dynamics", lambda s, a: dynamics(s, a) - s, "in entry "),
    "sign of the reward": ("reward_fn", lambda s, a, t: t[:, 0] ** 2, "where rewards vary by"),
    "offset of the reward": ("reward_fn", lambda s, a, t: 1 - t[:, 0] ** 2, "where rewards vary by"),
    "constant reward": ("reward_fn", lambda s, a, t: th.ones(len(s)), "where rewards vary by"),
    "no end": ("termination_fn", lambda s, a, t: th.zeros(len(s)), "expects 0 ends, there were"),
    "end turned round": ("termination_fn", lambda s, a, t: ~end(s, a, t), "expects "),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_is_one_warning_with_its_size(cls, case):
    name, function, words = WRONG[case]
    with pytest.warns(UserWarning, match="is off by") as caught:
        trained(cls, 200, **{name: function})
    (message,) = [str(w.message) for w in caught if "is off by" in str(w.message)]
    assert re.search(rf"{name} is off by [\d.e-]+.*{words}", message)


def test_the_size_of_the_error_is_right():
    with pytest.warns(UserWarning, match=r"off by 0\.4 in entry 1"):
        trained(dynamics=lambda s, a: dynamics(s, a) + th.tensor([0.0, 0.4]))


def test_noise_of_a_function_is_spoken_of():
    with pytest.warns(UserWarning, match="Unless the environment is that noisy"):
        trained(env=Cart(noise=1.0), dynamics=dynamics)


def noisy_regulator():
    settings = {"preset": None, "A": np.eye(2), "B": np.ones((2, 1)), "Q": np.eye(2), "R": np.eye(1)}
    return LQRVectorEnv(2, **settings, noise_std=2 * np.eye(2))


def test_noise_that_known_equations_have_is_no_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(env=noisy_regulator(), dynamics=noisy_regulator())
    with pytest.warns(UserWarning, match="dynamics is off by"):  # a function says nothing of it
        trained(env=noisy_regulator(), dynamics=lambda s, a: s + a)


def test_probabilities_of_ends_are_no_error():
    """Right on average, never right in one step."""

    class Fragile(Cart):
        def step(self, action):
            obs, reward, _, truncated, info = super().step(action)
            return obs, reward, bool(self.np_random.random() < 0.2), truncated, info

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(env=Fragile(), termination_fn=lambda s, a, t: th.full((len(s),), 0.2))
    with pytest.warns(UserWarning, match="termination_fn is off by"):
        trained(env=Fragile(), termination_fn=lambda s, a, t: th.full((len(s),), 0.9))


DETACHED = {
    "detached": ("dynamics", lambda s, a: dynamics(s, a).detach(), "observations and the actions"),
    "in the actions": ("dynamics", lambda s, a: dynamics(s, a.detach()), "on the actions but"),
    "in the observations": ("dynamics", lambda s, a: dynamics(s.detach(), a), "on the observations but"),
    "by numpy": ("dynamics", lambda s, a: th.from_numpy(dynamics(s, a).detach().numpy()), "without detach"),
    "reward": ("reward_fn", lambda s, a, t: reward(s, a, t).detach(), "on the next observations but"),
    "sparse": ("reward_fn", lambda s, a, t: (t[:, 0].abs() < 0.1).float(), "on the next observations but"),
}


@pytest.mark.filterwarnings("ignore:.*is off by")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("case", DETACHED)
def test_a_result_without_gradient_is_refused(cls, case):
    name, function, words = DETACHED[case]
    with pytest.raises(ValueError, match=f"{name} gave a tensor.*{words}") as error:
        trained(cls, **{name: function})
    assert name in error.value.__notes__[-1]


@pytest.mark.parametrize(
    "hooks",
    [
        {"reward_fn": lambda s, a, t: th.ones(len(s))},
        {"reward_fn": lambda s, a, t: -(a[:, 0] ** 2) + (t[:, 0] > 0)},
        {"dynamics": lambda s, a: 2 * s},
        {"termination_fn": end},
    ],
    ids=["constant", "with a jump", "not ours to move", "an end"],
)
@pytest.mark.filterwarnings("ignore:.*is off by")
def test_what_needs_no_gradient_may_do_without(hooks):
    trained(SVGInf, **hooks)


def test_an_error_in_a_function_says_in_which():
    with pytest.raises(RuntimeError, match="numpy") as error:
        trained(dynamics=lambda s, a: th.from_numpy(dynamics(s, a).numpy()))
    assert "first call of dynamics" in error.value.__notes__[-1]


def test_a_loaded_model_is_compared_anew(tmp_path):
    model = trained(dynamics=dynamics)
    model.save(tmp_path / "model")
    loaded = MBPG.load(tmp_path / "model", Cart(), dynamics=lambda s, a: dynamics(s, -a), device="cpu")
    with pytest.warns(UserWarning, match="dynamics is off by"):
        loaded.learn(64)


def test_looking_on_changes_nothing(monkeypatch):
    weights = []
    for parts in ("checked", "unchecked"):
        if parts == "unchecked":
            monkeypatch.setattr(MBPG, "_parts_checked", True)
        model = trained(env=noisy_regulator(), dynamics=noisy_regulator())
        weights.append(th.nn.utils.parameters_to_vector(model.policy.parameters()))
    th.testing.assert_close(*weights, rtol=0, atol=0)
