"""The testbeds: gymnasium's contract, single against vectorised, published dynamics, differentiability."""

import copy
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sb3_pg_ext.envs
from sb3_pg_ext.envs.bandit import PolynomialBanditEnv, armed_bandit, bandit_env
from sb3_pg_ext.envs.core import bars
from sb3_pg_ext.envs.differentiable import DifferentiableEnv
from sb3_pg_ext.envs.finite_mdp import FiniteMDP, FiniteMDPEnv, FiniteMDPVectorEnv
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQR, LQREnv, LQRVectorEnv, lqr
from sb3_pg_ext.envs.pendulum import PendulumEnv, PendulumVectorEnv
from sb3_pg_ext.envs.point_mass import point_mass
from sb3_pg_ext.envs.simulation import NoiseStreams

NOISY = {"noise_std": 0.1, "start_std": 0.2}
CASES = [
    ("LQR-v0", {}),
    ("LQR-v0", {"preset": "scalar", "horizon": 7, **NOISY}),
    ("LQR-v0", {"preset": "dean", "horizon": 9, "at_horizon": "terminate"}),
    ("Garnet-v0", {"reward_std": 0.5, "horizon": 6}),
    ("Garnet-v0", {"features": "state", "instance": 4}),
    ("Bandit-v0", {"reward_std": 1.0}),
    ("Bandit-v0", {"coefficients": (0.0, 0.0, 1.0), "n_actions": 2, "reward_std": 1.0}),
    ("ShortCorridor-v0", {"horizon": 40}),
    ("PointMass-v0", {"dimension": 3, "noise_std": 0.1, "horizon": 11}),
    ("DifferentiablePendulum-v0", {"horizon": 30}),
]
DIFFERENTIABLE = [case for case in CASES if case[0] in ("LQR-v0", "PointMass-v0", "DifferentiablePendulum-v0")] + [
    CASES[6]
]
# Advice, not faults: the states of a regulator are all of R^n, and its box of actions is wide on purpose.
ADVICE = (
    "ignore:.*Box observation space m.* value is -?infinity.*",
    "ignore:.*symmetric and normalized.*",
    "ignore:.*You specified that the observation space.*",
)


def name_of(case):
    return f"{case[0]}-{'-'.join(map(str, case[1].values()))}"


every_case = pytest.mark.parametrize(("env_id", "kwargs"), CASES, ids=map(name_of, CASES))
every_differentiable = pytest.mark.parametrize(("env_id", "kwargs"), DIFFERENTIABLE, ids=map(name_of, DIFFERENTIABLE))


@every_case
@pytest.mark.filterwarnings(*ADVICE)
def test_both_checkers_accept_it(env_id, kwargs):
    gymnasium_check_env(gymnasium.make(env_id, render_mode="rgb_array", **kwargs).unwrapped)
    sb3_check_env(gymnasium.make(env_id, render_mode="rgb_array", **kwargs), skip_render_check=False)


@every_case
def test_the_vector_env_is_the_single_envs_side_by_side(env_id, kwargs):
    """Number for number: same noise, same restarts, same infos as gymnasium's own loop over single environments."""
    fast = gymnasium.make_vec(env_id, num_envs=5, **kwargs)
    singles = [lambda: gymnasium.make(env_id, **kwargs) for _ in range(5)]
    slow = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    assert fast.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert fast.single_observation_space == slow.single_observation_space
    assert fast.action_space == slow.action_space
    for seed in (3, None, [11, 5, 11, 0, 2]):
        np.testing.assert_allclose(fast.reset(seed=seed)[0], slow.reset(seed=seed)[0], rtol=1e-6)
        fast.action_space.seed(0)
        ended = 0
        for _ in range(85):
            actions = fast.action_space.sample()
            observation, reward, terminated, truncated, infos = fast.step(actions)
            expected = slow.step(actions)
            assert observation.dtype == fast.observation_space.dtype
            np.testing.assert_allclose(observation, expected[0], rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(reward, expected[1], rtol=2e-5, atol=1e-6)
            np.testing.assert_array_equal(terminated, expected[2])
            np.testing.assert_array_equal(truncated, expected[3])
            assert infos.keys() == expected[4].keys()
            if infos:
                np.testing.assert_array_equal(infos["_final_obs"], expected[4]["_final_obs"])
                np.testing.assert_array_equal(infos["_final_info"], expected[4]["_final_info"])
                assert infos["final_info"] == {}
                for ours, theirs in zip(infos["final_obs"], expected[4]["final_obs"], strict=True):
                    assert (ours is None) == (theirs is None)
                    if ours is not None:
                        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)
                ended += infos["_final_obs"].sum()
        assert ended > 0


