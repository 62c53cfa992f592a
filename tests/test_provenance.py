"""What is typed, and from where: the command as it is recorded, and modules of the current folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_pg_ext
from sb3_pg_ext.experiments.provenance import command
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.tracking import Tracking

PACKAGE = Path(sb3_pg_ext.__file__).parent
SCRIPT = Path(sys.executable).with_name("sb3-pg")
ENVIRONMENT = """
import os

import gymnasium as gym

class Short(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert "PYTHONSAFEPATH" not in os.environ, "scripts that it starts would not find the modules beside them"
        return self.observation_space.low, {}

    def step(self, action):
        return self.observation_space.high, 1.0, True, False, {}

gym.register("Short-v0", entry_point="my_short_envs:Short", max_episode_steps=10)
"""
OPTIONS = ["--algo", "a2c", "--env", "my_short_envs:Short-v0", "-n", "50", "--seeds", "1", "-f", "study", "-j", "1"]
OPTIONS += ["--n-evaluations", "1", "--eval-episodes", "1", "--test-episodes", "1"]


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        ("/venv/bin/sb3-pg", "sb3-pg"),
        (str(PACKAGE / "experiments" / "cli.py"), "sb3-pg"),
        (str(PACKAGE / "__main__.py"), "sb3-pg"),
        (str(PACKAGE / "zoo" / "__main__.py"), "python -m sb3_pg_ext.zoo"),
        ("sb3_pg_ext.zoo train", "python -m sb3_pg_ext.zoo train"),
        ("/elsewhere/experiments/cli.py", "cli.py"),
        ("", ""),
    ],
)
def test_the_command_can_be_typed_again(program: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--algo", "a=ppo:policy_kwargs.net_arch=[8, 8]"])
    assert command() == f"{typed or shlex.quote('')} --algo 'a=ppo:policy_kwargs.net_arch=[8, 8]'"


def test_what_is_told_to_be_typed_is_quoted() -> None:
    names = ("tensorboard", "wandb", "mlflow")
    folder = Path("my runs").resolve()
    ways = Tracking(names, "p", str(folder), "s", f"sqlite:///{folder}/mlflow.db").ways_to_look().splitlines()
    assert [shlex.split(way.partition("  (")[0]) for way in map(str.strip, ways)] == [
        ["tensorboard", "--logdir", "my runs/tensorboard"],
        ["wandb", "sync", "my runs/wandb/offline-run-*"],
        ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"],
    ]
    assert ways[1].strip().startswith("wandb sync 'my runs'/wandb/offline-run-*"), "the shell fills in the star"


def call(program: list[str], folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        [*program, "compare", *OPTIONS], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Store(folder / "study" / FILE_NAME) as store:
        (record,) = store.records()
    assert (record.status, record.error) == ("finished", None)
    assert record.provenance is not None
    return record.provenance["command"]


def test_environments_of_the_current_folder_are_found_by_the_workers_too(tmp_path: Path) -> None:
    (tmp_path / "my_short_envs.py").write_text(ENVIRONMENT)
    assert call([str(SCRIPT)], tmp_path) == shlex.join(["sb3-pg", "compare", *OPTIONS])


@pytest.mark.parametrize("module", ["sb3_pg_ext", "sb3_pg_ext.experiments.cli"])
def test_the_command_of_the_module_is_recorded_as_that_of_the_script(module: str, tmp_path: Path) -> None:
    (tmp_path / "my_short_envs.py").write_text(ENVIRONMENT)
    assert call([sys.executable, "-m", module], tmp_path) == shlex.join(["sb3-pg", "compare", *OPTIONS])


def test_a_file_of_the_current_folder_hides_no_package(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('this is not the package')")
    script = "import sys; sys.path.remove(''); from sb3_pg_ext.experiments import cli; cli.main(['algos', 'ppo'])"
    script += "; import yaml, os; assert sys.path.index(os.getcwd()) > 0; print(yaml.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "site-packages" in done.stdout.splitlines()[-1], done.stderr
