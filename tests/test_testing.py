"""The contract suite itself: broken algorithms do not pass it, and its environments do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broken_algorithms import CAUGHT
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sb3_pg_ext.testing import AlgorithmContract, Contract, Learning
from sb3_pg_ext.testing.environments import (
    ACTION_SPACES,
    FAULTS,
    OBSERVATION_SPACES,
    Echo,
    Faulty,
    encode,
    likeness,
    several,
    total_steps,
)
from sb3_pg_ext.testing.measures import differences

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes():
    """(class, test) -> outcomes, of all tests in broken_algorithms.py."""
    command = [sys.executable, "-m", "pytest", "broken_algorithms.py", "-q", "-rA", "--tb=no", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    found = {}
    for outcome, cls, test in re.findall(
        r"^(PASSED|FAILED|ERROR|SKIPPED) .*::Test(\w+)::(\w+)", done.stdout, re.MULTILINE
    ):
        found.setdefault((cls, test), set()).add(outcome)
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize(
    ("broken", "test"), [(cls.__name__, test) for cls, tests in CAUGHT.items() for test in sorted(tests)]
)
def test_what_is_broken_is_caught(outcomes, broken, test):
    assert "FAILED" in outcomes[broken, test]
    assert outcomes["REINFORCE", test] == {"PASSED"}


def test_no_part_of_the_contract_hides_a_test_of_another():
    parts = AlgorithmContract.__bases__
    names = [name for part in parts for name in vars(part) if name.startswith("test_")]
    assert len(parts) == 10
    assert len(names) == len(set(names)) > 100


# --- its environments


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric")  # which would hide errors of scaling
def test_echo_is_a_sound_environment(action, observation):
    env = Echo(action, observation)
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_the_action_that_stands_for_u_is_the_best_one(name):
    space = ACTION_SPACES[name]
    for u in np.linspace(0, 0.999, 50):
        assert space.contains(encode(space, u))
        assert likeness(space, encode(space, u), u) == pytest.approx(1)
        assert 0 <= likeness(space, space.sample(), u) <= 1
    assert likeness(space, encode(space, 0.0), 0.999) == pytest.approx(0, abs=2e-3)


def test_a_perfect_policy_gets_the_length_of_the_episode():
    env = Echo("Box", "float64")
    obs, _ = env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        u = (obs[0] + 1) / 2
        obs, reward, over, truncated, info = env.step(encode(env.action_space, u))
        total += reward
    assert (total, info, truncated) == (pytest.approx(8, abs=1e-5), {"is_success": True}, False)
    assert (env.steps, env.episodes, env.resets) == (8, 1, 1)


def test_echo_takes_no_action_from_outside_its_space():
    env = Echo("Box")
    env.reset()
    with pytest.raises(ValueError, match="is not in Box"):
        env.step(np.array([0.0, 3.1], np.float32))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", ["step", "reset"])
def test_a_fault_strikes_once_and_at_its_time(fault, call):
    env = Faulty(Echo(length=1, reward=1.0), fault, when=3, call=call)
    healthy = []
    for _ in range(6):
        try:
            obs, _ = env.reset()
            step = env.step(env.action_space.sample())
            seen = [*obs.ravel(), *step[0].ravel(), step[1]]
            healthy.append(len(seen) == 7 and np.ndim(step[1]) == 0 and step[1] == 1.0 and np.isfinite(seen).all())
        except RuntimeError:
            healthy.append(False)
    about_reward = "reward" in fault and call == "reset"
    assert healthy == [True, True, about_reward, True, True, True]


@pytest.mark.parametrize("kind", ["dummy", "native"])
def test_several_are_of_one_kind_and_seeded_apart(kind):
    env = several(Echo, 3, kind)
    obs = env.reset(seed=1)[0] if kind == "native" else (env.seed(1), env.reset())[1]
    assert len({tuple(row) for row in obs.tolist()}) == 3
    assert isinstance(getattr(env, "single_action_space", env.action_space), spaces.Box)


def test_steps_are_summed():
    env = several(Echo, 2)
    env.reset()
    for _ in range(5):
        env.step(np.zeros((2, 2), np.float32))
    assert total_steps(env) == 10


def test_differences_are_named_bit_by_bit():
    a = {"x": np.array([1.0, 2.0]), "y": 1}
    assert differences(a, {"x": np.array([1.0, 2.0]), "y": 1}) == []
    assert differences(a, {"x": np.array([1.0, np.nextafter(2.0, 3)]), "y": 1}) == ["x"]
    assert differences(a, {"x": np.array([1.0, 2.0], np.float32), "y": True, "z": 0}) == ["z", "x", "y"]
    assert differences({"x": np.array([np.nan])}, {"x": np.array([np.nan])}) == []


# --- its page


def test_the_page_names_what_there_is():
    page = (HERE.parent / "docs" / "testing.md").read_text()
    names = {name for row in re.findall(r"^\| `.*?\|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    parts = {part.__name__ for part in AlgorithmContract.__bases__}
    settings = {name for part in (Contract, Learning) for name in vars(part)["__annotations__"]}
    assert names == parts | settings
    assert set(re.findall(r"(test_\w+) = None", page)) <= set(dir(AlgorithmContract))
