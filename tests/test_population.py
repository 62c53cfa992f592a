"""The population engine: against one candidate at a time, to the exact step, and what it refuses."""

import heapq
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from sb3_contrib.ars.policies import ARSLinearPolicy, ARSPolicy
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sb3_pg_ext.algorithms.cem import CEM
from sb3_pg_ext.rollout import collector
from sb3_pg_ext.rollout.batched_policies import BatchedPolicies
from sb3_pg_ext.rollout.direct_step import stepper
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.population import evaluate
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing import Echo
from sb3_pg_ext.testing.environments import ACTION_SPACES, OBSERVATION_SPACES, several
from sb3_pg_ext.testing.prediction import batch
from sb3_pg_ext.testing.recorders import Locals, StopAt

SEEDS = np.array([11, 12, 13])


def play(env, candidates, n_episodes=1, seeds=None, policy="LinearPolicy", callback=None, **kwargs):
    """The evaluation of ``candidates`` and the model that lent itself to it."""
    model = CEM(policy, env, seed=0, **kwargs)
    _, callback = model._setup_learn(10_000, callback)
    return evaluate(model, model.get_env(), callback, np.asarray(candidates, float), n_episodes, seeds), model


def drawn(n, env_id="CartPole-v1", policy="LinearPolicy", **kwargs):
    size = len(CEM(policy, env_id, **kwargs).search["mean"])
    return np.random.default_rng(0).standard_normal((n, size))


def one_at_a_time(env, policy, candidates, seeds):
    """Returns (n, E), by a plain loop."""
    returns = np.zeros((len(candidates), len(seeds)))
    for i, theta in enumerate(candidates):
        policy.load_from_vector(theta)
        for e, seed in enumerate(seeds):
            obs, over = env.reset(seed=int(seed))[0], False
            while not over:
                obs, reward, terminated, truncated, _ = env.step(policy.predict(obs)[0])
                returns[i, e] += np.float32(reward)
                over = terminated or truncated
    return returns


# --- against one candidate at a time


