"""Trackers: what arrives there, at which step, how a run ends, and that training does not notice."""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import random
import re
import struct
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam, Image, KVWriter, Video

from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import Protocol, RunSpec
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.trackers import MlflowTracker, TensorboardTracker, Tracker, WandbTracker
from sb3_pg_ext.experiments.trackers.description import Description, describe_model, describe_run
from sb3_pg_ext.experiments.trackers.tracker import require
from sb3_pg_ext.experiments.trackers.values import number, pixels
from sb3_pg_ext.experiments.tracking import Tracking, add_tracking, stale_files, tracked, with_commas
from sb3_pg_ext.experiments.variants import read_variant


def model_of(**options: Any) -> A2C:
    return A2C("MlpPolicy", "CartPole-v1", seed=1, policy_kwargs={"net_arch": [8]}, device="cpu", **options)


def spec_of(text: str = "a2c", steps: int = 200) -> RunSpec:
    protocol = Protocol(every=100, episodes=2, test_episodes=2)
    return resolve(
        read_variant(text), "CartPole-v1", seeds=seeds_of(0, 1), total_steps=steps, protocol=protocol, replicate=1
    )


# --- stand-ins that keep what they are told


class FakeWandb(ModuleType):
    """As much of wandb as a tracker uses."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged_in, self.reachable, self.Error = True, True, type("Error", (Exception,), {})
        self.runs: list[SimpleNamespace] = []
        self.Image = lambda data: ("image", np.shape(data) if isinstance(data, np.ndarray) else type(data).__name__)
        self.Histogram = lambda data: ("histogram", len(data))
        self.Video = lambda data, fps, format: ("video", data.shape, fps, format)

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt
        if verify and not self.reachable:
            raise self.Error("no route to host.")
        return self.logged_in

    def init(self, **options: Any) -> SimpleNamespace:
        run = SimpleNamespace(options=options, rows=[], config={}, axes=[], exit_code=None)
        run.log = run.rows.append
        run.define_metric = lambda name, step_metric=None: run.axes.append((name, step_metric))
        run.config = SimpleNamespace(update=lambda table, allow_val_change: options["config"].update(table))
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        self.runs.append(run)
        return run


class FakeMlflow(ModuleType):
    """As much of mlflow as a tracker uses; the clients share one store, and refuse what a real one does."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.uris: list[str] = []
        self.failing = 0
        names = {"Metric": "key value timestamp step", "Param": "key value", "RunTag": "key value"}
        self.entities = SimpleNamespace(**{name: namedtuple(name, fields) for name, fields in names.items()})
        self.exceptions = SimpleNamespace(MlflowException=KeyError)

    def MlflowClient(self, tracking_uri: str) -> FakeMlflow:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        if name in self.experiments:
            raise KeyError("it exists")
        self.experiments[name] = f"id of {name}"
        return self.experiments[name]

    def create_run(self, experiment: str, run_name: str | None, tags: dict[str, str]) -> SimpleNamespace:
        assert all(isinstance(text, str) for text in tags.values())
        info = SimpleNamespace(run_id=f"run {len(self.runs)}", status="RUNNING")
        run = SimpleNamespace(info=info, name=run_name, tags=dict(tags), metrics=[], params={}, files=[])
        run.data = SimpleNamespace(tags=run.tags)
        self.runs[info.run_id] = run
        return run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        assert len(tags) <= 100
        if self.failing:
            self.failing -= 1
            raise OSError("the database is locked")
        run = self.runs[run_id]
        run.metrics += metrics
        run.params |= {param.key: param.value for param in params}
        run.tags |= {tag.key: tag.value for tag in tags}

    def log_image(self, run_id: str, image: np.ndarray, key: str, step: int) -> None:
        self.runs[run_id].files.append((key, image.shape, step))

    def log_figure(self, run_id: str, figure: Any, path: str) -> None:
        self.runs[run_id].files.append(path)

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status

    def search_runs(self, experiments: list[str], text: str) -> list[SimpleNamespace]:
        wanted = dict(re.findall(r"tags\.`(\w+)` = '([^']*)'", text))
        assert "attributes.status = 'RUNNING'" in text
        running = [run for run in self.runs.values() if run.info.status == "RUNNING"]
        return [run for run in running if wanted.items() <= run.tags.items()]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    return sys.modules["wandb"]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", FakeMlflow())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr("sb3_pg_ext.experiments.trackers.mlflow._SECONDS_BETWEEN_WRITES", 0.0)
    return sys.modules["mlflow"]


