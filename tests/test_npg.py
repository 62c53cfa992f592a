"""NPG: its step against dense algebra and exact natural gradients, its options, and what it learns."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import nn

import sb3_pg_ext.envs
from sb3_pg_ext.algorithms.npg import NPG
from sb3_pg_ext.bases import value_regression
from sb3_pg_ext.bases.actor_jacobian import actor_jacobian, actor_scores, family_of, parameters_of
from sb3_pg_ext.bases.value_regression import fit_values, frozen, fuse_adam
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.envs.garnet import garnet
from sb3_pg_ext.envs.lqr import LQR
from sb3_pg_ext.functional.jacobian import AutogradJacobian, MLPJacobian, flatten
from sb3_pg_ext.functional.returns import standardised
from sb3_pg_ext.rollout.guards import NonFiniteError
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing.environments import Echo

sb3_pg_ext.envs.register_envs()
BOX, DISCRETE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
ACTIONS = {"Box": BOX, "Discrete": DISCRETE, "MultiDiscrete": spaces.MultiDiscrete([2, 3])}
ACTIONS["MultiBinary"] = spaces.MultiBinary(3)
SMALL = {"n_steps": 64, "device": "cpu", "seed": 0, "policy_kwargs": {"net_arch": [8]}}


@pytest.fixture(autouse=True)
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


def echo(action="Discrete", **kwargs):
    return Echo(ACTIONS[action], kwargs.pop("observation", "vector"), **kwargs)


def collected(model, n=1):
    """The model with a rollout that it has not learned from."""
    _, callback = model._setup_learn(n)
    model.collect_rollouts(model.env, callback)
    return model


def actor(model):
    return actor_jacobian(model.policy, model.rollout.observations)


def logged(model):
    return {k.removeprefix("train/"): v for k, v in model.logger.name_to_value.items() if k.startswith("train/")}


def advantages_of(model):
    with th.no_grad():
        values = model.policy.predict_values(model.rollout.observations).flatten()
    return standardised(model.gae(model.rollout, values)[0])


def step_of(model):
    """theta after the update minus theta before."""
    parameters = actor(model).parameters
    before = flatten(parameters).detach().clone()
    model.train()
    return (flatten(parameters) - before).detach().double()


def dense(model, index=None):
    """F (of the steps ``index``), the scores of all steps, and their advantages."""
    rollout, J = model.rollout, actor(model)
    eta, family, n = J.eta, family_of(model.policy.action_dist), len(J.eta)
    rows = [J.pull(th.eye(n)[b].unsqueeze(1) * e) for b in range(n) for e in th.eye(eta.shape[1])]
    full = th.stack(rows).reshape(n, eta.shape[1], -1).double()
    metric = th.stack([family.fisher(eta)(e.expand(n, -1)) for e in th.eye(eta.shape[1])], 2).double()
    chosen = slice(None) if index is None else index
    F = th.einsum("bip,bij,bjq->pq", full[chosen], metric[chosen], full[chosen]) / len(full[chosen])
    scores = th.einsum("bip,bi->bp", full, family.score(eta, rollout.actions).double())
    return F, scores, advantages_of(model).double()


def solved(F, g, damping):
    return th.linalg.solve(F + damping * th.eye(len(F)).double(), g)


# --- the step


@pytest.mark.parametrize("action", ACTIONS)
def test_step_is_the_damped_natural_gradient_of_the_asked_kl_divergence(action):
    model = collected(NPG("MlpPolicy", echo(action), cg_max_steps=200, cg_tolerance=1e-6, target_kl=1e-4, **SMALL))
    F, scores, advantages = dense(model)
    x = solved(F, scores.T @ advantages / len(advantages), 0.1)
    expected = math.sqrt(2 * 1e-4 / (x @ F @ x)) * x
    step = step_of(model)
    assert (step - expected).norm() <= 2e-3 * expected.norm()
    log = logged(model)
    assert log["kl"] == pytest.approx(1e-4, rel=0.05)
    assert log["kl_asked"] == pytest.approx(1e-4, rel=1e-5)
    assert log["step_norm"] == pytest.approx(expected.norm().item(), rel=1e-2)
    assert log["cg_residual"] <= 1e-6
    assert 1 <= log["cg_iterations"] <= 200


@pytest.mark.parametrize("action", ACTIONS)
def test_compatible_step_is_the_regression_on_the_actions_taken(action):
    model = collected(NPG("MlpPolicy", echo(action), natural="compatible", step_rule="fixed", step_size=0.01, **SMALL))
    _, scores, advantages = dense(model)
    x = solved(scores.T @ scores / len(scores), scores.T @ advantages / len(scores), 0.1)
    assert (step_of(model) - 0.01 * x).norm() <= 1e-3 * (0.01 * x).norm()


def test_fixed_step():
    options = {"step_rule": "fixed", "step_size": 0.02, "cg_max_steps": 200, "cg_damping": 0.3, "cg_tolerance": 1e-6}
    model = collected(NPG("MlpPolicy", echo(), **options, **SMALL))
    F, scores, advantages = dense(model)
    x = solved(F, scores.T @ advantages / len(scores), 0.3)
    assert (step_of(model) - 0.02 * x).norm() <= 2e-3 * (0.02 * x).norm()
    assert logged(model)["kl_asked"] == pytest.approx((0.5 * 0.02**2 * x @ F @ x).item(), rel=1e-2)


def test_truncated_solve_still_has_the_kl_divergence_asked_for():
    model = collected(NPG("MlpPolicy", echo("Box"), cg_max_steps=2, cg_damping=1.0, target_kl=1e-4, **SMALL))
    model.train()
    log = logged(model)
    assert log["cg_iterations"] == 2
    assert log["cg_residual"] > 1e-3
    assert log["kl"] == pytest.approx(1e-4, rel=0.05)


def test_entropy_bonus_moves_both_natural_gradients_the_same_way():
    """With no reward the entropy alone moves the policy, upwards."""
    for natural in ("fisher", "compatible"):
        model = NPG("MlpPolicy", echo(reward=0.0), natural=natural, ent_coef=1.0, n_steps=512, device="cpu", seed=0)
        with th.no_grad():
            model.policy.action_net.bias.copy_(th.tensor([1.0, 0.0, -1.0]))
        collected(model)
        model.normalize_advantage = False
        for p in model.policy.value_net.parameters():
            nn.init.zeros_(p)
        before = model.policy.get_distribution(model.rollout.observations).entropy().mean()
        model.train()
        after = model.policy.get_distribution(model.rollout.observations).entropy().mean()
        assert after > before + 0.02, natural


def test_nothing_to_learn_moves_nothing():
    model = NPG("MlpPolicy", echo(reward=0.0), normalize_advantage=False, **SMALL)
    for p in model.policy.value_net.parameters():
        nn.init.zeros_(p)
    collected(model)
    assert (step_of(model) == 0).all()
    assert logged(model)["kl"] == pytest.approx(0, abs=1e-6)  # rounding


def test_subsample_is_of_the_curvature_and_not_of_the_gradient():
    options = {"fvp_subsample": 0.25, "step_rule": "fixed", "cg_max_steps": 200, "cg_tolerance": 1e-6}
    model = collected(NPG("MlpPolicy", echo(), **options, **SMALL))
    state = model.rng.bit_generator.state
    index = model._sample(model.rollout)
    model.rng.bit_generator.state = state
    assert len(index) == 16 == len(set(index.tolist()))
    F, scores, advantages = dense(model, index)
    expected = 0.1 * solved(F, scores.T @ advantages / 64, 0.1)
    assert (step_of(model) - expected).norm() <= 2e-3 * expected.norm()


@pytest.mark.parametrize("share", [1e-9, 0.3, 1.0])
def test_subsample_of_any_size(share):
    for natural in ("fisher", "compatible"):
        NPG("MlpPolicy", echo(), natural=natural, fvp_subsample=share, **SMALL).learn(64)


# --- exact natural gradients

N_STATES = 5
TASK = {"n_states": N_STATES, "n_actions": 3, "horizon": 10, "at_horizon": "terminate", "gamma": 0.9}


def linear(env, rounds, **kwargs):
    """A linear policy without a critic worth the name, on 16 copies of ``env`` for ``rounds`` steps each."""
    options = {"gae_lambda": 1.0, "normalize_advantage": False, "cg_max_steps": 60, "cg_tolerance": 1e-6, **kwargs}
    model = NPG("MlpPolicy", env, n_steps=rounds, seed=0, device="cpu", policy_kwargs={"net_arch": []}, **options)
    for p in model.policy.value_net.parameters():
        nn.init.zeros_(p)
    return model


def directions(model, n):
    """n independent estimates of F^-1 g, (n, P), all at the same parameters."""
    found = []
    for _ in range(n):
        collected(model)
        model.policy.set_training_mode(True)
        found.append(getattr(model, f"_{model.natural}")(model.rollout, *pieces(model)).double())
    return th.stack(found)


def pieces(model):
    with th.no_grad():
        values = model.policy.predict_values(model.rollout.observations).flatten()
    return model.gae(model.rollout, values)[0], actor(model)


@pytest.mark.parametrize("natural", ["fisher", "compatible"])
def test_direction_on_garnet(natural):
    """Whole episodes, no critic: g is E[sum_t score_t G_t] / H, F is that of the states visited."""
    mdp = garnet(**TASK)
    env = as_vec_env(gym.make_vec("Garnet-v0", 16, vectorization_mode="vector_entry_point", **TASK))
    model = linear(env, 100, gamma=0.9, natural=natural)
    with th.no_grad():
        model.policy.action_net.weight.normal_(std=0.5, generator=th.Generator().manual_seed(0))
    found = directions(model, 30)
    layer = model.policy.action_net
    logits = (layer.weight.T + layer.bias).detach().double()
    features = th.cat([th.eye(N_STATES).double(), th.ones(N_STATES, 1).double()], 1)  # one-hot state, and the bias
    Z = th.einsum("sf,ab->sabf", features, th.eye(3).double())
    Z = th.cat([Z[..., :-1].flatten(2), Z[..., -1]], 2).reshape(N_STATES * 3, -1)  # d logits / d (W, b)
    F = Z.T @ oracles.mdp_fisher(mdp, logits, discount_states=False) @ Z
    g = Z.T @ oracles.mdp_gradient(mdp, logits, discount_states=False).flatten() / 10
    exact = solved(F, g, 0.1)
    assert th.cosine_similarity(found.mean(0), exact, dim=0) > 0.995
    error = (found.mean(0) - exact).abs()
    assert (error <= 4.5 * found.std(0) / math.sqrt(len(found)) + 0.01 * exact.norm()).all()


def test_direction_on_lqr():
    problem = LQR(
        A=[[1.0, 0.1], [0.0, 0.9]],
        B=np.eye(2),
        Q=np.eye(2),
        R=np.eye(2),
        noise_std=0.1,
        start_std=0.5,
        horizon=8,
        at_horizon="terminate",
        gamma=0.9,
    )
    from sb3_pg_ext.envs.lqr import LQRVectorEnv

    env = as_vec_env(LQRVectorEnv(num_envs=16, **{k: getattr(problem, k) for k in LQR.__dataclass_fields__}))
    model = linear(env, 80, gamma=0.9, cg_damping=0.01)
    K, std = th.tensor([[0.4, 0.1], [0.0, 0.3]]), th.tensor([0.4, 0.6])
    with th.no_grad():
        model.policy.action_net.weight.copy_(-K)
        model.policy.action_net.bias.zero_()
        model.policy.log_std.copy_(std.log())
    found = directions(model, 40)
    F = oracles.lqr_fisher(problem, K, std, th.zeros(2), discount_states=False)
    g = oracles.lqr_gradient(problem, K, std, th.zeros(2), discount_states=False)
    sign = th.cat([-th.ones(4), th.ones(4)]).double()  # the layer's weight is -K
    exact = solved(sign * F * sign.unsqueeze(1), th.cat([-g.K.flatten(), g.bias, g.log_std]) / 8, 0.01)
    assert th.cosine_similarity(found.mean(0), exact, dim=0) > 0.98
    error = (found.mean(0) - exact).abs()
    assert (error <= 4.5 * found.std(0) / math.sqrt(len(found)) + 0.01 * exact.norm()).all()


# --- nets and spaces


SQUASHED = {"policy_kwargs": {"squash_output": True}}


class Odd(nn.Module):
    """An activation without closed form."""

    def forward(self, x):
        return x * th.sigmoid(x)


@pytest.mark.parametrize(
    ("env", "policy", "options", "kind"),
    [
        (lambda: echo(), "MlpPolicy", {}, MLPJacobian),
        (lambda: echo("Box"), "MlpPolicy", {"policy_kwargs": {"activation_fn": nn.ReLU}}, MLPJacobian),
        (lambda: echo("Box"), "MlpPolicy", {"policy_kwargs": {"activation_fn": Odd}}, AutogradJacobian),
        (lambda: echo("Box"), "MlpPolicy", {"use_sde": True}, AutogradJacobian),
        (
            lambda: echo("Box"),
            "MlpPolicy",
            {"use_sde": True, "policy_kwargs": {"squash_output": True}},
            AutogradJacobian,
        ),
        (lambda: echo(observation="dict"), "MultiInputPolicy", {}, AutogradJacobian),
        (lambda: echo(observation="image"), "CnnPolicy", {}, AutogradJacobian),
    ],
    ids=["mlp", "relu", "odd", "gsde", "squashed", "dict", "image"],
)
def test_any_net(env, policy, options, kind):
    """The asked KL divergence is met, by whichever path."""
    model = collected(
        NPG(policy, env(), n_steps=32, target_kl=1e-5, device="cpu", seed=0, n_critic_updates=1, **options)
    )
    assert type(actor(model)) is kind
    model.train()
    assert logged(model)["kl"] == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize("options", [{"use_sde": True}, {"policy_kwargs": {"activation_fn": Odd}}, {}], ids=str)
def test_scores_of_any_net(options):
    model = collected(NPG("MlpPolicy", echo("Box"), n_steps=8, device="cpu", seed=0, natural="compatible", **options))
    J, obs, actions = actor(model), model.rollout.observations, model.rollout.actions
    expected = [
        flatten(th.autograd.grad(model.policy.get_distribution(s).log_prob(a), J.parameters, materialize_grads=True))
        for s, a in zip(obs.split(1), actions.split(1), strict=True)
    ]
    th.testing.assert_close(actor_scores(model.policy, obs, actions, J), th.stack(expected), rtol=1e-4, atol=1e-5)


def test_both_paths_give_the_same_step():
    """A hook that does nothing keeps the second policy off the closed form."""
    steps = []
    for hidden in (False, True):
        model = collected(NPG("MlpPolicy", echo("Box"), cg_max_steps=8, cg_tolerance=0.0, **SMALL))
        if hidden:
            model.policy.register_forward_hook(lambda *_: None)
        assert isinstance(actor(model), AutogradJacobian if hidden else MLPJacobian)
        before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
        model.train()
        steps.append({name: p.detach() - before[name] for name, p in model.policy.named_parameters()})
    for name, step in steps[0].items():
        th.testing.assert_close(step, steps[1][name], rtol=2e-2, atol=2e-5)


def test_frozen_layers_stay():
    model = NPG("MlpPolicy", echo("Box"), **SMALL)
    for p in model.policy.mlp_extractor.policy_net.parameters():
        p.requires_grad_(False)
    before = [p.clone() for p in model.policy.mlp_extractor.policy_net.parameters()]
    weight = model.policy.action_net.weight.clone()
    model.learn(64)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.mlp_extractor.policy_net.parameters(), strict=True))
    assert not any(p.requires_grad for p in model.policy.mlp_extractor.policy_net.parameters())
    assert not th.equal(weight, model.policy.action_net.weight)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_extractor_belongs_to_the_actor(shared):
    """The critic's regression leaves it alone; an extractor of the critic's own is trained."""
    after = []
    for learning_rate in (0.0, 0.1):
        kwargs = {"share_features_extractor": shared, "features_extractor_kwargs": {"features_dim": 8}}
        model = NPG(
            "CnnPolicy",
            echo(observation="image"),
            learning_rate,
            n_steps=32,
            seed=0,
            device="cpu",
            policy_kwargs=kwargs,
        )
        before = flatten(model.policy.pi_features_extractor.parameters()).clone()
        model.learn(32)
        after.append(flatten(model.policy.pi_features_extractor.parameters()))
        assert not th.equal(before, after[-1])
        critic = flatten(model.policy.vf_features_extractor.parameters())
        assert th.equal(critic, after[-1]) == shared
    assert th.equal(*after)
    assert all(p.requires_grad for p in model.policy.parameters())


class Strange(Distribution):
    proba_distribution_net = proba_distribution = log_prob = entropy = sample = mode = None
    actions_from_params = log_prob_from_params = None


def test_unknown_distribution_is_refused():
    class StrangePolicy(NPG.policy_aliases["MlpPolicy"]):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.action_dist = Strange()

    with pytest.raises(TypeError, match=r"Strange.*CategoricalDistribution"):
        NPG(StrangePolicy, echo(), **SMALL)


def test_parameters_of_an_actor_that_is_frozen_altogether():
    model = collected(NPG("MlpPolicy", echo(), **SMALL))
    for p in model.policy.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter"):
        actor(model)


@pytest.mark.parametrize("action", ACTIONS)
def test_parameters_of_sb3_distributions(action):
    """By what they are for: the log-probabilities of eta are those of the policy."""
    model = collected(NPG("MlpPolicy", echo(action), **SMALL))
    distribution = model.policy.get_distribution(model.rollout.observations)
    eta = parameters_of(distribution).detach().requires_grad_()
    (score,) = th.autograd.grad(log_prob_of(action, eta, model.rollout.actions).sum(), eta)
    th.testing.assert_close(family_of(distribution).score(eta.detach(), model.rollout.actions), score)
    th.testing.assert_close(
        log_prob_of(action, eta, model.rollout.actions), distribution.log_prob(model.rollout.actions)
    )


def log_prob_of(action, eta, actions):
    if action == "Box":
        mean, log_std = eta.chunk(2, 1)
        return th.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(1)
    if action == "MultiBinary":
        return th.distributions.Bernoulli(logits=eta).log_prob(actions).sum(1)
    parts = eta.split((3,) if action == "Discrete" else (2, 3), 1)
    columns = actions.reshape(len(eta), -1).unbind(1)
    return sum(th.distributions.Categorical(logits=x).log_prob(a) for x, a in zip(parts, columns, strict=True))


# --- the critic


@pytest.mark.parametrize("batch_size", [None, 24, 1000])
def test_both_regressions_give_the_same_critic(monkeypatch, batch_size):
    fitted = []
    for closed in (True, False):
        model = collected(NPG("MlpPolicy", echo("Box"), learning_rate=1e-2, max_grad_norm=0.3, vf_coef=0.7, **SMALL))
        targets = th.linspace(-2, 3, 64)
        if not closed:
            monkeypatch.setattr(value_regression, "_is_plain_critic", lambda policy: False)
        with frozen(actor(model).parameters):
            loss = fit_values(model, model.rollout, targets, 3, batch_size)
        fitted.append((loss, flatten(model.policy.parameters()).detach()))
    th.testing.assert_close(*fitted, rtol=1e-4, atol=1e-5)


def test_regression_fits_and_moves_the_critic_alone():
    model = collected(NPG("MlpPolicy", echo("Box"), learning_rate=1e-2, max_grad_norm=10.0, **SMALL))
    before = flatten(actor(model).parameters).detach().clone()
    targets = model.rollout.observations.flatten(1)[:, 0] * 2 + 1
    with frozen(actor(model).parameters):
        first = fit_values(model, model.rollout, targets, 1, 16)
        last = fit_values(model, model.rollout, targets, 100, 16)
    assert last < 0.2 * first
    assert th.equal(before, flatten(actor(model).parameters))


def test_a_critic_of_its_own_making_takes_autograd():
    class Doubled(NPG.policy_aliases["MlpPolicy"]):
        def predict_values(self, obs):
            return 2 * super().predict_values(obs)

    model = collected(NPG(Doubled, echo("Box"), **SMALL))
    assert not value_regression._is_plain_critic(model.policy)
    model.train()


def test_fused_adam_is_adam():
    results = []
    for fused in (False, True):
        p = nn.Parameter(th.linspace(-1, 1, 7))
        adam = th.optim.Adam([p], lr=1e-2, eps=1e-5)
        if fused:
            fuse_adam(adam)
            assert adam.param_groups[0]["fused"] is True
        for k in range(5):
            p.grad = th.sin(k + p.detach())
            adam.step()
        results.append(p.detach())
    th.testing.assert_close(*results)


def test_who_chose_an_implementation_of_adam_keeps_it():
    for choice in ({"foreach": True}, {"fused": False}):
        adam = th.optim.Adam([nn.Parameter(th.zeros(2))], **choice)
        fuse_adam(adam)
        assert not adam.param_groups[0]["fused"]
    fuse_adam(th.optim.SGD([nn.Parameter(th.zeros(2))]))


# --- arguments and accidents


@pytest.mark.parametrize(
    "argument",
    [
        {"natural": "Fisher"},
        {"step_rule": "line"},
        {"target_kl": 0.0},
        {"target_kl": math.nan},
        {"step_size": -1.0},
        {"cg_max_steps": 0},
        {"cg_damping": -0.1},
        {"cg_tolerance": -1e-3},
        {"fvp_subsample": 0.0},
        {"fvp_subsample": 1.5},
        {"n_critic_updates": 0},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_bad_arguments_are_named(argument):
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        NPG("MlpPolicy", echo(), **{**SMALL, **argument})


def test_least_squares_need_a_ridge():
    NPG("MlpPolicy", echo(), cg_damping=0.0, **SMALL)
    with pytest.raises(ValueError, match="cg_damping=0"):
        NPG("MlpPolicy", echo(), natural="compatible", cg_damping=0.0, **SMALL)


def test_scores_that_do_not_fit_into_memory_are_refused_at_once():
    net = {"policy_kwargs": {"net_arch": [1024, 1024]}}
    with pytest.raises(ValueError, match=r"natural='compatible'.*4096 steps"):
        NPG("MlpPolicy", echo(), natural="compatible", n_steps=4096, device="cpu", **net)
    NPG("MlpPolicy", echo(), natural="compatible", n_steps=4096, fvp_subsample=0.01, device="cpu", **net)


@pytest.mark.parametrize("natural", ["fisher", "compatible"])
def test_a_step_that_breaks_the_policy_is_taken_back(natural):
    model = collected(NPG("MlpPolicy", echo("Box"), natural=natural, step_rule="fixed", step_size=1e30, **SMALL))
    before = flatten(model.policy.parameters()).detach().clone()
    with pytest.raises(NonFiniteError, match="step_size"):
        model.train()
    assert th.equal(before, flatten(model.policy.parameters()))
    model.step_size = 0.01
    model.train()
