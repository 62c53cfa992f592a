"""The registry: what is in it, that it is lazy and write-once, and what broken or clashing plug-ins do."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import gymnasium as gym
import optuna
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_pg_ext import registry
from sb3_pg_ext.spec import ALL_ACTION_SPACES, AlgorithmSpec, Choice, Float, Int, OneMinus, When, suggest

UPSTREAM = {
    "on_policy": ["a2c", "maskable_ppo", "ppo", "recurrent_ppo", "trpo"],
    "off_policy": ["crossq", "ddpg", "dqn", "qrdqn", "sac", "td3", "tqc"],
    "policy_search": ["ars"],
}
ALL_UPSTREAM = sorted(key for keys in UPSTREAM.values() for key in keys)


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    """Every test starts from what is installed and leaves nothing behind."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    registry._discovered.cache_clear()
    yield
    monkeypatch.undo()
    registry._discovered.cache_clear()


def spec_of(cls, **kwargs):
    return AlgorithmSpec(cls, **{"family": "on_policy", "paper": "", **kwargs})


class MyA2C(A2C):
    """A class of a user."""


# --- what is in it


def test_the_algorithms_of_upstream_are_listed_by_family():
    assert set(ALL_UPSTREAM) <= set(registry.keys())
    assert registry.keys() == sorted(registry.keys())
    for family, keys in UPSTREAM.items():
        assert [key for key in registry.available(family=family) if key in ALL_UPSTREAM] == keys
    assert list(registry.available()) == registry.keys()


def test_upstream_is_there_completely():
    """Every algorithm class that the two packages export has an entry."""
    import sb3_contrib
    import stable_baselines3

    exported = {
        cls
        for package in (stable_baselines3, sb3_contrib)
        for cls in vars(package).values()
        if isinstance(cls, type) and issubclass(cls, BaseAlgorithm)
    }
    assert exported == {registry.get(key).cls for key in ALL_UPSTREAM}


def test_the_recorded_action_spaces_and_policies_are_those_of_the_class():
    small = {
        "Box": spaces.Box(-1, 1, (2,)),
        "Discrete": spaces.Discrete(2),
        "MultiDiscrete": spaces.MultiDiscrete([2, 2]),
        "MultiBinary": spaces.MultiBinary(2),
    }
    for key in ALL_UPSTREAM:
        spec = registry.get(key)
        assert set(spec.policies) == set(spec.cls.policy_aliases), key
        accepted = []
        for name, space in small.items():
            env = gym.make("CartPole-v1")
            env.action_space = space
            try:
                spec.cls(spec.policies[0], env)
            except AssertionError:
                continue
            accepted.append(name)
        assert tuple(accepted) == spec.action_spaces, key


@pytest.mark.parametrize(
    ("action_space", "key", "accepted"),
    [
        ("Box", "sac", True),
        ("Discrete", "sac", False),
        (spaces.Box(-1, 1, (2,)), "sac", True),
        (spaces.Discrete(3), "dqn", True),
        (spaces.MultiDiscrete([2, 3]), "dqn", False),
        (spaces.MultiBinary(3), "ppo", True),
        (type("Torques", (spaces.Box,), {})(-1, 1, (2,)), "sac", True),
        (spaces.Tuple([spaces.Discrete(2)]), "ppo", False),
    ],
)
def test_available_filters_by_action_space(action_space, key, accepted):
    assert (key in registry.available(action_space=action_space)) is accepted


def test_both_filters_hold_at_once():
    found = registry.available(family="off_policy", action_space="Discrete")
    assert {"dqn", "qrdqn"} <= set(found)
    assert all(spec.family == "off_policy" and "Discrete" in spec.action_spaces for spec in found.values())


@pytest.mark.parametrize(
    ("filters", "words"),
    [({"family": "onpolicy"}, "family='onpolicy'.*'on_policy'"), ({"action_space": "box"}, "'box'.*'Box'")],
)
def test_a_misspelt_filter_is_refused_instead_of_finding_nothing(filters, words):
    with pytest.raises(ValueError, match=words):
        registry.available(**filters)


