"""Tuning without processes: what a trial is made of, which trials count, and what is written down of the best."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState, create_trial

from sb3_pg_ext import __version__, registry
from sb3_pg_ext.experiments import seeds as S
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.provenance import command, without_password
from sb3_pg_ext.experiments.results import Evaluation, Outcome, Record
from sb3_pg_ext.experiments.run_spec import RunSpec
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.tuning import choice, config_entry, journal, ledger, objective, outcome, workers
from sb3_pg_ext.experiments.tuning.choice import Winner, finalists, rounded
from sb3_pg_ext.experiments.tuning.fate import fate_of, fate_text
from sb3_pg_ext.experiments.tuning.ledger import Recovery, VoidTrialError, claim, counts, name_of, place_of
from sb3_pg_ext.experiments.tuning.plan import Plan, plan_of, plan_tuning
from sb3_pg_ext.experiments.tuning.samplers import PRUNERS, SAMPLERS, check_packages, make_pruner, make_sampler
from sb3_pg_ext.experiments.tuning.starting_point import parameters_of
from sb3_pg_ext.experiments.tuning.storages import open_storage, with_driver
from sb3_pg_ext.experiments.tuning.tuning import Tuning, _is_worth_while
from sb3_pg_ext.experiments.tuning.verdict import verdict
from sb3_pg_ext.experiments.tuning.worker import Proposal, run_trial
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.zoo_configs import zoo_config
from sb3_pg_ext.spec import Choice, Float, Int, OneMinus, When, suggest

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def plan(**options: Any) -> Plan:
    return plan_tuning("reinforce", "CartPole-v1", **{"total_steps": 1000, "n_evaluations": 4, **options})


# --- the plan


def test_the_seeds_of_trials_of_the_choice_and_of_studies_never_meet():
    ranges = []
    for kind, replicate in itertools.product((S.seeds_of, S.tuning_seeds, S.choice_seeds), range(200)):
        seeds = kind(3, replicate)
        ranges += [seed for seed in (seeds.train, seeds.evaluation, seeds.test) if seed]
    streams = {seed >> 28 for seed in ranges}
    assert len(streams) == 8, "three streams of studies, two of trials, three of the choice"
    assert max(ranges) + 2**27 < 2**32, "numpy takes no larger seeds, with room for environments counted up"
    assert all((seed + 2**27 - 1) >> 28 == seed >> 28 for seed in ranges), "room within the stream"


def test_runs_of_studies_have_the_seeds_that_they_always_had():
    assert S.seeds_of(0, 0) == S.Seeds(127766640, 391977079, 598168173)


def test_a_plan_survives_its_storage():
    made = plan(arguments={"policy_kwargs": {"net_arch": (8,)}, "n_envs": 2}, env_kwargs={"sutton_barto_reward": True})
    assert Plan.from_json(made.to_json()) == made
    assert made.differences(plan())
    assert not made.differences(Plan.from_json(made.to_json()))


def test_of_another_plan_only_what_differs_is_told_and_not_much_of_it():
    space = {**plan().dimensions, "learning_rate": Float(1e-5, 0.1, log=True)}
    low = plan().dimensions["learning_rate"].low
    assert plan(space=space).differences(plan()) == [f"space.learning_rate.low is 1e-05, but was {low}"]
    del space["learning_rate"]
    [gone] = plan(space=space).differences(plan())
    assert gone.startswith("space.learning_rate is absent, but was {'type': 'float',")
    assert plan(arguments={"policy_kwargs": {"net_arch": [8]}}, space=space).differences(
        plan(arguments={"policy_kwargs": {"net_arch": [9]}}, space=space)
    ) == ["arguments.policy_kwargs.net_arch is [8], but was [9]"]
    many = plan().differences(
        plan_tuning("npg", "CartPole-v1", 1000, arguments={"policy_kwargs": {"net_arch": [8] * 99}})
    )
    assert len("; ".join(many)) < 1000
    assert many[-1].endswith(" more")


@pytest.mark.parametrize(
    ("change", "words"), [({"spare": 1}, "its plan has 'spare'"), ({"every": None}, "its plan lacks 'every'")]
)
def test_a_plan_of_another_version_is_refused_with_the_versions(change, words):
    content = {
        name: value for name, value in {**vars(plan()), **change}.items() if value is not None or name == "n_envs"
    }
    attributes = {"plan": json.dumps(content), "versions": {"sb3_pg_ext": "0.0.7"}}
    with pytest.raises(SettingError, match=rf"begun by sb3_pg_ext 0\.0\.7, and {__version__} is installed: {words}\."):
        plan_of(attributes)
    with pytest.raises(SettingError, match="begun by another version of sb3_pg_ext"):
        Plan.from_json(json.dumps(content))


def test_what_is_fixed_is_not_searched_and_settles_the_conditions_on_it():
    whole, fixed = plan().dimensions, plan(arguments={"baseline": "value", "policy_kwargs": {"net_arch": [8]}})
    assert isinstance(whole["gae_lambda"], When)
    assert set(whole) - set(fixed.dimensions) == {"baseline", "policy_kwargs.net_arch"}
    assert isinstance(fixed.dimensions["gae_lambda"], Choice)
    assert "gae_lambda" not in plan(arguments={"baseline": None}).dimensions
    run = fixed.run("x", {"gae_lambda": 0.9, "policy_kwargs": {}}, 1)
    assert run.arguments["baseline"] == "value"
    assert run.arguments["policy_kwargs"] == {"net_arch": [8]}
    assert run.seeds == S.tuning_seeds(0, 1)


def test_tuned_settings_of_zoo_configs_play_no_part():
    assert zoo_config("reinforce", "CartPole-v1")
    assert set(plan().run("x", {}, 0).arguments) == {"device"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_steps": 0}, "total_steps=0: expected a whole number, at least 1"),
        ({"seeds_per_trial": 2.0}, r"seeds_per_trial=2\.0"),
        ({"episodes": True}, "episodes=True"),
        ({"aggregate": "max"}, "aggregate='max': allowed are 'median', 'iqm', 'mean', 'min'"),
        ({"space": {}}, "nothing to search"),
        ({"space": {"learning_rat": Float(0, 1)}}, "'learning_rat', which is no argument.*'learning_rate'"),
        ({"space": {"gamma": When("baseline", ("value",), Float(0, 1))}}, "nothing to search"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, words):
    with pytest.raises(SettingError, match=words):
        plan(**options)


@pytest.mark.parametrize(("aggregate", "value"), [("median", 3.0), ("mean", 22.4), ("iqm", 11 / 3), ("min", 1.0)])
def test_the_value_of_a_trial(aggregate, value):
    assert plan(aggregate=aggregate).value([100.0, 1.0, 3.0, 2.0, 6.0]) == pytest.approx(value)


# --- starting points


@pytest.mark.parametrize("key", registry.available())
def test_settings_become_the_parameters_that_give_them(key):
    space = registry.get(key).space
    rng = np.random.default_rng(0)
    for _ in range(30):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=int(rng.integers(2**31))))
        settings = suggest(space, study.ask())
        again = suggest(space, optuna.trial.FixedTrial(parameters_of(space, settings)))
        assert same(again, settings)


def same(value: Any, other: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[name], other[name]) for name in value)
    return math.isclose(value, other, rel_tol=1e-9) if isinstance(value, float) else value == other


def test_what_lies_outside_the_space_becomes_its_nearest_point_or_is_left_to_the_sampler():
    space = {
        "a": Float(0.1, 1.0),
        "gamma": OneMinus(1e-3, 0.1),
        "n": Int(3, 6, power=2),
        "k": Int(1, 4),
        "net": Choice([64], [32, 32]),
        "kind": Choice(None, "x", True),
        "if": When("kind", ("x",), Float(0, 1)),
    }
    settings = {"a": 7.0, "gamma": 1.0, "n": 100, "k": None, "net": (32, 32), "kind": "x", "if": 0.25}
    assert parameters_of(space, settings) == {
        "a": 1.0,
        "1-gamma": 1e-3,
        "log2(n)": 6,
        "net": "[32, 32]",
        "kind": "x",
        "if": 0.25,
    }
    assert parameters_of(space, {"kind": 1, "net": [1], "a": math.nan}) == {}, "1 is not True"
    assert parameters_of(space, {"kind": None}) == {"kind": None}
    assert parameters_of(space, {"a": "lin_0.3", "kind": 1}) == {"a": 0.3}, "a schedule is where it begins"


# --- samplers and pruners


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_proposes_the_same_for_the_same_place_only(name):
    def proposal(n_before: int, place: int, master: int = 0) -> dict[str, Any]:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(lambda trial: sum(_numbers(trial).values()), n_trials=n_before)
        study.sampler = make_sampler(name, master, place, n_startup_trials=2)
        trial = study.ask()
        return {**_numbers(trial), "c": trial.suggest_categorical("c", ["a", "b"])}

    assert proposal(4, 4) == proposal(4, 4)
    others = [proposal(4, 4, 1), proposal(5, 5)]
    if name != "qmc":  # its workers take turns in one sequence, which is kept in the study
        others.append(proposal(4, 5))
    assert all(other != proposal(4, 4) for other in others)


def test_recorded_commands_go_on_proposing_the_same():
    found = []
    for place in (0, 1, 7):
        study = optuna.create_study(sampler=make_sampler("random", 3, place, 10))
        found.append(study.ask().suggest_float("x", 0, 1))
    assert found == pytest.approx([0.7637215301103001, 0.59234391440832, 0.5503081818631611])


def test_two_machines_that_begin_at_the_same_moment_propose_different_trials(tmp_path, monkeypatch):
    """One looks at the study and asks for a trial, and the other does both in between."""
    monkeypatch.setattr(
        objective, "execute", lambda spec, run: run.evaluation("x", Evaluation(1000, (1.0,), (1,), 0.0))
    )
    with Tuning(plan(), tmp_path, proposal=Proposal("random", "none")) as tuning:
        order = (tuning.storage, tuning.study_name, tuning.proposal)
        run_trial(*order)
        optimize, others = optuna.Study.optimize, [order, order]

        def late(study: optuna.Study, *arguments: Any, **options: Any) -> None:
            if others:
                run_trial(*others.pop())
            optimize(study, *arguments, **options)

        monkeypatch.setattr(optuna.Study, "optimize", late)
        run_trial(*order)
        drawn = [repr(trial.params) for trial in tuning.study.trials]
    assert len(drawn) == len(set(drawn)) == 4


def test_the_place_of_a_trial_is_that_of_the_first_for_which_it_is_done_again(study):
    for _ in range(2):  # two processes at once
        study.enqueue_trial({"x": 0.5}, user_attrs={"name": "the first trial"})
    running(study, ALIVE, name="the first trial")
    running(study, ALIVE, void="trial 0 is the same")
    running(study, DEAD)
    Recovery(study)()
    marks = [None, None, running(study, ALIVE), running(study, DEAD)]
    Recovery(study)()
    marks += [running(study, ALIVE), running(study, ALIVE)]
    places = [place_of(trial, study.trials) for trial in study.trials]
    assert places == [0, 0, 1, 1, 2, 2, 3]
    assert places[:3] == [place_of(trial, study.trials[:3]) for trial in study.trials[:3]]


def _numbers(trial: optuna.Trial) -> dict[str, float]:
    return {name: trial.suggest_float(name, 0, 1) for name in ("x", "y")}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(SettingError, match="sampler='bayes': allowed are 'tpe', 'gp'"):
        make_sampler("bayes", 0, 0, 10)
    with pytest.raises(SettingError, match="pruner='halving': allowed are 'median', 'hyperband'"):
        make_pruner("halving", plan())
    with pytest.raises(SettingError, match="seeds_per_trial=2: at least 5"):
        make_pruner("wilcoxon", plan(seeds_per_trial=2))
    for name in PRUNERS:
        make_pruner(name, plan(seeds_per_trial=5))


def begun(folder: Path, pruner: str) -> Tuning:
    return Tuning(plan(seeds_per_trial=5), folder, proposal=Proposal("random", pruner))


def test_the_way_in_which_trials_are_compared_stays_the_same(tmp_path):
    begun(tmp_path, "median").close()
    begun(tmp_path, "none").close()
    with pytest.raises(SettingError, match=r"pruner='wilcoxon' compares trials run by run, but.*compared step by step"):
        begun(tmp_path, "wilcoxon")
    begun(tmp_path / "other", "wilcoxon").close()
    with pytest.raises(
        SettingError, match=r"pruner='hyperband' compares trials step by step, but.*compared run by run"
    ):
        begun(tmp_path / "other", "hyperband")


@pytest.mark.parametrize(("step", "allowed", "refused"), [(0, "wilcoxon", "median"), (200, "none", "wilcoxon")])
def test_of_a_study_that_does_not_say_how_its_trials_are_compared_the_reports_do(tmp_path, step, allowed, refused):
    with begun(tmp_path, allowed) as tuning:
        attributes = tuning.study.user_attrs
    storage = open_storage(f"journal:{tmp_path}/old.log")
    study = optuna.create_study(storage=storage, study_name=tuning.study_name, direction="maximize")
    for name, value in attributes.items():
        if name != "compared":
            study.set_user_attr(name, value)
    study.add_trial(create_trial(value=1.0, intermediate_values={step: 1.0, step + 1: 1.0}))

    def joined(pruner: str) -> Tuning:
        return Tuning(tuning.plan, tmp_path, f"journal:{tmp_path}/old.log", proposal=Proposal("random", pruner))

    with pytest.raises(SettingError, match=f"pruner='{refused}' compares trials"):
        joined(refused)
    joined(allowed).close()


def test_a_missing_package_is_told_of_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="'gp' needs scipy and torch: pip install scipy torch"):
        check_packages("gp", "median")
    with pytest.raises(ModuleNotFoundError, match=r"sb3_pg_ext\[postgres\]"):
        with_driver("postgresql://me@host/x")


# --- storages


def test_storages_by_url(tmp_path):
    for url in (f"journal:{tmp_path}/a/trials.log", f"sqlite:///{tmp_path}/b/trials.db"):
        optuna.create_study(storage=open_storage(url), study_name="x")
        assert optuna.load_study(storage=open_storage(url), study_name="x").study_name == "x"
    assert open_storage(f"sqlite:///{tmp_path}/b/trials.db").get_heartbeat_interval() == 15
    with pytest.raises(SettingError, match="need a file"):
        open_storage("sqlite:///:memory:")
    with pytest.raises(SettingError, match=r"storage='trials\.db': expected journal:PATH"):
        open_storage("trials.db")
    (tmp_path / "text.db").write_text("no database " * 1000)
    with pytest.raises(SettingError, match="cannot be opened: file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/text.db")


def test_tunings_that_start_at_the_same_time_make_one_database(tmp_path):
    together = threading.Barrier(4)

    def open_at_once(url: str) -> int:
        together.wait()
        return len(open_storage(url).get_all_studies())

    with ThreadPoolExecutor(4) as pool:
        for attempt in range(5):
            assert list(pool.map(open_at_once, [f"sqlite:///{tmp_path}/{attempt}.db"] * 4)) == [0] * 4


def test_a_line_that_a_killed_process_has_left_unfinished_spoils_nothing(tmp_path):
    path = tmp_path / "trials.log"
    study = optuna.create_study(storage=open_storage(f"journal:{path}"), study_name="x")
    study.tell(study.ask(), 1.0)
    whole = path.read_bytes()
    for cut in (1, 10, len(whole.splitlines()[-1])):
        path.write_bytes(whole + whole.splitlines()[-1][:cut])
        again = optuna.load_study(storage=open_storage(f"journal:{path}"), study_name="x")
        again.set_user_attr("cut", cut)
        again = optuna.load_study(storage=open_storage(f"journal:{path}"), study_name="x")
        assert again.user_attrs["cut"] == cut
        assert [trial.value for trial in again.trials] == [1.0]
    path.write_bytes(b"never a line break" * 1000)
    journal.drop_unfinished_line(path)
    assert path.read_bytes() == b""


def test_the_lock_of_the_journal_is_exclusive_and_ends_with_its_holder(tmp_path):
    path = tmp_path / "trials.log"
    path.touch()
    code = f"""
