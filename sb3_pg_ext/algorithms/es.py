"""ES, evolution strategies (Salimans et al. 2017; Wierstra et al. 2014): gradient ascent on the mean of a Gaussian.

    F(mu) = E[f(theta)],  theta ~ N(mu, sigma^2 I),        grad F = E[f(theta) (theta - mu) / sigma^2]

(theta - mu) / sigma^2 is the score of the Gaussian. With theta_i = mu + sigma e_i, and f replaced by a fitness u that
depends on the returns of the whole population, the estimate is

    g = 1 / (n sigma) sum_i u_i e_i.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg_ext.bases.options import PolicySearchOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.policy_search import PolicySearchBase, SearchState
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int

Array = np.ndarray[Any, Any]
Shaping = Literal["rank", "standard", "none"]
Sampling = Literal["antithetic", "independent"]
Optimizer = Literal["adam", "sgd"]
#: Adam's decay of squared gradients, and what keeps its quotient finite.
BETA_2, EPSILON = 0.999, 1e-8


def centered_ranks(returns: Array) -> Array:
    """Ranks (n,) scaled to [-1/2, 1/2]; equals share the mean of their ranks, so that no order is made up."""
    _, which, counts = np.unique(returns, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[which]
    return ranks / max(len(returns) - 1, 1) - 0.5


def standard_scores(returns: Array) -> Array:
    """Returns (n,) less their mean, divided by their standard deviation; 0 where all are alike."""
    deviations = returns - returns.mean()
    # The mean of equals is off by a rounding error, of which nothing shall be made.
    return deviations / returns.std() if np.ptp(returns) > 0 else np.zeros_like(returns)


SHAPINGS = {"rank": centered_ranks, "standard": standard_scores, "none": lambda returns: returns}


def antithetic_noise(rng: np.random.Generator, n: int, n_parameters: int) -> Array:
    """Standard normal e (n, P) whose second half is the negative of the first."""
    half = rng.standard_normal((n // 2, n_parameters))
    return np.concatenate([half, -half])


def independent_noise(rng: np.random.Generator, n: int, n_parameters: int) -> Array:
    """Standard normal e (n, P)."""
    return rng.standard_normal((n, n_parameters))


SAMPLINGS = {"antithetic": antithetic_noise, "independent": independent_noise}


def sgd(search: SearchState, gradient: Array, momentum: float) -> Array:
    """Running mean of the gradients, m <- momentum m + (1 - momentum) g, (P,)."""
    search["first_moment"] = momentum * search["first_moment"] + (1 - momentum) * gradient
    return search["first_moment"]


def adam(search: SearchState, gradient: Array, momentum: float) -> Array:
    """Running mean over the root of the running mean square, (P,); both as if they had not begun at 0 (Kingma 2015)."""
    search["n_gradients"] += 1
    search["second_moment"] = BETA_2 * search["second_moment"] + (1 - BETA_2) * gradient**2
    t = search["n_gradients"].item()
    mean = sgd(search, gradient, momentum) / (1 - momentum**t)
    return mean / (np.sqrt(search["second_moment"] / (1 - BETA_2**t)) + EPSILON)


OPTIMIZERS = {"adam": adam, "sgd": sgd}


class ES(PolicySearchBase):
    """Evolution strategies: follow the gradient of the mean return of randomly perturbed parameters.

    :param learning_rate: step size of the optimizer, or a schedule
    :param population_size: n, candidates per iteration; even with ``sampling="antithetic"``
    :param sigma: standard deviation of every parameter; it stays as it is
    :param shaping: fitness of a candidate: ``"rank"``: its rank among all, in [-1/2, 1/2]; ``"standard"``: its return,
        standardised; ``"none"``: its return
    :param sampling: ``"antithetic"``: candidates come in pairs mu + sigma e and mu - sigma e, so that whatever is even
        in e cancels; ``"independent"``
    :param optimizer: ``"adam"`` or ``"sgd"``
    :param momentum: decay of the running mean of gradients, Adam's beta_1
    :param weight_decay: w; w mu is subtracted from the gradient, as of a penalty w |mu|^2 / 2
    """

    def __init__(  # type: ignore[misc]
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule = 0.02,
        population_size: int = 64,
        sigma: float = 0.1,
        shaping: Shaping = "rank",
        sampling: Sampling = "antithetic",
        optimizer: Optimizer = "adam",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        zero_policy: bool = False,
        **common: Unpack[PolicySearchOptions],
    ):
        check_count("population_size", population_size, 2)
        check_number("sigma", sigma, 0, 1e18, above=True)
        check_choice("shaping", shaping, Shaping)
        check_choice("sampling", sampling, Sampling)
        check_choice("optimizer", optimizer, Optimizer)
        check_number("momentum", momentum, 0, 0.9999)
        check_number("weight_decay", weight_decay, 0, 1e30)
        if sampling == "antithetic" and population_size % 2:
            raise ValueError(f"population_size={population_size}: antithetic candidates come in pairs, an even number")
        self.sigma = sigma
        self.shaping = shaping
        self.sampling = sampling
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        super().__init__(policy, env, learning_rate, population_size=population_size, zero_policy=zero_policy, **common)

    def initial_state(self, theta: Array) -> dict[str, Any]:
        moments = {"first_moment": np.zeros_like(theta)}
        if self.optimizer == "adam":
            moments |= {"second_moment": np.zeros_like(theta), "n_gradients": np.zeros(())}
        return moments

    def ask(self) -> Array:
        mean = self.search["mean"]
        return mean + self.sigma * SAMPLINGS[self.sampling](self.rng, self.population_size, len(mean))

    def tell(self, candidates: Array, returns: Array) -> None:
        mean = self.search["mean"]
        gradient = SHAPINGS[self.shaping](returns) @ ((candidates - mean) / self.sigma**2) / len(returns)
        direction = OPTIMIZERS[self.optimizer](self.search, gradient - self.weight_decay * mean, self.momentum)
        self.search["mean"] = mean + self.step_size * direction
        self.record(gradient_norm=float(np.linalg.norm(gradient)))


_PLAIN = {"shaping": "none", "optimizer": "sgd", "momentum": 0.0, "sigma": 0.2}
_SMOOTHED: dict[str, Any] = {
    "target": "smoothed_gradient",
    "bias": "it is the gradient of the mean return of normally perturbed parameters",
    "estimate": "one_iteration",
    "kind": "perturbation",
}

SPEC = AlgorithmSpec(
    ES,
    family="policy_search",
    paper="Salimans et al. 2017, Evolution strategies as a scalable alternative to reinforcement learning; "
    "Wierstra et al. 2014, Natural evolution strategies",
    policies=("LinearPolicy", "MlpPolicy", "MultiInputPolicy"),
    space={
        "learning_rate": Float(1e-3, 0.3, log=True),
        "population_size": Int(4, 8, power=2),
        "sigma": Float(0.01, 1.0, log=True),
        "shaping": Choice("rank", "standard"),
        "momentum": Choice(0.0, 0.9),
        "weight_decay": Float(1e-5, 0.1, log=True),
        "n_eval_episodes": Int(1, 4),
        "common_seeds": Choice(False, True),
        "normalize_observations": Choice(False, True),
    },
    claims=(
        GradientClaim("antithetic", _PLAIN, **_SMOOTHED),
        GradientClaim("independent", {**_PLAIN, "sampling": "independent"}, **_SMOOTHED),
        GradientClaim("standardised", {**_PLAIN, "shaping": "standard"}, holds="direction", **_SMOOTHED),
    ),
)
