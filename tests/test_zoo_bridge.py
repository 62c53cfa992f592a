"""rl_zoo3 with the registry's algorithms: its commands run as a user types them, each group in a fresh process."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.trial import FixedTrial, TrialState
from sb3_contrib import CrossQ, RecurrentPPO
from stable_baselines3 import SAC
from stable_baselines3.common.utils import LinearSchedule

import sb3_pg_ext
from sb3_pg_ext import AlgorithmSpec, Choice, Float, Int, OneMinus, When, registry
from sb3_pg_ext.bases.model_file import read_fields
from sb3_pg_ext.experiments.log_folder import find_environment
from sb3_pg_ext.experiments.run_spec import Environment
from sb3_pg_ext.experiments.zoo_configs import zoo_config
from sb3_pg_ext.zoo import command, untuned
from sb3_pg_ext.zoo.arguments import converter, sampler
from sb3_pg_ext.zoo.bridge import add_algorithms

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
ONE_AFTER_ANOTHER = """
import json, sys
from sb3_pg_ext.zoo.command import main
for argv in json.loads(sys.argv[1]):
    status = main(argv)
    assert status == 0, (argv, status)
"""


def python(folder, *argv, status=0):
    """What a fresh interpreter prints; modules in ``folder`` can be imported."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def zoo(folder, line, status=0):
    return python(folder, "-m", "sb3_pg_ext.zoo", *line.split(), status=status)