import sys, time
from sb3_pg_ext.experiments.tuning.journal import KernelLock
KernelLock({str(path)!r}).acquire()
print("held", flush=True)
time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    lock, got = journal.KernelLock(path), threading.Event()

    def take() -> None:
        lock.acquire()
        got.set()
        lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    assert not got.wait(0.5)
    holder.kill()
    assert got.wait(20)
    thread.join()
    holder.communicate()


def test_passwords_are_not_shown():
    assert without_password("x --storage postgresql://me:se:cret@host:5432/db y") == (
        "x --storage postgresql://me:***@host:5432/db y"
    )
    assert without_password("postgresql://h/db?user=me&password=secret&x=1") == (
        "postgresql://h/db?user=me&password=***&x=1"
    )
    assert without_password("redis://:secret@host mysql+pymysql://h/db?passwd=secret") == (
        "redis://:***@host mysql+pymysql://h/db?passwd=***"
    )
    assert without_password("sqlite:///a:b@c.db") == "sqlite:///a:b@c.db"


def test_the_command_is_kept_without_passwords(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sb3-pg", "tune", "--storage", "postgresql://me:se'cret@host/db"])
    assert command() == "sb3-pg tune --storage 'postgresql://me:***@host/db'"


# --- which trials count

DEAD = str(Owner(Owner.current().host, Owner.current().boot, 2**22 + 1, "1"))
ALIVE = str(Owner.current())
FAR = "elsewhere|x|1|1"


def running(study: optuna.Study, owner: str | None, **marks: Any) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for name, value in {**({} if owner is None else {"owner": owner}), **marks}.items():
        trial.set_user_attr(name, value)
    return trial


def waiting(study: optuna.Study) -> list[Any]:
    return [t.user_attrs for t in study.trials if t.state is TrialState.WAITING]


def test_a_lost_trial_is_done_again_with_its_parameters_and_only_once(study):
    lost, other = running(study, DEAD), running(study, ALIVE)
    assert Recovery(study)() == [0]
    assert Recovery(study)() == []
    assert study.trials[lost.number].state is TrialState.FAIL
    assert study.trials[other.number].state is TrialState.RUNNING
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == lost.params["x"]
    assert [counts(trial) for trial in study.trials] == [False, True, True]


def test_a_trial_that_was_lost_before_it_had_its_parameters_gets_those_that_were_meant(study):
    study.enqueue_trial({"x": 0.25, "y": 0.5})
    running(study, DEAD)  # asks for x only
    Recovery(study)()
    again = study.ask()
    assert (again.suggest_float("x", 0, 1), again.suggest_float("y", 0, 1)) == (0.25, 0.5)


def test_a_kill_between_enqueueing_and_closing_loses_nothing_and_doubles_nothing(study, monkeypatch):
    running(study, DEAD)
    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "_close", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Recovery(study)()
    assert study.trials[0].state is TrialState.RUNNING
    assert Recovery(study)() == []
    assert study.trials[0].state is TrialState.FAIL
    assert len(waiting(study)) == 1


def test_of_two_trials_in_place_of_one_the_second_is_void(study):
    for _ in range(2):
        study.enqueue_trial({"x": 0.5}, user_attrs={"in_place_of": 7})
    first, second = study.ask(), study.ask()
    with pytest.raises(VoidTrialError, match="trial 0 is the same"):
        claim(study, second, None)
    claim(study, first, None)
    study.tell(second, state=TrialState.FAIL)
    assert [counts(trial) for trial in study.trials] == [True, False]
    assert Recovery(study)() == [], "a void trial is not lost"


def test_a_trial_whose_worker_dies_just_after_calling_it_void_or_failed_is_closed_and_that_is_all(study):
    """Two marks, and then the end: a kill may come between."""
    void, failed = running(study, DEAD, void="trial 0 is the same"), running(study, DEAD, reason="ValueError: x")
    assert Recovery(study)() == []
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
    assert [counts(study.trials[trial.number]) for trial in (void, failed)] == [False, True]


def test_a_trial_that_ends_while_it_is_looked_at_is_not_done_again(study, monkeypatch):
    trial = running(study, ALIVE)

    def ends_now(owner: Owner) -> bool:
        study.tell(trial, 1.0, skip_if_finished=True)
        return True

    monkeypatch.setattr(Owner, "is_dead", ends_now)
    assert Recovery(study)() == []
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 1.0)]


