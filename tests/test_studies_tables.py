"""What goes out of a study and comes into it: status, tables, and runs that were made elsewhere."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from collections import OrderedDict
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from test_experiments_store import ME, OUTCOME, evaluation, run

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.log_files import (
    Episode,
    UnreadableRunError,
    read_evaluations,
    read_monitors,
    read_zoo_yaml,
    windows,
)
from sb3_pg_ext.experiments.log_import import find_runs, read_run
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.study import Problem, Study
from sb3_pg_ext.experiments.study_status import Status
from sb3_pg_ext.experiments.variants import read_variant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with a finished run, one under way, a failed and a pending one."""
    with Store(tmp_path / "study" / FILE_NAME, create=True) as store:
        specs = [run(replicate, label='a "label", with signs') for replicate in range(4)]
        store.declare(specs)
        store.claim(specs[0].key, ME)
        store.add_evaluation(specs[0].key, ME, "training", evaluation(0))
        store.add_evaluation(specs[0].key, ME, "training", evaluation(100, 5.0))
        store.add_evaluation(specs[0].key, ME, "test", evaluation(100, 7.0))
        store.finish(specs[0].key, ME, OUTCOME, {"git": "abc", "host": "here"})
        store.claim(specs[1].key, ME)
        store.add_evaluation(specs[1].key, ME, "training", evaluation(20, 3.0))
        store.beat(specs[1].key, ME, 25, 5.0)
        store.claim(specs[2].key, ME)
        store.fail(specs[2].key, ME, "Traceback ...\nRuntimeError: on [fire]", {})
    return tmp_path / "study"


# --- status


