"""Settings as they are typed and written: values, variants, zoo_configs, and the run that they resolve to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule

from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds, seeds_for, seeds_of
from sb3_pg_ext.experiments.settings import plain, resolve
from sb3_pg_ext.experiments.values import SettingError, as_text, materialise, merge, read_value
from sb3_pg_ext.experiments.variants import Variant, read_arguments, read_variant, split_arguments
from sb3_pg_ext.experiments.zoo_configs import configured_environments, zoo_config
from sb3_pg_ext.registry import UnknownAlgorithmError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" -2.5e-4 ", -2.5e-4),
        ("1_000", 1000),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("mean", "mean"),
        ("ornstein-uhlenbeck", "ornstein-uhlenbeck"),
        ("'None'", "None"),
        ("lin_3e-4", "lin_3e-4"),
        ("[64, 64]", [64, 64]),
        ("(1, 'episode')", [1, "episode"]),
        ("[]", []),
        ("{'pi': [8], 'vf': []}", {"pi": [8], "vf": []}),
        (
            "dict(net_arch=dict(pi=[8], vf=[8]), ortho_init=False)",
            {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False},
        ),
        ("nn.Tanh", "nn.Tanh"),
        ("torch.nn.ReLU", "nn.ReLU"),
        ("dict(activation_fn=th.nn.ELU)", {"activation_fn": "nn.ELU"}),
        (
            "stable_baselines3.common.atari_wrappers.AtariWrapper",
            "stable_baselines3.common.atari_wrappers.AtariWrapper",
        ),
    ],
)
def test_a_value_is_read_as_plain_data(text: str, value: object) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)
    assert read_value(as_text(value)) == value


HOSTILE = [
    "__import__('os').system('touch hacked')",
    "().__class__.__bases__[0].__subclasses__()",
    "[x for x in (1, 2)]",
    "(lambda: 1)()",
    "9**9**9",
    "'a' * 10**9",
    "dict(**{'a': 1})",
    "dict([('a', 1)])",
    "dict(a=open('/etc/passwd'))",
    "f'{1}'",
    "b'bytes'",
    "1j",
    "1e999",
    "...",
    "{1, 2}",
    "{**{}}",
    "{1: 2}",
    "os.system",
    "[os]",
    "nn.Module.__init__",
    "nn.Relu",
    "1 if True else 2",
    "x := 1",
    "[1, 2",
    "a b",
    "",
    "-" * 5000 + "1",
    "(" * 300 + ")" * 300,
    "[" * 5000,
    "1" * 5000,
    "x" * 20_000,
    "\x00",
    "import os",
    "not 1",
    "-'a'",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_but_plain_data_is_refused(text: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if text == "os.system":  # a bare dotted word is text, as wrappers are named; it never becomes an object
        assert materialise(read_value(text)) == "os.system"
    else:
        with pytest.raises(SettingError):
            read_value(text)
    assert not list(tmp_path.iterdir())


def test_names_and_schedules_become_objects_only_when_materialised() -> None:
    made = materialise({"a": ["nn.Tanh", "lin_3e-4", "text"], "b": {"optimizer_class": "th.optim.SGD"}})
    assert made["a"][0] is torch.nn.Tanh
    assert made["b"]["optimizer_class"] is torch.optim.SGD
    schedule = made["a"][1]
    assert isinstance(schedule, LinearSchedule)
    assert [schedule(1.0), schedule(0.5), schedule(0.0)] == pytest.approx([3e-4, 1.5e-4, 0.0])
    assert made["a"][2] == "text"


def test_merging_goes_leaf_by_leaf_and_changes_nothing_it_was_given() -> None:
    below = {"policy_kwargs": {"net_arch": [64], "ortho_init": True}, "gamma": 0.9}
    assert merge(below, {"policy_kwargs": {"net_arch": [8]}, "gamma": None}) == {
        "policy_kwargs": {"net_arch": [8], "ortho_init": True},
        "gamma": None,
    }
    assert below["policy_kwargs"]["net_arch"] == [64]


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("ppo", Variant("ppo", "ppo")),
        ("reinforce:baseline=mean,returns=trajectory", None),
        ("big=ppo:n_steps=512", Variant("big", "ppo", {"n_steps": 512})),
        ("my label=ppo", Variant("my label", "ppo")),
        (
            "a=ppo:policy_kwargs.net_arch=[64, 64],policy_kwargs.activation_fn=nn.ReLU,gamma=.9",
            Variant("a", "ppo", {"policy_kwargs": {"net_arch": [64, 64], "activation_fn": "nn.ReLU"}, "gamma": 0.9}),
        ),
        (
            "a=ppo:policy_kwargs=dict(net_arch=dict(pi=[8, 8], vf=[4])),policy='MlpPolicy',",
            Variant("a", "ppo", {"policy_kwargs": {"net_arch": {"pi": [8, 8], "vf": [4]}}, "policy": "MlpPolicy"}),
        ),
    ],
)
def test_a_variant_is_read(text: str, variant: Variant | None) -> None:
    expected = variant or Variant(text, "reinforce", {"baseline": "mean", "returns": "trajectory"})
    assert read_variant(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected key"),
        (":gamma=1", "expected key"),
        ("=ppo", "expected key"),
        ("ppo:", "expected key"),
        ("ppo:gamma", "expected name=value"),
        ("ppo:gamma=", "expected name=value"),
        ("ppo:=1", "expected name=value"),
        ("ppo:gamma=1,gamma=2", "'gamma' is given twice"),
        ("ppo:net_arch=[64", "']' is missing"),
        ("ppo:net_arch=64]", "closes nothing"),
        ("ppo:a='x", '"\'" is missing'),
        ("p po", "not an algorithm key"),
        ("ppo:a.b-c=1", "expected name=value"),
        ("ppo:gamma=__import__('os')", "gamma:"),
    ],
)
def test_a_variant_that_cannot_be_read_says_why(text: str, complaint: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_variant(text)
    assert complaint in str(caught.value)


def test_commas_inside_brackets_and_quotes_do_not_separate() -> None:
    assert split_arguments("a=[1, 2],b='x,y',c={'k': (1, 2)}") == ["a=[1, 2]", "b='x,y'", "c={'k': (1, 2)}"]


def test_the_zoo_spelling_of_arguments() -> None:
    assert read_arguments(["gamma:0.5", "policy_kwargs:dict(net_arch=[8])"], separator=":") == {
        "gamma": 0.5,
        "policy_kwargs": {"net_arch": [8]},
    }


ZOO_FILE = """
default:
  n_timesteps: !!float 1e6
  gamma: 0.9
