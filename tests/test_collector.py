"""Collection: which episodes count, what is stored of them, and when the rest of Stable-Baselines3 hears of it."""

import hashlib
from collections import deque
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.bases.on_policy import OnPolicyBase
from sb3_pg_ext.rollout import collector
from sb3_pg_ext.rollout.collector import EpisodeQueue, whole_number_of_steps
from sb3_pg_ext.rollout.direct_step import stepper
from sb3_pg_ext.rollout.episodes import Steps, whole_episodes, window
from sb3_pg_ext.rollout.vector_env import as_vec_env

CPU = th.device("cpu")
OBSERVATIONS = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "box64": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "discrete": spaces.Discrete(1000),
    "multi_binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"x": spaces.Box(-9, 9, (2,), np.float32), "k": spaces.Discrete(5)}),
}


class Walk(gym.Env):
    """Random observations, rewards, lengths and endings. It remembers its episodes: the truth to compare with."""

    def __init__(self, observation="box", lengths=(1, 2, 3, 7), p_cut=0.5, action=None):
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = action or spaces.Discrete(3)
        self.lengths, self.p_cut = lengths, p_cut
        self.episodes, self.n_resets = [], 0

    def _observe(self):
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_resets += 1
        self.left = int(self.np_random.choice(self.lengths))
        self.obs = self._observe()
        self.episodes.append({"obs": [self.obs], "actions": [], "rewards": [], "cut": False, "over": False})
        return self.obs, {"born": self.n_resets}

    def step(self, action):
        self.left -= 1
        over = self.left == 0
        cut = over and self.np_random.random() < self.p_cut
        obs, reward = self._observe(), float(self.np_random.normal())
        episode = self.episodes[-1]
        episode["obs"].append(obs)
        episode["actions"].append(deepcopy(action))
        episode["rewards"].append(reward)
        episode.update(cut=cut, over=over)
        info = {"left": self.left, "deep": {"x": np.arange(2) * self.left}, "is_success": over and not cut}
        truncated = cut or (over and self.np_random.random() < 0.5)  # some are over for both reasons
        return obs, reward, over and not cut, truncated, info


class Windowed(OnPolicyBase):
    """Exactly ``n_steps`` steps per env; learns nothing."""

    def __init__(self, policy, env, learning_rate=1e-3, n_steps=4, **common):
        super().__init__(policy, env, learning_rate, n_steps=n_steps, **common)

    def update(self, rollout):
        self.seen = [*getattr(self, "seen", []), rollout]


def walks(n, seed=0, **kwargs):
    env = DummyVecEnv([lambda: Walk(**kwargs)] * n)
    env.seed(seed)
    return env


