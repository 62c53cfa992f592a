"""A study that is killed again and again ends with the results of one that is left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from observing import rows, wait_for
from test_experiments_study import outcomes

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.owner import Owner

STUDY = """
algorithms: [a2c, "small=ppo:n_steps=64,n_epochs=2", reinforce]
environments: [CartPole-v1]
seeds: 2
n_timesteps: 4000
evaluation: {n_evaluations: 5, episodes: 2, test_episodes: 3}
jobs: 2
"""
TOTAL = 3 * 2 * 4000


def begin(study: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that a signal can reach all its processes at once."""
    command = [sys.executable, "-m", "sb3_pg_ext.experiments.cli", "compare", str(study), "-f", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(driver: subprocess.Popen[bytes], folder: Path, everybody: bool) -> set[tuple[Any, ...]]:
    """``kill -9`` of the driver, whose workers end by themselves, or of all processes in the same moment.

    :return: (key, time of its beginning) of the runs that are finished
    """
    (os.killpg if everybody else os.kill)(driver.pid, signal.SIGKILL)
    driver.wait()
    owners = [Owner.parse(owner) for (owner,) in rows(folder, "owner") if owner]
    wait_for(lambda: all(owner.is_dead() for owner in owners))
    assert any(status == "running" for (status,) in rows(folder, "status"))
    return {(key, started) for key, started, status in rows(folder, "key, started, status") if status == "finished"}


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """File name -> all parameters of the model."""
    models = {path.name: registry.load(path) for path in (folder / "models").glob("*.zip")}
    return {n: torch.cat([p.detach().flatten() for p in m.policy.parameters()]) for n, m in models.items()}


@pytest.mark.slow
def test_kill_9_at_five_random_moments_changes_nothing(tmp_path: Path) -> None:
    study, folder, whole = tmp_path / "small.yml", tmp_path / "killed", tmp_path / "whole"
    study.write_text(STUDY)
    assert main(["compare", str(study), "-f", str(whole)]) == 0
    choice, finished = random.Random(0), set()
    for moment in sorted(choice.uniform(0.02, 0.85) * TOTAL for _ in range(5)):
        driver = begin(study, folder)
        wait_for(lambda moment=moment: sum(step for (step,) in rows(folder, "step")) >= moment)
        finished |= kill(driver, folder, everybody=choice.random() < 0.5)
        assert len(finished) < 6
    assert main(["compare", str(study), "-f", str(folder), "--resume"]) == 0
    assert finished <= set(rows(folder, "key, started"))  # nothing runs twice
    assert outcomes(folder) == outcomes(whole)
    assert {status for status, *_ in outcomes(folder).values()} == {"finished"}
    expected, found = parameters(whole), parameters(folder)
    assert expected.keys() == found.keys()
    assert len(found) == 6
    assert all(torch.equal(found[name], expected[name]) for name in expected)
