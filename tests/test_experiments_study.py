"""Comparisons with real processes: nothing twice, nothing lost, the same numbers whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from observing import rows, wait_for
from rich.console import Console

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.commands.report import show
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.report import Report
from sb3_pg_ext.experiments.results import Evaluation, Outcome
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.study import Problem, Study, carry_out
from sb3_pg_ext.experiments.summary import summarise
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.variants import read_variant

COMMON = ["--n-evaluations", "3", "--eval-episodes", "2", "--test-episodes", "3"]
ME = str(Owner.current())
ALGOS = ["a2c", "mine=ppo:n_steps=64,n_epochs=2"]


def compare(folder: Path, *extra: str, algos: list[str] = ALGOS, env: str = "CartPole-v1", n: str = "600") -> list[str]:
    return ["compare", "--algo", *algos, "--env", env, "-n", n, "-f", str(folder), *COMMON, *extra]


def outcomes(folder: Path) -> dict[str, Any]:
    """Key -> everything about a run that must not depend on circumstances."""
    with Store(folder / "study.sqlite") as store:
        return {
            r.spec.key: (r.status, [e.returns for e in r.evaluations], r.test and r.test.returns)
            for r in store.records()
        }


class Memory:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.training: list[Evaluation] = []
        self.test: list[Evaluation] = []

    def progress(self, step: int, train_seconds: float) -> None:
        pass

    def evaluation(self, kind: str, evaluation: Evaluation) -> None:
        getattr(self, kind).append(evaluation)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(compare(folder, "--seeds", "2", "-P", "2")) == 0
    return folder


def test_a_comparison_gives_what_the_runs_give_one_by_one(undisturbed: Path) -> None:
    found = outcomes(undisturbed)
    assert len(found) == 4
    problem = Problem("CartPole-v1", 600, Protocol(200, 2, True, 3))
    study = Study([read_variant(text) for text in ALGOS], [problem], n_seeds=2)
    for spec in study.runs():
        memory = Memory()
        outcome = execute(spec, memory)
        assert outcome.steps == 600
        assert [e.step for e in memory.training] == [0, 200, 400, 600]
        assert found[spec.key] == ("finished", [e.returns for e in memory.training], memory.test[0].returns)
    # Different seeds, different runs.
    assert len({str(values) for values in found.values()}) == 4


def test_a_second_call_runs_nothing_and_more_seeds_add_only_themselves(undisturbed: Path, capsys) -> None:
    before = rows(undisturbed, "key, started, ended, outcome")
    assert main(compare(undisturbed, "--seeds", "2")) == 0
    assert "4 of 4 runs are in the store already" in capsys.readouterr().out
    assert rows(undisturbed, "key, started, ended, outcome") == before
    assert main(compare(undisturbed, "--seeds", "3", algos=ALGOS[:1])) == 0
    after = rows(undisturbed, "key, started, ended, outcome")
    assert len(after) == 5
    assert set(before) <= set(after)


def test_it_leaves_models_a_report_and_a_figure(undisturbed: Path, capsys) -> None:
    assert main(["report", str(undisturbed)]) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown
    assert "final return [95 %]" in shown
    assert (undisturbed / "learning_curves.png").stat().st_size > 20_000
    text = (undisturbed / "report.md").read_text()
    assert "| mine |" in text
    assert "n_steps=64" in text
    models = sorted(path.name for path in (undisturbed / "models").glob("mine_CartPole-v1_seed*.zip"))
    assert len(models) == 2
    assert main(["eval", str(undisturbed / "models" / models[0]), "--env", "CartPole-v1", "--n-episodes", "3"]) == 0
    assert "PPO in CartPole-v1, 3 deterministic episodes" in capsys.readouterr().out


def _start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sb3_pg_ext.experiments.cli", *compare(folder, *extra)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _kill_a_worker_in_mid_run(folder: Path, killed: list[str]) -> None:
    """Stop it first and look again: a run that comes to its end just before the signal is not one that was killed."""

    def midway() -> set[str]:
        found = rows(folder, "status, step, owner")
        return {o for status, step, o in found if status == "running" and step >= 200}

    def stopped() -> str | None:
        for owner in midway():
            pid = Owner.parse(owner).pid
            if Owner.parse(owner).is_dead():  # left behind by the first call, not released yet
                continue
            os.kill(pid, signal.SIGSTOP)
            if owner in midway():
                return owner
            os.kill(pid, signal.SIGCONT)
        return None

    found = wait_for(stopped)
    os.kill(Owner.parse(found).pid, signal.SIGKILL)
    killed.append(found)


def test_kill_9_of_the_driver_and_of_a_worker_changes_nothing(tmp_path: Path) -> None:
    size = ("--seeds", "2", "-P", "2", "-n", "4000")
    assert main(compare(tmp_path / "whole", *size)) == 0
    folder = tmp_path / "killed"
    driver = _start(folder, *size)

    def halfway() -> bool:
        found = rows(folder, "status, step")
        return any(s == "finished" for s, _ in found) and any(s == "running" and 0 < step < 2000 for s, step in found)

    wait_for(halfway)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    owners = [Owner.parse(owner) for (owner,) in rows(folder, "owner") if owner]
    wait_for(lambda: all(owner.is_dead() for owner in owners))  # workers end with their driver
    assert driver.stdout is not None
    driver.stdout.close()
    finished = {row for row in rows(folder, "key, started, status") if row[2] == "finished"}
    assert 0 < len(finished) < 4
    # They did not just come to the end of their runs.
    assert any(status == "running" for (status,) in rows(folder, "status"))

    killed: list[str] = []
    killer = threading.Thread(target=_kill_a_worker_in_mid_run, args=(folder, killed))
    killer.start()
    assert main(compare(folder, *size)) == 0
    killer.join()
    assert len(killed) == 1
    assert sorted(row[0] for row in rows(folder, "deaths")) == [0, 0, 0, 1]
    assert finished <= set(rows(folder, "key, started, status"))
    assert outcomes(folder) == outcomes(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and then by the driver too, in a background job
    driver = _start(tmp_path, "--seeds", "1", "-n", "1000000")
    wait_for(lambda: any(status == "running" for (status,) in rows(tmp_path, "status")))
    owners = [Owner.parse(owner) for (owner,) in rows(tmp_path, "owner") if owner]
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Stopped. Finished runs are kept" in output
    assert str(tmp_path) in output.rpartition("Stopped.")[2]
    assert "Traceback" not in output
    assert all(owner.is_dead() for owner in owners)
    assert {status for (status,) in rows(tmp_path, "status")} == {"pending"}
    assert (tmp_path / "report.md").exists()


TROUBLE = '''
"""Environments that go wrong after some steps of training."""

import os
import pathlib
import signal
import time

import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class Trouble(CartPoleEnv):
    def __init__(self, marker=None):
        super().__init__()
        self.marker, self.steps = marker, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 150:
            self.trouble()
        return super().step(action)


class Crash(Trouble):
    def trouble(self):
        raise RuntimeError("the pole is on fire")


class Kill(Trouble):
    def trouble(self):
        os.kill(os.getpid(), signal.SIGKILL)


class KillOnce(Trouble):
    def trouble(self):
        marker = pathlib.Path(os.environ["TROUBLE_MARKER"])
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Hang(Trouble):
    def trouble(self):
        time.sleep(1000)


class NaN(Trouble):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, float("nan") if self.steps >= 150 else reward, *rest

    def trouble(self):
        print("a word to the terminal")


for name in ("Crash", "Kill", "KillOnce", "Hang", "NaN"):
    gym.register(f"{name}-v0", f"{__name__}:{name}", max_episode_steps=500)
'''


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trouble_envs.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "results"


def _trouble(folder: Path, *names: str, extra: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    envs = [f"trouble_envs:{name}-v0" for name in names]
    command = [
        "compare",
        "--algo",
        "a2c",
        "--env",
        *envs,
        "CartPole-v1",
        "--seeds",
        "1",
        "-n",
        "400",
        "-f",
        str(folder),
    ]
    code = main([*command, *COMMON, *extra])
    with Store(folder / "study.sqlite") as store:
        return code, {r.spec.environment.id.removeprefix("trouble_envs:"): r for r in store.records()}


def test_a_failing_run_keeps_its_traceback_and_the_others_finish(trouble: Path, capsys) -> None:
    code, records = _trouble(trouble, "Crash", "NaN", "Kill")
    assert code == 1
    assert {env_id: record.status for env_id, record in records.items()} == {
        "Crash-v0": "failed",
        "NaN-v0": "failed",
        "Kill-v0": "failed",
        "CartPole-v1": "finished",
    }
    assert "the pole is on fire" in records["Crash-v0"].error
    assert "trouble_envs.py" in records["Crash-v0"].error
    assert "nan" in records["NaN-v0"].error.lower()
    assert "signal 9" in records["Kill-v0"].error
    assert records["Kill-v0"].deaths == 2
    assert records["Crash-v0"].deaths == 0
    output = capsys.readouterr().out
    assert "the pole is on fire" in output
    assert "a word to the terminal" not in output
    assert "a word to the terminal" in "".join(path.read_text() for path in (trouble / "logs").iterdir())
    report = (trouble / "report.md").read_text()
    assert "1 of 4 runs are finished; 3 failed" in report
    assert "the pole is on fire" in report
    # A failure is not tried again unless asked for.
    assert _trouble(trouble, "Crash", "NaN", "Kill")[0] == 1
    with Store(trouble / "study.sqlite") as store:
        assert {record.deaths for record in store.records()} == {0, 2}


def test_a_run_whose_worker_was_killed_once_is_run_again(trouble: Path, tmp_path: Path) -> None:
    # The marker goes through the file system: a worker inherits the environment of the process that started the first.
    (tmp_path / "trouble_envs.py").write_text(
        TROUBLE.replace('os.environ["TROUBLE_MARKER"]', repr(str(tmp_path / "marker")))
    )
    code, records = _trouble(trouble, "KillOnce")
    assert code == 0
    assert records["KillOnce-v0"].deaths == 1
    assert records["KillOnce-v0"].test.returns == records["CartPole-v1"].test.returns


@pytest.mark.slow
def test_a_run_that_hangs_is_ended(trouble: Path) -> None:
    code, records = _trouble(trouble, "Hang", extra=("--stall-limit", "5"))
    assert code == 1
    assert records["Hang-v0"].status == "failed"
    assert "no sign of life" in records["Hang-v0"].error
    assert records["CartPole-v1"].status == "finished"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--algo", "poo"], "Did you mean 'ppo'"),
        (["--algo", "ppo:n_step=3"], "Did you mean 'n_steps'"),
        (["--algo", "ppo", "ppo"], "given twice"),
        (["--algo", "ppo", "b=ppo:gamma=0.99"], "same settings"),
        (["--algo", "ppo:policy_kwargs=dict(net_arc=[3])"], "net_arc"),
        (["--algo", "ppo:n_steps=-1"], "ppo:n_steps=-1 on CartPole-v1"),
        (["--algo", "sac"], "action spaces"),
        (["--algo", "ppo", "--env", "CartPol-v1"], "CartPole"),
        (["--algo", "ppo", "--env", "no_such_module:CartPole-v1"], "no_such_module"),
        (["--algo", "ppo", "--env", "Pendulum-v1", "--vec-env", "native"], "native"),
        (["--algo", "ppo", "--env-kwargs", "colour:red"], "colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_stops_before_anything_is_written(
    arguments: list[str], complaint: str, tmp_path, capsys
) -> None:
    env = [] if "--env" in arguments else ["--env", "CartPole-v1"]
    assert main(["compare", *arguments, *env, "-n", "100", "-f", str(tmp_path / "results")]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert main(compare(tmp_path / "file", "--seeds", "1")) == 2
    assert f"the folder {tmp_path / 'file'} cannot be created: File exists" in capsys.readouterr().err


class Room:
    """An executor that has room for one run, and never comes to begin it."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    @property
    def free(self) -> int:
        return 1 - len(self.keys)

    def submit(self, spec: RunSpec) -> None:
        self.keys.append(spec.key)

    def supervise(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


def test_waiting_runs_are_looked_at_only_while_there_is_room(tmp_path: Path, monkeypatch) -> None:
    class Enough(Exception):
        pass

    class Impatient:
        looks = 0

        def look(self, rows: Any) -> None:
            self.looks += 1
            if self.looks == 20:
                raise Enough

    runs = Study([read_variant("a2c")], [Problem("CartPole-v1", 10, Protocol(10))], 50).runs()
    read: list[str] = []
    from_json = RunSpec.from_json
    room = Room()
    with Store(tmp_path / "study.sqlite", create=True) as store:
        store.declare(runs)
        monkeypatch.setattr(RunSpec, "from_json", lambda text: read.append(text) or from_json(text))
        with pytest.raises(Enough):
            carry_out(runs, store, room, Impatient())
    assert room.keys == [runs[0].key]
    assert len(read) == 1


def test_cells_of_the_table_are_no_markup(tmp_path: Path, monkeypatch, capsys) -> None:
    with Store(tmp_path / "study.sqlite", create=True) as store:
        (run,) = Study([read_variant("x[bold]=a2c")], [Problem("CartPole-v1", 10, Protocol(10))], 1).runs()
        store.declare([run])
        store.claim(run.key, ME)
        for step in (0, 10):
            store.add_evaluation(run.key, ME, "training", Evaluation(step, (1.0,), (1,), 0.1))
        store.finish(run.key, ME, Outcome(10, 1.0, 1.0, 1.0), {})
        (summary,) = summarise(store.records())
    monkeypatch.setattr("sb3_pg_ext.experiments.report.write_report", lambda *arguments: Report([summary], [], []))
    show(tmp_path, Console(width=200, force_terminal=False))
    shown = " ".join(capsys.readouterr().out.split())
    assert "[one run]" in shown
    for cell in summary.row():
        assert " ".join(cell.split()) in shown


_WARMING = """
import multiprocessing, pathlib, signal
from multiprocessing import forkserver
from sb3_pg_ext.experiments import executor
executor._LATE = "json"
executor.warm_up(["json"])
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
status = pathlib.Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signals of a process are looked up in /proc")
def test_ctrl_c_while_the_workers_are_prepared_reaches_the_command_alone() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, and then by the child too, in a background job
    ignored = subprocess.run([sys.executable, "-c", _WARMING], capture_output=True, text=True, check=True).stdout
    assert int(ignored, 16) & 1 << (signal.SIGINT - 1)


def test_labels_and_settings_must_differ() -> None:
    study = Study([read_variant("a=ppo"), read_variant("a=a2c")], [Problem("CartPole-v1", 10, Protocol(10))], 1)
    with pytest.raises(SettingError, match="'a' is given twice"):
        study.runs()
