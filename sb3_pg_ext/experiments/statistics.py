"""Statistics over runs that hold up with few seeds (Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the
Statistical Precipice, arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[..., Any]
RESAMPLES = 5000


@dataclass(frozen=True)
class Estimate:
    """A point estimate with a confidence interval; its ends are NaN where there are too few runs for one."""

    point: float
    low: float
    high: float


def iqm(scores: Any, axis: int | None = None) -> Any:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter, ``floor(n / 4)`` each.

    As robust as the median, and nearly as efficient as the mean (Agarwal et al. 2021, section 4.3).

    :param scores: (n, ...) one score per run
    :param axis: the axis of the runs; ``None`` takes all of ``scores`` as one sample
    :return: scalar, or (...)
    """
    return stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=axis)


def stratified_interval(
    strata: Sequence[Any],
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """``statistic`` of all scores together, with a percentile interval of the stratified bootstrap.

    Runs are resampled with replacement within each stratum (an environment), since the environments are given and only
    the runs are random (Agarwal et al. 2021, section 4.1; Efron 1979).

    :param strata: one (n_i,) array of scores per stratum
    :param statistic: of an array along ``axis``
    :param level: coverage of the interval
    :param resamples: number of bootstrap samples
    :param seed: of the resampling: the same scores have the same interval
    :raises ValueError: there is no score at all
    """
    samples = [np.asarray(stratum, dtype=np.float64) for stratum in strata if len(stratum)]
    if not samples:
        raise ValueError("strata: there is no score to estimate from")
    point = float(statistic(np.concatenate(samples), axis=-1))
    if min(map(len, samples)) < 2:
        return Estimate(point, np.nan, np.nan)
    found = stats.bootstrap(
        samples,
        lambda *resampled, axis: statistic(np.concatenate(resampled, axis=axis), axis=axis),
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(point, float(found.low), float(found.high))


def curve_band(
    curves: Any, statistic: Statistic = iqm, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """``statistic`` over runs at each point of a learning curve, with pointwise percentile bootstrap intervals.

    :param curves: (n, k) score of run n at point k
    :return: (k,) each: estimate, lower and upper bound; the bounds are NaN for a single run
    """
    values = np.asarray(curves, dtype=np.float64)
    n_runs, n_points = values.shape
    middle = statistic(values, axis=0)
    if n_runs < 2:
        return middle, np.full(n_points, np.nan), np.full(n_points, np.nan)
    picks = np.random.default_rng(seed).integers(n_runs, size=(resamples, n_runs))
    resampled = statistic(values[picks], axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return middle, low, high


def area_under_curve(steps: Any, returns: Any, total_steps: float) -> float:
    """Mean height of a learning curve by the trapezoidal rule, so that it is in units of return.

        1 / (s_k - s_0)  integral_{s_0}^{s_k}  R(s) ds,   s_k = total_steps

    :param steps: (k,) increasing environment steps
    :param returns: (k,) mean return at each
    :param total_steps: where the curve is cut, or continued with its last value
    :raises ValueError: fewer than two points
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(returns, dtype=np.float64)
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"steps and returns have {len(x)} and {len(y)} points: the same number, at least 2, is needed")
    end = float(total_steps)
    inside = x < end
    x_cut, y_cut = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y_cut, x_cut) / (end - x_cut[0]))
