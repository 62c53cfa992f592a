"""CEM, the cross-entropy method (Rubinstein 1999), as a policy search; noisy CEM (Szita & Lorincz 2006).

    theta_i ~ N(mu, Sigma + Z_t I),    mu <- sum_i w_i theta_i,    Sigma <- sum_i w_i (theta_i - mu)(theta_i - mu)^T

with weights w that prefer high returns and sum to 1. Z_t, a noise that decays to 0, keeps Sigma from shrinking before
mu has arrived.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg_ext.bases.options import PolicySearchOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.policy_search import PolicySearchBase
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, Int

Array = np.ndarray[Any, Any]
Weighting = Literal["elite", "rank", "return"]
Covariance = Literal["diag", "full"]
#: A full covariance of more parameters than this is refused: its Cholesky factor takes P^3 / 3 steps an iteration.
FULL_COVARIANCE_LIMIT = 1000


def elite_weights(returns: Array, n_elite: int) -> Array:
    """w_i = 1 / k for the k best, 0 for the others, (n,)."""
    weights = np.zeros(len(returns))
    weights[_best(returns, n_elite)] = 1 / n_elite
    return weights


def rank_weights(returns: Array, n_elite: int) -> Array:
    """w ~ log(k + 1/2) - log(rank) for the k best, 0 for the others, (n,)   (Hansen & Ostermeier 2001)."""
    weights = np.zeros(len(returns))
    weights[_best(returns, n_elite)] = np.log(n_elite + 0.5) - np.log(np.arange(1, n_elite + 1))
    return weights / weights.sum()


def return_weights(returns: Array, n_elite: int) -> Array:
    """w_i ~ R_i - min R, (n,): the worst weighs nothing; all alike if all returns are."""
    # Scaled first, since a sum of squares or of many returns might overflow.
    span = returns.max() - returns.min()
    if span == 0:
        return np.full(len(returns), 1 / len(returns))
    weights: Array = (returns - returns.min()) / span
    return weights / weights.sum()


def _best(returns: Array, k: int) -> Array:
    """Indices of the k largest, best first; of equals the earlier ones."""
    return np.argsort(-returns, kind="stable")[:k]


WEIGHTINGS = {"elite": elite_weights, "rank": rank_weights, "return": return_weights}


def weighted_moments(candidates: Array, weights: Array, full: bool) -> tuple[Array, Array]:
    """Mean (P,) and variance (P,), or with ``full`` covariance (P, P), of candidates (n, P) under weights (n,)."""
    chosen = weights > 0
    theta, w = candidates[chosen], weights[chosen]
    mean = w @ theta
    deviations = theta - mean
    return mean, (deviations.T * w) @ deviations if full else w @ deviations**2


class CEM(PolicySearchBase):
    """CEM: refit a Gaussian over policy parameters to the candidates that did best.

    :param learning_rate: share of the way to the refitted mean and covariance, at most 1
    :param population_size: n, candidates per iteration
    :param elite_frac: share of the candidates that count with ``weighting`` ``"elite"`` and ``"rank"``; at least one
    :param weighting: ``"elite"``: the best ones, all alike; ``"rank"``: the best ones, by the logarithm of their rank;
        ``"return"``: all, in proportion to their return above the worst
    :param covariance: ``"diag"``: every parameter by itself; ``"full"``: with correlations, for at most 1000 parameters
    :param init_std: standard deviation of every parameter at the start
    :param noise_init: Z_0, variance added to every parameter's at the start (noisy CEM)
    :param noise_decay: iterations in which Z_t falls from Z_0 to 0, linearly; None keeps it
    :param extra_std: standard deviation that is always added
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule = 1.0,
        population_size: int = 50,
        elite_frac: float = 0.2,
        weighting: Weighting = "elite",
        covariance: Covariance = "diag",
        init_std: float = 1.0,
        noise_init: float = 0.0,
        noise_decay: int | None = None,
        extra_std: float = 0.0,
        **common: Unpack[PolicySearchOptions],
    ):
        check_count("population_size", population_size, 2)
        check_number("elite_frac", elite_frac, 0, 1, above=True)
        check_choice("weighting", weighting, Weighting)
        check_choice("covariance", covariance, Covariance)
        check_number("init_std", init_std, 0, 1e18, above=True)
        check_number("noise_init", noise_init, 0, 1e30)
        check_count("noise_decay", noise_decay, optional=True)
        check_number("extra_std", extra_std, 0, 1e15)
        self.elite_frac = elite_frac
        self.weighting = weighting
        self.covariance = covariance
        self.init_std = init_std
        self.noise_init = noise_init
        self.noise_decay = noise_decay
        self.extra_std = extra_std
        super().__init__(policy, env, learning_rate, population_size=population_size, **common)

    def initial_state(self, theta: Array) -> dict[str, Any]:
        variances = np.full(len(theta), self.init_std**2)
        if self.covariance == "diag":
            return {"covariance": variances}
        if len(theta) > FULL_COVARIANCE_LIMIT:
            raise ValueError(
                f"covariance='full' is for at most {FULL_COVARIANCE_LIMIT} parameters, but the policy has "
                f"{len(theta)}: use covariance='diag', or a smaller policy"
            )
        return {"covariance": np.diag(variances)}

    @property
    def noise(self) -> float:
        """Variance added in this iteration: Z_t and the square of ``extra_std``."""
        left = 1.0 if self.noise_decay is None else max(1.0 - self._n_updates / self.noise_decay, 0.0)
        return self.noise_init * left + self.extra_std**2

    def ask(self) -> Array:
        z = self.rng.standard_normal((self.population_size, len(self.search["mean"])))
        if self.covariance == "diag":
            return self.search["mean"] + np.sqrt(self.search["covariance"] + self.noise) * z
        return self.search["mean"] + z @ _cholesky(self.search["covariance"], self.noise).T

    def tell(self, candidates: Array, returns: Array) -> None:
        rate = self.step_size
        if rate > 1:
            raise ValueError(
                f"learning_rate={rate!r}: CEM goes to the refitted distribution and no further, so 1 at most"
            )
        n_elite = max(1, round(self.elite_frac * self.population_size))
        weights = WEIGHTINGS[self.weighting](returns, n_elite)
        mean, covariance = weighted_moments(candidates, weights, full=self.covariance == "full")
        self.search["mean"] = (1 - rate) * self.search["mean"] + rate * mean
        self.search["covariance"] = (1 - rate) * self.search["covariance"] + rate * covariance
        self.record(noise=self.noise, std=np.sqrt(self._variances().mean()))

    def _variances(self) -> Array:
        covariance = self.search["covariance"]
        return covariance if covariance.ndim == 1 else covariance.diagonal()


