"""What all replay-based algorithms share: collecting, counting, storing, targets, steps, files."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_pg_ext.algorithms.svg0 import SVG0
from sb3_pg_ext.bases.model_file import ModelFileError, UnsafeModelError
from sb3_pg_ext.bases.quick_adam import Stepper
from sb3_pg_ext.nets.ensembles import EnsembleLinear, EnsembleMlp
from sb3_pg_ext.nets.follower import Follower
from sb3_pg_ext.nets.fused import FusedMlp, can_be_fused
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.replay import draw, latest
from sb3_pg_ext.testing.environments import Echo
from sb3_pg_ext.testing.measures import differences, learned


def make(env: Any = None, **kwargs: Any) -> SVG0:
    quick = {"buffer_size": 400, "learning_starts": 8, "batch_size": 8, "seed": 0, "device": "cpu"}
    policy = {"net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    return SVG0(kwargs.pop("policy", "MlpPolicy"), env or Echo(), **{**quick, "policy_kwargs": policy, **kwargs})


# --- ensembles


@pytest.mark.parametrize("shared", [True, False])
def test_an_ensemble_is_its_members(shared: bool) -> None:
    ensemble = EnsembleMlp(3, 4, 2, [5, 6], nn.Tanh)
    x = th.randn(7, 4) if shared else th.randn(3, 7, 4)
    for e in range(3):
        layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)]
        for ours, theirs in zip(ensemble, layers, strict=True):
            if isinstance(ours, EnsembleLinear):
                theirs.weight.data, theirs.bias.data = ours.weight[e].T, ours.bias[e, 0]  # type: ignore[union-attr]
        th.testing.assert_close(ensemble(x)[e], nn.Sequential(*layers)(x if shared else x[e]))


def test_members_begin_as_linear_layers_do() -> None:
    th.manual_seed(0)
    ensemble = EnsembleLinear(2, 3, 4)
    th.manual_seed(0)
    for e in range(2):
        alone = nn.Linear(3, 4)
        assert th.equal(ensemble.weight[e].T, alone.weight)
        assert th.equal(ensemble.bias[e, 0], alone.bias)


# --- perceptrons without autograd


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("n_members", [None, 1, 3])
def test_a_fused_net_has_the_gradients_of_autograd(n_members: int | None, activation: type[nn.Module]) -> None:
    if n_members is None:
        net = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 6), activation(), nn.Linear(6, 2))
    else:
        net = EnsembleMlp(n_members, 4, 2, [5, 6], activation)
    net.double()
    x = th.randn(7, 4, dtype=th.float64, requires_grad=True)
    y = net(x)
    cotangent = th.randn_like(y)
    to_x, *to_parameters = th.autograd.grad(y, [x, *net.parameters()], cotangent)
    of_first = th.autograd.grad(net(x)[0], x, cotangent[0])[0]
    fused, gradients = FusedMlp(net), [th.empty_like(p) for p in net.parameters()]
    with th.no_grad():
        for _ in range(2):  # the second time in the memory of the first
            kept = fused(x.detach())
            th.testing.assert_close(kept[-1], y)
            th.testing.assert_close(fused.pull_inputs(kept, cotangent.clone()), to_x)
            fused.pull(fused(x.detach()), cotangent.clone(), gradients)
            th.testing.assert_close(gradients, list(to_parameters))
            if n_members == 3:
                first = fused(x.detach(), 1)
                th.testing.assert_close(first[-1], y[:1])
                th.testing.assert_close(fused.pull_inputs(first, cotangent[:1].clone(), 1), of_first)


def test_a_fused_net_sees_parameters_wherever_they_are() -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), th.randn(5, 3)
    fused = FusedMlp(net)
    copied_net, copied = copy.deepcopy((net, fused))
    with th.no_grad():
        for change in (lambda p: p.add_(1), lambda p: setattr(p, "data", p.data + 1), lambda p: setattr(p, "data", -p)):
            for parameter in net.parameters():
                th.testing.assert_close(fused(x)[-1], net(x))
                change(parameter)
            th.testing.assert_close(fused(x)[-1], net(x))
        th.testing.assert_close(copied(x)[-1], copied_net(x))
        for size in range(2, 30):
            th.testing.assert_close(fused(th.ones(size, 3))[-1], net(th.ones(size, 3)))
        net.double()
        th.testing.assert_close(fused(x.double())[-1], net(x.double()))


@pytest.mark.parametrize(
    "layers",
    [[nn.GELU()], [nn.Linear(2, 2), nn.ELU()], [nn.Linear(2, 2, bias=False)], [nn.Linear(2, 2), nn.ReLU(), nn.Tanh()]],
    ids=str,
)
def test_other_nets_are_not_fused(layers: list[nn.Module]) -> None:
    assert not can_be_fused(layers)


def test_frozen_layers_are_not_fused() -> None:
    layer = nn.Linear(2, 2)
    assert can_be_fused([layer])
    layer.weight.requires_grad_(False)
    assert not can_be_fused([layer])


# --- steps and targets


@pytest.mark.parametrize("event", [None, "reload", "clear", "one without gradient"])
def test_the_quick_step_of_adam_is_the_step_of_adam(event: str | None) -> None:
    nets = [nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [th.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.01, fused=True) for net in nets]
    steps = [optimizers[0].step, Stepper(optimizers[1])]
    for i in range(6):
        x = th.randn(5, 3)
        for net, step in zip(nets, steps, strict=True):
            net.zero_grad()
            net(x).square().sum().backward()
            if event == "one without gradient" and i in (2, 3):  # another one each time
                list(net.parameters())[i - 1].grad = None
            step()
        if event == "reload" and i == 3:
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        if event == "clear" and i == 3:
            for optimizer in optimizers:
                optimizer.state.clear()
    for ours, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        assert th.equal(ours, theirs)
    a, b = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert all(th.equal(a[i][name], b[i][name]) for i in a for name in a[i])


def test_targets_are_equal_at_the_start_and_follow_by_tau() -> None:
    model = make(tau=0.25)
    critic, target = model.critic, model.critic_target
    assert all(th.equal(a, b) for a, b in zip(critic.parameters(), target.parameters(), strict=True))
    before = [p.clone() for p in target.parameters()]
    for parameter in critic.parameters():
        parameter.data.add_(1.0)
    model.follow_targets()
    for old, new in zip(before, target.parameters(), strict=True):
        th.testing.assert_close(new, old + 0.25)


def test_running_statistics_are_copied_whole() -> None:
    online, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    follow = Follower(online, target)
    online(th.randn(8, 2) + 5)
    follow(0.01)
    assert th.equal(online.running_mean, target.running_mean)  # type: ignore[arg-type]
    assert target.running_mean.abs().sum() > 0  # type: ignore[union-attr]


def test_a_gradient_reaches_its_own_net_only() -> None:
    model = make(max_grad_norm=0.5)
    actor, critic = ([p.clone() for p in net.parameters()] for net in (model.actor, model.critic))
    obs = th.randn(4, 3)
    loss = -model.critic(obs, model.actor(obs))[0].mean()
    model.descend(actor=loss)
    assert all(th.equal(a, b) for a, b in zip(critic, model.critic.parameters(), strict=True))
    assert any(not th.equal(a, b) for a, b in zip(actor, model.actor.parameters(), strict=True))


def test_gradients_are_clipped_by_norm() -> None:
    model = make(max_grad_norm=1e-3)
    obs = th.randn(4, 3)
    norms = model.descend(critic=1e3 * model.critic(obs, th.randn(4, 2)).square().sum())
    clipped = th.cat([p.grad.flatten() for p in model.critic.parameters() if p.grad is not None])
    assert norms["critic_grad_norm"] > 1
    assert clipped.norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_no_step_is_taken_if_one_gradient_is_not_finite() -> None:
    model = make()
    before = learned(model)
    obs = th.randn(4, 3)
    good, bad = model.actor(obs).sum(), model.critic(obs, th.randn(4, 2)).sum() * np.inf
    with pytest.raises(NonFiniteError, match=r"critic.*learning_rate"):
        model.descend(actor=good, critic=bad)
    assert differences(before, learned(model)) == []


# --- collecting and counting


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "n_envs", "updates"),
    [(4, 1, 1, 22), ((4, "step"), -1, 1, 88), (1, 3, 1, 264), ((1, "episode"), 2, 1, 22), (2, -1, 3, 90)],
)
def test_updates_are_counted(train_freq: Any, gradient_steps: int, n_envs: int, updates: int) -> None:
    """96 steps, of which the first 8 are random: learning begins after the first round that goes beyond them."""
    env = DummyVecEnv([Echo] * n_envs) if n_envs > 1 else Echo()
    model = make(env, train_freq=train_freq, gradient_steps=gradient_steps).learn(96)
    assert model._n_updates == model.logger.name_to_value["train/n_updates"] == updates


@pytest.mark.parametrize("train_freq", [0, (0, "step"), (1, "hour"), (1.5, "step"), -3])
def test_senseless_train_freq_is_refused(train_freq: Any) -> None:
    with pytest.raises(ValueError, match="train_freq"):
        make(train_freq=train_freq)


def test_episodes_of_several_environments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train_freq=\(2, 'episode'\) with 3 environments"):
        make(DummyVecEnv([Echo] * 3), train_freq=(2, "episode"))


class Recorder(BaseCallback):
    def __init__(self, stop_at: int = 10**9):
        super().__init__()
        self.seen: list[np.ndarray] = []
        self.stop_at = stop_at

    def _on_step(self) -> bool:
        self.seen.append(np.array(self.locals["new_obs"]))
        return self.n_calls < self.stop_at


def test_the_step_of_a_stop_is_stored() -> None:
    """So the next transition begins where the env stands."""
    model, recorder = make(), Recorder(stop_at=13)
    model.learn(100, recorder)
    assert model.replay_buffer.pos == 13
    assert np.array_equal(model._last_obs, recorder.seen[-1])  # type: ignore[arg-type]
    model.learn(20, reset_num_timesteps=False)
    assert np.array_equal(model.replay_buffer.observations[13], recorder.seen[-1])


def test_action_noise_is_added_in_scaled_units_and_forgotten_between_episodes() -> None:
    class Noise(NormalActionNoise):
        resets = 0

        def reset(self, indices: Any = None) -> None:
            Noise.resets += 1

    model = make(action_noise=Noise(np.full(2, 10.0), np.zeros(2)), learning_starts=0).learn(16)
    assert (model.replay_buffer.actions[:16] == 1).all()
    assert Noise.resets == 1 + 2  # at the start, and after each episode


def test_a_last_observation_that_is_not_finite_is_named() -> None:
    class Env(Echo):
        def step(self, action: Any) -> Any:
            obs, *rest = super().step(action)
            return (np.array([0, np.inf, 0], np.float32) if rest[1] else obs), *rest

    with pytest.raises(NonFiniteError, match=r"last observation of an episode of env 0.*inf.*\[1\].*step 8"):
        make(Env()).learn(96)


def test_first_actions_are_random_ones() -> None:
    model = make(learning_starts=64, policy_kwargs={"std": "fixed", "std_init": 0.01}).learn(100)
    spread = model.replay_buffer.actions[:64, 0].std(0), model.replay_buffer.actions[70:100, 0].std(0)
    assert (spread[0] > 0.4).all()
    assert (spread[1] < 0.3).all()


# --- minibatches


def filled(buffer: ReplayBuffer, n: int) -> None:
    """Step i has observation i, action -1 + i / 100, reward 2 i; every third ends an episode, in turns."""
    for i in range(n):
        done, truncated = i % 3 == 2, i % 6 == 5
        infos = [{"TimeLimit.truncated": truncated}]
        obs = np.full((1, 3), i, np.float32)
        buffer.add(obs, obs + 0.5, np.full((1, 2), -1 + i / 100), np.array([2.0 * i]), np.array([done]), infos)


def test_time_limits_are_no_terminations() -> None:
    model = make(gamma=0.9)
    filled(model.replay_buffer, 12)
    batch = draw(model.replay_buffer, 500, 0.9, model.rng)
    i = batch.observations[:, 0]
    assert set(i.tolist()) == set(range(12))
    th.testing.assert_close(batch.next_observations[:, 0], i + 0.5)
    th.testing.assert_close(batch.rewards, 2 * i)
    th.testing.assert_close(batch.actions[:, 0], -1 + i / 100)
    th.testing.assert_close(batch.discounts, th.where(i % 6 == 2, 0.0, 0.9))


def test_a_buffer_of_another_class_gives_the_same_rows() -> None:
    class Own(ReplayBuffer):
        pass

    model = make(gamma=0.9, replay_buffer_class=Own)
    filled(model.replay_buffer, 12)
    batch = draw(model.replay_buffer, 500, 0.9, model.rng)
    i = batch.observations[:, 0]
    th.testing.assert_close(batch.rewards, 2 * i)
    th.testing.assert_close(batch.discounts, th.where(i % 6 == 2, 0.0, 0.9))


def test_n_step_returns() -> None:
    """From step 0: r_0 + g r_1 + g^2 r_2, ended by the termination of step 2."""
    model = make(gamma=0.5, n_steps=3)
    assert type(model.replay_buffer) is NStepReplayBuffer
    filled(model.replay_buffer, 12)
    batch = draw(model.replay_buffer, 500, 0.5, model.rng)
    columns = batch.observations[:, 0], batch.rewards, batch.discounts
    rows = {int(i): (r.item(), d.item()) for i, r, d in zip(*columns, strict=True)}
    assert rows[0] == (0 + 0.5 * 2 + 0.25 * 4, 0.0)
    assert rows[3] == (6 + 0.5 * 8 + 0.25 * 10, 0.125)
    assert rows[4] == (8 + 0.5 * 10, 0.25)


def test_observations_are_normalised_when_they_are_drawn() -> None:
    env = VecNormalize(DummyVecEnv([Echo]))
    model = make(env).learn(40)
    batch = next(model.minibatches(1, 400))
    raw = model.replay_buffer.observations[:40, 0]
    low, high = env.normalize_obs(raw.min(0)), env.normalize_obs(raw.max(0))
    assert batch.observations.numpy().min() == pytest.approx(low.min(), rel=1e-5)
    assert batch.observations.numpy().max() == pytest.approx(high.max(), rel=1e-5)


def test_the_latest_steps_stand_in_order_across_the_seam() -> None:
    model = make(buffer_size=10)
    filled(model.replay_buffer, 14)
    window = latest(model.replay_buffer, 6, 0.9)
    assert window.steps.observations[:, 0].tolist() == [8, 9, 10, 11, 12, 13]
    assert window.continues.flatten().tolist() == [0, 1, 1, 0, 1, 1]
    with pytest.raises(ValueError, match=r"latest 11 steps.*buffer_size"):
        latest(model.replay_buffer, 11, 0.9)


def test_memory_may_be_saved() -> None:
    make(optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False}).learn(60)


def test_n_step_returns_of_dicts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_steps=3.*Dict"):
        make(Echo(observation="dict"), policy="MultiInputPolicy", n_steps=3)


# --- files


@pytest.mark.parametrize("kind", ["plain", "dict", "n_step", "full"])
def test_a_replay_buffer_comes_back(kind: str, tmp_path: Any) -> None:
    env = Echo(observation="dict") if kind == "dict" else Echo()
    options = {"n_step": {"n_steps": 2}, "full": {"buffer_size": 20}}.get(kind, {})
    model = make(env, policy="MultiInputPolicy" if kind == "dict" else "MlpPolicy", **options).learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    other = make(env, policy="MultiInputPolicy" if kind == "dict" else "MlpPolicy", **options)
    other.load_replay_buffer(tmp_path / "buffer")
    assert type(other.replay_buffer) is type(model.replay_buffer)
    assert (kind == "dict") == isinstance(other.replay_buffer, DictReplayBuffer)
    assert pickle.dumps(other.replay_buffer.rewards) == pickle.dumps(model.replay_buffer.rewards)
    assert other.replay_buffer.pos == model.replay_buffer.pos
    other.learn(20)


class Payload:
    def __reduce__(self) -> Any:
        return (abs, (-3,))


def test_a_replay_file_is_not_executed(tmp_path: Any) -> None:
    model = make()
    model.replay_buffer.surprise = Payload()  # type: ignore[attr-defined]
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(UnsafeModelError, match="abs"):
        make().load_replay_buffer(tmp_path / "buffer")
    trusting = make()
    trusting.load_replay_buffer(tmp_path / "buffer", trusted=True)
    assert trusting.replay_buffer.surprise == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("observation_space", Echo(observation="matrix")),
        ("observation_space", Echo(observation=spaces.Box(-2, 1, (3,)))),
        ("action_space", Echo("Discrete")),
    ],
)
def test_a_replay_buffer_of_other_spaces_is_refused(name: str, env: Echo, trusted: bool, tmp_path: Any) -> None:
    make(env).learn(20).save_replay_buffer(tmp_path / "buffer")
    model = make().learn(30)
    before = model.replay_buffer
    with pytest.raises(ValueError, match=f"one of {name}=") as error:
        model.load_replay_buffer(tmp_path / "buffer", trusted=trusted)
    for space in (getattr(env, name), getattr(model, name)):
        assert str(space) in str(error.value)
    assert model.replay_buffer is before
    model.learn(20, reset_num_timesteps=False)


def test_a_damaged_replay_file_is_named(tmp_path: Any) -> None:
    path = tmp_path / "buffer.pkl"
    make().save_replay_buffer(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelFileError, match=r"buffer\.pkl"):
        make().load_replay_buffer(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ModelFileError, match="holds a list"):
        make().load_replay_buffer(path)


def test_n_step_models_are_loaded_without_a_warning(tmp_path: Any) -> None:
    make(n_steps=3).learn(30).save(tmp_path / "model")
    assert type(SVG0.load(tmp_path / "model", device="cpu").replay_buffer) is NStepReplayBuffer


def test_actions_come_back_from_their_scale() -> None:
    """Also where the space has but one number."""
    space = spaces.Box(np.float32([-1, 2, 0.5]), np.float32([3, 2, 1.5]))
    model = make(Echo(space, reward=1.0))
    stored = model._from_env(np.float32([[-1, 2, 1.5], [1, 2, 0.75]]))
    np.testing.assert_array_equal(stored, np.float32([[-1, -1, 1], [0, -1, -0.5]]))
    np.testing.assert_array_equal(model._to_env(stored), np.float32([[-1, 2, 1.5], [1, 2, 0.75]]))
    model.learn(40)
    buffer = model.replay_buffer
    assert np.isfinite(buffer.actions[: buffer.pos]).all()
    assert buffer.actions[:8, 0, 1].tolist() == [-1] * 8


@pytest.mark.parametrize(("scale", "named"), [(1e30, "observations are as large as"), (1.0, "rewards too large")])
def test_the_scale_of_the_observations_is_blamed_where_it_is_the_cause(scale: float, named: str) -> None:
    env = Echo(observation=spaces.Box(-scale, scale, (3,)), scale=1.0 if scale > 1 else 1e30)
    with pytest.raises(NonFiniteError, match=named):
        make(env).learn(100)


def test_box_actions_never_leave_their_bounds() -> None:
    low, high = np.array([0.1, -3.3], np.float32), np.array([0.7, 1.1], np.float32)
    model = make(Echo(spaces.Box(low, high)))
    for stored in (np.full((1, 2), 1, np.float32), np.full((1, 2), -1, np.float32)):
        assert model.action_space.contains(model._to_env(stored)[0])
    assert isinstance(model.action_space, gym.spaces.Box)
