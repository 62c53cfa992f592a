"""Study files: the same runs as by the command line, errors with line and key, parts of a study, and forecasts."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sb3_pg_ext.experiments import provenance
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.commands import compare
from sb3_pg_ext.experiments.forecast import Forecast, forecasts, probe, study_seconds
from sb3_pg_ext.experiments.kept_study import check_replaceable, keep_study
from sb3_pg_ext.experiments.owner import Owner
from sb3_pg_ext.experiments.results import Evaluation, Outcome, Reference
from sb3_pg_ext.experiments.run_spec import Protocol
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.store import FILE_NAME, Store
from sb3_pg_ext.experiments.study import Problem, Study, select
from sb3_pg_ext.experiments.study_file import StudyFile, read_study, study_text
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.variants import Variant, read_variant

WHOLE = """\
# Everything that a file can say.
folder: results/elsewhere
algorithms:
  - reinforce
  - "big=ppo:n_steps=512"
  - key: ppo
    name: small
    overrides: {n_steps: 64, learning_rate: 3e-4, policy_kwargs.net_arch: [32, 32], gamma: 1}
  - {key: a2c, overrides: {policy_kwargs: {activation_fn: nn.ReLU}, normalize: false}}
environments:
  - CartPole-v1
  - id: Pendulum-v1
    kwargs: {g: 9.0}
    wrappers: [gymnasium.wrappers.ClipAction]
    normalize: &statistics {norm_reward: false}
    frame_stack: 2
    n_envs: 4
    vec_env: subproc
    n_timesteps: 1e3
    evaluation: {frequency: 300, deterministic: false}
    reference: {low: -1200, high: -150}
  - {id: MountainCarContinuous-v0, normalize: *statistics}
seeds: 2
n_timesteps: 2_000
evaluation: {n_evaluations: 3, episodes: 4, test_episodes: 0}
zoo_config: false
master_seed: 7
jobs: 3
"""


def read(text: str, folder: Path) -> StudyFile:
    (folder / "mine.yml").write_text(text)
    return read_study(folder / "mine.yml")


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return parser.parse_args(words)


def test_an_algorithm_may_take_part_in_some_of_the_environments(tmp_path: Path) -> None:
    text = """\
algorithms:
  - a2c
  - {key: dqn, environments: [CartPole-v1]}
  - key: sac
    environments: [Pendulum-v1]
