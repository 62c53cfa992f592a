"""How far K independent estimates of a vector are, on average, from what they should be, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from scipy import stats
from torch import Tensor

#: Chance that any of the comparisons of one run fails although all estimators are right.
FALSE_ALARM = 0.01
#: Deviations smaller than this share of a vector's length are rounding: algorithms compute in float32.
ROUNDING = 2e-5


@dataclass(frozen=True)
class Deviation:
    """The mean of K estimates against a target g of P components.

    :param largest: the largest distance between mean and g, along any axis or along g, in standard errors
    :param limit: what ``largest`` must not exceed
    :param along: component of the bias along g, as a share of |g|; None where only the direction is compared
    :param along_error: half the width of its 95 % confidence interval (Student's t); None likewise
    :param forward: where only the direction is compared, whether the mean points to the side of g (True) or away from
        it (False); None if that cannot be told
    """

    largest: float
    limit: float
    along: float | None
    along_error: float | None
    forward: bool | None = True

    @property
    def agrees(self) -> bool:
        return self.largest <= self.limit and self.forward is True

    @property
    def refuted(self) -> bool:
        return self.largest > self.limit or self.forward is False


def standard_errors_allowed(n_numbers: int, n_estimates: int, n_comparisons: int = 1) -> float:
    """The limit of ``|mean - target| / standard error`` for each number of each of several comparisons.

    Bonferroni: ``n_numbers * n_comparisons`` statements, each wrong with a chance of :data:`FALSE_ALARM` divided by how
    many they are, are all right with a chance of at least ``1 - FALSE_ALARM``, however they depend on each other. The
    mean of ``n_estimates`` estimates, each a mean over episodes, is close to normal, and its distance from its
    expectation in units of its own standard error has Student's t distribution (Student 1908; see :func:`student`).

    >>> round(standard_errors_allowed(9, 200, 100), 2)
    4.49
    """
    tail = FALSE_ALARM / (2 * n_numbers * n_comparisons)
    return float(stats.t.isf(tail, n_estimates - 1))


class Means(NamedTuple):
    """Means of several numbers, N of them, each from samples of its own.

    :param value: (N,)
    :param error: standard error of each, (N,)
    :param skewness: of the distribution of each, (N,)
    """

    value: Tensor
    error: Tensor
    skewness: Tensor


def means(samples: Sequence[Tensor], coefficients: Sequence[float] = (1.0,)) -> Means:
    """The sum of the means of independent samples, each times its coefficient.

    :param samples: each (K, N)
    """
    pairs = list(zip(coefficients, samples, strict=True))
    value = th.stack([c * x.mean(0) for c, x in pairs]).sum(0)
    variance = th.stack([c**2 * x.var(0) / len(x) for c, x in pairs]).sum(0)
    third = th.stack([c**3 * (x - x.mean(0)).pow(3).mean(0) / len(x) ** 2 for c, x in pairs]).sum(0)
    return Means(value, variance.sqrt(), third / (variance**1.5 + 1e-300))


def student(found: Means, expected: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """Distance between means and what is expected of them, in standard errors, (N,); less ``rounding``, without sign.

    Skewed samples make Student's t one-sided, because the mean and the standard error then go up and down together.
    Hall's transformation undoes that to first order, and keeps the order of all values (Hall 1992, On the removal of
    skewness by transformation, J. R. Statist. Soc. B 54, section 2):

        t + skewness (2 t^2 + 1) / 6 + skewness^2 t^3 / 27.
    """
    distance = found.value - expected
    distance = distance.sign() * (distance.abs() - rounding).clamp_min(0)
    t = distance / (found.error + 1e-300)
    moderate = t.abs() < 1e6  # beyond, nothing has a distribution, and squares overflow
    corrected = t + found.skewness * (2 * t**2 + 1) / 6 + found.skewness**2 * t**3 / 27
    return th.where(moderate & (distance != 0), corrected, t).abs()


def deviation(
    samples: Sequence[Tensor], target: Tensor, coefficients: Sequence[float] = (1.0,), n_comparisons: int = 1
) -> Deviation:
    """Compare a mean with its target, component by component, and along the target: P + 1 numbers.

    The first sees an error of any component, the last one of the scale, which all components share.

    :param samples: estimates (K, P), one tensor or several that are independent
    :param target: g, (P,)
    :param coefficients: of the samples; what is compared is the sum of their means times these
    :param n_comparisons: how many such comparisons share the chance of a false alarm
    """
    length = target.norm()
    axes = th.cat([th.eye(len(target), dtype=target.dtype), target[:, None] / length], 1)  # (P, P + 1)
    found = means([x @ axes for x in samples], coefficients)
    n_estimates = len(samples[-1])
    half_width = stats.t.isf(0.025, n_estimates - 1) * found.error[-1] / length
    return Deviation(
        largest=student(found, target @ axes, ROUNDING * length).max().item(),
        limit=standard_errors_allowed(axes.shape[1], n_estimates, n_comparisons),
        along=((found.value[-1] - length) / length).item(),
        along_error=half_width.item(),
    )


def direction_deviation(
    samples: Sequence[Tensor], target: Tensor, coefficients: Sequence[float] = (1.0,), n_comparisons: int = 1
) -> Deviation:
    """As :func:`deviation`, for a mean that should be the target times some positive factor.

    What is compared with 0 are the components of the part of the mean that stands at right angles to the target.
    """
    unit = target / target.norm()
    axes = th.cat([th.eye(len(target), dtype=target.dtype) - th.outer(unit, unit), unit[:, None]], 1)
    found = means([x @ axes for x in samples], coefficients)
    factor, distances = (
        found.value[-1].abs(),
        student(found, th.zeros_like(found.value), ROUNDING * found.value[-1].abs()),
    )
    limit = standard_errors_allowed(axes.shape[1], len(samples[-1]), n_comparisons)
    known = factor > limit * found.error[-1]
    return Deviation(
        largest=distances[:-1].max().item(),
        limit=limit,
        along=None,
        along_error=None,
        forward=bool(found.value[-1] > 0) if known else None,
    )


def towards_the_limit(ratio: float) -> tuple[float, float]:
    """Coefficients of the means of M and of ``ratio`` M episodes whose sum is free of a bias proportional to 1 / M.

    ``mean(M) = g + b / M`` gives ``g = (ratio mean(ratio M) - mean(M)) / (ratio - 1)`` (Richardson 1911). What is left
    is of order 1 / M^2.
    """
    return -1 / (ratio - 1), ratio / (ratio - 1)
