"""What Stable-Baselines3 promises of an on-policy class beyond the contract that all algorithms share, on REINFORCE."""

import inspect
import os
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage, is_vecenv_wrapped

from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.rollout.episodes import Steps
from sb3_pg_ext.testing.environments import Echo, several
from sb3_pg_ext.testing.measures import all_finite, differences, fingerprint, learned
from sb3_pg_ext.testing.recorders import Locals, log_to_table

NET = {"net_arch": [8]}
make = partial(REINFORCE, "MlpPolicy", n_steps=16, seed=0, device="cpu")


def small(env=None, **kwargs):
    return make(Echo() if env is None else env, **{"policy_kwargs": dict(NET), **kwargs})


# --- the signature

ON_POLICY = """
policy env learning_rate n_steps gamma gae_lambda ent_coef vf_coef max_grad_norm normalize_advantage use_sde
sde_sample_freq rollout_buffer_class rollout_buffer_kwargs stats_window_size tensorboard_log policy_kwargs verbose seed
device _init_setup_model
"""


def test_keywords_of_stable_baselines3s_on_policy_classes_are_taken():
    parameters = inspect.signature(REINFORCE).parameters
    assert set(ON_POLICY.split()) <= set(parameters)
    assert list(parameters)[:4] == ["policy", "env", "learning_rate", "n_steps"]
    assert list(parameters)[-1] == "_init_setup_model"


# --- generalised state-dependent exploration


@pytest.mark.parametrize("sde_sample_freq", [-1, 1, 5])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_gsde_learns(sde_sample_freq, n_envs):
    model = small(several(Echo, n_envs), use_sde=True, sde_sample_freq=sde_sample_freq)
    before = learned(model)
    model.learn(96)
    assert isinstance(model.policy.action_dist, StateDependentNoiseDistribution)
    assert differences(before, learned(model))
    assert all_finite(model)


def noises(sde_sample_freq, steps=16):
    """How many different noise matrices a rollout of so many steps was made with."""
    model = small(use_sde=True, sde_sample_freq=sde_sample_freq)
    seen = []

    def look(locals_, _):
        seen.append(model.policy.action_dist.exploration_mat.clone())
        return True

    model.learn(steps, look)
    return len({tuple(matrix.flatten().tolist()) for matrix in seen})


@pytest.mark.parametrize(("sde_sample_freq", "different"), [(-1, 1), (4, 4), (1, 16)])
def test_gsde_draws_its_noise_as_often_as_asked(sde_sample_freq, different):
    assert noises(sde_sample_freq) == different


def test_gsde_is_for_box_actions_only():
    with pytest.raises(ValueError, match="State-Dependent Exploration"):
        small(Echo("Discrete"), use_sde=True)


@pytest.mark.parametrize("use_expln", [False, True])
def test_squashed_gsde_acts_in_the_units_of_the_environment(use_expln):
    """The policy's own actions lie in [-1, 1], those of the environment between its bounds, which Echo checks."""
    policy_kwargs = {**NET, "squash_output": True, "use_expln": use_expln}
    model, seen = small(use_sde=True, policy_kwargs=policy_kwargs), Locals()
    model.learn(96, seen)
    assert model.policy.squash_output
    assert model.rollout.actions.abs().max() <= 1
    assert all_finite(model)
    low, high = model.action_space.low, model.action_space.high
    answers = np.array([model.predict(obs["new_obs"][0])[0] for obs in seen.steps])
    assert ((low <= answers) & (answers <= high)).all()
    assert answers[:, 1].max() > 1, "the second action goes from 0 to 3"


def test_squashing_needs_gsde():
    with pytest.raises(AssertionError, match="squash_output"):
        small(policy_kwargs={**NET, "squash_output": True})


def test_entropy_of_squashed_actions_has_a_substitute():
    model = small(use_sde=True, policy_kwargs={**NET, "squash_output": True}, ent_coef=0.01)
    table = log_to_table(model.learn(16))
    model.learn(96)
    log_prob = model.evaluate_actor(model.rollout)[0]
    th.testing.assert_close(model.evaluate_actor(model.rollout)[1], -log_prob)
    assert np.isfinite(table.column("train/entropy_loss")).all()
    assert not isinstance(model.policy.action_dist, SquashedDiagGaussianDistribution)


# --- the unclipped action is kept


def test_actions_are_clipped_for_the_environment_only():
    model = small(policy_kwargs={**NET, "log_std_init": 2.0})
    model.learn(32)
    assert (model.rollout.actions.abs() > 3).any()


# --- storage


