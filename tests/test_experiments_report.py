"""Report, page, figures and tables from a store with finished, running, failed and missing runs."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_hex
from page_checker import checked

from sb3_pg_ext.experiments.chart import pictures, write
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.comparison import charts, drawing
from sb3_pg_ext.experiments.comparison.analysis import Comparison
from sb3_pg_ext.experiments.comparison.facts import provenance_rows
from sb3_pg_ext.experiments.comparison.latex import escape, tables
from sb3_pg_ext.experiments.comparison.looks import MANY, OUTSTANDING
from sb3_pg_ext.experiments.comparison.page import page
from sb3_pg_ext.experiments.comparison.references import read_references
from sb3_pg_ext.experiments.figure import COLOURS, FAINT, VARIABLES, new_figure, short_number
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.progress import PlainProgress, duration
from sb3_pg_ext.experiments.report import markdown_table, write_report
from sb3_pg_ext.experiments.results import Evaluation, Outcome, Reference
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.seeds import Seeds, seeds_of
from sb3_pg_ext.experiments.store import Store
from sb3_pg_ext.experiments.summary import summarise
from sb3_pg_ext.experiments.values import SettingError

ME = str(Owner.current())
REFERENCES = {"CartPole-v1": Reference(0, 500), "Acrobot-v1": Reference(-500, -100)}


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


def make_half(folder: Path) -> Path:
    """Three seeds of ``good`` finished; of ``b|ad`` one finished, one running, one failed; ``late`` has not begun."""
    with Store(folder / "study.sqlite", create=True) as store:
        good = [run("good", k, gamma=0.5, policy_kwargs={"activation_fn": "nn.Tanh"}) for k in range(3)]
        bad = [run("b|ad", k) for k in range(3)]
        store.declare([*good, *bad, run("late", 0, "Acrobot-v1")], "sb3-pg compare --algo good")
        for spec, height in zip(good, (10.0, 20.0, 60.0), strict=True):
            carry_out(store, spec, [0.0, height, height], "finished")
        carry_out(store, bad[0], [0.0, 4.0, 8.0], "finished")
        carry_out(store, bad[1], [0.0, 4.0], "running")
        carry_out(store, bad[2], [0.0], "failed")
    return folder


def make_both(folder: Path) -> Path:
    """Two algorithms in two environments, four seeds: ``a$b`` is better in one, equal in the other."""
    heights = {("a$b", "CartPole-v1"): 200.0, ("<i>c", "CartPole-v1"): 50.0}
    heights |= {(label, "Acrobot-v1"): -300.0 for label, _ in list(heights)}
    with Store(folder / "study.sqlite", create=True) as store:
        runs = [run(label, k, env_id) for label, env_id in heights for k in range(4)]
        store.declare(runs, "sb3-pg compare --algo 'a$b=ppo'")
        for spec in runs:
            height = heights[spec.label, spec.environment.id] + 5 * spec.replicate
            carry_out(store, spec, [-500.0, height, height], "finished")
    return folder


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return make_half(tmp_path)


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return make_both(tmp_path)


@pytest.fixture(scope="module")
def drawn_half(tmp_path_factory) -> Path:
    folder = make_half(tmp_path_factory.mktemp("half"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def drawn_both(tmp_path_factory) -> Path:
    folder = make_both(tmp_path_factory.mktemp("both"))
    write_report(folder, REFERENCES)
    return folder


@pytest.fixture(autouse=True)
def no_figures(monkeypatch) -> None:
    """Figures take a second: two reports have them, for all tests that look at figures."""
    monkeypatch.setattr("sb3_pg_ext.experiments.report.charts", lambda comparison: [])


def test_the_table_says_what_the_store_holds(half: Path) -> None:
    report = write_report(half)
    rows = {summary.label: summary.row() for summary in report.summaries}
    # good: test returns 110, 120, 160, so IQM (nothing cut of three) 130; areas 0.75 of 10, 20, 60, mean 22.5
    assert rows["good"] == ("good", "130 [110, 160]", "22 [8, 45]", "110.0", "250", "0:20", "3")
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


def test_the_figure_holds_curves_in_the_colours_of_the_algorithms(drawn_half: Path) -> None:
    picture = image.imread(drawn_half / "learning_curves.png")[..., :3]
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800

    def share(colour: str) -> float:
        rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        return float((np.abs(picture - rgb).max(axis=-1) < 0.02).mean())

    assert share("#0072B2") > 5e-4  # good: bold curve
    assert share("#D55E00") > 5e-4  # bad: one finished seed is enough for a curve
    assert share("#010101") < 1e-2


def test_without_matplotlib_there_is_a_note_instead_of_a_figure(half: Path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("sb3_pg_ext.experiments.report.charts", charts.charts)
    report = write_report(half)
    assert [path.name for path in report.files] == ["report.html", "report.md", "tables"]
    assert not (half / "learning_curves.png").exists()
    assert 'pip install "sb3_pg_ext[report]"' in words(half)
    assert 'pip install "sb3_pg_ext[report]"' in (half / "report.md").read_text()


def test_without_jinja_there_is_no_page_and_a_note(half: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report = write_report(half)
    assert [path.name for path in report.files] == ["report.md", "tables"]
    assert "The page needs jinja2" in (half / "report.md").read_text()


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


def test_a_study_that_is_begun_again_says_what_has_failed(half: Path, capsys) -> None:
    from sb3_pg_ext.experiments.console import console

    with Store(half / "study.sqlite") as store:
        runs = [record.spec for record in store.records()]
        found = store.statuses([spec.key for spec in runs])
    PlainProgress(runs, console()).look(found)
    assert capsys.readouterr().out == "5 of 7 runs are in the store already: 4 finished, 1 failed.\n"
    failed = [spec for spec in runs if found[spec.key]["status"] == "failed"]
    PlainProgress(failed, console()).look({spec.key: found[spec.key] for spec in failed})
    assert capsys.readouterr().out == "1 of 1 runs are in the store already: 0 finished, 1 failed.\n"


# --- the page


def words(folder: Path) -> str:
    return checked((folder / "report.html").read_text()).text


def test_the_page_shows_failed_and_missing_runs_as_such(half: Path) -> None:
    write_report(half)
    said = words(half)
    assert "4 of 7 runs are finished; 1 failed; 2 missing, so the numbers are provisional" in said
    assert "b|ad 108.0 running (50%) failed" in said
    assert "late missing" in said
    assert "b|ad · CartPole-v1 · seed 2 failed: ValueError: too hot" in said
    assert "boom | here" in said
    assert "2 runs are missing" in said
    assert "So few runs cannot show any difference at 5 %" in said
    assert "sb3-pg compare --algo good" in said
    for part in ("torch 2.13.0", "abc123", "Z80", str(seeds_of(0, 2).train), "gamma", "nn.Tanh"):
        assert part in said


def test_every_picture_of_the_page_is_described_and_takes_its_colours_from_it(drawn_half: Path) -> None:
    text = (drawn_half / "report.html").read_text()
    labels = checked(text).labels
    # curves, runs and time in two environments, profiles in the one that has finished runs
    assert len(labels) == 2 + 2 + 1 + 2
    assert all(labels)
    assert any("good 130.0, b|ad 108.0" in label for label in labels)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "@media print" in text
    for colour in (*COLOURS, "#333333"):
        assert colour.lower() not in text.lower().split("</style>")[1], f"{colour} is not the page's"


def test_a_study_without_a_single_evaluation_has_a_page(tmp_path: Path) -> None:
    with Store(tmp_path / "study.sqlite", create=True) as store:
        store.declare([run("good", k) for k in range(2)])
        comparison = Comparison(summarise(store.records()))
    for chart in charts.charts(comparison):
        write(chart, tmp_path / f"{chart.name}.png", labels=comparison.labels)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"learning_curves", "final_returns"}
    write_report(tmp_path)
    said = words(tmp_path)
    assert "0 of 2 runs are finished" in said
    assert "There is no pair of algorithms with finished runs to compare." in said


def test_names_cannot_break_the_page_or_the_tables(drawn_both: Path) -> None:
    assert "<i>c" in words(drawn_both), "as text"
    assert "<i>" not in (drawn_both / "report.html").read_text()
    for table in (drawn_both / "tables").glob("*.tex"):
        text = table.read_text()
        ours = re.compile(r"\$(-|<|p|P\(A > B\))\$")
        assert "$" not in ours.sub("", text).replace(r"\$", ""), table
        assert text.count("{") == text.count("}")
    assert r"a\$b & \textbf{308 [300, 315]}" in (drawn_both / "tables" / "results.tex").read_text()


def test_every_figure_is_a_png_and_a_pdf(drawn_both: Path) -> None:
    folder = drawn_both / "figures"
    names = {path.name for path in folder.iterdir()}
    stems = ["aggregates", "final_returns", "performance_profiles", "probability_of_improvement", "sample_efficiency"]
    both_kinds = {f"{stem}.{ending}" for stem in [*stems, "wall_clock"] for ending in ("png", "pdf")}
    assert names == both_kinds | {"learning_curves.pdf"}
    for path in folder.glob("*.png"):
        assert image.imread(path)[..., :3].std() > 0.01, "an empty picture"
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_a_chart_without_any_speed_is_left_out(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        known = [record for record in store.records() if record.outcome is None]
    names = [chart.name for chart in charts.charts(Comparison(summarise(known)))]
    assert names == ["learning_curves", "final_returns"]


# --- what is said of failed runs, of imported ones, and of few


def make_finals(folder: Path, finals: dict[str, list[float | None]], env_id: str = "CartPole-v1") -> Comparison:
    """Label -> final returns by seed; ``None``: the run failed."""
    with Store(folder / "study.sqlite", create=True) as store:
        specs = {(label, k): run(label, k, env_id) for label, row in finals.items() for k in range(len(row))}
        store.declare(list(specs.values()), "")
        for (label, k), spec in specs.items():
            value = finals[label][k]
            height = 0.0 if value is None else value - 100  # the test of carry_out is 100 higher
            carry_out(store, spec, [0.0, height, height], "failed" if value is None else "finished")
        return Comparison(summarise(store.records()))


def test_what_has_failed_runs_is_marked_wherever_it_is_ranked_and_never_the_best(tmp_path: Path) -> None:
    rows = {"hot": [500.0] * 3 + [None] * 7, "steady": [400.0 + k for k in range(10)], "low": [100.0] * 10}
    whole = make_finals(tmp_path, rows)
    said = checked(page(whole, tmp_path)).text
    assert "highest in CartPole-v1 404.5 steady" in said
    assert "hot: 3 of 10 runs; 7 failed." in said
    for table in ("hot † 500.0 [500.0, 500.0]", "hot † steady 1.00", "hot † 500.0 [500.0, 500.0] 500.0 [500.0, 500.0]"):
        assert table in said
    assert "hot (without 7 that failed)" in said
    for chart in charts.charts(whole):
        assert "hot: 3 of 10 runs; 7 failed." in chart.caption, chart.name
    panel = new_figure((3, 3)).subplots()
    drawing.draw_finals(panel, whole, "CartPole-v1")
    assert [text.get_text() for text in panel.get_yticklabels()] == ["low", "steady", "hot †"]
    latex = tables(whole)
    assert r"hot \dag{} & 500.0 [500.0, 500.0] & " in latex["results"]
    assert "& 3/10, 7 failed " in latex["results"]
    assert r"steady & \textbf{404.5" in latex["results"]
    assert r"hot \dag{} & steady & 1.00" in latex["pairs"]
    for text in latex["results"], latex["pairs"]:
        assert "hot: 3 of 10 runs; 7 failed." in text
    assert "†" not in page(Comparison(whole.summaries[1:]), tmp_path)


def test_all_that_share_the_highest_return_are_named(tmp_path: Path) -> None:
    rows = {"b": [500.0] * 3, "a": [500.0] * 3, "nearly": [500.0, 500.0, 499.5], "c": [500.0] * 3}
    whole = make_finals(tmp_path, rows)
    assert "highest in CartPole-v1 500.0 b and 2 others" in checked(page(whole, tmp_path)).text
    assert tables(whole)["results"].count(r"\textbf{500.0 [500.0, 500.0]}") == 3
    assert r"nearly & 499.8 [499.5, 500.0]" in tables(whole)["results"]
    two = Comparison(whole.summaries[:2])
    assert "500.0 b and a" in checked(page(two, tmp_path)).text


def test_of_few_runs_the_report_says_what_their_intervals_cover(tmp_path: Path) -> None:
    whole = make_finals(
        tmp_path, {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0, 4.0, 5.0], "c": [float(k) for k in range(10)]}
    )
    said = "covers the true interquartile mean in about 74 % with 3, about 90 % with 5 runs"
    write_report(tmp_path)
    assert said in words(tmp_path)
    assert said in (tmp_path / "report.md").read_text()
    assert "too narrow" not in page(Comparison(whole.summaries[-1:]), tmp_path)


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    """Two own seeds of "good"; two imported ones of "zoo", of evaluations, and of "csv", of episodes of training."""
    make_finals(tmp_path, {"good": [110.0, 120.0]})
    with Store(tmp_path / "study.sqlite") as store:
        for label, deterministic, first in (("zoo", True, 500), ("csv", False, 500), ("all", True, 0)):
            for k in range(2):
                spec = replace(
                    run(label, 0),
                    origin=f"{label} {k}",
                    seeds=Seeds(-1, -1, -1),
                    versions={},
                    protocol=Protocol(500, 2 + k, deterministic, test_episodes=0),
                )
                store.add_imported(spec, [evaluation(step, 50.0 + k) for step in (first, 1000)], {"imported_from": "x"})
    return tmp_path


def test_facts_of_the_study_are_not_those_of_imported_runs(imports: Path) -> None:
    with Store(imports / "study.sqlite") as store:
        rows = dict(provenance_rows(store.records()))
    for what, seed in (("training", "train"), ("evaluation", "evaluation"), ("test", "test")):
        assert rows[f"{what} seeds"] == ", ".join(f"{k}: {getattr(seeds_of(0, k), seed)}" for k in range(2))
    assert (rows["Python"], rows["commit"]) == ("3.11", "abc123")
    assert rows["evaluation"] == "2 deterministic episodes every 500 steps, then 2 test episodes"
    assert "None" not in rows["machine"].split(",")[0]
    assert rows["imported, of which no more is known"] == "zoo (2 runs), csv (2 runs), all (2 runs)"


def test_a_study_of_imported_runs_alone_has_a_report(imports: Path) -> None:
    with Store(imports / "study.sqlite") as store:
        only = Comparison([s for s in summarise(store.records()) if s.imported])
    assert "imported, of which no more is known" in checked(page(only, imports)).text


def test_it_is_said_of_every_algorithm_what_its_final_return_is(imports: Path) -> None:
    write_report(imports)
    said = (
        "a test of 2 deterministic episodes; of zoo, all, the last evaluation, made elsewhere, of 2 to 3 episodes; "
        "of csv, the last window of training, of 2 to 3 sampled episodes."
    )
    assert said in words(imports)
    for file in ("report.md", "tables/results.tex"):
        assert said in (imports / file).read_text()
    with Store(imports / "study.sqlite") as store:
        whole = Comparison(summarise(store.records()))
    panel = new_figure((3, 3)).subplots()
    drawing.draw_curves(panel, whole, "CartPole-v1")
    assert panel.get_ylabel() == "return per episode\n(evaluations of different kinds)"
    drawing.draw_curves(panel, Comparison(whole.summaries[:1]), "CartPole-v1")
    assert panel.get_ylabel() == "return per episode\n(mean of 2 deterministic episodes)"


def test_curves_that_begin_later_have_no_area_and_no_early_efficiency(imports: Path) -> None:
    with Store(imports / "study.sqlite") as store:
        whole = Comparison(summarise(store.records()), {"CartPole-v1": Reference(0, 100)})
    areas = {summary.label: summary.area for summary in whole.summaries}
    assert (areas["zoo"], areas["csv"]) == (None, None)
    assert areas["all"] is not None
    assert areas["good"] is not None
    known = {label: ~np.isnan(band.middle) for label, band in whole.efficiency.items()}
    assert known["good"].all()
    assert known["zoo"].tolist() == (whole.efficiency["zoo"].x >= 0.5).tolist()


def test_commands_can_be_typed_whatever_the_folder_is_called(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        text = checked(page(Comparison(summarise(store.records())), Path("my study's"))).text
    commands = [
        shlex.split(found) for found in re.findall(r"sb3-pg (?:report|study advise) '.*?(?= {| --| [A-Z])", text)
    ]
    assert "sb3-pg study advise 'my study'\"'\"'s' --groups 4" in text
    assert ["sb3-pg", "report", "my study's"] in commands


def test_the_foot_of_the_page_promises_what_is_written(half: Path, drawn_half: Path) -> None:
    write_report(half)
    assert "learning_curves.png" not in words(half), "no figures were drawn"
    said = words(drawn_half)
    assert "its figures as PNG and PDF (folder figures ; learning_curves.png beside the page)" in said


def test_colours_stay_apart_on_light_and_dark_paper() -> None:
    css = files("sb3_pg_ext.experiments").joinpath("page.css").read_text()
    _, light, dark, *_ = css.split(":root {")
    for block, paper in ((light, 1.0), (dark, 0.0)):
        colours = {name: _linear(found) for name, found in re.findall(r"--(\w+): (#\w{6});", block)}
        lines = [colours[variable.removeprefix("--")] for variable in (VARIABLES[colour] for colour in COLOURS)]
        for first, second in itertools.combinations(lines, 2):
            assert _delta(first, second) > 25
            for kind in COLOUR_BLIND.values():
                assert _delta(kind @ first, kind @ second) > 15
        assert min(abs(_lab(line)[0] - 100 * paper) for line in lines) > 25, "they can be seen on their paper"


def test_a_wide_figure_is_scrolled_on_a_phone_and_tables_keep_their_names_there(many: Comparison, tmp_path) -> None:
    (matrix,) = (chart for chart in charts.charts(many) if chart.name == "probability_of_improvement")
    curves = charts.charts(many)[0]
    assert (matrix.wide, curves.wide) == (True, False)
    text = page(many, tmp_path, pictures=[pictures(matrix), pictures(curves)])
    checked(text)
    wide = re.findall(r'<div class="(?:single|panels)([^"]*)"([^>]*)>', text)
    assert [names for names, _ in wide] == [" wide", ""]
    assert f"--whole: {matrix.size[0] * 6:g}rem" in wide[0][1]
    style = text.split("</style>")[0]
    assert ".wide .picture svg { min-width: var(--whole); }" in style
    assert ".scroll tr > th:first-child { position: sticky; left: 0; background: var(--paper); }" in style
    assert "details::details-content { content-visibility: visible;" in style.split("@media print")[1]


# Machado, Oliveira, Fernandes (2009, A Physiologically-based Model for Simulation of Color Vision Deficiency).
COLOUR_BLIND = {
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
}


def _linear(colour: str) -> np.ndarray:
    """Linear red, green and blue of #rrggbb."""
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB, whose distances are about as large as differences look."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _delta(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(_lab(first) - _lab(second)))