def test_a_void_twin_does_not_stand_for_the_trial_that_is_lost(study):
    lost = running(study, DEAD)
    study.enqueue_trial({"x": 0.1}, user_attrs={"in_place_of": lost.number, "void": "for some reason"})
    assert Recovery(study)() == [lost.number]


def test_no_more_trials_are_carried_out_than_were_asked_for(study):
    trials = [study.ask() for _ in range(4)]
    for trial in (trials[3], trials[0], trials[1]):
        if trial.number < 2:
            claim(study, trial, 2)
        else:
            with pytest.raises(VoidTrialError, match="there are 2 trials already"):
                claim(study, trial, 2)


def test_a_trial_in_place_of_a_lost_one_is_not_too_many(study):
    for _ in range(3):
        study.tell(running(study, ALIVE), 1.0)
    running(study, DEAD)
    Recovery(study)()
    claim(study, study.ask(), 4)


def test_a_lost_trial_is_done_again_although_others_have_taken_its_place(study):
    """As when Optuna has closed it, and a new trial was begun before anybody enqueued it again."""
    study.tell(running(study, FAR), state=TrialState.FAIL)
    study.tell(running(study, ALIVE), 1.0)
    assert Recovery(study)() == [0]
    again = study.ask()
    claim(study, again, 1)