class CountingSteps(Steps):
    """Counts what it was given."""

    def __init__(self, *args, label="", **kwargs):
        super().__init__(*args, **kwargs)
        self.label, self.added = label, 0

    def add(self, *args):
        super().add(*args)
        self.added += 1


def test_storage_may_be_replaced():
    model, seen = small(rollout_buffer_class=CountingSteps, rollout_buffer_kwargs={"label": "mine"}), []
    model.learn(64, lambda locals_, _: seen.append(locals_["steps"]) or True)
    assert {type(steps) for steps in seen} == {CountingSteps}
    assert {steps.label for steps in seen} == {"mine"}
    assert [steps.added for steps in {id(steps): steps for steps in seen}.values()] == [16] * 4
    assert fingerprint(model) == fingerprint(small().learn(64))


def test_wrong_arguments_of_the_storage_are_refused_at_once():
    with pytest.raises(TypeError, match="labell"):
        small(rollout_buffer_class=CountingSteps, rollout_buffer_kwargs={"labell": "mine"})
    with pytest.raises(TypeError, match="label"):
        small(rollout_buffer_kwargs={"label": "mine"})


# --- the policy


def test_net_arch_may_be_given_in_every_form():
    for net_arch, widths in ([], set()), ([8], {8}), ({"pi": [8], "vf": [16]}, {8, 16}):
        layers = small(policy_kwargs={"net_arch": net_arch}).learn(16).policy.mlp_extractor.modules()
        assert {layer.out_features for layer in layers if isinstance(layer, th.nn.Linear)} == widths


@pytest.mark.parametrize("optimizer_kwargs", [None, {"eps": 1e-3}])
def test_optimizer_takes_its_arguments(optimizer_kwargs):
    model = small(policy_kwargs={**NET, "optimizer_kwargs": optimizer_kwargs})
    assert type(model.policy.optimizer) is th.optim.Adam
    assert model.policy.optimizer.defaults["eps"] == (1e-5 if optimizer_kwargs is None else 1e-3)


def test_the_callers_policy_kwargs_are_handed_on_as_they_are():
    """Stable-Baselines3 keeps the caller's dict, and ``load(policy_kwargs=...)`` compares it."""
    kwargs = {"net_arch": [8]}
    model = small(policy_kwargs=kwargs)
    assert model.policy_kwargs is kwargs
    assert kwargs == {"net_arch": [8]}


def test_policies_may_be_shared_or_apart(tmp_path):
    for share in (True, False):
        model = small(policy_kwargs={**NET, "share_features_extractor": share}).learn(32)
        model.save(tmp_path / "model")
        assert differences(learned(model), learned(REINFORCE.load(tmp_path / "model", device="cpu"))) == []


class Taller(ActorCriticPolicy):
    """A policy class of the user's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "net_arch": [5, 5]})


def test_policy_may_be_a_class_of_ones_own(tmp_path):
    model = REINFORCE(Taller, Echo(), n_steps=16, device="cpu").learn(32)
    assert model.policy.net_arch == [5, 5]
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", device="cpu", allow=[Taller])
    assert differences(learned(model), learned(loaded)) == []


def test_policy_is_rebuilt_from_its_own_file(tmp_path):
    """With everything that shapes it."""
    kwargs = {
        "net_arch": {"pi": [6], "vf": [7]},
        "activation_fn": th.nn.ReLU,
        "ortho_init": False,
        "log_std_init": -1.0,
    }
    model = small(use_sde=True, policy_kwargs=kwargs).learn(32)
    model.policy.save(tmp_path / "policy")
    policy = ActorCriticPolicy.load(tmp_path / "policy", device="cpu")
    assert all(
        th.equal(a, b) for a, b in zip(policy.state_dict().values(), model.policy.state_dict().values(), strict=True)
    )
    obs = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a compiler")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_policy_is_saved_and_loaded(tmp_path):
    model = small()
    model.policy = th.compile(model.policy)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", Echo(), device="cpu")
    assert not any("_orig_mod" in name for name in learned(loaded))
    obs = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_allclose(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-5
    )
    loaded.learn(32)


# --- schedules


@pytest.mark.parametrize(
    "rate",
    [1e-3, np.float32(1e-3), lambda p: np.float64(p) * 1e-3, LinearSchedule(1e-3, 0.0, 1.0)],
    ids=lambda rate: type(rate).__name__,
)
def test_learning_rate_is_a_float_at_all_times(rate):
    model = small(learning_rate=rate)
    assert type(model.lr_schedule(1.0)) is float
    assert isinstance(model.lr_schedule, FloatSchedule)
    assert model.lr_schedule(1.0) == pytest.approx(1e-3)


def test_schedule_starts_anew_with_the_count_and_goes_on_without():
    model = small(learning_rate=LinearSchedule(1e-2, 0.0, 1.0))
    table = log_to_table(model)
    for reset in (True, False, True):
        model.learn(64, reset_num_timesteps=reset)
    rates = table.column("train/learning_rate")
    steps = table.column("time/total_timesteps")
    again = np.flatnonzero(np.diff(steps) < 0)[0] + 1
    assert rates[0] < 1e-2
    np.testing.assert_allclose(rates[again + 1 : again + 3], rates[1:3])


# --- observations


def test_channel_last_images_are_transposed():
    model = REINFORCE("CnnPolicy", Echo("Discrete", "image"), n_steps=16, device="cpu", policy_kwargs=small_cnn())
    assert type(model.policy) is ActorCriticCnnPolicy
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage)
    assert model.observation_space.shape == (1, 36, 36)
    model.learn(16)
    assert model.rollout.observations.shape == (16, 1, 36, 36)
    assert model.rollout.observations.dtype == th.uint8


def small_cnn():
    return {"net_arch": [], "features_extractor_kwargs": {"features_dim": 8}}


class AsDict(gym.ObservationWrapper):
    """The same vector, in one part."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"vector": env.observation_space})

    def observation(self, observation):
        return {"vector": observation}


