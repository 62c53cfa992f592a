"""SVG(1), SVG(inf) and MBPG: with the true model of a regulator their gradients are its exact gradient.

A return of the regulator is a quadratic function of all noise together, xi = (start, z_0, zeta_0, z_1, ...), and so is
its derivative by each parameter. The mean of a quadratic function over xi ~ N(0, I_n) is its mean over the 2 n points
+-sqrt(n) e_i (cubature of degree 3), so no sampling error is left: the gradient averaged over these 2 n noise paths
must equal the closed form of ``envs.oracles.lqr`` to rounding.
"""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_pg_ext.algorithms.mbpg import MBPG
from sb3_pg_ext.algorithms.svg1 import SVG1
from sb3_pg_ext.algorithms.svg_inf import SVGInf
from sb3_pg_ext.envs.lqr import LQRVectorEnv, lqr
from sb3_pg_ext.envs.oracles.lqr import lqr_gradient, lqr_objective, lqr_state_value
from sb3_pg_ext.rollout.episodes import Steps
from sb3_pg_ext.testing.environments import Echo

H, S, A, GAMMA = 5, 3, 2, 0.9
STD = np.array([0.3, 0.5])
K = np.array([[0.4, 0.1, -0.2], [0.1, 0.3, 0.2]])
BIAS = np.array([0.2, -0.1])


def regulator(n_envs=1, **changes):
    rng = np.random.default_rng(0)
    settings = {
        "preset": None,
        "A": np.eye(S) + 0.2 * rng.standard_normal((S, S)),
        "B": rng.standard_normal((S, A)),
        "Q": np.diag([1.0, 0.5, 0.2]),
        "R": np.diag([0.3, 0.6]),
        "noise_std": 0.1 * rng.standard_normal((S, S)),
        "start_mean": rng.standard_normal(S),
        "start_std": 0.4,
        "horizon": H,
        "at_horizon": "terminate",
        "gamma": GAMMA,
        "action_bound": 1e6,
    }
    return LQRVectorEnv(n_envs, **{**settings, **changes})


def model_of(cls, env=None, **options):
    """A float64 model with the policy N(-K x + bias, std^2), plain gradient ascent, and the true equations."""
    env = env or regulator()
    settings = {
        "learning_rate": 1.0,
        "gamma": GAMMA,
        "max_grad_norm": float("inf"),
        "vf_coef": 0.0,
        "dynamics": env,
        "policy_kwargs": {"net_arch": [], "optimizer_class": th.optim.SGD},
        "seed": 0,
        "device": "cpu",
    }
    model = cls("MlpPolicy", env, **{**settings, **options})
    model.set_logger(configure(format_strings=[]))
    model.policy.double()
    if hasattr(model, "target_policy"):
        model.target_policy.double()
    with th.no_grad():
        model.policy.action_net.weight.copy_(-th.from_numpy(K))
        model.policy.action_net.bias.copy_(th.from_numpy(BIAS))
        model.policy.log_std.copy_(th.from_numpy(np.log(STD)))
    return model


def cubature(n):
    """2 n points (2 n, n) with the mean and the covariance of N(0, I)."""
    points = np.sqrt(n) * np.eye(n)
    return th.from_numpy(np.concatenate([points, -points]))


def gradient(model, mean):
    """d mean / d (weight, bias, log std), flat."""
    policy = model.policy
    by = th.autograd.grad(mean, [policy.action_net.weight, policy.action_net.bias, policy.log_std])
    return th.cat([part.flatten() for part in by])


def exact(problem, **options):
    g = lqr_gradient(problem, K, STD, BIAS, **options)
    return th.cat([-g.K.flatten(), g.bias, g.log_std])


