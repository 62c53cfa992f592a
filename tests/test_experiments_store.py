"""The store of a study: claims, deaths, and what survives them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sb3_pg_ext.experiments.database import SCHEMA_VERSION
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.results import Evaluation, Outcome, Reference
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.store import MAX_DEATHS, LostRunError, Store

ME = str(Owner.current())
OUTCOME = Outcome(steps=100, wall_seconds=2.0, cpu_seconds=1.5, train_seconds=1.0)


def run(replicate: int = 0, label: str = "ppo", env_id: str = "CartPole-v1", **settings: float) -> RunSpec:
    return RunSpec(
        label=label,
        algo="ppo",
        policy=None,
        environment=Environment(env_id),
        replicate=replicate,
        seeds=seeds_of(0, replicate),
        total_steps=100,
        arguments=settings,
        hyperparameters={"gamma": 0.99, **settings},
        protocol=Protocol(50),
        versions={"torch": "2"},
    )


def evaluation(step: int, value: float = 1.0) -> Evaluation:
    return Evaluation(step, (value, value + 1.0), (10, 11), 0.25)


def status(store: Store, spec: RunSpec) -> str:
    return store.statuses([spec.key])[spec.key]["status"]


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "deep" / "study.sqlite", create=True) as opened:
        yield opened


def test_a_run_goes_from_pending_to_finished_and_comes_back_as_it_was(store: Store) -> None:
    spec = run(label="a | b · ü")
    store.declare([spec], "the command")
    assert store.pending([spec.key]) == [spec]
    assert store.claim(spec.key, ME) == spec
    assert store.pending([spec.key]) == []
    store.add_evaluation(spec.key, ME, "training", evaluation(0))
    store.add_evaluation(spec.key, ME, "training", evaluation(50, 5.0))
    store.add_evaluation(spec.key, ME, "test", evaluation(100, 7.0))
    store.beat(spec.key, ME, 99, 0.5)
    row = store.statuses([spec.key])[spec.key]
    assert (row["status"], row["step"], row["latest"]) == ("running", 99, 7.5)
    store.finish(spec.key, ME, OUTCOME, {"git": "abc"})
    (record,) = store.records()
    assert record.spec == spec
    assert record.status == "finished"
    assert record.outcome == OUTCOME
    assert record.provenance == {"git": "abc"}
    assert record.evaluations == (evaluation(0), evaluation(50, 5.0))
    assert record.test == evaluation(100, 7.0)
    assert record.final_return == 7.5
    assert store.commands() == ["the command"]


def test_declaring_again_keeps_results_and_adds_what_is_new(store: Store) -> None:
    store.declare([run(0)])
    store.claim(run(0).key, ME)
    store.add_evaluation(run(0).key, ME, "training", evaluation(0))
    store.finish(run(0).key, ME, OUTCOME, {})
    store.declare([run(0), run(1)])
    assert [record.status for record in store.records()] == ["finished", "pending"]
    assert store.records()[0].evaluations == (evaluation(0),)
    assert store.pending([run(0).key, run(1).key]) == [run(1)]


def test_a_finished_or_running_run_cannot_be_claimed(store: Store) -> None:
    store.declare([run()])
    assert store.claim(run().key, ME) is not None
    assert store.claim(run().key, "other|boot|1|2") is None
    store.finish(run().key, ME, OUTCOME, {})
    assert store.claim(run().key, ME) is None
    assert store.claim("no such run", ME) is None


def _claim_all(path: str, keys: list[str], results) -> None:
    with Store(path) as store:
        results.put([key for key in keys if store.claim(key, str(Owner.current())) is not None])


def test_of_many_processes_each_run_goes_to_one(store: Store) -> None:
    specs = [run(replicate) for replicate in range(40)]
    store.declare(specs)
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    keys = [spec.key for spec in specs]
    workers = [context.Process(target=_claim_all, args=(str(store.path), keys, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    claimed = [key for _ in workers for key in results.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(keys)


def test_only_the_owner_writes(store: Store) -> None:
    store.declare([run()])
    store.claim(run().key, ME)
    for write in (
        lambda: store.beat(run().key, "other|boot|1|2", 5, 0.5),
        lambda: store.add_evaluation(run().key, "other|boot|1|2", "training", evaluation(0)),
        lambda: store.finish(run().key, "other|boot|1|2", OUTCOME, {}),
        lambda: store.fail(run().key, "other|boot|1|2", "error", {}),
    ):
        with pytest.raises(LostRunError):
            write()
    (record,) = store.records()
    assert (record.status, record.evaluations, record.step) == ("running", (), 0)


def test_a_run_of_a_dead_process_is_begun_anew_without_its_evaluations(store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    alive = replace(Owner.current(), pid=child.pid, started=_started(child.pid))
    store.declare([run(0), run(1)])
    store.claim(run(0).key, str(alive))
    store.claim(run(1).key, ME)
    store.add_evaluation(run(0).key, str(alive), "training", evaluation(0))
    assert alive.is_dead() is False
    assert store.release_dead(silence=0.0) == []
    child.kill()
    child.wait()
    assert alive.is_dead() is True
    assert store.release_dead(silence=1e9, watched=[run(0).key]) == []
    assert store.release_dead(silence=1e9) == [run(0).key]
    assert [record.status for record in store.records()] == ["pending", "running"]
    assert store.records()[0].evaluations == ()
    with pytest.raises(LostRunError):
        store.beat(run(0).key, str(alive), 1, 0.5)


def _started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = replace(Owner.current(), pid=child.pid, started=_started(child.pid))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert owner.is_dead() is True
    child.wait()


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({}, False),
        ({"started": "1"}, True),  # the number was used again
        ({"boot": "before"}, True),  # the machine was started again
        ({"host": "elsewhere"}, None),  # cannot be seen from here
    ],
    ids=str,
)
def test_who_is_dead(change: dict, dead: bool | None) -> None:
    owner = replace(Owner.current(), **change)
    assert owner.is_dead() is dead
    assert Owner.parse(str(owner)) == owner


def test_a_worker_on_another_machine_is_dead_after_a_long_silence(store: Store) -> None:
    far = str(replace(Owner.current(), host="elsewhere"))
    store.declare([run()])
    store.claim(run().key, far)
    assert store.release_dead(silence=60.0) == []
    time.sleep(0.05)
    assert store.release_dead(silence=0.01) == [run().key]


def test_a_run_that_kills_its_workers_fails_in_the_end(store: Store) -> None:
    store.declare([run()])
    for death in range(MAX_DEATHS):
        assert status(store, run()) == "pending", death
        store.claim(run().key, ME)
        store.beat(run().key, ME, 30, 0.5)
        store.bury(run().key, "other|boot|1|2", "not the owner")
        assert status(store, run()) == "running"
        store.bury(run().key, ME, "signal 9")
    (record,) = store.records()
    assert record.status == "failed"
    assert record.deaths == MAX_DEATHS
    assert record.error == "signal 9 (for the 2nd time), at step 30"


def test_failures_are_kept_and_retried_only_when_asked(store: Store) -> None:
    store.declare([run(0), run(1)])
    store.claim(run(0).key, ME)
    store.fail(run(0).key, ME, "Traceback: boom", {})
    assert store.records()[0].error == "Traceback: boom"
    store.declare([run(0), run(1)])
    assert status(store, run(0)) == "failed"
    assert store.retry_failed([run(0).key, run(1).key]) == 1
    assert status(store, run(0)) == "pending"
    assert store.records()[0].error is None


def test_what_is_no_part_of_the_study_any_more_is_shown_only_if_it_was_begun(store: Store) -> None:
    begun, dropped = [run(k, label="begun", gamma=0.5) for k in range(2)], run(0, label="dropped", gamma=0.6)
    store.declare([run(0), *begun, dropped], whole=True)
    store.claim(begun[0].key, ME)
    store.declare([run(0)], whole=True)
    assert [(r.spec.label, r.spec.replicate) for r in store.records()] == [("ppo", 0), ("begun", 0)]
    store.declare([dropped])
    assert {r.spec.label for r in store.records()} == {"ppo", "begun", "dropped"}


def _finished(store: Store, *specs: RunSpec) -> None:
    for spec in specs:
        store.claim(spec.key, ME)
        store.add_evaluation(spec.key, ME, "training", evaluation(0))
        store.finish(spec.key, ME, OUTCOME, {"git": f"commit {spec.replicate}"})


def _of_master(master: int, *replicates: int) -> list[RunSpec]:
    return [replace(run(replicate), seeds=seeds_of(master, replicate)) for replicate in replicates]


def _shown(store: Store) -> list[tuple[int, int]]:
    """(number of the run, master seed) of what is shown."""
    masters = {seeds_of(master, k): master for master in (0, 1) for k in range(4)}
    return sorted((r.spec.replicate, masters[r.spec.seeds]) for r in store.records())


@pytest.mark.parametrize("knows_seeds", [True, False])
def test_runs_of_another_master_seed_take_the_place_of_those_of_the_same_number(
    store: Store, knows_seeds: bool
) -> None:
    def declare(master: int, *replicates: int) -> list[RunSpec]:
        runs = _of_master(master, *replicates)
        store.declare(runs, seeds=(lambda replicate: seeds_of(master, replicate)) if knows_seeds else None)
        return runs

    _finished(store, *declare(0, 0, 1, 2))
    _finished(store, *declare(1, 0, 1))
    # The third of the first set is no replicate of these, if it can be known.
    rest = [] if knows_seeds else [(2, 0)]
    assert _shown(store) == [(0, 1), (1, 1), *rest]
    assert store.count_hidden() == 3 - len(rest)
    # Fewer of them hide nothing that is finished, and bring back nothing of the other set.
    declare(1, 0)
    assert _shown(store) == [(0, 1), (1, 1), *rest]
    declare(0, 0, 1)
    assert _shown(store) == [(0, 0), (1, 0), (2, 0)]


def test_fewer_seeds_can_be_asked_for_after_more(store: Store) -> None:
    store.declare([run(number) for number in range(400)])
    _finished(store, run(0), run(7))
    store.claim(run(9).key, ME)
    store.declare([run(0), run(1)])
    shown = {record.spec.replicate: record.status for record in store.records()}
    assert shown == {0: "finished", 1: "pending", 7: "finished", 9: "running"}
    store.declare([run(number) for number in range(3)])
    assert sorted(record.spec.replicate for record in store.records()) == [0, 1, 2, 7, 9]


def test_where_finished_runs_come_from(store: Store) -> None:
    store.declare([run(0), run(1), run(2)])
    _finished(store, run(0), run(2))
    assert store.finished_by([run(1).key, run(2).key]) == [{"git": "commit 2"}]


def test_no_more_waiting_runs_are_read_than_there_is_room_for(store: Store, monkeypatch) -> None:
    specs = [run(replicate) for replicate in range(5)]
    store.declare(specs)
    read: list[str] = []
    from_json = RunSpec.from_json
    monkeypatch.setattr(RunSpec, "from_json", lambda text: read.append(text) or from_json(text))
    assert store.pending([spec.key for spec in specs[1:]], limit=2) == specs[1:3]
    assert len(read) == 2


def test_other_settings_under_the_same_label_replace_the_runs_that_are_shown(store: Store) -> None:
    store.declare([run(0), run(1), run(0, label="a2c", gamma=0.5)])
    store.claim(run(0).key, ME)
    store.declare([run(0, gamma=0.9)])
    assert [(r.spec.label, r.spec.hyperparameters["gamma"]) for r in store.records()] == [("a2c", 0.5), ("ppo", 0.9)]
    assert store.count_hidden() == 1, "the other was never begun"
    store.declare([run(2)])
    assert [(r.spec.label, r.spec.replicate) for r in store.records()] == [("ppo", 0), ("ppo", 2), ("a2c", 0)]
    store.declare([run(0, env_id="Acrobot-v1")])
    assert len(store.records()) == 4


def test_the_first_seed_of_every_setting_comes_before_the_second_of_any(store: Store) -> None:
    specs = [
        run(replicate, label=label, gamma=gamma) for label, gamma in (("a", 0.1), ("b", 0.2)) for replicate in (0, 1)
    ]
    store.declare(specs)
    order = [(spec.replicate, spec.label) for spec in store.pending([spec.key for spec in specs])]
    assert order == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_a_missing_a_foreign_and_a_newer_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no study"):
        Store(tmp_path / "study.sqlite")
    (tmp_path / "text.sqlite").write_text("hello, this is no database at all" * 10)
    with pytest.raises(ValueError, match="is not a study that can be used"):
        Store(tmp_path / "text.sqlite")
    database = sqlite3.connect(tmp_path / "newer.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    with pytest.raises(ValueError, match="version 99"):
        Store(tmp_path / "newer.sqlite")


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("version", [0, 2])
def test_a_database_of_something_else_is_left_as_it_is(version: int, create: bool, tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(f"CREATE TABLE foo (a); PRAGMA user_version = {version}")
    database.close()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="a database of something else, with the tables foo"):
        Store(path, create=create)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_empty_file_becomes_a_study_only_where_one_is_to_be_made(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    path.touch()
    with pytest.raises(ValueError, match="it is empty"):
        Store(path)
    assert path.stat().st_size == 0
    Store(path, create=True).close()
    Store(path).close()


def test_a_file_that_another_process_keeps_locked_is_named(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "study.sqlite"
    monkeypatch.setattr("sb3_pg_ext.experiments.database._PATIENCE", 0.01)
    with Store(path, create=True) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            TimeoutError, match=r"study\.sqlite: another process has kept it locked for more than 0\.01 s"
        ):
            store.declare([run()])
        other.execute("ROLLBACK")
        store.declare([run()])
        other.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TimeoutError, match="another process has kept it locked"):
        Store(path)
    other.close()


_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_experiments_store import *
with Store({path!r}) as store:
    me = str(Owner.current())
    store.release_dead(silence=1e9)
    for number in range(10_000):
        spec = run(number)
        store.declare([spec])
        if store.claim(spec.key, me) is None:
            continue
        store.add_evaluation(spec.key, me, "training", evaluation(0))
        store.finish(spec.key, me, OUTCOME, {{}})
        print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9_at_any_moment(store: Store) -> None:
    acknowledged = 0
    for kill in range(4):
        code = _WRITER.format(tests=str(Path(__file__).parent), path=str(store.path))
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(5 + kill)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        acknowledged = 1 + max(int(line) for line in lines if line.endswith("\n"))
    store.release_dead(silence=1e9)
    records = store.records()
    finished = {record.spec.replicate for record in records if record.status == "finished"}
    assert set(range(acknowledged)) <= finished
    assert all(record.evaluations == (evaluation(0),) for record in records if record.status == "finished")
    assert all(record.status == "pending" for record in records if record.status != "finished")
    assert sqlite3.connect(store.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


# A study as the first version of the file had it, with a run under way, a finished one and a failed one.
VERSION_1 = Path(__file__).parent / "data" / "study_version_1.sql"


def _old_file(path: Path) -> Path:
    database = sqlite3.connect(path)
    database.executescript(VERSION_1.read_text(encoding="utf-8"))
    database.close()
    return path


def test_a_file_of_the_first_version_is_brought_up_to_date_with_all_that_it_holds(tmp_path: Path) -> None:
    path = _old_file(tmp_path / "study.sqlite")
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        before = database.execute("SELECT key, settings, status, step, spec FROM runs ORDER BY key").fetchall()
    assert len(before) == 3
    with Store(path) as store:
        records = store.records()
        assert sorted(record.status for record in records) == ["failed", "finished", "running"]
        # The keys of old runs are still theirs.
        assert {record.spec.key for record in records} == {row[0] for row in before}
        assert {record.spec.settings_key for record in records} == {row[1] for row in before}
        assert next(r for r in records if r.status == "finished").final_return == 7.5
        assert store.references() == {}
        store.declare([run(5)], references={"CartPole-v1": Reference(9.0, 500.0)})
    with Store(path) as again:
        assert again.references() == {"CartPole-v1": Reference(9.0, 500.0)}
        assert len(again.records()) == 4
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        columns = "SELECT key, settings, status, step, spec FROM runs WHERE key != ? ORDER BY key"
        assert database.execute(columns, (run(5).key,)).fetchall() == before


def test_an_old_file_that_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    path = _old_file(tmp_path / "study.sqlite")
    content = path.read_bytes()
    with Store(path, read_only=True) as store:
        assert len(store.records()) == 3
        assert store.references() == {}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.declare([run()])
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("old", [False, True])
def test_a_study_in_a_folder_that_cannot_be_written_to_can_be_read(old: bool, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "with a space?" / "study.sqlite"
    path.parent.mkdir()
    if old:
        _old_file(path)
    else:
        with Store(path, create=True) as store:
            store.declare([run(k) for k in range(3)])
    # SQLite itself would write into it: what it does while the file is open must be nothing.
    monkeypatch.setattr("sb3_pg_ext.experiments.database.os.access", lambda path, mode: mode != os.W_OK)
    with Store(path) as store:
        assert len(store.records()) == 3
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def _open(path: str, results) -> None:
    try:
        with Store(path) as store:
            results.put(len(store.records()))
    except Exception as error:
        results.put(repr(error))


def test_several_processes_may_open_an_old_file_at_once(tmp_path: Path) -> None:
    path = _old_file(tmp_path / "study.sqlite")
    context = multiprocessing.get_context("forkserver")
    results = context.Queue()
    openers = [context.Process(target=_open, args=(str(path), results)) for _ in range(4)]
    for opener in openers:
        opener.start()
    assert [results.get(timeout=60) for _ in openers] == [3] * 4
    for opener in openers:
        opener.join()


def test_an_old_and_a_new_file_have_the_same_tables(tmp_path: Path) -> None:
    def tables(path: Path, create: bool) -> dict[str, list[tuple]]:
        Store(path, create=create).close()
        with sqlite3.connect(path) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: database.execute(f"PRAGMA table_info({name})").fetchall() for name in sorted(names)}

    assert tables(_old_file(tmp_path / "old.sqlite"), False) == tables(tmp_path / "new.sqlite", True)


def _damage(path: Path) -> bytes:
    """Overwrite the middle of the file; its content now."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8192] = bytes(8192)
    path.write_bytes(content)
    return bytes(content)


