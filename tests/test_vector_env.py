"""Every vector environment gives the trajectories of a plain ``DummyVecEnv``, in every auto-reset mode."""

import subprocess
import sys
import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from packaging.version import Version
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_pg_ext.rollout import vector_env
from sb3_pg_ext.rollout.autoreset import PARTIAL_RESET
from sb3_pg_ext.rollout.vector_env import VectorEnvAdapter, as_vec_env, register_partial_reset

MODES = list(AutoresetMode)
OBSERVATIONS = {
    "box": spaces.Box(-10, 10, (2, 3), np.float64),
    "discrete": spaces.Discrete(7),
    "multi_binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"x": spaces.Box(-10, 10, (3,), np.float32), "k": spaces.Discrete(5)}),
}
ACTIONS = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
N = 3


class Walk(gym.Env):
    """Random observations, rewards that depend on the action, random endings and infos of every kind."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, observation="box", action="discrete", stop=0.15, render_mode=None):
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.stop = stop
        self.render_mode = render_mode
        self.gain = 1.0
        self.t = 0

    def _observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {"born": int(self.np_random.integers(1000)), "low": (options or {}).get("low", 0)}

    def step(self, action):
        self.t += 1
        info = {
            "t": self.t,
            "half": 0.5 * self.t,
            "name": f"n{self.t}",
            "v": np.arange(3) * self.t,
            "deep": {"t": self.t},
        }
        if self.t % 2:
            info["odd"] = True
        reward = self.gain * (float(np.sum(action)) + 0.1 * self.t)
        return self._observe(), reward, bool(self.np_random.random() < self.stop), False, info

    def render(self):
        return np.full((2, 2, 3), self.t, np.uint8)

    def double(self, x):
        self.gain = x
        return 2 * x


def walk(observation="box", action="discrete", limit=9, monitor=False, **kwargs):
    def make():
        env = TimeLimit(Walk(observation, action, **kwargs), limit)
        return Monitor(env) if monitor else env

    return make


def sync(mode, observation="box", action="discrete", **kwargs):
    return SyncVectorEnv([walk(observation, action)] * N, autoreset_mode=mode, **kwargs)


def dummy(*args, **kwargs):
    return DummyVecEnv([walk(*args, monitor=True, **kwargs)] * N)


def assert_same(ours, theirs, where=""):
    """Equal values, dtypes of arrays, keys; the wall-clock time of an episode is left out."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs.keys() - {"t" if "r" in theirs else None}:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        np.testing.assert_array_equal(ours, theirs, where, strict=isinstance(theirs, np.ndarray))


def assert_same_trajectories(ours, theirs, steps=80, seed=5):
    rng = np.random.default_rng(0)
    ends = 0
    for env in (ours, theirs):
        env.seed(seed)
    assert_same(ours.reset(), theirs.reset(), "reset")
    assert_same(ours.reset_infos, theirs.reset_infos, "reset_infos")
    theirs.action_space.seed(int(rng.integers(1000)))
    for t in range(steps):
        actions = np.stack([theirs.action_space.sample() for _ in range(theirs.num_envs)])
        result, expected = ours.step(actions), theirs.step(actions)
        for name, a, b in zip(("observations", "rewards", "dones", "infos"), result, expected, strict=True):
            assert_same(a, b, f"step {t}: {name}")
        assert_same(ours.reset_infos, theirs.reset_infos, f"step {t}: reset_infos")
        ends += expected[2].sum()
    assert ends > 5 * theirs.num_envs
    ours.close()


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_sync_vector_env_gives_the_trajectories_of_dummy_vec_env(mode, observation):
    assert_same_trajectories(VectorEnvAdapter(sync(mode, observation)), dummy(observation))


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_arrive_as_they_are(action):
    assert_same_trajectories(VectorEnvAdapter(sync(AutoresetMode.NEXT_STEP, action=action)), dummy(action=action))


@pytest.mark.parametrize("mode", MODES)
def test_async_vector_env_gives_the_trajectories_of_dummy_vec_env(mode):
    env = AsyncVectorEnv([walk("dict")] * N, autoreset_mode=mode)
    assert_same_trajectories(VectorEnvAdapter(env), dummy("dict"))


def test_async_vector_env_without_shared_memory():
    env = AsyncVectorEnv([walk()] * N, autoreset_mode=AutoresetMode.SAME_STEP, shared_memory=False)
    assert_same_trajectories(VectorEnvAdapter(env), dummy())


