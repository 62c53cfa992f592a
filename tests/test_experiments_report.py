"""Report and figure from a store with finished, running, failed and missing runs."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.figure import short_number
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.progress import PlainProgress, duration
from sb3_pg_ext.experiments.report import markdown_table, write_report
from sb3_pg_ext.experiments.results import Evaluation, Outcome
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.store import Store

ME = str(Owner.current())


def run(label: str, replicate: int, env_id: str = "CartPole-v1", **settings: object) -> RunSpec:
    return RunSpec(
        label=label,
        algo="ppo",
        policy=None,
        environment=Environment(env_id, n_envs=4),
        replicate=replicate,
        seeds=seeds_of(0, replicate),
        total_steps=1000,
        arguments=settings,
        hyperparameters={"gamma": 0.99, "name": label, **settings},
        protocol=Protocol(500, episodes=2, test_episodes=2),
        versions={"torch": "2.13.0"},
    )


def evaluation(step: int, value: float) -> Evaluation:
    return Evaluation(step, (value - 1, value + 1), (5, 5), 0.1)


def carry_out(store: Store, spec: RunSpec, heights: list[float], end: str) -> None:
    store.claim(spec.key, ME)
    for step, height in zip((0, 500, 1000), heights, strict=False):
        store.add_evaluation(spec.key, ME, "training", evaluation(step, height))
    if end == "finished":
        store.add_evaluation(spec.key, ME, "test", evaluation(1000, heights[-1] + 100))
        store.finish(spec.key, ME, Outcome(1000, 20.0, 15.0, 4.0), {"git": "abc123", "python": "3.11", "cpu": "Z80"})
    if end == "failed":
        store.fail(spec.key, ME, "Traceback (most recent call last):\n  boom | here\nValueError: too hot", {})


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Three seeds of ``good`` finished; of ``b|ad`` one finished, one running, one failed; ``late`` has not begun."""
    with Store(tmp_path / "study.sqlite", create=True) as store:
        good = [run("good", k, gamma=0.5, policy_kwargs={"activation_fn": "nn.Tanh"}) for k in range(3)]
        bad = [run("b|ad", k) for k in range(3)]
        store.declare([*good, *bad, run("late", 0, "Acrobot-v1")], "sb3-pg compare --algo good")
        for spec, height in zip(good, (10.0, 20.0, 60.0), strict=True):
            carry_out(store, spec, [0.0, height, height], "finished")
        carry_out(store, bad[0], [0.0, 4.0, 8.0], "finished")
        carry_out(store, bad[1], [0.0, 4.0], "running")
        carry_out(store, bad[2], [0.0], "failed")
    return tmp_path


def test_the_table_says_what_the_store_holds(half: Path) -> None:
    report = write_report(half)
    rows = {summary.label: summary.row() for summary in report.summaries}
    # good: test returns 110, 120, 160, so IQM (nothing cut of three) 130; areas 0.75 of 10, 20, 60, mean 22.5
    assert rows["good"] == ("good", "130.0 [110.0, 160.0]", "22.50 [7.50, 45.00]", "110.0", "250", "0:20", "3")
    assert rows["b|ad"][1] == "108.0 [one run]"
    assert rows["b|ad"][-1] == "1, 1 failed, 1 missing"
    assert rows["late"][1:] == ("–",) * 5 + ("0, 1 missing",)


def test_the_report_shows_failed_and_missing_runs_as_such(half: Path) -> None:
    write_report(half)
    text = (half / "report.md").read_text()
    assert "**4 of 7 runs are finished; 1 failed; 2 missing, so the numbers are provisional.**" in text
    assert "**b|ad · CartPole-v1 · seed 2** failed: ValueError: too hot" in text
    assert "boom | here" in text
    assert "| b\\|ad · CartPole-v1 · seed 1 | running | 500 of 1,000 |" in text
    assert "| late · Acrobot-v1 · seed 0 | pending | 0 of 1,000 |" in text
    assert "gamma=0.5, policy_kwargs=dict(activation_fn=nn.Tanh)" in text
    assert "sb3-pg compare --algo good" in text
    for part in ("torch 2.13.0", "abc123", "Z80", str(seeds_of(0, 2).train), str(seeds_of(0, 1).test)):
        assert part in text


def test_best_comes_first_in_the_table(half: Path) -> None:
    write_report(half)
    text = (half / "report.md").read_text()
    assert text.index("| good |") < text.index("| b\\|ad |")


def test_every_table_of_the_report_has_whole_rows(half: Path) -> None:
    write_report(half)
    lines = (half / "report.md").read_text().splitlines()
    for line, following in itertools.pairwise(lines):
        if line.startswith("|") and following.startswith("|"):
            assert line.replace("\\|", "").count("|") == following.replace("\\|", "").count("|"), line


def test_the_figure_holds_curves_in_the_colours_of_the_algorithms(half: Path) -> None:
    write_report(half)
    picture = image.imread(half / "learning_curves.png")[..., :3]
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800

    def share(colour: str) -> float:
        rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        return float((np.abs(picture - rgb).max(axis=-1) < 0.02).mean())

    assert share("#0072B2") > 5e-4  # good: bold curve
    assert share("#D55E00") > 5e-4  # bad: one finished seed is enough for a curve
    assert share("#000000") < 1e-2


def test_without_matplotlib_there_is_a_note_instead_of_a_figure(half: Path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = write_report(half)
    assert [path.name for path in report.files] == ["report.md"]
    assert not (half / "learning_curves.png").exists()
    assert 'pip install "sb3_pg_ext[report]"' in (half / "report.md").read_text()


def test_an_older_report_stays_whole_when_the_new_one_cannot_be_written(half: Path, monkeypatch) -> None:
    write_report(half)
    before = (half / "report.md").read_text()
    monkeypatch.setattr(Path, "write_text", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(half)
    monkeypatch.undo()
    assert (half / "report.md").read_text() == before
    assert not list(half.glob(".*tmp"))


def test_replaced_runs_are_counted_but_not_shown(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        store.declare([run("good", 0, gamma=0.7)])
    report = write_report(half)
    assert [note for note in report.notes if note.startswith("3 earlier runs")]
    assert {summary.label: len(summary.records) for summary in report.summaries}["good"] == 1


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "there is no study" in capsys.readouterr().err
    Store(tmp_path / "study.sqlite", create=True).close()
    assert main(["report", str(tmp_path)]) == 2
    assert "has no runs" in capsys.readouterr().err


def test_markdown_cells_cannot_break_the_table() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]], right_from=1) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (500, "500"), (50_000, "50k"), (2.5e6, "2.5M"), (1e9, "1G")])
def test_steps_on_the_axis(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (7325, "2:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_every_run_that_ends_has_a_line(half: Path, capsys) -> None:
    from sb3_pg_ext.experiments.console import console

    runs = [run("good", k, gamma=0.5, policy_kwargs={"activation_fn": "nn.Tanh"}) for k in range(3)]
    runs += [run("b|ad", k) for k in range(3)]
    with Store(half / "study.sqlite") as store:
        found = store.statuses([spec.key for spec in runs])
        before = {key: {**dict(row), "status": "pending"} for key, row in found.items()}
        with PlainProgress(runs, console()) as progress:
            progress.look(before)
            assert capsys.readouterr().out == ""
            progress.look(found)
            lines = capsys.readouterr().out.splitlines()
            progress.look(found)
            assert capsys.readouterr().out == ""
    assert len(lines) == 5
    assert any("good · CartPole-v1 · seed 0" in line and "110.00" in line for line in lines)
    assert any("b|ad · CartPole-v1 · seed 2" in line and "ValueError: too hot" in line for line in lines)