def test_a_trial_that_kills_its_workers_is_failed(study):
    numbers = []
    for _ in range(ledger.MAX_DEATHS):
        numbers.append(running(study, DEAD).number)
        Recovery(study)(killed={2**22 + 1: "ended with signal 9"})
    assert not waiting(study)
    reason = "2 workers died over it; the last one ended with signal 9"
    assert study.trials[-1].user_attrs["reason"] == reason
    assert study.trials[0].user_attrs["lost"] == "ended with signal 9"
    assert [counts(trial) for trial in study.trials] == [False, True]


def test_a_death_that_was_wanted_is_not_held_against_a_trial(study):
    for _ in range(5):
        running(study, DEAD)
        Recovery(study)()
    assert len(waiting(study)) == 1


def test_a_trial_that_others_have_closed_is_done_again(study):
    """As Optuna does itself with trials whose heartbeat has stopped."""
    study.tell(running(study, FAR), state=TrialState.FAIL)
    study.tell(running(study, ALIVE, reason="FloatingPointError: nan"), state=TrialState.FAIL)
    assert Recovery(study)() == [0]


def test_a_worker_on_another_machine_is_dead_when_its_beat_has_stopped(study, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    beating, silent, nobody = running(study, FAR), running(study, FAR), running(study, None)
    recover, found = Recovery(study), {}
    for now[0] in np.arange(0.0, 3 * ledger.SILENCE, 10.0):
        beating.set_user_attr("beat", now[0])
        for number in recover():
            found[number] = now[0]
    assert set(found) == {silent.number, nobody.number}
    assert all(ledger.SILENCE < when <= ledger.SILENCE + 20 for when in found.values())


def test_marks_stay_with_a_trial_that_is_done_again(study):
    ledger.enqueue_once(study, {"x": 0.5}, "the first trial", given={"gamma": 0.9})
    running(study, DEAD)
    Recovery(study)()
    assert waiting(study)[0]["given"] == {"gamma": 0.9}


def test_a_trial_that_an_earlier_study_has_asked_for_by_name_is_not_asked_for_again(study):
    study.enqueue_trial({"x": 0.5}, user_attrs={"in_place_of": "the defaults"})
    ledger.enqueue_once(study, {"x": 0.5}, "the defaults")
    assert [name_of(trial) for trial in study.trials] == ["the defaults"]


def test_what_is_enqueued_once_is_carried_out_once(study):
    for _ in range(2):
        ledger.enqueue_once(study, {"x": 0.5}, "the defaults")
    assert len(study.trials) == 1


# --- a trial


@pytest.fixture
def curves(monkeypatch):
    """Runs that need no training: learning curves by replicate, and by trial beyond those."""
    given: dict[int, list[float]] = {}
    ran: list[tuple[str, int]] = []

    def execute(spec: Any, recorder: Any) -> None:
        ran.append((spec.label, spec.replicate))
        values = given[int(spec.label.split()[-1]) * 10 + spec.replicate]
        for index, value in enumerate(values):
            # One evaluation is 8 steps late, as after a rollout of several environments.
            step = spec.protocol.every * index
            recorder.evaluation("training", Evaluation(step + 8 * (index == 1), (value,), (1,), 0.0))

    monkeypatch.setattr(objective, "execute", execute)
    return given, ran


def carry_out(study: optuna.Study, made: Plan) -> optuna.trial.FrozenTrial:
    study.optimize(lambda trial: objective.objective(trial, made), n_trials=1, catch=(Exception,))
    return study.trials[-1]


def test_a_trial_is_worth_the_median_of_its_last_evaluations(study, curves):
    given, ran = curves
    study.pruner = make_pruner("none", plan())
    given |= {0: [0, 9, 9, 9, 1], 1: [0, 9, 9, 9, 5], 2: [0, 9, 9, 9, 4]}
    done = carry_out(study, plan())
    assert (done.value, done.user_attrs["scores"]) == (4, [1, 5, 4])
    assert ran == [("trial 0", 0), ("trial 0", 1), ("trial 0", 2)]
    assert set(suggest(plan().dimensions, optuna.trial.FixedTrial(done.params))) == set(done.user_attrs["settings"])
    # At the steps where the evaluations were due, all runs counted; what the trial would be worth then.
    assert list(done.intermediate_values) == [250, 500, 750, 1000, 1250, 1500, 1750, 2000, 2250, 2500, 2750, 3000]
    assert done.intermediate_values[1250] == np.median([1, 9])
    assert done.intermediate_values[2250] == np.median([1, 5, 9])


def test_a_trial_that_is_asked_for_has_its_settings_and_not_the_nearest_of_the_space(study, curves):
    given, _ = curves
    given |= {0: [0, 1], 1: [0, 1], 2: [0, 1]}
    study.enqueue_trial({}, user_attrs={"given": {"gamma": 0.123}})
    study.pruner = make_pruner("none", plan())
    assert carry_out(study, plan()).user_attrs["settings"] == {"gamma": 0.123}


def test_a_trial_that_is_worse_than_half_of_the_others_ends_early(study, curves):
    given, ran = curves
    made = plan()
    study.pruner = make_pruner("median", made)
    for number in range(6):
        for replicate in range(3):
            given[10 * number + replicate] = [0, 10, 20, 30, 40]
    for _ in range(6):
        assert carry_out(study, made).state is TrialState.COMPLETE
    given |= {60: [0, 0, 19, 19, 19], 70: [0, 0, 50, 50, 50], 71: [0, 0, 0, 0, 0]}
    ran.clear()
    assert carry_out(study, made).state is TrialState.PRUNED
    assert list(study.trials[-1].intermediate_values) == [250, 500], "not before a third of the first run"
    assert carry_out(study, made).state is TrialState.PRUNED, "a good first seed does not protect a trial"
    # The median of 50 and 0 is 25, and of the others' 40 and 20 it is 30.
    assert max(study.trials[-1].intermediate_values) == 1500
    assert ran == [("trial 6", 0), ("trial 7", 0), ("trial 7", 1)]


def test_by_the_signed_rank_test_a_trial_keeps_the_value_of_the_seeds_it_had(study, curves):
    given, ran = curves
    made = plan(seeds_per_trial=8)
    study.pruner = make_pruner("wilcoxon", made)
    for replicate in range(8):
        given |= {replicate: [0, 0, 0, 0, 100 + replicate], 10 + replicate: [0, 0, 0, 0, 50 - 2 * replicate]}
    carry_out(study, made)
    ran.clear()
    done = carry_out(study, made)
    assert done.state is TrialState.COMPLETE
    assert 3 <= len(done.user_attrs["scores"]) < 8
    assert done.value == np.median(done.user_attrs["scores"])
    assert list(done.intermediate_values) == list(range(len(ran)))
    assert fate_text(done) == f"cut by the pruner after {len(ran)} of 8 seeds"
    assert [fate_of(trial) for trial in study.trials] == ["completed", "cut"]
    assert [c.label for c in finalists(study.trials, 5)] == ["trial 0"]


def test_a_trial_that_is_worse_at_its_last_seed_has_not_been_cut(study, curves, monkeypatch):
    given, _ = curves
    made = plan(seeds_per_trial=5)
    study.pruner = make_pruner("wilcoxon", made)
    for replicate in range(5):
        given |= {replicate: [0, 0, 0, 0, 100 + replicate], 10 + replicate: [0, 0, 0, 0, 50 - 2 * replicate]}
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: len(trial.user_attrs["scores"]) == 5)
    assert fate_text(carry_out(study, made)) == "completed"


