"""CMAES, covariance matrix adaptation (Hansen & Ostermeier 2001; Hansen 2016), by the package ``cmaes``.

    theta_i ~ N(m, sigma^2 C),      m <- m + c_m sum_i w_i (theta_i - m)

with weights w for the ranks of the returns; sigma follows the length of the path that m has taken, and C that path and
the candidates that did best. The library's update is used as it is. Its optimizer lives for one call: what it knows is
kept in ``self.search``, so that a loaded model goes on with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Unpack

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg_ext.bases.options import PolicySearchOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.policy_search import PolicySearchBase
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int

Array = np.ndarray[Any, Any]
Covariance = Literal["full", "diag"]
Restart = Literal["same", "double"]
#: A full covariance of more parameters than this is refused: each iteration takes P^3 steps and n P^2 numbers.
FULL_COVARIANCE_LIMIT = 500
#: Of fewer candidates only one has a weight above 0, and the library's full covariance divides by 0.
SMALLEST_POPULATION = 4
#: Ours -> the library's.
MIRRORED = {
    "mean": "_mean",
    "sigma": "_sigma",
    "covariance": "_C",
    "path": "_pc",
    "sigma_path": "_p_sigma",
    "generation": "_g",
    "history": "_funhist_values",
}


def default_population(n_parameters: int) -> int:
    """4 + floor(3 ln P)   (Hansen 2016, eq. 48)."""
    return SMALLEST_POPULATION + math.floor(3 * math.log(n_parameters))


def optimizer_class(covariance: Covariance) -> Any:
    """The library's ``CMA``, or with ``"diag"`` its ``SepCMA`` (Ros & Hansen 2008)."""
    import cmaes

    return {"full": cmaes.CMA, "diag": cmaes.SepCMA}[covariance]


def full_root(optimizer: Any) -> Callable[[Array], Array]:
    """z -> C^1/2 z = B D z, (P,). The library would multiply B and D anew for every candidate."""
    B, D = optimizer._eigen_decomposition()
    root: Callable[[Array], Array] = B.dot(np.diag(D)).dot
    return root


def diagonal_root(optimizer: Any) -> Callable[[Array], Array]:
    """z -> C^1/2 z = D z, (P,)."""
    D = optimizer._eigen_decomposition()
    return lambda z: D * z


ROOTS = {"full": full_root, "diag": diagonal_root}