# --- aggregates over environments


def test_environments_are_put_together_only_with_reference_scores(both: Path, drawn_both: Path) -> None:
    write_report(both, {"CartPole-v1": Reference(0, 500)})
    assert "there are no reference scores for Acrobot-v1" in words(both)
    assert not (both / "tables" / "aggregates.tex").exists()
    said = words(drawn_both)
    assert "there are no reference scores" not in said
    # test returns: 300 .. 315 of 500 and -200 .. -185, that is 0.75 .. 0.7875; the IQM is that of the middle four of 8
    middle = np.mean([0.62, 0.63, 0.75, 0.7625])
    assert f"a$b {middle:.3f} [" in said
    assert r"a\$b & " + f"{middle:.3f}" in (drawn_both / "tables" / "aggregates.tex").read_text()


def test_the_probability_of_improvement_is_the_mean_over_environments(drawn_both: Path) -> None:
    labels = checked((drawn_both / "report.html").read_text()).labels
    # always better in one environment, and equal in the other: (1 + 1/2) / 2
    assert "2 by 2 probabilities; the largest is 0.75, that a$b is better than <i>c." in labels
    assert "a$b <i>c 1.00 [1.00, 1.00] 0.029 0.029" in words(drawn_both)
    assert "Different beyond chance at 5 %: a$b and <i>c." in words(drawn_both)