def test_damage_is_found_on_opening_and_said_clearly(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    with Store(path, create=True) as store:
        store.declare([run(replicate) for replicate in range(200)])
    content = _damage(path)
    with pytest.raises(ValueError, match="is not a study that can be used") as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert "Nothing was changed" in str(caught.value)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="not a study"):
        Store(path)
    Store(path, check=False).close()


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the command is that of SQLite's own program")
def test_what_can_be_read_of_a_damaged_file_is_rescued_by_the_command_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "study.sqlite"
    specs = [run(replicate) for replicate in range(200)]
    with Store(path, create=True) as store:
        store.declare(specs)
        _finished(store, *specs[:3])
    _damage(path)
    with pytest.raises(ValueError, match="rescued") as caught:
        Store(path)
    subprocess.run(str(caught.value).partition("lost, by: ")[2], shell=True, check=False, capture_output=True)
    with Store(path.with_name("rescued.sqlite")) as store:
        records = store.records()
    assert 100 < len(records) < 200
    assert all(record.spec in specs for record in records)
    assert [record.status for record in records[:4]] == ["finished"] * 3 + ["pending"]


def test_scores_of_reference_are_kept_and_replaced(store: Store) -> None:
    assert store.references() == {}
    store.declare([run(0)], references={"CartPole-v1": Reference(9.0, 500.0), "A": Reference(-1.0, 1.0)})
    store.declare([run(0)], references={"CartPole-v1": Reference(20.0, 400.0)})
    store.declare([run(0)])
    assert store.references() == {"A": Reference(-1.0, 1.0), "CartPole-v1": Reference(20.0, 400.0)}
    # A file that says everything has no others for its environments.
    store.declare([run(0)], whole=True)
    assert store.references() == {"A": Reference(-1.0, 1.0)}


