"""Tuning with real processes, on every kind of storage: nothing lost, nothing twice, the same trials again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
from observing import wait_for
from optuna.trial import TrialState

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.tuning import Tuning, plan_tuning
from sb3_pg_ext.experiments.tuning.ledger import counts, name_of
from sb3_pg_ext.experiments.tuning.report import write_report
from sb3_pg_ext.experiments.tuning.storages import close_storage, open_storage
from sb3_pg_ext.experiments.tuning.tuning import TuningError
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.zoo_configs import zoo_config

optuna.logging.set_verbosity(optuna.logging.ERROR)
STORAGES = ("journal", "sqlite", "postgresql")
SHORT = ["--n-evaluations", "4", "--eval-episodes", "2", "--n-startup-trials", "3"]
SPACE = {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}


def tune(folder: Path, *extra: str, n: str = "400", algo: str = "a2c") -> list[str]:
    return ["tune", "--algo", algo, "--env", "CartPole-v1", "-n", n, "-f", str(folder), *SHORT, *extra]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own, on a socket in a temporary folder; its URL without the database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("NOT TESTED: tuning on PostgreSQL. There is no server here: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="NOT TESTED: tuning on PostgreSQL. pip install psycopg[binary]")
    folder = Path("/tmp") / f"sb3_pg_ext_postgres_{os.getpid()}"  # the path of a socket has 107 characters at most
    folder.mkdir(mode=0o777)
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *arguments: str) -> None:
        path = Path(found).resolve().with_name(program)
        subprocess.run([*as_user, str(path), *arguments], check=True, cwd=folder, capture_output=True, timeout=120)

    data = str(folder / "data")
    try:
        call("initdb", "-D", data, "-U", "tuner", "-A", "trust", "--no-sync")
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -h '' -F", "start")
        try:
            yield f"postgresql://tuner@/{{}}?host={folder}"
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty storage of each kind."""
    if request.param == "postgresql":
        import psycopg

        server = request.getfixturevalue("server")
        name = f"t{time.time_ns()}"
        with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return server.format(name)
    return {"journal": f"journal:{tmp_path}/trials.log", "sqlite": f"sqlite:///{tmp_path}/trials.db"}[request.param]


def trials_of(storage: str, name: str = "a2c_CartPole-v1") -> list[optuna.trial.FrozenTrial]:
    opened = open_storage(storage)
    try:
        return optuna.load_study(study_name=name, storage=opened).get_trials(deepcopy=False)
    finally:
        close_storage(opened)


