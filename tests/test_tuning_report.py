"""The report of a tuning: its page, its figures and its numbers, from studies in every state."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from matplotlib import image
from optuna.study import Study
from optuna.trial import Trial, TrialState
from page_checker import checked
from rich.console import Console

from sb3_pg_ext import registry
from sb3_pg_ext.experiments.chart import AMONG_OTHERS
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.commands import report as report_command
from sb3_pg_ext.experiments.figure import Panel, svg
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.results import Evaluation, Outcome
from sb3_pg_ext.experiments.seeds import choice_seeds, seeds_of
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.tuning import drawing, outcome
from sb3_pg_ext.experiments.tuning.axes import axes_of, compact
from sb3_pg_ext.experiments.tuning.overview import Overview
from sb3_pg_ext.experiments.tuning.page import page
from sb3_pg_ext.experiments.tuning.plan import Plan, plan_tuning
from sb3_pg_ext.experiments.tuning.progress import TuningProgress
from sb3_pg_ext.experiments.tuning.report import dashboard_command, write_report
from sb3_pg_ext.experiments.tuning.sensitivity import sensitivity
from sb3_pg_ext.experiments.tuning.starting_point import parameters_of
from sb3_pg_ext.experiments.tuning.storages import close_storage, open_storage
from sb3_pg_ext.experiments.tuning.tuning import TUNING_FILE, WINNER_FILE
from sb3_pg_ext.experiments.tuning.verdict import verdict
from sb3_pg_ext.spec import Choice, Float, Int, OneMinus, Space, When, suggest

ME = str(Owner.current())
SPACE: Space = {
    "learning_rate": Float(1e-4, 1e-1, log=True),
    "gamma": OneMinus(1e-4, 0.1),
    "n_steps": Int(5, 8, power=2),
    "baseline": Choice("value", "mean", None),
    "gae_lambda": When("baseline", ("value",), Choice(1.0, 0.95)),
    "policy_kwargs.net_arch": Choice([], [64, 64]),
}
NAMES = list(SPACE)
HOSTILE = "ValueError: <script>alert('1')</script> & \"quoted\" $x_"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_tuning("reinforce", "CartPole-v1", 1000, seeds_per_trial=2, space=SPACE, arguments={"n_envs": 4})


def new_study(plan: Plan, storage: Any = None, sampler_seed: int = 0) -> Study:
    study = optuna.create_study(
        study_name="mine",
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=sampler_seed),
    )
    study.set_user_attr("plan", plan.to_json())
    study.set_user_attr("versions", {"sb3_pg_ext": "0.1.0", "torch": "9.9"})
    call = {name: "x" for name in ("git", "python", "system", "host", "cpu", "cpu_count")}
    study.set_user_attr("calls", [{**call, "command": "sb3-pg tune --algo reinforce --env '<CartPole>'"}])
    return study


def begin(study: Study, plan: Plan, **marks: object) -> Trial:
    trial = study.ask()
    trial.set_user_attr("settings", suggest(plan.dimensions, trial))
    for name, mark in marks.items():
        trial.set_user_attr(name, mark)
    return trial


def complete(study: Study, plan: Plan, value: float, **marks: object) -> int:
    trial = begin(study, plan, scores=[value, value], seconds=3.0, **marks)
    for step in (500, 1000, 1500, 2000):
        trial.report(value * step / 2000, step)
    study.tell(trial, value)
    return trial.number


def prune(study: Study, plan: Plan, value: float) -> None:
    trial = begin(study, plan)
    trial.report(value, 500)
    study.tell(trial, state=TrialState.PRUNED)


def fail(study: Study, plan: Plan, **marks: object) -> None:
    study.tell(begin(study, plan, **marks), state=TrialState.FAIL)


@pytest.fixture
def busy(plan: Plan) -> Study:
    """12 completed, 3 pruned, 1 failed, 1 running, 1 lost, 1 void; the first trial was lost at first."""
    study = new_study(plan)
    fail(study, plan, in_place_of="the first trial")  # lost: no reason
    complete(study, plan, 20.0, in_place_of=0)
    for value in range(30, 41):
        complete(study, plan, float(value))
    for value in (3.0, 4.0, 5.0):
        prune(study, plan, value)
    fail(study, plan, reason=HOSTILE, traceback=f"Traceback\n  <b>here</b>\n{HOSTILE}")
    study.tell(begin(study, plan, void="there are 12 trials already"), state=TrialState.FAIL)
    begin(study, plan).report(7.0, 500)
    return study


def words(text: str) -> str:
    return checked(text).text


# --- the whole report


def test_report_of_a_study_in_every_state(busy: Study, plan: Plan, tmp_path: Path) -> None:
    files = write_report(busy, plan, tmp_path)
    names = ["report.html", *(f"figures/{n}.png" for n in ("history", "intermediate", "slice", "importance"))]
    assert [str(file.relative_to(tmp_path)) for file in files] == [*names, "figures/sensitivity.png"]
    for file in files[1:]:
        pixels = image.imread(file)[..., :3]
        assert pixels.shape[0] > 300
        assert pixels.std() > 0.01, "an empty picture"
    text = files[0].read_text()
    found = checked(text)
    assert len(found.labels) >= 2 + 1 + len(NAMES) + len(NAMES) - 1
    assert all(found.labels)
    assert any("best is 40" in label and "the start came to 20" in label for label in found.labels)
    said = words(text)
    assert HOSTILE in said
    assert "<b>here</b>" in said
    assert "<script>alert" not in text
    assert "there are 12 trials already" in said
    assert "lost with its process" in said
    assert "completed 12" in said
    assert "pruned 3" in said
    assert "not counted 2" in said
    assert "completed, the start" in said
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "#333333" not in text, "a colour of the figures is not the page's"


def test_report_of_no_trial(plan: Plan, tmp_path: Path) -> None:
    files = write_report(new_study(plan), plan, tmp_path)
    assert [file.name for file in files] == ["report.html"]
    said = words(files[0].read_text())
    assert "No trial has been begun yet" in said
    assert "sb3-pg tune --algo reinforce --env '<CartPole>'" in said
    assert "0.9 to 0.9999" in said


def test_report_where_nothing_can_be_compared(tmp_path: Path) -> None:
    """One seed, one setting, all values equal, and the first trial runs without a value."""
    plan = plan_tuning("reinforce", "CartPole-v1", 1000, seeds_per_trial=1, space={"learning_rate": Float(0.1, 0.2)})
    study = new_study(plan)
    begin(study, plan)
    assert "running 1" in words(write_report(study, plan, tmp_path)[0].read_text())
    for _ in range(12):
        complete(study, plan, -500.0)
    said = words(write_report(study, plan, tmp_path)[0].read_text())
    assert "All completed trials have the same value" in said
    assert "with one seed" in said
    assert not (tmp_path / "figures/importance.png").exists()


def test_report_without_matplotlib(busy: Study, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told: list[str] = []
    files = write_report(busy, plan, tmp_path, told.append)
    assert [file.name for file in files] == ["report.html"]
    assert told == ['The figures need matplotlib: pip install "sb3_pg_ext[report]"']
    assert told[0] in words(files[0].read_text())


def test_options_with_dollar_signs_are_drawn_as_they_are() -> None:
    axis = axes_of({"mode": Choice("$a_", "$b^{", "x" * 60)})[0]
    panel = Panel("mode", "", lambda axes: drawing.set_axis(axes, axis))
    assert "<svg" in svg(panel, AMONG_OTHERS, "x0")


# --- trials and settings


def test_overview_sorts_trials(busy: Study, plan: Plan) -> None:
    found = Overview(plan, busy.get_trials())
    groups = (found.completed, found.pruned, found.failed, found.running, found.not_counted)
    assert [len(group) for group in groups] == [12, 3, 1, 1, 2]
    assert found.first is not None
    assert found.first.number == 1, "the trial that was lost has no value"
    assert found.best is not None
    assert found.best.value == 40.0
    assert [trial.number for trial in found.shown] == sorted(trial.number for trial in found.shown)


def test_trials_that_were_cut_are_told_from_completed_ones_everywhere(plan: Plan, tmp_path: Path) -> None:
    study = new_study(plan)
    for value in range(10):
        complete(study, plan, float(value))
    complete(study, plan, 99.0, cut="after 1 of 2 seeds")  # one lucky seed
    begin(study, plan)
    found = Overview(plan, study.get_trials())
    assert [len(group) for group in (found.completed, found.cut, found.shown)] == [10, 1, 12]
    assert found.best is not None
    assert found.best.value == 9.0
    said = words(write_report(study, plan, tmp_path)[0].read_text())
    assert "completed 10 with all their runs cut 1 by the pruner" in said
    assert "10 cut by the pruner after 1 of 2 seeds 99" in said, "the row of trial 10"
    assert "11 1 cut, 1 running" in said, "the card"
    assert "of the 11 completed trials" in said
    look = drawing._line(study.trials[10], found.best)
    assert look["label"] == "cut"
    assert look["linestyle"] != drawing._line(study.trials[0], found.best)["linestyle"]

    output = Console(file=io.StringIO(), width=200)
    progress = TuningProgress(output)
    progress.look([], 12)
    progress.look(study.trials, 12)
    lines = output.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.search(r"✂ trial 10 +99.00  cut by the pruner after 1 of 2 seeds  learning_rate=", lines[10])
    assert [line for line in lines if "best so far" in line] == [line for line in lines if "✓ trial 9 " in line]


def test_the_first_trial_is_called_what_it_is(plan: Plan) -> None:
    defaults = parameters_of(SPACE, registry.get("reinforce").defaults)
    for parameters, name in ((defaults, "defaults"), ({**defaults, "learning_rate": 0.09}, "start")):
        study = new_study(plan)
        study.enqueue_trial(parameters)
        complete(study, plan, 1.0, in_place_of="the first trial")
        assert Overview(plan, study.trials).name_of_first == name


def test_places_and_texts_of_settings(plan: Plan) -> None:
    study = new_study(plan)
    study.enqueue_trial(
        {
            "learning_rate": 3e-4,
            "1-gamma": 0.001,
            "log2(n_steps)": 6,
            "baseline": None,
            "policy_kwargs.net_arch": "[64, 64]",
        }
    )
    complete(study, plan, 1.0)
    trial = study.trials[0]
    axes = {axis.name: axis for axis in axes_of(SPACE)}
    places = {name: axis.place(trial) for name, axis in axes.items()}
    assert places == {
        "learning_rate": 3e-4,
        "gamma": 0.001,
        "n_steps": 6.0,
        "baseline": 2.0,
        "gae_lambda": None,
        "policy_kwargs.net_arch": 1.0,
    }
    texts = {name: axes[name].text(place) for name, place in places.items() if place is not None}
    assert texts == {
        "learning_rate": "0.0003",
        "gamma": "0.999",
        "n_steps": "64",
        "baseline": "None",
        "policy_kwargs.net_arch": "[64, 64]",
    }
    assert axes["gae_lambda"].condition == "baseline is value"
    assert compact(3.21e-5) == "3.21e-5"


def test_intermediate_values_of_trials_that_are_compared_run_by_run(plan: Plan) -> None:
    study = new_study(plan)
    for steps in ((0, 1), (500, 2000)):
        trial = begin(study, plan)
        for step in steps:
            trial.report(float(step), step)
        study.tell(trial, 1.0)
    assert [drawing._curve(t, 1000) for t in study.trials] == [
        [(1000, 0.0), (2000, 1.0)],
        [(500, 500.0), (2000, 2000.0)],
    ]


# --- sensitivity


def test_sensitivity_is_the_formula() -> None:
    axis = axes_of({"x": Choice("a", "b", "c")})[0]
    places = [0.0] * 3 + [1.0] * 3 + [2.0] * 3
    values = [10.0, 8.0, 9.0, 4.0, 5.0, 3.0, 0.0, 1.0, 2.0]
    found = sensitivity(axis, places, values)
    assert found.loss == pytest.approx((9.0 - (4.0 + 1.0) / 2) / (10.0 - 0.0))
    assert [each.quartiles[1] for each in found.bins] == [9.0, 4.0, 1.0]
    moved = sensitivity(axis, places, [1000.0 + 7.0 * value for value in values])
    assert moved.loss == pytest.approx(found.loss)


def test_sensitivity_leaves_out_bins_of_two() -> None:
    axis = axes_of({"x": Choice("a", "b", "c")})[0]
    found = sensitivity(axis, [0.0] * 3 + [1.0] * 3 + [2.0] * 2, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, -99.0, -99.0])
    assert [each.place for each in found.bins] == [0.0, 1.0]
    assert found.loss == pytest.approx(1.0)


def test_sensitivity_of_numbers_has_bins_of_equal_size() -> None:
    axis = axes_of({"x": Float(0.0, 1.0)})[0]
    places = np.random.default_rng(0).permutation(np.linspace(0, 1, 50))
    found = sensitivity(axis, list(places), list(-np.abs(places - 0.9)))
    assert [each.count for each in found.bins] == [10] * 5
    assert [each.place for each in found.bins] == sorted(each.place for each in found.bins)
    assert max(found.bins, key=lambda each: each.quartiles[1]) is found.bins[-1]
    assert found.matters


def test_settings_without_influence_seldom_matter() -> None:
    axis, rng = axes_of({"x": Float(0.0, 1.0)})[0], np.random.default_rng(1)
    found = [sensitivity(axis, list(rng.random(60)), list(rng.random(60))) for _ in range(60)]
    assert sum(each.matters for each in found) <= 8  # 3 are expected
    assert all(each.loss > 0 for each in found), "the best of five medians is above the others by chance"


def test_sensitivity_of_too_few_or_equal_trials_is_unknown() -> None:
    axis = axes_of({"x": Float(0.0, 1.0)})[0]
    for places, values in (([], []), ([0.5], [1.0]), ([0.1] * 4 + [0.2] * 4, [2.0] * 8)):
        found = sensitivity(axis, places, values)
        assert np.isnan(found.loss)
        assert not found.matters


# --- choice and verdict


def settle(
    plan: Plan, folder: Path, scores: Mapping[str, list[float]], settings: Mapping[str, Any], stage: str
) -> None:
    """Finished runs of a stage, without training."""
    of = {"choice": lambda k: choice_seeds(0, k), "verdict": lambda k: seeds_of(0, k)}[stage]
    with Store(folder / stage / "study.sqlite", create=True) as store:
        specs = {
            label: [plan.run(label, settings.get(label, {}), k, of(k)) for k in range(len(values))]
            for label, values in scores.items()
        }
        store.declare([spec for group in specs.values() for spec in group])
        for label, values in scores.items():
            for spec, value in zip(specs[label], values, strict=True):
                if np.isnan(value) or store.claim(spec.key, ME) is None:
                    continue
                store.add_evaluation(spec.key, ME, "training", Evaluation(1000, (value,), (9,), 0.1))
                store.finish(spec.key, ME, Outcome(1000, 2.0, 2.0, 1.0), {})


def decide(folder: Path, winner: str, *others: str) -> None:
    """What the choice leaves behind when it is made."""
    content = {"label": winner, "contenders": [{"label": label} for label in (winner, *others)]}
    (folder / WINNER_FILE).write_text(json.dumps(content))


FOUND = {"trial 1": {"learning_rate": 0.01}, "trial 2": {"learning_rate": 0.02}, "tuned": {"learning_rate": 0.02}}


@pytest.mark.parametrize(
    ("tuned", "defaults", "sentence"),
    [
        ([100.0, 90.0, 95.0, 99.0, 98.0], [50.0, 60.0, 40.0, 55.0, 45.0], "The tuned settings are better."),
        ([50.0, 60.0, 40.0, 55.0, 45.0], [100.0, 90.0, 95.0, 99.0, 98.0], "The defaults did better"),
        ([50.0, 60.0, 40.0, 55.0, 45.0], [51.0, 58.0, 43.0, 55.0, 44.0], "cannot be told from these seeds"),
        ([50.0, 60.0], [10.0, 20.0], "too few for an interval"),
        ([50.0, np.nan], [np.nan, 20.0], "the runs that judge it are not finished"),
    ],
)
def test_verdict(plan: Plan, tmp_path: Path, tuned: list[float], defaults: list[float], sentence: str) -> None:
    study = new_study(plan)
    for value in (1.0, 300.0, 200.0):
        complete(study, plan, value)
    settle(
        plan, tmp_path, {"trial 1": [70.0, 60.0], "trial 2": [80.0, 90.0], "defaults": [10.0, 20.0]}, FOUND, "choice"
    )
    early = outcome.outcome(plan, study.trials, tmp_path)
    assert early is not None
    assert "the verdict is not in yet" in verdict(early)[0]
    settle(plan, tmp_path, {"tuned": tuned, "defaults": defaults}, FOUND, "verdict")
    decide(tmp_path, "trial 2", "trial 1", "defaults")
    found = outcome.outcome(plan, study.trials, tmp_path)
    assert found is not None
    assert [contender.label for contender in found.contenders] == ["trial 2", "trial 1", "defaults"]
    assert [contender.in_tuning for contender in found.contenders[:2]] == [200.0, 300.0]
    assert found.winner is found.contenders[0]
    assert sentence in " ".join(verdict(found))
    said = words(page(study, Overview(plan, study.trials), tmp_path))
    assert sentence in said
    assert "trial 2 85.00 80.00 80.00, 90.00 200.0" in said


def test_verdict_for_the_defaults(plan: Plan, tmp_path: Path) -> None:
    study = new_study(plan)
    complete(study, plan, 1.0)
    complete(study, plan, 2.0)
    settle(plan, tmp_path, {"trial 1": [70.0, 60.0], "defaults": [90.0, 91.0]}, FOUND, "choice")
    settle(plan, tmp_path, {"tuned": [1.0, 2.0], "defaults": [3.0, 4.0]}, FOUND, "verdict")  # of an earlier choice
    decide(tmp_path, "defaults", "trial 1")
    found = outcome.outcome(plan, study.trials, tmp_path)
    assert found is not None
    assert found.tuned is None
    assert "no trial does better than the defaults" in verdict(found)[0]
    assert "sb3-pg train" not in page(study, Overview(plan, study.trials), tmp_path)


def test_choice_that_was_made_again_keeps_its_winner(plan: Plan, tmp_path: Path) -> None:
    """A contender of an earlier choice is still in the store, but did not stand for the last one."""
    study = new_study(plan)
    for value in (1.0, 2.0, 3.0):
        complete(study, plan, value)
    settle(plan, tmp_path, {"trial 1": [99.0], "defaults": [10.0]}, FOUND, "choice")
    settle(plan, tmp_path, {"trial 2": [80.0], "defaults": [10.0]}, FOUND, "choice")
    settle(plan, tmp_path, {"tuned": [70.0], "defaults": [11.0]}, FOUND, "verdict")
    decide(tmp_path, "trial 2", "defaults")
    found = outcome.outcome(plan, study.trials, tmp_path)
    assert found is not None
    assert found.winner is not None
    assert found.winner.label == "trial 2"
    assert [contender.label for contender in found.contenders] == ["trial 2", "defaults"]


def test_command_trains_with_the_chosen_settings(plan: Plan, tmp_path: Path) -> None:
    study = new_study(plan)
    for learning_rate, value in ((0.03, 9.0), (0.0123456, 8.0)):
        study.enqueue_trial({"learning_rate": learning_rate})
        complete(study, plan, value)
    before = page(study, Overview(plan, study.trials), tmp_path)
    assert "learning_rate:0.03 " in before
    settings = {"trial 1": {"learning_rate": 0.0123}, "tuned": {"learning_rate": 0.0123}}
    settle(plan, tmp_path, {"trial 1": [9.0], "defaults": [1.0]}, settings, "choice")
    settle(plan, tmp_path, {"tuned": [9.0], "defaults": [1.0]}, settings, "verdict")
    decide(tmp_path, "trial 1", "defaults")
    after = page(study, Overview(plan, study.trials), tmp_path)
    assert "sb3-pg train --algo reinforce --env CartPole-v1 -n 1000 --no-zoo-config -params n_envs:4" in after
    assert "learning_rate:0.0123 " in after


# --- the command


@pytest.mark.parametrize("kind", ["journal:{}/trials.log", "sqlite:///{}/trials.db"])
def test_command_reports_a_tuning_whose_folder_was_moved(
    kind: str, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_pg_ext.experiments.tuning.report.charts", lambda *_: [])
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    url = kind.format(old)
    storage = open_storage(url) if url.startswith("journal:") else optuna.storages.RDBStorage(url)
    prune(new_study(plan, storage), plan, 5.0)
    close_storage(storage)
    (old / TUNING_FILE).write_text(json.dumps({"storage": url, "study_name": "mine"}))
    assert main(["report", str(old)]) == 0
    old.rename(new)
    assert main(["report", str(new)]) == 0
    assert "new/report.html" in capsys.readouterr().out.replace("\n", "")
    assert not old.exists(), "nothing is made where the trials were once"
    said = words((new / "report.html").read_text())
    assert "pruned 1" in said
    assert f"optuna-dashboard {url.removeprefix('journal:')}" in said
    next(path for path in new.iterdir() if path.name in ("trials.log", "trials.db", "trials.sqlite")).unlink()
    assert main(["report", str(new)]) == 2
    assert "give --storage URL" in capsys.readouterr().err


def test_command_asks_for_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_command._TUNING_FILE == TUNING_FILE
    content = {"storage": "postgresql://me:***@server/tuning", "study_name": "mine"}
    (tmp_path / TUNING_FILE).write_text(json.dumps(content))
    assert main(["report", str(tmp_path)]) == 2
    assert "--storage postgresql://me:PASSWORD@server/tuning" in capsys.readouterr().err
    other = tmp_path / "other.log"
    optuna.create_study(study_name="theirs", storage=open_storage(f"journal:{other}"))
    assert main(["report", str(tmp_path), "--storage", f"journal:{other}"]) == 2
    assert "there is no study 'mine' in the storage, only 'theirs'" in capsys.readouterr().err
    shutil.move(tmp_path / TUNING_FILE, tmp_path / "gone")
    assert main(["report", str(tmp_path)]) == 2
    assert "there is no study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("storage", "command"),
    [
        ("journal:results/my tuning/trials.log", "optuna-dashboard 'results/my tuning/trials.log'"),
        ("sqlite:////tmp/a.db", "optuna-dashboard sqlite:////tmp/a.db"),
        ("postgresql://me:***@host/db", "optuna-dashboard postgresql+psycopg://me:PASSWORD@host/db"),
    ],
)
def test_command_of_the_dashboard(storage: str, command: str) -> None:
    assert dashboard_command(storage) == command
