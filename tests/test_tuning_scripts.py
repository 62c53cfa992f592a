"""The scripts of the folder ``tuning`` run as they are documented, on tiny budgets, and refuse what cannot be."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sb3_pg_ext import registry
from sb3_pg_ext.experiments import cli
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.zoo_configs import zoo_config
from sb3_pg_ext.spec import Choice, Float, Int, OneMinus, When, is_used

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it crashes where the warning of its own import is an error
    import Box2D  # noqa: F401

FOLDER = Path(__file__).parents[1] / "tuning"
TINY = ("--seeds", "1", "--n-evaluations", "1", "--eval-episodes", "1", "--test-episodes", "1", "-j", "1")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tuning_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


protocols, sensitivity, tune_all, tune_one = map(script, ("protocols", "sensitivity", "tune_all", "tune_one"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *argv: str) -> Any:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *argv])
    return module.main()


def start_by(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts, and nothing else, start programs by ``run``."""
    for module in (sensitivity, tune_all):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def sb3_pg(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ``sb3-pg`` that a script starts is this process; the commands."""
    seen: list[list[str]] = []

    def run(command: list[Any], check: bool) -> subprocess.CompletedProcess[str]:
        assert Path(command[0]).name == "sb3-pg"
        assert not check
        seen.append(list(map(str, command[1:])))
        return subprocess.CompletedProcess(command, cli.main(seen[-1]))

    start_by(run, monkeypatch)
    return seen


# --- sensitivity.py


@pytest.mark.parametrize(("algo", "settings"), [("reinforce", []), ("npg", []), ("npg", ["target_kl", "gamma"])])
def test_each_documented_sensitivity_is_a_study_of_distinct_runs(
    algo: str, settings: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def run(command: list[Any], check: bool) -> subprocess.CompletedProcess[str]:
        seen.append([str(word) for word in command[1:]])
        return subprocess.CompletedProcess(command, 2)

    start_by(run, monkeypatch)
    options = ["--setting", *settings, "--points", "3"] if settings else ["--seeds", "5"]
    asked = ["--algo", algo, "--env", "CartPole-v1", "-n", "20000", *options]
    assert call(sensitivity, monkeypatch, *asked) == 2
    [words] = seen
    assert cli.main([*words, "--dry-run", "--probe", "0"]) == 0, "two of the variants are the same"
    shown = capsys.readouterr().out
    of_no_use = {"natural", "step_size"} if algo == "npg" and not settings else set()
    assert ("no other value: natural, step_size\n" in shown) == bool(of_no_use)
    assert ("Left out" in shown) == bool(of_no_use)
    variants = cli._parser().parse_args(words).algo
    changed = {text.partition(":")[2].partition("=")[0] for text in variants[1:]}
    assert changed == set(settings or registry.get(algo).space) - of_no_use


def test_what_the_centre_has_already_is_the_centres_score() -> None:
    points = sensitivity.points_of("npg", "CartPole-v1", ["target_kl", "step_rule", "batch_size", "step_size"], 3)
    assert [point.text for point in points if point.label == sensitivity.CENTRE] == ["0.01", "kl", "128"]
    assert {point.setting for point in points} == {"target_kl", "step_rule", "batch_size"}
    others = [point.label for point in points if point.label != sensitivity.CENTRE]
    assert len(set(others)) == len(others)


def test_the_centre_of_a_sensitivity_can_be_the_defaults() -> None:
    tuned = zoo_config("reinforce", "CartPole-v1")["n_steps"]
    assert tuned != registry.get("reinforce").defaults["n_steps"]
    for use, expected in ((True, [str(tuned)]), (False, [])):
        points = sensitivity.points_of("reinforce", "CartPole-v1", ["n_steps"], 5, use)
        assert [point.text for point in points if point.label == sensitivity.CENTRE] == expected


def test_values_are_spread_over_the_range_of_a_dimension() -> None:
    for dimension, expected in (
        (Float(0.0, 1.0), [0.0, 0.5, 1.0]),
        (Float(1e-4, 1e-2, log=True), [1e-4, 1e-3, 1e-2]),
        (OneMinus(1e-3, 1e-1), [0.999, 0.99, 0.9]),
        (Int(3, 5, power=2), [8, 16, 32]),
        (Int(1, 2), [1, 2]),
        (When("a", ("b",), Choice("x", None)), ["x", None]),
    ):
        assert sensitivity.spread(dimension, 3) == expected


def test_a_condition_holds_or_not() -> None:
    nested = When("policy_kwargs.kind", ("a",), Int(1, 2))
    assert is_used(nested, {"policy_kwargs": {"kind": "a"}})
    assert not is_used(nested, {"policy_kwargs": {"kind": "b"}})
    assert not is_used(nested, {"policy_kwargs": None})
    assert is_used(Int(1, 2), {})


def test_the_table_begins_with_the_setting_that_matters_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"centre": 50.0, "v1": 40.0, "v2": 90.0, "v3": None}
    final = {label: score and SimpleNamespace(point=score) for label, score in scores.items()}
    monkeypatch.setattr(
        sensitivity, "summarise", lambda records: [SimpleNamespace(label=k, final=v) for k, v in final.items()]
    )
    Store(tmp_path / FILE_NAME, create=True).close()
    labelled = (("gamma", "0.9", "v1"), ("gamma", "0.99", "centre"), ("n", "8", "v2"), ("n", "4", "centre"))
    sensitivity.show(tmp_path, [sensitivity.Point(*each) for each in (*labelled, ("n", "2", "v3"))])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["n", "40.00", "8:", "90.00", "4:", "50.00"] in lines
    assert lines.index(["n", "40.00", "8:", "90.00", "4:", "50.00"]) + 1 == lines.index(
        ["gamma", "10.00", "0.99:", "50.00", "0.9:", "40.00"]
    )


@pytest.mark.slow
def test_a_sensitivity_runs_and_shows_its_table(
    sb3_pg: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--algo", "reinforce", "--env", "Bandit-v0", "-n", "64", "--points", "2"]
    asked += ["--setting", "gamma", "normalize_advantage"]
    assert call(sensitivity, monkeypatch, *asked, *TINY) == 0
    table = capsys.readouterr().out.partition("Interquartile mean of the final return; ")[2]
    assert "gamma" in table
    assert "normalize_advantage" in table
    assert Path("results/sensitivity_reinforce_Bandit-v0/report.html").is_file()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--algo", "npgg"], "Did you mean 'npg'?"),
        (["--algo", "npg", "--setting", "gama"], "--setting gama: npg searches"),
        (["--algo", "npg", "--points", "1"], "at least 2"),
    ],
)
def test_a_sensitivity_that_cannot_be_is_refused(
    argv: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(sensitivity, monkeypatch, *argv, "--env", "CartPole-v1", "-n", "100")
    assert sentence in capsys.readouterr().err


# --- tune_all.py


def commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> list[list[str]]:
    """What ``tune_all.py --dry-run`` prints, each checked by the parser of the command and by its settings."""
    capsys.readouterr()
    assert call(tune_all, monkeypatch, *argv, "--dry-run") == 0
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


def test_every_command_of_a_dry_run_is_one_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = commands(monkeypatch, capsys, "--minutes", "3", "-j", "1", "--seeds-per-trial", "1")
    read = [cli._parser().parse_args(words) for words in printed]
    assert {args.algo for args in read} == {
        key for key, spec in registry.available().items() if spec.cls.__module__.startswith("sb3_pg_ext.")
    }
    assert {args.env for args in read} == set(tune_all.ENVIRONMENTS)
    assert {(args.command, args.timeout, args.n_jobs, args.seeds_per_trial) for args in read} == {("tune", 180.0, 1, 1)}
    assert all(args.n_timesteps >= 1000 for args in read)
    for args in read:
        normalized = "normalize:True" in args.hyperparams
        mujoco = args.env.endswith("-v5") or args.env == "MountainCarContinuous-v0"
        assert normalized == (mujoco and registry.get(args.algo).family == "on_policy")


@pytest.mark.parametrize("minutes", ["0.00001", "1e-9", "2.5", "100000"])
def test_any_time_is_one_that_the_command_reads(
    minutes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [words] = commands(monkeypatch, capsys, "--algo", "npg", "--env", "CartPole-v1", "--minutes", minutes)
    assert cli._parser().parse_args(words).timeout == pytest.approx(60 * float(minutes))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["-params", "gamma:0.9"], ["n_envs:8", "normalize:True", "gamma:0.9"]),
        (["-params", "gamma:0.9", "-params", "n_envs:4"], ["normalize:True", "gamma:0.9", "n_envs:4"]),
        (["--hyperparams", "normalize:False"], ["n_envs:8", "normalize:False"]),
        ([], ["n_envs:8", "normalize:True"]),
    ],
)
def test_typed_settings_come_beside_those_of_the_script(
    typed: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [words] = commands(monkeypatch, capsys, "--algo", "npg", "--env", "InvertedPendulum-v5", *typed)
    assert cli._parser().parse_args(words).hyperparams == expected


def test_an_environment_outside_the_table_is_tuned_with_steps_that_are_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [words] = commands(monkeypatch, capsys, "--algo", "npg", "--env", "Blackjack-v1", "--steps", "5e3")
    assert cli._parser().parse_args(words).n_timesteps == 5000


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--env", "CartPole-v1", "Blackjack-v1"], "--env Blackjack-v1: --steps is needed"),
        (["--algo", "npg", "npgg"], "Did you mean 'npg'?"),
        (["--steps", "0"], "0 is not at least 1"),
        (["--minutes", "0"], "0 is not a positive number"),
        (["--minutes", "nan"], "nan is not a positive number"),
    ],
)
def test_a_tuning_of_all_that_cannot_be_is_refused_before_anything_runs(
    argv: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(tune_all, monkeypatch, *argv)
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert not shown.out


def test_a_failure_is_told_at_the_end_and_what_is_done_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = {"cem": 1, "es": 0}

    def run(command: list[Any], check: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status[command[3]])

    start_by(run, monkeypatch)
    done = Path("results/tune_all/npg_CartPole-v1", tune_all.WINNER_FILE)
    done.parent.mkdir(parents=True)
    done.touch()
    asked = ["--algo", "cem", "npg", "es", "--env", "CartPole-v1"]
    assert call(tune_all, monkeypatch, *asked) == 1
    shown = capsys.readouterr().out
    assert shown.count("-> exit status") == 2
    assert shown.splitlines()[-1] == "Failed: cem on CartPole-v1"
    status["cem"] = 130
    assert call(tune_all, monkeypatch, *asked) == 130
    assert "--algo es" not in capsys.readouterr().out


@pytest.mark.slow
def test_pairs_are_tuned_and_their_entries_written(
    sb3_pg: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--algo", "reinforce", "--env", "Bandit-v0", "--steps", "64", "-j", "1", "--n-trials", "1"]
    asked += ["--seeds-per-trial", "1", "--start", "gamma:0.5"]
    assert call(tune_all, monkeypatch, *asked) == 0
    folder = Path("results/tune_all/reinforce_Bandit-v0")
    assert (folder / tune_all.WINNER_FILE).is_file()
    assert len(sb3_pg) == 1
    assert call(tune_all, monkeypatch, *asked) == 0
    assert len(sb3_pg) == 1


# --- protocols.py

PROTOCOLS = ("--env", "Bandit-v0", "--steps", "24", "--n-envs", "1", "--judges", "2", "-j", "1")


def arguments(*names: str, budget: int = 18) -> Any:
    return protocols.argparse.Namespace(
        algo="reinforce",
        env="Bandit-v0",
        steps=24,
        n_envs=1,
        protocols=list(names),
        budget=budget,
        judges=2,
    )


def test_only_the_protocols_that_are_asked_for_run_and_alone_they_find_the_same() -> None:
    together = protocols.repetition((0, arguments("single", "choice")))[1]
    assert list(together) == ["single", "choice"]
    for name in together:
        assert protocols.repetition((0, arguments(name)))[1] == {name: together[name]}


def test_the_choice_alone_leaves_the_trials_out_that_it_cannot_pay_for(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []
    search = protocols.search

    def spy(plan: Any, budget: int, seed_of_trial: bool) -> Any:
        budgets.append(budget)
        return search(plan, budget, seed_of_trial)

    monkeypatch.setattr(protocols, "search", spy)
    protocols.winners(0, arguments("choice"))
    assert budgets == [(18 - protocols.TOP * protocols.CHOICE_SEEDS) * 24]


def test_one_repetition_has_no_interval_and_several_have(capsys: pytest.CaptureFixture[str]) -> None:
    one = {0: {"single": ({}, [1.0, 3.0]), "choice": ({}, [2.0, 4.0])}}
    protocols.summarise(one)
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert (
        "mean return, choice: 3.0 (one repetition)\n   above single: +1.0 (one repetition); higher in 1 of 1" in shown
    )
    protocols.summarise({**one, 1: one[0]})
    assert "mean return, choice: 3.0 [3.0, 3.0]\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [(["--budget", "16"], "takes 16 runs"), (["--protocols", "sngle"], "invalid choice: 'sngle'")],
)
def test_protocols_that_cannot_be_are_refused(
    argv: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(protocols, monkeypatch, *argv)
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_protocols_are_compared_and_kept(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "protocols.py", *PROTOCOLS, "--budget", "17", "--repetitions", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "results/protocols.json").read_text())
    assert list(kept["0"]) == ["single", "choice", "several"]
    assert all(len(scores) == 2 for _, scores in kept["0"].values())
    assert "worst judging seed, several:" in done.stdout


def test_the_kept_evidence_says_what_the_text_beside_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = {int(k): v for k, v in json.loads((FOLDER / "evidence/protocols.json").read_text()).items()}
    text = " ".join((FOLDER / "README.md").read_text().split())
    protocols.summarise(found)
    lines = capsys.readouterr().out.splitlines()
    rows = ("| single | {} |", "| choice | {} |", "| choice - single, paired | {} |", "| several | {} |")
    for line, row in enumerate((*rows, "| several - single, paired | {} |")):
        figure = lines[line].partition("single: " if "paired" in row else ": ")[2].partition(";")[0].lstrip("+")
        assert row.format(figure) in text

    def against_single(protocol: str) -> tuple[int, int]:
        """In how many repetitions its winner scored higher, and the same."""
        pairs = [(sum(outcome[protocol][1]), sum(outcome["single"][1])) for outcome in found.values()]
        return sum(ours > theirs for ours, theirs in pairs), sum(ours == theirs for ours, theirs in pairs)

    assert (len(found), against_single("several"), against_single("choice")) == (9, (1, 1), (0, 4))
    same = [number for number, outcome in found.items() if outcome["single"][0] == outcome["choice"][0]]
    assert len(same) == 4
    assert "*choice* and *single* have the same winner in four of the nine repetitions" in text
    higher = [sum(outcome["single"][1]) > sum(outcome["choice"][1]) for k, outcome in found.items() if k not in same]
    assert higher == [True] * 5
    assert "in each of the other five the winner of *single* scored higher" in text
    assert "of *several* scored higher than that of *single* in one repetition and the same in another" in text


# --- tune_one.py


def test_one_algorithm_is_tuned_with_every_step_in_the_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--env", "Bandit-v0", "-n", "32", "--n-trials", "1", "--seeds-per-trial", "1"]
    call(tune_one, monkeypatch, *asked)
    shown = capsys.readouterr().out
    assert shown.startswith("Searched:\n  learning_rate: Float(")
    assert "On fresh seeds: mean " in shown
    assert Path(shown.splitlines()[-1]).exists()