def zoo_commands(folder, *lines):
    return python(folder, "-c", ONE_AFTER_ANOTHER, json.dumps([line.split() for line in lines]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which REINFORCE has been trained twice, and CEM on an environment without settings."""
    folder = tmp_path_factory.mktemp("zoo")
    train = "train --algo reinforce --env CartPole-v1 -n 1500 --eval-freq 500"
    without_settings = "train --algo cem --env Taxi-v4 -n 300 --eval-freq -1 --env-kwargs max_episode_steps:20"
    zoo_commands(
        folder,
        f"{train} --seed 1",
        f"{train} --seed 2 -i logs/reinforce/CartPole-v1_1/CartPole-v1.zip",
        f"{without_settings} -params population_size:4",
    )
    return folder


def test_training_takes_the_tuned_settings_and_leaves_the_zoos_files(trained):
    run = trained / "logs/reinforce/CartPole-v1_1"
    files = {"0.monitor.csv", "best_model.zip", "evaluations.npz", "CartPole-v1.zip"}
    assert files <= {path.name for path in run.iterdir()}
    written = yaml.safe_load((run / "CartPole-v1/config.yml").read_text())  # plain text: no object in it
    tuned = zoo_config("reinforce", "CartPole-v1")
    assert {name: written[name] for name in tuned} == tuned
    assert written["n_timesteps"] == 1500
    model = sb3_pg_ext.load(run / "CartPole-v1.zip")
    assert (model.n_envs, model.n_steps) == (tuned["n_envs"], tuned["n_steps"])
    assert model.num_timesteps >= 1500


def test_a_schedule_in_the_settings_is_one_of_stable_baselines3_which_loads_without_the_zoo(trained):
    model = sb3_pg_ext.load(trained / "logs/reinforce/CartPole-v1_1/CartPole-v1.zip")
    rate = float(zoo_config("reinforce", "CartPole-v1")["learning_rate"].removeprefix("lin_"))
    assert isinstance(model.learning_rate, LinearSchedule)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([rate, rate / 2, 0.0])


def test_training_goes_on_with_a_trained_agent(trained):
    first, second = (sb3_pg_ext.load(trained / f"logs/reinforce/CartPole-v1_{n}/CartPole-v1.zip") for n in (1, 2))
    assert second._n_updates > first._n_updates
    assert second.n_steps == first.n_steps


def test_folders_of_the_zoo_alone_are_evaluated_without_it(tmp_path):
    """Their settings are ordered dicts of Python, their schedules a class of the zoo."""
    train = "-m rl_zoo3.train --algo a2c --env Pendulum-v1 -n 64 --env-kwargs g:0.0 --eval-freq -1 --seed 1"
    python(tmp_path, *train.split())
    folder = tmp_path / "logs/a2c/Pendulum-v1_1"
    assert "python/object" in (folder / "Pendulum-v1/config.yml").read_text()
    found = find_environment(folder / "Pendulum-v1.zip", None)
    assert found == Environment("Pendulum-v1", kwargs={"g": 0.0}, normalize={})
    asked = json.dumps(["eval", str(folder), "--n-episodes", "2"])
    code = f"import sys; from sb3_pg_ext.experiments.cli import main; print(main({asked}), 'rl_zoo3' in sys.modules)"
    printed = python(tmp_path, "-c", code)
    assert "A2C in Pendulum-v1, 2 deterministic episodes" in printed
    assert printed.splitlines()[-1] == "0 False"
    assert isinstance(sb3_pg_ext.load(folder / "Pendulum-v1.zip").learning_rate, LinearSchedule)


def test_enjoy_figures_tables_and_videos(trained):
    printed = zoo_commands(
        trained,
        "enjoy --algo reinforce --env CartPole-v1 -f logs --no-render -n 600 --exp-id 1",
        "plot_train -a reinforce -e CartPole-v1 -f logs -w 5",
        "all_plots -a reinforce -e CartPole-v1 -f logs --no-display -print -o logs/curves",
        "plot_from_file -i logs/curves.pkl -o logs/scores.png --format png",
        "record_video --algo reinforce --env CartPole-v1 -f logs --load-best -n 10",
    )
    assert "Loading logs/reinforce/CartPole-v1_1/CartPole-v1.zip" in printed
    assert "Mean reward: " in printed
    assert "CartPole-v1-REINFORCE-logs: 2" in printed
    assert (trained / "logs/scores.png").read_bytes().startswith(b"\x89PNG")
    [video] = trained.glob("logs/reinforce/CartPole-v1_2/videos/best-model-*.mp4")
    assert video.stat().st_size > 1000


def test_without_settings_the_constructors_defaults_apply(trained):
    model = sb3_pg_ext.load(trained / "logs/cem/Taxi-v4_1/Taxi-v4.zip")
    expected = registry.get("cem").cls("LinearPolicy", "Taxi-v4")
    assert type(model.policy) is type(expected.policy)
    assert (model.elite_frac, model.population_size) == (expected.elite_frac, 4)


def test_a_budget_that_nobody_names_is_asked_for(tmp_path):
    printed = zoo(tmp_path, "train --algo reinforce --env Taxi-v4", status=2)
    assert printed.splitlines()[-1].startswith("sb3_pg_ext.zoo: -n STEPS is needed")
    assert "Traceback" not in printed


def test_a_study_whose_trials_can_be_trained_the_first_one_too(tmp_path):
    study = "--storage logs/study.log --study-name mine"
    train = f"train --algo reinforce --env CartPole-v1 -n 300 --eval-freq -1 --verbose 0 {study}"
    tune = f"{train} -optimize --n-trials 3 --n-evaluations 1 --sampler random --no-optim-plots --seed 0"
    zoo_commands(tmp_path, tune, f"{train} --trial-id 0", f"{train} --trial-id 2 -params n_steps:16")
    trials = trials_of(tmp_path, "mine")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    for trial, typed, run in ((trials[0], {}, "CartPole-v1_2"), (trials[2], {"n_steps": 16}, "CartPole-v1_3")):
        expected = converter(registry.get("reinforce"))(trial.params) | typed
        written = yaml.safe_load((tmp_path / f"logs/reinforce/{run}/CartPole-v1/config.yml").read_text())
        assert {name: written[name] for name in expected} == expected
        model = sb3_pg_ext.load(tmp_path / f"logs/reinforce/{run}/CartPole-v1.zip")
        assert (model.gamma, model.n_steps) == (expected["gamma"], expected["n_steps"])
        assert model.policy.net_arch == expected["policy_kwargs"]["net_arch"]
    assert "--trial-id 3: the study mine has no such trial" in zoo(tmp_path, f"{train} --trial-id 3", status=2)
    for other in ("ppo", "npg"):
        printed = zoo(tmp_path, f"{train} --trial-id 0".replace("reinforce", other), status=2)
        assert f"--study-name mine: its trials do not have the parameters of {other}" in printed
    # The trial says what its numbers mean: it stores 1 - gamma and the exponent of n_steps.
    for trial in trials:
        assert trial.user_attrs["gamma"] == pytest.approx(1 - trial.params["1-gamma"])
        assert trial.user_attrs["n_steps"] == 2 ** trial.params["log2(n_steps)"]


def trials_of(folder, name):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "logs/study.log"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend)).trials


PLUGIN = """
from sb3_pg_ext import AlgorithmSpec, Float
from sb3_pg_ext.algorithms.qac import QAC

class Fragile(QAC):
    '''QAC whose numbers go astray when the step is large.'''

    def update(self, rollout):
        rate = self.lr_schedule(1.0)
        if rate > 3e-3:
            raise FloatingPointError("overflow encountered")
        if rate > 1e-3:
            raise ValueError("the gradient is nan")
        super().update(rollout)

SPEC = AlgorithmSpec(
    Fragile, family="on_policy", paper="none", space={"learning_rate": Float(1e-4, 1e-2, log=True)}
)
"""
SETTINGS = """
CartPole-v1:
  n_envs: 2
  n_steps: 8
  policy: MlpPolicy
  learning_rate: 1e-3
  critic_learning_rate: lin_1e-2
  policy_kwargs: "dict(activation_fn=nn.ReLU, net_arch=[2**3])"
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A folder with an installed package that has an algorithm, after a training and a study of it."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "fragile.py").write_text(PLUGIN)
    installed = folder / "fragile-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[sb3_pg_ext.algorithms]\nfragile = fragile:SPEC\n")
    (folder / "settings.yml").write_text(SETTINGS)
    run = "--algo fragile --env CartPole-v1"
    study = "-optimize --storage logs/study.log --study-name fragile --no-optim-plots --sampler random --seed 0"
    printed = zoo_commands(
        folder,
        f"train {run} -n 200 --eval-freq -1 -conf settings.yml --vec-env subproc",
        f"enjoy {run} -f logs --no-render -n 600",
        f"train {run} -n 64 --n-trials 8 --n-evaluations 1 {study}",
    )
    assert "Mean reward: " in printed
    return folder


def test_settings_of_ones_own_may_have_a_schedule_for_any_argument(plugin):
    fields = read_fields(plugin / "logs/fragile/CartPole-v1_1/CartPole-v1.zip")
    assert (fields["learning_rate"], fields["n_steps"], fields["n_envs"]) == (1e-3, 8, 2)
    assert fields["critic_learning_rate"](0.25) == pytest.approx(1e-2 / 4)
    assert fields["policy_kwargs"] == {"activation_fn": torch.nn.ReLU, "net_arch": [8]}


def test_a_trial_whose_numbers_go_astray_is_pruned_and_the_study_goes_on(plugin):
    expected = {
        "overflow": (TrialState.PRUNED, "FloatingPointError: overflow encountered"),
        "nan": (TrialState.PRUNED, "ValueError: the gradient is nan"),
        "": (TrialState.COMPLETE, None),
    }
    met = set()
    for trial in trials_of(plugin, "fragile"):
        rate = trial.params["learning_rate"]
        case = "overflow" if rate > 3e-3 else "nan" if rate > 1e-3 else ""
        assert (trial.state, trial.user_attrs.get("pruned_because")) == expected[case]
        met.add(case)
    assert met == set(expected)


def test_the_tables_hold_every_algorithm_and_keep_what_the_zoo_has(tmp_path):
    code = """
        import json, rl_zoo3, sb3_pg_ext
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
        before = dict(rl_zoo3.ALGOS), dict(HYPERPARAMS_SAMPLER), dict(HYPERPARAMS_CONVERTER)
        from sb3_pg_ext.zoo.bridge import install
        from sb3_pg_ext.zoo.manager import settings_source
        install()
        install()
        after = rl_zoo3.ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER
        sources = [("reinforce", "CartPole-v1"), ("reinforce", "Taxi-v4"), ("ppo", "CartPole-v1"),
                   ("ppo", "Swimmer-v5"), ("recurrent_ppo", "CartPole-v1")]
        print(json.dumps({
            "lacking": [key for key, spec in sb3_pg_ext.available().items() for table in after if key not in table],
            "classes": all(rl_zoo3.ALGOS[key] is spec.cls for key, spec in sb3_pg_ext.available().items()),
            "replaced": [k for old, new in zip(before, after) for k in old if new[k] is not old[k]],
            "before": len(before[0]),
            "layers": [c.__name__ for c in rl_zoo3.train.ExperimentManager.__mro__],
            "sources": [settings_source(*source) for source in sources],
        }))
    """
    seen = json.loads(python(tmp_path, "-W", "ignore", "-c", textwrap.dedent(code)).splitlines()[-1])
    assert seen["lacking"] == seen["replaced"] == []
    assert seen["classes"]
    assert seen["before"] > 5
    assert seen["layers"] == ["ExperimentManager", "BridgedExperiment", "ExperimentManager", "object"]
    ours, no_settings, *zoos = seen["sources"]
    assert Path(ours).parts[-2:] == ("zoo_configs", "reinforce.yml")
    assert no_settings == untuned.__name__
    assert [Path(file).parts[-3:] for file in zoos] == [
        ("rl_zoo3", "hyperparams", name) for name in ("ppo.yml", "ppo.yml", "ppo_lstm.yml")
    ]


def test_gaps_are_filled_and_foreign_entries_stay():
    own, of_zoo, back = object(), object(), object()
    algos = {"ppo_lstm": RecurrentPPO, "crossq": CrossQ, "npg": own, "sac_too": SAC, "sac": SAC}
    samplers = {"ppo_lstm": of_zoo, "sac_too": object(), "sac": of_zoo}
    converters = {"ppo_lstm": back, "sac_too": object(), "sac": back}
    add_algorithms(algos, samplers, converters)
    assert algos["npg"] is own  # somebody else's algorithm of that name
    assert "npg" not in samplers
    for key in ("sac", "recurrent_ppo"):
        assert (samplers[key], converters[key]) == (of_zoo, back)
    trial = optuna.create_study().ask()
    sampled = samplers["crossq"](trial, 1, 1, {})
    assert converters["crossq"](trial.params) == sampled
    assert CrossQ("MlpPolicy", "Pendulum-v1", **sampled).policy_delay == sampled["policy_delay"]


def test_search_spaces_become_arguments_both_ways():
    class Tunable:
        """An algorithm."""

        def __init__(self, policy, env, rate=1e-3, gamma=0.99, kind="a", extra=0.5, n=8, policy_kwargs=None):
            """Nothing."""

    space = {
        "rate": Choice("lin_0.5", "lin_0.25"),
        "gamma": OneMinus(0.01, 0.1),
        "n": Int(2, 5, power=2),
        "kind": Choice("a", "b"),
        "extra": When("kind", ("b",), Float(1.0, 2.0)),
        "policy_kwargs.activation_fn": Choice("nn.ReLU", "nn.Tanh"),
        "policy_kwargs.net_arch": Choice([64], [64, 64]),
    }
    spec = AlgorithmSpec(Tunable, family="on_policy", paper="none", space=space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(10):
        trial = study.ask()
        sampled, again = sampler(spec)(trial, 0, 1, {}), converter(spec)(trial.params)
        schedule = sampled.pop("rate")
        assert isinstance(schedule, LinearSchedule)
        assert schedule(0.5) == again.pop("rate")(0.5) == float(trial.params["rate"].removeprefix("lin_")) / 2
        assert sampled == again
        assert sampled["policy_kwargs"]["activation_fn"].__module__.startswith("torch.nn")
        # Settings of the environment lie below a trial: an inactive argument of theirs must not shine through.
        assert (sampled["extra"] == 0.5) == (sampled["kind"] == "a")
        attributes = trial.study.trials[trial.number].user_attrs
        assert attributes["n"] == sampled["n"]
        assert np.isclose(attributes["gamma"], 1 - trial.params["1-gamma"])
        kinds.add(sampled["kind"])
    assert kinds == {"a", "b"}


@pytest.mark.parametrize("key", sorted(registry.available()))
def test_stored_parameters_of_every_algorithm_give_its_arguments_back(key):
    spec = registry.get(key)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = sampler(spec)(trial, 1, 1, {})
    assert sampled.keys() <= spec.defaults.keys()
    assert converter(spec)(trial.params) == sampled
    assert sampler(spec)(FixedTrial(trial.params), 1, 1, {}) == sampled


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command(argv, capsys):
    assert command.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {word} " in printed for word in command.WORDS)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("trian", "Did you mean 'train'?"), ("xyz", "There are: train,"), ("record_training", "use record_video")],
)
def test_what_cannot_be_handed_over_is_said_in_a_line(word, sentence, capsys):
    assert command.main([word]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch, capsys):
    for name in ("rl_zoo3", "seaborn"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert command.main(["train", "--algo", "reinforce"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert 'rl_zoo3, seaborn missing: pip install "sb3_pg_ext[zoo]"' in line


def test_each_reader_of_no_settings_gets_a_table_of_its_own():
    untuned.hyperparams["default"]["written"] = "by rl_zoo3"
    assert untuned.hyperparams == {"default": {}}


EACH_BY_ITSELF = """
import json, sys
from sb3_pg_ext.zoo.command import main
for argv in json.loads(sys.argv[1]):
    print("status", main(argv), file=sys.stderr, flush=True)
"""
TRAIN = "train --algo reinforce --env CartPole-v1 -n 100"


def test_what_is_wrong_with_a_command_is_one_line(tmp_path):
    expected = {
        "train --algo reinforce --env NoSuch-v0 -n 100": "NoSuch-v0 not found",
        f"{TRAIN} -params gamma:7": "gamma=7: a number in [0, 1] is needed",
        f"{TRAIN} -params gama:0.9": "REINFORCE() has no argument 'gama'.",
        "train --algo ppo --env CartPole-v1 -n 100 -params gama:0.9": "unexpected keyword argument 'gama'",
        f"{TRAIN} -params gamma=0.9": "a K:V whose V is no value of Python, where text has quotes: invalid syntax",
        f"{TRAIN} -params baseline:mean": "where text has quotes: name 'mean' is not defined",
        f"{TRAIN} -conf missing.yml": "No such file or directory: 'missing.yml'",
        f"{TRAIN} --gym-packages no_such": "No module named 'no_such'",
        f"{TRAIN} --gym-packages no_such.of.it": "No module named 'no_such'",
        f"{TRAIN} --trial-id 1 --study-name b --storage a.log": "b: there is no study of that name in a.log",
        f"{TRAIN} -i missing.zip": "must be a valid path to a .zip file",
        "train --algo mbpg --env CartPole-v1 -n 100": "action_space=Discrete(2): MBPG",
        "enjoy --algo reinforce --env CartPole-v1 -f nolog": "The nolog/reinforce folder was not found",
        "record_video --algo reinforce --env CartPole-v1 -f nolog": "The nolog/reinforce folder was not found",
    }
    code = ["-W", "ignore", "-c", EACH_BY_ITSELF, json.dumps([line.split() for line in expected])]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stderr.splitlines() if line.startswith(("sb3_pg_ext.zoo: ", "status"))]
    assert shown[1::2] == ["status 2"] * len(expected)
    for line, sentence in zip(shown[::2], expected.values(), strict=True):
        assert sentence in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "place", "function", "expected"),
    [
        (ValueError("n=0"), "sb3_pg_ext.bases.options", "check", True),
        (AssertionError("no folder"), "rl_zoo3.utils", "get_model_path", True),
        (FileNotFoundError("none"), "rl_zoo3.exp_manager", "read_hyperparameters", True),
        (ValueError("n=0"), "my_env", "reset", False),
        (ValueError("the gradient is nan"), "sb3_pg_ext.bases.on_policy", "learn", False),
        (AssertionError(), "rl_zoo3.exp_manager", "setup_experiment", False),
        (TypeError("unsupported operand"), "sb3_pg_ext.bases.on_policy", "__init__", False),
        (NameError("name 'x' is not defined"), "rl_zoo3.train", "train", False),
        (KeyError("x"), "rl_zoo3.train", "train", False),
        (ModuleNotFoundError("No module named 'x'", name="x"), "rl_zoo3.train", "train", False),
    ],
)
def test_an_error_that_nobody_has_foreseen_keeps_its_traceback(error, place, function, expected, monkeypatch, capsys):
    scope = {"__name__": place, "error": error}
    exec(compile(f"def {function}(*arguments):\n    raise error", "file.py", "exec"), scope)
    monkeypatch.setattr(command, "_hand_over", scope[function])
    if expected:
        assert command.main(["train"]) == 2
        assert capsys.readouterr().err == f"sb3_pg_ext.zoo: {error}\n"
        return
    with pytest.raises(type(error)) as raised:
        command.main(["train"])
    assert raised.value is error
