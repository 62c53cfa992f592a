"""Studies on a Ray cluster of two nodes: the same numbers as on one machine, also when a node is lost."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from observing import rows, wait_for

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.ray_cluster import RayCluster, connect
from sb3_pg_ext.experiments.ray_keeper import Keeper, RemoteLedger, work_remotely
from sb3_pg_ext.experiments.results import Evaluation, Outcome
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import LostRunError, Store
from sb3_pg_ext.experiments.study_file import read_study
from sb3_pg_ext.experiments.worker import do_run, file_stem

STUDY = """
algorithms: [a2c, "mine=ppo:n_steps=64,n_epochs=2"]
environments: [CartPole-v1]
seeds: 2
n_timesteps: 3000
evaluation: {n_evaluations: 3, episodes: 2, test_episodes: 3}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def results(folder: Path) -> dict[str, Any]:
    """Key -> everything about a run that must not depend on where it was carried out."""
    with Store(folder / "study.sqlite") as store:
        return {
            r.spec.key: (r.status, [(e.step, e.returns, e.lengths) for e in r.evaluations], r.test and r.test.returns)
            for r in store.records()
        }


# --- the real thing


@pytest.fixture
def cluster() -> Iterator[dict[str, Any]]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip('Ray is not installed: pip install "sb3_pg_ext[ray]"')
    program = Path(__file__).with_name("ray_nodes.py")
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nodes:
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        try:
            yield json.loads(nodes.stdout.readline())
        finally:
            nodes.stdin.close()


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    direct = [child for child, parent in parents.items() if parent == pid]
    return [descendant for child in direct for descendant in (child, *children(child))]