@every_case
def test_seeds_fix_the_trajectory_and_tell_it_apart(env_id, kwargs):
    def trajectory(seed):
        env = gymnasium.make_vec(env_id, num_envs=4, **kwargs)
        env.action_space.seed(1)
        first, _ = env.reset(seed=seed)
        return [first.tolist()] + [[x.tolist() for x in env.step(env.action_space.sample())[:4]] for _ in range(50)]

    assert trajectory(5) == trajectory(5)
    if env_id not in ("ShortCorridor-v0",) and kwargs:  # whose starts and steps are not random
        assert trajectory(5) != trajectory(6)


def test_copies_do_not_share_noise():
    env = gymnasium.make_vec("LQR-v0", num_envs=3, preset="scalar", noise_std=1.0)
    env.reset(seed=0)
    states = np.array([env.step(np.zeros((3, 1), dtype=np.float32))[0][:, 0] for _ in range(40)])
    increments = np.diff(states, axis=0)
    assert np.abs(np.corrcoef(increments.T) - np.eye(3)).max() < 0.6
    assert len(np.unique(increments)) == increments.size  # nor does any number come back when a block is spent


def test_noise_streams_depend_on_their_own_slot_alone():
    def numbers(order):
        streams = NoiseStreams([np.random.default_rng(i) for i in range(2)], lambda rng, n: rng.random((n, 1)), block=3)
        seen = {0: [], 1: []}
        for slots in order:
            for slot, number in zip(slots, streams.take(np.array(slots)), strict=True):
                seen[slot].append(number.item())
        return seen

    together, apart = numbers([[0, 1]] * 8), numbers([[1]] * 8 + [[0]] * 8)
    assert together == apart
    assert together[0] == np.random.default_rng(0).random(9)[:8].tolist()


def test_time_limits():
    truncating = gymnasium.make_vec("LQR-v0", num_envs=2, horizon=3)
    terminating = gymnasium.make_vec("LQR-v0", num_envs=2, horizon=3, at_horizon="terminate")
    shortened = gymnasium.make_vec("LQR-v0", num_envs=2, horizon=3, at_horizon="terminate", max_episode_steps=2)
    flags = []
    for env in (truncating, terminating, shortened):
        env.reset(seed=0)
        flags.append([[bool(x[0]) for x in env.step(np.zeros((2, 3), np.float32))[2:4]] for _ in range(4)])
    no, terminated, truncated = [False, False], [True, False], [False, True]
    assert flags == [[no, no, truncated, no], [no, no, terminated, no], [no, truncated, no, truncated]]


def test_truncation_restarts_only_the_copies_whose_time_is_up():
    env = gymnasium.make_vec("ShortCorridor-v0", num_envs=2, horizon=3)
    env.reset(seed=0)
    env.step(np.array([1, 0]))
    env.step(np.array([0, 0]))
    *_, terminated, truncated, infos = env.step(np.array([1, 0]))  # the first copy: right, left (= right), right
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]
    assert env.unwrapped.state.tolist() == [0, 0]
    assert infos["_final_obs"].all()


def test_reset_to_a_given_state():
    single, vector = LQREnv(preset="scalar"), LQRVectorEnv(2, preset="scalar")
    assert single.reset(seed=0, options={"state": [3.0]})[0] == 3.0
    assert vector.reset(seed=0, options={"state": [[3.0], [4.0]]})[0].tolist() == [[3.0], [4.0]]
    vector.state[:] = 0  # a copy
    assert vector.state.tolist() == [[3.0], [4.0]]
    with pytest.raises(ValueError, match=r"options\['state'\] has the shape \(1, 2\); expected \(1, 1\)"):
        single.reset(options={"state": [1.0, 2.0]})