def noise_paths(problem):
    """Start states (P, S), policy noise (H, P, A) and process noise (H, P, k) of P paths, by cubature."""
    sizes = [problem.start_std.shape[1], H * A, H * problem.noise_shape[0]]
    start, z, zeta = cubature(sum(sizes)).split(sizes, dim=1)
    starts = th.from_numpy(problem.start_state(start.numpy()))
    return starts, z.unflatten(1, (H, A)).transpose(0, 1), zeta.unflatten(1, (H, -1)).transpose(0, 1)


def trajectories(problem, starts, z, zeta):
    """What the environment really does along these paths: states (H + 1, P, S) and actions (H, P, A)."""
    states, actions = [starts], []
    for t in range(H):
        actions.append(-states[-1] @ th.from_numpy(K).T + th.from_numpy(BIAS) + th.from_numpy(STD) * z[t])
        states.append(problem.dynamics(states[-1], actions[-1], zeta[t]))
    return th.stack(states), th.stack(actions)


def close(actual, expected, tolerance=1e-9):
    assert ((actual - expected).norm() / expected.norm()).item() < tolerance


@pytest.mark.parametrize("noise_std", [0.0, 0.3, "factor"])
def test_mbpg_is_exact(noise_std):
    env = regulator() if noise_std == "factor" else regulator(noise_std=noise_std)
    model = model_of(MBPG, env, horizon=H, bootstrap=None)
    starts, z, own = noise_paths(env.problem)
    zeta = th.cat([own, th.zeros(H, len(starts), S).double()], 2)
    close(gradient(model, model.imagined(starts, z, zeta).returns.mean()), exact(env.problem))


def test_mbpg_with_the_exact_value_is_exact():
    """Two imagined steps and V_2 after them are as good as all five."""
    env = regulator()
    model = model_of(MBPG, env, horizon=2)
    starts, z, own = noise_paths(env.problem)
    zeta = th.cat([own, th.zeros(H, len(starts), S).double()], 2)
    value = partial(lqr_value_in_torch, env.problem, t=2)
    with_value = model.imagined(starts, z[:2], zeta[:2], value=value).returns.mean()
    # V_2 is held fixed, so what is missing is the effect of the actions from step 2 on, which start where it ends.
    states, _ = trajectories(env.problem, starts, z, own)
    later = sum(
        GAMMA**t * gradient(model, one_step(model, states[t], z[t], zeta[t], env.problem, t)) for t in range(2, H)
    )
    close(gradient(model, with_value) + later, exact(env.problem))


def lqr_value_in_torch(problem, state, t):
    """V_t, with the gradient in the state that the oracle's own result does not carry."""
    points = th.cat([th.zeros(1, S), th.eye(S), -th.eye(S), *(th.eye(S)[i] + th.eye(S) for i in range(S))]).double()
    v = lqr_state_value(problem, K, STD, points, BIAS, t=t)
    slope = (v[1 : S + 1] - v[S + 1 : 2 * S + 1]) / 2
    square = v[1 : S + 1] + v[S + 1 : 2 * S + 1] - 2 * v[0]  # 2 P_ii
    mixed = v[2 * S + 1 :].reshape(S, S)
    single = slope + square / 2
    hessian = mixed - v[0] - single[:, None] - single[None, :]
    hessian = th.where(th.eye(S).bool(), square, hessian)
    return v[0] + state @ slope + 0.5 * ((state @ hessian) * state).sum(1)


def one_step(model, states, z, zeta, problem, t):
    imagined = model.imagined(states, z[None], zeta[None], value=partial(lqr_value_in_torch, problem, t=t + 1))
    return imagined.returns.mean()


def test_the_value_of_the_tests_is_that_of_the_oracle():
    problem, states = regulator().problem, th.randn(6, S, dtype=th.float64)
    expected = lqr_state_value(problem, K, STD, states, BIAS, t=2)
    th.testing.assert_close(lqr_value_in_torch(problem, states, 2), expected)


