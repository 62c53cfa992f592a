"""Single runs: evaluation, budgets, training into a folder, and the commands around them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, unwrap_vec_normalize

from sb3_pg_ext.experiments.building import build_model, check, evaluation_env, gamma_of, training_env
from sb3_pg_ext.experiments.cli import COMMANDS, main
from sb3_pg_ext.experiments.evaluation import EvaluationCallback, Evaluator, own_random_state
from sb3_pg_ext.experiments.lanes import MAX_LANES
from sb3_pg_ext.experiments.log_folder import LogFolder, find_environment, find_model, find_statistics
from sb3_pg_ext.experiments.results import Evaluation
from sb3_pg_ext.experiments.run_spec import Environment, Protocol, RunSpec
from sb3_pg_ext.experiments.runner import execute
from sb3_pg_ext.experiments.seeds import seeds_of
from sb3_pg_ext.experiments.settings import resolve
from sb3_pg_ext.experiments.values import SettingError
from sb3_pg_ext.experiments.variants import read_variant


def spec_of(text: str, env_id: str = "CartPole-v1", steps: int = 400, every: int = 100, **options) -> RunSpec:
    protocol = Protocol(every, episodes=3, test_episodes=4)
    return resolve(read_variant(text), env_id, seeds=seeds_of(0, 0), total_steps=steps, protocol=protocol, **options)


class Memory:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Evaluation]] = []
        self.steps: list[int] = []

    def progress(self, step: int, train_seconds: float) -> None:
        self.steps.append(step)

    def evaluation(self, kind: str, evaluation: Evaluation) -> None:
        self.kept.append((kind, evaluation))

    def numbers(self) -> list:
        return [(kind, e.step, e.returns, e.lengths) for kind, e in self.kept]


def numbers(spec: RunSpec) -> list:
    memory = Memory()
    execute(spec, memory)
    return memory.numbers()


@pytest.mark.parametrize(
    "text",
    [
        "a2c",
        "ppo:n_steps=32,batch_size=32,n_epochs=1",
        "ppo:n_steps=8,batch_size=32,n_epochs=1,n_envs=4,normalize=true",
    ],
)
def test_the_same_run_twice_is_the_same_bit_for_bit(text: str) -> None:
    assert numbers(spec_of(text)) == numbers(spec_of(text))


def test_how_the_copies_run_changes_nothing() -> None:
    dummy = spec_of("a2c:n_envs=2", steps=200)
    assert numbers(dummy) == numbers(replace(dummy, environment=replace(dummy.environment, vec_env="subproc")))


@pytest.mark.parametrize(
    ("text", "steps"), [("a2c", 123), ("ppo:n_steps=64,n_envs=2,n_epochs=1", 300), ("a2c:n_envs=3", 100)]
)
def test_training_ends_at_the_budget_and_not_where_a_rollout_ends(text: str, steps: int) -> None:
    memory = Memory()
    outcome = execute(spec_of(text, steps=steps, every=50), memory)
    n_envs = spec_of(text).environment.n_envs
    assert steps <= outcome.steps < steps + n_envs
    taken = [e.step for kind, e in memory.kept if kind == "training"]
    due = [0, *range(50, steps, 50), steps]
    assert all(wanted <= step < wanted + n_envs for wanted, step in zip(due, taken, strict=True))
    assert memory.kept[-1][0] == "test"
    assert len(memory.kept[-1][1].returns) == 4
    assert memory.steps[-1] == outcome.steps


def test_seconds_of_training_leave_evaluations_out(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sb3_pg_ext.experiments.evaluation.time.perf_counter", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    def evaluator(model, step: int) -> Evaluation:
        pass_time(100.0)
        return Evaluation(step, (0.0,), (1,), 100.0)

    spec = spec_of("a2c")
    kept: list[Evaluation] = []
    callback = EvaluationCallback(evaluator, 20, 60, kept.append, lambda step, seconds: pass_time(1.0))
    build_model(spec, training_env(spec.environment, spec.seeds.train)).learn(60, callback=callback)
    assert [(e.step, e.train_seconds) for e in kept] == [(step, float(step)) for step in (0, 20, 40, 60)]


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_leaves_no_trace_in_training(deterministic: bool) -> None:
    def trained(every: int) -> tuple[torch.Tensor, list]:
        spec = spec_of("a2c")
        venv = training_env(spec.environment, spec.seeds.train)
        model = build_model(spec, venv)
        kept: list[Evaluation] = []
        evaluator = Evaluator(spec.environment, 2, 7, deterministic)
        model.learn(300, callback=EvaluationCallback(evaluator, every, 300, kept.append))
        return torch.nn.utils.parameters_to_vector(model.policy.parameters()), kept

    often, first = trained(every=20)
    seldom, second = trained(every=300)
    assert torch.equal(often, seldom)
    assert len(first) == 16
    assert [e.returns for e in (first[0], first[-1])] == [e.returns for e in second]


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    with own_random_state(5):
        inside = torch.rand(1)
    assert (torch.rand(1), np.random.rand()) == expected
    torch.manual_seed(5)
    assert torch.rand(1) == inside


class Start(gym.Env):
    """One step; the return is the start state, so that evaluations show where they began."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(100.0, 10.0)
        return np.array([self.state], np.float32), {}

    def step(self, action):
        return np.array([self.state], np.float32), self.state, True, False, {}


