"""CMAES: number for number what the library does alone, also after a file; restarts; and that it learns."""

from dataclasses import replace

import cmaes
import numpy as np
import pytest
from gymnasium import spaces

from sb3_pg_ext.algorithms.cmaes import CMAES, FULL_COVARIANCE_LIMIT, MIRRORED, SPEC, default_population
from sb3_pg_ext.rollout.population import evaluate
from sb3_pg_ext.rollout.vector_env import as_vec_env
from sb3_pg_ext.testing import Determinism, Echo, Learning, Saving
from sb3_pg_ext.testing.measures import differences, learned
from sb3_pg_ext.testing.recorders import log_to_table

#: A narrow valley.
SCALES = 10.0 ** np.linspace(0, 2, 8)


def search(**kwargs):
    """With a log that leads nowhere, so that ``tell`` can be called by hand; 8 parameters."""
    model = CMAES("LinearPolicy", Echo(), **{"seed": 0, "population_size": 10, **kwargs})
    log_to_table(model)
    return model


def valley(theta):
    """To be maximised, at 1."""
    return -(SCALES * (theta - 1) ** 2).sum(-1)


def iterate(model, count, f=valley):
    for _ in range(count):
        candidates = model.ask()
        model.tell(candidates, f(candidates))


class Recorded:
    """Normal numbers for the library, row after row."""

    def __init__(self, rng):
        self.rng = rng

    def randn(self, count):
        return self.rng.standard_normal(count)


def bare(model):
    """The library's own optimizer with the same start and the same random numbers to come."""
    kind = cmaes.CMA if model.search["covariance"].ndim == 2 else cmaes.SepCMA
    n = int(model.search["population"])
    optimizer = kind(model.search["mean"].copy(), model.init_std, population_size=n)
    optimizer._rng = Recorded(np.random.default_rng())
    optimizer._rng.rng.bit_generator.state = model.rng.bit_generator.state
    return optimizer


# --- against the library


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_same_trajectory_as_the_library_alone(covariance):
    """Bit for bit, over more generations than the history of returns is long."""
    model = search(covariance=covariance)
    model.search["mean"] = np.linspace(-1, 1, 8)
    optimizer = bare(model)
    for _ in range(60):
        candidates = model.ask()
        theirs = [optimizer.ask() for _ in range(10)]
        np.testing.assert_array_equal(candidates, theirs)
        model.tell(candidates, valley(candidates))
        optimizer.tell([(theta, -valley(theta)) for theta in theirs])
        for ours, name in MIRRORED.items():
            if ours != "history":
                np.testing.assert_array_equal(model.search[ours], getattr(optimizer, name), err_msg=ours)
        assert optimizer.should_stop() == model._optimizer().should_stop()
    assert valley(model.search["mean"]) > -1


def test_history_is_the_library_s():
    model = search()
    optimizer = bare(model)
    optimizer._funhist_values[:] = 0
    for _ in range(40):
        candidates = model.ask()
        model.tell(candidates, valley(candidates))
        optimizer.tell([(theta, -valley(theta)) for theta in candidates])
    assert len(model.search["history"]) == 2 * (10 + 24)
    np.testing.assert_array_equal(model.search["history"], optimizer._funhist_values)


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("restart", [None, "double"])
def test_goes_on_bit_for_bit_after_a_file(covariance, restart, tmp_path):
    model = search(covariance=covariance, restart=restart)
    iterate(model, 23)
    model.save(tmp_path / "model")
    loaded = CMAES.load(tmp_path / "model", env=Echo())
    log_to_table(loaded)
    assert differences(learned(model), learned(loaded)) == []
    for one in (model, loaded):
        iterate(one, 30)
    assert differences(learned(model), learned(loaded)) == []
    np.testing.assert_array_equal(model.ask(), loaded.ask())


def test_no_object_of_the_library_is_kept():
    model = search()
    iterate(model, 3)
    assert not [name for name, value in vars(model).items() if type(value).__module__.startswith("cmaes")]


def test_learning_rate_is_the_share_of_the_way():
    whole, part = search(), search(learning_rate=0.25)
    candidates = whole.ask()
    for model in (whole, part):
        model.tell(candidates, valley(candidates))
    np.testing.assert_allclose(part.search["mean"], 0.25 * whole.search["mean"])
    with pytest.raises(ValueError, match=r"learning_rate=1\.5"):
        search(learning_rate=1.5).learn(1)


def test_version_of_the_library_that_names_things_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(MIRRORED, "path", "_evolution_path")
    with pytest.raises(ImportError, match="_evolution_path"):
        search()