environments: [CartPole-v1, Pendulum-v1]
seeds: 1
n_timesteps: 100
"""
    study = read(text, tmp_path).study
    assert [(run.label, run.environment.id) for run in study.runs()] == [
        *(("a2c", "CartPole-v1"), ("dqn", "CartPole-v1")),
        *(("a2c", "Pendulum-v1"), ("sac", "Pendulum-v1")),
    ]
    assert read(study_text(study), tmp_path).study.runs() == study.runs()
    with pytest.raises(SettingError, match=r"line 5.*'Pendulum-v0' is none of the environments of the study: Cart"):
        read(text.replace("    environments: [Pendulum-v1]", "    environments: [Pendulum-v0]"), tmp_path)
    twice = text.replace("    environments: [Pendulum-v1]", "    environments:\n    - Pendulum-v1\n    - Pendulum-v1")
    complaint = r"line 7, algorithms\[2\]\.environments\[1\]: 'Pendulum-v1' is in line 6 already"
    with pytest.raises(SettingError, match=complaint):
        read(twice, tmp_path)


def test_a_file_is_read_as_it_says(tmp_path: Path) -> None:
    file = read(WHOLE, tmp_path)
    assert (file.folder, file.jobs, file.text) == (Path("results/elsewhere"), 3, WHOLE)
    study = file.study
    assert (study.n_seeds, study.master_seed, study.use_zoo_configs) == (2, 7, False)
    assert list(study.variants) == [
        Variant("reinforce", "reinforce", {}),
        Variant("big", "ppo", {"n_steps": 512}),
        Variant(
            "small",
            "ppo",
            {"n_steps": 64, "learning_rate": 3e-4, "policy_kwargs": {"net_arch": [32, 32]}, "gamma": 1},
        ),
        Variant(
            "a2c:policy_kwargs=dict(activation_fn=nn.ReLU),normalize=False",
            "a2c",
            {"policy_kwargs": {"activation_fn": "nn.ReLU"}, "normalize": False},
        ),
    ]
    cart, pendulum, car = study.problems
    assert cart == Problem("CartPole-v1", 2000, Protocol(667, 4, True, 0))
    assert pendulum == Problem(
        "Pendulum-v1",
        1000,
        Protocol(300, 20, False, 100),
        kwargs={"g": 9.0},
        around={
            "n_envs": 4,
            "frame_stack": 2,
            "env_wrapper": ["gymnasium.wrappers.ClipAction"],
            "normalize": {"norm_reward": False},
        },
        vec_env="subproc",
        reference=Reference(-1200, -150),
    )
    assert car.around == {"normalize": {"norm_reward": False}}
    assert study.references == {"Pendulum-v1": Reference(-1200, -150)}
    environments = {(run.label, run.environment.id): run.environment for run in study.runs()}
    assert environments["big", "Pendulum-v1"].n_envs == 4
    assert environments["big", "Pendulum-v1"].normalize == {"norm_reward": False}
    assert environments["big", "CartPole-v1"].normalize is None
    # The settings of an algorithm win over those of the environment.
    assert environments[study.variants[3].label, "Pendulum-v1"].normalize is None


def test_the_settings_of_an_environment_win_over_tuned_ones(tmp_path: Path) -> None:
    tuned = Study([read_variant("reinforce")], [Problem("Pendulum-v1", 100, Protocol(50))], 1).runs()[0].environment
    assert tuned.n_envs > 1
    text = "algorithms: [reinforce]\nenvironments: [{id: Pendulum-v1, n_envs: 1, normalize: false}]\nn_timesteps: 100"
    environment = read(text, tmp_path).study.runs()[0].environment
    assert (environment.n_envs, environment.normalize) == (1, None)


def test_a_file_and_the_command_line_are_the_same_runs(tmp_path: Path) -> None:
    file = read(
        """
        algorithms: [reinforce, {key: ppo, name: small, overrides: {n_steps: 64, gamma: 1}}]
        environments:
          - {id: CartPole-v1, n_envs: 2, kwargs: {sutton_barto_reward: true}}
          - {id: Acrobot-v1, n_envs: 2, kwargs: {sutton_barto_reward: true}}
        n_timesteps: 1e4
        evaluation: {episodes: 3, deterministic: false}
        master_seed: 5
        """,
        tmp_path,
    )
    words = ["--algo", "reinforce", "small=ppo:n_steps=64,gamma=1.0", "--env", "CartPole-v1", "Acrobot-v1"]
    words += ["-n", "10000", "--seeds", "5", "--n-envs", "2", "--env-kwargs", "sutton_barto_reward:true"]
    request = compare._typed(arguments(*words, "--eval-episodes", "3", "--stochastic", "--seed", "5"))
    typed = request.study.runs()
    assert len(typed) == 20
    assert [run.key for run in typed] == [run.key for run in file.study.runs()]
    assert [run.label for run in typed] == [run.label for run in file.study.runs()]
    # And the command line is kept as a file that means the same.
    again = read(request.text, tmp_path).study
    assert [(run.key, run.label) for run in again.runs()] == [(run.key, run.label) for run in typed]
    short = compare._typed(arguments("--algo", "a2c", "--env", "CartPole-v1", "-n", "999"))
    plain = read("{algorithms: [a2c], environments: [CartPole-v1], n_timesteps: 999}", tmp_path)
    assert [run.key for run in short.study.runs()] == [run.key for run in plain.study.runs()]


@pytest.mark.parametrize(
    "variant",
    [
        Variant("a label: with, all kinds of # signs", "ppo", {"policy_kwargs": {"activation_fn": "nn.ReLU"}}),
        Variant("x", "ppo", {"learning_rate": "lin_3e-4", "n_steps": 64, "target_kl": None, "gamma": 1e-20}),
        Variant("on", "ppo", {"policy": "MlpPolicy", "policy_kwargs": {"words": ["3e-4", "true", "~", "a b", "{"]}}),
    ],
    ids=lambda variant: variant.label,
)
def test_what_is_written_is_read_back(variant: Variant, tmp_path: Path) -> None:
    problem = Problem("CartPole-v1", 7, Protocol(3, 2, False, 0), {"render_mode": None}, {"n_envs": 3}, "native")
    study = Study(
        [variant], [problem, Problem("Acrobot-v1", 9, Protocol(4), reference=Reference(-5.5, 2))], 3, 1, False
    )
    assert read(study_text(study), tmp_path).study == study


TYPED = ["--algo", "ppo", "--env", "CartPole-v1", "-n", "100"]
BASE = "algorithms:\n  - reinforce\nenvironments:\n  - CartPole-v1\nn_timesteps: 100\n"
UNUSED = BASE.replace("reinforce", "{key: a2c, environments: [CartPole-v1]}").replace("n_", "  - Acrobot-v1\nn_")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "mine.yml is empty"),
        ("just text", "line 1: expected a table"),
        ("algorithms: [reinforce\nenvironments:", "line 2"),
        (BASE + "seds: 3\n", "line 6, seds: there is no such key here. Did you mean 'seeds'?"),
        (BASE + "seeds: 0\n", "line 6, seeds: expected a whole number, at least 1, but it is '0'"),
        (BASE + "seeds: 1.5\n", "line 6, seeds: expected a whole number"),
        (BASE + "seeds: yes\n", "line 6, seeds: expected a number"),
        (BASE + "seeds:\n", "line 6, seeds: expected a number, but it is empty"),
        (BASE + "seeds: 50_000_000\n", "line 6, seeds: '50_000_000' is too much: at most 10,000"),
        (BASE + "master_seed: 1e30\n", "line 6, master_seed: '1e30' is too much: at most 9,007,199,254,740,992"),
        (BASE.replace("100", "1e18"), "line 5, n_timesteps: '1e18' is too much: at most 1,000,000,000,000"),
        (UNUSED, "line 5, environments[1]: no algorithm runs in 'Acrobot-v1'"),
        (BASE + "seeds: 1\nseeds: 2\n", "line 7, seeds: 'seeds' is given twice, first in line 6"),
        (BASE + "zoo_config: 1\n", "line 6, zoo_config: expected true or false"),
        (BASE + "evaluation: {episode: 3}\n", "line 6, evaluation.episode: there is no such key here. Did you mean"),
        (BASE + "evaluation:\n  n_evaluations: 3\n  frequency: 4\n", "line 8, evaluation.frequency: n_evaluations is"),
        ("algorithms: [reinforce]\n", "line 1: the key 'environments' is missing"),
        ("algorithms: []\nenvironments: [CartPole-v1]", "line 1, algorithms: expected a list with at least one entry"),
        (BASE.replace("n_timesteps: 100\n", ""), "line 4, environments[0]: n_timesteps is given neither"),
        (BASE.replace("reinforce", "reinfroce"), "line 2, algorithms[0]: Unknown algorithm 'reinfroce'. Did you mean"),
        (BASE.replace("reinforce", "ppo:n_step=3"), "Did you mean 'n_steps'"),
        (BASE.replace("reinforce", "{kye: ppo}"), "line 2, algorithms[0].kye: there is no such key here. Did you mean"),
        (BASE.replace("reinforce", "{name: ppo}"), "line 2, algorithms[0]: the key 'key' is missing"),
        (BASE.replace("- reinforce", "- key: ppo\n    overrides:\n      n_step: 3"), "line 4, algorithms[0].overrides"),
        (BASE.replace("- reinforce", "- key: ppo\n    overrides:\n      seed: 3"), "'seed' is set by --seed"),
        (BASE.replace("- reinforce", "- ppo\n  - ppo"), "line 3, algorithms[1]: the label 'ppo' is in line 2 already"),
        (BASE.replace("- reinforce", "- ppo\n  - b=ppo"), "line 1, algorithms: 'b' and 'ppo' are the same settings"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {n_steps: 2026-01-01}}"), "is read as a date"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {gamma: .nan}}"), "only finite numbers"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {gamma: __import__('os')}}"), "overrides.gamma"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {gamma: !!python/name:os.system }}"), "only plain data"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {policy_kwargs: &a {b: *a}}}"), "round in a circle"),
        (BASE.replace("- CartPole-v1", "- CartPol-v1"), "line 4, environments[0]: environment 'CartPol-v1'"),
        (BASE.replace("- CartPole-v1", "- CartPole-v1\n  - id: CartPole-v1"), "line 5, environments[1]: the same"),
        (BASE.replace("- CartPole-v1", "- id: CartPole-v1\n    normalise: true"), "Did you mean 'normalize'"),
        (BASE.replace("- CartPole-v1", "- id: CartPole-v1\n    normalize: {norm_rewards: 1}"), "mean 'norm_reward'"),
        (BASE.replace("- CartPole-v1", "- id: CartPole-v1\n    vec_env: fast"), "line 5, environments[0].vec_env"),
        (BASE.replace("- CartPole-v1", "- id: CartPole-v1\n    wrappers:\n      - os.system"), "line 6"),
        (BASE.replace("- CartPole-v1", "- {id: CartPole-v1, reference: {low: 3, high: 2}}"), "low=3 is not below"),
        (BASE.replace("- CartPole-v1", "- {id: CartPole-v1, reference: {low: 3}}"), "the key 'high' is missing"),
        # What shows only when it is built:
        (BASE.replace("- reinforce", "- reinforce\n  - ppo:n_steps=-1"), "line 3 (in the environment of line 5): ppo"),
        (BASE.replace("- CartPole-v1", "- {id: CartPole-v1, kwargs: {colour: red}}"), "colour"),
        (BASE.replace("reinforce", "{key: ppo, overrides: {gamma: 7}}"), "gamma=7.0: a number in [0, 1] is needed"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_line_and_key(text: str, complaint: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yml").write_text(text)
    assert main(["compare", str(tmp_path / "mine.yml"), "-f", str(tmp_path / "results"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert "mine.yml" in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "either a study file is needed, or --algo, --env and -n"),
        (["--algo", "ppo", "-n", "5"], "--env missing"),
        (["missing.yml"], "missing.yml"),
        (["mine.yml", "--seeds", "3", "--stochastic"], "--seeds, --stochastic: mine.yml says what is compared"),
        (["mine.yml", "--seed", "0"], "--seed: mine.yml says what is compared"),
        (["mine.yml", "--test-episodes", "0"], "--test-episodes: mine.yml says what is compared"),
        ([*TYPED, "--eval-freq", "10", "--n-evaluations", "5"], "--eval-freq 10, --n-evaluations 5: one of them says"),
        ([*TYPED, "--seeds", "50_000_000"], "--seeds 50,000,000 is too much: at most 10,000"),
        ([*TYPED, "--seed", "1e30"], "is too much: at most 9,007,199,254,740,992"),
        (["--algo", "ppo", "--env", "CartPole-v1", "-n", "1e18"], "-n 1,000,000,000,000,000,000 is too much"),
        (["mine.yml", "--only", ""], "expected ALGO/ENV, ALGO or /ENV"),
        (["mine.yml", "--only", "reinforce", "/"], "expected ALGO/ENV, ALGO or /ENV"),
        (["--only", "ppo", "mine.yml"], "put the study file first: sb3-pg compare mine.yml --only ..."),
        (["--env", "CartPole-v1", "a b.yaml"], "put the study file first: sb3-pg compare 'a b.yaml' --env ..."),
        (["mine.yml", "--only", "ppo"], "--only ppo: there is no such run"),
        (["mine.yml", "--only", "reinforc/CartPole-v1"], "Did you mean 'reinforce/CartPole-v1'?"),
        (["mine.yml", "--resume", "-f", "nowhere"], "there is no study in nowhere yet"),
        (
            ["--resume", "-f", "nowhere"],
            "--resume: there is no study in nowhere yet, as nowhere/study.yml does not exist",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_refused(words: list[str], complaint: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text(BASE)
    assert main(["compare", *words]) == 2
    assert complaint in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yml"]


def test_a_part_of_a_study_is_selected_by_names_and_patterns() -> None:
    problems = [Problem(env_id, 10, Protocol(5)) for env_id in ("CartPole-v1", "Acrobot-v1")]
    labels = ["ppo", "small=ppo:policy_kwargs.net_arch=[4]", "a/b=a2c", "ppo:gamma=0.5,policy_kwargs.net_arch=[8]"]
    runs = Study([read_variant(text) for text in labels], problems, 2).runs()

    def chosen(*patterns: str) -> list[tuple[str, str]]:
        found = select(runs, patterns)
        assert [run.replicate for run in found] == [0, 1] * (len(found) // 2)
        return [(run.label, run.environment.id) for run in found if run.replicate == 0]

    assert len(chosen()) == 8
    assert chosen("small/CartPole-v1") == [("small", "CartPole-v1")]
    assert chosen("small") == [("small", "CartPole-v1"), ("small", "Acrobot-v1")]
    assert [label for label, _ in chosen("ppo/Acro*")] == ["ppo", "small", labels[3]]  # by its key as well
    assert [env_id for _, env_id in chosen("/CartPole-v1")] == ["CartPole-v1"] * 4
    assert chosen("a/b/CartPole-v1") == [("a/b", "CartPole-v1")]
    assert chosen("*net_arch=[8]/Acrobot-v1") == [(labels[3], "Acrobot-v1")]
    assert chosen("small/Acrobot-v1", "a2c/CartPole-v1") == [("a/b", "CartPole-v1"), ("small", "Acrobot-v1")]
    with pytest.raises(SettingError, match="CartPole-v1"):
        select(runs, ["small", "CartPole-v1"])


# --- what would run, and how long it would take


def _finish(store: Store, key: str, seconds: float, circumstances: dict | None = None) -> None:
    me = str(Owner.current())
    store.claim(key, me)
    store.add_evaluation(key, me, "training", Evaluation(0, (1.0,), (1,), 0.1))
    store.finish(key, me, Outcome(10, seconds, seconds, seconds), circumstances or {})


def test_the_time_of_a_run_is_that_of_finished_ones_or_of_a_probe(tmp_path: Path, monkeypatch) -> None:
    variants = [read_variant("ppo"), read_variant("a2c")]
    runs = Study(variants, [Problem("CartPole-v1", 10, Protocol(5))], 4).runs()
    with Store(tmp_path / FILE_NAME, create=True) as store:
        store.declare(runs)
        for run, seconds in zip(runs[:3], (60.0, 100.0, 500.0), strict=True):
            _finish(store, run.key, seconds)
    before = (tmp_path / FILE_NAME).stat().st_mtime_ns
    monkeypatch.setattr("sb3_pg_ext.experiments.forecast.probe", lambda spec, seconds: 7.0 * seconds)
    told: list[str] = []
    probed_one_by_one: list[str] = []

    def watched(these):
        for forecast in these:
            probed_one_by_one.append(forecast.spec.label)
            yield forecast

    known, probed = forecasts(runs, tmp_path, 2.0, told.append, watched)
    assert (known.finished, known.open, known.seconds, known.source) == (3, 1, 100.0, "finished runs")
    assert (probed.finished, probed.open, probed.seconds, probed.source) == (0, 4, 14.0, "probe")
    assert told == ["Trying 1 setting for about 2 s each ..."]
    assert probed_one_by_one == ["a2c"]
    assert study_seconds([known, probed], jobs=1) == 156.0
    assert study_seconds([known, probed], jobs=2) == 100.0  # no less than the longest run
    (unknown,) = [f for f in forecasts(runs, tmp_path, 0, told.append) if f.source == "unknown"]
    assert unknown.seconds is None
    assert study_seconds([known, unknown], jobs=2) is None
    assert study_seconds([], jobs=2) == 0.0
    assert (tmp_path / FILE_NAME).stat().st_mtime_ns == before
    # A finished run of another setting says nothing.
    others = Study(variants, [Problem("CartPole-v1", 11, Protocol(5))], 1).runs()
    assert [f.source for f in forecasts(others, tmp_path, 0)] == ["unknown"] * 2


@pytest.mark.parametrize("text", ["ppo:n_steps=64,n_epochs=1", "dqn:learning_starts=50", "cem:population_size=4"])
def test_a_probe_counts_steps_evaluations_and_updates(text: str) -> None:
    def seconds(steps: int, every: int, tests: int) -> float:
        problem = Problem("CartPole-v1", steps, Protocol(every, 2, True, tests))
        return probe(Study([read_variant(text)], [problem], 1, use_zoo_configs=False).runs()[0], 0.2)

    short = seconds(1_000_000, 1_000_000, 0)
    assert 1 < short < 1_000_000
    assert seconds(1_000_000_000, 1_000_000_000, 0) > 20 * short
    assert seconds(1_000_000, 1_000_000, 1_000_000_000) > 20 * short


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yml").write_text(BASE)
    command = ["compare", str(tmp_path / "mine.yml"), "-f", str(tmp_path / "results"), "-P", "2", "--dry-run"]
    assert main([*command, "--probe", "0"]) == 0
    shown = capsys.readouterr().out
    assert "5 runs, 5 still to do; how long is not known with 2 at once. Nothing was written." in shown
    assert main([*command[:-3], "--dry-run", "--probe", "0", "--executor", "ray"]) == 0
    assert "with 1 at once" in capsys.readouterr().out, "the cores of this machine are not those of a cluster"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yml"]


def test_the_file_in_the_documentation_can_be_run(tmp_path: Path, capsys) -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "study.yml").write_text(text)
    assert main(["compare", str(tmp_path / "study.yml"), "-f", str(tmp_path / "r"), "--dry-run", "--probe", "0"]) == 0
    assert "30 runs, 30 still to do" in capsys.readouterr().out
    # And the error that the page shows is the one that there is.
    (tmp_path / "study.yml").write_text(text.replace("{n_steps: 256", "{n_step: 256"))
    assert main(["compare", str(tmp_path / "study.yml"), "--dry-run"]) == 2
    shown = page.partition("sb3-pg compare: study.yml")[2].partition(" ...")[0]
    assert shown.startswith(", line 7")
    assert shown in capsys.readouterr().err


def test_a_row_of_a_forecast(tmp_path: Path) -> None:
    spec = Study([read_variant("ppo")], [Problem("CartPole-v1", 5000, Protocol(5))], 1).runs()[0]
    row = Forecast(spec, 5, 2, 1, 75.0, "probe").row()
    assert row == ("ppo", "CartPole-v1", "5", "5,000", "2", "1", "2", "1:15", "probe")


# --- from the file to the results


def test_a_study_is_carried_out_in_parts_and_gone_on_with_from_its_folder(tmp_path: Path, capsys) -> None:
    text = """
    algorithms: [a2c, {key: reinforce, name: mine}]
    environments: [{id: CartPole-v1, reference: {low: 9, high: 500}}]
    seeds: 1
    n_timesteps: 200
    evaluation: {n_evaluations: 2, episodes: 1, test_episodes: 1}
    jobs: 1
    """
    (tmp_path / "mine.yml").write_text(text)
    folder = tmp_path / "results"
    assert main(["compare", str(tmp_path / "mine.yml"), "-f", str(folder), "--only", "mine"]) == 0
    assert "1 of 2 runs (2 algorithms × 1 environment × 1 seed), 1 at once" in capsys.readouterr().out
    assert (folder / "study.yml").read_text().partition("\n")[2] == text
    with Store(folder / FILE_NAME) as store:
        assert {r.spec.label: r.status for r in store.records()} == {"a2c": "pending", "mine": "finished"}
        assert store.references() == {"CartPole-v1": Reference(9, 500)}
    # The rest, by the file that was kept.
    assert main(["compare", "--resume", "-f", str(folder)]) == 0
    assert main(["compare", str(folder / "study.yml"), "--dry-run"]) == 0
    assert "2 runs, 0 still to do" in capsys.readouterr().out
    with Store(folder / FILE_NAME) as store:
        assert [record.status for record in store.records()] == ["finished"] * 2
    assert yaml.safe_load((folder / "study.yml").read_text())["seeds"] == 1


SHORT = ["-n", "20", "--seeds", "1", "--n-evaluations", "1", "--eval-episodes", "1", "--test-episodes", "1", "-j", "1"]


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Runs are finished without being carried out, by the code that is there."""

    def carry_out(runs, store, executor, folder: Path) -> int:
        for run in store.pending([run.key for run in runs]):
            _finish(store, run.key, 1.0, {"git": provenance.git_state()})
        return 0

    monkeypatch.setattr(compare, "_carry_out", carry_out)
    monkeypatch.setattr("sb3_pg_ext.experiments.executor.warm_up", lambda: None)