def test_a_run_that_fails_fails_the_trial_with_the_reason(study, monkeypatch):
    def execute(spec: Any, recorder: Any) -> None:
        raise FloatingPointError("the loss is nan at step 64")

    monkeypatch.setattr(objective, "execute", execute)
    done = carry_out(study, plan())
    assert done.state is TrialState.FAIL
    assert done.user_attrs["reason"] == "FloatingPointError: the loss is nan at step 64"
    assert "execute" in done.user_attrs["traceback"]
    assert counts(done)
    assert Recovery(study)() == []


def test_a_run_that_asks_the_process_to_end_fails_the_trial_as_well(study, monkeypatch):
    monkeypatch.setattr(objective, "execute", lambda spec, recorder: sys.exit(0))
    done = carry_out(study, plan())
    assert (done.state, done.user_attrs["reason"]) == (TrialState.FAIL, "SystemExit: 0")
    assert counts(done)


# --- which tuning goes on


def ended(study: optuna.Study, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
    for state in states:
        marks = {"reason": "ValueError: x"} if state is TrialState.FAIL else {}
        value = 1.0 if state is TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, user_attrs=marks))
    return study.get_trials()


def test_a_tuning_whose_trials_have_all_failed_waits_for_those_under_way_and_then_ends(study):
    under_way = [running(study, ALIVE)]
    assert _is_worth_while(ended(study, *[TrialState.FAIL] * 4), ())
    under_way.append(running(study, FAR))
    assert not _is_worth_while(ended(study, TrialState.FAIL), ()), "none is begun, and nobody gives up"
    for trial in under_way:
        assert not _is_worth_while(study.get_trials(), ())
        trial.set_user_attr("reason", "ValueError: x")
        study.tell(trial, state=TrialState.FAIL)
    with pytest.raises(workers.TuningError, match="all of the first 7 trials have failed: ValueError: x"):
        _is_worth_while(study.get_trials(), ())
    assert _is_worth_while(study.get_trials(), range(3)), "earlier calls had another environment, it may be"


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_tuning_with_one_good_trial_goes_on(study, state):
    trials = ended(study, state, *[TrialState.FAIL] * 9)
    assert _is_worth_while(trials, (0,)), "also if an earlier call has seen it"


# --- signs of life


def test_beats_go_on_by_the_clock_and_say_whether_the_run_does(study, monkeypatch):
    """A run that never returns is alive to other machines, and stands still to this one."""
    seen: list[list[int]] = []

    def execute(spec: Any, recorder: Any) -> None:
        for moved in range(2):
            for _ in range(1000 * moved):
                recorder.progress(0, 0.0)
            start = len(seen)
            end = time.monotonic() + 30
            while len(seen) < start + 3 and time.monotonic() < end:
                beat = study.trials[0].user_attrs.get("beat", [0, -1])
                if beat not in seen and beat[1] == 1000 * moved:
                    seen.append(beat)
        recorder.evaluation("training", Evaluation(1000, (1.0,), (1,), 0.0))

    monkeypatch.setattr(objective, "execute", execute)
    made = plan(seeds_per_trial=1)
    study.optimize(lambda trial: objective.objective(trial, made, beats_every=0.01), n_trials=1)
    assert study.trials[0].value == 1.0
    assert [moves for _, moves in seen] == [0, 0, 0, 1000, 1000, 1000]
    assert [number for number, _ in seen] == sorted({number for number, _ in seen})


