"""Whatever an environment or a user does: it works, or a clear error names the culprit and nothing learned is lost."""

import os
import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.rollout import collector
from sb3_pg_ext.rollout.guards import NonFiniteError, all_finite, check_observations

ACTIONS = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), np.float32)}
BASELINES = ("value", "mean")
LENGTH = 5  # steps of an episode
STEP = 23  # of the bad env: in its fifth episode, when something has been learned already
BAD = 2  # the bad one of four


class Task(gym.Env):
    """Random observations and rewards in episodes of 5 steps, with one fault.

    :param on_step: changes what step() returns, at the ``at``-th step
    :param on_reset: changes what reset() returns, at the ``at``-th reset
    :param reward: changes every reward
    :param obs: changes every observation
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self, action="discrete", *, on_step=None, on_reset=None, at=0, reward=float, obs=np.float32, **more):
        self.action_space = ACTIONS[action] if isinstance(action, str) else action
        self.on_step, self.on_reset, self.at, self.reward, self.obs = on_step, on_reset, at, reward, obs
        self.length, self.ending = more.get("length", LENGTH), more.get("ending", (True, False))
        self.observation_space = more.get("observation_space", self.observation_space)
        self.n_steps = self.n_resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.n_resets = 0, self.n_resets + 1
        result = self.obs(self.np_random.normal(size=4)), {}
        return self.on_reset(*result) if self.on_reset and self.n_resets == self.at else result

    def step(self, action):
        self.t, self.n_steps = self.t + 1, self.n_steps + 1
        obs, reward = self.obs(self.np_random.normal(size=4)), self.reward(self.np_random.normal())
        result = obs, reward, *(self.ending if self.t == self.length else (False, False)), {}
        return self.on_step(*result) if self.on_step and self.n_steps == self.at else result


class Snapshot(BaseCallback):
    """The parameters as they were when the last rollout began."""

    n_rollouts = 0

    def _on_rollout_start(self):
        self.parameters = parameters(self.model)
        self.n_rollouts += 1

    def _on_step(self):
        return True


def parameters(model):
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(th.equal(a[name], b[name]) for name in a)


def finite(model):
    return all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())


def make(env, baseline="value", **kwargs):
    options = {"n_steps": LENGTH, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return REINFORCE(policy, env, baseline=baseline, **(options | kwargs))


def as_given(kind, action="discrete", **fault):
    """A bad env as users hand it over: itself, in a DummyVecEnv, or as one of four."""
    if kind == "raw":
        return Task(action, **fault)
    if kind == "dummy":
        return DummyVecEnv([lambda: Task(action, **fault)])
    return DummyVecEnv([partial(Task, action, **(fault if i == BAD else {})) for i in range(4)])


def full_message(error):
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def check_refused(env, expected, patterns, baseline="value", learned=True, total=1000, **kwargs):
    """learn() raises ``expected``; the parameters are those before the faulty update; with a sound env it goes on."""
    model, snapshot = make(env, baseline, **kwargs), Snapshot()
    fresh = parameters(model)
    with pytest.raises(expected) as caught:
        model.learn(total, snapshot)
    assert caught.type is expected
    for pattern in patterns:
        assert re.search(pattern, full_message(caught.value)), f"{pattern!r} is not in {full_message(caught.value)!r}"
    assert finite(model)
    if learned:
        assert snapshot.n_rollouts > 1
        assert not same(parameters(model), fresh)
        assert same(parameters(model), snapshot.parameters)
    else:
        assert same(parameters(model), fresh)
    model.set_env(
        DummyVecEnv([lambda: Task(model.action_space, observation_space=model.observation_space)] * model.n_envs)
    )
    model.learn(2 * LENGTH * model.n_envs, reset_num_timesteps=False)
    assert finite(model)
    assert not same(parameters(model), fresh)


# --- faults of a step and of a reset ---


def replaced(position, value):
    """A function that puts ``value`` at ``position`` of what it gets."""
    return lambda *result: (*result[:position], value, *result[position + 1 :])


def entry(value):
    """The third entry of an observation."""
    return np.array([0.0, 1.0, value, 2.0])


class BrokenMotor(Exception):
    """What only this environment raises."""


def breaks(*result):
    raise BrokenMotor("the motor is stuck")


OBS, REWARD, TERMINATED, TRUNCATED, INFO = range(5)
INTERFACE = r"reset\(\) must return \(observation, info\), and step\(\)"
# name -> (fault, type of the error, what the message says)
FAULTS = {
    **{f"{v} in obs": (replaced(OBS, entry(v)), NonFiniteError, rf"observation of env {{env}} has {v} at index \[2\] ")
       for v in (np.nan, np.inf, -np.inf)},
    "None in obs": (replaced(OBS, [0.0, None, 1.0, 2.0]), NonFiniteError, r"observation of env {env} has nan at index"),
    "obs None": (replaced(OBS, None), ValueError, r"observation has shape \(\), but .* shape \(4,\): None"),
    "obs (1,)": (replaced(OBS, np.ones(1)), ValueError, r"observation has shape \(1,\), but .* shape \(4,\)"),
    "obs (3,)": (replaced(OBS, np.ones(3)), ValueError, r"observation has shape \(3,\), but .* shape \(4,\)"),
    "obs (1, 4)": (replaced(OBS, np.ones((1, 4))), ValueError, r"observation has shape \(1, 4\), but .* shape \(4,\)"),
    "obs a number": (replaced(OBS, 0.5), ValueError, r"observation has shape \(\), but .* shape \(4,\)"),
    "obs a text": (replaced(OBS, "abc"), ValueError, r"observation has shape \(\), but .* shape \(4,\): 'abc'"),
    "error": (breaks, BrokenMotor, "^the motor is stuck\nRaised by the environment in {call}"),
}  # fmt: skip
STEP_FAULTS = {
    **FAULTS,
    **{f"reward {v}": (replaced(REWARD, v), NonFiniteError, f"reward of env {{env}} is {v} after step")
       for v in (np.nan, np.inf, -np.inf)},
    "reward None": (replaced(REWARD, None), ValueError, r"reward=None from step\(\): a single number is needed"),
    "reward vector": (replaced(REWARD, np.ones(2)), ValueError, r"reward=array\(\[1., 1.\]\) from step\(\): a single"),
    "reward (1,)": (replaced(REWARD, np.ones(1)), ValueError, r"reward=array\(\[1.\]\) from step\(\): a single"),
    "reward list": (replaced(REWARD, [1.0]), ValueError, r"reward=\[1.0\] from step\(\): a single"),
    "reward text": (replaced(REWARD, "12"), ValueError, r"reward='12' from step\(\): a single"),
    "terminated NaN": (replaced(TERMINATED, np.nan), ValueError, r"terminated=nan from step\(\): True or False"),
    "truncated text": (replaced(TRUNCATED, "no"), ValueError, r"truncated='no' from step\(\): True or False"),
    "terminated vector": (replaced(TERMINATED, np.ones(2)), ValueError, "truth value of an array"),
    "info None": (replaced(INFO, None), TypeError, INTERFACE),
    "four values": (lambda *result: result[:4], ValueError, INTERFACE),
    "no tuple": (lambda *result: None, TypeError, INTERFACE),
}  # fmt: skip
RESET_FAULTS = {
    **FAULTS,
    "no info": (lambda obs, info: obs, ValueError, INTERFACE),
    "no tuple": (lambda obs, info: None, TypeError, INTERFACE),
}
# A DummyVecEnv fills its own buffers at the first reset: what it broadcasts or converts there cannot be seen any more.
NOT_SEEN = ("obs (1,)", "obs (1, 4)", "obs a number")
SAID_BY_NUMPY = {
    "obs None": (NonFiniteError, "observation of env {env} has nan at index"),
    "obs (3,)": (ValueError, r"could not broadcast input array from shape \(3,\) into shape \(4,\)"),
    "obs a text": (ValueError, "could not convert string"),
}


@pytest.mark.parametrize(("baseline", "action"), [("value", "discrete"), ("mean", "box")])
@pytest.mark.parametrize("kind", ["raw", "dummy", "four"])
@pytest.mark.parametrize("name", STEP_FAULTS)
def test_a_fault_in_a_step(name, kind, baseline, action):
    fault, expected, pattern = STEP_FAULTS[name]
    env = as_given(kind, action, on_step=fault, at=STEP)
    pattern = pattern.replace("{env}", str(BAD if kind == "four" else 0)).replace("{call}", r"step\(\)")
    step = {"four": 4}.get(kind, 1) * (STEP - (expected is not NonFiniteError))
    check_refused(env, expected, [pattern, rf"after (step )?{step}\b"], baseline)


@pytest.mark.parametrize(("baseline", "action"), [("value", "discrete"), ("mean", "box")])
@pytest.mark.parametrize("kind", ["raw", "dummy", "four"])
@pytest.mark.parametrize("name", RESET_FAULTS)
def test_a_fault_in_a_reset_between_two_episodes(name, kind, baseline, action):
    fault, expected, pattern = RESET_FAULTS[name]
    env = as_given(kind, action, on_reset=fault, at=5)
    pattern = pattern.replace("{env}", str(BAD if kind == "four" else 0)).replace("{call}", r"step\(\)")
    step = {"four": 4}.get(kind, 1) * (20 - (expected is not NonFiniteError))
    check_refused(env, expected, [pattern, rf"after (step )?{step}\b"], baseline)


@pytest.mark.parametrize("kind", ["raw", "dummy", "four"])
@pytest.mark.parametrize("name", RESET_FAULTS)
def test_a_fault_in_the_first_reset(name, kind):
    fault, expected, pattern = RESET_FAULTS[name]
    if kind != "raw":
        expected, pattern = SAID_BY_NUMPY.get(name, (expected, pattern))
    env = as_given(kind, on_reset=fault, at=1)
    pattern = pattern.replace("{env}", str(BAD if kind == "four" else 0)).replace("{call}", r"reset\(\)")
    where = r"after reset\(\) at step 0" if expected is NonFiniteError else r"in reset\(\) after 0 steps"
    if kind == "raw" or name not in NOT_SEEN:
        check_refused(env, expected, [pattern, where], learned=False)


def test_after_a_bad_first_reset_learning_begins_with_another():
    """The bad observation is not kept as the one to go on from."""
    model = make(Task(on_reset=replaced(OBS, entry(np.nan)), at=1))
    with pytest.raises(NonFiniteError, match="after reset"):
        model.learn(10)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 10


def test_a_fault_in_a_reset_between_two_rollouts():
    """Slots that idle at the end of a rollout are reset before the next one."""
    envs = [partial(Task, length=3), partial(Task, length=5, on_reset=breaks, at=2)]
    with pytest.raises(BrokenMotor) as caught:
        make(DummyVecEnv(envs), n_episodes=2).learn(1000)
    assert "in step() after 8 steps" in full_message(caught.value)  # the 2nd reset follows its first episode
    envs = [partial(Task, length=3), partial(Task, length=5, on_reset=breaks, at=3)]
    with pytest.raises(BrokenMotor) as caught:
        make(DummyVecEnv(envs), n_episodes=2).learn(1000)
    assert "in reset() after 10 steps" in full_message(caught.value)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("kind", ["raw", "four"])
def test_a_reward_beyond_float32(kind):
    env = as_given(kind, on_step=replaced(REWARD, 1e39), at=STEP)
    check_refused(env, NonFiniteError, [r"is inf after step \d+.*finite rewards \(in float32\)"])


def test_an_observation_beyond_float32():
    space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    for value in (3.5e38, -1e300):
        env = Task(obs=np.float64, observation_space=space, on_step=replaced(OBS, entry(value)), at=STEP)
        check_refused(env, NonFiniteError, [r"has -?[\d.]+e\+\d+ at index \[2\] after step 23.*\(in float32\)"])


def test_the_part_of_a_dict_is_named():
    space = spaces.Dict({"x": spaces.Box(-9, 9, (4,)), "y": spaces.Box(-9, 9, (2, 2))})
    sound = {"x": np.ones(4, np.float32), "y": np.ones((2, 2), np.float32)}
    bad = {**sound, "y": np.array([[0, 0], [np.inf, 0]])}
    more = {"observation_space": space, "obs": lambda _: sound, "at": STEP}
    for kind in ("raw", "four"):
        env = as_given(kind, on_step=replaced(OBS, bad), **more) if kind == "raw" else None
        env = env or DummyVecEnv(
            [partial(Task, **more, on_step=replaced(OBS, bad) if i == BAD else None) for i in range(4)]
        )
        with pytest.raises(NonFiniteError, match=r"observation\['y'\] of env \d has inf at index \[1, 0\]"):
            make(env).learn(1000)
    env = Task(on_step=replaced(OBS, {**sound, "x": np.ones(1)}), **more)
    with pytest.raises(ValueError, match=r"observation\['x'\] has shape \(1,\), but its space has shape \(4,\)"):
        make(env).learn(1000)


@pytest.mark.parametrize("fault", [replaced(REWARD, np.nan), replaced(OBS, entry(np.nan))])
def test_a_normalising_wrapper_hides_nothing(fault):
    env = VecNormalize(DummyVecEnv([partial(Task, on_step=fault if i == BAD else None, at=STEP) for i in range(4)]))
    model, snapshot = make(env), Snapshot()
    with pytest.raises(NonFiniteError, match=r"has nan|is nan"):
        model.learn(1000, snapshot)
    assert same(parameters(model), snapshot.parameters)


def test_an_env_that_runs_out_of_input_is_no_dead_worker():
    def ends(*result):
        raise EOFError("the recording is over")

    check_refused(Task(on_step=ends, at=STEP), EOFError, ["^the recording is over", r"in step\(\) after 22 steps"])


# --- environments in other processes ---


def dies(*result):
    os._exit(1)


def check_dead_worker(env, where, learned):
    """learn() says that a worker has died; the parameters are those before the faulty update."""
    model, snapshot = make(env), Snapshot()
    fresh = parameters(model)
    try:
        with pytest.raises(RuntimeError) as caught:
            model.learn(1000, snapshot)
    finally:
        for process, remote in zip(env.processes, env.remotes, strict=True):
            process.terminate()
            process.join()
            remote.close()
    assert f"A worker process of SubprocVecEnv died in {where}" in str(caught.value)
    assert "DummyVecEnv" in str(caught.value)
    assert (snapshot.n_rollouts > 1) == learned
    assert same(parameters(model), snapshot.parameters if learned else fresh)
    assert same(parameters(model), fresh) != learned


@pytest.mark.parametrize("fault", [breaks, dies])
@pytest.mark.parametrize(
    ("call", "at", "where"), [("on_step", STEP, "step() after 22 steps"), ("on_reset", 1, "reset() after 0 steps")]
)
def test_a_dead_worker_is_said_to_be_dead(call, at, where, fault, capfd):
    # Forked, it is there at once. A second one would inherit the first one's pipe, and keep it open.
    env = SubprocVecEnv([lambda: Task(**{call: fault}, at=at)], start_method="fork")
    check_dead_worker(env, where, learned=call == "on_step")
    assert ("the motor is stuck" in capfd.readouterr().err) == (fault is breaks)


@pytest.mark.slow
def test_one_dead_worker_of_several_is_said_to_be_dead():
    env = SubprocVecEnv([Task, partial(Task, on_step=breaks, at=STEP)])
    check_dead_worker(env, "step() after 44 steps", learned=True)


# --- odd, but sound ---

ODD = {
    "episodes of one step": {"length": 1},
    "truncated only": {"ending": (False, True)},
    "terminated and truncated": {"ending": (True, True)},
    "integer flags": {"ending": (1, 0)},
    "numpy flags": {"ending": (np.True_, np.False_)},
    "zero rewards": {"reward": lambda r: 0.0},
    "constant rewards": {"reward": lambda r: 1.0},
    "negative rewards": {"reward": lambda r: -abs(r)},
    "tiny rewards": {"reward": lambda r: 1e-8 * r},
    "huge rewards": {"reward": lambda r: 1e8 * r},
    "integer rewards": {"reward": lambda r: int(3 * r)},
    "boolean rewards": {"reward": lambda r: r > 0},
    "numpy rewards": {"reward": np.float16},
    "array rewards": {"reward": np.asarray},
    "tensor rewards": {"reward": th.tensor},
    "huge observations": {"obs": lambda x: np.float32(1e8 * x)},
    "observations of 1e30": {"obs": lambda x: np.float32(1e30 * np.tanh(x))},
    "constant observations": {"obs": lambda x: np.ones(4, np.float32)},
    "lists as observations": {"obs": list},
    "float64 observations": {"obs": np.float64, "observation_space": spaces.Box(-np.inf, np.inf, (4,), np.float64)},
    "one action": {"action": spaces.Discrete(1)},
    "no room for actions": {"action": spaces.Box(0.5, 0.5, (2,))},
    "actions far from [-1, 1]": {"action": spaces.Box(1000.0, 1001.0, (2,))},
    "multi-binary actions": {"action": spaces.MultiBinary(3)},
    "multi-discrete actions": {"action": spaces.MultiDiscrete([2, 3])},
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_env_is_learned_from(name, baseline, n_envs, action):
    options = {"action": action, **ODD[name]}
    taken = []

    class Watched(Task):
        def step(self, action):
            taken.append(self.action_space.contains(np.asarray(action, self.action_space.dtype)))
            return super().step(action)

    model = make(DummyVecEnv([lambda: Watched(**options)] * n_envs), baseline)
    fresh = parameters(model)
    model.learn(4 * LENGTH * n_envs)
    assert finite(model)
    assert model.num_timesteps >= 4 * LENGTH * n_envs
    assert all(taken)
    if not (baseline == "mean" and name == "constant rewards"):  # Adam makes steps of rounding errors
        assert same(parameters(model), fresh) == (baseline == "mean" and name in ("zero rewards", "one action"))


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_odd_env_may_be_handed_over_as_it_is(baseline):
    for name, options in ODD.items():
        model = make(Task(**options), baseline)
        model.learn(4 * LENGTH)
        assert finite(model), name


@pytest.mark.parametrize(("ending", "n_cut"), [((True, False), 0), ((True, True), 0), ((False, True), 1)])
def test_only_what_was_truncated_and_not_terminated_is_continued_by_a_value(ending, n_cut):
    model = make(Task(ending=ending))
    model.learn(LENGTH)
    assert int(model.rollout.cut.sum()) == n_cut


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_single_step_is_training_enough(n_envs):
    model = make(DummyVecEnv([Task] * n_envs))
    model.learn(1)
    assert model.num_timesteps == LENGTH * n_envs
    model.learn(0)
    assert model.num_timesteps == 0


def test_sums_of_rewards_beyond_float32_change_nothing():
    """Each reward is a float32, their sum is not."""
    for baseline in BASELINES:
        env = Task(reward=lambda r: 3e38)
        check_refused(
            env, NonFiniteError, ["gradient of the (value|policy) loss.*rewards too large"], baseline, learned=False
        )


# --- an env that never ends ---


@pytest.mark.parametrize("options", [{}, {"n_episodes": 6}], ids=str)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kind", ["raw", "dummy", "four"])
def test_an_env_that_never_ends(monkeypatch, kind, baseline, options):
    monkeypatch.setattr(collector, "LONG_EPISODE", 120)
    env = as_given(kind, length=10**9)
    where = f"env {BAD if kind == 'four' else 0} has not ended within 121 steps"
    total = 4 * 60 if kind == "four" else 60
    check_refused(env, RuntimeError, [where, "TimeLimit"], baseline, learned=False, total=total, **options)


def test_a_long_training_waits_longer(monkeypatch):
    monkeypatch.setattr(collector, "LONG_EPISODE", 120)
    with pytest.raises(RuntimeError, match="env 0 has not ended within 301 steps"):
        make(Task(length=10**9)).learn(300)
    make(Task(length=119)).learn(1)


# --- what a user asks for ---


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("learning_rate", [np.nan, -1e-3, np.inf, "3e-4", None]),
        ("gamma", [2, np.nan, -0.1, None, "0.9"]),
        ("gae_lambda", [2, np.nan, -0.1]),
        ("n_steps", [0, -3, 2.5, np.nan, None, "8"]),
        ("n_episodes", [0, -1, 2.5, "8"]),
        ("ent_coef", [np.nan, -1, np.inf]),
        ("vf_coef", [np.nan, -1, np.inf]),
        ("max_grad_norm", [0, -1, np.nan, None]),
        ("stats_window_size", [0, 1.5, None]),
        ("returns", ["rewards_to_go", None, 1]),
        ("baseline", ["Value", True, 0]),
        ("n_stepz", [5]),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(option, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"{option}={re.escape(repr(value))}|no argument '{option}'"):
            make(Task(), **{option: value})


@pytest.mark.parametrize("value", [-5, np.nan, np.inf, None, "100", [1]], ids=repr)
def test_bad_totals_are_refused(value):
    model = make(Task())
    fresh = parameters(model)
    with pytest.raises(ValueError, match=r"total_timesteps=.*: a number of env steps >= 0 is needed"):
        model.learn(value)
    assert same(parameters(model), fresh)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("rate", [0.0, 1e6, 1e30, np.float64(1e-3)])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.ReLU])
@pytest.mark.filterwarnings("ignore:overflow encountered in matmul:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_learning_rates_of_any_size(activation, baseline, action, rate):
    model = make(
        Task(action), baseline, learning_rate=rate, policy_kwargs={"activation_fn": activation, "net_arch": [8, 8]}
    )
    snapshot, refusal = Snapshot(), ""
    try:
        model.learn(20 * LENGTH, snapshot)
    except NonFiniteError as error:
        refusal = str(error)
    assert finite(model)
    if refusal:
        assert "learning_rate too large" in refusal
        assert same(parameters(model), snapshot.parameters)
    assert rate > 1 or not refusal
    assert rate < 1e30 or refusal or action == "discrete"


@pytest.mark.parametrize("bad", [np.nan, -1e-3, np.inf], ids=repr)
@pytest.mark.parametrize("baseline", BASELINES)
def test_a_schedule_that_goes_wrong_changes_nothing(baseline, bad):
    def schedule(progress):
        return 1e-2 if progress > 0.6 else bad

    model, snapshot = make(Task(), baseline, learning_rate=schedule), Snapshot()
    fresh = parameters(model)
    with pytest.raises(ValueError, match=rf"learning_rate={bad!r} from the schedule at progress_remaining=0\.\d"):
        model.learn(20 * LENGTH, snapshot)
    assert same(parameters(model), snapshot.parameters)
    assert not same(parameters(model), fresh)
    assert finite(model)


def test_a_schedule_that_is_wrong_from_the_start():
    with pytest.raises(ValueError, match=r"[Ll]earning.rate.*nan"):
        make(Task(), learning_rate=lambda progress: float("nan"))


SHIFTED = {
    "action": [
        spaces.Discrete(3, start=5),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[0, 1]),
    ],
    "observation": [spaces.Discrete(3, start=1), spaces.Dict({"k": spaces.Discrete(3, start=2)})],
}


@pytest.mark.parametrize(
    ("kind", "space"), [(kind, space) for kind, each in SHIFTED.items() for space in each], ids=str
)
@pytest.mark.parametrize("vectorised", [True, False])
def test_spaces_that_do_not_count_from_zero_are_refused(vectorised, kind, space):
    env = Task(space) if kind == "action" else Task(observation_space=space)
    with pytest.raises(ValueError, match=rf"{kind}_space=.*count {kind}s from 0 on; wrap the environment"):
        make(DummyVecEnv([lambda: env]) if vectorised else env)


@pytest.mark.parametrize(
    ("space", "pattern"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "finite lower and upper bound"),
        (spaces.Box(np.float32([-1, -np.inf]), np.ones(2, np.float32)), "finite lower and upper bound"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "as action spaces but Dict"),
        (spaces.Text(5), "as action spaces but Text"),
    ],
)
def test_actions_that_no_policy_can_give_are_refused(space, pattern):
    with pytest.raises(AssertionError, match=pattern):
        make(Task(space))


def test_observations_that_are_no_arrays_are_refused():
    space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])
    with pytest.raises(TypeError, match=r"observation_space=Tuple\(.*one of Box, .*, or a Dict of these"):
        make(Task(observation_space=space))


@pytest.mark.parametrize("error", [BrokenMotor, KeyboardInterrupt])
def test_a_callback_that_raises_is_heard(error):
    class Raises(BaseCallback):
        def _on_step(self):
            if self.n_calls == STEP:
                raise error("in a callback")
            return True

    model, snapshot = make(Task()), Snapshot()
    fresh = parameters(model)
    with pytest.raises(error, match="in a callback") as caught:
        model.learn(1000, [snapshot, Raises()])
    assert not hasattr(caught.value, "__notes__")  # the environment has nothing to do with it
    assert model.num_timesteps == STEP
    assert not same(parameters(model), fresh)
    assert same(parameters(model), snapshot.parameters)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == STEP + 10


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_callback_that_cannot_be_made_is_no_fault_of_the_env(reset_num_timesteps):
    class Broken(BaseCallback):
        def _init_callback(self):
            raise BrokenMotor("while it is set up")

        def _on_step(self):
            return True

    model = make(Task())
    model.learn(5)
    with pytest.raises(BrokenMotor) as caught:
        model.learn(5, Broken(), reset_num_timesteps=reset_num_timesteps)
    assert not hasattr(caught.value, "__notes__")


# --- predict ---


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("action", ACTIONS)
def test_predict_refuses_what_is_not_finite(action, value, deterministic):
    model = make(Task(action))
    for obs, index in (
        (entry(value), r"\[2\]"),
        (np.stack([entry(0), entry(value)]), r"\[1, 2\]"),
        (entry(value).tolist(), r"\[2\]"),
    ):
        with pytest.raises(NonFiniteError, match=rf"observation given to predict\(\) has {value} at index {index}"):
            model.predict(obs, deterministic=deterministic)


def test_predict_names_the_part_of_a_dict():
    space = spaces.Dict({"x": spaces.Box(-9, 9, (2,)), "k": spaces.Discrete(3)})
    model = make(Task(observation_space=space))
    sound = {"x": np.zeros(2, np.float32), "k": 1}
    assert model.predict(sound)[0].shape == ()
    with pytest.raises(NonFiniteError, match=r"observation\['x'\] given to predict\(\) has nan at index \[1\]"):
        model.predict({**sound, "x": np.array([0, np.nan])})


@pytest.mark.parametrize("action", ACTIONS)
def test_predict_is_that_of_the_policy(action):
    model = make(Task(action))
    for obs in (entry(0.5), np.stack([entry(0.1), entry(0.2)])):
        for options in (
            {"deterministic": True},
            {"state": (np.ones(1),), "episode_start": np.ones(1), "deterministic": True},
        ):
            ours, theirs = model.predict(obs, **options), model.policy.predict(obs, **options)
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1] == theirs[1]
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict((entry(0.5), {}))


# --- the checks themselves ---


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 2, 5), (0,)])
def test_every_place_is_looked_at(shape, dtype):
    array = np.full(shape, np.finfo(np.float16).max, dtype)
    assert all_finite(array)
    for index in np.ndindex(shape):
        for value in (np.nan, np.inf, -np.inf):
            spoiled = array.copy()
            spoiled[index] = value
            assert not all_finite(spoiled)


def test_the_largest_numbers_are_finite_and_need_no_warning():
    for dtype in (np.float16, np.float32):
        assert all_finite(np.full(100, np.finfo(dtype).max))
    assert all_finite(np.full(100, -float(np.finfo(np.float32).max), np.float64))
    assert not all_finite(np.full(100, 3.5e38, np.float64))
    assert all_finite(np.arange(5))
    assert all_finite(np.ones(3, bool))
    check_observations(np.arange(4, dtype=np.uint8), "here")


def test_a_wrapper_of_the_users_env_does_not_hide_it():
    env = Monitor(Task())
    model = make(env)
    assert model.get_env().get_attr("n_resets") == [0]
    assert model.get_env().env_is_wrapped(Monitor) == [True]
    assert model.get_env().envs[0].unwrapped is env.unwrapped
    model.learn(LENGTH)
    assert len(model.ep_info_buffer) == 1
