"""The package as a user gets it: a wheel in a clean virtual environment, with no repository on the path."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TRAIN = """
import sys, pathlib
import sb3_pg_ext
from sb3_pg_ext.experiments.zoo_configs import zoo_config

where = pathlib.Path(sb3_pg_ext.__file__)
assert sys.prefix in str(where), where
assert zoo_config("reinforce", "CartPole-v1"), "zoo_configs is not in the wheel"
model = sb3_pg_ext.make("reinforce", "CartPole-v1", n_envs=2, seed=0).learn(500)
model.save("model")
print(type(sb3_pg_ext.load("model")).__name__, model.num_timesteps)
"""


def run(*command: str, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT), cwd=folder)
    return next(folder.glob("sb3_pg_ext-*.whl"))


def test_wheel_holds_everything_that_the_package_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "sb3_pg_ext/py.typed" in names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "sb3_pg_ext").rglob("*.py")}
    configs = {f"sb3_pg_ext/zoo_configs/{p.name}" for p in (ROOT / "zoo_configs").glob("*.yml")}
    assert configs
    assert sources | configs <= names
    assert not any(name.startswith(("tests/", "docs/", "benchmarks/")) for name in names)


def test_wheel_trains_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv/bin/python")
    constraints = str(ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "-q", "-c", constraints, str(wheel), cwd=tmp_path)
    assert run(python, "-c", TRAIN, cwd=tmp_path).split()[0] == "REINFORCE"
    assert "reinforce" in run(str(tmp_path / "venv/bin/sb3-pg"), "algos", cwd=tmp_path)