def test_observations_are_new_arrays_and_a_copied_env_goes_on_alike():
    env = LQRVectorEnv(2, preset="scalar", **NOISY)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    twin = copy.deepcopy(env)
    ours, theirs = env.step(np.ones((2, 1))), twin.step(np.ones((2, 1)))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(ours[0], theirs[0])


# Dynamics


def test_lqr_dynamics_by_hand():
    env = LQREnv(
        preset=None,
        A=[[1, 2], [0, 1]],
        B=[[0], [3]],
        Q=[[1, 0.5], [0.5, 2]],
        R=[[4]],
        noise_std=0.0,
        start_mean=[1, -1],
    )
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(np.array([0.5], dtype=np.float32))
    assert observation.tolist() == [-1.0, 0.5]
    assert reward == -((1 - 0.5 - 0.5 + 2) + 4 * 0.25)
    assert (terminated, truncated) == (False, False)


def test_lqr_noise_has_the_covariance_it_was_given():
    factor = np.array([[1.0, 0.0], [0.5, 0.2]])
    zero = np.zeros((2, 2))
    env = LQRVectorEnv(
        4000, preset=None, A=zero, B=zero, Q=zero, R=zero, noise_std=factor, start_std=[3.0, 0.0], start_mean=2
    )
    start, _ = env.reset(seed=1)
    after = env.step(np.zeros((4000, 2)))[0]
    np.testing.assert_allclose(start.mean(0), 2, atol=4 * 3 / np.sqrt(4000))
    np.testing.assert_allclose(start.std(0), [3, 0], atol=0.15)
    np.testing.assert_allclose(np.cov(after.T), factor @ factor.T, atol=0.1)


def test_lqr_clips_only_where_it_is_told_to():
    mushroom, scalar = LQREnv(preset="mushroom"), LQREnv(preset="scalar", action_bound=1.0)
    mushroom.reset(seed=0)
    observation, reward, *_ = mushroom.step(np.array([5.0, 0.0, 0.0]))
    np.testing.assert_allclose(observation, [1.0, 0.9, 0.9])
    assert reward == pytest.approx(-(1.1 * 0.81 + 0.1))
    scalar.reset(seed=0)
    assert scalar.step(np.array([5.0]))[0] == 6.0


def test_point_mass_moves_as_newton_says():
    env = gymnasium.make("PointMass-v0", dimension=1, mass=2.0, drag=0.5, dt=0.1, start_std=0.0).unwrapped
    env.reset(seed=0, options={"state": [1.0, -1.0]})
    observation, reward, *_ = env.step(np.array([4.0], dtype=np.float32))  # as much as a force of 1
    np.testing.assert_allclose(observation, [1 - 0.1, -1 + 0.1 * (1 / 2 + 0.5)], rtol=1e-6)
    assert reward == pytest.approx(-(1 + 0.1 + 0.01))


def test_pendulum_is_pendulum_v1():
    """Same seed, same starts; same float32 actions, the same numbers for three episodes of 200 steps."""
    theirs, ours = gymnasium.make("Pendulum-v1"), gymnasium.make("DifferentiablePendulum-v0")
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    for seed in (7, None, 12):
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        for t in range(200):
            action = rng.uniform(-3, 3, 1).astype(np.float32)  # some beyond the limit
            observation, reward, terminated, truncated, _ = ours.step(action)
            expected, expected_reward, *_, their_end, _ = theirs.step(action)
            np.testing.assert_allclose(observation, expected, atol=1e-6)
            assert reward == pytest.approx(float(expected_reward), abs=1e-9)
            assert (terminated, truncated) == (False, t == 199) == (False, their_end)