def test_svg1_is_exact():
    """From real transitions alone: all noise is inferred. sum_t gamma^t E[grad (r + gamma V_{t+1})] = grad J."""
    env = regulator()
    model = model_of(SVG1, env)
    states, actions = trajectories(env.problem, *noise_paths(env.problem))
    total = 0
    for t in range(H):
        model.target.value = partial(lqr_value_in_torch, env.problem, t=t + 1)
        batch = transitions(states[t], actions[t], states[t + 1])
        total = total + GAMMA**t * gradient(model, model.imagined_values(batch).mean())
    close(total, exact(env.problem))


def transitions(states, actions, next_states, terminated=0.0):
    return {
        "states": states,
        "actions": actions,
        "executed": actions,
        "next_states": next_states,
        "terminated": th.full((len(states),), terminated).double(),
    }


def test_svg1_values_nothing_after_a_terminal_state():
    env = regulator()
    model = model_of(SVG1, env)
    states, actions = trajectories(env.problem, *noise_paths(env.problem))
    model.target.value = lambda s: 1000 + s.sum(1)
    values = model.imagined_values(transitions(states[0], actions[0], states[1], terminated=1.0))
    th.testing.assert_close(values, env.problem.reward(states[0], actions[0], states[1]))


@pytest.mark.parametrize(("log_ratio", "weight"), [(0.0, 1.0), (-1.0, np.exp(-1)), (0.5, np.exp(0.5)), (3.0, 5.0)])
def test_svg1_climbs_the_value_with_truncated_weights(log_ratio, weight):
    """One step of size 1 changes the policy by w grad E[r + gamma V], and leaves V where it was."""
    env = regulator()
    model = model_of(SVG1, env, max_ratio=5.0)
    states, actions = trajectories(env.problem, *noise_paths(env.problem))
    batch = transitions(states[0], actions[0], states[1])
    batch["log_probs"] = model.pathwise.log_prob(states[0], actions[0]).detach() - log_ratio
    batch["rewards"] = env.problem.reward(states[0], actions[0], states[1])
    model.target.value = partial(lqr_value_in_torch, env.problem, t=1)
    expected = weight * gradient(model, model.imagined_values(batch).mean())
    before, value_before = parameters(model), model.pathwise.value(states[0]).detach()
    model.step(batch)
    close(parameters(model) - before, expected, 1e-6)
    th.testing.assert_close(model.pathwise.value(states[0]).detach(), value_before)


def test_svg1_fits_the_value_to_one_step_and_the_target():
    """The value's step goes down w (V(s) - (r + gamma (1 - terminated) V'(s')))^2, with real rewards."""
    env = regulator()
    model = model_of(SVG1, env, vf_coef=1.0)
    states, actions = trajectories(env.problem, *noise_paths(env.problem))
    batch = transitions(states[0], actions[0], states[1])
    batch["terminated"] = (th.arange(len(states[0])) % 2).double()
    batch["log_probs"] = model.pathwise.log_prob(states[0], actions[0]).detach() + 0.3
    batch["rewards"] = th.randn(len(states[0]), dtype=th.float64)
    targets = batch["rewards"] + GAMMA * (1 - batch["terminated"]) * model.target.value(states[1]).detach()
    bias = model.policy.value_net.bias
    errors = model.pathwise.value(states[0]).detach() - targets
    before = bias.detach().clone()
    model.step(batch)
    th.testing.assert_close(bias.detach() - before, -2 * np.exp(-0.3) * errors.mean()[None])


def parameters(model):
    policy = model.policy
    return th.cat([policy.action_net.weight.flatten(), policy.action_net.bias, policy.log_std]).detach().clone()


def rollout_of(model, problem):
    """The noise paths as a rollout of P episodes, as the collector would bring it."""
    states, actions = trajectories(problem, *noise_paths(problem))
    paths = states.shape[1]
    columns = {
        "states": states[:-1],
        "next_states": states[1:],
        "actions": actions,
        "executed": actions,
        "terminated": th.zeros(H, paths).double(),
    }
    places = (np.tile(np.arange(H), paths), np.repeat(np.arange(paths), H))

    class Whole:
        live = th.ones(H, paths, dtype=th.bool)

        def pad(self, flat):
            return flat.unflatten(0, (paths, H)).transpose(0, 1)

    Whole.places = places
    return Whole(), columns


