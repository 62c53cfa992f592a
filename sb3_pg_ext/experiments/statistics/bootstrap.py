"""Confidence intervals by resampling runs within their environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_pg_ext.experiments.statistics.aggregates import Array, Statistic, iqm

RESAMPLES = 5000
_RESAMPLES_OF_CURVES = 2000


@dataclass(frozen=True)
class Estimate:
    """A point estimate with a confidence interval; its ends are NaN where there are too few runs for one."""

    point: float
    low: float
    high: float


def stratified_interval(
    strata: Sequence[Any],
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """``statistic`` of the scores, with a percentile interval of the stratified bootstrap.

    Runs are resampled with replacement within each stratum (an environment), since the environments are given and only
    the runs are random (Agarwal et al. 2021, section 4.1; Efron 1979).

    :param strata: one (n_i,) array of scores per stratum
    :param statistic: of the strata along ``axis``
    :param level: coverage of the interval
    :param resamples: number of bootstrap samples
    :param seed: of the resampling: the same scores have the same interval
    :raises ValueError: there is no score at all
    """
    samples = [np.asarray(stratum, dtype=np.float64) for stratum in strata if len(stratum)]
    if not samples:
        raise ValueError("strata: there is no score to estimate from")
    point = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < 2:
        return Estimate(point, np.nan, np.nan)
    generator = np.random.default_rng(seed)
    resampled = [sample[picks(generator, resamples, len(sample))] for sample in samples]
    low, high = percentiles(statistic(*resampled, axis=-1), level)
    return Estimate(point, float(low), float(high))


def curve_band(
    *strata: Any,
    statistic: Statistic = iqm,
    level: float = 0.95,
    resamples: int = _RESAMPLES_OF_CURVES,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """``statistic`` over runs at each point of a curve, with pointwise intervals.

    The intervals are percentiles of the stratified bootstrap. Of one environment it is a learning curve; of several,
    with normalised scores, the sample-efficiency curve (Agarwal et al. 2021, section 4.3). Whole runs are resampled, as
    the points of a run are not independent.

    :param strata: (n_i, k) score of run n at point k, one array per environment
    :return: (k,) each: estimate, lower and upper bound; the bounds are NaN where an environment has a single run
    """
    curves = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    middle = statistic(*curves, axis=0)
    if min(map(len, curves)) < 2:
        return middle, np.full(len(middle), np.nan), np.full(len(middle), np.nan)
    generator = np.random.default_rng(seed)
    resampled = [curve[picks(generator, resamples, len(curve))] for curve in curves]
    return middle, *percentiles(statistic(*resampled, axis=1), level)


def picks(generator: np.random.Generator, resamples: int, n: int) -> Any:
    """(R, n) numbers of the runs that are drawn, with replacement."""
    return generator.integers(0, n, (resamples, n))


def percentiles(resampled: Any, level: float) -> tuple[Any, Any]:
    """Ends of the percentile interval (Efron 1979).

    :param resampled: (R, ...) values of a statistic
    :return: (...) each
    """
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