@pytest.mark.parametrize("key", ALL_UPSTREAM)
def test_key_of_is_the_inverse_of_get(key):
    assert registry.key_of(registry.get(key).cls) == key


def test_key_of_a_class_that_is_not_registered():
    with pytest.raises(registry.UnknownAlgorithmError, match="'MyA2C'"):
        registry.key_of(MyA2C)
    registry.register("mine", spec_of(MyA2C))
    assert registry.key_of(MyA2C) == "mine"


# --- unknown names


@pytest.mark.parametrize(("key", "nearest"), [("trop", "trpo"), ("PPO", "ppo"), ("recurrentppo", "recurrent_ppo")])
def test_an_unknown_name_lists_all_and_the_nearest(key, nearest):
    with pytest.raises(registry.UnknownAlgorithmError) as caught:
        registry.get(key)
    known_keys = registry.keys()
    assert f"Unknown algorithm {key!r}. Did you mean {nearest!r}?" in str(caught.value)
    assert all(known in str(caught.value) for known in known_keys)


def test_a_name_like_nothing_else_gets_no_suggestion():
    with pytest.raises(registry.UnknownAlgorithmError) as caught:
        registry.get("zzzzzzzz")
    assert "mean" not in str(caught.value)
    assert isinstance(caught.value, KeyError)


def test_the_error_of_an_unknown_name_crosses_processes():
    error = registry.UnknownAlgorithmError("trop", ["ppo", "trpo"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- register


def test_a_registered_algorithm_stands_beside_the_others():
    spec = spec_of(MyA2C)
    registry.register("mine", spec)
    assert registry.get("mine") is spec
    assert registry.available()["mine"] is spec
    assert registry.keys().count("mine") == 1


def test_a_key_is_taken_only_once_and_the_error_names_both():
    with pytest.raises(registry.RegistryClashError) as caught:
        registry.register("ppo", spec_of(MyA2C))
    assert "'ppo'" in str(caught.value)
    assert "sb3_pg_ext.algorithms.ppo" in str(caught.value)
    assert f"{MyA2C.__module__}.MyA2C" in str(caught.value)
    assert registry.get("ppo").cls is PPO

    registry.register("mine", spec_of(MyA2C))
    with pytest.raises(registry.RegistryClashError, match=r"MyA2C.*\.A2C"):
        registry.register("mine", spec_of(A2C))
    assert registry.get("mine").cls is MyA2C


def test_the_same_class_may_register_again_and_the_new_record_counts():
    registry.register("mine", spec_of(MyA2C, paper="first"))
    assert registry.get("mine").paper == "first"
    registry.register("mine", spec_of(MyA2C, paper="second"))
    assert registry.get("mine").paper == "second"


@pytest.mark.parametrize("key", ["My_Algo", "svg-inf", "2step", "", "svg inf", "reinforce:baseline", "_x", None])
def test_a_key_is_lower_snake_case(key):
    with pytest.raises(ValueError, match="lower snake case"):
        registry.register(key, spec_of(MyA2C))


def test_only_a_spec_can_be_registered():
    with pytest.raises(TypeError, match="must be an AlgorithmSpec"):
        registry.register("mine", MyA2C)


# --- laziness


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_listing_loads_no_algorithm_and_no_torch():
    loaded = modules_after("from sb3_pg_ext import registry; assert 'ppo' in registry.keys()")
    assert not {name for name in loaded if name.startswith("sb3_pg_ext.algorithms.")}
    assert not {"torch", "stable_baselines3", "sb3_contrib", "optuna"} & loaded


def test_get_loads_only_what_is_asked_for():
    loaded = modules_after("from sb3_pg_ext import registry; registry.get('ppo')")
    assert {name for name in loaded if name.startswith("sb3_pg_ext.algorithms.")} == {"sb3_pg_ext.algorithms.ppo"}
    assert not {"sb3_contrib", "optuna"} & loaded


def test_key_of_an_own_class_loads_only_that_one():
    loaded = modules_after(
        "from stable_baselines3 import PPO; from sb3_pg_ext import registry; assert registry.key_of(PPO) == 'ppo'"
    )
    assert {name for name in loaded if name.startswith("sb3_pg_ext.algorithms.")} == {"sb3_pg_ext.algorithms.ppo"}


# --- plug-ins: real distributions in a folder on the path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that lays a distribution with one module and one entry point on the path."""

    def lay(distribution, key, source, target="SPEC"):
        module = f"{distribution}_module"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[sb3_pg_ext.algorithms]\n{key} = {module}:{target}\n")
        registry.refresh()
        return module

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield lay
    for name in set(sys.modules) - before:
        if name.endswith("_module"):
            del sys.modules[name]


GOOD = """
    from stable_baselines3 import A2C
    from sb3_pg_ext.spec import AlgorithmSpec
    class Nova(A2C): "A new star."
    SPEC = AlgorithmSpec(Nova, family="on_policy", paper="")
"""


def test_an_entry_point_is_found_and_loads_when_asked_for(installed):
    module = installed("novapkg", "nova", GOOD)
    assert registry.keys().count("nova") == 1
    assert module not in sys.modules
    assert registry.get("nova").summary == "A new star."
    assert module in sys.modules
    assert "nova" in registry.available(family="on_policy")
    assert registry.key_of(registry.get("nova").cls) == "nova"


def test_a_plugin_installed_later_is_found_after_refresh(installed):
    assert registry.keys().count("nova") == 0
    installed("novapkg", "nova", GOOD)
    assert registry.keys().count("nova") == 1


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        ("raise RuntimeError('no licence')", "nova", "no licence"),
        ("import a_package_that_is_not_installed", "nova", "a_package_that_is_not_installed"),
        ("OTHER = 1", "nova", "SPEC"),
        ("SPEC = 42", "nova", "is a int, not an AlgorithmSpec"),
        (GOOD, "Super-Nova", "lower snake case"),
    ],
)
def test_a_broken_plugin_is_a_warning_with_its_name_and_an_error_when_asked_for(installed, source, key, words):
    installed("novapkg", key, source)
    with pytest.warns(UserWarning, match=f"{key!r} of novapkg.*{words}") as caught:
        found = registry.available()
    assert [w.filename for w in caught] == [__file__]
    assert key not in found
    assert "ppo" in found
    with pytest.raises(ImportError, match=words) as error:
        registry.get(key)
    assert repr(key) in str(error.value)
    assert "novapkg" in str(error.value)