@pytest.fixture
def start_env():
    gym.register("Start-v0", Start)
    yield "Start-v0"
    del gym.registry["Start-v0"]


def test_every_evaluation_begins_from_the_same_held_out_states(start_env: str) -> None:
    memory = Memory()
    spec = spec_of("a2c:n_envs=3", start_env)
    execute(spec, memory)
    training = [sorted(e.returns) for kind, e in memory.kept if kind == "training"]
    (test,) = [sorted(e.returns) for kind, e in memory.kept if kind == "test"]
    assert len(training) == 5
    assert all(returns == training[0] for returns in training)
    assert len(set(training[0])) == 3
    assert not set(training[0]) & set(test)
    expected = [np.random.default_rng(spec.seeds.evaluation + lane).normal(100.0, 10.0) for lane in range(3)]
    assert training[0] == pytest.approx(sorted(expected), abs=1e-5)


def test_evaluation_uses_the_statistics_of_training_and_rewards_as_they_are(start_env: str) -> None:
    spec = spec_of("a2c:normalize=dict(norm_obs=True, norm_reward=True, clip_obs=5.0)", start_env)
    venv = training_env(spec.environment, 0, gamma_of(spec))
    assert isinstance(venv, VecNormalize)
    assert venv.gamma == 0.99
    model = build_model(spec, venv).learn(100)
    evaluator = Evaluator(spec.environment, 3, 9)
    seen: list[np.ndarray] = []
    predict = model.predict
    model.predict = lambda obs, *args, **kwargs: seen.append(obs.copy()) or predict(obs, *args, **kwargs)
    returns = evaluator(model).returns
    assert min(returns) > 50.0  # near 100, not scaled
    normalize = unwrap_vec_normalize(evaluator.venv)
    assert normalize is not None
    assert normalize.obs_rms is not venv.obs_rms
    assert normalize.obs_rms.count == venv.obs_rms.count  # nothing was learnt from the evaluation
    assert np.abs(seen[0]).max() < 5.0  # about standard normal
    assert np.ptp(seen[0]) > 0.1


@pytest.mark.parametrize(("text", "n_episodes"), [("a2c", 7), ("a2c:normalize=true,frame_stack=2", 60)])
def test_resting_lanes_give_the_same_episodes_as_running_on(text: str, n_episodes: int) -> None:
    spec = spec_of(text)
    model = build_model(spec, training_env(spec.environment, 0)).learn(500)
    evaluator = Evaluator(spec.environment, n_episodes, 11)
    found = evaluator(model)
    assert len(found.returns) == n_episodes
    assert len(set(found.lengths)) > 1  # episodes end at different times, so that some lanes rest while others run
    running_on = make_vec_env("CartPole-v1", min(n_episodes, MAX_LANES), seed=11)
    if spec.environment.normalize is not None:
        running_on = VecFrameStack(VecNormalize(running_on, training=False, norm_reward=False), 2)
        unwrap_vec_normalize(running_on).obs_rms = model.get_vec_normalize_env().obs_rms
    returns, lengths = evaluate_policy(model, running_on, n_episodes, return_episode_rewards=True)
    assert (found.returns, found.lengths) == (tuple(returns), tuple(lengths))