def test_a_dict_of_one_vector_is_that_vector():
    """The same policy and, from the same rollout, the same update.

    The rollouts themselves differ: vectors are acted on by the numpy path, which draws from the model's own generator,
    and dicts by the torch path, which draws from torch's, as Stable-Baselines3 does. So both learn from one rollout.
    """
    flat = small()
    dicts = REINFORCE("MultiInputPolicy", AsDict(Echo()), n_steps=16, seed=0, device="cpu", policy_kwargs=dict(NET))
    as_one = {k: v for k, v in dicts.policy.state_dict().items() if "features_extractor" not in k}
    assert all(th.equal(value, as_one[name]) for name, value in flat.policy.state_dict().items())
    flat.learn(16)
    dicts.learn(16)
    dicts.policy.load_state_dict(flat.policy.state_dict())
    dicts.policy.optimizer.load_state_dict(deepcopy(flat.policy.optimizer.state_dict()))
    dicts.rollout = flat.rollout
    dicts.rollout.observations = {"vector": flat.rollout.observations}
    dicts.train()
    flat.rollout.observations = flat.rollout.observations["vector"]
    flat.train()
    for name, value in flat.policy.state_dict().items():
        th.testing.assert_close(dicts.policy.state_dict()[name], value)


def test_both_acting_paths_give_dicts_and_vectors_equal_results(monkeypatch):
    """With both on the torch path the whole training is equal, bit for bit."""
    monkeypatch.setattr("sb3_pg_ext.rollout.acting.is_plain_mlp", lambda policy: False)
    flat = small().learn(96)
    dicts = REINFORCE("MultiInputPolicy", AsDict(Echo()), n_steps=16, seed=0, device="cpu", policy_kwargs=dict(NET))
    dicts.learn(96)
    assert fingerprint(dicts) == fingerprint(flat)


# --- logging, warnings, processes


def test_keys_of_an_on_policy_algorithm_are_logged():
    model = small()
    table = log_to_table(model)
    model.learn(96)
    names = {name for row in table.rows for name in row}
    assert names >= {
        "time/iterations",
        "train/explained_variance",
        "train/entropy_loss",
        "train/policy_loss",
        "train/value_loss",
        "train/std",
        "train/n_updates",
        "rollout/used_share",
    }
    assert table.column("time/iterations").tolist() == list(range(1, len(table.rows) + 1))


def test_statistics_of_a_normalised_environment_go_on_with_the_training():
    env = VecNormalize(several(Echo, 2), norm_reward=True)
    model = small(env).learn(96)
    assert model.rollout.observations.abs().max() <= 10
    np.testing.assert_allclose(env.obs_rms.count, model.num_timesteps, rtol=0.2)


def test_nothing_warns(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(several(Echo, 2), n_steps=64, normalize_advantage=True).learn(256)
        model.save(tmp_path / "model")
        REINFORCE.load(tmp_path / "model", several(Echo, 2), device="cpu").learn(128)


PROGRAM = """
from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.testing.environments import Echo
from sb3_pg_ext.testing.measures import fingerprint
model = REINFORCE("MlpPolicy", Echo(), n_steps=16, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}).learn(96)
print(fingerprint(model))
"""


def test_another_process_gives_the_same_result():
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert printed.strip() == fingerprint(small().learn(96))