# --- sizes


def test_default_population_grows_with_the_logarithm():
    assert [default_population(n) for n in (1, 8, 100)] == [4, 10, 17]
    model = search(population_size=None)
    assert (model.population_size, model.ask().shape) == (None, (10, 8))
    assert CMAES("LinearPolicy", Echo(), _init_setup_model=False).population_size is None


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3.5])
def test_populations_in_which_one_candidate_decides_are_refused(size):
    with pytest.raises(ValueError, match=rf"population_size={size}: a whole number >= 4 or None is needed"):
        search(population_size=size)


@pytest.mark.parametrize("population", [None, 4, 5])
@pytest.mark.parametrize(("n_parameters", "covariance"), [(1, None), (1, "full"), (2, None), (2, "diag")])
def test_policies_of_one_and_two_parameters(n_parameters, covariance, population):
    env = Echo(spaces.Box(-1, 1, (1,)), observation=spaces.Box(-1, 1, (n_parameters,)))
    kwargs = {"population_size": population, "covariance": covariance, "policy_kwargs": {"with_bias": False}}
    model = CMAES("LinearPolicy", env, seed=0, **kwargs)
    assert model.search["mean"].shape == (n_parameters,)
    assert len(model.ask()) == (population or {1: 4, 2: 6}[n_parameters])
    model.learn(40)
    log_to_table(model)
    iterate(model, 60, lambda theta: -((theta - 1) ** 2).sum(-1))
    assert np.abs(model.search["mean"] - 1).max() < 1e-2


def test_full_covariance_is_for_few_parameters():
    def build(width, **kwargs):
        return CMAES("MlpPolicy", Echo(), policy_kwargs={"net_arch": width}, **kwargs)

    with pytest.raises(ValueError, match=rf"covariance='full'.*{FULL_COVARIANCE_LIMIT}.*1250"):
        build([32, 32], covariance="full")
    assert build([32, 32]).search["covariance"].shape == (1250,)
    assert build([8]).search["covariance"].shape == (50, 50)


# --- the end of a search


def flat(theta):
    return np.zeros(len(theta))


def test_a_search_that_is_over_stays_as_it_is():
    """Returns that have not differed for 10 + 30 P / n generations."""
    model = search()
    iterate(model, 35, flat)
    before = model.search.copies()
    assert before["generation"] == 35
    iterate(model, 10, valley)
    assert all((before[name] == value).all() for name, value in model.search.copies().items())
    assert model.logger.name_to_value["train/terminated"] == 1


@pytest.mark.parametrize(("restart", "populations"), [("same", [10, 10, 10]), ("double", [10, 20, 40])])
def test_restarts_begin_anew(restart, populations):
    model = search(restart=restart, init_std=0.3)
    model.search["start"] = 0.5
    seen = [10]
    for _ in range(100):
        before = model.search["restarts"].item()
        candidates = model.ask()
        if model.search["restarts"] > before:
            seen.append(len(candidates))
            expected = {"mean": np.full(8, 0.5), "sigma": 0.3, "covariance": np.eye(8), "generation": 0, "history": 0}
            for name, value in {**expected, "path": 0, "sigma_path": 0}.items():
                np.testing.assert_array_equal(model.search[name], np.broadcast_to(value, model.search[name].shape))
        model.tell(candidates, flat(candidates))
    assert seen[:3] == populations
    assert model.logger.name_to_value["train/restarts"] == len(seen) - 1


def test_a_doubled_population_goes_on_after_a_file(tmp_path):
    model = search(restart="double")
    iterate(model, 50, flat)
    assert model.search["population"] == 20
    model.save(tmp_path / "model")
    loaded = CMAES.load(tmp_path / "model", env=Echo())
    log_to_table(loaded)
    for one in (model, loaded):
        iterate(one, 5)
    assert differences(learned(model), learned(loaded)) == []


# --- the contract, for what the registry's own run of it leaves out


class TestSeparable(Saving, Determinism, Learning):
    spec = replace(SPEC, policies=("MlpPolicy", "MultiInputPolicy"))
    fast = {  # noqa: RUF012
        "covariance": "diag",
        "restart": "double",
        "zero_policy": False,
        "normalize_observations": True,
        "common_seeds": True,
    }


# --- learning


def test_cart_pole_is_learned():
    env = as_vec_env("CartPole-v1", n_envs=16, vec_env="native", seed=0)
    model = CMAES("LinearPolicy", env, seed=0).learn(100_000)
    _, callback = model._setup_learn(10**6)
    assert evaluate(model, env, callback, model.search["mean"][None], 50).returns.mean() > 450