class Process:
    """Of a worker."""

    exitcode = -9

    def __init__(self, pid: int):
        self.pid, self.killed = pid, False

    def kill(self) -> None:
        self.killed = True

    def is_alive(self) -> bool:
        return not self.killed

    def join(self) -> None: ...


def test_who_stands_still_is_ended_and_who_gets_on_or_has_a_new_trial_is_not(study, monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    owner = Owner.current()
    pids = {name: number for number, name in enumerate(("stuck", "moving", "idle", "next"), start=1)}
    trials = {n: running(study, str(replace(owner, pid=pid))) for n, pid in pids.items() if n not in ("idle", "next")}
    found = workers.Workers(workers.Order("", "", Proposal(), None, 100.0), tmp_path, 4)
    found._slots = {pid: Process(pid) for pid in pids.values()}
    assert found.order.beats_every == 15.0
    for now[0] in np.arange(0.0, 111.0, 5.0):
        trials["stuck"].set_user_attr("beat", [now[0], 7])
        trials["moving"].set_user_attr("beat", [now[0], now[0]])
        if now[0] % 50 == 0:
            if "next" in trials:
                study.tell(trials["next"], 1.0)
            trials["next"] = running(study, str(replace(owner, pid=pids["next"])))
        found.end_hung(study.trials)
        if now[0] == 100.0:
            assert not any(process.killed for process in found._slots.values())
    why = "had stood still for 100 s and was ended"
    assert found.reap() == {pids["stuck"]: why, pids["idle"]: why}
    found._slots = {9: Process(9)}
    found._slots[9].kill()
    assert found.reap() == {9: "ended with signal 9"}


def test_workers_that_end_before_they_have_claimed_a_trial_are_counted_whatever_their_exit_code(study, tmp_path):
    owner = Owner.current()
    running(study, str(replace(owner, pid=8)))  # of an earlier process with that number
    found = workers.Workers(workers.Order("", "", Proposal(), None, 100.0), tmp_path, 1, study.trials)

    def ends(pid: int, code: int = 0) -> None:
        found._slots = {0: Process(pid)}
        found._slots[0].kill()
        found._slots[0].exitcode = code
        assert found.reap() == {pid: f"ended with exit code {code}"}
        running(study, None)  # it had got so far as to ask for one
        found.check_fruitful(study.trials)

    for pid in range(1, 5):
        ends(pid, pid % 2)
    running(study, str(replace(owner, pid=5)))
    for pid in range(5, 10):
        ends(pid)
    with pytest.raises(workers.TuningError, match="5 worker processes in a row have ended without a trial"):
        ends(10)


def test_while_this_process_was_stopped_itself_nobody_has_stood_still(study, monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    found = workers.Workers(workers.Order("", "", Proposal(), None, 100.0), tmp_path, 1)
    found._slots = {0: Process(5)}
    for now[0] in (0.0, 5000.0, 5001.0):
        found.end_hung([])
    assert not found._slots[0].killed


# --- the choice


def test_finalists_are_the_best_complete_trials_with_different_settings(study):
    for value, settings, state in [
        (5.0, {"a": 0.12345}, TrialState.COMPLETE),
        (9.0, {"a": 0.2}, TrialState.PRUNED),
        (7.0, {"a": 0.3}, TrialState.COMPLETE),
        (6.0, {"a": 0.30001}, TrialState.COMPLETE),
        (1.0, {"a": 0.4}, TrialState.COMPLETE),
        (-3.0, {"a": 0.5}, TrialState.COMPLETE),
    ]:
        study.add_trial(create_trial(state=state, value=value, user_attrs={"settings": settings}))
    assert [(c.label, c.settings, c.value) for c in finalists(study.trials, 3)] == [
        ("trial 2", {"a": 0.3}, 7.0),
        ("trial 0", {"a": 0.123}, 5.0),
        ("trial 4", {"a": 0.4}, 1.0),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00123456, "0.00123"), (0.987654, "0.988"), (0.99996271, "0.999963"), (123456.7, "123000.0"), (1.0, "1.0")],
)
def test_settings_are_rounded_to_what_anyone_would_type(value, text):
    assert repr(rounded({"x": [1], "y": {"gamma": value}})["y"]["gamma"]) == text


def record(run: RunSpec, value: float | None, error: str = "Traceback\n  somewhere\nValueError: x\n") -> Record:
    """Of a run that came to ``value``, or failed."""
    if value is None:
        return Record(run, "failed", 5, 0, error, None, None, (), None)
    return Record(run, "finished", 1000, 0, None, None, None, (), Evaluation(1000, (value,), (1,), 0.0))


@pytest.fixture
def chosen(study, monkeypatch, tmp_path):
    """The choice of one trial, from what each run has come to: label of stage and contender -> values by seed."""

    def choose(**worth: list[float | None]) -> Winner:
        def records(runs: Any, folder: Path, **options: Any) -> dict[str, list[Record]]:
            values = {label: worth[f"{folder.name}_{label.replace(' ', '')}"] for label in runs}
            return {label: list(map(record, group, values[label])) for label, group in runs.items()}

        monkeypatch.setattr(choice, "_records", records)
        n_seeds = len(worth["choice_defaults"])
        return choice.choose(study, plan(), tmp_path / "my choice", top=1, seeds=n_seeds)

    study.add_trial(create_trial(value=1.0, user_attrs={"settings": {"gamma": 0.9}, "scores": [1.0]}))
    return choose


def test_who_is_only_as_good_as_the_defaults_is_not_chosen(chosen):
    winner = chosen(choice_trial0=[5.0, 7.0], choice_defaults=[6.0, 6.0], verdict_defaults=[1.0, 2.0])
    assert (winner.label, [contender.label for contender in winner.contenders]) == ("defaults", ["defaults", "trial 0"])
    assert winner.scores == winner.rival.scores == (1.0, 2.0)
    assert winner.doubt == "No trial is better than the defaults."