def test_an_algorithm_without_runs_in_an_environment_is_left_out_of_the_whole(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        records = store.records()
    comparison = Comparison(summarise(records), REFERENCES)
    assert comparison.complete == []
    assert comparison.improvement == {}
    assert "No algorithm has a finished run in every environment yet" in page(comparison, half)


def test_figures_over_all_environments_say_who_is_left_out(both: Path) -> None:
    with Store(both / "study.sqlite") as store:
        here = [run(label, 0, "Acrobot-v1") for label in ("sac", "dqn")]
        late = [run("late", 0, env_id) for env_id in REFERENCES]
        store.declare([*here, *late], "sb3-pg compare --algo sac")
        for spec in here:
            carry_out(store, spec, [-500.0, -200.0, -100.0], "finished")
        whole = Comparison(summarise(store.records()), REFERENCES)
    said = (
        "Left out, not being run in every environment: sac, dqn. "
        "Left out, for want of a finished run in some environment: late."
    )
    captions = {chart.name: chart.caption for chart in charts.charts(whole)}
    assert {name for name, caption in captions.items() if said in caption} == {
        *("aggregates", "sample_efficiency", "probability_of_improvement")
    }
    assert said in checked(page(whole, both)).text
    nobody = Comparison([s for s in whole.summaries if s.label not in ("sac", "dqn", "late")], REFERENCES)
    assert not [chart for chart in charts.charts(nobody) if "Left out" in chart.caption]
    assert "Left out" not in page(nobody, both)


def test_a_figure_of_one_environment_says_who_has_nothing_but_failures(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        store.declare([run("hot", 0)], "")
        carry_out(store, run("hot", 0), [0.0], "failed")
        comparison = Comparison([s for s in summarise(store.records()) if s.label != "late"])
    (caption,) = (c.caption for c in charts.charts(comparison) if c.name == "probability_of_improvement")
    assert "red: the column. Left out, for want of a finished run: hot." in caption


def test_sample_efficiency_over_shares_of_the_budget(both: Path) -> None:
    with Store(both / "study.sqlite") as store:
        comparison = Comparison(summarise(store.records()), REFERENCES)
    band = comparison.efficiency["<i>c"]
    assert [band.x[0], band.x[50], band.x[-1]] == [0.0, 0.5, 1.0]
    # At first all return -500: -1 in CartPole, 0 in Acrobot. From half of the budget on they stay, at 50 .. 65 of 500
    # and -300 .. -285, that is 0.5 .. 0.5375. The middle four of eight count.
    assert band.middle[[0, 50, 100]] == pytest.approx([-0.5] + 2 * [np.mean([0.12, 0.13, 0.5, 0.5125])])
    assert band.middle[25] == pytest.approx((band.middle[0] + band.middle[50]) / 2), "between evaluations"
    assert (band.low <= band.middle).all()


def test_the_best_come_first_in_the_matrix(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        comparison = Comparison([s for s in summarise(store.records()) if s.label != "late"][::-1])
    assert comparison.labels == ["b|ad", "good"]
    assert comparison.ranking == ["good", "b|ad"]


def test_curves_over_time_end_when_their_runs_do(half: Path) -> None:
    with Store(half / "study.sqlite") as store:
        comparison = Comparison(summarise(store.records()))
    panel = new_figure((3, 3)).subplots()
    drawing.draw_clock(panel, comparison, "CartPole-v1")
    ends = {line.get_label(): line.get_xdata()[-1] for line in panel.get_lines()}
    assert ends == {"good": 4.0, "b|ad": 4.0}, "seconds of training: 1000 steps at 250 a second"
    assert panel.get_xscale() == "linear"


def test_times_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    with Store(tmp_path / "study.sqlite", create=True) as store:
        specs = {label: run(label, 0) for label in ("slow", "fast")}
        store.declare(list(specs.values()))
        for label, seconds in (("slow", 100.0), ("fast", 1.0)):
            store.claim(specs[label].key, ME)
            for step in (0, 500, 1000):
                store.add_evaluation(specs[label].key, ME, "training", evaluation(step, float(step)))
            store.finish(specs[label].key, ME, Outcome(1000, 200.0, 150.0, seconds), {})
        comparison = Comparison(summarise(store.records()))
    panel = new_figure((3, 3)).subplots()
    drawing.draw_clock(panel, comparison, "CartPole-v1")
    assert panel.get_xscale() == "log"
    ranges = {line.get_label(): [min(line.get_xdata()), max(line.get_xdata())] for line in panel.get_lines()}
    assert ranges == {"slow": pytest.approx([0.1, 100.0]), "fast": pytest.approx([0.001, 1.0])}, "without time zero"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Comparison:
    """One seed of each of 13 algorithms: "number 12" is the best, "number 0" the worst."""
    labels = [f"number {k}" for k in range(MANY + 1)]
    with Store(tmp_path_factory.mktemp("many") / "study.sqlite", create=True) as store:
        specs = [run(label, 0) for label in labels]
        store.declare(specs)
        for k, spec in enumerate(specs):
            store.claim(spec.key, ME)
            for step in (0, 1000):
                store.add_evaluation(spec.key, ME, "training", evaluation(step, step * k / 1000))
            store.finish(spec.key, ME, Outcome(1000, 2.0, 1.5, 1.0), {})
        return Comparison(summarise(store.records()))


PICTURES = {
    "curves": drawing.draw_curves,
    "clock": drawing.draw_clock,
    "profiles": lambda panel, whole, env_id: drawing.draw_profiles(panel, whole, whole.profiles[env_id], "return"),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_of_many_lines_the_best_stand_out_with_their_names(many: Comparison, draw) -> None:
    panel = new_figure((3, 3)).subplots()
    draw(panel, many, "CartPole-v1")
    best = many.labels[-OUTSTANDING:]
    assert [text.get_text() for text in panel.texts] == best, "the lowest first"
    assert (np.diff([text.xy[1] for text in panel.texts]) > 0.06).all(), "they do not touch"
    samples = [line for line in panel.get_lines() if line.get_transform() is panel.transAxes]
    lines = [line for line in panel.get_lines() if line not in samples]
    assert len(lines) == len(many.labels), "no single seeds"
    assert sum(line.get_color() == FAINT for line in lines) == len(lines) - len(best)
    drawn = {line.get_label(): line for line in lines if line.get_color() != FAINT}
    assert sorted(line.get_color() for line in drawn.values()) == sorted(COLOURS), "every hue once"
    for text, sample in zip(panel.texts, samples, strict=True):
        assert text.xy[1] == sample.get_ydata()[0]
        line = drawn[text.get_text()]
        assert (sample.get_color(), sample.is_dashed()) == (line.get_color(), line.is_dashed())
        assert max(sample.get_xdata()) < text.xy[0], "the sample is before the name"


def test_of_many_only_the_best_runs_have_colours_the_same_as_their_lines(many: Comparison) -> None:
    panel = new_figure((3, 6)).subplots()
    drawing.draw_finals(panel, many, "CartPole-v1")
    lines = new_figure((3, 3)).subplots()
    drawing.draw_curves(lines, many, "CartPole-v1")
    colours = [to_hex(dots.get_facecolor()[0]).upper() for dots in panel.collections]
    assert colours[: MANY + 1 - OUTSTANDING] == [FAINT] * (MANY + 1 - OUTSTANDING)
    drawn = {line.get_label(): line.get_color() for line in lines.get_lines()}
    named = [text.get_text() for text in panel.get_yticklabels()]
    assert colours[-OUTSTANDING:] == [drawn[label] for label in named[-OUTSTANDING:]]


def test_of_many_the_pictures_have_names_and_no_legend(many: Comparison, tmp_path: Path) -> None:
    picture = {"title": "", "caption": "", "single": True, "wide": False, "width": 40, "panels": []}
    assert 'class="legend"' not in page(many, tmp_path, pictures=[picture])
    few = Comparison(many.summaries[: OUTSTANDING + 2])
    assert page(few, tmp_path, pictures=[picture]).count("<line ") == OUTSTANDING + 2


def test_the_caption_of_a_large_matrix_promises_no_intervals(many: Comparison) -> None:
    def caption(comparison: Comparison) -> str:
        (found,) = (c for c in charts.charts(comparison) if c.name == "probability_of_improvement")
        panel = new_figure(found.size).subplots()
        found.panels[0].draw(panel)
        n = len(comparison.complete)
        assert len(panel.texts) == n * n, "one number in each cell, as of one run there is no interval"
        return found.caption

    assert "interval" not in caption(many)
    assert "with its 95 % stratified bootstrap interval." in caption(Comparison(many.summaries[: drawing.FEW]))


def test_names_stay_where_they_are_wanted_as_far_as_there_is_room() -> None:
    assert drawing.apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert drawing.apart([0.1, 0.5, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.45, 0.55, 0.9])
    assert drawing.apart([1.0, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_curves_over_time_are_those_of_the_clocks_of_the_runs(tmp_path: Path) -> None:
    with Store(tmp_path / "study.sqlite", create=True) as store:
        specs = [run("ppo", replicate) for replicate in range(2)]
        store.declare(specs)
        for spec, times in zip(specs, ((0.0, 8.0, 10.0), (0.0, 2.0, 20.0)), strict=True):
            store.claim(spec.key, ME)
            for step, seconds in zip((0, 500, 1000), times, strict=True):
                at = replace(evaluation(step, float(step)), train_seconds=seconds)
                store.add_evaluation(spec.key, ME, "training", at)
            store.finish(spec.key, ME, Outcome(1000, 200.0, 150.0, 20.0), {})
        band = Comparison(summarise(store.records())).clocks["ppo", "CartPole-v1"]
    # Of two runs the interquartile mean is the mean.
    wanted = {0.0: 0.0, 2.0: (125 + 500) / 2, 10.0: (1000 + 500 + 500 * 8 / 18) / 2, 20.0: 1000.0}
    assert np.interp(list(wanted), band.x, band.middle) == pytest.approx(list(wanted.values()), abs=1.0)
    assert (band.x[0], band.x[-1]) == (0.0, 20.0)


def test_references_of_the_command(both: Path, capsys) -> None:
    file = both / "scores.yml"
    file.write_text("CartPole-v1: {low: 0, high: 500}\nAcrobot-v1: {low: -500, high: -100}\n")
    assert main(["report", str(both), "--reference", str(file)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "Over all environments, normalised" in words(both)
    file.write_text("Pendulum-v1: {low: 0, high: 500}")
    assert main(["report", str(both), "--reference", str(file)]) == 2
    assert "reference scores for Pendulum-v1, but no runs" in capsys.readouterr().err


def test_references_are_not_for_a_tuning(tmp_path: Path, capsys) -> None:
    (tmp_path / "tuning.json").write_text("{}")
    assert main(["report", str(tmp_path), "--reference", "scores.yml"]) == 2
    assert "--reference scores.yml: scores are for comparisons" in capsys.readouterr().err


def test_references_of_the_study_need_no_file(both: Path) -> None:
    with Store(both / "study.sqlite") as store:
        store.declare([record.spec for record in store.records()], references=REFERENCES)
    write_report(both)
    assert "Over all environments, normalised" in words(both)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a table of environments is needed"),
        ("- 1", "a table of environments is needed"),
        ("A-v0: {low: [", "not plain YAML"),
        ("A-v0: 3", "A-v0: 3 is not a table of low and high"),
        ("A-v0: {low: 1}", "A-v0: .* is not a table of low and high"),
        ("A-v0: {low: 1, high: x}", "A-v0, high: 'x' is not a number"),
        ("A-v0: {low: true, high: 2}", "A-v0, low: True is not a number"),
        ("A-v0: {low: 2, high: 1}", "A-v0: low=2, high=1"),
        ("A-v0: {low: 0, high: .inf}", "A-v0: low=0, high=inf"),
    ],
)
def test_references_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "scores.yml").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_references(tmp_path / "scores.yml")


def test_latex_sets_every_character_as_it_is() -> None:
    assert escape("a_b & 50% $x^2$ {~} \\ <|>") == (
        r"a\_b \& 50\% \$x\textasciicircum{}2\$ \{\textasciitilde{}\} \textbackslash{} "
        r"\textless{}\textbar{}\textgreater{}"
    )
