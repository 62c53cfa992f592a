"""The gradient laboratory: right estimators agree, wrong ones are refuted, and its own numbers are what they claim."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_pg_ext import registry
from sb3_pg_ext.algorithms.es import ES
from sb3_pg_ext.algorithms.fdpg import FDPG
from sb3_pg_ext.algorithms.npg import NPG
from sb3_pg_ext.algorithms.reinforce import REINFORCE
from sb3_pg_ext.algorithms.rwr import RWR
from sb3_pg_ext.bases.actor_jacobian import actor_jacobian, actor_scores
from sb3_pg_ext.bases.policy_search import PolicySearchBase
from sb3_pg_ext.diagnostics import laboratory, statistics
from sb3_pg_ext.diagnostics.critics import exact_critic
from sb3_pg_ext.diagnostics.estimates import (
    at_another_policy,
    one_iteration,
    one_update,
    with_exact_slope,
    with_exact_value,
)
from sb3_pg_ext.diagnostics.laboratory import Job, asked_for, jobs, measure, model_on
from sb3_pg_ext.diagnostics.names import TESTBED_NAMES
from sb3_pg_ext.diagnostics.records import from_json, to_json
from sb3_pg_ext.diagnostics.statistics import deviation, direction_deviation, towards_the_limit
from sb3_pg_ext.diagnostics.targets import TARGETS
from sb3_pg_ext.diagnostics.testbeds import Net, RegulatorBed, actor_parameters, net_of, testbed
from sb3_pg_ext.envs import oracles
from sb3_pg_ext.experiments import gradient_report, variance_figure
from sb3_pg_ext.experiments.cli import main
from sb3_pg_ext.experiments.variance_figure import comparable, scatter
from sb3_pg_ext.functional import returns as R
from sb3_pg_ext.spec import AlgorithmSpec, GradientClaim

ROOT = Path(__file__).resolve().parent.parent
ACTOR_BEDS = tuple(name for name in TESTBED_NAMES if name != "search")
every_bed = pytest.mark.parametrize("bed", ACTOR_BEDS)
PLAIN = GradientClaim("plain", {"baseline": "mean", "discount_states": True})
USUAL = {"target": "gradient_undiscounted_states", "mean_over": "steps"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


def claims() -> dict[str, AlgorithmSpec]:
    return {key: spec for key, spec in registry.available().items() if spec.claims}


def spec_of(cls: type, *of: GradientClaim) -> AlgorithmSpec:
    if issubclass(cls, PolicySearchBase):
        return AlgorithmSpec(cls, family="policy_search", paper="none", policies=("LinearPolicy",), claims=of)
    return AlgorithmSpec(cls, family="on_policy", paper="none", claims=of)


def found(cls: type, claim: GradientClaim, bed: str, samples: tuple[int, ...] = (64,), repeats: int = 100) -> Any:
    return measure(cls.__name__, spec_of(cls, claim), claim, testbed(bed), samples, repeats)


# Right estimators


def test_our_algorithms_make_claims():
    assert {"a2c", "es", "fdpg", "ispg", "mbpg", "npg", "ppo_penalty", "qac", "reinforce", "rwr"} <= set(claims())
    assert {"svg0", "svg1", "svg_inf"} <= set(claims())
    assert len(claims()["reinforce"].claims) >= 13


@pytest.mark.parametrize("job", jobs(claims(), samples=(48, 96), repeats=40), ids=str)
def test_every_claim_agrees(job):
    measured = job()
    assert not measured.refuted, measured
    assert measured.agrees or job.claim.holds == "direction"


# Wrong ones


class Backwards(REINFORCE):
    def descend(self, **losses: th.Tensor) -> None:
        super().descend(policy=-losses.pop("policy"), **losses)


class TenPerCentTooLong(REINFORCE):
    def descend(self, **losses: th.Tensor) -> None:
        super().descend(policy=1.1 * losses.pop("policy"), **losses)


class WithoutGamma(REINFORCE):
    def update(self, rollout: Any) -> None:
        gamma, self.gamma = self.gamma, 1.0
        super().update(rollout)
        self.gamma = gamma


class OneComponentLost(REINFORCE):
    def update(self, rollout: Any) -> None:
        before = self.policy.action_net.bias.detach().clone()
        super().update(rollout)
        with th.no_grad():
            self.policy.action_net.bias[0] = before[0]


class SeesItself(REINFORCE):
    """Its baseline is the mean of all episodes, the one that it is compared with included."""

    def _monte_carlo_weights(self, rollout: Any) -> th.Tensor:
        psi = R.reward_to_go(rollout.rewards, rollout.continues, self.gamma)
        return rollout.flatten(psi - psi.mean(1, keepdim=True))


class StandsStill(REINFORCE):
    def update(self, rollout: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("cls", "bed", "samples", "repeats"),
    [
        *((Backwards, bed, (64,), 30) for bed in ACTOR_BEDS),
        *((StandsStill, bed, (8,), 10) for bed in ACTOR_BEDS),
        *((OneComponentLost, bed, (64,), 50) for bed in ACTOR_BEDS),
        (WithoutGamma, "garnet", (64,), 50),
        (WithoutGamma, "lqr", (256,), 60),
        (TenPerCentTooLong, "garnet", (256,), 100),
        (TenPerCentTooLong, "bandit", (1024,), 60),
        *((SeesItself, bed, (2,), 600) for bed in ("bandit", "garnet")),
    ],
)
def test_a_mistake_is_refuted(cls, bed, samples, repeats):
    assert found(cls, PLAIN, bed, samples, repeats).refuted
    assert not found(REINFORCE, PLAIN, bed, samples, repeats).refuted, "the same without the mistake"


class WithoutOneOverSigma(ES):
    def tell(self, candidates: Any, returns: Any) -> None:
        super().tell(candidates, self.sigma * returns)


class Downhill(ES):
    def tell(self, candidates: Any, returns: Any) -> None:
        super().tell(candidates, -returns)


class HalfTheStep(FDPG):
    def tell(self, candidates: Any, returns: Any) -> None:
        super().tell(candidates, returns / 2)


@pytest.mark.parametrize(
    ("cls", "key", "which"),
    [
        (WithoutOneOverSigma, "es", 0),
        (Downhill, "es", 0),
        (Downhill, "es", 2),
        *((HalfTheStep, "fdpg", i) for i in range(3)),
    ],
)
def test_a_mistake_of_a_search_is_refuted(cls, key, which):
    claim = registry.get(key).claims[which]
    measured = found(cls, claim, "search", (16, 64), 40)
    assert measured.refuted
    assert measured.verdict == "points backwards" or claim.holds != "direction"


class Backward:
    """The gradient with the wrong sign."""

    def descend(self, **losses: th.Tensor) -> Any:
        return super().descend(**{name: -loss for name, loss in losses.items()})  # type: ignore[misc]

    def step(self: Any, *args: Any, **gradients: Any) -> Any:
        if "actor" in gradients:
            parts = [-part for part in gradients["actor"].parts]
            gradients["actor"] = gradients["actor"]._replace(parts=parts)
        return super().step(*args, **gradients)  # type: ignore[misc]


class Undiscounted:
    """Rewards and values count in full."""

    def imagined(self: Any, *args: Any, **options: Any) -> Any:
        gamma, self.gamma = self.gamma, 1.0
        found = super().imagined(*args, **options)  # type: ignore[misc]
        self.gamma = gamma
        return found


class OneStep:
    """No gradient goes back through the state that an action has led to."""

    def imagined(self: Any, *args: Any, **options: Any) -> Any:
        known, step = self.world.known_dynamics, self.world.known_dynamics.step
        known.step = lambda state, action, noise: step(state.detach(), action, noise)
        found = super().imagined(*args, **options)  # type: ignore[misc]
        known.step = step
        return found


class Unweighted:
    """Replayed actions count in full, whoever has chosen them."""

    def step(self: Any, batch: Any) -> None:
        with th.no_grad():
            batch["log_probs"] = self.pathwise.log_prob(batch["states"], batch["actions"])
        super().step(batch)  # type: ignore[misc]


class ForgetsZ:
    """The derivative of an action by log sigma is taken for sigma."""

    def _create_aliases(self: Any) -> None:
        super()._create_aliases()  # type: ignore[misc]
        pull = self.actor.head.pull
        self.actor.head.pull = lambda y, z, *others: pull(y, th.ones_like(z), *others)


class UnscaledSlope:
    """The slope of Q in the code is taken for that in the action, which is half the action range away."""

    def _create_aliases(self: Any) -> None:
        super()._create_aliases()  # type: ignore[misc]
        pull = self.actor.head.pull
        self.actor.head.pull = lambda *others: [part / 10 for part in pull(*others)]


@pytest.mark.parametrize(
    ("mistake", "key", "which"),
    [
        *((Backward, key, 0) for key in ("svg0", "svg1", "svg_inf", "mbpg")),
        *((Backward, key, 1) for key in ("svg0", "svg1")),
        *((Undiscounted, key, 0) for key in ("svg1", "svg_inf", "mbpg")),
        *((OneStep, key, 0) for key in ("svg_inf", "mbpg")),
        (Unweighted, "svg1", 1),
        *((mistake, "svg0", which) for mistake in (ForgetsZ, UnscaledSlope) for which in range(2)),
    ],
)
def test_a_mistake_of_a_pathwise_gradient_is_refuted(mistake, key, which):
    spec = registry.get(key)
    wrong = type(mistake.__name__, (mistake, spec.cls), {})
    about: Any = spec.claims[which], testbed("lqr"), (64,), 200 if mistake is Unweighted else 60, 0, 20
    assert measure(key, dataclasses.replace(spec, cls=wrong, claims=()), *about).refuted
    assert measure(key, spec, *about).agrees, "the same without the mistake"


def test_searches_do_not_estimate_the_gradient_itself():
    """With wide perturbations: the gradient of the smoothed objective is another one, in length and direction."""
    for key, which in (("es", 0), ("fdpg", 1)):
        claim = dataclasses.replace(registry.get(key).claims[which], target="gradient")
        assert found(registry.get(key).cls, claim, "search", (8, 32), 60).refuted


@pytest.mark.parametrize("bed", ["garnet", "lqr"])
def test_another_target_is_refuted(bed):
    """Estimates of the gradient without gamma^t, held for those of the gradient, and the other way round."""
    usual = GradientClaim("usual", {"baseline": "mean"})
    weighed = GradientClaim("weighed", PLAIN.options, target="gradient_undiscounted_states")
    assert found(REINFORCE, usual, bed, (256,)).refuted
    assert found(REINFORCE, weighed, bed, (256,)).refuted


def test_another_policy_is_another_one():
    """Single ratios miss the gradient, by what the states and returns of the policy that acted make of it."""
    step = next(claim for claim in registry.get("ispg").claims if claim.name == "off-policy, step")
    measured = found(registry.get("ispg").cls, step, "garnet", (256,), 150)
    assert measured.agrees
    assert measured.target_length != pytest.approx(1, abs=0.02)
    assert found(registry.get("ispg").cls, dataclasses.replace(step, target="gradient"), "garnet", (256,), 150).refuted


def test_directions_and_limits_can_be_wrong():
    rwr = next(claim for claim in registry.get("rwr").claims if "trajectory" in claim.name)

    class Coward(RWR):
        def _returns(self, data: Any) -> Any:
            returns, targets = super()._returns(data)
            return -returns, targets

    measured = found(Coward, rwr, "garnet", (32, 128), 60)
    assert measured.refuted
    assert measured.verdict == "points backwards"
    other = dataclasses.replace(rwr, target="natural_gradient", name="wrong direction")
    assert found(RWR, other, "garnet", (32, 128), 150).refuted
    npg = registry.get("npg").claims[0]
    half = dataclasses.replace(npg, options={**npg.options, "step_size": 0.5})
    assert found(NPG, half, "garnet", (32, 128), 60).refuted


def test_too_few_samples_to_see_a_direction_are_no_refutation():
    rwr = registry.get("rwr").claims[0]
    measured = found(RWR, rwr, "lqr", (2, 4), 8)
    assert (measured.verdict, measured.agrees, measured.refuted) == ("undecided", False, False)


# Exact answers


@pytest.fixture(scope="module")
def models():
    return {bed: model_on(testbed(bed), registry.get("reinforce"), PLAIN, 2, 0) for bed in ACTOR_BEDS}


@every_bed
def test_the_surrogate_has_the_gradient_of_the_objective(bed, models):
    """Two independent ways to grad J: automatic differentiation of J, and the policy-gradient theorem."""
    here, net = testbed(bed), Net(models[bed].policy)
    law = here.law(net)
    by_theorem = net.gradient(here.surrogate(law, law.detach(), discount_states=True))
    th.testing.assert_close(by_theorem, TARGETS["gradient"](here, models[bed]), rtol=1e-10, atol=1e-12)


def test_undiscounted_states_as_the_oracles_have_them(models):
    here, net = testbed("garnet"), Net(models["garnet"].policy)
    expected = net.gradient(oracles.mdp_surrogate(here.problem, here.law(net), discount_states=False))
    usual = TARGETS["gradient_undiscounted_states"]
    th.testing.assert_close(usual(here, models["garnet"]), expected, rtol=1e-10, atol=1e-12)
    here, net = testbed("lqr"), Net(models["lqr"].policy)
    by = oracles.lqr_gradient(here.problem, *here.law(net).detach(), discount_states=False)
    expected = th.cat([by.log_std, -by.K.flatten(), by.bias])
    th.testing.assert_close(usual(here, models["lqr"]), expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def search():
    es = registry.get("es")
    return model_on(testbed("search"), es, es.claims[0], 8, 0)


def test_the_objective_of_a_search_is_the_mean_return(search):
    """Of 4,000 episodes of the policy itself; it is undiscounted."""
    here, net = testbed("search"), Net(search.policy)
    returns, env = th.zeros(4000), RegulatorBed.vec_env(here, 4000)
    obs = env.reset()
    for _ in range(here.horizon):
        obs, rewards, _, _ = env.step(search.predict(obs)[0])
        returns += th.as_tensor(rewards)
    error = returns.std().item() / math.sqrt(4000)
    assert returns.mean().item() == pytest.approx(here.objective(here.law(net)).item(), abs=4 * error)
    assert error < 0.02 * returns.mean().abs()


def test_the_smoothed_gradient_by_sampling(search):
    """Gauss-Hermite against antithetic perturbations, and against the gradient itself for tiny ones."""
    here, net = testbed("search"), Net(search.policy)
    theta = th.nn.utils.parameters_to_vector(net.parameters).detach()
    gradients = []
    noise = th.randn(100, len(theta), dtype=th.float64, generator=th.Generator().manual_seed(0))
    for e in th.cat([noise, -noise]):
        th.nn.utils.vector_to_parameters(theta + 0.2 * e, net.parameters)
        gradients.append(net.gradient(here.objective(here.law(net))))
    sampled = th.stack(gradients).reshape(2, 100, -1).mean(0)
    exact = here.smoothed_gradient(Net(search.policy), 0.2)
    assert ((sampled.mean(0) - exact).abs() < 4 * sampled.std(0) / math.sqrt(100)).all()
    tiny = here.smoothed_gradient(Net(search.policy), 1e-6)
    th.testing.assert_close(tiny, TARGETS["gradient"](here, search), rtol=1e-8, atol=1e-8)
    assert (exact - tiny).norm() > 0.2 * tiny.norm()


def test_an_iteration_leaves_the_search_as_it_was(search):
    here = testbed("search")
    before = {name: value.clone() for name, value in search.search.state_dict().items()}
    parameters = [p.detach().clone() for p in search.policy.parameters()]
    first, second = one_iteration(here, search), one_iteration(here, search)
    assert first.abs().max() > 0
    assert not th.equal(first, second)
    assert all(th.equal(before[name], value) for name, value in search.search.state_dict().items())
    assert all(map(th.equal, parameters, search.policy.parameters()))


@every_bed
def test_the_fisher_matrix_is_that_of_the_steps_taken(bed, models):
    """By simulation: E[score score^T] over the steps of 4,000 episodes, within 6 standard errors of each entry."""
    model = model_on(testbed(bed), registry.get("reinforce"), PLAIN, 4000, 1)
    model.learn(1)
    here, rollout = testbed(bed), model.rollout
    here.place(model.policy)
    jacobian = actor_jacobian(model.policy, rollout.observations)
    scores = actor_scores(model.policy, rollout.observations, rollout.actions, jacobian).double()
    order = [id(p) for p in jacobian.parameters]
    sizes = {id(p): p.numel() for p in jacobian.parameters}
    starts = dict(zip(order, th.tensor([0, *[sizes[i] for i in order]]).cumsum(0).tolist(), strict=False))
    columns = [k for p in actor_parameters(model.policy) for k in range(starts[id(p)], starts[id(p)] + p.numel())]
    products = th.einsum("bp,bq->bpq", scores[:, columns], scores[:, columns])
    error = products.std(0) / math.sqrt(len(products))
    F = here.fisher(Net(model.policy), discount_states=False)
    assert ((products.mean(0) - F).abs() <= 6 * error + 1e-6).all()
    assert F.trace() > 0.1


@every_bed
def test_the_exact_critic_is_that_of_the_oracles(bed, models):
    here = testbed(bed)
    critic, law = exact_critic(here, models[bed].policy), here.law(Net(models[bed].policy))
    n = 3 * here.horizon
    if bed == "lqr":
        x, u = th.randn(n, 2), th.randn(5, n, 2)
        expected = [
            oracles.lqr_action_value(here.problem, *law[:2], x[b, None], u[k, b, None], law.bias, t=b % here.horizon)
            for k in range(5)
            for b in range(n)
        ]
        th.testing.assert_close(critic(x, u).flatten(), th.cat(expected).detach().float(), rtol=1e-4, atol=1e-4)
    else:
        Q = oracles.mdp_values(here.problem, law, horizon=here.horizon).Q.detach()
        states = th.arange(n) % here.problem.n_states
        obs = th.tensor(here.problem.features[states.numpy()]).float()
        expected = Q[th.arange(n) % here.horizon, states].float()
        th.testing.assert_close(critic.every_action(obs).detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def svg0():
    spec = registry.get("svg0")
    return model_on(testbed("lqr"), spec, spec.claims[0], 8, 0)


def test_actions_in_other_units_are_the_same_policy(svg0, models):
    """Codes in [-1, 1] stand for actions in [-10, 10]: the same law, and the same gradient in the latter's units."""
    here = testbed("lqr")
    ours, theirs = net_of(svg0.policy), net_of(models["lqr"].policy)
    for one, other in zip(here.law(ours), here.law(theirs), strict=True):
        th.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    scaled = TARGETS["gradient"](here, svg0)
    th.testing.assert_close(scaled / ours.units, TARGETS["gradient"](here, models["lqr"]), rtol=1e-5, atol=1e-6)
    assert set(ours.units.tolist()) == {1.0, 10.0}
    assert (theirs.units == 1).all()
    # Not only in name: what the policy does is that law.
    states = th.randn(1, 2).expand(4000, 2)
    actions = svg0._to_env(svg0.policy._predict(states).detach().numpy())
    law = here.law(theirs).detach()
    mean = -states[0].double() @ law.K.T + law.bias
    error = actions.std(0) / math.sqrt(4000)
    assert (abs(actions.mean(0) - mean.numpy()) < 4 * error).all()
    assert actions.std(0) == pytest.approx(law.std.numpy(), rel=0.05)