def on_ray(study: Path, folder: Path, address: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sb3_pg_ext.experiments.cli", "compare", study, "-f", folder]
    with open(folder.with_suffix(".txt"), "ab") as output:
        return subprocess.Popen(
            [*command, "--executor", "ray", "--address", address], stdout=output, stderr=subprocess.STDOUT
        )


def running(folder: Path, at_least: int = 2) -> bool:
    found = [step for status, step in rows(folder, "status, step") if status == "running" and step > 0]
    return len(found) >= at_least


def test_a_study_gives_the_numbers_of_one_machine_although_a_node_and_the_command_are_killed(
    study: Path, tmp_path: Path, cluster: dict[str, Any]
) -> None:
    folder = tmp_path / "ray"
    command = on_ray(study, folder, cluster["address"])
    wait_for(lambda: running(folder))
    command.kill()
    command.wait()
    command = on_ray(study, folder, cluster["address"])
    wait_for(lambda: running(folder))
    lost, kept = cluster["nodes"]
    for pid in (lost, *children(lost)):
        with contextlib.suppress(ProcessLookupError):  # the later ones notice the death of the first
            os.kill(pid, signal.SIGKILL)
    assert command.wait(240) == 0, folder.with_suffix(".txt").read_text()
    os.kill(kept, 0)  # the other node lives
    assert main(["compare", str(study), "-f", str(tmp_path / "local")]) == 0
    assert results(folder) == results(tmp_path / "local")
    assert [status for status, *_ in results(folder).values()] == ["finished"] * 4
    assert rows(folder, "deaths") == [(0,)] * 4, "the loss of a machine is not held against a run"
    assert len(list((folder / "models").glob("*.zip"))) == 4


# --- its parts


def first_run(study: Path, folder: Path) -> RunSpec:
    """A study in ``folder`` of which nothing is done; its first run."""
    runs = read_study(study).study.runs()
    with Store(folder / "study.sqlite", create=True) as store:
        store.declare(runs)
    return runs[0]


def test_what_an_attempt_writes_is_taken_until_the_next_one_begins(study: Path, tmp_path: Path) -> None:
    run = first_run(study, tmp_path)
    me, evaluation = str(Owner.current()), Evaluation(0, (1.0,), (1,), 0.1)
    keeper = Keeper(str(tmp_path / "study.sqlite"), me)
    assert keeper.claim("first", run.key) == run
    assert keeper.claim("second", run.key) is None, "it is under way"
    keeper.add_evaluation("first", run.key, "training", evaluation)
    left = tmp_path / "logs" / f"{file_stem(run)}.log"
    keeper.keep_file("first", run.key, f"logs/{left.name}", b"left")
    keeper.store.give_back(run.key, me)
    assert rows(tmp_path, "status, deaths").count(("pending", 0)) == 4
    assert keeper.claim("second", run.key) == run
    for late in (
        lambda: keeper.beat("first", run.key, 10, 0.1),
        lambda: keeper.finish("first", run.key, Outcome(1, 1.0, 1.0, 1.0), {}),
        lambda: keeper.keep_file("first", run.key, "models/late.zip", b"late"),
    ):
        with pytest.raises(LostRunError, match="another attempt"):
            late()
    assert not (tmp_path / "models").exists()
    assert not left.exists(), "the log of the attempt before"
    keeper.add_evaluation("second", run.key, "training", evaluation)
    keeper.keep_file("second", run.key, "models/new.zip", b"new")
    keeper.finish("second", run.key, Outcome(1, 1.0, 1.0, 1.0), {})
    assert (tmp_path / "models" / "new.zip").read_bytes() == b"new"
    assert results(tmp_path)[run.key][:2] == ("finished", [(0, (1.0,), (1,))])


def test_giving_back_is_for_the_owner(study: Path, tmp_path: Path) -> None:
    run = first_run(study, tmp_path)
    with Store(tmp_path / "study.sqlite") as store:
        store.claim(run.key, str(Owner.current()))
        store.give_back(run.key, "somebody|else|1|1")
        assert store.statuses([run.key])[run.key]["status"] == "running"


class _Here:
    """The keeper of a cluster that is this process."""

    def __init__(self, keeper: Keeper):
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(getattr(self._keeper, name))

        return Method


@pytest.fixture
def ledger(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteLedger:
    first_run(study, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", type("Ray", (), {"get": staticmethod(lambda value: value)}))
    monkeypatch.setattr("sb3_pg_ext.experiments.worker.write_output_to", lambda path: path.parent.mkdir(exist_ok=True))
    monkeypatch.setattr("sb3_pg_ext.experiments.worker.remove_if_empty", lambda path: None)
    there = tmp_path / "another machine"
    there.mkdir()
    return RemoteLedger(_Here(Keeper(str(tmp_path / "study.sqlite"), str(Owner.current()))), there)


def test_models_come_back_from_the_worker(study: Path, tmp_path: Path, ledger: RemoteLedger) -> None:
    run = read_study(study).study.runs()[0]
    do_run(ledger, run.key, tmp_path / "another machine", "typed")
    assert results(tmp_path)[run.key][0] == "finished"
    assert [path.name for path in (tmp_path / "models").iterdir()] == [
        path.name for path in (tmp_path / "another machine" / "models").iterdir()
    ]


def test_a_machine_with_other_versions_leaves_the_run_alone(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first_run(study, tmp_path)
    monkeypatch.setattr("sb3_pg_ext.experiments.ray_keeper.versions", lambda *classes: {**run.versions, "torch": "1.0"})
    keeper = Keeper(str(tmp_path / "study.sqlite"), str(Owner.current()))
    assert work_remotely(keeper, run, "typed", 1.0, None) == f"torch 1.0 instead of {run.versions['torch']}"
    assert set(rows(tmp_path, "status")) == {("pending",)}


class FakeRay:
    """A cluster of two nodes whose tasks are functions that are called when their result is asked for."""

    def __init__(self) -> None:
        self.submitted: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self.outcome: Callable[[], tuple[str, str]] = lambda: ("first", "")

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        class Remote:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                self.submitted.append((options, arguments))
                return lambda: self.outcome()

            def options(self, **more: Any) -> Any:
                options.update(more)
                return self

        return lambda thing: Remote()

    def get_runtime_context(self) -> Any:
        return type("Context", (), {"get_node_id": staticmethod(lambda: "ab" * 28)})

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        node = {"Alive": True, "Resources": {"CPU": 1.0}}
        return [{**node, "NodeID": name, "NodeManagerAddress": name} for name in ("first", "second")]

    def wait(self, tasks: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list, list]:
        return tasks, []

    def get(self, task: Callable[[], Any]) -> Any:
        return task()

    def cancel(self, task: Any, force: bool) -> None:
        pass

    kill = shutdown = lambda self, *arguments: None


@pytest.fixture
def fake(study: Path, tmp_path: Path) -> Iterator[tuple[RayCluster, FakeRay, RunSpec]]:
    """A cluster in which the first run is under way."""
    pytest.importorskip("ray")
    run, ray = first_run(study, tmp_path), FakeRay()
    with Store(tmp_path / "study.sqlite") as store:
        cluster = RayCluster(store, ray, silence=2.0)
        cluster.submit(run)
        store.claim(run.key, str(Owner.current()))
        yield cluster, ray, run


def ended_by(error: str) -> Callable[[], Any]:
    from ray import exceptions

    def outcome() -> Any:
        made: dict[str, Callable[[Any], Exception]] = {
            "RayTaskError": lambda kind: kind("task", "traceback", ValueError("deep down")),
            "NodeDiedError": lambda kind: kind("lost"),
        }
        if error == "RayTaskError(RayTaskError)":  # the keeper was asked for what it could not do
            raise exceptions.RayTaskError(
                "task", "", made["RayTaskError"](exceptions.RayTaskError).as_instanceof_cause()
            )
        if error == "RayTaskError(ActorDiedError)":  # the task has found that the keeper is lost
            raise exceptions.RayTaskError("task", "traceback", exceptions.ActorDiedError()).as_instanceof_cause()
        raise made.get(error, lambda kind: kind())(getattr(exceptions, error))

    return outcome


@pytest.mark.parametrize(
    ("error", "deaths", "stops"),
    [
        ("NodeDiedError", 0, False),
        ("WorkerCrashedError", 1, False),
        ("ActorDiedError", 0, True),
        ("RayTaskError", 1, False),
        ("RayTaskError(RayTaskError)", 1, False),
        ("RayTaskError(ActorDiedError)", 0, True),
        ("LocalRayletDiedError", 0, True),
    ],
)
def test_what_ends_a_task_is_held_against_its_run_unless_more_is_lost(
    fake, error: str, deaths: int, stops: bool
) -> None:
    cluster, ray, run = fake
    ray.outcome = ended_by(error)
    with pytest.raises(ConnectionError, match="the cluster cannot carry out") if stops else contextlib.nullcontext():
        cluster.supervise(0.0)
    row = cluster.store.statuses([run.key])[run.key]
    assert (row["status"], row["deaths"], list(cluster.keys)) == ("pending", deaths, [])


def test_an_error_of_a_task_ends_its_run_at_the_second_time_and_nothing_else(fake) -> None:
    cluster, ray, run = fake
    ray.outcome = ended_by("RayTaskError(RayTaskError)")
    cluster.supervise(0.0)
    cluster.submit(run)
    cluster.store.claim(run.key, str(Owner.current()))
    cluster.supervise(0.0)
    row = cluster.store.statuses([run.key])[run.key]
    assert (row["status"], row["deaths"]) == ("failed", 2)
    assert "its task ended by an error: ValueError: deep down (for the 2nd time)" in row["error"]


@pytest.mark.parametrize("error", ["WorkerCrashedError", "RayTaskError"])
def test_workers_that_die_at_their_start_stop_the_study(fake, error: str) -> None:
    cluster, ray, run = fake
    ray.outcome = ended_by(error)
    cluster.store.give_back(run.key, str(Owner.current()))
    for _ in range(4):
        cluster.supervise(0.0)
        cluster.submit(run)
    with pytest.raises(ConnectionError, match="5 workers in a row have died at their start"):
        cluster.supervise(0.0)


def test_a_machine_that_does_not_fit_gets_no_more_runs(fake, capsys) -> None:
    cluster, ray, run = fake
    cluster.store.give_back(run.key, str(Owner.current()))
    ray.outcome = lambda: ("second", "torch 1.0 instead of 2.0")
    cluster.supervise(0.0)
    assert capsys.readouterr().err == "second gets no runs: it has torch 1.0 instead of 2.0\n"
    cluster.submit(run)
    [elsewhere] = ray.submitted[-1][0]["scheduling_strategy"].hard
    assert (elsewhere.key, list(elsewhere.operator.values)) == ("ray.io/node-id", ["second"])
    ray.outcome = lambda: ("first", "no torch")
    with pytest.raises(ConnectionError, match="no machine of the cluster can carry out the runs: no torch"):
        cluster.supervise(0.0)
    assert cluster.store.statuses([run.key])[run.key]["deaths"] == 0


def test_a_worker_without_a_sign_of_life_is_given_up(fake, monkeypatch) -> None:
    cluster, ray, run = fake
    assert ray.submitted[-1][1][3] == 0.5, "seconds between beats: four in the time after which it is given up"
    ray.wait = lambda tasks, **how: ([], tasks)
    cluster.supervise(0.0)
    assert list(cluster.keys) == [run.key]
    later = time.time() + 3
    monkeypatch.setattr("sb3_pg_ext.experiments.ray_cluster.time.time", lambda: later)
    cluster.supervise(0.0)
    assert list(cluster.keys) == []
    assert cluster.store.statuses([run.key])[run.key]["deaths"] == 1


def test_errors_of_ray_itself_are_told_in_a_line(monkeypatch) -> None:
    ray = pytest.importorskip("ray")

    def init(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Version mismatch: the cluster was started with:\n  Ray 2.0")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConnectionError, match=r"Ray at auto: Version mismatch: the cluster was started with:$"):
        connect()
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ValueError, match=r"'ray://head:10001': the command must run"):
        connect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "head:6379"], "--address head:6379: only --executor ray has one"),
        (
            ["--executor", "ray", "--address", "ray://head:10001"],
            "address='ray://head:10001': the command must run",
        ),
        (["--executor", "ray", "--address", "head"], "address='head': expected HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be(study: Path, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    assert main(["compare", str(study), "-f", str(tmp_path / "results"), *options]) == 2
    assert message in capsys.readouterr().err


def test_where_nobody_answers_it_is_said_at_once(study: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--executor", "ray", "--address", f"127.0.0.1:{port}"]
    assert main(["compare", str(study), "-f", str(tmp_path / "results"), *options]) == 2
    assert f"no Ray cluster answers at 127.0.0.1:{port}; start one by: ray start --head" in capsys.readouterr().err
    assert not (tmp_path / "results").exists(), "nothing is written before"


def test_without_ray_the_message_says_what_to_install(study: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["compare", str(study), "-f", str(tmp_path / "results"), "--executor", "ray"]) == 2
    assert 'pip install "sb3_pg_ext[ray]"' in capsys.readouterr().err