def test_svg_inf_is_exact():
    """From real trajectories alone: one update with step size 1 changes the policy by the exact gradient."""
    env = regulator()
    model = model_of(SVGInf, env)
    before = parameters(model)
    model.improve(*rollout_of(model, env.problem))
    close(parameters(model) - before, exact(env.problem), 1e-6)
    assert model.logger.name_to_value["svg/reconstruction_error"] < 1e-10


def test_svg_inf_cut_to_one_step_sees_each_reward_alone():
    """With pieces of one step and no value, what is left is the gradient of the action's own cost."""
    env = regulator()
    model = model_of(SVGInf, env, horizon=1)
    rollout, columns = rollout_of(model, env.problem)
    pieces = model.segments(rollout, columns)
    assert pieces.live.all()
    assert len(pieces.start) == rollout.live.numel()
    returns, _ = model.replayed(pieces)
    own = sum(
        gradient(model, env.problem.reward(s, model.pathwise(s, z), s).mean())
        for s, z in zip(columns["states"], noise_paths(env.problem)[1], strict=True)
    )
    close(gradient(model, returns.mean()), own / H)


@pytest.mark.parametrize("horizon", [2, 3, 7])
def test_pieces_make_up_the_trajectories(horizon):
    """Wherever the cuts are, every step is in one piece, in order, and reached from its piece's start."""
    env = regulator()
    model = model_of(SVGInf, env, horizon=horizon)
    rollout, columns = rollout_of(model, env.problem)
    cuts = set()
    for _ in range(8):
        pieces = model.segments(rollout, columns)
        cuts.add(tuple(pieces.live.sum(1).tolist()))
        assert pieces.live.sum() == rollout.live.numel()
        _, states = model.replayed(pieces)
        assert (states[1:] - pieces.reached)[pieces.live].abs().max() < 1e-10
        found = pieces.reached[pieces.live]
        real = columns["next_states"].flatten(0, 1)
        distances = (found[:, None] - real[None]).norm(dim=2)
        assert distances.min(0).values.max() == distances.min(1).values.max() == 0
    assert len(cuts) > 1, "the cuts are always at the same places"