@pytest.mark.parametrize("observation", ["box", "dict"])
@pytest.mark.parametrize("mode", MODES)
def test_observations_stay_when_the_environment_reuses_its_arrays(mode, observation):
    env = VectorEnvAdapter(sync(mode, observation, copy=False))
    env.seed(0)
    held = [env.reset()]
    before = [{k: v.copy() for k, v in held[0].items()} if observation == "dict" else held[0].copy()]
    for _ in range(20):
        observations, _, _, infos = env.step(np.zeros(N))
        held += [observations, *(info["terminal_observation"] for info in infos if "terminal_observation" in info)]
        before += [
            {k: np.copy(v) for k, v in o.items()} if observation == "dict" else o.copy() for o in held[len(before) :]
        ]
    assert_same(held, before)
    assert_same_trajectories(VectorEnvAdapter(sync(mode, observation, copy=False)), dummy(observation))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keeper", ["monitor", "single", "vector"])
def test_statistics_that_the_environment_keeps_are_not_counted_twice(mode, keeper):
    inner = {
        "monitor": walk(monitor=True),
        "single": lambda: gym.wrappers.RecordEpisodeStatistics(walk()()),
        "vector": walk(),
    }[keeper]
    env = SyncVectorEnv([inner] * N, autoreset_mode=mode)
    if keeper == "vector":
        if mode is AutoresetMode.SAME_STEP and Version(gym.__version__) < Version("1.4"):
            pytest.skip("before gymnasium 1.4 its RecordEpisodeStatistics does not count the first step of an episode")
        # Its statistics are of other rewards than those the adapter sees: they must be the ones that arrive.
        env = vector_wrappers.TransformReward(vector_wrappers.RecordEpisodeStatistics(env), lambda r: 100 + r)
    adapter, reference = VectorEnvAdapter(env), dummy()
    seen = []
    for venv in (adapter, reference):
        venv.seed(3)
        venv.reset()
        rng = np.random.default_rng(1)
        steps = [venv.step(rng.integers(3, size=N))[3] for _ in range(60)]
        seen.append(
            [
                (t, i, info["episode"])
                for t, infos in enumerate(steps)
                for i, info in enumerate(infos)
                if "episode" in info
            ]
        )
    assert len(seen[1]) > 10
    for (t, i, ours), (t_, i_, theirs) in zip(*seen, strict=True):
        assert (t, i, ours["l"]) == (t_, i_, theirs["l"])
        assert ours["r"] == pytest.approx(theirs["r"], abs=2e-6)
        assert [type(ours[k]) for k in ("r", "l", "t")] == [float, int, float]


def test_an_end_in_the_last_step_is_not_a_time_out():
    for mode in MODES:
        env = VectorEnvAdapter(SyncVectorEnv([walk(limit=1, stop=stop) for stop in (0.0, 1.0)], autoreset_mode=mode))
        env.reset()
        _, _, dones, infos = env.step(np.zeros(2))
        assert dones.all()
        assert [info["TimeLimit.truncated"] for info in infos] == [True, False]


def test_infos_are_separate_dicts():
    env = VectorEnvAdapter(sync(AutoresetMode.SAME_STEP))
    env.reset()
    steps = [env.step(np.zeros(N))[3] for _ in range(30)]
    assert len({id(info) for infos in steps for info in infos}) == 30 * N
    assert len({id(info["v"].base if info["v"].base is not None else info["v"]) for info in steps[-1]}) == N
    assert len({id(info) for info in env.reset_infos}) == N


def test_the_seed_is_used_once():
    env = VectorEnvAdapter(gym.make_vec("CartPole-v1", 4))
    assert env.seed(7) == [7, 8, 9, 10]
    first, second = env.reset(), env.reset()
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)
    assert not np.array_equal(first, second)


def test_the_seed_may_be_a_numpy_integer():
    ours, theirs = VectorEnvAdapter(sync(AutoresetMode.SAME_STEP)), dummy()
    ours.seed(np.int64(3))
    theirs.seed(3)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())


def test_options_are_used_once():
    env = VectorEnvAdapter(sync(AutoresetMode.NEXT_STEP))
    env.set_options({"low": -0.03})
    env.reset()
    assert [info["low"] for info in env.reset_infos] == [-0.03] * N
    env.reset()
    assert [info["low"] for info in env.reset_infos] == [0] * N


