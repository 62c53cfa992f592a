"""Every entry of zoo_configs is settings that work, that differ from the defaults, and whose origin is told.

And an entry that a tuning writes leaves the others of its file alone, whatever the file looks like.
"""

from __future__ import annotations

import re
import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.building import check
from sb3_pg_ext.experiments.cli import _parser
from sb3_pg_ext.experiments.run_spec import Protocol
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.settings import plain, resolve
from sb3_pg_ext.experiments.tuning.choice import Contender, Winner
from sb3_pg_ext.experiments.tuning.config_entry import departures, remove_entry, write_entry
from sb3_pg_ext.experiments.tuning.config_text import with_entry, without_entry
from sb3_pg_ext.experiments.tuning.plan import plan_tuning
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.variants import Variant
from sb3_pg_ext.experiments.zoo_configs import config_folder, zoo_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it crashes where the warning of its own import is an error
    import Box2D  # noqa: F401

FILES = sorted(Path(config_folder() or "").glob("*.yml"))
ENTRIES = [(path.stem, env_id) for path in FILES for env_id in yaml.safe_load(path.read_text())]
NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
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


@pytest.mark.parametrize(("key", "env_id"), ENTRIES, ids=lambda value: value)
def test_every_entry_says_where_it_comes_from(key: str, env_id: str) -> None:
    """A publication that it starts from, or the command that trains it; a tuned one by what and with which result."""
    head = heads(key)[env_id]
    lines = re.findall(r"^# (sb3-pg .*)", head, re.MULTILINE)
    commands = [_parser().parse_args(shlex.split(line)[1:]) for line in lines]
    words = [args.command for args in commands]
    assert all((args.algo, args.env) in ((key, env_id), ([key], [env_id])) for args in commands)
    start = re.search(r"^# Starting point, (not tuned here|kept after tuning): .*(\d{4}|\.yml|'s )", head, re.MULTILINE)
    result = re.search(rf"^# Mean return of \d+ test episodes: {NUMBER} in the mean of (\d) seeds", head, re.MULTILINE)
    if start:
        assert "# Tuned" not in head
        assert words == ["tune"] * ("kept" in start[1]) + ["compare"] * bool(result)
        assert not result or int(result[2]) == commands[-1].seeds
        return
    tuned = "# Tuned" in head
    assert words == (["tune"] if tuned else []) + ["compare"]
    compare = commands[-1]
    assert compare.seeds >= 5
    assert not compare.no_zoo_config
    if tuned:
        tune = commands[0]
        assert compare.n_timesteps == (tune.final_timesteps or tune.n_timesteps)
        assert compare.stochastic == tune.stochastic
        rival = rf"(?:defaults|start \(.*\)): mean {NUMBER},"
        found = re.search(rf"# Tuned \d{{4}}-\d\d-\d\d with .*: mean {NUMBER}, .*{rival}", head)
        assert found
        assert float(found[1].replace(",", "")) > float(found[2].replace(",", ""))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_says_what_its_entries_are(path: Path) -> None:
    name = registry.get(path.stem).cls.__name__
    assert path.read_text().startswith(
        f"# Only what differs from the signature of {name}. Each entry names the command that repeats its result or, "
        "where it was not tuned here, what it starts from.\n\n"
    )


@pytest.mark.parametrize("key", OWN)
def test_every_algorithm_has_an_entry_for_each_environment_that_it_can_act_in(key: str) -> None:
    wanted = {
        env_id
        for actions, env_ids in ENVIRONMENTS.items()
        if actions in registry.get(key).action_spaces
        for env_id in env_ids
    }
    assert not wanted - {env_id for owner, env_id in ENTRIES if owner == key}


# --- an entry among others

ENTRY = "# mine\nAcrobot-v1:\n  n_envs: 3\n"
CLOSE = """\
---
# Settings of mine.
CartPole-v1:  # the first
  n_envs: 4

  # still of CartPole-v1
  gamma: 0.9
# of Acrobot-v1
"Acrobot-v1":
  n_envs: 8

  # an old one
  # gamma: 0.5

  n_steps: 16
  # gamma: 0.7
# free

# of Pendulum-v1
Pendulum-v1: {n_envs: 2,
  gamma: 0.8}


Other-v0:
  n_envs: 5
# the end"""
OLD = CLOSE[CLOSE.index("# of Acrobot") : CLOSE.index("# free")]


def test_an_entry_is_replaced_and_no_other_byte_of_the_file() -> None:
    assert with_entry(CLOSE, "Acrobot-v1", ENTRY) == CLOSE.replace(OLD, ENTRY)


