"""FDPG, the finite-difference policy gradient (Peters & Schaal 2008, section 3.1; Kohl & Stone 2004).

The policy's parameters are moved by d_i, and the differences of returns that follow are regressed on the d_i:

    g = argmin_g sum_i (g . d_i - D_i)^2 = (d^T d)^-1 d^T D,
    D_i = (J(theta + d_i) - J(theta - d_i)) / 2    or    J(theta + d_i) - J(theta)

With d_i = delta times the i-th unit vector that is the difference quotient of each coordinate.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_pg_ext.bases.options import PolicySearchOptions, check_choice, check_count, check_number
from sb3_pg_ext.bases.policy_search import PolicySearchBase
from sb3_pg_ext.spec import AlgorithmSpec, Choice, Float, GradientClaim, Int

Array = np.ndarray[Any, Any]
Perturbation = Literal["regression", "coordinate"]
Differences = Literal["central", "forward"]
Normalization = Literal["gradient", "returns", "none"]


def central(candidates: Array, returns: Array) -> tuple[Array, Array]:
    """d (m, P) and D (m,) of theta + d (the first m candidates) and theta - d (the others)."""
    m = len(candidates) // 2
    return (candidates[:m] - candidates[m:]) / 2, (returns[:m] - returns[m:]) / 2


def forward(candidates: Array, returns: Array) -> tuple[Array, Array]:
    """d (m, P) and D (m,) of theta (the first candidate) and theta + d."""
    return candidates[1:] - candidates[0], returns[1:] - returns[0]


DIFFERENCES = {"central": central, "forward": forward}


def least_squares(d: Array, D: Array) -> Array:
    """g (P,) that minimises sum_i (g . d_i - D_i)^2; with fewer than P perturbations the shortest of these."""
    gradient: Array = np.linalg.lstsq(d, D, rcond=None)[0]
    return gradient


def quotients(d: Array, D: Array) -> Array:
    """D_i / d_ii, (P,): every perturbation moves one coordinate."""
    gradient: Array = D / d.diagonal()
    return gradient


GRADIENTS = {"regression": least_squares, "coordinate": quotients}
#: What the gradient is divided by, from gradient (P,) and returns (n,).
NORMS = {
    "gradient": lambda gradient, returns: np.linalg.norm(gradient),
    "returns": lambda gradient, returns: returns.std() if np.ptp(returns) > 0 else 0.0,
    "none": lambda gradient, returns: 1.0,
}


class FDPG(PolicySearchBase):
    """The finite-difference policy gradient: regress returns on perturbations of the parameters.

    :param learning_rate: step size, or a schedule; with ``normalization="gradient"`` the length of a step
    :param population_size: n, candidates per iteration with ``perturbation="regression"``: n / 2 pairs, or n - 1
        perturbations and theta itself. ``"coordinate"`` takes as many as it needs: 2 P, or P + 1
    :param perturbation: ``"regression"``: in random directions; ``"coordinate"``: one parameter after another
    :param differences: ``"central"``: between theta + d and theta - d, with an error of the order delta^2;
        ``"forward"``: between theta + d and theta, with one of the order delta
    :param delta: size of the perturbations: standard deviation in every coordinate, or step of the one coordinate
    :param normalization: what the gradient is divided by: ``"gradient"``: its norm; ``"returns"``: the standard
        deviation of the returns; ``"none"``: nothing
    """

    def __init__(  # type: ignore[misc]
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float | Schedule = 0.1,
        population_size: int = 32,
        perturbation: Perturbation = "regression",
        differences: Differences = "central",
        delta: float = 0.1,
        normalization: Normalization = "gradient",
        common_seeds: bool = True,
        zero_policy: bool = False,
        **common: Unpack[PolicySearchOptions],
    ):
        check_count("population_size", population_size, 2)
        check_choice("perturbation", perturbation, Perturbation)
        check_choice("differences", differences, Differences)
        check_number("delta", delta, 0, 1e18, above=True)
        check_choice("normalization", normalization, Normalization)
        if perturbation == "regression" and differences == "central" and population_size % 2:
            raise ValueError(f"population_size={population_size}: central differences take pairs, an even number")
        self.perturbation = perturbation
        self.differences = differences
        self.delta = delta
        self.normalization = normalization
        super().__init__(
            policy,
            env,
            learning_rate,
            population_size=population_size,
            common_seeds=common_seeds,
            zero_policy=zero_policy,
            **common,
        )

    def ask(self) -> Array:
        theta, d = self.search["mean"], self.delta * self._directions()
        moves = [d, -d] if self.differences == "central" else [np.zeros_like(theta)[None], d]
        # As they will act, in float32: what rounding does to the perturbations is then no error of the gradient.
        candidates = (theta + np.concatenate(moves)).astype(np.float32).astype(np.float64)
        if (candidates.max(0) == candidates.min(0)).any():
            raise ValueError(
                f"delta={self.delta!r} is lost in rounding beside parameters as large as {np.abs(theta).max():.3g}: "
                "delta is too small, or learning_rate has been too large"
            )
        return candidates

    def _directions(self) -> Array:
        """d / delta, (m, P)."""
        n_parameters = len(self.search["mean"])
        if self.perturbation == "coordinate":
            return np.eye(n_parameters)
        m = self.population_size // 2 if self.differences == "central" else self.population_size - 1
        return self.rng.standard_normal((m, n_parameters))

    def tell(self, candidates: Array, returns: Array) -> None:
        d, D = DIFFERENCES[self.differences](candidates, returns)
        gradient = GRADIENTS[self.perturbation](d, D)
        norm = float(NORMS[self.normalization](gradient, returns))
        if norm > 0:  # else all returns are alike
            self.search["mean"] += self.step_size * gradient / norm
        self.record(gradient_norm=float(np.linalg.norm(gradient)), explained=_explained(d @ gradient, D))


def _explained(fitted: Array, D: Array) -> float:
    """Share of sum_i D_i^2 that the linear fit explains; 1 for as many perturbations as parameters or fewer."""
    scale = np.abs(D).max()
    return float(1 - (((fitted - D) / scale) ** 2).sum() / ((D / scale) ** 2).sum()) if scale > 0 else 1.0


SPEC = AlgorithmSpec(
    FDPG,
    family="policy_search",
    paper="Peters & Schaal 2008, Reinforcement learning of motor skills with policy gradients, section 3.1; "
    "Kohl & Stone 2004, Policy gradient reinforcement learning for fast quadrupedal locomotion",
    policies=("LinearPolicy", "MlpPolicy", "MultiInputPolicy"),
    space={
        "learning_rate": Float(1e-3, 1.0, log=True),
        "population_size": Int(3, 7, power=2),
        "delta": Float(0.01, 1.0, log=True),
        "normalization": Choice("gradient", "returns"),
        "n_eval_episodes": Int(1, 4),
        "normalize_observations": Choice(False, True),
    },
    claims=(
        GradientClaim(
            "central", {"normalization": "none", "delta": 0.01}, estimate="one_iteration", kind="perturbation"
        ),
        *(
            GradientClaim(
                f"{differences}, wide",
                {"normalization": "none", "delta": 0.2, "differences": differences, "common_seeds": False},
                target="smoothed_gradient",
                holds="limit",
                bias="it is the gradient of the mean return of normally perturbed parameters",
                estimate="one_iteration",
                kind="perturbation",
            )
            for differences in ("central", "forward")
        ),
    ),
)