def reinforce(env, cls=REINFORCE, **kwargs):
    multi = isinstance(env.observation_space, spaces.Dict)
    return cls("MultiInputPolicy" if multi else "MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [4]}, **kwargs)


# --- which episodes count ---
# Statistical bounds are 4 standard errors: a correct collector misses one with probability 6e-5 over the choice of its
# seed, which is fixed.

SHORT, LONG = 1, 50  # equally probable; the return of an episode is whether it is long, so the exact mean is 1/2
ROLLOUTS = 600


def simulate(n_envs, finished, generator):
    """Run slots of random lengths until ``finished(dones)``; (slot, start, stop) of all episodes that ended, and T."""
    left = np.where(generator.random(n_envs) < 0.5, SHORT, LONG)
    start, ended, t = np.zeros(n_envs, int), [], 0
    while True:
        t += 1
        left -= 1
        dones = left == 0
        for slot in np.flatnonzero(dones).tolist():
            ended.append((slot, int(start[slot]), t))
            start[slot], left[slot] = t, SHORT if generator.random() < 0.5 else LONG
        if finished(dones):
            return ended, t


def returns(bounds):
    return np.array([stop - start == LONG for _, start, stop in bounds], float)


def standard_errors(values, expected):
    """How many standard errors the mean of independent ``values`` lies from ``expected``."""
    values = np.asarray(values)
    return (values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize(
    ("n_envs", "n_steps", "n_episodes"),
    [
        *((n, 1, m) for n, m in [(1, 1), (1, 3), (4, 2), (4, 4), (4, 9)]),
        *((n, t, None) for n in (1, 4) for t in (1, 70)),
    ],
)
def test_no_length_is_over_represented(n_envs, n_steps, n_episodes):
    """E[sum of (R - E R)] = 0 over the episodes that count: for a fixed number of them, the mean of R is unbiased."""
    generator = np.random.default_rng(1)
    sums, naive = [], []
    for _ in range(ROLLOUTS):
        queue = EpisodeQueue(n_envs, n_steps, n_episodes)
        ended, _ = simulate(n_envs, queue, generator)
        assert set(queue.bounds) <= set(ended)
        assert n_episodes is None or len(queue.bounds) == max(n_episodes, n_envs)
        sums.append((returns(queue.bounds) - 0.5).sum())
        # What is finished after a number of steps: the bias that this test must be able to see.
        ended, _ = simulate(n_envs, whole_number_of_steps(LONG + 10), generator)
        naive.append((returns(ended) - 0.5).sum())
    assert abs(standard_errors(sums, 0)) < 4
    assert standard_errors(naive, 0) < -6


@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 1), (1, 30), (3, 1), (3, 30)])
def test_by_steps_every_episode_that_was_begun_is_finished(n_envs, n_steps):
    generator = np.random.default_rng(3)
    for _ in range(50):
        queue = EpisodeQueue(n_envs, n_steps, None)
        simulate(n_envs, queue, generator)
        for slot in range(n_envs):
            starts, stops = zip(*sorted((a, b) for s, a, b in queue.bounds if s == slot), strict=True)
            assert starts == (0, *stops[:-1])  # one after the other, without a gap
            assert starts[-1] < n_steps <= stops[-1]


@pytest.mark.parametrize(("n_envs", "least", "expected"), [(1, 1, 1), (1, 2, 2), (1, 5, 5), (4, 2, 4), (4, 6, 6)])
def test_at_least_so_many_episodes_are_completed(n_envs, least, expected):
    queue = EpisodeQueue(n_envs, 1, None, least)
    simulate(n_envs, queue, np.random.default_rng(4))
    assert len(queue.bounds) == expected


def test_least_does_not_add_to_what_the_steps_demand():
    queue = EpisodeQueue(1, 5, None, least=2)
    assert [queue(np.array([True])) for _ in range(5)] == [False] * 4 + [True]


def test_a_slot_that_has_nothing_left_to_do_is_not_counted_again():
    queue = EpisodeQueue(2, 1, 2)
    assert not queue(np.array([True, False]))
    assert not queue(np.array([True, False]))
    assert queue(np.array([True, True]))
    assert queue.bounds == [(0, 0, 1), (1, 0, 3)]


def test_a_fixed_number_of_steps_is_exactly_that():
    finished = whole_number_of_steps(3)
    assert [finished(np.array([True])) for _ in range(3)] == [False, False, True]


# --- an episode that does not end ---


@pytest.fixture
def _long_episode(monkeypatch):
    monkeypatch.setattr(collector, "LONG_EPISODE", 100)


def error_of(queue, ends):
    """(step, message) of the error that the queue raises, None if it finishes; ``ends(t)`` are the dones of step t."""
    for t in range(1, 2000):
        try:
            if queue(np.array(ends(t))):
                return None
        except RuntimeError as error:
            return t, str(error)
    raise AssertionError("it waits for ever")


@pytest.mark.usefixtures("_long_episode")
@pytest.mark.parametrize("n_episodes", [None, 2, 50])
@pytest.mark.parametrize(("budget", "longest"), [(0, 100), (299, 100), (600, 200)])
def test_an_episode_that_does_not_end_is_an_error(budget, longest, n_episodes):
    queue = EpisodeQueue(3, 1, n_episodes, budget=budget)
    step, message = error_of(queue, lambda t: [t % 30 == 0, False, t % 7 == 0])
    assert step == longest + 1
    assert f"env 1 has not ended within {longest + 1} steps" in message
    assert "TimeLimit" in message