def test_a_diverged_policy_is_an_error_that_names_the_parameter() -> None:
    spec = spec_of("a2c")
    model = build_model(spec, training_env(spec.environment, 0))
    with torch.no_grad():
        next(model.policy.parameters())[0] = torch.nan
    name = next(iter(dict(model.policy.named_parameters())))
    with pytest.raises(FloatingPointError, match=f"'{name}' is not finite at step 7"):
        Evaluator(spec.environment, 1, 0)(model, 7)


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ("ddpg:noise_type=normal,noise_std=0.3", lambda model: model.action_noise._sigma[0] == 0.3),
        ("ddpg:train_freq=[2, 'step']", lambda model: model.train_freq.frequency == 2),
        ("ppo:policy_kwargs=dict(activation_fn=nn.ReLU, net_arch=[7])", lambda model: "ReLU" in str(model.policy)),
        ("ppo:learning_rate=lin_1e-3", lambda model: model.lr_schedule(0.5) == pytest.approx(5e-4)),
        ("ppo:frame_stack=3", lambda model: model.observation_space.shape == (9,)),
        ("ppo:env_wrapper=sb3_contrib.common.wrappers.TimeFeatureWrapper", lambda m: m.observation_space.shape == (4,)),
        ("ppo:seed_is_passed=1", None),
    ],
)
def test_settings_reach_the_model(settings: str, check) -> None:
    if check is None:
        with pytest.raises(SettingError, match="seed_is_passed"):
            spec_of(settings, "Pendulum-v1")
        return
    spec = spec_of(settings, "Pendulum-v1")
    model = build_model(spec, training_env(spec.environment, spec.seeds.train))
    assert model.seed == spec.seeds.train
    assert check(model)


@pytest.mark.parametrize(("key", "message"), [("ddpg", "only n_envs=1 has it"), ("svg0", "with 2 environments")])
def test_training_after_episodes_needs_one_environment(key: str, message: str) -> None:
    check(spec_of(f"{key}:train_freq=[1, 'episode']", "Pendulum-v1"))
    with pytest.raises(SettingError, match=f"train_freq=.* {message}"):
        check(spec_of(f"{key}:train_freq=[1, 'episode'],n_envs=2", "Pendulum-v1"))