def test_the_status_says_what_is_done_under_way_and_failed(folder: Path, capsys) -> None:
    with Store(folder / FILE_NAME) as store:
        status = Status.of(store)
        heartbeat = status.rows[run(1).key]["heartbeat"]
    label, env = 'a "label", with signs', "CartPole-v1"
    assert status.settings() == [(label, env, "4", "1", "1", "1", "1", "31%")]
    ((name, *cells),) = replace(status, now=heartbeat + 42.0).running()
    assert name == f"{label} · {env} · seed 1"
    pid = str(Owner.current().pid)
    assert cells == ["25 of 100", "25%", "3.50", "5", "0:15", "42 s ago", pid]
    assert status.failures() == [f"{label} · {env} · seed 2: RuntimeError: on [fire]"]
    assert status.line() == "1 of 4 runs are finished, 1 running, 1 pending, 1 failed."
    assert main(["study", "status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "RuntimeError: on [fire]" in shown
    assert "25 of 100" in shown


def test_a_dead_worker_is_called_dead(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    gone = str(replace(Owner.current(), pid=child.pid, started="1"))
    with Store(folder / FILE_NAME) as store:
        store.claim(run(3).key, gone)
        cells = Status.of(store).running()[1]
    assert cells[1:] == ("0 of 100", "0%", "–", "–", "–", "0 s ago", f"{child.pid}, dead")


# --- export


def _read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_the_study_holds(folder: Path, capsys) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["study", "export", str(folder)]) == 0
    names = ("runs.csv", "evaluations.csv", "runs.parquet", "evaluations.parquet")
    assert capsys.readouterr().out.split() == [str(folder / "tables" / name) for name in names]
    runs, evaluations = _read_csv(folder / "tables/runs.csv"), _read_csv(folder / "tables/evaluations.csv")
    assert [row["status"] for row in runs] == ["finished", "running", "failed", "pending"]
    assert [row["key"] for row in runs] == [run(replicate).key for replicate in range(4)]
    first = runs[0]
    assert first["label"] == 'a "label", with signs'
    assert (first["final_return"], first["steps_per_second"], first["git"]) == ("7.5", "100.0", "abc")
    assert json.loads(first["hyperparameters"]) == {"gamma": 0.99}
    assert runs[2]["error"] == "Traceback ...\nRuntimeError: on [fire]"
    assert runs[3]["final_return"] == ""
    assert [(row["key"], row["kind"], row["step"]) for row in evaluations] == [
        (run(0).key, "training", "0"),
        (run(0).key, "training", "100"),
        (run(0).key, "test", "100"),
        (run(1).key, "training", "20"),
    ]
    assert (evaluations[2]["mean_return"], evaluations[2]["std_return"]) == ("7.5", "0.5")
    assert json.loads(evaluations[2]["returns"]) == [7.0, 8.0]
    # The same in Parquet, with types.
    table = parquet.read_table(folder / "tables/evaluations.parquet").to_pylist()
    assert [(row["key"], row["kind"], row["step"]) for row in table] == [
        (row["key"], row["kind"], int(row["step"])) for row in evaluations
    ]
    assert table[2]["returns"] == [7.0, 8.0]
    assert table[2]["lengths"] == [10, 11]
    kept = parquet.read_table(folder / "tables/runs.parquet").to_pylist()
    assert [list(row) for row in kept] == [list(row) for row in runs]
    assert [row["final_return"] for row in kept] == [7.5, None, None, None]
    assert [row["frame_stack"] for row in kept] == [None] * 4


def test_without_pyarrow_the_error_says_what_to_install(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["study", "export", str(folder), "--format", "parquet"]) == 2
    assert 'pip install "sb3_pg_ext[report]"' in capsys.readouterr().err
    assert main(["study", "export", str(folder), "--format", "csv", "-o", str(folder / "out")]) == 0
    assert len(_read_csv(folder / "out/runs.csv")) == 4


# --- import


def zoo_run(
    logs: Path, number: int, returns: Any = ((1, 2), (3, 4), (5, 7)), seed: int = 3, name: str = "Pendulum-v1", **config
) -> Path:
    """A folder as rl_zoo3 writes it, with the tags of its YAML."""
    made = logs / "sac" / f"{name}_{number}"
    (made / name).mkdir(parents=True)
    steps = np.arange(1, len(returns) + 1) * 1000
    np.savez(made / "evaluations.npz", timesteps=steps, results=returns, ep_lengths=np.full_like(returns, 200))
    (made / "0.monitor.csv").write_text('#{"t_start": 1.0, "env_id": "Pendulum-v1"}\nr,l,t\n-900.0,200,1.0\n')
    content = {"policy": "MlpPolicy", "n_timesteps": 3000.0, "gamma": 0.9, "policy_kwargs": "dict(net_arch=[8])"}
    content |= {"normalize": "{'norm_obs': True}", "n_envs": 2, "train_freq": (1, "step"), **config}
    args = {"algo": "sac", "env": name, "seed": seed, "n_timesteps": -1, "env_kwargs": {"g": 9.0}}
    for file, table in (("config.yml", content), ("args.yml", args)):
        (made / name / file).write_text(yaml.dump(OrderedDict(table)))
    assert "!!python/object/apply:collections.OrderedDict" in (made / name / "config.yml").read_text()
    return made


def test_a_folder_of_the_zoo_becomes_a_run(tmp_path: Path) -> None:
    path = zoo_run(tmp_path, 4)
    imported = read_run(path)
    spec = imported.spec
    assert (spec.label, spec.algo, spec.policy) == ("sac (imported)", "sac", "MlpPolicy")
    assert spec.hyperparameters == {
        "gamma": 0.9,
        "policy_kwargs": {"net_arch": [8]},
        "train_freq": [1, "step"],
        "n_timesteps": 3000,
    }
    environment = spec.environment
    assert (environment.id, environment.n_envs, environment.kwargs) == ("Pendulum-v1", 2, {"g": 9.0})
    assert environment.normalize == {"norm_obs": True}
    assert (spec.total_steps, spec.seeds.train) == (3000, 3)
    assert (spec.protocol.every, spec.protocol.episodes, spec.protocol.deterministic) == (1000, 2, True)
    assert imported.evaluations == tuple(
        Evaluation(step, returns, (200, 200), 0.0)
        for step, returns in ((1000, (1.0, 2.0)), (2000, (3.0, 4.0)), (3000, (5.0, 7.0)))
    )
    assert imported.provenance == {"imported_from": f"{path.resolve()} (evaluations)"}


def test_imported_runs_stand_beside_the_studys_own(tmp_path: Path, capsys) -> None:
    logs, folder = tmp_path / "logs", tmp_path / "study"
    for number, last in ((2, 6), (10, 7), (1, 5)):
        zoo_run(logs, number, returns=((1, 2), (3, 4), (5, last)), seed=number)
    zoo_run(logs, 11, returns=((0, 0), (1, 1), (2, 2)), gamma=0.5)
    own = Study([read_variant("ppo")], [Problem("Pendulum-v1", 10, run().protocol)], 1).runs()
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(own)
    assert main(["study", "import", str(folder), str(logs)]) == 0
    assert "4 runs imported, 0 were there already." in capsys.readouterr().out
    with Store(folder / FILE_NAME) as store:
        before = store.records()
        assert [(r.spec.label, r.spec.replicate, r.spec.seeds.train, r.status) for r in before] == [
            ("ppo", 0, own[0].seeds.train, "pending"),
            ("sac (imported)", 0, 1, "finished"),
            ("sac (imported)", 1, 2, "finished"),
            ("sac (imported)", 2, 10, "finished"),
            ("sac (imported) 2", 0, 3, "finished"),
        ]
        assert [record.final_return for record in before[1:]] == [5.0, 5.5, 6.0, 2.0]
        # They are never carried out, and neither is anything else twice.
        assert store.pending([record.spec.key for record in before]) == own
        assert store.retry_failed([record.spec.key for record in before]) == 0
        assert Status.of(store).line() == "4 of 5 runs are finished, 4 of them imported, 1 pending."
    # Twice is once, also from another place.
    (tmp_path / "moved").mkdir()
    logs.rename(tmp_path / "moved/logs")
    assert main(["study", "import", str(folder), str(tmp_path / "moved")]) == 0
    assert "0 runs imported, 4 were there already." in capsys.readouterr().out
    with Store(folder / FILE_NAME) as store:
        assert store.records() == before
    assert main(["report", str(folder)]) == 0
    assert "sac (imported) 2" in (folder / "report.md").read_text()


def test_a_run_of_our_own_train_command_and_its_monitors(tmp_path: Path, capsys) -> None:
    logs = tmp_path / "logs"
    train = ["train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "600", "-f", str(logs), "--verbose", "0"]
    assert main([*train, "--eval-freq", "200", "--eval-episodes", "2", "--no-zoo-config", "--n-envs", "2"]) == 0
    path = logs / "a2c/CartPole-v1_1"
    imported = read_run(path)
    assert [e.step for e in imported.evaluations] == [0, 200, 400, 600]
    with np.load(path / "evaluations.npz") as arrays:
        assert [list(e.returns) for e in imported.evaluations] == arrays["results"].tolist()
    assert imported.spec.environment.n_envs == 2
    assert imported.spec.hyperparameters["n_timesteps"] == 600
    # Without evaluations, the episodes of training are the learning curve.
    (path / "evaluations.npz").unlink()
    learning = read_run(path)
    assert (learning.spec.algo, learning.spec.environment.id) == ("a2c", "CartPole-v1")
    assert not learning.spec.protocol.deterministic
    assert "episodes of training" in learning.source


def test_plain_files_of_monitor(tmp_path: Path, capsys) -> None:
    for seed in (0, 1):
        venv = make_vec_env("CartPole-v1", 2, seed=seed, monitor_dir=str(tmp_path / f"m/{seed}"))
        A2C("MlpPolicy", venv, seed=seed, device="cpu").learn(600)
        venv.close()
    with pytest.raises(UnreadableRunError, match="--algo"):
        read_run(tmp_path / "m/0")
    assert main(["study", "import", str(tmp_path / "s"), str(tmp_path / "m")]) == 1
    assert not (tmp_path / "s").exists()
    assert capsys.readouterr().err.count("not imported:") == 2
    command = ["study", "import", str(tmp_path / "s"), str(tmp_path / "m"), "--algo", "a2c", "--name", "mine"]
    assert main(command) == 0
    with Store(tmp_path / "s" / FILE_NAME) as store:
        first, second = store.records()
    # Each ends at a step of its own, and still they are seeds of one setting.
    assert first.spec.settings_key == second.spec.settings_key
    assert (first.spec.label, second.spec.label, second.spec.replicate) == ("mine", "mine", 1)
    lines = [file.read_text().splitlines()[2:] for file in (tmp_path / "m/0").glob("*.monitor.csv")]
    rows = [line.split(",") for file in lines for line in file]
    assert sum(len(e.returns) for e in first.evaluations) == len(rows)
    assert first.spec.total_steps == sum(int(length) for _, length, _ in rows)
    assert sum(map(sum, (e.returns for e in first.evaluations))) == pytest.approx(sum(float(r) for r, _, _ in rows))
    assert first.spec.environment.id == "CartPole-v1"
    assert first.spec.environment.n_envs == 2


def test_episodes_of_all_copies_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 100.0, "env_id": "x"}\nr,l,t\n1.0,10,1.0\n2.0,20,9.0\n3.0,4')
    (tmp_path / "1.monitor.csv").write_text('#{"t_start": 103.0, "env_id": "x"}\nr,l,t,extra\n5.0,30,2.0,z\n')
    episodes = read_monitors(sorted(tmp_path.glob("*.monitor.csv")))
    assert episodes == [Episode(101.0, 1.0, 10), Episode(105.0, 5.0, 30), Episode(109.0, 2.0, 20)]
    # 60 steps in 3 windows; in the first of them ended one, in the second one, in the third one.
    assert windows(episodes, 3) == [
        Evaluation(20, (1.0,), (10,), 0.0),
        Evaluation(40, (5.0,), (30,), 0.0),
        Evaluation(60, (2.0,), (20,), 0.0),
    ]
    assert windows(episodes, 1) == [Evaluation(60, (1.0, 5.0, 2.0), (10, 30, 20), 0.0)]
    assert [e.step for e in windows(episodes, 12)] == [10, 40, 60]
    assert windows([], 3) == []


def test_runs_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    paths = [zoo_run(tmp_path, number) for number in (10, 9, 1)]
    (paths[0] / "monitors").mkdir()
    (paths[0] / "monitors/0.monitor.csv").write_text("belongs to the run above")
    assert find_runs(tmp_path) == [paths[2], paths[1], paths[0]]
    assert find_runs(paths[0]) == [paths[0]]
    with pytest.raises(FileNotFoundError, match=r"there is no evaluations\.npz and no"):
        find_runs(tmp_path / "nowhere")


def test_a_run_that_did_not_come_to_its_end_is_not_imported(tmp_path: Path, capsys) -> None:
    zoo_run(tmp_path / "logs", 1, n_timesteps=1e6)
    zoo_run(tmp_path / "logs", 2, returns=[(1, 2)], n_timesteps=1000)
    zoo_run(tmp_path / "logs", 3)
    assert main(["study", "import", str(tmp_path / "study"), str(tmp_path / "logs")]) == 1
    shown = capsys.readouterr()
    assert "the run ended at step 3,000 of 1,000,000" in shown.err
    assert "a learning curve needs two points at least" in shown.err
    assert "1 runs imported" in shown.out


def test_what_cannot_be_imported_does_not_hold_up_the_rest(tmp_path: Path, capsys) -> None:
    good = [zoo_run(tmp_path / "logs", number, seed=number, returns=((1, 2), (3, number))) for number in (1, 2, 3)]
    endless = zoo_run(tmp_path / "odd", 4, n_timesteps=float("inf"))
    (tmp_path / "empty").mkdir()
    garbled = zoo_run(tmp_path / "odd", 5)
    (garbled / "evaluations.npz").unlink()
    (garbled / "0.monitor.csv").write_bytes(b'#{"t_start": 1.0}\nr,l,t\n\xff,1,1\n')
    unreadable = zoo_run(tmp_path / "odd", 6)
    (unreadable / "Pendulum-v1/args.yml").unlink()
    (unreadable / "Pendulum-v1/args.yml").mkdir()
    bad = [tmp_path / "empty", tmp_path / "nowhere", garbled, unreadable]
    logs = [bad[0], good[0], bad[1], good[1], good[1], bad[2], bad[3], endless, good[2]]
    assert main(["study", "import", str(tmp_path / "study"), *map(str, logs)]) == 1
    shown = capsys.readouterr()
    assert "4 runs imported, 0 were there already." in shown.out
    complaints = shown.err.splitlines()
    assert len(complaints) == 4
    for complaint, path in zip(complaints, bad, strict=True):
        assert complaint.startswith("not imported: ")
        assert str(path) in complaint
    with Store(tmp_path / "study" / FILE_NAME) as store:
        assert [record.spec.seeds.train for record in store.records()] == [1, 2, 3, 3]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "a: !!python/object/new:os.system ['touch ran']",
        "!!python/object/apply:collections.OrderedDict\n- 3",
        "[1, 2]",
        "a: [",
    ],
)
def test_settings_that_ask_for_objects_are_refused(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(UnreadableRunError, match=r"config\.yml"):
        read_zoo_yaml(tmp_path / "config.yml")
    assert not (tmp_path / "ran").exists()
    assert read_zoo_yaml(tmp_path / "args.yml") == {}


def test_a_name_of_a_class_stays_a_name(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("a: !!python/name:os.system ''\nb: !!python/tuple [1, step]")
    assert read_zoo_yaml(tmp_path / "config.yml") == {"a": "os.system", "b": [1, "step"]}


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"timesteps": [1, 2]}, "no file of evaluations"),
        ({"timesteps": [2, 1], "results": [[1.0], [2.0]], "ep_lengths": [[1], [1]]}, "do not increase"),
        ({"timesteps": [1, 2], "results": [[1.0], [np.nan]], "ep_lengths": [[1], [1]]}, "not finite"),
        ({"timesteps": [1, 2], "results": [[1.0]], "ep_lengths": [[1], [1]]}, "no file of evaluations"),
        ({"timesteps": np.array([print], object), "results": [[1.0]], "ep_lengths": [[1]]}, "no file of evaluations"),
    ],
)
def test_damaged_evaluations_are_refused(arrays: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluations.npz", **arrays)
    with pytest.raises(UnreadableRunError, match=complaint):
        read_evaluations(tmp_path / "evaluations.npz")
    (tmp_path / "evaluations.npz").write_bytes((tmp_path / "evaluations.npz").read_bytes()[:50])
    with pytest.raises(UnreadableRunError, match="no file of evaluations"):
        read_evaluations(tmp_path / "evaluations.npz")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("column", [0, 2])
def test_episodes_that_are_not_finite_are_refused_with_file_and_line(
    value: str, column: int, tmp_path: Path, capsys
) -> None:
    cells = ["1.0", "9", "3.0"]
    cells[column] = value
    text = f'#{{"t_start": 0, "env_id": "x"}}\nr,l,t\n1.0,9,1.0\n{",".join(cells)}\n2.0,9,4.0\n'
    (tmp_path / "0.monitor.csv").write_text(text)
    command = ["study", "import", str(tmp_path / "study"), str(tmp_path / "0.monitor.csv"), "--algo", "ppo"]
    assert main(command) == 1
    assert "0.monitor.csv, line 4: r and t must be finite, but it is" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_it_is_said_when_an_import_makes_a_new_study(tmp_path: Path, capsys) -> None:
    command = ["study", "import", str(tmp_path / "tyop"), str(zoo_run(tmp_path / "logs", 1))]
    said = f"There was no study in {tmp_path / 'tyop'}: a new one has been made."
    assert main(command) == 0
    assert said in capsys.readouterr().out
    assert main(command) == 0
    assert said not in capsys.readouterr().out


@pytest.mark.parametrize("action", ["status", "advise", "export"])
def test_looking_at_a_study_leaves_its_file_as_it_is(action: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / FILE_NAME
    with closing(sqlite3.connect(path)) as database:
        database.executescript((Path(__file__).parent / "data" / "study_version_1.sql").read_text(encoding="utf-8"))
    content = path.read_bytes()
    assert main(["study", action, str(tmp_path)]) == 0
    assert path.read_bytes() == content
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE foo (a)")
    assert main(["study", action, str(tmp_path)]) == 2
    assert "a database of something else, with the tables foo" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "r,l,t\n1,2,3\n", "#[1]\n", '#{"t_start": []}\nr,l,t\n', '#{"t_start": 0}\nr,l,t\n1,x,2\n3,4,5\n'],
)
def test_damaged_monitors_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text(text)
    with pytest.raises(UnreadableRunError, match=r"0\.monitor\.csv"):
        read_monitors([tmp_path / "0.monitor.csv"])