class Kept:
    """A session that keeps everything, and draws random numbers wherever it can."""

    def __init__(self) -> None:
        self.values: list[tuple[int, str, Any]] = []
        self.status: str | None = None
        self.failing = 0
        self.flushes = 0
        self._draw()

    def _draw(self) -> None:
        random.random(), np.random.rand(), torch.rand(1)

    def put(self, key: str, value: Any, step: int) -> None:
        self._draw()
        self.values.append((step, key, value))

    def flush(self, step: int) -> None:
        self._draw()
        self.flushes += 1
        if self.failing:
            self.failing -= 1
            raise OSError("no route to host")

    def finish(self, status: str) -> None:
        self._draw()
        assert self.status is None
        self.status = status


class KeptTracker(Tracker):
    package = "json"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.runs: list[tuple[Description, Kept]] = []

    def _open(self, run: Description) -> Kept:
        self.runs.append((run, Kept()))
        return self.runs[-1][1]


class AsLogged(KVWriter):
    """What the logger hands to any of its outputs."""

    def __init__(self) -> None:
        self.values: list[tuple[int, str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.values += [(step, key, value) for key, value in key_values.items()]

    def close(self) -> None: ...


class Reference(BaseCallback):
    """Puts :class:`AsLogged` beside the tracker."""

    def __init__(self) -> None:
        super().__init__()
        self.output = AsLogged()

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.output)

    def _on_step(self) -> bool:
        return True


class Stop(BaseCallback):
    """Raises in the middle of training."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.num_timesteps > 20:
            raise self.error
        return True


# --- what arrives


def test_everything_that_is_logged_arrives_at_its_step() -> None:
    tracker, reference = KeptTracker(), Reference()
    model_of(n_steps=5).learn(1000, callback=[reference, tracker], log_interval=50)
    ((_, session),) = tracker.runs
    assert session.values == reference.output.values
    assert {step for step, _, _ in session.values} == {250, 500, 750, 1000}
    assert {"rollout/ep_rew_mean", "train/value_loss"} <= {key for _, key, _ in session.values}
    assert session.status == "finished"


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_ends_with_learn_or_with_the_block(inside: bool) -> None:
    model, tracker = model_of(), KeptTracker()
    with tracker if inside else nullcontext():
        for _ in range(2):
            model.learn(20, callback=tracker, reset_num_timesteps=False)
            model.logger.record("mine", 1)
            model.logger.dump(model.num_timesteps)
    mine = [[(step, value) for step, key, value in kept.values if key == "mine"] for _, kept in tracker.runs]
    assert mine == ([[(20, 1), (40, 1)]] if inside else [[], []])
    assert [kept.status for _, kept in tracker.runs] == ["finished"] * len(mine)
    assert tracker._writer not in model.logger.output_formats


def test_the_settings_of_a_model_are_those_of_its_constructor() -> None:
    run = describe_model(model_of(ent_coef=0.125, learning_rate=0.5))
    assert run.hyperparameters["ent_coef"] == 0.125
    assert run.hyperparameters["learning_rate"] == 0.5
    assert run.hyperparameters["policy_kwargs"]["net_arch"] == [8]
    assert run.hyperparameters["env"] == run.tags["env"] == "CartPole-v1"
    assert (run.hyperparameters["algo"], run.hyperparameters["seed"], run.tags["seed"]) == ("A2C", 1, "1")
    assert {"git", "python", "versions"} <= set(run.provenance)
    assert "verbose" not in run.hyperparameters
    json.dumps(dict(run.hyperparameters))


def test_schedules_that_are_constants_are_numbers() -> None:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, clip_range=0.25, device="cpu")
    assert describe_model(model).hyperparameters["clip_range"] == 0.25
    model.clip_range.value_schedule = lambda progress: 0.25 * progress
    assert "FloatSchedule" in describe_model(model).hyperparameters["clip_range"]


def test_a_run_of_a_study_is_described_by_its_spec() -> None:
    spec = spec_of("mine=ppo:n_steps=64,policy_kwargs.net_arch=[8]")
    run = describe_run(spec, "my_study", "/results/my_study", "sb3-pg compare ...")
    assert run.name == "mine/CartPole-v1/seed1"
    assert (run.group, run.tags["study"], run.tags["label"], run.tags["seed"]) == ("my_study", "my_study", "mine", "1")
    assert run.tags["key"] == spec.key
    assert run.provenance["command"] == "sb3-pg compare ..."
    settings = run.hyperparameters
    assert (settings["n_steps"], settings["gamma"], settings["seed"]) == (64, 0.99, spec.seeds.train)
    assert "study" not in describe_run(spec, None, "/logs", "").tags


# --- what does not


class Memory:
    """A recorder that keeps the evaluations."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Evaluation]] = []

    def progress(self, step: int, train_seconds: float) -> None: ...

    def evaluation(self, kind: str, evaluation: Evaluation) -> None:
        self.kept.append((kind, evaluation))

    def numbers(self) -> list[Any]:
        return [(kind, e.step, e.returns, e.lengths) for kind, e in self.kept]


def parameters_of(path: Path) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(A2C.load(path, device="cpu").policy.parameters())


def test_tracking_has_no_effect_on_results(tmp_path: Path) -> None:
    spec = spec_of(steps=300)
    plain, watched, tracker = Memory(), Memory(), KeptTracker()
    execute(spec, plain, tmp_path / "plain.zip")
    with tracker, TensorboardTracker(tmp_path, "run") as events:
        execute(spec, watched, tmp_path / "watched.zip", [tracker, events])
    assert plain.numbers() == watched.numbers()
    assert torch.equal(parameters_of(tmp_path / "plain.zip"), parameters_of(tmp_path / "watched.zip"))
    ((_, session),) = tracker.runs
    logged = [(step, key, value) for step, key, value in session.values if key.endswith("/mean_reward")]
    names = {"training": "eval/mean_reward", "test": "test/mean_reward"}
    assert logged == [(e.step, names[kind], e.mean_return) for kind, e in plain.kept]


def test_random_numbers_after_a_run_began_are_those_without_it() -> None:
    def drawn(track: bool) -> tuple[Any, ...]:
        random.seed(3), np.random.seed(3), torch.manual_seed(3)
        if track:
            tracker = KeptTracker()
            tracker.begin(Description())
            tracker.write({"a": 1.0}, 1)
            tracker.end()
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert drawn(True) == drawn(False)


# --- how a run ends


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "killed")])
def test_an_exception_in_the_block_ends_the_run(error: BaseException, status: str) -> None:
    tracker = KeptTracker()
    with pytest.raises(type(error)), tracker:
        model_of().learn(100, callback=[tracker, Stop(error)])
    ((_, session),) = tracker.runs
    assert session.status == status