def imported(origin: str, label: str = "old", **settings: float) -> RunSpec:
    return replace(run(label=label, **settings), origin=origin)


def test_runs_made_elsewhere_are_numbered_and_known_again(store: Store) -> None:
    curve = [evaluation(0), evaluation(100, 3.0)]
    first = store.add_imported(imported("a"), curve, {"imported_from": "there"})
    second = store.add_imported(imported("b"), curve, {}, OUTCOME)
    other = store.add_imported(imported("c", gamma=0.5), curve, {})
    assert store.add_imported(imported("a", gamma=0.7), curve, {}) is None
    assert [(spec.label, spec.replicate) for spec in (first, second, other)] == [("old", 0), ("old", 1), ("old 2", 0)]
    records = store.records()
    assert [record.spec for record in records] == [first, second, other]
    assert all(record.status == "finished" and record.evaluations == tuple(curve) for record in records)
    assert (records[0].provenance, records[0].outcome) == ({"imported_from": "there"}, None)
    assert records[1].outcome == OUTCOME
    # The same settings as a run of our own have another key.
    assert imported("a").key != run(label="old").key
    assert imported("a").settings_key != run(label="old").settings_key
    with pytest.raises(ValueError, match="at least 2"):
        store.add_imported(imported("d"), curve[:1], {})
    with pytest.raises(ValueError, match="origin=None"):
        store.add_imported(run(), curve, {})