@pytest.mark.parametrize("kind", ["dummy", "native"])
@pytest.mark.parametrize("n_envs", [1, 4, 40])
def test_returns_are_those_of_one_candidate_at_a_time(kind, n_envs):
    """Bit for bit, whatever the number of slots: fewer than candidates, and more than episodes."""
    candidates = drawn(7)
    env = several(lambda: gym.make("CartPole-v1"), n_envs, kind)
    evaluation, model = play(env, candidates, 3, SEEDS)
    expected = one_at_a_time(gym.make("CartPole-v1"), model.policy, candidates, SEEDS)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(evaluation.returns, expected)
    np.testing.assert_array_equal(evaluation.lengths, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork() in a process with threads
def test_worker_processes_give_the_same_returns():
    candidates, make = drawn(5), lambda: gym.make("CartPole-v1")
    env = several(make, 2, "subproc")
    try:
        evaluation, _ = play(env, candidates, 2, SEEDS)
    finally:
        env.close()
    np.testing.assert_array_equal(evaluation.returns, play(several(make, 3), candidates, 2, SEEDS)[0].returns)


def test_environment_of_one_object_gives_the_same_returns_in_any_number_of_slots():
    candidates = drawn(7)
    few, many = (
        play(as_vec_env("CartPole-v1", n_envs=n, vec_env="native"), candidates, 3, SEEDS)[0].returns for n in (1, 9)
    )
    np.testing.assert_array_equal(few, many)
    assert len(np.unique(few)) > 5


def test_generator_of_an_environment_of_one_object_goes_on_where_it_was():
    env = as_vec_env("CartPole-v1", n_envs=3, seed=5, vec_env="native")
    own = env.env.unwrapped
    play(env, drawn(3), 1, SEEDS)
    assert own.np_random is not None
    first = [play(as_vec_env("CartPole-v1", n_envs=3, vec_env="native"), drawn(3), 1)[0].returns for _ in range(2)]
    np.testing.assert_array_equal(*first)  # the model's seed reaches it


def test_perceptrons_with_box_actions_play_as_predicted():
    kwargs = {"policy_kwargs": {"net_arch": [8], "activation_fn": th.nn.ReLU}}
    candidates = drawn(5, "Pendulum-v1", "MlpPolicy", **kwargs)
    evaluation, model = play(
        several(lambda: gym.make("Pendulum-v1"), 2), candidates, 2, SEEDS, policy="MlpPolicy", **kwargs
    )
    expected = one_at_a_time(gym.make("Pendulum-v1"), model.policy, candidates, SEEDS[:2])
    np.testing.assert_allclose(evaluation.returns, expected, rtol=1e-3)


# --- batched acting


class Scaled(FlattenExtractor):
    """A features extractor with a parameter of its own."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.scale = th.nn.Parameter(th.ones(self.features_dim))

    def forward(self, observations):
        return super().forward(observations) * self.scale


POLICIES = {
    "linear": ("LinearPolicy", {}),
    "linear, no bias, squashed": ("LinearPolicy", {"with_bias": False, "squash_output": True}),
    "perceptron": ("MlpPolicy", {"net_arch": [7, 5]}),
    "perceptron, clipped": ("MlpPolicy", {"net_arch": [7], "squash_output": False, "activation_fn": th.nn.ReLU}),
    "mapped": ("MlpPolicy", {"net_arch": [7], "activation_fn": th.nn.ELU}),
    "own extractor": ("MlpPolicy", {"net_arch": [7], "features_extractor_class": Scaled}),
}


def assert_acts_as_predicted(model, n_slots=6):
    rng = np.random.default_rng(1)
    candidates = rng.standard_normal((4, len(model.search["mean"])))
    policies = BatchedPolicies(model.policy, candidates, n_slots)
    chosen = rng.integers(4, size=n_slots)
    for slot, candidate in enumerate(chosen):
        policies.load(slot, candidate)
    space = model.get_env().observation_space
    space.seed(3)
    for _ in range(5):
        obs = batch(space, n_slots)
        actions = policies(obs)
        assert all(model.action_space.contains(action) for action in actions)
        for slot, candidate in enumerate(chosen):
            model.policy.load_from_vector(candidates[candidate])
            one = {k: part[slot] for k, part in obs.items()} if isinstance(obs, dict) else obs[slot]
            np.testing.assert_allclose(actions[slot], model.policy.predict(one)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_slots_act_as_their_candidates_alone_would(policy, action):
    name, kwargs = POLICIES[policy]
    assert_acts_as_predicted(CEM(name, Echo(action), policy_kwargs=kwargs, seed=0))


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_every_observation_reaches_the_policy(observation):
    name = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    assert_acts_as_predicted(CEM(name, Echo("Discrete", observation), policy_kwargs={"net_arch": [4]}, seed=0))


@pytest.mark.parametrize("policy", [ARSLinearPolicy, ARSPolicy])
@pytest.mark.parametrize("action", ["Box", spaces.Discrete(2), "Discrete"], ids=str)
def test_policies_of_ars_may_be_searched(policy, action):
    assert_acts_as_predicted(CEM(policy, Echo(action), seed=0))


def test_one_action_only():
    assert_acts_as_predicted(CEM("LinearPolicy", Echo(spaces.Discrete(1)), seed=0))


def test_choices_between_two_have_one_logit():
    assert len(CEM("LinearPolicy", "CartPole-v1").search["mean"]) == 5
    assert len(CEM("LinearPolicy", Echo(spaces.MultiDiscrete([2, 3]))).search["mean"]) == 4 * (1 + 3)
    assert len(CEM("LinearPolicy", Echo("MultiBinary")).search["mean"]) == 4 * 3


def test_normalised_features_are_those_of_predict():
    model = CEM("LinearPolicy", Echo(), normalize_observations=True, population_size=4, seed=0).learn(64)
    assert model.policy.moments.count > 0
    assert_acts_as_predicted(model)


def test_gradient_policy_is_refused_by_name():
    with pytest.raises(TypeError, match="ActorCriticPolicy"):
        CEM(ActorCriticPolicy, "CartPole-v1")


# --- the queue, step by step


class Lifespan(gym.Env):
    """An episode lasts as many steps as its first action says, and every step is worth the action."""

    observation_space = spaces.Box(1, 1, (1,))
    action_space = spaces.Box(0, 50, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.end = 0, None
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.time += 1
        self.end = self.end or round(float(action[0]))
        return np.ones(1, np.float32), float(action[0]), self.time >= self.end, False, {}


LINEAR = {"policy_kwargs": {"with_bias": False}}  # the action is the parameter


def makespan(lengths, n_slots):
    """Steps that n_slots need if a free slot takes the next episode at once."""
    free = [0] * n_slots
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


@pytest.mark.parametrize("kind", ["dummy", "native"])
@pytest.mark.parametrize(("n_slots", "n_episodes"), [(1, 1), (2, 1), (3, 2), (5, 3), (8, 1), (12, 1), (50, 2)])
def test_free_slots_take_the_next_episode_at_once(kind, n_slots, n_episodes):
    lengths = [5, 1, 1, 9, 2, 30, 1, 4]
    evaluation, model = play(
        several(Lifespan, n_slots, kind), np.array(lengths)[:, None], n_episodes, callback=(seen := Locals()), **LINEAR
    )
    steps = makespan(lengths * n_episodes, n_slots)
    assert len(seen.steps) == steps
    assert model.num_timesteps == evaluation.collected == steps * n_slots
    assert evaluation.lengths.tolist() == [[length] * n_episodes for length in lengths]
    assert evaluation.returns.tolist() == [[length**2] * n_episodes for length in lengths]


def test_idle_slots_act_by_the_candidate_that_has_outlived_the_others():
    """So long as it lives: an idle slot that still acted by a short-lived candidate would end again and again."""
    seen = Locals()
    play(several(Lifespan, 4), [[1], [7], [30], [1]], callback=seen, **LINEAR)
    ends = [np.flatnonzero(step["dones"]).tolist() for step in seen.steps]
    # Slots 0 and 3 follow candidate 1 from step 1 on, so that they end with it; then all of them follow candidate 2.
    assert {t + 1: slots for t, slots in enumerate(ends) if slots} == {1: [0, 3], 7: [1], 8: [0, 3], 30: [2]}


def test_statistics_are_of_the_candidates_alone():
    """Slots without work go on, but what they do is not reported: it would be short episodes mostly."""
    _, model = play(several(Lifespan, 6), [[3], [40]], 2, **LINEAR)
    assert sorted(episode["l"] for episode in model.ep_info_buffer) == [3, 3, 40, 40]


def test_next_iteration_begins_with_fresh_episodes():
    env = several(Lifespan, 3)
    _, model = play(env, [[3], [40]], **LINEAR)
    _, callback = model._setup_learn(100, reset_num_timesteps=False)
    evaluation = evaluate(model, env, callback, np.array([[2.0], [7.0], [1.0]]))
    assert evaluation.lengths.tolist() == [[2], [7], [1]]
    assert evaluation.collected == 3 * 7


@pytest.mark.parametrize("call", [1, 4, 9])
def test_stop_in_mid_episode_is_obeyed_at_once(call):
    env = several(partial(Echo, length=30), 2)
    evaluation, model = play(env, np.zeros((3, 8)), callback=(events := StopAt(call)))
    assert evaluation is None
    assert model.num_timesteps == 2 * call == sum(env.get_attr("steps"))
    assert events.events == "R" + "s" * call


def test_episode_without_end_is_no_hang(monkeypatch):
    monkeypatch.setattr(collector, "LONG_EPISODE", 100)
    model = CEM("LinearPolicy", several(partial(Echo, length=None), 2), seed=0)
    _, callback = model._setup_learn(10)
    with pytest.raises(RuntimeError, match=r"env \d has not ended within 101 steps"):
        evaluate(model, model.get_env(), callback, np.zeros((3, 8)))


def test_candidate_that_is_not_finite_is_refused_before_the_first_step():
    env = several(Echo, 2)
    for bad in (np.nan, np.inf, 1e39):
        candidates = np.zeros((3, 8))
        candidates[1, 2] = bad
        with pytest.raises(NonFiniteError, match="candidate"):
            play(env, candidates)
    assert sum(env.get_attr("steps")) == 0


@pytest.mark.parametrize(("action", "size"), [("Box", 4), (spaces.Discrete(2), 2)], ids=str)
def test_candidate_whose_output_overflows_is_refused(action, size):
    with pytest.raises(NonFiniteError, match="candidate policy gives NaN or infinity"):
        play(several(partial(Echo, action, spaces.Box(1e20, 1e20, (1,))), 2), np.full((2, size), 1e30))


def test_large_observations_are_no_error():
    evaluation, _ = play(
        several(partial(Echo, spaces.Discrete(2), spaces.Box(1e20, 1e20, (1,))), 2), np.full((2, 2), 1e-5)
    )
    assert (evaluation.lengths == 8).all()


# --- without anybody who listens, in the quickest way


class Borrowing(SyncVectorEnv):
    """Gives its own arrays, and writes into them again."""

    def __init__(self, env_fns):
        super().__init__(env_fns, copy=False, autoreset_mode="SameStep")


QUIET = {
    "dummy": lambda: several(partial(Echo, length=5), 3),
    "dummy, dict": lambda: several(partial(Echo, observation=DICT, length=5), 3),
    "native": lambda: several(partial(Echo, length=5), 3, "native"),
    "borrowed arrays": lambda: as_vec_env(Borrowing([partial(Echo, length=n) for n in (3, 5, 4)])),
    "CartPole-v1": lambda: as_vec_env("CartPole-v1", n_envs=3, vec_env="native"),
    "normalised": lambda: VecNormalize(several(partial(Echo, length=5), 3)),
}


@pytest.mark.parametrize("kind", QUIET)
def test_nothing_depends_on_whether_a_callback_listens(kind):
    policy = "MultiInputPolicy" if "dict" in kind else "LinearPolicy"
    size = len(CEM(policy, QUIET[kind]()).search["mean"])
    candidates = np.random.default_rng(0).standard_normal((7, size))
    (heard, one), (unheard, other) = (
        play(QUIET[kind](), candidates, 3, policy=policy, callback=callback) for callback in (Locals(), None)
    )
    np.testing.assert_array_equal(heard.returns, unheard.returns)
    np.testing.assert_array_equal(heard.lengths, unheard.lengths)
    assert heard.collected == unheard.collected
    assert [(e["r"], e["l"]) for e in one.ep_info_buffer] == [(e["r"], e["l"]) for e in other.ep_info_buffer]
    np.testing.assert_equal(one._last_obs, other._last_obs)


@pytest.mark.parametrize("kind", ["dummy", "native"])
@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_found_at_once(kind, what, bad):
    class Faulty(Lifespan):
        def step(self, action):
            obs, reward, *others = super().step(action)
            if self.time == 4:
                obs, reward = (obs * np.float32(bad), reward) if what == "observation" else (obs, bad)
            return obs, reward, *others

    model = CEM("LinearPolicy", several(Faulty, 2, kind), seed=0, **LINEAR)
    _, callback = model._setup_learn(100)
    with pytest.raises(NonFiniteError, match=f"The {what} of env 0 .* after step 8"):
        evaluate(model, model.get_env(), callback, np.full((2, 1), 9.0))


# --- common random numbers

STOCHASTIC = {
    "dummy": lambda: several(Echo, 3),
    "native": lambda: several(Echo, 3, "native"),
    "monitored": lambda: VecMonitor(DummyVecEnv([Echo] * 3)),
    "stacked": lambda: VecFrameStack(several(Echo, 3), 3),
    "stacked dict": lambda: VecFrameStack(several(partial(Echo, observation=DICT), 3), 3),
    "normalised, fixed": lambda: VecNormalize(several(Echo, 3), training=False),
}
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(0, 3, (1,))})


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_equal_candidates_get_equal_returns_from_common_seeds_only(kind):
    """Starts, noise and memories of wrappers: whatever slot an episode is played in, and whatever was played there."""
    policy = {"policy": "MultiInputPolicy", "policy_kwargs": {"net_arch": [4]}} if "dict" in kind else {}
    size = len(CEM(policy.get("policy", "LinearPolicy"), STOCHASTIC[kind](), **policy_kwargs(policy)).search["mean"])
    candidates = np.tile(np.random.default_rng(0).standard_normal(size), (7, 1))
    common = play(STOCHASTIC[kind](), candidates, 3, SEEDS, **policy)[0].returns
    assert (common == common[0]).all()
    assert len(np.unique(common)) == 3
    assert len(np.unique(play(STOCHASTIC[kind](), candidates, 3, **policy)[0].returns)) == 21


def policy_kwargs(policy):
    return {key: value for key, value in policy.items() if key != "policy"}


class Unknown(VecEnvWrapper):
    """A wrapper of somebody else's."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


def test_environments_that_take_no_seed_for_a_slot_are_refused_by_name():
    with pytest.raises(ValueError, match=r"common_seeds=True: Unknown"):
        play(Unknown(several(Echo, 2)), np.zeros((2, 8)), 1, SEEDS)
    env = AsyncVectorEnv([Echo] * 2, autoreset_mode="SameStep")
    try:
        with pytest.raises(ValueError, match="common_seeds=True: AsyncVectorEnv"):
            play(env, np.zeros((2, 8)), 1, SEEDS)
    finally:
        env.close()


def test_monitors_count_whole_episodes_despite_the_second_reset():
    _, model = play(DummyVecEnv([lambda: Monitor(Echo(length=6, reward=1.0))] * 2), np.zeros((5, 8)), 2, SEEDS)
    assert [(episode["r"], episode["l"]) for episode in model.ep_info_buffer] == [(6.0, 6)] * 10


def test_sync_vector_env_with_a_wrapper_of_its_own_is_refused():
    env = gym.wrappers.vector.TransformObservation(SyncVectorEnv([Echo] * 2), lambda obs: obs * 2)
    with pytest.raises(ValueError, match="common_seeds=True: TransformObservation"):
        play(env, np.zeros((2, 8)), 1, SEEDS)


# --- moments of what was seen


class Observations(ConvertCallback):
    """Keeps what candidates act upon."""

    def __init__(self):
        super().__init__(lambda locals_, _: self.seen.append(locals_["obs"].copy()) or True)
        self.seen = []


def test_moments_are_of_what_candidates_have_seen():
    seen = Observations()
    evaluation, _ = play(several(Echo, 1), np.zeros((3, 8)), 2, callback=seen, normalize_observations=True)
    everything = np.concatenate(seen.seen).astype(float)
    n, mean, variance = evaluation.seen
    assert n == len(everything) == evaluation.lengths.sum()
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, everything.var(0), rtol=1e-5)