def test_an_entry_is_taken_out_and_no_other_byte_of_the_file() -> None:
    assert without_entry(CLOSE, "Acrobot-v1") == CLOSE.replace(OLD, "")
    pendulum = CLOSE[CLOSE.index("# of Pendulum") : CLOSE.index("Other-v0")]
    assert without_entry(CLOSE, "Pendulum-v1") == CLOSE.replace(pendulum, "")


def test_what_a_file_begins_with_stays_whatever_becomes_of_its_first_entry() -> None:
    first = CLOSE[CLOSE.index("CartPole-v1:") : CLOSE.index("# of Acrobot")]
    rest = CLOSE.replace("---\n", "")  # the comment is at the very top
    assert with_entry(rest, "CartPole-v1", "CartPole-v1: {}") == rest.replace(first, "CartPole-v1: {}\n")
    assert without_entry(rest, "CartPole-v1") == rest.replace(first, "")
    apart = f"# Settings of mine.\n\n{ENTRY}"
    assert with_entry(apart, "Acrobot-v1", "Acrobot-v1: {}") == "# Settings of mine.\n\nAcrobot-v1: {}\n"


@pytest.mark.parametrize(
    ("before", "gap"), [("A-v0: {}", "\n\n"), ("A-v0: {}\n", "\n"), ("A-v0: {}\n\n", ""), ("\n", ""), ("", "")]
)
def test_a_new_entry_comes_last_after_a_blank_line(before: str, gap: str) -> None:
    assert with_entry(before, "Acrobot-v1", ENTRY) == before + gap + ENTRY


def test_ends_of_lines_stay_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "reinforce.yml"
    path.write_bytes(CLOSE.replace("\n", "\r\n").encode())
    winner = Winner("trial 1", {"n_envs": 3}, [], 1, (1.0,), Contender("defaults", {}, None, (0.0,)))
    plan = plan_tuning("reinforce", "Acrobot-v1", 100)
    write_entry(tmp_path, plan, winner, ["sb3-pg tune ..."])
    written = path.read_bytes().decode()
    assert written.count("\n") == written.count("\r\n")
    before, _, after = (part.replace("\n", "\r\n") for part in CLOSE.partition(OLD))
    assert written.startswith(before)
    assert written.endswith("# sb3-pg tune ...\r\nAcrobot-v1:\r\n  n_envs: 3\r\n" + after)
    assert remove_entry(tmp_path, plan)
    assert path.read_bytes().decode() == before + after


def zoo_file() -> str:
    """A file of rl_zoo3, in which entries are built on others."""
    [folder] = find_spec("rl_zoo3").submodule_search_locations or []  # type: ignore[union-attr]
    return Path(folder, "hyperparams", "ars.yml").read_text()


def test_every_entry_of_a_file_of_the_zoo_can_be_written_and_the_others_mean_the_same() -> None:
    text = zoo_file()
    table = yaml.safe_load(text)
    bases = {"Pendulum-v1": "pendulum-params", "HalfCheetahBulletEnv-v0": "pybullet-defaults"}
    for name in table:
        written = with_entry(text, name, f"{name}: {{n_envs: 3}}")
        others = {key: value for key, value in table.items() if key != name}
        kept = {bases[name]: table[name]} if name in bases else {}
        assert yaml.safe_load(written) == {**others, **kept, name: {"n_envs": 3}}
        assert yaml.safe_load(without_entry(text, name)) == {**others, **kept}
        before, after = re.split(rf"^{name}:", text, maxsplit=1, flags=re.MULTILINE)
        assert written.startswith(re.sub(r"(\n#.*)+\Z", "", before.rstrip("\n")))
        following = re.search(r"^\w\S*:", after, re.MULTILINE)
        assert following is None or written.endswith(after[following.start() :])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "not a table"),
        ("{Acrobot-v1: {}, Other-v0: {}}", "not a table"),
        ("A-v0: [\n", "not plain YAML"),
        ("A-v0: !!python/name:os.getcwd\n", "not plain YAML"),
        ("A-v0: {}\n...\n", "not plain YAML"),
    ],
)
def test_a_file_that_cannot_be_kept_is_left_alone_and_named(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "reinforce.yml"
    path.write_text(text)
    winner = Winner("trial 1", {"n_envs": 3}, [], 1, (1.0,), Contender("defaults", {}, None, (0.0,)))
    with pytest.raises(SettingError, match=rf"reinforce\.yml: .*{sentence}"):
        write_entry(tmp_path, plan_tuning("reinforce", "Acrobot-v1", 100), winner, [])
    assert path.read_text() == text