def test_pendulum_gravity_and_a_batch_against_single_steps():
    theirs = gymnasium.make("Pendulum-v1", g=3.7).unwrapped
    batch = PendulumVectorEnv(64, g=3.7)
    batch.reset(seed=0)
    states, actions = batch.state, np.random.default_rng(1).uniform(-2, 2, (64, 1))
    observations, rewards, *_ = batch.step(actions)
    for i in range(64):
        theirs.reset(seed=0)
        theirs.state = states[i]
        observation, reward, *_ = theirs.step(actions[i])
        np.testing.assert_allclose(observations[i], observation, atol=1e-6)
        assert rewards[i] == pytest.approx(reward)


def test_short_corridor_moves():
    env = gymnasium.make("ShortCorridor-v0").unwrapped
    after = {(s, a): None for s in range(3) for a in range(2)}
    for state, action in after:
        env.reset(seed=0, options={"state": state})
        observation, reward, terminated, *_ = env.step(action)
        after[state, action] = "goal" if terminated else int(env.state)
        assert (observation.tolist(), reward) == ([1.0], -1.0)
    assert after == {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 0, (2, 0): 1, (2, 1): "goal"}


def test_finite_mdp_moves_with_its_probabilities():
    """A chi-square test of the next states of every state and action, the end among them."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(4), (3, 2))[..., :3]
    mdp = FiniteMDP(transition, rng.normal(size=(3, 2)), start=[0.5, 0.2, 0.3], reward_std=0.3)
    env = FiniteMDPVectorEnv(mdp, 3000)
    env.reset(seed=2)
    counts = np.bincount(env.state, minlength=3)
    assert ((counts - 3000 * mdp.start) ** 2 / (3000 * mdp.start)).sum() < 18.4  # P(chi2_2 > 18.4) = 1e-4
    for state in range(3):
        for action in range(2):
            env.reset(options={"state": np.full(3000, state)})
            observations, rewards, terminated, _, infos = env.step(np.full(3000, action))
            stayed = np.where(terminated, 3, observations)
            expected = 3000 * np.append(transition[state, action], 1 - transition[state, action].sum())
            assert ((np.bincount(stayed, minlength=4) - expected) ** 2 / expected).sum() < 21.1  # 1e-4, 3 degrees
            assert rewards.mean() == pytest.approx(mdp.reward[state, action], abs=4 * 0.3 / np.sqrt(3000))
            assert rewards.std() == pytest.approx(0.3, rel=0.06)
            assert all(final == state for final in infos["final_obs"][terminated])


def test_rounding_never_ends_an_episode():
    mdp = FiniteMDP(np.full((1, 1, 1), 1 - 1e-12), [[0.0]])
    assert mdp.step(np.array([0]), np.array([0]), np.array([[1 - 1e-16]]))[2].tolist() == [False]


def test_garnet_is_a_random_process_drawn_from_a_number():
    mdp = garnet(n_states=12, n_actions=4, branching=3, instance=1)
    assert mdp.transition.shape == (12, 4, 12)
    np.testing.assert_allclose(mdp.transition.sum(-1), 1)
    assert ((mdp.transition > 0).sum(-1) == 3).all()
    np.testing.assert_array_equal(mdp.transition, garnet(n_states=12, n_actions=4, branching=3, instance=1).transition)
    assert (mdp.transition != garnet(n_states=12, n_actions=4, branching=3, instance=2).transition).any()
    assert abs(garnet(n_states=50, n_actions=20).reward.std() - 1) < 0.1


def test_bandits():
    arms = bandit_env(means=(1.0, -2.0))
    arms.reset(seed=0)
    assert arms.step(1)[1:4] == (-2.0, True, False)
    square = bandit_env(coefficients=(1.0, -1.0, 2.0), n_actions=2)
    square.reset(seed=0)
    assert isinstance(square, PolynomialBanditEnv)
    assert square.step(np.array([2.0, -1.0]))[1:4] == (1 - 2 + 8 + 1 + 1 + 2, True, False)
    noisy = gymnasium.make_vec("Bandit-v0", num_envs=2000, coefficients=(3.0,), reward_std=2.0)
    noisy.reset(seed=0)
    rewards = noisy.step(np.zeros((2000, 1)))[1]
    assert rewards.mean() == pytest.approx(3, abs=0.2)
    assert rewards.std() == pytest.approx(2, abs=0.15)


def test_bars_draw_signs():
    picture = bars(np.array([10.0, -10.0]), height=8, width=2)
    red = (picture == [204, 77, 77]).all(-1)
    assert picture.shape == (8, 4, 3)
    assert red[1:4, :2].all()
    assert not red[5:, :2].any()
    assert red[5:7, 2:].all()


# Differentiability


@every_differentiable
def test_equations_for_tensors_are_those_that_run(env_id, kwargs):
    env = gymnasium.make_vec(env_id, num_envs=6, **kwargs)
    assert isinstance(env, DifferentiableEnv)
    env.reset(seed=0)
    state, action = torch.as_tensor(env.state), torch.as_tensor(env.action_space.sample()).double()
    observation, reward, *_ = env.step(action.numpy())
    if env.noise_shape == (0,):
        following = env.dynamics(state, action)
        np.testing.assert_allclose(env.observe(following), observation, rtol=1e-5, atol=1e-6)
    assert env.dynamics(state, action).shape == (6, *env.state_shape)
    following = env.dynamics(state, action, torch.zeros(6, *env.noise_shape, dtype=torch.float64))
    torch.testing.assert_close(following, env.dynamics(state, action))
    if not kwargs.get("reward_std"):
        np.testing.assert_allclose(env.reward(state, action, following), reward, rtol=1e-6)
    assert env.reward(state, action, following).shape == (6,)


@every_differentiable
def test_derivatives_of_dynamics_and_reward(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs).unwrapped
    assert isinstance(env, DifferentiableEnv)
    generator = torch.Generator().manual_seed(0)

    def point(*shape):
        return (0.5 * torch.randn(3, *shape, generator=generator, dtype=torch.float64)).requires_grad_()

    state, action, noise = point(*env.state_shape), point(*env.action_space.shape), point(*env.noise_shape)
    action = (0.9 * torch.tanh(action.detach())).requires_grad_()  # off the corners of the clipping
    assert torch.autograd.gradcheck(env.dynamics, (state, action, noise))
    assert torch.autograd.gradcheck(env.reward, (state, action, point(*env.state_shape)))
    assert torch.autograd.gradcheck(env.observe, (state,))


@every_differentiable
def test_states_and_observations_of_each_other(env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs).unwrapped
    state = 2 * torch.randn(20, *env.state_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observation = env.observe(state)
    assert observation.shape == (20, *env.observation_space.shape)
    torch.testing.assert_close(env.observe(env.state_of(observation)), observation)
    action = torch.full((20, *env.action_space.shape), 0.3, dtype=torch.float64)
    same = env.state_of(observation)
    torch.testing.assert_close(env.observe(env.dynamics(same, action)), env.observe(env.dynamics(state, action)))
    torch.testing.assert_close(env.reward(same, action, same), env.reward(state, action, state))


def test_noise_enters_the_dynamics_as_it_enters_the_env():
    problem = lqr("scalar", noise_std=0.7)
    assert problem.dynamics(np.ones((1, 1)), np.zeros((1, 1)), np.full((1, 1), 2.0)).item() == pytest.approx(1 + 1.4)
    assert point_mass(noise_std=0.2).dynamics(np.zeros((1, 4)), np.zeros((1, 2)), np.ones((1, 2)))[0].tolist() == [
        0,
        0,
        0.2,
        0.2,
    ]
    assert lqr("scalar").noise_shape == (0,)


def test_gradients_pass_through_a_rollout():
    """The derivative of a return through 20 steps of the pendulum against finite differences."""
    env = PendulumEnv()

    def rollout(torque):
        state, total = torch.tensor([[2.0, 0.5]], dtype=torch.float64), 0.0
        for t in range(20):
            following = env.dynamics(state, torque[t].reshape(1, 1))
            total = total + env.reward(state, torque[t].reshape(1, 1), following).sum()
            state = following
        return total

    torque = torch.linspace(-1, 1, 20, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(rollout, (torque,))


def test_float32_stays_float32():
    for env in (LQREnv(), PendulumEnv()):
        state = torch.zeros(2, *env.state_shape)
        action = torch.zeros(2, *env.action_space.shape)
        following = env.dynamics(state, action, torch.zeros(2, *env.noise_shape))
        assert {following.dtype, env.reward(state, action, following).dtype, env.observe(state).dtype} == {
            torch.float32
        }


# Registration and errors


def test_registration_is_idempotent_and_loads_nothing():
    before = {name: gymnasium.spec(name) for name in sb3_pg_ext.envs.ENV_CLASSES}
    sb3_pg_ext.envs.register_envs()
    assert all(gymnasium.spec(name) is spec for name, spec in before.items())
    code = (
        "import sys, sb3_pg_ext.envs, gymnasium; gymnasium.spec('LQR-v0'); print('sb3_pg_ext.envs.lqr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_ids_are_made_by_sb3_without_a_warning():
    from stable_baselines3.common.env_util import make_vec_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_vec_env("LQR-v0", n_envs=2, env_kwargs={"preset": "scalar", "horizon": 2}, seed=0)
        env.reset()
        env.step(np.zeros((2, 1)))
        *_, dones, infos = env.step(np.zeros((2, 1)))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"].shape == (1,) for info in infos)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lqr("madeup"), "preset='madeup': allowed are 'scalar', 'mushroom', 'dean'"),
        (lambda: lqr(horizon=0), "horizon=0: allowed are positive integers"),
        (lambda: lqr(gamma=1.5), r"gamma=1.5: allowed are numbers in \(0, 1\]"),
        (lambda: lqr(at_horizon="stop"), "at_horizon='stop': allowed are 'truncate' and 'terminate'"),
        (lambda: lqr(Q=[[1, 2, 0], [0, 1, 0], [0, 0, 1]]), "Q must be symmetric"),
        (lambda: lqr(R=np.eye(2)), r"R has the shape \(2, 2\); \(3, 3\) is needed"),
        (lambda: lqr(A=np.eye(2)), r"A has the shape \(2, 2\); \(3, 3\) is needed"),
        (lambda: LQR(A=1, B=[[1]], Q=[[1]], R=[[1]]), r"A has the shape \(\); a matrix is needed"),
        (lambda: lqr(noise_std=np.ones((2, 2))), r"noise_std has the shape \(2, 2\); a number, \(3,\) or \(3, k\)"),
        (lambda: lqr(start_std=[1.0]), r"start_std has the shape \(1,\); a number, \(3,\)"),
        (lambda: lqr(start_mean=[1.0]), r"start_mean has the shape \(1,\); \(3,\) is needed"),
        (lambda: point_mass(dimension=0), "dimension=0: allowed are positive integers"),
        (lambda: garnet(n_states=3, branching=4), "branching=4: allowed are 1 to n_states=3"),
        (lambda: garnet(features="two"), "features='two': allowed are 'onehot' and 'state'"),
        (lambda: FiniteMDP(np.ones((2, 1, 2)), np.zeros((2, 1))), "sum is at most 1"),
        (lambda: FiniteMDP(np.zeros((2, 1, 2)), np.zeros((2, 2))), r"\(S, A, S\) and \(S, A\) are needed"),
        (lambda: FiniteMDP(np.zeros((2, 1, 2)), np.zeros((2, 1)), start=[1, 1]), "2 probabilities that sum to 1"),
        (
            lambda: FiniteMDP(np.zeros((1, 1, 1)), [[0]], features=[1.0]),
            r"features has the shape \(1,\); \(1, F\) is needed",
        ),
        (lambda: LQRVectorEnv(0), "num_envs=0: at least one environment is needed"),
        (lambda: LQRVectorEnv(2).reset(seed=[1, 2, 3]), r"seed=\[1, 2, 3\] has 3 entries; one for each of the 2"),
    ],
)
def test_errors_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_actions_are_refused():
    env = LQRVectorEnv(2)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros((2, 3)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have the shape \(2,\); expected \(2, 3\)"):
        env.step(np.zeros(2))
    arms = FiniteMDPEnv(armed_bandit())
    arms.reset(seed=0)
    for action in (-1, 3):
        with pytest.raises(ValueError, match="allowed are 0 to 2"):
            arms.step(action)