CartPole-v1: &cartpole
  n_envs: 8
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  learning_rate: lin_0.001
  ent_coef: 1e-3
  normalize: "dict(norm_obs=True, norm_reward=False)"
  policy_kwargs: "dict(net_arch=[64, 64], activation_fn=nn.Tanh)"
Acrobot-v1:
  <<: *cartpole
  n_envs: 2
"""


def test_zoo_files_are_read_without_running_anything(tmp_path) -> None:
    (tmp_path / "ppo.yml").write_text(ZOO_FILE)
    expected = {
        "n_envs": 8,
        "policy": "MlpPolicy",
        "learning_rate": "lin_0.001",
        "ent_coef": 1e-3,
        "normalize": {"norm_obs": True, "norm_reward": False},
        "policy_kwargs": {"net_arch": [64, 64], "activation_fn": "nn.Tanh"},
    }
    assert zoo_config("ppo", "CartPole-v1", tmp_path) == expected
    assert zoo_config("ppo", "some.module:CartPole-v1", tmp_path) == expected
    assert zoo_config("ppo", "Acrobot-v1", tmp_path) == {**expected, "n_envs": 2}
    assert zoo_config("ppo", "Pendulum-v1", tmp_path) == {"gamma": 0.9}
    assert zoo_config("a2c", "CartPole-v1", tmp_path) == {}
    assert configured_environments("ppo", tmp_path) == ["CartPole-v1", "Acrobot-v1"]


@pytest.mark.parametrize(
    "text",
    [
        "CartPole-v1: !!python/object/apply:os.system ['touch hacked']",
        "CartPole-v1: {policy_kwargs: \"dict(a=__import__('os').system('touch hacked'))\"}",
        "CartPole-v1: 3",
        "- a list",
        "{",
    ],
)
def test_a_hostile_or_broken_zoo_file_is_refused_by_name(text: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ppo.yml").write_text(text)
    with pytest.raises(SettingError, match=r"ppo\.yml"):
        zoo_config("ppo", "CartPole-v1", tmp_path)
    assert not (tmp_path / "hacked").exists()


def _resolve(text: str, env_id: str = "CartPole-v1", **options) -> RunSpec:
    arguments = {"seeds": seeds_of(0, 0), "total_steps": 100, "protocol": Protocol(10), **options}
    return resolve(read_variant(text), env_id, **arguments)


def test_typed_settings_win_over_tuned_ones_and_these_over_defaults(tmp_path, monkeypatch) -> None:
    (tmp_path / "ppo.yml").write_text(ZOO_FILE)
    monkeypatch.setattr("sb3_pg_ext.experiments.zoo_configs.config_folder", lambda: tmp_path)
    run = _resolve("ppo:ent_coef=0.5,policy_kwargs.net_arch=[4],gamma=1")
    assert run.environment.n_envs == 8
    assert run.environment.normalize == {"norm_obs": True, "norm_reward": False}
    assert run.policy == "MlpPolicy"
    assert run.arguments == {
        "device": "cpu",
        "learning_rate": "lin_0.001",
        "ent_coef": 0.5,
        "gamma": 1.0,
        "policy_kwargs": {"net_arch": [4], "activation_fn": "nn.Tanh"},
    }
    assert run.hyperparameters["n_steps"] == 2048
    assert _resolve("ppo", n_envs=3).environment.n_envs == 3
    assert _resolve("ppo:n_envs=5", n_envs=3).environment.n_envs == 5
    assert _resolve("ppo", use_zoo_config=False).arguments == {"device": "cpu"}


@pytest.mark.parametrize(
    ("text", "error", "complaint"),
    [
        ("poo", UnknownAlgorithmError, "Did you mean 'ppo'"),
        ("ppo:n_step=3", SettingError, "Did you mean 'n_steps'"),
        ("ppo:seed=3", SettingError, "--seed"),
        ("ppo:n_envs=0", SettingError, "n_envs=0"),
        ("ppo:n_envs=many", SettingError, "n_envs='many'"),
        ("ppo:normalize=3", SettingError, "normalize=3"),
        ("ppo:noise_std=1", SettingError, "no argument 'noise_std'"),
    ],
)
def test_what_does_not_exist_is_found_before_anything_runs(text: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error) as caught:
        _resolve(text)
    assert complaint in str(caught.value)


def test_defaults_that_are_no_plain_data_are_named() -> None:
    assert plain({"a": (1, torch.nn.ReLU), "b": Environment("x")}) == {
        "a": [1, "torch.nn.modules.activation.ReLU"],
        "b": "sb3_pg_ext.experiments.run_spec.Environment",
    }


RUN = RunSpec(
    label="ppo, small",
    algo="ppo",
    policy=None,
    environment=Environment("CartPole-v1", 2, kwargs={"b": 1, "a": [1.5, "ü"]}, wrappers=("w",), normalize={}),
    replicate=1,
    seeds=Seeds(1, 2, 3),
    total_steps=1000,
    arguments={"n_steps": 64},
    hyperparameters={"n_steps": 64, "gamma": 0.99, "learning_rate": 3e-4, "clip_range_vf": None},
    protocol=Protocol(50),
    versions={"torch": "2.13.0", "sb3_pg_ext": "0.1.0"},
)
GOLDEN = "93b3f150165b2f89c677b218b73797e74bd5a8cf77b90929d9c21dd48f31e320"


def test_the_key_of_a_run_is_the_same_for_ever() -> None:
    assert RUN.key == GOLDEN
    assert RunSpec.from_json(RUN.to_json()) == RUN
    assert RunSpec.from_json(RUN.to_json()).key == RUN.key
    shuffled = json.loads(RUN.to_json())
    shuffled = {name: shuffled[name] for name in reversed(shuffled)}
    assert RunSpec.from_json(json.dumps(shuffled)).key == RUN.key


def test_the_key_of_a_run_is_the_same_in_another_process() -> None:
    code = (
        "import sys; from sb3_pg_ext.experiments.run_spec import RunSpec\n"
        "print(RunSpec.from_json(sys.stdin.read()).key)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=RUN.to_json(),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == RUN.key


@pytest.mark.parametrize(
    "change",
    [
        {"algo": "a2c"},
        {"policy": "MlpPolicy"},
        {"environment": replace(RUN.environment, n_envs=3)},
        {"environment": replace(RUN.environment, normalize=None)},
        {"replicate": 2},
        {"seeds": Seeds(1, 2, 4)},
        {"total_steps": 1001},
        {"hyperparameters": {**RUN.hyperparameters, "gamma": 0.98}},
        {"protocol": replace(RUN.protocol, test_episodes=0)},
        {"versions": {**RUN.versions, "torch": "2.14.0"}},
        {"threads": 2},
    ],
    ids=str,
)
def test_all_that_matters_is_in_the_key(change: dict) -> None:
    assert replace(RUN, **change).key != RUN.key


def test_a_label_and_the_spelling_of_defaults_are_not_in_the_key() -> None:
    assert replace(RUN, label="other").key == RUN.key
    assert _resolve("ppo").key == _resolve("same=ppo:gamma=0.99,n_steps=2048").key
    assert _resolve("ppo:gamma=1").key == _resolve("ppo:gamma=1.0").key
    assert _resolve("ppo").key != _resolve("ppo:gamma=0.98").key


def test_replicates_share_the_key_of_their_settings_and_nothing_else() -> None:
    other = replace(RUN, replicate=5, seeds=Seeds(7, 8, 9))
    assert other.key != RUN.key
    assert other.settings_key == RUN.settings_key
    assert replace(RUN, total_steps=5).settings_key != RUN.settings_key


def test_the_three_streams_of_seeds_never_meet() -> None:
    ranges: dict[str, set[int]] = {"train": set(), "evaluation": set(), "test": set()}
    for master in range(20):
        for replicate in range(50):
            seeds = seeds_of(master, replicate)
            for name, numbers in ranges.items():
                # environment i of a group counts up from the group's seed
                numbers.update(range(getattr(seeds, name), getattr(seeds, name) + 128))
    assert not ranges["train"] & ranges["evaluation"]
    assert not ranges["train"] & ranges["test"]
    assert not ranges["evaluation"] & ranges["test"]
    assert max(ranges["train"]) < min(ranges["evaluation"]) < max(ranges["evaluation"]) < min(ranges["test"])
    assert max(ranges["test"]) < 2**32
    assert len({seeds_of(master, replicate).train for master in range(20) for replicate in range(50)}) == 1000


def test_the_seed_of_a_single_run_is_the_one_that_was_typed() -> None:
    assert seeds_for(3).train == 3
    assert seeds_for(3).test >= 2**29
    assert seeds_for(3) != seeds_for(4)
    with pytest.raises(ValueError, match="seed=-1"):
        seeds_for(-1)
    with pytest.raises(ValueError, match="replicate=-1"):
        seeds_of(0, -1)