def started(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own, in a session of its own: what is sent to it is not sent to the test."""
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_pg_ext.experiments.cli", *arguments],
            stdout=output,
            stderr=output,
            start_new_session=True,
            # A test that itself runs in the background of a shell ignores Ctrl-C, and its children would do so too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def under_way(storage: str, after: int = 1) -> Callable[[], Any]:
    """Whether a trial is being worked on, with ``after`` others done and something reported already."""

    def look() -> Any:
        try:
            trials = trials_of(storage)
        except (KeyError, SettingError):
            return None
        done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        working = [t for t in trials if t.state is TrialState.RUNNING and "owner" in t.user_attrs]
        return [t for t in working if t.intermediate_values] if done >= after else None

    return look


def check_all_done(storage: str, n_trials: int, killed: list[int]) -> None:
    """``n_trials`` trials count; each that was killed was done again, once, with the same parameters."""
    trials = trials_of(storage)
    assert sum(counts(trial) for trial in trials) == n_trials
    assert all(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials if counts(t))
    for number in killed:
        again = [t for t in trials if t.user_attrs.get("in_place_of") == number]
        assert len(again) == 1, f"trial {number} was done again {len(again)} times"
        assert trials[number].state is TrialState.FAIL
        assert trials[number].params.items() <= again[0].params.items()
    originals = [t.user_attrs.get("in_place_of", t.number) for t in trials if counts(t)]
    assert len(set(originals)) == n_trials


def test_a_killed_worker_loses_its_trial_only_and_that_is_done_again(storage, tmp_path):
    driver = started(tune(tmp_path, "--storage", storage, "--n-trials", "4", "-j", "2", "--trials-only"), tmp_path)
    [victim, *_] = wait_for(under_way(storage))
    os.kill(Owner.parse(victim.user_attrs["owner"]).pid, signal.SIGKILL)
    assert driver.wait(180) == 0, (tmp_path / "output.txt").read_text()
    check_all_done(storage, 4, [victim.number])
    assert "was lost and is done again" in (tmp_path / "output.txt").read_text()


def test_a_killed_tuning_goes_on_where_it_was(storage, tmp_path):
    # Long enough for the trial to be under way still when the kill arrives.
    command = tune(tmp_path, "--storage", storage, "--n-trials", "4", "-j", "2", "--trials-only", n="1500")
    driver = started(command, tmp_path)
    victims = wait_for(under_way(storage))
    driver.kill()
    driver.wait()
    workers = [Owner.parse(victim.user_attrs["owner"]) for victim in victims]
    wait_for(lambda: all(worker.is_dead() for worker in workers), 30)
    assert main(command) == 0
    lost = [t.number for t in trials_of(storage) if t.state is TrialState.FAIL]
    check_all_done(storage, 4, lost)
    assert lost
    n_trials = len(trials_of(storage))
    assert main(command) == 0
    assert len(trials_of(storage)) == n_trials, "nothing is left to do"


def test_two_tunings_share_the_work_and_do_not_overshoot(storage, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    drivers = []
    for folder in folders:
        folder.mkdir()
        command = tune(folder, "--storage", storage, "--n-trials", "5", "-j", "2", "--trials-only", n="200")
        drivers.append(started(command, folder))
    for driver, folder in zip(drivers, folders, strict=True):
        assert driver.wait(240) == 0, (folder / "output.txt").read_text()
    trials = trials_of(storage)
    assert sum(counts(trial) for trial in trials) == 5
    assert sum("settings" in trial.user_attrs for trial in trials) == 5, "no other was begun"
    defaults = [t for t in trials if name_of(t) == "the first trial" and counts(t)]
    assert len(defaults) == 1


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path):
    storage = f"journal:{tmp_path}/trials.log"
    command = tune(tmp_path, "--n-trials", "3", "-j", "1", "--final-top", "1", "--final-seeds", "1", n="1500")
    driver = started(command, tmp_path)
    [victim, *_] = wait_for(under_way(storage, after=0))
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    assert driver.wait(60) == 130
    output = (tmp_path / "output.txt").read_text()
    assert "to go on, give the same command again" in output
    assert "Traceback" not in output
    assert Owner.parse(victim.user_attrs["owner"]).is_dead()
    assert not [t for t in trials_of(storage) if t.state is TrialState.RUNNING]
    assert [t.user_attrs["in_place_of"] for t in trials_of(storage) if t.state is TrialState.WAITING] == [victim.number]


def test_the_same_command_twice_gives_the_same_trials_also_if_one_was_interrupted(tmp_path):
    found = []
    extra = ["-j", "1", "--trials-only", "--seeds-per-trial", "2"]
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        storage = f"journal:{folder}/trials.log"
        if folder.name == "two":
            assert main(tune(folder, *extra, "--n-trials", "1")) == 0
            driver = started(tune(folder, *extra, "--n-trials", "6"), folder)
            wait_for(under_way(storage, after=2))
            os.killpg(driver.pid, signal.SIGINT)
            assert driver.wait(60) == 130
        assert main(tune(folder, *extra, "--n-trials", "6")) == 0
        trials = [trial for trial in trials_of(storage) if counts(trial)]
        found.append([(t.params, t.state, t.value, t.intermediate_values) for t in trials])
    assert len(trials_of(storage)) > 6, "one was lost on the way"
    assert found[0] == found[1]
    assert len({json.dumps(params, sort_keys=True) for params, *_ in found[0]}) == 6


def test_from_start_to_end(tmp_path, capsys):
    space = tmp_path / "space.json"
    space.write_text(json.dumps(SPACE))
    extra = ["--n-trials", "4", "--final-top", "1", "--final-seeds", "2", "--space", str(space), "-params", "n_envs:2"]
    assert main(tune(tmp_path, *extra, "gamma:0.9")) == 0
    output = capsys.readouterr().out
    assert "1 settings are searched, 3 seeds a trial" in output
    assert "On seeds that had no part in this: mean" in output
    entry = tmp_path / "a2c.yml"
    if entry.exists():  # unless the defaults have won
        settings = zoo_config("a2c", "CartPole-v1", tmp_path)
        assert settings["n_envs"] == 2
        assert settings["gamma"] == 0.9
        assert set(settings) <= {"n_envs", "gamma", "learning_rate"}
    # Everything is kept: a second call carries nothing out.
    assert main(tune(tmp_path, *extra, "gamma:0.9")) == 0
    assert "4 trials are in the storage already" in capsys.readouterr().out
    assert len(trials_of(f"journal:{tmp_path}/trials.log")) == 4
    assert main(tune(tmp_path, *extra, "gamma:0.8")) == 2
    assert "arguments.gamma is 0.8, but was 0.9. Give another" in capsys.readouterr().err


def test_a_study_of_something_else_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_pg_ext.experiments.tuning.tuning._SECONDS_FOR_A_PLAN", 0.1)
    plan = plan_tuning("npg", "CartPole-v1", 200)
    storage = f"journal:{tmp_path}/trials.log"
    foreign = optuna.create_study(storage=open_storage(storage), study_name="npg_CartPole-v1")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(SettingError, match="was not begun by sb3-pg tune"):
        Tuning(plan, tmp_path)
    # A study without trials is that of a process which was killed before it could say what it is.
    optuna.create_study(storage=open_storage(storage), study_name="empty", direction="maximize")
    with Tuning(plan, tmp_path, study_name="empty", start={"gamma": 0.9}) as tuning:
        assert tuning.study.user_attrs["start"] == {"gamma": 0.9}
    with pytest.raises(SettingError, match=r"start is \{'gamma': 0.8\}, but was \{'gamma': 0.9\}"):
        Tuning(plan, tmp_path, study_name="empty", start={"gamma": 0.8})
    Tuning(plan, tmp_path, study_name="empty").close()


def test_a_timeout_begins_no_further_trial(tmp_path, capsys):
    began = time.monotonic()
    assert main(tune(tmp_path, "--timeout", "1s", "-j", "1", "--trials-only", n="200")) == 0
    assert 1 <= len(trials_of(f"journal:{tmp_path}/trials.log")) < (time.monotonic() - began) * 10


class Hostile(gym.Env):
    """Rewards that are not a number after some steps."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), float("nan") if self.steps > 3 else 1.0, False, self.steps > 5, {}


def test_a_tuning_whose_trials_all_fail_ends_with_the_reason(tmp_path):
    module = tmp_path / "hostile_env.py"
    module.write_text(
        "import gymnasium as gym\nfrom test_tuning_processes import Hostile\ngym.register('Hostile-v0', Hostile)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = ["tune", "--algo", "reinforce", "--env", "hostile_env:Hostile-v0", "-n", "100", "-f", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_pg_ext.experiments.cli", *command, "--n-trials", "50"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "all of the first" in done.stdout
    assert "not finite" in done.stdout
    assert len(trials_of(f"journal:{tmp_path}/trials.log", "reinforce_hostile_env:Hostile-v0")) <= 8


QUITTING = """
import os, sys
import gymnasium as gym
from test_tuning_processes import Hostile

class Quitting(Hostile):
    def __init__(self, way):
        self.way = way
    def step(self, action):
        {"exit": sys.exit, "_exit": os._exit}[self.way](0)

gym.register("Quitting-v0", Quitting)
"""


@pytest.mark.parametrize(
    ("way", "reason", "n_trials"),
    [("exit", "SystemExit: 0", 1), ("_exit", "2 workers died over it; the last one ended with exit code 0", 2)],
)
def test_an_environment_that_ends_its_process_as_if_all_were_well_fails_the_trial(tmp_path, way, reason, n_trials):
    (tmp_path / "quitting_env.py").write_text(QUITTING)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = ["tune", "--algo", "reinforce", "--env", "quitting_env:Quitting-v0", "-n", "100", "-f", str(tmp_path)]
    command += ["--env-kwargs", f"way:{way}", "--n-trials", "1", "-j", "1", "--trials-only"]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_pg_ext.experiments.cli", *command],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert reason in done.stdout
    trials = trials_of(f"journal:{tmp_path}/trials.log", "reinforce_quitting_env:Quitting-v0")
    assert len(trials) == n_trials
    assert [trial.user_attrs["reason"] for trial in trials if counts(trial)] == [reason]


def test_no_password_is_kept_anywhere(tmp_path, monkeypatch):
    plan = plan_tuning("npg", "CartPole-v1", 100, seeds_per_trial=1, n_evaluations=1, episodes=1)
    monkeypatch.setattr(sys, "argv", ["sb3-pg", "tune", "--storage", "postgresql://me:swordfish@host/x"])
    with Tuning(plan, tmp_path) as tuning:
        tuning.run(n_trials=1, jobs=1)
        tuning.choose(top=1, seeds=1, jobs=1)
        write_report(tuning.study, plan, tmp_path)
    files = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [path for path, content in files.items() if b"swordfish" in content]
    for stage in ("choice", "verdict"):
        with Store(tmp_path / stage / FILE_NAME) as store:
            asked = store.commands()
            ran = {record.provenance["command"] for record in store.records()}
        assert asked == [*ran] == ["sb3-pg tune --storage 'postgresql://me:***@host/x'"]


def test_workers_that_cannot_get_a_trial_end_the_tuning(tmp_path, monkeypatch):
    plan = plan_tuning("npg", "CartPole-v1", 200)
    with Tuning(plan, tmp_path) as tuning:
        tuning.study_name = "nobody made this"
        with pytest.raises(TuningError, match=r"5 worker processes in a row have ended without a trial: see .*logs"):
            tuning.run(n_trials=3, jobs=1)
    assert "Record does not exist" in "".join(log.read_text() for log in (tmp_path / "logs").iterdir())


def test_mistakes_show_before_anything_is_stored(tmp_path, capsys):
    for extra, words in [
        (["--sampler", "bayes"], "sampler='bayes': allowed are 'tpe'"),
        (["--pruner", "wilcoxon", "--seeds-per-trial", "2"], "at least 5"),
        (["-params", "learning_rat:0.1"], "no argument 'learning_rat'. Did you mean 'learning_rate'"),
        (["-params", "policy:NoPolicy"], "NoPolicy"),
        (["--aggregate", "best"], "aggregate='best'"),
        (["--storage", "x.db"], "expected journal:PATH"),
    ]:
        assert main(tune(tmp_path / "never", *extra)) == 2
        assert words in capsys.readouterr().err
    assert main(tune(tmp_path / "never", algo="maskable_ppo")) == 2
    assert "needs an environment with an action_masks() method; CartPole-v1 has none" in capsys.readouterr().err
    assert not (tmp_path / "never" / "trials.log").exists()


def test_in_python(tmp_path):
    plan = plan_tuning("npg", "CartPole-v1", 200, seeds_per_trial=1, n_evaluations=2, episodes=2)
    tuning = Tuning(plan, tmp_path)
    with pytest.raises(TuningError, match="no trial of 'npg_CartPole-v1' has been completed"):
        tuning.choose()
    with pytest.raises(ValueError, match="n_trials=None and timeout=None"):
        tuning.run(n_trials=None)
    tuning.run(n_trials=1, jobs=1)
    winner = tuning.choose(top=1, seeds=1)
    assert len(winner.scores) == 1
    assert {contender.label for contender in winner.contenders} <= {"trial 0", "defaults"}


def test_the_first_trial_is_the_defaults_or_what_is_asked_for(tmp_path):
    plan = plan_tuning("npg", "CartPole-v1", 200)
    for start, gamma in (({}, 0.99), ({"gamma": 0.95}, 0.95)):
        with Tuning(plan, tmp_path / str(gamma), start=start) as tuning:
            [first] = tuning.study.get_trials()
        assert first.state is TrialState.WAITING
        assert first.system_attrs["fixed_params"]["1-gamma"] == pytest.approx(1 - gamma)
    with pytest.raises(SettingError, match="the first trial on CartPole-v1"):
        Tuning(plan, tmp_path / "bad", start={"gamma": 2.0})


def test_a_worker_that_stands_still_is_ended_and_its_trial_done_again(tmp_path):
    storage = f"journal:{tmp_path}/trials.log"
    command = tune(tmp_path, "--n-trials", "2", "-j", "1", "--trials-only", "--stall-limit", "5")
    driver = started(command, tmp_path)
    [victim, *_] = wait_for(under_way(storage, after=0))
    os.kill(Owner.parse(victim.user_attrs["owner"]).pid, signal.SIGSTOP)
    assert driver.wait(120) == 0, (tmp_path / "output.txt").read_text()
    check_all_done(storage, 2, [victim.number])
    assert trials_of(storage)[victim.number].user_attrs["lost"] == "had stood still for 5 s and was ended"
    output = (tmp_path / "output.txt").read_text()
    assert "was lost and is done again: its worker had stood still for 5 s and was ended" in output