@pytest.mark.usefixtures("_long_episode")
def test_the_length_is_that_of_the_episode_not_of_the_rollout():
    step, _ = error_of(EpisodeQueue(2, 1, 500), lambda t: [t % 90 == 0, t in (5, 50)])
    assert step == 50 + 101
    assert error_of(EpisodeQueue(2, 1000, None), lambda t: [t % 90 == 0, t % 100 == 0]) is None


@pytest.mark.usefixtures("_long_episode")
def test_an_idle_slot_may_go_on_for_ever():
    assert error_of(EpisodeQueue(2, 150, None), lambda t: [t % 80 == 0, t == 155]) is not None
    assert error_of(EpisodeQueue(2, 80, None), lambda t: [t == 81, t in (70, 165)]) is None


# --- what a rollout holds ---


def expected_bounds(lengths, n_steps, n_episodes):
    """(slot, start, stop) of the episodes that count, in the order in which they end; ``lengths[slot]`` of all."""
    n_envs, queues, bounds, t = len(lengths), [deque(each) for each in lengths], [], 0
    running, begun = {slot: (0, queues[slot].popleft()) for slot in range(n_envs)}, n_envs
    while running:
        t += 1
        for slot in range(n_envs):
            if slot in running and sum(running[slot]) == t:
                bounds.append((slot, running.pop(slot)[0], t))
                if (begun < n_episodes) if n_episodes else (t < n_steps):
                    running[slot], begun = (t, queues[slot].popleft()), begun + 1
    return bounds


def part(obs, key):
    return obs[key] if isinstance(obs, dict) else obs


def keys_of(rollout):
    return list(rollout.observations) if isinstance(rollout.observations, dict) else [""]


def check_equal(stored, observations, key):
    """The part ``key`` of ``observations``, one after the other, is in ``stored``."""
    seen = np.stack([part(obs, key) for obs in observations])
    np.testing.assert_array_equal(stored, seen.astype(stored.dtype))


def check_columns(rollout, episodes, clip):
    """Every field of ``rollout`` against the episodes that the envs have recorded, column by column."""
    lengths = [len(episode["rewards"]) for episode in episodes]
    longest, b = max(lengths), 0
    for name in ("rewards", "live", "continues", "cut"):
        assert getattr(rollout, name).shape == (longest, len(episodes))
    keys = keys_of(rollout)
    for column, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        time = np.arange(longest)
        rewards = np.zeros(longest, np.float32)
        rewards[:length] = episode["rewards"]
        np.testing.assert_array_equal(rollout.rewards[:, column], rewards)
        np.testing.assert_array_equal(rollout.live[:, column], time < length)
        np.testing.assert_array_equal(rollout.continues[:, column], time < length - 1)
        np.testing.assert_array_equal(rollout.cut[:, column], (time == length - 1) & episode["cut"])
        for key in keys:
            check_equal(part(rollout.observations, key)[b : b + length].numpy(), episode["obs"][:-1], key)
        done = np.stack(episode["actions"])
        np.testing.assert_array_equal(clip(rollout.actions[b : b + length].numpy()), done)
        b += length
    assert len(rollout.actions) == b
    terminal = [episode["obs"][-1] for episode in episodes if episode["cut"]]
    for key in keys if terminal else []:
        check_equal(part(rollout.cut_observations, key), terminal, key)
    assert terminal or rollout.cut_observations is None
    return len(terminal)


class AtRolloutStart(BaseCallback):
    """How many episodes each env has begun before the one that it is in when a rollout starts."""

    def _on_rollout_start(self):
        self.before = [len(env.episodes) - 1 for env in self.training_env.envs]

    def _on_step(self):
        return True