def _typed_study(folder: Path, algo: str = "es") -> list[str]:
    return ["compare", "--algo", algo, "--env", "CartPole-v1", "-f", str(folder), *SHORT]


def test_a_study_file_that_was_written_by_hand_is_never_replaced(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "my own"
    folder.mkdir()
    by_hand = "# what I want to know\n" + BASE
    (folder / "study.yml").write_text(by_hand)
    assert main(_typed_study(folder)) == 2
    error = capsys.readouterr().err
    assert "is another study than the one that is asked for, and would be lost" in error
    assert f"sb3-pg compare '{folder}/study.yml' -f '{folder}'" in error
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("study.yml", by_hand)]


@pytest.mark.parametrize("mark", [True, False])
def test_a_study_file_that_was_kept_is_replaced_until_it_is_changed_by_hand(mark: bool, tmp_path: Path) -> None:
    def kept() -> str:
        return (tmp_path / "study.yml").read_text()

    first, second = (compare._typed(arguments(*_typed_study(tmp_path, algo)[1:])) for algo in ("es", "ars"))
    keep_study(tmp_path, first.text)
    assert read_study(tmp_path / "study.yml").study == first.study
    if not mark:  # as folders have it that are older than the mark
        (tmp_path / "study.yml").write_text(first.text)
    check_replaceable(tmp_path, second.text)
    keep_study(tmp_path, second.text)
    assert read_study(tmp_path / "study.yml").study == second.study
    # What is kept of a file that was kept elsewhere has one mark, of its own.
    check_replaceable(tmp_path, kept())
    before = kept()
    keep_study(tmp_path, kept())
    assert kept() == before
    (tmp_path / "elsewhere").mkdir()
    keep_study(tmp_path / "elsewhere", kept())
    assert (tmp_path / "elsewhere" / "study.yml").read_text() == before
    changed = kept().replace("seeds: 1", "seeds: 2 # for now")
    (tmp_path / "study.yml").write_text(changed)
    with pytest.raises(FileExistsError, match="written by hand"):
        check_replaceable(tmp_path, second.text)
    # By itself it may be carried out, and stays as it is.
    check_replaceable(tmp_path, changed)
    keep_study(tmp_path, changed)
    assert kept() == changed