def test_options_of_the_native_cart_pole():
    env = VectorEnvAdapter(native(2))
    env.seed(0)
    env.set_options({"low": -0.03, "high": -0.02})
    first = env.reset()
    assert ((first > -0.03) & (first < -0.02)).all()
    assert (env.reset() > 0).any()


# -- the native CartPole ----------------------------------------------------------------------------------------------


def falls(observations):
    return (np.abs(observations[..., 0]) > 2.4) | (np.abs(observations[..., 2]) > 12 * 2 * np.pi / 360)


def assert_no_phantom_step(env, steps=150, limit=500):
    """Every transition is CartPole's own, from the observation before, by the action given."""
    model = gym.make("CartPole-v1").unwrapped
    model.reset(seed=0)
    rng = np.random.default_rng(2)
    observations, lengths, ends = env.reset(), np.zeros(env.num_envs, int), 0
    for _ in range(steps):
        actions = rng.integers(2, size=env.num_envs)
        new, rewards, dones, infos = env.step(actions)
        lengths += 1
        assert (rewards == 1).all()
        for i, done in enumerate(dones):
            model.state, model.steps_beyond_terminated = observations[i], None
            expected, _, terminated, _, _ = model.step(actions[i])
            actual = infos[i]["terminal_observation"] if done else new[i]
            np.testing.assert_allclose(actual, expected, atol=1e-5)
            assert (
                ("terminal_observation" in infos[i])
                == ("episode" in infos[i])
                == done
                == (terminated or lengths[i] == limit)
            )
            assert infos[i]["TimeLimit.truncated"] == (done and not terminated)
            if done:
                assert falls(actual) == terminated
                assert np.abs(new[i]).max() <= 0.05
                assert (infos[i]["episode"]["r"], infos[i]["episode"]["l"]) == (lengths[i], lengths[i])
                lengths[i], ends = 0, ends + 1
        observations = new
    assert ends > 10


def native(n, **kwargs):
    return gym.make_vec("CartPole-v1", n, vectorization_mode="vector_entry_point", **kwargs)


@pytest.mark.parametrize("limit", [500, 12])
def test_native_cart_pole_has_no_phantom_step(limit):
    env = VectorEnvAdapter(native(8, max_episode_steps=limit))
    env.seed(0)
    assert_no_phantom_step(env, limit=limit)


def test_native_cart_pole_below_a_wrapper_has_no_phantom_step():
    wrapped = vector_wrappers.TransformObservation(native(4), lambda x: 2 * x)
    env = VectorEnvAdapter(vector_wrappers.TransformObservation(wrapped, lambda x: x / 2))
    env.seed(0)
    assert_no_phantom_step(env)


def test_native_cart_pole_reaches_its_time_limit():
    env = VectorEnvAdapter(native(4, max_episode_steps=5))
    env.reset()
    for t in range(1, 16):
        _, _, dones, infos = env.step(np.full(4, t % 2))
        assert (dones == (t % 5 == 0)).all()
        assert all(info["TimeLimit.truncated"] is (t % 5 == 0) for info in infos)


def test_native_cart_poles_are_reset_to_the_states_of_the_late_reset():
    raw, env = native(6), VectorEnvAdapter(native(6))
    raw.reset(seed=3)
    env.seed(3)
    env.reset()
    dones, actions, rng = np.zeros(6, bool), np.ones(6, int), np.random.default_rng(0)
    while not dones.any():
        actions = rng.integers(2, size=6)
        observations, _, dones, _ = env.step(actions)
        raw.step(actions)
    assert not dones.all()
    late, rewards, *_ = raw.step(actions)
    np.testing.assert_array_equal(rewards, ~dones)
    np.testing.assert_array_equal(observations[dones], late[dones])


def test_native_cart_pole_takes_any_kind_of_action_array():
    env = VectorEnvAdapter(native(2))
    results = []
    for actions in (np.array([0, 1]), np.array([[0.0], [1.0]], np.float32), [0, 1]):
        env.seed(0)
        env.reset()
        results.append(env.step(actions)[0])
    np.testing.assert_array_equal(results[1:], [results[0]] * 2)


