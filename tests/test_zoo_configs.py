"""Every entry of zoo_configs is settings that work, that differ from the defaults, and whose origin is told."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.building import check
from sb3_pg_ext.experiments.run_spec import Protocol
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.settings import plain, resolve
from sb3_pg_ext.experiments.tuning.config_entry import departures
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.experiments.zoo_configs import config_folder, zoo_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it crashes where the warning of its own import is an error
    import Box2D  # noqa: F401

FILES = sorted(Path(config_folder() or "").glob("*.yml"))
ENTRIES = [(path.stem, env_id) for path in FILES for env_id in yaml.safe_load(path.read_text())]
HEAD = re.compile(r"((?:^#.*\n)+)([\w-]+):", re.MULTILINE)
ENVIRONMENTS = {
    "Discrete": ("CartPole-v1", "Acrobot-v1", "LunarLander-v3"),
    "Box": (
        "Pendulum-v1",
        "MountainCarContinuous-v0",
        "InvertedPendulum-v5",
        "Swimmer-v5",
        "HalfCheetah-v5",
        "LunarLanderContinuous-v3",
    ),
}
OWN = [key for key in registry.available() if registry.get(key).cls.__module__.startswith("sb3_pg_ext.")]


def heads(key: str) -> dict[str, str]:
    """Environment -> the comments right above its entry."""
    text = (Path(config_folder() or "") / f"{key}.yml").read_text()
    return {env_id: comments for comments, env_id in HEAD.findall(text)}


@pytest.mark.parametrize(("key", "env_id"), ENTRIES, ids=lambda value: value)
def test_an_entry_can_be_built(key: str, env_id: str) -> None:
    spec = resolve(Variant(key, key), env_id, seeds=seeds_of(0, 0), total_steps=1000, protocol=Protocol(1000))
    assert {*zoo_config(key, env_id)} - {"n_envs", "normalize", "policy", "env_wrapper", "frame_stack"} <= {
        *spec.arguments
    }
    check(spec)


@pytest.mark.parametrize(("key", "env_id"), ENTRIES, ids=lambda value: value)
def test_no_setting_of_an_entry_is_the_default(key: str, env_id: str) -> None:
    settings: dict[str, Any] = zoo_config(key, env_id)
    defaults = {name: plain(value) for name, value in registry.get(key).defaults.items()}
    assert not [name for name in settings if name in defaults and settings[name] == defaults[name]]
    assert departures(key, settings) == settings
    assert settings.get("n_envs") != 1
    assert settings.get("normalize") is not False


@pytest.mark.parametrize("key", [path.stem for path in FILES])
def test_every_entry_says_where_it_comes_from(key: str) -> None:
    for env_id in yaml.safe_load((Path(config_folder() or "") / f"{key}.yml").read_text()):
        head = heads(key)[env_id]
        assert re.search(r"^# (sb3-pg compare|Starting point, not tuned here: )", head, re.MULTILINE), (key, env_id)


@pytest.mark.parametrize("key", OWN)
def test_every_algorithm_has_an_entry_for_each_environment_that_it_can_act_in(key: str) -> None:
    wanted = {
        env_id
        for actions, env_ids in ENVIRONMENTS.items()
        if actions in registry.get(key).action_spaces
        for env_id in env_ids
    }
    assert not wanted - {env_id for owner, env_id in ENTRIES if owner == key}