def test_a_broken_plugin_does_not_disturb_the_others(installed):
    installed("novapkg", "nova", "raise RuntimeError")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.get("ppo").cls is PPO
        assert registry.key_of(PPO) == "ppo"


def test_two_plugins_with_one_key_are_an_error_that_names_both(installed):
    installed("novapkg", "nova", GOOD)
    installed("otherpkg", "nova", GOOD)
    with pytest.raises(registry.RegistryClashError, match=r"'nova'.*(novapkg.*otherpkg|otherpkg.*novapkg)"):
        registry.keys()


def test_a_plugin_cannot_take_one_of_our_keys(installed):
    installed("novapkg", "ppo", GOOD)
    with pytest.raises(registry.RegistryClashError, match=r"'ppo'.*sb3_pg_ext\.algorithms\.ppo.*novapkg"):
        registry.get("ppo")


def test_a_plugin_cannot_take_a_key_registered_in_this_process(installed):
    registry.register("nova", spec_of(MyA2C))
    installed("novapkg", "nova", GOOD)
    with pytest.raises(registry.RegistryClashError, match=r"'nova'.*novapkg.*MyA2C"):
        registry.keys()


# --- every entry


def a_tiny_env(spec):
    """An environment that the algorithm accepts."""
    return "Pendulum-v1" if "Box" in spec.action_spaces else "CartPole-v1"