def real_steps(env, actions, steps):
    """Per slot, what a ``NEXT_STEP`` environment gives for its k-th real step under ``actions[k, i]``."""
    env_steps = [[] for _ in range(env.num_envs)]
    observations, ended = env.reset()[0], np.zeros(env.num_envs, bool)
    for i in range(env.num_envs):
        env_steps[i].append(("first", observations[i]))
    while min(map(len, env_steps)) < steps:
        k = [sum(kind == "step" for kind, _ in s) for s in env_steps]
        now = np.stack([actions[k[i] % len(actions), i] for i in range(env.num_envs)])
        observations, _, terminations, truncations, _ = env.step(now)
        for i in range(env.num_envs):
            env_steps[i].append(("first" if ended[i] else "step", observations[i]))
        ended = terminations | truncations
    return [s[:steps] for s in env_steps]


def adapted_steps(env, actions, steps):
    env_steps = [[("first", o)] for o in env.reset()]
    for k in range(steps):
        observations, _, dones, infos = env.step(actions[k % len(actions)])
        for i in range(env.num_envs):
            if dones[i]:
                env_steps[i].append(("step", infos[i]["terminal_observation"]))
            env_steps[i].append(("first" if dones[i] else "step", observations[i]))
    return [s[:steps] for s in env_steps]


def assert_same_but_for_the_phantom(adapted, raw, action_space, steps=120):
    """What the raw environment does one step late, the adapter does at once; nothing else differs."""
    action_space.seed(1)
    actions = np.array([[action_space.sample() for _ in range(adapted.num_envs)] for _ in range(steps)])
    ours, theirs = adapted_steps(adapted, actions, steps), real_steps(raw, actions, steps)
    for mine, other in zip(ours, theirs, strict=True):
        assert [kind for kind, _ in mine] == [kind for kind, _ in other]
        assert sum(kind == "first" for kind, _ in mine) > 3
        np.testing.assert_array_equal([o for _, o in mine], [o for _, o in other])


def test_native_cart_pole_resets_as_its_next_step_would():
    raw, env = native(1), VectorEnvAdapter(native(1))
    raw.reset(seed=4)
    env.seed(4)
    env.reset()
    assert_same_but_for_the_phantom(env, raw, spaces.Discrete(2))


# -- environments that other people wrote ------------------------------------------------------------------------------