def test_without_a_block_a_run_that_is_left_open_has_failed() -> None:
    tracker = KeptTracker()
    with pytest.raises(ValueError, match="no"):
        model_of().learn(100, callback=[tracker, Stop(ValueError("no"))])
    model_of().learn(20, callback=tracker)
    assert [session.status for _, session in tracker.runs] == ["failed", "finished"]
    with pytest.raises(ValueError, match="no"):
        model_of().learn(100, callback=[tracker, Stop(ValueError("no"))])
    runs = tracker.runs
    del tracker
    gc.collect()
    assert runs[2][1].status == "failed"


def test_without_a_block_the_end_of_the_program_is_enough(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.test_trackers import *\n"
        "class Told(KeptTracker):\n"
        "    def _open(self, run):\n"
        "        kept = super()._open(run)\n"
        "        kept.finish = lambda status: print('it has', status, flush=True)\n"
        "        return kept\n"
        "model_of().learn(100, callback=[Told(), Stop(ValueError('no'))])\n"
    )
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); exec(open({str(script)!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: no" in done.stderr
    assert done.stdout == "it has failed\n"


def test_a_tracker_that_fails_does_not_end_training() -> None:
    tracker, model = KeptTracker(), model_of()
    with tracker:
        tracker.begin(Description())
        session = tracker.runs[0][1]
        session.failing = 1
        with pytest.warns(RuntimeWarning, match="no route to host"):
            model.learn(50, callback=tracker, log_interval=5)
        assert session.flushes == 2  # once in vain, and again
        session.failing = 99
        with pytest.warns(RuntimeWarning, match="no route to host") as told:
            model.learn(1000, callback=tracker, log_interval=5)
    assert len(told) == 3
    assert "nothing more is written" in str(told[-1].message)
    assert session.flushes == 5
    assert model.num_timesteps == 1000
    assert session.status == "finished"


# --- kinds of values


def odd_values() -> dict[str, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return {
        "nan": float("nan"),
        "inf": -np.inf,
        "np": np.float32(2.5),
        "flag": True,
        "th": torch.tensor(4.0),
        "text": "words",
        "numbers": np.array([1.0, np.nan, 3.0]),
        "chw": Image(torch.rand(3, 4, 5), "CHW"),
        "figure": Figure(pyplot.figure(), close=True),
        "hparams": HParam({"mine": 7.0}, {"m": 0.0}),
    }


BAD = {"all nan": np.array([np.nan]), "huge": 10**400, "complex": 1j}


def log_odd_values(tracker: Tracker, *others: str) -> None:
    """Log ordinary values at step 77, and at 78 and 79 those that no tracker can show, and ``others``."""
    model, values = model_of(), odd_values()
    bad = BAD | {name: values.pop(name) for name in others}
    with tracker:
        model.learn(20, callback=tracker)
        log(model, values, 77)
        with pytest.warns(RuntimeWarning) as told:
            log(model, {**bad, "good": 78}, 78)
        log(model, {**bad, "good": 79}, 79)  # no second warning
    assert sorted(str(warning.message).split("'")[1] for warning in told) == sorted(bad)


def log(model: A2C, values: dict[str, Any], step: int, **options: Any) -> None:
    model.logger.dump(model.num_timesteps)  # what the last update has left
    for name, value in values.items():
        model.logger.record(name, value, **options)
    model.logger.dump(step)


def test_wandb_takes_odd_values(wandb: FakeWandb) -> None:
    log_odd_values(WandbTracker())
    (run,) = wandb.runs
    (row,) = [row for row in run.rows if row["global_step"] == 77]
    assert np.isnan(row.pop("nan"))
    expected = {"inf": -np.inf, "np": 2.5, "flag": 1.0, "th": 4.0, "text": "words", "numbers": ("histogram", 2)}
    assert row == {**expected, "chw": ("image", (4, 5, 3)), "figure": ("image", "Figure"), "global_step": 77}
    assert run.options["config"]["mine"] == 7.0
    assert run.rows[-2:] == [{"good": 78.0, "global_step": 78}, {"good": 79.0, "global_step": 79}]


def test_wandb_takes_videos(wandb: FakeWandb) -> None:
    tracker = WandbTracker()
    with tracker:
        tracker.begin(Description())
        tracker.write({"video": Video(torch.zeros(1, 4, 3, 8, 8), 30)}, 5)
    assert wandb.runs[0].rows == [{"video": ("video", (1, 4, 3, 8, 8), 30, "gif"), "global_step": 5}]


def test_mlflow_takes_odd_values(mlflow: FakeMlflow, tmp_path: Path) -> None:
    log_odd_values(MlflowTracker(folder=tmp_path), "numbers")  # it has no histograms
    (run,) = mlflow.runs.values()
    logged = {metric.key: metric.value for metric in run.metrics if metric.step == 77}
    assert np.isnan(logged.pop("nan"))
    assert logged == {"inf": -np.inf, "np": 2.5, "flag": 1.0, "th": 4.0}
    assert run.tags["text"] == "words"
    assert run.params["mine"] == "7.0"
    assert run.files == [("chw", (4, 5, 3), 77), "figure/77.png"]
    assert [(m.key, m.value, m.step) for m in run.metrics[-2:]] == [("good", 78.0, 78), ("good", 79.0, 79)]


def test_tensorboard_takes_odd_values(tmp_path: Path) -> None:
    log_odd_values(TensorboardTracker(tmp_path, "run"))
    events = events_of(tmp_path / "run")
    assert [(e.step, e.value) for e in events.Scalars("th")] == [(77, 4.0)]
    assert np.isnan(events.Scalars("nan")[0].value)
    assert events.Scalars("inf")[0].value == -np.inf
    assert events.Images("chw")[0].step == events.Images("figure")[0].step == 77
    assert events.Histograms("numbers")[0].histogram_value.num == 2
    assert [(e.step, e.value) for e in events.Scalars("good")] == [(78, 78.0), (79, 79.0)]


@pytest.mark.parametrize("value", [1, True, np.int64(1), np.bool_(True), np.array(1), torch.tensor(1), np.float16(1)])
def test_scalars_are_numbers(value: Any) -> None:
    assert number(value) == 1.0
    assert type(number(value)) is float


@pytest.mark.parametrize("value", ["1", np.ones(1), torch.ones(1), None, 1j, [1], np.str_("1")])
def test_others_are_not(value: Any) -> None:
    assert number(value) is None


def test_pixels_are_in_the_usual_order() -> None:
    image = np.arange(24).reshape(2, 3, 4).astype(np.uint8)  # height, width, channel
    assert (pixels(Image(image, "HWC")) == image).all()
    assert (pixels(Image(torch.tensor(image).permute(2, 1, 0), "CWH")) == image).all()
    assert (pixels(Image(image[..., 0].T, "WH")) == image[..., 0]).all()
    assert pixels(Image(np.array([[0.0, 0.5, 1.0, 7.0]]), "HW")).tolist() == [[0, 128, 255, 255]]
    for refused in (Image("file.png", "HWC"), Image(image[None], "NHWC")):
        with pytest.raises(ValueError, match="one image"):
            pixels(refused)


def test_a_key_can_be_kept_from_one_tracker(wandb: FakeWandb, mlflow: FakeMlflow, tmp_path: Path) -> None:
    model = model_of()
    with WandbTracker() as first, MlflowTracker(folder=tmp_path) as second:
        model.learn(20, callback=[first, second])
        model.logger.dump(20)
        mlflow.runs["run 0"].metrics.clear()
        model.logger.record("a", 1.0, exclude="wandb")
        model.logger.record("b", 1.0, exclude=("mlflow", "stdout"))
        model.logger.dump(30)
    assert wandb.runs[0].rows[-1] == {"b": 1.0, "global_step": 30}
    assert [metric.key for metric in mlflow.runs["run 0"].metrics] == ["a"]


# --- Weights & Biases


def test_wandb_is_told_what_the_run_is(wandb: FakeWandb, tmp_path: Path) -> None:
    tracker = WandbTracker("mine", "first", "all", {"who": "me"}, {"lr": 1}, folder=tmp_path, entity="us")
    model_of().learn(600, callback=tracker)
    (run,) = wandb.runs
    options = run.options
    assert [options[key] for key in ("project", "name", "group", "entity")] == ["mine", "first", "all", "us"]
    assert (options["dir"], options["reinit"], options["mode"]) == (str(tmp_path), "create_new", None)
    assert options["tags"] == ["A2C", "CartPole-v1", "seed 1", "me"]
    assert options["config"]["lr"] == 1
    assert options["config"]["provenance"]["versions"]["sb3_pg_ext"]
    assert run.axes == [("global_step", None), ("*", "global_step")]
    assert [row["global_step"] for row in run.rows] == [500]
    assert "rollout/ep_rew_mean" in run.rows[0]
    assert run.exit_code == 0


@pytest.mark.parametrize(
    ("logged_in", "variable", "mode"),
    [(True, None, None), (False, None, "offline"), (False, "online", None), (False, "disabled", None)],
)
def test_wandb_is_offline_without_a_login(
    logged_in: bool, variable: str | None, mode: str | None, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.logged_in = logged_in
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    model_of().learn(5, callback=WandbTracker())
    assert wandb.runs[0].options["mode"] == mode


def test_a_login_that_does_not_work_is_said_before_anything_runs(
    wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb.reachable = False
    with pytest.raises(ConnectionError, match=r"no route to host\. With WANDB_MODE=offline"):
        Tracking.prepared(["wandb"], "p", tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert Tracking.prepared(["wandb"], "p", tmp_path) is not None
    wandb.reachable, wandb.logged_in = True, False
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConnectionError, match="there is no login"):
        Tracking.prepared(["wandb"], "p", tmp_path)
    monkeypatch.delenv("WANDB_MODE")
    assert Tracking.prepared(["wandb"], "p", tmp_path) is not None


@pytest.mark.parametrize(("error", "code"), [(ValueError("no"), 1), (KeyboardInterrupt(), 130)])
def test_wandb_knows_that_a_run_failed(error: BaseException, code: int, wandb: FakeWandb) -> None:
    with pytest.raises(type(error)), WandbTracker() as tracker:
        model_of().learn(100, callback=[tracker, Stop(error)])
    assert wandb.runs[0].exit_code == code


# --- MLflow


def test_mlflow_is_told_what_the_run_is(mlflow: FakeMlflow, tmp_path: Path) -> None:
    settings = {"net": {"arch": [1]}, "none": None}
    tracker = MlflowTracker("mine", "first", "all", {"who": "me"}, settings, folder=tmp_path)
    model_of().learn(600, callback=tracker)
    (run,) = mlflow.runs.values()
    assert mlflow.experiments == {"mine": "id of mine"}
    assert mlflow.uris == [f"sqlite:///{tmp_path}/mlflow.db"]
    assert (run.name, run.tags["group"], run.tags["who"], run.tags["env"]) == ("first", "all", "me", "CartPole-v1")
    assert run.tags["versions.sb3_pg_ext"]
    assert run.params == {"net.arch": "[1]"}
    assert {metric.step for metric in run.metrics} == {500}
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_mlflow_knows_that_a_run_failed(error: BaseException, status: str, mlflow: FakeMlflow, tmp_path: Path) -> None:
    with pytest.raises(type(error)), MlflowTracker(folder=tmp_path) as tracker:
        model_of().learn(100, callback=[tracker, Stop(error)])
    assert mlflow.runs["run 0"].info.status == status


def test_mlflow_loses_nothing_when_the_database_is_locked(mlflow: FakeMlflow, tmp_path: Path) -> None:
    with MlflowTracker(folder=tmp_path, hyperparameters={"a": 1}) as tracker:
        tracker.begin(Description())
        mlflow.failing = 1
        with pytest.warns(RuntimeWarning, match="the database is locked"):
            tracker.write({"a": 1.0, "b": "text"}, 10)
        tracker.write({"a (of 2)": 2.0}, 20)
    run = mlflow.runs["run 0"]
    assert [(metric.key, metric.step) for metric in run.metrics] == [("a", 10), ("a _of 2_", 20)]
    assert run.tags["b"] == "text"


def test_mlflow_is_written_to_once_in_a_while_and_at_the_end(
    mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sb3_pg_ext.experiments.trackers.mlflow._SECONDS_BETWEEN_WRITES", 1e9)
    with MlflowTracker(folder=tmp_path) as tracker:
        tracker.begin(Description())
        for step in range(1500):
            tracker.write({"a": 1.0}, step)
        assert [metric.step for metric in mlflow.runs["run 0"].metrics] == [0]
    assert [metric.step for metric in mlflow.runs["run 0"].metrics] == list(range(1500))


def test_mlflow_takes_the_experiment_that_another_process_has_just_made(mlflow: FakeMlflow, tmp_path: Path) -> None:
    looks = iter([None, SimpleNamespace(experiment_id="theirs")])
    mlflow.experiments["sb3_pg_ext"] = "theirs"
    mlflow.get_experiment_by_name = lambda name: next(looks)  # type: ignore[method-assign]
    assert MlflowTracker(folder=tmp_path).connect()[1] == "theirs"


def test_a_store_that_does_not_answer_is_said_before_anything_runs(mlflow: FakeMlflow, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise KeyError("no route to host")

    mlflow.get_experiment_by_name = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(ConnectionError, match=r"MLflow at sqlite:///.*no route to host"):
        Tracking.prepared(["mlflow"], "p", tmp_path)


def test_a_server_goes_before_the_file(mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert MlflowTracker(folder=tmp_path).uri == "http://server"
    assert MlflowTracker(folder=tmp_path, uri="sqlite:///here").uri == "sqlite:///here"
    tracking = Tracking.prepared(["mlflow"], "p", tmp_path, shared_folder=False)
    assert tracking is not None
    assert tracking.uri == "http://server"
    assert tracking.ways_to_look() == "  http://server"


# --- studies


def test_the_trackers_of_a_run(wandb: FakeWandb, mlflow: FakeMlflow, tmp_path: Path) -> None:
    tracking = Tracking.prepared(["mlflow", "wandb"], "p", tmp_path, "my_study")
    assert pickle.loads(pickle.dumps(tracking)) == tracking
    spec = spec_of()
    with tracked(tracking, spec, tmp_path, "stem", "typed") as trackers:
        execute(spec, Memory(), callbacks=trackers)
    (run,) = wandb.runs
    assert (run.options["project"], run.options["group"]) == ("p", "my_study")
    assert run.options["config"]["seed"] == spec.seeds.train
    assert [row["global_step"] for row in run.rows if "eval/mean_reward" in row] == [0, 100, 200]
    assert "test/mean_reward" in run.rows[-1]
    assert run.exit_code == 0
    (run,) = mlflow.runs.values()
    assert run.name == "a2c/CartPole-v1/seed1"
    assert run.params["gamma"] == "0.99"
    assert [m.step for m in run.metrics if m.key == "test/mean_reward"] == [200]
    assert run.info.status == "FINISHED"


def test_a_run_that_fails_in_a_study_has_failed_in_the_trackers(
    wandb: FakeWandb, mlflow: FakeMlflow, tmp_path: Path
) -> None:
    tracking = Tracking.prepared(["mlflow", "wandb"], "p", tmp_path, "my_study")
    spec = spec_of()
    with pytest.raises(ValueError, match="no"), tracked(tracking, spec, tmp_path, "stem", "") as trackers:
        execute(spec, Memory(), callbacks=[*trackers, Stop(ValueError("no"))])
    assert wandb.runs[0].exit_code == 1
    assert mlflow.runs["run 0"].info.status == "FAILED"


def test_what_a_killed_worker_has_left_is_cleared(mlflow: FakeMlflow, tmp_path: Path) -> None:
    tracking = Tracking.prepared(["mlflow", "tensorboard"], "p", tmp_path / "it's here", "my_study")
    other = Tracking.prepared(["mlflow"], "p", tmp_path / "it's elsewhere", "my_study")
    alone = Tracking.prepared(["mlflow"], "p", tmp_path / "it's here")
    spec = spec_of()
    for each in (tracking, other, alone):
        blocks = tracked(each, spec, tmp_path, "stem", "")
        for tracker in blocks.__enter__():
            tracker._net.detach()  # as when the process is gone
    left = {path.name for path in (tmp_path / "tensorboard" / "stem").iterdir()}
    with tracked(tracking, spec, tmp_path, "stem", ""):
        pass
    assert [run.info.status for run in mlflow.runs.values()] == ["KILLED", "RUNNING", "RUNNING", "FINISHED"]
    now = {path.name for path in (tmp_path / "tensorboard" / "stem").iterdir()}
    assert len(left) == len(now) == 1
    assert not left & now


def test_the_files_of_earlier_attempts_are_found(tmp_path: Path) -> None:
    assert stale_files(tmp_path, "run_seed0_ab") == []
    names = ["tensorboard/{}/events.out.tfevents.1.host.2.0", "tensorboard/{}/events.out.tfevents.3.host.4.0"]
    names += ["logs/{}.log"]
    for name in (*names, "tensorboard/{}/notes.txt", "models/{}.zip"):
        for stem in ("run_seed0_ab", "run_seed0_abc"):
            path = tmp_path / name.format(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert stale_files(tmp_path, "run_seed0_ab") == [tmp_path / name.format("run_seed0_ab") for name in names]


def test_the_log_of_the_attempt_that_has_begun_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stem.log"
    log.parent.mkdir()
    log.write_text("a warning")
    with tracked(Tracking.prepared(["tensorboard"], "p", tmp_path), spec_of(), tmp_path, "stem", ""):
        assert log in stale_files(tmp_path, "stem")


def test_a_tracker_that_cannot_be_opened_is_left_out(wandb: FakeWandb, tmp_path: Path) -> None:
    tracking = Tracking.prepared(["wandb", "tensorboard"], "p", tmp_path)

    def refuse(**options: Any) -> None:
        raise OSError("no space left")

    wandb.init = refuse  # type: ignore[method-assign, assignment]
    blocks = tracked(tracking, spec_of(), tmp_path, "stem", "")
    with pytest.warns(RuntimeWarning, match="wandb does not track this run.*no space left"):
        trackers = blocks.__enter__()
    assert [type(tracker) for tracker in trackers] == [TensorboardTracker]
    blocks.__exit__(None, None, None)


def test_nothing_is_tracked_unless_asked_for(tmp_path: Path) -> None:
    assert Tracking.prepared([], "p", tmp_path) is None
    with tracked(None, spec_of(), tmp_path, "stem", "") as trackers:
        assert trackers == []
    assert not list(tmp_path.iterdir())


def test_a_file_is_refused_as_the_store_of_several_machines(mlflow: FakeMlflow, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        Tracking.prepared(["mlflow"], "p", tmp_path, shared_folder=False)


@pytest.mark.parametrize(("cls", "extra"), [(WandbTracker, "wandb"), (MlflowTracker, "mlflow")])
def test_a_missing_package_is_an_error_with_the_way_out(
    cls: type[Tracker], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=rf'pip install "sb3_pg_ext\[{extra}\]"'):
        cls()


def test_a_folder_of_the_name_of_a_package_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_tracker").mkdir()  # as wandb makes one for its files
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf'pip install "sb3_pg_ext\[a_tracker\]" .*{tmp_path}'):
        require("a_tracker")


def tracked_with(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", nargs="?")
    add_tracking(parser.add_argument)
    return parser.parse_args(with_commas(words))


@pytest.mark.parametrize(
    "words",
    [
        "--track tensorboard,wandb",
        "--track tensorboard --track wandb",
        "--track tensorboard wandb",
        "--track=tensorboard wandb",
        "--track tensorboard, wandb",
    ],
)
def test_trackers_are_listed_in_several_ways_and_leave_the_file_alone(words: str) -> None:
    for line in (f"{words} st.yml", f"st.yml {words}", f"{words} --track-project mine st.yml"):
        found = tracked_with(*line.split())
        assert (found.track, found.study) == (["tensorboard", "wandb"], "st.yml")
    assert tracked_with("wandb", "--track", "mlflow").study == "wandb"
    assert tracked_with().track == []


@pytest.mark.parametrize("word", ["st.yml", "tensorboard,st.yml", ""])
def test_what_is_no_tracker_is_told_which_there_are(word: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        tracked_with("--track", word)
    complaint = f"--track: {word!r} is no tracker; there are tensorboard, wandb, mlflow; several as tensorboard,wandb"
    assert complaint in capsys.readouterr().err


COMPARE = ["compare", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", "--seeds", "1", "--eval-episodes", "2"]
COMPARE += ["--n-evaluations", "2", "--test-episodes", "2"]
TRAIN = ["train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "100", "--eval-episodes", "2"]


@pytest.mark.parametrize("command", [COMPARE, TRAIN], ids=lambda words: words[0])
def test_a_missing_package_is_said_before_anything_runs(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*command, "-f", str(tmp_path / "results"), "--track", "tensorboard", "wandb"]) == 2
    assert 'pip install "sb3_pg_ext[wandb]"' in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_compare_with_and_without_trackers_is_the_same_study(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_pg_ext.experiments.store import FILE_NAME, Store

    monkeypatch.setattr("sb3_pg_ext.experiments.commands.report.show", lambda *anything: None)
    folder = tmp_path / "my_study"
    assert main([*COMPARE, "-f", str(folder), "--track", "tensorboard", "-j", "1"]) == 0
    assert "tensorboard --logdir" in capsys.readouterr().out
    with Store(folder / FILE_NAME) as store:
        records = store.records()
    assert [record.status for record in records] == ["finished"]
    for record in records:
        plain = Memory()
        execute(record.spec, plain)
        found = [*(("training", e) for e in record.evaluations), ("test", record.test)]
        assert [(kind, e.step, e.returns, e.lengths) for kind, e in found] == plain.numbers()
        (run,) = (folder / "tensorboard").glob(f"a2c_CartPole-v1_seed{record.spec.replicate}_{record.spec.key[:8]}")
        events = events_of(run)
        curve = [(e.step, pytest.approx(e.mean_return)) for e in record.evaluations]
        assert [(e.step, e.value) for e in events.Scalars("eval/mean_reward")] == curve
        assert [e.value for e in events.Scalars("test/mean_reward")] == [pytest.approx(record.test.mean_return)]
    # The same study without trackers: there is nothing left to do, so no process is started.
    monkeypatch.setattr("sb3_pg_ext.experiments.executor.LocalProcesses.submit", None)
    assert main([*COMPARE, "-f", str(folder)]) == 0


def test_train_is_tracked_beside_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*TRAIN, "-f", str(tmp_path), "--track", "tensorboard", "--verbose", "0"]) == 0
    stored = np.load(tmp_path / "a2c" / "CartPole-v1_1" / "evaluations.npz")
    events = events_of(tmp_path / "tensorboard" / "a2c_CartPole-v1_1")
    assert [e.step for e in events.Scalars("eval/mean_reward")] == stored["timesteps"].tolist() == [0, 100, 200]
    means = stored["results"].mean(axis=1)
    assert [e.value for e in events.Scalars("eval/mean_reward")] == pytest.approx(means.tolist())
    assert "tensorboard --logdir" in capsys.readouterr().out


# --- with the real ones


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_curves_settings_and_provenance(tmp_path: Path) -> None:
    model, reference = model_of(ent_coef=0.125), Reference()
    for _ in range(2):
        model.learn(1000, callback=[reference, TensorboardTracker(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"A2C_1", "A2C_2"}
    events = events_of(tmp_path / "A2C_1")
    expected = [(step, pytest.approx(v)) for step, key, v in reference.output.values if key == "train/value_loss"][:2]
    assert [(e.step, e.value) for e in events.Scalars("train/value_loss")] == expected
    assert "time/total_timesteps" not in events.Tags()["scalars"]  # excluded from tensorboard where it is recorded
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert HParamsPluginData.FromString(metadata).session_start_info.hparams["ent_coef"].number_value == 0.125
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| env | CartPole-v1 |" in text
    assert "versions.sb3_pg_ext" in text


def wandb_records(path: Path) -> Iterator[Any]:
    """What a ``.wandb`` file holds: a log in LevelDB's format of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            yield Record.FromString(message)
            message = b""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("fails", [False, True])
def test_wandb_itself_writes_a_run_without_a_login(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    tracker = WandbTracker("mine", "first", "all", folder=tmp_path, settings={"silent": True, "console": "off"})
    with pytest.raises(ValueError, match="no") if fails else nullcontext(), tracker:
        model_of().learn(600, callback=[tracker, Stop(ValueError("no"))] if fails else tracker)
        tracker.write(odd_values(), 700)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = [(record.WhichOneof("record_type"), record) for record in wandb_records(file)]
    run = next(record.run for kind, record in records if kind == "run")
    assert (run.project, run.display_name, run.run_group) == ("mine", "first", "all")
    assert "CartPole-v1" in run.tags
    config = {item.key: item.value_json for item in run.config.update}
    assert config["n_steps"] == "5"
    (ended,) = [record.exit for kind, record in records if kind == "exit"]
    assert ended.exit_code == int(fails)
    rows = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for kind, record in records
        if kind == "history"
    ]
    assert [row["global_step"] for row in rows] == ([] if fails else ["500", "700"])
    if not fails:
        assert float(rows[0]["train/n_updates"]) == 99
        assert (rows[1]["th"], rows[1]["text"]) == ("4", '"words"')


@pytest.mark.filterwarnings("default")
def test_mlflow_itself_keeps_runs_of_several_processes(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    track = ["--track", "mlflow", "--track-project", "mine"]
    assert main([*COMPARE, "--seeds", "2", "-f", str(tmp_path / "study"), "-j", "2", *track]) == 0
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/study/mlflow.db")
    experiment = client.get_experiment_by_name("mine")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"a2c/CartPole-v1/seed0", "a2c/CartPole-v1/seed1"}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert (run.data.tags["study"], run.data.params["n_steps"]) == ("study", "5")
        curve = client.get_metric_history(run.info.run_id, "eval/mean_reward")
        assert [metric.step for metric in curve] == [0, 100, 200]
        assert "test/mean_reward" in run.data.metrics


@pytest.mark.filterwarnings("default")
def test_mlflow_itself_takes_odd_values_and_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = MlflowTracker("mine", folder=tmp_path)
    tracker.begin(Description("left", tags={"key": "k"}))
    tracker.write({name: value for name, value in odd_values().items() if name != "numbers"}, 77)
    tracker.end("failed")
    client = mlflow.MlflowClient(tracking_uri=tracker.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FAILED"
    assert np.isnan(run.data.metrics["nan"])
    assert (run.data.metrics["th"], run.data.tags["text"], run.data.params["mine"]) == (4.0, "words", "7.0")
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"figure", "images"}
    client.update_run(run.info.run_id, status="RUNNING")
    tracker.bury({"key": "k"})
    assert client.get_run(run.info.run_id).info.status == "KILLED"