def test_exact_values_find_the_time_from_the_state():
    spec = registry.get("svg1")
    here = testbed("lqr")
    model = model_on(here, spec, spec.claims[0], 8, 0)
    with_exact_value(here, model)
    law, columns = here.law(net_of(model.policy)).detach(), model.transitions.columns
    order = th.randperm(8 * here.horizon)
    found = model.target.value(columns["next_states"][order] + 1e-6)
    for state, value, place in zip(columns["next_states"][order], found, order.tolist(), strict=True):
        expected = oracles.lqr_state_value(here.problem, *law[:2], state[None], law.bias, t=place // 8 + 1)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


def test_exact_slopes_are_those_of_the_oracle(svg0):
    here = testbed("lqr")
    with_exact_slope(here, svg0)
    law = here.law(net_of(svg0.policy)).detach()
    obs = th.from_numpy(svg0.replay_buffer.observations).flatten(0, 1)
    codes = 0.1 * th.randn(len(obs), 2)
    value, slope = svg0.gradients.value_and_slope(obs, codes)
    u = (10 * codes.double()).requires_grad_()
    each = [
        oracles.lqr_action_value(here.problem, *law[:2], obs[b, None], u[b, None], law.bias, t=b // 8)
        for b in range(len(obs))
    ]
    exact = th.cat(each).mean()
    (expected,) = th.autograd.grad(-exact, u)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    th.testing.assert_close(slope, 10 * expected.float(), rtol=1e-4, atol=1e-5)


def test_a_claim_gets_what_the_testbed_knows():
    known = testbed("lqr").known(16)
    found = asked_for({"horizon": "testbed:horizon", "dynamics": "testbed:dynamics", "starts": "first"}, known)
    assert found == {"horizon": 4, "dynamics": known["dynamics"], "starts": "first"}
    assert (known["episodes"], known["steps"]) == (16, 64)
    states = th.randn(5, 2)
    assert known["termination"](states, states, states).tolist() == [0.0] * 5
    with pytest.raises(
        ValueError, match="dynamics='testbed:dynamics': this testbed knows 'horizon', 'episodes', 'steps'"
    ):
        asked_for({"dynamics": "testbed:dynamics"}, testbed("garnet").known(16))


# Statistics


def simulated(bias: float, n_runs: int, seed: int = 0, n: int = 40, size: int = 10) -> list[statistics.Deviation]:
    """Deviations of normal estimates with a random covariance, off by ``bias`` standard errors in one component."""
    generator = th.Generator().manual_seed(seed)
    mix = th.randn(size, size, dtype=th.float64, generator=generator)
    target = th.randn(size, dtype=th.float64, generator=generator)
    shift = th.zeros(size, dtype=th.float64)
    shift[3] = bias * mix[:, 3].norm() / math.sqrt(n)
    clouds = target + shift + th.randn(n_runs, n, size, dtype=th.float64, generator=generator) @ mix
    return [deviation([cloud], target) for cloud in clouds]


def test_right_estimators_raise_alarms_as_rarely_as_promised():
    """1 % at most; Bonferroni gives away little, so it is not much less either."""
    alarms = sum(one.refuted for one in simulated(0.0, 4000))
    assert 0.003 * 4000 < alarms < 0.014 * 4000


def test_a_bias_well_beyond_the_limit_is_seen():
    runs = simulated(statistics.standard_errors_allowed(11, 40) + 4, 300)
    assert sum(one.refuted for one in runs) > 0.97 * len(runs)


def test_the_interval_along_the_target_covers_it():
    covered = sum(abs(one.along) <= one.along_error for one in simulated(0.0, 4000, seed=1))
    assert 0.938 * 4000 < covered < 0.962 * 4000


def test_more_comparisons_allow_more():
    allowed = statistics.standard_errors_allowed
    assert allowed(9, 200, 100) > allowed(9, 200) > allowed(1, 200) > 2.5
    assert allowed(9, 20) > allowed(9, 200)
    tail = 2 * 9 * 100 * statistics.stats.t.sf(allowed(9, 200, 100), 199)
    assert tail == pytest.approx(statistics.FALSE_ALARM)


def test_skewed_estimates_do_not_raise_more_alarms(monkeypatch):
    """Exponential numbers: Student's t alone would be wrong several times as often as it says."""
    generator = th.Generator().manual_seed(0)
    clouds = th.empty(1500, 30, 2, dtype=th.float64).exponential_(generator=generator)
    target = th.ones(2, dtype=th.float64)

    def alarms() -> float:
        return sum(deviation([cloud], target).refuted for cloud in clouds) / len(clouds)

    corrected = alarms()
    without = lambda found, expected, rounding: (found.value - expected).abs() / found.error  # noqa: E731
    monkeypatch.setattr(statistics, "student", without)
    assert alarms() > 0.02
    assert 2 * corrected < alarms()


def test_the_correction_of_skewness_keeps_the_order():
    t = th.linspace(-20, 20, 400, dtype=th.float64)
    one = th.ones_like(t)
    for skewness in (-1.0, -0.1, 0.0, 0.5):
        corrected = statistics.student(statistics.Means(t, one, skewness * one), 0 * one)
        up, down = corrected[t > 3], corrected[t < -3]
        assert (up.diff() > 0).all() or skewness < 0
        assert (down.diff() < 0).all() or skewness > 0
        assert skewness or th.equal(corrected, t.abs())


def spread_out(mean: th.Tensor, std: float, n: int = 100) -> th.Tensor:
    """Estimates of this mean with a standard error of ``std`` / sqrt(n) in every direction."""
    noise = th.randn(n, len(mean), dtype=th.float64, generator=th.Generator().manual_seed(0))
    return mean + std * (noise - noise.mean(0))


def test_rounding_is_no_deviation():
    target = th.tensor([3.0, 4.0], dtype=th.float64)
    assert deviation([target.expand(10, 2) * (1 + 1e-6)], target).agrees
    assert deviation([target.expand(10, 2) * (1 + 1e-3)], target).refuted


def test_a_direction_has_no_length():
    target = th.tensor([3.0, 4.0], dtype=th.float64)
    assert direction_deviation([spread_out(0.1 * target, 0.1)], target).agrees
    assert direction_deviation([spread_out(-0.1 * target, 0.1)], target).forward is False
    assert direction_deviation([spread_out(0.001 * target, 0.1)], target).forward is None
    assert direction_deviation([spread_out(target.flip(0), 0.1)], target).refuted
    assert direction_deviation([(0.1 * target).expand(10, 2)], target).agrees, "without any noise"


def test_a_bias_of_one_over_m_is_extrapolated_away():
    generator = th.Generator().manual_seed(0)
    noise = th.randn(2, 500, 3, dtype=th.float64, generator=generator)
    g, b = th.tensor([1.0, -2.0, 0.5], dtype=th.float64), th.tensor([3.0, 1.0, -4.0], dtype=th.float64)
    samples = [g + b / 10 + 0.3 * noise[0], g + b / 40 + 0.15 * noise[1]]
    assert deviation(samples, g, towards_the_limit(4.0)).agrees
    assert deviation(samples[1:], g).refuted
    found = statistics.means(samples, towards_the_limit(4.0))
    expected = math.sqrt((16 * 0.15**2 + 0.3**2) / 9 / 500)
    assert found.error.mean().item() == pytest.approx(expected, rel=0.1)


# Records, report, command


@pytest.fixture(scope="module")
def some():
    specs = {key: registry.get(key) for key in ("qac", "rwr", "npg", "ispg")}
    few = [job for job in jobs(specs, ["bandit", "lqr"], (4, 52), 30) if job.claim.name != "first step"]
    return [job() for job in few]


def test_records_survive_json(some):
    text = to_json(some, "a command")
    assert from_json(text) == (some, "a command")
    assert all(math.isfinite(x) for x in numbers(json.loads(text)))
    assert {row["verdict"] for row in json.loads(text)["measurements"]} <= {"agrees", "undecided"}


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [value] if isinstance(value, float) else []


def test_results_depend_on_the_seed_alone():
    spec = registry.get("reinforce")

    def variance(seed: int, repeats: int = 8) -> float:
        return measure("reinforce", spec, PLAIN, testbed("bandit"), (4,), repeats, seed).sizes[0].variance

    assert variance(0) == variance(0) != variance(1)


def test_an_estimate_leaves_the_model_as_it_was(models):
    ispg = registry.get("ispg")
    model = model_on(testbed("garnet"), ispg, ispg.claims[1], 4, 0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    for estimate in (one_update, at_another_policy):
        first, second = estimate(testbed("garnet"), model), estimate(testbed("garnet"), model)
        assert first.abs().max() > 0
        assert not th.equal(first, second), "an estimate has a rollout of its own"
        assert all(map(th.equal, before, model.policy.parameters()))


def test_markdown_has_every_number(some):
    text = gradient_report.markdown(some)
    assert text.count("\n| qac |") == 4 + 3
    assert "none is refuted" in text
    assert "steps are not weighed by gamma^t" in text
    wrong = dataclasses.replace(some[0], sizes=(), limit=statistics.Deviation(9.0, 4.0, 0.1, 0.01))
    assert "1 refuted" in gradient_report.conclusion([wrong])
    assert wrong.verdict == "off by 9.0 s.e."


def test_the_variance_of_one_episode_does_not_depend_on_how_many_there_are():
    """M times the variance of a mean of M, in units of the target; and its interval is that of a sample variance."""
    reinforce = found(REINFORCE, PLAIN, "garnet", (16, 64), 400)
    few, many = (scatter(reinforce, size) for size in reinforce.sizes)
    assert few.value == pytest.approx(many.value, rel=0.15)
    assert few.low < few.value < few.high
    size, generator = reinforce.sizes[0], th.Generator().manual_seed(0)
    target = th.tensor([3.0, 4.0], dtype=th.float64)
    cloud = target + th.randn(1000, 400, 2, dtype=th.float64, generator=generator)
    sizes = [laboratory._at_size(each, target, size.episodes, 1, 0.0, None) for each in cloud]
    points = [scatter(dataclasses.replace(reinforce, target_length=2.0, gradient_length=2.5), one) for one in sizes]
    exact = size.episodes * 2 / 25
    assert sum(point.low <= exact <= point.high for point in points) / len(points) == pytest.approx(0.95, abs=0.025)
    assert sizes[0].variance == pytest.approx(cloud[0].var(0).sum().item())


def test_only_like_is_compared_with_like(some):
    """Unbiased estimators of one vector, on the testbed with both kinds, the noisiest first."""
    both = {key: registry.get(key) for key in ("mbpg", "svg0")}
    mixed = [*some, *(job() for job in jobs(both, ["lqr"], (4, 52), 30))]
    panels = comparable(mixed)
    assert {target: [one.algorithm for one in panel].count("svg0") for target, panel in panels.items()} == {
        "gradient": 0,
        "gradient_undiscounted_states": 2,
    }
    assert {one.testbed for panel in panels.values() for one in panel} == {"lqr"}
    assert {one.claim.kind for one in panels["gradient"]} == {"score_function", "pathwise"}
    assert not any(one.claim.name.startswith(("off-policy", "linear")) for panel in panels.values() for one in panel)
    assert all(one.claim.target == target for target, panel in panels.items() for one in panel)
    noise = [scatter(one, one.sizes[-1]).value for one in panels["gradient"]]
    assert noise == sorted(noise, reverse=True)
    assert comparable(some) == {}


def test_the_variances_are_drawn(some, tmp_path):
    pytest.importorskip("matplotlib")
    mbpg = {"mbpg": registry.get("mbpg")}
    mixed = [*some, *(job() for job in jobs(mbpg, ["lqr"], (4, 52), 30))]
    files, _ = gradient_report.write(mixed, tmp_path, "a command")
    assert files[-1] == tmp_path / "variance.png"
    assert files[-1].read_bytes().startswith(b"\x89PNG")
    assert "](variance.png)" in (tmp_path / "gradlab.md").read_text()


SMALL = ["--samples", "4", "64", "--repeats", "30", "--testbed", "bandit", "-P", "1"]


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["gradlab", "--algo", "qac", *SMALL, "-f", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "exact Q, advantage" in printed
    assert "none is refuted" in printed
    measured, _ = from_json((tmp_path / "gradlab.json").read_text())
    assert [one.claim for one in measured] == list(registry.get("qac").claims)
    assert (tmp_path / "gradlab.png").read_bytes().startswith(b"\x89PNG")
    assert "# Gradient laboratory" in (tmp_path / "gradlab.md").read_text()


def test_processes_change_nothing(tmp_path):
    results = []
    for jobs_at_once in ("1", "2"):
        arguments = ["gradlab", "--algo", "qac", *SMALL[:-1], jobs_at_once, "-f", str(tmp_path / jobs_at_once)]
        assert main(arguments) == 0
        measured, _ = from_json((tmp_path / jobs_at_once / "gradlab.json").read_text())
        results.append([[size.variance for size in one.sizes] for one in measured])
    assert results[0] == results[1]


@pytest.fixture
def own(monkeypatch):
    """The registry, with room for algorithms of this test."""
    monkeypatch.setattr(registry, "_registered", {})
    yield registry
    registry._specs.clear()


def test_the_command_fails_if_an_estimator_is_wrong(own, tmp_path, capsys):
    own.register("backwards", spec_of(Backwards, PLAIN))
    small = ["--samples", "16", "64", "--repeats", "30", "--testbed", "bandit", "-P", "1", "-f", str(tmp_path)]
    assert main(["gradlab", "--algo", "backwards", *small]) == 1
    printed = capsys.readouterr().out
    assert "off by" in printed
    assert "1 refuted" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algo", "sac"], "sac makes no claims"),
        (["--algo", "reinforc"], "Did you mean 'reinforce'"),
        (["--samples", "16"], "samples="),
        (["--samples", "16", "32", "--repeats", "30"], "samples times repeats must be 1500"),
        (["--repeats", "2"], "repeats=2"),
        (["--algo", "es", "--testbed", "bandit"], "no claim of es"),
    ],
)
def test_senseless_arguments_are_refused(arguments, words, capsys, tmp_path):
    assert main(["gradlab", *arguments, "-P", "1", "-f", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("field", ["target", "estimate"])
def test_unknown_names_in_a_claim(field):
    claim = GradientClaim("odd", **{field: "nothing"})
    with pytest.raises(ValueError, match=f"{field}='nothing': allowed are '"):
        found(REINFORCE, claim, "bandit", (4,), 8)


def test_the_page_is_about_the_claims_that_there_are():
    """If this fails: sb3-pg gradlab -f docs/gradlab && python docs/make_tables.py."""
    measured, command = from_json((ROOT / "docs" / "gradlab" / "gradlab.json").read_text())
    assert command == "sb3-pg gradlab -f docs/gradlab"
    shown = [(one.testbed, one.algorithm, one.claim) for one in measured]
    ours = {key: spec for key, spec in claims().items() if spec.cls.__module__.split(".")[0] != "sb3_entropy_a2c"}
    assert sorted(shown, key=str) == sorted(((job.testbed, job.algorithm, job.claim) for job in jobs(ours)), key=str)
    assert all(one.agrees for one in measured)
    assert {size.repeats for one in measured for size in one.sizes} == {laboratory.REPEATS}


def test_the_numbers_in_the_text_are_those_of_the_data():
    measured, _ = from_json((ROOT / "docs" / "gradlab" / "gradlab.json").read_text())
    estimators = {(one.algorithm, one.claim.name) for one in measured}
    assert f"measures {len(estimators)} estimators" in (ROOT / "README.md").read_text()
    text = " ".join((ROOT / "docs" / "gradients.md").read_text().split())
    of = {(one.algorithm, one.claim.name): scatter(one, one.sizes[-1]) for one in measured if one.testbed == "lqr"}
    panels = comparable(measured)
    kinds = {
        kind: [one for p in panels.values() for one in p if one.claim.kind == kind] for kind in variance_figure.KINDS
    }
    score, pathwise = ([of[one.algorithm, one.claim.name] for one in kinds[kind]] for kind in variance_figure.KINDS)
    assert "every pathwise estimator scatters less than every score-function one" in text
    assert max(one.high for one in pathwise) < min(one.low for one in score)
    assert "SVG(0) has less than a quarter of the variance of QAC" in text
    assert of["svg0", "exact Q, on policy"].value < of["qac", "exact Q, usual"].value / 4
    for words, at in (
        ("about 7,500 for plain REINFORCE", ("reinforce", "to-go, none")),
        ("1,600 with its best baseline", ("reinforce", "to-go, optimal")),
        ("320 for SVG(∞)", ("svg_inf", "known equations")),
    ):
        assert words in text
        number = float(re.search(r"[\d,]+", words)[0].replace(",", ""))
        assert 100 * of[at].value == pytest.approx(number, rel=0.1)


# Plug-ins


def test_the_example_plugin_takes_part(own, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "plugin_example"))
    from sb3_entropy_a2c import SPEC

    assert SPEC.claims
    own.register("entropy_a2c", SPEC)
    small = ["--samples", "16", "64", "--repeats", "30", "-P", "1", "-f", str(tmp_path)]
    assert main(["gradlab", "--algo", "entropy_a2c", *small]) == 0
    measured, _ = from_json((tmp_path / "gradlab.json").read_text())
    assert len(measured) == 3 * len(SPEC.claims)
    assert all(one.agrees for one in measured)


def half_the_gradient(bed: Any, model: Any) -> th.Tensor:
    return TARGETS["gradient"](bed, model) / 2


def half_a_step(bed: Any, model: Any) -> th.Tensor:
    return one_update(bed, model) / 2


def test_claims_may_name_functions_of_their_own():
    own = dataclasses.replace(PLAIN, target=f"{__name__}:half_the_gradient", estimate=f"{__name__}:half_a_step")
    assert found(REINFORCE, own, "bandit").agrees
    assert found(REINFORCE, dataclasses.replace(own, estimate="one_update"), "bandit").refuted


def test_a_claim_must_make_sense():
    with pytest.raises(ValueError, match="holds='often'"):
        GradientClaim("x", holds="often")
    with pytest.raises(ValueError, match="mean_over='hours'"):
        GradientClaim("x", mean_over="hours")
    with pytest.raises(ValueError, match="kind='guess'"):
        GradientClaim("x", kind="guess")
    with pytest.raises(ValueError, match="action_spaces"):
        GradientClaim("x", action_spaces=("Bax",))
    with pytest.raises(ValueError, match=r"'x' of REINFORCE sets \['baselin'\]"):
        spec_of(REINFORCE, GradientClaim("x", {"baselin": None}))
    with pytest.raises(ValueError, match="different names"):
        spec_of(REINFORCE, PLAIN, PLAIN)
    with pytest.raises(TypeError, match="tuple of GradientClaim"):
        AlgorithmSpec(REINFORCE, family="on_policy", paper="none", claims=[PLAIN])


def test_jobs_are_where_the_actions_fit():
    of_qac = jobs({"qac": registry.get("qac")})
    beds = {job.testbed for job in of_qac if "all actions" in job.claim.name}
    assert beds == {"bandit", "garnet"}
    assert {job.n_comparisons for job in of_qac} == {11 * 3}
    searches = {key: registry.get(key) for key in ("es", "fdpg")}
    assert {job.testbed for job in jobs(searches)} == {"search"}
    assert "search" not in {job.testbed for job in of_qac}
    assert isinstance(of_qac[0], Job)
    assert laboratory.seed_of(0, "a", "b") != laboratory.seed_of(0, "b", "a")