class Clock(VectorEnv):
    """Counts to ``limits[i]`` and reuses its arrays; resets one step late."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, limits=(2, 3), observation=None, action=None):
        self.num_envs = len(limits)
        self.limits = np.array(limits)
        self.single_observation_space = observation or spaces.Box(0, 9, (1,))
        self.single_action_space = action or spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.time = np.zeros((self.num_envs, 1))  # float64, although the space is float32
        self.final = np.zeros((self.num_envs, 1), np.float32)
        self.level = 3

    def reset(self, *, seed=None, options=None):
        self.time[:] = 0
        return self.time, {}

    def step(self, actions):
        self.time += 1
        return (
            self.time,
            np.full(self.num_envs, 0.1),
            self.time[:, 0] >= self.limits,
            np.zeros(self.num_envs, bool),
            {
                "level": self.level,
                "clock": self.time[:, 0],
            },
        )

    def step_and_reset(self, actions):
        observations, rewards, terminations, truncations, _ = Clock.step(self, actions)
        self.final[terminations] = self.time[terminations]
        self.time[terminations] = 0
        return observations, rewards, terminations, truncations, {"final_obs": self.final, "level": self.level}

    def above(self, x):
        return self.level > x


@pytest.fixture
def clock_reset():
    def reset(env, mask):
        env.time[mask] = 0
        return env.time

    register_partial_reset(Clock, reset)
    yield
    del PARTIAL_RESET[Clock]


def test_a_registered_partial_reset_is_used(clock_reset):
    env = VectorEnvAdapter(Clock())
    times, terminals = [env.reset()[:, 0].tolist()], []
    for _ in range(6):
        observations, rewards, _, infos = env.step(np.zeros(2))
        times.append(observations[:, 0].tolist())
        terminals.append([info.get("terminal_observation", [None])[0] for info in infos])
        assert (rewards.dtype, observations.dtype) == (np.float32, np.float32)
        assert [type(info["level"]) for info in infos] == [int, int]
    assert times == [[0, 0], [1, 1], [0, 2], [1, 0], [0, 1], [1, 2], [0, 0]]
    assert terminals == [[None, None], [2, None], [None, 3], [2, None], [None, None], [2, 3]]
    assert infos[1]["episode"]["l"] == 3
    assert infos[1]["episode"]["r"] == 0.3
    assert infos[0]["clock"] == 2.0


def test_same_step_with_arrays_of_final_observations():
    env = Clock()
    env.metadata, env.step = {"autoreset_mode": AutoresetMode.SAME_STEP}, env.step_and_reset
    adapter = VectorEnvAdapter(env)
    adapter.reset()
    times, terminals = [], []
    for _ in range(6):
        observations, _, _, infos = adapter.step(np.zeros(2))
        times.append(observations[:, 0].tolist())
        terminals.append([info.get("terminal_observation") for info in infos])
        assert [info["level"] for info in infos] == [3, 3]
    env.final[:] = -1
    assert times == [[1, 1], [0, 2], [1, 0], [0, 1], [1, 2], [0, 0]]
    assert terminals == [[None, None], [2, None], [None, 3], [2, None], [None, None], [2, 3]]


def test_a_reset_in_mid_episode_starts_the_statistics_again(clock_reset):
    env = VectorEnvAdapter(Clock())
    env.reset()
    env.step(np.zeros(2))
    env.reset()
    env.step(np.zeros(2))
    _, _, dones, infos = env.step(np.zeros(2))
    assert dones.tolist() == [True, False]
    assert (infos[0]["episode"]["r"], infos[0]["episode"]["l"]) == (0.2, 2)


def test_next_step_without_a_way_to_reset_is_refused():
    with pytest.raises(ValueError, match=r"(?s)Clock.*NEXT_STEP.*SAME_STEP.*register_partial_reset\(Clock"):
        VectorEnvAdapter(Clock())
    with pytest.raises(ValueError, match=r"shared_memory=False.*NEXT_STEP"):
        VectorEnvAdapter(env := AsyncVectorEnv([walk()], shared_memory=False))
    env.close()


def test_register_partial_reset_refuses_nonsense():
    with pytest.raises(TypeError, match=r"cls=.*VectorEnv"):
        register_partial_reset(gym.Env, lambda env, mask: None)
    with pytest.raises(TypeError, match="function=3"):
        register_partial_reset(Clock, 3)
    assert set(PARTIAL_RESET) == {CartPoleVectorEnv}


@pytest.mark.parametrize("mode", [None, "sometimes"])
def test_unknown_autoreset_mode_is_refused(mode):
    env = Clock()
    env.metadata = {"autoreset_mode": mode} if mode else {}
    with pytest.raises(ValueError, match=r"autoreset_mode.*NEXT_STEP, SAME_STEP, DISABLED"):
        VectorEnvAdapter(env)


def test_autoreset_mode_may_be_its_text():
    env = sync(AutoresetMode.SAME_STEP)
    env.metadata["autoreset_mode"] = "SameStep"
    assert_same_trajectories(VectorEnvAdapter(env), dummy())


@pytest.mark.parametrize(
    ("spaces_of_env", "message"),
    [
        ({"observation": spaces.Tuple([spaces.Discrete(2)])}, r"observation space Tuple.*Box, Discrete"),
        ({"observation": spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2)))}, r"observation space Dict.*not nested"),
        ({"observation": spaces.Text(3)}, "observation space Text"),
        ({"action": spaces.Tuple([spaces.Discrete(2)])}, r"action space Tuple.*Box, Discrete"),
    ],
)
def test_unsupported_spaces_are_refused(clock_reset, spaces_of_env, message):
    with pytest.raises(TypeError, match=message):
        VectorEnvAdapter(Clock(**spaces_of_env))


@pytest.mark.parametrize(
    ("wrapper", "advice"),
    [
        (vector_wrappers.NormalizeObservation, "VecNormalize"),
        (vector_wrappers.NormalizeReward, "VecNormalize"),
        (vector_wrappers.DictInfoToList, "list of dicts"),
    ],
)
def test_wrappers_that_cannot_work_are_refused(wrapper, advice):
    with pytest.raises(TypeError, match=f"{wrapper.__name__}.*{advice}"):
        VectorEnvAdapter(wrapper(sync(AutoresetMode.NEXT_STEP)))


@pytest.mark.parametrize("culprit", ["observations", "rewards", "terminations", "truncations"])
def test_wrong_shapes_are_refused(culprit):
    class Wrong(SyncVectorEnv):
        def step(self, actions):
            results = list(super().step(actions))
            k = ["observations", "rewards", "terminations", "truncations"].index(culprit)
            results[k] = results[k][..., None]
            return tuple(results)

    env = VectorEnvAdapter(Wrong([walk()] * N))
    env.reset()
    with pytest.raises(ValueError, match=f"returned {culprit} of shape"):
        env.step(np.zeros(N))


def test_same_step_without_final_observations_is_refused():
    env = Clock()
    env.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    adapter = VectorEnvAdapter(env)
    adapter.reset()
    adapter.step(np.zeros(2))
    with pytest.raises(ValueError, match="final_obs"):
        adapter.step(np.zeros(2))


def test_options_that_cannot_work_are_refused():
    env = VectorEnvAdapter(sync(AutoresetMode.NEXT_STEP))
    for options in ([{"low": 1}, {}, {}], {"reset_mask": np.ones(N, bool)}):
        with pytest.raises(ValueError, match="the same for all slots"):
            env.set_options(options)
    env.reset()


def test_only_vector_envs_are_adapted():
    with pytest.raises(TypeError, match=r"of type Walk.*VectorEnv"):
        VectorEnvAdapter(Walk())


# -- attributes, methods, rendering ------------------------------------------------------------------------------------


def test_attributes_and_methods_in_process():
    env = VectorEnvAdapter(SyncVectorEnv([walk(render_mode="rgb_array")] * N))
    assert env.get_attr("gain") == [1.0] * N
    env.set_attr("gain", [1, 2], indices=[0, 2])
    assert env.get_attr("gain") == [[1, 2], 1.0, [1, 2]]
    assert env.env_method("double", 4, indices=1) == [8]
    assert env.get_attr("gain", 1) == [4]
    assert env.get_attr("unwrapped")[0].gain == [1, 2]
    assert not env.has_attr("nonsense")
    assert env.env_is_wrapped(TimeLimit) == [True] * N
    assert env.env_is_wrapped(Monitor, [0]) == [True]
    assert env.env_is_wrapped(gym.wrappers.ClipAction) == [False] * N
    assert (env.render_mode, env.metadata) == ("rgb_array", {"render_modes": ["rgb_array"], "render_fps": 7})
    env.reset()
    assert [image.max() for image in env.get_images()] == [0] * N
    assert env.render().shape == (4, 4, 3)


def test_attributes_and_methods_in_workers():
    env = VectorEnvAdapter(AsyncVectorEnv([lambda: gym.wrappers.ClipReward(walk()(), -5, 5)] * 2))
    try:
        assert not env.has_attr("nonsense")
        with pytest.raises(AttributeError, match="nonsense"):
            env.env_method("nonsense")
        with pytest.raises(AttributeError, match="reset"):
            env.env_method("reset")
        assert env.env_method("double", 4) == [8, 8]
        env.set_attr("gain", [1, 2])
        assert env.get_attr("gain", [1]) == [[1, 2]]
        with pytest.raises(ValueError, match=r"set_attr\('gain'\) with indices=\[0\].*all 2"):
            env.set_attr("gain", 3, indices=0)
        assert env.env_is_wrapped(gym.wrappers.ClipReward) == [True, True]
        assert env.env_is_wrapped(gym.wrappers.ClipAction) == [False, False]
        env.reset()
    finally:
        env.close()


def test_attributes_and_methods_of_native_environments(clock_reset):
    env = VectorEnvAdapter(vector_wrappers.ClipReward(Clock(), -1, 1))
    assert env.get_attr("level", [0]) == [3]
    env.set_attr("level", 5)
    env.set_attr("fresh", 1)
    assert (env.get_attr("level"), env.get_attr("fresh", 1)) == ([5, 5], [1])
    assert env.env_method("above", 4) == [True, True]
    assert not env.has_attr("nonsense")
    with pytest.raises(ValueError, match="all 2"):
        env.env_method("above", 4, indices=[0])
    assert env.env_is_wrapped(vector_wrappers.ClipReward) == [True, True]
    assert env.env_is_wrapped(TimeLimit, 0) == [False]
    with pytest.warns(UserWarning, match="gives no images"):
        assert env.get_images() == [None, None]


# -- as_vec_env --------------------------------------------------------------------------------------------------------


def test_as_vec_env_accepts_what_people_have():
    built = as_vec_env("CartPole-v1")
    assert isinstance(built, DummyVecEnv)
    assert built.num_envs == 1
    assert as_vec_env(built, n_envs=1) is built
    normalized = VecNormalize(built)
    assert as_vec_env(normalized) is normalized
    copies = as_vec_env("CartPole-v1", n_envs=3)
    assert copies.num_envs == 3
    assert copies.env_is_wrapped(Monitor) == [True] * 3
    adapted = as_vec_env("CartPole-v1", n_envs=5, vec_env="native")
    assert isinstance(adapted, VectorEnvAdapter)
    assert adapted.num_envs == 5
    assert isinstance(adapted.env.unwrapped, CartPoleVectorEnv)
    assert as_vec_env(adapted, n_envs=5) is adapted
    assert as_vec_env(walk(), n_envs=2).num_envs == 2
    assert isinstance(as_vec_env(Walk), DummyVecEnv)
    assert isinstance(as_vec_env(lambda: sync(AutoresetMode.SAME_STEP)), VectorEnvAdapter)
    single = Monitor(Walk())
    assert as_vec_env(single).envs[0] is single
    assert as_vec_env(Walk()).env_is_wrapped(Monitor) == [True]


def test_as_vec_env_in_processes():
    env = as_vec_env(walk(), n_envs=2, vec_env="subproc", seed=1)
    try:
        assert isinstance(env, SubprocVecEnv)
        np.testing.assert_array_equal(env.reset(), as_vec_env(walk(), n_envs=2, seed=1).reset())
    finally:
        env.close()


@pytest.mark.parametrize("vec_env", ["dummy", "native"])
def test_as_vec_env_seeds(vec_env):
    first, again, other = (as_vec_env("CartPole-v1", n_envs=2, seed=s, vec_env=vec_env).reset() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    existing = as_vec_env("CartPole-v1", n_envs=2, vec_env=vec_env)
    np.testing.assert_array_equal(as_vec_env(existing, seed=1).reset(), first)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"env": 3}, TypeError, r"env=3 of type int.*environment id.*VectorEnv.*EnvPool.*VecEnv"),
        ({"env": None}, TypeError, "of type NoneType"),
        ({"env": lambda: None}, TypeError, "of type NoneType"),
        ({"env": "CartPole-v1", "vec_env": "ray"}, ValueError, r"vec_env='ray'.*'dummy', 'subproc', 'native'"),
        ({"env": "CartPole-v1", "n_envs": 0}, ValueError, "n_envs=0"),
        ({"env": "Pendulum-v1", "vec_env": "native"}, ValueError, "'Pendulum-v1' has no vector_entry_point"),
        ({"env": walk(), "vec_env": "native"}, ValueError, "needs an environment id"),
        ({"env": Walk(), "vec_env": "subproc"}, ValueError, "a Walk exists"),
        ({"env": Walk(), "n_envs": 2}, ValueError, "n_envs=2, but the Walk has 1"),
        ({"env": DummyVecEnv([walk()]), "n_envs": 2}, ValueError, "n_envs=2, but the DummyVecEnv has 1"),
        ({"env": lambda: sync(AutoresetMode.SAME_STEP), "n_envs": 2}, TypeError, "returned a SyncVectorEnv"),
    ],
)
def test_as_vec_env_says_what_is_allowed(kwargs, error, message):
    with pytest.raises(error, match=message):
        as_vec_env(**kwargs)


# -- Stable-Baselines3 on top ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_on_policy_algorithms_learn(algorithm):
    def parameters():
        env = VectorEnvAdapter(native(4))
        model = algorithm("MlpPolicy", env, n_steps=32, seed=0, device="cpu").learn(256)
        assert model.num_timesteps == 256
        assert len(model.ep_info_buffer) > 3
        return model.policy.parameters_to_vector()

    np.testing.assert_array_equal(parameters(), parameters())


def test_off_policy_algorithms_learn_what_they_learn_on_dummy_vec_env():
    def model(env):
        return DQN(
            "MultiInputPolicy", env, learning_starts=20, train_freq=4, seed=0, device="cpu", buffer_size=500
        ).learn(150)

    ours, theirs = model(as_vec_env(sync(AutoresetMode.NEXT_STEP, "dict"))), model(dummy("dict"))
    for key in ("x", "k"):
        np.testing.assert_array_equal(
            ours.replay_buffer.next_observations[key], theirs.replay_buffer.next_observations[key]
        )
    np.testing.assert_array_equal(ours.replay_buffer.timeouts, theirs.replay_buffer.timeouts)
    np.testing.assert_array_equal(ours.policy.parameters_to_vector(), theirs.policy.parameters_to_vector())


@pytest.mark.parametrize(
    "wrap", [VecNormalize, lambda env: VecFrameStack(env, 3)], ids=["VecNormalize", "VecFrameStack"]
)
def test_vec_env_wrappers_work_on_top(wrap):
    assert_same_trajectories(wrap(VectorEnvAdapter(sync(AutoresetMode.NEXT_STEP))), wrap(dummy()))


def test_vec_monitor_agrees():
    plain = VectorEnvAdapter(native(4))
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor`"):
        monitored = VecMonitor(VectorEnvAdapter(native(4)))
    assert_same_trajectories(monitored, plain, steps=200)


def test_evaluate_policy_does_not_warn():
    env = VectorEnvAdapter(native(2))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, lengths = evaluate_policy(model, env, n_eval_episodes=3, return_episode_rewards=True)
    assert rewards == lengths


# -- EnvPool -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    envpool = pytest.importorskip("envpool", reason="EnvPool is not installed (pip install sb3_pg_ext[envpool])")

    def make(env_id, num_envs=3, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its spaces lower their precision
            made = envpool.make(env_id, **{"env_type": "gymnasium", "num_envs": num_envs, "seed": 1, **kwargs})
            assert made.observation_space is not None
        return made

    return make


def test_envpool_is_not_imported():
    code = "import sys\nfrom sb3_pg_ext.rollout.vector_env import as_vec_env\nas_vec_env('CartPole-v1')\n"
    code += "sys.exit('envpool' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_envpool_cart_pole_has_no_phantom_step(pool):
    assert_no_phantom_step(VectorEnvAdapter(pool("CartPole-v1", 8)), limit=500)
    assert_no_phantom_step(as_vec_env(pool("CartPole-v1", 8, max_episode_steps=8)), limit=8)


@pytest.mark.parametrize(
    ("env_id", "limit"), [("CartPole-v1", 500), ("Pendulum-v1", 10), ("FrozenLake-v1", 100), ("Acrobot-v1", 20)]
)
def test_envpool_resets_as_its_next_step_would(pool, env_id, limit):
    raw, env = (pool(env_id, max_episode_steps=limit) for _ in range(2))
    assert_same_but_for_the_phantom(VectorEnvAdapter(env), raw, raw.action_space)


def test_envpool_dict_observations(pool):
    env = VectorEnvAdapter(pool("CartpoleSwingup-v1", 2, max_episode_steps=4))
    env.reset()
    for t in range(1, 13):
        observations, _, dones, infos = env.step(np.zeros((2, 1)))
        assert {name: part.shape for name, part in observations.items()} == {"position": (2, 3), "velocity": (2, 2)}
        assert (dones == (t % 4 == 0)).all()
        assert ("terminal_observation" in infos[1]) == (t % 4 == 0)
        assert infos[0]["elapsed_step"] == (t - 1) % 4 + 1
    assert env.reset_infos[0]["elapsed_step"] == 0


def test_envpool_seeds_are_those_of_make(pool):
    env = VectorEnvAdapter(pool("CartPole-v1"))
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), pool("CartPole-v1").reset()[0])
    env.seed(2)
    with pytest.warns(UserWarning, match=r"seed=2 is ignored.*seed=1"):
        env.reset()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"batch_size": 2}, ValueError, "batch_size=2 with num_envs=3"),
        ({"env_type": "dm"}, TypeError, "env_type='gymnasium'"),
    ],
)
def test_envpool_modes_that_cannot_work_are_refused(pool, kwargs, error, message):
    if kwargs.get("env_type") == "dm":
        env = __import__("envpool").make("CartPole-v1", num_envs=3, **kwargs)
    else:
        env = pool("CartPole-v1", **kwargs)
    for convert in (as_vec_env, VectorEnvAdapter):
        with pytest.raises(error, match=message):
            convert(env)


def test_envpool_below_a_wrapper_is_refused(pool):
    with pytest.raises(TypeError, match="without wrappers"):
        VectorEnvAdapter(vector_wrappers.ClipReward(pool("CartPole-v1"), -1, 1))


def test_algorithms_learn_on_envpool(pool):
    env = as_vec_env(pool("CartPole-v1", 4, seed=0), n_envs=4)
    model = PPO("MlpPolicy", env, n_steps=32, seed=0, device="cpu").learn(256)
    assert len(model.ep_info_buffer) > 3


def test_everything_public_is_in_one_place():
    assert set(vector_env.__all__) == {"PARTIAL_RESET", "VectorEnvAdapter", "as_vec_env", "register_partial_reset"}
    assert issubclass(VectorEnvAdapter, VecEnv)