@pytest.mark.parametrize("key", registry.keys())
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_every_sample_of_the_search_space_builds_the_model(key):
    spec = registry.get(key)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert spec.space, f"{key} has no search space"
    for _ in range(5):
        arguments = suggest(spec.space, study.ask())
        assert set(arguments) <= set(spec.defaults)
        model = spec.cls(spec.policies[0], gym.make(a_tiny_env(spec)), device="cpu", **arguments)
        assert model.learning_rate == arguments.get("learning_rate", spec.defaults["learning_rate"])
        asked = arguments.get("policy_kwargs", {})
        assert {name: model.policy_kwargs[name] for name in asked} == asked


def contains(dimension, value):
    match dimension:
        case When():
            return contains(dimension.dimension, value)
        case Choice():
            return value in dimension.options
        case OneMinus():
            return dimension.low <= 1 - value <= dimension.high
        case Int(power=int(power)):
            return value in [power**n for n in range(dimension.low, dimension.high + 1)]
        case Float() | Int():
            return dimension.low <= value <= dimension.high


@pytest.mark.parametrize("key", ALL_UPSTREAM)
def test_the_defaults_of_upstream_lie_in_the_search_space(key):
    """So that a study can start from them."""
    spec = registry.get(key)
    outside = {
        name: (spec.defaults[name], dimension)
        for name, dimension in spec.space.items()
        if "." not in name and not contains(dimension, spec.defaults[name])
    }
    assert not outside


@pytest.mark.parametrize("key", registry.keys())
def test_make_builds_every_entry_from_an_id(key):
    spec = registry.get(key)
    model = registry.make(key, a_tiny_env(spec), seed=3)
    assert type(model) is spec.cls
    assert type(model.policy) is spec.cls.policy_aliases[spec.policies[0]]
    assert (model.n_envs, model.seed) == (1, 3)


def test_make_hands_arguments_on():
    model = registry.make("ppo", "CartPole-v1", n_envs=3, n_steps=8, batch_size=12, policy_kwargs={"net_arch": [7]})
    assert (model.n_envs, model.n_steps, model.batch_size) == (3, 8, 12)
    assert model.policy.net_arch == [7]
    assert (
        type(registry.make("ars", "CartPole-v1", "MlpPolicy").policy)
        is registry.get("ars").cls.policy_aliases["MlpPolicy"]
    )
    with pytest.raises(TypeError, match="n_stepz"):
        registry.make("ppo", "CartPole-v1", n_stepz=8)
    with pytest.raises(registry.UnknownAlgorithmError):
        registry.make("pppo", "CartPole-v1")


@pytest.mark.parametrize("make_env", [lambda: gym.make("CartPole-v1"), lambda: gym.make_vec("CartPole-v1", num_envs=2)])
def test_make_takes_gymnasium_environments(make_env):
    model = registry.make("a2c", make_env(), seed=0).learn(40)
    assert model.num_timesteps == 40


IMAGE = spaces.Box(0, 255, (64, 64, 3), "uint8")
VECTOR = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("key", "observation_space", "policy"),
    [
        ("ppo", VECTOR, "MlpPolicy"),
        ("ppo", IMAGE, "CnnPolicy"),
        ("ppo", spaces.Dict({"image": IMAGE}), "MultiInputPolicy"),
        ("recurrent_ppo", VECTOR, "MlpLstmPolicy"),
        ("recurrent_ppo", IMAGE, "CnnLstmPolicy"),
        ("recurrent_ppo", spaces.Dict({"image": IMAGE}), "MultiInputLstmPolicy"),
        ("ars", VECTOR, "LinearPolicy"),
        ("crossq", IMAGE, "MlpPolicy"),
    ],
)
def test_the_default_policy_follows_the_observations(key, observation_space, policy):
    assert registry.default_policy(registry.get(key), observation_space) == policy


def test_the_names_of_the_action_spaces_are_those_of_gymnasium():
    assert all(issubclass(getattr(spaces, name), spaces.Space) for name in ALL_ACTION_SPACES)