@pytest.mark.parametrize(
    ("tuned", "defaults", "scores", "doubt"),
    [
        ([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], ((3.0, 4.0, 5.0), (1.0, 2.0, 3.0)), None),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], ((3.0, 2.0, 1.0), (1.0, 2.0, 3.0)), "no better than the defaults"),
        ([0.0, 2.0, 1.0], [1.0, 2.0, 3.0], ((0.0, 2.0, 1.0), (1.0, 2.0, 3.0)), "The verdict is against the trial"),
        ([None, 4.0, 5.0], [1.0, 2.0, None], ((4.0,), (2.0,)), "no verdict: runs on 2 of its 3 seeds are not finished"),
        ([None] * 3, [1.0, 2.0, 3.0], ((), ()), "no verdict: runs on 3 of its 3 seeds are not finished"),
    ],
)
def test_a_verdict_compares_runs_on_the_same_seeds_and_counts_those_that_are_missing(
    chosen, tuned, defaults, scores, doubt
):
    winner = chosen(choice_trial0=[9.0] * 3, choice_defaults=[6.0] * 3, verdict_tuned=tuned, verdict_defaults=defaults)
    assert (winner.label, (winner.scores, winner.rival.scores)) == ("trial 0", scores)
    assert winner.missing == 3 - len(scores[0])
    assert winner.doubt is None if doubt is None else doubt in winner.doubt


def test_a_choice_without_anyone_who_came_to_the_end_says_why(chosen, tmp_path):
    with pytest.raises(workers.TuningError) as caught:
        chosen(choice_trial0=[None, 1.0], choice_defaults=[1.0, None])
    assert str(caught.value) == (
        "some runs of every contender have failed: trial 0: ValueError: x; defaults: ValueError: x. "
        f"All of them: sb3-pg report '{tmp_path}/my choice/choice'"
    )


def test_a_verdict_with_missing_or_equal_runs_is_not_told_as_one(tmp_path):
    def told(tuned: list[float | None], defaults: list[float | None]) -> str:
        runs = [plan().run("x", {}, k, S.seeds_of(0, k)) for k in range(len(tuned))]
        judged = [
            outcome.Contender(label, {}, tuple(map(record, runs, values)), 1.0)
            for label, values in (("trial 0", tuned), ("defaults", defaults))
        ]
        return " ".join(verdict(outcome.Outcome((), judged[0], *judged)))

    assert "its mean is equal to that of the defaults" in told([1.0, 2.0], [2.0, 1.0])
    assert "Left out" not in told([1.0, 2.0], [2.0, 1.0])
    assert "Left out, since a run on them is not finished: 2 of 3 seeds" in told([None, 2.0, 3.0], [1.0, 2.0, None])


def test_equal_contenders_are_shown_with_the_defaults_first(tmp_path):
    folder = tmp_path / "choice"
    runs = [plan().run(label, {"gamma": 0.9} if label == "trial 0" else {}, 0) for label in ("trial 0", "defaults")]
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(runs)
        for run in runs:
            assert store.claim(run.key, ALIVE)
            store.add_evaluation(run.key, ALIVE, "training", Evaluation(1000, (5.0,), (1,), 0.0))
            store.finish(run.key, ALIVE, Outcome(1000, 1.0, 1.0, 1.0), {})
    found = outcome.outcome(plan(), [], tmp_path)
    assert [contender.label for contender in found.contenders] == ["defaults", "trial 0"]


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("choose", {"seeds": 0}, "seeds=0: a whole number >= 1 is needed"),
        ("choose", {"top": -1}, "top=-1: a whole number >= 1 is needed"),
        ("choose", {"top": 0}, "top=0"),
        ("choose", {"jobs": 0}, "jobs=0: a whole number >= 1 or None is needed"),
        ("choose", {"total_steps": 2.5}, r"total_steps=2\.5"),
        ("choose", {"stall_limit": 0}, r"stall_limit=0: a number in \(0, inf\] is needed"),
        ("run", {"n_trials": -1}, "n_trials=-1: a whole number >= 1 or None is needed"),
        ("run", {"n_trials": 2.5}, r"n_trials=2\.5"),
        ("run", {"jobs": -1}, "jobs=-1"),
        ("run", {"timeout": -1.0}, r"timeout=-1\.0: a number in \[0, inf\] is needed"),
        ("run", {"stall_limit": math.nan}, "stall_limit=nan"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path, monkeypatch, method, arguments, words):
    monkeypatch.setattr("sb3_pg_ext.experiments.tuning.tuning.Workers", lambda *_: pytest.fail("has begun"))
    monkeypatch.setattr("sb3_pg_ext.experiments.tuning.tuning.choose", lambda *_: pytest.fail("has begun"))
    with Tuning(plan(), tmp_path) as tuning:
        tuning.study.add_trial(create_trial(value=1.0))
        with pytest.raises(ValueError, match=words):
            getattr(tuning, method)(**arguments)


def test_who_wins_on_which_seeds(study, monkeypatch, tmp_path):
    made = plan(master_seed=3)
    for value, rate in ((9.0, 0.1), (8.0, 0.2), (1.0, 0.3)):
        study.add_trial(create_trial(value=value, user_attrs={"settings": {"learning_rate": rate}, "scores": [value]}))
    study.add_trial(create_trial(value=99.0, user_attrs={"settings": {}, "given": {}, "scores": [99.0]}))
    study.add_trial(create_trial(value=50.0, user_attrs={"settings": {"gamma": 0.9}, "scores": []}))
    study.set_user_attr("start", {"gamma": 0.5})
    worth = {"trial 0": 5.0, "trial 1": 7.0, "start": 6.0, "tuned": 4.0}
    asked: dict[str, Any] = {}

    def records(runs: Any, folder: Path, **options: Any) -> dict[str, list[Record]]:
        asked[folder.name] = runs
        return {
            label: [record(run, worth[label] if label != "trial 0" or run.replicate else None) for run in group]
            for label, group in runs.items()
        }

    monkeypatch.setattr(choice, "_records", records)
    found = choice.choose(study, made, tmp_path, top=2, seeds=3)
    assert list(asked["choice"]) == ["trial 0", "trial 1", "start"], "whole trials by value, and those asked for not"
    assert list(asked["verdict"]) == ["tuned", "start"]
    assert found.label == "trial 1", "the best of those with all their runs on fresh seeds, not in the search"
    assert (found.rival.label, found.rival.settings) == ("start", {"gamma": 0.5}), "these are not the defaults"
    assert (found.scores, found.rival.scores, found.n_trials) == ((4.0,) * 3, (6.0,) * 3, 5)
    for group in asked["choice"].values():
        assert [run.seeds for run in group] == [S.choice_seeds(3, number) for number in range(3)]
    for group in asked["verdict"].values():
        assert [run.seeds for run in group] == [S.seeds_of(0, number) for number in range(3)]
    assert asked["verdict"]["tuned"][0].arguments["learning_rate"] == 0.2
    assert asked["verdict"]["start"][0].arguments["gamma"] == 0.5