@pytest.mark.parametrize("options", [{"n_steps": 25}, {"n_episodes": 2}, {"n_episodes": 17}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_whole_episodes_are_what_the_envs_went_through(observation, n_envs, options):
    box = spaces.Box(-0.5, 0.5, (2,), np.float32)
    env = walks(n_envs, observation=observation, action=box if observation == "box" else None)
    model = reinforce(env, **options)
    _, callback = model._setup_learn(10**6, AtRolloutStart())
    n_cut = 0
    for _ in range(4):
        before = model.num_timesteps
        assert model.collect_rollouts(env, callback)
        begun = [one.episodes[first:] for one, first in zip(env.envs, callback.before, strict=True)]
        lengths = [[len(e["rewards"]) if e["over"] else 10**9 for e in each] for each in begun]
        bounds = expected_bounds(lengths, model.n_steps, model.n_episodes)
        order = {slot: iter(each) for slot, each in enumerate(begun)}
        episodes = [next(order[slot]) for slot, _, _ in bounds]
        if observation == "box":
            assert (model.rollout.actions.abs() > 0.5).any()  # kept as sampled, clipped for the env only
        n_cut += check_columns(model.rollout, episodes, lambda a: a.clip(-0.5, 0.5) if observation == "box" else a)
        assert model.rollout.collected == max(stop for *_, stop in bounds) * n_envs == model.num_timesteps - before
    assert n_cut > 0


def steps_of(env):
    """(obs, action, reward, next obs, ends, was cut) of each step that ``env`` has made."""
    for episode in env.episodes:
        last = len(episode["rewards"]) - 1
        for t, (action, reward) in enumerate(zip(episode["actions"], episode["rewards"], strict=True)):
            ends = episode["over"] and t == last
            yield episode["obs"][t], action, reward, episode["obs"][t + 1], ends, ends and episode["cut"]


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_windows_are_what_the_envs_went_through(observation):
    """An episode goes on from one window to the next; what is unfinished is cut, and its next observation kept."""
    env = walks(3, observation=observation)
    model = reinforce(env, Windowed, n_steps=10)
    model.learn(5 * 30)
    truth = [list(steps_of(one)) for one in env.envs]
    seen = {"cut": 0, "ended": 0, "unfinished": 0}
    for i, rollout in enumerate(model.seen):
        after = []
        for slot in range(3):
            obs, actions, rewards, next_obs, ends, cuts = zip(*truth[slot][i * 10 : (i + 1) * 10], strict=True)
            ends, cuts, flat = np.array(ends), np.array(cuts), slice(slot * 10, (slot + 1) * 10)
            seen["cut"] += cuts.sum()
            seen["ended"] += (ends & ~cuts).sum()
            seen["unfinished"] += not ends[-1]
            cuts[-1] |= not ends[-1]
            np.testing.assert_array_equal(rollout.rewards[:, slot], np.float32(rewards))
            np.testing.assert_array_equal(rollout.continues[:, slot], ~ends & (np.arange(10) < 9))
            np.testing.assert_array_equal(rollout.cut[:, slot], cuts)
            np.testing.assert_array_equal(rollout.actions[flat], actions)
            for key in keys_of(rollout):
                check_equal(part(rollout.observations, key)[flat].numpy(), obs, key)
            after += [next_obs[t] for t in np.flatnonzero(cuts)]
        for key in keys_of(rollout):
            check_equal(part(rollout.cut_observations, key), after, key)
        assert rollout.live.all()
        assert rollout.collected == 30
    assert len(model.seen) == 5
    assert min(seen.values()) > 3
    assert all(one.n_resets == len(one.episodes) for one in env.envs)
    assert all(episode["over"] for one in env.envs for episode in one.episodes[:-1])  # never reset in between


class Reuses(gym.Env):
    """Writes everything into the same array and the same dict."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.buffer, self.info = np.zeros(1, np.float32), {}

    def reset(self, *, seed=None, options=None):
        self.buffer[:] = -7
        return self.buffer, {}

    def step(self, action):
        self.buffer += 1
        self.info["x"] = float(self.buffer[0])
        return self.buffer, 1.0, False, bool(self.buffer[0] == -4), self.info


def test_terminal_observations_survive_an_env_that_reuses_its_array():
    model = reinforce(DummyVecEnv([Reuses]), n_steps=6)
    model.learn(6)
    np.testing.assert_array_equal(model.rollout.observations[:, 0], [-7, -6, -5] * 2)
    np.testing.assert_array_equal(model.rollout.cut_observations, [[-4], [-4]])


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("lengths", [(3,), (1, 2, 3, 7)], ids=["equal lengths", "any lengths"])
def test_envs_are_reset_only_in_mid_episode(lengths, n_envs):
    env = walks(n_envs, lengths=lengths)
    model = reinforce(env, n_steps=6)
    _, callback = model._setup_learn(10**6, AtRolloutStart())
    resets_between = []
    for _ in range(6):
        in_mid_episode = not np.all(model._last_episode_starts)
        before = sum(one.n_resets - sum(e["over"] for e in one.episodes) for one in env.envs)
        assert model.collect_rollouts(env, callback)
        after = sum(one.n_resets - sum(e["over"] for e in one.episodes) for one in env.envs)
        assert after - before == (n_envs if in_mid_episode else 0)  # beside those that follow the end of an episode
        resets_between.append(in_mid_episode)
    assert any(resets_between) == (n_envs > 1 and len(lengths) > 1)
    assert not all(resets_between)


# --- storage ---


def filled(t=9, n=3, capacity=1, dtype=np.float32, seed=0):
    """Steps with random content, and the lists that they were filled from."""
    generator = np.random.default_rng(seed)
    steps = Steps(OBSERVATIONS["box"], spaces.Discrete(5), n, capacity, dtype)
    log = []
    for _ in range(t):
        row = (
            generator.normal(size=(n, 3)).astype(dtype),
            generator.integers(5, size=n),
            generator.normal(size=n).astype(dtype),
            generator.random(n) < 0.3,
        )
        log.append(row)
        steps.add(*row)
    return steps, [np.stack(column) for column in zip(*log, strict=True)]


@pytest.mark.parametrize("capacity", [1, 2, 8, 9, 100])
def test_steps_grow_without_losing_anything(capacity):
    steps, (obs, actions, rewards, dones) = filled(capacity=capacity)
    assert steps.size == 9
    np.testing.assert_array_equal(steps.observations_at(slice(None)), obs)
    for stored, given in ((steps.actions, actions), (steps.rewards, rewards), (steps.dones, dones)):
        np.testing.assert_array_equal(stored[:9], given)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_stored_as_the_policy_computes(dtype):
    steps, (obs, _, rewards, _) = filled(dtype=dtype)
    rollout = window(steps, obs[-1], CPU)
    assert rollout.observations.dtype == rollout.rewards.dtype == rollout.continues.dtype
    assert rollout.rewards.numpy().dtype == dtype
    np.testing.assert_array_equal(rollout.rewards, rewards)


@pytest.mark.parametrize("shape", ["episodes", "window"])
def test_pad_and_flatten_are_inverse(shape):
    steps, (obs, *_) = filled()
    if shape == "window":
        rollout = window(steps, obs[-1], CPU)
    else:
        steps.cut_observations = {(4, 1): obs[4, 1], (6, 0): obs[6, 0]}
        rollout = whole_episodes(steps, [(1, 2, 5), (0, 0, 2), (0, 2, 7), (2, 3, 9)], CPU)
        assert rollout.live.sum(0).tolist() == [3, 2, 5, 6]
    n_live = int(rollout.live.sum())
    flat = th.arange(1.0, n_live + 1)
    padded = rollout.pad(flat)
    assert padded.shape == rollout.live.shape
    th.testing.assert_close(rollout.flatten(padded), flat)
    assert (padded[~rollout.live] == 0).all()
    assert (padded[rollout.live] > 0).all()
    th.testing.assert_close(rollout.pad(rollout.flatten(rollout.rewards)), rollout.rewards)

    n_cut = int(rollout.cut.sum())
    assert n_cut == len(rollout.cut_observations) > 1
    placed = rollout.pad_cut(th.arange(1.0, n_cut + 1))
    assert ((placed > 0) == rollout.cut).all()
    # The k-th value belongs to the k-th cut observation, and that to this very place.
    for k, observation in enumerate(rollout.cut_observations):
        (step,), (column,) = th.where(placed == k + 1)
        if shape == "episodes":
            slot, _, stop = [(1, 2, 5), (0, 0, 2), (0, 2, 7), (2, 3, 9)][column]
            np.testing.assert_array_equal(observation, obs[stop - 1, slot])
        else:
            assert step == 8
            np.testing.assert_array_equal(observation, obs[-1][column])


def test_a_rollout_without_a_complete_episode_is_refused():
    with pytest.raises(ValueError, match="no complete episode"):
        whole_episodes(filled()[0], [], CPU)


@pytest.mark.parametrize("truncated", [True, False])
def test_only_a_time_limit_leaves_the_future_open(truncated):
    steps, _ = filled(1)
    steps.add_cut(1, {"TimeLimit.truncated": truncated, "terminal_observation": np.ones(3)})
    assert list(steps.cut_observations) == ([(0, 1)] if truncated else [])


def test_a_kept_observation_is_a_copy():
    steps, _ = filled(1)
    observation = np.ones(3)
    steps.add_cut(0, {"TimeLimit.truncated": True, "terminal_observation": observation})
    observation[:] = 5
    np.testing.assert_array_equal(steps.cut_observations[0, 0], np.ones(3))


# --- stepping a DummyVecEnv directly ---


def check_same(a, b):
    """Equal, of the same type, all the way down."""
    assert type(a) is type(b) or (isinstance(a, dict) and isinstance(b, dict))
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            check_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            check_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def without_time(infos):
    return [{**info, "episode": {**info["episode"], "t": 0}} if "episode" in info else info for info in infos]


def cheetah():
    pytest.importorskip("mujoco")
    return gym.make("HalfCheetah-v5", max_episode_steps=20)


ENVS = {
    **{name: lambda name=name: Walk(name) for name in OBSERVATIONS},
    "monitored": lambda: Monitor(Walk("dict"), info_keywords=("left",)),
    "cartpole": lambda: Monitor(gym.make("CartPole-v1", max_episode_steps=30)),
    "pendulum": lambda: gym.make("Pendulum-v1", max_episode_steps=25),
    "cheetah": cheetah,
}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ENVS)
def test_direct_steps_are_those_of_a_dummy_vec_env(name, n_envs):
    ours, theirs = (DummyVecEnv([ENVS[name]] * n_envs) for _ in range(2))
    for env in (ours, theirs):
        env.seed(3)
        env.action_space.seed(4)
    check_same(ours.reset(), theirs.reset())
    step = stepper(ours)
    assert step != ours.step
    n_done = n_cut = 0
    for _ in range(160):
        actions = np.stack([ours.action_space.sample() for _ in range(n_envs)])
        (*mine, infos), (*expected, their_infos) = step(actions), theirs.step(actions)
        check_same(mine, expected)
        check_same(without_time(infos), without_time(their_infos))
        check_same(ours.reset_infos, theirs.reset_infos)
        n_done += expected[2].sum()
        n_cut += sum(info["TimeLimit.truncated"] for info in infos)
    assert n_done > 4
    assert n_cut > 0 or name == "cartpole"


def test_direct_steps_give_arrays_and_infos_of_their_own():
    env = DummyVecEnv([lambda: Walk("dict", lengths=(2,))] * 2)
    env.seed(0)
    env.reset()
    step = stepper(env)
    kept = [step(np.zeros(2, int)) for _ in range(4)]
    copies = deepcopy(kept)
    for _ in range(4):
        step(np.zeros(2, int))
    for a, b in zip(kept, copies, strict=True):
        check_same(a, b)
    reuses = DummyVecEnv([Reuses])
    reuses.reset()
    step_again = stepper(reuses)
    infos = [step_again(np.zeros(1, int))[3][0] for _ in range(4)]
    assert [info["x"] for info in infos] == [-6, -5, -4, -6]
    assert ["terminal_observation" in info for info in infos] == [False, False, True, False]
    kept[0][3][0]["mine"] = 1
    assert "mine" not in step(np.zeros(2, int))[3][0]


class OwnStep(DummyVecEnv):
    def step_wait(self):
        return super().step_wait()


def test_wrappers_and_subclasses_keep_their_own_step():
    for env in (
        VecMonitor(DummyVecEnv([Walk])),
        VecNormalize(DummyVecEnv([Walk])),
        OwnStep([Walk]),
        VecNormalize(as_vec_env("CartPole-v1", n_envs=2, vec_env="native")),
    ):
        assert stepper(env) == env.step
        env.close()
    plain = DummyVecEnv([Walk])
    assert stepper(plain) != plain.step


# --- what callbacks see ---


class Events(BaseCallback):
    """Every call in order, and whether to stop at the n-th step, with which answer."""

    def __init__(self, stop_at=None, answer=False):
        super().__init__()
        self.events, self.stop_at, self.answer = [], stop_at, answer

    def _on_training_start(self):
        self.events.append("training starts")

    def _on_rollout_start(self):
        self.events.append("rollout starts")

    def _on_step(self):
        self.events.append(("step", self.num_timesteps, self.model.num_timesteps))
        for name in ("new_obs", "rewards", "dones", "infos", "actions", "env"):
            assert name in self.locals
        assert len(self.locals["infos"]) == len(self.locals["rewards"]) == self.training_env.num_envs
        np.testing.assert_array_equal(self.locals["rewards"], self.training_env.last_rewards)
        self.events.append(len(self.model.ep_info_buffer))  # an episode that ends now is not in it yet
        return self.answer if self.n_calls == self.stop_at else True

    def _on_rollout_end(self):
        self.events.append("rollout ends")

    def _on_training_end(self):
        self.events.append("training ends")


class Remembers(DummyVecEnv):
    def step_wait(self):
        step = super().step_wait()
        self.last_rewards = step[1]
        return step


def fingerprint(model):
    """SHA-256 of all parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.policy.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_callbacks_are_called_as_by_stable_baselines3(n_envs):
    """With episodes of 5 steps and ``n_steps=5`` both collect the same rollouts."""
    events = []
    for cls, options in ((REINFORCE, {}), (A2C, {"normalize_advantage": True})):
        callback = Events()
        model = reinforce(Remembers([lambda: Monitor(Walk(lengths=(5,)))] * n_envs), cls, n_steps=5, **options)
        model.learn(4 * 5 * n_envs, callback)
        assert callback.n_calls * n_envs == model.num_timesteps == 20 * n_envs
        events.append(callback.events)
    assert events[0] == events[1]
    assert events[0][2] == ("step", n_envs, n_envs)
    assert events[0].count(n_envs) == 5  # calls between the ends of the first and of the second episodes


@pytest.mark.parametrize("cls", [REINFORCE, Windowed])
@pytest.mark.parametrize("answer", [False, np.False_, 0, None, th.tensor(False)], ids=repr)
@pytest.mark.parametrize("stop_at", [1, 7])
def test_any_falsy_answer_stops_at_once(stop_at, answer, cls):
    model = reinforce(Remembers([lambda: Walk(lengths=(5,))] * 2), cls, n_steps=5)
    before = fingerprint(model)
    callback = Events(stop_at, answer)
    model.learn(1000, callback)
    assert callback.n_calls == stop_at
    assert model.num_timesteps == 2 * stop_at
    assert callback.events[-3:] == [("step", 2 * stop_at, 2 * stop_at), 0, "training ends"]
    assert callback.events.count("rollout ends") == (stop_at > 5)
    if stop_at < 5:
        assert fingerprint(model) == before
    model.learn(20, reset_num_timesteps=False)  # in mid-episode: it begins afresh
    assert model.num_timesteps >= 2 * stop_at + 20


def test_a_limit_on_episodes_stops_at_the_exact_step():
    model = reinforce(DummyVecEnv([lambda: Monitor(Walk(lengths=(5,)))] * 2), n_steps=100)
    model.learn(10_000, StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps == 2 * 5 * 3


def test_statistics_of_every_episode_are_kept():
    env = DummyVecEnv([lambda: Monitor(Walk(lengths=(5,), p_cut=0.5))] * 2)
    env.seed(0)
    model = reinforce(env, n_steps=20, stats_window_size=6)
    model.learn(2 * 20 * 2)
    assert [info["l"] for info in model.ep_info_buffer] == [5] * 6
    episodes = [one.unwrapped.episodes[:8] for one in env.envs]
    last = [episodes[slot][k] for k in range(8) for slot in range(2)][-6:]
    np.testing.assert_allclose(
        [info["r"] for info in model.ep_info_buffer], [sum(e["rewards"]) for e in last], atol=1e-5
    )
    assert list(model.ep_success_buffer) == [not e["cut"] for e in last]
    assert len(set(model.ep_success_buffer)) == 2


@pytest.mark.parametrize(("sde_sample_freq", "expected"), [(-1, 1), (1, 11), (4, 4)])
def test_exploration_matrices_are_drawn_as_often_as_asked_for(monkeypatch, sde_sample_freq, expected):
    env = walks(2, lengths=(10,), action=spaces.Box(-1, 1, (2,), np.float32))
    model = reinforce(env, Windowed, n_steps=10, use_sde=True, sde_sample_freq=sde_sample_freq)
    drawn = []
    reset_noise = model.policy.reset_noise
    monkeypatch.setattr(model.policy, "reset_noise", lambda n: drawn.append(n) or reset_noise(n))
    model.learn(20)
    assert drawn == [2] * expected  # once when the rollout starts, and then at steps 0, freq, 2 freq, ...


# --- the same seed, the same parameters ---


def trained(env, seed=7, **kwargs):
    model = reinforce_seeded(env, seed, **kwargs)
    before = fingerprint(model)
    model.learn(60 * env.num_envs)
    env.close()
    assert fingerprint(model) != before
    return fingerprint(model)


def reinforce_seeded(env, seed, **kwargs):
    policy_kwargs = {"net_arch": [8]}
    return REINFORCE("MlpPolicy", env, n_steps=15, seed=seed, policy_kwargs=policy_kwargs, device="cpu", **kwargs)


def forked(functions):
    return SubprocVecEnv(functions, start_method="fork")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("options", [{"baseline": "value"}, {"baseline": "mean", "n_episodes": 6}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=["discrete", "box"])
def test_the_same_seed_gives_the_same_parameters(action, n_envs, options):
    functions = [lambda: Monitor(Walk(action=action))] * n_envs
    first = trained(DummyVecEnv(functions), **options)
    assert trained(DummyVecEnv(functions), **options) == first
    assert trained(forked(functions), **options) == first
    assert trained(DummyVecEnv(functions), seed=8, **options) != first


@pytest.mark.parametrize("n_envs", [1, 4])
def test_native_environments_repeat_themselves(n_envs):
    first, again = (trained(as_vec_env("CartPole-v1", n_envs=n_envs, vec_env="native")) for _ in range(2))
    assert first == again
    assert trained(as_vec_env("CartPole-v1", n_envs=n_envs, vec_env="native"), seed=8) != first


def test_the_ids_environments_repeat_themselves():
    assert len({trained(make_vec_env("CartPole-v1", 3)) for _ in range(2)}) == 1