def _cholesky(covariance: Array, noise: float) -> Array:
    """L with L L^T = covariance + noise I, (P, P)."""
    identity = np.eye(len(covariance))
    # Fewer elites than parameters leave the covariance singular.
    jitter = 1e-10 * covariance.diagonal().mean() + 1e-30
    return np.linalg.cholesky(covariance + (noise + jitter) * identity)


SPEC = AlgorithmSpec(
    CEM,
    family="policy_search",
    paper="Szita & Lorincz 2006, Learning Tetris using the noisy cross-entropy method; "
    "Rubinstein 1999, The cross-entropy method for combinatorial and continuous optimization",
    policies=("LinearPolicy", "MlpPolicy", "MultiInputPolicy"),
    space={
        "population_size": Int(4, 7, power=2),
        "elite_frac": Float(0.05, 0.5, log=True),
        "weighting": Choice("elite", "rank", "return"),
        "init_std": Float(0.05, 3.0, log=True),
        "noise_init": Float(1e-3, 1.0, log=True),
        "noise_decay": Int(5, 100, log=True),
        "extra_std": Float(1e-3, 0.3, log=True),
        "n_eval_episodes": Int(1, 4),
        "common_seeds": Choice(False, True),
        "normalize_observations": Choice(False, True),
    },
)