def test_an_edited_file_replaces_what_was_kept_of_it(tmp_path: Path) -> None:
    keep_study(tmp_path, "# mine\n" + BASE)
    check_replaceable(tmp_path, "# mine\n" + BASE + "seeds: 3\n")
    (tmp_path / "study.yml").write_text("# mine\n" + BASE)
    with pytest.raises(FileExistsError):
        check_replaceable(tmp_path, "# mine\n" + BASE + "seeds: 3\n")


def test_results_of_other_code_are_named_at_the_start(tmp_path: Path, capsys, monkeypatch, at_once) -> None:
    def said(commit: str, *options: str) -> str:
        monkeypatch.setattr(provenance, "git_state", lambda: commit)
        assert main([*_typed_study(tmp_path), *options]) == 0
        return capsys.readouterr().out

    assert "other or modified code" not in said("1234") + said("1234")
    other = "made by other or modified code: 1 of 1234; this is 5678. To run them anew, choose another folder."
    assert other in said("5678", "--seeds", "2")
    assert "1 of 1234; this is 5678" in said("5678", "--seeds", "2")
    assert "1 of 1234, 1 of 5678; this is 9abc (modified)" in said("9abc (modified)", "--seeds", "3")
    assert "1 of 1234, 1 of 5678, 1 of 9abc (modified); this is 9abc (modified)" in said(
        "9abc (modified)", "--seeds", "3"
    )