def test_a_folder_belongs_to_one_study(tmp_path):
    Tuning(plan(), tmp_path, study_name="first").close()
    with pytest.raises(SettingError, match="belongs to the study 'first': 'second' needs another one"):
        Tuning(plan(), tmp_path, study_name="second")
    Tuning(plan(), tmp_path, study_name="first").close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--storage", "journal:"], "storage='journal:': expected journal:PATH"),
        (["--storage", "journal:{}/damaged"], "damaged is not a journal of Optuna, or is damaged"),
        (["--storage", "nosuch+driver://me@server/x"], "storage='nosuch+driver://me@server/x' cannot be opened"),
        (["--write", "{}/damaged"], "damaged is not a folder that can be written to"),
        (["--write", "{}/damaged/further"], "damaged is not a folder that can be written to"),
        (["--n-envs", "4", "-params", "n_envs:8"], "--n-envs 4 and n_envs=8 among the settings: one is enough"),
        (["--start", "gamma:0.9", "-params", "gamma:0.5"], "--start gamma: fixed by -params"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(tmp_path, capsys, monkeypatch, options, complaint):
    monkeypatch.setattr("sb3_pg_ext.experiments.executor.warm_up", lambda *arguments: None)
    (tmp_path / "damaged").write_text("not a journal\n")
    command = ["tune", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "100", "-f", str(tmp_path / "f")]
    assert main([*command, *(option.format(tmp_path) for option in options)]) == 2
    assert complaint in capsys.readouterr().err


def test_a_journal_whose_first_line_was_cut_off_by_a_kill_can_be_used(tmp_path):
    (tmp_path / "trials.log").write_text('{"op_code": 0, "worker')
    Tuning(plan(), tmp_path).close()
    assert (tmp_path / "trials.log").read_text().startswith('{"op_code":0,"worker_id":')


def test_a_study_name_is_no_markup_and_names_the_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sb3_pg_ext.experiments.executor.warm_up", lambda *arguments: None)
    monkeypatch.setattr(Tuning, "run", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    command = ["tune", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "100", "--trials-only"]
    assert main([*command, "--study-name", "[red]x[/y]"]) == 0
    assert "[red]x[/y]: " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["tune__red_x_y_"]


# --- the entry

WINNER = Winner(
    "trial 3",
    {
        "gamma": 0.99,
        "n_envs": 8,
        "learning_rate": 0.002,
        "baseline": None,
        "policy_kwargs": {"net_arch": [64, 64]},
        "normalize": True,
    },
    [],
    40,
    (480.0, 500.0),
    choice.Contender("defaults", {}, None, (20.0, 30.0)),
)


def test_the_entry_holds_what_differs_and_is_read_back(tmp_path):
    made = plan()
    file = config_entry.write_entry(tmp_path, made, WINNER, ["sb3-pg tune ...", "sb3-pg compare ..."])
    text = file.read_text()
    assert "gamma" not in text, "it is the default"
    assert "# sb3-pg tune ...\n# sb3-pg compare ...\nCartPole-v1:\n  normalize: true\n  n_envs: 8\n" in text
    assert "On 2 fresh seeds: mean 490.0, worst 480.0; defaults: mean 25.00, worst 20.00." in text
    bad = choice.Contender("start", {"learning_rate": 1e-06, "gamma": 0.1}, None, (2.0,))
    text = config_entry.write_entry(tmp_path / "other", made, replace(WINNER, rival=bad), []).read_text()
    assert "; start (learning_rate=1e-06, gamma=0.1): mean 2.00, worst 2.00." in text
    assert zoo_config("reinforce", "CartPole-v1", tmp_path) == {
        name: value for name, value in WINNER.settings.items() if name != "gamma"
    }


def test_the_other_entries_of_the_file_stay_as_they_are(tmp_path):
    original = Path("zoo_configs/reinforce.yml").read_text()
    path = tmp_path / "reinforce.yml"
    path.write_text(original)
    config_entry.write_entry(tmp_path, plan(), WINNER, ["sb3-pg compare ..."])
    replaced = path.read_text()
    corridor = original[original.index("# All states look alike") :]
    assert corridor in replaced
    assert replaced.count("CartPole-v1:") == 1
    assert yaml.safe_load(replaced)["CartPole-v1"]["n_envs"] == 8
    assert config_entry.with_entry(original, "Other-v0", "Other-v0: {}").endswith("\n\nOther-v0: {}\n")
    assert config_entry.with_entry(original, "Pole-v1", "Pole-v1: {}").count("CartPole-v1:") == 1


def test_an_entry_that_is_taken_back_leaves_the_others_and_no_empty_file(tmp_path):
    made = plan()
    other = replace(made, env_id="Acrobot-v1")
    for each in (made, other):
        file = config_entry.write_entry(tmp_path, each, WINNER, ["sb3-pg tune ..."])
    assert config_entry.remove_entry(tmp_path, made)
    assert not config_entry.has_entry(tmp_path, made)
    assert list(yaml.safe_load(file.read_text())) == ["Acrobot-v1"]
    assert file.read_text().count("sb3-pg tune ...") == 1
    assert not config_entry.remove_entry(tmp_path, made)
    assert config_entry.remove_entry(tmp_path, other)
    assert not file.exists()
    assert not config_entry.remove_entry(tmp_path, other)


def test_a_later_choice_of_the_defaults_takes_the_entry_of_an_earlier_one_back(tmp_path, capsys, monkeypatch):
    write = tmp_path / "configs"
    command = ["tune", "--algo", "reinforce", "--env", "CartPole-v1", "-n", "100", "-f", str(tmp_path)]
    monkeypatch.setattr("sb3_pg_ext.experiments.executor.warm_up", lambda *arguments: None)
    monkeypatch.setattr(Tuning, "run", lambda *arguments: None)
    for label in ("trial 3", "defaults"):
        winner = replace(WINNER, label=label)
        monkeypatch.setattr(Tuning, "choose", lambda *arguments, winner=winner: winner)
        assert main([*command, "--write", str(write)]) == 0
        assert (tmp_path / "reinforce.yml").exists() == (label == "trial 3")
    shown = capsys.readouterr().out
    assert f"The one of an earlier choice is taken out of {tmp_path / 'reinforce.yml'}." in shown
    assert f"The one in {write / 'reinforce.yml'} stays" in shown