class Uneven(Echo):
    """Episodes of 1 to 9 steps."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.length = int(self.np_random.integers(1, 10))
        return result


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize(
    "env", [regulator(2, action_bound=0.3, at_horizon="truncate"), Uneven()], ids=["lqr", "uneven"]
)
@pytest.mark.parametrize("horizon", [None, 3])
def test_real_trajectories_are_repeated_from_inferred_noise(env, n_models, horizon):
    """Through a learned chain of steps, with clipped actions and episodes of several lengths."""
    settings = {"n_steps": 20, "n_models": n_models, "model_net_arch": [8], "seed": 0, "device": "cpu"}
    model = SVGInf("MlpPolicy", env, horizon=horizon, **settings)
    model.learn(60)
    assert model.logger.name_to_value["svg/reconstruction_error"] < 1e-5  # float32; states are as large as 10
    columns = in_float64(model)
    pieces = model.segments(model.rollout, columns)
    assert pieces.live.sum() == len(model.rollout)
    _, states = model.replayed(pieces)
    assert (states[1:] - pieces.reached)[pieces.live].abs().max() < 1e-10


@pytest.mark.parametrize("n_models", [1, 3])
def test_real_transitions_are_repeated_from_inferred_noise(n_models):
    settings = {"n_steps": 20, "gradient_steps": 1, "n_models": n_models, "seed": 0, "device": "cpu"}
    model = SVG1("MlpPolicy", regulator(2, action_bound=0.3), **settings).learn(60)
    assert model.logger.name_to_value["svg/reconstruction_error"] < 1e-5
    columns = in_float64(model)
    model.imagined_values({name: column.flatten(0, 1) for name, column in columns.items()})
    assert model.logger.name_to_value["svg/reconstruction_error"] < 1e-10


def in_float64(model):
    """Widen the model; what it collected last."""
    for module in (model.policy, model.world, getattr(model, "target_policy", model.policy)):
        module.double()
    columns = model._transitions_of(model._steps)
    return {name: column.double() if column.is_floating_point() else column for name, column in columns.items()}


def test_the_update_climbs():
    """Each algorithm, one update on true equations: the objective grows."""
    for cls, options in ((SVGInf, {}), (MBPG, {"horizon": H, "bootstrap": None, "starts": "first", "n_steps": 10})):
        env = regulator(4)
        model = cls(
            "MlpPolicy",
            env,
            learning_rate=0.05,
            dynamics=env,
            gamma=GAMMA,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": []},
            **options,
        )
        before = objective(model, env.problem)
        model.learn(200)
        assert objective(model, env.problem) > before + 0.5 * abs(before) * 0.1, cls


def objective(model, problem):
    net = model.policy.action_net
    std = model.policy.log_std.detach().exp()
    return lqr_objective(problem, -net.weight.detach().double(), std.double(), net.bias.detach().double()).item()


def test_mbpg_fits_the_value_to_the_imagined_return():
    """From their start; the value's own parameters carry none of the policy's gradient."""
    env = regulator()
    model = model_of(MBPG, env, horizon=2, vf_coef=1.0)
    starts, z, own = noise_paths(env.problem)
    zeta = th.cat([own, th.zeros(H, len(starts), S).double()], 2)
    imagined = model.imagined(starts, z[:2], zeta[:2], value=model.target.value)
    expected = gradient(model, imagined.returns.mean())
    errors = (model.pathwise.value(starts) - imagined.returns).detach()
    before, bias = parameters(model), model.policy.value_net.bias.detach().clone()
    model.step(model.imagined(starts, z[:2], zeta[:2], value=model.target.value))
    close(parameters(model) - before, expected, 1e-6)
    th.testing.assert_close(model.policy.value_net.bias.detach() - bias, -2 * errors.mean()[None])


# Where the transitions come from


def test_transitions_are_what_happened():
    """Next states across ends and time limits; the environment shows another number in every step."""
    for truncates in (False, True):
        seen = []

        class Recorded(Echo):
            def step(self, action, seen=seen):
                before = self._last
                obs, reward, terminated, truncated, info = super().step(action)
                seen.append((before, np.array(action), obs, reward, terminated))
                return obs, reward, terminated, truncated, info

            def _observe(self):
                self._last = super()._observe()
                return self._last

        env = Recorded("Box", length=5, truncates=truncates)
        model = SVG1("MlpPolicy", env, n_steps=12, gradient_steps=1, seed=0, device="cpu")
        model.learn(36)
        kept = model.transitions.columns
        assert len(model.transitions) == len(seen) == 36
        columns = zip(*seen, strict=True)
        for name, column in zip(("states", "executed", "next_states", "rewards", "terminated"), columns, strict=True):
            np.testing.assert_allclose(kept[name].numpy(), np.array(column, np.float32), rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(kept["first"].numpy(), np.arange(36) % 5 == 0)
        np.testing.assert_array_equal(~kept["continues"].numpy(), np.arange(36) % 5 == 4)
        assert kept["terminated"].sum().item() == (0 if truncates else 7)


def test_log_probs_are_those_of_the_policy_that_acted():
    model = SVG1("MlpPolicy", Echo("Box"), n_steps=16, gradient_steps=3, seed=0, device="cpu")
    model.learn(16)
    kept = model.transitions.columns
    now = model.pathwise.log_prob(kept["states"], kept["actions"])
    assert (now - kept["log_probs"]).abs().max() > 1e-4, "the policy has changed since"
    fresh = SVG1("MlpPolicy", Echo("Box"), n_steps=16, gradient_steps=3, seed=0, device="cpu")
    th.testing.assert_close(fresh.pathwise.log_prob(kept["states"], kept["actions"]), kept["log_probs"])


@pytest.mark.parametrize("squash", [False, True])
def test_executed_actions_and_their_noise(squash):
    """Noise is inferred before clipping or squashing, and the model is given what the environment is given."""
    model = SVG1(
        "MlpPolicy",
        Echo("Box"),
        use_sde=squash,
        policy_kwargs={"squash_output": squash, "log_std_init": 0.5},
        n_steps=64,
        gradient_steps=1,
        seed=0,
        device="cpu",
    )
    model.learn(64)
    kept = model.transitions.columns
    low, high = th.tensor([-1.0, 0.0]), th.tensor([1.0, 3.0])
    expected = low + (kept["actions"] + 1) / 2 * (high - low) if squash else kept["actions"].clamp(low, high)
    th.testing.assert_close(kept["executed"], expected)
    assert squash or (kept["actions"] != kept["executed"]).any(), "nothing was clipped"
    z = model.pathwise.infer_noise(kept["states"], kept["actions"])
    inside = kept["actions"].abs().max(1).values < 0.999 if squash else slice(None)
    th.testing.assert_close(model.pathwise(kept["states"], z)[inside], kept["actions"][inside], rtol=1e-4, atol=1e-5)
    assert z.abs().max() < 6


@pytest.mark.parametrize("cls", [SVG1, SVGInf, MBPG])
@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_actions_without_a_derivative_are_refused(cls, action):
    with pytest.raises(ValueError, match=r"Box action spaces only"):
        cls("MlpPolicy", Echo(action))


@pytest.mark.parametrize("cls", [SVG1, SVGInf, MBPG])
def test_functions_of_the_user_are_asked_for_again(cls, tmp_path):
    env = regulator()
    options = {} if cls is SVGInf else {"gradient_steps": 1}
    model = cls("MlpPolicy", env, n_steps=20, dynamics=env, seed=0, device="cpu", **options).learn(20)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", regulator())
    obs = np.ones((2, S), np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"dynamics=None.*load\(path, env, dynamics="):
        loaded.learn(20)
    cls.load(tmp_path / "model", regulator(), dynamics=env).learn(20)


def test_storage_that_forgets_the_ends_is_refused():
    with pytest.raises(TypeError, match=r"rollout_buffer_class=.*StepsWithEnds"):
        SVG1("MlpPolicy", regulator(), rollout_buffer_class=Steps)


# What is learned


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_regulator_of_mushroom_is_solved_with_a_learned_model(seed):
    """The optimum is -1.31411; a published natural actor-critic reaches -1.314 within 250,000 steps."""
    model = SVGInf(
        "MlpPolicy",
        gym.make("LQR-v0"),
        learning_rate=lambda progress: 0.03 * progress,
        n_steps=100,
        n_epochs=3,
        buffer_size=5_000,
        gamma=0.9,
        policy_kwargs={"net_arch": [], "log_std_init": -1.0},
        seed=seed,
        device="cpu",
    )
    model.learn(20_000)
    net = model.policy.action_net
    reached = lqr_objective(lqr(), -net.weight.detach().double(), 0.0, net.bias.detach().double())
    assert -1.33 <= reached.item() <= -1.31411


# The user's own knowledge


@pytest.mark.filterwarnings("ignore:.* is off by")  # they are not those of the regulator
def test_functions_of_the_user_take_the_place_of_models():
    model = MBPG(
        "MlpPolicy",
        regulator(),
        dynamics=lambda obs, action: 2 * obs,
        reward_fn=lambda obs, action, following: following[:, 0] - obs[:, 0],
        termination_fn=lambda obs, action, following: th.full((len(obs),), 0.25),
        horizon=3,
        bootstrap=None,
        n_steps=10,
        gradient_steps=1,
        gamma=GAMMA,
        seed=0,
        device="cpu",
    ).learn(10)
    assert len(model.world.learned) == 0
    start = th.tensor([[1.0, 0, 0], [-3.0, 0, 0]])
    weight = GAMMA * 0.75
    th.testing.assert_close(model.imagined_from(start).returns, start[:, 0] * (1 + 2 * weight + 4 * weight**2))


@pytest.mark.parametrize("starts", ["visited", "first"])
def test_imagined_trajectories_begin_where_they_are_told_to(starts):
    model = MBPG("MlpPolicy", Echo(length=5), starts=starts, n_steps=20, gradient_steps=2, seed=0, device="cpu")
    begun, imagined_from = [], model.imagined_from
    model.imagined_from = lambda start: begun.append(start) or imagined_from(start)
    model.learn(20)
    kept = model.transitions.columns
    allowed = kept["states"][kept["first"]] if starts == "first" else kept["states"]
    assert len(allowed) == (4 if starts == "first" else 20)
    assert {tuple(row) for row in th.cat(begun).tolist()} == {tuple(row) for row in allowed.tolist()}


@pytest.mark.parametrize(
    ("argument", "value"),
    [("horizon", 0), ("n_models", 0), ("model_net_arch", "64"), ("model_net_arch", [0]), ("holdout", 1.0), ("tau", 2.0),
     ("bootstrap", "q"), ("starts", "last"), ("reward_fn", 3), ("dynamics", 3), ("model_learning_rate", -1.0)],
)  # fmt: skip
def test_senseless_arguments_are_named(argument, value):
    with pytest.raises((ValueError, TypeError), match=argument):
        MBPG("MlpPolicy", regulator(), **{argument: value})


@pytest.mark.parametrize(("observation", "policy"), [("image", "MlpPolicy"), ("dict", MultiInputActorCriticPolicy)])
def test_observations_that_are_no_vectors_are_refused(observation, policy):
    with pytest.raises(ValueError, match=r"observation_space=.*needs vectors"):
        SVG1(policy, Echo("Box", observation))


# Functions of the user


@pytest.mark.parametrize("cls", [SVG1, SVGInf, MBPG])
@pytest.mark.parametrize(
    ("hook", "function", "shape"),
    [
        ("reward_fn", lambda obs, action, _: -(obs**2).sum(1, keepdim=True), r"reward_fn gave .*\(\d+, 1\)"),
        ("reward_fn", lambda obs, action, _: -(action**2).mean(), r"reward_fn gave .*\(\)"),
        ("dynamics", lambda obs, action: obs[:, :1], r"dynamics gave .*\(\d+, 1\)"),
    ],
    ids=["column", "scalar", "dynamics"],
)
def test_what_functions_give_must_have_the_shape_of_the_batch(cls, hook, function, shape):
    model = cls("MlpPolicy", "Pendulum-v1", n_steps=200, seed=0, device="cpu", **{hook: function})
    with pytest.raises(ValueError, match=shape):
        model.learn(800)


@pytest.mark.parametrize("cls", [SVG1, SVGInf, MBPG])
def test_known_equations_do_not_know_normalised_observations(cls):
    env = VecNormalize(make_vec_env("DifferentiablePendulum-v0", 1))
    model = cls("MlpPolicy", env, n_steps=64, device="cpu", dynamics=gym.make("DifferentiablePendulum-v0"))
    with pytest.raises(ValueError, match="dynamics and reward_fn in an env with VecNormalize"):
        model.learn(64)


@pytest.mark.parametrize("cls", [SVG1, SVGInf, MBPG])
def test_there_are_no_advantages(cls):
    with pytest.raises(ValueError, match=r"gae_lambda=0\.9"):
        cls("MlpPolicy", "Pendulum-v1", gae_lambda=0.9)