class CMAES(PolicySearchBase):
    """CMA-ES: adapt a Gaussian over policy parameters, its covariance and its step size.

    :param learning_rate: c_m, share of the way to the weighted mean of the best candidates, at most 1
    :param population_size: n, candidates per iteration, at least 4; None takes 4 + 3 ln P
    :param init_std: standard deviation of every parameter at the start
    :param covariance: ``"full"``, for at most 500 parameters; ``"diag"``: separable CMA-ES, for at least 2; None takes
        the full one as long as it may
    :param restart: once nothing more is to be expected (returns that do not differ any more, a distribution that has
        shrunk to a point, grown beyond 10,000 or become too flat): None keeps the distribution for good; ``"same"``
        starts again where the search began; ``"double"`` does so with twice the candidates. ``deploy="best"`` keeps
        what was found before
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule = 1.0,
        population_size: int | None = None,
        init_std: float = 0.5,
        covariance: Covariance | None = None,
        restart: Restart | None = None,
        **common: Unpack[PolicySearchOptions],
    ):
        check_count("population_size", population_size, SMALLEST_POPULATION, optional=True)
        check_number("init_std", init_std, 0, 1e4, above=True)
        check_choice("covariance", covariance, Covariance | None)
        check_choice("restart", restart, Restart | None)
        self.init_std = init_std
        self.covariance = covariance
        self.restart = restart
        super().__init__(policy, env, learning_rate, population_size=population_size, **common)

    def initial_state(self, theta: Array) -> dict[str, Any]:
        self._check_size(len(theta))
        population = self.population_size or default_population(len(theta))
        optimizer = self._fresh(theta, population)
        arrays = {ours: getattr(optimizer, theirs) for ours, theirs in MIRRORED.items() if ours != "mean"}
        return {**arrays, "start": theta, "population": population, "restarts": 0}

    def _check_size(self, n_parameters: int) -> None:
        if self.covariance == "full" and n_parameters > FULL_COVARIANCE_LIMIT:
            raise ValueError(
                f"covariance='full' is for at most {FULL_COVARIANCE_LIMIT} parameters, but the policy has "
                f"{n_parameters}: use covariance='diag', or a smaller policy"
            )
        if self.covariance == "diag" and n_parameters < 2:
            raise ValueError("covariance='diag' is for at least 2 parameters, but the policy has 1: use 'full'")

    def _kind(self, n_parameters: int) -> Covariance:
        return self.covariance or ("full" if n_parameters <= FULL_COVARIANCE_LIMIT else "diag")

    def _fresh(self, mean: Array, population: int) -> Any:
        """The library's optimizer before its first generation."""
        optimizer = optimizer_class(self._kind(len(mean)))(mean.copy(), self.init_std, population_size=population)
        missing = [name for name in (*MIRRORED.values(), "_cm") if not hasattr(optimizer, name)]
        if missing:
            raise ImportError(f"the {type(optimizer).__name__} of this version of the package cmaes has no {missing}")
        optimizer._funhist_values[:] = 0.0  # not initialised there
        return optimizer

    def _optimizer(self) -> Any:
        """The library's optimizer as it was after the last iteration."""
        optimizer = self._fresh(self.search["mean"], int(self.search["population"]))
        for ours, theirs in MIRRORED.items():
            array = self._array(ours, optimizer)
            setattr(optimizer, theirs, array.copy() if array.ndim else array.item())
        optimizer._g = int(optimizer._g)
        return optimizer

    def _array(self, name: str, optimizer: Any) -> Array:
        """One of the arrays of the search. The history of a doubled population is shorter than the first one's."""
        array = self.search[name]
        return array[: len(optimizer._funhist_values)] if name == "history" else array

    def _keep(self, optimizer: Any) -> None:
        for ours, theirs in MIRRORED.items():
            self._array(ours, optimizer)[...] = getattr(optimizer, theirs)

    def ask(self) -> Array:
        optimizer = self._optimizer()
        if self.restart is not None and optimizer.should_stop():
            optimizer = self._begin_again()
        root = ROOTS[self._kind(optimizer.dim)](optimizer)
        z = self.rng.standard_normal((optimizer.population_size, optimizer.dim))
        return optimizer.mean + optimizer._sigma * np.array([root(z_i) for z_i in z])

    def _begin_again(self) -> Any:
        self.search["restarts"] += 1
        self.search["population"] *= {"same": 1, "double": 2}[self.restart or "same"]
        self._keep(self._fresh(self.search["start"], int(self.search["population"])))
        return self._optimizer()

    def tell(self, candidates: Array, returns: Array) -> None:
        rate = self.step_size
        if rate > 1:
            raise ValueError(f"learning_rate={rate!r}: CMA-ES goes to the weighted mean and no further, so 1 at most")
        optimizer = self._optimizer()
        optimizer._cm = rate
        terminated = optimizer.should_stop()
        if not terminated:
            optimizer.tell([(theta, -value) for theta, value in zip(candidates, returns, strict=True)])  # it minimises
            self._keep(optimizer)
        self.record(
            sigma=self.search["sigma"].item(),
            population=self.search["population"].item(),
            restarts=self.search["restarts"].item(),
            terminated=terminated,
        )


SPEC = AlgorithmSpec(
    CMAES,
    family="policy_search",
    paper="Hansen & Ostermeier 2001, Completely derandomized self-adaptation in evolution strategies; "
    "Hansen 2016, The CMA evolution strategy: a tutorial; restarts: Auger & Hansen 2005; "
    "separable: Ros & Hansen 2008",
    policies=("LinearPolicy", "MlpPolicy", "MultiInputPolicy"),
    space={
        "population_size": Int(3, 7, power=2),
        "init_std": Float(0.02, 3.0, log=True),
        "covariance": Choice("full", "diag"),
        "restart": Choice(None, "same", "double"),
        "n_eval_episodes": Int(1, 4),
        "common_seeds": Choice(False, True),
        "normalize_observations": Choice(False, True),
    },
)