def test_idle_slots_are_left_out_of_the_moments():
    evaluation, _ = play(several(Lifespan, 5), [[3], [40]], normalize_observations=True, **LINEAR)
    assert evaluation.seen[0] == 43 < evaluation.collected


def test_moments_join_over_iterations():
    rng = np.random.default_rng(0)
    data = rng.normal(3.0, [1.0, 100.0, 0.0], (500, 3))
    model = CEM("LinearPolicy", Echo(), normalize_observations=True)
    moments = model.policy.moments
    for part in np.split(data, [1, 10, 300]):
        moments.add(len(part), part.mean(0), part.var(0))
    np.testing.assert_allclose(moments.mean, data.mean(0))
    np.testing.assert_allclose(moments.variance, data.var(0), atol=1e-20)
    assert moments.count == 500
    np.testing.assert_allclose(
        moments(th.as_tensor(data[:1])), ((data - data.mean(0)) / np.where(data.std(0) > 0, data.std(0), 1))[:1]
    )


# --- the quicker step of adapted environments


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("kind", ["CartPole-v1", "Echo", "dummy"])
def test_quick_step_says_the_same_and_shares_only_infos_without_news(kind, quiet):
    def made():
        if kind == "dummy":
            env = several(lambda: Monitor(Echo(length=3)), 4)
            env.seed(0)
            return env
        if kind == "Echo":
            return as_vec_env(several(partial(Echo, length=3), 4, "native"), seed=0)
        return as_vec_env("CartPole-v1", n_envs=4, seed=0, vec_env="native")

    slow, quick = made(), made()
    quick_step = stepper(quick, quiet)
    assert quick_step != quick.step
    np.testing.assert_array_equal(slow.reset(), quick.reset())
    slow.action_space.seed(0)
    ends = 0
    for _ in range(60):
        actions = np.array([slow.action_space.sample() for _ in range(4)])
        *expected, infos = slow.step(actions)
        *arrays, quick_infos = quick_step(actions)
        for a, b in zip(expected, arrays, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for i, done in enumerate(expected[2]):
            ends += done
            if quiet and not done:
                continue
            assert infos[i].keys() == quick_infos[i].keys()
            assert infos[i]["TimeLimit.truncated"] == quick_infos[i]["TimeLimit.truncated"]
            if done:
                assert infos[i]["episode"]["r"] == quick_infos[i]["episode"]["r"]
                assert infos[i]["episode"]["l"] == quick_infos[i]["episode"]["l"]
                assert sum(info is quick_infos[i] for info in quick_infos) == 1
    assert ends > 5


def test_quick_step_reports_time_outs():
    env = as_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env="native")
    env.env.unwrapped.max_episode_steps = 5
    env.reset()
    for t in range(1, 6):
        *_, infos = stepper(env)(np.array([t % 2, t % 2]))
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True]