def test_another_master_seed_is_another_set_of_runs_of_a_study(tmp_path: Path, at_once) -> None:
    for master in ("0", "1"):
        assert main([*_typed_study(tmp_path), "--seeds", "2", "--seed", master]) == 0
    with Store(tmp_path / FILE_NAME) as store:
        assert [record.spec.seeds for record in store.records()] == [seeds_of(1, 0), seeds_of(1, 1)]


def test_fewer_seeds_and_no_reference_any_more(tmp_path: Path, at_once) -> None:
    folder, file = tmp_path / "results", tmp_path / "mine.yml"
    text = """
    algorithms: [es]
    environments: [{id: CartPole-v1, reference: {low: 9, high: 500}}]
    seeds: 30
    n_timesteps: 20
    evaluation: {n_evaluations: 1, episodes: 1, test_episodes: 1}
    jobs: 1
    """
    file.write_text(text)
    study = read_study(file).study
    with Store(folder / FILE_NAME, create=True) as store:
        store.declare(study.runs(), "a call that was stopped", study.references, whole=True)
        # Its process is gone, and was at work on the last run.
        store.claim(study.runs()[-1].key, str(replace(Owner.current(), started="1")))
    file.write_text(text.replace("seeds: 30", "seeds: 2").replace(", reference: {low: 9, high: 500}", ""))
    assert main(["compare", str(file), "-f", str(folder)]) == 0
    with Store(folder / FILE_NAME) as store:
        assert [record.status for record in store.records()] == ["finished"] * 2
        assert store.references() == {}