class Masked(gym.Wrapper):
    """Only the first action is allowed."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, False])

    def step(self, action):
        assert action == 0, "a forbidden action"
        return super().step(action)


def test_masks_of_the_environment_are_found_behind_all_wrappers() -> None:
    gym.register("Masked-v0", lambda: Masked(gym.make("CartPole-v1")))
    try:
        for settings in ("n_envs=2,normalize=true", "frame_stack=2"):
            spec = spec_of(f"maskable_ppo:n_steps=8,batch_size=8,n_epochs=1,{settings}", "Masked-v0")
            check(spec)
            model = build_model(spec, training_env(spec.environment, spec.seeds.train)).learn(16)
            assert not model.rollout_buffer.actions.any()
            Evaluator(spec.environment, 2, 7, deterministic=False)(model)  # where forbidden actions are an error
    finally:
        gym.registry.pop("Masked-v0")


@pytest.mark.parametrize(
    "name", ["os.path", "gymnasium.wrappers.no_such", "subprocess.Popen", "gymnasium.wrappers.vector"]
)
def test_only_wrappers_can_be_named_as_wrappers(name: str) -> None:
    with pytest.raises(SettingError, match="env_wrapper"):
        evaluation_env(Environment("CartPole-v1", wrappers=(name,)), 1)


def test_train_then_eval_round_trip(tmp_path: Path, capsys) -> None:
    command = ["train", "--algo", "ppo:normalize=true", "--env", "CartPole-v1", "-n", "500", "-f", str(tmp_path)]
    extra = [
        "-params",
        "n_steps:50",
        "batch_size:50",
        "n_epochs:1",
        "policy_kwargs:dict(net_arch=[8])",
        "--seed",
        "3",
        "--eval-episodes",
        "4",
    ]
    assert main([*command, *extra, "--eval-freq", "250", "--save-freq", "200"]) == 0
    folder = tmp_path / "ppo" / "CartPole-v1_1"
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = ["0.monitor.csv", "best_model.zip", "evaluations.npz", "CartPole-v1.zip", "rl_model_200_steps.zip"]
    inside = ["args.yml", "config.yml", "command.txt", "vecnormalize.pkl"]
    assert {*expected, *(f"CartPole-v1/{name}" for name in inside)} <= present

    stored = np.load(folder / "evaluations.npz")
    assert stored["timesteps"].tolist() == [0, 250, 500]
    assert stored["results"].shape == stored["ep_lengths"].shape == (3, 4)
    config = yaml.safe_load((folder / "CartPole-v1" / "config.yml").read_text())
    assert config["normalize"] is True
    assert config["n_steps"] == 50
    assert config["policy_kwargs"] == "dict(net_arch=[8])"
    args = yaml.safe_load((folder / "CartPole-v1" / "args.yml").read_text())
    assert (args["algo"], args["env"], args["seed"], args["env_kwargs"]) == ("ppo", "CartPole-v1", 3, {})

    capsys.readouterr()
    assert main(["eval", str(folder), "--n-episodes", "5"]) == 0
    shown = capsys.readouterr().out
    assert "PPO in CartPole-v1, 5 deterministic episodes" in shown
    assert "best_model.zip" in shown
    assert main(["eval", str(folder), "--n-episodes", "5"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["eval", str(folder / "CartPole-v1.zip"), "--n-episodes", "5", "--stochastic"]) == 0
    assert "stochastic" in capsys.readouterr().out

    # Going on with it makes the next folder and counts on from where it was.
    assert main([*command, *extra, "-i", str(folder / "CartPole-v1.zip"), "--verbose", "0"]) == 0
    again = np.load(tmp_path / "ppo" / "CartPole-v1_2" / "evaluations.npz")
    assert again["timesteps"][0] == 500
    assert again["timesteps"][-1] == 1000
    assert again["results"][0].tolist() == stored["results"][-1].tolist()


def test_the_best_model_has_the_statistics_of_its_own_moment(tmp_path: Path) -> None:
    for name in ("best_model.zip", "best_model.vecnormalize.pkl", "CartPole-v1.zip", "rl_model_200_steps.zip"):
        (tmp_path / name).touch()
    (tmp_path / "rl_model_vecnormalize_200_steps.pkl").touch()
    (tmp_path / "CartPole-v1").mkdir()
    (tmp_path / "CartPole-v1" / "vecnormalize.pkl").touch()
    found = {
        name: find_statistics(tmp_path / name)
        for name in ("best_model.zip", "CartPole-v1.zip", "rl_model_200_steps.zip")
    }
    assert {name: path and path.name for name, path in found.items()} == {
        "best_model.zip": "best_model.vecnormalize.pkl",
        "CartPole-v1.zip": "vecnormalize.pkl",
        "rl_model_200_steps.zip": "rl_model_vecnormalize_200_steps.pkl",
    }


def _zoo_folder(tmp_path: Path, args: str, config: str) -> Path:
    folder = tmp_path / "CartPole-v1_1"
    (folder / "CartPole-v1").mkdir(parents=True)
    head = "!!python/object/apply:collections.OrderedDict\n"
    (folder / "CartPole-v1" / "args.yml").write_text(head + args)
    (folder / "CartPole-v1" / "config.yml").write_text(head + config)
    return folder / "best_model.zip"


def test_the_environment_is_read_from_settings_of_the_zoo(tmp_path: Path) -> None:
    wrapper = "sb3_contrib.common.wrappers.TimeFeatureWrapper"
    model = _zoo_folder(
        tmp_path,
        "- - - env\n    - CartPole-v1\n  - - env_kwargs\n    - sutton_barto_reward: true\n",
        f"- - - normalize\n    - dict(norm_obs=True)\n  - - env_wrapper\n    - [{wrapper}]\n  - [frame_stack, 2]\n",
    )
    found = find_environment(model, None)
    assert found == Environment(
        "CartPole-v1",
        kwargs={"sutton_barto_reward": True},
        wrappers=(wrapper,),
        normalize={"norm_obs": True},
        frame_stack=2,
    )
    assert find_environment(model, "Other-v0").id == "Other-v0"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            "- - - env_wrapper\n    - - gymnasium.wrappers.TimeLimit: {max_episode_steps: 3}\n",
            "wrappers with arguments",
        ),
        ("- - - vec_env_wrapper\n    - stable_baselines3.common.vec_env.VecFrameStack\n", "vec_env_wrapper='stable_"),
        ("- !!python/object/apply:os.mkdir [made]\n", "config.yml is not plain YAML"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_and_run_nothing(config, words, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_environment(_zoo_folder(tmp_path, "- - - env\n    - CartPole-v1\n", config), None)
    assert not (tmp_path / "made").exists()


def test_a_model_is_found_by_file_by_name_and_by_folder(tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1_3"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no model file"):
        find_model(folder)
    (folder / "CartPole-v1.zip").touch()
    assert find_model(folder).name == "CartPole-v1.zip"
    assert find_model(folder / "CartPole-v1").name == "CartPole-v1.zip"
    (folder / "best_model.zip").touch()
    assert find_model(folder).name == "best_model.zip"


def test_folders_are_numbered_without_gaps_or_clashes(tmp_path: Path) -> None:
    made = [
        LogFolder.create(tmp_path, "ppo", env_id).path.name for env_id in ("A-v1", "A-v1", "x:A-v1", "A-v1_2", "A-v1")
    ]
    assert made == ["A-v1_1", "A-v1_2", "x-A-v1_1", "A-v1_2_1", "A-v1_3"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["eval", "nowhere"], "there is no model file"),
        (
            ["train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "10", "-params", "n_step:3"],
            "Did you mean 'n_steps'",
        ),
        (["train", "--algo", "ppo", "--env", "Nowhere-v1", "-n", "10"], "Nowhere"),
        (["train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "10", "-i", "nowhere"], "there is no model file"),
        (
            ["train", "--algo", "maskable_ppo", "--env", "CartPole-v1", "-n", "10"],
            "maskable_ppo needs an environment with an action_masks() method; CartPole-v1 has none",
        ),
        (["compare", "--algo", "maskable_ppo", "--env", "CartPole-v1", "-n", "10"], "an action_masks() method"),
        (
            ["train", "--algo", "ppo:gamma=2", "--env", "CartPole-v1", "-n", "10", "--seed", "999999999"],
            "seed=999999999",
        ),
        (["algos", "poo"], "Did you mean 'ppo'"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_wrong_commands_say_what_is_wrong(arguments: list[str], complaint: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.startswith(f"sb3-pg {arguments[0]}: ")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("count", ["0", "-3", "1.5", "many", "inf", "nan"])
def test_counts_must_be_whole_and_positive(count: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--algo", "ppo", "--env", "CartPole-v1", f"-n={count}"])
    assert "-n" in capsys.readouterr().err


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_explains_itself_with_examples(word: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([word, "--help"])
    text = capsys.readouterr().out
    assert f"usage: sb3-pg {word}" in text
    assert f"  sb3-pg {word}" in text.partition("example")[2]


def test_the_list_of_algorithms_is_that_of_the_registry(capsys) -> None:
    assert main(["algos", "--action-space", "Discrete"]) == 0
    shown = capsys.readouterr().out
    assert " ppo " in shown
    assert " dqn " in shown
    assert " sac " not in shown
    assert main(["algos", "ppo"]) == 0
    shown = capsys.readouterr().out
    assert "clip_range" in shown
    assert "0.2" in shown
    assert "arXiv:1707.06347" in shown
    assert "settings for" in shown
    assert "tuned" not in shown, "many settings are where a search would begin"


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from sb3_pg_ext.experiments.cli import main\n"
        "try: main(['compare', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'stable_baselines3', 'pandas', 'matplotlib', 'scipy', 'optuna'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
